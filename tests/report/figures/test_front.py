"""What the figure of a search for the best file shows."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from drawn_figures import DENSE, DPRP, assert_nothing_clipped, label_boxes
from matplotlib.colors import to_hex

from dprp_tf.report.errors import NothingToPlotError
from dprp_tf.report.figures.front import describe_front, plot_front
from dprp_tf.report.figures.tradeoff import plot_tradeoff


def _results() -> dict[str, Any]:
    def row(label: str, score: float, time: float, size: float, **more: Any) -> dict[str, Any]:
        return {"label": label, "score": score, "time": time, "size": size, **more}

    return {
        "front": [
            row("TFLite int8, dense", 0.87, 1.0, 1.0, dense=True),
            row("TFLite float32, dense", 0.872, 2.4, 3.7, dense=True),
            row("channels and ranks, 0.50", 0.868, 0.52, 0.4, best=True),
            row("channels and ranks, 0.35", 0.85, 0.36, 0.25),
            row("ranks, 0.65", 0.84, 0.7, 0.5, beaten=True),
            row("narrower, from scratch, 0.55", 0.83, 0.55, 0.45, beaten=True, narrow=True),
        ],
        "search": [
            {"stage": "cut", "label": "ranks, 0.65", "score": 0.82, "time": 0.65},
            {"stage": "cut", "label": "ranks, 0.20", "score": 0.1, "time": 0.2},
            {"stage": "cut", "label": "ranks, 0.05", "state": "missed"},
            {"stage": "finished", "label": "ranks, 0.65", "score": 0.84, "time": 0.7},
        ],
        "wish": {"least_score": 0.865},
    }


def test_every_file_is_a_point_whose_area_is_its_bytes() -> None:
    results = _results()
    figure = plot_front(results)
    (axes,) = figure.axes
    candidates, *files = axes.collections
    assert [tuple(point.get_offsets()[0]) for point in files] == [
        (row["time"], row["score"]) for row in results["front"]
    ]
    areas = [float(point.get_sizes()[0]) for point in files]
    sizes = [row["size"] for row in results["front"]]
    assert np.allclose(np.array(areas) / areas[1], np.maximum(np.array(sizes) / 3.7, 24 / 420))
    # What no file was made of; far below the rest, none is drawn.
    assert candidates.get_offsets().tolist() == [[0.65, 0.82]]
    colours = [to_hex(point.get_facecolor()[0]) for point in files]
    assert colours[:3] == [DENSE, DENSE, DPRP]
    assert_nothing_clipped(figure)


def test_times_that_span_much_are_drawn_on_a_logarithmic_axis() -> None:
    results = _results()
    axes = plot_front(results).axes[0]
    assert axes.get_xscale() == "log"
    low, high = axes.get_xlim()
    assert {0.5, 1, 2} <= {tick for tick in axes.get_xticks() if low < tick < high}
    near = {**results, "front": results["front"][2:]}
    assert plot_front(near).axes[0].get_xscale() == "linear"


def test_a_line_joins_what_no_other_beats_and_another_is_the_accuracy_wished() -> None:
    (axes,) = plot_front(_results()).axes
    wished, joined = axes.lines
    assert set(wished.get_ydata()) == {0.865}
    assert joined.get_xdata().tolist() == [0.36, 0.52, 1.0, 2.4]


def test_what_is_worth_a_look_is_labelled_and_no_label_covers_another() -> None:
    results = _results()
    (axes,) = plot_front(results).axes
    told = {text.get_text() for text in axes.texts}
    assert told == {
        ("best: " if row.get("best") else "") + row["label"]
        for row in results["front"]
        if row.get("narrow") or not row.get("beaten")
    }
    assert not any(a.overlaps(b) for a, b in itertools.combinations(label_boxes(axes), 2))


def test_of_a_search_the_front_is_drawn_instead_of_one_trade_off_per_format() -> None:
    files = [{"model": "dense", "format": "A", "accuracy": 0.5, "size_bytes": 7}]
    with pytest.raises(NothingToPlotError):
        plot_tradeoff({**_results(), "files": files})
    assert plot_tradeoff({"files": files}).axes
    with pytest.raises(NothingToPlotError):
        plot_front({"files": files})


def test_its_words_name_the_best() -> None:
    assert describe_front(_results()) == (
        "Scatter plot of accuracy against time of 6 files. The best is channels and ranks, 0.50."
    )
