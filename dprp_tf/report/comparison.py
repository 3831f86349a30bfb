"""The tables of a run as plain cells, so that the terminal, Markdown and HTML say the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dprp_tf.report.cells import (
    Cell,
    Column,
    ComparisonTable,
    accuracy_cell,
    latency_cell,
    less_is_better_cell,
    ratio_cell,
    without_empty_columns,
)
from dprp_tf.report.formatting import (
    DASH,
    TIMES,
    clean_name,
    count_text,
    error_text,
    interval_ends,
    number,
    percent_text,
    size_text,
)
from dprp_tf.report.loading import mapping, records

__all__ = [
    "Verdict",
    "baseline_first",
    "files_by_format",
    "files_table",
    "model_label",
    "models_table",
    "verdict",
]

_BASELINE = "dense"


@dataclass(frozen=True)
class Verdict:
    """What the run was meant to show, and whether it did.

    Args:
        achieved: True or False; `None` where the run recorded no verdict.
        text: One or two sentences that say so.
        checks: Name, passed and detail of each check.

    Example:

    >>> Verdict(None, "No verdict.", ()).achieved is None
    True
    """

    achieved: bool | None
    text: str
    checks: tuple[tuple[str, bool, str], ...]


def verdict(results: Mapping[str, Any]) -> Verdict:
    """Read the headline of a run; one failed check is enough to withhold it.

    Args:
        results: Content of `results.json`.

    Returns:
        The verdict; `achieved` is `None` where the run recorded none.

    Raises:
        ValueError: If the headline isn't an object.

    Example:

    >>> verdict({"headline": {"achieved": False, "text": "Slower than dense."}}).text
    'Slower than dense.'
    """
    headline = mapping(results, "headline")
    checks = tuple(
        (
            clean_name(c.get("name", "check")),
            c.get("passed") is True,
            clean_name(c.get("detail", "")),
        )
        for c in records(headline, "checks")
    )
    if "achieved" not in headline:
        return Verdict(None, "This run recorded no verdict.", checks)
    failed = sum(not passed for _, passed, _ in checks)
    claimed = headline["achieved"] is True
    text = clean_name(headline.get("text") or "")
    if claimed and failed:
        text = f"{failed} of {len(checks)} checks failed, so the goal counts as missed. {text}"
    elif not text:
        text = "Every check passed." if claimed else "At least one goal of this run was missed."
    return Verdict(claimed and not failed, text.strip(), checks)


def models_table(results: Mapping[str, Any]) -> ComparisonTable:
    """Lay out accuracy, parameters and MACs of every model beside the dense baseline.

    Args:
        results: Content of `results.json`.

    Returns:
        The table, the baseline first; columns that no model fills are left out.

    Raises:
        ValueError: If `models` isn't a list of objects.

    Example:

    >>> table = models_table({"models": [{"name": "dense", "parameters": 100},
    ...                                  {"name": "dprp", "parameters": 59}]})
    >>> table.rows[1][1]
    Cell(text='59', note='−41 %', tone='better')
    """
    models = baseline_first(records(results, "models"), "name")
    baseline = models[0] if models else {}
    columns = [
        Column("Model"),
        Column("Accuracy", numeric=True),
        Column("Parameters", numeric=True),
        Column("MACs", numeric=True),
        Column("Parameters while training", numeric=True),
    ]
    rows = []
    for model in models:
        reference = {} if model is baseline else baseline
        rows.append(
            [
                Cell(model_label(model)),
                accuracy_cell(model.get("accuracy"), reference.get("accuracy")),
                _cost(model, reference, "parameters", count_text),
                _cost(model, reference, "macs", count_text),
                Cell(count_text(model.get("trained_parameters"))),
            ]
        )
    return without_empty_columns("Models", columns, rows)


def files_table(results: Mapping[str, Any]) -> ComparisonTable:
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
    columns = [
        Column("Format"),
        Column("Model"),
        Column("Size", numeric=True),
        Column("Accuracy", numeric=True),
        Column("Latency", numeric=True),
        Column("Latency ratio", numeric=True),
        Column("Peak memory", numeric=True),
        Column("Max. error", numeric=True),
        Column("Same top-1", numeric=True),
    ]
    labels = {str(m.get("name")): model_label(m) for m in records(results, "models")}
    rows: list[list[Cell]] = []
    starts = []
    for format_name, files in files_by_format(results).items():
        starts.append(len(rows))
        baseline = files[0] if files[0].get("model") == _BASELINE else {}
        for file in files:
            reference = {} if file is baseline else baseline
            model = str(file.get("model", DASH))
            rows.append(
                [
                    Cell(format_name),
                    Cell(
                        labels.get(model) or model_label({"name": model}),
                        clean_name(file.get("file") or ""),
                    ),
                    _cost(file, reference, "size_bytes", size_text),
                    accuracy_cell(file.get("accuracy"), reference.get("accuracy")),
                    _latency_cell(file),
                    _ratio_cell(file),
                    _cost(file, reference, "peak_memory_bytes", size_text),
                    _error_cell(file),
                    Cell(percent_text(file.get("top1_agreement"))),
                ]
            )
    return without_empty_columns("Files", columns, rows, tuple(starts))


def baseline_first(items: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """Return `items` with the dense ones in front, else in their order."""
    return sorted(items, key=lambda item: item.get(key) != _BASELINE)


def files_by_format(results: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the files of each format in order of appearance, the dense file first."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for file in records(results, "files"):
        groups.setdefault(clean_name(file.get("format", "unnamed format")), []).append(file)
    return {name: baseline_first(files, "model") for name, files in groups.items()}


def model_label(model: Mapping[str, Any]) -> str:
    """Return what to call a model: its label, else its name with the usual capitals."""
    name = clean_name(model.get("name", DASH))
    return clean_name(model.get("label") or {"dense": "Dense", "dprp": "DPRP"}.get(name, name))


def _cost(
    item: Mapping[str, Any], reference: Mapping[str, Any], key: str, text: Callable[[Any], str]
) -> Cell:
    return less_is_better_cell(item.get(key), reference.get(key), text)


def _latency_cell(file: Mapping[str, Any]) -> Cell:
    latency = mapping(file, "latency_ms")
    return latency_cell(latency.get("median"), latency.get("p10"), latency.get("p90"))


def _ratio_cell(file: Mapping[str, Any]) -> Cell:
    if math.isnan(number(file.get("latency_ratio"))):
        is_reference = file.get("model") == _BASELINE and mapping(file, "latency_ms")
        return Cell(f"1{TIMES}" if is_reference else DASH)
    return ratio_cell(file["latency_ratio"], *interval_ends(file.get("latency_ratio_interval")))


def _error_cell(file: Mapping[str, Any]) -> Cell:
    verified = file.get("verified")
    note = "" if verified is None else "verified" if verified is True else "NOT VERIFIED"
    return Cell(error_text(file.get("max_error")), note, "worse" if note.isupper() else "")
