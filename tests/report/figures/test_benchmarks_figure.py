"""What the figure of benchmarks shows."""

from __future__ import annotations

import pytest
from made_runs import (
    FILES,
    make_bench,
)

from dprp_tf.report import (
    NothingToPlotError,
    plot_bench,
)
from dprp_tf.report.figures.benchmarks import describe_bench


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_plot_has_a_panel_for_each_run_and_one_for_size(theme: str) -> None:
    bench = make_bench()
    figure = plot_bench(bench, theme)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[:2] == ["local, 1 thread", "local, 2 threads"]
    assert titles[3:] == ["qemu:cortex-a72, 1 thread", "File size"]
    for axes, run in zip(figure.axes, bench["runs"], strict=False):
        key = "median_ms" if run["unit"] == "ms" else "instructions"
        drawn = [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in axes.lines]
        assert drawn == [
            (result[key], file["accuracy"])
            for result, file in zip(run["results"], bench["files"], strict=True)
        ]
        low, high = axes.get_xlim()
        assert all(low < x < high for x, _ in drawn)
    # One file has one colour and marker everywhere, and no two files share both.
    looks = [[(line.get_color(), line.get_marker()) for line in axes.lines] for axes in figure.axes]
    assert all(look == looks[0] for look in looks)
    assert len(set(looks[0])) == len(FILES)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [name for name, *_ in FILES]


def test_the_bar_of_a_point_spans_the_percentiles() -> None:
    bench = make_bench()
    (bar,) = plot_bench({**bench, "runs": bench["runs"][:1]}).axes[0].collections[:1]
    result = bench["runs"][0]["results"][0]
    (start, end) = bar.get_segments()[0]
    assert (start[0], end[0]) == pytest.approx((result["p10_ms"], result["p90_ms"]))


@pytest.mark.parametrize(
    ("score", "values", "label"),
    [
        ({"name": "psnr", "unit": "dB"}, (31.0, 31.5), "PSNR (dB)"),
        ({"name": "loss", "less_is_better": True}, (-2.0, 0.5), "Loss (less is better)"),
    ],
)
def test_the_height_is_the_score_that_was_asked_for(
    score: dict[str, object], values: tuple[float, float], label: str
) -> None:
    bench = {**make_bench(with_accuracy=False), "score": score}
    for file, value in zip(bench["files"], values, strict=False):
        file[score["name"]] = value
    axes = plot_bench(bench).axes[0]
    assert axes.get_ylabel() == label
    assert [float(line.get_ydata()[0]) for line in axes.lines] == list(values)
    low, high = axes.get_ylim()
    assert low < min(values) < max(values) < high
    assert label.partition(" (")[0] in describe_bench(bench)


def test_without_accuracies_the_height_is_the_size() -> None:
    figure = plot_bench(make_bench(with_accuracy=False))
    assert len(figure.axes) == 4
    assert [float(line.get_ydata()[0]) for line in figure.axes[0].lines] == [
        size for _, size, _, _ in FILES
    ]


def test_the_legend_stays_inside_the_picture_however_long_the_names() -> None:
    bench = make_bench()
    for index, file in enumerate(bench["files"]):
        file["name"] = f"experiment_{index}_" + "very_long_name_" * 4 + ".tflite"
    figure = plot_bench({**bench, "runs": bench["runs"][:1]})
    figure.draw_without_rendering()
    box, whole = figure.legends[0].get_window_extent(), figure.bbox
    assert whole.x0 <= box.x0 < box.x1 <= whole.x1
    lowest = min(axes.get_tightbbox().y0 for axes in figure.axes)
    assert whole.y0 <= box.y0 < box.y1 <= lowest


def test_nothing_measured_is_nothing_to_plot() -> None:
    with pytest.raises(NothingToPlotError, match="`bench`"):
        plot_bench({"files": [], "runs": []})
    with pytest.raises(NothingToPlotError, match="`bench`"):
        plot_bench({"files": [{"name": "a", "size_bytes": None}], "runs": []})
