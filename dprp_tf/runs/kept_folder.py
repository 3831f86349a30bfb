"""A training whose folder is taken away ends, instead of writing the rest of it elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras

__all__ = ["KeptFolder"]


class KeptFolder(keras.callbacks.Callback):
    """End a training after the epoch in which its folder was removed or renamed.

    What is written makes its folder, so the next epoch would leave one there without settings,
    which no command takes for a run. The first of the callbacks that write, it goes before them.

    Args:
        mark: The file that is there from the run's beginning to its end.

    Example:

    >>> KeptFolder(Path("runs/mine/config.json")).check()
    Traceback (most recent call last):
      ...
    FileNotFoundError: `folder` must stay where it is while a run is at work. Received: runs/mine, \
which is without the run's config.json: removed or renamed meanwhile. Nothing more is written \
there. Where the folder is renamed, give its new name and the run goes on; else it starts anew.
    """

    def __init__(self, mark: Path) -> None:
        super().__init__()
        self._mark = mark

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.check()

    def check(self) -> None:
        """Refuse a folder without the mark.

        Raises:
            FileNotFoundError: If it is gone.
        """
        if self._mark.exists():
            return
        raise FileNotFoundError(
            "`folder` must stay where it is while a run is at work. Received: "
            f"{self._mark.parent}, which is without the run's {self._mark.name}: removed or "
            "renamed meanwhile. Nothing more is written there. Where the folder is renamed, give "
            "its new name and the run goes on; else it starts anew."
        )
