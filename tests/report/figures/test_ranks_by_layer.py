"""What the figure of ranks by layer shows."""

from __future__ import annotations

import itertools

import pytest
from drawn_figures import DPRP, assert_nothing_clipped
from made_runs import (
    make_ranks,
)
from matplotlib.colors import to_hex

from dprp_tf.report import (
    plot_ranks_by_layer,
    plot_singular_values,
)


@pytest.mark.parametrize(("layers", "panels"), [(1, 1), (7, 1), (30, 1), (31, 2), (60, 2)])
def test_ranks_are_paired_bars_of_every_layer(layers: int, panels: int) -> None:
    ranks = make_ranks(layers)
    figure = plot_ranks_by_layer(ranks)
    assert len(figure.axes) == panels
    first, last = ranks["epochs"][0]["ranks"], ranks["epochs"][-1]["ranks"]
    initial: list[float] = []
    final: list[float] = []
    names: list[str] = []
    for axes in figure.axes:
        before, after = axes.containers
        initial += [bar.get_width() for bar in before]
        final += [bar.get_width() for bar in after]
        names += [label.get_text() for label in axes.get_yticklabels()]
        assert all(to_hex(bar.get_facecolor()) == DPRP for bar in after)
        # First layer on top, the initial bar of a pair above the final one.
        assert axes.yaxis_inverted()
        assert all(a.get_y() < b.get_y() for a, b in zip(before, after, strict=True))
    assert initial == [first[name] for name in ranks["layers"]]
    assert final == [last[name] for name in ranks["layers"]]
    assert names == ranks["layers"]
    assert_nothing_clipped(figure)


def test_sixty_layers_stay_legible() -> None:
    figure = plot_ranks_by_layer(make_ranks(60))
    figure.canvas.draw()
    for axes in figure.axes:
        boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
        assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))


def test_long_and_strange_layer_names_are_drawn_as_they_are() -> None:
    ranks = make_ranks(2)
    long, strange = "stage/" + "very_long_name/" * 12 + "conv", r"$\frac{1$ <b>&amp; _^{"
    renamed = dict(zip(ranks["layers"], (long, strange), strict=True))
    ranks["layers"] = [long, strange]
    ranks["full_ranks"] = {renamed[name]: rank for name, rank in ranks["full_ranks"].items()}
    for entry in ranks["epochs"]:
        for key in ("ranks", "singular_values"):
            entry[key] = {renamed[name]: value for name, value in entry[key].items()}
    bars = plot_ranks_by_layer(ranks)
    labels = [label.get_text() for label in bars.axes[0].get_yticklabels()]
    assert len(labels[0]) == 26
    assert labels[0].endswith("conv")
    assert labels[1] == strange
    assert_nothing_clipped(bars)
    assert_nothing_clipped(plot_singular_values(ranks))
