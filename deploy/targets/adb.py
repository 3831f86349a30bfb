"""An Android device behind adb as a target, through the native `benchmark_model`."""

from __future__ import annotations

import hashlib
import re
import shlex
import statistics
import subprocess
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from dprp_tf.deploy.targets.spec import split_spec
from dprp_tf.deploy.targets.target import Target, TargetError

__all__ = ["ADBTarget"]

_FOLDER = "/data/local/tmp/dprp_tf"
_BINARY = "/data/local/tmp/benchmark_model"
_SERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*")
_ROUNDS = 10
_TIMEOUT_SECONDS = 600
_END = "dprp_tf_exit="
_NUMBER = r"([0-9.]+(?:e[+-]?[0-9]+)?)"
# "count=50 first=14500 curr=... avg=14575.2 std=20"; of a single run "count=1 curr=14500".
_COUNT = re.compile(rf"count=(\d+) (?:.*\bavg={_NUMBER}|curr={_NUMBER})")
_INIT = re.compile(rf"\bInit: {_NUMBER}")
_FIRST = re.compile(rf"\bFirst inference: {_NUMBER}")
_FOOTPRINT = re.compile(rf"[Mm]emory footprint.*\(MB\): init={_NUMBER} overall={_NUMBER}")


@dataclass(frozen=True)
class _Round:
    average_ms: float
    init_ms: float | None
    first_ms: float | None
    footprint_bytes: int | None


class ADBTarget(Target):
    """An Android device that times `.tflite` files with a native `benchmark_model`.

    Models go to `/data/local/tmp/dprp_tf` if the device has not got them yet (by SHA-256). Each
    round starts `benchmark_model` once per file, in turns, for a few inferences; a sample is the
    average of one round. There are as many rounds as `repeats`, at most 10, and the `repeats`
    inferences are shared out among them.

    `benchmark_model` feeds random values, gives no outputs back, and tells no peak memory: the
    memory above the start of the tool is all there is.

    Args:
        serial: The device, as `adb devices` lists it.
        benchmark_model: The tool, built for the device: a file of this machine, which is pushed,
            or else an absolute path on the device. Defaults to
            `/data/local/tmp/benchmark_model`.

    Raises:
        ValueError: If the serial could be taken for an option, or `benchmark_model` is neither a
            file here nor an absolute path.

    Example:

    >>> ADBTarget("emulator-5554").spec
    'adb://emulator-5554'
    """

    example = "adb://serial"

    def __init__(self, serial: str, benchmark_model: str | Path = _BINARY) -> None:
        if not _SERIAL.fullmatch(serial):
            raise ValueError(
                f"`serial` must be a device as `adb devices` lists it. Received: serial={serial!r}."
            )
        self.serial = serial
        self._local_binary = Path(benchmark_model) if Path(benchmark_model).is_file() else None
        if self._local_binary is None and not str(benchmark_model).startswith("/"):
            raise ValueError(
                "`benchmark_model` must be a file of this machine or an absolute path on the "
                f"device. Received: benchmark_model={str(benchmark_model)!r}."
            )
        self._binary = str(benchmark_model)
        self.spec = f"adb://{serial}"
        if self._binary != _BINARY:
            self.spec += f"?binary={urllib.parse.quote(self._binary, safe='/')}"

    @classmethod
    def from_spec(cls, spec: str) -> Self:
        """Make a target of its text.

        Args:
            spec: `adb://serial`, then perhaps `?binary=PATH`.

        Returns:
            The target; nothing is run yet.

        Raises:
            ValueError: If it is written otherwise, or a part is not allowed.

        Example:

        >>> ADBTarget.from_spec("adb://R58M?binary=/data/local/tmp/mine").serial
        'R58M'
        """
        serial, options = split_spec(spec, "adb", ("binary",))
        return cls(serial, options.get("binary", _BINARY))

    def describe(self) -> dict[str, Any]:
        """Say what the device is.

        Returns:
            As `Target.describe` says. LiteRT's version is that of no package but the start of
            the tool's SHA-256.

        Raises:
            TargetError: If the device is not attached or the tool is not on it.
        """
        self._require_device()
        return self._describe(self._install_binary())

    def measure(
        self,
        paths: Sequence[Path],
        *,
        threads: int = 1,
        warmup: int = 10,
        repeats: int = 50,
        inputs: Path | None = None,
        memory: bool = True,
    ) -> dict[str, Any]:
        """Time files there, in turns.

        Args:
            paths: `.tflite` files on this machine.
            threads: Threads of the runtime, 1 or more. Defaults to 1.
            warmup: Untimed inferences first in each round, 0 or more. Defaults to 10.
            repeats: Timed inferences in all, 1 or more. Defaults to 50.
            inputs: Must be `None`: the tool feeds random values.
            memory: Whether to report memory. Defaults to true.

        Returns:
            As `Target.measure` says; `repeats` there is the number of rounds.

        Raises:
            ValueError: If a file is no `.tflite` model or `inputs` is given.
            TargetError: If the device is not attached, the tool fails, or the device goes away.
        """
        for path in paths:
            if path.suffix.lower() != ".tflite":
                raise ValueError(
                    f"`path` must name a .tflite file: benchmark_model runs no other. Received: "
                    f"path={path} for target={self.spec!r}."
                )
        if inputs is not None:
            raise ValueError(
                "`inputs` must be None on an adb target: benchmark_model feeds random values. "
                f"Received: inputs={inputs}."
            )
        self._require_device()
        binary = self._install_binary()
        remotes = [self._install(path, ".tflite") for path in paths]
        rounds = min(repeats, _ROUNDS)
        runs = -(-repeats // rounds)
        flags = [f"--num_threads={threads}", f"--num_runs={runs}", f"--warmup_runs={warmup}"]
        # By default it goes on for a second, and half a second of warming up.
        flags += ["--min_secs=0", "--warmup_min_secs=0", "--use_xnnpack=true"]
        results: list[list[_Round]] = [[] for _ in paths]
        for turn in range(rounds):
            for offset in range(len(paths)):
                position = (turn + offset) % len(paths)
                command = [binary, f"--graph={remotes[position]}", *flags]
                results[position].append(self._round(command, paths[position]))
        described = self._describe(binary)
        return {
            "machine": described["machine"],
            "models": [
                {
                    "path": str(path),
                    "runtime": "LiteRT",
                    "runtime_version": described["runtimes"]["LiteRT"],
                    "threads": threads,
                    "warmup": warmup,
                    "repeats": rounds,
                    "invocations_per_sample": runs,
                    "size_bytes": path.stat().st_size,
                    **_summary(done, memory),
                }
                for path, done in zip(paths, results, strict=True)
            ],
        }

    def outputs(
        self, path: Path, inputs: Mapping[str, np.ndarray] | np.ndarray
    ) -> dict[str, np.ndarray]:
        """Refuse: `benchmark_model` gives no outputs back.

        Args:
            path: Any.
            inputs: Any.

        Returns:
            Nothing.

        Raises:
            TargetError: Always.
        """
        raise TargetError(
            f"{self.spec}: benchmark_model times {path} but gives no outputs back. Compare the "
            "file's outputs on an emulated arm64 target (qemu:cortex-a76) or over ssh."
        )

    def _describe(self, binary: str) -> dict[str, Any]:
        def property_of(name: str) -> str:
            return self._shell(["getprop", name])[1].strip()

        maker, model = property_of("ro.product.manufacturer"), property_of("ro.product.model")
        cpus = self._shell(["nproc"])[1].strip()
        return {
            "machine": {
                "architecture": property_of("ro.product.cpu.abi"),
                "processor": property_of("ro.soc.model") or property_of("ro.board.platform"),
                "cpus": int(cpus) if cpus.isdigit() else None,
                "system": f"Android {property_of('ro.build.version.release')}",
                "python": None,
                "device": f"{maker} {model}".strip(),
            },
            "runtimes": {
                "LiteRT": f"benchmark_model {self._remote_digest(binary)[:12]}".strip(),
                "ONNX Runtime": None,
            },
        }

    def _round(self, command: Sequence[str], path: Path) -> _Round:
        returncode, text = self._shell(command)
        counts = _COUNT.findall(text)
        if returncode != 0 or not counts:
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            if returncode in (126, 127) or "CANNOT LINK" in text:
                raise TargetError(
                    f"{self.spec}: {command[0]} does not run there: {(lines or ['?'])[-1]}. "
                    "Supply a benchmark_model built for the device with ?binary=PATH."
                )
            told = [line for line in lines if "ERROR" in line] or lines or ["nothing"]
            if "model" in told[0].lower() or "Benchmarking failed" in text:
                raise ValueError(
                    f"`path` must name a file that runs. Received: {path}, of which "
                    f"benchmark_model says: {told[0]}"
                )
            raise TargetError(
                f"{self.spec}: benchmark_model ended with code {returncode} on {path}: {told[-1]}"
            )
        # The last of these lines is about the timed runs, any before it about warming up.
        average = float(counts[-1][1] or counts[-1][2])
        init, first, footprint = _INIT.search(text), _FIRST.search(text), _FOOTPRINT.search(text)
        return _Round(
            average_ms=average / 1000,
            init_ms=float(init[1]) / 1000 if init else None,
            first_ms=float(first[1]) / 1000 if first else None,
            footprint_bytes=round(float(footprint[2]) * 2**20) if footprint else None,
        )

    def _require_device(self) -> None:
        done = self._adb(["-s", self.serial, "get-state"])
        if done.returncode == 0 and done.stdout.strip() == "device":
            return
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        raise TargetError(
            f"{self.spec} is not attached and ready. `adb devices` lists what is; a new device "
            f"must be allowed on its screen first. adb says: {said}"
        )

    def _install_binary(self) -> str:
        if self._local_binary is not None:
            return self._install(self._local_binary, "", mode="755")
        if self._shell(["test", "-x", self._binary])[0] != 0:
            raise TargetError(
                f"{self.spec}: there is no executable {self._binary} on the device. Supply "
                "benchmark_model built for it with ?binary=PATH, a file here or there."
            )
        return self._binary

    def _install(self, path: Path, suffix: str, mode: str = "644") -> str:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        remote = f"{_FOLDER}/{digest}{suffix}"
        if self._remote_digest(remote) == digest:
            return remote
        self._shell_checked(["mkdir", "-p", _FOLDER])
        # Relative names such as -x or host:y mean other things to adb.
        pushed = self._adb(["-s", self.serial, "push", str(path.absolute()), f"{remote}.part"])
        if pushed.returncode != 0:
            said = (pushed.stderr.strip() or pushed.stdout.strip() or "nothing").splitlines()[-1]
            raise TargetError(f"{self.spec}: {path} could not be pushed: {said}")
        self._shell_checked(["chmod", mode, f"{remote}.part"])
        self._shell_checked(["mv", f"{remote}.part", remote])
        return remote

    def _remote_digest(self, remote: str) -> str:
        returncode, text = self._shell(["sha256sum", remote])
        return text.split(maxsplit=1)[0] if returncode == 0 and text.strip() else ""

    def _shell_checked(self, words: Sequence[str]) -> None:
        returncode, text = self._shell(words)
        if returncode != 0:
            raise TargetError(f"{self.spec}: {shlex.join(words)} failed there: {text.strip()}")

    def _shell(self, words: Sequence[str]) -> tuple[int, str]:
        # Before Android 7 adb brings no exit code back: the device's shell prints it.
        line = f"{shlex.join(words)} 2>&1; echo {_END}$?"
        done = self._adb(["-s", self.serial, "shell", line])
        text, found, returncode = done.stdout.replace("\r\n", "\n").rpartition(_END)
        if not found or not returncode.strip().isdigit():
            said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
            raise TargetError(f"{self.spec}: the device went away. adb says: {said}")
        return int(returncode), text

    def _adb(self, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                ["adb", *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_TIMEOUT_SECONDS,
                check=False,
            )
        except FileNotFoundError as error:
            raise TargetError(
                f"{self.spec} needs `adb`, which is not on the PATH of this machine. Install "
                "Android's platform tools (Debian: apt install adb)."
            ) from error
        except subprocess.TimeoutExpired as error:
            raise TargetError(
                f"{self.spec}: no answer for {_TIMEOUT_SECONDS} seconds to adb {arguments[2]}."
            ) from error


def _summary(rounds: Sequence[_Round], memory: bool) -> dict[str, Any]:
    samples = [entry.average_ms for entry in rounds]
    low, quarter, median, three_quarters, high = np.percentile(samples, [10, 25, 50, 75, 90])
    footprints = [entry.footprint_bytes for entry in rounds if entry.footprint_bytes is not None]
    inits = [entry.init_ms for entry in rounds if entry.init_ms is not None]
    firsts = [entry.first_ms for entry in rounds if entry.first_ms is not None]
    return {
        "median_ms": float(median),
        "p10_ms": float(low),
        "p90_ms": float(high),
        "min_ms": float(min(samples)),
        "mean_ms": float(np.mean(samples)),
        "spread": float((three_quarters - quarter) / median) if median else 0.0,
        "samples_ms": samples,
        "peak_memory_bytes": None,
        "model_memory_bytes": max(footprints) if memory and footprints else None,
        "load_ms": statistics.median(inits) if memory and inits else None,
        "first_inference_ms": statistics.median(firsts) if memory and firsts else None,
    }
