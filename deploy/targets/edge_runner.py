#!/usr/bin/env python3
"""Time .tflite and .onnx files on the machine this file lies on.

Copy this one file and the models to a device. It needs Python 3.9+, numpy, and a runtime
(ai-edge-litert for .tflite, onnxruntime for .onnx); neither TensorFlow nor Keras.

    python edge_runner.py a.tflite b.tflite --threads 1 --warmup 10 --repeats 50 --json out.json
    python edge_runner.py a.tflite --input samples.npz --outputs outputs.npz
    python edge_runner.py --describe

Models are timed in turns, round by round, so that a slow minute of the machine hits all of them.
Peak memory and cold start are measured for each model alone, in a fresh child process. Load,
clock frequencies and temperatures around the timing are reported as the system gives them.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import os
import platform
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = [
    "MARKER_SYSCALL",
    "RunnerError",
    "count_instructions",
    "describe",
    "drift",
    "main",
    "measure",
    "summarize",
    "write_outputs",
]

# No kernel has this system call: it fails everywhere, and only an emulator's counting plugin
# that knows the number takes notice of its argument.
MARKER_SYSCALL = 0x64707270

_MINIMUM_SAMPLE_NS = 1_000_000
_MAXIMUM_INVOCATIONS = 1000
_MAXIMUM_ELEMENTS = 2**28
_MEMORY_RUNS = 3
_INSTRUCTION_WARMUP = 3
_END_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux
_ONNX_DTYPES = {"float": "float32", "float16": "float16", "double": "float64"}
_ARM_PARTS = {
    0xC07: "Cortex-A7",
    0xD03: "Cortex-A53",
    0xD04: "Cortex-A35",
    0xD05: "Cortex-A55",
    0xD07: "Cortex-A57",
    0xD08: "Cortex-A72",
    0xD09: "Cortex-A73",
    0xD0A: "Cortex-A75",
    0xD0B: "Cortex-A76",
    0xD0C: "Neoverse-N1",
    0xD0D: "Cortex-A77",
    0xD40: "Neoverse-V1",
    0xD41: "Cortex-A78",
    0xD44: "Cortex-X1",
    0xD46: "Cortex-A510",
    0xD47: "Cortex-A710",
    0xD48: "Cortex-X2",
    0xD49: "Neoverse-N2",
    0xD4D: "Cortex-A715",
    0xD4E: "Cortex-X3",
    0xD4F: "Neoverse-V2",
}


class RunnerError(Exception):
    """A fault of the input, told in one line."""


class _LiteRT:
    runtime = "LiteRT"

    def __init__(self, path: Path, threads: int) -> None:
        interpreter_class, self.version = _litert()
        try:
            self._interpreter = interpreter_class(model_path=str(path), num_threads=threads)
            details = self._interpreter.get_input_details()
            shapes = [_declared(entry) for entry in details]
            # With open sizes the memory is planned when the data say them.
            self._open = any(None in shape for shape in shapes)
            if not self._open:
                self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise _unreadable(path, error) from error
        self.path = path
        self.inputs = [
            {
                "name": entry["name"],
                # A batch axis of any length becomes 1.
                "shape": [1 if edge is None else edge for edge in shape[:1]] + shape[1:],
                "dtype": _dtype_name(entry["dtype"]),
                "scale": float(entry["quantization"][0]),
                "zero_point": int(entry["quantization"][1]),
            }
            for entry, shape in zip(details, shapes)  # noqa: B905
        ]
        _require_arrays(self.inputs, path)

    def feed(self, arrays: list[Any]) -> None:
        if self._open:
            try:
                for entry, array in zip(self._interpreter.get_input_details(), arrays):  # noqa: B905
                    self._interpreter.resize_tensor_input(entry["index"], array.shape)
                self._interpreter.allocate_tensors()
            except (ValueError, RuntimeError) as error:
                raise _unreadable(self.path, error) from error
        for entry, array in zip(self._interpreter.get_input_details(), arrays):  # noqa: B905
            self._interpreter.set_tensor(entry["index"], array)

    def invoke(self) -> None:
        self._interpreter.invoke()

    def aliases(self) -> dict[str, str]:
        # LiteRT decorates an input's own name (serving_default_image:0); the signature keeps it.
        signature = self._signature()
        if signature is None:
            return {}
        return {entry["name"]: name for name, entry in signature.get_input_details().items()}

    def outputs(self) -> dict[str, Any]:
        self.invoke()
        details = {entry["name"]: entry for entry in self._interpreter.get_output_details()}
        signature = self._signature()
        if signature is not None:
            details = signature.get_output_details()
        return {
            name: self._interpreter.get_tensor(entry["index"]) for name, entry in details.items()
        }

    def _signature(self) -> Any:
        names = list(self._interpreter.get_signature_list())
        return self._interpreter.get_signature_runner(names[0]) if names else None


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
            # On some broken files the runtime prints to stdout before it raises.
            with contextlib.redirect_stdout(io.StringIO()):
                self._session = onnxruntime.InferenceSession(
                    str(path), options, providers=["CPUExecutionProvider"]
                )
            # Names of a broken file may be no text.
            found = [(entry.name, entry.shape, entry.type) for entry in self._session.get_inputs()]
            self._outputs = [entry.name for entry in self._session.get_outputs()]
        except Exception as error:  # the runtime's exceptions share no base class but this one
            raise _unreadable(path, error) from error
        self.inputs = []
        for name, edges, type_name in found:
            # A batch axis of any length becomes 1.
            first = [edge if isinstance(edge, int) else 1 for edge in edges[:1]]
            shape = first + list(edges[1:])
            kind = type_name[len("tensor(") : -1]
            self.inputs.append(
                {
                    "name": name,
                    "shape": shape,
                    "dtype": _ONNX_DTYPES.get(kind, kind),
                    "scale": 0.0,
                    "zero_point": 0,
                }
            )
        _require_arrays(self.inputs, path)
        self._feeds: dict[str, Any] = {}

    def feed(self, arrays: list[Any]) -> None:
        names = [entry["name"] for entry in self.inputs]
        self._feeds = dict(zip(names, arrays))  # noqa: B905

    def invoke(self) -> None:
        self._session.run(self._outputs, self._feeds)

    def aliases(self) -> dict[str, str]:
        return {}

    def outputs(self) -> dict[str, Any]:
        arrays = self._session.run(self._outputs, self._feeds)
        return dict(zip(self._outputs, arrays))  # noqa: B905


def describe() -> dict[str, Any]:
    """Tell what this machine is and which runtimes it has.

    Returns:
        `"machine"`, and under `"runtimes"` the version of each runtime, `None` where it can't be
        imported.
    """
    runtimes: dict[str, str | None] = {"LiteRT": None, "ONNX Runtime": None}
    with contextlib.suppress(RunnerError):
        runtimes["LiteRT"] = _litert()[1]
    with contextlib.suppress(RunnerError):
        runtimes["ONNX Runtime"] = str(_onnxruntime().__version__)
    return {"machine": _machine(), "runtimes": runtimes}


def measure(
    paths: list[Path],
    threads: int = 1,
    warmup: int = 10,
    repeats: int = 50,
    input_path: Path | None = None,
    seed: int = 0,
    memory: bool = True,
) -> dict[str, Any]:
    """Time models in turns, and measure each one's peak memory and cold start alone.

    Args:
        paths: The `.tflite` and `.onnx` files.
        threads: Threads of each runtime, 1 or more. Defaults to 1.
        warmup: Untimed invocations of each model first, 0 or more. Defaults to 10.
        repeats: Timed samples per model, 1 or more. Defaults to 50. A sample is the mean of as
            many invocations as last a millisecond.
        input_path: `.npy` (one input) or `.npz` (by input name) with inputs to feed. Defaults to
            seeded random values.
        seed: Seed of the random values. Defaults to 0.
        memory: Whether to measure peak memory and cold start too. Defaults to true.

    Returns:
        Machine, `"conditions"` around the timing, and one entry per model under `"models"`; times
        in milliseconds.

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
    before = _conditions()
    try:
        for turn in range(repeats):
            for offset in range(len(runners)):
                position = (turn + offset) % len(runners)
                samples[position].append(_sample(runners[position], invocations[position]))
    finally:
        if collecting:
            gc.enable()
    after = _conditions()
    models = []
    for position, path in enumerate(paths):
        entry = {
            **_settings(path, runners[position], threads),
            "warmup": warmup,
            "repeats": repeats,
            "invocations_per_sample": invocations[position],
            **summarize(samples[position]),
            "samples_ms": samples[position],
        }
        entry.update(_memory(path, threads, input_path, seed) if memory else _no_memory())
        models.append(entry)
    return {
        "machine": _machine(),
        "conditions": {
            "before": before,
            "after": after,
            "drift": [drift(timed) for timed in samples],
        },
        "models": models,
    }


def count_instructions(
    paths: list[Path], threads: int = 1, input_path: Path | None = None, seed: int = 0
) -> dict[str, Any]:
    """Invoke each model once between two marker system calls, for an emulator that counts.

    The counts are the emulator's to add: the answer says which markers enclose which model. On
    a real processor nothing counts, and the answer holds no figures.

    Args:
        paths: The `.tflite` and `.onnx` files.
        threads: Threads of each runtime, 1 or more. Defaults to 1.
        input_path: Inputs, as for `measure`. Defaults to seeded random values.
        seed: Seed of the random values. Defaults to 0.

    Returns:
        Machine, and one entry per model under `"models"` with the `"markers"` around its
        inference.

    Raises:
        RunnerError: If a file can't be loaded or inputs do not fit.
    """
    mark = _marker()
    # The first call of a foreign function is a long one.
    mark(0)
    models = []
    for position, path in enumerate(paths):
        runner = _load(path, threads)
        runner.feed(_arrays(runner, path, input_path, seed))
        _warm_up(runner, path, _INSTRUCTION_WARMUP)
        first, last = 2 * position + 1, 2 * position + 2
        gc.collect()
        gc.disable()
        mark(first)
        runner.invoke()
        mark(last)
        gc.enable()
        models.append(
            {
                **_settings(path, runner, threads),
                "warmup": _INSTRUCTION_WARMUP,
                "repeats": 1,
                "invocations_per_sample": 1,
                "markers": [first, last],
                **_no_memory(),
            }
        )
    return {"machine": _machine(), "models": models}


def write_outputs(
    path: Path,
    output_path: Path,
    threads: int = 1,
    input_path: Path | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Run a model on every sample of the inputs and write what it computes.

    Args:
        path: The `.tflite` or `.onnx` file.
        output_path: `.npz` to write: output name to array `(samples, ...)`, integers where the
            model's output is quantized.
        threads: Threads of the runtime, 1 or more. Defaults to 1.
        input_path: Inputs, as for `measure`. Defaults to one sample of seeded random values.
        seed: Seed of the random values. Defaults to 0.

    Returns:
        Machine, and shape and dtype of each output under `"outputs"`.

    Raises:
        RunnerError: If the file can't be loaded or the inputs do not fit.
    """
    import numpy as np

    runner = _load(path, threads)
    given = _loaded(runner, path, input_path, seed)
    samples = min(len(array) for array in given)
    batch = runner.inputs[0]["shape"][0]
    batches: dict[str, list[Any]] = {}
    for start in range(0, samples, batch):
        missing = max(0, start + batch - samples)
        part = [array[start : min(start + batch, samples)] for array in given]
        part = [np.concatenate([array, *[array[-1:]] * missing]) for array in part]
        runner.feed([_fit(a, entry, path) for a, entry in zip(part, runner.inputs)])  # noqa: B905
        try:
            computed = runner.outputs()
        except Exception as error:  # runtimes raise whatever their kernels raise
            raise _unreadable(path, error) from error
        for name, array in computed.items():
            batches.setdefault(name, []).append(np.atleast_1d(array))
    joined = {name: np.concatenate(parts)[:samples] for name, parts in batches.items()}
    beside = output_path.with_name(f".{output_path.name}.part")
    # numpy's savez takes names as keywords, and an output may be called anything.
    with zipfile.ZipFile(beside, "w") as archive:
        for name, array in joined.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.asanyarray(array), allow_pickle=False)
    os.replace(beside, output_path)
    return {
        "machine": _machine(),
        "outputs": {
            name: {"shape": list(array.shape), "dtype": array.dtype.name}
            for name, array in joined.items()
        },
    }


def summarize(samples: list[float]) -> dict[str, float]:
    """Condense samples of one model.

    Args:
        samples: Times in milliseconds, each above 0, one or more.

    Returns:
        Median, 10th and 90th percentile, minimum and mean in milliseconds, and the interquartile
        range as a share of the median.
    """
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


def drift(samples: list[float]) -> float | None:
    """Compare the end of a series of samples with its beginning.

    Args:
        samples: Times, each above 0, in order.

    Returns:
        Median of the last third over that of the first, `None` for fewer than three.
    """
    import numpy as np

    third = len(samples) // 3
    if third == 0:
        return None
    return float(np.median(samples[-third:]) / np.median(samples[:third]))


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
        allow_abbrev=False,
        epilog="example: python edge_runner.py a.tflite b.tflite --threads 1 --json out.json",
    )
    parser.add_argument("models", nargs="*", type=Path, metavar="MODEL")
    parser.add_argument("--threads", type=_at_least(1), default=1)
    parser.add_argument("--warmup", type=_at_least(0), default=10)
    parser.add_argument("--repeats", type=_at_least(1), default=50)
    parser.add_argument("--input", type=Path, help=".npy, or .npz by input name")
    parser.add_argument("--seed", type=_at_least(0), default=0)
    parser.add_argument(
        "--no-memory", action="store_true", help="do not measure peak memory and cold start"
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--describe", action="store_true", help="tell machine and runtimes, exit")
    mode.add_argument(
        "--outputs", type=Path, metavar="NPZ", help="write what one MODEL computes, time nothing"
    )
    mode.add_argument("--instructions", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="write the result there as well as to stdout")
    parser.add_argument("--parent", type=_at_least(1), help=argparse.SUPPRESS)
    parser.add_argument("--memory-only", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    single = options.memory_only or options.outputs is not None
    if not options.describe and (not options.models or (single and len(options.models) > 1)):
        parser.error("name one MODEL" if single else "name a MODEL or more, or give --describe")
    given = {"threads": options.threads, "input_path": options.input, "seed": options.seed}
    if options.parent is not None:
        _end_with(options.parent)
    try:
        if options.describe:
            result = describe()
        elif options.memory_only:
            mark = _marker() if options.instructions else None
            result = _own_memory(options.models[0], mark=mark, **given)
        elif options.outputs is not None:
            result = write_outputs(options.models[0], options.outputs, **given)
        elif options.instructions:
            result = count_instructions(options.models, **given)
        else:
            result = measure(
                options.models,
                warmup=options.warmup,
                repeats=options.repeats,
                memory=not options.no_memory,
                **given,
            )
        text = json.dumps(result, allow_nan=False)
        if options.json is not None:
            beside = options.json.with_name(f".{options.json.name}.part")
            beside.write_text(text + "\n", encoding="utf-8")
            os.replace(beside, options.json)
    except (RunnerError, OSError) as error:
        print(f"edge_runner: error: {error}", file=sys.stderr)
        return 2
    print(text)
    return 0


def _machine() -> dict[str, Any]:
    return {
        "architecture": platform.machine(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def _processor() -> str:
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        with contextlib.suppress(OSError):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.stdout.strip():
                return done.stdout.strip()
    fields: dict[str, list[str]] = {}
    for line in (_text("/proc/cpuinfo") or "").splitlines():
        name, _, value = line.partition(":")
        if value.strip():
            fields.setdefault(name.strip(), []).append(value.strip())
    if "CPU part" in fields:
        # One name per kind of core, in order: big and little ones stand in one machine.
        parts = [_ARM_PARTS.get(_hexadecimal(part), part) for part in fields["CPU part"]]
        name = " + ".join(dict.fromkeys(parts))
        board = (_text("/proc/device-tree/model") or "").strip("\0\n ")
        return f"{name} ({board})" if board else name
    if "model name" in fields:
        return fields["model name"][0]
    return platform.processor() or platform.machine()


def _hexadecimal(text: str) -> int:
    try:
        return int(text, 16)
    except ValueError:
        return -1


def _conditions() -> dict[str, Any]:
    cpus = []
    for folder in sorted(Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq")):
        cpus.append(
            {
                "cpu": folder.parent.name,
                "governor": _text(folder / "scaling_governor"),
                "current_khz": _integer(folder / "scaling_cur_freq"),
                "limit_khz": _integer(folder / "scaling_max_freq"),
                "maximum_khz": _integer(folder / "cpuinfo_max_freq"),
            }
        )
    temperatures = {}
    for zone in sorted(Path("/sys/class/thermal").glob("thermal_zone*")):
        thousandths = _integer(zone / "temp")
        if thousandths is not None:
            temperatures[f"{zone.name} {_text(zone / 'type') or ''}".strip()] = thousandths / 1000
    try:
        load = list(os.getloadavg())
    except (OSError, AttributeError):
        load = None
    return {
        "clock_s": time.monotonic(),
        "load_average": load,
        "process_cpu_s": time.process_time(),
        **_machine_seconds(),
        "cpu_frequencies": cpus,
        "temperatures_celsius": temperatures,
    }


def _machine_seconds() -> dict[str, float | None]:
    # /proc/stat: user nice system idle iowait irq softirq steal guest guest_nice, in ticks; guest
    # time is counted in user already.
    first = (_text("/proc/stat") or "").splitlines()[:1]
    values = [int(value) for value in first[0].split()[1:]] if first else []
    if len(values) < 8 or not hasattr(os, "sysconf"):
        return {"machine_cpu_s": None, "stolen_cpu_s": None}
    ticks = os.sysconf("SC_CLK_TCK")
    busy = sum(values[:3]) + sum(values[5:7])
    return {"machine_cpu_s": busy / ticks, "stolen_cpu_s": values[7] / ticks}


def _text(path: str | Path) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _integer(path: Path) -> int | None:
    try:
        return int(_text(path) or "")
    except ValueError:
        return None


def _marker() -> Callable[[int], None]:
    import ctypes

    try:
        call = ctypes.CDLL(None).syscall
    except (OSError, AttributeError, TypeError) as error:
        raise RunnerError(f"--instructions needs Linux: {error}") from error
    call.restype = ctypes.c_long
    call.argtypes = [ctypes.c_long, ctypes.c_long]

    def mark(tag: int) -> None:
        call(MARKER_SYSCALL, tag)

    return mark


def _settings(path: Path, runner: _LiteRT | _OnnxRuntime, threads: int) -> dict[str, Any]:
    return {
        "path": str(path),
        "runtime": runner.runtime,
        "runtime_version": runner.version,
        "threads": threads,
        "size_bytes": path.stat().st_size,
    }


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
    given = _loaded(runner, path, input_path, seed)
    return [_fit(array, entry, path) for array, entry in zip(given, runner.inputs)]  # noqa: B905


def _loaded(
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
        return [loaded]
    plain = {name: name.split(":")[0].split("serve_")[-1] for name in names}
    plain.update(runner.aliases())
    missing = [name for name in names if name not in loaded and plain[name] not in loaded]
    if missing:
        raise RunnerError(f"--input {input_path} lacks arrays for {missing} of {path}")
    return [loaded[name if name in loaded else plain[name]] for name in names]


def _random_array(entry: dict[str, Any], path: Path, seed: int) -> Any:
    import numpy as np

    shape, dtype = entry["shape"], entry["dtype"]
    if not all(isinstance(edge, int) for edge in shape):
        raise RunnerError(f"{path} has inputs of open shape {shape}: give --input")
    # Python's integers: a broken file may declare more than 64 bits hold.
    elements = 1
    for edge in shape:
        elements *= int(edge)
    if not 0 <= elements <= _MAXIMUM_ELEMENTS:
        raise RunnerError(f"{path} has inputs of shape {shape}, which can't be: export it again")
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
    wanted = np.dtype(entry["dtype"])
    if array.dtype.kind not in "biuf":
        raise RunnerError(f"--input is of dtype {array.dtype}, {path} takes {wanted}")
    if array.dtype == wanted:
        return np.ascontiguousarray(array)
    with np.errstate(over="ignore", invalid="ignore"):
        if entry["scale"] and not np.isnan(array).any():
            limits = np.iinfo(wanted)
            steps = np.round(array / entry["scale"]) + entry["zero_point"]
            return np.ascontiguousarray(np.clip(steps, limits.min, limits.max).astype(wanted))
        fitted = array.astype(wanted)
    # Rounding to a shorter float is fine; cutting off fractions and wrapping around is not.
    held = fitted == array
    if wanted.kind == "f":
        held = np.isfinite(fitted) | ~np.isfinite(array)
    if not held.all():
        raise RunnerError(f"--input holds {array[~held][0]}, which {wanted} of {path} can't hold")
    return np.ascontiguousarray(fitted)


def _declared(entry: dict[str, Any]) -> list[Any]:
    # Files that declare no open size have none.
    declared = entry.get("shape_signature", ())
    shape = declared if len(declared) else entry["shape"]
    return [None if edge < 0 else int(edge) for edge in shape]


def _require_arrays(inputs: list[dict[str, Any]], path: Path) -> None:
    for entry in inputs:
        if not entry["shape"]:
            raise RunnerError(
                f"{path} has an input {entry['name']!r} without axes; each must be an array with a "
                "first axis for the samples: make a constant of it"
            )
        if not entry["dtype"].startswith(("float", "int", "uint", "bool")):
            raise RunnerError(
                f"{path} has an input {entry['name']!r} of {entry['dtype']}; each must hold numbers"
            )


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
    elapsed = time.perf_counter_ns() - start
    if elapsed <= 0:
        raise RunnerError(
            f"the clock of this machine moved by {elapsed} ns during {invocations} inferences: "
            "nothing can be timed with it"
        )
    return elapsed / invocations / 1e6


def _no_memory() -> dict[str, Any]:
    return {
        "peak_memory_bytes": None,
        "model_memory_bytes": None,
        "load_ms": None,
        "first_inference_ms": None,
    }


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


def _end_with(parent: int) -> None:
    """Have the kernel end this process when the one that waits for its answer is killed."""
    if not sys.platform.startswith("linux"):
        return
    try:
        import ctypes

        ctypes.CDLL(None).prctl(_END_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    except (ImportError, OSError, AttributeError):  # built without, or sealed off
        return
    try:
        os.kill(parent, 0)
    except ProcessLookupError:  # it was killed before the kernel knew
        sys.exit(1)


def _own_memory(
    path: Path,
    threads: int,
    input_path: Path | None,
    seed: int,
    mark: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    emulated = mark is not None
    mark = mark or (lambda tag: None)
    mark(1)
    start = time.perf_counter_ns()
    import numpy as np

    if path.suffix.lower() == ".tflite":
        _litert()
    else:
        _onnxruntime()
    imported = time.perf_counter_ns()
    mark(2)
    np.random.default_rng(seed).random(1)
    baseline = _peak_bytes()
    resident = _resident_bytes() if emulated else None
    mark(3)
    begun = time.perf_counter_ns()
    runner = _load(path, threads)
    loaded = time.perf_counter_ns()
    mark(4)
    runner.feed(_arrays(runner, path, input_path, seed))
    mark(5)
    fed = time.perf_counter_ns()
    runner.invoke()
    inferred = time.perf_counter_ns()
    mark(6)
    for _ in range(_MEMORY_RUNS - 1):
        runner.invoke()
    peak = _peak_bytes()
    answer = {
        "peak_memory_bytes": peak,
        "model_memory_bytes": None if peak is None or baseline is None else peak - baseline,
        "load_ms": (imported - start + loaded - begun) / 1e6,
        "first_inference_ms": (inferred - fed) / 1e6,
    }
    if emulated:
        final = _resident_bytes()
        answer["resident_memory_bytes"] = final
        answer["model_resident_memory_bytes"] = (
            None if final is None or resident is None else final - resident
        )
    return answer


def _resident_bytes() -> int | None:
    # An emulator's own memory is none of the guest's. It shows the guest's regions under
    # /proc/self/maps, where guests look, and lets its own list through under another name.
    guest, everything = _text("/proc/self/maps"), _text("/proc/thread-self/smaps")
    if not guest or not everything:
        return None
    own = []
    for line in guest.splitlines():
        start, _, end = line.split(" ", 1)[0].partition("-")
        own.append((int(start, 16), int(end, 16)))
    kibibytes, inside = 0, False
    for line in everything.splitlines():
        word = line.split(" ", 1)[0]
        if not word.endswith(":"):
            start, _, end = word.partition("-")
            low, high = int(start, 16), int(end, 16)
            inside = any(low < last and first < high for first, last in own)
        elif inside and word == "Rss:":
            kibibytes += int(line.split()[1])
    return kibibytes * 1024 or None


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
