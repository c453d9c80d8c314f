"""Mixtures of experts that do not fit together: one error that names the instruction, before anything runs."""

from __future__ import annotations

from typing import Any

import models
import numpy as np
import pytest

from llama_ext import _core

CONFIG = models.maverick_config(4, num_local_experts=3, num_experts_per_tok=2)
PROGRAM = models.build(CONFIG, models.random_weights(CONFIG))
FIELDS = {
    _core.Route: ("layer", "norm", "router", "eps", "top_k", "scoring"),
    _core.ExpertsGateUp: ("layer", "gate", "up", "shared_gate", "shared_up", "scale_input"),
    _core.ExpertsDown: ("layer", "down", "shared_down", "scale_output"),
}
ROUTE, GATE_UP, DOWN = FIELDS


def spoilt(*changes: tuple[type, dict[str, Any]], mixture: int = 0, max_rows: int = 8) -> _core.Program:
    """The program with fields of the instructions of one of its two mixtures replaced."""
    native = PROGRAM.native
    code = list(native.code)
    for kind, fields in changes:
        at = [k for k, i in enumerate(code) if isinstance(i, kind)][mixture]
        code[at] = kind(**{name: getattr(code[at], name) for name in FIELDS[kind]} | fields)
    return _core.Program(
        vocab=native.vocab,
        hidden=native.hidden,
        max_context=native.max_context,
        max_rows=max_rows,
        ropes=native.ropes,
        caches=native.caches,
        code=code,
    )


def parts(kind: type, field: str) -> list[_core.Weight]:
    found: list[_core.Weight] = getattr(next(i for i in PROGRAM.code if isinstance(i, kind)), field)
    return list(found)


def of_shape(rows: int, cols: int) -> _core.Weight:
    return models.native_weight("odd", np.zeros((rows, cols), np.float32))


GATES, DOWNS = parts(GATE_UP, "gate"), parts(DOWN, "down")
SPOILT: list[tuple[type, dict[str, Any], str]] = [
    (ROUTE, {"norm": None}, "route of layer 1: norm is missing"),
    (ROUTE, {"router": None}, "route of layer 1: router is missing"),
    (ROUTE, {"router": of_shape(3, 40)}, r"router \(odd\) is \[3, 40\], expected \[3, 32\]"),
    (ROUTE, {"router": of_shape(4, 32)}, "gate has 3 experts, the router 4"),
    (ROUTE, {"top_k": 0}, "top_k 0 is not from 1 to the 3 experts"),
    (ROUTE, {"top_k": -1}, "top_k -1"),
    (ROUTE, {"top_k": 4}, "top_k 4"),
    (ROUTE, {"layer": -1}, "route: layer must be 0 to 65535, is -1"),
    (ROUTE, {"layer": 2**31 - 1}, "layer must be 0 to 65535, is 2147483647"),
    (ROUTE, {"layer": 2}, "experts_gate_up of layer 1: its route is of layer 2"),
    (GATE_UP, {"layer": 0}, "experts_gate_up of layer 0: its route is of layer 1"),
    (GATE_UP, {"gate": []}, "gate is missing"),
    (GATE_UP, {"gate": [None, *GATES[1:]]}, "gate is missing"),
    (GATE_UP, {"gate": [*GATES[:2], None]}, "gate of expert 2 is missing"),
    (GATE_UP, {"gate": GATES[:2]}, "gate has 2 experts, the router 3"),
    (GATE_UP, {"up": [*GATES, GATES[0]]}, "up has 4 experts, the router 3"),
    (GATE_UP, {"up": [*GATES[:2], of_shape(40, 32)]}, r"up of expert 2 \(odd\) is \[40, 32\], expected \[48, 32\]"),
    (GATE_UP, {"shared_up": None}, "shared gate and up go together"),
    (GATE_UP, {"shared_gate": of_shape(80, 32)}, r"shared_gate \(odd\) is \[80, 32\], expected \[48, 32\]"),
    (
        GATE_UP,
        {"shared_gate": None, "shared_up": None},
        "experts_down of layer 1: shared gate, up and down go together",
    ),
    (DOWN, {"layer": 3}, "experts_down of layer 3: its experts_gate_up is of layer 1"),
    (DOWN, {"down": DOWNS[:2]}, "down has 2 experts, the router 3"),
    (DOWN, {"down": GATES}, r"down of expert 0 .*expected \[32, 48\]"),
    (DOWN, {"shared_down": None}, "shared gate, up and down go together"),
]


@pytest.mark.parametrize(("kind", "fields", "said"), SPOILT, ids=lambda v: str(v)[:40])
def test_every_wrong_field_is_named(kind: type, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        spoilt((kind, fields))


def test_two_mixtures_of_one_layer() -> None:
    """The one without a shared expert would be given the other's."""
    assert len(spoilt().code) == len(PROGRAM.code)
    same = [(kind, {"layer": 1}) for kind in FIELDS]
    bare: list[tuple[type, dict[str, Any]]] = [
        (GATE_UP, {"shared_gate": None, "shared_up": None}),
        (DOWN, {"shared_down": None}),
    ]
    spoilt(*bare)
    with pytest.raises(ValueError, match="route of layer 1: this layer has another mixture of experts"):
        spoilt(*same, mixture=1)


def test_entries_are_counted_in_32_bits() -> None:
    experts = 40_000
    router = of_shape(experts, CONFIG.hidden_size)
    many: list[tuple[type, dict[str, Any]]] = [
        (ROUTE, {"router": router, "top_k": experts}),
        (GATE_UP, {"gate": GATES[:1] * experts, "up": GATES[:1] * experts}),
        (DOWN, {"down": DOWNS[:1] * experts}),
    ]
    spoilt(*many)
    with pytest.raises(ValueError, match="max_rows 60000 times top_k 40000 is too many"):
        spoilt(*many, max_rows=60_000)


def test_sizes_that_no_memory_holds() -> None:
    """Weights that are made on demand claim 2^65 bytes together; the sum must not wrap to what there is."""

    def made(rows: int, cols: int) -> _core.Weight:
        def make() -> Any:
            raise AssertionError("nothing is to be made")

        return _core.Weight("vast", "F32", rows, cols, make)

    experts, hidden, inner = 4096, 1 << 24, 1 << 24
    norm = made(1, hidden)
    code: list[Any] = [
        _core.Embed(table=made(1, hidden)),
        _core.Route(layer=0, norm=norm, router=made(experts, hidden), eps=1e-5, top_k=1, scoring="softmax"),
        _core.ExpertsGateUp(
            layer=0,
            gate=[made(inner, hidden) for _ in range(experts)],
            up=[made(inner, hidden) for _ in range(experts)],
        ),
        _core.ExpertsDown(layer=0, down=[made(hidden, inner) for _ in range(experts)]),
        _core.Head(norm=norm, weight=made(1, hidden), eps=1e-5),
        _core.Sample(),
    ]
    program = _core.Program(vocab=1, hidden=hidden, max_context=1, max_rows=1, ropes=[], caches=[], code=code)
    with pytest.raises(MemoryError):
        _core.Executor.measure(program, threads=1)
    with pytest.raises(MemoryError):
        _core.Executor(program, threads=1)


@pytest.mark.parametrize("threads", [0, -1, 2**31 - 1])
def test_measuring_for_impossible_threads(threads: int) -> None:
    with pytest.raises(ValueError, match=f"threads must be 1 to 65536, is {threads}"):
        _core.Executor.measure(PROGRAM.native, threads=threads)


@pytest.mark.parametrize("name", ["scout", "mixtral", "global"])
def test_columns_of_the_listing_stand_below_one_another(name: str) -> None:
    config = models.variants()[name]
    program = models.build(config, models.random_weights(config))
    _, heading, *lines = program.listing().splitlines()
    operands, end = heading.index("operands"), len(heading)
    assert len(lines) > 8 and all(len(line) == end for line in lines)
    for line in lines:
        assert line[operands - 1] == " " and line[operands] != " ", line
