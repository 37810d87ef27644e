"""What reading attention costs at least, calculated from a model's shape. Nothing here is measured.

Multiplications and additions count, two for each element of a matrix product; exponentials and the sums over scores do
not. A signal costs at least the scores q . k that it is made of, where the model's kernel hands out no sums of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from tables import Grid

LENGTHS = (1024, 8192, 32_768)
READ_LAYERS, HORIZON, BLOCK, ANSWER = 5, 100, 64, 512
"""Layers read for distances; how far WAAD and FAI see; rows worked at once; tokens of an answer, at most an eighth."""


@dataclass(frozen=True)
class Shape:
    """A decoder with grouped-query attention and gated feed-forward layers."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    vocabulary: int

    def forward(self, n: int) -> float:
        """Operations of a forward pass over n tokens with logits; attention is causal."""
        projections = self.width * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        weights = self.layers * (projections + 3 * self.width * self.feed_forward) + self.width * self.vocabulary
        return 2 * n * weights + 2 * self.layers * self.scores(n * n / 2)

    def scores(self, count: float) -> float:
        """Operations of `count` scores in every head of a layer."""
        return 2 * self.heads * self.head_dim * count


QWEN3_4B = Shape(
    layers=36, width=2560, heads=32, kv_heads=8, head_dim=128, feed_forward=9728, vocabulary=151_936
)  # fmt: skip


def operations(shape: Shape, n: int) -> dict[str, float]:
    """What is read -> operations. Bands take the rows' softmax denominators from the model's own pass; the others make
    theirs."""
    return {
        f"look-back distance, {READ_LAYERS} layers": READ_LAYERS * shape.scores(n * n / 2),
        f"WAAD and FAI up to {HORIZON} tokens back, {READ_LAYERS} layers": READ_LAYERS
        * shape.scores(n * min(n / 2, HORIZON + BLOCK)),
        f"answer rows, all {shape.layers} layers": shape.layers * shape.scores(_answer(n) * n),
    }


def memory(shape: Shape, n: int) -> dict[str, float]:
    """What is held -> bytes, for a sequence of n tokens: matrices in bfloat16, what is read from them in float32."""
    one, per_token = 2 * shape.heads * n * n, 4 * shape.heads * n
    return {
        "attention matrix of one layer (eager)": one,
        "attention matrices of all layers (eager)": shape.layers * one,
        f"our WAAD and FAI, {READ_LAYERS} layers": 2 * READ_LAYERS * per_token,
        f"our means of answer rows, all {shape.layers} layers": shape.layers * per_token,
    }


def _answer(n: int) -> int:
    return min(ANSWER, n // 8)


def grids(shape: Shape = QWEN3_4B) -> list[Grid]:
    lengths = [f"N = {n:,}" for n in LENGTHS]
    costs, held = ([kind(shape, n) for n in LENGTHS] for kind in (operations, memory))
    forward = [shape.forward(n) for n in LENGTHS]
    attention = [2 * shape.layers * shape.scores(n * n / 2) / f for n, f in zip(LENGTHS, forward, strict=True)]
    shares = [
        [name, *(f"{cost[name] / whole:.2%}" for cost, whole in zip(costs, forward, strict=True))] for name in costs[0]
    ]
    return [
        Grid(
            "Operations, as shares of a forward pass",
            ["", *lengths],
            [
                ["forward pass, 10^12", *(f"{f / 1e12:.1f}" for f in forward)],
                ["its attention", *(f"{share:.1%}" for share in attention)],
                *shares,
            ],
        ),
        Grid(
            "Memory",
            ["", *lengths],
            [[name, *(_binary(bytes_[name]) for bytes_ in held)] for name in held[0]],
        ),
    ]


def _binary(count: float) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"
