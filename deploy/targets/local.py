"""This machine as a target."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from dprp_tf.deploy.targets.edge import RUNNER, EdgeRunnerTarget, Finished

__all__ = ["LocalTarget"]


class LocalTarget(EdgeRunnerTarget):
    """This machine: files run in a process of their own, without TensorFlow.

    Example:

    >>> LocalTarget().describe()["machine"]["cpus"] >= 1
    True
    """

    example = "local"
    spec = "local"
    remedy = '; or: pip install "dprp-tf[export]"'

    @classmethod
    def from_spec(cls, spec: str) -> Self:
        """Make the target of its text, which is `"local"` alone.

        Args:
            spec: The text.

        Returns:
            The target.

        Raises:
            ValueError: If it is anything else.
        """
        if spec != cls.example:
            raise ValueError(f'`target` must be "local". Received: target={spec!r}.')
        return cls()

    def _run(self, arguments: Sequence[str | Path], written: Path | None) -> Finished:
        command = [sys.executable, "-P", str(RUNNER)]
        # An absolute path can't be taken for an option.
        command += [
            os.path.abspath(argument) if isinstance(argument, Path) else argument
            for argument in arguments
        ]
        if written is not None:
            command += ["--outputs", str(written)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return Finished(done.returncode, done.stdout, done.stderr)
