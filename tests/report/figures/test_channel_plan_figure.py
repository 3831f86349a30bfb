"""What the picture of chosen channels shows."""

from __future__ import annotations

import itertools

import pytest
from drawn_figures import DPRP, assert_nothing_clipped
from matplotlib.colors import to_hex

from dprp_tf.costs.channel_plan import ChannelPlan, PlannedChannels
from dprp_tf.report import NothingToPlotError, plot_channel_plan


def _plan(groups: int) -> ChannelPlan:
    rows = []
    for at in range(groups):
        size, kept = 16 * (at % 4 + 1), 8 * (at % 3 + 1)
        kept = min(size, kept)
        gone = {f"layer{at}": tuple(range(size - kept))} if kept < size else {}
        rows.append(PlannedChannels(f"layer{at}", size, kept, 0.02 * (at % 4), gone))
    return ChannelPlan("l1", 8, {"macs": 0.5}, tuple(rows), {}, {})


@pytest.mark.parametrize("groups", [1, 5, 60])
def test_each_group_has_its_share_over_the_whole_and_its_loss(groups: int) -> None:
    plan = _plan(groups)
    figure = plot_channel_plan(plan)
    left, right = figure.axes
    bars = [bar for container in left.containers for bar in container]
    assert [bar.get_width() for bar in bars[::2]] == [1.0] * groups
    assert [bar.get_width() for bar in bars[1::2]] == [row.kept / row.size for row in plan.groups]
    assert all(to_hex(bar.get_facecolor()) == DPRP for bar in bars[1::2])
    lost = [bar.get_width() for container in right.containers for bar in container]
    assert lost == [row.lost for row in plan.groups]
    assert [text.get_text() for text in left.texts] == [
        f"{row.kept} of {row.size}" for row in plan.groups
    ]
    assert left.yaxis_inverted()
    assert_nothing_clipped(figure)
    boxes = [label.get_window_extent() for label in left.get_yticklabels()]
    assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))


def test_strange_names_are_drawn_as_they_are_in_both_themes() -> None:
    name = r"$\frac{1$ <b>&amp;"
    group = PlannedChannels(name, 10_240, 8, 1.0, {name: tuple(range(10_232))})
    figure = plot_channel_plan(ChannelPlan("l1", 8, {}, (group,), {}, {}), "dark")
    (label,) = figure.axes[0].get_yticklabels()
    assert label.get_text() == name
    assert_nothing_clipped(figure)


def test_a_plan_without_groups_has_no_picture() -> None:
    with pytest.raises(NothingToPlotError, match="holds no group"):
        plot_channel_plan(ChannelPlan("l1", 8, {}, (), {}, {}))
