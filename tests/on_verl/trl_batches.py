"""Run in TRL's environment: one step of TRL's trainer by each method, and what it trained on, in a file.

python trl_batches.py FILE '{"atpo": {}, ...}'
"""

from __future__ import annotations

import json
import sys
import tempfile

import tiny_run
import torch

from tokencredit.trainers.trl import CreditGRPOConfig

KEYS = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages")


def trained_on(name, params):
    """The batches of the first step, with the advantages that the trainer takes."""
    given = tiny_run.arguments(tempfile.mkdtemp(), max_steps=1, learning_rate=0.0)
    args = CreditGRPOConfig(**given, credit_method=name, credit_params=params)
    return [{key: inputs[key] for key in KEYS} for inputs in tiny_run.trained(tiny_run.Keeping, args).kept]


if __name__ == "__main__":
    methods = {"uniform": {}, **json.loads(sys.argv[2])}
    kept = {name: trained_on(name, params) for name, params in methods.items()}
    policy = tiny_run.policy_that_answers().state_dict()
    torch.save({"batches": kept, "policy": policy}, sys.argv[1])
