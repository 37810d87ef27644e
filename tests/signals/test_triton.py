"""The Triton kernels against the reference in PyTorch: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from conftest import make_rollouts, tiny_policy

import tokencredit as tc
from tokencredit.signals import attention_statistics as reference
from tokencredit.signals.attention_statistics import Attention

pytest.importorskip("triton")

from tokencredit.signals import attention_triton, triton_kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PROMPT, LENGTH = 9, 51
WINDOW, HORIZON = 5, (3, 20)
NAMES = tuple(f.name for f in fields(reference.HeadDistances))

# The second completion is short and has no answer, the third is empty.
PADS, LENGTHS = torch.tensor([0, 4, 9]), torch.tensor([LENGTH - PROMPT, 23, 0])
COMPLETION = (torch.arange(LENGTH - PROMPT) < LENGTHS[:, None]).to(DEVICE)
ANSWER = torch.zeros(3, LENGTH, dtype=torch.bool, device=DEVICE)
ANSWER[0, [30, *range(40, 50)]] = True
PADDING = torch.cat([torch.arange(PROMPT) >= PADS[:, None], COMPLETION.cpu()], 1).to(DEVICE)


def matrix(window: int = LENGTH) -> torch.Tensor:
    """(B, 1, N, N), what tokens see under padding and a sliding window."""
    behind = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
    return ((behind >= 0) & (behind < window)).to(DEVICE) & PADDING[:, None, None]


def additive(seen: torch.Tensor) -> torch.Tensor:
    return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, torch.finfo(torch.float32).min)


def attention(*, heads=2, key_heads=2, length=LENGTH, width=16, dtype=torch.float32, **options) -> Attention:
    rng = torch.Generator().manual_seed(0)
    query, key = (torch.randn(3, h, length, width, generator=rng).to(DEVICE, dtype) for h in (heads, key_heads))
    return Attention(query, key, **{"scaling": 2 * width**-0.5, "mask": PADDING, **options})


def distances(module, given: Attention, completion: torch.Tensor = COMPLETION, **options) -> dict[str, torch.Tensor]:
    found = module.head_distances(given, completion, WINDOW, HORIZON, **options)
    return {name: getattr(found, name) for name in NAMES}


SINKS = torch.tensor([1.5, -0.5], device=DEVICE)
CASES = {
    "unpadded": {"mask": None},
    "padded": {},
    "grouped": {"heads": 4, "key_heads": 2},
    "bool_matrix": {"mask": matrix()},
    "additive_matrix": {"mask": additive(matrix(11))},
    "one_matrix_for_all": {"mask": additive(torch.ones(1, 1, LENGTH, LENGTH, device=DEVICE).tril().bool())},
    "window": {"window": 11},
    "unpadded_window": {"mask": None, "window": 11},
    "sinks": {"sinks": SINKS},
    "softcap": {"softcap": 2.0},
    "width_24": {"width": 24},
    "width_80": {"width": 80},
    "bfloat16": {"dtype": torch.bfloat16},
    "float16": {"dtype": torch.float16},
    "all_at_once": {
        "heads": 2,
        "key_heads": 1,
        "width": 80,
        "dtype": torch.bfloat16,
        "mask": additive(matrix(30)),
        "sinks": SINKS.bfloat16(),
        "softcap": 5.0,
    },
}


@pytest.mark.parametrize("case", CASES)
def test_kernels_equal_the_reference(case):
    given = attention(**CASES[case])
    rows = attention_triton.answer_row_mean(given, ANSWER)
    torch.testing.assert_close(rows, reference.answer_row_mean(given, ANSWER), atol=1e-6, rtol=1e-5)
    assert rows[0].any()
    assert not rows[1:].any()
    expected = distances(reference, given)
    for name, found in distances(attention_triton, given).items():
        torch.testing.assert_close(found, expected[name], atol=1e-5, rtol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
        assert found[:2].any()
        assert not found[2].any()


def test_a_batch_without_answers_or_tokens_has_zeros():
    given = attention()
    assert not attention_triton.answer_row_mean(given, torch.zeros_like(ANSWER)).any()
    for name, found in distances(attention_triton, given, COMPLETION[:, :0]).items():
        assert found.shape == ((3, 2) if name == "look_back" else (3, 2, 0))
        assert not found.any()


def test_completions_do_not_depend_on_their_batch():
    given = attention()
    together = {"rows": attention_triton.answer_row_mean(given, PADDING), **distances(attention_triton, given)}
    for i in range(2):
        one = replace(given, query=given.query[i : i + 1], key=given.key[i : i + 1], mask=PADDING[i : i + 1])
        alone = {
            "rows": attention_triton.answer_row_mean(one, PADDING[i : i + 1]),
            **distances(attention_triton, one, COMPLETION[i : i + 1]),
        }
        for name, found in alone.items():
            assert torch.equal(found[0], together[name][i]), name


def test_rows_of_other_tokens_may_hold_anything():
    """Prompts' queries, padding, and keys that no completion row sees."""
    given = attention(mask=PADDING.clone())
    kept = torch.cat([torch.zeros_like(PADDING[:, :PROMPT]), COMPLETION], 1)
    spoilt = replace(
        given,
        query=given.query.masked_fill(~kept[:, None, :, None], torch.nan),
        key=given.key.masked_fill(~PADDING[:, None, :, None], torch.nan),
    )
    assert torch.equal(
        attention_triton.answer_row_mean(spoilt, ANSWER), attention_triton.answer_row_mean(given, ANSWER)
    )
    expected = distances(attention_triton, given)
    for name, found in distances(attention_triton, spoilt).items():
        assert torch.equal(found, expected[name]), name


def test_queries_and_keys_are_read_with_any_strides():
    given = attention()
    expected = distances(attention_triton, given)
    views = {
        "heads behind tokens": replace(
            given,
            query=given.query.transpose(1, 2).contiguous().transpose(1, 2),
            key=given.key.transpose(1, 2).contiguous().transpose(1, 2),
        ),
        "channels apart": replace(given, query=given.query.repeat_interleave(2, -1)[..., ::2]),
        "channels before tokens": replace(given, key=given.key.mT.contiguous().mT),
    }
    for view, strided in views.items():
        for name, found in distances(attention_triton, strided).items():
            assert torch.equal(found, expected[name]), (view, name)


def test_offsets_past_32_bits():
    """Five tokens that lie 2^29 elements apart, in memory that is hardly touched."""
    room = torch.empty(2**31 + 16, dtype=torch.float16, device=DEVICE)
    far = room.as_strided((1, 1, 5, 16), (1, 1, 2**29, 1))
    far.copy_(torch.randn(far.shape, generator=torch.Generator().manual_seed(0)))
    given = Attention(far, far, scaling=0.25)
    rows = torch.ones(1, 5, dtype=torch.bool, device=DEVICE)
    near = Attention(far.contiguous(), far.contiguous(), scaling=0.25)
    assert torch.equal(attention_triton.answer_row_mean(given, rows), attention_triton.answer_row_mean(near, rows))


def test_packed_sequences_are_runs():
    second = torch.arange(LENGTH) >= 25
    given = attention(mask=(second[:, None] == second).tril()[None, None].to(DEVICE))
    torch.testing.assert_close(
        attention_triton.answer_row_mean(given, ANSWER), reference.answer_row_mean(given, ANSWER), atol=1e-6, rtol=1e-5
    )
    assert not attention_triton.answer_row_mean(given, ANSWER)[..., :25].any()


def hole(seen: torch.Tensor) -> torch.Tensor:
    seen = seen.clone()
    seen[..., 25] = False
    return seen


IRREGULAR = {
    "padding": hole(PADDING),
    "bool_matrix": hole(matrix()),
    "additive_matrix": additive(hole(matrix())),
    "what_comes_after": torch.ones_like(matrix()),
}


@pytest.mark.parametrize("mask", IRREGULAR)
def test_masks_other_than_runs_are_refused(mask):
    given = attention(mask=IRREGULAR[mask])
    with pytest.raises(ValueError, match="a run of tokens up to itself"):
        attention_triton.answer_row_mean(given, ANSWER)
    with pytest.raises(ValueError, match="a run of tokens up to itself"):
        distances(attention_triton, given)


def test_holes_that_no_row_asked_for_can_see_are_no_matter():
    answer = torch.zeros_like(ANSWER)
    answer[0, 15:24] = True
    found = attention_triton.answer_row_mean(attention(mask=hole(PADDING)), answer)
    assert torch.equal(found, attention_triton.answer_row_mean(attention(), answer))
    windowed = attention(mask=hole(PADDING), window=5)
    assert attention_triton.answer_row_mean(windowed, ANSWER)[0].any()


def test_float64_is_refused():
    given = attention(dtype=torch.float64)
    with pytest.raises(ValueError, match='use the kernels "torch"'):
        attention_triton.answer_row_mean(given, ANSWER)
    with pytest.raises(ValueError, match='use the kernels "torch"'):
        distances(attention_triton, given)


def test_cpu_tensors_are_refused_outside_the_interpreter(monkeypatch):
    monkeypatch.setattr(attention_triton, "_interpreted", lambda: False)
    given = Attention(torch.randn(1, 1, 3, 4), torch.randn(1, 1, 3, 4), scaling=1.0)
    with pytest.raises(ValueError, match="need a GPU"):
        attention_triton.answer_row_mean(given, torch.ones(1, 3, dtype=torch.bool))


def test_a_policy_on_a_cpu_is_refused_before_any_pass(monkeypatch):
    monkeypatch.setattr(attention_triton, "_interpreted", lambda: False)
    policy, passes = tiny_policy(), []
    policy.get_input_embeddings().register_forward_hook(lambda *_: passes.append(1))
    with pytest.raises(ValueError, match="need a GPU"):
        tc.assign(policy, make_rollouts(), "atpo", kernels="triton")
    with (
        pytest.raises(ValueError, match="need a GPU"),
        tc.signals.observe(policy, make_rollouts(), tc.method("atpo").needs, kernels="triton"),
    ):
        policy(input_ids=make_rollouts().input_ids)
    assert passes == []


def test_without_triton_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, attention_triton.__name__)
    with pytest.raises(ImportError, match=r"tokencredit\[triton\]"):
        importlib.import_module(attention_triton.__name__)


def test_distances_are_exact_over_long_contexts():
    """Of heads that look at the first token, at the one before, and everywhere alike; the reference in float64."""
    length, width = 2100, 32
    rng = torch.Generator().manual_seed(0)
    key = torch.nn.functional.normalize(torch.randn(1, 1, length, width, generator=rng), dim=-1)
    query = torch.cat([key[:, :, :1].expand_as(key), key.roll(1, 2), torch.zeros_like(key)], 1)
    completion = torch.ones(1, 40, dtype=torch.bool, device=DEVICE)
    given = Attention(query.to(DEVICE), key.to(DEVICE), scaling=40.0)
    exact = distances(reference, Attention(query.double().to(DEVICE), key.double().to(DEVICE), 40.0), completion)
    found = distances(attention_triton, given, completion)
    torch.testing.assert_close(found["look_back"], exact["look_back"], rtol=5e-6, atol=0)
    # The log-sum-exp is rounded where scores are large, and WAAD is a small difference from W.
    torch.testing.assert_close(found["waad"], exact["waad"], rtol=1e-4, atol=0)
    torch.testing.assert_close(found["fai"], exact["fai"], rtol=1e-4, atol=0)
    uniform = torch.arange(length - 40, length).double().mean() / 2
    torch.testing.assert_close(exact["look_back"][0, 2].double().cpu(), uniform)


def log_sum_exp(given: Attention) -> torch.Tensor:
    scores = given.query @ given.key.mT * given.scaling
    return scores.masked_fill(~matrix(), -torch.inf).logsumexp(-1)


def told(given: Attention, value: torch.Tensor) -> Attention:
    """With log-sum-exps that came with the attention."""
    object.__setattr__(given, "log_sum_exp", value)
    return given


def test_what_is_not_asked_for_is_not_computed(monkeypatch):
    expected = distances(attention_triton, attention())
    found = distances(attention_triton, attention(), look_back=False)
    assert found.pop("look_back").shape == (3, 0)
    with_sinks = attention(sinks=SINKS)
    assert distances(attention_triton, with_sinks, look_back=False)["look_back"].shape == (3, 0)
    for name, values in found.items():
        assert torch.equal(values, expected[name]), name

    known = log_sum_exp(attention())
    rows = attention_triton.answer_row_mean(attention(), ANSWER)
    monkeypatch.setattr(triton_kernels, "row_sums", None)
    given = told(attention(), known)
    torch.testing.assert_close(attention_triton.answer_row_mean(given, ANSWER), rows, atol=1e-6, rtol=1e-5)
    found = distances(attention_triton, given, look_back=False)
    for name in ("waad", "fai"):
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-5)


def test_log_sum_exps_beside_sinks_are_not_relied_on():
    given = told(attention(sinks=SINKS), log_sum_exp(attention()) + 1)
    expected = attention_triton.answer_row_mean(attention(sinks=SINKS), ANSWER)
    assert torch.equal(attention_triton.answer_row_mean(given, ANSWER), expected)


def test_kernels_compile_without_a_gpu(tmp_path):
    script = Path(__file__).with_name("compile_triton.py")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    compiled = {line.rsplit(maxsplit=1)[0]: int(line.rsplit(maxsplit=1)[1]) for line in done.stdout.splitlines()}
    assert set(compiled) == {
        f"{kernel} sm_{architecture} {dtype}"
        for kernel in ("row_sums", "near_sums", "column_sums")
        for architecture in (80, 90)
        for dtype in ("bfloat16", "float32")
    }
    assert max(compiled.values()) <= 100 * 1024
