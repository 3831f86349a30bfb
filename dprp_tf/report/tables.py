"""The figures of a run for the terminal and for Markdown files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dprp_tf.report.comparison import (
    Cell,
    ComparisonTable,
    files_table,
    models_table,
    verdict,
)
from dprp_tf.report.formatting import clean_name

if TYPE_CHECKING:
    from rich.console import Group

__all__ = ["results_markdown", "results_table"]

_STYLES = {"better": "green", "worse": "yellow", "": "dim"}


def results_table(results: Mapping[str, Any]) -> Group:
    """Lay out verdict, models and files of a run for `rich.print`.

    Args:
        results: Content of `results.json`.

    Returns:
        A renderable: the verdict with its checks, the models table and the files table, each
        only where the run has it.

    Raises:
        ValueError: If a list in `results` doesn't hold objects.

    Example:

    >>> table = results_table({"models": [{"name": "dense", "parameters": 100}]}).renderables[-1]
    >>> table.title, table.row_count
    ('Models', 1)
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
            parts += [Text(), _rich_table(table)]
    return Group(*parts)


def results_markdown(results: Mapping[str, Any]) -> str:
    """Write verdict, models and files of a run as Markdown.

    Args:
        results: Content of `results.json`.

    Returns:
        Markdown text with pipe tables that ends with a line break.

    Raises:
        ValueError: If a list in `results` doesn't hold objects.

    Example:

    >>> results = {"models": [{"name": "dense", "parameters": 100},
    ...                       {"name": "dprp", "parameters": 59}]}
    >>> print(results_markdown(results).splitlines()[-1])
    | DPRP | 59 (−41 %) |
    """
    lines: list[str] = []
    if results.get("title"):
        lines += [f"# {_markdown_text(clean_name(results['title']))}", ""]
    outcome = verdict(results)
    if outcome.achieved is not None:
        word = "Achieved." if outcome.achieved else "Not achieved."
        lines += [f"**{word}** {_markdown_text(outcome.text)}", ""]
    for name, passed, detail in outcome.checks:
        said = f"{name}: {detail}" if detail else name
        lines.append(f"- {'passed' if passed else '**failed**'}: {_markdown_text(said)}")
    if outcome.checks:
        lines.append("")
    for table in (models_table(results), files_table(results)):
        if table.rows:
            lines += [f"## {table.title}", "", *_markdown_rows(table), ""]
    while lines and not lines[-1]:
        lines.pop()
    return "\n".join(lines) + "\n"


def _rich_table(table: ComparisonTable) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    view = Table(title=table.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for column in table.columns:
        view.add_column(
            Text(column.title),
            justify="right" if column.numeric else "left",
            no_wrap=column.numeric,
            overflow="fold",
        )
    for index, row in enumerate(table.rows):
        ends_group = index + 1 in table.starts
        view.add_row(*(_rich_cell(cell) for cell in row), end_section=ends_group)
    return view


def _rich_cell(cell: Cell) -> Any:
    from rich.text import Text

    if not cell.note:
        return Text(cell.text, style=_STYLES[cell.tone] if cell.tone else "")
    return Text.assemble(cell.text, "\n", (cell.note, _STYLES[cell.tone]))


def _markdown_rows(table: ComparisonTable) -> list[str]:
    heads = [_markdown_text(column.title) for column in table.columns]
    rules = ["---:" if column.numeric else "---" for column in table.columns]
    rows = [[_markdown_cell(cell) for cell in row] for row in table.rows]
    return ["| " + " | ".join(cells) + " |" for cells in (heads, rules, *rows)]


def _markdown_cell(cell: Cell) -> str:
    note = cell.note if cell.note.startswith("[") else f"({cell.note})"
    return _markdown_text(f"{cell.text} {note}" if cell.note else cell.text)


def _markdown_text(text: str) -> str:
    for mark in "\\`*_[]|~#":
        text = text.replace(mark, "\\" + mark)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
