"""The tables of a run as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dprp_tf.report.formatting import clean_name
from dprp_tf.report.loading import texts
from dprp_tf.report.tables.cells import Cell, Table
from dprp_tf.report.tables.files import files_table
from dprp_tf.report.tables.models import models_table
from dprp_tf.report.verdict import verdict

__all__ = ["results_markdown"]


def results_markdown(results: Mapping[str, Any]) -> str:
    """Write verdict, models, files and notes of a run as Markdown.

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
    for note in texts(results, "notes"):
        lines += [_markdown_text(clean_name(note)), ""]
    while lines and not lines[-1]:
        lines.pop()
    return "\n".join(lines) + "\n"


def _markdown_rows(table: Table) -> list[str]:
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
