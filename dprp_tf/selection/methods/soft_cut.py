"""A frozen model that computes with masks on its channels and thresholds on its singular values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from dprp_tf.channels import Places
from dprp_tf.costs.compiled_loss import names_of_outputs
from dprp_tf.keras_internals.compiled import sync
from dprp_tf.keras_internals.substitution import call_with
from dprp_tf.selection.methods.unfoldings import Unfolding, unfoldings_of
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
    """A kernel of the frozen model: its variable, the places on its sides, what is cut of it."""

    variable: Any
    reads: tuple[NDArray[np.int32], int] | None
    makes: tuple[NDArray[np.int32], int] | None
    unfoldings: list[Unfolding] = field(default_factory=list)


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

    Tucker-2 cuts a kernel along both of its sides, each by a threshold of its own: by the filters
    as above, and by the channels that are read likewise, with W as a matrix (L*S, C) there and the
    masks of both sides exchanged. Both times S and V are those of the kernel before either cut, as
    the higher-order SVD has them; see `Unfolding`.

    Masks of the channels that are read are the ones that removing them for real amounts to: a mask
    behind the last layer that treats each channel by itself. So `masked="channels"` lets W' follow
    from the rows masked, and the filters' masks enter by way of S and V alone; `"filters"` masks
    the filters only, as the thesis does, and a channel of zeros becomes a constant in the next
    normalization.

    Args:
        model: A built, trained model; it stays as it is.
        places: The channels that may go.
        costs: What a mask and ranks cost, and which layers have ranks in which decomposition.
        bounds: The costs wanted, by metric.
        settings: How soft it is.
        moments: Second moments of inputs by layer, as `input_moments` gives them. Default: none.

    Attributes:
        masks: m by place.
        thresholds: g by rank, as shares of s_1; for a gate on a scale of its logarithm.
        steps: The steps taken.
        spent: The cost at the last of them, relative to the bound.
        bounds: The costs wanted, by metric.
        decompositions: By factorized layer the decomposition of its kernel.
    """

    def __init__(
        self,
        model: keras.Model,
        places: Places,
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
        self.decompositions = costs.stages.decompositions if settings.thresholds else {}
        self._loose = places.loose.astype(np.float32)
        self._kernels = _kernels(places, self.decompositions, settings, moments or {})
        # One for each threshold, in the order of the ranks that costs take.
        self._unfoldings = [each for kernel in self._kernels for each in kernel.unfoldings]
        self.masks = self.add_weight(
            shape=(places.count,), initializer="ones", trainable=settings.masks, name="masks"
        )
        self.thresholds = self.add_weight(
            shape=(len(self._unfoldings),),
            initializer="zeros",
            constraint="non_neg",
            trainable=settings.thresholds,
            name="thresholds",
        )
        self.steps = self._state((), "steps")
        self.spent = self._state((), "spent")
        # R V, its inverse where that is not its transpose, and E of each unfolding.
        self._bases = [self._square(each, "basis") for each in self._unfoldings]
        self._inverses = [
            self._square(each, "inverse") if each.turned else None for each in self._unfoldings
        ]
        self._energies = [self._square(each, "energies") for each in self._unfoldings]
        self.built = True
        self.refresh()
        # Thresholds are learned as shares of each kernel's largest singular value.
        whole = np.ones(places.count + 1)
        self._tops = [each.largest(each.energies(whole)) for each in self._unfoldings]

    def _square(self, unfolding: Unfolding, name: str) -> Any:
        return self._state((unfolding.size, unfolding.size), name)

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
        """Return what is left of each place, and the soft ranks of the factorized layers."""
        sync(self)
        kept, ranks, _ = self._cut()
        found = None if ranks is None else np.asarray(ops.convert_to_numpy(ranks), np.float64)
        return np.asarray(ops.convert_to_numpy(kept), np.float64), found

    def refresh(self) -> None:
        """Take the singular vectors anew, of the kernels as they are masked now."""
        sync(self)
        whole = np.append(np.asarray(ops.convert_to_numpy(self.kept()), np.float64), 1.0)
        for number, unfolding in enumerate(self._unfoldings):
            energies = unfolding.energies(whole)
            mask = np.ones(unfolding.size) if unfolding.own is None else whole[unfolding.own]
            basis = unfolding.basis(energies, mask)
            self._energies[number].assign(energies)
            self._bases[number].assign(basis)
            held = self._inverses[number]
            if held is not None:
                held.assign(unfolding.inverse(basis))

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
        ranks: list[Any] = []
        values = []
        for kernel in self._kernels:
            value = self._scaled(kernel, whole)
            for unfolding in kernel.unfoldings:
                number = len(ranks)
                shares, rank = self._left(number, unfolding, whole)
                basis = ops.convert_to_tensor(self._bases[number])
                inverse = self._inverses[number]
                inverse = ops.transpose(basis) if inverse is None else inverse
                value = unfolding.turn(value, basis, ops.convert_to_tensor(inverse), shares)
                ranks.append(rank)
            values.append((kernel.variable, value))
        return kept, ops.stack(ranks) if ranks else None, values

    def _left(self, number: int, unfolding: Unfolding, whole: Any) -> tuple[Any, Any]:
        """What is left of each singular value of an unfolding as a share, and their number."""
        basis = ops.convert_to_tensor(self._bases[number])
        # (n, n): V^T R^T diag(m) E diag(m) R V has S^2 on its diagonal.
        turned = basis
        if unfolding.own is not None and self._settings.masks:
            turned = basis * ops.reshape(ops.take(whole, unfolding.own), (-1, 1))
        squares = ops.sum(turned * ops.matmul(self._energies[number], turned), axis=0)
        lengths = ops.sqrt(ops.relu(squares) + _TINY) / self._tops[number]
        threshold = self.thresholds[number]
        if self._settings.cut == "shrink":
            over = ops.relu(lengths - threshold)
            return over / lengths, ops.sum(ops.tanh(over * self._settings.rank_steepness))
        # S^q / (S^q + g^q), with log g from `_LEAST` at a threshold of 0 up to 0 at 1.
        away = ops.log(lengths) - _LEAST * (1 - threshold)
        # By way of what goes, which stays above 0 where what is left rounds to 1: a sigmoid's
        # derivative is made of its value, and a threshold without one would never move.
        shares = 1 - ops.sigmoid(-self._settings.rank_steepness * away)
        # Directions of nothing count for nothing, wherever the threshold is.
        return shares, ops.minimum(ops.sum(shares), float(unfolding.full_rank))

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


def _kernels(
    places: Places,
    decompositions: Mapping[str, str],
    settings: SoftSettings,
    moments: Mapping[str, NDArray[np.float64]],
) -> list[_Kernel]:
    """The kernels that masks or thresholds reach."""
    found = []
    for layer in places.layers:
        for variable, reads, makes in layer.kernels():
            kernel = _Kernel(
                variable,
                _side(layer.reads, variable, reads, places.count),
                _side(layer.makes, variable, makes, places.count),
            )
            if layer.key in decompositions:
                kernel.unfoldings = unfoldings_of(
                    layer.record.layer,
                    decompositions[layer.key],
                    None if kernel.reads is None else kernel.reads[0],
                    None if kernel.makes is None else kernel.makes[0],
                    moments=moments.get(layer.key),
                    by_filters=settings.masked == "filters",
                )
            if kernel.reads or kernel.makes or kernel.unfoldings:
                found.append(kernel)
    return found


def _side(
    numbers: NDArray[np.intp], variable: Any, axis: int | None, fixed: int
) -> tuple[NDArray[np.int32], int] | None:
    if axis is None or bool((numbers == fixed).all()):
        return None
    # In a grouped convolution the same places of every group.
    return numbers[: variable.shape[axis]].astype(np.int32), axis
