"""What every benchmarked file costs on every target."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dprp_tf.costs.score_scale import ScoreScale
from dprp_tf.report.formatting import (
    DASH,
    TIMES,
    change_text,
    clean_name,
    cost_text,
    milliseconds_text,
    number,
    size_text,
)
from dprp_tf.report.loading import mapping, records
from dprp_tf.report.tables.cells import (
    Cell,
    Column,
    Table,
    latency_cell,
    less_is_better_cell,
    ratio_cell,
    without_empty_columns,
)
from dprp_tf.report.tables.scores import bench_score, score_cell, score_title

__all__ = ["bench_table", "file_name", "file_of_result", "run_label", "run_tables"]

_COLUMNS = (
    Column("Target"),
    Column("File"),
    Column(
        "Latency",
        numeric=True,
        note="Latency is the median of one inference at batch 1, below it the 10th to 90th "
        "percentile.",
    ),
    Column(
        "Instructions (proxy)",
        numeric=True,
        note="An emulated target counts the instructions of one inference, a proxy for time, which "
        "means nothing there.",
    ),
    Column(
        "Ratio",
        numeric=True,
        note="The ratio to the first file comes from files timed in turns in one run, with its "
        "interval.",
    ),
    Column("Size", numeric=True),
)
_BESIDE = (Column("Peak memory", numeric=True), Column("Cold start", numeric=True))


def bench_table(bench: Mapping[str, Any]) -> Table:
    """Lay out cost, ratio, size and score of every file on every target.

    Args:
        bench: Content of `bench.json`.

    Returns:
        The table, grouped by target and threads; ratios and changes are to the first file.
        Columns that nothing fills are left out.

    Raises:
        ValueError: If `bench` isn't of the form that `dprp bench --output` writes.

    Example:

    >>> table = bench_table({"files": [{"path": "a.onnx", "name": "a.onnx", "size_bytes": 900}],
    ...     "runs": [{"target": "local", "threads": 1, "unit": "ms",
    ...               "results": [{"path": "a.onnx", "median_ms": 0.412}]}]})
    >>> [column.title for column in table.columns]
    ['Target', 'File', 'Latency', 'Size']
    """
    rows: list[list[Cell]] = []
    starts = []
    scale = bench_score(bench)
    for run in records(bench, "runs"):
        starts.append(len(rows))
        rows += _run_rows(records(bench, "files"), run, scale)
    title = score_title(scale)
    note = f"{title}: less is better." if scale.less_is_better else ""
    columns = (*_COLUMNS, Column(title, numeric=True, note=note), *_BESIDE)
    return without_empty_columns("Benchmarks", columns, rows, starts)


def run_tables(bench: Mapping[str, Any]) -> list[Table]:
    """Lay out every run in a table of its own, for where width is scarce.

    Args:
        bench: Content of `bench.json`.

    Returns:
        The parts of `bench_table` without its first column, which is their title instead.

    Raises:
        ValueError: If `bench` isn't of the form that `dprp bench --output` writes.

    Example:

    >>> tables = run_tables({"runs": [{"target": "local", "threads": 1,
    ...                                "results": [{"path": "a.onnx", "median_ms": 0.412}]}]})
    >>> tables[0].title, tables[0].rows[0][0].text
    ('local, 1 thread', 'a.onnx')
    """
    tables = []
    for run in records(bench, "runs"):
        whole = bench_table({**bench, "runs": [run]})
        if whole.rows:
            place = whole.rows[0][0]
            tables.append(
                Table(
                    f"{place.text} ({place.note})" if place.note else place.text,
                    whole.columns[1:],
                    tuple(row[1:] for row in whole.rows),
                )
            )
    return tables


def run_label(run: Mapping[str, Any]) -> str:
    """Return what to call a run: its target and threads.

    Example:

    >>> run_label({"target": "qemu:cortex-a72", "threads": 4})
    'qemu:cortex-a72, 4 threads'
    """
    threads = number(run.get("threads"))
    target = clean_name(run.get("target", DASH))
    if math.isnan(threads):
        return target
    return f"{target}, {threads:.0f} thread{'s' * (threads != 1)}"


def file_of_result(
    files: Sequence[Mapping[str, Any]], index: int, result: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Return the file of a result: by its place, since one path may stand there twice."""
    return {**result, **(files[index] if index < len(files) else {})}


def file_name(file: Mapping[str, Any]) -> str:
    """Return what to call a benchmarked file: its name, else its path."""
    return clean_name(file.get("name") or file.get("path") or DASH)


def _run_rows(
    files: Sequence[Mapping[str, Any]], run: Mapping[str, Any], scale: ScoreScale
) -> list[list[Cell]]:
    results, ratios = records(run, "results"), records(run, "ratios")
    timed = run.get("unit") != "instructions"
    rows = []
    for index, result in enumerate(results):
        file = file_of_result(files, index, result)
        # Changes are to the first file of the run, whose own cells have none.
        base = results[0] if index else {}
        base_file = file_of_result(files, 0, results[0]) if index else {}
        latency = latency_cell(*(result.get(f"{key}_ms") for key in ("median", "p10", "p90")))
        instructions = cost_text(result.get("instructions"), "instructions")
        rows.append(
            [
                Cell(run_label(run), _machine(result)),
                Cell(file_name(file), _runtime(result)),
                latency if timed else Cell(DASH),
                Cell(DASH if timed else instructions),
                _ratio(ratios, index, timed),
                less_is_better_cell(file.get("size_bytes"), base_file.get("size_bytes"), size_text),
                score_cell(file.get(scale.name), base_file.get(scale.name), scale),
                _beside(result, base, "peak_memory_bytes", size_text),
                _beside(result, base, "cold_start_ms", milliseconds_text),
            ]
        )
    return rows


def _beside(
    result: Mapping[str, Any], base: Mapping[str, Any], key: str, text: Callable[[Any], str]
) -> Cell:
    """A cost measured once: its change is told, but judged neither better nor worse."""
    return Cell(text(result.get(key)), change_text(result.get(key), base.get(key)))


def _machine(result: Mapping[str, Any]) -> str:
    machine = mapping(result, "machine")
    said = [machine.get("processor") or machine.get("architecture")]
    cpus = number(machine.get("cpus"))
    if not math.isnan(cpus):
        said.append(f"{cpus:.0f} CPU{'s' * (cpus != 1)}")
    return ", ".join(clean_name(part) for part in said if part)


def _runtime(result: Mapping[str, Any]) -> str:
    return clean_name(f"{result.get('runtime') or ''} {result.get('runtime_version') or ''}")


def _ratio(ratios: Sequence[Mapping[str, Any]], index: int, timed: bool) -> Cell:
    if index >= len(ratios) or len(ratios) < 2:
        return Cell(DASH)
    if index == 0:
        return Cell(f"1{TIMES}")
    entry = ratios[index]
    interval = (entry.get("low"), entry.get("high")) if timed else (None, None)
    return ratio_cell(entry.get("ratio"), *interval)
