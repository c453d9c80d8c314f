"""Configs with random fields put in, taken out and swapped: each is read or is one clear error, nothing else."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from typing import Any

import config_files as files
import pytest
from test_config_gguf import FOREIGN_LLAMA4, FOREIGN_MIXTRAL
from test_config_meta import PARAMS

from llama_ext.config import LlamaConfig
from llama_ext.config.presets import PRESETS
from llama_ext.errors import CheckpointError

VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        3,
        7,
        64,
        10**6,
        2**31,
        2**63,
        10**400,
        0.0,
        -0.0,
        0.5,
        1e-40,
        1e300,
        8192.0,
    ),
    *(math.nan, math.inf, -math.inf, "", "x", "llama3", "full_attention", "1e5", [], [None], [1, 0, 1, 0], [[1]]),
    *({}, {"a": 1}, {"rope_type": "llama3"}, ["chunked_attention"] * 4, [True] * 48, (1, 2), b"bytes"),
]
READERS: dict[str, tuple[Callable[[Any], LlamaConfig], list[dict[str, Any]]]] = {
    "huggingface": (LlamaConfig.from_hf, [*files.RELEASED.values(), files.TINY, files.TINY_LLAMA4]),
    "meta": (LlamaConfig.from_meta, list(PARAMS.values())),
    "gguf": (
        lambda values: LlamaConfig.from_gguf(values, {"output.weight"}),
        [
            FOREIGN_LLAMA4,
            FOREIGN_MIXTRAL,
            PRESETS["llama-4-scout"].config.to_gguf(),
            PRESETS["llama-3-8b"].config.to_gguf(),
        ],
    ),
}


def mutate(values: dict[str, Any], keys: list[str], generator: random.Random) -> None:
    nested = [value for value in values.values() if isinstance(value, dict)]
    target = generator.choice([values, *nested])
    for _ in range(generator.choice((1, 1, 2, 4))):
        kind = generator.randrange(4)
        if kind == 0 and target:
            del target[generator.choice(list(target))]
        elif kind == 1:
            target[generator.choice(keys)] = generator.choice(VALUES)
        elif target:
            key = generator.choice(list(target))
            target[key] = target[generator.choice(list(target))] if kind == 2 else generator.choice(VALUES)


@pytest.mark.parametrize("kind", READERS)
def test_any_change_is_read_or_one_error(kind: str) -> None:
    read, bases = READERS[kind]
    keys = sorted({key for base in bases for key in base} | {"rope_parameters", "layer_types", "moe_layers"})
    generator = random.Random(kind)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(4000):
        values = copy.deepcopy(generator.choice(bases))
        mutate(values, keys, generator)
        try:
            config = read(values)
        except CheckpointError as error:
            message = str(error)
            assert message.endswith(".") and "\n" not in message and len(message) < 500, message
            outcomes["refused"] += 1
        else:
            assert config == LlamaConfig.from_gguf(
                config.to_gguf(), set() if config.tie_word_embeddings else {"output.weight"}
            )
            assert config.parameters()[0] >= config.parameters()[1] > 0
            assert all(math.isfinite(f) for f in config.inverse_frequencies())
            outcomes["read"] += 1
    assert min(outcomes.values()) > 300, outcomes
