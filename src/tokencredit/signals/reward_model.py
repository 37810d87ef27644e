"""Reward models: what gives a completion, or each of its steps, a reward that can be differentiated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedConfig,
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
            the second, with one its logit. Or a causal LM that judges each step by the token that it writes next
            (Math-Shepherd), with `label_tokens`. Or any function from embeddings (R, n, D), rows of equal length, to
            rewards (R,) of the completions or (R, n) at their positions.
        tokenizer: the model's, where it needs separators or has another one than the policy.
        policy_tokenizer: the policy's, where it is another one. Text is then tokenized anew, prompt and completion as
            one, and aligned by characters; this needs a fast tokenizer.
        separator: what a process reward model expects behind each step (TRL: a newline), where it is read; a step that
            ends with it gets no second one. None: it is read at the step's own last token.
        end_text: what follows the completion, such as the end of a turn. Needs `policy_tokenizer`.
        prompt_text: what stands before the completion, made of the prompt's text (such as the reward model's own chat
            template, with its special tokens); the same text by default. Needs `policy_tokenizer`.
        embeddings: the input embeddings of a function; by default the policy's.
        label_tokens: (right, wrong), the two tokens by which a causal LM judges a step: as they stand in the vocabulary
            of `tokenizer` ("\u2581+" where a token begins with a space), or their ids. The reward of a step is the
            probability of the first, of these two alone, at the step's end.

    Raises:
        ValueError: an argument is given without the tokenizer that it needs, the model has labels that are no reward,
            or is a causal LM without `label_tokens`.
    """

    model: Any
    tokenizer: Any = None
    policy_tokenizer: Any = None
    separator: str | None = None
    prompt_text: Callable[[str], str] | None = None
    end_text: str = ""
    embeddings: nn.Module | None = None
    label_tokens: tuple[str | int, str | int] | None = None

    def __post_init__(self) -> None:
        if self.tokenizer is None and (self.policy_tokenizer is not None or self.separator is not None):
            raise ValueError("a separator or a policy_tokenizer needs tokenizer=, the reward model's own")
        if self.policy_tokenizer is None and (self.prompt_text is not None or self.end_text):
            raise ValueError("prompt_text and end_text need policy_tokenizer=, which reads the prompt")
        if self.policy_tokenizer is not None and not getattr(self.tokenizer, "is_fast", False):
            raise ValueError("a reward model with another tokenizer needs a fast one, which knows character offsets")
        if self.label_tokens is not None:
            self._check_label_tokens(self.label_tokens)
            return
        if self._is_classifier and self._unwrapped.get_output_embeddings() is not None:
            raise ValueError(f"{type(self._unwrapped).__name__} {_CAUSAL}")
        if self._is_classifier and self._unwrapped.config.num_labels > 2:
            raise ValueError(
                f"{type(self._unwrapped).__name__} has {self._unwrapped.config.num_labels} labels: {_LABELS}"
            )
        if not self._is_classifier and not callable(self.model):
            raise ValueError(
                f"a reward model is a transformers classifier or a function; got {type(self.model).__name__}"
            )

    def _check_label_tokens(self, given: Any) -> None:
        if not self._is_classifier or self._unwrapped.get_output_embeddings() is None:
            raise ValueError(f"label_tokens are those of a causal LM; got {type(self._unwrapped).__name__}")
        if not isinstance(given, tuple | list) or len(given) != 2:
            raise ValueError(f"label_tokens must be two tokens, (right, wrong); got {given!r:.60}")
        if self.tokenizer is None and any(isinstance(token, str) for token in given):
            raise ValueError("label_tokens as texts need tokenizer=, the reward model's own")
        vocabulary = {} if self.tokenizer is None else self.tokenizer.get_vocab()
        count = embedding_count(self._unwrapped.get_input_embeddings())
        numbers = [vocabulary.get(token, -1) if isinstance(token, str) else token for token in given]
        for token, number in zip(given, numbers, strict=True):
            if type(number) is not int or not 0 <= number < count:
                raise ValueError(
                    f"label_tokens: {token!r} is not one token of the reward model; one that begins with a space is "
                    f"written as in the vocabulary ({', '.join(map(repr, _like(token, vocabulary))) or 'or as an id'})"
                )
        if numbers[0] == numbers[1]:
            raise ValueError(
                f"label_tokens must be two different tokens, (right, wrong); in {given!r:.60} both are the token "
                f"{numbers[0]}"
            )

    @property
    def _label_ids(self) -> list[int]:
        return [self.tokenizer.get_vocab()[t] if isinstance(t, str) else t for t in self.label_tokens or ()]

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        policy_tokenizer: Any,
        separator: str | None = None,
        *,
        label_tokens: tuple[str | int, str | int] | None = None,
    ) -> RewardModel:
        """A reward model by hub name or folder, with its own tokenizer: a classifier of completions or of tokens, or,
        with `label_tokens`, a causal LM.

        Args:
            policy_tokenizer: the policy's. Text is tokenized anew only where the vocabularies differ.

        Raises:
            ValueError: there is no such model, it takes code from its repository, its checkpoint lacks weights (such as
                those of the head that makes the reward), or as for `RewardModel`.
        """
        try:
            config, _ = PreTrainedConfig.get_config_dict(name)
        except (OSError, ValueError) as error:
            raise ValueError(f"the reward model {name} cannot be loaded: {error}") from None
        kind = _auto_class(name, config, label_tokens)
        try:
            own = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"the tokenizer of the reward model {name} cannot be loaded: {error}") from None
        same = own.get_vocab() == policy_tokenizer.get_vocab()
        return cls(
            load_complete(kind, name, trust_remote_code=False),
            tokenizer=own,
            policy_tokenizer=None if same else policy_tokenizer,
            separator=separator,
            label_tokens=label_tokens,
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
        if self.label_tokens is not None:
            both = self.model(**batch, use_cache=False).logits[..., self._label_ids].float()
            return self._checked(both.softmax(-1)[..., 0], embeddings)
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


_CAUSAL = (
    "is a causal LM, whose logits are those of its vocabulary. One that judges a step by the token that it writes next "
    'takes label_tokens=(right, wrong), such as Math-Shepherd\'s ("\u2581+", "\u2581-"); for other ways to make a '
    "reward of it pass a function from embeddings to rewards"
)


def _auto_class(name: str, config: dict[str, Any], label_tokens: Any) -> Any:
    """The class that loads a reward model with this config. Raises a ValueError where none of transformers' does."""
    architectures = config.get("architectures") or []
    if "auto_map" in config and not any(hasattr(transformers, architecture) for architecture in architectures):
        raise ValueError(
            f"the reward model {name} ({', '.join(architectures)}) takes code from its own repository, which is never "
            "executed here. If you trust it, load it yourself with trust_remote_code=True and pass "
            "tc.RewardModel(model, tokenizer=..., policy_tokenizer=..., separator=...), or a function from embeddings "
            "to rewards"
        )
    kinds = {ending for ending in _AUTO_CLASSES if any(each.endswith(ending) for each in architectures)}
    if "ForCausalLM" in kinds and label_tokens is None:
        raise ValueError(f"the reward model {name} {_CAUSAL}")
    if label_tokens is not None and kinds and "ForCausalLM" not in kinds:
        raise ValueError(f"label_tokens are those of a causal LM; {name} is a {', '.join(architectures)}")
    return _AUTO_CLASSES[next(iter(kinds), "ForSequenceClassification" if label_tokens is None else "ForCausalLM")]


_AUTO_CLASSES: dict[str, Any] = {
    "ForTokenClassification": AutoModelForTokenClassification,
    "ForSequenceClassification": AutoModelForSequenceClassification,
    "ForCausalLM": AutoModelForCausalLM,
}


def _like(token: Any, vocabulary: dict[str, int]) -> list[str]:
    """Tokens that are `token` but for a space before it."""
    return [space + str(token) for space in ("\u2581", "\u0120") if space + str(token) in vocabulary]


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
