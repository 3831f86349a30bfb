"""Commands that train: the demo, a run in a folder, a row of the paper's table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dprp_tf.cli.app import command
from dprp_tf.cli.console import load_keras, print_error, print_json, print_table, print_text
from dprp_tf.cli.inputs import load_data
from dprp_tf.cli.next_steps import (
    data_options,
    say_next,
    steps_of_low_rank,
    steps_of_plain,
)
from dprp_tf.cli.options import Fresh, ImageSize, Json, Mean, Std, with_settings
from dprp_tf.runs.settings import TrainSettings

__all__ = ["demo", "reproduce", "train"]


@command
def demo(
    folder: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/demo"),
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs of each training.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Train a small CNN on digits, shrink it in two ways, export, verify and time, and report.

    Example: dprp demo --folder runs/demo
    """
    load_keras()
    from dprp_tf.report import results_table
    from dprp_tf.runs.demo import run_demo
    from dprp_tf.runs.progress import Display

    with Display() as display:
        results = run_demo(folder, epochs=epochs, seed=seed, fresh=fresh, display=display)
    if as_json:
        print_json(results)
        return
    print_table(results_table(results))
    print_text(f"\n{results['headline']['text']}")
    print_text(f"Report: {folder / 'report.html'}")
    say_next(("your own network", ("look", "MINE.keras", "PHOTOS")))


@command
@with_settings("settings", TrainSettings, required=("model",))
def train(
    data: Annotated[
        str,
        typer.Option(
            help="digits, cifar10, cifar100, mnist, fashion_mnist, a .npz, a folder, "
            "gtsrb:FOLDER, imagenet:FOLDER or modelnet:FILE.npz."
        ),
    ],
    folder: Annotated[Path, typer.Option(help="Run folder; the same command goes on in it.")],
    settings: dict[str, Any],
    image_size: ImageSize = None,
    mean: Mean = None,
    std: Std = None,
    strategy: Annotated[
        str, typer.Option(help="none, mirrored, mirrored:2 (devices) or multiworker.")
    ] = "none",
    workers: Annotated[
        str | None,
        typer.Option(help="host:port,host:port, worker 0 first; instead of TF_CONFIG."),
    ] = None,
    worker_index: Annotated[
        int | None, typer.Option(min=0, help="This process' place among --workers.")
    ] = None,
    worker_timeout: Annotated[
        float, typer.Option(help="Seconds to wait for the other workers to begin.")
    ] = 300.0,
    sync_batch_norm: Annotated[
        bool, typer.Option(help="Normalize over the whole batch, not each replica's share.")
    ] = True,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Train a network with falling ranks (or densely) in a run folder; resumes by itself.

    Example: dprp train --model resnet20 --data cifar10 --folder runs/cifar --epochs 30
    """
    chosen = TrainSettings(**settings)
    load_keras()
    from dprp_tf.runs.progress import Display
    from dprp_tf.runs.results import FOLDED, finish
    from dprp_tf.runs.training import train as train_in_folder
    from dprp_tf.training.distribution import distribution
    from dprp_tf.training.saving import load_model

    # Before anything is computed: TensorFlow opens its connections only then.
    place = distribution(
        strategy,
        workers=None if workers is None else workers.split(","),
        worker_index=worker_index,
        synchronize_batch_norm=sync_batch_norm,
        timeout=worker_timeout,
    )
    start = load_model(chosen.model) if chosen.model.endswith(".keras") else None
    dataset = load_data(data, image_size, mean, std, start)
    if not place.is_chief:
        train_in_folder(folder, chosen, dataset, fresh=fresh, distribution=place)
        print_error(f"worker {place.worker}: done; worker 0 has the run folder")
        return
    with Display() as display:
        trained = train_in_folder(
            folder,
            chosen,
            dataset,
            callbacks=[display.training(chosen.method, chosen.epochs)],
            fresh=fresh,
            distribution=place,
        )
        display.step("evaluating")
        results = finish(folder, chosen, dataset, trained)
        display.finish()
    if as_json:
        print_json(results)
        return
    from dprp_tf.report import results_table

    print_table(results_table(results))
    print_text(f"Run folder: {folder}")
    words = data_options(data, image_size, mean, std)
    if (folder / FOLDED).exists():
        # What training folded went by weights; a file should go by times.
        say_next(*steps_of_low_rank(folder / "model.keras"))
    else:
        say_next(*steps_of_plain(folder / "model.keras", words))


@command
def reproduce(
    row: Annotated[str | None, typer.Argument(help="A row, as --list shows them.")] = None,
    show: Annotated[
        bool, typer.Option("--list", help="Show the paper's figures and ours.")
    ] = False,
    data: Annotated[str, typer.Option(help="CIFAR-10: its name or a .npz.")] = "cifar10",
    epochs: Annotated[int, typer.Option(min=1, help="Epochs in all; the paper's are 300.")] = 300,
    structure: Annotated[str, typer.Option(help="retraction, smoothed or paper.")] = "retraction",
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    work: Annotated[Path, typer.Option(help="Folder of the resumable runs.")] = Path(
        "runs/reproduce"
    ),
    results: Annotated[Path, typer.Option(help="Folder of JSON and plots.")] = Path(
        "results/table_ii"
    ),
) -> None:
    """Train a row of the paper's Table II with the paper's settings; goes on where it stopped.

    Example: dprp reproduce resnet20-proposed2 --data cifar10.npz
    """
    load_keras()
    from dprp_tf import data as datasets
    from dprp_tf.experiments import table_ii
    from dprp_tf.runs.progress import Display

    if show:
        print_table(table_ii.list_rows(results))
        return
    if row is None:
        raise ValueError(f"`row` must be one of {sorted(table_ii.ROWS)}, or give --list")
    table_ii.settings_of(row)
    dataset = datasets.load(data)
    with Display() as display:
        table_ii.reproduce(
            row,
            dataset,
            work=work,
            results=results,
            epochs=epochs,
            structure=structure,
            seed=seed,
            callbacks=[display.training(row, epochs)],
        )
    print_table(table_ii.list_rows(results))
