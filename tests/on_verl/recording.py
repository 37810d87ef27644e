"""Trainers that write down the advantages they train on. verl imports this in every process.

Registered as `recording_sync` (verl's own) and `recording_tokencredit`.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
import transfer_queue as tq
from verl.trainer.ppo.v1 import PPOTrainerSync, register_trainer

from tokencredit.trainers.verl.trainer import CreditTrainer


def _record(trainer, batch):
    data = tq.kv_batch_get(
        keys=batch.keys, partition_id=batch.partition_id, select_fields=["prompts", "responses", "advantages", "rm_scores"]
    )
    rows = [{name: data[name][i].clone() for name in data.keys()} for i in range(len(batch.keys))]
    uids = [key.split("_")[0] for key in batch.keys]
    real = [not tag.get("is_padding", False) for tag in batch.tags]
    kept = [{**row, "uid": uid} for row, uid, ok in zip(rows, uids, real, strict=True) if ok]
    torch.save(kept, Path(os.environ["RECORDINGS"], f"step_{trainer.global_steps}.pt"))


class Recording:
    def _compute_advantage(self, batch, metrics):
        batch = super()._compute_advantage(batch, metrics)
        _record(self, batch)
        return batch


@register_trainer("recording_sync")
class RecordingSync(Recording, PPOTrainerSync):
    def _build_replay_buffer(self):
        self.trainer_mode = "sync"
        return super()._build_replay_buffer()


@register_trainer("recording_tokencredit")
class RecordingCredit(Recording, CreditTrainer):
    pass
