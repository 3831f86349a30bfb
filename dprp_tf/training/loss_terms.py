"""The means of a training's loss terms, kept in two variables of the train step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from dprp_tf.training.log_names import LOG_PREFIX

__all__ = ["STRUCTURAL_TERMS", "TERM_LOGS", "LossTerms"]

# Orthogonality (Eq. 10), sorting (Eq. 11) and compression (Eq. 12).
STRUCTURAL_TERMS = ("orth", "sort", "comp")
TERM_LOGS = tuple(f"{name}_loss" for name in ("app", *STRUCTURAL_TERMS))


@keras.saving.register_keras_serializable(package="dprp_tf")
class LossTerms(keras.metrics.Metric):
    """Means over the samples of an epoch of the application loss and of each structural term.

    One metric of a vector, instead of four: a train step of small layers is longer by its number
    of operations. In evaluation, where the structural terms are not computed, it tells the
    application loss alone. Its results are prefixed, so that joining them to those of other
    metrics replaces none; `DPRPModel` gives them the names of `TERM_LOGS` where these are free.

    Args:
        name: As `keras.metrics.Metric`. Default `"loss_terms"`; the logs name the terms.
        extended: Whether to keep the mean of the loss as `DPRPModel` computes it as well, which a
            class derived from it may add to. Default False.

    Source: DPRP (arXiv 2401.08014) III-C.

    Example:

    >>> terms = LossTerms()
    >>> terms.update_state(2.0, {"orth": 1.0, "sort": 0.0, "comp": 0.5}, sample_weight=8)
    >>> sorted(terms.result())
    ['dprp_app_loss', 'dprp_comp_loss', 'dprp_orth_loss', 'dprp_sort_loss']
    """

    def __init__(self, name: str = "loss_terms", extended: bool = False) -> None:
        super().__init__(name=name, dtype="float32")
        self.evaluating = False
        self.extended = extended
        self._sums = self.add_variable((len(TERM_LOGS) + extended,), "zeros", name="sums")
        self._count = self.add_variable((), "zeros", name="count")

    def update_state(
        self, app: Any, terms: Mapping[str, Any], sample_weight: Any, total: Any = 0.0
    ) -> None:
        """Add the terms of a batch; runs inside the train step.

        Args:
            app: The application loss, a scalar.
            terms: The unweighted structural terms, scalars by name; empty in evaluation.
            sample_weight: Samples in the batch.
            total: The loss as `DPRPModel` computes it; counts where `extended`.
        """
        values = [app, *(terms.get(name, 0.0) for name in STRUCTURAL_TERMS)]
        values += [total] if self.extended else []
        count = ops.cast(sample_weight, "float32")
        seen = ops.stop_gradient(ops.stack([ops.cast(value, "float32") for value in values]))
        self._sums.assign(self._sums + seen * count)
        self._count.assign(self._count + count)

    def result(self) -> dict[str, Any]:
        """Return the means by the names of the logs, `TERM_LOGS`, each with the prefix."""
        means = ops.divide_no_nan(self._sums, self._count)
        names = TERM_LOGS[:1] if self.evaluating else TERM_LOGS
        return {LOG_PREFIX + name: means[index] for index, name in enumerate(names)}

    def beyond(self, mean_loss: Any, count: Any) -> Any:
        """Return the mean of what a derived class added to the loss, where `extended`.

        Args:
            mean_loss: The mean of the loss that was trained, over the same samples.
            count: Their number; a class that keeps no such mean leaves it 0, and nothing is told.

        Returns:
            A scalar.
        """
        mean = ops.divide_no_nan(self._sums[-1], self._count)
        return ops.where(count > 0, mean_loss - mean, ops.zeros_like(mean))

    def get_config(self) -> dict[str, Any]:
        """Return the constructor arguments."""
        return {"name": self.name, "extended": self.extended}

    # An epoch's means are no part of a saved model.
    def save_own_variables(self, store: Any) -> None:
        """Save nothing."""

    def load_own_variables(self, store: Any) -> None:
        """Load nothing."""
