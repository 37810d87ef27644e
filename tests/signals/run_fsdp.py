"""One process of FSDP2: what `collect` and `observe` do with a sharded policy. Run by test_placement.py."""

from __future__ import annotations

import tempfile

import pytest
import torch
import torch.distributed as dist
from conftest import make_rollouts, tiny_policy
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import tokencredit as tc

ROLLOUTS = make_rollouts()
NEEDS = tc.Needs(answer_attention=frozenset({1, 3}))

with tempfile.NamedTemporaryFile() as file:
    dist.init_process_group("gloo", init_method=f"file://{file.name}", rank=0, world_size=1)
    policy, mesh = tiny_policy(), init_device_mesh("cpu", (1,))
    for layer in policy.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(policy, mesh=mesh)
    for needs in (NEEDS, tc.Needs(logits=True)):
        with pytest.raises(ValueError, match=r"the policy is sharded by FSDP.* credit_timing"):
            tc.collect(policy, ROLLOUTS, needs)
    print("refused")
    m = tc.method("attnpo", heads=((3, 1),), model=tc.signals.model_signature(tiny_policy()))
    with pytest.warns(UserWarning, match="only its shape"), tc.signals.observe(policy, ROLLOUTS, m.needs):
        policy(input_ids=ROLLOUTS.input_ids, use_cache=False)
    with tc.signals.observe(policy, ROLLOUTS, NEEDS) as read, torch.no_grad():
        policy(
            input_ids=ROLLOUTS.input_ids,
            attention_mask=ROLLOUTS.attention_mask.long(),
            position_ids=ROLLOUTS.position_ids,
            use_cache=False,
        )
    expected = tc.collect(tiny_policy(), ROLLOUTS, NEEDS)
    for layer in (1, 3):
        torch.testing.assert_close(read().answer_attention[layer], expected.answer_attention[layer])
    print("observed")
    dist.destroy_process_group()
