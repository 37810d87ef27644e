"""Record five steps of training by verl's engine with every method. Run by hand in verl's environment:

    OMP_NUM_THREADS=1 PYTHONPATH=src python tests/golden/record_verl.py             writes data/verl.json
    OMP_NUM_THREADS=1 PYTHONPATH=src python tests/golden/record_verl.py --compare FILE.json

Everything runs in one process, without Ray: a worker's engine makes the log-prob pass that shows what the method reads,
the trainer's side makes credit of what was shipped, and the engine takes a policy-gradient step on it. The completions
are fixed. `credit_of` is the only place that knows how the adapter's parts are called.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "on_verl"))
# verl looks at these when it is imported.
os.environ.setdefault("VERL_PLATFORM", "cpu")
os.environ.setdefault("VERL_USE_EXTERNAL_MODULES", "cpu_platform")
os.environ.setdefault("RECORDINGS", "")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from engines import batch_of, engine, log_prob_pass, nested
from golden_files import VERL, flat, read, report, write_runs
from tiny_models import SPECIAL, SYMBOLS, adapted, hashed, norm, trained_policy, word_tokenizer
from verl.utils import tensordict_utils as tu
from verl.workers.utils.padding import no_padding_2_padding

import tokencredit as tc
from tokencredit.trainers.verl.fields import ASKED, Asked, marked, shipped, unpack

STEPS = 5
OUTCOME = torch.tensor([1.0, -1.0, 0.5, -0.5])
LENGTHS, PROMPTS = (24, 17, 21, 13), (6, 4, 5, 3)
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
PACKED = {"remove_padding": True, "token_budget": 50}


@dataclass(frozen=True)
class Run:
    """One run.

    Args:
        layout: of the batches in the log-prob passes, see `engines.batch_of`.
        lora: train an adapter.
    """

    method: str
    params: dict[str, Any] = field(default_factory=dict)
    layout: dict[str, Any] = field(default_factory=dict)
    lora: bool = False

    @property
    def name(self) -> str:
        return self.method + "".join(f" {key}={value}" for key, value in {**self.params, **self.layout}.items())


RHYTHM = {"horizon": [1, 4]}
ATTNPO = {"heads": [[0, 1], [1, 0]], "beta": 0.1, "delay": 0}
RUNS = [
    *(Run(name) for name in ("uniform", "random", "position", "atpo", "entropy", "entropy_selection", "surprisal")),
    Run("entropy_reduction"),
    Run("rhythm", RHYTHM),
    Run("rhythm", RHYTHM, PACKED),
    Run("attnpo", ATTNPO),
    Run("attnpo", ATTNPO, PACKED),
    Run("arca", lora=True),
    Run("arca", {}, PACKED, lora=True),
    Run("divergence", lora=True),
]


def rollouts() -> tc.Rollouts:
    """Four completions of two prompts, not marked; three of them close their reasoning."""
    generator = torch.Generator().manual_seed(8)
    width, length = max(PROMPTS), max(LENGTHS)
    end = SYMBOLS.index("</think>")
    draw = {"low": end + 3, "high": len(SYMBOLS), "generator": generator}  # behind all that close the reasoning
    assert SYMBOLS[: len(SPECIAL) + 1] == (*SPECIAL, "</think>")
    ids = torch.randint(size=(4, length), **draw)
    for row, at in enumerate((17, 10, 14)):
        ids[row, at] = end
    return tc.Rollouts(
        prompt_ids=torch.randint(size=(4, width), **draw),
        prompt_mask=torch.arange(width) >= width - torch.tensor(PROMPTS)[:, None],
        completion_ids=ids,
        completion_mask=torch.arange(length) < torch.tensor(LENGTHS)[:, None],
        group=torch.tensor([0, 0, 1, 1]),
        correct=torch.tensor([True, False, True, False]),
    )


def credit_of(worker: Any, run: Run, batch: tc.Rollouts, step: int) -> tuple[tc.Credit, list[str]]:
    """What the trainer makes of what the worker ships, and the names of what was shipped."""
    method = tc.method(run.method, **run.params)
    fields: dict[str, Any] = {}
    if names := shipped(method):
        for reference in (False, True) if run.lora else (False,):
            data = batch_of(batch, **run.layout)
            tu.assign_non_tensor(data, **{ASKED: Asked(method, "newline", "</think>", reference, step=step)})
            fields |= dict(log_prob_pass(worker, data))
        batch = marked(batch, fields)
    else:
        batch = tc.mark_spans(batch, word_tokenizer(), "newline")
    return unpack(method, batch, OUTCOME, fields, step), sorted(names)


def train(worker: Any, batch: tc.Rollouts, advantages: torch.Tensor) -> dict[str, float]:
    """One policy-gradient step on the advantages (B, T)."""

    def loss(model_output, data, dp_group=None):
        log_probs = no_padding_2_padding(model_output["log_probs"], data)
        spread = data["advantages"].to_padded_tensor(0.0)[:, : log_probs.shape[1]]
        return -(log_probs * spread).sum() / data["batch_num_tokens"], {}

    data = batch_of(batch)
    rows = [row[real] for row, real in zip(advantages, batch.completion_mask, strict=True)]
    data["advantages"] = nested(rows)
    with worker.train_mode():
        out = worker.train_batch(data, loss_function=loss)
    value = out["loss"]
    return {
        "loss": float(sum(value) if isinstance(value, list) else value),
        "grad_norm": float(out["metrics"]["grad_norm"]),
    }


def recorded(run: Run, model: Path, adapter: Path) -> dict[str, list[float] | str]:
    """Per step the loss, the gradient's norm, the diagnostics' means and the parameters' norm; and the first credit."""
    lora = {"lora_rank": 2, "lora_adapter_path": str(adapter)} if run.lora else {}
    worker, batch = engine(model, **lora), rollouts()
    values: dict[str, Any] = {}
    for step in range(1, STEPS + 1):
        credit, names = credit_of(worker, run, batch, step)
        if step == 1:
            values["shipped"] = ", ".join(names) or "nothing"
        if step in (1, STEPS):
            on_tokens = credit.advantages[batch.completion_mask]
            values[f"advantages of step {step}"] = on_tokens.tolist()
        numbers = train(worker, batch, credit.advantages)
        numbers |= {f"credit/{name}": float(each.double().mean()) for name, each in credit.diagnostics.items()}
        numbers["norm of the parameters"] = norm(whole(worker))
        for name, number in numbers.items():
            values.setdefault(name, []).append(number)
    values["SHA-256 of the parameters"] = hashed(whole(worker))
    return values


def whole(worker: Any) -> torch.nn.Module:
    """The parameters of the one process there is, as plain tensors."""
    module = torch.nn.Module()
    for name, parameter in worker.module.named_parameters():
        local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        module.register_parameter(name.replace(".", "/"), torch.nn.Parameter(local.detach().clone()))
    return module


def record() -> dict[str, dict[str, list[float] | str]]:
    runs = {}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, adapter = Path(folder, "model"), Path(folder, "adapter")
        policy, tokenizer = trained_policy(), word_tokenizer()
        tokenizer.chat_template = TEMPLATE
        policy.save_pretrained(model)
        tokenizer.save_pretrained(model)
        adapted(policy).save_pretrained(adapter)
        for run in RUNS:
            runs[run.name] = recorded(run, model, adapter)
            print(run.name, file=sys.stderr, flush=True)
    return runs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="FILE")
    parser.add_argument("--compare", type=Path, metavar="FILE")
    given = parser.parse_args()
    torch.set_num_threads(1)
    runs = record()
    if given.out or not given.compare:
        write_runs(given.out or VERL, runs)
    if not given.compare:
        return 0
    equal, lines = report(read(given.compare), flat(runs))
    print("\n".join(lines))
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
