"""An emulated arm64 machine as a target: what a Raspberry Pi would compute, and at what cost."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from dprp_tf.deploy.targets.answers import AnswerCheck, check_measurement
from dprp_tf.deploy.targets.child import Ended, LimitError, run_limited
from dprp_tf.deploy.targets.cores import CORES
from dprp_tf.deploy.targets.edge import RUNNER, EdgeRunnerTarget
from dprp_tf.deploy.targets.limits import Limits, check_timeout
from dprp_tf.deploy.targets.sandbox import Sandbox, build_sandbox
from dprp_tf.deploy.targets.target import TargetError
from dprp_tf.files.cache import cache_folder

__all__ = ["EmulatedTarget"]

_SCHEME = "qemu:"
_INFERENCES = 4
_COUNT = re.compile(r"instructions ([0-9]{1,9}) ([0-9]{1,18})")


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
        timeout_s: Seconds after which a run is given up, above 0. Defaults to five minutes, 20
            for each file, and 100 s for each inference.

    Raises:
        ValueError: If the core is another, or the timeout is not above 0.

    Example:

    >>> EmulatedTarget("qemu:cortex-a76").unit
    'instructions'
    """

    example = "qemu:cortex-a72"
    unit = "instructions"
    slowness = 20.0

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
        timeout_s: float | None = None,
    ) -> None:
        core = spec.removeprefix(_SCHEME)
        if not spec.startswith(_SCHEME) or core not in CORES:
            raise ValueError(
                f"`target` must be one of {[_SCHEME + name for name in CORES]} to emulate arm64. "
                f"Received: target={spec!r}."
            )
        self.spec = spec
        self._core = core
        self._sandbox = sandbox
        self.timeout_s = check_timeout(timeout_s)

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
        check = AnswerCheck(self.spec)
        models = check.list("models", check.mapping("answer", answer).get("models"), len(paths))
        entries = []
        for position, entry in enumerate(models):
            known = check.mapping("models", entry)
            first, last = 2 * position + 1, 2 * position + 2
            instructions = self._between(counted, first, last)
            entries.append({**known, "instructions": float(instructions)})
        return check_measurement(
            self.spec,
            {**answer, "models": entries},
            paths,
            unit=self.unit,
            threads=threads,
            repeats=1,
        )

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
        load = self._between(counted, 1, 2) + self._between(counted, 3, 4)
        first = self._between(counted, 5, 6)
        check = AnswerCheck(self.spec)
        memory = {
            name: None if value is None else check.integer(name, value)
            for name in ("resident_memory_bytes", "model_resident_memory_bytes")
            for value in (check.mapping("answer", answer).get(name),)
        }
        return {
            "python_instructions": counted[1],
            "load_instructions": load,
            "first_inference_instructions": first,
            "cold_start_instructions": load + first,
            "resident_memory_bytes": memory["resident_memory_bytes"],
            "model_memory_bytes": memory["model_resident_memory_bytes"],
        }

    def _between(self, counted: Mapping[int, int], first: int, last: int) -> int:
        """Return the instructions between two markers, which are counted upwards."""
        if not counted.get(first, 0) < counted.get(last, 0):
            received = f"{counted.get(first)}, then {counted.get(last)}"
            raise AnswerCheck(self.spec).error("`instructions` must go up", received)
        return counted[last] - counted.get(first, 0)

    def _count(
        self, arguments: Sequence[str | Path], paths: Sequence[Path]
    ) -> tuple[dict[str, Any], dict[int, int]]:
        limits = self._limits(paths, _INFERENCES * len(paths))
        with tempfile.TemporaryDirectory() as folder:
            counts = Path(folder) / "counts"
            finished = self._emulate(arguments, counts, limits)
            if finished.returncode != 0:
                raise self._failure(finished, paths)
            lines = counts.read_text(encoding="utf-8").splitlines() if counts.is_file() else []
        found = [_COUNT.fullmatch(line) for line in lines]
        counted = {int(match[1]): int(match[2]) for match in found if match}
        if not counted:
            raise TargetError(f"{self.spec}: QEMU counted nothing. Delete {self._ready().folder}.")
        return self._answer(finished.stdout), counted

    def _run(self, arguments: Sequence[str | Path], written: Path | None, limits: Limits) -> Ended:
        if written is not None:
            arguments = [*arguments, "--outputs", written]
        return self._emulate(arguments, None, limits)

    def _emulate(
        self, arguments: Sequence[str | Path], counts: Path | None, limits: Limits
    ) -> Ended:
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
                return run_limited(
                    sandbox.command(self._core, [runner, *absolute], counts),
                    seconds=limits.seconds,
                    most_bytes=limits.answer_bytes,
                    environment=sandbox.environment(),
                    folder=folder,
                )
            except LimitError as error:
                raise self._overrun(error) from error

    def _ready(self) -> Sandbox:
        if self._sandbox is None:
            self._sandbox = build_sandbox(progress=self._tell)
        return self._sandbox

    def _tell(self, what: str) -> None:
        print(f"arm64 sandbox in {cache_folder()} (once): {what}", file=sys.stderr)
