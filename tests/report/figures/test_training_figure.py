"""What the figure of losses and accuracy shows."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from drawn_figures import DENSE, DPRP, assert_nothing_clipped, label_boxes, lines
from made_runs import (
    make_history,
)
from matplotlib.colors import to_hex

from dprp_tf.report import (
    plot_training,
)


def test_training_shows_both_runs_in_their_colours() -> None:
    history = make_history()
    figure = plot_training(history)
    loss, accuracy, terms = figure.axes
    shown = lines(loss)
    runs = history["runs"]
    assert shown["Dense training"].get_ydata().tolist() == [e["loss"] for e in runs["dense"]]
    assert shown["DPRP training"].get_ydata().tolist() == [e["app_loss"] for e in runs["dprp"]]
    assert to_hex(shown["Dense validation"].get_color()) == DENSE
    assert to_hex(shown["DPRP validation"].get_color()) == DPRP
    assert lines(accuracy)["DPRP validation"].get_ydata().tolist() == [
        entry["val_accuracy"] for entry in runs["dprp"]
    ]
    for key, title in (
        ("loss", "Total"),
        ("app_loss", "Application"),
        ("orth_loss", "Orthogonality"),
        ("sort_loss", "Sorting"),
        ("comp_loss", "Compression"),
    ):
        assert lines(terms)[title].get_ydata().tolist() == [entry[key] for entry in runs["dprp"]]
    assert_nothing_clipped(figure)


def test_zero_losses_have_a_place_on_the_logarithmic_axis() -> None:
    figure = plot_training(make_history(60, structure="retraction"))
    axes = figure.axes[2]
    assert axes.get_yscale() == "symlog"
    low, high = axes.get_ylim()
    assert low < 0 < high
    said = [text.get_text() for text in axes.texts]
    assert "Orthogonality (always 0)" in said
    figure.canvas.draw()
    ticks = [label.get_text() for label in axes.get_yticklabels()]
    assert "0" in ticks


def test_positive_losses_of_a_wide_span_are_logarithmic_and_others_are_not() -> None:
    history = make_history()
    for index, entry in enumerate(history["runs"]["dprp"]):
        entry["sort_loss"] = 1e-4 * (1 + index)
    figure = plot_training(history)
    assert figure.axes[0].get_yscale() == "linear"
    assert figure.axes[0].get_ylim()[0] == 0
    assert figure.axes[2].get_yscale() == "log"


def test_losses_that_are_not_finite_leave_a_gap_and_are_named() -> None:
    history = make_history()
    history["runs"]["dprp"][4]["app_loss"] = math.nan
    history["runs"]["dprp"][5]["app_loss"] = math.inf
    history["runs"]["dense"][7]["val_loss"] = None
    figure = plot_training(history)
    values = lines(figure.axes[0])["DPRP training"].get_ydata()
    assert np.flatnonzero(np.isnan(values)).tolist() == [4, 5]
    said = " ".join(" ".join(text.get_text().split()) for text in figure.axes[0].texts)
    assert "Not finite in epoch: Dense validation 8; DPRP training 5, 6" in said
    assert_nothing_clipped(figure)


@pytest.mark.parametrize("epochs", [1, 2, 60])
def test_training_labels_do_not_touch(epochs: int) -> None:
    figure = plot_training(make_history(epochs))
    for axes in figure.axes:
        boxes = label_boxes(axes)
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert_nothing_clipped(figure)


def test_logs_whose_plain_names_are_the_users_are_found_by_their_prefix() -> None:
    history, plain = make_history(), make_history()
    for entry in history["runs"]["dprp"]:
        for key in ("app_loss", "orth_loss", "sort_loss", "comp_loss"):
            entry[f"dprp_{key}"] = entry[key]
            entry[key] = 77.0  # of an output that the user called so
        entry |= {"val_dprp_app_loss": entry["val_loss"] / 2, "val_app_loss": 77.0}
    # The outputs of the dense run are called so too.
    for entry in history["runs"]["dense"]:
        entry["comp_loss"] = 77.0
    loss, _, terms = plot_training(history).axes
    _, _, expected = plot_training(plain).axes
    assert list(lines(terms)) == list(lines(expected))
    for title, line in lines(expected).items():
        np.testing.assert_array_equal(lines(terms)[title].get_ydata(), line.get_ydata())
    entries = history["runs"]["dprp"]
    assert lines(loss)["DPRP training"].get_ydata().tolist() == [
        e["dprp_app_loss"] for e in entries
    ]
    assert lines(loss)["DPRP validation"].get_ydata().tolist() == [
        e["val_dprp_app_loss"] for e in entries
    ]


def test_training_without_a_dprp_run() -> None:
    figure = plot_training(make_history(dprp=False))
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "Loss of the application",
        "Accuracy",
    ]
    assert list(lines(figure.axes[0])) == ["Dense training", "Dense validation"]


def test_unknown_theme_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`theme` must be one of.*'neon'"):
        plot_training(make_history(1), theme="neon")


def test_figures_leave_pyplot_alone() -> None:
    code = (
        "import sys, pathlib\n"
        "from dprp_tf.report import plot_training\n"
        "plot_training({'runs': {'dense': [{'epoch': 1, 'loss': 1.0}]}}).canvas.draw()\n"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
