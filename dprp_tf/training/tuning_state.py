"""What a fine-tuning leaves in its folder after every epoch, and how it goes on from there."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from dprp_tf.files.arguments import is_finite_number
from dprp_tf.files.atomic import read_json, remove_leftovers, write_json
from dprp_tf.keras_internals.seeds import are_seed_states, seed_anew, seed_states, set_seed_states
from dprp_tf.training.divergence import diagnose
from dprp_tf.training.saving import load_weights, save_model

__all__ = ["TuningState"]

_STATE = "tuning.json"


class TuningState:
    """The checkpoint of a fine-tuning and its history, in a folder or in memory alone.

    The folder gets `tuning.json` with the checkpoint it names, which lies beside it. What such a
    file holds is checked before any of it is used.

    Args:
        folder: Where to keep them. None: nowhere.
        identity: The settings, as text that is the same in every process.
        epochs: Epochs in all.
        samples: Samples that it trains on.
        model: The model that trains.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> TuningState(None, "settings", 3, 100, model).restore(model, seed=0)
    0
    """

    def __init__(
        self, folder: Path | None, identity: str, epochs: int, samples: int, model: keras.Model
    ) -> None:
        self.history: list[dict[str, float]] = []
        self._folder, self._epochs = folder, epochs
        shapes = repr([tuple(weight.shape) for weight in model.weights])
        of = hashlib.sha256(shapes.encode()).hexdigest()[:16]
        self._identity = f"{identity} on {samples} samples, weights {of}"

    def restore(self, model: keras.Model, seed: int) -> int:
        """Load what an interrupted fine-tuning left into the model, or begin with a seed.

        Args:
            model: The model, compiled.
            seed: Seed of the model's random layers, where the training begins.

        Returns:
            The epochs done.

        Raises:
            ValueError: If the folder holds another fine-tuning, or files that are unsound.
        """
        path = None if self._folder is None else self._folder / _STATE
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self._folder)
        if path is None or not path.exists():
            seed_anew(model, seed)
            return 0
        state = self._read(path)
        try:
            # With the optimizer's state; not as a model, whose loss must be known to load it.
            model.optimizer.build(model.trainable_variables)
            load_weights(model, path.with_name(state["checkpoint"]))
            if state["seeds"] is None:
                seed_anew(model, seed)
            else:
                set_seed_states(model, state["seeds"])
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(
                f"`folder` must hold the sound checkpoint that {path} names. Received: {error} "
                f"Remove {path.name} to start again."
            ) from error
        self.history = [
            {name: math.nan if value is None else float(value) for name, value in entry.items()}
            for entry in state["history"]
        ]
        return len(self.history)

    def keep(self, model: keras.Model, epoch: int, logs: dict[str, Any]) -> None:
        """Write the model as it is after an epoch, then the state that names it.

        Args:
            model: The model.
            epoch: The epoch, counted from 0.
            logs: Its logs.

        Raises:
            DivergenceError: If the model or its optimizer is no longer finite; nothing is written.
        """
        error = diagnose(model, epoch)  # callbacks may have changed it since the guard looked
        if error is not None:
            raise error
        self.history.append({name: float(value) for name, value in logs.items()})
        if self._folder is None:
            return
        name = _checkpoint(len(self.history))
        save_model(model, self._folder / name)
        state = {
            "identity": self._identity,
            "checkpoint": name,
            "history": self.history,
            "seeds": seed_states(model),
        }
        write_json(self._folder / _STATE, state)
        for old in self._folder.glob("tuning-[0-9]*.keras"):
            if old.name != name:
                old.unlink()

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            found = read_json(path)
        except ValueError as error:
            raise ValueError(
                f"`folder` must hold the state of a fine-tuning in JSON. Received: {path}, which "
                f"can't be read ({error}). Remove it to start again."
            ) from error
        if not isinstance(found, dict) or found.get("identity") != self._identity:
            raise ValueError(
                f"`folder` must hold a tuning of the same settings and model. Received: {path} of "
                "another; use another folder or remove it."
            )
        state = {"seeds": None, **found}
        wrong = [name for name, sound in _SOUND.items() if not sound(state, self._epochs)]
        if wrong:
            raise ValueError(
                f"`folder` must hold the state of a fine-tuning with {', '.join(_SOUND)}. Received:"
                f" {path}, in which {', '.join(wrong)} is missing or does not fit. Remove it to "
                "start again."
            )
        return state


def _checkpoint(epochs: int) -> str:
    return f"tuning-{epochs:04d}.keras"


def _is_history(entries: Any, epochs: int) -> bool:
    return (
        isinstance(entries, list)
        and 1 <= len(entries) <= epochs
        and all(isinstance(entry, dict) for entry in entries)
        # A figure that was not finite, such as a loss on validation data, is null.
        and all(v is None or is_finite_number(v) for entry in entries for v in entry.values())
    )


# What each entry of a state must be, beside the epochs there can be at most.
_SOUND: dict[str, Callable[[dict[str, Any], int], bool]] = {
    "history": lambda state, epochs: _is_history(state.get("history"), epochs),
    "checkpoint": lambda state, epochs: (
        isinstance(state.get("history"), list)
        and state.get("checkpoint") == _checkpoint(len(state["history"]))
    ),
    "seeds": lambda state, epochs: state["seeds"] is None or are_seed_states(state["seeds"]),
}
