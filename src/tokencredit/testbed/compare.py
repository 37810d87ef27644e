"""Train credit methods side by side at matched budgets: every arm gets the same checkpoints, problems and rollouts.

A sweep is arms x learning rates x checkpoints x seeds. Each run is one file, written when the run is done, so a sweep
that was killed goes on where it stopped, and may be widened.
"""

from __future__ import annotations

import json
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from hashlib import sha256
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3ForCausalLM
from transformers import logging as transformers_logging

import tokencredit
from tokencredit.files import write_text
from tokencredit.methods import Method
from tokencredit.methods.specs import expand_specs, sketch
from tokencredit.testbed.arms import build_arm
from tokencredit.testbed.controls import oracle_credit, shuffled_credit
from tokencredit.testbed.evaluate import evaluate
from tokencredit.testbed.lean import AssignCredit, own_credit, train_lean
from tokencredit.testbed.policy import build_tokenizer
from tokencredit.testbed.problems import generate_problems
from tokencredit.testbed.reward_model import RewardTraining, process_reward_model
from tokencredit.testbed.tasks import Problem, Task, task
from tokencredit.testbed.training import Budget
from tokencredit.testbed.warmup import WarmUp, warmed_up_policy

DEFAULT_ARMS = (
    "uniform",
    "random",
    "position",
    "surprisal",
    "entropy",
    "atpo",
    "shuffled atpo",
    "rhythm:strategy=local",
    "rhythm:strategy=global",
    "rhythm:strategy=coupled",
    "attnpo:delay=0",
    "shuffled attnpo:delay=0",
    "p2t",
    "oracle",
    "shuffled oracle",
    "lora uniform",
    "arca",
)
AXES = ("arms", "learning_rates", "checkpoints", "seeds")
"""What the runs of a sweep differ in, by the names of `Comparison`: a sweep that goes on may get more of each."""
_ORACLE = "oracle"


@dataclass(frozen=True)
class Arm:
    """What is trained: a method or the oracle, its credit dealt out at random or not, all weights or a LoRA adapter."""

    name: str
    spec: str
    shuffled: bool
    lora: bool

    @classmethod
    def parse(cls, name: str) -> Arm:
        """From "[lora ][shuffled ]SPEC". A method that reads an adapter trains one.

        Raises:
            ValueError: SPEC is neither `oracle` nor a method's.
        """
        words = name.split()
        if not words or len(set(words[:-1]) - {"lora", "shuffled"}) or len(set(words)) < len(words):
            raise ValueError(f"expected an arm as [lora ][shuffled ]METHOD; got {name!r}")
        spec = words[-1]
        lora = "lora" in words or (spec != _ORACLE and sketch(spec).needs.adapter)
        return cls(" ".join(words), spec, "shuffled" in words, lora)

    @property
    def shuffled_name(self) -> str:
        """The arm whose credit has the same values in other places."""
        return f"{'lora ' if 'lora' in self.name.split() else ''}shuffled {self.spec}"

    @property
    def baseline(self) -> str:
        """The arm that this one is compared with: uniform credit, of an adapter too where it trains one."""
        return "lora uniform" if self.lora else "uniform"


def split_arms(text: str) -> tuple[str, ...]:
    """ "uniform,shuffled atpo" -> ("uniform", "shuffled atpo"). `all` stands for `DEFAULT_ARMS`."""
    return tuple(" ".join(arm.split()) for arm in expand_specs(text, DEFAULT_ARMS))


@dataclass(frozen=True)
class Comparison:
    """What a sweep is asked.

    Attributes:
        learning_rates: of runs that train all weights; an adapter gets `lora_factor` times as much.
        checkpoints: seeds of the warm-ups that runs start from. seeds: of problems, sampling and adapter.
    """

    arms: tuple[str, ...] = DEFAULT_ARMS
    task: str = "gather"
    level: int | None = None
    learning_rates: tuple[float, ...] = (1.5e-4, 3e-4, 6e-4)
    lora_factor: float = 10.0
    checkpoints: tuple[int, ...] = (0, 1, 2, 3, 4)
    seeds: tuple[int, ...] = (0, 1)
    budget: Budget = field(default_factory=lambda: Budget(steps=60, prompts=8, group_size=4, updates_per_step=1))
    training_problems: int = 4000
    evaluation_problems: int = 300
    warm_up: WarmUp = field(default_factory=WarmUp)
    reward_training: RewardTraining = field(default_factory=RewardTraining)

    def __post_init__(self) -> None:
        for name in AXES:
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must name at least one, each once; got {values}")
        for arm in map(Arm.parse, self.arms):
            if arm.baseline not in self.arms:
                raise ValueError(f"{arm.name} is compared with {arm.baseline!r}: name that arm too")
        self.build_task()

    def build_task(self) -> Task:
        return task(self.task, level=self.level)

    def runs(self) -> list[Run]:
        """All runs, seed by seed, so that an unfinished sweep has something of every arm."""
        grid = product(self.seeds, self.checkpoints, self.learning_rates, self.arms)
        return [Run(arm, rate, checkpoint, seed) for seed, checkpoint, rate, arm in grid]


@dataclass(frozen=True)
class Run:
    """One run of a sweep."""

    arm: str
    learning_rate: float
    checkpoint: int
    seed: int

    def file(self, comparison: Comparison, folder: Path) -> Path:
        """Where its result belongs: named by all settings that it depends on."""
        settings = {**asdict(comparison), **dict.fromkeys(AXES)}
        key = sha256(json.dumps([settings, asdict(self)], sort_keys=True).encode()).hexdigest()[:16]
        return folder / "runs" / f"{key}.json"


def sweep(
    comparison: Comparison,
    folder: Path,
    *,
    processes: int = 1,
    on_progress: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> list[dict[str, Any]]:
    """Train every run that the folder does not hold yet, in parallel processes of one thread each.

    Returns:
        The results of all runs, in the order of `comparison.runs()`.
    """
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    files = {run: run.file(comparison, folder) for run in comparison.runs()}
    missing = [run for run, file in files.items() if not file.is_file()]
    done = len(files) - len(missing)
    on_progress(done, len(files), "")
    context = multiprocessing.get_context("spawn")
    if missing:
        code = _code()
        _prepare(comparison)
        with ProcessPoolExecutor(processes, mp_context=context, initializer=_quiet) as pool:
            started = {pool.submit(_train_into, comparison, run, files[run], code): run for run in missing}
            try:
                for future in as_completed(started):
                    future.result()
                    done += 1
                    on_progress(done, len(files), started[future].arm)
            except BaseException:
                # Else the pool would first train all that is left.
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return [json.loads(file.read_text("utf-8")) for file in files.values()]


def config_of(comparison: Comparison) -> dict[str, Any]:
    return {"command": "compare", "tokencredit": version("tokencredit"), **asdict(comparison)}


def train_run(comparison: Comparison, run: Run) -> dict[str, Any]:
    """One run: its curve of held-out greedy accuracy, a row every `evaluate_every` steps, from before the first."""
    arm, chosen = Arm.parse(run.arm), comparison.build_task()
    checkpoint, before = _checkpoint(comparison, run.checkpoint)
    training, held_out = _problems(comparison, run.seed)
    rate = run.learning_rate
    budget = replace(
        comparison.budget, seed=run.seed, learning_rate=rate, lora_learning_rate=rate * comparison.lora_factor
    )
    rows: list[dict[str, Any]] = []
    m = _method(comparison, "uniform" if arm.spec == _ORACLE else arm.spec, run.checkpoint, run.seed)
    trained = train_lean(
        checkpoint,
        build_tokenizer(),
        chosen,
        m,
        training,
        held_out,
        budget,
        rows.append,
        lora=arm.lora,
        assign_credit=_credit_of(arm, comparison, run, m),
    )
    return {
        **asdict(run),
        "before": before,
        "accuracy": {row["step"]: row["accuracy"] for row in rows if "accuracy" in row},
        "reward": [round(row["reward"], 4) for row in rows],
        "length": [round(row["length"], 2) for row in rows],
        # None where no completion of a step carried loss.
        **{
            name: [None if (value := row.get(f"credit/{name}")) is None else round(value, 4) for row in rows]
            for name in ("gini", "effective_ratio")
        },
        "credit_seconds": round(sum(row["credit/seconds"] for row in rows), 3),
        "seconds": round(trained.seconds, 2),
        "tokens": trained.tokens,
    }


def _credit_of(arm: Arm, comparison: Comparison, run: Run, m: Any) -> AssignCredit:
    if arm.spec == _ORACLE:
        assign = oracle_credit(comparison.build_task(), build_tokenizer())
    else:
        assign = own_credit(m, _reward_model(comparison, run.checkpoint) if m.needs.reward else None)
    return shuffled_credit(assign, run.seed) if arm.shuffled else assign


def _train_into(comparison: Comparison, run: Run, file: Path, code: dict[str, str]) -> None:
    if not file.is_file():
        write_text(file, json.dumps({**train_run(comparison, run), **code}) + "\n")


def _code() -> dict[str, str]:
    """What ran: a sweep that goes on later may go on with other code, and a reader should be able to tell."""
    sources = sorted(Path(tokencredit.__file__).parent.rglob("*.py"))
    return {
        "code": sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12],
        "torch": version("torch"),
    }


def _quiet() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _prepare(comparison: Comparison) -> None:
    """What all processes read from the cache, made once."""
    for seed in comparison.checkpoints:
        _checkpoint(comparison, seed)
        if any(spec != _ORACLE and sketch(spec).needs.reward for spec in _specs(comparison)):
            _reward_model(comparison, seed)


def _specs(comparison: Comparison) -> Iterator[str]:
    return (Arm.parse(name).spec for name in comparison.arms)


@lru_cache(maxsize=4)
def _checkpoint(comparison: Comparison, seed: int) -> tuple[Qwen3ForCausalLM, float]:
    """The warmed-up policy of that seed, and its held-out greedy accuracy."""
    policy, _ = warmed_up_policy(comparison.build_task(), replace(comparison.warm_up, seed=seed))
    _, held_out = _problems(comparison, 0)
    return policy, evaluate(policy, build_tokenizer(), comparison.build_task(), held_out).value


@lru_cache(maxsize=4)
def _reward_model(comparison: Comparison, seed: int) -> Any:
    policy, _ = _checkpoint(comparison, seed)
    recipe = replace(comparison.warm_up, seed=seed)
    return process_reward_model(comparison.build_task(), recipe, policy, build_tokenizer(), comparison.reward_training)


@lru_cache(maxsize=16)
def _method(comparison: Comparison, spec: str, checkpoint: int, seed: int) -> Method:
    """AttnPO's heads are those of the checkpoint, ranked on the seed's problems."""
    training, _ = _problems(comparison, seed)
    return build_arm(spec, _checkpoint(comparison, checkpoint)[0], comparison.build_task(), training)


@lru_cache(maxsize=8)
def _problems(comparison: Comparison, seed: int) -> tuple[list[Problem], list[Problem]]:
    """Training problems of a seed; held-out ones, which all runs share."""
    chosen = comparison.build_task()
    return (
        generate_problems(chosen, comparison.training_problems, held_out=False, seed=seed),
        generate_problems(chosen, comparison.evaluation_problems, held_out=True, seed=0),
    )
