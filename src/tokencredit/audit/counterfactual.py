"""What a token was worth, by replacing it: force the policy's runner-up, decode on, and see what becomes of success."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from tokencredit.analysis.decoding import Decoding, Start, Success, scored, success_after, token_lists
from tokencredit.rollouts import Rollouts
from tokencredit.signals.policy import causal_lm, reading

_MAX_LOGITS = 1 << 24
"""Logits held at once, in elements, as long as one completion needs no more."""


def replacement_effect(
    policy: nn.Module,
    rollouts: Rollouts,
    success: Success,
    *,
    max_new_tokens: int,
    eos_token_id: int | Sequence[int],
    pad_token_id: int,
    samples: int = 0,
    batch_size: int = 512,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """The success that is lost when each token gives way to its runner-up and the policy decodes on:

        effect_t = success(y) - E[success(y_1 ... y_{t-1}, runner-up_t, what the policy goes on with)]

    Positive in a correct completion where the token mattered; negative in a wrong one where another token repairs it.
    The last token's counts too: what if the completion had gone on instead?

    The policy and torch's random state are left as they were.

    Args:
        policy: a transformers causal LM, or a PEFT model around one.
        max_new_tokens: how long a completion may get as a whole; one that is changed in its last place ends there.
        samples: continuations at temperature 1 to average over; with 0, one greedy continuation.
        batch_size: continuations decoded at once.
        on_progress: called with how many continuations are done, and of how many.

    Returns:
        (B, T) float32 on the CPU, 0 on padding.

    Raises:
        ValueError: a completion is longer than `max_new_tokens`, success is not in [0, 1], or the vocabulary has no
            other token.
    """
    decoding = Decoding(samples, max_new_tokens, eos_token_id, pad_token_id, batch_size, seed, on_progress)
    decoding.check(rollouts, least_samples=0)
    mask = rollouts.completion_mask.cpu()
    prompts, completions = token_lists(rollouts)
    originals = torch.tensor(scored(success, list(enumerate(completions))))
    others = runner_ups(policy, rollouts, eos_token_id=eos_token_id).cpu()
    changed = [
        Start(row, prompts[row], [*completions[row][:t], int(others[row, t])]) for row, t in mask.nonzero().tolist()
    ]
    outcomes = success_after(policy, changed, success, decoding)
    effect = torch.zeros(mask.shape)
    effect[mask] = originals[mask.nonzero()[:, 0]] - outcomes.mean(1)
    return effect


def runner_ups(policy: nn.Module, rollouts: Rollouts, *, eos_token_id: int | Sequence[int]) -> Tensor:
    """(B, T) long: the likeliest token in each place but the one that stands there; 0 on padding.

    The end of sequence is none: it would ask what stopping costs, not what another token does.
    """
    device = next(policy.parameters()).device
    ends = torch.tensor(eos_token_id, device=device).reshape(-1)
    length = rollouts.completion_ids.shape[1]
    vocabulary = causal_lm(policy).config.get_text_config().vocab_size
    size = max(1, _MAX_LOGITS // (vocabulary * length))
    parts = []
    with reading(policy):
        for begin in range(0, len(rollouts), size):
            part = rollouts.rows(slice(begin, begin + size))
            # The last of these predicts what follows the completion.
            logits = policy(
                input_ids=part.input_ids.to(device),
                attention_mask=part.attention_mask.long().to(device),
                position_ids=part.position_ids.to(device),
                use_cache=False,
                logits_to_keep=length + 1,
            ).logits[:, :-1]
            logits = logits.scatter(2, part.completion_ids[..., None].to(device), -torch.inf)
            best, found = logits.index_fill(2, ends, -torch.inf).max(2)
            mask = part.completion_mask.to(device)
            if best[mask].isneginf().any():
                raise ValueError("the policy knows no token but the one that stands there and the end of sequence")
            parts.append(found * mask)
    return torch.cat(parts) if parts else torch.zeros_like(rollouts.completion_ids)
