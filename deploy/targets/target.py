"""What a machine that runs exported files must offer, wherever it stands."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

__all__ = ["Target", "TargetError"]


class TargetError(RuntimeError):
    """A target that can't be reached, lacks something, or died at work."""


class Target(abc.ABC):
    """A machine that runs exported files and says what they cost there.

    Attributes:
        example: A spec as a user may write it; `TARGETS` finds the class by what precedes `:`.
        spec: How a user names it: `"local"`, `"qemu:cortex-a72"`, `"ssh://user@host:22"`,
            `"adb://serial"`.
        unit: What its costs count: `"ms"`, or `"instructions"` where time means nothing because
            the processor is emulated.
    """

    example: ClassVar[str]
    spec: str
    unit: str = "ms"

    @classmethod
    def from_spec(cls, spec: str) -> Self:
        """Make a target of its text; nothing is run or connected.

        Args:
            spec: What the user wrote.

        Returns:
            The target, whose `spec` makes the same target again.

        Raises:
            ValueError: If a part of it is not allowed, or the class has no text that names it.
        """
        raise ValueError(f"{cls.__name__} must be made in Python. Received: target={spec!r}.")

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """Say what the machine is and which runtimes it has.

        Returns:
            `{"machine": {"architecture", "processor", "cpus", "system", "python"}, "runtimes":
            {"LiteRT": version or None, "ONNX Runtime": version or None}}`.

        Raises:
            TargetError: If the machine can't be reached.
        """

    @abc.abstractmethod
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
        """Measure files there, in turns.

        Args:
            paths: `.tflite` or `.onnx` files on this machine.
            threads: Threads of each runtime, 1 or more. Defaults to 1.
            warmup: Untimed invocations of each file first, 0 or more. Defaults to 10.
            repeats: Samples per file, 1 or more. Defaults to 50.
            inputs: A `.npy` or `.npz` file on this machine to feed. Defaults to seeded random
                values.
            memory: Whether to measure memory and the cold start too. Defaults to true.

        Returns:
            `{"machine": {...}, "models": [...]}`, one entry per file in the order given, as
            `edge_runner.py` writes it.

        Raises:
            ValueError: If a file or the inputs can't be used.
            TargetError: If the machine can't be reached, lacks a runtime, or died.
        """

    @abc.abstractmethod
    def outputs(
        self, path: Path, inputs: Mapping[str, np.ndarray] | np.ndarray
    ) -> dict[str, np.ndarray]:
        """Compute there what the very file gives for some inputs.

        Args:
            path: A `.tflite` or `.onnx` file on this machine.
            inputs: An array `(samples, ...)`, or a dict of them by input name.

        Returns:
            Output name to array `(samples, ...)`, raw: integers where the file gives integers.

        Raises:
            ValueError: If the file or the inputs can't be used.
            TargetError: If the machine can't be reached, lacks a runtime, or died.
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spec!r})"
