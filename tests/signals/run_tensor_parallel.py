"""One of two processes with half of a policy's heads. Run by test_placement.py; the argument is the policy's folder."""

from __future__ import annotations

import sys
import warnings

import pytest
import torch
import torch.distributed as dist
from conftest import make_rollouts
from transformers import AutoModelForCausalLM

import tokencredit as tc

warnings.simplefilter("ignore")
ROLLOUTS = make_rollouts()


dist.init_process_group("gloo")
whole = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
policy = AutoModelForCausalLM.from_pretrained(sys.argv[1], tp_plan="auto").eval()
refused = pytest.raises(ValueError, match="tensor parallelism")
with refused:
    tc.assign(policy, ROLLOUTS, "atpo")
with refused, tc.signals.observe(policy, ROLLOUTS, tc.method("rhythm").needs):
    policy(input_ids=ROLLOUTS.input_ids, use_cache=False)
policy._tp_size = None  # as if another library had split the model: only the heads that are seen tell
with pytest.raises(ValueError, match="shows 2 of its 4 heads"):
    tc.assign(policy, ROLLOUTS, "atpo")
logits = tc.Needs(logits=True)
found, expected = (tc.collect(model, ROLLOUTS, logits) for model in (policy, whole))
torch.testing.assert_close(found.logprob, expected.logprob, atol=1e-4, rtol=1e-4)
print("done", flush=True)
dist.barrier()
dist.destroy_process_group()
