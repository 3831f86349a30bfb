"""What the heat maps of singular values show."""

from __future__ import annotations

import math
from typing import Any

import pytest
from drawn_figures import assert_nothing_clipped
from made_runs import (
    make_ranks,
)

from dprp_tf.report import (
    plot_singular_values,
)


def test_singular_values_of_first_middle_and_last_layer() -> None:
    ranks = make_ranks()
    figure = plot_singular_values(ranks)
    maps = [axes for axes in figure.axes if axes.get_xlabel() == "Index of the singular value"]
    expected = [ranks["layers"][index] for index in (0, 3, 6)]
    assert [axes.get_title(loc="left") for axes in maps] == expected
    for axes, name in zip(maps, expected, strict=True):
        mesh: Any
        (mesh,) = axes.collections
        grid = mesh.get_array()
        assert grid.shape == (21, ranks["full_ranks"][name])
        for row, entry in zip(grid, ranks["epochs"], strict=True):
            values = entry["singular_values"][name]
            assert row.compressed().tolist() == values
            assert row.mask.tolist() == [False] * len(values) + [True] * (len(row) - len(values))
        assert mesh.colorbar.ax.get_xlabel() == "Magnitude"
        assert mesh.get_clim()[0] == 0
    assert_nothing_clipped(figure)


def test_singular_values_show_magnitudes_and_hide_what_is_not_finite() -> None:
    ranks = {
        "layers": ["conv"],
        "epochs": [{"epoch": 0, "singular_values": {"conv": [-2.0, math.nan, 1.0]}}],
    }
    mesh: Any = plot_singular_values(ranks).axes[0].collections[0]
    grid = mesh.get_array()
    assert grid.filled(-1).tolist() == [[2.0, -1.0, 1.0]]


def test_singular_values_of_chosen_layers_only() -> None:
    ranks = make_ranks()
    chosen = [ranks["layers"][5]]
    figure = plot_singular_values(ranks, layers=chosen)
    assert figure.axes[0].get_title(loc="left") == chosen[0]
    with pytest.raises(ValueError, match=r"`layers` must name.*absent.*Choose among"):
        plot_singular_values(ranks, layers=["absent"])
    with pytest.raises(ValueError, match="one to three"):
        plot_singular_values(ranks, layers=ranks["layers"][:4])
