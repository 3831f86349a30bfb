"""What a training shows after an epoch: figures that are there, and no others."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from dprp_tf.runs.progress import Display


@pytest.mark.parametrize(
    ("logs", "shown"),
    [
        ({"val_accuracy": 0.5, "accuracy": 0.9, "loss": 1.0}, "accuracy 0.500"),
        ({"accuracy": 0.9, "loss": 1.0}, "training accuracy 0.900"),
        ({"loss": 1.25}, "loss 1.250"),
        ({"val_accuracy": float("nan"), "loss": 1.0}, "accuracy not known"),
        ({}, ""),
        (None, ""),
        ({"loss": 1.0, "total_rank": 7.0, "parameters": 1234.0}, "loss 1.000  ranks 7"),
    ],
)
def test_a_missing_figure_is_not_shown_as_one(logs: dict[str, Any] | None, shown: str) -> None:
    text = io.StringIO()
    display = Display(Console(file=text, width=200))
    display.training("tuning", 3).on_epoch_end(0, logs)
    line = text.getvalue()
    assert line.startswith("tuning: epoch 1/3")
    assert shown in line
    assert "nan" not in line


def test_on_a_terminal_a_table_stands_above_the_bars_as_it_is_until_it_is_taken_away() -> None:
    text = io.StringIO()
    console = Console(file=text, width=60, force_terminal=True, color_system=None)
    with Display(console) as display:
        display.step("cutting")
        left = iter(range(100, 0, -1))

        def table() -> str:
            return f"the best so far, {next(left)} left"

        display.show(table)
        display.show(table)
        above = text.getvalue()
        display.show(None)
        text.truncate(0)
        display.step("timing")
        after = text.getvalue()
    # Below it the bar, in one picture.
    assert above.rindex("the best so far") < above.rindex("cutting")
    # It is asked for anew at every refresh.
    assert "the best so far, 100 left" in above
    assert "the best so far, 99 left" in above
    assert "the best so far" not in after.rpartition("timing")[2]


def test_elsewhere_lines_of_what_is_done_are_shown_and_tables_are_not() -> None:
    text = io.StringIO()
    with Display(Console(file=text, width=60)) as display:
        display.show(lambda: "the best so far")
        display.line("3 cut: ranks, 0.50")
    assert text.getvalue() == "3 cut: ranks, 0.50\n"
    with Display(Console(file=text, width=60), quiet=True) as display:
        display.line("nothing")
    assert "nothing" not in text.getvalue()
