"""`training.train` for sweeps of many runs: the same updates in plain PyTorch, without what a general trainer spends.

Given the same completions, `train_lean` makes the losses, gradients and weights of TRL's GRPOTrainer, up to rounding.
Its own completions are others than TRL's, for its random numbers are its own: of two generators with `budget.seed` one
shuffles the problems, in TRL's order, and one samples, and deals the completions out to the updates. Torch's random
state is left as it was, and the same call makes the same run.

What is not computed has no gradient: completions to which credit gave no advantage at all, and padding.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import Qwen3ForCausalLM

from tokencredit import outcome
from tokencredit.analysis.decoding import continuations
from tokencredit.credit import Credit
from tokencredit.diagnostics import carrying_loss, means_with_loss
from tokencredit.methods import Method
from tokencredit.padding import padded_left
from tokencredit.rollouts import Rollouts
from tokencredit.signals import collect
from tokencredit.signals.policy import reading
from tokencredit.steps import find_spans
from tokencredit.testbed.evaluate import completion_text
from tokencredit.testbed.tasks import Problem, Task, step_starts
from tokencredit.testbed.training import Budget, Trained

_CLIP = 0.2
_BETAS = (0.9, 0.98)
_WARM_UP_UPDATES = 5
_MAX_GRADIENT_NORM = 1.0
_ROWS_AT_ONCE = 16
"""Completions of like length in one pass: fewer have less padding, more have less overhead."""


class Batch(NamedTuple):
    """What credit is assigned to, and by which policy.

    Attributes:
        policy: as it was when it wrote the completions.
        rollouts: B completions with `rewards`, `correct`, `group`, `answer_start` and `step_index`.
        problems: that of each group of completions.
        advantages: (B,) outcome advantages.
        updates: how many optimizer updates the policy has had: the `step` of methods with a schedule.
    """

    policy: nn.Module
    rollouts: Rollouts
    problems: Sequence[Problem]
    advantages: Tensor
    updates: int


AssignCredit = Callable[[Batch], Credit]


def train_lean(
    checkpoint: Qwen3ForCausalLM,
    tokenizer: Any,
    task: Task,
    m: Method,
    training: Sequence[Problem],
    held_out: Sequence[Problem],
    budget: Budget,
    on_step: Callable[[dict[str, Any]], None] = lambda row: None,
    reward_model: Any = None,
    lora: bool | None = None,
    *,
    assign_credit: AssignCredit | None = None,
    outcome_advantage: Callable[[Tensor, Tensor], Tensor] = outcome.grpo,
) -> Trained:
    """Train a copy of `checkpoint`; with a LoRA adapter where the method reads one. Arguments as those of `train`.

    Args:
        assign_credit: in place of the method's own credit, for controls and oracles: it sees the problems too.
        outcome_advantage: from rewards (B,) and groups (B,) to the outcome advantages (B,).

    Raises:
        ValueError: there is nothing to train on, or the rollouts of a step cannot be split into equal updates.
    """
    _check(training, budget)
    adapted = m.needs.adapter if lora is None else lora
    policy = _trainable_copy(checkpoint, budget, adapted)
    update = Updates(policy, budget.lora_learning_rate if adapted else budget.learning_rate, budget.updates_per_step)
    assign_credit = assign_credit or own_credit(m, reward_model)
    # Completions are sampled on the policy's device, which the generator has to be on.
    generator = torch.Generator(next(policy.parameters()).device).manual_seed(budget.seed)
    seconds, tokens = 0.0, 0
    for step, problems in enumerate(islice(prompt_batches(training, budget), budget.steps), start=1):
        started = time.perf_counter()
        rollouts = roll_out(policy, tokenizer, task, problems, budget.group_size, generator)
        advantages = outcome_advantage(rollouts.rewards, rollouts.group)  # type: ignore[arg-type]
        batch = Batch(policy, rollouts, problems, advantages, update.done)
        generated = time.perf_counter()
        credit = assign_credit(batch)
        row = {"step": step, "credit/seconds": time.perf_counter() - generated}
        order = torch.randperm(len(rollouts), generator=generator, device=generator.device).cpu()
        update(rollouts, credit.advantages, order)
        seconds += (took := time.perf_counter() - started)
        tokens += int(rollouts.attention_mask.sum())
        row |= {
            "tokens": tokens,
            **_metrics(rollouts, credit, advantages),
            "credit/share_of_step": row["credit/seconds"] / took,
        }
        if held_out and (step % budget.evaluate_every == 0 or step == budget.steps):
            greedy = roll_out(policy, tokenizer, task, held_out, copies=1)
            row["accuracy"] = greedy.rewards.mean().item()  # type: ignore[union-attr]
        on_step(row)
    return Trained(m.name, policy.eval(), seconds, tokens)


def own_credit(m: Method, reward_model: Any = None) -> AssignCredit:
    """The credit of the method itself, from what it reads in the policy that wrote the completions."""

    def credit(batch: Batch) -> Credit:
        signals = collect(batch.policy, batch.rollouts, m.needs, reward_model)
        return m(batch.rollouts, batch.advantages, signals, step=batch.updates)

    return credit


def prompt_batches(training: Sequence[Problem], budget: Budget) -> Iterator[list[Problem]]:
    """Without end: `budget.prompts` problems a step, each once an epoch; too few for a step are repeated."""
    problems = [training[i % len(training)] for i in range(max(len(training), budget.prompts))]
    generator = torch.Generator().manual_seed(budget.seed)
    while True:
        order = torch.randperm(len(problems), generator=generator).tolist()
        for start in range(0, len(order) - budget.prompts + 1, budget.prompts):
            yield [problems[i] for i in order[start : start + budget.prompts]]


def roll_out(
    policy: nn.Module, tokenizer: Any, task: Task, problems: Sequence[Problem], copies: int, generator: Any = None
) -> Rollouts:
    """`copies` completions of each problem, side by side, with rewards and spans; greedy without a torch.Generator."""
    prompts = tokenizer([problem.prompt for problem in problems]).input_ids
    end, fill = tokenizer.eos_token_id, tokenizer.pad_token_id
    lengths = [task.max_new_tokens] * len(prompts)
    with reading(policy):
        written = continuations(
            policy, prompts, lengths, eos_token_id=end, pad_token_id=fill, copies=copies, generator=generator
        )
    answers = [(problem, ids) for problem, group in zip(problems, written, strict=True) for ids in group]
    correct = torch.tensor([task.verify(problem, completion_text(ids, tokenizer)) for problem, ids in answers])
    prompt_ids, prompt_mask = padded_left([ids for ids in prompts for _ in range(copies)], fill)
    rows = [torch.tensor(ids) for _, ids in answers]
    rollouts = Rollouts(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        completion_ids=pad_sequence(rows, batch_first=True, padding_value=fill),
        completion_mask=pad_sequence([torch.ones_like(ids) for ids in rows], batch_first=True),
        rewards=correct.float(),
        correct=correct,
        group=torch.arange(len(rows)) // copies,
    )
    return find_spans(rollouts, tokenizer, step_starts)


class Updates:
    """The optimizer's part of GRPO, as TRL's trainer has it: loss_type "dapo", beta 0, constant_with_warmup, AdamW.

    Args:
        per_batch: updates on each generation batch.
    """

    def __init__(self, policy: nn.Module, learning_rate: float, per_batch: int) -> None:
        self.done = 0
        self._policy, self._learning_rate, self._per_batch = policy, learning_rate, per_batch
        self._parameters = [p for p in policy.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(self._parameters, lr=0.0, betas=_BETAS, weight_decay=0.0, fused=True)
        # Not None: where no completion has an advantage, the optimizer's momentum moves on all the same.
        for p in self._parameters:
            p.grad = torch.zeros_like(p)

    def __call__(self, rollouts: Rollouts, advantages: Tensor, order: Tensor) -> list[tuple[float, float]]:
        """Update on equal parts of `order` (B,), one after the other.

        Args:
            advantages: (B, T), each token's.

        Returns:
            The loss and the norm of the gradient before clipping, of each update.
        """
        parts = [rows[advantages[rows].any(1)] for rows in order.chunk(self._per_batch)]
        with torch.no_grad():
            # The first update still sees the policy that wrote the completions.
            later = [_logprob(self._policy, rollouts.rows(rows)) if len(rows) else None for rows in parts[1:]]
        return [self._update(rollouts, advantages, *part) for part in zip(parts, [None, *later], strict=True)]

    def _update(self, rollouts: Rollouts, advantages: Tensor, rows: Tensor, old: Tensor | None) -> tuple[float, float]:
        tokens, loss = rollouts.lengths.sum() / self._per_batch, 0.0
        by_length = rollouts.lengths[rows].argsort(stable=True)
        for chunk in by_length.split(_ROWS_AT_ONCE) if len(rows) else ():
            part = rows[chunk]
            logprob = _logprob(self._policy, rollouts.rows(part))
            ratio = (logprob - (logprob.detach() if old is None else old[chunk])).exp()
            clipped = ratio.clamp(1 - _CLIP, 1 + _CLIP)
            # Padding has no advantage.
            gain = torch.min(ratio * advantages[part], clipped * advantages[part]).sum() / tokens
            (-gain).backward()
            loss -= gain.item()
        norm = nn.utils.clip_grad_norm_(self._parameters, _MAX_GRADIENT_NORM)
        self._optimizer.param_groups[0]["lr"] = self._learning_rate * min(1.0, self.done / _WARM_UP_UPDATES)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=False)
        self.done += 1
        return loss, float(norm)


def _logprob(policy: nn.Module, rollouts: Rollouts) -> Tensor:
    """(B, T): the log-probability of each completion token, on the rollouts' device; that of padding is 0."""
    device = next(policy.parameters()).device
    longest, width = int(rollouts.lengths.max()), rollouts.prompt_ids.shape[1]
    real = slice(width - int(rollouts.prompt_mask.sum(1).max()), width + longest)
    logits = policy(
        input_ids=rollouts.input_ids[:, real].to(device),
        attention_mask=rollouts.attention_mask[:, real].long().to(device),
        position_ids=rollouts.position_ids[:, real].to(device),
        logits_to_keep=longest + 1,
        use_cache=False,
    ).logits[:, :-1]
    targets = rollouts.completion_ids[:, :longest, None].to(device)
    found = logits.log_softmax(-1).gather(2, targets)[..., 0].to(rollouts.completion_ids.device)
    found = found.masked_fill(~rollouts.completion_mask[:, :longest], 0.0)
    return pad(found, (0, rollouts.completion_ids.shape[1] - longest))


def _check(training: Sequence[Problem], budget: Budget) -> None:
    if (rollouts := budget.prompts * budget.group_size) % budget.updates_per_step:
        raise ValueError(f"{rollouts} rollouts a step cannot be split into {budget.updates_per_step} equal updates")
    if not training:
        raise ValueError("there are no training problems: pass at least one")


def _trainable_copy(checkpoint: Qwen3ForCausalLM, budget: Budget, adapted: bool) -> nn.Module:
    policy = copy.deepcopy(checkpoint).train()
    if not adapted:
        return policy
    adapter = LoraConfig(r=budget.lora_rank, lora_alpha=2 * budget.lora_rank, target_modules="all-linear")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(budget.seed)
        return get_peft_model(policy, adapter).train()


def _metrics(rollouts: Rollouts, credit: Credit, advantages: Tensor) -> dict[str, Any]:
    carrying = carrying_loss(credit.advantages, advantages, rollouts.completion_mask)
    means = means_with_loss(credit.diagnostics, carrying)
    return {
        "reward": rollouts.rewards.mean().item(),  # type: ignore[union-attr]
        "length": rollouts.lengths.float().mean().item(),
        **{f"credit/{name}": value for name, value in sorted(means.items())},
    }
