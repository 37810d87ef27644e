"""Credit in a notebook: shaded, escaped, nothing that runs."""

from __future__ import annotations

import re

import pytest
import torch
from conftest import make_rollouts

import tokencredit as tc
from tokencredit.credit import additive, multiplicative
from tokencredit.shading import MOST_COMPLETIONS, MOST_LETTERS, MOST_TOKENS, shaded_html, visible
from tokencredit.testbed.policy import build_tokenizer


def spans(html):
    found = re.findall(
        r'<span title="([^"]*)" style="unicode-bidi:isolate;background:rgba\(([\d,]+),([\d.]+)\)">(.*?)</span>',
        html,
        re.S,
    )
    return [(title, colour, float(alpha), text) for title, colour, alpha, text in found]


def test_text_is_shaded_by_its_advantage():
    tokenizer = build_tokenizer()
    ids = tokenizer(["a=1<", "b"], padding=True, padding_side="right", return_tensors="pt")
    rollouts = tc.Rollouts(ids.input_ids[:, :1], torch.ones(2, 1), ids.input_ids, ids.attention_mask)
    weights = torch.tensor([[1.0, 0.5, 2.0], [1.0, 0.0, 0.0]])
    credit = multiplicative(rollouts, torch.tensor([1.0, -1.0]), weights)
    shown = spans(tc.show(credit, rollouts, tokenizer)._repr_html_())
    assert len(shown) == int(rollouts.lengths.sum())
    assert "".join(text for *_, text in shown) == "a=1&lt;unk&gt;b"
    assert [alpha for _, _, alpha, _ in shown[:-1]] == [0.25, 0.12, 0.5]
    assert shown[0][1] != shown[-1][1], "positive and negative credit look alike"
    assert shown[1][0] == "token 1, weight 0.500, advantage +0.500"


def test_credit_alone_is_strips_of_cells():
    rollouts = make_rollouts(lengths=(3,) * 10, prompts=(2,) * 10, answers=(-1,) * 10)
    html = additive(rollouts, torch.ones(10), torch.zeros(10, 3))._repr_html_()
    assert len(spans(html)) == 3 * MOST_COMPLETIONS
    assert "2 more completions" in html
    assert "weight" not in html


def test_what_is_left_out_is_said():
    html = shaded_html(torch.ones(1, MOST_TOKENS + 5), None, [["x" * 1000] + ["a"] * (MOST_TOKENS + 4)])
    assert "… 5 more tokens" in html
    assert f"{'x' * MOST_LETTERS}… (1,000 characters)" in html
    assert len(spans(html)) == MOST_TOKENS


def test_nan_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        shaded_html(torch.tensor([[float("nan")]]), None)


def test_other_rollouts_are_refused():
    credit = additive(make_rollouts(), torch.ones(4), torch.zeros(4, 12))
    with pytest.raises(ValueError, match="not of rollouts"):
        tc.show(credit, make_rollouts(lengths=(3, 2, 2, 1), answers=(-1,) * 4), build_tokenizer())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a+é🙂 ", "a+é🙂 "),
        ("\n", "⏎\n"),
        ("\u202egnp", "⟨U+202E⟩gnp"),
        ("\ud83d", "⟨U+D83D⟩"),
        ("\x00", "⟨U+0000⟩"),
        ("\u3164", "⟨U+3164⟩"),
        ("\u0301a", "◌\u0301a"),
    ],
)
def test_visible(text, shown):
    assert visible(text) == shown
