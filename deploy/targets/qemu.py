"""An emulated arm64 machine as a target: what a Raspberry Pi would compute, and at what cost."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from dprp_tf.deploy.targets.cores import CORES
from dprp_tf.deploy.targets.edge import RUNNER, EdgeRunnerTarget, Finished
from dprp_tf.deploy.targets.sandbox import Sandbox, build_sandbox
from dprp_tf.deploy.targets.target import TargetError
from dprp_tf.files.arguments import check_number
from dprp_tf.files.cache import cache_folder

__all__ = ["EmulatedTarget"]

_SCHEME = "qemu:"


class EmulatedTarget(EdgeRunnerTarget):
    """An arm64 core emulated by QEMU: the very files that a Raspberry Pi would run.

    Time means nothing there. Its cost is the number of instructions of one inference, which
    repeats within a few millionths for LiteRT and a thousandth for ONNX Runtime on any host. It
    is a proxy: it knows no caches, no memory bandwidth and no instructions in parallel. It ranks
    forms of one layer as real time does where they differ much; measure on the device before
    you believe less.

    The sandbox that it needs is built on first use (`build_sandbox`).

    Args:
        spec: `"qemu:cortex-a53"`, `"qemu:cortex-a72"` or `"qemu:cortex-a76"`: the cores of
            Raspberry Pi 3, 4 and 5. Defaults to `"qemu:cortex-a72"`.
        sandbox: A sandbox built before. Defaults to building or finding one in the cache folder.
        timeout_s: Seconds after which a run is given up. Defaults to 1800.

    Raises:
        ValueError: If the core is another, or the timeout is not above 0.

    Example:

    >>> EmulatedTarget("qemu:cortex-a76").unit
    'instructions'
    """

    example = "qemu:cortex-a72"
    unit = "instructions"

    @classmethod
    def from_spec(cls, spec: str) -> Self:
        """Make a target of its text.

        Args:
            spec: `qemu:` and the name of a core.

        Returns:
            The target; nothing is built yet.

        Raises:
            ValueError: If the core is none that is known.
        """
        return cls(spec)

    def __init__(
        self,
        spec: str = "qemu:cortex-a72",
        sandbox: Sandbox | None = None,
        timeout_s: float = 1800.0,
    ) -> None:
        core = spec.removeprefix(_SCHEME)
        if not spec.startswith(_SCHEME) or core not in CORES:
            raise ValueError(
                f"`target` must be one of {[_SCHEME + name for name in CORES]} to emulate arm64. "
                f"Received: target={spec!r}."
            )
        check_number("timeout_s", timeout_s, above=0)
        self.spec = spec
        self._core = core
        self._sandbox = sandbox
        self._timeout_s = timeout_s

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
        """Count the instructions of one inference of each file.

        Args:
            paths: `.tflite` or `.onnx` files.
            threads: Threads of each runtime, 1 or more. Defaults to 1; with more, threads that
                wait count too, and counts no longer repeat.
            warmup: Has no effect: three inferences run before the one that is counted.
            repeats: Has no effect: a second count would be the same.
            inputs: A `.npy` or `.npz` file to feed. Defaults to seeded random values.
            memory: Has no effect: see `cold_start`.

        Returns:
            As `Target.measure` says, with `"instructions"` instead of times.

        Raises:
            ValueError: If a file or the inputs can't be used.
            TargetError: If the sandbox can't be built, or the emulated process died.
        """
        arguments: list[str | Path] = [*paths, "--instructions", "--threads", str(threads)]
        if inputs is not None:
            arguments += ["--input", inputs]
        answer, counted = self._count(arguments, paths)
        for path, entry in zip(paths, answer["models"], strict=True):
            first, last = entry.pop("markers")
            entry["path"] = str(path)
            entry["instructions"] = float(counted[last] - counted[first])
        return answer

    def cold_start(self, path: Path, threads: int = 1) -> dict[str, int | None]:
        """Count what a fresh process does until its first inference is done, and its memory.

        Both are proxies of a device's figures. Memory is that of the emulated process alone,
        without the emulator's: what is resident after inference. The peak of a real process lies
        above it by what was freed on the way.

        Args:
            path: A `.tflite` or `.onnx` file.
            threads: Threads of the runtime, 1 or more. Defaults to 1.

        Returns:
            `"python_instructions"` until Python runs its script; `"load_instructions"` to import
            the runtime and load the model; `"first_inference_instructions"`;
            `"cold_start_instructions"`, the sum of the last two; `"resident_memory_bytes"`, and of
            these `"model_memory_bytes"` above Python, numpy and the loaded runtime.

        Raises:
            ValueError: If the file can't be used.
            TargetError: If the sandbox can't be built, or the emulated process died.
        """
        arguments: list[str | Path] = [path, "--memory-only", "--instructions"]
        arguments += ["--threads", str(threads)]
        answer, counted = self._count(arguments, [path])
        load = counted[2] - counted[1] + counted[4] - counted[3]
        first = counted[6] - counted[5]
        return {
            "python_instructions": counted[1],
            "load_instructions": load,
            "first_inference_instructions": first,
            "cold_start_instructions": load + first,
            "resident_memory_bytes": answer["resident_memory_bytes"],
            "model_memory_bytes": answer["model_resident_memory_bytes"],
        }

    def _count(
        self, arguments: Sequence[str | Path], paths: Sequence[Path]
    ) -> tuple[dict[str, Any], dict[int, int]]:
        with tempfile.TemporaryDirectory() as folder:
            counts = Path(folder) / "counts"
            finished = self._emulate(arguments, counts)
            if finished.returncode != 0:
                raise self._failure(finished, paths)
            lines = counts.read_text(encoding="utf-8").splitlines() if counts.is_file() else []
        counted = {}
        for line in lines:
            word, _, numbers = line.partition(" ")
            if word == "instructions":
                tag, count = numbers.split()
                counted[int(tag)] = int(count)
        if not counted:
            raise TargetError(f"{self.spec}: QEMU counted nothing. Delete {self._ready().folder}.")
        return json.loads(finished.stdout.splitlines()[-1]), counted

    def _run(self, arguments: Sequence[str | Path], written: Path | None) -> Finished:
        if written is not None:
            arguments = [*arguments, "--outputs", written]
        return self._emulate(arguments, None)

    def _emulate(self, arguments: Sequence[str | Path], counts: Path | None) -> Finished:
        sandbox = self._ready()
        absolute = [
            argument.absolute() if isinstance(argument, Path) else argument
            for argument in arguments
        ]
        # The runner stands alone, as on a device: Python would import what lies beside it.
        with tempfile.TemporaryDirectory() as folder:
            runner = Path(folder) / RUNNER.name
            shutil.copyfile(RUNNER, runner)
            try:
                done = subprocess.run(
                    sandbox.command(self._core, [runner, *absolute], counts),
                    capture_output=True,
                    text=True,
                    check=False,
                    cwd=folder,
                    env=sandbox.environment(),
                    stdin=subprocess.DEVNULL,
                    timeout=self._timeout_s,
                )
            except subprocess.TimeoutExpired as error:
                raise TargetError(
                    f"{self.spec}: nothing came of it in {self._timeout_s:g} s. Raise `timeout_s`."
                ) from error
        return Finished(done.returncode, done.stdout, done.stderr)

    def _ready(self) -> Sandbox:
        if self._sandbox is None:
            self._sandbox = build_sandbox(progress=self._tell)
        return self._sandbox

    def _tell(self, what: str) -> None:
        print(f"arm64 sandbox in {cache_folder()} (once): {what}", file=sys.stderr)
