"""Rank regularizers of the literature: the nuclear norm and what is put in its place.

Each is a sum over a layer's singular values, as printed; the strength lambda is the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from dprp_tf.files.arguments import check_integer, check_number
from dprp_tf.training.regularizers.base import RankRegularizer

__all__ = [
    "CappedNuclearNorm",
    "ElasticNet",
    "GemanPenalty",
    "LaplacePenalty",
    "LogNuclearNorm",
    "LogarithmPenalty",
    "NuclearNorm",
    "SchattenNorm",
    "TruncatedNuclearNorm",
    "WeightedNuclearNorm",
]


@keras.saving.register_keras_serializable(package="dprp_tf")
class NuclearNorm(RankRegularizer):
    """The nuclear norm, sum_i |s_i|: presses every value alike.

    Source: BSR/LeSS thesis Table 3.1.

    Example:

    >>> import numpy as np
    >>> float(NuclearNorm()(np.array([3.0, 1.0], dtype="float32")))
    4.0
    """

    def __call__(self, s: Any) -> Any:
        return ops.sum(_magnitudes(s), axis=-1)


@keras.saving.register_keras_serializable(package="dprp_tf")
class ElasticNet(RankRegularizer):
    """The elastic net, sum_i |s_i| + gamma s_i^2: a nuclear norm that presses large values more.

    Args:
        gamma: Share of the squares, above 0. Default 0.5.

    Raises:
        ValueError: If `gamma` is not positive.

    Source: Kim, Lee and Oh 2015, as in BSR/LeSS thesis Table 3.1.

    Example:

    >>> import numpy as np
    >>> float(ElasticNet(gamma=0.5)(np.array([2.0, 1.0], dtype="float32")))
    5.5
    """

    def __init__(self, gamma: float = 0.5) -> None:
        self.gamma = check_number("gamma", gamma, above=0)

    def __call__(self, s: Any) -> Any:
        magnitudes = _magnitudes(s)
        return ops.sum(magnitudes + self.gamma * ops.square(magnitudes), axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {"gamma": self.gamma}


@keras.saving.register_keras_serializable(package="dprp_tf")
class SchattenNorm(RankRegularizer):
    """The Schatten-p norm to the power p, sum_i |s_i|^p, rounded at 0.

    Its gradient p s^(p-1) has no bound near 0, where a step would throw a value far to the other
    side; so each term is (|s_i| + epsilon)^p - epsilon^p, 0 at 0 and as printed for s >> epsilon.

    Args:
        p: Exponent, in (0, 1]; 1 is the nuclear norm. Default 0.5.
        epsilon: Where the rounding sets in, above 0, in units of s. Default 1e-3.

    Raises:
        ValueError: If an argument is out of range.

    Source: Mohan and Fazel 2012; Nie, Huang and Ding 2012; as in BSR/LeSS thesis Table 3.1. The
        rounding is ours.

    Example:

    >>> import numpy as np
    >>> round(float(SchattenNorm(epsilon=1e-12)(np.array([4.0, 1.0], dtype="float32"))), 4)
    3.0
    """

    def __init__(self, p: float = 0.5, epsilon: float = 1e-3) -> None:
        self.p = check_number("p", p, above=0, maximum=1)
        self.epsilon = check_number("epsilon", epsilon, above=0)

    def __call__(self, s: Any) -> Any:
        # (s + e)^p - e^p = e^p ((1 + s/e)^p - 1), without the difference of near numbers
        grown = ops.expm1(self.p * ops.log1p(_magnitudes(s) / self.epsilon))
        return self.epsilon**self.p * ops.sum(grown, axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {"p": self.p, "epsilon": self.epsilon}


@keras.saving.register_keras_serializable(package="dprp_tf")
class TruncatedNuclearNorm(RankRegularizer):
    """The truncated nuclear norm, sum_(i>rank) |s_i|: leaves the first values alone.

    Args:
        rank: Number of values left alone, 1 or more.

    Raises:
        ValueError: If `rank` is not a positive integer.

    Source: Hu et al. 2012, as in BSR/LeSS thesis Table 3.1.

    Example:

    >>> import numpy as np
    >>> float(TruncatedNuclearNorm(1)(np.array([4.0, 2.0, 1.0], dtype="float32")))
    3.0
    """

    def __init__(self, rank: int) -> None:
        self.rank = check_integer("rank", rank)

    def __call__(self, s: Any) -> Any:
        return ops.sum(_magnitudes(s)[..., self.rank :], axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {"rank": self.rank}


@keras.saving.register_keras_serializable(package="dprp_tf")
class WeightedNuclearNorm(RankRegularizer):
    """The weighted nuclear norm, sum_(i>rank) w_i |s_i|: presses small values more.

    Args:
        rank: Number of values left alone, 1 or more.
        weights: w_(rank+1), w_(rank+2), ..., each 0 or more; at least as many as there are values
            beyond `rank`. Default: w_i = 1 / (|s_i| + epsilon), taken anew at every step and held
            constant in its gradient.
        epsilon: With the default weights, keeps them finite; above 0, in units of s. Default 0.01.

    Raises:
        ValueError: If an argument is out of range; in use, if there are more values than weights.

    Source: Gu et al. 2014, 2017, as in BSR/LeSS thesis Table 3.1, which leaves w_i open; the
        default is the first source's, inversely proportional to the value, with constant 1.

    Example:

    >>> import numpy as np
    >>> penalty = WeightedNuclearNorm(1, weights=(0.5, 2.0))
    >>> float(penalty(np.array([4.0, 2.0, 1.0], dtype="float32")))
    3.0
    """

    def __init__(
        self, rank: int, weights: Sequence[float] | None = None, epsilon: float = 0.01
    ) -> None:
        self.rank = check_integer("rank", rank)
        self.epsilon = check_number("epsilon", epsilon, above=0)
        self.weights = None if weights is None else tuple(float(weight) for weight in weights)
        if self.weights is not None and not all(0 <= w < math.inf for w in self.weights):
            raise ValueError(
                f"`weights` must be 0 or more and finite. Received: weights={self.weights}"
            )

    def __call__(self, s: Any) -> Any:
        tail = _magnitudes(s)[..., self.rank :]
        if self.weights is None:
            weights = 1.0 / (ops.stop_gradient(tail) + self.epsilon)
            return ops.sum(weights * tail, axis=-1)
        count = int(tail.shape[-1])
        if len(self.weights) < count:
            raise ValueError(
                f"`weights` must hold a weight for each of the {count} values beyond rank "
                f"{self.rank}. Received: {len(self.weights)} weights"
            )
        return ops.sum(ops.convert_to_tensor(self.weights[:count], "float32") * tail, axis=-1)

    def get_config(self) -> dict[str, Any]:
        weights = None if self.weights is None else list(self.weights)
        return {"rank": self.rank, "weights": weights, "epsilon": self.epsilon}


@keras.saving.register_keras_serializable(package="dprp_tf")
class CappedNuclearNorm(RankRegularizer):
    """The capped nuclear norm, sum_(i>rank) min(|s_i|, theta): gives up on large values.

    Args:
        rank: Number of values left alone, 1 or more.
        theta: Value from which on there is no pressure, above 0. Default 1.

    Raises:
        ValueError: If an argument is out of range.

    Source: Sun, Xiang and Ye 2013, as in BSR/LeSS thesis Table 3.1.

    Example:

    >>> import numpy as np
    >>> float(CappedNuclearNorm(1, theta=1.5)(np.array([4.0, 2.0, 1.0], dtype="float32")))
    2.5
    """

    def __init__(self, rank: int, theta: float = 1.0) -> None:
        self.rank = check_integer("rank", rank)
        self.theta = check_number("theta", theta, above=0)

    def __call__(self, s: Any) -> Any:
        return ops.sum(ops.minimum(_magnitudes(s)[..., self.rank :], self.theta), axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {"rank": self.rank, "theta": self.theta}


@keras.saving.register_keras_serializable(package="dprp_tf")
class LogarithmPenalty(RankRegularizer):
    """The logarithm penalty, sum_i log(gamma |s_i| + 1) / log(gamma + 1).

    Args:
        gamma: How soon the pressure fades as values grow, above 0. Default 10.

    Raises:
        ValueError: If `gamma` is not positive.

    Source: Friedman 2012, as in BSR/LeSS thesis Table 3.1.

    Example:

    >>> import numpy as np
    >>> float(LogarithmPenalty(gamma=3.0)(np.array([5.0, 0.0], dtype="float32")))
    2.0
    """

    def __init__(self, gamma: float = 10.0) -> None:
        self.gamma = check_number("gamma", gamma, above=0)

    def __call__(self, s: Any) -> Any:
        logarithms = ops.log1p(self.gamma * _magnitudes(s))
        return ops.sum(logarithms, axis=-1) / math.log1p(self.gamma)

    def get_config(self) -> dict[str, Any]:
        return {"gamma": self.gamma}


@keras.saving.register_keras_serializable(package="dprp_tf")
class LogNuclearNorm(RankRegularizer):
    """The log-nuclear norm, sum_i log(|s_i| + 1).

    Source: Peng et al. 2015, as in BSR/LeSS thesis Table 3.1.

    Example:

    >>> import numpy as np
    >>> round(float(LogNuclearNorm()(np.array([3.0, 0.0], dtype="float32"))), 4)
    1.3863
    """

    def __call__(self, s: Any) -> Any:
        return ops.sum(ops.log1p(_magnitudes(s)), axis=-1)


@keras.saving.register_keras_serializable(package="dprp_tf")
class GemanPenalty(RankRegularizer):
    """The Geman penalty, sum_i |s_i| / (|s_i| + gamma): close to counting the values.

    Args:
        gamma: Half-way point of each term, above 0. Default 0.1.

    Raises:
        ValueError: If `gamma` is not positive.

    Source: Geman and Yang 1995, as in BSR/LeSS thesis Table 3.1.

    Example:

    >>> import numpy as np
    >>> float(GemanPenalty(gamma=1.0)(np.array([3.0, 1.0], dtype="float32")))
    1.25
    """

    def __init__(self, gamma: float = 0.1) -> None:
        self.gamma = check_number("gamma", gamma, above=0)

    def __call__(self, s: Any) -> Any:
        magnitudes = _magnitudes(s)
        return ops.sum(magnitudes / (magnitudes + self.gamma), axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {"gamma": self.gamma}


@keras.saving.register_keras_serializable(package="dprp_tf")
class LaplacePenalty(RankRegularizer):
    """The Laplace penalty, sum_i 1 - exp(-|s_i| / gamma): close to counting the values.

    Args:
        gamma: Scale below which a value is pressed, above 0. Default 0.1.

    Raises:
        ValueError: If `gamma` is not positive.

    Source: Trzasko and Manduca 2008, as in BSR/LeSS thesis Table 3.1.

    Example:

    >>> import numpy as np
    >>> round(float(LaplacePenalty(gamma=2.0)(np.array([2.0, 0.0], dtype="float32"))), 4)
    0.6321
    """

    def __init__(self, gamma: float = 0.1) -> None:
        self.gamma = check_number("gamma", gamma, above=0)

    def __call__(self, s: Any) -> Any:
        return ops.sum(-ops.expm1(-_magnitudes(s) / self.gamma), axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {"gamma": self.gamma}


def _magnitudes(s: Any) -> Any:
    return ops.abs(ops.cast(s, "float32"))
