"""Signals are read from models, in a forward pass, without touching them. They know nothing of methods."""

from tokencredit.signals.collect import causal_lm, check_adapter, collect
from tokencredit.signals.types import DistanceNeed, Needs, Signals

__all__ = ["DistanceNeed", "Needs", "Signals", "causal_lm", "check_adapter", "collect"]
