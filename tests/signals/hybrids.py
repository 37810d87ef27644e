"""Tiny models with layers that have no attention, or no full one, and naive statistics of the layers that have."""

from __future__ import annotations

import torch
import transformers
from architectures import ROLLOUTS, SIZES, full_matrices
from conftest import make_rollouts

import tokencredit as tc

HEAD = {"head_dim": 8}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
HYBRIDS = {
    "Qwen3Next": {**HEAD, **LINEAR, **EXPERTS, "shared_expert_intermediate_size": 16},
    "Qwen3_5": {**HEAD, **LINEAR},
    "Lfm2": {"layer_types": ["conv", "full_attention", "conv", "full_attention"], "block_multiple_of": 16},
}
"""Of four layers, the second and the fourth have attention."""
OTHERS = {
    "Llama4": {
        **HEAD,
        "attention_chunk_size": 4,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "intermediate_size_mlp": 48,
        "no_rope_layers": [1, 1, 1, 0],
        "floor_scale": 4,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "ModernBertDecoder": {"global_attn_every_n_layers": 2, "local_attention": 6},
    "RecurrentGemma": {**HEAD, "attention_window_size": 6},
}
"""`get_decoder()` finds the whole Llama 4, and the LM head of ModernBertDecoder; RecurrentGemma minds left padding."""
UNPADDED = make_rollouts((12, 12), (5, 5), (8, 3))


def build(name: str):
    config_class = getattr(transformers, f"{name}TextConfig", None) or getattr(transformers, f"{name}Config")
    config = config_class(**{**SIZES, **HYBRIDS.get(name, {}), **OTHERS.get(name, {})})
    torch.manual_seed(0)
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


def attending(model) -> list[int]:
    kinds = model.config.layer_types
    return [i for i, kind in enumerate(kinds) if kind.endswith("_attention") and kind != "linear_attention"]


def naive_rows(model, rollouts):
    """Layer -> (B, H, T): the mean answer row of each head, one completion at a time and without any padding."""
    expected = {layer: [] for layer in attending(model)}
    width = rollouts.completion_ids.shape[1]
    for i in range(len(rollouts)):
        one = alone(rollouts, i)
        matrices = full_matrices(model, one)
        prompt, rows = one.prompt_ids.shape[1], one.answer_mask[0].nonzero().flatten()
        # Eager attention returns a matrix for each layer that has attention, and nothing for the others.
        for layer, matrix in zip(expected, matrices[-len(expected) :], strict=True):
            values = torch.zeros(matrix.shape[1], width)
            if len(rows):
                values[:, : int(one.lengths)] = matrix[0][:, prompt + rows, prompt:].mean(1)
            expected[layer].append(values)
    return {layer: torch.stack(rows) for layer, rows in expected.items()}


def alone(rollouts, i: int) -> tc.Rollouts:
    """Completion i with its prompt, and no padding."""
    one = rollouts.rows(slice(i, i + 1))
    prompt, length = one.prompt_mask[0], int(one.lengths)
    return tc.Rollouts(
        one.prompt_ids[:, prompt],
        one.prompt_mask[:, prompt],
        one.completion_ids[:, :length],
        one.completion_mask[:, :length],
        answer_start=one.answer_start,
        step_index=one.step_index[:, :length],
    )


__all__ = ["HYBRIDS", "OTHERS", "ROLLOUTS", "UNPADDED", "alone", "attending", "build", "naive_rows"]
