"""Puts tests/ on the path, so that every room's tests can import `models` and `tolerances`."""

import sys
from pathlib import Path

HERE = str(Path(__file__).resolve().parent)
if HERE not in sys.path:
    sys.path.insert(0, HERE)
