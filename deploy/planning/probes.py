"""Where a model's low-rank layers stand, and small networks that cost what they cost there."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dprp_tf.conversion.assembly import assemble
from dprp_tf.conversion.folding import require_finite_factors
from dprp_tf.conversion.form_weights import random_weights
from dprp_tf.costs.form import Form
from dprp_tf.costs.map_sizes import MapSizes, map_sizes
from dprp_tf.decomposition import Factors, matrix_shape
from dprp_tf.keras_internals.layer_calls import LayerCall, layer_calls
from dprp_tf.layers import (
    FactorizedLayer,
    SVDLayer,
    factorized_keys,
)
from dprp_tf.layers.registry import layer_class, layer_named, registered_layers

if TYPE_CHECKING:
    import keras

__all__ = ["Geometry", "Site", "at_width", "layer_sites", "plain_geometry", "probe"]

# What decides a layer's cost; the rest of its configuration does not.
_KEPT = (
    "filters",
    "units",
    "kernel_size",
    "strides",
    "padding",
    "data_format",
    "dilation_rate",
    "use_bias",
    "activation",
    "groups",
    "depth_multiplier",
    "output_padding",
    "recurrent_activation",
    "reset_after",
    "return_sequences",
    "go_backwards",
    "unroll",
)


@dataclass(frozen=True)
class Geometry:
    """Everything about a place of a layer that decides what its forms cost.

    Two places of equal geometry cost the same and are measured once.

    Attributes:
        type: Class of the SVD layer; of a Tucker layer the one that has its window. Or a layer of
            Keras' own, which has the dense form alone.
        config: Its arguments that matter, as JSON.
        input_shape: Shape of one sample.
        normalized: Whether a BatchNormalization follows, which only some forms take in.
        rectified: Whether a ReLU follows (behind the normalization, if there is one).
    """

    type: str
    config: str
    input_shape: tuple[int, ...]
    normalized: bool
    rectified: bool

    @property
    def plain(self) -> bool:
        """Whether it is a layer of Keras' own."""
        return not any(kind.__name__ == self.type for kind in registered_layers())

    def plain_layer(self, name: str = "layer") -> Any:
        """Return a layer of Keras' own of this geometry, not built.

        Args:
            name: Its name.

        Returns:
            The layer.
        """
        import keras

        return getattr(keras.layers, self.type)(**self._arguments(), name=name)

    def layer(self, name: str = "layer") -> SVDLayer:
        """Return a built SVD layer of this geometry, of rank 1 and without meaning.

        Args:
            name: Its name.

        Returns:
            The layer.
        """
        layer = layer_named(self.type)(**self._arguments(), name=name)
        height, width = matrix_shape(self.kernel_shape, "spatial")
        layer.start_from(
            Factors(
                np.zeros((height, 1), np.float32),
                np.ones(1, np.float32),
                np.zeros((width, 1), np.float32),
            )
        )
        layer.build((None, *self.input_shape))
        return layer

    def _arguments(self) -> dict[str, Any]:
        return {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in json.loads(self.config).items()
        }

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Keras kernel shape of the layer; of one that has several, as if it were a convolution."""
        config = json.loads(self.config)
        if "units" in config:
            gates = 1 if self.plain else getattr(layer_named(self.type), "gates", 1)
            return self.input_shape[-1], gates * config["units"]
        first = config["data_format"] == "channels_first"
        channels = self.input_shape[0 if first else -1]
        filters = config.get("filters", channels * config.get("depth_multiplier", 1))
        return (*config["kernel_size"], channels, filters)

    @property
    def key(self) -> str:
        """A text equal for equal geometries, the same in every process."""
        return json.dumps(
            [self.type, self.config, self.input_shape, self.normalized, self.rectified]
        )

    def macs(self, form: Form) -> int:
        """Return the MACs of a form at this place, for one sample.

        Args:
            form: The form.

        Returns:
            The number of MACs.
        """
        return form.macs(self.kernel_shape, *_sizes(self))


@functools.cache
def _sizes(geometry: Geometry) -> MapSizes:
    layer, shape = geometry.layer(), (1, *geometry.input_shape)
    output = layer.compute_output_shape(shape)
    # The first of several outputs.
    output = output[0] if isinstance(output[0], tuple) else output
    sizes = map_sizes(LayerCall(layer, shape, tuple(output)))
    assert sizes is not None, "a geometry has no open sizes"
    return sizes


@dataclass(frozen=True)
class Site:
    """A low-rank layer and the geometry of each of its calls.

    Attributes:
        layer: The layer.
        geometries: One per call; several for a shared layer.
        name: The layer's name; its path where nested models have layers of the same name.
    """

    layer: FactorizedLayer
    geometries: tuple[Geometry, ...]
    name: str

    def worth_trying(self, forms: Sequence[Form]) -> list[Form]:
        """Return the forms with no more MACs than the dense one: others have nothing to win by.

        Args:
            forms: Forms of the layer.

        Returns:
            Those that remain, in their order; a shared layer's calls count together.
        """

        def macs(form: Form) -> int:
            return sum(geometry.macs(form) for geometry in self.geometries)

        return [form for form in forms if macs(form) <= macs(Form("dense"))]


def layer_sites(model: keras.Model) -> list[Site]:
    """Find the SVD and Tucker layers of a model and what they are called on.

    Args:
        model: A model with SVD or Tucker layers and inputs of fixed shape.

    Returns:
        One `Site` per such layer, in model order.

    Raises:
        ValueError: If the model has no graph or no such layer, a factor is not finite, or a layer's
            input has a size that is not fixed.

    Example:

    >>> import keras, dprp_tf as dprp
    >>> inputs = keras.Input((8, 8, 16))
    >>> outputs = keras.layers.Conv2D(16, 3, name="a")(inputs)
    >>> lowrank = dprp.factorize(keras.Model(inputs, outputs), ranks=2)
    >>> layer_sites(lowrank)[0].geometries[0].kernel_shape
    (3, 3, 16, 16)
    """
    layers = factorized_keys(model)
    if not layers:
        raise ValueError(
            "`model` must have SVD layers to measure. Received: "
            f"{model.name!r}, which has none; make one with dprp_tf.factorize(model)."
        )
    require_finite_factors(model)
    found: dict[int, list[Geometry]] = {}
    calls = list(layer_calls(model))
    for call in calls:
        if not isinstance(call.layer, FactorizedLayer):
            continue
        shape = call.input_shape[1:]
        if None in shape:
            raise ValueError(
                "`model` must have inputs of fixed shape to be measured. Received: layer "
                f"{call.layer.name!r} on {call.input_shape}. Rebuild it on a fixed keras.Input."
            )
        geometry = Geometry(
            layer_class(call.layer.stands_for).__name__,
            _config(call.layer),
            tuple(int(size) for size in shape if size is not None),
            *_followed_by(calls, call.consumers),
        )
        # Once for each row of the batch axis that one sample fills.
        found.setdefault(id(call.layer), []).extend([geometry] * (call.repeats or 1))
    return [Site(layer, tuple(found.get(id(layer), ())), key) for key, layer in layers.items()]


def probe(geometry: Geometry, form: Form, copies: int = 1, seed: int = 0) -> keras.Model:
    """Build a network of copies of one form side by side, added up at the end.

    Its cost, less that of an empty network, over `copies` is the cost of the form at that place:
    with the normalization and ReLU behind it, which the converters take into some forms only.

    Args:
        geometry: The place.
        form: The form.
        copies: How many, 1 or more. Defaults to 1.
        seed: Seed of the random weights. Defaults to 0.

    Returns:
        A plain Keras model.
    """
    import keras

    inputs = keras.Input(geometry.input_shape, name="inputs")
    parts = []
    for copy in range(copies):
        if geometry.plain:
            layer = geometry.plain_layer(f"copy{copy}")
            outputs = layer(inputs)
            _fill(layer, seed + copy)
        else:
            layer = geometry.layer(f"copy{copy}")
            weights = random_weights(geometry.kernel_shape, form, seed + copy)
            outputs = assemble(layer, form, weights)(inputs)
        if geometry.normalized:
            first = getattr(layer, "data_format", "channels_last") == "channels_first"
            normalization = keras.layers.BatchNormalization(axis=1 if first else -1)
            outputs = normalization(outputs)
            _fill(normalization, seed)
        if geometry.rectified:
            outputs = keras.layers.ReLU()(outputs)
        parts.append(outputs)
    return keras.Model(inputs, parts[0] if copies == 1 else keras.layers.Add()(parts))


def plain_geometry(call: LayerCall, calls: Sequence[LayerCall]) -> Geometry | None:
    """Return the geometry of a call of a layer of Keras' own.

    Args:
        call: The call.
        calls: All calls of the model, which say what follows.

    Returns:
        The geometry; None for layers of other classes and for inputs of open shape.
    """
    import keras

    name = type(call.layer).__name__
    shape = call.input_shape[1:]
    if getattr(keras.layers, name, None) is not type(call.layer) or None in shape:
        return None
    sizes = tuple(int(size) for size in shape if size is not None)
    return Geometry(name, _config(call.layer), sizes, *_followed_by(calls, call.consumers))


def at_width(geometry: Geometry, reads: int, makes: int) -> Geometry:
    """Return the same place of a layer with other numbers of channels.

    Args:
        geometry: A place of a layer of Keras' own.
        reads: Channels that it reads.
        makes: Channels that it makes; those of a layer that works on each channel by itself follow
            from what it reads.

    Returns:
        The geometry.

    Example:

    >>> config = '{"data_format": "channels_last", "filters": 16, "kernel_size": [3, 3]}'
    >>> whole = Geometry("Conv2D", config, (8, 8, 16), False, False)
    >>> at_width(whole, 8, 4).kernel_shape
    (3, 3, 8, 4)
    """
    config = json.loads(geometry.config)
    for size in ("filters", "units"):
        if size in config:
            config[size] = makes
    first = config.get("data_format") == "channels_first"
    sizes = geometry.input_shape
    shape = (reads, *sizes[1:]) if first else (*sizes[:-1], reads)
    return replace(geometry, config=json.dumps(config, sort_keys=True), input_shape=shape)


def _fill(layer: Any, seed: int) -> None:
    """Random weights: zeros might be left out by a converter."""
    generator = np.random.default_rng(seed)
    for weight in layer.weights:
        if len(weight.shape) > 1:
            fan_in = np.prod(weight.shape[:-1])
            weight.assign(generator.normal(scale=fan_in**-0.5, size=weight.shape))
        else:
            weight.assign(generator.uniform(0.5, 1.5, weight.shape))


def _config(layer: Any) -> str:
    config = layer.get_config()
    return json.dumps({key: config[key] for key in _KEPT if key in config}, sort_keys=True)


def _followed_by(calls: Sequence[LayerCall], consumers: tuple[Any, ...]) -> tuple[bool, bool]:
    """(a normalization follows, a ReLU follows) where exactly one layer takes the output."""
    names = [type(consumer).__name__ for consumer in consumers]
    if len(names) != 1:
        return False, False
    if names[0] != "BatchNormalization":
        return False, _rectifies(consumers[0])
    behind = [after for call in calls if call.layer is consumers[0] for after in call.consumers]
    return True, len(behind) == 1 and _rectifies(behind[0])


def _rectifies(layer: Any) -> bool:
    kind = type(layer).__name__
    if kind == "Activation":
        return getattr(layer.activation, "__name__", "") in ("relu", "relu6")
    return kind in ("ReLU", "Relu", "Relu6")
