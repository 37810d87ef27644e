"""Models whose weights are elsewhere, packed, or spread over processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from conftest import make_rollouts, tiny_lora_policy, tiny_policy, tiny_reward_model
from torch import nn

import tokencredit as tc
from tokencredit.analysis.traces import attention_pictures
from tokencredit.signals import DistanceNeed
from tokencredit.signals.placement import refuse_split_heads

ROLLOUTS = make_rollouts()
EVERYTHING = tc.Needs(
    answer_attention=frozenset(range(4)), distances=frozenset({DistanceNeed("all")}), logits=True
)  # fmt: skip


def expect_equal(found, expected):
    for layer in range(4):
        torch.testing.assert_close(found.answer_attention[layer], expected.answer_attention[layer])
    torch.testing.assert_close(found.logprob, expected.logprob)
    torch.testing.assert_close(found.entropy, expected.entropy)


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_an_offloaded_model_is_read_as_any_other(where, tmp_path):
    expected = tc.collect(tiny_policy(), ROLLOUTS, EVERYTHING)
    policy, device = tiny_policy(), torch.device("cpu")
    policy = cpu_offload(policy, device) if where == "memory" else disk_offload(policy, str(tmp_path), device)
    assert {p.device.type for p in policy.parameters()} == {"meta"}
    expect_equal(tc.collect(policy, ROLLOUTS, EVERYTHING), expected)
    alone = tc.Needs(answer_attention=frozenset({1}))
    torch.testing.assert_close(
        tc.collect(policy, ROLLOUTS, alone).answer_attention[1], expected.answer_attention[1]
    )  # fmt: skip
    assert attention_pictures(policy, ROLLOUTS) == attention_pictures(tiny_policy(), ROLLOUTS)
    assert {p.device.type for p in policy.parameters()} == {"meta"}


def test_an_offloaded_adapter_and_an_offloaded_reward_model():
    device = torch.device("cpu")
    needs = tc.method("arca").needs | tc.method("p2t").needs
    expected = tc.collect(tiny_lora_policy(), ROLLOUTS, needs, tiny_reward_model())
    policy, scorer = (cpu_offload(model, device) for model in (tiny_lora_policy(), tiny_reward_model()))
    found = tc.collect(policy, ROLLOUTS, needs, scorer)
    torch.testing.assert_close(found.adapter_residual, expected.adapter_residual)
    for need, values in expected.reward.items():
        torch.testing.assert_close(found.reward[need].influence, values.influence)


class PackedHead(nn.Linear):
    """Stands in for a 4-bit layer of bitsandbytes, which does not run here: its weight is one packed column of bytes,
    and only its own forward pass knows how to read it."""

    def __init__(self, weight):
        super().__init__(1, 1, bias=False)
        self.shape = weight.shape
        bytes_of = weight.detach().contiguous().view(-1, 1).view(torch.uint8)
        self.weight = nn.Parameter(bytes_of.view(-1, 1), requires_grad=False)

    def forward(self, states):
        return states @ self.weight.data.view(-1).view(torch.float32).view(self.shape).T


def test_the_shape_of_a_packed_head_is_not_the_vocabulary(monkeypatch):
    """Logits are made in chunks of tokens, as many as memory allows for the vocabulary, not for a weight's bytes."""
    from tokencredit.signals import logits

    monkeypatch.setattr(logits, "_MAX_LOGITS", 64 * 20)
    expected = tc.collect(tiny_policy(), ROLLOUTS, EVERYTHING)
    policy, rows = tiny_policy(), []
    policy.lm_head = PackedHead(policy.lm_head.weight)
    policy.lm_head.register_forward_hook(lambda module, given, out: rows.append(out.shape[0]))
    expect_equal(tc.collect(policy, ROLLOUTS, EVERYTHING), expected)
    assert rows[2:] == [20, int(ROLLOUTS.lengths.sum()) - 20]


def test_a_policy_that_fsdp_shards_is_refused_and_can_be_observed():
    script = Path(__file__).with_name("run_fsdp.py")
    assert run([sys.executable, str(script)]) == "refused\nobserved\n"


def test_heads_spread_over_processes_are_refused(tmp_path):
    """Two real processes with a model that transformers has split between them."""
    tiny_policy(num_hidden_layers=2).save_pretrained(tmp_path)
    script = Path(__file__).with_name("run_tensor_parallel.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    assert run([*launch, str(script), str(tmp_path)]).count("done") == 2  # lines of two processes may mix


def test_layers_with_heads_of_their_own_number_are_no_tensor_parallelism():
    attention = tiny_policy().model.layers[0].self_attn
    refuse_split_heads(attention, 4)
    refuse_split_heads(attention, 2)  # one process: nobody has the others


def run(command) -> str:
    source = Path(__file__).parents[2] / "src"
    paths = os.pathsep.join([str(source), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
