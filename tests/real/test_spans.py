"""Answers and steps with a byte-level tokenizer, whose tokens begin with the space before a word."""

from __future__ import annotations

import torch

import tokencredit as tc
from tokencredit.labelled import read_rows, rollouts_of

REASONING = (
    "The boxes hold 8 * 7 = 56 pens, since there are seven boxes and each of them holds eight pens.",
    " Wait, let me check that by adding eight to itself seven times: 8, 16, 24, 32, 40, 48, 56.",
    " So with the five loose pens (“loose” means no box) that is 56 + 5 = 61 pens in all, as asked.",
)
ANSWER = " \\boxed{61}."


def marked(tokenizer, text, **options):
    ids = torch.tensor([tokenizer(text, add_special_tokens=False).input_ids])
    prompt = torch.tensor([tokenizer("How many pens?").input_ids])
    rollouts = tc.Rollouts(prompt, torch.ones_like(prompt), ids, torch.ones_like(ids))
    return tc.mark_spans(rollouts, tokenizer, **options)


def step_texts(rollouts, tokenizer):
    ids, steps = rollouts.completion_ids[0], rollouts.step_index[0]
    return [tokenizer.decode(ids[steps == k]) for k in range(int(steps.max()) + 1)]


def test_a_word_that_opens_a_step_belongs_to_it_with_its_space(tokenizer):
    rollouts = marked(tokenizer, "".join(REASONING) + ANSWER)
    assert [text.strip() for text in step_texts(rollouts, tokenizer)] == [text.strip() for text in REASONING]


def test_the_answer_starts_at_the_box_where_nothing_else_ends_the_reasoning(tokenizer):
    rollouts = marked(tokenizer, "".join(REASONING) + ANSWER)
    start = int(rollouts.answer_start[0])
    assert tokenizer.decode(rollouts.completion_ids[0, start:]).strip() == ANSWER.strip()
    assert (rollouts.step_index[0, start:] == -1).all()
    assert (rollouts.step_index[0, :start] >= 0).all()


def test_the_answer_starts_behind_the_end_of_reasoning(tokenizer):
    """Which this tokenizer writes with several tokens."""
    rollouts = marked(tokenizer, f"{REASONING[0]}</think>\n{ANSWER}")
    assert len(tokenizer("</think>", add_special_tokens=False).input_ids) > 1
    start = int(rollouts.answer_start[0])
    assert "</think>" in tokenizer.decode(rollouts.completion_ids[0, :start])
    assert "\\boxed{61}" in tokenizer.decode(rollouts.completion_ids[0, start:])


def test_labelled_steps_have_exactly_their_tokens(traces, tokenizer, tmp_path):
    import json

    path = tmp_path / "traces.jsonl"
    path.write_text("\n".join(map(json.dumps, traces)), "utf-8")
    rollouts = rollouts_of(read_rows(path, tokenizer))
    for i, trace in enumerate(traces):
        ids, steps = rollouts.completion_ids[i], rollouts.step_index[i]
        for k, text in enumerate(trace["steps"]):
            assert tokenizer.decode(ids[steps == k]) == text
        answer = ids[rollouts.answer_start[i] : rollouts.lengths[i]]
        assert tokenizer.decode(answer) == trace["answer"]
