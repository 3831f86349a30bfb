"""Several files on several targets with several numbers of threads, in one table of figures."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dprp_tf.costs.score_scale import ACCURACY, ScoreScale
from dprp_tf.deploy.measurement.benchmark import Comparison, Ratio, benchmark, compare
from dprp_tf.deploy.running.runtime import evaluate_file, require_model_file
from dprp_tf.deploy.targets import Target, resolve_target
from dprp_tf.files.arguments import is_integer

if TYPE_CHECKING:
    from dprp_tf.costs.scores import Score

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
        score: What says how good a file is: its name, its unit, and which way is better.
        scores: The score of each file on that scale; `None` where no data was given.
        runs: One per target and number of threads that could be measured.
        failures: One per target and number of threads that could not.
        created: When it was measured, ISO 8601 in UTC.
    """

    paths: tuple[Path, ...]
    score: ScoreScale
    scores: tuple[float | None, ...]
    runs: tuple[SweepRun, ...]
    failures: tuple[SweepFailure, ...]
    created: str

    def as_dict(self) -> dict[str, Any]:
        """Give the sweep as JSON-ready values, as `bench.json` holds them.

        Returns:
            `"created"`, `"score"` (name, unit, which way is better), `"files"` (path, name, size,
            and the score by its name), `"runs"` and `"failures"`.
        """
        names = _short_names(self.paths)
        return {
            "created": self.created,
            "score": vars(self.score),
            "files": [
                {
                    "path": str(path),
                    "name": name,
                    "size_bytes": path.stat().st_size,
                    self.score.name: score,
                }
                for path, name, score in zip(self.paths, names, self.scores, strict=True)
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
    score: Score | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> Sweep:
    """Measure files on every target with every number of threads, and how good they are.

    The files of one target and number of threads are timed in turns in one run, as `compare`
    does; runs follow one another. A target that fails is recorded and the others go on.

    Args:
        paths: One or more `.tflite` or `.onnx` files; ratios are relative to the first.
        threads: Numbers of threads of the runtimes, each 1 or more. Defaults to `(1,)`.
        targets: Where to run, as `benchmark` takes them. Defaults to `("local",)`.
        warmup: Untimed invocations of each file first, 0 or more. Defaults to 10.
        repeats: Rounds, 1 or more. Defaults to 50.
        data: Inputs `(samples, ...)` and labels to find each file's score with, on this machine;
            the first input is fed while timing. Defaults to none: no score, and seeded random
            values.
        score: What is good, as `evaluate_file` takes it: a name, such as `"mean_iou"` or
            `"psnr"`, a Keras metric or a function. Defaults to top-1 accuracy.
        progress: Called with the name of each step.

    Returns:
        Costs, ratios, scores and failures. An error is positive here, and less of it better,
        while `evaluate_file` counts it negatively.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there is no file, a file or target or score is of an unknown kind, a number
            is out of range, or a score is asked for without data.
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
    scale = _scale(score, data)
    scores: list[float | None] = [None] * len(checked)
    if data is not None:
        if not isinstance(data, (tuple, list)) or len(data) != 2:
            raise ValueError(
                "`data` must be inputs with their labels, (x, y). Received: "
                f"{type(data).__name__}. Give (x, y), or nothing to time without an accuracy."
            )
        for index, path in enumerate(checked):
            progress(f"{scale.name} of {path.name}")
            found = evaluate_file(path, *data, score=score, threads=os.cpu_count() or 1)
            scores[index] = scale.value(found)
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
    return Sweep(tuple(checked), scale, tuple(scores), tuple(runs), tuple(failures), created)


def _scale(score: Score | None, data: Any) -> ScoreScale:
    if score is None:
        return ACCURACY  # without Keras, which the scores load
    if data is None:
        raise ValueError(
            "`data` must be given with a score, which is found on it. Received: data=None, "
            f"score={score!r}"
        )
    from dprp_tf.costs.scores import score_scale

    return score_scale(score)


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
