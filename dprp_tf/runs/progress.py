"""A live display of training for the terminal, and plain lines where there is no terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

import keras
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from dprp_tf.files.shown import shown
from dprp_tf.training.log_names import name_in_logs

__all__ = ["Display"]


class Display:
    """Shows steps and epochs: a live bar on a terminal, one line each elsewhere.

    Args:
        console: Where to write; standard error by default, so that `--json` stays clean.
        quiet: Whether to show nothing.

    Example:

    >>> with Display(quiet=True) as display:
    ...     display.step("folding")
    """

    def __init__(self, console: Console | None = None, quiet: bool = False) -> None:
        self._console = console or Console(stderr=True)
        self._live = self._console.is_terminal and not quiet
        self._quiet = quiet
        self._progress = _Bars(
            TextColumn("{task.description:<22}", markup=False),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[figures]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._step: Any = None

    def __enter__(self) -> Display:
        if self._live:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._progress.stop()

    def step(self, name: str) -> None:
        """Show that a step without a known length has begun."""
        name = shown(name)
        if self._live:
            if self._step is None:
                self._step = self._progress.add_task(name, total=1, figures="")
            self._progress.update(self._step, description=name, completed=0)
        elif not self._quiet:
            self._console.print(Text(name))

    def line(self, text: str) -> None:
        """Show a line that stays, of something that is done."""
        if not self._quiet:
            self._console.print(Text(shown(text)))

    def show(self, above: Callable[[], RenderableType] | None) -> None:
        """Show something above the bars from now on, such as a table; None for nothing.

        Without a terminal nothing is shown.

        Args:
            above: Returns it as it stands; called at every refresh, several times a second.
        """
        self._progress.above = above
        if self._live:
            self._progress.refresh()

    def finish(self) -> None:
        """Close the bar of `step`."""
        if self._live and self._step is not None:
            self._progress.update(self._step, description="done", completed=1)

    def search(self, name: str) -> Callable[[float | None, str], None]:
        """Return what shows how far a search is and how long the rest will take.

        Args:
            name: What is searched.

        Returns:
            A function of the share done, 0 to 1 or None where it isn't known, and a text.

        Example:

        >>> with Display(quiet=True) as display:
        ...     display.search("ranks")(0.5, "level 12")
        """
        return _SearchBar(self, name)

    def training(self, name: str, epochs: int) -> keras.callbacks.Callback:
        """Return a callback that shows a training's epochs.

        Args:
            name: What trains.
            epochs: Epochs in all.

        Returns:
            A Keras callback.
        """
        return _TrainingBar(self, name, epochs)


class _Bars(Progress):
    """Bars with something above them."""

    above: Callable[[], RenderableType] | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        if self.above is not None:
            yield self.above()
        yield from super().get_renderables()


class _SearchBar:
    """Without a terminal a line about every ten seconds."""

    _PAUSE = 10.0

    def __init__(self, display: Display, name: str) -> None:
        self._display, self._name = display, shown(name)
        self._task: Any = None
        self._began = self._told = time.perf_counter()

    def __call__(self, share: float | None, text: str) -> None:
        text = shown(text)
        if self._display._live:
            if self._task is None:
                self._task = self._display._progress.add_task(self._name, total=100, figures="")
            completed = None if share is None else 100 * min(max(share, 0.0), 1.0)
            self._display._progress.update(self._task, completed=completed, figures=text)
            return
        now = time.perf_counter()
        if self._display._quiet or (now - self._told < self._PAUSE and share != 1.0):
            return
        self._told = now
        rest = ""
        if share is not None and 0.02 < share < 1.0:
            seconds = (now - self._began) * (1.0 - share) / share
            rest = f", about {seconds / 60:.1f} minutes left"
        done = "" if share is None else f" {share:.0%}"
        self._display._console.print(Text(f"{self._name}:{done} {text}{rest}"))


class _TrainingBar(keras.callbacks.Callback):
    def __init__(self, display: Display, name: str, epochs: int) -> None:
        super().__init__()
        self._display, self._name, self._epochs = display, shown(name), epochs
        self._task: Any = None
        self._epoch, self._began = 0, time.perf_counter()

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if self._display._live:
            self._task = self._display._progress.add_task(
                self._name, total=self._epochs, figures=""
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        steps = self.params.get("steps")
        if self._task is not None and steps:
            done = self._epoch + min(1.0, (batch + 1) / steps)
            self._display._progress.update(self._task, completed=done)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        logs = logs or {}
        figures = _figures(logs)
        rank, size = (name_in_logs(name, logs) for name in ("total_rank", "parameters"))
        if rank in logs:
            figures += f"  ranks {int(logs[rank])}  parameters {int(logs[size]):,}"
        if self._task is not None:
            self._display._progress.update(self._task, completed=epoch + 1, figures=figures)
        elif not self._display._quiet:
            self._display._console.print(
                Text(f"{self._name}: epoch {epoch + 1}/{self._epochs}  {figures}")
            )


def _figures(logs: dict[str, Any]) -> str:
    """The accuracy on the validation data; where there is none, what the training says."""
    shown = (("val_accuracy", "accuracy"), ("accuracy", "training accuracy"), ("loss", "loss"))
    for name, words in shown:
        if name in logs:
            known = math.isfinite(logs[name])
            return f"{words} {logs[name]:.3f}" if known else f"{words} not known"
    return ""
