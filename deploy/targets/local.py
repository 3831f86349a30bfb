"""This machine as a target."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from dprp_tf.deploy.targets.edge import RUNNER, EdgeRunnerTarget, Finished

__all__ = ["LocalTarget"]


class LocalTarget(EdgeRunnerTarget):
    """This machine: files run in a process of their own, without TensorFlow.

    Example:

    >>> LocalTarget().describe()["machine"]["cpus"] >= 1
    True
    """

    spec = "local"
    remedy = '; or: pip install "dprp-tf[export]"'

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
