#!/usr/bin/env bash
# ARCA with a LoRA adapter in verl, on two nodes of eight GPUs: Qwen3-8B, GRPO, rollouts by vLLM.
# Both nodes have the same packages (`tokencredit doctor` on each says whether verl finds the plugin there), and see DATA
# and CHECKPOINTS at the same paths.
#
#     node 0:  ray start --head --port=6379
#     node 1:  ray start --address=NODE_0:6379
#     node 0:  RAY_ADDRESS=auto DATA=... CHECKPOINTS=... bash verl_two_nodes.sh
#
# ARCA compares final states with the adapter on and off: param_dtype=fp32 keeps small differences from drowning in the
# rounding of bfloat16, at a price in speed and memory. With a KL term (use_kl_loss) no pass is added for it.
set -euo pipefail

python -m verl.trainer.main_ppo \
    trainer.v1.trainer_mode=tokencredit \
    +algorithm.credit.method=arca \
    algorithm.adv_estimator=grpo \
    data.train_files="$DATA/train.parquet" \
    data.val_files="$DATA/test.parquet" \
    data.train_batch_size=256 \
    data.max_prompt_length=1024 \
    data.max_response_length=4096 \
    actor_rollout_ref.model.path=Qwen/Qwen3-8B \
    actor_rollout_ref.model.use_remove_padding=True \
    actor_rollout_ref.model.lora_rank=32 \
    actor_rollout_ref.model.lora_alpha=64 \
    actor_rollout_ref.actor.strategy=fsdp2 \
    +actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=fp32 \
    actor_rollout_ref.actor.optim.lr=1e-5 \
    actor_rollout_ref.actor.use_kl_loss=True \
    actor_rollout_ref.actor.ppo_mini_batch_size=128 \
    actor_rollout_ref.actor.use_dynamic_bsz=True \
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu=12288 \
    actor_rollout_ref.rollout.name=vllm \
    actor_rollout_ref.rollout.n=8 \
    actor_rollout_ref.rollout.tensor_model_parallel_size=2 \
    actor_rollout_ref.rollout.load_format=safetensors \
    trainer.n_gpus_per_node=8 \
    trainer.nnodes=2 \
    trainer.project_name=tokencredit \
    trainer.experiment_name=arca \
    trainer.default_local_dir="$CHECKPOINTS" \
    trainer.resume_mode=auto \
    trainer.save_freq=20 \
    trainer.test_freq=10 \
    trainer.total_epochs=1 \
    "$@"
