"""This machine as a target."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from dprp_tf.deploy.targets.child import Ended, LimitError, run_limited
from dprp_tf.deploy.targets.edge import RUNNER, EdgeRunnerTarget
from dprp_tf.deploy.targets.limits import Limits, check_timeout

__all__ = ["LocalTarget"]


class LocalTarget(EdgeRunnerTarget):
    """This machine: files run in a process of their own, without TensorFlow.

    Args:
        timeout_s: Seconds after which a run is given up, above 0. Defaults to five minutes, one
            for each file and 5 s for each inference.

    Raises:
        ValueError: If the timeout is not above 0.

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

    def __init__(self, timeout_s: float | None = None) -> None:
        self.timeout_s = check_timeout(timeout_s)

    def _run(self, arguments: Sequence[str | Path], written: Path | None, limits: Limits) -> Ended:
        # Its measurement would outlive this process, if that is killed, and disturb the next one.
        command = [sys.executable, "-P", str(RUNNER), "--parent", str(os.getpid())]
        # An absolute path can't be taken for an option.
        command += [
            os.path.abspath(argument) if isinstance(argument, Path) else argument
            for argument in arguments
        ]
        if written is not None:
            command += ["--outputs", str(written)]
        try:
            return run_limited(command, seconds=limits.seconds, most_bytes=limits.answer_bytes)
        except LimitError as error:
            raise self._overrun(error) from error
