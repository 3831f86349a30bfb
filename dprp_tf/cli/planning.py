"""Commands that measure before deciding: times of ranks or widths, and times of forms."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dprp_tf.cli.app import command
from dprp_tf.cli.console import load_keras, print_json, print_table, print_text, status
from dprp_tf.cli.inputs import require_low_rank, require_suffix
from dprp_tf.cli.next_steps import Step, data_options, say_next
from dprp_tf.cli.options import (
    Exclude,
    Json,
    Precision,
    Refresh,
    Runtime,
    TargetName,
    Threads,
    TimedRounds,
)
from dprp_tf.files.tables import StoredTable

if TYPE_CHECKING:
    import keras

__all__ = ["latency", "plan"]


@command
def latency(
    model: Annotated[str, typer.Argument(help="A network of the zoo, or a .keras file.")],
    output: Annotated[Path, typer.Argument(help="The table to write, such as latency.json.")],
    target: TargetName = "local",
    runtime: Runtime = "litert",
    precision: Precision = "float32",
    threads: Threads = 1,
    widths: Annotated[
        bool,
        typer.Option("--widths", help="By numbers of channels, for `dprp select --cut channels`."),
    ] = False,
    decomposition: Annotated[
        str | None,
        typer.Option(
            help="separable, channel or spatial; with --widths ranks too, for --cut both.",
            show_default="separable; with --widths none",
        ),
    ] = None,
    multiple: Annotated[
        int | None,
        typer.Option(min=1, help="--widths: multiples in which channels stay.", show_default="8"),
    ] = None,
    exclude: Exclude = None,
    input_shape: Annotated[
        str, typer.Option(help="Height, width, channels; for a network of the zoo.")
    ] = "32,32,3",
    classes: Annotated[int, typer.Option(min=2, help="For a network of the zoo.")] = 10,
    shortcut: Annotated[str | None, typer.Option(help="A or B, for the zoo's ResNets.")] = None,
    rank: Annotated[
        list[int] | None,
        typer.Option(min=1, help="A rank to measure; repeat for more. [all up to 9, else six]"),
    ] = None,
    rounds: TimedRounds = 30,
    refresh: Refresh = False,
    as_json: Json = False,
) -> None:
    """Measure on a target what each layer takes at each rank, or at each number of channels.

    Example: dprp latency resnet20 latency.json --target ssh://pi@raspberrypi.local
    """
    require_suffix(output, ".json")
    if widths and rank:
        raise ValueError(f"`rank` is for a table without `widths`. Received: rank={rank}")
    if multiple is not None and not widths:
        raise ValueError(f"`multiple` is for `widths`. Received: multiple={multiple}")
    load_keras()
    from dprp_tf import deploy

    network = _network(model, input_shape, classes, shortcut)
    measuring: dict[str, Any] = {
        "target": target,
        "runtime": runtime,
        "precision": precision,
        "threads": threads,
        "rounds": rounds,
        "refresh": refresh,
    }
    folder = Path("runs") / Path(model).stem
    place = (*data_options(None), "--folder", folder, "--latency-table", output)
    if widths:
        groups = _groups(network, model, exclude)
        with status() as progress:
            by_width = deploy.measure_widths(
                network,
                decomposition=decomposition,
                groups=groups,
                multiple=multiple or 8,
                progress=progress,
                **measuring,
            )
        step = _step_of_widths(("select", model, *place, "--time", 0.6), decomposition)
        _save(by_width, output, as_json, *([step] if model.endswith(".keras") else []))
        return
    network = _factorized(network, model, decomposition or "separable", exclude)
    with status() as progress:
        table = deploy.measure_latency(network, ranks=rank, progress=progress, **measuring)
    between = (table.dense + table.least) / 2
    towards = (*place, "--milliseconds", f"{between:.3g}")
    count = "a time" if table.unit == "ms" else f"a number of {table.unit}"
    trained = (f"training towards {count}", ("train", "--model", model, *towards))
    chosen = (f"ranks of a trained model for {count}", ("select", model, *towards))
    _save(table, output, as_json, *([chosen] if model.endswith(".keras") else []), trained)


def _network(model: str, input_shape: str, classes: int, shortcut: str | None) -> keras.Model:
    """The model of a file, or a network of the zoo."""
    from dprp_tf import zoo
    from dprp_tf.conversion.writing_out import reachable
    from dprp_tf.training.saving import load_model

    if model.endswith(".keras"):
        return reachable(load_model(model))
    try:
        shape = tuple(int(size) for size in input_shape.split(","))
    except ValueError:
        shape = ()
    if len(shape) not in (3, 4):
        raise ValueError(
            "`input_shape` must be height,width,channels, after the depth for voxels. "
            f"Received: {input_shape}"
        )
    options = {} if shortcut is None else {"shortcut": shortcut}
    return zoo.build(model, input_shape=shape, classes=classes, **options)


def _factorized(
    network: keras.Model, model: str, decomposition: str, exclude: list[str] | None
) -> keras.Model:
    """The network with ranks; itself if it has some."""
    from dprp_tf.conversion.factorizing import factorize
    from dprp_tf.layers import factorized_layers
    from dprp_tf.runs.excluded_layers import all_but

    if not factorized_layers(network):
        layers = all_but(network, exclude or ())
        return factorize(network, decomposition=decomposition, layers=layers)
    if exclude:
        raise ValueError(
            f"`exclude` is for a model that is not factorized yet. Received: {exclude} for "
            f"{model}, which has SVD layers"
        )
    return network


def _groups(network: keras.Model, model: str, exclude: list[str] | None) -> list[str] | None:
    """The groups of plain layers that may lose channels; None for all."""
    from dprp_tf.layers import factorized_layers
    from dprp_tf.runs.choosing_channels import groups_left
    from dprp_tf.runs.excluded_layers import all_but

    if factorized_layers(network):
        raise ValueError(
            f"`model` must have plain layers for `widths`. Received: {model}, which has SVD "
            "layers; fold it before, with dprp_tf.fold(model)."
        )
    return groups_left(network, all_but(network, exclude or ()))


def _step_of_widths(select: tuple[object, ...], decomposition: str | None) -> Step:
    """What a table by width is for, once its model is trained."""
    if decomposition is None:
        return "a narrower model for a time", (*select, "--cut", "channels")
    both = (*select, "--cut", "both")
    if decomposition == "channel":
        return "channels and ranks for a time, learned", (*both, "--method", "less")
    return "channels and ranks for a time", both


@command
def plan(
    model: Annotated[Path, typer.Argument(help="A .keras file with SVD layers.")],
    output: Annotated[Path, typer.Argument(help="The plan to write, such as plan.json.")],
    target: TargetName = "local",
    runtime: Runtime = "litert",
    precision: Precision = "float32",
    threads: Threads = 1,
    tolerance: Annotated[
        float, typer.Option(help="Relative kernel error a form may have; 0 is exact.")
    ] = 0.0,
    rounds: TimedRounds = 30,
    refresh: Refresh = False,
    as_json: Json = False,
) -> None:
    """Measure on a target which form of each low-rank layer is fastest; for `dprp fold --plan`.

    Example: dprp plan runs/cifar/model.keras plan.json --target ssh://pi@raspberrypi.local
    """
    require_suffix(output, ".json")
    load_keras()
    from dprp_tf import deploy
    from dprp_tf.training.saving import load_model

    loaded = require_low_rank(load_model(model), model)
    with status() as progress:
        found = deploy.plan_fold(
            loaded,
            target=target,
            runtime=runtime,
            precision=precision,
            threads=threads,
            tolerance=tolerance,
            rounds=rounds,
            refresh=refresh,
            progress=progress,
        )
    folded = model.with_name("folded.keras")
    _save(found, output, as_json, ("plain layers", ("fold", model, folded, "--plan", output)))


def _save(found: StoredTable, output: Path, as_json: bool, *steps: Step) -> None:
    """Write what was measured, and print it with what to do next."""
    found.save(output)
    if as_json:
        print_json(found.as_dict())
    else:
        print_table(found)
        print_text(output)
        say_next(*steps)
