"""Latency, memory and size of exported files on a target, alone or against one another."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dprp_tf.deploy.measurement.conditions import condition_warnings
from dprp_tf.deploy.measurement.intervals import CONFIDENCE, ratio_interval
from dprp_tf.deploy.running.runtime import require_model_file
from dprp_tf.deploy.targets import Target, resolve_target
from dprp_tf.deploy.targets.answers import check_measurement
from dprp_tf.deploy.targets.edge import write_arrays
from dprp_tf.files.arguments import check_integer
from dprp_tf.files.shown import shown
from dprp_tf.files.tables import Tabular, lay_out

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["BenchmarkResult", "Comparison", "Ratio", "benchmark", "compare", "measure_files"]


@dataclass(frozen=True)
class BenchmarkResult(Tabular):
    """What one file costs on a target.

    Every `_ms` field about latency is `None` on an emulated target, where time means nothing;
    `instructions` is `None` everywhere else.

    Args:
        path: The file.
        target: Where it ran, as its target names itself: `"local"`, `"ssh://pi@host:22"`.
        machine: Architecture, system, number of CPUs and Python version of the target.
        runtime: `"LiteRT"` or `"ONNX Runtime"`.
        runtime_version: Its version.
        threads: Threads the runtime used.
        warmup: Untimed invocations before.
        repeats: Samples.
        invocations_per_sample: Invocations averaged in one sample.
        median_ms: Median latency of one inference, in milliseconds.
        p10_ms: 10th percentile.
        p90_ms: 90th percentile.
        min_ms: Smallest.
        mean_ms: Mean.
        spread: Interquartile range as a share of the median.
        size_bytes: Size of the file.
        peak_memory_bytes: Peak resident memory of a process that runs this file alone, with
            Python and the runtime; `None` where the system does not tell.
        model_memory_bytes: The part of it above Python, numpy and the loaded runtime.
        samples_ms: The samples, in order.
        instructions: Instructions of one inference on an emulated processor: a proxy for time,
            free of noise.
        cold_start_ms: Loading the runtime and the file and the first inference, in a fresh
            process; `None` where it was not measured.
        warnings: What casts doubt on the figures, a busy machine for example. Defaults to none.
    """

    path: Path
    target: str
    machine: dict[str, Any]
    runtime: str
    runtime_version: str
    threads: int
    warmup: int
    repeats: int
    invocations_per_sample: int
    median_ms: float | None
    p10_ms: float | None
    p90_ms: float | None
    min_ms: float | None
    mean_ms: float | None
    spread: float | None
    size_bytes: int
    peak_memory_bytes: int | None
    model_memory_bytes: int | None
    samples_ms: tuple[float, ...]
    instructions: float | None = None
    cold_start_ms: float | None = None
    warnings: tuple[str, ...] = ()

    @property
    def unit(self) -> str:
        """What `cost` and `samples` count: `"ms"` or `"instructions"`."""
        return "ms" if self.instructions is None else "instructions"

    @property
    def cost(self) -> float:
        """Median cost of one inference, in `unit`."""
        return float(np.median(self.samples))

    @property
    def samples(self) -> tuple[float, ...]:
        """The samples in `unit`, in order."""
        return self.samples_ms if self.instructions is None else (self.instructions,)

    def as_dict(self) -> dict[str, Any]:
        """Give the result as JSON-ready values.

        Returns:
            Field name to value, and `"unit"`; the path as a string.
        """
        return {
            **asdict(self),
            "path": str(self.path),
            "samples_ms": list(self.samples_ms),
            "warnings": list(self.warnings),
            "unit": self.unit,
        }

    def table(self) -> Table:
        """Lay the result out for `rich`.

        Returns:
            A table with one row.
        """
        return _table([self], None)


@dataclass(frozen=True)
class Ratio:
    """Cost of one file relative to the first of a comparison.

    Args:
        path: The file.
        ratio: Its median cost over the first file's; below 1 is cheaper. Latency, or
            instructions on an emulated target.
        low: Lower end of the bootstrap interval.
        high: Upper end.
        confidence: Confidence of the interval, 0 to 1.
    """

    path: Path
    ratio: float
    low: float
    high: float
    confidence: float

    def __str__(self) -> str:
        return f"{self.ratio:.3f} ({self.low:.3f}..{self.high:.3f})"


@dataclass(frozen=True)
class Comparison(Tabular):
    """Several files timed in turns in one run.

    Args:
        results: One per file, in the order given.
        ratios: Each file's cost relative to the first, the first itself (1) included.
    """

    results: tuple[BenchmarkResult, ...]
    ratios: tuple[Ratio, ...]

    def as_dict(self) -> dict[str, Any]:
        """Give the comparison as JSON-ready values.

        Returns:
            `"results"` and `"ratios"`, each a list of dicts.
        """
        return {
            "results": [result.as_dict() for result in self.results],
            "ratios": [{**asdict(ratio), "path": str(ratio.path)} for ratio in self.ratios],
        }

    def table(self) -> Table:
        """Lay the comparison out for `rich`.

        Returns:
            A table with one row per file.
        """
        return _table(self.results, self.ratios)


def benchmark(
    path: str | Path,
    *,
    threads: int = 1,
    warmup: int = 10,
    repeats: int = 50,
    target: str | Target = "local",
    inputs: np.ndarray | Mapping[str, np.ndarray] | None = None,
) -> BenchmarkResult:
    """Measure latency at batch 1, peak memory and size of one exported file.

    The file runs in a process of its own, without TensorFlow. To say which of two files is
    faster use `compare`: two separate runs differ by whatever else the machine was doing.

    Args:
        path: The `.tflite` (LiteRT) or `.onnx` (ONNX Runtime) file.
        threads: Threads of the runtime, 1 or more. Defaults to 1.
        warmup: Untimed invocations first, 0 or more. Defaults to 10.
        repeats: Timed samples, 1 or more. Defaults to 50.
        target: Where to run: `"local"`, `"qemu:cortex-a72"`, `"ssh://user@host"`,
            `"adb://serial"`, or a target made by hand. Defaults to `"local"`, this machine.
        inputs: An array `(samples, ...)`, or a dict of them by input name, whose first sample is
            fed. Defaults to seeded random values.

    Returns:
        Latency statistics, memory and size.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is of another format, truncated or does not take `inputs`, or
            another argument is out of range.
        TargetError: If the target can't be reached, lacks a runtime, its process dies or takes too
            long, or its figures can't be.

    Example:

    >>> import tempfile, keras
    >>> from dprp_tf.deploy import export
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> path = Path(tempfile.mkdtemp()) / "dense.onnx"
    >>> _ = export(model, path)
    >>> result = benchmark(path, repeats=5)
    >>> result.runtime, result.repeats, result.median_ms > 0
    ('ONNX Runtime', 5, True)
    """
    checked = [require_model_file(path)]
    return measure_files(
        checked, threads=threads, warmup=warmup, repeats=repeats, target=target, inputs=inputs
    )[0]


def compare(
    paths: Sequence[str | Path],
    *,
    threads: int = 1,
    warmup: int = 10,
    repeats: int = 50,
    target: str | Target = "local",
    inputs: np.ndarray | Mapping[str, np.ndarray] | None = None,
) -> Comparison:
    """Time several files in turns in one process and give their latency ratios.

    Each round times every file once, so that a slow moment of the machine hits all of them. The
    interval is a paired bootstrap: rounds are drawn with replacement (2,000 times, seeded), the
    ratio of medians is taken each time, and the middle 95 % are reported. On an emulated target
    the ratios are of instructions, which stand for time without being it.

    Args:
        paths: Two or more `.tflite` or `.onnx` files; ratios are relative to the first. Files of
            both formats may stand in one comparison.
        threads: Threads of each runtime, 1 or more. Defaults to 1.
        warmup: Untimed invocations of each file first, 0 or more. Defaults to 10.
        repeats: Rounds, 1 or more. Defaults to 50.
        target: Where to run: `"local"`, `"qemu:cortex-a72"`, `"ssh://user@host"`,
            `"adb://serial"`, or a target made by hand. Defaults to `"local"`, this machine.
        inputs: As for `benchmark`; the same for every file.

    Returns:
        A result per file and a ratio per file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there are fewer than two paths, a file is of another format or truncated,
            or another argument is out of range.
        TargetError: If the target can't be reached, lacks a runtime, its process dies or takes too
            long, or its figures can't be.

    Example:

    >>> import tempfile, keras
    >>> from dprp_tf.deploy import export
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> path = Path(tempfile.mkdtemp()) / "dense.onnx"
    >>> _ = export(model, path)
    >>> compare([path, path], repeats=5).ratios[0].ratio
    1.0
    """
    if isinstance(paths, (str, Path)) or len(paths) < 2:
        raise ValueError(
            f"`paths` must hold two files or more, the first as reference. Received: paths={paths}."
            " For one file use benchmark."
        )
    checked = [require_model_file(path, "paths") for path in paths]
    results = measure_files(
        checked, threads=threads, warmup=warmup, repeats=repeats, target=target, inputs=inputs
    )
    ratios = tuple(
        Ratio(result.path, ratio, low, high, CONFIDENCE)
        for result in results
        for ratio, low, high in (ratio_interval(result.samples, results[0].samples),)
    )
    return Comparison(tuple(results), ratios)


def measure_files(
    paths: Sequence[str | Path],
    *,
    threads: int = 1,
    warmup: int = 10,
    repeats: int = 50,
    target: str | Target = "local",
    inputs: np.ndarray | Mapping[str, np.ndarray] | None = None,
    memory: bool = True,
) -> list[BenchmarkResult]:
    """Measure one file or more in turns, without comparing them.

    Args:
        paths: One `.tflite` or `.onnx` file or more.
        threads: Threads of each runtime, 1 or more. Defaults to 1.
        warmup: Untimed invocations of each file first, 0 or more. Defaults to 10.
        repeats: Rounds, 1 or more. Defaults to 50.
        target: As for `benchmark`. Defaults to `"local"`.
        inputs: As for `benchmark`; the same for every file.
        memory: Whether to measure memory and the cold start too, each in a process of its own.
            Defaults to true; without, many small files take far less time.

    Returns:
        A result per file, in the order given.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file is of another format or truncated, or another argument is out of
            range.
        TargetError: If the target can't be reached, lacks a runtime, its process dies or takes too
            long, or its figures can't be.

    Example:

    >>> import tempfile, keras
    >>> from dprp_tf.deploy import export
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> path = Path(tempfile.mkdtemp()) / "dense.onnx"
    >>> _ = export(model, path)
    >>> [len(result.samples) for result in measure_files([path], repeats=5, memory=False)]
    [5]
    """
    place = resolve_target(target)
    for name, value, minimum in (
        ("threads", threads, 1),
        ("warmup", warmup, 0),
        ("repeats", repeats, 1),
    ):
        check_integer(name, value, minimum)
    checked = [require_model_file(path, "paths") for path in paths]
    with tempfile.TemporaryDirectory() as folder:
        given = None if inputs is None else write_arrays(_first(inputs), Path(folder) / "inputs")
        answer = place.measure(
            checked, threads=threads, warmup=warmup, repeats=repeats, inputs=given, memory=memory
        )
    # Anybody may have written the target.
    answer = check_measurement(place.spec, answer, checked, unit=place.unit, threads=threads)
    warnings = condition_warnings(answer)
    return [
        _result(path, place.spec, answer["machine"], entry, doubts)
        for path, entry, doubts in zip(checked, answer["models"], warnings, strict=True)
    ]


def _first(
    inputs: np.ndarray | Mapping[str, np.ndarray],
) -> np.ndarray | dict[str, np.ndarray]:
    if isinstance(inputs, Mapping):
        return {name: np.asarray(array)[:1] for name, array in inputs.items()}
    return np.asarray(inputs)[:1]


def _result(
    path: Path,
    target: str,
    machine: dict[str, Any],
    entry: Mapping[str, Any],
    warnings: tuple[str, ...],
) -> BenchmarkResult:
    # A target may tell more than a result keeps, or less: time, where it is emulated.
    values: dict[str, Any] = {
        field.name: entry.get(field.name) for field in fields(BenchmarkResult)
    }
    load, first = entry.get("load_ms"), entry.get("first_inference_ms")
    values |= {
        "path": path,
        "target": target,
        "machine": machine,
        "samples_ms": tuple(entry.get("samples_ms") or ()),
        "cold_start_ms": None if load is None or first is None else load + first,
        "warnings": warnings,
    }
    return BenchmarkResult(**values)


def _table(results: Sequence[BenchmarkResult], ratios: Sequence[Ratio] | None) -> Table:
    first = results[0]
    timed = first.unit == "ms"
    settings = f"{first.threads} thread{'s' if first.threads > 1 else ''}, batch 1"
    if timed:
        settings += f", {first.repeats} samples"
    else:
        settings += ", emulated: instructions of one inference, a proxy for time"
    warnings = dict.fromkeys(warning for result in results for warning in result.warnings)
    headings = ["median ms", "p10..p90", "spread"] if timed else ["instructions (proxy)"]
    headings += ["size kB", "peak MB", "model MB"]
    if ratios is not None:
        headings.append("ratio (95 % interval)" if timed else "ratio (proxy)")
    rows = []
    for position, result in enumerate(results):
        row = [result.path.name, f"{result.runtime} {result.runtime_version}"]
        if timed:
            row += [
                f"{result.median_ms:.4g}",
                f"{result.p10_ms:.4g}..{result.p90_ms:.4g}",
                f"{result.spread:.1%}",
            ]
        else:
            row.append(f"{result.cost:,.0f}")
        row += [
            f"{result.size_bytes / 1000:,.1f}",
            _megabytes(result.peak_memory_bytes),
            _megabytes(result.model_memory_bytes),
        ]
        if ratios is not None:
            row.append(str(ratios[position]) if timed else f"{ratios[position].ratio:.3f}")
        rows.append(row)
    return lay_out(
        {"file": "fold", "runtime": "left", **dict.fromkeys(headings, "right")},
        rows,
        title=f"{first.target}: {first.machine.get('architecture')}, {settings}",
        caption="\n".join(f"warning: {shown(warning)}" for warning in warnings),
    )


def _megabytes(value: int | None) -> str:
    return "?" if value is None else f"{value / 1e6:.1f}"
