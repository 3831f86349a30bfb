"""Channels that go out of a model as it stands, inside a training or outside of one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from dprp_tf.channels import WeightCut, weight_cuts
from dprp_tf.conversion.refitting import refit_readers
from dprp_tf.conversion.removing import Removal
from dprp_tf.conversion.sequential_refitting import refit_in_sequence
from dprp_tf.keras_internals.compiled import sync
from dprp_tf.keras_internals.graphs import layer_keys
from dprp_tf.keras_internals.optimizers import model_slots, require_slots_like
from dprp_tf.keras_internals.payloads import exchange_payloads, set_payload
from dprp_tf.keras_internals.sizes import Sizes, take_over_sizes
from dprp_tf.training.replicas import chief_arrays

__all__ = ["Shape", "remove_channels_in_place", "require_removable"]

_PURPOSE = "Removing channels in place"


def remove_channels_in_place(
    model: keras.Model,
    channels: Mapping[str, Iterable[int]],
    *,
    calibration_data: Any = None,
    moments: Mapping[str, NDArray[np.float64]] | None = None,
) -> None:
    """Remove filters from a model itself, as `remove_channels` does from a copy of it.

    The model, its layers and its variables stay the objects that they are. The optimizer's slots
    lose the entries that their variables lose, and what is left of them goes on; iteration count,
    learning rate and metrics stay; compiled functions are made anew.

    Args:
        model: A built Functional or Sequential model of plain layers, compiled or not, inside
            `fit` or not.
        channels: As `remove_channels` takes them.
        calibration_data: Inputs on which what is left is fitted to give what the model gave, as
            `cut` does with them. Default: weights keep their entries.
        moments: What `input_moments` gave of these inputs for layers of the model, so that they
            need not be run again. Default: none.

    Raises:
        ValueError: As `remove_channels`; if a layer holds factors; if the optimizer keeps slots
            whose shape does not follow the variable's. The model is then as it was.

    Example:

    >>> inputs = keras.Input((4,))
    >>> hidden = keras.layers.Dense(3, name="a")(inputs)
    >>> model = keras.Model(inputs, keras.layers.Dense(2, name="b")(hidden))
    >>> remove_channels_in_place(model, {"a": [1]})
    >>> [tuple(weight.shape) for weight in model.weights]
    [(4, 2), (2,), (2, 2), (2,)]
    """
    sync(model)
    planned = _Planned(model, channels)
    fitted = None
    if calibration_data is not None:
        fitted = _fitted(model, planned, calibration_data, moments)
    with exchange_payloads(model):
        for variable, cut in planned.cuts:
            for slot, _, _ in model_slots(model, [variable]):
                set_payload(slot, cut.of(_array(slot)))
        for variable, cut in planned.cuts:
            set_payload(variable, cut.of(_array(variable)))
        for variable, values in fitted or ():
            variable.assign(values)
        take_over_sizes(planned.pairs)


def _fitted(
    model: keras.Model,
    planned: _Planned,
    x: Any,
    moments: Mapping[str, NDArray[np.float64]] | None,
) -> list[tuple[keras.Variable, NDArray[Any]]]:
    """What the weights of layers that channels go through become, fitted on data as `cut` does."""
    small, kept = planned.template, {key: makes for key, (_, makes) in planned.masks.items()}
    refit_readers(model, small, planned.masks, x, moments=moments)
    refit_in_sequence(model, small, x, kept=kept)
    layers, smaller = layer_keys(model), layer_keys(small)
    variables = [variable for key in planned.masks for variable in layers[key].variables]
    values = [_array(v).copy() for key in planned.masks for v in smaller[key].variables]
    # Of several workers, each with data of its own, the chief's.
    return list(zip(variables, chief_arrays(model, values), strict=True))


def require_removable(model: keras.Model, channels: Mapping[str, Iterable[int]]) -> None:
    """Refuse what `remove_channels_in_place` would refuse; nothing of the model is changed.

    Args:
        model: As `remove_channels_in_place` takes it.
        channels: Likewise.

    Raises:
        ValueError: As `remove_channels_in_place`.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="a")])
    >>> require_removable(model, {"a": [0]})
    Traceback (most recent call last):
      ...
    ValueError: `channels` must name filters that may go. Received: filter 0 of 'a', which stays: \
a model output. See dprp_tf.channel_groups(model).
    """
    _Planned(model, channels)


class _Planned:
    """A removal that is made out, with nothing changed yet."""

    def __init__(self, model: keras.Model, channels: Mapping[str, Iterable[int]]) -> None:
        removal = Removal(model, channels)
        layers = layer_keys(model)
        self.masks = removal.masks
        self.cuts: list[tuple[keras.Variable, WeightCut]] = []
        for key, (reads, makes) in self.masks.items():
            if reads.all() and makes.all():
                continue
            layer = layers[key]
            named = weight_cuts(layer, reads, makes)
            self.cuts += [(attrgetter(name)(layer), cut) for name, cut in named.items()]
        require_slots_like(model, [variable for variable, _ in self.cuts], _PURPOSE)
        # Layers that can't be made without the channels are refused here.
        self.template, self.pairs = removal.template()


@dataclass
class Shape:
    """The shape that a model has now: its weights' and all that tells of them, to be had again.

    Attributes:
        model: The model.
    """

    model: keras.Model
    _sizes: Sizes = field(init=False)
    _shapes: list[tuple[int, ...]] = field(init=False)

    def __post_init__(self) -> None:
        self._sizes = Sizes(self.model)
        self._shapes = _shapes(self.model)

    @property
    def described(self) -> list[list[int]]:
        """The shapes of the model's weights, as JSON has them."""
        return [list(shape) for shape in self._shapes]

    def fits(self, weights: Iterable[Any]) -> bool:
        """Say whether weights have the shapes that the model's had.

        Args:
            weights: What the model's `get_weights` gave at some time.
        """
        return self._shapes == [tuple(np.shape(weight)) for weight in weights]

    def restore(self) -> list[keras.Variable]:
        """Give the model this shape, for weights that are then to be assigned.

        Variables whose shape changes hold zeros afterwards, as do the optimizer's slots of them: a
        momentum belongs to the weights it was made with. All else stays as it is.

        Returns:
            The variables whose shape changed; `start_averages` takes them, their values assigned.
        """
        model = self.model
        sync(model)
        changed = [
            (variable, shape)
            for variable, shape in zip(model.weights, self._shapes, strict=True)
            if tuple(variable.shape) != shape
        ]
        with exchange_payloads(model):
            for variable, shape in changed:
                slots = [slot for slot, _, _ in model_slots(model, [variable])]
                for held in [*slots, variable]:
                    set_payload(held, np.zeros(shape, dtype=np.float32))
            self._sizes.restore()
        return [variable for variable, _ in changed]


def _shapes(model: keras.Model) -> list[tuple[int, ...]]:
    return [tuple(weight.shape) for weight in model.weights]


def _array(value: Any) -> NDArray[Any]:
    return np.asarray(ops.convert_to_numpy(value))
