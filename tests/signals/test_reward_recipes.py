"""The recipes of docs/methods/p2t.md, as they stand, on tiny models of the architectures that they name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import transformers
from conftest import tiny_config, tiny_policy
from test_reward import words
from transformers import MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForTokenClassification

import tokencredit as tc

CARD = Path(__file__).parents[2] / "docs" / "methods" / "p2t.md"
BLOCKS = re.findall(r"```python\n(.*?)```", CARD.read_text("utf-8").split("## Recipes")[1], re.DOTALL)
LETTERS = words(r"</think>|<\|im_end\|>|<extra_0>|[\s\S]", ["?", "</think>", "<|im_end|>", "<extra_0>", *"abcdef;\n.:"])
TEXT = "abc;\nde;\nab.\n</think>b"
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}

# A model whose class is in its repository, with two labels at each position, as Qwen2.5-Math-PRM has them.
CODE = """
from torch import nn
from transformers import Qwen2Model, Qwen2PreTrainedModel
from transformers.modeling_outputs import TokenClassifierOutput


class TinyForProcessRewardModel(Qwen2PreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.model = Qwen2Model(config)
        self.score = nn.Linear(config.hidden_size, 2)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, **kwargs):
        states = self.model(input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds)
        return TokenClassifierOutput(logits=self.score(states.last_hidden_state))
"""


def rollouts():
    ids = [LETTERS.encode(text, add_special_tokens=False) for text in (TEXT, TEXT[5:])]
    prompts = [LETTERS.encode(text, add_special_tokens=False) for text in ("f", "ef")]
    made = tc.Rollouts.from_lists(prompts, ids, rewards=[1.0, 0.0], group=["q", "q"])
    return tc.mark_spans(made, LETTERS, splitter="newline")


def namespace():
    return {"tc": tc, "tokenizer": LETTERS, "policy": tiny_policy(vocab_size=len(LETTERS)), "rollouts": rollouts()}


def run(block, folder, names=None):
    """Execute a recipe with `folder` in the place of the model that it names."""
    names = namespace() if names is None else names
    code = re.sub(r'"[\w.-]+/[\w.-]+"', repr(str(folder)), block)
    exec(compile(code, str(CARD), "exec"), names)  # noqa: S102 - our own documentation
    assert torch.isfinite(names["credit"].bonus).all()
    assert (names["credit"].bonus[0] != 0).any()
    return names


def block_with(text, place=0):
    return [block for block in BLOCKS if text in block][place]


def saved(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_sequence_classifier(tmp_path):
    torch.manual_seed(0)
    model = transformers.Qwen3ForSequenceClassification(tiny_config(num_labels=1, vocab_size=len(LETTERS)))
    tokenizer = words(r"</think>|<\|im_end\|>|[\s\S]", sorted(LETTERS.get_vocab(), key=LETTERS.get_vocab().get))
    tokenizer.chat_template = "{% for m in messages %}a:{{ m['content'] }}{% endfor %}:"
    saved(model, tokenizer, tmp_path)
    plain = run(block_with("RewardModel.from_pretrained", 0), tmp_path)
    chat = run(block_with("apply_chat_template"), tmp_path)
    assert not torch.allclose(plain["credit"].bonus, chat["credit"].bonus, atol=1e-6)


def test_a_token_classifier(tmp_path):
    torch.manual_seed(0)
    config = Qwen2Config(**SIZES, vocab_size=len(LETTERS), num_labels=2, pad_token_id=0)
    made = run(block_with('separator="\\n"'), saved(Qwen2ForTokenClassification(config), LETTERS, tmp_path))
    steps, bonus = made["rollouts"].step_index, made["credit"].bonus
    assert (bonus[steps >= 0] > 0).all()
    assert (bonus[steps < 0] == 0).all()


def test_a_causal_lm_that_writes_good_and_bad_tokens(tmp_path):
    """A Mistral that judges steps; its vocabulary has the labels with the space before them."""
    torch.manual_seed(0)
    own = words(r" ки|[\s\S]", ["?", "</s>", " ки", "▁+", "▁-", "+", "-", *"abcdef;\n.:"])
    own.eos_token = "</s>"
    model = MistralForCausalLM(MistralConfig(**SIZES, vocab_size=len(own), eos_token_id=1)).eval()
    made = run(block_with("label_tokens"), saved(model, own, tmp_path))
    need = next(iter(tc.method("p2t", null="eos").needs.reward))
    read = tc.collect(made["policy"], made["rollouts"], tc.method("p2t", null="eos").needs, made["reward_model"])
    with torch.no_grad():
        logits = model(torch.tensor([own.encode("fabc;\n ки", add_special_tokens=False)])).logits[0, -1]
    plus, minus = own.convert_tokens_to_ids(["▁+", "▁-"])
    right = (logits[plus] - logits[minus]).sigmoid().item()
    assert read.reward[need].reward[0, 0].item() == pytest.approx(right, abs=1e-5)
    with pytest.raises(ValueError, match=r"'!' is not one token of the reward model"):
        tc.RewardModel.from_pretrained(str(tmp_path), LETTERS, " ки", label_tokens=("!", "▁-"))
    with pytest.raises(ValueError, match="is a causal LM, whose logits are those of its vocabulary"):
        tc.RewardModel.from_pretrained(str(tmp_path), LETTERS, " ки")


def test_a_model_with_code_of_its_own(tmp_path, monkeypatch):
    folder = tmp_path / "prm"
    torch.manual_seed(0)
    names: dict = {}
    exec(CODE, names)  # noqa: S102 - above
    model = names["TinyForProcessRewardModel"](Qwen2Config(**SIZES, vocab_size=len(LETTERS), pad_token_id=0))
    saved(model, LETTERS, folder)
    (folder / "modeling_tiny.py").write_text(CODE + "\n\nprint('executed')\n")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_tiny.TinyForProcessRewardModel"}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("the user was asked"))
    with pytest.raises(ValueError, match=r"TinyForProcessRewardModel\) takes code from its own repository"):
        tc.RewardModel.from_pretrained(str(folder), LETTERS)

    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    made = run(block_with("trust_remote_code=True"), folder)
    steps, bonus = made["rollouts"].step_index, made["credit"].bonus
    assert (bonus[steps < 0] == 0).all()
    completion = run(block_with("def score"), folder, made)["credit"].bonus
    assert (completion[:, 0] != 0).all()
