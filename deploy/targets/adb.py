"""An Android device behind adb as a target, through the native `benchmark_model`."""

from __future__ import annotations

import filecmp
import hashlib
import re
import shlex
import statistics
import tempfile
import urllib.parse
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from dprp_tf.deploy.targets.answers import (
    AnswerCheck,
    check_description,
    check_measurement,
    plain_text,
)
from dprp_tf.deploy.targets.child import Ended, LimitError, run_limited
from dprp_tf.deploy.targets.limits import check_timeout, work_limits
from dprp_tf.deploy.targets.spec import split_spec
from dprp_tf.deploy.targets.target import Target, TargetError

__all__ = ["ADBTarget"]

_FOLDER = "/data/local/tmp/dprp_tf"
_BINARY = "/data/local/tmp/benchmark_model"
_SERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*")
_ROUNDS = 10
_END = "dprp_tf_exit="
_CODE = re.compile(r"[0-9]{1,3}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
# Programs of the device that know SHA-256, by release.
_DIGESTS = (["sha256sum"], ["toybox", "sha256sum"])
# Whatever stands where a number should, so that what is none is refused and not passed over.
_NUMBER = r"([^\s,]+)"
# "count=50 first=14500 curr=... avg=14575.2 std=20"; of a single run "count=1 curr=14500".
_COUNT = re.compile(rf"count={_NUMBER} (?:.*\bavg={_NUMBER}|curr={_NUMBER})")
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
    inferences are shared out among them. What was pushed is compared by SHA-256 there; a device
    without such a program sends it back to be compared here, each time, and a warning says so.

    `benchmark_model` feeds random values, gives no outputs back, and tells no peak memory: the
    memory above the start of the tool is all there is.

    Args:
        serial: The device, as `adb devices` lists it.
        benchmark_model: The tool, built for the device: a file of this machine, which is pushed,
            or else an absolute path on the device. Defaults to
            `/data/local/tmp/benchmark_model`.
        timeout_s: Seconds after which one command there is given up, above 0. Defaults to five
            minutes, one for a file, 10 s for each megabyte of it, and 5 s for each inference.

    Raises:
        ValueError: If the serial could be taken for an option, `benchmark_model` is neither a
            file here nor an absolute path, or the timeout is not above 0.

    Example:

    >>> ADBTarget("emulator-5554").spec
    'adb://emulator-5554'
    """

    example = "adb://serial"

    def __init__(
        self,
        serial: str,
        benchmark_model: str | Path = _BINARY,
        timeout_s: float | None = None,
    ) -> None:
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
        self._digest_command: list[str] | None = None
        self.timeout_s = check_timeout(timeout_s)
        self.spec = f"adb://{serial}"
        if self._binary != _BINARY:
            self.spec += f"?binary={urllib.parse.quote(self._binary, safe='/')}"

    @classmethod
    def from_spec(cls, spec: str) -> Self:
        """Make a target of its text.

        Args:
            spec: `adb://serial`, then perhaps `?binary=PATH` or `timeout=SECONDS`, joined by `&`.

        Returns:
            The target; nothing is run yet.

        Raises:
            ValueError: If it is written otherwise, or a part is not allowed.

        Example:

        >>> ADBTarget.from_spec("adb://R58M?binary=/data/local/tmp/mine").serial
        'R58M'
        """
        serial, options = split_spec(spec, "adb", ("binary", "timeout"))
        timeout_s = check_timeout(options.get("timeout"))
        return cls(serial, options.get("binary", _BINARY), timeout_s)

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
            TargetError: If the device is not attached, the tool fails or takes too long, its
                figures can't be, or the device goes away.
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
                done = self._round(command, paths[position], warmup, runs)
                results[position].append(done)
        described = self._describe(binary)
        answer = {
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
        return check_measurement(
            self.spec, answer, paths, unit=self.unit, threads=threads, repeats=rounds
        )

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
        answer = {
            "machine": {
                "architecture": property_of("ro.product.cpu.abi"),
                "processor": property_of("ro.soc.model") or property_of("ro.board.platform"),
                "cpus": int(cpus) if re.fullmatch("[1-9][0-9]{0,4}", cpus) else None,
                "system": f"Android {property_of('ro.build.version.release')}",
                "python": None,
                "device": f"{maker} {model}".strip(),
            },
            "runtimes": {
                "LiteRT": f"benchmark_model {self._remote_digest(binary)[:12]}".strip(),
                "ONNX Runtime": None,
            },
        }
        return check_description(self.spec, answer)

    def _round(self, command: Sequence[str], path: Path, warmup: int, runs: int) -> _Round:
        returncode, text = self._shell(command, inferences=warmup + runs)
        counts = _COUNT.findall(text)
        if returncode != 0 or not counts:
            lines = [plain_text(line.strip()) for line in text.splitlines() if line.strip()]
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
        count, average, current = counts[-1]
        # Fewer where they last longer than the tool's patience.
        if self._figure("count", count) not in range(1, runs + 1):
            wanted = f"`count` must be an integer of 1 to {runs}, the inferences asked for"
            raise AnswerCheck(self.spec).error(wanted, count)
        init, first, footprint = _INIT.search(text), _FIRST.search(text), _FOOTPRINT.search(text)
        return _Round(
            average_ms=self._figure("avg", average or current) / 1000,
            init_ms=self._figure("Init", init[1]) / 1000 if init else None,
            first_ms=self._figure("First inference", first[1]) / 1000 if first else None,
            footprint_bytes=(
                round(self._figure("overall", footprint[2]) * 2**20) if footprint else None
            ),
        )

    def _figure(self, name: str, text: str) -> float:
        try:
            value: float | str = float(text)
        except ValueError:
            value = text
        return AnswerCheck(self.spec).number(name, value, minimum=0)

    def _require_device(self) -> None:
        done = self._adb(["-s", self.serial, "get-state"])
        if done.returncode == 0 and done.stdout.strip() == "device":
            return
        raise TargetError(
            f"{self.spec} is not attached and ready. `adb devices` lists what is; a new device "
            f"must be allowed on its screen first. adb says: {_last(done)}"
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
        part = f"{remote}.part"
        # Relative names such as -x or host:y mean other things to adb.
        command = ["-s", self.serial, "push", str(path.absolute()), part]
        pushed = self._adb(command, files=[path])
        if pushed.returncode != 0:
            raise TargetError(f"{self.spec}: {path} could not be pushed: {_last(pushed)}")
        arrived = self._remote_digest(part)
        if arrived != digest and (arrived or not self._came_back_equal(path, part)):
            raise TargetError(
                f"{self.spec}: {path} arrived as something else: what lies on the device has "
                "another SHA-256 or size. Look at its storage and the cable, and try again."
            )
        self._shell_checked(["chmod", mode, part])
        self._shell_checked(["mv", part, remote])
        return remote

    def _came_back_equal(self, path: Path, remote: str) -> bool:
        """Compare a file with what the device sends back of it, where it knows no SHA-256."""
        warnings.warn(
            f"{self.spec} has no sha256sum: files are pushed each time, and what arrived is "
            "pulled back and compared byte by byte.",
            stacklevel=2,
        )
        size = path.stat().st_size
        returncode, text = self._shell(["wc", "-c", remote])
        if returncode == 0 and text.split()[:1] != [str(size)]:
            return False
        with tempfile.TemporaryDirectory() as folder:
            back = Path(folder) / "back"
            pulled = self._adb(["-s", self.serial, "pull", remote, str(back)], files=[path])
            return (
                pulled.returncode == 0
                and back.is_file()
                and back.stat().st_size == size
                and filecmp.cmp(back, path, shallow=False)
            )

    def _remote_digest(self, remote: str) -> str:
        """Ask the device for a file's SHA-256; empty without the file, or a program for it."""
        for command in _DIGESTS if self._digest_command is None else [self._digest_command]:
            returncode, text = self._shell([*command, remote])
            found = text.split(maxsplit=1)[:1]
            if returncode == 0 and found and _DIGEST.fullmatch(found[0].lower()):
                self._digest_command = command
                return found[0].lower()
        return ""

    def _shell_checked(self, words: Sequence[str]) -> None:
        returncode, text = self._shell(words)
        if returncode != 0:
            said = plain_text(text.strip())
            raise TargetError(f"{self.spec}: {shlex.join(words)} failed there: {said}")

    def _shell(self, words: Sequence[str], inferences: int = 0) -> tuple[int, str]:
        # Before Android 7 adb brings no exit code back: the device's shell prints it.
        line = f"{shlex.join(words)} 2>&1; echo {_END}$?"
        done = self._adb(["-s", self.serial, "shell", line], inferences=inferences)
        text, found, returncode = done.stdout.replace("\r\n", "\n").rpartition(_END)
        if not found or not _CODE.fullmatch(returncode.strip()):
            raise TargetError(f"{self.spec}: the device went away. adb says: {_last(done)}")
        return int(returncode), text

    def _adb(
        self, arguments: Sequence[str], files: Sequence[Path] = (), inferences: int = 0
    ) -> Ended:
        limits = work_limits(files, inferences, timeout_s=self.timeout_s)
        try:
            return run_limited(
                ["adb", *arguments], seconds=limits.seconds, most_bytes=limits.answer_bytes
            )
        except FileNotFoundError as error:
            raise TargetError(
                f"{self.spec} needs `adb`, which is not on the PATH of this machine. Install "
                "Android's platform tools (Debian: apt install adb)."
            ) from error
        except LimitError as error:
            raise TargetError(
                f"{self.spec}: adb {arguments[2]} {error} and was ended. If the device is only "
                "slow, make the target with a larger `timeout_s`, or with ?timeout=SECONDS."
            ) from error


def _last(ended: Ended) -> str:
    said = ended.stderr.strip() or ended.stdout.strip() or "nothing"
    return plain_text(said.splitlines()[-1])


def _summary(rounds: Sequence[_Round], memory: bool) -> dict[str, Any]:
    footprints = [entry.footprint_bytes for entry in rounds if entry.footprint_bytes is not None]
    inits = [entry.init_ms for entry in rounds if entry.init_ms is not None]
    firsts = [entry.first_ms for entry in rounds if entry.first_ms is not None]
    return {
        "samples_ms": [entry.average_ms for entry in rounds],
        "peak_memory_bytes": None,
        "model_memory_bytes": max(footprints) if memory and footprints else None,
        "load_ms": statistics.median(inits) if memory and inits else None,
        "first_inference_ms": statistics.median(firsts) if memory and firsts else None,
    }
