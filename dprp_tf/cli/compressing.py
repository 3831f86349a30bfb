"""The command that goes all the way from a trained model to the best file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dprp_tf.cli.app import command
from dprp_tf.cli.console import load_keras, print_json, print_table, print_text
from dprp_tf.cli.inputs import load_data
from dprp_tf.cli.next_steps import data_options, say_next
from dprp_tf.cli.options import Fresh, ImageSize, Json, Mean, Std, with_settings
from dprp_tf.compression.settings import CompressionSettings

__all__ = ["compress"]


@command
@with_settings("settings", CompressionSettings, without=("max_drop",))
def compress(
    model: Annotated[Path, typer.Argument(help="A trained .keras file of plain layers.")],
    data: Annotated[str, typer.Option(help="Its data, as for `dprp train`.")],
    folder: Annotated[Path, typer.Option(help="Folder; the same command goes on in it.")],
    settings: dict[str, Any],
    max_drop: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=50,
            help="Points of top-1 accuracy that the file may lose beside the model.",
            show_default="0.5, unless --milliseconds or --kilobytes is given",
        ),
    ] = None,
    minutes: Annotated[
        float, typer.Option(help="What the search may take; more later goes on.")
    ] = 60,
    storage: Annotated[
        str | None,
        typer.Option(
            help="postgresql://user@host/name, for workers on several machines, each with a folder."
        ),
    ] = None,
    image_size: ImageSize = None,
    mean: Mean = None,
    std: Std = None,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Search for the best file that a trained model can become: cut, tuned, verified, timed.

    Example: dprp compress mine.keras --data photos/ --folder runs/phone --max-drop 0.5
    """
    load_keras()
    from dprp_tf.compression.compressing import compress as compress_model
    from dprp_tf.report.terminal import front_table
    from dprp_tf.runs.progress import Display
    from dprp_tf.training.saving import load_model

    dense = load_model(model)
    dataset = load_data(data, image_size, mean, std, dense)
    with Display() as display:
        best = compress_model(
            dense,
            dataset,
            folder=folder,
            minutes=minutes,
            storage=storage,
            display=display,
            fresh=fresh,
            max_drop=None if max_drop is None else max_drop / 100,
            **settings,
        )
    if as_json:
        print_json(best.results)
        return
    print_table(front_table(best.results))
    print_text(best.results["headline"]["text"])
    for note in best.results["notes"]:
        print_text(note)
    print_text(f"{best.path}; {folder}: report.html, the study, all candidates and their files")
    words = data_options(data, image_size, mean, std)
    dense_file = folder / "files" / best.results["files"][0]["file"]
    say_next(("the same beside the dense file", ("bench", dense_file, best.path, *words)))
