"""Tiny models of ten architectures, and naive statistics of their attention."""

from __future__ import annotations

import torch
import transformers
from conftest import make_rollouts
from torch.utils._python_dispatch import TorchDispatchMode

import tokencredit as tc

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
HEAD = {"head_dim": 8}
ARCHITECTURES = {
    "Qwen3": HEAD,
    "Qwen2": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2},
    "Llama": HEAD,
    "Mistral": {**HEAD, "sliding_window": 6},
    "Gemma2": {**HEAD, "sliding_window": 6, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    "Gemma3": {**HEAD, "sliding_window": 6, "query_pre_attn_scalar": 8},
    "Phi3": {},
    "Olmo2": {},
    "Qwen3Moe": {**HEAD, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "GptOss": {**HEAD, "sliding_window": 6, "num_local_experts": 4, "num_experts_per_tok": 2},
}
ROLLOUTS = make_rollouts((14, 9, 11, 6), (6, 3, 5, 1), (9, 5, -1, 0))
ALL_LAYERS = tc.Needs(answer_attention=frozenset(range(4)))


def build(name: str):
    config_name = "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config"
    config = getattr(transformers, config_name)(**{**SIZES, **ARCHITECTURES[name]})
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    for parameter_name, p in model.named_parameters():
        if parameter_name.endswith("sinks"):
            torch.nn.init.normal_(p)
    return model


def full_matrices(model, rollouts):
    """(L, B, H, N, N) from eager attention."""
    original = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        out = model(
            input_ids=rollouts.input_ids,
            attention_mask=rollouts.attention_mask.long(),
            position_ids=rollouts.position_ids,
            use_cache=False,
            output_attentions=True,
        )
    model.set_attn_implementation(original)
    return torch.stack(out.attentions)


def naive_rows(model, rollouts):
    matrices = full_matrices(model, rollouts)
    prompt = rollouts.prompt_ids.shape[1]
    expected = torch.zeros(*matrices.shape[:3], rollouts.completion_ids.shape[1])
    for i in range(len(rollouts)):
        rows = rollouts.answer_mask[i].nonzero().flatten()
        if len(rows):
            expected[:, i] = matrices[:, i, :, prompt + rows, prompt:].mean(-2)
    return expected


DISTANCES = tc.signals.DistanceNeed("all", window=3, horizon=(2, 5))


def naive_distances(model, rollouts):
    """look_back (B, LH), waad and fai (B, LH, T), from the full matrices in float64."""
    matrices = full_matrices(model, rollouts).double().transpose(0, 1).flatten(1, 2)
    prompt, n = rollouts.prompt_ids.shape[1], rollouts.input_ids.shape[1]
    position = torch.arange(n)
    behind = (position[:, None] - position).clamp(min=0)
    look_back = torch.zeros(matrices.shape[:2], dtype=torch.float64)
    waad, fai = (torch.zeros(*matrices.shape[:2], n - prompt, dtype=torch.float64) for _ in range(2))
    for i, length in enumerate(rollouts.lengths.tolist()):
        rows = position[prompt : prompt + length]
        look_back[i] = (matrices[i] * behind).sum(-1)[:, rows].mean(-1)
        waad[i, :, :length] = (matrices[i] * behind.clamp(max=3)).sum(-1)[:, rows]
        for s in rows.tolist():
            ahead = [t for t in rows.tolist() if s + 2 <= t <= s + 5]
            if ahead:
                fai[i, :, s - prompt] = matrices[i][:, ahead, s].mean(-1)
    return look_back, waad, fai


class LargestTensor(TorchDispatchMode):
    """The size of the largest tensor that any operation made."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else [out]:
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return out
