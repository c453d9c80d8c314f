"""Experts that lie in the host's memory, here in a buffer of their own, and a pool of slots, run on the card."""

from __future__ import annotations

from typing import Any

import numpy as np
from cuda_worker import Card, cuda
from numpy.typing import NDArray

Array = NDArray[Any]


def contents(layer: int, expert: int, size: int) -> Array:
    """An expert's weights."""
    return np.random.default_rng(1000 * layer + expert).integers(0, 256, size, np.uint8)


def fetch(
    steps: list[tuple[int, list[int]]],
    layers: int,
    experts: int,
    slots: int,
    sizes: list[int],
    slot_bytes: int,
    max_groups: int = 0,
    captured: bool = False,
    image: bytes | None = None,
) -> list[dict[str, Any]]:
    """steps: (layer, the experts that are chosen, ascending; the index `experts` is the shared one).
    sizes: of the experts of each layer.

    -> after each step: `slots`, of each layer and expert its slot or -1 where it is at home; `right`, whether the bytes
    that the layer's table points at are those of its chosen experts; `facts`.
    """
    card = Card(image)
    homes, tables, plans = [], [], []
    state = card.upload(np.frombuffer(cuda.fetch_state(slots=slots, layers=layers), np.uint8))
    pool = cuda.Buffer(card.device, slots * slot_bytes)
    max_groups = max_groups or experts + 1
    count, expert = cuda.Buffer(card.device, 4), cuda.Buffer(card.device, 4 * max_groups)
    for layer, size in enumerate(sizes):
        home = [card.upload(contents(layer, e, size)) for e in range(experts)]
        addresses = np.array([*(buffer.address for buffer in home), 0], np.uint64)
        homes.append(home)
        tables.append(card.upload(addresses))
        plan = cuda.fetch(
            count=count,
            expert=expert,
            max_groups=max_groups,
            experts=tables[-1],
            home=card.upload(addresses[:-1]),
            cards=state,
            layer=layer,
            layers=layers,
            expert_count=experts,
            slots=slots,
            pool=pool,
            slot_bytes=slot_bytes,
            bytes=size,
        )
        executable = cuda.Executable(card.module, plan)
        plans.append(card.stream.capture(executable) if captured else executable)
    results: list[dict[str, Any]] = []
    for layer, chosen in steps:
        card.stream.write(count, np.array([len(chosen)], np.int32))
        card.stream.write(expert, np.array([*chosen, 0][: max(1, len(chosen))], np.int32))
        card.stream.run(plans[layer])
        found = []
        for own, table in enumerate(tables):
            addresses = card.stream.read(table).view(np.uint64)
            places = []
            for e in range(experts):
                address = int(addresses[e])
                slot, rest = divmod(address - pool.address, slot_bytes)
                at_home = address == homes[own][e].address
                places.append(-1 if at_home else slot if rest == 0 and 0 <= slot < slots else -2)
            found.append(places)
        size = sizes[layer]
        right = True
        for e in chosen:
            if e < experts and found[layer][e] >= 0:
                there = card.stream.read(pool.part(found[layer][e] * slot_bytes, size))
                right &= there.tobytes() == contents(layer, e, size).tobytes()
        facts = cuda.fetch_facts(card.stream.read(state).tobytes())
        results.append({"slots": found, "right": right, "facts": facts})
    return results


def count_and_fetch(image: bytes | None = None) -> tuple[Array, Array]:
    """A router chooses, fetch brings what it has chosen, a second fetch of the same finds it there.  -> pool, home"""
    from cases_route import Outputs, step

    card = Card(image)
    experts, hidden, size, slots = 4, 32, 256, 2
    outputs = Outputs(card, 1, experts, hidden, 2, False)
    scratch = cuda.Buffer(card.device, cuda.route_scratch_bytes(max_rows=1, experts=experts))
    card.stream.fill(scratch, 0)
    weights = np.random.default_rng(0).standard_normal((experts, hidden), np.float32)
    packed = cuda.pack(format="F32", rows=experts, cols=hidden, data=weights.view(np.uint8).reshape(-1))
    home_bytes = np.concatenate([contents(0, e, size) for e in range(experts)])
    home = card.upload(home_bytes)
    addresses = np.array([home.address + e * size for e in range(experts)], np.uint64)
    state = card.upload(np.frombuffer(cuda.fetch_state(slots=slots, layers=1), np.uint8))
    pool = cuda.Buffer(card.device, slots * size)
    plan = cuda.route(
        router=card.upload(packed),
        format="F32",
        experts=experts,
        hidden=hidden,
        step=step(card, 1),
        max_rows=1,
        x=card.upload(np.ones(hidden, np.float32)),
        norm=card.upload(np.ones(hidden, np.float32)),
        eps=1e-5,
        top_k=2,
        scoring="softmax",
        shared=False,
        max_groups=outputs.max_groups,
        scratch=scratch,
        **outputs.buffers,
    )
    fetching = {
        "count": outputs.buffers["count"],
        "expert": outputs.buffers["expert"],
        "max_groups": outputs.max_groups,
        "experts": card.upload(np.append(addresses, np.uint64(0))),
        "home": card.upload(addresses),
        "cards": state,
        "layer": 0,
        "layers": 1,
        "expert_count": experts,
        "slots": slots,
        "pool": pool,
        "slot_bytes": size,
        "bytes": size,
    }
    plan += cuda.fetch(**fetching)
    plan += cuda.fetch(**fetching)
    card.run(plan, True)
    facts = cuda.fetch_facts(card.stream.read(state).tobytes())
    assert facts == {"used": 2, "hits": 2, "misses": 2}, facts
    chosen = outputs.read(card)["expert"]
    return card.stream.read(pool).reshape(slots, size), home_bytes.reshape(experts, size)[chosen]


def wrong_fetch(**changes: Any) -> str:
    """The sentence that refuses a fetch, one of whose arguments is wrong."""
    device = cuda.Device()
    big = cuda.Buffer(device, 1 << 20)
    names = ("count", "expert", "experts", "home", "cards", "pool")
    call: dict[str, Any] = {name: big for name in names}
    call.update(max_groups=5, layer=0, layers=2, expert_count=8, slots=4, slot_bytes=512, bytes=272)
    call.update(changes)
    for name in names:
        if isinstance(call[name], int):
            call[name] = big.part(call[name], 1 << 16)
    try:
        cuda.fetch(**call)
    except ValueError as error:
        return str(error)
    raise AssertionError("nothing was refused")
