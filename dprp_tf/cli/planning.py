"""Commands that measure before deciding: times of ranks, and times of forms."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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

__all__ = ["latency", "plan"]


@command
def latency(
    model: Annotated[str, typer.Argument(help="A network of the zoo, or a .keras file.")],
    output: Annotated[Path, typer.Argument(help="The table to write, such as latency.json.")],
    target: TargetName = "local",
    runtime: Runtime = "litert",
    precision: Precision = "float32",
    threads: Threads = 1,
    decomposition: Annotated[
        str, typer.Option(help="separable, channel or spatial.")
    ] = "separable",
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
    """Measure on a target what each layer takes at each rank, before training.

    Example: dprp latency resnet20 latency.json --target ssh://pi@raspberrypi.local
    """
    require_suffix(output, ".json")
    load_keras()
    from dprp_tf import deploy, zoo
    from dprp_tf.conversion.factorizing import factorize
    from dprp_tf.layers import factorized_layers
    from dprp_tf.runs.excluded_layers import all_but
    from dprp_tf.training.saving import load_model

    if model.endswith(".keras"):
        network = load_model(model)
    else:
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
        network = zoo.build(model, input_shape=shape, classes=classes, **options)
    if factorized_layers(network):
        if exclude:
            raise ValueError(
                f"`exclude` is for a model that is not factorized yet. Received: {exclude} for "
                f"{model}, which has SVD layers"
            )
    else:
        network = factorize(
            network, decomposition=decomposition, layers=all_but(network, exclude or ())
        )
    with status() as progress:
        table = deploy.measure_latency(
            network,
            target=target,
            runtime=runtime,
            precision=precision,
            threads=threads,
            ranks=rank,
            rounds=rounds,
            refresh=refresh,
            progress=progress,
        )
    between = (table.dense + table.least) / 2
    towards = ("--latency-table", output, "--milliseconds", f"{between:.3g}")
    count = "a time" if table.unit == "ms" else f"a number of {table.unit}"
    folder = Path("runs") / Path(model).stem
    place = (*data_options(None), "--folder", folder, *towards)
    trained = (f"training towards {count}", ("train", "--model", model, *place))
    chosen = (f"ranks of a trained model for {count}", ("select", model, *place))
    _save(table, output, as_json, *([chosen] if model.endswith(".keras") else []), trained)


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
