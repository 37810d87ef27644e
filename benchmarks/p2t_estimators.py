"""Do the estimators of P2T agree? Rank correlation with `exact` on the testbed's process reward model.

    python benchmarks/p2t_estimators.py [--completions 60]

Spearman's rho over the reasoning tokens of each of the warm-up policy's completions, mean and 95 % interval over them.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from scipy.stats import bootstrap, spearmanr

import tokencredit as tc
from tokencredit.signals import RewardNeed
from tokencredit.testbed.evaluate import sample
from tokencredit.testbed.policy import build_tokenizer
from tokencredit.testbed.problems import generate_problems
from tokencredit.testbed.reward_model import process_reward_model, step_quality
from tokencredit.testbed.tasks import step_starts, task
from tokencredit.testbed.warmup import WarmUp, warmed_up_policy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--completions", type=int, default=60)
    count = parser.parse_args().completions
    chosen, tokenizer = task("gather"), build_tokenizer()
    policy, _ = warmed_up_policy(chosen, WarmUp())
    model = process_reward_model(chosen, WarmUp(), policy, tokenizer)
    problems = generate_problems(chosen, max(300, count), held_out=True, seed=0)
    print(step_quality(model, tokenizer, chosen, problems[:300]))
    sampled = sample(policy, tokenizer, [p.prompt for p in problems[:count]], max_new_tokens=chosen.max_new_tokens)
    rollouts = tc.mark_spans(sampled, tokenizer, step_starts)
    inside = rollouts.completion_mask & (rollouts.step_index >= 0)
    for backward in ("single", "per_step"):
        for null in ("pad", "eos", "zero", "mean"):
            estimators = ("exact", "taylor", "integrated")
            needs = {e: RewardNeed(null, e, backward) for e in estimators}
            read = tc.collect(policy, rollouts, tc.Needs(reward=frozenset(needs.values())), model).reward
            for name in estimators[1:]:
                rhos = np.array(
                    [
                        spearmanr(read[needs["exact"]].influence[i][row], read[needs[name]].influence[i][row]).statistic
                        for i, row in enumerate(inside)
                        if row.sum() > 2
                    ]
                )
                rhos = rhos[np.isfinite(rhos)]
                interval = bootstrap((rhos,), np.mean, random_state=0).confidence_interval
                print(
                    f"{backward:8} null {null:4} {name:10} rho {rhos.mean():.3f} "
                    f"[{interval.low:.3f}, {interval.high:.3f}] over {len(rhos)} completions"
                )


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
