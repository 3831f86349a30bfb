"""What each way to quantize a model costs in accuracy and saves in size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dprp_tf.report.formatting import DASH, clean_name, percent_text, size_text
from dprp_tf.report.tables.cells import (
    Cell,
    Column,
    Table,
    accuracy_cell,
    less_is_better_cell,
    without_empty_columns,
)

__all__ = ["quantization_table"]


def quantization_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Lay out accuracy and size of each quantized file beside the first, the float one.

    Args:
        rows: Content of `quantization.json`: `name`, `accuracy`, `bytes`, `compressed_bytes` and
            `agreement` (share of samples with the first file's class) of each.

    Returns:
        The table; columns that no row fills are left out.

    Example:

    >>> table = quantization_table([{"name": "float32", "bytes": 1000},
    ...                             {"name": "int8", "bytes": 270}])
    >>> table.rows[1][1]
    Cell(text='270 B', note='−73 %', tone='better')
    """
    first = rows[0] if rows else {}
    cells = []
    for row in rows:
        base = {} if row is first else first
        cells.append(
            [
                Cell(clean_name(row.get("name", DASH))),
                less_is_better_cell(row.get("bytes"), base.get("bytes"), size_text),
                less_is_better_cell(
                    row.get("compressed_bytes"), base.get("compressed_bytes"), size_text
                ),
                accuracy_cell(row.get("accuracy"), base.get("accuracy")),
                Cell(percent_text(row.get("agreement"))),
            ]
        )
    columns = [
        Column("Quantization"),
        Column("Size", numeric=True),
        Column(
            "Compressed",
            numeric=True,
            note="Compressed is the size of the file in a zip archive.",
        ),
        Column("Accuracy", numeric=True),
        Column(
            "Same top-1",
            numeric=True,
            note="Same top-1 is the share of test samples put into the first row's class.",
        ),
    ]
    return without_empty_columns("Quantization", columns, cells)
