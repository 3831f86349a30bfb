"""A frozen model that computes with masks on its channels and thresholds on its singular values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from dprp_tf.channels import Places
from dprp_tf.conversion.refitting import kernel_matrix, rows_of_channels
from dprp_tf.costs.compiled_loss import names_of_outputs
from dprp_tf.decomposition.threads import threads_for
from dprp_tf.keras_internals.compiled import sync
from dprp_tf.keras_internals.substitution import call_with
from dprp_tf.selection.solving.soft_costs import SoftCosts

__all__ = ["SoftCut", "SoftSettings"]

_TINY = 1e-12
# log(g / s_1) at which gates begin.
_LEAST = -6.0


@dataclass(frozen=True)
class SoftSettings:
    """How soft the cuts are; see `LeSS` for what the values mean.

    Attributes:
        masks: Whether channels are masked.
        thresholds: Whether singular values are cut.
        steepness: mu_0, alpha, and beta per step.
        cut: `"gate"` or `"shrink"`.
        rank_steepness: q of a gate; t s_1 where singular values shrink.
        masked: `"channels"` or `"filters"`.
        strength: lambda at first.
        strength_growth: Factor by which it grows each step.
    """

    masks: bool = True
    thresholds: bool = True
    steepness: tuple[float, float, float] = (5.0, 50.0, 4.0)
    cut: str = "gate"
    rank_steepness: float = 4.0
    masked: str = "channels"
    strength: float = 1.0
    strength_growth: float = 1.0


@dataclass
class _Kernel:
    """A kernel of the frozen model: its variable, the places on its sides, its number."""

    variable: Any
    reads: tuple[NDArray[np.int32], int] | None
    makes: tuple[NDArray[np.int32], int] | None
    number: int | None = None
    layer: Any = None
    moments: NDArray[np.float64] | None = None


class SoftCut(keras.Model):
    """A trained model whose kernels are masked and cut softly, by weights that can be learned.

    With the kernel W as a matrix (L*C, S), a mask m of the channels and a threshold g:

        sigma(m) = 1 / (1 + exp(-mu (m - 0.5))),  mu = min(alpha, mu_0 + beta * step)
        A = diag(sigma of the channels read) W diag(sigma of the channels made)
        W' = U diag(p S) V^T,  A = U diag(S) V^T
        `"shrink"`, the thesis': p = ReLU(1 - g / S);  rank = sum tanh(ReLU(S - g) t), t = 2 / s_1
        `"gate"`:                p = S^q / (S^q + g^q);  rank = sum p

    A gate leaves large singular values as they are, as cutting ranks does, and counts what it
    leaves; shrinking takes g of each, and counts a small one less than a large one. Where second
    moments P of the layers' inputs are given, S^2 and V are eigenvalues and -vectors of A^T P A:
    the energies of the outputs, which a cut that keeps the outputs goes by, not of the kernel.

    Between two calls of `refresh` V and W^T P W of the rows as masked then are held constant. So
    W' = A V diag(p) V^T, exact right after it and at any time where p = 1, and S with the right
    derivatives by the masks of the filters.

    Masks of the channels that are read are the ones that removing them for real amounts to: a mask
    behind the last layer that treats each channel by itself. So `masked="channels"` lets W' follow
    from the rows masked, and the filters' masks enter by way of S and V alone; `"filters"` masks
    the filters only, as the thesis does, and a channel of zeros becomes a constant in the next
    normalization.

    Args:
        model: A built, trained model; it stays as it is.
        places: The channels that may go.
        factorized: Keys of the layers whose singular values are cut, in the order of the places'
            layers.
        costs: What a mask and ranks cost.
        bounds: The costs wanted, by metric.
        settings: How soft it is.
        moments: Second moments of inputs by layer, as `input_moments` gives them. Default: none.

    Attributes:
        masks: m by place.
        thresholds: g by factorized layer, as shares of s_1; for a gate on a scale of its logarithm.
        steps: The steps taken.
        spent: The cost at the last of them, relative to the bound.
        bounds: The costs wanted, by metric.
    """

    def __init__(
        self,
        model: keras.Model,
        places: Places,
        factorized: Sequence[str],
        costs: SoftCosts,
        bounds: Mapping[str, float],
        settings: SoftSettings,
        moments: Mapping[str, NDArray[np.float64]] | None = None,
    ) -> None:
        super().__init__(name=f"{model.name}_softly_cut", dtype="float32")
        # Functions are not tracked: neither the frozen model's weights nor its layers are ours.
        self._frozen = lambda values, x: call_with(model, values, x)
        # What labels and losses call the outputs.
        self.output_names = names_of_outputs(model)
        self._costs = costs
        self._settings = settings
        self.bounds = dict(bounds)
        self._loose = places.loose.astype(np.float32)
        self._kernels = _kernels(places, factorized if settings.thresholds else (), moments or {})
        self._ranked = [kernel for kernel in self._kernels if kernel.number is not None]
        self.masks = self.add_weight(
            shape=(places.count,), initializer="ones", trainable=settings.masks, name="masks"
        )
        self.thresholds = self.add_weight(
            shape=(len(self._ranked),),
            initializer="zeros",
            constraint="non_neg",
            trainable=settings.thresholds,
            name="thresholds",
        )
        self.steps = self._state((), "steps")
        self.spent = self._state((), "spent")
        sizes = [int(kernel.variable.shape[-1]) for kernel in self._ranked]
        self._bases = [self._state((size, size), "basis") for size in sizes]
        self._energies = [self._state((size, size), "energies") for size in sizes]
        self._tops = np.ones(len(sizes), dtype=np.float32)
        self.built = True
        self.refresh()
        # Thresholds are learned as shares of each kernel's largest singular value.
        whole = np.ones(places.count + 1)
        self._tops = np.array(
            [np.sqrt(max(np.linalg.eigvalsh(_energies(k, whole))[-1], _TINY)) for k in self._ranked]
        ).astype(np.float32)

    def _state(self, shape: tuple[int, ...], name: str) -> Any:
        return self.add_weight(
            shape=shape, initializer="zeros", trainable=False, dtype="float32", name=name
        )

    @property
    def steepness(self) -> Any:
        """mu at the step reached."""
        first, most, growth = self._settings.steepness
        return ops.minimum(most, first + growth * self.steps)

    def kept(self) -> Any:
        """Return how much of each place is left, sigma(m), of shape (places,)."""
        soft = ops.sigmoid(self.steepness * (self.masks - 0.5))
        if not self._settings.masks:
            return ops.ones_like(soft)
        return soft * self._loose + (1 - self._loose)

    def call(self, x: Any, training: bool = False) -> Any:
        """Compute what the model does with the cut kernels; in training note what that costs."""
        kept, ranks, values = self._cut()
        if training:
            shares = self._costs.shares(kept, ranks)
            growth = math.log(self._settings.strength_growth)
            strength = self._settings.strength * ops.exp(growth * self.steps)
            self.add_loss(strength * self._missed(shares))
            self.spent.assign(ops.cast(self._nearest(shares), "float32"))
            self.steps.assign_add(1.0)
        return self._frozen(values, x)

    def counts(self) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """Return what is left of each place, and the soft rank of each factorized layer."""
        sync(self)
        kept, ranks, _ = self._cut()
        found = None if ranks is None else np.asarray(ops.convert_to_numpy(ranks), np.float64)
        return np.asarray(ops.convert_to_numpy(kept), np.float64), found

    def refresh(self) -> None:
        """Take the singular vectors anew, of the kernels as they are masked now."""
        sync(self)
        whole = np.append(np.asarray(ops.convert_to_numpy(self.kept()), np.float64), 1.0)
        by_filters = self._settings.masked == "filters"
        for kernel, basis, held in zip(self._ranked, self._bases, self._energies, strict=True):
            with threads_for(_matrix_shape(kernel.variable)):
                energies = _energies(kernel, np.ones_like(whole) if by_filters else whole)
                made = np.ones(len(energies)) if kernel.makes is None else whole[kernel.makes[0]]
                vectors = np.linalg.eigh(made[:, None] * energies * made)[1]
            held.assign(energies)
            # Ascending, the largest last.
            basis.assign(vectors[:, ::-1])

    def _missed(self, shares: Mapping[str, Any]) -> Any:
        """||B - B_d||^2; of several bounds what exceeds each."""
        away = [shares[name] - bound for name, bound in self.bounds.items()]
        if len(away) > 1:
            away = [ops.relu(each) for each in away]
        return sum(ops.square(each) for each in away)

    def _nearest(self, shares: Mapping[str, Any]) -> Any:
        """The largest of the costs relative to their bounds."""
        return ops.max(ops.stack([shares[name] / bound for name, bound in self.bounds.items()]))

    def _cut(self) -> tuple[Any, Any, list[tuple[Any, Any]]]:
        """What is left of the places, ranks, and kernels by variable."""
        kept = self.kept()
        whole = ops.concatenate([kept, ops.ones((1,), kept.dtype)])
        ranks, values = [], []
        for kernel in self._kernels:
            value = self._scaled(kernel, whole)
            if kernel.number is not None:
                shares, rank = self._left(kernel, whole)
                basis = ops.convert_to_tensor(self._bases[kernel.number])
                # (S, S): V diag(p) V^T
                projection = ops.matmul(basis * shares, ops.transpose(basis))
                value = ops.matmul(value, projection)
                ranks.append(rank)
            values.append((kernel.variable, value))
        return kept, ops.stack(ranks) if ranks else None, values

    def _left(self, kernel: _Kernel, whole: Any) -> tuple[Any, Any]:
        """What is left of each singular value as a share, and their number."""
        number = int(kernel.number or 0)
        basis = ops.convert_to_tensor(self._bases[number])
        # (S, S): V^T diag(sigma) W^T P W diag(sigma) V has S^2 on its diagonal.
        turned = basis
        if kernel.makes is not None and self._settings.masks:
            turned = basis * ops.reshape(ops.take(whole, kernel.makes[0]), (-1, 1))
        squares = ops.sum(turned * ops.matmul(self._energies[number], turned), axis=0)
        lengths = ops.sqrt(ops.relu(squares) + _TINY) / float(self._tops[number])
        threshold = self.thresholds[number]
        if self._settings.cut == "shrink":
            over = ops.relu(lengths - threshold)
            return over / lengths, ops.sum(ops.tanh(over * self._settings.rank_steepness))
        # S^q / (S^q + g^q), with log g from `_LEAST` at a threshold of 0 up to 0 at 1.
        away = ops.log(lengths) - _LEAST * (1 - threshold)
        shares = ops.sigmoid(self._settings.rank_steepness * away)
        # Directions of nothing count for nothing, wherever the threshold is.
        size = float(min(_matrix_shape(kernel.variable)))
        return shares, ops.minimum(ops.sum(shares), size)

    def _scaled(self, kernel: _Kernel, whole: Any) -> Any:
        """A kernel with what is left of the channels that it reads, or of its filters."""
        value = ops.cast(ops.convert_to_tensor(kernel.variable), "float32")
        side = kernel.makes if self._settings.masked == "filters" else kernel.reads
        if not self._settings.masks or side is None:
            return value
        numbers, axis = side
        shape = [1] * len(value.shape)
        shape[axis] = -1
        return value * ops.reshape(ops.take(whole, numbers), shape)


def _energies(kernel: _Kernel, whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """W^T P W of a kernel whose rows are masked, (S, S)."""
    rows = rows_of_channels(kernel.layer)
    matrix = kernel_matrix(kernel.layer)
    if kernel.reads is not None:
        matrix = matrix * np.repeat(whole[kernel.reads[0]], rows.shape[1])[:, None]
    return matrix.T @ (matrix if kernel.moments is None else kernel.moments @ matrix)


def _matrix_shape(variable: Any) -> tuple[int, int]:
    return math.prod(variable.shape[:-1]), int(variable.shape[-1])


def _kernels(
    places: Places, factorized: Sequence[str], moments: Mapping[str, NDArray[np.float64]]
) -> list[_Kernel]:
    """The kernels that masks or thresholds reach."""
    order = {key: number for number, key in enumerate(factorized)}
    found = []
    for layer in places.layers:
        for variable, reads, makes in layer.kernels():
            kernel = _Kernel(
                variable,
                _side(layer.reads, variable, reads, places.count),
                _side(layer.makes, variable, makes, places.count),
                order.get(layer.key),
                layer.record.layer,
                moments.get(layer.key),
            )
            if kernel.reads or kernel.makes or kernel.number is not None:
                found.append(kernel)
    return found


def _side(
    numbers: NDArray[np.intp], variable: Any, axis: int | None, fixed: int
) -> tuple[NDArray[np.int32], int] | None:
    if axis is None or bool((numbers == fixed).all()):
        return None
    # In a grouped convolution the same places of every group.
    return numbers[: variable.shape[axis]].astype(np.int32), axis
