"""How long a target may take and how much it may say, by the work that it is given."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dprp_tf.files.arguments import check_number

__all__ = ["Limits", "check_timeout", "work_limits"]

# Far above what the slowest board takes that anybody deploys to: a limit for those that hang.
_START_SECONDS = 300.0
_FILE_SECONDS = 60.0
_INFERENCE_SECONDS = 5.0
_BYTES_PER_SECOND = 100e3
_ANSWER_BYTES = 4 << 20
# A sample in decimal digits.
_SAMPLE_BYTES = 32
# In memory here, all outputs at once.
_OUTPUT_BYTES = 1 << 30


@dataclass(frozen=True)
class Limits:
    """What a target may take for one piece of work.

    Args:
        seconds: Time until the answer is complete.
        answer_bytes: Length of the answer.
        output_bytes: Size of the arrays that it gives back, all together.
    """

    seconds: float
    answer_bytes: int = _ANSWER_BYTES
    output_bytes: int = _OUTPUT_BYTES


def work_limits(
    files: Iterable[Path] = (),
    inferences: int = 0,
    samples: int = 0,
    timeout_s: float | None = None,
    slowness: float = 1.0,
) -> Limits:
    """Say what a piece of work may take.

    Five minutes to start, a minute for each file and 10 s for each megabyte of it, 5 s for each
    inference: many times what it takes, since it is for those that hang.

    Args:
        files: What must get there and run. Defaults to none.
        inferences: Inferences in all, 0 or more. Defaults to 0.
        samples: Figures in the answer, 0 or more. Defaults to 0.
        timeout_s: What the user said instead. Defaults to `None`, nothing.
        slowness: How many times slower than a small board it computes. Defaults to 1.

    Returns:
        The limits.

    Example:

    >>> work_limits(inferences=60).seconds
    600.0
    >>> work_limits(inferences=60, timeout_s=10).seconds
    10
    """
    paths = list(files)
    transfer = sum(path.stat().st_size for path in paths if path.is_file()) / _BYTES_PER_SECOND
    work = _FILE_SECONDS * len(paths) + _INFERENCE_SECONDS * inferences
    seconds = _START_SECONDS + transfer + slowness * work
    return Limits(
        seconds if timeout_s is None else timeout_s,
        _ANSWER_BYTES * (1 + len(paths) // 64) + _SAMPLE_BYTES * samples,
    )


def check_timeout(timeout_s: float | str | None) -> float | None:
    """Refuse a time limit that is none.

    Args:
        timeout_s: Seconds above 0, also as text; `None` for a limit by the work.

    Returns:
        The seconds, or `None`.

    Raises:
        ValueError: If it is anything else.

    Example:

    >>> check_timeout("90")
    90.0
    """
    if timeout_s is None:
        return None
    given: object = timeout_s
    if isinstance(timeout_s, str):
        try:
            given = float(timeout_s)
        except ValueError:
            given = timeout_s
    # More than threads can wait for is a wait for ever.
    return check_number("timeout_s", given, above=0, maximum=1e6)
