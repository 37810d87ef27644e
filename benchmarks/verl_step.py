"""What credit costs in a step of a verl worker. It needs verl's environment (`make .venv-verl/.ready`):

    .venv-verl/bin/python benchmarks/verl_step.py [--sizes 0.3M 3M 18M] [--methods atpo rhythm entropy] [--rounds 6]

verl's own FSDP engine, one worker on the CPU, without Ray: its log-prob pass with and without signals, what the trainer
computes from the fields that the worker ships, and its update (forward, backward, optimizer) with verl's PPO loss.
Credit's share is of these passes; generation, rewards and transport, which take time too, make it smaller in a whole
step. The policies are untrained, the text is random, and each completion's last tenth is its answer.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# verl on a CPU, as the tests run it; verl looks at these when it is imported.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "on_verl"))
os.environ |= {"VERL_PLATFORM": "cpu", "VERL_USE_EXTERNAL_MODULES": "cpu_platform", "TOKENIZERS_PARALLELISM": "false"}
if find_spec("verl") is None:
    raise SystemExit("verl is not installed here: make test-verl sets up .venv-verl, whose python runs this")

import torch
from engines import batch_of, engine, log_prob_pass, nested
from measure import THREADS, arguments, finish, in_turns, ratios, spread
from policies import SHAPES
from run_verl import write_assets
from verl.utils import tensordict_utils as tu
from verl.workers.config import ActorConfig
from verl.workers.utils.losses import ppo_loss
from verl.workers.utils.padding import no_padding_2_padding

import tokencredit as tc
from tokencredit.cli.terminal import quiet_libraries
from tokencredit.testbed.policy import PolicySize, build_policy, build_tokenizer
from tokencredit.trainers.verl.fields import marked, unpack
from tokencredit.trainers.verl.layout import rollouts_of, to_nested

METHODS = ("atpo", "rhythm", "entropy")
ROLLOUTS, PROMPT, COMPLETION = 16, 32, 256
QUICK: dict[str, Any] = {"sizes": ["0.3M"], "rounds": 2, "count": 4, "length": 64}


def rollouts(count: int, length: int) -> tc.Rollouts:
    """Random words; the reasoning ends after nine tenths of each completion."""
    tokenizer, rng = build_tokenizer(), torch.Generator().manual_seed(0)
    ids = torch.randint(12, len(tokenizer), (count, PROMPT + length), generator=rng)
    ids[:, PROMPT + length * 9 // 10] = tokenizer.convert_tokens_to_ids("</think>")
    ones = torch.ones_like(ids)
    return tc.Rollouts(ids[:, :PROMPT], ones[:, :PROMPT], ids[:, PROMPT:], ones[:, PROMPT:])


def updating(worker: Any, data: Any, outcome: torch.Tensor) -> Callable[[], None]:
    """One update on the batch, with advantages that are the same over a completion."""
    given, lengths = data.copy(), data["responses"].offsets().diff().tolist()
    given["old_log_probs"] = nested(no_padding_2_padding(log_prob_pass(worker, data)["log_probs"], data))
    given["advantages"] = nested(torch.full((n,), a) for n, a in zip(lengths, outcome.tolist(), strict=True))
    given["response_mask"] = data["loss_mask"]
    tu.assign_non_tensor(given, calculate_entropy=False, global_batch_size=len(outcome))
    loss = partial(ppo_loss, ActorConfig(strategy="fsdp2", rollout_n=1, ppo_micro_batch_size_per_gpu=len(outcome)))

    def update() -> None:
        with worker.train_mode():
            worker.train_batch(given.copy(), loss)

    return update


def spreading(method: Any, data: Any, fields: Any, outcome: torch.Tensor) -> Callable[[], None]:
    """What the trainer does with the fields that its workers have shipped."""

    def spread_credit() -> None:
        found = marked(rollouts_of(data["prompts"], data["responses"]), fields)
        credit = unpack(method, found, outcome, fields, 1)
        to_nested(credit.advantages, found.completion_mask)

    return spread_credit


def figures(
    sizes: Sequence[str] = tuple(SHAPES),
    methods: Sequence[str] = METHODS,
    rounds: int = 6,
    count: int = ROLLOUTS,
    length: int = COMPLETION,
) -> dict[str, Any]:
    """For each size and method the pass with signals over the plain one, milliseconds, and credit's share."""
    torch.set_num_threads(THREADS)
    quiet_libraries()
    found = [_of_size(SHAPES[name], methods, rounds, rollouts(count, length)) for name in sizes]
    return {"rounds": rounds, "sizes": found}


def _of_size(shape: PolicySize, methods: Sequence[str], rounds: int, batch: tc.Rollouts) -> dict[str, Any]:
    policy = build_policy(shape)
    outcome = torch.linspace(-1, 1, len(batch))
    with tempfile.TemporaryDirectory() as folder:
        worker = engine(write_assets(Path(folder), policy) / "model")
    data, built = batch_of(batch), {name: tc.method(name) for name in methods}
    passes: dict[str, Callable[[], Any]] = {}
    for name, method in built.items():
        passes[f"plain {name}"] = partial(log_prob_pass, worker, data)
        passes[f"read {name}"] = partial(log_prob_pass, worker, data, method)
        passes[f"trainer {name}"] = spreading(method, data, log_prob_pass(worker, data, method), outcome)
    # Apart, and last: an update slows the pass behind it.
    took = in_turns(passes, rounds) | in_turns({"update": updating(worker, data, outcome)}, rounds)
    return {
        "parameters": sum(p.numel() for p in policy.parameters()),
        "rollouts": len(batch),
        "tokens": batch.completion_ids.shape[1],
        "methods": {name: _of_method(took, name) for name in methods},
    }


def _of_method(took: dict[str, list[float]], name: str) -> dict[str, Any]:
    read, trainer, plain, update = (took[key] for key in (f"read {name}", f"trainer {name}", f"plain {name}", "update"))
    shares = [(r - p + t) / (r + t + u) for r, t, p, u in zip(read, trainer, plain, update, strict=True)]
    return {
        "ratio": spread(ratios(read, plain)),
        "trainer": spread([1000 * s for s in trainer]),
        "update": spread([1000 * s for s in update]),
        "share": spread(shares),
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--sizes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--rounds", type=int, default=6)
    asked = parser.parse_args()
    found = figures(**QUICK) if asked.quick else figures(asked.sizes, asked.methods, asked.rounds)
    finish("verl_step", found, asked)


if __name__ == "__main__":
    main()
