"""The rhythm part of `tokencredit heads --rhythm`, and how it prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.table import Table

from tokencredit.cli.terminal import console

if TYPE_CHECKING:
    from tokencredit.analysis import Coincidence, PerturbationReport, RhythmReport
    from tokencredit.rollouts import Rollouts


def print_rhythm(policy: Any, tokenizer: Any, rollouts: Rollouts, seed: int, batch_size: int) -> None:
    """Couplings on the completions as they are; the perturbation test on greedy ones to the same prompts."""
    from tokencredit.analysis import analyse_rhythm, perturb, rhythm_curves

    report = analyse_rhythm(policy, rollouts, seed=seed, batch_size=batch_size)
    limit = rollouts.completion_ids.shape[1]
    greedy = _greedy(policy, tokenizer, rollouts, limit, batch_size)
    curves = rhythm_curves(policy, greedy, batch_size=batch_size)
    perturbed = perturb(
        policy,
        greedy,
        curves.fai,
        mask=curves.has_fai,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=limit,
        seed=seed,
        batch_size=batch_size,
    )
    console.print(_table(report, perturbed))


def _greedy(policy: Any, tokenizer: Any, rollouts: Rollouts, limit: int, batch_size: int) -> Rollouts:
    """What the policy itself writes to the prompts of `rollouts`, decoded greedily, in at most `limit` tokens."""
    from tokencredit.analysis.decoding import continuations
    from tokencredit.labelled import padded_right
    from tokencredit.rollouts import Rollouts
    from tokencredit.signals.policy import reading

    prompts = [ids[mask].tolist() for ids, mask in zip(rollouts.prompt_ids, rollouts.prompt_mask, strict=True)]
    made: list[list[int]] = []
    with reading(policy):
        for start in range(0, len(prompts), batch_size):
            chunk = prompts[start : start + batch_size]
            ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
            made += [only for (only,) in continuations(policy, chunk, [limit] * len(chunk), **ends)]
    return Rollouts(
        prompt_ids=rollouts.prompt_ids,
        prompt_mask=rollouts.prompt_mask,
        completion_ids=padded_right(made, tokenizer.pad_token_id),
        completion_mask=padded_right([[True] * len(ids) for ids in made], False),
    )


def _table(report: RhythmReport, perturbed: PerturbationReport) -> Table:
    table = Table(
        title=f"rhythm: {report.completions} completions, {report.tokens:,} tokens, 95 % intervals",
        title_justify="left",
        box=SIMPLE,
        pad_edge=False,
    )
    # Only the names may be folded: a number that is cut off is another number.
    table.add_column("", overflow="fold")
    for name in ("measured", "against", "difference"):
        table.add_column(name, justify="right", no_wrap=True)
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
