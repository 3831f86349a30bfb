"""Learning-compression: training pulled to low-rank kernels whose ranks are chosen by cost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from dprp_tf.costs.rank_space import RankSpace
from dprp_tf.files.arguments import check_integer
from dprp_tf.keras_internals.compiled import sync
from dprp_tf.layers.kernels import kernel_of
from dprp_tf.training.added_loss import AddedLoss, WeightLoss, assign_copy
from dprp_tf.training.comparisons.base import LowRankTraining

__all__ = ["LearningCompression", "best_rank"]


class LearningCompression(LowRankTraining):
    """Learning-compression (LC): learn near low-rank kernels Theta, choose Theta and its ranks.

    Two steps alternate. L: training with mu/2 sum_l ||W_l - Theta_l||^2 added to the loss. C, every
    `epochs_per_step` epochs: Theta_l := W_l cut to the rank r that minimizes
    alpha cost_l(r) + mu/2 sum_(i>r) s_i^2. mu grows from one to the next, so that W comes to
    Theta; the training ends with a C step and W := Theta. The logs get `distance_loss`
    (1/2 sum ||W - Theta||^2) and `mu`.

    Args:
        alpha: Weight of the cost, above 0, in units of the loss: what the whole dense model's
            cost is worth. Default 0.01.
        mu: Penalty weight of the first step, above 0; gradient descent needs learning rate * mu
            below 2 to the end. Default 0.001.
        growth: Factor by which mu grows with each C step, 1 or more. Default 1.2.
        epochs_per_step: Epochs of an L step, 1 or more. Default 1.
        cost: `"parameters"`, `"macs"` or `"activations"`: cost_l(r) is the layer's, folded at rank
            r or dense, whichever is less, as a share of that of all compressed layers when dense.
            Default `"parameters"`.
        decomposition: `"spatial"`, `"channel"` (the source's kind) or `"separable"`. Default
            `"spatial"`, as `factorize`.
        layers: Names or paths of the layers to compress. Default: every one that can be.

    Raises:
        ValueError: If an argument is out of range; in training, if the cost is not known for the
            model.

    Source: Idelbayev and Carreira-Perpiñán 2020, "Low-rank Compression of Neural Nets: Learning
        the Rank of Each Layer", from memory. Readings: the quadratic penalty and not the
        augmented Lagrangian with its multipliers; ranks of 1 at least; costs as shares of the
        dense layers', so that `alpha` does not depend on the network's size.

    Example:

    >>> inputs = keras.Input((4,))
    >>> model = keras.Model(inputs, keras.layers.Dense(3, name="last")(inputs))
    >>> model.compile("sgd", "mse")
    >>> compress = LearningCompression(alpha=10.0)
    >>> history = model.fit(np.ones((8, 4)), np.ones((8, 3)), callbacks=[compress], verbose=0)
    >>> compress.ranks, sorted(history.history)
    ({'last': 1}, ['distance_loss', 'loss', 'mu'])
    """

    def __init__(
        self,
        alpha: float = 0.01,
        mu: float = 0.001,
        growth: float = 1.2,
        epochs_per_step: int = 1,
        cost: str = "parameters",
        *,
        decomposition: str = "spatial",
        layers: Iterable[str] | None = None,
    ) -> None:
        super().__init__(decomposition, layers)
        for name, value, least in (("alpha", alpha, 0.0), ("mu", mu, 0.0), ("growth", growth, 1.0)):
            above = value >= least if least else value > least
            if not (above and np.isfinite(value)):
                bound = f"{least:g} or more" if least else "above 0"
                raise ValueError(f"`{name}` must be {bound} and finite. Received: {name}={value}")
        if cost not in ("parameters", "macs", "activations"):
            raise ValueError(
                f"`cost` must be 'parameters', 'macs' or 'activations'. Received: cost={cost!r}"
            )
        self.alpha = float(alpha)
        self.mu = float(mu)
        self.growth = float(growth)
        self.epochs_per_step = check_integer("epochs_per_step", epochs_per_step)
        self.cost = cost
        self._costs: dict[str, NDArray[np.float64]] = {}
        self._distance: _Distance | None = None
        self._targets_set = False
        self._present_mu = self.mu

    def mu_at(self, epoch: int) -> float:
        """Return mu in an epoch.

        Args:
            epoch: The epoch, counted from 0.

        Returns:
            mu growth^floor(epoch / epochs_per_step).

        Example:

        >>> [LearningCompression(mu=2.0, growth=3.0).mu_at(epoch) for epoch in (0, 1, 2)]
        [2.0, 6.0, 18.0]
        """
        return self.mu * self.growth ** (epoch // self.epochs_per_step)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        super().on_train_begin(logs)
        self._costs = self._cost_tables()
        self._targets_set = False

    def added_loss(self) -> AddedLoss:
        """Return 1/2 sum ||W - Theta||^2."""
        self._distance = _Distance(list(self._layers.values()))
        return self._distance

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_epoch_begin(epoch, logs)
        sync(self.model)
        assert self._distance is not None
        self._present_mu = self.mu_at(epoch)
        self._distance.strength.assign(self._present_mu)
        # Not when training begins: other callbacks may load weights there.
        if not self._targets_set:
            self._set_targets()

    def end_epoch(self, epoch: int) -> None:
        """Take a C step where one is due."""
        if (epoch + 1) % self.epochs_per_step == 0:
            self._set_targets()

    def choose_rank(self, key: str, s: NDArray[np.floating]) -> int:
        """Return the rank of the C step at the present mu."""
        return best_rank(s, self._costs[key], self.alpha, self._present_mu)

    def _set_targets(self) -> None:
        assert self._distance is not None
        self._targets_set = True
        for key, pull in zip(self._layers, self._distance.pulls, strict=True):
            factors = self.decomposed(key)
            rank = self.choose_rank(key, factors.s)
            assign_copy(pull.target, self.folded(key, factors.truncated(rank).matrix()))

    def _cost_tables(self) -> dict[str, NDArray[np.float64]]:
        """Return the cost of each layer at the ranks 1, 2, ..., as a share of all when dense."""
        space = RankSpace(self.model, self.decomposition, list(self._layers))
        missing = sorted(set(self._layers) - set(space.layers))
        if missing:
            raise ValueError(
                "`layers` must name layers that fold. Received some that don't: "
                f"{[why for why in space.skipped if why.split(':')[0] in missing]}"
            )
        dense = {key: space.layer_cost(key, None, self.cost) for key in self._layers}
        tables = {}
        for key in self._layers:
            count = space.layers[key].full_ranks[0]
            low = [space.layer_cost(key, (rank,), self.cost) for rank in range(1, count + 1)]
            tables[key] = np.minimum(low, dense[key]) / sum(dense.values())
        return tables


class _Distance(WeightLoss):
    """1/2 sum_l ||W_l - Theta_l||^2."""

    def __init__(self, layers: list[keras.layers.Layer]) -> None:
        super().__init__("distance_loss", "mu")
        held = [self.hold(np.zeros(kernel_of(layer).shape)) for layer in layers]
        # Pairs in objects: Keras takes every variable in a list or tuple of a metric for its own.
        self.pulls = tuple(map(_Pull, layers, held))

    def value(self) -> Any:
        return 0.5 * ops.sum(ops.stack([pull.distance() for pull in self.pulls]))


@dataclass(frozen=True, eq=False)
class _Pull:
    layer: keras.layers.Layer
    target: keras.Variable

    def distance(self) -> Any:
        kernel = ops.cast(kernel_of(self.layer).tensor, "float32")
        return ops.sum(ops.square(kernel - ops.cast(self.target, "float32")))


def best_rank(s: NDArray[np.floating], cost: NDArray[np.floating], alpha: float, mu: float) -> int:
    """Return the rank r that minimizes alpha cost(r) + mu/2 sum_(i>r) s_i^2.

    Args:
        s: Singular values, shape (R,), descending.
        cost: Cost of each rank from 1 on, shape (R,).
        alpha: Weight of the cost, 0 or more.
        mu: Weight of the distance, 0 or more.

    Returns:
        The rank, 1 to R; of equally good ones the smallest.

    Source: Idelbayev and Carreira-Perpiñán 2020, the C step; see `LearningCompression`.

    Example:

    >>> best_rank(np.array([3.0, 1.0]), np.array([1.0, 2.0]), alpha=1.0, mu=1.0)
    1
    """
    squares = np.square(np.asarray(s, dtype=np.float64))
    # (R,): what keeping 1, 2, ..., R values loses
    lost = np.append(np.cumsum(squares[::-1])[::-1][1:], 0.0)
    return int(np.argmin(alpha * np.asarray(cost) + 0.5 * mu * lost)) + 1
