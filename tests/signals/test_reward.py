"""What tokens are worth to a reward model: against finite differences, by hand, and across tokenizers."""

from __future__ import annotations

import types
from contextlib import nullcontext
from dataclasses import replace

import pytest
import reference
import torch
import transformers
from conftest import make_rollouts, tiny_policy, tiny_reward_model
from peft import LoraConfig, get_peft_model
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

import tokencredit as tc
from tokencredit.signals import RewardNeed
from tokencredit.signals import reward_attribution as attribution_module
from tokencredit.signals.reward_layout import lay_out, text_pieces
from tokencredit.signals.reward_model import null_embedding

ROLLOUTS = make_rollouts((12, 7, 9, 1), (5, 3, 4, 2), (8, 4, -1, -1))
POLICY = tiny_policy()


def read(reward_model, rollouts=ROLLOUTS, batch_size=None, **need):
    wanted = RewardNeed(**need)
    needs = tc.Needs(reward=frozenset({wanted}))
    return tc.collect(POLICY, rollouts, needs, reward_model, batch_size=batch_size).reward[wanted]


def alone(model, i):
    """Completion i without padding: token ids, prompt length, embeddings."""
    ids = ROLLOUTS.input_ids[i][ROLLOUTS.attention_mask[i]]
    return ids, int(ROLLOUTS.prompt_mask[i].sum()), model.get_input_embeddings()(ids).detach()


def test_taylor_of_a_sequence_classifier_is_the_directional_derivative():
    model = tiny_reward_model().double()
    found = read(model)
    null = model.get_input_embeddings().weight[0].detach()
    for i, n in enumerate(ROLLOUTS.lengths.tolist()):
        ids, prompt, embeddings = alone(model, i)
        expected = reference.taylor(lambda e: model(inputs_embeds=e[None]).logits[0, 0], embeddings, null)
        reward = model(ids[None]).logits.item()
        torch.testing.assert_close(found.influence[i, :n].tolist(), expected[prompt:], atol=1e-4, rtol=1e-4)
        assert found.reward[i, :n].tolist() == pytest.approx([reward] * n, rel=1e-5)
        assert (found.segment[i, :n] == 0).all()
    assert (found.influence[~ROLLOUTS.completion_mask] == 0).all()
    assert (found.segment[~ROLLOUTS.completion_mask] == -1).all()


@pytest.mark.parametrize("backward", ["single", "per_step"])
def test_taylor_of_a_process_reward_model(backward):
    """Read at each step's last token; per step, a token counts for its own step only."""
    model = tiny_reward_model(process=True).double()
    found = read(model, null="zero", backward=backward)
    i, steps = 0, ROLLOUTS.step_index[0].tolist()
    _, prompt, embeddings = alone(model, i)
    ends = [prompt + max(t for t, k in enumerate(steps) if k == step) for step in range(max(steps) + 1)]

    def scores(e):
        return model(inputs_embeds=e[None]).logits[0].softmax(-1)[ends, 1]

    null = torch.zeros_like(embeddings[0])
    by_step = [reference.taylor(lambda e, k=k: scores(e)[k], embeddings, null) for k in range(len(ends))]
    rewards = scores(embeddings).tolist()
    for t, k in enumerate(steps):
        own = sum(row[prompt + t] for row in by_step) if backward == "single" else by_step[k][prompt + t]
        assert found.influence[i, t].item() == pytest.approx(own if k >= 0 else 0, abs=1e-5)
        assert found.reward[i, t].item() == pytest.approx(rewards[k] if k >= 0 else 0, abs=1e-6)
        assert found.segment[i, t] == k
    assert (found.segment[2] == -1).all()  # no answer, so no steps


@pytest.mark.parametrize("label_tokens", [(5, 9), ("5", "9")])
def test_taylor_of_a_causal_lm_that_judges_each_step_by_a_token(label_tokens):
    """The reward of a step is the probability of the first label token, of the two, behind the step's last token."""
    model = tiny_policy(3).double()
    numbers = words(r"[\s\S]", [str(i) for i in range(64)] + ["?"])
    judge = tc.RewardModel(model, tokenizer=numbers, label_tokens=label_tokens)
    found = read(judge, null="zero", backward="per_step")
    i, steps = 0, ROLLOUTS.step_index[0].tolist()
    _, prompt, embeddings = alone(model, i)
    ends = [prompt + max(t for t, k in enumerate(steps) if k == step) for step in range(max(steps) + 1)]

    def scores(e):
        return model(inputs_embeds=e[None]).logits[0, ends][:, [5, 9]].softmax(-1)[:, 0]

    by_step = [
        reference.taylor(lambda e, k=k: scores(e)[k], embeddings, torch.zeros(32, dtype=torch.double))
        for k in range(len(ends))
    ]
    rewards = scores(embeddings).tolist()
    assert max(rewards) - min(rewards) > 0.01
    for t, k in enumerate(steps):
        assert found.reward[i, t].item() == pytest.approx(rewards[k] if k >= 0 else 0, abs=1e-6)
        assert found.influence[i, t].item() == pytest.approx(by_step[k][prompt + t] if k >= 0 else 0, abs=1e-5)


def affine(embeddings):
    """Not a multiple of the embeddings, and different at every position."""
    weight = torch.arange(1.0, embeddings.shape[1] + 1)[:, None] * torch.linspace(-1, 1, embeddings.shape[2])
    return 3 + (embeddings * weight).sum((1, 2))


@pytest.mark.parametrize("null", ["pad", "zero", "mean"])
def test_taylor_is_exact_where_the_reward_is_affine(null):
    estimates = [read(affine, null=null, estimator=e).influence for e in ("taylor", "exact", "integrated")]
    assert estimates[0].abs().max() > 1
    for other in estimates[1:]:
        torch.testing.assert_close(other, estimates[0], atol=1e-3, rtol=1e-4)


def test_exact_is_one_replacement_at_a_time(monkeypatch):
    model = tiny_reward_model().double()
    for limit in (1, 5, 100):
        monkeypatch.setattr(attribution_module, "_MAX_REPLACED", limit)
        found = read(model, estimator="exact")
        for i, n in enumerate(ROLLOUTS.lengths.tolist()):
            _, prompt, embeddings = alone(model, i)
            for t in range(n):
                replaced = embeddings.clone()
                replaced[prompt + t] = model.get_input_embeddings().weight[0]
                with torch.no_grad():
                    whole, without = (model(inputs_embeds=e[None]).logits.item() for e in (embeddings, replaced))
                assert found.influence[i, t].item() == pytest.approx(whole - without, abs=1e-5)


def test_integrated_influences_sum_to_the_whole_difference():
    model = tiny_reward_model().double()
    found = read(model, estimator="integrated", null="mean", path_points=200)
    for i in range(len(ROLLOUTS)):
        _, prompt, embeddings = alone(model, i)
        nothing = embeddings.clone()
        nothing[prompt:] = model.get_input_embeddings().weight.mean(0)
        with torch.no_grad():
            whole, none = (model(inputs_embeds=e[None]).logits.item() for e in (embeddings, nothing))
        assert found.influence[i].sum().item() == pytest.approx(whole - none, abs=1e-3)
    coarse = read(model, estimator="integrated", null="mean", path_points=2)
    assert not torch.allclose(coarse.influence, found.influence, atol=1e-3)


def test_null_tokens():
    model = tc.RewardModel(tiny_reward_model(eos_token_id=[5, 6]))
    weight = model.model.get_input_embeddings().weight
    assert torch.equal(null_embedding(model, "pad", POLICY), weight[0])
    assert torch.equal(null_embedding(model, "eos", POLICY), weight[5])
    assert (null_embedding(model, "zero", POLICY) == 0).all()
    torch.testing.assert_close(null_embedding(model, "mean", POLICY), weight.mean(0))
    with pytest.raises(ValueError, match="no eos token"):
        read(tiny_reward_model(eos_token_id=None), null="eos")
    with pytest.raises(ValueError, match="no pad token"):
        read(tiny_reward_model(pad_token_id=None))


def test_embeddings_that_the_model_scales_are_its_own():
    """Gemma multiplies embeddings as it looks them up; the null token goes the same way."""
    torch.manual_seed(0)
    config = transformers.Gemma3TextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, head_dim=16,
        num_key_value_heads=1, pad_token_id=0, num_labels=1, initializer_range=0.3,
    )  # fmt: skip
    model = transformers.Gemma3TextForSequenceClassification(config).eval()
    scaled = model.get_input_embeddings()(torch.arange(64))
    torch.testing.assert_close(null_embedding(tc.RewardModel(model), "mean", POLICY), scaled.mean(0).detach())
    assert not torch.allclose(scaled, model.get_input_embeddings().weight)


def test_a_model_without_padding_is_read_row_by_row():
    with_pad, without = (tiny_reward_model(pad_token_id=token) for token in (0, None))
    without.load_state_dict(with_pad.state_dict())
    a, b = (read(model, null="zero") for model in (with_pad, without))
    torch.testing.assert_close(a.influence, b.influence, atol=1e-5, rtol=1e-4)


def test_an_encoder_can_be_a_reward_model():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, num_labels=1
    )
    model = transformers.BertForSequenceClassification(config).eval()
    found = read(model)
    ids = ROLLOUTS.input_ids[1][ROLLOUTS.attention_mask[1]]
    with torch.no_grad():
        assert found.reward[1, 0].item() == pytest.approx(model(ids[None]).logits.item(), abs=1e-5)


def test_the_reward_model_is_left_as_it_was():
    model = tiny_reward_model().train()
    model.model.norm.eval()
    before = [m.training for m in model.modules()]
    read(model)
    assert [m.training for m in model.modules()] == before
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_the_policy_is_not_run():
    policy = tiny_policy()
    policy.get_decoder().register_forward_hook(lambda *_: pytest.fail("the policy was run"))
    needs = tc.method("p2t").needs
    assert tc.collect(policy, ROLLOUTS, needs, tiny_reward_model()).reward


def words(pattern, vocabulary):
    tokenizer = Tokenizer(models.WordLevel({t: i for i, t in enumerate(vocabulary)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?", pad_token="?")
    fast.backend_tokenizer.decoder = decoders.Fuse()
    return fast


LETTERS = words(r"[\s\S]", [*"?abcdef;\n", "</think>"])
PAIRS = words(r"[\s\S]{1,2}", ["?", *(a + b for a in "abcdef;\n" for b in "abcdef;\n"), *"abcdef;\n"])
TEXT = "abc;de;ab"


def text_rollouts(text=TEXT, steps=(0, 0, 0, 0, 1, 1, 1, -1, -1)):
    ids = torch.tensor([LETTERS.encode(text, add_special_tokens=False)])
    prompt = torch.tensor([LETTERS.encode("f", add_special_tokens=False)])
    index = torch.tensor([steps])
    return tc.Rollouts(prompt, torch.ones_like(prompt), ids, torch.ones_like(ids), step_index=index)


def test_another_tokenizer_is_aligned_by_characters():
    """ "f" and "abc;de;ab" as pairs: fa bc ;d e; ab. Pairs that the prompt shares go half to it."""
    layout = lay_out(tc.RewardModel(affine, PAIRS, LETTERS), text_rollouts(), 0)
    assert [PAIRS.decode([i]) for i in layout.ids] == ["fa", "bc", ";d", "e;", "ab"]
    assert layout.shares == [
        (0, 0, 0.5), (1, 1, 0.5), (2, 1, 0.5), (3, 2, 0.5), (4, 2, 0.5), (5, 3, 0.5), (6, 3, 0.5), (7, 4, 0.5),
        (8, 4, 0.5),
    ]  # fmt: skip
    assert layout.ends == {0: 2, 1: 3}


def test_separators_stand_behind_each_step_once():
    with_newline = lay_out(tc.RewardModel(affine, LETTERS, separator="\n"), text_rollouts(), 0)
    assert LETTERS.decode(with_newline.ids) == "fabc;\nde;\nab"
    assert with_newline.ends == {0: 5, 1: 9}
    assert [position for _, position, _ in with_newline.shares] == [1, 2, 3, 4, 6, 7, 8, 10, 11]
    own = lay_out(tc.RewardModel(affine, LETTERS, separator=";"), text_rollouts(), 0)
    assert LETTERS.decode(own.ids) == "fabc;de;ab"
    assert own.ends == {0: 4, 1: 7}
    both = lay_out(tc.RewardModel(affine, PAIRS, LETTERS, separator="\n"), text_rollouts(), 0)
    assert "".join(PAIRS.decode([i]) for i in both.ids) == "fabc;\nde;\nab"
    assert both.ends == {0: 2, 1: 4}


def test_influence_is_neither_lost_nor_made_on_the_way_between_tokenizers():
    torch.manual_seed(0)
    embeddings = torch.nn.Embedding(len(PAIRS), 6)
    rollouts = text_rollouts()
    same = read(tc.RewardModel(affine, PAIRS, LETTERS, embeddings=embeddings), rollouts, null="zero")
    ids = torch.tensor(lay_out(tc.RewardModel(affine, PAIRS, LETTERS), rollouts, 0).ids)
    weight = torch.arange(1.0, len(ids) + 1)[:, None] * torch.linspace(-1, 1, 6)
    each = (embeddings(ids) * weight).sum(1)
    expected = [each[0] / 2, *(each[j] / 2 for j in (1, 1, 2, 2, 3, 3, 4, 4))]
    torch.testing.assert_close(same.influence[0], torch.stack(expected).detach(), atol=1e-5, rtol=1e-5)
    assert same.covered.all()


def test_tokens_that_nothing_covers_are_counted():
    """A tokenizer that drops white space."""
    backend = Tokenizer(models.WordLevel({t: i for i, t in enumerate("?abcdef;")}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")]
    )
    spaceless = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?", pad_token="?")
    model = tc.RewardModel(affine, spaceless, LETTERS, embeddings=torch.nn.Embedding(8, 6))
    rollouts = text_rollouts("ab\n;", (0, 0, 0, 0))
    found = read(model, rollouts, null="zero")
    assert found.covered.tolist() == [[True, True, False, True]]
    assert found.influence[0, 2] == 0
    needs = tc.method("p2t", null="zero").needs
    signals = tc.collect(POLICY, rollouts, needs, model)
    credit = tc.method("p2t", null="zero")(rollouts, torch.zeros(1), signals)
    assert credit.diagnostics["unmapped"].tolist() == [0.25]


def test_the_prompt_can_be_put_in_the_reward_models_own_words():
    model = tc.RewardModel(affine, PAIRS, LETTERS, prompt_text=lambda prompt: f"de{prompt}c")
    assert "".join(PAIRS.decode([i]) for i in lay_out(model, text_rollouts(), 0).ids) == f"defc{TEXT}"


def test_text_pieces_join_to_the_text():
    from transformers import ByT5Tokenizer

    tokenizer = ByT5Tokenizer()
    ids = tokenizer.encode("aé€😀b", add_special_tokens=False)
    pieces = text_pieces(tokenizer, ids)
    assert len(pieces) == len(ids) == 11
    assert "".join(pieces) == "aé€😀b"
    assert pieces[-1] == "b"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: None, "pass reward_model="),
        (lambda: 3, "transformers classifier or a function"),
        (lambda: _labels(3), "3 labels"),
        (lambda: _labels(2), "2 labels"),
        (lambda: tc.RewardModel(affine, separator="\n"), "needs tokenizer="),
        (lambda: tc.RewardModel(affine, prompt_text=str), "need policy_tokenizer="),
        (lambda: tc.RewardModel(affine, object(), LETTERS), "fast one"),
        (lambda: lambda e: e, "must turn embeddings"),
        (lambda: lambda e: 1.0, "got float"),
        (lambda: lambda e: e.sum((1, 2)) * float("nan"), "not finite"),
        (lambda: tiny_policy(), "is a causal LM, whose logits are those of its vocabulary.* label_tokens="),
        (lambda: tc.RewardModel(affine, label_tokens=(1, 2)), "label_tokens are those of a causal LM; got function"),
        (
            lambda: tc.RewardModel(tiny_reward_model(), label_tokens=(1, 2)),
            "those of a causal LM; got Qwen3ForSequence",
        ),
        (lambda: tc.RewardModel(POLICY, label_tokens=(1, 1)), "must be two different tokens.* both are the token 1"),
        (
            lambda: tc.RewardModel(POLICY, LETTERS, label_tokens=("a", LETTERS.get_vocab()["a"])),
            "must be two different tokens",
        ),
        (lambda: tc.RewardModel(POLICY, label_tokens=5), "must be two tokens, .*got 5"),
        (lambda: tc.RewardModel(POLICY, label_tokens="+-"), "must be two tokens"),
        (lambda: tc.RewardModel(POLICY, label_tokens=(1, 64)), "64 is not one token of the reward model"),
        (lambda: tc.RewardModel(POLICY, label_tokens=("+", "-")), "need tokenizer="),
        (lambda: tc.RewardModel(POLICY, LETTERS, label_tokens=("a", "-")), "'-' is not one token of the reward model"),
        (lambda: _small_vocabulary(), "not in the reward model's vocabulary"),
    ],
)
def test_reward_models_that_cannot_be_read(make, message):
    with pytest.raises(ValueError, match=message):
        tc.assign(POLICY, ROLLOUTS, "p2t", reward_model=make())


def test_a_process_reward_model_needs_steps():
    with pytest.raises(ValueError, match="mark_spans"):
        tc.assign(POLICY, replace(ROLLOUTS, step_index=None), "p2t", reward_model=tiny_reward_model(process=True))


def _labels(count):
    torch.manual_seed(0)
    config = tiny_reward_model().config
    config.num_labels = count
    return transformers.Qwen3ForSequenceClassification(config).eval()


def _small_vocabulary():
    return tiny_reward_model(vocab_size=8)


def kept_for_backward(model, **need):
    """Bytes that the forward passes of a reading keep for its backward passes; shared storage counts once."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        read(model, **need)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("estimator", ["taylor", "integrated"])
@pytest.mark.parametrize("process", [False, True])
def test_nothing_is_kept_for_the_gradients_of_parameters(process, estimator):
    model = tiny_reward_model(process=process)
    trainable = kept_for_backward(model, estimator=estimator)
    assert 0 < trainable == kept_for_backward(model.requires_grad_(False), estimator=estimator)


class Refused(Exception):
    pass


def refuse(*_):
    raise Refused


@pytest.mark.parametrize("fails", [None, "forward", "backward"])
def test_parameters_are_frozen_while_a_gradient_is_taken_and_then_as_before(fails):
    model, seen = tiny_reward_model(), []
    model.model.layers[0].requires_grad_(False)
    for p in model.parameters():
        p.grad = torch.ones_like(p) if p.requires_grad else None
    before = [p.requires_grad for p in model.parameters()]
    model.model.register_forward_hook(lambda *_: seen.append(any(p.requires_grad for p in model.parameters())))
    if fails == "forward":
        model.score.register_forward_hook(refuse)
    if fails == "backward":
        model.model.norm.register_full_backward_hook(refuse)
    with pytest.raises(Refused) if fails else nullcontext():
        read(model)
    assert seen == [False]
    assert [p.requires_grad for p in model.parameters()] == before
    assert all((p.grad == 1).all() if p.requires_grad else p.grad is None for p in model.parameters())


def test_a_model_behind_a_function_is_frozen_where_the_function_is_its_method():
    model = tiny_reward_model()
    model.rate = types.MethodType(lambda self, e: self(inputs_embeds=e).logits[:, 0], model)
    function = tc.RewardModel(model.rate, embeddings=model.get_input_embeddings())
    trainable = kept_for_backward(function, null="zero")
    model.requires_grad_(False)
    assert 0 < trainable == kept_for_backward(function, null="zero")


@pytest.mark.parametrize("process", [False, True])
def test_taylor_takes_one_forward_pass(process):
    model, calls = tiny_reward_model(process=process), []
    model.model.register_forward_hook(lambda *_: calls.append(1))
    read(model, backward="per_step")
    assert len(calls) == 1


def test_padding_does_not_shift_positions():
    model, seen = tiny_reward_model(), []
    model.model.register_forward_pre_hook(lambda m, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True)
    read(model)
    assert (seen[0][:, -1] == ROLLOUTS.lengths + ROLLOUTS.prompt_mask.sum(1) - 1).all()


def test_gradients_need_a_mode_that_allows_them():
    with torch.no_grad():
        expected = read(tiny_reward_model(), estimator="exact").influence
        read(tiny_reward_model())
    with torch.inference_mode():
        torch.testing.assert_close(read(tiny_reward_model(), estimator="exact").influence, expected)
        with pytest.raises(ValueError, match="inference_mode"):
            read(tiny_reward_model())


def test_adapters_of_the_reward_model_are_active():
    plain = tiny_reward_model()
    wrapped = get_peft_model(tiny_reward_model(), LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS"))
    fresh = read(wrapped).influence
    torch.testing.assert_close(fresh, read(plain).influence)
    for name, p in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.3)
    assert not torch.allclose(read(wrapped).influence, fresh, atol=1e-3)


@pytest.mark.parametrize("estimator", ["taylor", "exact", "integrated"])
def test_a_classifier_without_a_pad_token(estimator):
    with_pad, without = (tiny_reward_model(pad_token_id=token) for token in (0, None))
    without.load_state_dict(with_pad.state_dict())
    a, b = (read(model, null="zero", estimator=estimator, path_points=2) for model in (with_pad, without))
    torch.testing.assert_close(a.influence, b.influence, atol=1e-5, rtol=1e-4)


def test_integrated_from_nothing_in_bfloat16():
    """Near a null token of norm 0 the model normalises what is left, rounding included."""
    exact = read(tiny_reward_model(), estimator="integrated").influence
    rounded = read(tiny_reward_model().to(torch.bfloat16), estimator="integrated").influence
    assert (exact - rounded).abs().max() < 0.15 * exact.abs().max()


def sentencepiece_like(vocabulary, template=None):
    backend = Tokenizer(models.WordLevel({t: i for i, t in enumerate(vocabulary)}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    if template is not None:
        backend.post_processor = TemplateProcessing(single=template, special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?", bos_token="<s>", eos_token="</s>")


def test_the_space_between_prompt_and_completion_is_kept():
    tokenizer = sentencepiece_like(["?", "<s>", "</s>", "\u2581q", "\u2581yes", "\u2581no"])
    assert text_pieces(tokenizer, [4, 5], before=[3]) == [" yes", " no"]
    assert text_pieces(tokenizer, [4, 5]) == ["yes", " no"]


def test_special_tokens_of_another_tokenizer_stand_once():
    """The reward model's own begins the text unless the text does; the policy's end of sequence is no text."""
    policy_tokenizer = sentencepiece_like(["?", "<s>", "</s>", "\u2581q", "\u2581yes", "\u2581no"])
    own = sentencepiece_like(["?", "<s>", "</s>", "\u2581q", "\u2581yes", "\u2581no"], template="<s> $A")

    def laid_out(prompt, **more):
        ones = torch.ones(1, len(prompt)), torch.ones(1, 3)
        rollouts = tc.Rollouts(torch.tensor([prompt]), ones[0], torch.tensor([[4, 5, 2]]), ones[1])
        return lay_out(tc.RewardModel(affine, own, policy_tokenizer, **more), rollouts, 0)

    assert laid_out([3]).ids == [1, 3, 4, 5]
    for once in (laid_out([1, 3]), laid_out([3], prompt_text=lambda prompt: f"<s>{prompt}")):
        assert once.ids[0] == 1
        assert once.ids.count(1) == 1
        assert once.ids[-2:] == [4, 5]
    ended = laid_out([3], end_text="</s>")
    assert ended.ids == [1, 3, 4, 5, 2]
    assert {token for token, _, _ in ended.shares} == {0, 1}


class Dropping(torch.nn.Module):
    def score(self, embeddings):
        return torch.nn.functional.dropout(embeddings, 0.5, self.training).sum((1, 2))


def test_a_method_of_a_module_is_read_in_evaluation_mode():
    scorer = Dropping().train()
    assert torch.equal(read(scorer.score).reward, read(scorer.score).reward)
    assert scorer.training


def test_rewards_without_a_gradient_and_models_without_a_head():
    for reward in (torch.no_grad()(affine), lambda e: torch.ones(len(e))):
        with pytest.raises(ValueError, match='use estimator="exact"'):
            read(reward)
    assert read(torch.no_grad()(affine), estimator="exact").influence.abs().max() > 1
    with pytest.raises(ValueError, match="no classification head"):
        read(tiny_reward_model().model)
    with pytest.raises(ValueError, match="outside the 64 embeddings"):
        read(tiny_reward_model(eos_token_id=64), null="eos")
