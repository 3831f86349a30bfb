"""The table of a search's steps."""

from __future__ import annotations

from typing import Any

from dprp_tf.report.formatting import DASH, MINUS
from dprp_tf.report.tables.search import search_table


def _rows(*steps: dict[str, Any]) -> list[list[str]]:
    table = search_table({"search": list(steps), "wish": {"dense_score": 0.9}})
    return [[cell.text for cell in row] for row in table.rows]


def test_each_step_is_a_row_with_what_is_known_of_it() -> None:
    cut = {"number": 3, "stage": "cut", "label": "both, 0.50", "state": "complete"}
    cut |= {"score": 0.85, "time": 0.5, "size": 0.4, "seconds": 12.0}
    tuned = {**cut, "number": 4, "stage": "tuned", "of": 3, "epochs": 2.0, "score": 0.88}
    missed = {"number": 5, "stage": "cut", "label": "ranks, 0.10", "state": "missed"}
    again = {**tuned, "number": 6, "stage": "finished", "goes_on": True, "epochs": 0.25}
    last = ("0.25", "12.0 s")
    assert _rows(cut, tuned, missed, again) == [
        ["3", "cut", "both, 0.50", DASH, "85.00 %", "0.50", "0.40", DASH, "12.0 s"],
        ["4", "tuned", "both, 0.50", "3", "88.00 %", "0.50", "0.40", "2", "12.0 s"],
        ["5", "cut", "ranks, 0.10: no such cut", DASH, DASH, DASH, DASH, DASH, DASH],
        ["6", "finished", "both, 0.50, gone on with", "3", "88.00 %", "0.50", "0.40", *last],
    ]


def test_what_was_lost_is_told_in_points_and_other_runs_have_no_rows() -> None:
    step = {"number": 0, "stage": "cut", "label": "a", "state": "complete", "score": 0.85}
    table = search_table({"search": [step], "wish": {"dense_score": 0.9}})
    (cell,) = (cell for cell in table.rows[0] if cell.text == "85.00 %")
    assert (cell.note, cell.tone) == (f"{MINUS}5.00 pt", "worse")
    assert search_table({}).rows == ()
    assert _rows({**step, "state": "running"})[0][2] == "a: running"
