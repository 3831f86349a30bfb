"""Pictures of a run: cost by epoch, ranks by layer, singular values, training, trade-off."""

from __future__ import annotations

import itertools
import math
import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dprp_tf.files.atomic import atomic_path
from dprp_tf.report.axes import (
    accuracy_axis,
    epoch_axis,
    integer_ticks,
    loss_axis,
    percent_ticks,
    position_axis,
    short_count_ticks,
    style_axes,
    title_legend,
    value_ticks,
)
from dprp_tf.report.bench_plot import plot_bench
from dprp_tf.report.comparison import files_by_format, model_label
from dprp_tf.report.errors import NothingToPlotError
from dprp_tf.report.formatting import change_text, clean_name, count_text, number, short_count_text
from dprp_tf.report.labels import end_labels, place_labels
from dprp_tf.report.loading import RunData, load_run, mapping, records
from dprp_tf.report.theme import FONT_SIZE, Theme, new_figure, theme_named

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "NothingToPlotError",
    "plot_cost_by_epoch",
    "plot_ranks_by_layer",
    "plot_singular_values",
    "plot_tradeoff",
    "plot_training",
    "run_figures",
    "save_plots",
]

_NAME_LIMIT = 26
_LAYERS_PER_COLUMN = 30
_LOSS_TERMS = (
    ("loss", "Total"),
    ("app_loss", "Application"),
    ("orth_loss", "Orthogonality"),
    ("sort_loss", "Sorting"),
    ("comp_loss", "Compression"),
)
_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">")


def plot_cost_by_epoch(ranks: Mapping[str, Any], theme: str = "light") -> Figure:
    """Draw parameters and MACs by epoch beside the dense baseline.

    The counts of the factors in training can lie above the baseline; where the record has the
    counts of the folded network, the one that is exported, they are drawn too.

    Args:
        ranks: Content of `ranks.json`.
        theme: `"light"` or `"dark"`. Defaults to `"light"`.

    Returns:
        A figure with two panels.

    Raises:
        NothingToPlotError: If there is no epoch with a count.
        ValueError: If `theme` is unknown.

    Source: the figure of cost by epoch in the DPRP paper (Fig. 4).

    Example:

    >>> figure = plot_cost_by_epoch({"baseline_parameters": 100, "epochs": [
    ...     {"epoch": 0, "parameters": 101}, {"epoch": 1, "parameters": 60}]})
    >>> figure.axes[0].lines[0].get_ydata().tolist()
    [101.0, 60.0]
    """
    colours = theme_named(theme)
    entries = _epoch_entries(ranks)
    epochs = [epoch for epoch, _ in entries]
    panels = []
    for key, title, unit in (
        ("parameters", "Parameters", "Parameters in training"),
        ("macs", "Multiply-accumulates", "MACs per image"),
    ):
        values = [number(entry.get(key)) for _, entry in entries]
        folded = [number(entry.get(f"folded_{key}")) for _, entry in entries]
        if not all(math.isnan(value) for value in values):
            panels.append((title, unit, values, folded, number(ranks.get(f"baseline_{key}"))))
    if not panels:
        raise NothingToPlotError("`ranks` holds no epoch with parameters or MACs.")
    figure = new_figure(5.2 * len(panels), 3.5, colours)
    for index, (title, unit, values, folded, baseline) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), index + 1)
        style_axes(axes, colours, title, x="Epoch", y=unit)
        axes.plot(
            epochs,
            values,
            color=colours.dprp,
            linewidth=2,
            marker="o",
            markersize=_marker_size(len(epochs)),
            label="DPRP",
            clip_on=False,
            zorder=3,
        )
        last = _last_known(values)
        has_folded = not all(math.isnan(value) for value in folded)
        name = "Factors" if has_folded else "DPRP"
        labels = [(last, f"{name} {_wrapped_change(last, baseline)}", colours.dprp)]
        if has_folded:
            axes.plot(
                epochs,
                folded,
                color=colours.dprp,
                linewidth=1.4,
                linestyle=(0, (1, 1.5)),
                label="Folded",
                clip_on=False,
                zorder=2,
            )
            end = _last_known(folded)
            labels.append((end, f"Folded {_wrapped_change(end, baseline)}", colours.dprp))
        if not math.isnan(baseline):
            axes.axhline(
                baseline, color=colours.dense, linewidth=1.6, linestyle=(0, (5, 3)), label="Dense"
            )
            labels.append((baseline, f"Dense {short_count_text(baseline)}", colours.dense))
        drawn = [*values, *folded, baseline]
        top = max(value for value in drawn if not math.isnan(value))
        axes.set_ylim(0, (top or 1) * 1.08)
        short_count_ticks(axes.yaxis)
        epoch_axis(axes, epochs)
        end_labels(axes, labels)
    return figure


def plot_ranks_by_layer(ranks: Mapping[str, Any], theme: str = "light") -> Figure:
    """Draw the initial and the final rank of every layer as paired bars.

    Args:
        ranks: Content of `ranks.json`.
        theme: `"light"` or `"dark"`. Defaults to `"light"`.

    Returns:
        A figure with one panel, or several beside each other from 31 layers up.

    Raises:
        NothingToPlotError: If there is no layer with a rank.
        ValueError: If `theme` is unknown.

    Source: the figure of ranks by layer in the DPRP paper (Fig. 5).

    Example:

    >>> figure = plot_ranks_by_layer({"layers": ["conv"], "epochs": [
    ...     {"epoch": 0, "ranks": {"conv": 9}}, {"epoch": 1, "ranks": {"conv": 3}}]})
    >>> [float(bar.get_width()) for bar in figure.axes[0].patches]
    [9.0, 3.0]
    """
    colours = theme_named(theme)
    entries = _epoch_entries(ranks)
    first, last = mapping(entries[0][1], "ranks"), mapping(entries[-1][1], "ranks")
    full = mapping(ranks, "full_ranks")
    names = _layer_names(ranks, first or full)
    rows: list[tuple[str, float, float]] = [
        (name, number(first.get(name, full.get(name))), number(last.get(name))) for name in names
    ]
    rows = [row for row in rows if not (math.isnan(row[1]) and math.isnan(row[2]))]
    if not rows:
        raise NothingToPlotError("`ranks` holds no layer with a rank.")
    panels = math.ceil(len(rows) / _LAYERS_PER_COLUMN)
    per_panel = math.ceil(len(rows) / panels)
    figure = new_figure(8.4 if panels == 1 else 5.4 * panels, 1.35 + 0.3 * per_panel, colours)
    widest = max(value for row in rows for value in (row[1], row[2]) if not math.isnan(value))
    top = None
    for panel in range(panels):
        axes = figure.add_subplot(1, panels, panel + 1, sharex=top)
        top = top or axes
        part = rows[panel * per_panel : (panel + 1) * per_panel]
        title = "Initial and final rank" if panel == 0 else " "
        style_axes(axes, colours, title, x="Rank", grid="x")
        places = list(range(len(part)))
        for shift, column, colour, label in (
            (-0.2, 1, colours.before, "Initial"),
            (0.2, 2, colours.dprp, "Final"),
        ):
            axes.barh(
                [place + shift for place in places],
                [
                    0.0 if math.isnan(rank) else rank
                    for rank in ((row[1] if column == 1 else row[2]) for row in part)
                ],
                height=0.38,
                color=colour,
                label=label,
            )
        for place, (_, initial, final) in zip(places, part, strict=True):
            axes.annotate(
                f"{count_text(initial)} → {count_text(final)}",
                xy=(max(v for v in (initial, final, 0.0) if not math.isnan(v)), place),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=FONT_SIZE - 1,
                color=colours.muted,
                bbox={"facecolor": colours.background, "edgecolor": "none", "pad": 1},
            )
        axes.set_yticks(places, [clean_name(row[0], _NAME_LIMIT) for row in part], parse_math=False)
        axes.tick_params(axis="y", length=0, labelcolor=colours.text)
        # A short last panel keeps the bar height of the others.
        axes.set_ylim(per_panel - 0.4, -0.6)
        axes.set_xlim(0, widest * (1.22 if panels == 1 else 1.4) or 1)
        integer_ticks(axes.xaxis)
        axes.spines["left"].set_visible(False)
    epochs = entries[-1][0]
    after = f"After {epochs} epoch{'s' * (epochs != 1)}"
    handles, _ = axes.get_legend_handles_labels()
    title_legend(axes, handles, ["Before training", after], colours)
    return figure


def plot_singular_values(
    ranks: Mapping[str, Any], layers: Sequence[str] | None = None, theme: str = "light"
) -> Figure:
    """Draw the magnitude of singular values over the epochs as heat maps.

    Removed singular values are hatched, so a falling rank shows as a front moving left.

    Args:
        ranks: Content of `ranks.json`.
        layers: Names of one to three layers. Defaults to the first, the middle and the last one.
        theme: `"light"` or `"dark"`. Defaults to `"light"`.

    Returns:
        A figure with one panel and one colour bar for each layer.

    Raises:
        NothingToPlotError: If there are no singular values.
        ValueError: If a layer is unknown or more than three are given.

    Source: the figure of singular values over epochs in the DPRP paper (Fig. 6).

    Example:

    >>> figure = plot_singular_values({"layers": ["conv"], "epochs": [
    ...     {"epoch": 0, "singular_values": {"conv": [2.0, 1.0]}},
    ...     {"epoch": 1, "singular_values": {"conv": [2.5]}}]})
    >>> figure.axes[0].collections[0].get_array().filled(-1).tolist()
    [[2.0, 1.0], [2.5, -1.0]]
    """
    import numpy as np
    from matplotlib.ticker import FuncFormatter

    colours = theme_named(theme)
    entries = _epoch_entries(ranks)
    values = [(epoch, mapping(entry, "singular_values")) for epoch, entry in entries]
    known = [
        name
        for name in _layer_names(ranks, {key: None for _, part in values for key in part})
        if any(part.get(name) for _, part in values)
    ]
    if not known:
        raise NothingToPlotError("`ranks` holds no singular values.")
    chosen = list(layers) if layers is not None else _first_middle_last(known)
    unknown = [name for name in chosen if name not in known]
    if unknown or not 1 <= len(chosen) <= 3:
        raise ValueError(
            f"`layers` must name one to three layers with singular values. Received: "
            f"layers={chosen}. Choose among {known}."
        )
    figure = new_figure(3.9 * max(len(chosen), 1.4), 4.0, colours)
    epochs = [epoch for epoch, _ in values]
    for index, name in enumerate(chosen):
        lists = [part.get(name) or [] for _, part in values]
        # (epochs, singular values), NaN where a singular value is removed or not finite
        grid = np.full((len(lists), max(len(row) for row in lists)), np.nan)
        for row, entry in enumerate(lists):
            grid[row, : len(entry)] = [abs(number(value)) for value in entry]
        axes = figure.add_subplot(1, len(chosen), index + 1)
        style_axes(axes, colours, "", x="Index of the singular value", grid=None)
        axes.set_title(
            clean_name(name, _NAME_LIMIT - 4),
            loc="left",
            fontsize=FONT_SIZE + 1.5,
            fontweight="bold",
            color=colours.text,
            pad=9,
            parse_math=False,
        )
        axes.set_ylabel("Epoch" if index == 0 else "", fontsize=FONT_SIZE, color=colours.muted)
        axes.set_facecolor(colours.removed)
        axes.patch.set(hatch="////", edgecolor=colours.grid, linewidth=0)
        mesh = axes.pcolormesh(
            np.arange(grid.shape[1] + 1) + 0.5,
            _edges(epochs),
            np.ma.masked_invalid(grid),
            cmap="viridis",
            vmin=0,
            vmax=float(np.nanmax(grid)) if np.isfinite(grid).any() else 1.0,
        )
        integer_ticks(axes.xaxis, most=7)
        integer_ticks(axes.yaxis, most=9)
        bar = figure.colorbar(mesh, ax=axes, orientation="horizontal", aspect=28, pad=0.04)
        bar.set_label("Magnitude", fontsize=FONT_SIZE, color=colours.muted)
        bar.ax.tick_params(labelsize=FONT_SIZE, labelcolor=colours.muted, color=colours.grid)
        value_ticks(bar.ax.xaxis, most=5)
        bar.ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        bar.outline.set_visible(False)
    from matplotlib.patches import Patch

    removed = Patch(facecolor=colours.removed, edgecolor=colours.muted, hatch="////", linewidth=0)
    title_legend(axes, [removed], ["Removed"], colours)
    return figure


def plot_training(history: Mapping[str, Any], theme: str = "light") -> Figure:
    """Draw losses and accuracy of both runs, and the loss terms of DPRP.

    The application loss of DPRP stands beside the loss of the dense run. An axis turns
    logarithmic where its values span a factor above 50; zeros then sit at its foot.

    Args:
        history: Content of `history.json`.
        theme: `"light"` or `"dark"`. Defaults to `"light"`.

    Returns:
        A figure with up to three panels.

    Raises:
        NothingToPlotError: If no run has an epoch with a loss or an accuracy.
        ValueError: If `theme` is unknown.

    Example:

    >>> figure = plot_training({"runs": {"dense": [{"epoch": 1, "loss": 0.5}]}})
    >>> figure.axes[0].lines[0].get_ydata().tolist()
    [0.5]
    """
    colours = theme_named(theme)
    runs = {
        name: _history_entries(mapping(history, "runs"), name) for name in mapping(history, "runs")
    }
    runs = dict(sorted(runs.items(), key=lambda item: item[0] != "dense"))
    others = [name for name in runs if name not in ("dense", "dprp")]
    losses, accuracies, terms = [], [], []
    for name, entries in runs.items():
        colour = colours.model(name, others.index(name) if name in others else 0)
        label = clean_name(model_label({"name": name}), _NAME_LIMIT)
        has_parts = any("app_loss" in entry for _, entry in entries)
        for key, suffix, style in (
            ("app_loss" if has_parts else "loss", "training", "-"),
            ("val_app_loss" if any("val_app_loss" in e for _, e in entries) else "val_loss",
             "validation", "--"),
        ):  # fmt: skip
            losses.append(_Series(f"{label} {suffix}", entries, key, colour, style))
        for key, suffix, style in (
            ("accuracy", "training", "-"),
            ("val_accuracy", "validation", "--"),
        ):
            accuracies.append(_Series(f"{label} {suffix}", entries, key, colour, style))
        # A dense run logs its application loss too; only a run with pressed ranks has terms.
        if any("comp_loss" in entry for _, entry in entries):
            palette = (colours.text, colours.dprp, *colours.others)
            terms += [
                _Series(title, entries, key, palette[index], ":" if key == "loss" else "-")
                for index, (key, title) in enumerate(_LOSS_TERMS)
            ]
    losses, accuracies, terms = (
        [series for series in group if series.drawable] for group in (losses, accuracies, terms)
    )
    if not (losses or accuracies):
        raise NothingToPlotError("`history` holds no epoch with a loss or an accuracy.")
    upper = [group for group in (losses, accuracies) if group]
    figure = new_figure(5.6 * max(len(upper), 1.5), 3.5 * (2 if terms else 1), colours)
    layout = figure.add_gridspec(2 if terms else 1, len(upper))
    for index, group in enumerate(upper):
        axes = figure.add_subplot(layout[0, index])
        if group is losses:
            style_axes(axes, colours, "Loss of the application", x="Epoch", y="Loss")
            loss_axis(axes, [value for series in group for value in series.known])
        else:
            style_axes(axes, colours, "Accuracy", x="Epoch", y="Accuracy (%)")
            percent_ticks(axes.yaxis)
        _draw_series(axes, group, colours)
    if terms:
        axes = figure.add_subplot(layout[1, :])
        style_axes(axes, colours, "Loss terms of DPRP", x="Epoch", y="Loss")
        loss_axis(axes, [value for series in terms for value in series.known])
        _draw_series(axes, terms, colours, wide=True)
    return figure


def plot_tradeoff(results: Mapping[str, Any], theme: str = "light") -> Figure:
    """Draw accuracy against latency and size of every file.

    A line joins the dense and the DPRP file of one format; up and to the left is better.

    Args:
        results: Content of `results.json`.
        theme: `"light"` or `"dark"`. Defaults to `"light"`.

    Returns:
        A figure with one panel for latency and one for size, as far as they were measured.

    Raises:
        NothingToPlotError: If no file has an accuracy and a latency or size.
        ValueError: If `theme` is unknown.

    Example:

    >>> figure = plot_tradeoff({"files": [
    ...     {"model": "dense", "format": "ONNX", "accuracy": 0.98, "size_bytes": 4000},
    ...     {"model": "dprp", "format": "ONNX", "accuracy": 0.97, "size_bytes": 1000}]})
    >>> figure.axes[0].lines[0].get_xdata().tolist()
    [4000.0, 1000.0]
    """
    from matplotlib.lines import Line2D

    colours = theme_named(theme)
    panels = []
    for title, unit, position in (
        ("Accuracy and latency", "Median latency (ms)", _median_latency),
        ("Accuracy and file size", "File size", lambda file: number(file.get("size_bytes"))),
    ):
        groups = {
            name: [
                (str(file.get("model")), position(file), number(file.get("accuracy")))
                for file in files
                if not math.isnan(position(file) + number(file.get("accuracy")))
            ]
            for name, files in files_by_format(results).items()
        }
        groups = {name: points for name, points in groups.items() if points}
        if groups:
            panels.append((title, unit, groups))
    if not panels:
        raise NothingToPlotError("`results` holds no file with an accuracy and a latency or size.")
    formats = list(dict.fromkeys(name for _, _, groups in panels for name in groups))
    models = list(
        dict.fromkeys(p[0] for _, _, groups in panels for points in groups.values() for p in points)
    )
    models = sorted(models, key=lambda name: ("dense", "dprp", name).index(name))
    others = [name for name in models if name not in ("dense", "dprp")]
    palette = {
        name: colours.model(name, others.index(name) if name in others else 0) for name in models
    }
    markers = dict(zip(formats, itertools.cycle(_MARKERS), strict=False))
    figure = new_figure(5.6 * max(len(panels), 1.3), 4.0, colours)
    for index, (title, unit, groups) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), index + 1)
        style_axes(axes, colours, title, x=unit, y="Accuracy (%)", grid="both")
        everything = [point for points in groups.values() for point in points]
        for name, points in groups.items():
            axes.plot(
                [x for _, x, _ in points],
                [y for _, _, y in points],
                color=colours.muted,
                linewidth=1,
                alpha=0.7,
                label=name,
                zorder=2,
            )
            for model, x, y in points:
                axes.plot(
                    x,
                    y,
                    marker=markers[name],
                    markersize=8,
                    color=palette[model],
                    markeredgecolor=colours.background,
                    markeredgewidth=0.8,
                    linestyle="none",
                    zorder=3,
                )
        position_axis(axes, [x for _, x, _ in everything], "B" if unit == "File size" else None)
        accuracy_axis(axes, [y for _, _, y in everything])
        place_labels(
            axes,
            [
                (
                    [(x, y) for _, x, y in reversed(points)],
                    clean_name(name, _NAME_LIMIT),
                    colours.text,
                )
                for name, points in groups.items()
            ],
        )
    names = {str(model.get("name")): model_label(model) for model in records(results, "models")}
    title_legend(
        axes,
        [
            Line2D([], [], color=palette[name], marker="o", markersize=7, linestyle="none")
            for name in models
        ],
        [
            clean_name(names.get(name) or model_label({"name": name}), _NAME_LIMIT)
            for name in models
        ],
        colours,
    )
    return figure


def run_figures(run: RunData, theme: str = "light") -> Iterator[tuple[str, Figure]]:
    """Yield file stem and figure of every plot that a run has the data for.

    Args:
        run: What `load_run` returned.
        theme: `"light"` or `"dark"`. Defaults to `"light"`.

    Yields:
        Name and figure, such as `"cost_by_epoch"`; plots without data are passed over.

    Raises:
        ValueError: If the data of a plot is malformed.

    Example:

    >>> run = RunData(Path("run"), history={"runs": {"dense": [{"epoch": 1, "loss": 0.5}]}})
    >>> [name for name, _ in run_figures(run)]
    ['training']
    """
    for name, source, draw in (
        ("tradeoff", run.results, plot_tradeoff),
        ("bench", run.bench, plot_bench),
        ("cost_by_epoch", run.ranks, plot_cost_by_epoch),
        ("ranks_by_layer", run.ranks, plot_ranks_by_layer),
        ("singular_values", run.ranks, plot_singular_values),
        ("training", run.history, plot_training),
    ):
        if source is None:
            continue
        try:
            figure = draw(source, theme=theme)
        except NothingToPlotError:
            continue
        yield name, figure


def save_plots(run_folder: str | os.PathLike[str]) -> list[Path]:
    """Write every plot of a run into its folder `plots` as PNG at 150 dots per inch.

    Args:
        run_folder: Folder that a training run or the demo wrote.

    Returns:
        The paths written; plots that the run has no data for are left out.

    Raises:
        FileNotFoundError: If the folder, or everything to plot in it, is missing.
        ValueError: If a file in it isn't valid.
        OSError: If the folder can't be written.

    Example:

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "history.json").write_text('{"runs": {"dense": [{"epoch": 1, "loss": 1}]}}')
    >>> [path.name for path in save_plots(folder)]
    ['training.png']
    """
    run = load_run(run_folder)
    written = []
    for name, figure in run_figures(run):
        path = run.folder / "plots" / f"{name}.png"
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=150, format="png")
        written.append(path)
    return written


class _Series:
    """One line of a training plot: its known values, and the epochs where it is not finite."""

    def __init__(
        self,
        label: str,
        entries: list[tuple[int, dict[str, Any]]],
        key: str,
        colour: str,
        style: str,
    ) -> None:
        present = [(epoch, entry[key]) for epoch, entry in entries if key in entry]
        self.label, self.colour, self.style = label, colour, style
        self.epochs = [epoch for epoch, _ in present]
        self.values = [number(value) for _, value in present]
        self.broken = [e for e, v in zip(self.epochs, self.values, strict=True) if math.isnan(v)]
        self.known = [value for value in self.values if not math.isnan(value)]
        self.drawable = bool(self.known)
        if self.drawable and not any(self.known):
            self.label += " (always 0)"


def _draw_series(axes: Axes, group: list[_Series], colours: Theme, wide: bool = False) -> None:
    for series in group:
        axes.plot(
            series.epochs,
            series.values,
            color=series.colour,
            linestyle=(0, (4, 2)) if series.style == "--" else series.style,
            linewidth=1.8,
            marker="o" if len(series.epochs) <= 12 or series.broken else None,
            markersize=4,
            markerfacecolor=colours.background if series.style == "--" else series.colour,
            label=series.label,
            zorder=3,
        )
    epoch_axis(axes, [epoch for series in group for epoch in series.epochs])
    broken = [s for s in group if s.broken]
    if broken:
        said = "; ".join(
            f"{s.label} {', '.join(map(str, s.broken[:4]))}{', …' * (len(s.broken) > 4)}"
            for s in broken
        )
        axes.annotate(
            textwrap.fill(f"Not finite in epoch: {said}", 110 if wide else 56),
            xy=(0, 0),
            xycoords="axes fraction",
            xytext=(0, -36),
            textcoords="offset points",
            va="top",
            fontsize=FONT_SIZE - 0.5,
            color=colours.text,
            annotation_clip=False,
            parse_math=False,
        )
    end_labels(axes, [(_last_known(s.values), s.label, s.colour) for s in group])


def _epoch_entries(ranks: Mapping[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """Return epoch and entry in order, the latest entry where a resumed run repeats an epoch."""
    entries = {
        _epoch_of(entry, index): entry for index, entry in enumerate(records(ranks, "epochs"))
    }
    if not entries:
        raise NothingToPlotError("`ranks` holds no epochs.")
    return sorted(entries.items(), key=lambda item: item[0])


def _history_entries(runs: Mapping[str, Any], name: str) -> list[tuple[int, dict[str, Any]]]:
    entries = {
        _epoch_of(entry, index + 1): entry for index, entry in enumerate(records(runs, name))
    }
    return sorted(entries.items(), key=lambda item: item[0])


def _epoch_of(entry: Mapping[str, Any], default: int) -> int:
    epoch = number(entry.get("epoch"))
    return default if math.isnan(epoch) else int(epoch)


def _layer_names(ranks: Mapping[str, Any], fallback: Mapping[str, Any]) -> list[str]:
    layers = ranks.get("layers")
    if not isinstance(layers, list):
        return list(fallback)
    return [str(name) for name in layers]


def _first_middle_last(names: list[str]) -> list[str]:
    return list(dict.fromkeys([names[0], names[len(names) // 2], names[-1]]))


def _edges(epochs: list[int]) -> list[float]:
    middles = [(a + b) / 2 for a, b in itertools.pairwise(epochs)]
    return [epochs[0] - 0.5, *middles, epochs[-1] + 0.5]


def _last_known(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return known[-1] if known else math.nan


def _wrapped_change(value: float, baseline: float) -> str:
    change = change_text(value, baseline)
    return short_count_text(value) + (f"\n{change}" if change else "")


def _marker_size(count: int) -> float:
    return 4.5 if count <= 25 else 2.5 if count <= 60 else 0.0


def _median_latency(file: Mapping[str, Any]) -> float:
    return number(mapping(file, "latency_ms").get("median"))
