"""Puts this room and `checkpoint_models` on the path. On tiny models a second thread only makes torch slower."""

import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
for folder in (HERE, HERE.parent / "checkpoint"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

torch.set_num_threads(1)
