"""Is the credit right? Scores of credit against ground truth, for any model's completions."""

from tokencredit.audit.audit import Audit, AuditRow, Estimate, Score, audit, signs
from tokencredit.audit.truth import Truth

__all__ = ["Audit", "AuditRow", "Estimate", "Score", "Truth", "audit", "signs"]
