"""Token-level credit assignment for reinforcement learning of reasoning language models."""

from importlib.metadata import version

from tokencredit import outcome
from tokencredit.assignment import assign
from tokencredit.credit import Credit
from tokencredit.heads import HeadRank, rank_heads
from tokencredit.methods import Method, method, methods
from tokencredit.rollouts import Rollouts
from tokencredit.signals import Needs, RewardModel, Signals, collect
from tokencredit.steps import mark_spans

__all__ = [
    "Credit",
    "HeadRank",
    "Method",
    "Needs",
    "RewardModel",
    "Rollouts",
    "Signals",
    "assign",
    "collect",
    "mark_spans",
    "method",
    "methods",
    "outcome",
    "rank_heads",
]

__version__ = version("tokencredit")
