"""What the figure of accuracy against cost shows."""

from __future__ import annotations

import itertools

from drawn_figures import DENSE, DPRP, assert_nothing_clipped, label_boxes, lines
from made_runs import (
    make_results,
)
from matplotlib.colors import to_hex

from dprp_tf.report import (
    plot_tradeoff,
)


def test_tradeoff_joins_the_two_files_of_each_format() -> None:
    results = make_results()
    figure = plot_tradeoff(results)
    latency, size = figure.axes
    formats = list(dict.fromkeys(file["format"] for file in results["files"]))
    for axes, position in (
        (latency, lambda file: file["latency_ms"]["median"]),
        (size, lambda file: file["size_bytes"]),
    ):
        shown = lines(axes)
        for name in formats:
            pair = [file for file in results["files"] if file["format"] == name]
            assert shown[name].get_xdata().tolist() == [position(file) for file in pair]
            assert shown[name].get_ydata().tolist() == [file["accuracy"] for file in pair]
        points = [line for line in axes.lines if line.get_linestyle() == "None"]
        colours = [to_hex(point.get_color()) for point in points]
        assert colours == [DENSE, DPRP] * 5
        assert sorted(text.get_text() for text in axes.texts) == sorted(formats)
        boxes = label_boxes(axes)
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert latency.get_xlabel() == "Median latency (ms)"
    assert_nothing_clipped(figure)


def test_tradeoff_of_one_dense_file_without_latency() -> None:
    results = {
        "files": [{"model": "dense", "format": "A", "accuracy": 0.5, "size_bytes": 7}, {}],
    }
    figure = plot_tradeoff(results)
    (axes,) = figure.axes
    assert lines(axes)["A"].get_xdata().tolist() == [7]
    assert_nothing_clipped(figure)


def test_long_names_of_formats_and_models_leave_room_for_the_data() -> None:
    results = make_results()
    for item in results["files"]:
        item["format"] = f"{'a format with a long name ' * 4}{item['format']}"
    for item in results["models"]:
        item["label"] = f"{'a model ' * 20}{item['label']}"
    figure = plot_tradeoff(results)
    figure.canvas.draw()
    assert all(axes.get_position().width > 0.3 for axes in figure.axes)
    (legend,) = figure.legends
    assert legend.get_window_extent().y1 < min(axes.bbox.y0 for axes in figure.axes)
    assert_nothing_clipped(figure)


def test_every_other_file_of_a_format_hangs_on_the_dense_one() -> None:
    files = [
        {"model": model, "format": "A", "accuracy": accuracy, "size_bytes": size}
        for model, accuracy, size in (("dense", 0.9, 9), ("dprp", 0.8, 6), ("cut", 0.85, 3))
    ]
    figure = plot_tradeoff({"files": files})
    (axes,) = figure.axes
    assert lines(axes)["A"].get_xdata().tolist() == [9, 6, 9, 3]
    points = [line for line in axes.lines if line.get_linestyle() == "None"]
    assert len({to_hex(point.get_color()) for point in points}) == 3
    assert_nothing_clipped(figure)
