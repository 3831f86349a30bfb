"""The minutes that a search may take, counted over all its interruptions."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import keras

from dprp_tf.files.atomic import read_json, write_json

__all__ = ["Clock", "Deadline"]

# Seconds between two notes of the time that has gone.
_PAUSE = 2.0


class Clock:
    """Counts the seconds of a search, and keeps them in a file.

    What a process that was killed had not noted, two seconds at most while it works, is not
    counted.

    Args:
        path: The file; made when time is first kept.
        minutes: How long the search may take in all.

    Attributes:
        whole: The seconds that it may take in all.

    Example:

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "clock.json"
    >>> clock = Clock(path, 10)
    >>> clock.keep()
    >>> 599 < Clock(path, 10).left <= 600
    True
    """

    def __init__(self, path: Path, minutes: float) -> None:
        self._path, self.whole = path, 60 * minutes
        self._before = 0.0
        self._prepared: float | None = None
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            kept = read_json(path)
            self._before = max(0.0, float(kept["seconds"]))
            self._prepared = kept.get("prepared")
        self._began = self._kept = time.monotonic()

    @property
    def spent(self) -> float:
        """Seconds that have gone, those before interruptions too."""
        return self._before + time.monotonic() - self._began

    @property
    def left(self) -> float:
        """Seconds that are left; below 0 if it took longer."""
        return self.whole - self.spent

    @property
    def searching(self) -> float:
        """The seconds of the whole that are not those of the preparations."""
        return self.whole - (self._prepared or 0.0)

    def prepared(self) -> None:
        """Note that all preparations are done, if that was not noted before an interruption."""
        if self._prepared is None:
            self._prepared = round(self.spent, 1)
            self.keep()

    def keep(self) -> None:
        """Write down what has gone."""
        self._kept = time.monotonic()
        write_json(self._path, {"seconds": round(self.spent, 1), "prepared": self._prepared})

    def tick(self) -> None:
        """Write down what has gone, if that was not done just now."""
        if time.monotonic() - self._kept >= _PAUSE:
            self.keep()


class Deadline(keras.callbacks.Callback):
    """Ends a training when its time is over, and tells how long its epochs take.

    Args:
        clock: The search's clock.
        reserve: Seconds that must be left when the training ends.
        most_steps: Steps after which it ends in any case. Default: no limit.

    Attributes:
        epoch_seconds: Seconds of an epoch, by the steps after the first ones, which are slower;
            None until that is known.
        ended_early: Whether the time was over before the training.

    Example:

    >>> Deadline(Clock(Path("none.json"), 1), reserve=5).epoch_seconds is None
    True
    """

    # The first steps build the graph.
    _SKIPPED = 2

    def __init__(self, clock: Clock, reserve: float, most_steps: int | None = None) -> None:
        super().__init__()
        self._clock, self._reserve, self._most = clock, reserve, most_steps
        self.ended_early = False
        self._steps, self._since = 0, 0.0
        self.epoch_seconds: float | None = None

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._clock.tick()
        self._steps += 1
        now = time.monotonic()
        if self._steps == self._SKIPPED:
            self._since = now
        elif self._steps > self._SKIPPED and self.params.get("steps"):
            each = (now - self._since) / (self._steps - self._SKIPPED)
            self.epoch_seconds = each * self.params["steps"]
        self.ended_early = self._clock.left < self._reserve
        if self.ended_early or self._steps == self._most:
            self.model.stop_training = True
