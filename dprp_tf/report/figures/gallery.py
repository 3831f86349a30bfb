"""The figures of a run: which there are, what each is called, and what is written below it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dprp_tf.files.atomic import LONGEST_WRITING, remove_leftovers
from dprp_tf.report.errors import NothingToPlotError
from dprp_tf.report.figures.benchmarks import describe_bench, plot_bench
from dprp_tf.report.figures.channel_plan import describe_channel_plan, draw_channel_plan
from dprp_tf.report.figures.cost_by_epoch import describe_cost_by_epoch, plot_cost_by_epoch
from dprp_tf.report.figures.front import describe_front, plot_front
from dprp_tf.report.figures.rank_plan import describe_rank_plan, draw_rank_plan
from dprp_tf.report.figures.ranks_by_layer import describe_ranks_by_layer, plot_ranks_by_layer
from dprp_tf.report.figures.singular_values import describe_singular_values, plot_singular_values
from dprp_tf.report.figures.tradeoff import describe_tradeoff, plot_tradeoff
from dprp_tf.report.figures.training import describe_training, plot_training
from dprp_tf.report.loading import RunData, load_run
from dprp_tf.report.pictures import save_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["GALLERY", "RunFigure", "run_figures", "save_plots"]


class _Draw(Protocol):
    def __call__(self, source: Mapping[str, Any], /, *, theme: str) -> Figure: ...


@dataclass(frozen=True)
class RunFigure:
    """A figure that a run may have.

    Args:
        name: Stem of its file.
        part: The part of a `RunData` it is drawn from, such as `"ranks"`.
        title: What it is called on the page.
        caption: What is written below it there.
        draw: Draws it from that part in a theme.
        describe: Says in words what it shows of that part.
    """

    name: str
    part: str
    title: str
    caption: str
    draw: _Draw
    describe: Callable[[Mapping[str, Any]], str]


GALLERY = (
    RunFigure(
        "front",
        "results",
        "The best file among all",
        "Each file that was measured, its bytes as the area of its point. A line joins those that "
        "no other beats; small points are candidates that never became files. Up and to the left "
        "is better.",
        plot_front,
        describe_front,
    ),
    RunFigure(
        "tradeoff",
        "results",
        "Accuracy against cost",
        "Every file beside its dense counterpart. A line joins the dense file of a format to each "
        "of the others; up and to the left is better.",
        plot_tradeoff,
        describe_tradeoff,
    ),
    RunFigure(
        "channel_plan",
        "chosen_channels",
        "Chosen channels",
        "How many channels of each group are kept, and the share lost with the others.",
        draw_channel_plan,
        describe_channel_plan,
    ),
    RunFigure(
        "rank_plan",
        "chosen_ranks",
        "Chosen ranks",
        "Each layer's rank as a share of its full rank, and its weights dense and as chosen.",
        draw_rank_plan,
        describe_rank_plan,
    ),
    RunFigure(
        "bench",
        "bench",
        "Benchmarks",
        "A panel for each target and number of threads; the bar below a point spans the 10th to "
        "the 90th percentile. Left is faster, and smaller in the panel of sizes.",
        plot_bench,
        describe_bench,
    ),
    RunFigure(
        "cost_by_epoch",
        "ranks",
        "Cost by epoch",
        "Counts of the factors while training, which can start above the dense network. Folding "
        "picks the cheaper form of each layer afterwards.",
        plot_cost_by_epoch,
        describe_cost_by_epoch,
    ),
    RunFigure(
        "ranks_by_layer",
        "ranks",
        "Ranks by layer",
        "Singular values each layer started with, and how many it kept.",
        plot_ranks_by_layer,
        describe_ranks_by_layer,
    ),
    RunFigure(
        "singular_values",
        "ranks",
        "Singular values",
        "Magnitude of the singular values after each epoch; hatched ones were removed.",
        plot_singular_values,
        describe_singular_values,
    ),
    RunFigure(
        "training",
        "history",
        "Training",
        "Solid lines are training, dashed ones validation.",
        plot_training,
        describe_training,
    ),
)


def run_figures(run: RunData, theme: str = "light") -> Iterator[tuple[RunFigure, Figure]]:
    """Draw every figure that a run has the data for.

    Args:
        run: What `load_run` returned.
        theme: `"light"` or `"dark"`. Defaults to `"light"`.

    Yields:
        An entry of `GALLERY` and the figure; those without data are passed over.

    Raises:
        ValueError: If the data of a figure is malformed.

    Example:

    >>> run = RunData(Path("run"), history={"runs": {"dense": [{"epoch": 1, "loss": 0.5}]}})
    >>> [entry.name for entry, _ in run_figures(run)]
    ['training']
    """
    for entry in GALLERY:
        source = getattr(run, entry.part)
        if source is None:
            continue
        try:
            figure = entry.draw(source, theme=theme)
        except NothingToPlotError:
            continue
        yield entry, figure


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
    plots = run.folder / "plots"
    remove_leftovers(plots, unchanged_for=LONGEST_WRITING)
    return [save_picture(figure, plots / f"{entry.name}.png") for entry, figure in run_figures(run)]
