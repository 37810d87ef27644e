"""Results that are kept, and docs/results.md, which is made from nothing else.

    python results/make.py                  # docs/results.md from results/*.json
    python results/make.py add RUN [...]    # keep what a run of `tokencredit audit` or `compare` found

A kept file is named by its run's folder. It holds every figure that is shown, and no traces.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tokencredit.report.page import shortened
from tokencredit.testbed.curves import LAST_STEPS, ArmSummary, Interval, at_best_rates, summarise

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "results.md"
CONTROLS = ("later", "earlier", "step length", "replacement effect", "oracle")


def add(run: Path) -> Path:
    """Keep the audit or the comparison of a run folder. Returns the file."""
    found = next((run / name for name in ("audit.json", "compare.json") if (run / name).is_file()), None)
    if found is None:
        raise SystemExit(f"{run} holds neither audit.json nor compare.json")
    content = json.loads(found.read_text("utf-8"))
    content.pop("summaries", None)
    for policy in content.get("policies", {}).values():
        policy.pop("traces")
    for trained in content.get("runs", []):
        del trained["reward"]
        trained.update({name: trained[name][-LAST_STEPS:] for name in ("length", "gini", "effective_ratio")})
    kept = HERE / f"{found.stem}-{run.name.removeprefix(f'{found.stem}-')}.json"
    kept.write_text(json.dumps(shortened(content), indent=None, separators=(",", ":")) + "\n", encoding="utf-8")
    return kept


class Audits:
    """The kept audits, for the template: every method returns text."""

    def __init__(self, folder: Path) -> None:
        self._found = {p.stem.removeprefix("audit-"): json.loads(p.read_text()) for p in folder.glob("audit-*.json")}

    def tasks(self) -> list[str]:
        return sorted(self._found)

    def policies(self, task: str) -> list[str]:
        return list(self._found[task]["policies"])

    def about(self, task: str, policy: str) -> str:
        p = self._found[task]["policies"][policy]
        values = p["values"]
        return (
            f"{p['completions']} completions of {p['tokens']:.0f} tokens on average, {p['correct']} correct, greedy "
            f"accuracy {p['accuracy']['value']:.3f}; values of {values['completions']} of them by {values['samples']} "
            f"samples, against which an exact advantage would reach at most {values['ceilings'][-1]['attainable']:.2f}"
        )

    def score(self, task: str, policy: str, credit: str, measure: str) -> str:
        """ "0.95 [0.93, 0.97]", starred where it is informative."""
        score = self._row(task, policy, credit)["scores"].get(measure)
        return "" if score is None else _estimate(score["estimate"]) + ("*" if score["informative"] else "")

    def table(self, task: str, policy: str, measures: dict[str, str]) -> str:
        """A row a credit, methods first; a column a measure, under its title."""
        rows = self._found[task]["policies"][policy]["rows"]
        names = [row["name"] for row in rows if row["kind"] == "method" or row["name"] in CONTROLS]
        shown = {m: title for m, title in measures.items() if any(m in row["scores"] for row in rows)}
        lines = ["| credit | " + " | ".join(shown.values()) + " |", "|---" * (1 + len(shown)) + "|"]
        lines += [
            f"| {name} | " + " | ".join(self.score(task, policy, name, measure) for measure in shown) + " |"
            for name in names
        ]
        return "\n".join(lines)

    def concentration(self, task: str, policy: str) -> str:
        rows = [r for r in self._found[task]["policies"][policy]["rows"] if r["kind"] == "method"]
        lines = ["| credit | Gini | effective ratio |", "|---|---|---|"]
        for row in rows:
            gini, ratio = (_estimate(row["concentration"][name]) for name in ("gini", "effective_ratio"))
            lines.append(f"| {row['name']} | {gini} | {ratio} |")
        return "\n".join(lines)

    def agreement(self, task: str, policy: str) -> str:
        found = self._found[task]["policies"][policy]["agreement"]
        varying = [a for a, row in found.items() if any(v is not None for v in row.values())]
        lines = ["| | " + " | ".join(varying) + " |", "|---" * (1 + len(varying)) + "|"]
        for a in varying:
            cells = ["" if found[a][b] is None else f"{found[a][b]:.2f}" for b in varying]
            lines.append(f"| {a} | " + " | ".join(cells) + " |")
        return "\n".join(lines)

    def _row(self, task: str, policy: str, credit: str) -> dict[str, Any]:
        return next(row for row in self._found[task]["policies"][policy]["rows"] if row["name"] == credit)


class Comparisons:
    """The kept comparisons, for the template."""

    def __init__(self, folder: Path) -> None:
        kept = {p.stem.removeprefix("compare-"): json.loads(p.read_text()) for p in folder.glob("compare-*.json")}
        self._found = kept
        self._summaries = {task: summarise(found["runs"], found["target"]) for task, found in kept.items()}
        self._best = {task: at_best_rates(found["runs"], found["target"]) for task, found in kept.items()}

    def names(self, part: str = "") -> list[str]:
        """Those whose name is a task's, or holds `part`."""
        return sorted(name for name in self._found if (part in name if part else "-" not in name))

    def about(self, task: str) -> str:
        found = self._found[task]
        c, runs = found["config"], found["runs"]
        seeds, checkpoints = ({run[key] for run in runs} for key in ("seed", "checkpoint"))
        return (
            f"{len(runs)} runs by {len({run['code'] for run in runs})} version(s) of the code: "
            f"{len({run['arm'] for run in runs})} arms, {len(checkpoints)} checkpoints, {len(seeds)} seeds each; "
            f"learning rates {', '.join(f'{rate:g}' for rate in c['learning_rates'])} (an adapter gets "
            f"{c['lora_factor']:g} times as much); {c['budget']['steps']} steps of {c['budget']['prompts']} prompts x "
            f"{c['budget']['group_size']} completions; accuracy on {c['evaluation_problems']} held-out problems, greedy"
        )

    def target(self, task: str) -> str:
        return f"{self._found[task]['target']:g}"

    def best(self, task: str) -> str:
        return _arms(self._best[task])

    def at(self, task: str, rate: float) -> str:
        """All arms at one learning rate; adapters at theirs."""
        return _arms([s for s in self._summaries[task] if s.learning_rate == rate])

    def rates(self, task: str) -> list[float]:
        return self._found[task]["config"]["learning_rates"]

    def arm(self, task: str, name: str, figure: str, rate: float | None = None) -> str:
        """A figure of an arm, at its best learning rate by default."""
        summaries = self._best[task] if rate is None else self._summaries[task]
        chosen = next(s for s in summaries if s.arm == name and rate in (None, s.learning_rate))
        value = getattr(chosen, figure)
        if isinstance(value, int | float):
            return f"{value:.0f}"
        return _gain(value) if "gain" in figure or "over" in figure else _interval(value)

    def gaining(self, task: str) -> list[str]:
        """The arms whose gain in area, each at its best rate, has an interval above 0."""
        gains = {s.arm: s.area_gain for s in self._best[task]}
        return [arm for arm, gain in gains.items() if gain is not None and (gain.low or 0) > 0]

    def at_end(self, task: str, arm: str, key: str) -> str:
        """The mean of what is logged over the last steps of an arm's runs."""
        runs = [run for run in self._found[task]["runs"] if run["arm"] == arm]
        known = [[value for value in run[key] if value is not None] for run in runs]
        return f"{fmean(fmean(values) for values in known if values):.2f}"

    def concentration(self, tasks: list[str]) -> str:
        """Of each comparison and arm, how unequal its credit is at the end of training."""
        lines = ["| rank | arm | Gini | effective ratio | area |", "|---|---|---|---|---|"]
        for task in sorted(tasks, key=self.rank):
            for s in self._summaries[task]:
                gini, ratio = (self.at_end(task, s.arm, key) for key in ("gini", "effective_ratio"))
                lines.append(f"| {self.rank(task)} | {s.arm} | {gini} | {ratio} | {_interval(s.area)} |")
        return "\n".join(lines)

    def rank(self, task: str) -> int:
        """Of the adapters."""
        return self._found[task]["config"]["budget"]["lora_rank"]


def _arms(summaries: list[ArmSummary]) -> str:
    lines = [
        "| arm | rate | runs | area | over uniform | over its shuffle | final | over uniform | collapsed | to target "
        "| tokens | credit |",
        "|---" * 12 + "|",
    ]
    for s in summaries:
        reached = "-" if s.steps_to_target is None else f"{s.steps_to_target:g}"
        cells = [
            s.arm,
            f"{s.learning_rate:g}",
            str(s.runs),
            _interval(s.area),
            _gain(s.area_gain),
            _gain(s.over_shuffled),
            _interval(s.final),
            _gain(s.final_gain),
            f"{s.collapsed} [{s.collapse_low:.2f}, {s.collapse_high:.2f}]",
            f"{reached} ({s.reached} runs)",
            f"{s.length:.0f}",
            f"{s.credit_share:.0%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _interval(interval: Interval) -> str:
    bounds = "" if interval.low is None else f" [{interval.low:.3f}, {interval.high:.3f}]"
    return f"{interval.mean:.3f}{bounds}"


def _gain(interval: Interval | None) -> str:
    if interval is None:
        return ""
    bounds = "" if interval.low is None else f" [{interval.low:+.3f}, {interval.high:+.3f}]"
    return f"{interval.mean:+.3f}{bounds}"


def _estimate(estimate: dict[str, float | None]) -> str:
    bounds = "" if estimate["low"] is None else f" [{estimate['low']:.2f}, {estimate['high']:.2f}]"
    return f"{estimate['value']:.2f}{bounds}"


def page(folder: Path = HERE) -> str:
    """docs/results.md."""
    environment = Environment(
        loader=FileSystemLoader(HERE), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.get_template("results.md.j2")
    return template.render(audits=Audits(folder), comparisons=Comparisons(folder)).rstrip() + "\n"


def main() -> None:
    command, *runs = sys.argv[1:] or [""]
    if command == "add" and runs:
        for run in runs:
            print(add(Path(run)))
    elif command:
        raise SystemExit(__doc__)
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
