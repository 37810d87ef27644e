"""The credit method of a TRL run, beside GRPO's own arguments."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trl import GRPOConfig

from tokencredit.methods import Method
from tokencredit.methods.given import check_pickles, described, method_of, name_and_parameters, plain
from tokencredit.methods.uniform import Uniform
from tokencredit.signals import kernels_named, unobservable
from tokencredit.steps import SPLITTERS, check_answer
from tokencredit.trainers.trl_checks import check_parallelism

OUTCOMES = ("trainer", "grpo", "dr_grpo", "rloo")
TIMINGS = ("rollout", "loss")


@dataclass
class CreditGRPOConfig(GRPOConfig):
    """GRPOConfig with a credit method. Raises ValueError at once for what cannot be, or does not go together.

    `credit_method` takes a name, a name with parameters ("atpo:floor=0.5"), or a method (tc.method("atpo", floor=0.5)).
    Whatever was given, a method of this library is kept as its name, with those of its parameters that differ from
    their defaults in `credit_params`: so it is saved, logged and read back as two plain values. A method whose class is
    your own stays the object; `to_dict` then has the path of the class, which says what it was but is not read back.
    """

    # The parser of command lines takes the last type but None.
    credit_method: Method | str | None = field(
        default="uniform",
        metadata={
            "help": "How the advantage is spread over the tokens: a name from tokencredit.methods(), or a name with "
            "parameters, NAME:PARAMETER=VALUE,PARAMETER=VALUE; in Python also a method."
        },
    )
    credit_params: dict[str, Any] | str | None = field(
        default_factory=dict,
        metadata={"help": "Parameters of the credit method, as a JSON object; none that credit_method gives already."},
    )
    credit_timing: str = field(
        default="rollout",
        metadata={
            "help": "Whose signals are read: 'rollout', those of the policy that generated, in a pass of TRL's where "
            "one shows them; or 'loss', those of the policy at each update, always in the pass of the loss."
        },
    )
    credit_outcome: str = field(
        default="trainer",
        metadata={
            "help": "The outcome advantage that is spread: 'trainer' (GRPO's own, as scale_rewards has it), or 'grpo', "
            "'dr_grpo' or 'rloo' (leave-one-out) of the weighted sum of the rewards."
        },
    )
    credit_splitter: str = field(
        default="phrases",
        metadata={"help": "How reasoning splits into steps: phrases, sentence, newline or paragraph."},
    )
    credit_end_of_reasoning: str = field(
        default="</think>", metadata={"help": "What ends the reasoning in a completion; the answer follows it."}
    )
    credit_answer: str = field(
        default="auto",
        metadata={
            "help": "Where the answer starts: 'auto', behind credit_end_of_reasoning, or at the last \\boxed{ where a "
            "completion has none; 'end_of_reasoning', only the former; or a regular expression, at its last match."
        },
    )
    credit_correct_reward: str | None = field(
        default=None,
        metadata={
            "help": "The reward function that says whether an answer is correct. A method that reads it (attnpo) needs "
            "this where there are several functions."
        },
    )
    credit_correct_threshold: float = field(
        default=1.0, metadata={"help": "An answer is correct from this reward on (for methods that read it)."}
    )
    credit_stop_if_truncated: bool = field(
        default=True,
        metadata={
            "help": "End the run when every completion of its first three generation batches was truncated and all "
            "rewards were equal, as it has nothing to learn from."
        },
    )
    credit_kernels: str = field(
        default="torch",
        metadata={
            "help": "What computes attention statistics: 'torch'; 'fused', faster under SDPA on a CPU, log-probs of "
            "generation batches then equal TRL's up to rounding; or 'triton', on a GPU."
        },
    )

    # Lets the parameters be given as JSON on a command line, as for TRL's own dict arguments.
    _VALID_DICT_FIELDS = [*GRPOConfig._VALID_DICT_FIELDS, "credit_params"]  # noqa: RUF012

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value, valid in (
            ("credit_splitter", self.credit_splitter, tuple(SPLITTERS)),
            ("credit_timing", self.credit_timing, TIMINGS),
            ("credit_outcome", self.credit_outcome, OUTCOMES),
        ):
            if value not in valid:
                raise ValueError(f"{name} must be one of {', '.join(valid)}; got {value!r}")
        check_answer(self.credit_answer)
        kernels_named(self.credit_kernels)
        method = self.build_credit_method()
        self._keep_in_plain_types(method)
        self._check_settings_of_trl(method)
        if self.credit_timing == "loss" and (why := self.why_not_in_loss()):
            raise ValueError(f'{method.name} cannot run with credit_timing="loss": {why}. Use credit_timing="rollout"')

    def _check_settings_of_trl(self, method: Method) -> None:
        """Raise a ValueError where a setting of TRL's would undo credit, or be ignored."""
        if self.importance_sampling_level == "sequence" and not isinstance(method, Uniform):
            raise ValueError(
                f'importance_sampling_level="sequence" (GSPO) averages the advantages of a completion, so the tokens '
                f'that {method.name} credits would not matter: use importance_sampling_level="token", or '
                'credit_method="uniform"'
            )
        if self.credit_outcome != "trainer" and self.multi_objective_aggregation != "sum_then_normalize":
            raise ValueError(
                f"credit_outcome={self.credit_outcome!r} takes the weighted sum of the rewards, and would ignore "
                f"multi_objective_aggregation={self.multi_objective_aggregation!r}: use "
                'multi_objective_aggregation="sum_then_normalize", or credit_outcome="trainer"'
            )
        check_parallelism(self.parallelism_config, method)

    def build_credit_method(self) -> Method:
        """The method that `credit_method` and `credit_params` say."""
        params = self.credit_params or None
        if params is not None and not isinstance(params, dict):
            raise ValueError(f"credit_params must be a JSON object; got {params!r:.80}")
        try:
            return method_of(self.credit_method, params)
        except ValueError as error:
            twice = params and (not isinstance(self.credit_method, str) or ":" in self.credit_method)
            raise ValueError(f"credit_method and credit_params: {error}" if twice else str(error)) from None

    def _keep_in_plain_types(self, method: Method) -> None:
        """Settings are written as JSON, logged, and pickled beside each checkpoint."""
        named = name_and_parameters(method)
        if named is None:
            check_pickles(method)
        elif isinstance(self.credit_method, str) and ":" not in self.credit_method:
            self.credit_params = plain(self.credit_params or {})
        else:
            self.credit_method, self.credit_params = named

    def to_dict(self) -> dict[str, Any]:
        settings = super().to_dict()
        if not isinstance(self.credit_method, str):
            settings["credit_method"], settings["credit_params"] = described(self.build_credit_method())
        return settings

    def why_not_in_loss(self) -> str:
        """Why the credit method cannot be read in the forward pass of the loss; empty where it can."""
        needs = self.build_credit_method().needs
        if beyond := unobservable(needs):
            return f"it reads {beyond}, which the forward pass of the loss does not show"
        if needs.group:
            return "it looks at whole groups, and a micro-batch of the loss may hold a part of one"
        if needs.reference_logprob and self.beta == 0.0:
            return "it compares with the reference, whose log-probs are there with beta > 0 only"
        if (needs.logits or needs.reference_logprob) and self.temperature != 1.0:
            return f"it reads log-probs, and those of the loss are at temperature {self.temperature}"
        return ""
