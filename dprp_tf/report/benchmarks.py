"""What files cost on several targets: a table, and what makes its figures doubtful."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
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
    change_text,
    clean_name,
    cost_text,
    milliseconds_text,
    number,
    size_text,
)
from dprp_tf.report.loading import mapping, records

__all__ = ["BenchWarning", "bench_table", "bench_warnings", "run_label", "run_tables"]


@dataclass(frozen=True)
class BenchWarning:
    """Something that casts doubt on figures, on which, and what to do about it.

    Args:
        kind: What it is in two or three words, such as `"Busy machine"`.
        advice: What to do; empty where nothing is known.
        seen: What was seen, and the runs and files it concerns, such as `"local, 1 thread"`.

    Example:

    >>> BenchWarning("Busy machine", "Stop it.", (("a load of 4", ("local, 1 thread",)),)).kind
    'Busy machine'
    """

    kind: str
    advice: str
    seen: tuple[tuple[str, tuple[str, ...]], ...]


def bench_table(bench: Mapping[str, Any]) -> ComparisonTable:
    """Lay out cost, ratio, size and accuracy of every file on every target.

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
    columns = [
        Column("Target"),
        Column("File"),
        Column("Latency", numeric=True),
        Column("Instructions (proxy)", numeric=True),
        Column("Ratio", numeric=True),
        Column("Size", numeric=True),
        Column("Accuracy", numeric=True),
        Column("Peak memory", numeric=True),
        Column("Cold start", numeric=True),
    ]
    files = records(bench, "files")
    rows: list[list[Cell]] = []
    starts = []
    for run in records(bench, "runs"):
        starts.append(len(rows))
        results, ratios = records(run, "results"), records(run, "ratios")
        for index, result in enumerate(results):
            file = _file(files, index, result)
            # Changes are to the first file of the run, whose own cells have none.
            base_file = _file(files, 0, results[0]) if index else {}
            base = results[0] if index else {}
            timed = run.get("unit") != "instructions"
            rows.append(
                [
                    Cell(run_label(run), _machine(result)),
                    Cell(_name(file), _runtime(result)),
                    latency_cell(*(result.get(f"{key}_ms") for key in ("median", "p10", "p90")))
                    if timed
                    else Cell(DASH),
                    Cell(DASH if timed else cost_text(result.get("instructions"), "instructions")),
                    _ratio(ratios, index, timed),
                    less_is_better_cell(_size(file), _size(base_file), size_text),
                    accuracy_cell(file.get("accuracy"), base_file.get("accuracy")),
                    _beside(result, base, "peak_memory_bytes", size_text),
                    _beside(result, base, "cold_start_ms", milliseconds_text),
                ]
            )
    return without_empty_columns("Benchmarks", columns, rows, starts)


def run_tables(bench: Mapping[str, Any]) -> list[ComparisonTable]:
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
                ComparisonTable(
                    f"{place.text} ({place.note})" if place.note else place.text,
                    whole.columns[1:],
                    tuple(row[1:] for row in whole.rows),
                )
            )
    return tables


def bench_warnings(bench: Mapping[str, Any]) -> list[BenchWarning]:
    """Collect what makes figures doubtful, each once with all the places it concerns.

    Args:
        bench: Content of `bench.json`.

    Returns:
        Targets that failed first, then warnings in order of appearance. Those of one kind and
        with one advice stand together, a figure that differs among them as a range.

    Raises:
        ValueError: If `bench` isn't of the form that `dprp bench --output` writes.

    Example:

    >>> bench_warnings({"failures": [{"target": "ssh://pi@host:22", "threads": 1,
    ...                               "message": "can't be reached"}]})[0].kind
    'Not measured'
    """
    files = records(bench, "files")
    found: dict[tuple[str, str], _Sightings] = {}
    for failure in records(bench, "failures"):
        message = clean_name(failure.get("message", "unknown cause"))
        sightings = found.setdefault(("Not measured", ""), _Sightings())
        sightings.add(message, run_label(failure), files=0, file="")
    for run in records(bench, "runs"):
        results = records(run, "results")
        for index, result in enumerate(results):
            for text in result.get("warnings") or []:
                kind, seen, advice = _split(clean_name(text))
                sightings = found.setdefault((kind, advice), _Sightings())
                name = _name(_file(files, index, result))
                sightings.add(seen, run_label(run), files=len(results), file=name)
    return [
        BenchWarning(kind, advice, sightings.told()) for (kind, advice), sightings in found.items()
    ]


class _Sightings:
    """What was seen where; sentences that differ in one figure become one with a range."""

    def __init__(self) -> None:
        # sentence without its figures -> figures -> run -> (files in it, names of those concerned)
        self._seen: dict[str, dict[tuple[str, ...], dict[str, tuple[int, list[str]]]]] = {}

    def add(self, text: str, run: str, files: int, file: str) -> None:
        figures = tuple(_FIGURE.findall(text))
        runs = self._seen.setdefault(_FIGURE.sub("{}", text.replace("{", "").replace("}", "")), {})
        _, names = runs.setdefault(figures, {}).setdefault(run, (files, []))
        names.append(file)

    def told(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        told = []
        for sentence, by_figures in self._seen.items():
            columns = list(zip(*by_figures, strict=True))
            varying = [place for place, column in enumerate(columns) if len(set(column)) > 1]
            if len(varying) > 1:
                told += [
                    (sentence.format(*figures), _places([runs]))
                    for figures, runs in by_figures.items()
                ]
                continue
            whole = [column[0] for column in columns]
            for place in varying:
                low, *_, high = sorted(columns[place], key=lambda figure: _amount(figure))
                whole[place] = f"{low} to {high}"
            told.append((sentence.format(*whole), _places(list(by_figures.values()))))
        return tuple(told)


_FIGURE = re.compile(r"\d[\d,]*(?:\.\d+)?")


def _amount(figure: str) -> float:
    return float(figure.replace(",", ""))


def _places(sightings: Sequence[Mapping[str, tuple[int, list[str]]]]) -> tuple[str, ...]:
    """Name a run alone where every file of it is concerned, else the files too."""
    concerned: dict[str, tuple[int, list[str]]] = {}
    for runs in sightings:
        for run, (files, names) in runs.items():
            concerned.setdefault(run, (files, []))[1].extend(names)
    return tuple(
        run if len(names) >= files else f"{', '.join(names)} on {run}"
        for run, (files, names) in concerned.items()
    )


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


def _file(
    files: Sequence[Mapping[str, Any]], index: int, result: Mapping[str, Any]
) -> Mapping[str, Any]:
    """The file of a result: by its place, since one path may stand there twice."""
    return {**result, **(files[index] if index < len(files) else {})}


def _name(file: Mapping[str, Any]) -> str:
    return clean_name(file.get("name") or file.get("path") or DASH)


def _size(file: Mapping[str, Any]) -> Any:
    return file.get("size_bytes")


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


def _split(text: str) -> tuple[str, str, str]:
    """Split "Kind: what was seen. What to do." into its parts; other texts are all seen."""
    kind, colon, rest = text.partition(": ")
    if not colon or len(kind) > 32:
        return "Warning", text, ""
    seen, _, advice = rest.partition(". ")
    return kind, seen.removesuffix("."), advice
