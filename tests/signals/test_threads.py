"""Several threads, and several owners of transformers' table of attention functions."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from conftest import make_rollouts, tiny_policy
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import tokencredit as tc
from tokencredit.signals.attention import probe_attention

ROLLOUTS = make_rollouts()
NEEDS = tc.Needs(answer_attention=frozenset(range(4)), logits=True)
ASKED = {0: {"heads": lambda attention: attention.query.shape[1]}}


def entries():
    return dict(ALL_ATTENTION_FUNCTIONS._local_mapping)


def forward(policy):
    with torch.no_grad():
        policy(input_ids=ROLLOUTS.input_ids, use_cache=False)


def test_two_threads_read_two_models_at_once():
    policies, before = [tiny_policy(seed) for seed in (0, 1)], entries()
    expected = [tc.collect(policy, ROLLOUTS, NEEDS) for policy in policies]
    start = Barrier(2)

    def read(which):
        start.wait()
        return [tc.collect(policies[which], ROLLOUTS, NEEDS) for _ in range(30)]

    with ThreadPoolExecutor(2) as threads:
        for which, found in enumerate(threads.map(read, (0, 1))):
            for signals in found:
                assert torch.equal(signals.logprob, expected[which].logprob)
                for layer, values in expected[which].answer_attention.items():
                    assert torch.equal(signals.answer_attention[layer], values)
    assert entries() == before


def test_probes_that_end_in_another_order_than_they_began_see_their_own_passes():
    """The first thread leaves while the second is still open, which makes its pass only then."""
    first, second, before = tiny_policy(), tiny_policy(1), entries()
    opened, left = Barrier(2), Barrier(2)

    def leaves_early():
        with probe_attention(first, ASKED) as probe:
            opened.wait()
            forward(first)
        left.wait()
        return probe.found

    def reads_late():
        with probe_attention(second, ASKED) as probe:
            opened.wait()
            left.wait()
            forward(second)
        return probe.found

    with ThreadPoolExecutor(2) as threads:
        found = [threads.submit(work) for work in (leaves_early, reads_late)]
        assert [each.result() for each in found] == [{(0, "heads"): 4}] * 2
    assert entries() == before


def test_a_function_that_others_register_meanwhile_is_wrapped_and_kept(monkeypatch):
    policy, calls = tiny_policy(), []
    original = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def theirs(*given, **kwargs):
        calls.append(1)
        return original(*given, **kwargs)

    with probe_attention(policy, ASKED) as outer:
        forward(policy)
        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "sdpa", theirs)
        with probe_attention(policy, ASKED) as inner:
            forward(policy)
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is theirs
    assert outer.found == inner.found == {(0, "heads"): 4}
    assert calls == [1] * 4
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is theirs


def test_a_name_with_a_slash_is_read_like_any_other(monkeypatch):
    """As transformers names kernels from its hub."""
    policy = tiny_policy()
    expected = tc.collect(policy, ROLLOUTS, NEEDS)
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "kernels/own", sdpa)
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    masks = ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]
    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, "kernels/own", masks)
    monkeypatch.setattr(policy.config, "_attn_implementation", "kernels/own")
    found = tc.collect(policy, ROLLOUTS, NEEDS)
    torch.testing.assert_close(found.answer_attention[3], expected.answer_attention[3])
    assert "kernels/own" not in entries()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_an_error_inside_leaves_the_table_as_it_was(implementation):
    policy, before = tiny_policy(), entries()
    policy.set_attn_implementation(implementation)
    with pytest.raises(RuntimeError, match="inside"), probe_attention(policy, ASKED):
        raise RuntimeError("inside")
    assert entries() == before
