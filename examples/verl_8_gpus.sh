#!/usr/bin/env bash
# Coupled rhythm credit in verl, on one box of eight GPUs: Qwen3-4B-Base, GRPO, rollouts by vLLM.
# DATA holds train.parquet and test.parquet in verl's layout. More settings of verl's can follow on the command line.
set -euo pipefail

python -m verl.trainer.main_ppo \
    trainer.v1.trainer_mode=tokencredit \
    +algorithm.credit.method=rhythm \
    +algorithm.credit.params.strategy=coupled \
    algorithm.adv_estimator=grpo \
    data.train_files="$DATA/train.parquet" \
    data.val_files="$DATA/test.parquet" \
    data.train_batch_size=128 \
    data.max_prompt_length=1024 \
    data.max_response_length=4096 \
    actor_rollout_ref.model.path=Qwen/Qwen3-4B-Base \
    actor_rollout_ref.model.use_remove_padding=True \
    actor_rollout_ref.actor.strategy=fsdp2 \
    actor_rollout_ref.actor.optim.lr=1e-6 \
    actor_rollout_ref.actor.ppo_mini_batch_size=64 \
    actor_rollout_ref.actor.use_dynamic_bsz=True \
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu=16384 \
    actor_rollout_ref.rollout.name=vllm \
    actor_rollout_ref.rollout.n=8 \
    actor_rollout_ref.rollout.tensor_model_parallel_size=2 \
    actor_rollout_ref.rollout.gpu_memory_utilization=0.6 \
    trainer.n_gpus_per_node=8 \
    trainer.nnodes=1 \
    trainer.project_name=tokencredit \
    trainer.experiment_name=rhythm \
    trainer.save_freq=20 \
    trainer.test_freq=10 \
    trainer.total_epochs=1 \
    "$@"
