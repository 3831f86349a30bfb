"""What the comparison methods have in common: they train a dense model and end in ranks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from dprp_tf.decomposition import MATRICIZATIONS, Factors, decompose, dematricize, matricize
from dprp_tf.decomposition.threads import threads_for
from dprp_tf.files.arguments import check_choice
from dprp_tf.keras_internals.compiled import sync
from dprp_tf.keras_internals.strategies import strategy_scope
from dprp_tf.layers.kernels import kernel_of
from dprp_tf.layers.layer_decomposition import layer_decomposition
from dprp_tf.training.added_loss import AddedLoss, assign_copy
from dprp_tf.training.guarded_callback import GuardedCallback
from dprp_tf.training.trained_kernels import kernel_values, trained_kernels

__all__ = ["LowRankTraining"]


class LowRankTraining(GuardedCallback):
    """Train a plain dense model towards low rank in `fit`, and cut its kernels at the end.

    When training ends, `ranks` holds a rank for every layer and the kernels have it:
    `dprp_tf.factorize(model, decomposition=..., ranks=callback.ranks)` computes the same.

    Args:
        decomposition: `"spatial"`, `"channel"` (the sources') or `"separable"`; give `factorize`
            the same.
        layers: Names or paths of the layers to compress; None: every one that `factorize` could
            replace. Frozen layers are left alone.

    Attributes:
        ranks: Rank by layer key; empty until a training has ended.

    Raises:
        ValueError: If `decomposition` is unknown; in training, if a layer is not there or has no
            kernel to compress.
        DivergenceError: In training, if the loss, a weight or the optimizer is no longer finite.
    """

    def __init__(self, decomposition: str, layers: Iterable[str] | None) -> None:
        super().__init__()
        check_choice("decomposition", decomposition, MATRICIZATIONS)
        self.decomposition = decomposition
        given = (layers,) if isinstance(layers, str) else layers
        self.layer_names = None if given is None else tuple(given)
        self.ranks: dict[str, int] = {}
        self._layers: dict[str, keras.layers.Layer] = {}
        self._epoch: int | None = None
        self._added: AddedLoss | None = None

    def added_loss(self) -> AddedLoss | None:
        """Return the term that joins the model's loss during the training, or None."""
        return None

    @abstractmethod
    def end_epoch(self, epoch: int) -> None:
        """Do what is due after an epoch's last step, before its validation."""

    @abstractmethod
    def choose_rank(self, key: str, s: NDArray[np.floating]) -> int:
        """Return the rank to cut a layer to when the training ends.

        Args:
            key: The layer's key.
            s: Its singular values, descending.

        Returns:
            The rank, 1 to the number of values.
        """

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        super().on_train_begin(logs)
        self._layers = trained_kernels(self.model, self.layer_names)
        self.ranks = {}
        self._epoch = None
        with strategy_scope(self.model):
            self._added = self.added_loss()
        if self._added is not None:
            self._added.attach(self.model)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        sync(self.model)
        if self._added is not None:
            self._added.detach()
        for key in self._layers:
            factors = self.decomposed(key)
            self.ranks[key] = self.choose_rank(key, factors.s)
            self.put(key, factors.truncated(self.ranks[key]).matrix())

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_epoch_begin(epoch, logs)
        self._epoch = epoch

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        super().on_test_begin(logs)
        # fit() validates after an epoch's last step: what is validated is what goes on.
        self._end_once()
        if self._added is not None:
            self._added.evaluating = True

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        if self._added is not None:
            self._added.evaluating = False

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_epoch_end(epoch, logs)
        self._end_once()

    def _end_once(self) -> None:
        if self._epoch is not None:
            epoch, self._epoch = self._epoch, None
            sync(self.model)
            self.end_epoch(epoch)

    def matrix(self, key: str) -> NDArray[np.floating]:
        """Return a layer's matricized kernel (h, w) as it is now, float32."""
        kernel = kernel_values(key, self._layers[key])
        matrix: NDArray[np.floating] = matricize(kernel, self._kind(key))
        return matrix

    def decomposed(self, key: str) -> Factors:
        """Return the SVD of a layer's matricized kernel as it is now."""
        matrix = self.matrix(key)
        with threads_for(matrix.shape):
            return decompose(matrix)

    def folded(self, key: str, matrix: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return a matrix (h, w) in the shape of a layer's kernel."""
        shape = kernel_of(self._layers[key]).shape
        kernel: NDArray[np.floating] = dematricize(matrix, shape, self._kind(key))
        return kernel

    def _kind(self, key: str) -> str:
        return layer_decomposition(self._layers[key], self.decomposition)

    def put(self, key: str, matrix: NDArray[np.floating]) -> None:
        """Set a layer's kernel, given as its matricized form (h, w)."""
        kernel = kernel_of(self._layers[key])
        assign_copy(kernel.held, kernel.as_held(self.folded(key, matrix)))
