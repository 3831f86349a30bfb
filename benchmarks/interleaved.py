"""Train steps of several models in turns, and what each takes beside the first of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

__all__ = ["StepTimes", "compiled", "time_steps"]


def compiled(model: keras.Model, *, nesterov: bool = False) -> keras.Model:
    """Compile a classifier that gives logits, for steps of stochastic gradient descent.

    Args:
        model: The model.
        nesterov: As `keras.optimizers.SGD`. Default False.

    Returns:
        The model itself.
    """
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9, nesterov=nesterov),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


@dataclass(frozen=True)
class StepTimes:
    """Seconds for a step in each round, by model.

    Attributes:
        wall: By the clock on the wall.
        processor: Of all cores.
    """

    wall: dict[str, list[float]]
    processor: dict[str, list[float]]

    def ratios(self, name: str, of: str = "plain") -> dict[str, Any]:
        """Return ratios of medians, and the quartiles of the rounds' own by processor time.

        Args:
            name: The model.
            of: The one it is compared with. Default `"plain"`.
        """
        pairs = [a / b for a, b in zip(self.processor[name], self.processor[of], strict=True)]
        return {
            "wall": statistics.median(self.wall[name]) / statistics.median(self.wall[of]),
            "processor": statistics.median(self.processor[name])
            / statistics.median(self.processor[of]),
            "processor_quartiles": [float(x) for x in np.percentile(pairs, (25, 75))],
        }


def time_steps(
    models: Mapping[str, keras.Model], x: Any, y: Any, *, rounds: int, steps: int
) -> StepTimes:
    """Time train steps of models in turns; each has taken its first step before.

    Args:
        models: The models by name.
        x: A batch of inputs.
        y: Its labels.
        rounds: How often each has its turn.
        steps: Steps of a turn.

    Returns:
        The times.
    """
    times = StepTimes({name: [] for name in models}, {name: [] for name in models})
    for _ in range(rounds):
        for name, model in models.items():
            began, began_processor = time.perf_counter(), time.process_time()
            for _ in range(steps):
                model.train_on_batch(x, y)
            times.processor[name].append((time.process_time() - began_processor) / steps)
            times.wall[name].append((time.perf_counter() - began) / steps)
    return times
