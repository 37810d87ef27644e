"""What the tests of `tokencredit train` share: tiny models and problems that stand in for real ones."""

from __future__ import annotations

import json

import pytest
from conftest import tiny_reward_model
from tokenizers import normalizers

from tokencredit.testbed.policy import PolicySize, build_policy, build_tokenizer


@pytest.fixture
def stand_ins(tmp_path):
    """A tiny policy, a process reward model with the same tokenizer, and problems."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<think>{% endif %}"
    )
    policy = build_policy(PolicySize(width=32, layers=2, heads=2, kv_heads=1, feed_forward=48))
    scorer = tiny_reward_model(process=True, vocab_size=len(tokenizer))
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("~", "")  # has no token for it, as real ones may not
    for name, model in (("policy", policy), ("scorer", scorer)):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    rows = [{"prompt": f"3,5,{n}={8 + n}?\n", "answer": str(8 + n)} for n in range(1, 9)]
    rows = [row | {"blank": "~" if n == 1 else row["prompt"]} for n, row in enumerate(rows)]
    (tmp_path / "problems.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path
