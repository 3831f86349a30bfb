"""Latency, memory and size of exported files on a target, alone or against one another."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dprp_tf.deploy.runtime import require_model_file

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table

__all__ = ["BenchmarkResult", "Comparison", "Ratio", "benchmark", "compare"]

_TARGETS = ("local",)
_RUNNER = Path(__file__).with_name("edge_runner.py")
_RESAMPLES = 2000
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class BenchmarkResult:
    """What one file costs on a target.

    Args:
        path: The file.
        target: Where it ran: `"local"`.
        machine: Architecture, system, number of CPUs and Python version of the target.
        runtime: `"LiteRT"` or `"ONNX Runtime"`.
        runtime_version: Its version.
        threads: Threads the runtime used.
        warmup: Untimed invocations before.
        repeats: Timed samples.
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
    median_ms: float
    p10_ms: float
    p90_ms: float
    min_ms: float
    mean_ms: float
    spread: float
    size_bytes: int
    peak_memory_bytes: int | None
    model_memory_bytes: int | None
    samples_ms: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """Give the result as JSON-ready values.

        Returns:
            Field name to value; the path as a string.
        """
        return {**asdict(self), "path": str(self.path), "samples_ms": list(self.samples_ms)}

    def table(self) -> Table:
        """Lay the result out for `rich`.

        Returns:
            A table with one row.
        """
        return _table([self], None)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.table()

    def __str__(self) -> str:
        return _plain(self.table())


@dataclass(frozen=True)
class Ratio:
    """Latency of one file relative to the first of a comparison.

    Args:
        path: The file.
        ratio: Its median latency over the first file's; below 1 is faster.
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
class Comparison:
    """Several files timed in turns in one run.

    Args:
        results: One per file, in the order given.
        ratios: Each file's latency relative to the first, the first itself (1) included.
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

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.table()

    def __str__(self) -> str:
        return _plain(self.table())


def benchmark(
    path: str | Path,
    threads: int = 1,
    warmup: int = 10,
    repeats: int = 50,
    target: str = "local",
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
        target: Where to run; today `"local"`, this machine. Defaults to `"local"`.
        inputs: An array `(samples, ...)`, or a dict of them by input name, whose first sample is
            fed. Defaults to seeded random values.

    Returns:
        Latency statistics, memory and size.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is of another format, truncated or does not take `inputs`, or
            another argument is out of range.
        RuntimeError: If the runtime's process dies.

    Example:

    >>> import tempfile, keras
    >>> from dprp_tf.deploy import export_onnx
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> path = Path(tempfile.mkdtemp()) / "dense.onnx"
    >>> _ = export_onnx(model, path)
    >>> result = benchmark(path, repeats=5)
    >>> result.runtime, result.repeats, result.median_ms > 0
    ('ONNX Runtime', 5, True)
    """
    checked = [require_model_file(path)]
    return _measure(checked, threads, warmup, repeats, target, inputs)[0]


def compare(
    paths: Sequence[str | Path],
    threads: int = 1,
    warmup: int = 10,
    repeats: int = 50,
    target: str = "local",
    inputs: np.ndarray | Mapping[str, np.ndarray] | None = None,
) -> Comparison:
    """Time several files in turns in one process and give their latency ratios.

    Each round times every file once, so that a slow moment of the machine hits all of them. The
    interval is a paired bootstrap: rounds are drawn with replacement (2,000 times, seeded), the
    ratio of medians is taken each time, and the middle 95 % are reported.

    Args:
        paths: Two or more `.tflite` or `.onnx` files; ratios are relative to the first. Files of
            both formats may stand in one comparison.
        threads: Threads of each runtime, 1 or more. Defaults to 1.
        warmup: Untimed invocations of each file first, 0 or more. Defaults to 10.
        repeats: Rounds, 1 or more. Defaults to 50.
        target: Where to run; today `"local"`, this machine. Defaults to `"local"`.
        inputs: As for `benchmark`; the same for every file.

    Returns:
        A result per file and a ratio per file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there are fewer than two paths, a file is of another format or truncated,
            or another argument is out of range.
        RuntimeError: If the runtime's process dies.

    Example:

    >>> import tempfile, keras
    >>> from dprp_tf.deploy import export_onnx
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> path = Path(tempfile.mkdtemp()) / "dense.onnx"
    >>> _ = export_onnx(model, path)
    >>> compare([path, path], repeats=5).ratios[0].ratio
    1.0
    """
    if isinstance(paths, (str, Path)) or len(paths) < 2:
        raise ValueError(
            f"`paths` must hold two files or more, the first as reference. Received: paths={paths}."
            " For one file use benchmark."
        )
    checked = [require_model_file(path, "paths") for path in paths]
    results = _measure(checked, threads, warmup, repeats, target, inputs)
    reference = np.asarray(results[0].samples_ms)
    ratios = tuple(
        Ratio(result.path, *_ratio(np.asarray(result.samples_ms), reference), _CONFIDENCE)
        for result in results
    )
    return Comparison(tuple(results), ratios)


def _ratio(samples: np.ndarray, reference: np.ndarray) -> tuple[float, float, float]:
    rounds = len(samples)
    drawn = np.random.default_rng(0).integers(0, rounds, (_RESAMPLES, rounds))
    # (resamples, rounds) -> (resamples,)
    resampled = np.median(samples[drawn], axis=1) / np.median(reference[drawn], axis=1)
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return float(np.median(samples) / np.median(reference)), float(low), float(high)


def _measure(
    paths: Sequence[Path],
    threads: int,
    warmup: int,
    repeats: int,
    target: str,
    inputs: np.ndarray | Mapping[str, np.ndarray] | None,
) -> list[BenchmarkResult]:
    if target not in _TARGETS:
        raise ValueError(
            f"`target` must be one of {list(_TARGETS)} today. Received: target={target!r}. For "
            "another machine, copy edge_runner.py and the files there and run it."
        )
    for name, value, minimum in (
        ("threads", threads, 1),
        ("warmup", warmup, 0),
        ("repeats", repeats, 1),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise ValueError(
                f"`{name}` must be an integer of {minimum} or more. Received: {name}={value!r}."
            )
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-P", str(_RUNNER), *(str(path) for path in paths)]
        command += ["--threads", str(threads), "--warmup", str(warmup), "--repeats", str(repeats)]
        if inputs is not None:
            command += ["--input", str(_write_inputs(inputs, Path(folder)))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise _failure(done, paths)
    answer = json.loads(done.stdout.splitlines()[-1])
    return [
        BenchmarkResult(
            **{
                **entry,
                "path": path,
                "samples_ms": tuple(entry["samples_ms"]),
                "target": target,
                "machine": answer["machine"],
            }
        )
        for path, entry in zip(paths, answer["models"], strict=True)
    ]


def _write_inputs(inputs: np.ndarray | Mapping[str, np.ndarray], folder: Path) -> Path:
    if isinstance(inputs, Mapping):
        path = folder / "inputs.npz"
        first: dict[str, Any] = {name: np.asarray(array)[:1] for name, array in inputs.items()}
        np.savez(path, **first)
        return path
    path = folder / "inputs.npy"
    np.save(path, np.asarray(inputs)[:1], allow_pickle=False)
    return path


def _failure(done: subprocess.CompletedProcess[str], paths: Sequence[Path]) -> Exception:
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    prefix = "edge_runner: error: "
    for line in lines:
        if line.startswith(prefix):
            return ValueError(f"`path` must name a file that runs. Received: {line[len(prefix) :]}")
    names = ", ".join(str(path) for path in paths)
    if done.returncode < 0:
        cause = signal.Signals(-done.returncode).name
        return RuntimeError(f"The runtime crashed ({cause}) on {names}. Is a file damaged?")
    return RuntimeError(f"The benchmark of {names} failed: {(lines or ['no message'])[-1]}")


def _table(results: Sequence[BenchmarkResult], ratios: Sequence[Ratio] | None) -> Table:
    from rich.table import Table

    first = results[0]
    table = Table(
        title=f"{first.target}: {first.machine.get('architecture')}, {first.threads} "
        f"thread{'s' if first.threads > 1 else ''}, batch 1, {first.repeats} samples"
    )
    table.add_column("file", overflow="fold")
    for heading in ("runtime", "median ms", "p10..p90", "spread", "size kB", "peak MB", "model MB"):
        table.add_column(heading, justify="left" if heading == "runtime" else "right")
    if ratios is not None:
        table.add_column("ratio (95 % interval)", justify="right")
    for position, result in enumerate(results):
        row = [
            result.path.name,
            f"{result.runtime} {result.runtime_version}",
            f"{result.median_ms:.4g}",
            f"{result.p10_ms:.4g}..{result.p90_ms:.4g}",
            f"{result.spread:.1%}",
            f"{result.size_bytes / 1000:,.1f}",
            _megabytes(result.peak_memory_bytes),
            _megabytes(result.model_memory_bytes),
        ]
        if ratios is not None:
            row.append(str(ratios[position]))
        table.add_row(*row)
    return table


def _megabytes(value: int | None) -> str:
    return "?" if value is None else f"{value / 1e6:.1f}"


def _plain(table: Table) -> str:
    from rich.console import Console

    buffer = io.StringIO()
    Console(file=buffer, width=140, color_system=None).print(table)
    return buffer.getvalue().rstrip()
