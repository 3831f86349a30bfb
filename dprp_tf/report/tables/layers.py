"""What became of every layer: its rank and its parameters, or why it was left as it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dprp_tf.report.formatting import DASH, clean_name, count_text, number
from dprp_tf.report.loading import records
from dprp_tf.report.tables.cells import Cell, Column, Table, less_is_better_cell

__all__ = ["layers_table", "skipped_layers_table"]

_TEXTS = (("Type", "type"), ("Decomposition", "decomposition"), ("Form", "form"))


def layers_table(results: Mapping[str, Any]) -> Table:
    """Lay out form, rank and parameters of every factorized layer, and their sum.

    Args:
        results: Content of `results.json`.

    Returns:
        The table; without rows where the run factorized none.

    Raises:
        ValueError: If `layers` isn't a list of objects.

    Example:

    >>> table = layers_table({"layers": [{"name": "conv", "rank": 3, "full_rank": 9,
    ...     "dense_parameters": 100, "folded_parameters": 40}]})
    >>> [cell.text for cell in table.rows[0]], table.rows[0][1].share
    (['conv', '3 of 9', '100', '40'], 0.3333333333333333)
    """
    layers = records(results, "layers")
    texts = [(t, key) for t, key in _TEXTS if any(layer.get(key) is not None for layer in layers)]
    columns = (
        Column("Layer", code=True),
        *(Column(title) for title, _ in texts),
        Column("Rank of full rank", numeric=True),
        Column("Dense parameters", numeric=True),
        Column("Folded parameters", numeric=True),
    )
    rows = tuple(
        (
            Cell(clean_name(layer.get("name", DASH))),
            *(_text_cell(layer.get(key)) for _, key in texts),
            _rank_cell(layer),
            *_parameter_cells(layer.get("dense_parameters"), layer.get("folded_parameters")),
        )
        for layer in layers
    )
    return Table("Layers", columns, rows, total=_total(layers))


def skipped_layers_table(results: Mapping[str, Any]) -> Table:
    """Lay out the layers that were left as they are, each with the reason.

    Args:
        results: Content of `results.json`.

    Returns:
        The table; without rows where no layer was skipped.

    Raises:
        ValueError: If `skipped` isn't a list of objects.

    Example:

    >>> skipped_layers_table({"skipped": [{"name": "head", "reason": "too small"}]}).rows[0][1].text
    'too small'
    """
    rows = tuple(
        (Cell(clean_name(layer.get("name", DASH))), _text_cell(layer.get("reason")))
        for layer in records(results, "skipped")
    )
    columns = (Column("Layer", code=True), Column("Why it was left as it is"))
    return Table("Skipped layers", columns, rows)


def _text_cell(value: Any) -> Cell:
    return Cell(DASH if value is None else clean_name(value))


def _rank_cell(layer: Mapping[str, Any]) -> Cell:
    pairs = [layer.get(key) for key in ("rank", "full_rank")]
    if all(isinstance(pair, list | tuple) for pair in pairs):
        # Tucker has a rank for each side it cuts.
        return Cell(" of ".join(", ".join(map(count_text, pair or ())) for pair in pairs))
    rank, full = map(number, pairs)
    known = not math.isnan(rank) and full > 0
    share = min(max(rank / full, 0.0), 1.0) if known else None
    return Cell(f"{count_text(rank)} of {count_text(full)}", share=share)


def _parameter_cells(dense: Any, folded: Any) -> tuple[Cell, Cell]:
    return Cell(count_text(dense)), less_is_better_cell(folded, dense, count_text)


def _total(layers: Sequence[Mapping[str, Any]]) -> tuple[Cell, ...]:
    dense, folded = (
        sum(number(layer.get(key)) for layer in layers)
        for key in ("dense_parameters", "folded_parameters")
    )
    if math.isnan(dense + folded):
        return ()
    return Cell("All factorized layers"), *_parameter_cells(dense, folded)
