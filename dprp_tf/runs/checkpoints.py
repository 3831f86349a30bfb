"""What a training run leaves after every epoch, and how it goes on from there."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import keras

from dprp_tf.files.arguments import is_finite_number, is_integer
from dprp_tf.files.atomic import read_json, write_json
from dprp_tf.keras_internals.compiled import sync
from dprp_tf.keras_internals.seeds import are_seed_states, seed_states, set_seed_states
from dprp_tf.runs.schedules import Plateau
from dprp_tf.runs.settings import TrainSettings, stop_by_default
from dprp_tf.training.divergence import broken_slots
from dprp_tf.training.saving import load_model, save_model

__all__ = ["Recorder", "check_config", "load_checkpoint", "read_state"]


class Recorder(keras.callbacks.Callback):
    """Write history, checkpoint and state after every epoch, the state last."""

    def __init__(
        self,
        folder: Path,
        settings: TrainSettings,
        state: dict[str, Any],
        plateau: Plateau | None,
    ) -> None:
        super().__init__()
        self._folder, self._settings, self._plateau = folder, settings, plateau
        self._history = list(state["history"])
        self._began = self._step_began = time.perf_counter()
        self._steps: dict[str, list[float]] = {"train": [], "test": []}

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._began = time.perf_counter()
        self._steps = {"train": [], "test": []}

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._step_began = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._steps["train"].append(time.perf_counter() - self._step_began)

    def on_test_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._step_began = time.perf_counter()

    def on_test_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._steps["test"].append(time.perf_counter() - self._step_began)

    def _tracing_seconds(self) -> float:
        """Return what the first steps took beyond the median step: a trace, where there was one."""
        excess = 0.0
        for steps in self._steps.values():
            if len(steps) > 1:
                excess += max(0.0, steps[0] - statistics.median(steps[1:]))
        return round(excess, 2)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        entry = {"epoch": epoch + 1, **{key: float(value) for key, value in (logs or {}).items()}}
        for name in ("total_rank", "parameters"):
            if name in entry:
                entry[name] = int(entry[name])
        sync(self.model)
        rate = keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)
        entry["learning_rate"] = float(rate)
        entry["seconds"] = round(time.perf_counter() - self._began, 2)
        entry["tracing_seconds"] = self._tracing_seconds()
        self._history.append(entry)
        name = f"checkpoint-{epoch + 1:04d}.keras"
        save_model(self.model, self._folder / name)
        write_json(self._folder / "history.json", {"runs": {self._settings.method: self._history}})
        write_json(
            self._folder / "state.json",
            {
                "epoch": epoch + 1,
                "checkpoint": name,
                "history": self._history,
                "plateau": self._plateau_state(),
                "seeds": seed_states(self.model),
            },
        )
        for old in self._folder.glob("checkpoint-[0-9][0-9][0-9][0-9]*.keras"):
            if old.name != name:
                old.unlink()

    def _plateau_state(self) -> dict[str, float] | None:
        return None if self._plateau is None else self._plateau.state()


def check_config(path: Path, config: dict[str, Any]) -> None:
    """Refuse to go on in a folder whose run has other settings or other data; more epochs may be.

    Args:
        path: The run's `config.json`.
        config: What it would hold for the run to be: `settings` and `data`.

    Raises:
        ValueError: If it holds something else, or can't be read; the message names what differs.
    """
    found = _read_json(path)
    known = {entry.name for entry in fields(TrainSettings)}
    settings = found.get("settings")
    if not isinstance(settings, dict) or not is_integer(settings.get("epochs", 1)):
        raise ValueError(
            f"The run's configuration must hold its settings. Received: {path}, which does not. "
            "Remove the folder and start anew."
        )
    before = {k: v for k, v in settings.items() if k in known}
    now = config["settings"]
    changed = [name for name in now if name in before and before[name] != now[name]]
    # The run has its own copy of the table.
    changed = [name for name in changed if name != "latency_table"]
    if "stop_epoch" in changed and _stops_by_default(before, now) and _stops_by_default(now, now):
        changed.remove("stop_epoch")  # it moves with the epochs
    changed = [name for name in changed if name != "epochs" or before["epochs"] > now["epochs"]]
    if changed or found.get("data") != config["data"]:
        details = ", ".join(f"{name}: {before[name]!r} -> {now[name]!r}" for name in changed)
        raise ValueError(
            f"`folder` holds a run with other settings. Received: {path.parent} "
            f"({details or 'other data'}). Choose another folder, or start anew with `fresh`."
        )


def _stops_by_default(settings: dict[str, Any], now: dict[str, Any]) -> bool:
    found = stop_by_default(settings.get("epochs", 1), now["start_epoch"])
    return bool(settings["stop_epoch"] == found)


def read_state(path: Path) -> dict[str, Any]:
    """Read the state of an interrupted run.

    Args:
        path: The run's `state.json`.

    Returns:
        `epoch`, `checkpoint`, `history`, `plateau` and `seeds`.

    Raises:
        ValueError: If it can't be read, or an entry is missing or does not fit the others.
    """
    state = {"plateau": None, "seeds": None, **_read_json(path)}
    wrong = [key for key, sound in _STATE.items() if not _holds(sound, state)]
    if wrong:
        raise ValueError(
            f"The run's state must hold {', '.join(_STATE)}. Received: {path}, in which "
            f"{', '.join(wrong)} is missing or does not fit. Remove the folder and start anew."
        )
    return state


# What each entry of a state must be; history and checkpoint must be those of its epoch.
_STATE: dict[str, Callable[[dict[str, Any]], bool]] = {
    "epoch": lambda state: is_integer(state["epoch"]),
    "checkpoint": lambda state: state["checkpoint"] == f"checkpoint-{state['epoch']:04d}.keras",
    "history": lambda state: (
        [entry["epoch"] for entry in state["history"]] == list(range(1, state["epoch"] + 1))
        and all(
            value is None or is_finite_number(value)
            for entry in state["history"]
            for value in entry.values()
        )
    ),
    "plateau": lambda state: (
        state["plateau"] is None
        or (
            sorted(state["plateau"]) == sorted(Plateau.KEPT)
            and all(
                is_finite_number(value) or (value is None and name == "best")
                for name, value in state["plateau"].items()
            )
        )
    ),
    "seeds": lambda state: state["seeds"] is None or are_seed_states(state["seeds"]),
}


def _holds(sound: Callable[[dict[str, Any]], bool], state: dict[str, Any]) -> bool:
    try:
        return sound(state)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return False


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except ValueError as error:
        raise ValueError(
            f"The run file must be JSON. Received: {path}, which can't be read ({error}). "
            "Remove the folder and start anew."
        ) from error
    if not isinstance(value, dict):
        raise ValueError(f"The run file must hold an object. Received: {path}")
    return value


def load_checkpoint(folder: Path, state: dict[str, Any]) -> keras.Model:
    """Load the model of a state, its random layers where they were.

    Args:
        folder: The run folder.
        state: What `read_state` returned.

    Returns:
        The model, compiled, with its optimizer's slots.

    Raises:
        ValueError: If the checkpoint is missing or unsound.
    """
    try:
        model = load_model(folder / state["checkpoint"])
        slots = broken_slots(model)
        if slots:
            raise ValueError(f"the optimizer's {slots[0]} holds NaN or infinite values")
        if state["seeds"] is not None:
            set_seed_states(model, state["seeds"])
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(
            f"The run's state must name a sound checkpoint. Received: {folder / 'state.json'} ("
            f"{error}). Remove the folder, or start anew with `fresh`."
        ) from error
    return model
