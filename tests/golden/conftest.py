"""Makes the modules of this folder importable by the tests in it, as they are when `record.py` is run by hand."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
