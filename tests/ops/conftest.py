"""The operators are registered by importing llama_ext.ops; without torch there is nothing to test."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
