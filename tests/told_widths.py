"""A table of times by width that is told, not measured."""

from __future__ import annotations

from typing import Any

import keras

from dprp_tf.channels import follow
from dprp_tf.costs.width_latency import CostGrid, WidthLatency
from dprp_tf.costs.width_table import WidthTable


def told_widths(model: keras.Model, decomposition: str | None, **place: Any) -> WidthTable:
    """Return times of which each layer takes a share by the channels read times those made.

    Args:
        model: The model.
        decomposition: That of the stages; None for widths alone.
        **place: Target, runtime, precision and threads.
    """
    rows = []
    for record in follow(model).layers.values():
        if not record.produces:
            continue
        reads, makes = ((size // 4 or 1, size) for size in (record.reads.size, record.makes.size))
        if reads[0] == reads[1]:
            reads = reads[1:]

        def grid(r: tuple[int, ...], m: tuple[int, ...], whole: float) -> CostGrid:
            return CostGrid(r, m, tuple(tuple(a * b / whole for b in m) for a in r))

        whole = float(reads[-1] * makes[-1])
        window = tuple(getattr(record.layer, "kernel_size", ()))
        stages = {}
        if decomposition is not None:
            ranks = (2, 8)
            stages = {
                "decomposition": decomposition,
                "first": grid(reads, ranks, 4 * whole),
                "second": grid(ranks, makes, 4 * whole),
            }
        rows.append(WidthLatency(record.layer.name, window, grid(reads, makes, whole), **stages))
    return WidthTable(
        tuple(rows), dense=1.2 + len(rows), fixed=0.2, unit="ms", processor="some",
        runtime_version="1", **place,
    )  # fmt: skip
