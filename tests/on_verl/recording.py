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

_FIELDS = ["prompts", "responses", "advantages", "rm_scores"]


def record(trainer, batch, whose):
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=_FIELDS)
    rows = [{name: data[name][i].clone() for name in _FIELDS} for i in range(len(batch.keys))]
    uids = [key.split("_")[0] for key in batch.keys]
    real = [not tag.get("is_padding", False) for tag in batch.tags]
    kept = [{**row, "uid": uid} for row, uid, ok in zip(rows, uids, real, strict=True) if ok]
    torch.save(kept, Path(os.environ["RECORDINGS"], f"{whose}_{trainer.global_steps}.pt"))


@register_trainer("recording_sync")
class RecordingSync(PPOTrainerSync):
    def _build_replay_buffer(self):
        self.trainer_mode = "sync"
        return super()._build_replay_buffer()

    def _compute_advantage(self, batch, metrics):
        batch = super()._compute_advantage(batch, metrics)
        record(self, batch, "own")
        return batch


@register_trainer("recording_tokencredit")
class RecordingCredit(CreditTrainer, RecordingSync):
    """Writes down what verl has computed, and then what credit has made of it."""

    def _compute_advantage(self, batch, metrics):
        batch = super()._compute_advantage(batch, metrics)
        record(self, batch, "trained")
        return batch
