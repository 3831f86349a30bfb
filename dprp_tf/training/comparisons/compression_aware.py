"""Compression-aware training: singular values soft-thresholded after every epoch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from keras import ops
from numpy.typing import NDArray

from dprp_tf.decomposition import decompose, energy_rank
from dprp_tf.decomposition.threads import threads_for
from dprp_tf.files.arguments import check_number
from dprp_tf.keras_internals.optimizers import inner_optimizer
from dprp_tf.training.comparisons.base import LowRankTraining

__all__ = ["CompressionAware", "soft_thresholded"]


class CompressionAware(LowRankTraining):
    """Compression-aware training (CA): a proximal step of the nuclear norm after every epoch.

    At an epoch's end each matricized kernel M = U diag(s) V^T becomes
    U diag(max(s - t, 0)) V^T with t = strength * learning rate * steps of the epoch, the proximal
    operator of strength * ||M||_* for the way that plain gradient descent goes in that epoch. At
    the end of the training the kernels are cut to the ranks that hold the energy.

    Args:
        strength: Weight tau of the nuclear norm, 0 or more. Default 0.005.
        discarded_energy: Share of a layer's sum of s^2 that the final cut may take, in [0, 1).
            Default 0.01.
        decomposition: `"spatial"`, `"channel"` (the source's kind) or `"separable"`. Default
            `"spatial"`, as `factorize`.
        layers: Names or paths of the layers to compress. Default: every one that can be.

    Raises:
        ValueError: If an argument is out of range.

    Source: Alvarez and Salzmann 2017, "Compression-aware Training of Deep Networks", from memory.
        Readings: the proximal operator once per epoch, as there; its threshold scaled by the
        steps it stands for, so that `strength` means the same at any number of batches; the
        group sparsity that the paper can add is left out, as the thesis compares ranks.

    Example:

    >>> import keras
    >>> inputs = keras.Input((4,))
    >>> model = keras.Model(inputs, keras.layers.Dense(3, name="last")(inputs))
    >>> model.compile(keras.optimizers.SGD(0.1), "mse")
    >>> compress = CompressionAware(strength=100.0)
    >>> history = model.fit(np.ones((8, 4)), np.ones((8, 3)), callbacks=[compress], verbose=0)
    >>> compress.ranks
    {'last': 1}
    """

    def __init__(
        self,
        strength: float = 0.005,
        discarded_energy: float = 0.01,
        *,
        decomposition: str = "spatial",
        layers: Iterable[str] | None = None,
    ) -> None:
        super().__init__(decomposition, layers)
        self.strength = check_number("strength", strength, minimum=0)
        self.discarded_energy = check_number(
            "discarded_energy", discarded_energy, minimum=0, below=1
        )
        self._steps = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_epoch_begin(epoch, logs)
        self._steps = 0

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_train_batch_end(batch, logs)
        self._steps = batch + 1

    def end_epoch(self, epoch: int) -> None:
        """Soft-threshold the singular values of every kernel."""
        rate = float(ops.convert_to_numpy(inner_optimizer(self.model.optimizer).learning_rate))
        threshold = self.strength * rate * self._steps
        for key in self._layers:
            self.put(key, soft_thresholded(self.matrix(key), threshold))

    def choose_rank(self, key: str, s: NDArray[np.floating]) -> int:
        """Return the smallest rank that holds the energy."""
        return energy_rank(s, self.discarded_energy)


def soft_thresholded(matrix: NDArray[np.floating], threshold: float) -> NDArray[np.floating]:
    """Return the matrix with its singular values lowered: U diag(max(s - threshold, 0)) V^T.

    It minimizes threshold ||X||_* + 1/2 ||X - M||_F^2 over X.

    Args:
        matrix: M, of shape (h, w), finite.
        threshold: What is taken off each value, 0 or more.

    Returns:
        Array of shape (h, w).

    Source: Cai, Candès and Shen 2010.

    Example:

    >>> soft_thresholded(np.diag([3.0, 1.0]), 2.0).round(6) + 0.0
    array([[1., 0.],
           [0., 0.]])
    """
    with threads_for(np.shape(matrix)):
        factors = decompose(matrix)
    return factors._replace(s=np.maximum(factors.s - threshold, 0)).matrix()
