"""Train a plain dense model so that its kernels may be cut to low rank afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray
from sklearn.utils.extmath import randomized_svd

from dprp_tf.decomposition import DECOMPOSITIONS, decompose, matricize
from dprp_tf.decomposition.threads import threads_for
from dprp_tf.files.arguments import check_choice, check_integer, check_number
from dprp_tf.keras_internals.compiled import sync
from dprp_tf.keras_internals.graphs import layer_keys
from dprp_tf.keras_internals.strategies import strategy_scope
from dprp_tf.layers.kernels import kernel_of
from dprp_tf.layers.layer_decomposition import layer_decomposition
from dprp_tf.training import regularizers
from dprp_tf.training.added_loss import AddedLoss, WeightLoss, assign_copy
from dprp_tf.training.guarded_callback import GuardedCallback
from dprp_tf.training.regularizers import RankRegularizer
from dprp_tf.training.trained_kernels import kernel_values, trained_kernels

__all__ = ["RankRegularization", "singular_vectors"]

# Up to this size of the smaller side a matrix is decomposed exactly.
_EXACT_SIDE = 512
# Columns beyond twice the rank that a randomized decomposition computes; those without a rank.
_SPARE_COLUMNS = 64
_COLUMNS = 256


class RankRegularization(GuardedCallback):
    """Press the singular values of a dense model's kernels while `fit` trains it.

    The loss gets strength * sum_l penalty(s_l), where s_l (r,) are the values of layer l's
    matricized kernel W (h, w) along the singular vectors U (h, r), V (w, r) of its last
    decomposition, s_j = u_j^T W v_j: exact in the step of the decomposition, with gradient
    U diag(penalty'(s)) V^T, and a projection on the same directions until the next one. Nothing
    is differentiated through an SVD.

    Works with any compiled Keras model and plain `fit`: the term joins the loss in training only,
    and the weights, the saved files and each layer's own regularizer are as without it. The logs
    get `rank_loss` (the sum without its strength) and `rank_strength`. Then cut the kernels, with
    `dprp_tf.factorize(model, ranks=ranks)` say, and fine-tune.

    A matrix whose smaller side is at most 512 is decomposed exactly; of a larger one a randomized
    SVD gives the first `columns` values, and the penalty acts on those.

    Args:
        penalty: One of `dprp_tf.training.regularizers.NAMES`, a `RankRegularizer` for every layer,
            or a function from a layer's rank to one. Default: the modified stable rank of BSR.
        ranks: The rank to train for: by layer name (by path where layers share a name), one for
            all, or a `RankPlan`. A pair (r_in, r_out) for a convolution under `"tucker"`, whose
            two unfoldings are then pressed each for its own. None for penalties without a rank.
        decomposition: `"spatial"`, `"channel"`, `"separable"` or `"tucker"`. Default: the plan's;
            `"spatial"` without a plan.
        strength: lambda_0, 0 or more. Default 0.02.
        growth: Factor b by which the strength grows, above 0. Default 1.5.
        growth_epochs: Epochs between growths, 1 or more: lambda_j = lambda_0 b^floor(j / this) in
            epoch j, counted from 0. Default 15.
        refresh: Steps between decompositions, 1 or more; with several steps per execution, at the
            first execution after so many. Each epoch begins with one, so that a training that is
            continued with `initial_epoch` does what the unbroken one does. Default 64.
        layers: Names or paths of the layers to press. Default: those in `ranks`; else every one
            that `dprp_tf.factorize` could replace.
        columns: Singular values of a matrix whose smaller side is above 512, 1 or more. Default:
            2 rank + 64 for a layer with a rank, 256 without.

    Raises:
        ValueError: At construction if an argument is out of range or a rank is missing; in
            training if a layer is not there or has no kernel to press.
        DivergenceError: In training, if the loss, a weight or the optimizer is no longer finite.

    Source: BSR/LeSS thesis 3.5.3, Eq. 3.4 to 3.6; schedule and refresh from 3.5.3 and 3.6.1.

    Example:

    >>> inputs = keras.Input((4,))
    >>> model = keras.Model(inputs, keras.layers.Dense(3, name="last")(inputs))
    >>> model.compile("sgd", "mse")
    >>> press = RankRegularization(ranks={"last": 1}, strength=0.1)
    >>> history = model.fit(np.ones((8, 4)), np.ones((8, 3)), callbacks=[press], verbose=0)
    >>> sorted(history.history)
    ['loss', 'rank_loss', 'rank_strength']
    """

    def __init__(
        self,
        penalty: Any = "modified_stable_rank",
        ranks: Any = None,
        *,
        decomposition: str | None = None,
        strength: float = 0.02,
        growth: float = 1.5,
        growth_epochs: int = 15,
        refresh: int = 64,
        layers: Iterable[str] | None = None,
        columns: int | None = None,
    ) -> None:
        super().__init__()
        planned = getattr(ranks, "decomposition", None)
        if planned is not None and decomposition not in (None, planned):
            raise ValueError(
                f"`decomposition` must be None or that of the plan, {planned!r}. "
                f"Received: decomposition={decomposition!r}"
            )
        self.decomposition = decomposition or planned or "spatial"
        check_choice("decomposition", self.decomposition, DECOMPOSITIONS)
        self._by_key = hasattr(ranks, "ranks")
        self.ranks: int | dict[str, Any] | None = _plain_ranks(getattr(ranks, "ranks", ranks))
        self.penalty = penalty
        self._require_penalty()
        self.strength = check_number("strength", strength, minimum=0)
        self.growth = check_number("growth", growth, above=0)
        self.growth_epochs = check_integer("growth_epochs", growth_epochs)
        self.refresh = check_integer("refresh", refresh)
        self.layer_names = None if layers is None else _names(layers)
        self.columns = None if columns is None else check_integer("columns", columns)
        self._loss: _RankLoss | None = None
        self._refreshed_at: int | None = None

    def strength_at(self, epoch: int) -> float:
        """Return the strength in an epoch.

        Args:
            epoch: The epoch, counted from 0.

        Returns:
            lambda_0 b^floor(epoch / growth_epochs).

        Example:

        >>> [RankRegularization("nuclear_norm").strength_at(epoch) for epoch in (0, 14, 15)]
        [0.02, 0.02, 0.03]
        """
        return self.strength * self.growth ** (epoch // self.growth_epochs)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        super().on_train_begin(logs)
        with strategy_scope(self.model):
            self._loss = _RankLoss(self._directions())
        self._loss.attach(self.model)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self._loss is not None:
            self._loss.detach()
        self._loss = None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_epoch_begin(epoch, logs)
        assert self._loss is not None
        sync(self.model)
        self._loss.strength.assign(self.strength_at(epoch))
        self._refreshed_at = None

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        # The epoch's first step and not its beginning: other callbacks may set weights there.
        if self._refreshed_at is not None and batch - self._refreshed_at < self.refresh:
            return
        assert self._loss is not None
        self._refreshed_at = batch
        sync(self.model)
        if not self._loss.attached:
            self._loss.attach(self.model)
        for directions in self._loss.directions:
            directions.refresh()

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        super().on_test_begin(logs)
        if self._loss is not None:
            self._loss.evaluating = True

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        if self._loss is not None:
            self._loss.evaluating = False

    def _require_penalty(self) -> None:
        if isinstance(self.penalty, RankRegularizer):
            return
        if self.ranks is None and (
            callable(self.penalty) or self.penalty in regularizers.RANKED_NAMES
        ):
            raise ValueError(
                "`ranks` must be given where the penalty depends on the layer's rank. "
                f"Received: penalty={self.penalty!r}, ranks=None"
            )
        if not callable(self.penalty):
            found = regularizers.get(self.penalty, rank=1, argument="penalty")
            if found is None:
                raise ValueError("`penalty` must not be None. Received: penalty=None")

    def _regularizer(self, rank: int | None) -> RankRegularizer:
        if callable(self.penalty) and not isinstance(self.penalty, RankRegularizer):
            made = self.penalty(rank)
            if not isinstance(made, RankRegularizer):
                raise ValueError(
                    "`penalty` must return a RankRegularizer for a rank. "
                    f"Received: {made!r} for rank {rank}"
                )
            return made
        found = regularizers.get(self.penalty, rank=rank, argument="penalty")
        assert found is not None
        return found

    def _directions(self) -> list[_Directions]:
        """Return one for each matrix to press: one per layer, two per Tucker-2 convolution."""
        found = []
        for layer, rank in self._pressed_layers():
            unfoldings = _unfoldings(layer, self.decomposition)
            ranks = rank if isinstance(rank, tuple) else (rank,) * len(unfoldings)
            if len(ranks) != len(unfoldings):
                raise ValueError(
                    f"`ranks` must hold {len(unfoldings)} ranks for layer {layer.name!r} under "
                    f"decomposition={self.decomposition!r}. Received: {rank}"
                )
            for unfold, own in zip(unfoldings, ranks, strict=True):
                shape = unfold(np.empty(kernel_of(layer).shape, np.bool_), np).shape
                if own is not None and own >= min(shape):
                    continue  # It may keep every value: there is none to press.
                columns = min(shape)
                if columns > _EXACT_SIDE:
                    wanted = _COLUMNS if own is None else 2 * own + _SPARE_COLUMNS
                    columns = min(columns, self.columns or wanted)
                found.append(_Directions(layer, unfold, shape, columns, self._regularizer(own)))
        if not found:
            raise ValueError(
                "`ranks` must leave values to press in some layer. Received: "
                f"ranks={self.ranks}, at or above every layer's full rank"
            )
        return found

    def _pressed_layers(self) -> list[tuple[keras.layers.Layer, Any]]:
        names = self.layer_names
        if names is None and isinstance(self.ranks, Mapping):
            names = tuple(self.ranks)
        found = trained_kernels(self.model, names)
        if self._by_key and self.layer_names is None and isinstance(self.ranks, Mapping):
            # A plan names layers by their keys: a nested model's by that name is another.
            keys = set(layer_keys(self.model))
            found = {
                key: layer
                for key, layer in found.items()
                if key in self.ranks or layer.name not in keys
            }
        return [(layer, self._rank(key, layer)) for key, layer in found.items()]

    def _rank(self, key: str, layer: keras.layers.Layer) -> Any:
        if not isinstance(self.ranks, Mapping):
            return self.ranks
        rank = self.ranks.get(key, self.ranks.get(layer.name))
        if rank is None:
            raise ValueError(
                f"`ranks` must hold a rank for every pressed layer. Received none for {key!r}"
            )
        return rank


class _Directions:
    """The singular vectors of one matricized kernel, as they were at the last refresh."""

    def __init__(
        self,
        layer: keras.layers.Layer,
        unfold: Callable[[Any, Any], Any],
        shape: tuple[int, int],
        columns: int,
        regularizer: RankRegularizer,
    ) -> None:
        self.layer = layer
        self.unfold = unfold
        self.shape = shape
        self.columns = None if columns is None else check_integer("columns", columns)
        self.regularizer = regularizer
        self.u: Any = None
        self.v: Any = None

    def hold(self, owner: AddedLoss) -> None:
        """Make the variables that hold the singular vectors, (h, r) and (w, r)."""
        self.u = owner.hold(np.zeros((self.shape[0], self.columns)))
        self.v = owner.hold(np.zeros((self.shape[1], self.columns)))

    def refresh(self) -> None:
        """Take the singular vectors of the kernel as it is now."""
        kernel = kernel_values(self.layer.name, self.layer)
        u, v = singular_vectors(self.unfold(kernel, np), self.columns)
        assign_copy(self.u, u)
        assign_copy(self.v, v)

    def penalty(self) -> Any:
        """Return the regularizer of s_j = u_j^T W v_j, a scalar."""
        matrix = self.unfold(ops.cast(kernel_of(self.layer).tensor, "float32"), ops)
        u, v = ops.cast(self.u, "float32"), ops.cast(self.v, "float32")
        # (h, w) and the longer side's vectors first: (w, r) or (h, r), whichever is smaller -> (r,)
        if self.shape[0] > self.shape[1]:
            s = ops.sum(ops.matmul(ops.transpose(matrix), u) * v, axis=0)
        else:
            s = ops.sum(ops.matmul(matrix, v) * u, axis=0)
        return self.regularizer(s)


class _RankLoss(WeightLoss):
    """sum_l penalty(s_l)."""

    def __init__(self, directions: list[_Directions]) -> None:
        super().__init__("rank_loss", "rank_strength")
        self.directions = tuple(directions)
        for each in directions:
            each.hold(self)

    def value(self) -> Any:
        values = [directions.penalty() for directions in self.directions]
        return ops.sum(ops.stack(values))


def singular_vectors(
    matrix: NDArray[np.floating], columns: int
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Return the first singular vectors of a matrix, exact where its smaller side is at most 512.

    Args:
        matrix: Array of shape (h, w), finite.
        columns: Number r of vectors, 1 to min(h, w).

    Returns:
        U (h, r) and V (w, r).
    """
    if min(matrix.shape) <= _EXACT_SIDE:
        with threads_for(matrix.shape):
            factors = decompose(matrix, columns)
        return factors.u, factors.v
    # Without orthonormalization between the iterations float32 loses all but the largest values.
    u, _, vt = randomized_svd(
        matrix, columns, n_iter=2, power_iteration_normalizer="QR", random_state=0
    )
    return u, vt.T


def _unfoldings(layer: keras.layers.Layer, decomposition: str) -> list[Callable[[Any, Any], Any]]:
    """Return functions (kernel, NumPy or keras.ops) -> matrix, one per rank coordinate."""
    kind = layer_decomposition(layer, decomposition)
    if kind == "tucker":
        *spatial, channels, filters = kernel_of(layer).shape
        positions = int(np.prod(spatial))

        def inputs(kernel: Any, backend: Any) -> Any:
            # (*L, C, S) -> (L, C, S) -> (C, L*S)
            flat = backend.reshape(kernel, (positions, channels, filters))
            flat = backend.transpose(flat, (1, 0, 2))
            return backend.reshape(flat, (channels, positions * filters))

        return [inputs, lambda kernel, backend: matricize(kernel, "channel", ops=backend)]
    return [lambda kernel, backend: matricize(kernel, kind, ops=backend)]


def _names(layers: Iterable[str]) -> tuple[str, ...]:
    return (layers,) if isinstance(layers, str) else tuple(layers)


def _plain_ranks(ranks: Any) -> int | dict[str, Any] | None:
    """Check the ranks, and leave out layers that stay dense (None)."""
    if ranks is None:
        return None
    if isinstance(ranks, Mapping):
        return {name: _plain_rank(rank) for name, rank in ranks.items() if rank is not None}
    return check_integer("rank", ranks)


def _plain_rank(rank: Any) -> Any:
    if isinstance(rank, (tuple, list)):
        found = tuple(check_integer("rank", part) for part in rank)
        return found[0] if len(found) == 1 else found
    return check_integer("rank", rank)
