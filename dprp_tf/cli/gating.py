"""The command that a build stops at: whether a new file may take an old one's place."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dprp_tf.cli.app import command
from dprp_tf.cli.console import load_keras, print_json, print_table
from dprp_tf.cli.inputs import load_test_samples
from dprp_tf.cli.options import ImageSize, Json, Mean, Std, TargetName, Threads

__all__ = ["gate"]

_REFUSED = 1


@command
def gate(
    base: Annotated[Path, typer.Argument(help="The .tflite or .onnx file that is there.")],
    new: Annotated[Path, typer.Argument(help="The file that may take its place.")],
    max_ratio: Annotated[
        float, typer.Option(help="Largest share of the old file's time that it may take.")
    ] = 1.05,
    max_drop: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Points of the score that may be lost, on --data.",
            show_default="not looked at",
        ),
    ] = None,
    data: Annotated[str | None, typer.Option(help="Data to find both scores on.")] = None,
    score: Annotated[
        str | None,
        typer.Option(help="What is good, as for `dprp bench`.", show_default="accuracy"),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Test samples for the score; all by default.")
    ] = None,
    target: TargetName = "local",
    threads: Threads = 1,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds of a run.")] = 50,
    image_size: ImageSize = None,
    mean: Mean = None,
    std: Std = None,
    as_json: Json = False,
) -> None:
    """Pass (0) or refuse (1) a new file by ratios and intervals; 2 is an error.

    Example: dprp gate dense.tflite small.tflite --max-ratio 1.05 --max-drop 0.5 --data photos/
    """
    from dprp_tf.deploy.measurement.gate import gate as judge

    split = None
    if data is not None:
        load_keras()
        split, _ = load_test_samples(
            data, image_size, mean, std, samples=samples, score=score, files=[base, new]
        )
    report = judge(
        base,
        new,
        max_ratio=max_ratio,
        # Accuracies are shares; another score is in its own unit.
        max_drop=max_drop if max_drop is None or score is not None else max_drop / 100,
        data=split,
        score=score,
        target=target,
        threads=threads,
        repeats=repeats,
    )
    if as_json:
        print_json(report.as_dict())
    else:
        print_table(report)
    if not report.passed:
        raise typer.Exit(_REFUSED)
