"""Targets that run `edge_runner.py`: how it is called, and what its answers and failures mean."""

from __future__ import annotations

import abc
import json
import signal
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dprp_tf.deploy.targets.target import Target, TargetError

__all__ = ["RUNNER", "EdgeRunnerTarget", "Finished", "write_arrays"]

RUNNER = Path(__file__).with_name("edge_runner.py")
_PREFIX = "edge_runner: error: "
_LACKING = ("no LiteRT here", "no ONNX Runtime here", "no numpy here")
_NO_MODULE = "No module named "


@dataclass(frozen=True)
class Finished:
    """How one run of `edge_runner.py` ended.

    Args:
        returncode: Exit code; the negative number of the signal that ended it, if one did.
        stdout: What it printed.
        stderr: What it complained of.
    """

    returncode: int
    stdout: str
    stderr: str


class EdgeRunnerTarget(Target):
    """A machine on which `edge_runner.py` runs, here or far away.

    A subclass says how to run it; arguments, answers and failures are the same everywhere.

    Attributes:
        remedy: What to do here where a runtime is lacking, as the end of a sentence.
    """

    remedy = ""

    @abc.abstractmethod
    def _run(self, arguments: Sequence[str | Path], written: Path | None) -> Finished:
        """Run `edge_runner.py` once.

        Args:
            arguments: Its arguments. A `Path` is a file of this machine, which must lie on the
                target by then under whatever name.
            written: Where to put the file that `--outputs` writes there; `None` for none.

        Returns:
            How it ended, with the names of files as this machine knows them.
        """

    def describe(self) -> dict[str, Any]:
        """Say what the machine is and which runtimes it has.

        Returns:
            As `Target.describe` says.

        Raises:
            TargetError: If the machine can't be reached.
        """
        return self._ask(["--describe"], [])

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
            TargetError: If the machine can't be reached, lacks a runtime, or died.
        """
        arguments: list[str | Path] = [*paths]
        arguments += ["--threads", str(threads), "--warmup", str(warmup)]
        arguments += ["--repeats", str(repeats)]
        if inputs is not None:
            arguments += ["--input", inputs]
        if not memory:
            arguments.append("--no-memory")
        answer = self._ask(arguments, paths)
        for path, entry in zip(paths, answer["models"], strict=True):
            entry["path"] = str(path)
        return answer

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
            TargetError: If the machine can't be reached, lacks a runtime, or died.
        """
        with tempfile.TemporaryDirectory() as folder:
            written = Path(folder) / "outputs.npz"
            given = write_arrays(inputs, Path(folder) / "inputs")
            self._ask([path, "--input", given], [path], written)
            with np.load(written, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}

    def _ask(
        self, arguments: Sequence[str | Path], paths: Sequence[Path], written: Path | None = None
    ) -> dict[str, Any]:
        finished = self._run(arguments, written)
        if finished.returncode != 0:
            raise self._failure(finished, paths)
        if written is not None:
            if not written.is_file():
                raise TargetError(f"{self.spec}: edge_runner.py wrote no outputs of {paths[0]}.")
            return {}
        lines = finished.stdout.splitlines()
        try:
            answer = json.loads(lines[-1])
        except (IndexError, ValueError) as error:
            raise TargetError(
                f"{self.spec}: edge_runner.py gave no answer. Received: {finished.stdout[-200:]!r}."
            ) from error
        return dict(answer)

    def _failure(self, finished: Finished, paths: Sequence[Path]) -> Exception:
        names = ", ".join(str(path) for path in paths)
        lines = [line for line in finished.stderr.splitlines() if line.strip()]
        for line in lines:
            told = line.removeprefix(_PREFIX)
            if told.startswith(_LACKING) or _NO_MODULE in line:
                return TargetError(f"{self.spec} lacks what {names} needs: {told}{self.remedy}")
        for line in lines:
            if line.startswith(_PREFIX):
                return ValueError(
                    f"`path` must name a file that runs. Received: {line.removeprefix(_PREFIX)}"
                )
        if finished.returncode < 0:
            cause = signal.Signals(-finished.returncode).name
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
