"""Where a model's low-rank layers stand, and small networks that cost what they cost there."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dprp_tf.conversion.assembly import assemble
from dprp_tf.conversion.folding import require_finite_factors
from dprp_tf.conversion.form_weights import random_weights
from dprp_tf.costs.form import Form
from dprp_tf.decomposition import Factors, matrix_shape
from dprp_tf.keras_internals.layer_calls import LayerCall, layer_calls
from dprp_tf.layers import (
    FactorizedLayer,
    SVDLayer,
    factorized_keys,
)
from dprp_tf.layers.registry import layer_class, layer_named

if TYPE_CHECKING:
    import keras

__all__ = ["Geometry", "Site", "layer_sites", "probe"]

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
)


@dataclass(frozen=True)
class Geometry:
    """Everything about a place of a layer that decides what its forms cost.

    Two places of equal geometry cost the same and are measured once.

    Attributes:
        type: Class of the SVD layer; of a Tucker layer the one that has its window.
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

    def layer(self, name: str = "layer") -> SVDLayer:
        """Return a built SVD layer of this geometry, of rank 1 and without meaning.

        Args:
            name: Its name.

        Returns:
            The layer.
        """
        arguments: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in json.loads(self.config).items()
        }
        layer = layer_named(self.type)(**arguments, name=name)
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

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Keras kernel shape of the layer."""
        config = json.loads(self.config)
        if "units" in config:
            return self.input_shape[-1], config["units"]
        first = config["data_format"] == "channels_first"
        return (*config["kernel_size"], self.input_shape[0 if first else -1], config["filters"])

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
        return form.macs(self.kernel_shape, *_positions(self))


@functools.cache
def _positions(geometry: Geometry) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Spatial sizes of the input and of the output."""
    output = geometry.layer().compute_output_shape((None, *geometry.input_shape))[1:]
    if json.loads(geometry.config).get("data_format") == "channels_first":
        return geometry.input_shape[1:], tuple(output[1:])
    return geometry.input_shape[:-1], tuple(output[:-1])


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
        layer = geometry.layer(f"copy{copy}")
        weights = random_weights(geometry.kernel_shape, form, seed + copy)
        outputs = assemble(layer, form, weights)(inputs)
        if geometry.normalized:
            first = getattr(layer, "data_format", "channels_last") == "channels_first"
            normalization = keras.layers.BatchNormalization(axis=1 if first else -1)
            outputs = normalization(outputs)
            generator = np.random.default_rng(seed)
            for weight in normalization.weights:
                weight.assign(generator.uniform(0.5, 1.5, weight.shape))
        if geometry.rectified:
            outputs = keras.layers.ReLU()(outputs)
        parts.append(outputs)
    return keras.Model(inputs, parts[0] if copies == 1 else keras.layers.Add()(parts))


def _config(layer: FactorizedLayer) -> str:
    config = layer.get_config()
    return json.dumps({key: config[key] for key in _KEPT if key in config}, sort_keys=True)


def _followed_by(calls: list[LayerCall], consumers: tuple[Any, ...]) -> tuple[bool, bool]:
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
