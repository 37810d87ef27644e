"""The rhythm part of `tokencredit heads --rhythm`, and how it prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.table import Table

from tokencredit.cli.terminal import console

if TYPE_CHECKING:
    from tokencredit.analysis import Coincidence, PerturbationReport, RhythmReport
    from tokencredit.rollouts import Rollouts

_CHUNK = 64


def print_rhythm(policy: Any, tokenizer: Any, rollouts: Rollouts, seed: int) -> None:
    """Couplings on the completions as they are; the perturbation test on greedy ones to the same prompts."""
    from tokencredit.analysis import analyse_rhythm, perturb, rhythm_curves
    from tokencredit.testbed.evaluate import complete

    report = analyse_rhythm(policy, rollouts, seed=seed, batch_size=_CHUNK)
    limit = rollouts.completion_ids.shape[1]
    starts = range(0, len(rollouts), _CHUNK)
    prompts = [(r.prompt_ids, r.prompt_mask) for r in (rollouts.rows(slice(i, i + _CHUNK)) for i in starts)]
    greedy = complete(policy, tokenizer, prompts, max_new_tokens=limit)
    curves = rhythm_curves(policy, greedy, batch_size=_CHUNK)
    perturbed = perturb(
        policy,
        greedy,
        curves.fai,
        mask=curves.has_fai,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=limit,
        seed=seed,
        batch_size=_CHUNK,
    )
    console.print(_table(report, perturbed))


def _table(report: RhythmReport, perturbed: PerturbationReport) -> Table:
    table = Table(
        title=f"rhythm: {report.completions} completions, {report.tokens:,} tokens, 95 % intervals",
        title_justify="left",
        box=SIMPLE,
        pad_edge=False,
    )
    for name in ("", "measured", "against", "difference"):
        table.add_column(name, justify="left" if not name else "right")
    entropy = report.entropy
    table.add_row(
        "entropy at WAAD peaks / all tokens",
        f"{entropy.at_peaks:.3f}",
        f"{entropy.overall:.3f}",
        _change(entropy.relative_change, entropy.interval, percent=True),
    )
    table.add_row("FAI peaks that follow a WAAD peak / shuffled", *_coincidence(report.follows_waad))
    table.add_row("FAI peaks at receiver heads' / shuffled", *_coincidence(report.meets_receivers))
    table.add_row(
        "Jaccard after a change at high / low FAI",
        f"{perturbed.high:.3f}",
        f"{perturbed.low:.3f}",
        _change(perturbed.difference, perturbed.interval),
    )
    table.caption = (
        f"{report.waad_peaks} WAAD and {report.fai_peaks} FAI peaks; {perturbed.perturbations} tokens changed of each "
        f"kind, at {perturbed.high_position:.0%} (high) and {perturbed.low_position:.0%} (low) of the completion"
    )
    table.caption_justify = "left"
    return table


def _coincidence(found: Coincidence) -> tuple[str, str, str]:
    if found.share is None or found.shuffled is None:
        return "no peak", "", ""
    return f"{found.share:.3f}", f"{found.shuffled:.3f}", _change(found.difference, found.interval)


def _change(value: float | None, interval: tuple[float, float] | None, *, percent: bool = False) -> str:
    if value is None:
        return ""
    shown = "{:+.0%}" if percent else "{:+.3f}"
    between = "" if interval is None else f" [{shown.format(interval[0])}, {shown.format(interval[1])}]"
    return shown.format(value) + between
