"""Token-level credit assignment for reinforcement learning of reasoning language models."""

from importlib.metadata import version

from tokencredit import outcome
from tokencredit.ablation import ablate_steps
from tokencredit.assignment import assign
from tokencredit.credit import Credit, additive, multiplicative, salience_weights
from tokencredit.head_files import HeadFile, HeadRank
from tokencredit.heads import group_heads, head_stability, rank_heads
from tokencredit.methods import Method, method, methods
from tokencredit.rollouts import Rollouts
from tokencredit.shading import show
from tokencredit.signals import Needs, RewardModel, Signals, collect
from tokencredit.steps import mark_spans

__all__ = [
    "Credit",
    "HeadFile",
    "HeadRank",
    "Method",
    "Needs",
    "RewardModel",
    "Rollouts",
    "Signals",
    "ablate_steps",
    "additive",
    "assign",
    "collect",
    "group_heads",
    "head_stability",
    "mark_spans",
    "method",
    "methods",
    "multiplicative",
    "outcome",
    "rank_heads",
    "salience_weights",
    "show",
]

__version__ = version("tokencredit")
