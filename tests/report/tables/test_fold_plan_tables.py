"""A fold plan, the forms it measured, and the other parts that may be absent."""

from __future__ import annotations

from typing import Any

import pytest
from made_runs import (
    make_plan,
)

from dprp_tf.report.tables import (
    measured_forms_table,
    plan_table,
)
from dprp_tf.report.tables.fold_plan import plan_figures, plan_notes


def test_a_plan_is_told_by_its_sums_its_layers_and_its_candidates() -> None:
    plan = make_plan()
    figures = {title: (cell.text, cell.note) for title, cell in plan_figures(plan)}
    assert figures == {
        "Dense, measured": ("0.520 ms", ""),
        "Planned, measured": ("0.352 ms", "\u221232 %"),
        "Planned, predicted": ("0.330 ms", "6.2 % below measured"),
        "Cost ratio": ("0.68\u00d7", "[0.66, 0.69]"),
        "MAC ratio": ("0.60\u00d7", ""),
    }
    layers = plan_table(plan)
    assert [column.title for column in layers.columns] == [
        "Layer",
        "Form",
        "Rank",
        "Dense",
        "Planned",
        "Reason",
    ]
    assert [cell.text for cell in layers.rows[0][:4]] == [
        "stage1_block0_conv1",
        "concatenated",
        "3",
        "0.0200 ms",
    ]
    candidates = measured_forms_table(plan)
    assert [column.title for column in candidates.columns][1:] == [
        "Dense",
        "Summed",
        "Concatenated",
        "Channel",
    ]
    for row, layer in zip(candidates.rows, plan["layers"], strict=True):
        marked = [
            column.title.lower()
            for column, cell in zip(candidates.columns, row, strict=True)
            if "\u2713" in cell.text
        ]
        assert marked == [layer["form"]]
    assert candidates.rows[0][4].text == "\u2013"
    assert plan_notes(plan) == plan["notes"]


def test_a_slower_and_underestimated_plan_says_so() -> None:
    plan = {**make_plan(), "planned_cost_measured": 0.6, "planned_cost_predicted": 0.75}
    cells = dict(plan_figures(plan))
    assert (cells["Planned, measured"].note, cells["Planned, measured"].tone) == ("+15 %", "worse")
    assert cells["Planned, predicted"].note == "25 % above measured"


def test_of_one_form_at_several_ranks_the_chosen_stands_in_the_table() -> None:
    layer = {
        "name": "conv",
        "form": "channel",
        "ranks": [4],
        "candidates": [
            {"form": "dense", "ranks": [], "ratio": 1.0},
            {"form": "channel", "ranks": [4], "ratio": 0.7},
            {"form": "channel", "ranks": [2], "ratio": 0.5},
            {"form": "separable", "ranks": [8], "ratio": 0.9},
            {"form": "separable", "ranks": [6], "ratio": 0.8},
        ],
    }
    (row,) = measured_forms_table({"layers": [layer]}).rows
    assert [cell.text for cell in row] == ["conv", "1\u00d7", "\u2713 0.70\u00d7", "0.80\u00d7"]


def test_a_plan_in_instructions_has_no_milliseconds() -> None:
    plan = {**make_plan(), "unit": "instructions", "dense_cost": 9_412_345}
    assert dict(plan_figures(plan))["Dense, measured"].text == "9.41 M"
    plan["layers"][0]["dense_cost"] = 1_200_000
    assert plan_table(plan).rows[0][3].text == "1.20 M"


@pytest.mark.parametrize(
    ("ranks", "said"),
    [([3], "3"), ([4, 8], "4 \u00d7 8"), ([], "\u2013"), (None, "\u2013"), (5, "5")],
)
def test_ranks_of_any_form_are_told(ranks: Any, said: str) -> None:
    layers = [{"name": "a", "ranks": ranks}, {"name": "b", "ranks": [1]}]
    assert plan_table({"layers": layers}).rows[0][1].text == said
