"""What attention says about a policy's reasoning: measurements, apart from any training."""

from tokencredit.analysis.perturbation import PerturbationReport, perturb
from tokencredit.analysis.rhythm import (
    Coincidence,
    PeakEntropy,
    RhythmCurves,
    RhythmReport,
    analyse_rhythm,
    rhythm_curves,
)

__all__ = [
    "Coincidence",
    "PeakEntropy",
    "PerturbationReport",
    "RhythmCurves",
    "RhythmReport",
    "analyse_rhythm",
    "perturb",
    "rhythm_curves",
]
