"""How a completion is laid out for a reward model, and how the reward model's tokens map back to the policy's."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

from tokencredit.rollouts import Rollouts
from tokencredit.signals.reward_model import RewardModel


@dataclass(frozen=True)
class Layout:
    """One completion behind its prompt, as the reward model reads it: n tokens.

    Attributes:
        ids: the n tokens.
        shares: (token of the completion, position, share): the token gets that share of what the position is worth.
        ends: step -> the position at which a process reward model is read for it.
    """

    ids: list[int]
    shares: list[tuple[int, int, float]]
    ends: dict[int, int]


def lay_out(reward_model: RewardModel, rollouts: Rollouts, i: int) -> Layout:
    """Completion i of a batch. Steps, where `step_index` is None, are none."""
    prompt = rollouts.prompt_ids[i][rollouts.prompt_mask[i]].tolist()
    completion = rollouts.completion_ids[i][rollouts.completion_mask[i]].tolist()
    steps = [-1] * len(completion) if rollouts.step_index is None else rollouts.step_index[i].tolist()
    last = {t: k for k, t in {k: t for t, k in enumerate(steps[: len(completion)]) if k >= 0}.items()}
    if reward_model.policy_tokenizer is None:
        return _same_tokens(reward_model, prompt, completion, last)
    return _by_characters(reward_model, prompt, completion, last)


def text_pieces(tokenizer: Any, ids: list[int], before: list[int] | None = None) -> list[str]:
    """What each token adds to the text; joined, they are the text. A character spread over several tokens belongs to
    the last of them, and the others add nothing.

    Args:
        before: the tokens that the first one follows; some tokenizers drop a leading space at the start of a text.
    """
    start = (before or [])[-1:]
    return _pieces(tokenizer, start + ids)[len(start) :]


def _pieces(tokenizer: Any, ids: list[int]) -> list[str]:

    def decode(part: list[int]) -> str:
        return tokenizer.decode(part, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    pieces, done = [], 0
    for t in range(len(ids)):
        context = max(0, done - 1)
        piece = decode(ids[context : t + 1])[len(decode(ids[context:done])) :]
        unfinished = (not piece or piece.endswith("\N{REPLACEMENT CHARACTER}")) and t - done < 3
        pieces.append("" if unfinished else piece)
        done = done if unfinished else t + 1
    return pieces


def _same_tokens(reward_model: RewardModel, prompt: list[int], completion: list[int], last: dict[int, int]) -> Layout:
    tokenizer, separator = reward_model.tokenizer, reward_model.separator
    extra: list[int] = []
    if separator is not None:
        extra = tokenizer(separator, add_special_tokens=False).input_ids
    pieces = text_pieces(tokenizer, completion, prompt) if extra else [""] * len(completion)
    ids, shares, ends, text = list(prompt), [], {}, ""
    for t, (token, piece) in enumerate(zip(completion, pieces, strict=True)):
        text += piece
        shares.append((t, len(ids), 1.0))
        ids.append(token)
        if t in last:
            if extra and not text.endswith(separator or ""):
                ids += extra
            ends[last[t]] = len(ids) - 1
    return Layout(ids, shares, ends)


def _by_characters(reward_model: RewardModel, prompt: list[int], completion: list[int], last: dict[int, int]) -> Layout:
    separator = reward_model.separator or ""
    before = reward_model.policy_tokenizer.decode(prompt, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    text = before if reward_model.prompt_text is None else reward_model.prompt_text(before)
    starts, owners, step_ends = [], [], {}
    pieces = text_pieces(reward_model.policy_tokenizer, completion, prompt)
    if completion and completion[-1] == reward_model.policy_tokenizer.eos_token_id:
        pieces[-1] = ""  # the end of sequence is no text; to another model its name would be
    for t, piece in enumerate(pieces):
        starts.append(len(text))
        owners.append(t)
        text += piece
        if t in last:
            if not text.endswith(separator):
                starts.append(len(text))
                owners.append(-1)
                text += separator
            step_ends[last[t]] = len(text) - 1
    end_of_completion = len(text)
    text += reward_model.end_text
    written = reward_model.prompt_text is not None or text.startswith(reward_model.tokenizer.bos_token or "\0")
    encoded = reward_model.tokenizer(text, add_special_tokens=not written, return_offsets_mapping=True)
    offsets = encoded.offset_mapping
    shares = []
    for position, (start, end) in enumerate(offsets):
        for index in range(max(0, bisect_right(starts, start) - 1), bisect_right(starts, end - 1)):
            stop = starts[index + 1] if index + 1 < len(starts) else end_of_completion
            overlap = min(end, stop) - max(start, starts[index])
            if overlap > 0 and owners[index] >= 0:
                shares.append((owners[index], position, overlap / (end - start)))
    ends = {k: _last_at(offsets, char) for k, char in step_ends.items()}
    return Layout(list(encoded.input_ids), shares, ends)


def _last_at(offsets: list[tuple[int, int]], char: int) -> int:
    """The last position whose text starts at `char` or before it."""
    return max((j for j, (start, end) in enumerate(offsets) if start <= char and start < end), default=0)
