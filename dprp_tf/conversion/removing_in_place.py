"""Channels that go out of a model as it stands, inside a training or outside of one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from dprp_tf.channels import WeightCut, weight_cuts
from dprp_tf.conversion.refitting import refit_readers
from dprp_tf.conversion.removing import Removal
from dprp_tf.keras_internals.compiled import sync
from dprp_tf.keras_internals.graphs import layer_keys
from dprp_tf.keras_internals.optimizers import model_slots, require_slots_like
from dprp_tf.keras_internals.payloads import exchange_payloads, set_payload
from dprp_tf.keras_internals.sizes import Sizes, take_over_sizes

__all__ = ["Shape", "remove_channels_in_place"]

_PURPOSE = "Removing channels in place"


def remove_channels_in_place(
    model: keras.Model, channels: Mapping[str, Iterable[int]], *, calibration_data: Any = None
) -> None:
    """Remove filters from a model itself, as `remove_channels` does from a copy of it.

    The model, its layers and its variables stay the objects that they are. The optimizer's slots
    lose the entries that their variables lose, and what is left of them goes on; iteration count,
    learning rate and metrics stay; compiled functions are made anew.

    Args:
        model: A built Functional or Sequential model of plain layers, compiled or not, inside
            `fit` or not.
        channels: As `remove_channels` takes them.
        calibration_data: Inputs on which the kernels of what read the channels are fitted to what
            is left of them, as `cut` does before its `refit`. Default: they keep their entries.

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
    removal = Removal(model, channels)
    layers, masks = layer_keys(model), removal.masks()
    cuts: list[tuple[keras.Variable, WeightCut]] = []
    for key, (reads, makes) in masks.items():
        if reads.all() and makes.all():
            continue
        layer = layers[key]
        named = weight_cuts(layer, reads, makes)
        cuts += [(getattr(layer, name), cut) for name, cut in named.items()]
    require_slots_like(model, [variable for variable, _ in cuts], _PURPOSE)
    # Made before anything changes: what can't be without the channels is refused here.
    template, pairs = removal.template()
    fitted: dict[int, NDArray[Any]] = {}
    if calibration_data is not None:
        names = refit_readers(model, template, masks, calibration_data)
        smaller = layer_keys(template)
        # Copies: on JAX a step would donate the buffer that the template holds as well.
        fitted = {id(layers[name].kernel): _array(smaller[name].kernel).copy() for name in names}
    with exchange_payloads(model):
        for variable, cut in cuts:
            for slot, _, _ in model_slots(model, [variable]):
                set_payload(slot, cut.of(_array(slot)))
        for variable, cut in cuts:
            values = fitted.get(id(variable))
            set_payload(variable, cut.of(_array(variable)) if values is None else values)
        take_over_sizes(pairs)


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

    def restore(self) -> None:
        """Give the model this shape, for weights that are then to be assigned.

        Variables whose shape changes hold zeros afterwards, as do the optimizer's slots of them: a
        momentum belongs to the weights it was made with. All else stays as it is.
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


def _shapes(model: keras.Model) -> list[tuple[int, ...]]:
    return [tuple(weight.shape) for weight in model.weights]


def _array(value: Any) -> NDArray[Any]:
    return np.asarray(ops.convert_to_numpy(value))
