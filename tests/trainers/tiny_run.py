"""What the tests of the trainer share: a tiny policy, its settings, and trainers that keep what they see."""

from __future__ import annotations

import torch
from datasets import Dataset

from tokencredit.testbed.policy import PolicySize, build_policy, build_tokenizer
from tokencredit.trainers.trl import CreditGRPOTrainer

SIZE = PolicySize(width=32, layers=2, heads=2, kv_heads=1, feed_forward=48)
DATASET = Dataset.from_dict({"prompt": [f"Q:a={i}+{i},b=1+{i}?a\n" for i in range(8)]})


def reward(completions, **_):
    """Dense and varied, so that random text has advantages."""
    return [sum(map(str.isdigit, text)) / max(1, len(text)) for text in completions]


def policy_that_answers(seed: int = 0):
    """A random policy whose every fourth or so token closes the reasoning, so that spans exist."""
    policy = build_policy(SIZE, seed)
    tokenizer = build_tokenizer()
    with torch.no_grad():
        embedding = policy.model.embed_tokens.weight
        embedding[tokenizer.convert_tokens_to_ids("</think>")] = 3 * embedding.mean(0) + 0.3 * torch.randn(
            embedding.shape[1], generator=torch.Generator().manual_seed(seed)
        )
    return policy


def arguments(tmp_path, **changed):
    return {
        "output_dir": str(tmp_path),
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "steps_per_generation": 2,
        "gradient_accumulation_steps": 1,
        "max_completion_length": 12,
        "max_steps": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "seed": 3,
        **changed,
    }


def trained(trainer_class, args, policy=None, **kwargs):
    torch.manual_seed(0)
    trainer = trainer_class(
        policy_that_answers() if policy is None else policy,
        reward,
        args=args,
        train_dataset=DATASET,
        processing_class=build_tokenizer(),
        **kwargs,
    )
    trainer.train()
    return trainer


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


class Keeping(CreditGRPOTrainer):
    """Keeps what each loss was computed from, with the advantages it took."""

    def _compute_loss(self, model, inputs):
        self.kept = [*getattr(self, "kept", []), inputs]
        return super()._compute_loss(model, inputs)

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if self._loss_inputs is not None:
            self.kept[-1] = self._loss_inputs
        return found


def credit_by_completion(trainer, steps=None):
    """token ids of prompt and completion -> its advantages, over all losses of the run."""
    found = {}
    for inputs in trainer.kept[:steps]:
        for i in range(len(inputs["prompt_ids"])):
            prompt = inputs["prompt_ids"][i][inputs["prompt_mask"][i].bool()]
            real = inputs["completion_mask"][i].bool()
            key = (*prompt.tolist(), -1, *inputs["completion_ids"][i][real].tolist())
            found.setdefault(key, []).append(inputs["advantages"][i][real])
    return found


def expect_same_credit(first, second):
    assert first.keys() == second.keys()
    assert any(row.std() > 1e-3 for rows in first.values() for row in rows if len(row) > 1)
    for key, rows in first.items():
        for a, b in zip(rows, second[key], strict=True):
            torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


def passes(trainer_class, config, **kwargs):
    """How often the decoder ran in a training run, generation included."""
    calls = []
    policy = policy_that_answers()
    policy.model.register_forward_hook(lambda *_: calls.append(1))
    trained(trainer_class, config, policy, **kwargs)
    return len(calls)
