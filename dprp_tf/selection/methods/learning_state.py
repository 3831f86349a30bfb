"""What an interrupted learning leaves in its folder, and how it goes on from there."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from dprp_tf.files.arrays import read_arrays
from dprp_tf.files.atomic import atomic_path, remove_leftovers
from dprp_tf.files.settings import require_same_settings

__all__ = ["LearningState"]

_SETTINGS, _STATE = "less.json", "less.npz"
_FIGURES = ("losses", "spent")


class LearningState:
    """The variables that a learning has reached, with its loss and cost at every step so far.

    Args:
        folder: Where to keep them. None: nowhere.
        settings: What the learning depends on, as JSON-ready values.

    Raises:
        ValueError: If the folder holds a learning with other settings.

    Example:

    >>> state = LearningState(None, {"seed": 0})
    >>> state.note(1.5, 0.9)
    >>> state.done, state.losses, state.spent
    (1, [1.5], [0.9])
    """

    def __init__(self, folder: Path | None, settings: Mapping[str, Any]) -> None:
        self.losses: list[float] = []
        self.spent: list[float] = []
        self._path = None if folder is None else folder / _STATE
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder)
            require_same_settings(folder / _SETTINGS, settings, "a learning")

    @property
    def done(self) -> int:
        """The steps taken."""
        return len(self.losses)

    def note(self, loss: float, spent: float) -> None:
        """Add a step.

        Args:
            loss: Its loss.
            spent: The cost at it, relative to the bound.
        """
        self.losses.append(loss)
        self.spent.append(spent)

    def restore(self, variables: Sequence[keras.Variable]) -> None:
        """Give the variables what was kept of them, if anything was.

        Args:
            variables: All that steps change, the optimizer's too.

        Raises:
            ValueError: If what the folder holds is unsound or of other variables.
        """
        if self._path is None or not self._path.exists():
            return
        names = [f"v{at}" for at in range(len(variables))]
        try:
            held, all_names = read_arrays(self._path, [*names, *_FIGURES])
            sound = set(all_names) == {*names, *_FIGURES} and all(
                held[name].shape == tuple(own.shape) and bool(np.isfinite(held[name]).all())
                for name, own in zip(names, variables, strict=True)
            )
            figures = [held[name].astype(float).tolist() for name in _FIGURES] if sound else []
            if not sound or len(figures[0]) != len(figures[1]):
                raise ValueError("it is of another learning")
        except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"`folder` must hold the sound state of a learning. Received: {self._path}: "
                f"{error}. Remove it to start again."
            ) from error
        for name, own in zip(names, variables, strict=True):
            own.assign(held[name])
        self.losses, self.spent = figures

    def keep(self, variables: Sequence[keras.Variable]) -> None:
        """Write the variables as they are, whole or not at all.

        Args:
            variables: Those that `restore` takes.
        """
        if self._path is None:
            return
        arrays = {
            f"v{at}": np.asarray(keras.ops.convert_to_numpy(own))
            for at, own in enumerate(variables)
        }
        arrays.update(losses=np.array(self.losses), spent=np.array(self.spent))
        with atomic_path(self._path) as place, place.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
