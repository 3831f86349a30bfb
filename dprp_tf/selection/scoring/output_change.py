"""How far a model's outputs are from those of the model it was made of."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from dprp_tf.selection.scoring.log_probabilities import are_probabilities, log_probabilities

__all__ = ["OutputChange"]


class OutputChange:
    """What a smaller model loses of a model's outputs, told without labels.

    For class scores, probabilities p or logits, it is the mean divergence KL(p, q) in nats of the
    changed probabilities q; for other outputs ||f - f~||^2 / ||f - mean f||^2. Several outputs are
    added up.

    Args:
        outputs: What the model gives for some samples, in its own structure.
        classes: Whether each output holds scores of classes.

    Example:

    >>> change = OutputChange(np.array([[0.0, 1.0], [2.0, 0.0]]), classes=False)
    >>> change(np.array([[0.0, 1.0], [2.0, 1.0]]))
    0.4
    """

    def __init__(self, outputs: Any, *, classes: bool) -> None:
        self._whole = [np.asarray(part, np.float64) for part in keras.tree.flatten(outputs)]
        self._classes = classes
        self._probabilities = [are_probabilities(part) for part in self._whole]
        self._spread = [
            max(float(np.sum((part - part.mean(axis=0)) ** 2)), np.finfo(float).tiny)
            for part in self._whole
        ]

    def __call__(self, outputs: Any) -> float:
        """Return the change, 0 or more; infinite where an output is not finite.

        Args:
            outputs: What the smaller model gives for the same samples.
        """
        found = [np.asarray(part, np.float64) for part in keras.tree.flatten(outputs)]
        if not all(np.all(np.isfinite(part)) for part in found):
            return float("inf")
        if not self._classes:
            return sum(
                float(np.sum((part - whole) ** 2)) / spread
                for part, whole, spread in zip(found, self._whole, self._spread, strict=True)
            )
        total = 0.0
        for part, whole, kind in zip(found, self._whole, self._probabilities, strict=True):
            before, after = (
                log_probabilities(scores, probabilities=kind) for scores in (whole, part)
            )
            total += float(np.mean(np.sum(np.exp(before) * (before - after), axis=-1)))
        return max(total, 0.0)
