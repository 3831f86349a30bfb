"""The files of a search: written, verified, scored, and timed on the target in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras

import dprp_tf.deploy as deploy
from dprp_tf.compression.clock import Clock
from dprp_tf.compression.settings import CompressionSettings
from dprp_tf.compression.study import CompressionStudy
from dprp_tf.data import Dataset
from dprp_tf.runs.files import (
    FORMATS,
    FileSamples,
    file_accuracy,
    format_for,
    time_rows,
    write_file,
)

__all__ = ["Filing"]

# Rounds of timing in turns, and seconds between two tries of a target that went away.
_ROUNDS, _WAIT = 40, 10.0


class Filing:
    """Writes the files of a search and times them.

    Args:
        folder: Where the files go.
        test: Data whose test split tells accuracies and decides nothing.
        validation: The same with the validation samples as the test split.
        settings: What is wished.
        clock: The search's clock.
        study: Lets one worker measure at a time.
        tell: Called with a line while a target is waited for.

    Attributes:
        folder: Where the files are.
        label: The format of the precision that is wished.
        labels: All formats of the runtime, that one first.
    """

    def __init__(
        self,
        folder: Path,
        test: Dataset,
        validation: Dataset,
        settings: CompressionSettings,
        clock: Clock,
        study: CompressionStudy,
        tell: Callable[[str], None],
    ) -> None:
        self.folder, self._validation = folder, validation
        self._samples = FileSamples(test)
        self._settings, self._clock, self._study, self._tell = settings, clock, study, tell
        self.label = format_for(settings.runtime, settings.precision)
        labels = [name for name, one in FORMATS.items() if one.runtime == settings.runtime]
        self.labels = sorted(labels, key=lambda name: name != self.label)

    def write(
        self, label: str, name: str, model: keras.Model | deploy.QuantizedModel
    ) -> dict[str, Any]:
        """Write a model as a file and verify it; one that does not pass stays, and is told.

        Args:
            label: The format.
            name: What the model is called.
            model: The model, or one that was trained with int8 rounding for an int8 `.tflite`.

        Returns:
            Its row: `accuracy` is that on the test split, `score` that on the validation samples,
            `verified` whether it computes what the model does.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        row = write_file(self.folder, label, name, model, self._samples, keep_unverified=True)
        return {**row, "score": file_accuracy(self.folder / row["file"], self._validation)}

    def timed(
        self, rows: Sequence[dict[str, Any]], *, patient: bool = True
    ) -> list[dict[str, Any]]:
        """Time files in turns on the target.

        Args:
            rows: Rows of files; the first is what the others are compared with.
            patient: Whether a target that is not there is waited for, as long as the search may
                take: one that was there before comes back, a device that starts anew or a network.

        Returns:
            The rows with their times.

        Raises:
            TargetError: If the target can't be reached or lacks the runtime.
        """
        settings = self._settings
        while True:
            try:
                with self._study.one_at_a_time(f"target {settings.target}"):
                    return time_rows(
                        self.folder,
                        rows,
                        self._validation,
                        target=settings.target,
                        threads=settings.threads,
                        repeats=_ROUNDS,
                    )
            except deploy.TargetError as error:
                if not patient or self._clock.left < 0:
                    raise
                self._tell(f"waiting for {settings.target}: {error}")
                time.sleep(_WAIT)
