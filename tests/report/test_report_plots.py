"""What the figures of a run show, read back from their axes; inputs are synthetic."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from test_report_inputs import make_history, make_ranks, make_results, write_run

from dprp_tf.report import (
    NothingToPlotError,
    plot_cost_by_epoch,
    plot_ranks_by_layer,
    plot_singular_values,
    plot_tradeoff,
    plot_training,
    save_plots,
)
from dprp_tf.report.theme import THEMES

DENSE, DPRP = THEMES["light"].dense, THEMES["light"].dprp


def lines(axes: Any) -> dict[str, Any]:
    return {line.get_label(): line for line in axes.lines}


def assert_nothing_clipped(figure: Figure) -> None:
    """Every visible text lies inside the page."""
    figure.canvas.draw()
    page = figure.bbox
    for axes in figure.axes:
        texts = [
            axes.title,
            axes._left_title,  # type: ignore[attr-defined]
            axes.xaxis.label,
            axes.yaxis.label,
            *axes.texts,
            *axes.get_xticklabels(),
            *axes.get_yticklabels(),
        ]
        low_x, high_x = sorted(axes.get_xlim())
        low_y, high_y = sorted(axes.get_ylim())
        for text in texts:
            if not text.get_visible() or not text.get_text().strip():
                continue
            x, y = text.get_position()
            if text in axes.get_xticklabels() and not low_x <= x <= high_x:
                continue
            if text in axes.get_yticklabels() and not low_y <= y <= high_y:
                continue
            box = text.get_window_extent()
            beyond = max(-box.x0, -box.y0, box.x1 - page.x1, box.y1 - page.y1)
            assert beyond <= 1, f"{text.get_text()!r} is cut off"


def label_boxes(axes: Any) -> list[Any]:
    from matplotlib.text import Text

    axes.figure.canvas.draw()
    return [Text.get_window_extent(text) for text in axes.texts]


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


def test_training_without_a_dprp_run() -> None:
    figure = plot_training(make_history(dprp=False))
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "Loss of the application",
        "Accuracy",
    ]
    assert list(lines(figure.axes[0])) == ["Dense training", "Dense validation"]


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


def test_nothing_to_plot_is_said() -> None:
    for draw, source in (
        (plot_cost_by_epoch, {"epochs": []}),
        (plot_cost_by_epoch, {"epochs": [{"epoch": 0}]}),
        (plot_ranks_by_layer, {"layers": ["a"], "epochs": [{"epoch": 0}]}),
        (plot_singular_values, make_ranks() | {"layers": []}),
        (plot_training, {}),
        (plot_training, {"runs": {"dense": [{"epoch": 1, "loss": math.nan}]}}),
        (plot_tradeoff, {"files": [{"model": "dense", "accuracy": 0.9}]}),
    ):
        with pytest.raises(NothingToPlotError):
            draw(source)


def test_unknown_theme_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`theme` must be one of.*'neon'"):
        plot_training(make_history(1), theme="neon")


def test_plots_are_saved_as_pictures(tmp_path: Path) -> None:
    from PIL import Image

    run = write_run(
        tmp_path / "run", ranks=make_ranks(3), history=make_history(2), results=make_results()
    )
    paths = save_plots(run)
    assert sorted(path.name for path in paths) == [
        "cost_by_epoch.png",
        "ranks_by_layer.png",
        "singular_values.png",
        "tradeoff.png",
        "training.png",
    ]
    # Nothing but the finished pictures is left in the folder.
    assert sorted((run / "plots").iterdir()) == sorted(paths)
    for path in paths:
        with Image.open(path) as picture:
            assert round(picture.info["dpi"][0]) == 150
            extremes = picture.convert("L").getextrema()
            assert extremes[1] == 255
            assert extremes[0] < 100


def test_plots_of_a_run_without_dprp(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", history=make_history(1, dprp=False))
    assert [path.name for path in save_plots(run)] == ["training.png"]


def test_figures_leave_pyplot_alone() -> None:
    code = (
        "import sys, pathlib\n"
        "from dprp_tf.report.figures.training import plot_training\n"
        "plot_training({'runs': {'dense': [{'epoch': 1, 'loss': 1.0}]}}).canvas.draw()\n"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
