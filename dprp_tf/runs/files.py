"""Models as files: each exported, verified, and timed in turns with the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import keras
import numpy as np

import dprp_tf.deploy as deploy
from dprp_tf.data import Dataset, StreamedImages

__all__ = [
    "FORMATS",
    "FileSamples",
    "Format",
    "file_accuracy",
    "format_for",
    "time_rows",
    "timed_files",
    "write_file",
]

# Of each split, of every class alike, to calibrate a file on and to verify it with.
_IMAGES = 256
# An error that no file exceeds, as a share of the outputs' range.
_ANYTHING = 1e30


@dataclass(frozen=True)
class Format:
    """A kind of file that both models are exported to.

    Attributes:
        suffix: End of the file's name.
        quantization: As the exporters take it.
        runtime: `"litert"` or `"onnxruntime"`.
        precision: What the forms are planned for; half-precision weights compute in float32.
    """

    suffix: str
    quantization: Any
    runtime: str
    precision: str


FORMATS: Mapping[str, Format] = {
    "TFLite float32": Format("float32.tflite", None, "litert", "float32"),
    "TFLite float16": Format("float16.tflite", "float16", "litert", "float32"),
    "TFLite int8": Format("int8.tflite", "int8", "litert", "int8"),
    "ONNX float32": Format("float32.onnx", None, "onnxruntime", "float32"),
    "ONNX int8": Format("int8.onnx", "int8", "onnxruntime", "int8"),
}


def format_for(runtime: str, precision: str) -> str:
    """Return the format of the files that run in a runtime with a precision.

    Args:
        runtime: `"litert"` or `"onnxruntime"`.
        precision: `"float32"`, `"float16"` (LiteRT) or `"int8"`.

    Returns:
        One of `FORMATS`.

    Raises:
        ValueError: If the runtime has no such precision.

    Example:

    >>> format_for("litert", "int8")
    'TFLite int8'
    """
    for label, entry in FORMATS.items():
        if entry.runtime == runtime and (entry.quantization or "float32") == precision:
            return label
    known = [(entry.runtime, entry.quantization or "float32") for entry in FORMATS.values()]
    raise ValueError(
        f"`runtime` and `precision` must be one of {known}. Received: runtime={runtime!r}, "
        f"precision={precision!r}"
    )


def timed_files(
    folder: Path,
    label: str,
    models: Mapping[str, keras.Model],
    dataset: Dataset,
    *,
    target: str = "local",
    threads: int = 1,
    repeats: int = 60,
    keep_unverified: bool = False,
    progress: Callable[[str], None] = lambda step: None,
) -> list[dict[str, Any]]:
    """Write models as files of one format, verify each, and time them in turns.

    Args:
        folder: Where the files go, each called by its model's name and the format.
        label: One of `FORMATS`.
        models: Plain models by name; the first is what the others are compared with.
        dataset: Their data: to calibrate on (training split), to verify with and to find the
            files' accuracy on (test split).
        target: Where to time them. Default: this machine.
        threads: Threads of the runtime. Default 1.
        repeats: Timed rounds. Default 60.
        keep_unverified: As `write_file` takes it. Default False.
        progress: Called with the name of each step.

    Returns:
        A row per file, as `results.json` has them under `files`.

    Raises:
        ParityError: If a file computes something else than its model, and is not kept.
        TargetError: If the target can't be reached or lacks the runtime.

    Example:

    >>> timed_files.__name__
    'timed_files'
    """
    rows, samples = [], FileSamples(dataset)
    for name, model in models.items():
        progress(f"{label}: {name}")
        row = write_file(folder, label, name, model, samples, keep_unverified=keep_unverified)
        rows.append(row)
    progress(f"{label}: timing")
    return time_rows(folder, rows, dataset, target=target, threads=threads, repeats=repeats)


class FileSamples:
    """What files are calibrated on, verified with and judged by; drawn once for all of them.

    Args:
        dataset: The data: calibrated is on some of the training split, all else is of the test
            split.

    Attributes:
        dataset: The data.

    Example:

    >>> FileSamples.__name__
    'FileSamples'
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    @cached_property
    def calibration(self) -> np.ndarray:
        """Training images, of every class alike."""
        return self.dataset.sample("train", _IMAGES)[0]

    @cached_property
    def verification(self) -> np.ndarray:
        """Test images, of every class alike."""
        return self.dataset.sample("test", _IMAGES)[0]


def write_file(
    folder: Path,
    label: str,
    name: str,
    model: keras.Model | deploy.QuantizedModel,
    samples: FileSamples,
    *,
    keep_unverified: bool = False,
) -> dict[str, Any]:
    """Write a model as a file, verify it, and find its accuracy.

    Args:
        folder: Where the file goes.
        label: One of `FORMATS`.
        name: What the model is called.
        model: A plain model; or one trained with int8 rounding, for `"TFLite int8"`.
        samples: Those of its data.
        keep_unverified: Whether a file that computes something else than the model is kept, with
            `verified` False in its row, as one that int8 broke.

    Returns:
        The file's row, without times.

    Raises:
        ParityError: If the file computes something else than the model, and is not kept.

    Example:

    >>> write_file.__name__
    'write_file'
    """
    entry = FORMATS[label]
    path = folder / f"{name}_{entry.suffix}"
    verified = True
    try:
        report = _exported(model, path, entry, samples)
    except deploy.ParityError:
        if not keep_unverified:
            raise
        verified, anything = False, {"tolerance": _ANYTHING, "minimum_agreement": 0.0}
        report = _exported(model, path, entry, samples, **anything)
    return {
        "model": name,
        "format": label,
        "file": path.name,
        "size_bytes": report.size_bytes,
        "accuracy": file_accuracy(path, samples.dataset),
        "max_error": report.max_error,
        "top1_agreement": report.top1_agreement,
        "verified": verified,
    }


def _exported(
    model: keras.Model | deploy.QuantizedModel,
    path: Path,
    entry: Format,
    samples: FileSamples,
    **limits: float,
) -> deploy.ExportReport:
    x = samples.verification
    if not isinstance(model, keras.Model):
        return model.export_tflite(path, verification_data=x, **limits)
    return deploy.export(
        model,
        path,
        quantization=entry.quantization,
        calibration_data=samples.calibration if entry.quantization == "int8" else None,
        verification_data=x,
        class_scores=True,
        **limits,
    )


def time_rows(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    dataset: Dataset,
    *,
    target: str = "local",
    threads: int = 1,
    repeats: int = 60,
) -> list[dict[str, Any]]:
    """Time files in turns, whatever their formats.

    Args:
        folder: Where they are.
        rows: What `write_file` returned of each; ratios are relative to the first.
        dataset: Their data, of which an image is run.
        target: Where to time them. Default: this machine.
        threads: Threads of the runtime. Default 1.
        repeats: Timed rounds. Default 60.

    Returns:
        The rows with what was measured.

    Raises:
        TargetError: If the target can't be reached or lacks the runtime.

    Example:

    >>> time_rows.__name__
    'time_rows'
    """
    paths = [folder / row["file"] for row in rows]
    timed = deploy.compare(
        paths,
        threads=threads,
        repeats=repeats,
        target=target,
        inputs=dataset.sample("test", 1)[0],
    )
    found = []
    for row, result, ratio in zip(rows, timed.results, timed.ratios, strict=True):
        middle = {"median": result.median_ms, "p10": result.p10_ms, "p90": result.p90_ms}
        measured = {"latency_ms": middle, "peak_memory_bytes": result.peak_memory_bytes}
        if row is not rows[0]:
            measured["latency_ratio"] = ratio.ratio
            measured["latency_ratio_interval"] = [ratio.low, ratio.high]
        found.append({**row, **measured})
    return found


def file_accuracy(path: Path, dataset: Dataset, images: int = 500) -> float:
    """Return the top-1 accuracy of a file on the test split.

    Args:
        path: The file.
        dataset: The data; images that stay on disk come a part at a time.
        images: How many are read at once. Default 500.

    Returns:
        The share of images whose largest output is their class.

    Example:

    >>> file_accuracy.__name__
    'file_accuracy'
    """
    if not isinstance(dataset.x_test, StreamedImages):
        return deploy.evaluate_file(path, dataset.x_test, dataset.y_test)
    correct = 0.0
    for first in range(0, len(dataset.x_test), images):
        x, y = (split[first : first + images] for split in (dataset.x_test, dataset.y_test))
        correct += deploy.evaluate_file(path, x.astype("float32"), y) * len(y)
    return correct / len(dataset.x_test)
