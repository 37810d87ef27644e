"""How well a model solves problems: accuracy, avg@n and pass@k, by any reward."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from datasets import Dataset
from transformers import GenerationConfig, LogitsProcessorList

from tokencredit.analysis.bootstrap import bootstrap_interval
from tokencredit.padding import padded_left
from tokencredit.prompts import encode_prompts
from tokencredit.rewards import Reward, check
from tokencredit.rewards.base import as_completion, checked_values, known_correct, name_of, unanswered
from tokencredit.sampling import drawing_with, random_numbers, taking_likeliest


@dataclass(frozen=True)
class Estimate:
    """A mean over problems and its 95 % interval: Wilson's where every problem has 0 or 1, else by bootstrap.

    Wilson's has a width for any number of problems. The bootstrap's bounds are None where the problems tell too little
    of the spread: for fewer than 8 of them, or where all have the same value (see `bootstrap_interval`).
    """

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class EvaluationReport:
    """What `evaluate` found; `as_json` is ready for `json.dumps`.

    Attributes:
        problems: how many. samples: completions a problem.
        reward: the mean reward: accuracy at one sample, avg@n at n.
        pass_at_k: k -> the chance that one of k samples is right; k in powers of two up to `samples`. Empty where the
            reward gave anything besides 0 and 1.
        tokens: mean length of a completion, its end of sequence included.
        truncated: share of completions that `max_new_tokens` cut off.
        unanswered: share of completions that state no answer where the reward reads one, such as in `\\boxed{}`; None
            where the reward does not say.
    """

    problems: int
    samples: int
    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int
    reward: Estimate
    pass_at_k: dict[int, Estimate]
    tokens: float
    truncated: float
    unanswered: float | None

    def as_json(self) -> dict[str, Any]:
        content = asdict(self)
        return {**content, "pass_at_k": {str(k): value for k, value in content["pass_at_k"].items()}}


@dataclass(frozen=True)
class Scored:
    """One completion of the problem in row `row`: its text, its length in tokens, its reward."""

    row: int
    completion: str
    tokens: int
    truncated: bool
    reward: float


def pass_at_k(n: int, c: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k): the unbiased chance that one of k samples is right (Chen et al. 2021, 2107.03374).

    Args:
        n: samples drawn. c: how many are right. k: from 1 to n.
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n; got n={n}, c={c}, k={k}")
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def evaluate(
    model: Any,
    tokenizer: Any,
    problems: Dataset,
    reward: Reward,
    *,
    samples: int = 1,
    temperature: float = 0.0,
    top_p: float = 1.0,
    max_new_tokens: int = 1024,
    batch_size: int = 16,
    seed: int = 0,
    done: Sequence[Scored] = (),
    on_progress: Callable[[int, Sequence[Scored]], None] | None = None,
) -> EvaluationReport:
    """Sample completions of every problem and score them.

    The model's own generation settings (a repetition penalty, top-k) do not apply, except its ends of sequence. Torch's
    random state is not used, and the model is left as it was.

    A sampled completion depends on the model, the prompt, `seed`, the problem's row and the number of the sample: each
    of its tokens is drawn with a random number that these decide. It depends neither on the other problems nor on how
    far a run got before it was interrupted, and in float32 not on `batch_size` either, up to rounding. In lower
    precision padding changes the logits, so that another `batch_size` may give other completions, greedy ones too.

    Args:
        problems: with the columns `prompt` (text or chat messages) and whatever the reward reads; see `load_problems`.
        temperature: 0 is greedy, with one sample.
        batch_size: completions at a time.
        done: the completions of the first problems, from an earlier call with the same model, problems and settings:
            they are counted as they are, and generation starts after them.
        on_progress: called with the number of problems done, and the completions that are new.

    Raises:
        ValueError: the settings, the problems, the tokenizer's chat template, `done` or the reward's values do not fit;
            or the model's logits are NaN or infinite.
    """
    _check_settings(problems, samples, temperature, top_p, max_new_tokens, batch_size)
    if len(done) > len(problems) * samples or any(one.row != i // samples for i, one in enumerate(done)):
        raise ValueError(f"done must hold {samples} completions of each of the first problems, in their order")
    columns = {name: list(problems[name]) for name in problems.column_names}
    check(reward, columns)
    encoded = encode_prompts(columns["prompt"], tokenizer)
    config = _generation_config(model, tokenizer, max_new_tokens)
    scored = list(done)
    with _evaluating(model):
        # Whole problems at a time, so that a reward over groups sees each group whole.
        step = max(1, batch_size // samples)
        for start in range(len(done) // samples, len(problems), step):
            rows = [row for row in range(start, min(start + step, len(problems))) for _ in range(samples)]
            numbers = random_numbers(rows, samples, seed, max_new_tokens) if temperature > 0 else None
            ids: list[list[int]] = []
            for i in range(0, len(rows), batch_size):
                here = slice(i, i + batch_size)
                drawing = taking_likeliest() if numbers is None else drawing_with(numbers[here], temperature, top_p)
                prompts = [encoded[row] for row in rows[here]]
                ids += _generate(model, prompts, config, drawing)
            new = _score(rows, ids, columns, reward, tokenizer, config.eos_token_id)
            scored += new
            if on_progress is not None:
                on_progress(rows[-1] + 1, new)
    settings: dict[str, Any] = {
        "samples": samples,
        "temperature": temperature,
        "top_p": top_p,
        "max_new_tokens": max_new_tokens,
    }
    unread = unanswered(reward, [s.completion for s in scored])
    return _report(scored, seed=seed, unanswered=unread, **settings)


def _report(scored: Sequence[Scored], *, samples: int, **settings: Any) -> EvaluationReport:
    by_problem = [[s.reward for s in scored[i : i + samples]] for i in range(0, len(scored), samples)]
    return EvaluationReport(
        problems=len(by_problem),
        samples=samples,
        **settings,
        reward=_estimate([sum(rewards) / samples for rewards in by_problem]),
        pass_at_k=_pass_at_powers(by_problem, samples),
        tokens=sum(s.tokens for s in scored) / len(scored),
        truncated=sum(s.truncated for s in scored) / len(scored),
    )


def _check_settings(
    problems: Dataset, samples: int, temperature: float, top_p: float, max_new_tokens: int, batch_size: int
) -> None:
    if len(problems) == 0 or "prompt" not in problems.column_names:
        raise ValueError(f"expected problems with a column prompt; got {len(problems)} with {problems.column_names}")
    for name, value in (("samples", samples), ("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}")
    if not 0 <= temperature < math.inf or not 0 < top_p <= 1:
        raise ValueError(f"expected temperature >= 0 and 0 < top_p <= 1; got {temperature} and {top_p}")
    if temperature == 0 and samples > 1:
        raise ValueError(f"{samples} samples at temperature 0 would all be the same: use a temperature, or one sample")


def _generation_config(model: Any, tokenizer: Any, max_new_tokens: int) -> GenerationConfig:
    known = model.generation_config.eos_token_id
    ends = {*(known if isinstance(known, list) else [known]), tokenizer.eos_token_id} - {None}
    # Padding is masked, so any token will do.
    pad = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    # Sampled tokens are drawn by a logits processor, after which the likeliest token is the one that was drawn.
    return GenerationConfig(max_new_tokens=max_new_tokens, eos_token_id=sorted(ends), pad_token_id=pad, do_sample=False)


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """In evaluation mode, and without the model's own generation settings; then all as before."""
    training, own = model.training, model.generation_config
    model.eval()
    # `generate` would fill what a config leaves open from the model's own, a repetition penalty for instance.
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
        model.train(training)


def _generate(
    model: Any, prompts: Sequence[list[int]], config: GenerationConfig, drawing: LogitsProcessorList
) -> list[list[int]]:
    """Token ids of a completion each, up to and including the end of sequence where there is one."""
    ids, mask = padded_left(prompts, config.pad_token_id, model.device)
    with torch.no_grad():
        made = model.generate(
            input_ids=ids, attention_mask=mask.long(), generation_config=config, logits_processor=drawing
        )
    made = made[:, ids.shape[1] :].tolist()
    lengths = [next((i + 1 for i, token in enumerate(row) if token in config.eos_token_id), len(row)) for row in made]
    return [row[:length] for row, length in zip(made, lengths, strict=True)]


def _score(
    rows: Sequence[int],
    ids: Sequence[list[int]],
    columns: Mapping[str, Sequence[Any]],
    reward: Reward,
    tokenizer: Any,
    ends: Sequence[int],
) -> list[Scored]:
    """The completions `ids` of the problems `rows`, scored as TRL's trainers would call the reward."""
    texts = [tokenizer.decode(completion, skip_special_tokens=True) for completion in ids]
    prompts = [columns["prompt"][row] for row in rows]
    rewards = reward(
        prompts=prompts,
        completions=[as_completion(prompt, text) for prompt, text in zip(prompts, texts, strict=True)],
        completion_ids=list(ids),
        **{name: [values[row] for row in rows] for name, values in columns.items() if name != "prompt"},
    )
    values = checked_values(rewards, name_of(reward), len(rows))
    if unscored := [row for row, value in zip(rows, values, strict=True) if value is None]:
        raise ValueError(f"the reward of problem {unscored[0]} is None; expected a number: drop such problems")
    return [
        Scored(row, text, len(completion), completion[-1] not in ends, value)
        for row, text, completion, value in zip(rows, texts, ids, (v for v in values if v is not None), strict=True)
    ]


def _pass_at_powers(by_problem: Sequence[Sequence[float]], samples: int) -> dict[int, Estimate]:
    if None in known_correct([reward for rewards in by_problem for reward in rewards]):
        return {}
    right = [int(sum(rewards)) for rewards in by_problem]
    powers = [1 << i for i in range(samples.bit_length())]
    return {k: _estimate([pass_at_k(samples, c, k) for c in right]) for k in powers}


def _estimate(values: Sequence[float]) -> Estimate:
    n, mean = len(values), sum(values) / len(values)
    if all(value in (0, 1) for value in values):
        # Wilson's score interval; unlike the bootstrap it has a width where all are right.
        z = 1.959964
        centre = (mean + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z * math.sqrt(mean * (1 - mean) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
        return Estimate(mean, max(0.0, centre - half), min(1.0, centre + half))
    column = torch.tensor(values, dtype=torch.float64)[:, None]
    interval = bootstrap_interval(column, lambda means: means[:, 0], torch.Generator().manual_seed(0))
    return Estimate(mean, *(interval or (None, None)))
