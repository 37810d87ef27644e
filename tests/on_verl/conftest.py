"""verl on the CPU, in this process: one worker's engine, without Ray."""

from __future__ import annotations

import os

# verl looks at these when it is imported.
os.environ.setdefault("VERL_PLATFORM", "cpu")
os.environ.setdefault("VERL_USE_EXTERNAL_MODULES", "cpu_platform")
os.environ.setdefault("RECORDINGS", "")
