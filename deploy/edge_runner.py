#!/usr/bin/env python3
"""Time .tflite and .onnx files on the machine this file lies on.

Copy this one file and the models to a device. It needs Python 3.9+, numpy, and a runtime
(ai-edge-litert for .tflite, onnxruntime for .onnx); neither TensorFlow nor Keras.

    python edge_runner.py a.tflite b.tflite --threads 1 --warmup 10 --repeats 50 --json out.json

Models are timed in turns, round by round, so that a slow minute of the machine hits all of them.
Peak memory is measured for each model alone, in a child process.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

__all__ = ["RunnerError", "main", "measure"]

_MINIMUM_SAMPLE_NS = 1_000_000
_MAXIMUM_INVOCATIONS = 1000
_MEMORY_RUNS = 3
_ONNX_DTYPES = {"float": "float32", "float16": "float16", "double": "float64"}


class RunnerError(Exception):
    """A fault of the input, told in one line."""


class _LiteRT:
    runtime = "LiteRT"

    def __init__(self, path: Path, threads: int) -> None:
        interpreter_class, self.version = _litert()
        try:
            self._interpreter = interpreter_class(model_path=str(path), num_threads=threads)
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise _unreadable(path, error) from error
        self.inputs = [
            {
                "name": entry["name"],
                "shape": [int(edge) for edge in entry["shape"]],
                "dtype": _dtype_name(entry["dtype"]),
                "scale": float(entry["quantization"][0]),
                "zero_point": int(entry["quantization"][1]),
            }
            for entry in self._interpreter.get_input_details()
        ]

    def feed(self, arrays: list[Any]) -> None:
        for entry, array in zip(self._interpreter.get_input_details(), arrays):  # noqa: B905
            self._interpreter.set_tensor(entry["index"], array)

    def invoke(self) -> None:
        self._interpreter.invoke()


class _OnnxRuntime:
    runtime = "ONNX Runtime"

    def __init__(self, path: Path, threads: int) -> None:
        onnxruntime = _onnxruntime()
        self.version = onnxruntime.__version__
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the runtime's exceptions share no base class but this one
            raise _unreadable(path, error) from error
        self.inputs = []
        for entry in self._session.get_inputs():
            # A batch axis of any length becomes 1.
            shape = [entry.shape[0] if isinstance(entry.shape[0], int) else 1, *entry.shape[1:]]
            kind = entry.type[len("tensor(") : -1]
            self.inputs.append(
                {
                    "name": entry.name,
                    "shape": shape,
                    "dtype": _ONNX_DTYPES.get(kind, kind),
                    "scale": 0.0,
                    "zero_point": 0,
                }
            )
        self._outputs = [entry.name for entry in self._session.get_outputs()]
        self._feeds: dict[str, Any] = {}

    def feed(self, arrays: list[Any]) -> None:
        names = [entry["name"] for entry in self.inputs]
        self._feeds = dict(zip(names, arrays))  # noqa: B905

    def invoke(self) -> None:
        self._session.run(self._outputs, self._feeds)


def measure(
    paths: list[Path],
    threads: int = 1,
    warmup: int = 10,
    repeats: int = 50,
    input_path: Path | None = None,
    seed: int = 0,
    memory: bool = True,
) -> dict[str, Any]:
    """Time models in turns and measure each one's peak memory alone.

    Args:
        paths: The `.tflite` and `.onnx` files.
        threads: Threads of each runtime, 1 or more. Defaults to 1.
        warmup: Untimed invocations of each model first, 0 or more. Defaults to 10.
        repeats: Timed samples per model, 1 or more. Defaults to 50. A sample is the mean of as
            many invocations as last a millisecond.
        input_path: `.npy` (one input) or `.npz` (by input name) with inputs to feed. Defaults to
            seeded random values.
        seed: Seed of the random values. Defaults to 0.
        memory: Whether to measure peak memory too. Defaults to true.

    Returns:
        Settings, machine, and one entry per model under `"models"`; times in milliseconds.

    Raises:
        RunnerError: If a file can't be loaded or inputs do not fit.
    """
    runners = [_load(path, threads) for path in paths]
    invocations = []
    for path, runner in zip(paths, runners):  # noqa: B905
        runner.feed(_arrays(runner, path, input_path, seed))
        invocations.append(_warm_up(runner, path, warmup))
    samples: list[list[float]] = [[] for _ in paths]
    collecting = gc.isenabled()
    gc.disable()
    try:
        for turn in range(repeats):
            for offset in range(len(runners)):
                position = (turn + offset) % len(runners)
                samples[position].append(_sample(runners[position], invocations[position]))
    finally:
        if collecting:
            gc.enable()
    models = []
    for position, path in enumerate(paths):
        entry = {
            "path": str(path),
            "runtime": runners[position].runtime,
            "runtime_version": runners[position].version,
            "threads": threads,
            "warmup": warmup,
            "repeats": repeats,
            "invocations_per_sample": invocations[position],
            "size_bytes": path.stat().st_size,
            **_statistics(samples[position]),
            "samples_ms": samples[position],
        }
        entry.update(_memory(path, threads, input_path, seed) if memory else _no_memory())
        models.append(entry)
    return {
        "machine": {
            "architecture": platform.machine(),
            "system": platform.system(),
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
        },
        "models": models,
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Command-line arguments. Defaults to those of the process.

    Returns:
        Exit code: 0, or 2 for bad input.
    """
    parser = argparse.ArgumentParser(
        prog="edge_runner",
        description="Time .tflite and .onnx files on this machine, in turns.",
        epilog="example: python edge_runner.py a.tflite b.tflite --threads 1 --json out.json",
    )
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--threads", type=_at_least(1), default=1)
    parser.add_argument("--warmup", type=_at_least(0), default=10)
    parser.add_argument("--repeats", type=_at_least(1), default=50)
    parser.add_argument("--input", type=Path, help=".npy, or .npz by input name")
    parser.add_argument("--seed", type=_at_least(0), default=0)
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.add_argument("--json", type=Path, help="write the result there as well as to stdout")
    parser.add_argument("--memory-only", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    try:
        if options.memory_only:
            result = _own_memory(options.models[0], options.threads, options.input, options.seed)
        else:
            result = measure(
                options.models,
                threads=options.threads,
                warmup=options.warmup,
                repeats=options.repeats,
                input_path=options.input,
                seed=options.seed,
                memory=not options.no_memory,
            )
        text = json.dumps(result)
        if options.json is not None:
            beside = options.json.with_name(f".{options.json.name}.part")
            beside.write_text(text + "\n", encoding="utf-8")
            os.replace(beside, options.json)
    except (RunnerError, OSError) as error:
        print(f"edge_runner: error: {error}", file=sys.stderr)
        return 2
    print(text)
    return 0


def _load(path: Path, threads: int) -> _LiteRT | _OnnxRuntime:
    if not path.is_file():
        raise RunnerError(f"{path} does not exist")
    suffix = path.suffix.lower()
    if suffix == ".tflite":
        return _LiteRT(path, threads)
    if suffix == ".onnx":
        return _OnnxRuntime(path, threads)
    raise RunnerError(f"{path} is neither a .tflite nor an .onnx file")


def _litert() -> tuple[Any, str]:
    try:
        import ai_edge_litert
        from ai_edge_litert.interpreter import Interpreter

        return Interpreter, str(getattr(ai_edge_litert, "__version__", "unknown"))
    except ImportError:
        pass
    try:
        import tflite_runtime
        from tflite_runtime.interpreter import Interpreter
    except ImportError as error:
        raise RunnerError("no LiteRT here: pip install ai-edge-litert numpy") from error
    return Interpreter, str(getattr(tflite_runtime, "__version__", "unknown"))


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise RunnerError("no ONNX Runtime here: pip install onnxruntime numpy") from error
    return onnxruntime


def _arrays(
    runner: _LiteRT | _OnnxRuntime, path: Path, input_path: Path | None, seed: int
) -> list[Any]:
    if input_path is None:
        return [_random_array(entry, path, seed) for entry in runner.inputs]
    import numpy as np

    try:
        loaded = np.load(input_path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise RunnerError(f"--input {input_path} can't be read: {error}") from error
    names = [entry["name"] for entry in runner.inputs]
    if isinstance(loaded, np.ndarray):
        if len(names) != 1:
            raise RunnerError(f"{path} takes {len(names)} inputs, {names}: give --input an .npz")
        return [_fit(loaded, runner.inputs[0], path)]
    # LiteRT decorates an input's own name: serving_default_image:0
    plain = {name: name.split(":")[0].split("serve_")[-1] for name in names}
    missing = [name for name in names if name not in loaded and plain[name] not in loaded]
    if missing:
        raise RunnerError(f"--input {input_path} lacks arrays for {missing} of {path}")
    return [
        _fit(loaded[name if name in loaded else plain[name]], entry, path)
        for name, entry in zip(names, runner.inputs)  # noqa: B905
    ]


def _random_array(entry: dict[str, Any], path: Path, seed: int) -> Any:
    import numpy as np

    shape, dtype = entry["shape"], entry["dtype"]
    if not all(isinstance(edge, int) for edge in shape):
        raise RunnerError(f"{path} has inputs of open shape {shape}: give --input")
    generator = np.random.default_rng(seed)
    if dtype.startswith("float"):
        return generator.random(shape).astype(dtype)
    if dtype in ("int8", "uint8"):
        limits = np.iinfo(dtype)
        return generator.integers(limits.min, limits.max + 1, shape).astype(dtype)
    return generator.integers(0, 2, shape).astype(dtype)


def _fit(array: Any, entry: dict[str, Any], path: Path) -> Any:
    import numpy as np

    shape = entry["shape"]
    fits = array.ndim == len(shape) and len(array) >= shape[0]
    fits = fits and all(
        not isinstance(wanted, int) or wanted == received
        for wanted, received in zip(shape[1:], array.shape[1:])  # noqa: B905
    )
    if not fits:
        raise RunnerError(f"--input has shape {array.shape}, {path} takes {shape}")
    array = array[: shape[0]]
    if entry["scale"] and array.dtype.kind == "f":
        limits = np.iinfo(entry["dtype"])
        steps = np.round(array / entry["scale"]) + entry["zero_point"]
        array = np.clip(steps, limits.min, limits.max)
    return np.ascontiguousarray(array.astype(entry["dtype"]))


def _warm_up(runner: _LiteRT | _OnnxRuntime, path: Path, warmup: int) -> int:
    durations = []
    for _ in range(max(warmup, 3)):
        start = time.perf_counter_ns()
        try:
            runner.invoke()
        except Exception as error:  # runtimes raise whatever their kernels raise
            raise _unreadable(path, error) from error
        durations.append(time.perf_counter_ns() - start)
    quickest = max(min(durations), 1)
    return min(max(1, -(-_MINIMUM_SAMPLE_NS // quickest)), _MAXIMUM_INVOCATIONS)


def _sample(runner: _LiteRT | _OnnxRuntime, invocations: int) -> float:
    start = time.perf_counter_ns()
    for _ in range(invocations):
        runner.invoke()
    return (time.perf_counter_ns() - start) / invocations / 1e6


def _statistics(samples: list[float]) -> dict[str, float]:
    import numpy as np

    low, quarter, median, three_quarters, high = np.percentile(samples, [10, 25, 50, 75, 90])
    return {
        "median_ms": float(median),
        "p10_ms": float(low),
        "p90_ms": float(high),
        "min_ms": float(min(samples)),
        "mean_ms": float(np.mean(samples)),
        "spread": float((three_quarters - quarter) / median),
    }


def _no_memory() -> dict[str, Any]:
    return {"peak_memory_bytes": None, "model_memory_bytes": None}


def _memory(path: Path, threads: int, input_path: Path | None, seed: int) -> dict[str, Any]:
    isolation = ["-P"] if getattr(sys.flags, "safe_path", False) else []
    command = [sys.executable, *isolation, os.path.abspath(__file__), str(path), "--memory-only"]
    command += ["--threads", str(threads), "--seed", str(seed)]
    if input_path is not None:
        command += ["--input", str(input_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise RunnerError(f"measuring the memory of {path} failed: {reason}")
    return json.loads(done.stdout.splitlines()[-1])


def _own_memory(path: Path, threads: int, input_path: Path | None, seed: int) -> dict[str, Any]:
    import numpy as np

    np.random.default_rng(seed).random(1)
    if path.suffix.lower() == ".tflite":
        _litert()
    else:
        _onnxruntime()
    baseline = _peak_bytes()
    runner = _load(path, threads)
    runner.feed(_arrays(runner, path, input_path, seed))
    for _ in range(_MEMORY_RUNS):
        runner.invoke()
    peak = _peak_bytes()
    if baseline is None or peak is None:
        return _no_memory()
    return {"peak_memory_bytes": peak, "model_memory_bytes": peak - baseline}


def _peak_bytes() -> int | None:
    # Linux: getrusage's peak is inherited from the process that forked this one; VmHWM is not.
    try:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def _dtype_name(dtype: Any) -> str:
    import numpy as np

    return str(np.dtype(dtype).name)


def _at_least(minimum: int) -> Any:
    def parse(text: str) -> int:
        value = int(text)
        if value < minimum:
            raise argparse.ArgumentTypeError(f"must be {minimum} or more, not {value}")
        return value

    return parse


def _unreadable(path: Path, error: Exception) -> RunnerError:
    reason = " ".join(str(error).split())[:200]
    return RunnerError(f"{path} can't be run (truncated, or not a {path.suffix} model): {reason}")


if __name__ == "__main__":
    sys.exit(main())
