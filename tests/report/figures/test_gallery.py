"""Every figure of a run, drawn and saved."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from made_runs import (
    make_bench,
    make_history,
    make_ranks,
    make_results,
    write_run,
)
from PIL import Image

from dprp_tf.report import (
    NothingToPlotError,
    plot_cost_by_epoch,
    plot_ranks_by_layer,
    plot_singular_values,
    plot_tradeoff,
    plot_training,
    save_plots,
)


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


def test_plots_are_saved_as_pictures(tmp_path: Path) -> None:

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


def test_the_plots_of_a_folder_include_the_benchmark(tmp_path: Path) -> None:
    folder = write_run(tmp_path, bench=make_bench())
    assert [path.name for path in save_plots(folder)] == ["bench.png"]
