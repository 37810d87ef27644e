"""`tokencredit audit`: does credit land where it should?"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from tokencredit.cli.outputs import MODEL_VERSION, Overwrite, Resume, check_claim, claim_folder, explained_interruption
from tokencredit.cli.terminal import Bars, needed_packages, offline_if_local, quiet_libraries, say, user_errors
from tokencredit.cli.trace_options import Chat, LongTraces
from tokencredit.files import write_text

if TYPE_CHECKING:
    from tokencredit.testbed.audit import TestbedAudit

_PARTS = "parts"
"""The folder, within that of the audit, of what is finished. It is removed when all is."""
_AUDIT = "audit.json"
_BATCH_SIZE = 8
Run = Callable[[Path, Bars], dict[str, Any]]
"""From the folder for finished parts to `policies`, and what else audit.json is to say."""


def audit(
    model: Annotated[
        str | None, typer.Argument(help="With --traces: the model that wrote or reads them.", show_default=False)
    ] = None,
    traces: Annotated[
        Path | None,
        typer.Option(
            help="Your completions in labelled steps, in our layout or ProcessBench's: a file of any format of "
            "docs/formats.md.",
            show_default=False,
        ),
    ] = None,
    methods: Annotated[
        str, typer.Option(help="Methods, NAME or NAME:PARAMETER=VALUE, separated by commas, or 'all'.")
    ] = "all",
    task: Annotated[
        str, typer.Option(help="Without --traces: gather, long_gather, two_hop, chain, countdown.")
    ] = "gather",
    level: Annotated[int | None, typer.Option(help="Its difficulty.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(help="Seeds policies, problems, sampling and intervals.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="GRPO steps of the policies after RL.")] = 50,
    warmup_steps: Annotated[int | None, typer.Option(min=1, help="Steps of the warm-up.", show_default=False)] = None,
    problems: Annotated[int, typer.Option(min=1, help="Held-out problems, 8 completions each.")] = 60,
    estimated: Annotated[
        int, typer.Option(min=1, help="Correct, and wrong, completions with Monte-Carlo values and replacements.")
    ] = 40,
    samples: Annotated[int, typer.Option(min=2, help="Continuations of each of their prefixes.")] = 16,
    chat: Chat = False,
    long_traces: LongTraces = "refuse",
    out: Annotated[
        Path | None,
        typer.Option(help="The folder of audit.json and report.html.", show_default="runs/audit-TIME"),
    ] = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
) -> None:
    """Score every method's credit against ground truth, beside controls that know nothing.

    Without MODEL: a policy of the testbed, before and after RL, whose truth is known exactly. A star marks what beats,
    by its whole interval, its own values shuffled within the completion, those that it gives the same token elsewhere,
    and position and step length.
    """
    offline_if_local(model)
    with needed_packages("quickstart"):
        from tokencredit.cli.audit_tables import print_audit
        from tokencredit.paths import existing_file
        from tokencredit.report import write_report
    quiet_libraries()
    folder = out or Path("runs") / f"audit-{datetime.now():%Y%m%d-%H%M%S}"
    with user_errors():
        if (model is None) != (traces is None):
            raise ValueError("MODEL and --traces go together; without both, the testbed is audited")
        if traces is None and (chat or long_traces != "refuse"):
            raise ValueError("--chat and --long-traces are about --traces: give them together with MODEL and --traces")
        if traces is not None and model is not None:
            traces = existing_file(traces)
            work: _Work = _Traces(model, traces, methods, seed, chat, long_traces)
        else:
            work = _Testbed(_testbed(methods, task, level, seed, steps, warmup_steps, problems, estimated, samples))
        config = work.config()
        before_loading = work.model_version()  # of a model on the hub, it is known once that is loaded
        config |= {} if before_loading is None else {MODEL_VERSION: before_loading}
        claim: dict[str, Any] = {"overwrite": overwrite, "resume": resume, "inputs": (model, traces)}
        check_claim(folder, config, **claim)
        finished = _finished(folder) if resume else None
        if finished is None:
            with explained_interruption("Nothing has been audited yet."):
                run, loaded = work.prepare()
            config |= loaded
        config = claim_folder(folder, config, **claim)
    if finished is None:
        how = f"To go on, give the same command with\n  --out {folder} --resume"
        with explained_interruption(f"What is finished is kept in {folder}. {how}"), user_errors(), Bars() as bars:
            finished = {"config": config, **run(folder / _PARTS, bars)}
        write_text(folder / _AUDIT, json.dumps(finished, indent=1, allow_nan=False) + "\n")
        shutil.rmtree(folder / _PARTS, ignore_errors=True)
    print_audit(finished)
    say(f"written: {folder / _AUDIT}\nreport: {write_report(folder)}")


def _finished(folder: Path) -> dict[str, Any] | None:
    """The audit that is in the folder, if it is finished."""
    file = folder / _AUDIT
    return json.loads(file.read_text("utf-8")) if file.is_file() else None


def _testbed(
    methods: str,
    task: str,
    level: int | None,
    seed: int,
    steps: int,
    warmup_steps: int | None,
    problems: int,
    estimated: int,
    samples: int,
) -> TestbedAudit:
    from tokencredit.methods.specs import expand_specs
    from tokencredit.testbed.audit import TestbedAudit
    from tokencredit.testbed.training import Budget
    from tokencredit.testbed.warmup import recipe_for

    return TestbedAudit(
        arms=expand_specs(methods),
        task=task,
        level=level,
        seed=seed,
        problems=problems,
        estimated=estimated,
        samples=samples,
        budget=Budget(steps=steps, seed=seed),
        warm_up=recipe_for(task, seed=seed, steps=warmup_steps),
    )


class _Work(Protocol):
    """An audit that is to be done."""

    def config(self) -> dict[str, Any]:
        """Its settings, JSON-ready. Raises a ValueError where they make no sense."""
        ...

    def model_version(self) -> str | None:
        """The version of the model, as far as it is known before that is loaded."""
        ...

    def prepare(self) -> tuple[Run, dict[str, Any]]:
        """Check the rest of the input, and return the settings that are known only then.

        Raises a ValueError that says what is wrong with the input.
        """
        ...


@dataclass(frozen=True)
class _Testbed:
    audit: TestbedAudit

    def config(self) -> dict[str, Any]:
        return self.audit.as_config()

    def model_version(self) -> None:
        """The testbed trains its models, by the settings alone."""
        return

    def prepare(self) -> tuple[Run, dict[str, Any]]:
        from tokencredit.testbed.audit import run_audit

        return lambda parts, bars: {"policies": run_audit(self.audit, bars, parts)["policies"]}, {}


@dataclass(frozen=True)
class _Traces:
    """The methods that need nothing but the model, or those that are named, on a user's completions."""

    model: str
    path: Path
    methods: str
    seed: int
    chat: bool
    long_traces: str

    def config(self) -> dict[str, Any]:
        """With what a head file holds, and a digest of the traces: an audit is not continued on other ones."""
        from tokencredit.long_traces import check_rule
        from tokencredit.methods.specs import build_specs

        check_rule(self.long_traces)
        built, _ = build_specs(self.methods)
        parameters = {spec: json.loads(json.dumps(vars(method), default=str)) for spec, method in built.items()}
        return {
            "command": "audit",
            "tokencredit": version("tokencredit"),
            "model": self.model,
            "traces": str(self.path),
            "traces_sha256": sha256(self.path.read_bytes()).hexdigest(),
            "methods": parameters,
            "seed": self.seed,
            "chat": self.chat,
            "long_traces": self.long_traces,
        }

    def model_version(self) -> str | None:
        from tokencredit.cli.models import folder_version

        return folder_version(self.model)

    def prepare(self) -> tuple[Run, dict[str, Any]]:
        from tokencredit.audit.parts import Parts
        from tokencredit.audit.policies import PART_TYPES, audit_policy, check_auditable
        from tokencredit.audit.traces import load_traces
        from tokencredit.cli.models import load_policy, model_version
        from tokencredit.long_traces import context_of
        from tokencredit.methods.specs import build_specs
        from tokencredit.signals import model_signature

        built, without = build_specs(self.methods)
        policy, tokenizer = load_policy(self.model)
        context = context_of(policy.config)
        loaded = load_traces(self.path, tokenizer, chat=self.chat, context=context, long_traces=self.long_traces)
        check_auditable(built, policy, loaded.rollouts, loaded.truth)
        for note in loaded.long.notes:
            say(note)

        def run(parts: Path, bars: Bars) -> dict[str, Any]:
            kept = Parts(parts, PART_TYPES)
            signature = model_signature(policy)
            if kept.value("model", lambda: signature) != signature:
                raise ValueError(f"{self.model} is another model than when the audit was begun: choose another --out")
            audited = audit_policy(
                policy,
                tokenizer,
                built,
                loaded.rollouts,
                loaded.truth,
                batch_size=_BATCH_SIZE,
                seed=self.seed,
                kept=kept,
                progress=bars,
            )
            audited["left_out"] |= without
            return {"long_traces": loaded.long.as_json(), "policies": {self.model: audited}}

        return run, {MODEL_VERSION: model_version(self.model, policy)}
