"""The tables of a run for the terminal, as wide as it is."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from dprp_tf.files.tables import lay_out
from dprp_tf.report.bench_warnings import bench_warnings
from dprp_tf.report.formatting import clean_name, number
from dprp_tf.report.loading import records, texts
from dprp_tf.report.tables.benchmarks import run_tables
from dprp_tf.report.tables.cells import Cell, Table
from dprp_tf.report.tables.files import files_table
from dprp_tf.report.tables.models import models_table
from dprp_tf.report.verdict import verdict

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, Group, RenderResult
    from rich.table import Table as RichTable
    from rich.text import Text

__all__ = ["bench_report", "front_table", "results_table"]

_NOTES = {
    "file names": ("Model",),
    "runtime": ("File",),
    "latency spread": ("Latency",),
    "ratio interval": ("Latency ratio", "Ratio"),
}
_STYLES = {"better": "green", "worse": "yellow", "": "dim"}


def results_table(results: Mapping[str, Any]) -> Group:
    """Lay out verdict, models and files of a run for `rich.print`.

    Args:
        results: Content of `results.json`.

    Returns:
        A renderable: the verdict with its checks, the models table, the files table and the notes,
        each only where the run has it.

    Raises:
        ValueError: If a list in `results` doesn't hold objects.

    Example:

    >>> from rich.console import Console
    >>> console = Console(width=80)
    >>> with console.capture() as capture:
    ...     console.print(results_table({"models": [{"name": "dense", "parameters": 100}]}))
    >>> "Dense          100" in capture.get()
    True
    """
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = []
    outcome = verdict(results)
    if outcome.achieved is not None:
        word, style = ("Achieved.", "green") if outcome.achieved else ("Not achieved.", "yellow")
        parts.append(Text.assemble((word, f"bold {style}"), " ", outcome.text))
    for name, passed, detail in outcome.checks:
        mark = ("  ✓ ", "green") if passed else ("  ✗ ", "bold yellow")
        parts.append(Text.assemble(mark, name, (f"  {detail}" if detail else "", "dim")))
    for table in (models_table(results), files_table(results)):
        if table.rows:
            parts += [Text(), _FittedTable(table)]
    for note in texts(results, "notes"):
        parts += [Text(), Text(clean_name(note))]
    return Group(*parts)


def front_table(results: Mapping[str, Any]) -> RichTable:
    """Lay out the files of a search for the best one, the fastest first.

    Args:
        results: Content of `results.json`.

    Returns:
        A table for `rich`: each file that no other beats, and the dense ones.

    Raises:
        ValueError: If `front` in `results` doesn't hold objects.

    Example:

    >>> front_table({"front": [{"label": "dense", "score": 0.9, "accuracy": 0.9, "time": 1.0,
    ...     "size": 1.0, "dense": True}]}).row_count
    1
    """
    rows = sorted(
        (row for row in records(results, "front") if row.get("dense") or not row.get("beaten")),
        key=lambda row: number(row.get("time")),
    )
    return lay_out(
        {
            "file": "fold",
            "validation": "right",
            "test": "right",
            "time": "right",
            "bytes": "right",
            "": "left",
        },
        (
            (
                clean_name(row.get("label") or ""),
                f"{number(row.get('score')):.2%}",
                f"{number(row.get('accuracy')):.2%}",
                f"{number(row.get('time')):.2f}",
                f"{number(row.get('size')):.2f}",
                _verdict(row),
            )
            for row in rows
        ),
        title="Files, with time and bytes as shares of the dense file's",
    )


def _verdict(row: Mapping[str, Any]) -> str:
    if row.get("verified") is False:
        return "not verified"
    return "best" if row.get("best") else "will do" if row.get("meets") else ""


def bench_report(bench: Mapping[str, Any]) -> Group:
    """Lay out a benchmark for `rich.print`: a table for each run, and what casts doubt on it.

    Args:
        bench: Content of `bench.json`.

    Returns:
        A renderable that fits the terminal's width.

    Raises:
        ValueError: If a list in `bench` doesn't hold objects.

    Example:

    >>> from rich.console import Console
    >>> console = Console(width=80)
    >>> with console.capture() as capture:
    ...     console.print(bench_report({"files": [{"name": "a.onnx", "size_bytes": 900}],
    ...         "runs": [{"target": "local", "results": [{"median_ms": 0.4}]}]}))
    >>> "a.onnx   0.400 ms   900 B" in capture.get()
    True
    """
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    parts: list[Any] = [
        part for table in run_tables(bench) for part in (_FittedTable(table), Text())
    ]
    for warning in bench_warnings(bench):
        heading = Text.assemble((f"{warning.kind}: ", "bold yellow"), warning.advice)
        parts.append(Padding(heading, (0, 0, 0, 2)))
        for seen, places in warning.seen:
            line = Text.assemble(f"- {seen}", (f" ({'; '.join(places)})", "dim"))
            parts.append(Padding(line, (0, 0, 0, 4)))
    return Group(*parts)


class _FittedTable:
    """A table that leaves out what fits least well into a narrow terminal, and says so."""

    # From the first to leave to the last; a column with a warning in it always stays.
    _LEAVING = (
        "file names",
        "runtime",
        "Cold start",
        "Peak memory",
        "Same top-1",
        "latency spread",
        "Max. error",
        "ratio interval",
    )

    def __init__(self, table: Table) -> None:
        self.table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        titles = [column.title for column in self.table.columns]
        kept_for_warning = {
            title
            for index, title in enumerate(titles)
            if any(row[index].tone == "worse" for row in self.table.rows)
        }
        leaving = [
            name
            for name in self._LEAVING
            if (set(_NOTES.get(name, (name,))) & set(titles) and name not in kept_for_warning)
            and (name != "file names" or "Format" in titles)
        ]
        left_out: list[str] = []
        view = _rich_table(self.table, left_out)
        while leaving and _least_width(view, console, options) > options.max_width:
            left_out.append(leaving.pop(0))
            view = _rich_table(self.table, left_out)
        yield view
        if left_out:
            yield Text(f"  Left out at this width: {', '.join(left_out)}.", style="dim")


def _least_width(view: RichTable, console: Console, options: ConsoleOptions) -> int:
    return console.measure(view, options=options.update_width(10_000)).minimum


def _rich_table(table: Table, left_out: Collection[str]) -> RichTable:
    from rich import box
    from rich.cells import cell_len
    from rich.table import Table as RichTable
    from rich.text import Text

    view = RichTable(
        # As text, in which nothing is markup.
        title=Text(table.title, style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    shown = [index for index, column in enumerate(table.columns) if column.title not in left_out]
    without_note = {title for name in left_out for title in _NOTES.get(name, ())}
    columns = []
    for index in shown:
        column = table.columns[index]
        cells = [
            _rich_cell(
                # The format is named once for its group.
                Cell("") if index == 0 and table.starts and at not in table.starts else row[index],
                with_note=column.title not in without_note,
            )
            for at, row in enumerate(table.rows)
        ]
        heading = Text(column.title.replace(" ", "\n") if column.numeric else column.title)
        texts = [text.plain for text in (heading, *cells)]
        # Names may wrap between words, figures never.
        parts = [part for text in texts for part in (text.splitlines() if index else text.split())]
        view.add_column(
            heading,
            justify="right" if column.numeric else "left",
            no_wrap=index > 0,
            overflow="fold",
            min_width=max(map(cell_len, parts), default=1),
        )
        columns.append(cells)
    for at, row in enumerate(zip(*columns, strict=True)):
        view.add_row(*row, end_section=at + 1 in table.starts)
    return view


def _rich_cell(cell: Cell, with_note: bool) -> Text:
    from rich.text import Text

    if not cell.note or not with_note:
        return Text(cell.text)
    return Text.assemble(cell.text, "\n", (cell.note, _STYLES[cell.tone]))
