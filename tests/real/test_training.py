"""Two steps of TRL's trainer on a pretrained model, with LoRA, for a method of each kind of signal."""

from __future__ import annotations

import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

import tokencredit as tc
from tokencredit.trainers.trl import CreditGRPOConfig, CreditGRPOTrainer

METHODS = ("arca", "atpo", "attnpo", "divergence", "p2t", "position", "rhythm", "surprisal")
"""No two of them read the same from the model. The credit of all methods is compared in test_golden.py."""
PROMPTS = [
    [{"role": "system", "content": "Add."}, {"role": "user", "content": f"{n} + {n + 1} = ?"}] for n in (2, 5, 7, 11)
]


def varied(completions, **_):
    """A reward that hardly two different completions share, so that there is something to learn in every step."""
    return [sum(map(ord, completion[0]["content"])) % 101 / 100 for completion in completions]


def test_every_kind_of_signal_is_read_by_one_of_these_methods(parameters):
    needs = {name: tc.method(name, **values).needs for name, values in parameters.items()}
    read = [needs[name] for name in METHODS]
    assert len(set(read)) == len(read)
    assert set(read) == set(needs.values())


# Four tokens hold no answer, so credit that reads the answer is uniform, of which the trainer warns.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", METHODS)
def test_two_steps_move_the_adapter_and_nothing_else(name, parameters, model, tokenizer, reward_model, tmp_path):
    method = tc.method(name, **parameters[name])
    args = CreditGRPOConfig(
        output_dir=str(tmp_path),
        credit_method=name,
        credit_params=parameters[name],
        per_device_train_batch_size=4,
        num_generations=2,
        gradient_accumulation_steps=1,
        max_completion_length=4,
        max_steps=2,
        learning_rate=1e-2,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
    )
    before = model.get_input_embeddings().weight[:100].clone()
    trainer = CreditGRPOTrainer(
        model,
        varied,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=4, target_modules=["q_proj", "v_proj"], layers_to_transform=[28, 29], task_type="CAUSAL_LM"
        ),
        reward_model=reward_model if method.needs.reward else None,
    )
    try:
        trainer.train()
        rows = [row for row in trainer.state.log_history if "loss" in row]
        assert len(rows) == 2
        assert any("credit/gini" in row for row in rows)
        assert all(math.isfinite(v) for row in rows for v in row.values() if isinstance(v, float))
        moved = [p for n, p in trainer.model.named_parameters() if "lora_B" in n and bool(p.any())]
        assert moved
    finally:
        trainer.model.unload()
        model.requires_grad_(True)
    assert torch.equal(model.get_input_embeddings().weight[:100], before)
