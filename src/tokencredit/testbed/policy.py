"""The tiny policy of the testbed: a Qwen3 built from its config, and a tokenizer for the tasks' text."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

_SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
# "<think>", "</think>" and "\boxed{" are plain tokens: a special one would be stripped from the text that is verified.
# "a=" is one token: a split one trains far slower.
_VOCABULARY = (
    *_SPECIAL,
    *("<think>", "</think>", "\\boxed{", "}"),
    *("wait", "ok", "no", "Q:"),
    *(str(n) for n in range(100)),
    *_LETTERS,
    *"+-*/=()?;:,.\n ",
    *(f"{letter}=" for letter in _LETTERS),
)
_SPLIT = r"<think>|</think>|<bos>|<eos>|<pad>|<unk>|\\boxed\{|wait|ok|no|Q:|[a-z]=|[1-9][0-9]|[\s\S]"


@dataclass(frozen=True)
class PolicySize:
    """Sizes that learn the tasks in minutes on two cores."""

    width: int = 96
    layers: int = 3
    heads: int = 3
    kv_heads: int = 1
    feed_forward: int = 288


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Whole-word tokens for the tasks; numbers 0 to 99 are one token."""
    tokenizer = Tokenizer(models.WordLevel({t: i for i, t in enumerate(_VOCABULARY)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_policy(size: PolicySize | None = None, seed: int = 0) -> Qwen3ForCausalLM:
    """A fresh policy in float32."""
    size = size or PolicySize()
    config = Qwen3Config(
        vocab_size=len(_VOCABULARY),
        hidden_size=size.width,
        intermediate_size=size.feed_forward,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        head_dim=size.width // size.heads,
        max_position_embeddings=1024,
        # The texts are short: with the usual 10,000 half of the rotary dimensions cannot tell neighbours apart, and the
        # heads that copy and compare form late or never.
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        initializer_range=0.05,
        tie_word_embeddings=True,
        pad_token_id=_VOCABULARY.index("<pad>"),
        bos_token_id=_VOCABULARY.index("<bos>"),
        eos_token_id=_VOCABULARY.index("<eos>"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config)
