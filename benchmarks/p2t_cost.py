"""What the estimators of P2T cost, against a plain forward pass of the reward model.

    python benchmarks/p2t_cost.py [--lengths 128 512 2048] [--rounds 5]

`taylor` is a forward and a backward pass; `exact` a forward pass for each of the completion's tokens, 32 at a time.
They run in turns on one sequence of N tokens, of which an eighth are the prompt; `exact` for one round where N is above
1,000. Memory is the peak of a process of its own, over what it holds after a pass over 64 tokens. That of `exact` is
measured on a completion of 64 tokens at the end of the sequence, since its batches of 32 follow one another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from measure import THREADS, arguments, extra_memory, finish, in_own_process, in_turns, ratios, spread
from transformers import Qwen3Config, Qwen3ForSequenceClassification

import tokencredit as tc
from tokencredit.cli.terminal import quiet_libraries
from tokencredit.signals import RewardNeed

VOCABULARY, LONG = 1000, 1000
LENGTHS = (128, 512, 2048)
QUICK: dict[str, Any] = {"lengths": [32, 64], "rounds": 2}

Pass = Callable[[tc.RewardModel, tc.Rollouts], Any]


def build() -> tc.RewardModel:
    """All of its parameters can be trained, as those of a model that was just loaded."""
    quiet_libraries()
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=8192,
        pad_token_id=0,
        num_labels=1,
    )
    torch.manual_seed(0)
    return tc.RewardModel(Qwen3ForSequenceClassification(config).eval())


def rollouts(n: int, completion: int) -> tc.Rollouts:
    ids = torch.randint(3, VOCABULARY, (1, n), generator=torch.Generator().manual_seed(n))
    ones = torch.ones_like(ids)
    return tc.Rollouts(ids[:, :-completion], ones[:, :-completion], ids[:, -completion:], ones[:, -completion:])


def forward(model: tc.RewardModel, r: tc.Rollouts) -> None:
    with torch.no_grad():
        model(model.model.get_input_embeddings()(r.input_ids), r.attention_mask.bool())


def estimates(estimator: str) -> Pass:
    needs = tc.Needs(reward=frozenset({RewardNeed(estimator=estimator)}))

    def make(model: tc.RewardModel, r: tc.Rollouts) -> None:
        tc.collect(model.model, r, needs, model)  # the policy is not run

    return make


MODES: dict[str, Pass] = {"forward": forward, "taylor": estimates("taylor"), "exact": estimates("exact")}


def figures(lengths: Sequence[int] = LENGTHS, rounds: int = 5) -> dict[str, Any]:
    """Spreads by length: of the forward pass in milliseconds, and of ratios."""
    torch.set_num_threads(THREADS)
    lengths, model = sorted(lengths), build()
    took = [_seconds(model, n, rounds) for n in lengths]
    n = lengths[-1]
    return {
        "model": "Qwen3, 2 layers, 2 heads of 64, width 128, float32, a sequence classifier",
        "lengths": lengths,
        "rounds": rounds,
        "exact_rounds": [len(at["exact"]) for at in took],
        "milliseconds": [spread([1000 * s for s in at["forward"]]) for at in took],
        "taylor": [spread(ratios(at["taylor"], at["forward"])) for at in took],
        "exact": [spread(_paired(at["exact"], at["forward"])) for at in took],
        "exact_over_taylor": [spread(_paired(at["exact"], at["taylor"])) for at in took],
        "memory": {name: in_own_process(_memory, name, n, 64 if name == "exact" else n - n // 8) for name in MODES},
    }


def _seconds(model: tc.RewardModel, n: int, rounds: int) -> dict[str, list[float]]:
    r = rollouts(n, n - n // 8)
    works = {name: partial(make, model, r) for name, make in MODES.items()}
    if n <= LONG:
        return in_turns(works, rounds)
    cheap = {name: work for name, work in works.items() if name != "exact"}
    first = in_turns(works, 1, warm_up=False)
    return {**in_turns(cheap, rounds), "exact": first["exact"]}


def _paired(over: list[float], under: list[float]) -> list[float]:
    """Round by round; where there are fewer rounds of `over`, each against the median of `under`."""
    if len(over) == len(under):
        return ratios(over, under)
    middle = spread(under)
    assert middle is not None
    return [value / middle["median"] for value in over]


def _memory(name: str, n: int, completion: int) -> float:
    torch.set_num_threads(THREADS)
    model, make = build(), MODES[name]
    make(model, rollouts(64, min(completion, 56)))
    return extra_memory(partial(make, model, rollouts(n, min(completion, n - 1))))


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    finish("p2t_cost", figures(**QUICK) if asked.quick else figures(asked.lengths, asked.rounds), asked)


if __name__ == "__main__":
    main()
