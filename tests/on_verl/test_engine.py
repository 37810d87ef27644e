"""verl's own log-prob pass, over its FSDP engines: the credit that comes out is tc.assign's, in every layout."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("verl", reason="verl lives in an environment of its own: make test-verl")

from conftest import make_rollouts
from engines import batch_of, engine, log_prob_pass
from peft import LoraConfig, PeftModel, get_peft_model
from run_verl import policy_that_answers, write_assets
from test_fields import Fading
from transformers import Qwen3ForCausalLM

import tokencredit as tc
from tokencredit.testbed.policy import build_tokenizer
from tokencredit.trainers.verl.engine import CreditEngine
from tokencredit.trainers.verl.fields import marked, shipped, unpack

HEADS = {"heads": ((0, 1), (1, 0)), "delay": 0, "incorrect": True}
METHODS = {
    "atpo": {},
    "rhythm": {"horizon": (1, 4)},
    "attnpo": HEADS,
    "entropy": {},
    "entropy_selection": {},
    "surprisal": {},
    "entropy_reduction": {},
}
LAYOUTS = {
    "padded": {},
    "padded, one by one": {"micro_batch": 1},
    "padded, by tokens": {"token_budget": 50},
    "packed": {"remove_padding": True},
    "packed, in twos": {"remove_padding": True, "micro_batch": 2},
    "packed, by tokens": {"remove_padding": True, "token_budget": 50},
}
OUTCOME = torch.tensor([1.5, -1.0, 0.3, -0.8, 0.0, 1.0])


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    return write_assets(tmp_path_factory.mktemp("assets"))


@pytest.fixture(scope="module")
def engines(assets):
    """Name -> engine, made once."""
    made = {}
    settings = {"fsdp2": {}, "fsdp": {}, "fsdp2, filled up": {"bucket": 64}}

    def get(name):
        if name not in made:
            made[name] = engine(assets / "model", name.split(",")[0], **settings[name])
        return made[name]

    return get


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """The folder of a LoRA adapter that has moved."""
    folder = tmp_path_factory.mktemp("adapter")
    adapted = get_peft_model(
        policy_that_answers(),
        LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "up_proj"], task_type="CAUSAL_LM"),
    )
    torch.manual_seed(3)
    for name, p in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.2)
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["fsdp2", "fsdp"])
def adapted(request, assets, adapter):
    """An engine with that adapter."""
    return engine(assets / "model", request.param, lora_rank=4, lora_adapter_path=str(adapter))


@pytest.fixture(scope="module")
def whole(adapter):
    """A plain PEFT policy with that adapter."""
    return PeftModel.from_pretrained(policy_that_answers(), adapter).eval()


@pytest.fixture(scope="module")
def rollouts():
    made = make_rollouts(
        lengths=(14, 9, 12, 14, 1, 11), prompts=(5, 3, 4, 2, 6, 6), answers=(8, 4, -1, 9, -1, 2), seed=5
    )
    end = build_tokenizer().convert_tokens_to_ids("</think>")
    ids = made.completion_ids.clone()
    rows = (made.answer_start > 0).nonzero().flatten()
    ids[ids == end] = 9
    ids[rows, made.answer_start[rows] - 1] = end
    bare = tc.Rollouts(
        made.prompt_ids, made.prompt_mask, ids, made.completion_mask, group=made.group, correct=made.correct
    )
    return tc.mark_spans(bare, build_tokenizer())


def credit_of(fields, rollouts, method):
    """The trainer's side; every field is there, and nothing else was added."""
    assert {name for name in fields if name.startswith("credit_")} == set(shipped(method))
    return unpack(method, marked(rollouts, fields), OUTCOME, fields, 7)


def expect_same(found, expected):
    assert expected.weights.std() > 0.01
    torch.testing.assert_close(found.advantages, expected.advantages, atol=2e-5, rtol=1e-4)
    for name, values in expected.diagnostics.items():
        torch.testing.assert_close(found.diagnostics[name], values, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("strategy", ["fsdp2", "fsdp", "fsdp2, filled up"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", METHODS)
def test_credit_is_the_librarys_in_every_layout(engines, rollouts, name, layout, strategy):
    method = tc.method(name, **METHODS[name])
    expected = tc.assign(policy_that_answers(), rollouts, method, OUTCOME, step=7)
    fields = log_prob_pass(engines(strategy), batch_of(rollouts, **LAYOUTS[layout]), method)
    expect_same(credit_of(fields, rollouts, method), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_log_probs_are_verls_own_and_its_passes_are_no_more(engines, rollouts, layout):
    made, data = engines("fsdp2"), batch_of(rollouts, **LAYOUTS[layout])
    calls = []
    hook = made.module.get_decoder().register_forward_hook(lambda *_: calls.append(1))
    plain = log_prob_pass(made, data)
    alone = len(calls)
    asked = log_prob_pass(made, data, tc.method("rhythm"))
    hook.remove()
    assert len(calls) == 2 * alone
    for name in plain:
        assert torch.equal(plain[name].values(), asked[name].values()), name


@pytest.mark.parametrize("layout", ["padded, by tokens", "packed, by tokens"])
def test_log_probs_are_read_at_temperature_one(engines, rollouts, layout):
    method = tc.method("surprisal")
    expected = tc.assign(policy_that_answers(), rollouts, method, OUTCOME)
    data = batch_of(rollouts, **LAYOUTS[layout], temperature=0.6)
    expect_same(credit_of(log_prob_pass(engines("fsdp2"), data, method), rollouts, method), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("name", ["arca", "divergence"])
def test_the_adapter_is_off_in_the_reference_pass(adapted, whole, rollouts, name, layout, temperature):
    method = tc.method(name)
    expected = tc.assign(whole, rollouts, method, OUTCOME)
    data = batch_of(rollouts, **LAYOUTS[layout], temperature=temperature)
    on, off = (log_prob_pass(adapted, data, method, reference=side) for side in (False, True))
    assert not {n for n in on if n.startswith("credit_")} & {n for n in off if n.startswith("credit_")}
    expect_same(credit_of(on | off, rollouts, method), expected)
    assert not adapted._states


def test_a_reference_pass_alone_is_refused(adapted, rollouts):
    with pytest.raises(ValueError, match="both on the same worker"):
        log_prob_pass(adapted, batch_of(rollouts), tc.method("arca"), reference=True)


def test_same_completions_twice_share_a_state(adapted, whole, rollouts):
    method, rows = tc.method("arca"), torch.tensor([0, 0, 1, 2, 3, 0])
    twice = rollouts.rows(rows)
    data = batch_of(twice, micro_batch=2)
    on, off = (log_prob_pass(adapted, data, method, reference=side) for side in (False, True))
    expected = tc.assign(whole, twice, method, OUTCOME)
    expect_same(credit_of(on | off, twice, method), expected)


@pytest.mark.parametrize("layout", ["padded", "packed, by tokens"])
@pytest.mark.parametrize("name", ["surprisal", "entropy", "rhythm"])
def test_fused_kernels_show_the_same(assets, rollouts, monkeypatch, name, layout):
    """verl's log-probs then come without logits."""
    method = tc.method(name, **METHODS[name])
    expected = tc.assign(policy_that_answers(), rollouts, method, OUTCOME)
    # verl replaces it for all models of the class.
    monkeypatch.setattr(Qwen3ForCausalLM, "forward", Qwen3ForCausalLM.forward)
    made = engine(assets / "model", use_fused_kernels=True, fused_kernel_options={"impl_backend": "torch"})
    data = batch_of(rollouts, **LAYOUTS[layout], use_fused_kernels=True)
    expect_same(credit_of(log_prob_pass(made, data, method), rollouts, method), expected)


@pytest.mark.parametrize("layout", ["padded", "packed, by tokens"])
def test_workers_are_told_the_step_and_where_answers_start(engines, rollouts, layout):
    """A method with a schedule, and answers that start at the last `5`."""
    method, tokenizer = Fading(), build_tokenizer()
    ids = rollouts.completion_ids.clone()
    ids[:2, 5] = tokenizer.convert_tokens_to_ids("5")
    bare = replace(rollouts, completion_ids=ids, answer_start=None, step_index=None)
    ruled = tc.mark_spans(bare, tokenizer, answer="5")
    assert not torch.equal(ruled.answer_start, tc.mark_spans(bare, tokenizer).answer_start)
    signals = tc.collect(policy_that_answers(), ruled, method.needs)
    expected = method(ruled, OUTCOME, signals, step=7)
    assert not torch.equal(expected.weights, method(ruled, OUTCOME, signals).weights)
    fields = log_prob_pass(engines("fsdp2"), batch_of(bare, **LAYOUTS[layout]), method, answer="5", step=7)
    assert torch.equal(marked(bare, fields).answer_start, ruled.answer_start)
    expect_same(credit_of(fields, bare, method), expected)


def test_verls_registry_gives_a_worker_our_engine(engines):
    assert type(engines("fsdp2")) is CreditEngine
