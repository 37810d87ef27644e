"""Tiny models whose weights depend on this file alone.

The golden values must outlive changes of torch's and transformers' initialisation, so every parameter is filled here,
from integers of a seeded generator, in the sorted order of names. The configurations repeat some of those in
`tests/signals`, because a reference must not change when the tests beside it do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
import transformers
from peft import LoraConfig, get_peft_model
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

VOCABULARY = 64
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEAD = {"head_dim": 8}
WINDOW = {**HEAD, "sliding_window": 6}
# The other ways to apply experts know no float64.
EXPERTS = {"num_experts_per_tok": 2, "experts_implementation": "eager"}
ARCHITECTURES = {
    "Qwen3": HEAD,
    "Llama": HEAD,
    "Mistral": WINDOW,
    "Gemma2": {**WINDOW, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    "Gemma3": {**WINDOW, "query_pre_attn_scalar": 8},
    "GptOss": {**WINDOW, **EXPERTS, "num_local_experts": 4},
    "Qwen3Next": {
        **HEAD,
        **EXPERTS,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_conv_kernel_dim": 4,
        "full_attention_interval": 2,
        "num_experts": 4,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
    "Lfm2": {"layer_types": ["conv", "full_attention", "conv", "full_attention"], "block_multiple_of": 16},
    "Llama4": {
        **HEAD,
        "attention_chunk_size": 4,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "intermediate_size_mlp": 48,
        "no_rope_layers": [1, 0, 1, 0],
        "floor_scale": 4,
    },
    "ModernBertDecoder": {"global_attn_every_n_layers": 2, "local_attention": 6},
    "Cohere": {"logit_scale": 1.0},
    "Granite": {"logits_scaling": 1.5, "attention_multiplier": 0.5, "residual_multiplier": 0.5},
}
"""Full attention, sliding windows, softcaps, sinks, hybrids with linear attention or convolutions, chunks, and logits
that are scaled.

Qwen3Next and Lfm2 have attention in their second and fourth layer only.
"""
LORA = "Qwen3 with LoRA"
NAMES = (*ARCHITECTURES, LORA)


def build(name: str, dtype: torch.dtype) -> nn.Module:
    """A causal LM of `NAMES`; with LoRA, the adapter changes what the model computes."""
    if name == LORA:
        return lora_policy(dtype)
    kind = getattr(transformers, f"{name}TextConfig", None) or getattr(transformers, f"{name}Config")
    model = getattr(transformers, f"{name}ForCausalLM")(kind(**SIZES, **ARCHITECTURES[name]))
    return filled(model, seed=0).to(dtype).eval()


def lora_policy(dtype: torch.dtype) -> nn.Module:
    adapter = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.5, task_type="CAUSAL_LM")
    policy = get_peft_model(build("Qwen3", dtype), adapter)
    fill(((name, p) for name, p in policy.named_parameters() if "lora_" in name), seed=1)
    return policy.to(dtype).eval()


def reference_policy(dtype: torch.dtype) -> nn.Module:
    """The Qwen3 of `build` with other weights."""
    model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SIZES, **HEAD))
    return filled(model, seed=2).to(dtype).eval()


def reward_classifier(dtype: torch.dtype, *, process: bool = False, vocabulary: int = VOCABULARY) -> nn.Module:
    """A sequence classifier with one label; or a process reward model, a token classifier with two."""
    sizes = {**SIZES, **HEAD, "num_hidden_layers": 2, "vocab_size": vocabulary, "num_labels": 2 if process else 1}
    kind = transformers.Qwen3ForTokenClassification if process else transformers.Qwen3ForSequenceClassification
    return filled(kind(transformers.Qwen3Config(**sizes)), seed=3).to(dtype).eval()


def filled(model: nn.Module, seed: int) -> nn.Module:
    fill(model.named_parameters(), seed)
    return model


def fill(parameters: Iterable[tuple[str, nn.Parameter]], seed: int, scale: float = 0.3) -> None:
    """Overwrite parameters with numbers that attention is far from uniform under.

    Norms keep the constant that they start from (1, or 0 where the model adds 1 itself), up to a tenth.

    Args:
        scale: of matrices.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(parameters, key=lambda pair: pair[0]):
        noise = uniform(tuple(parameter.shape), generator)
        with torch.no_grad():
            if "norm" in name.lower():
                parameter.copy_(parameter.flatten()[0].round() + 0.1 * noise)
            else:
                parameter.copy_((scale if parameter.ndim > 1 else 1.0) * noise)


def uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Numbers of variance one. They come from integers, which are the same on every machine, bit for bit."""
    whole = torch.randint(0, 2**24, shape, generator=generator)
    return ((whole.double() / 2**23 - 1) * 3**0.5).float()


SPECIAL = ("<pad>", "<eos>", "<unk>")
ENDS = ("</think>", "0</think>", "1</think>")
LINES = ("0\n", "1\n", "2\n")
CHARACTERS = tuple("0123ab+=\n")
SYMBOLS = (*SPECIAL, *ENDS, *LINES, *CHARACTERS)
"""A vocabulary so small that random completions close their reasoning and have several lines."""


def word_tokenizer(symbols: tuple[str, ...] = SYMBOLS, pattern: str = r"[01]?</think>|[0-2]\n|[\s\S]"):
    """A fast tokenizer of whole symbols, without a template."""
    tokenizer = Tokenizer(models.WordLevel({text: i for i, text in enumerate(symbols)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def trained_policy() -> nn.Module:
    """A Qwen3 in float32 for training runs, whose next token is nearly random."""
    sizes = {**SIZES, **HEAD, "vocab_size": len(SYMBOLS), "num_hidden_layers": 2, "bos_token_id": None}
    config = transformers.Qwen3Config(**{**sizes, "eos_token_id": 1, "tie_word_embeddings": False})
    model = filled(transformers.Qwen3ForCausalLM(config), seed=4)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.2)
    return model


def adapted(policy: nn.Module) -> nn.Module:
    """The policy with a LoRA adapter that changes nothing yet, as at the start of a run.

    Its A matrices do not come from torch's initialisation, and its B matrices are 0.
    """
    adapter = LoraConfig(r=2, target_modules=["q_proj", "v_proj", "up_proj"], task_type="CAUSAL_LM")
    policy = get_peft_model(policy, adapter)
    fill(((name, p) for name, p in policy.named_parameters() if "lora_A" in name), seed=1)
    return policy


def hashed(model: nn.Module) -> str:
    """SHA-256 of all parameters, by name."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters(), key=lambda pair: pair[0]):
        digest.update(name.encode() + parameter.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def norm(model: nn.Module) -> float:
    """Of all parameters."""
    return sum(float(p.detach().double().square().sum()) for p in model.parameters()) ** 0.5
