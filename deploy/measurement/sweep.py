"""Several files on several targets with several numbers of threads, in one table of figures."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dprp_tf.deploy.measurement.benchmark import Comparison, Ratio, benchmark, compare
from dprp_tf.deploy.running.runtime import evaluate_file, require_model_file
from dprp_tf.deploy.targets import Target, resolve_target
from dprp_tf.files.arguments import is_integer

__all__ = ["Sweep", "SweepFailure", "SweepRun", "sweep"]


@dataclass(frozen=True)
class SweepRun:
    """What the files cost on one target with one number of threads, timed in turns.

    Args:
        target: The target's spec, such as `"local"`.
        threads: Threads of the runtimes.
        unit: What costs count there: `"ms"` or `"instructions"`.
        comparison: A result and a ratio to the first file for each file.
    """

    target: str
    threads: int
    unit: str
    comparison: Comparison

    @property
    def warnings(self) -> tuple[str, ...]:
        """What makes every figure of this run doubtful; a file's own stand in its result."""
        first, *others = (result.warnings for result in self.comparison.results)
        return tuple(said for said in first if all(said in other for other in others))

    def as_dict(self) -> dict[str, Any]:
        """Give the run as JSON-ready values.

        Returns:
            `"target"`, `"threads"`, `"unit"`, `"warnings"`, `"results"` and `"ratios"`.
        """
        return {
            "target": self.target,
            "threads": self.threads,
            "unit": self.unit,
            "warnings": list(self.warnings),
            **self.comparison.as_dict(),
        }


@dataclass(frozen=True)
class SweepFailure:
    """A target that could not measure.

    Args:
        target: The target's spec.
        threads: Threads of the runtimes.
        message: What went wrong.
    """

    target: str
    threads: int
    message: str


@dataclass(frozen=True)
class Sweep:
    """Files measured on targets with numbers of threads.

    Args:
        paths: The files, the first as reference.
        accuracies: Top-1 accuracy of each file, 0 to 1; `None` where no data was given.
        runs: One per target and number of threads that could be measured.
        failures: One per target and number of threads that could not.
        created: When it was measured, ISO 8601 in UTC.
    """

    paths: tuple[Path, ...]
    accuracies: tuple[float | None, ...]
    runs: tuple[SweepRun, ...]
    failures: tuple[SweepFailure, ...]
    created: str

    def as_dict(self) -> dict[str, Any]:
        """Give the sweep as JSON-ready values, as `bench.json` holds them.

        Returns:
            `"created"`, `"files"` (path, name, size, accuracy), `"runs"` and `"failures"`.
        """
        names = _short_names(self.paths)
        return {
            "created": self.created,
            "files": [
                {
                    "path": str(path),
                    "name": name,
                    "size_bytes": path.stat().st_size,
                    "accuracy": accuracy,
                }
                for path, name, accuracy in zip(self.paths, names, self.accuracies, strict=True)
            ],
            "runs": [run.as_dict() for run in self.runs],
            "failures": [vars(failure) for failure in self.failures],
        }


def sweep(
    paths: Sequence[str | Path],
    *,
    threads: Sequence[int] = (1,),
    targets: Sequence[str | Target] = ("local",),
    warmup: int = 10,
    repeats: int = 50,
    data: tuple[np.ndarray, np.ndarray] | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> Sweep:
    """Measure files on every target with every number of threads, and their accuracy.

    The files of one target and number of threads are timed in turns in one run, as `compare`
    does; runs follow one another. A target that fails is recorded and the others go on.

    Args:
        paths: One or more `.tflite` or `.onnx` files; ratios are relative to the first.
        threads: Numbers of threads of the runtimes, each 1 or more. Defaults to `(1,)`.
        targets: Where to run, as `benchmark` takes them. Defaults to `("local",)`.
        warmup: Untimed invocations of each file first, 0 or more. Defaults to 10.
        repeats: Rounds, 1 or more. Defaults to 50.
        data: Inputs `(samples, ...)` and labels to find each file's accuracy with, on this
            machine; the first input is fed while timing. Defaults to none: no accuracy, and
            seeded random values.
        progress: Called with the name of each step.

    Returns:
        Costs, ratios, accuracies and failures.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there is no file, a file or target is of an unknown kind, or a number is
            out of range.
        RuntimeError: If every target failed.

    Example:

    >>> import tempfile, keras
    >>> from dprp_tf.deploy import export
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> path = Path(tempfile.mkdtemp()) / "dense.onnx"
    >>> _ = export(model, path)
    >>> found = sweep([path], threads=(1, 2), repeats=3)
    >>> [(run.target, run.threads) for run in found.runs]
    [('local', 1), ('local', 2)]
    """
    if isinstance(paths, (str, Path)) or not paths:
        raise ValueError(f"`paths` must hold one file or more. Received: paths={paths!r}.")
    checked = [require_model_file(path, "paths") for path in paths]
    # Every word is checked before the first measurement, which may take minutes.
    resolved = [resolve_target(target) for target in dict.fromkeys(targets)]
    counts = list(dict.fromkeys(threads))
    for name, values in (("targets", resolved), ("threads", counts)):
        if not values:
            raise ValueError(f"`{name}` must hold one entry or more. Received: none.")
    if not all(map(is_integer, counts)):
        raise ValueError(f"`threads` must hold integers of 1 or more. Received: threads={counts}.")
    accuracies: list[float | None] = [None] * len(checked)
    if data is not None:
        if not isinstance(data, (tuple, list)) or len(data) != 2:
            raise ValueError(
                "`data` must be inputs with their labels, (x, y). Received: "
                f"{type(data).__name__}. Give (x, y), or nothing to time without an accuracy."
            )
        for index, path in enumerate(checked):
            progress(f"accuracy of {path.name}")
            accuracies[index] = evaluate_file(path, *data, threads=os.cpu_count() or 1)
    runs, failures = [], []
    for target in resolved:
        for count in counts:
            progress(f"{target.spec}, {count} thread{'s' * (count != 1)}")
            try:
                comparison = _compare(
                    checked,
                    threads=count,
                    warmup=warmup,
                    repeats=repeats,
                    target=target,
                    inputs=None if data is None else data[0][:1],
                )
            except (RuntimeError, OSError) as error:
                failures.append(SweepFailure(target.spec, count, str(error)))
                continue
            runs.append(SweepRun(target.spec, count, target.unit, comparison))
    if not runs:
        raise RuntimeError("; ".join(dict.fromkeys(failure.message for failure in failures)))
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Sweep(tuple(checked), tuple(accuracies), tuple(runs), tuple(failures), created)


def _compare(paths: Sequence[Path], **options: Any) -> Comparison:
    if len(paths) > 1:
        return compare(paths, **options)
    result = benchmark(paths[0], **options)
    return Comparison((result,), (Ratio(result.path, 1.0, 1.0, 1.0, confidence=0.95),))


def _short_names(paths: Sequence[Path]) -> list[str]:
    """Name files by as many of their last folders as it takes to tell them apart."""
    absolute = [path.absolute() for path in paths]
    names = []
    for path in absolute:
        others = {other for other in absolute if other != path}
        length = 1
        while any(other.parts[-length:] == path.parts[-length:] for other in others):
            length += 1
        names.append("/".join(path.parts[-length:]))
    return names
