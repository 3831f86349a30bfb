"""Targets that run `edge_runner.py`: how it is called, and what its answers and failures mean."""

from __future__ import annotations

import abc
import signal
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dprp_tf.deploy.targets.answers import check_description, check_measurement, plain_text
from dprp_tf.deploy.targets.child import Ended
from dprp_tf.deploy.targets.limits import Limits, work_limits
from dprp_tf.deploy.targets.returned_arrays import read_returned
from dprp_tf.deploy.targets.target import Target, TargetError
from dprp_tf.files.json_text import from_json

__all__ = ["RUNNER", "EdgeRunnerTarget", "write_arrays"]

RUNNER = Path(__file__).with_name("edge_runner.py")
_PREFIX = "edge_runner: error: "
_LACKING = ("no LiteRT here", "no ONNX Runtime here", "no numpy here")
_NO_MODULE = "No module named "
_NO_CLOCK = "the clock of this machine"
# A complaint may hold the whole path of a file.
_MOST_LETTERS = 500


class EdgeRunnerTarget(Target):
    """A machine on which `edge_runner.py` runs, here or far away.

    A subclass says how to run it; arguments, answers and failures are the same everywhere.

    Attributes:
        remedy: What to do here where a runtime is lacking, as the end of a sentence.
        more_time: How else to allow more time, as the end of a sentence.
        slowness: How many times slower than a small board it computes, for the time limit.
        timeout_s: Seconds after which a run is given up; `None` for a limit by the work.
    """

    remedy = ""
    more_time = ""
    slowness = 1.0
    timeout_s: float | None = None

    @abc.abstractmethod
    def _run(self, arguments: Sequence[str | Path], written: Path | None, limits: Limits) -> Ended:
        """Run `edge_runner.py` once.

        Args:
            arguments: Its arguments. A `Path` is a file of this machine, which must lie on the
                target by then under whatever name.
            written: Where to put the file that `--outputs` writes there; `None` for none.
            limits: What it may take.

        Returns:
            How it ended, with the names of files as this machine knows them.

        Raises:
            TargetError: If it can't be run, or goes beyond the limits; it is ended then.
        """

    def describe(self) -> dict[str, Any]:
        """Say what the machine is and which runtimes it has.

        Returns:
            As `Target.describe` says.

        Raises:
            TargetError: If the machine can't be reached.
        """
        answer = self._answer(self._ask(["--describe"], [], self._limits()))
        return check_description(self.spec, answer)

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
        """Measure files there, in turns, in one process.

        Args:
            paths: `.tflite` or `.onnx` files on this machine.
            threads: Threads of each runtime, 1 or more. Defaults to 1.
            warmup: Untimed invocations of each file first, 0 or more. Defaults to 10.
            repeats: Samples per file, 1 or more. Defaults to 50.
            inputs: A `.npy` or `.npz` file on this machine to feed. Defaults to seeded random
                values.
            memory: Whether to measure memory and the cold start too. Defaults to true.

        Returns:
            As `Target.measure` says.

        Raises:
            ValueError: If a file or the inputs can't be used.
            TargetError: If the machine can't be reached, lacks a runtime, died, took too long, or
                gave figures that can't be.
        """
        arguments: list[str | Path] = [*paths]
        arguments += ["--threads", str(threads), "--warmup", str(warmup)]
        arguments += ["--repeats", str(repeats)]
        if inputs is not None:
            arguments += ["--input", inputs]
        if not memory:
            arguments.append("--no-memory")
        limits = self._limits(paths, len(paths) * (warmup + repeats), len(paths) * repeats)
        begun = time.monotonic()
        answer = self._answer(self._ask(arguments, paths, limits))
        return check_measurement(
            self.spec,
            answer,
            paths,
            unit=self.unit,
            threads=threads,
            repeats=repeats,
            elapsed_s=time.monotonic() - begun,
        )

    def outputs(
        self, path: Path, inputs: Mapping[str, np.ndarray] | np.ndarray
    ) -> dict[str, np.ndarray]:
        """Compute there what the very file gives for some inputs.

        Args:
            path: A `.tflite` or `.onnx` file on this machine.
            inputs: An array `(samples, ...)`, or a dict of them by input name.

        Returns:
            As `Target.outputs` says.

        Raises:
            ValueError: If the file or the inputs can't be used.
            TargetError: If the machine can't be reached, lacks a runtime, died, took too long, or
                gave no such arrays.
        """
        arrays = list(inputs.values()) if isinstance(inputs, Mapping) else [inputs]
        samples = min((len(np.atleast_1d(array)) for array in arrays), default=0)
        with tempfile.TemporaryDirectory() as folder:
            written = Path(folder) / "outputs.npz"
            given = write_arrays(inputs, Path(folder) / "inputs")
            limits = self._limits([path, given], samples)
            self._ask([path, "--input", given], [path], limits, written)
            if not written.is_file():
                raise TargetError(f"{self.spec}: edge_runner.py wrote no outputs of {path}.")
            return read_returned(self.spec, written, samples, limits.output_bytes)

    def _limits(self, files: Sequence[Path] = (), inferences: int = 0, samples: int = 0) -> Limits:
        return work_limits(files, inferences, samples, self.timeout_s, self.slowness)

    def _overrun(self, reason: object) -> TargetError:
        return TargetError(
            f"{self.spec}: what runs there {reason} and was ended. If it is only slow, make the "
            f"target with a larger `timeout_s`{self.more_time}."
        )

    def _ask(
        self,
        arguments: Sequence[str | Path],
        paths: Sequence[Path],
        limits: Limits,
        written: Path | None = None,
    ) -> str:
        """Run it and return what it printed, or raise what its end means."""
        finished = self._run(arguments, written, limits)
        if finished.returncode != 0:
            raise self._failure(finished, paths)
        return finished.stdout

    def _answer(self, printed: str) -> Any:
        lines = printed.splitlines()
        try:
            return from_json(lines[-1])
        except (IndexError, ValueError) as error:
            why = plain_text(str(error)) if lines else "it printed nothing"
            raise TargetError(
                f"{self.spec}: edge_runner.py must answer in JSON. Received: "
                f"{plain_text(printed[-_MOST_LETTERS:])!r} ({why}). Look at what runs there."
            ) from error

    def _failure(self, finished: Ended, paths: Sequence[Path]) -> Exception:
        names = ", ".join(str(path) for path in paths)
        lines = [line for line in finished.stderr.splitlines() if line.strip()]
        lines = [plain_text(line, _MOST_LETTERS) for line in lines]
        for line in lines:
            told = line.removeprefix(_PREFIX)
            if told.startswith(_LACKING) or _NO_MODULE in line:
                return TargetError(f"{self.spec} lacks what {names} needs: {told}{self.remedy}")
            if told.startswith(_NO_CLOCK):
                return TargetError(f"{self.spec}: {told}")
        for line in lines:
            if line.startswith(_PREFIX):
                return ValueError(
                    f"`path` must name a file that runs. Received: {line.removeprefix(_PREFIX)}"
                )
        if finished.returncode < 0:
            number = -finished.returncode
            known = number in signal.valid_signals()
            cause = signal.Signals(number).name if known else f"signal {number}"
            return TargetError(
                f"{self.spec}: the runtime crashed ({cause}) on {names}. Is a file damaged?"
            )
        last = (lines or [f"exit code {finished.returncode}"])[-1]
        return TargetError(f"{self.spec}: running {names} failed: {last}")


def write_arrays(inputs: Mapping[str, np.ndarray] | np.ndarray, stem: Path) -> Path:
    """Write inputs as `edge_runner.py` reads them.

    Args:
        inputs: An array, or a dict of them by input name.
        stem: The file to write, without its suffix.

    Returns:
        The file: `.npy` for an array, `.npz` for a dict.

    Raises:
        OSError: If it can't be written.

    Example:

    >>> import tempfile
    >>> stem = Path(tempfile.mkdtemp()) / "inputs"
    >>> write_arrays({"image:0": np.zeros((1, 4))}, stem).name
    'inputs.npz'
    """
    if not isinstance(inputs, Mapping):
        path = stem.with_suffix(".npy")
        np.save(path, np.asarray(inputs), allow_pickle=False)
        return path
    path = stem.with_suffix(".npz")
    # numpy.savez takes names as keywords, so that an input called "file" would collide.
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in inputs.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
    return path
