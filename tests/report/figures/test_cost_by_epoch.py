"""What the figure of cost by epoch shows."""

from __future__ import annotations

import pytest
from drawn_figures import DENSE, DPRP, assert_nothing_clipped, lines
from made_runs import (
    make_ranks,
)
from matplotlib.colors import to_hex

from dprp_tf.report import (
    plot_cost_by_epoch,
)


def test_cost_shows_the_counts_and_the_dense_baseline() -> None:
    ranks = make_ranks()
    figure = plot_cost_by_epoch(ranks)
    assert len(figure.axes) == 2
    for axes, key in zip(figure.axes, ("parameters", "macs"), strict=True):
        shown = lines(axes)
        assert shown["DPRP"].get_xdata().tolist() == list(range(21))
        assert shown["DPRP"].get_ydata().tolist() == [entry[key] for entry in ranks["epochs"]]
        assert set(shown["Dense"].get_ydata()) == {ranks[f"baseline_{key}"]}
        assert shown["Dense"].get_linestyle() == "--"
        assert to_hex(shown["Dense"].get_color()) == DENSE
        assert to_hex(shown["DPRP"].get_color()) == DPRP
        assert axes.get_ylim()[0] == 0
    assert figure.axes[1].get_ylabel() == "MACs per image"
    assert_nothing_clipped(figure)


def test_cost_labels_say_the_change() -> None:
    ranks = make_ranks()
    ranks["epochs"][-1]["parameters"] = 160_760
    said = [text.get_text() for text in plot_cost_by_epoch(ranks).axes[0].texts]
    assert said == ["DPRP 161 k\n\u221241 %", "Dense 272 k"]


@pytest.mark.parametrize("epochs", [0, 1, 20, 300])
def test_epoch_ticks_are_whole(epochs: int) -> None:
    figure = plot_cost_by_epoch(make_ranks(epochs=epochs))
    figure.canvas.draw()
    for axes in figure.axes:
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert ticks
        assert all(float(tick).is_integer() and 0 <= tick <= epochs for tick in ticks)
    assert_nothing_clipped(figure)


def test_cost_without_a_baseline_or_macs_shows_what_there_is() -> None:
    ranks = make_ranks()
    del ranks["baseline_parameters"]
    for entry in ranks["epochs"]:
        del entry["macs"]
    figure = plot_cost_by_epoch(ranks)
    assert len(figure.axes) == 1
    assert list(lines(figure.axes[0])) == ["DPRP"]


def test_a_resumed_run_shows_each_epoch_once() -> None:
    ranks = make_ranks(epochs=3)
    again = {**ranks["epochs"][2], "parameters": 1}
    ranks["epochs"].append(again)
    line = lines(plot_cost_by_epoch(ranks).axes[0])["DPRP"]
    assert line.get_xdata().tolist() == [0, 1, 2, 3]
    assert line.get_ydata().tolist()[2] == 1
