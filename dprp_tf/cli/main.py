"""The command `dprp`: what the library does, one command each."""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from dprp_tf.conversion.summaries import summarize

__all__ = ["app", "main"]

app = typer.Typer(
    name="dprp",
    help="Low-rank CNNs for Keras: ranks that fall while training, folded into fast plain layers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_state = {"debug": False}

Json = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")]
Mean = Annotated[
    list[float] | None, typer.Option(help="Per channel; for a model that expects normalized input.")
]
Std = Annotated[list[float] | None, typer.Option(help="Per channel, with --mean.")]
ImageSize = Annotated[
    int | None, typer.Option(min=1, help="Resize images to this; voxel grids get empty margins.")
]
Target = Annotated[
    str, typer.Option(help="local, qemu:cortex-a72, ssh://user@host or adb://serial.")
]
Runtime = Annotated[str, typer.Option(help="litert or onnxruntime.")]
Precision = Annotated[str, typer.Option(help="float32, float16 (litert) or int8.")]
Refresh = Annotated[bool, typer.Option(help="Measure anew what is remembered.")]
Fresh = Annotated[bool, typer.Option(help="Discard what the run folder holds.")]


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False,
) -> None:
    _state["debug"] = debug


def _command(function: Callable[..., None]) -> Callable[..., None]:
    """Register a command that turns an expected error into one line and exit code 2."""

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except (ValueError, OSError, RuntimeError, ImportError) as error:
            if _state["debug"]:
                raise
            message = " ".join(str(error).split())
            typer.echo(f"error: {message}", err=True)
            raise typer.Exit(getattr(error, "exit_code", 2)) from error
        except KeyboardInterrupt:
            typer.echo("stopped; what is finished is kept: the same command goes on", err=True)
            raise typer.Exit(130) from None

    app.command(epilog=_example(function))(guarded)
    return guarded


def _example(function: Callable[..., None]) -> str | None:
    lines = (function.__doc__ or "").splitlines()
    found = [line.strip() for line in lines if line.strip().startswith("Example:")]
    return found[0] if found else None


def _load_data(
    source: str, image_size: int | None, mean: list[float] | None, std: list[float] | None
) -> Any:
    from dprp_tf import data

    if (mean is None) != (std is None):
        raise ValueError(
            f"`mean` and `std` must be given together. Received: mean={mean}, std={std}"
        )
    dataset = data.load(source, image_size=image_size)
    return dataset if mean is None or std is None else dataset.normalized(mean, std)


def _load_keras() -> None:
    """Import TensorFlow without the lines it prints about processors it did not find."""
    from dprp_tf.deploy.running.quiet import quiet

    with quiet():
        import keras  # noqa: F401


@contextlib.contextmanager
def _status() -> Iterator[Callable[[str], None]]:
    """Yield what shows the step at work on standard error, without importing Keras."""
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("measuring") as status:
        yield (
            lambda step: (
                status.update(step) if console.is_terminal else console.print(step, highlight=False)
            )
        )


def _require_json(output: Path) -> None:
    if output.suffix != ".json":
        raise ValueError(f"`output` must end in .json. Received: {output}")


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


def _print(value: Any) -> None:
    from rich.console import Console

    Console().print(value)


@_command
def demo(
    folder: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/demo"),
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs of each training.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Train, shrink, fold, export, verify and time a small CNN on digits, then write a report.

    Example: dprp demo --folder runs/demo
    """
    _load_keras()
    from dprp_tf.report import results_table
    from dprp_tf.runs.demo import run_demo
    from dprp_tf.runs.progress import Display

    with Display() as display:
        results = run_demo(folder, epochs=epochs, seed=seed, fresh=fresh, display=display)
    if as_json:
        _print_json(results)
        return
    _print(results_table(results))
    typer.echo(f"\n{results['headline']['text']}")
    typer.echo(f"Report: {folder / 'report.html'}")


@_command
def train(
    model: Annotated[str, typer.Option(help="A network of the zoo, or a .keras file.")],
    data: Annotated[
        str,
        typer.Option(
            help="digits, cifar10, cifar100, mnist, fashion_mnist, a .npz, a folder, "
            "gtsrb:FOLDER, imagenet:FOLDER or modelnet:FILE.npz."
        ),
    ],
    folder: Annotated[Path, typer.Option(help="Run folder; the same command goes on in it.")],
    method: Annotated[str, typer.Option(help="dprp or dense.")] = "dprp",
    epochs: Annotated[int, typer.Option(min=1, help="Epochs in all.")] = 20,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per step.")] = 128,
    learning_rate: Annotated[float, typer.Option(min=0, help="Peak learning rate of SGD.")] = 0.1,
    schedule: Annotated[str, typer.Option(help="cosine, constant or plateau.")] = "cosine",
    weight_decay: Annotated[float, typer.Option(min=0, help="Coupled; zoo only.")] = 1e-4,
    shortcut: Annotated[str, typer.Option(help="A or B, for the zoo's ResNets.")] = "A",
    exclude: Annotated[
        list[str] | None, typer.Option(help="A layer that stays dense; repeat for more.")
    ] = None,
    decomposition: Annotated[str, typer.Option(help="spatial, channel or separable.")] = "spatial",
    structure: Annotated[str, typer.Option(help="retraction, smoothed or paper.")] = "retraction",
    compression: Annotated[str, typer.Option(help="tail, l1, l2, funnel or none.")] = "tail",
    compression_weight: Annotated[float, typer.Option(min=0, help="lambda of Eq. 12.")] = 0.1,
    threshold: Annotated[float, typer.Option(help="epsilon, between 0 and 1.")] = 0.1,
    discarded_energy: Annotated[
        float, typer.Option(help="Share of energy cut besides; for channel and separable.")
    ] = 0.0,
    start_epoch: Annotated[int, typer.Option(min=0, help="First epoch that may shrink.")] = 0,
    stop_epoch: Annotated[
        int | None, typer.Option(min=1, help="First epoch that no longer shrinks.")
    ] = None,
    frequency: Annotated[int, typer.Option(min=1, help="Epochs between shrinks.")] = 1,
    minimum_removed: Annotated[int, typer.Option(min=1, help="Values that justify a shrink.")] = 1,
    minimum_rank: Annotated[int, typer.Option(min=1, help="Rank no layer falls below.")] = 1,
    latency_table: Annotated[
        Path | None, typer.Option(help="What `dprp latency` wrote; with --budget.")
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(help="What the folded model may take, in the table's unit."),
    ] = None,
    image_size: ImageSize = None,
    mean: Mean = None,
    std: Std = None,
    augment: Annotated[
        bool, typer.Option(help="Change training images at random, as suits the data.")
    ] = True,
    padding: Annotated[
        int | None, typer.Option(min=0, help="Largest shift in pixels.  [default: the data's]")
    ] = None,
    flip: Annotated[
        bool | None,
        typer.Option("--flip/--no-flip", help="Mirror half of the images.  [default: the data's]"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
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
    _load_keras()
    from dprp_tf.runs.progress import Display
    from dprp_tf.runs.settings import TrainSettings
    from dprp_tf.runs.training import finish, train
    from dprp_tf.training.distribution import distribution

    # Before anything is computed: TensorFlow opens its connections only then.
    place = distribution(
        strategy,
        workers=None if workers is None else workers.split(","),
        worker_index=worker_index,
        synchronize_batch_norm=sync_batch_norm,
        timeout=worker_timeout,
    )
    dataset = _load_data(data, image_size, mean, std)
    settings = TrainSettings(
        model=model,
        method=method,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        schedule=schedule,
        weight_decay=weight_decay,
        shortcut=shortcut,
        exclude=tuple(exclude or ()),
        decomposition=decomposition,
        structure=structure,
        compression=None if compression == "none" else compression,
        compression_weight=compression_weight,
        threshold=threshold,
        discarded_energy=discarded_energy,
        start_epoch=start_epoch,
        stop_epoch=stop_epoch,
        frequency=frequency,
        minimum_rank=minimum_rank,
        minimum_removed=minimum_removed,
        latency_table=None if latency_table is None else str(latency_table),
        budget=budget,
        augment=augment,
        padding=padding,
        flip=flip,
        seed=seed,
    )
    if not place.is_chief:
        train(folder, settings, dataset, fresh=fresh, distribution=place)
        typer.echo(f"worker {place.worker}: done; worker 0 has the run folder", err=True)
        return
    with Display() as display:
        trained = train(
            folder,
            settings,
            dataset,
            callbacks=[display.training(method, epochs)],
            fresh=fresh,
            distribution=place,
        )
        display.step("evaluating")
        results = finish(folder, settings, dataset, trained)
        display.finish()
    if as_json:
        _print_json(results)
        return
    from dprp_tf.report import results_table

    _print(results_table(results))
    typer.echo(f"Run folder: {folder}")


@_command
def plan(
    model: Annotated[Path, typer.Argument(help="A .keras file with SVD layers.")],
    output: Annotated[Path, typer.Argument(help="The plan to write, such as plan.json.")],
    target: Target = "local",
    runtime: Runtime = "litert",
    precision: Precision = "float32",
    threads: Annotated[int, typer.Option(min=1, help="Threads of the runtime.")] = 1,
    tolerance: Annotated[
        float, typer.Option(help="Relative kernel error a form may have; 0 is exact.")
    ] = 0.0,
    rounds: Annotated[int, typer.Option(min=3, help="Timed rounds per form.")] = 30,
    refresh: Refresh = False,
    as_json: Json = False,
) -> None:
    """Measure on a target which form of each low-rank layer is fastest; for `dprp fold --plan`.

    Example: dprp plan runs/cifar/model.keras plan.json --target ssh://pi@raspberrypi.local
    """
    _require_json(output)
    _load_keras()
    from dprp_tf import deploy
    from dprp_tf.training.saving import load_model

    loaded = load_model(model)
    with _status() as progress:
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
    found.save(output)
    if as_json:
        _print_json(found.as_dict())
    else:
        _print(found)
        typer.echo(f"{output}; apply it: dprp fold {model} small.keras --plan {output}")


@_command
def latency(
    model: Annotated[str, typer.Argument(help="A network of the zoo, or a .keras file.")],
    output: Annotated[Path, typer.Argument(help="The table to write, such as latency.json.")],
    target: Target = "local",
    runtime: Runtime = "litert",
    precision: Precision = "float32",
    threads: Annotated[int, typer.Option(min=1, help="Threads of the runtime.")] = 1,
    decomposition: Annotated[str, typer.Option(help="spatial, channel or separable.")] = "spatial",
    exclude: Annotated[
        list[str] | None, typer.Option(help="A layer that stays dense; repeat for more.")
    ] = None,
    input_shape: Annotated[
        str, typer.Option(help="Height, width, channels; for a network of the zoo.")
    ] = "32,32,3",
    classes: Annotated[int, typer.Option(min=2, help="For a network of the zoo.")] = 10,
    shortcut: Annotated[str | None, typer.Option(help="A or B, for the zoo's ResNets.")] = None,
    rank: Annotated[
        list[int] | None,
        typer.Option(min=1, help="A rank to measure; repeat for more. [all up to 9, else six]"),
    ] = None,
    rounds: Annotated[int, typer.Option(min=3, help="Timed rounds per form.")] = 30,
    refresh: Refresh = False,
    as_json: Json = False,
) -> None:
    """Measure on a target what each layer takes at each rank, before training.

    Example: dprp latency resnet20 latency.json --target ssh://pi@raspberrypi.local
    """
    _require_json(output)
    _load_keras()
    from dprp_tf import deploy, zoo
    from dprp_tf.conversion.factorizing import factorize
    from dprp_tf.files.atomic import read_json
    from dprp_tf.layers import factorized_layers
    from dprp_tf.runs.training import all_but
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
    with _status() as progress:
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
    table.save(output)
    if as_json:
        _print_json(read_json(output))
    else:
        _print(table)
        budget = (table.dense + table.least) / 2
        typer.echo(
            f"{output}; train towards a time, such as {budget:.3g}: "
            f"dprp train --latency-table {output} --budget {budget:.3g}"
        )


@_command
def select(
    model: Annotated[Path, typer.Argument(help="A trained .keras file of dense layers.")],
    data: Annotated[str, typer.Option(help="Its data, as for `dprp train`.")],
    folder: Annotated[Path, typer.Option(help="Folder; the same command goes on in it.")],
    method: Annotated[
        str,
        typer.Option(
            help="uniform, energy, energy_product, vbmf, activation, mbs, beam, similarity or bsr."
        ),
    ] = "activation",
    parameters: Annotated[
        float | None, typer.Option(help="Largest share of the dense model's parameters.")
    ] = None,
    macs: Annotated[float | None, typer.Option(help="Largest share of its MACs.")] = None,
    activations: Annotated[
        float | None, typer.Option(help="Largest share of its activation volume; 1 or more.")
    ] = None,
    milliseconds: Annotated[
        float | None, typer.Option(help="Longest time, in the unit of --latency-table.")
    ] = None,
    latency_table: Annotated[Path | None, typer.Option(help="What `dprp latency` wrote.")] = None,
    accuracy_drop: Annotated[
        float | None, typer.Option(help="Accuracy that may be lost; 0.015 is 1.5 points.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="How far below the nearest bound the result may stay.")
    ] = 0.01,
    decomposition: Annotated[
        str, typer.Option(help="spatial, channel, separable or tucker.")
    ] = "spatial",
    truncation: Annotated[
        str | None, typer.Option(help="kernel or output.  [default: the method's]")
    ] = None,
    samples: Annotated[
        int, typer.Option(min=1, help="Training images held out to choose ranks with.")
    ] = 256,
    search: Annotated[
        list[str] | None,
        typer.Option(help="mbs: step,beams such as 3,5; repeat to search several times."),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="A layer that stays dense; repeat for more.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=0, help="Epochs of fine-tuning.  [default: none; bsr: 30]")
    ] = None,
    learning_rate: Annotated[float, typer.Option(help="Peak rate of the fine-tuning.")] = 0.01,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per step.")] = 128,
    regularized_epochs: Annotated[
        int, typer.Option(min=0, help="bsr: epochs of training before the cut.")
    ] = 60,
    strength: Annotated[float, typer.Option(min=0, help="bsr: lambda of that training.")] = 0.02,
    image_size: ImageSize = None,
    mean: Mean = None,
    std: Std = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Choose the ranks of a trained model against a budget, cut it, and fine-tune it if asked.

    Example: dprp select dense.keras --data cifar10 --folder runs/ranks --parameters 0.5
    """
    _load_keras()
    from dprp_tf.costs.budget import Budget
    from dprp_tf.costs.latency_table import LatencyTable
    from dprp_tf.costs.rank_plan import RankPlan
    from dprp_tf.runs.progress import Display
    from dprp_tf.runs.selecting import SelectionSettings, select_in_folder
    from dprp_tf.runs.training import all_but
    from dprp_tf.training.fine_tuning import FineTuning
    from dprp_tf.training.saving import load_model

    budget = Budget(
        parameters=parameters,
        macs=macs,
        activations=activations,
        milliseconds=milliseconds,
        accuracy_drop=accuracy_drop,
        tolerance=tolerance,
    )
    tuning = None
    if epochs is None and method == "bsr":
        epochs = 30
    if epochs is not None:
        tuning = FineTuning(
            epochs=epochs, learning_rate=learning_rate, batch_size=batch_size, seed=seed
        )
    settings = SelectionSettings(
        method=method,
        budget=budget,
        searches=_searches(method, search),
        decomposition=decomposition,
        truncation=truncation,
        samples=samples,
        exclude=tuple(exclude or ()),
        tuning=tuning,
        regularized_epochs=regularized_epochs,
        strength=strength,
        seed=seed,
    )
    dense = load_model(model)
    dataset = _load_data(data, image_size, mean, std)
    with Display() as display:
        results = select_in_folder(
            folder,
            dense,
            dataset,
            settings,
            latency=None if latency_table is None else LatencyTable.load(latency_table),
            layers=all_but(dense, settings.exclude),
            display=display,
            fresh=fresh,
        )
    if as_json:
        _print_json(results)
        return
    _print(RankPlan.load(folder / "rank_plan.json"))
    told = ", ".join(f"{name} {value:.2%}" for name, value in results["accuracy"].items())
    typer.echo(f"Accuracy on the {results['data']['test']} test images: {told}")
    typer.echo(f"{folder}: every candidate, the plan, a plot, and the models")


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


@_command
def fold(
    model: Annotated[Path, typer.Argument(help="A .keras file with SVD layers.")],
    output: Annotated[Path, typer.Argument(help="The .keras file to write.")],
    form: Annotated[str, typer.Option(help="smallest, fast, dense or two_stage.")] = "smallest",
    plan: Annotated[Path | None, typer.Option(help="What `dprp plan` wrote; wins.")] = None,
    as_json: Json = False,
) -> None:
    """Fold a low-rank model into plain Keras layers.

    Example: dprp fold runs/cifar/model.keras small.keras --plan plan.json
    """
    _load_keras()
    from dataclasses import asdict

    from dprp_tf.conversion.folding import choose_forms
    from dprp_tf.conversion.folding import fold as fold_model
    from dprp_tf.costs.fold_plan import FoldPlan
    from dprp_tf.training.saving import load_model, save_model

    if output.suffix != ".keras":
        raise ValueError(f"`output` must end in .keras. Received: {output}")
    loaded = load_model(model)
    found = None if plan is None else FoldPlan.load(plan)
    folded = fold_model(loaded, form=form, plan=found)
    save_model(folded, output)
    rows = [asdict(row) for row in choose_forms(loaded, form=form, plan=found)]
    if as_json:
        _print_json({"output": str(output), "parameters": folded.count_params(), "layers": rows})
        return
    for row in rows:
        typer.echo(
            f"{row['name']}: rank {row['rank']} of {row['full_rank']}, {row['form']} "
            f"({row['reason']})"
        )
    typer.echo(f"{output}: {folded.count_params():,} parameters")


@_command
def export(
    model: Annotated[Path, typer.Argument(help="A .keras file, folded or not.")],
    output: Annotated[Path, typer.Argument(help="The .tflite or .onnx file to write.")],
    quantization: Annotated[
        str | None, typer.Option(help="float16, int8, or for .tflite dynamic.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Data to calibrate on and to verify with.")
    ] = None,
    image_size: ImageSize = None,
    mean: Mean = None,
    std: Std = None,
    samples: Annotated[int, typer.Option(min=1, help="Images used of each split.")] = 256,
    as_json: Json = False,
) -> None:
    """Export a model to TFLite or ONNX and verify the file against it.

    Example: dprp export small.keras small.tflite --quantization int8 --data digits
    """
    _load_keras()
    from dprp_tf import deploy
    from dprp_tf.runs.evaluation import plain_model
    from dprp_tf.training.saving import load_model

    if output.suffix not in (".tflite", ".onnx"):
        raise ValueError(f"`output` must end in .tflite or .onnx. Received: {output}")
    plain = plain_model(load_model(model))
    calibration = verification = None
    if data is not None:
        dataset = _load_data(data, image_size, mean, std)
        calibration = dataset.x_train[:samples].astype("float32")
        verification = dataset.x_test[:samples].astype("float32")
    report = deploy.export(
        plain,
        output,
        quantization=quantization,
        calibration_data=calibration if quantization == "int8" else None,
        verification_data=verification,
    )
    if as_json:
        _print_json(report.as_dict())
    else:
        typer.echo(str(report))


@_command
def bench(
    files: Annotated[list[Path], typer.Argument(help="One or more .tflite or .onnx files.")],
    threads: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Threads of the runtime, 1 by default; repeat for more."),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="local (the default), qemu:cortex-a72, ssh://user@host, adb://serial; repeat."
        ),
    ] = None,
    warmup: Annotated[int, typer.Option(min=0, help="Untimed runs first.")] = 10,
    repeats: Annotated[int, typer.Option(min=1, help="Timed samples per file.")] = 50,
    data: Annotated[str | None, typer.Option(help="Data to find each file's accuracy on.")] = None,
    image_size: ImageSize = None,
    mean: Mean = None,
    std: Std = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Test images for the accuracy; all by default.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for bench.json and plots, such as a run folder.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Time files on targets; those of one target are timed in turns and compared with the first.

    Example: dprp bench dense.tflite small.tflite --threads 1 --threads 4 --data digits
    """
    from dprp_tf.deploy.measurement.sweep import sweep
    from dprp_tf.files.atomic import write_json
    from dprp_tf.report import NothingToPlotError, bench_report, save_bench_plots

    dataset = split = None
    if data is not None:
        _load_keras()
        dataset = _load_data(data, image_size, mean, std)
        if dataset.streamed and samples is None:
            raise ValueError(
                "`samples` must be given for images that stay on disk. Received: samples=None "
                f"for {data}. Give a number of test images, such as --samples 1000."
            )
        split = dataset.x_test[:samples].astype("float32"), dataset.y_test[:samples]
    with _status() as progress:
        found = sweep(
            files,
            threads=threads or (1,),
            targets=target or ("local",),
            warmup=warmup,
            repeats=repeats,
            data=split,
            progress=progress,
        )
    content = found.as_dict()
    if dataset is not None and split is not None:
        content |= {"data": dataset.description, "samples": len(split[1])}
    if output is not None:
        write_json(output / "bench.json", content)
        with contextlib.suppress(NothingToPlotError):
            save_bench_plots(content, output)
    if as_json:
        _print_json(content)
    else:
        _print(bench_report(content))
        if output is not None:
            typer.echo(f"{output / 'bench.json'}; its page: dprp report {output}")
    if found.failures:
        places = ", ".join(dict.fromkeys(failure.target for failure in found.failures))
        raise RuntimeError(f"some targets could not measure: {places}; see the messages above")


@_command
def inspect(
    file: Annotated[Path, typer.Argument(help="A .keras file.")],
    as_json: Json = False,
) -> None:
    """List a model's layers: ranks, parameters, MACs, and what stayed dense and why.

    Example: dprp inspect runs/cifar/model.keras
    """
    _load_keras()
    from dprp_tf.training.saving import load_model

    found = summarize(load_model(file))
    if as_json:
        _print_json(found.as_dict())
    else:
        _print(found.table())


@_command
def report(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
) -> None:
    """Gather a run's results, benchmarks, fold plan and quantization in plots and one HTML page.

    Example: dprp report runs/demo
    """
    from dprp_tf.report import save_plots, write_report

    save_plots(run)
    typer.echo(str(write_report(run)))


@_command
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
    _load_keras()
    from dprp_tf import data as datasets
    from dprp_tf.experiments import table_ii
    from dprp_tf.runs.progress import Display

    if show:
        _print(table_ii.list_rows(results))
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
    _print(table_ii.list_rows(results))


def main() -> None:
    """Run the command line."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    app(prog_name="dprp")


if __name__ == "__main__":
    main()
