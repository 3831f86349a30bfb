"""The tables of a run in the terminal; inputs are synthetic."""

from __future__ import annotations

from typing import Any

import pytest
from made_runs import (
    make_results,
)
from rich.console import Console

from dprp_tf.report import (
    results_markdown,
    results_table,
)


def printed(results: dict[str, Any], width: int = 150) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(results_table(results))
    return capture.get()


def test_the_terminal_shows_verdict_checks_models_and_files() -> None:
    text = printed(make_results())
    assert text.startswith("Achieved. The DPRP file is 41 % smaller")
    assert "\u2713 Faster  ratio 0.63, at most 0.66" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["Dense", "98.61", "%", "272,474", "40,550,000", "\u2013"] in rows
    assert ["DPRP", "98.33", "%", "160,760", "23,900,000", "171,020"] in rows
    assert ["\u22120.28", "pt", "\u221241", "%", "\u221241", "%"] in rows
    assert "dprp_int8.tflite" in text
    assert "0.63\u00d7" in text
    assert "[0.60, 0.66]" in text
    assert "Left out" not in text


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_a_narrow_terminal_cuts_no_figure_and_says_what_it_left_out(width: int) -> None:
    text = printed(make_results(), width)
    assert "\u2026" not in text
    assert max(map(len, text.splitlines())) <= width
    assert "Left out at this width: file names" in text
    for figure in ("1.11 MB", "652 kB", "98.33 %", "0.260 ms", "0.63\u00d7"):
        assert figure in text
    assert ("Max. error" in text.split("Left out")[1]) == (width == 60)


def test_a_file_that_was_not_verified_is_shown_however_narrow_the_terminal() -> None:
    results = make_results()
    results["files"][1]["verified"] = False
    assert "NOT VERIFIED" in printed(results, 80)


def test_a_goal_that_was_missed_is_said_first() -> None:
    text = printed(make_results(achieved=False))
    assert text.startswith("Not achieved. The DPRP file is smaller, but it is not faster")
    assert "\u2717 Faster" in text


def test_markup_in_names_is_printed_as_it_is() -> None:
    results = make_results()
    results["models"][0]["label"] = "[bold red]Dense[/bold red]"
    assert "[bold red]Dense[/bold red]" in printed(results)


def test_an_empty_run_prints_nothing_and_does_not_fail() -> None:
    assert printed({}).strip() == ""
    assert results_markdown({}) == "\n"


def test_the_terminal_shows_notes_last() -> None:
    text = printed({**make_results(), "notes": ["Nothing was [red]cut[/red]."]})
    assert text.rstrip().endswith("Nothing was [red]cut[/red].")
