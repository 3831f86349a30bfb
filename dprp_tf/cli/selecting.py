"""The command that chooses the ranks of a trained model, its channels, or both."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dprp_tf.cli.app import command
from dprp_tf.cli.console import load_keras, print_json, print_table, print_text
from dprp_tf.cli.inputs import load_data
from dprp_tf.cli.next_steps import data_options, say_next, steps_of_plain
from dprp_tf.cli.options import (
    Fresh,
    ImageSize,
    Json,
    Mean,
    Std,
    with_settings,
)
from dprp_tf.costs.budget import Budget
from dprp_tf.runs.settings import SelectionSettings

__all__ = ["select"]


@command
@with_settings("bounds", Budget)
@with_settings("settings", SelectionSettings, without=("tuning",))
def select(
    model: Annotated[Path, typer.Argument(help="A trained .keras file of dense layers.")],
    data: Annotated[str, typer.Option(help="Its data, as for `dprp train`.")],
    folder: Annotated[Path, typer.Option(help="Folder; the same command goes on in it.")],
    bounds: dict[str, Any],
    settings: dict[str, Any],
    latency_table: Annotated[
        Path | None,
        typer.Option(
            help="What `dprp latency` wrote; with --widths, where channels go and for less."
        ),
    ] = None,
    search: Annotated[
        list[str] | None,
        typer.Option(help="mbs: step,beams such as 3,5; repeat to search several times."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=0, help="Epochs of fine-tuning.", show_default="none; bsr: 30")
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(
            help="Of the fine-tuning: sgd or adam.", show_default="adam for transformers, else sgd"
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Peak rate of the fine-tuning.", show_default="0.01 of sgd, 0.003 of adam"
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Images per step.", show_default="128, of few images 64 to 16"),
    ] = None,
    image_size: ImageSize = None,
    mean: Mean = None,
    std: Std = None,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Choose a trained model's ranks or channels, cut it, tune it if asked, time its files.

    Example: dprp select mine.keras --data photos/ --folder runs/mine --time 0.5 --epochs 8
    """
    budget, method = Budget(**bounds), settings["method"]
    searches = _searches(method, search)
    load_keras()
    from dprp_tf.conversion.writing_out import reachable
    from dprp_tf.report import results_table
    from dprp_tf.runs.excluded_layers import all_but
    from dprp_tf.runs.kept_plans import load_plan
    from dprp_tf.runs.progress import Display
    from dprp_tf.runs.selecting import select_in_folder
    from dprp_tf.runs.time_tables import load_table
    from dprp_tf.training.fine_tuning import FineTuning
    from dprp_tf.training.saving import load_model

    if epochs is None and method == "bsr":
        epochs = 30
    tuning = None
    if epochs is not None:
        tuning = FineTuning(
            epochs=epochs,
            optimizer=optimizer,
            learning_rate=learning_rate,
            batch_size=batch_size,
            seed=settings["seed"],
        )
    chosen = SelectionSettings(budget=budget, searches=searches, tuning=tuning, **settings)
    dense = reachable(load_model(model))
    dataset = load_data(data, image_size, mean, std, dense)
    with Display() as display:
        results = select_in_folder(
            folder,
            dense,
            dataset,
            chosen,
            latency=None if latency_table is None else load_table(latency_table, chosen),
            layers=all_but(dense, chosen.exclude),
            display=display,
            fresh=fresh,
        )
    if as_json:
        print_json(results)
        return
    print_table(load_plan(folder, chosen.cut))
    print_table(results_table(results))
    told = ", ".join(f"{name} {value:.2%}" for name, value in results["accuracy"].items())
    print_text(f"Accuracy on the {results['data']['test']} test images: {told}")
    print_text(_speed(results))
    for row in results.get("files", ()):
        if not row["verified"]:
            print_text(
                f"{row['file']} is NOT VERIFIED, do not ship it: it calls only "
                f"{row['top1_agreement']:.1%} of the images the same as its model does."
            )
    log = "" if chosen.by_width else "every candidate, "
    print_text(f"{folder}: report.html, {log}the plan, the models and their files")
    words = data_options(data, image_size, mean, std)
    if "files" in results:
        files = [folder / row["file"] for row in results["files"]]
        say_next(("the same on your device (--target)", ("bench", files[0], files[-1], *words)))
        return
    small = folder / ("model.keras" if "tuned" in results["accuracy"] else "cut.keras")
    say_next(*steps_of_plain(small, words))


def _speed(results: dict[str, Any]) -> str:
    """How fast the last model's file is beside the dense one's; that nothing is known, if so."""
    settings = results["settings"]
    if "files" not in results:
        return "Nothing was timed: the smaller model may be slower; give --precision int8."
    *_, row = results["files"]
    low, high = row["latency_ratio_interval"]
    place = f"{settings['precision']} on {settings['target']}, {settings['runtime']}"
    if low >= 1:
        word = "SLOWER than the dense file"
    else:
        word = "faster than the dense file" if high < 1 else "as fast as the dense file"
    return (
        f"{row['file']} is {word}: {row['latency_ratio']:.2f} x its time "
        f"({low:.2f} to {high:.2f}; {place})"
    )


def _searches(method: str, search: list[str] | None) -> tuple[tuple[int, int], ...]:
    if search and method not in ("mbs", "bsr"):
        raise ValueError(f"`search` is for mbs and bsr. Received: {search} for {method}")
    found = []
    for entry in search or ():
        try:
            step, beams = (int(part) for part in entry.split(","))
        except ValueError:
            raise ValueError(
                f"`search` must be step,beams, such as 3,5. Received: {entry!r}"
            ) from None
        found.append((step, beams))
    return tuple(found)
