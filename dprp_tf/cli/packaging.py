"""The command that makes a folder to ship."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dprp_tf.cli.app import command
from dprp_tf.cli.console import load_keras, print_json, print_table, print_text
from dprp_tf.cli.inputs import load_data
from dprp_tf.cli.options import ImageSize, Json, Mean, Std
from dprp_tf.files.atomic import read_json

__all__ = ["package"]

_RESULTS = "results.json"


@command
def package(
    file: Annotated[
        Path,
        typer.Argument(help="A .tflite or .onnx file, or the folder of a `dprp compress` run."),
    ],
    folder: Annotated[Path, typer.Argument(help="The folder to ship; new, or a package already.")],
    data: Annotated[
        str | None,
        typer.Option(help="Its data: labels, normalization, accuracy and time come from there."),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="A text file with a label in each line, without --data.")
    ] = None,
    image_size: ImageSize = None,
    mean: Mean = None,
    std: Std = None,
    name: Annotated[
        str | None, typer.Option(help="What the model is called.", show_default="its file's name")
    ] = None,
    description: Annotated[str, typer.Option(help="What it is for.")] = "",
    license: Annotated[
        str | None, typer.Option(help="What it may be used for, such as Apache-2.0.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a folder to ship: file, labels, metadata, model card, programs that run it.

    Example: dprp package runs/phone ship/ --data photos/ --license Apache-2.0
    """
    from dprp_tf.deploy.packaging.packaging import package as make_package

    path, figures = _file_and_figures(file)
    normalization: Any = None if mean is None or std is None else (mean, std)
    names: tuple[str, ...] | None = None
    if data is not None and labels is not None:
        raise ValueError("`labels` must be left out with `data`, whose classes have names.")
    if labels is not None:
        names = tuple(labels.read_text(encoding="utf-8").splitlines())
    if data is None and (mean is None) != (std is None):
        raise ValueError(
            f"`mean` and `std` must be given together. Received: mean={mean}, std={std}"
        )
    if data is not None:
        load_keras()
        dataset = load_data(data, image_size, mean, std, path)
        names, normalization = dataset.classes, dataset.normalization
        # What a run measured, on the half of the test images that it had left for that, stays.
        figures = figures or _measured(path, dataset)
    made = make_package(
        path,
        folder,
        labels=names,
        normalization=normalization,
        name=name or (file.name if file.is_dir() else None) or None,
        description=description,
        license=license,
        figures=figures,
    )
    if as_json:
        print_json(made.as_dict())
        return
    print_table(made)
    kind = made.description["inputs"][0]["kind"]
    print_text(f"next, on the device: python run.py {'image.ppm' if kind == 'image' else 'x.npy'}")


def _file_and_figures(file: Path) -> tuple[Path, dict[str, Any]]:
    """The file to package, and what a `dprp compress` run measured of it."""
    if not file.is_dir():
        return file, {}
    try:
        results = read_json(file / _RESULTS)
        best = next(row for row in results["front"] if row["best"])
        measured = next(row for row in results["files"] if row["file"] == best["file"])
        figures = {
            "accuracy": best["accuracy"],
            "validation_accuracy": best["score"],
            "data": f"{results['data']['test']:,} test images of {results['data']['name']}",
            "top1_agreement": measured.get("top1_agreement"),
            **{f"{key}_ms": measured["latency_ms"][key] for key in ("median", "p10", "p90")},
            "target": results["settings"]["target"],
            "threads": results["settings"]["threads"],
            "time_ratio": best["time"],
            "size_ratio": best["size"],
            "how_it_was_made": best["label"],
        }
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise ValueError(
            f"`file` must be a .tflite or .onnx file, or the folder of a finished `dprp compress`. "
            f"Received: {file}, a folder without its results. Give a file."
        ) from error
    return file / f"best{Path(best['file']).suffix}", figures


def _measured(path: Path, dataset: Any) -> dict[str, Any]:
    """Accuracy on the test split and time on this machine."""
    from dprp_tf.deploy.measurement.benchmark import benchmark
    from dprp_tf.runs.files import file_accuracy
    from dprp_tf.runs.first_look import first_looks

    first_looks([path], dataset)
    accuracy = file_accuracy(path, dataset)
    timed = benchmark(path, inputs=dataset.sample("test", 1)[0])
    return {
        "accuracy": accuracy,
        "data": f"{len(dataset.y_test):,} test images of {dataset.name}",
        "median_ms": timed.median_ms,
        "p10_ms": timed.p10_ms,
        "p90_ms": timed.p90_ms,
        "timed_on": " ".join(str(timed.machine.get("processor") or "this machine").split()),
        "threads": timed.threads,
        "runtime": timed.runtime,
    }
