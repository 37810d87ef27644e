"""One worker's engine of verl's, and batches as its workers get them."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path

import torch
from tensordict import TensorDict
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils as tu
from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
from verl.workers.engine import EngineRegistry

from tokencredit.trainers.verl.fields import ASKED, Asked


def process_group():
    """A group of one process."""
    if not torch.distributed.is_initialized():
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
        torch.distributed.init_process_group("cpu:gloo", rank=0, world_size=1, store=torch.distributed.HashStore())


def engine(model: Path, strategy: str = "fsdp2", bucket: int | None = None, **config):
    """The engine that verl's registry gives a worker.

    Args:
        bucket: packed rows are filled up to a multiple of it.
        config: of the model: lora_rank, ...
    """
    process_group()
    attention = {"attn_implementation": "sdpa"}
    made = EngineRegistry.new(
        "language_model",
        strategy,
        model_config=HFModelConfig(
            path=str(model), override_config=attention, enable_gradient_checkpointing=False, **config
        ),
        engine_config=FSDPEngineConfig(
            strategy=strategy,
            use_torch_compile=False,
            pad_to_length=bucket is not None,
            pad_to_length_bucket=bucket or 1024,
            model_dtype="fp32",
            mixed_precision={"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"},
        ),
        optimizer_config=FSDPOptimizerConfig(lr=1e-3, total_training_steps=10),
        checkpoint_config=CheckpointConfig(),
    )
    made.initialize()
    return made


def nested(rows):
    return torch.nested.as_nested_tensor(list(rows), layout=torch.jagged)


def batch_of(
    rollouts, *, remove_padding=False, micro_batch=None, token_budget=None, temperature=1.0, use_fused_kernels=False
):
    """Rollouts as verl's workers get them; micro-batches of a fixed size, or up to a budget of tokens."""
    prompts = [ids[real] for ids, real in zip(rollouts.prompt_ids, rollouts.prompt_mask, strict=True)]
    completions = [ids[real] for ids, real in zip(rollouts.completion_ids, rollouts.completion_mask, strict=True)]
    whole = [torch.cat(pair) for pair in zip(prompts, completions, strict=True)]
    data = TensorDict(
        {
            "prompts": nested(prompts),
            "responses": nested(completions),
            "input_ids": nested(whole),
            "position_ids": nested(torch.arange(len(row)) for row in whole),
            "loss_mask": nested(torch.ones_like(row) for row in completions),
        },
        batch_size=len(rollouts),
    )
    tu.assign_non_tensor(
        data,
        use_remove_padding=remove_padding,
        use_dynamic_bsz=token_budget is not None,
        max_token_len_per_gpu=token_budget or 0,
        micro_batch_size_per_gpu=micro_batch or len(rollouts),
        temperature=temperature,
        calculate_entropy=True,
        use_fused_kernels=use_fused_kernels,
    )
    return data


def log_prob_pass(engine, data, method=None, *, reference=False, **asked):
    """verl's pass over a batch, with the fields that credit asks for; `reference` switches the adapter off.

    Args:
        asked: more of `Asked`: answer, step.
    """
    data = data.copy()
    if method is not None:
        tu.assign_non_tensor(data, **{ASKED: Asked(method, "phrases", "</think>", reference, **asked)})
    with engine.eval_mode(), engine.disable_adapter() if reference else nullcontext():
        return engine.infer_batch(data)["model_output"]
