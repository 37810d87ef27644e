"""What `tokencredit heads` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE
from rich.table import Table

from tokencredit.cli.terminal import console

if TYPE_CHECKING:
    from tokencredit.head_files import HeadRank, HeldOut
    from tokencredit.head_ranking import StepPairs
    from tokencredit.heads import HeadStability


def print_ranking(pairs: StepPairs, kept: Sequence[HeadRank], held_out: HeldOut | None) -> None:
    """The heads that are kept, how they do on prompts that they were not chosen on, and what that means."""
    count, total = int((pairs.pairs > 0).sum()), int(pairs.pairs.sum())
    prompts = len(pairs.prompt.unique())
    console.print(_ranking(kept, f"best {len(kept)} of {len(pairs.heads)} heads by step ranking accuracy"))
    console.print(
        f"{total:,} pairs of an essential and a redundant step in {count} completions of {prompts} prompts; in tied "
        "pairs a head attends equally to both steps, which counts half. Intervals are 95 %, by bootstrap over prompts."
    )
    later = pairs.later_first
    first = "later" if later >= 0.5 else "earlier"
    position = max(later, 1 - later)
    console.print(f"by position alone: {position:.3f} (the {first} step first)")
    if held_out is not None:
        console.print(
            f"on held-out prompts: {_value(held_out.sra)} {_interval(held_out.low, held_out.high)} (the best "
            f"{len(kept)} of one half of the prompts order the pairs of the other half; both halves choose "
            f"{held_out.shared} of them)"
        )
    for sentence in _verdict(held_out, position, len(pairs.heads)):
        console.print(sentence)


def _ranking(ranks: Sequence[HeadRank], title: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE, pad_edge=False)
    for name in ("layer", "head", "accuracy", "95 % interval", "pairs", "tied"):
        table.add_column(name, justify="right", no_wrap=True)
    for rank in ranks:
        interval = _interval(rank.low, rank.high)
        table.add_row(str(rank.layer), str(rank.head), _value(rank.sra), interval, f"{rank.pairs:,}", f"{rank.tied:,}")
    return table


def _verdict(held_out: HeldOut | None, position: float, heads: int) -> list[str]:
    from tokencredit.analysis.bootstrap import FEWEST
    from tokencredit.head_ranking import above_chance

    if held_out is None or held_out.prompts < FEWEST:
        return [
            f"[yellow]notice:[/] fewer than {FEWEST} prompts have pairs, too few to tell these heads from chance (0.5)"
        ]
    if not above_chance(held_out):
        return [
            "[yellow]notice:[/] on prompts that they were not chosen on, the best heads are not distinguishable from "
            f"chance (0.5). The accuracies in the table may be luck, as they are the highest of {heads}: rank heads on "
            "more completions before training with them"
        ]
    verdict = ["The best heads are above chance (0.5) on prompts that they were not chosen on."]
    if position >= (held_out.sra if held_out.low is None else held_out.low):
        verdict.append(
            "[yellow]notice:[/] they are not distinguishable from a rule that knows only the order of the steps, or "
            "do worse, so these labels cannot show that they read what the steps say"
        )
    return verdict


def print_stability(stability: Sequence[HeadStability], ranks: Sequence[HeadRank]) -> None:
    correlation = {(s.layer, s.head): s.correlation for s in stability}
    lowest = min(stability, key=lambda s: s.correlation)
    table = Table(title="stability of step scores", title_justify="left", box=SIMPLE, pad_edge=False)
    for name in ("layer", "head", "Pearson"):
        table.add_column(name, justify="right", no_wrap=True)
    for rank in ranks:
        table.add_row(str(rank.layer), str(rank.head), f"{correlation[rank.layer, rank.head]:.3f}")
    console.print(table)
    console.print(f"lowest of all {len(stability)}: {lowest.correlation:.3f} (layer {lowest.layer} head {lowest.head})")


def _value(value: float) -> str:
    return f"{value:.3f}"


def _interval(low: float | None, high: float | None) -> str:
    return "no interval" if low is None or high is None else f"\\[{low:.3f}, {high:.3f}]"
