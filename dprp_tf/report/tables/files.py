"""Size, accuracy, latency and parity of every file of a run, format by format."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dprp_tf.report.formatting import (
    DASH,
    TIMES,
    clean_name,
    error_text,
    interval_ends,
    number,
    percent_text,
    size_text,
)
from dprp_tf.report.loading import mapping, records
from dprp_tf.report.tables.cells import (
    Cell,
    Column,
    Table,
    accuracy_cell,
    latency_cell,
    less_is_better_cell,
    ratio_cell,
    without_empty_columns,
)
from dprp_tf.report.tables.models import BASELINE, baseline_first, model_label

__all__ = ["files_by_format", "files_table"]

_COLUMNS = (
    Column("Format"),
    Column("Model"),
    Column("Size", numeric=True),
    Column("Accuracy", numeric=True),
    Column(
        "Latency",
        numeric=True,
        note="Latency is the median of one inference, below it the 10th to 90th percentile.",
    ),
    Column(
        "Latency ratio",
        numeric=True,
        note="The ratio to the dense file of the same format comes from interleaved runs, with its "
        "interval; it can differ from the quotient of the medians.",
    ),
    Column("Peak memory", numeric=True),
    Column(
        "Max. error",
        numeric=True,
        note="Max. error is the largest difference of an output from the Keras model's, on real "
        "inputs.",
    ),
    Column("Same top-1", numeric=True),
)


def files_table(results: Mapping[str, Any]) -> Table:
    """Lay out size, accuracy, latency and parity of every file, grouped by format.

    Args:
        results: Content of `results.json`.

    Returns:
        The table; in each format the dense file first; columns that no file fills are left out.

    Raises:
        ValueError: If `files` isn't a list of objects.

    Example:

    >>> table = files_table({"files": [
    ...     {"model": "dense", "format": "TFLite int8", "size_bytes": 1000},
    ...     {"model": "dprp", "format": "TFLite int8", "size_bytes": 600}]})
    >>> [column.title for column in table.columns], table.rows[1][2].note
    (['Format', 'Model', 'Size'], '−40 %')
    """
    labels = {str(m.get("name")): model_label(m) for m in records(results, "models")}
    rows: list[list[Cell]] = []
    starts = []
    for format_name, files in files_by_format(results).items():
        starts.append(len(rows))
        baseline = files[0] if files[0].get("model") == BASELINE else {}
        for file in files:
            model = str(file.get("model", DASH))
            label = labels.get(model) or model_label({"name": model})
            name = Cell(label, clean_name(file.get("file") or ""))
            rows.append([Cell(format_name), name, *_figures(file, baseline)])
    return without_empty_columns("Files", _COLUMNS, rows, starts)


def files_by_format(results: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the files of each format in order of appearance, the dense file first."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for file in records(results, "files"):
        groups.setdefault(clean_name(file.get("format", "unnamed format")), []).append(file)
    return {name: baseline_first(files, "model") for name, files in groups.items()}


def _figures(file: Mapping[str, Any], baseline: Mapping[str, Any]) -> list[Cell]:
    """Show what was measured of a file; the dense file of the format shows no changes."""
    reference = {} if file is baseline else baseline
    latency = mapping(file, "latency_ms")
    size, memory = (
        less_is_better_cell(file.get(key), reference.get(key), size_text)
        for key in ("size_bytes", "peak_memory_bytes")
    )
    return [
        size,
        accuracy_cell(file.get("accuracy"), reference.get("accuracy")),
        latency_cell(*(latency.get(key) for key in ("median", "p10", "p90"))),
        _ratio_cell(file),
        memory,
        _error_cell(file),
        Cell(percent_text(file.get("top1_agreement"))),
    ]


def _ratio_cell(file: Mapping[str, Any]) -> Cell:
    if math.isnan(number(file.get("latency_ratio"))):
        is_reference = file.get("model") == BASELINE and mapping(file, "latency_ms")
        return Cell(f"1{TIMES}" if is_reference else DASH)
    return ratio_cell(file["latency_ratio"], *interval_ends(file.get("latency_ratio_interval")))


def _error_cell(file: Mapping[str, Any]) -> Cell:
    verified = file.get("verified")
    note = "" if verified is None else "verified" if verified is True else "NOT VERIFIED"
    return Cell(error_text(file.get("max_error")), note, "worse" if note.isupper() else "")
