"""Reward models: what gives a completion, or each of its steps, a reward that can be differentiated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.modeling_layers import GenericForSequenceClassification, GenericForTokenClassification

from tokencredit.checkpoints import load_complete
from tokencredit.signals.placement import device_of, embedding_count


@dataclass(frozen=True, eq=False)
class RewardModel:
    """A reward model, with what it takes to read it.

    Args:
        model: a transformers sequence classifier with one label: its logit is the reward of the whole completion. Or a
            token classifier (process reward model), read at the end of each step: with two labels the probability of
            the second, with one its logit. Or any function from embeddings (R, n, D), rows of equal length, to rewards
            (R,) of the completions or (R, n) at their positions.
        tokenizer: the model's, where it needs separators or has another one than the policy.
        policy_tokenizer: the policy's, where it is another one. Text is then tokenized anew, prompt and completion as
            one, and aligned by characters; this needs a fast tokenizer.
        separator: what a process reward model expects behind each step (TRL: a newline), where it is read; a step that
            ends with it gets no second one. None: it is read at the step's own last token.
        end_text: what follows the completion, such as the end of a turn. Needs `policy_tokenizer`.
        prompt_text: what stands before the completion, made of the prompt's text (such as the reward model's own chat
            template, with its special tokens); the same text by default. Needs `policy_tokenizer`.
        embeddings: the input embeddings of a function; by default the policy's.

    Raises:
        ValueError: an argument is given without the tokenizer that it needs, or the model has labels that are no
            reward.
    """

    model: Any
    tokenizer: Any = None
    policy_tokenizer: Any = None
    separator: str | None = None
    prompt_text: Callable[[str], str] | None = None
    end_text: str = ""
    embeddings: nn.Module | None = None

    def __post_init__(self) -> None:
        if self.tokenizer is None and (self.policy_tokenizer is not None or self.separator is not None):
            raise ValueError("a separator or a policy_tokenizer needs tokenizer=, the reward model's own")
        if self.policy_tokenizer is None and (self.prompt_text is not None or self.end_text):
            raise ValueError("prompt_text and end_text need policy_tokenizer=, which reads the prompt")
        if self.policy_tokenizer is not None and not getattr(self.tokenizer, "is_fast", False):
            raise ValueError("a reward model with another tokenizer needs a fast one, which knows character offsets")
        if self._is_classifier and self._unwrapped.config.num_labels > 2:
            raise ValueError(
                f"{type(self._unwrapped).__name__} has {self._unwrapped.config.num_labels} labels: {_LABELS}"
            )
        if not self._is_classifier and not callable(self.model):
            raise ValueError(
                f"a reward model is a transformers classifier or a function; got {type(self.model).__name__}"
            )

    @classmethod
    def from_pretrained(cls, name: str, policy_tokenizer: Any, separator: str | None = None) -> RewardModel:
        """A transformers classifier, of completions or of tokens, by hub name or folder; with its own tokenizer.

        Args:
            policy_tokenizer: the policy's. Text is tokenized anew only where the vocabularies differ.

        Raises:
            ValueError: there is no such model, its checkpoint lacks weights (such as those of the head that makes the
                reward), or as for `RewardModel`.
        """
        try:
            architectures = AutoConfig.from_pretrained(name).architectures or []
        except (OSError, ValueError) as error:
            raise ValueError(f"the reward model {name} cannot be loaded: {error}") from None
        by_token = any(architecture.endswith("ForTokenClassification") for architecture in architectures)
        kind: Any = AutoModelForTokenClassification if by_token else AutoModelForSequenceClassification
        own = AutoTokenizer.from_pretrained(name)
        same = own.get_vocab() == policy_tokenizer.get_vocab()
        return cls(
            load_complete(kind, name),
            tokenizer=own,
            policy_tokenizer=None if same else policy_tokenizer,
            separator=separator,
        )

    @classmethod
    def of(cls, model: Any) -> RewardModel:
        """`model` itself if it is one, else a RewardModel around it."""
        return model if isinstance(model, RewardModel) else cls(model)

    def to(self, device: torch.device) -> None:
        """Move the model, where it is one."""
        for module in (self.model, self.embeddings):
            if isinstance(module, nn.Module):
                module.to(device)

    @property
    def pads(self) -> bool:
        """Rows of different lengths can go through it together, padded on the left."""
        causal = isinstance(self._unwrapped, GenericForSequenceClassification | GenericForTokenClassification)
        return causal and self._unwrapped.config.get_text_config().pad_token_id is not None

    @property
    def most_rows(self) -> int:
        """How many rows of equal length may go through it at once; transformers refuses several without a pad token."""
        lonely = self._is_classifier and self._unwrapped.config.get_text_config().pad_token_id is None
        return 1 if lonely else 1 << 30

    @property
    def module(self) -> nn.Module | None:
        """The module to read in evaluation mode: the model, or the one whose method the function is."""
        owner = self.model if isinstance(self.model, nn.Module) else getattr(self.model, "__self__", None)
        return owner if isinstance(owner, nn.Module) else None

    def embed(self, policy: Any) -> nn.Module:
        """The input embeddings: the classifier's, or those that the function was given, or `policy`'s."""
        if self._is_classifier:
            return self._unwrapped.get_input_embeddings()
        return self.embeddings or policy.get_input_embeddings()

    def special_token(self, name: str, policy: Any) -> int | None:
        """The id of the model's pad or eos token."""
        config = self._unwrapped.config if self._is_classifier else policy.config
        owners = [self.tokenizer, config.get_text_config()]
        found = [getattr(owner, f"{name}_token_id", None) for owner in owners if owner is not None]
        token = next((value for value in found if value is not None), None)
        return token[0] if isinstance(token, list) else token

    def __call__(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """Rewards (R,) of whole completions, or (R, n) at their positions.

        Args:
            embeddings: (R, n, D). mask: (R, n) bool, left-padded; only a model that `pads` is given padding.
        """
        if not self._is_classifier:
            return self._checked(self.model(embeddings), embeddings)
        batch: dict[str, Any] = {"inputs_embeds": embeddings, "attention_mask": mask.long()}
        if self.pads:
            batch |= {"position_ids": (mask.long().cumsum(1) - 1).clamp(min=0), "use_cache": False}
        output = self.model(**batch)
        if getattr(output, "logits", None) is None:
            raise ValueError(f"{type(self._unwrapped).__name__} has no classification head: {_LABELS}")
        logits = output.logits.float()
        if logits.shape[-1] == 1:
            return self._checked(logits[..., 0], embeddings)
        if logits.ndim == 3 and logits.shape[-1] == 2:
            return logits.softmax(-1)[..., 1]
        raise ValueError(f"{type(self._unwrapped).__name__} has {logits.shape[-1]} labels: {_LABELS}")

    def _checked(self, rewards: Any, embeddings: Tensor) -> Tensor:
        shapes = (embeddings.shape[:1], embeddings.shape[:2])
        if not isinstance(rewards, Tensor) or rewards.shape not in shapes:
            got = tuple(rewards.shape) if isinstance(rewards, Tensor) else type(rewards).__name__
            raise ValueError(
                f"the reward model must turn embeddings {tuple(embeddings.shape)} into rewards {tuple(shapes[0])} or "
                f"{tuple(shapes[1])}; got {got}"
            )
        return rewards

    @property
    def _unwrapped(self) -> Any:
        model = getattr(self.model, "_orig_mod", self.model)  # behind torch.compile
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    @property
    def _is_classifier(self) -> bool:
        return isinstance(self._unwrapped, PreTrainedModel)


_LABELS = (
    "a reward model is a sequence classifier with one label, or a token classifier (process reward model) with two "
    "(wrong, right) or one"
)


def null_embedding(reward_model: RewardModel, kind: str, policy: Any) -> Tensor:
    """(D,): the embedding of the null token: of `pad`, of `eos`, `zero`, or the `mean` over the vocabulary.

    Raises:
        ValueError: the model has no such token.
    """
    embed = reward_model.embed(policy)
    device, count = device_of(embed, torch.device("cpu")), embedding_count(embed)
    if kind in ("pad", "eos"):
        token = reward_model.special_token(kind, policy)
        if token is None:
            raise ValueError(
                f"null {kind!r} asked for, but the reward model has no {kind} token: give RewardModel a tokenizer that "
                'has one, or choose null="zero" or null="mean"'
            )
        if token >= count:
            raise ValueError(f"the {kind} token {token} is outside the {count} embeddings: resize_token_embeddings")
        return embed(torch.tensor(token, device=device))
    if kind == "zero":
        return torch.zeros_like(embed(torch.tensor(0, device=device)))
    kind = embed(torch.tensor(0, device=device)).dtype
    parts = torch.arange(count, device=device).split(4096)
    return (sum(embed(part).double().sum(0) for part in parts) / count).to(kind)
