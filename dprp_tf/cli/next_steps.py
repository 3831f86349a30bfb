"""What comes after a command: the next ones, with the paths and options at hand."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from dprp_tf.cli.console import print_text

__all__ = ["Step", "data_options", "say_next", "steps_of_low_rank", "steps_of_plain"]

Step = tuple[str, Sequence[object]]
"""What it is for, and the words after `dprp`."""


def say_next(*steps: Step) -> None:
    """Print commands to go on with, each on a line with what it is for.

    Args:
        *steps: What each is for, and its words after `dprp`.

    Example:

    >>> say_next(("its page", ("report", Path("runs/my photos"))))
    next, its page: dprp report 'runs/my photos'
    """
    for purpose, words in steps:
        print_text(f"next, {purpose}: {_line(words)}")


def data_options(
    data: str | None,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> list[object]:
    """Return the options that name data, as they were given.

    Args:
        data: What `--data` was given; None for data that aren't known.
        image_size: Likewise.
        mean: Likewise.
        std: Likewise.

    Returns:
        Words of a command.

    Example:

    >>> data_options("photos", 32, [0.0], [255.0])
    ['--data', 'photos', '--image-size', 32, '--mean', '0', '--std', '255']
    """
    words: list[object] = ["--data", "PHOTOS" if data is None else data]
    if image_size is not None:
        words += ["--image-size", image_size]
    for flag, values in (("--mean", mean), ("--std", std)):
        for value in values or ():
            words += [flag, f"{value:.6g}"]
    return words


def steps_of_plain(
    model: Path, data: Sequence[object], precision: str = "int8", runtime: str = "litert"
) -> list[Step]:
    """Return the steps from plain layers to a timed file.

    Args:
        model: The `.keras` file.
        data: What `data_options` returned.
        precision: What the file computes in: that in which its forms were timed, if they were.
        runtime: What runs it, `"litert"` or `"onnxruntime"`; likewise.

    Returns:
        Export and bench.

    Example:

    >>> [words[0] for _, words in steps_of_plain(Path("small.keras"), data_options("digits"))]
    ['export', 'bench']
    """
    file = model.with_suffix(".tflite" if runtime == "litert" else ".onnx")
    quantized = () if precision == "float32" else ("--quantization", precision)
    purpose = "a file of whole numbers" if precision == "int8" else f"a file in {precision}"
    return [
        (purpose, ("export", model, file, *quantized, *data)),
        ("its time and accuracy", ("bench", file, *data)),
    ]


def steps_of_low_rank(model: Path) -> list[Step]:
    """Return the steps from low-rank layers to plain ones, whose forms are timed before.

    Args:
        model: The `.keras` file.

    Returns:
        Plan and fold.

    Example:

    >>> [words[0] for _, words in steps_of_low_rank(Path("run/model.keras"))]
    ['plan', 'fold']
    """
    plan, folded = model.with_name("plan.json"), model.with_name("folded.keras")
    return [
        ("the fastest form of each layer in int8", ("plan", model, plan, "--precision", "int8")),
        ("plain layers", ("fold", model, folded, "--plan", plan)),
    ]


def _line(words: Sequence[object]) -> str:
    return shlex.join(["dprp", *map(str, words)])
