"""Signals are read from models, in a forward pass, without touching them. They know nothing of methods."""

from tokencredit.signals.attention_kernels import kernels_named
from tokencredit.signals.attention_plan import check_attention
from tokencredit.signals.collect import collect, reward_model_for
from tokencredit.signals.identity import check_models, model_signature
from tokencredit.signals.layers import ModelLayers
from tokencredit.signals.observe import observe, unobservable
from tokencredit.signals.policy import causal_lm, check_adapter
from tokencredit.signals.reward_model import RewardModel
from tokencredit.signals.types import DistanceNeed, FullAttentionLayer, Needs, RewardNeed, Signals

__all__ = [
    "DistanceNeed",
    "FullAttentionLayer",
    "ModelLayers",
    "Needs",
    "RewardModel",
    "RewardNeed",
    "Signals",
    "causal_lm",
    "check_adapter",
    "check_attention",
    "check_models",
    "collect",
    "kernels_named",
    "model_signature",
    "observe",
    "reward_model_for",
    "unobservable",
]
