"""Products on tensor cores on a card of the virtual GPU (cuda_worker.py), in the card's process."""

from __future__ import annotations

from cases_product import packed, step_of
from cuda_worker import Array, Card, cuda


def norm_and_product(
    format: str, x: Array, norm: Array, data: Array, captured: bool = False, image: bytes | None = None
) -> Array:
    """x + W rms_norm(x) of rows, in place.  data: of a square W, as in a checkpoint"""
    card = Card(image)
    rows, cols = x.shape
    stream, normed, step = card.upload(x), card.output(x.size), card.upload(step_of(rows))
    weight = card.upload(packed(format, cols, cols, data))
    plan = cuda.rms_norm(x=stream, weight=card.upload(norm), y=normed, rows=rows, n=cols, eps=1e-5)
    plan += cuda.product_tiles(
        weight=weight,
        format=format,
        rows=cols,
        cols=cols,
        step=step,
        max_rows=rows,
        x=normed,
        epilogue="add",
        y=stream,
    )
    card.run(plan, captured)
    return card.floats(stream).reshape(x.shape)
