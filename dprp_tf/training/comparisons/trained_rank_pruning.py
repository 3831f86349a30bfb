"""Trained rank pruning: kernels truncated again and again while they train."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from dprp_tf.decomposition import energy_rank
from dprp_tf.files.arguments import check_integer, check_number
from dprp_tf.keras_internals.compiled import sync
from dprp_tf.layers.kernels import kernel_of
from dprp_tf.training.added_loss import AddedLoss, WeightLoss, assign_copy
from dprp_tf.training.comparisons.base import LowRankTraining

__all__ = ["TrainedRankPruning"]


class TrainedRankPruning(LowRankTraining):
    """Trained rank pruning (TRP): truncate every few steps, train freely in between.

    Every `period` steps each matricized kernel M = U diag(s) V^T is cut to the smallest rank k
    that holds the energy, and until the next cut the loss has strength * sum_l <M_l, U_k V_k^T>:
    its gradient U_k V_k^T is a sub-gradient of the nuclear norm at the truncated kernel. The logs
    get `nuclear_loss`, the sum without its strength.

    Args:
        discarded_energy: Share of a layer's sum of s^2 that a cut may take, in [0, 1). Default
            0.02, the source's.
        period: Steps between truncations, 1 or more; each epoch begins with one. Default 20, the
            source's.
        strength: Weight of the nuclear norm, 0 or more. Default 0.0003, the source's.
        decomposition: `"spatial"`, `"channel"` or `"separable"`; the source has the last two.
            Default `"spatial"`, as `factorize`.
        layers: Names or paths of the layers to compress. Default: every one that can be.

    Raises:
        ValueError: If an argument is out of range.

    Source: Xu et al. 2019, "Trained Rank Pruning for Efficient Deep Neural Networks", from
        memory. Readings: the energy is that of the squared values; the sub-gradient is taken at
        the truncated kernel and held until the next truncation.

    Example:

    >>> inputs = keras.Input((4,))
    >>> model = keras.Model(inputs, keras.layers.Dense(3, name="last")(inputs))
    >>> model.compile("sgd", "mse")
    >>> compress = TrainedRankPruning(discarded_energy=0.9)
    >>> history = model.fit(np.ones((8, 4)), np.ones((8, 3)), callbacks=[compress], verbose=0)
    >>> compress.ranks
    {'last': 1}
    """

    def __init__(
        self,
        discarded_energy: float = 0.02,
        period: int = 20,
        strength: float = 0.0003,
        *,
        decomposition: str = "spatial",
        layers: Iterable[str] | None = None,
    ) -> None:
        super().__init__(decomposition, layers)
        self.discarded_energy = check_number(
            "discarded_energy", discarded_energy, minimum=0, below=1
        )
        self.period = check_integer("period", period)
        self.strength = check_number("strength", strength, minimum=0)
        self._nuclear: _Nuclear | None = None
        self._cut_at: int | None = None

    def added_loss(self) -> AddedLoss:
        """Return sum_l <W_l, T_l>, T_l the sub-gradient of the nuclear norm."""
        self._nuclear = _Nuclear(list(self._layers.values()))
        return self._nuclear

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_epoch_begin(epoch, logs)
        assert self._nuclear is not None
        sync(self.model)
        self._nuclear.strength.assign(self.strength)
        self._cut_at = None

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self._cut_at is not None and batch - self._cut_at < self.period:
            return
        assert self._nuclear is not None
        self._cut_at = batch
        sync(self.model)
        for key, slope in zip(self._layers, self._nuclear.slopes, strict=True):
            factors = self.decomposed(key)
            kept = factors.truncated(self.choose_rank(key, factors.s))
            self.put(key, kept.matrix())
            assign_copy(slope.direction, self.folded(key, kept.u @ kept.v.T))

    def end_epoch(self, epoch: int) -> None:
        """Do nothing: steps are counted, not epochs."""

    def choose_rank(self, key: str, s: NDArray[np.floating]) -> int:
        """Return the smallest rank that holds the energy."""
        return energy_rank(s, self.discarded_energy)


class _Nuclear(WeightLoss):
    """sum_l <W_l, T_l>."""

    def __init__(self, layers: list[keras.layers.Layer]) -> None:
        super().__init__("nuclear_loss")
        held = [self.hold(np.zeros(kernel_of(layer).shape)) for layer in layers]
        # Pairs in objects: Keras takes every variable in a list or tuple of a metric for its own.
        self.slopes = tuple(map(_Slope, layers, held))

    def value(self) -> Any:
        return ops.sum(ops.stack([slope.product() for slope in self.slopes]))


@dataclass(frozen=True, eq=False)
class _Slope:
    layer: keras.layers.Layer
    direction: keras.Variable

    def product(self) -> Any:
        kernel = ops.cast(kernel_of(self.layer).tensor, "float32")
        return ops.sum(kernel * ops.cast(self.direction, "float32"))
