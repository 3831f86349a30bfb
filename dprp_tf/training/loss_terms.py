"""The means of a training's loss terms, kept in two variables of the train step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

__all__ = ["STRUCTURAL_TERMS", "LossTerms"]

# Orthogonality (Eq. 10), sorting (Eq. 11) and compression (Eq. 12).
STRUCTURAL_TERMS = ("orth", "sort", "comp")


@keras.saving.register_keras_serializable(package="dprp_tf")
class LossTerms(keras.metrics.Metric):
    """Means over the samples of an epoch of the application loss and of each structural term.

    One metric of a vector, instead of four: a train step of small layers is longer by its number
    of operations. In evaluation, where the structural terms are not computed, it tells the
    application loss alone.

    Args:
        name: As `keras.metrics.Metric`. Default `"loss_terms"`; the logs name the terms.

    Source: DPRP (arXiv 2401.08014) III-C.

    Example:

    >>> terms = LossTerms()
    >>> terms.update_state(2.0, {"orth": 1.0, "sort": 0.0, "comp": 0.5}, sample_weight=8)
    >>> sorted(terms.result())
    ['app_loss', 'comp_loss', 'orth_loss', 'sort_loss']
    """

    def __init__(self, name: str = "loss_terms") -> None:
        super().__init__(name=name, dtype="float32")
        self.evaluating = False
        self._sums = self.add_variable((1 + len(STRUCTURAL_TERMS),), "zeros", name="sums")
        self._count = self.add_variable((), "zeros", name="count")

    def update_state(self, app: Any, terms: Mapping[str, Any], sample_weight: Any) -> None:
        """Add the terms of a batch; runs inside the train step.

        Args:
            app: The application loss, a scalar.
            terms: The unweighted structural terms, scalars by name; empty in evaluation.
            sample_weight: Samples in the batch.
        """
        values = [app, *(terms.get(name, 0.0) for name in STRUCTURAL_TERMS)]
        count = ops.cast(sample_weight, "float32")
        seen = ops.stop_gradient(ops.stack([ops.cast(value, "float32") for value in values]))
        self._sums.assign(self._sums + seen * count)
        self._count.assign(self._count + count)

    def result(self) -> dict[str, Any]:
        """Return the means by the names of the logs: `app_loss`, and each structural term's."""
        means = ops.divide_no_nan(self._sums, self._count)
        names = ("app",) if self.evaluating else ("app", *STRUCTURAL_TERMS)
        return {f"{name}_loss": means[index] for index, name in enumerate(names)}

    def get_config(self) -> dict[str, Any]:
        """Return the constructor arguments."""
        return {"name": self.name}

    # An epoch's means are no part of a saved model.
    def save_own_variables(self, store: Any) -> None:
        """Save nothing."""

    def load_own_variables(self, store: Any) -> None:
        """Load nothing."""
