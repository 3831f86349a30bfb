"""The one bridge to Keras 2: tensorflow-model-optimization takes models of no other kind."""

from __future__ import annotations

import contextlib
import inspect
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dprp_tf.deploy.exporters.source import Source
from dprp_tf.deploy.running.quiet import quiet
from dprp_tf.files.extras import require
from dprp_tf.keras_internals.graphs import call_behind, graph_of, history_of, nodes

if TYPE_CHECKING:
    import keras

__all__ = ["Keras2Model", "load_keras2", "load_optimization", "to_keras2"]

_LEGACY = "TF_USE_LEGACY_KERAS"
_FEATURE = "Training for quantization, sparsity or clusters"

# Layers of the same name, arguments and order of weights in both versions.
_SAME = frozenset(
    [
        "Activation",
        "Add",
        "Average",
        "AveragePooling1D",
        "AveragePooling2D",
        "AveragePooling3D",
        "BatchNormalization",
        "Concatenate",
        "Conv1D",
        "Conv1DTranspose",
        "Conv2D",
        "Conv2DTranspose",
        "Conv3D",
        "Conv3DTranspose",
        "Cropping1D",
        "Cropping2D",
        "Cropping3D",
        "Dense",
        "DepthwiseConv1D",
        "DepthwiseConv2D",
        "Dropout",
        "ELU",
        "Flatten",
        "GaussianDropout",
        "GaussianNoise",
        "GlobalAveragePooling1D",
        "GlobalAveragePooling2D",
        "GlobalAveragePooling3D",
        "GlobalMaxPooling1D",
        "GlobalMaxPooling2D",
        "GlobalMaxPooling3D",
        "LayerNormalization",
        "LeakyReLU",
        "MaxPooling1D",
        "MaxPooling2D",
        "MaxPooling3D",
        "Maximum",
        "Minimum",
        "Multiply",
        "PReLU",
        "Permute",
        "ReLU",
        "RepeatVector",
        "Rescaling",
        "Reshape",
        "SeparableConv1D",
        "SeparableConv2D",
        "Softmax",
        "SpatialDropout1D",
        "SpatialDropout2D",
        "SpatialDropout3D",
        "Subtract",
        "UpSampling1D",
        "UpSampling2D",
        "UpSampling3D",
        "ZeroPadding1D",
        "ZeroPadding2D",
        "ZeroPadding3D",
    ]
)
_RENAMED = {"LeakyReLU": {"negative_slope": "alpha"}}
# Arguments that change nothing in what the layer computes here.
_WITHOUT_EFFECT = frozenset(
    """
    batch_input_shape batch_shape dtype renorm_clipping renorm_momentum seed synchronized
    """.split()  # noqa: SIM905
)
# Activations of the same name and meaning; `silu` was `swish`.
_ACTIVATIONS = {
    **{
        name: name
        for name in (
            *("elu", "exponential", "gelu", "linear", "mish", "relu", "selu", "sigmoid"),
            *("softmax", "softplus", "softsign", "tanh"),
        )
    },
    "silu": "swish",
    "swish": "swish",
}
# What quantizers can stand behind as part of the layer before; others become layers of their own.
_FUSED_ACTIVATIONS = frozenset({"linear", "relu"})
# Layers that change their input in training alone.
_AUGMENTATIONS = frozenset(
    """
    AugMix RandAugment RandomBrightness RandomColorDegeneration RandomColorJitter RandomContrast
    RandomElasticTransform RandomErasing RandomFlip RandomGaussianBlur RandomGrayscale RandomHue
    RandomInvert RandomPerspective RandomPosterization RandomRotation RandomSaturation
    RandomSharpness RandomShear RandomTranslation RandomZoom
    """.split()  # noqa: SIM905
)
# With these the converter merges a batch normalization that follows, scales per channel included;
_FOLDABLE = frozenset({"Conv2D", "DepthwiseConv2D"})
# these have one scale for all channels, so it is merged before training.
_ABSORBING = frozenset({"Conv1D", "Dense", "DepthwiseConv1D"})


def load_keras2() -> Any:
    """Import `tf_keras`, Keras 2 as a package of its own.

    Returns:
        The module.

    Raises:
        ImportError: If it is not installed; the message says how to.

    Example:

    >>> load_keras2().__version__.split(".")[0]
    '2'
    """
    with quiet(), _undisturbed():
        return require("tf_keras", extra="qat", feature=_FEATURE)


def load_optimization() -> Any:
    """Import `tensorflow_model_optimization` without letting it change the Keras of this process.

    Returns:
        The module.

    Raises:
        ImportError: If it is not installed; the message says how to.

    Example:

    >>> load_optimization().__name__
    'tensorflow_model_optimization'
    """
    with quiet(), _undisturbed():
        return require("tensorflow_model_optimization", extra="qat", feature=_FEATURE)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep an import from switching `tf.keras`, here and in child processes, to Keras 2."""
    import tensorflow as tf

    before = os.environ.get(_LEGACY)
    # `tf.keras` is loaded on first use and stays what it was then.
    tf.keras.__name__  # noqa: B018
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_LEGACY, None)
        else:
            os.environ[_LEGACY] = before


@dataclass(frozen=True)
class Keras2Model:
    """A Keras 3 model rebuilt in Keras 2, with the way back.

    Args:
        original: The user's model.
        source: The model it was rebuilt from, in float32, with names of inputs and outputs.
        model: The `tf_keras` model: one flat graph, inputs and outputs in the same order.
        layers: Pairs of a Keras 3 layer with weights and the name of its Keras 2 layer.
    """

    original: keras.Model
    source: Source
    model: Any
    layers: tuple[tuple[Any, str], ...]

    def carry_back(self, trained: Any = None) -> keras.Model:
        """Copy the original model with the weights of a Keras 2 model.

        Args:
            trained: A `tf_keras` model with the layer names of `model`, such as `model` after
                training or a stripped copy of it. Defaults to `model`.

        Returns:
            A new Keras 3 model, not compiled; the original is untouched.

        Raises:
            ValueError: If a layer is missing in `trained` or has weights of another shape.

        Example:

        >>> import keras
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> copy = to_keras2(model).carry_back()
        >>> bool((copy.get_weights()[0] == model.get_weights()[0]).all())
        True
        """
        import keras

        trained = self.model if trained is None else trained
        places = {id(v): n for n, v in enumerate(self.source.model.weights)}
        values = [np.asarray(weight) for weight in self.source.model.weights]
        for layer, name in self.layers:
            new = trained.get_layer(name).get_weights()
            for variable, value in zip(layer.weights, new, strict=True):
                if value.shape != tuple(variable.shape):
                    raise ValueError(
                        f"`trained` must have weights of shape {tuple(variable.shape)} in layer "
                        f"{name!r}. Received: {value.shape}."
                    )
                values[places[id(variable)]] = value
        copy = keras.models.clone_model(self.original)
        copy.set_weights(values)
        return copy


def to_keras2(model: keras.Model, decompose: bool = False) -> Keras2Model:
    """Rebuild a plain Keras 3 model in `tf_keras`, weights included.

    Nested models are flattened into one graph, shared layers stay shared, and `keras.ops` in the
    graph become layers. What training looks at comes along: trainable flags, dropout, and
    regularizers and constraints where Keras 2 has the same.

    Args:
        model: A built Functional or Sequential model of Keras' own layers, such as `fold` returns.
        decompose: Make every layer one that quantizers can stand behind: activations other than
            ReLU, separable convolutions, rescaling and lone batch normalization are split into or
            replaced by convolutions and activations that compute the same. Such a model does not
            carry weights back. Defaults to `False`.

    Returns:
        The model, and which layer became which.

    Raises:
        ValueError: If a layer or operation has no counterpart; all of them are named.
        ImportError: If tf-keras is not installed.

    Example:

    >>> import keras
    >>> inputs = keras.Input((8, 8, 3))
    >>> x = keras.layers.Conv2D(4, 3, activation="relu")(inputs)
    >>> model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x) * 0.5)
    >>> to_keras2(model).model.output_shape
    (None, 4)
    """
    source = Source.of(model)
    with quiet():
        return _Rebuilder(source, decompose).rebuild(model)


class _Rebuilder:
    def __init__(self, source: Source, decompose: bool) -> None:
        self.keras2 = load_keras2()
        self.source = source
        self.decompose = decompose
        self.names: Counter[str] = Counter()
        self.layers: dict[int, Any] = {}
        self.users: dict[int, list[Any]] = {}
        for tensor, node in _uses(source.model):
            self.users.setdefault(id(tensor), []).append(node)
        self.calls = Counter(id(node.operation) for node in _nodes(source.model))
        self.parts: dict[tuple[int, str], Any] = {}
        self.pairs: list[tuple[Any, str]] = []

    def rebuild(self, original: keras.Model) -> Keras2Model:
        inputs = [
            self.keras2.Input(shape[1:], dtype=dtype, name=self.name(name))
            for name, (shape, dtype) in self.source.inputs.items()
        ]
        self.check(self.source.model)
        tensors = inputs
        if self.decompose:
            tensors = [
                self.entry(name, tensor)
                for name, tensor in zip(self.source.inputs, inputs, strict=True)
            ]
        outputs = self.graph(self.source.model, tensors)
        # An output that is an input, or given twice, needs a node of its own.
        outputs = [
            self.layer("Activation", f"{name}_output", activation="linear")(tensor)
            if any(tensor is other for other in [*inputs, *outputs[:n]])
            else tensor
            for n, (name, tensor) in enumerate(zip(self.source.outputs, outputs, strict=True))
        ]
        model = self.keras2.Model(
            inputs[0] if len(inputs) == 1 else inputs,
            outputs[0] if len(outputs) == 1 else outputs,
            name=self.name(original.name),
        )
        return Keras2Model(original, self.source, model, tuple(self.pairs))

    def entry(self, name: str, tensor: Any) -> Any:
        """A float identity layer after an input, to which a quantizer can be attached."""
        if tensor.dtype.is_floating:
            return self.layer("Activation", f"{name}_entry", activation="linear")(tensor)
        return self.layer("Rescaling", f"{name}_entry", scale=1.0)(tensor)

    def check(self, model: Any) -> None:
        """Refuse all that is unknown at once, before anything is built."""
        unknown = sorted(set(_unknown(model)))
        if unknown:
            raise ValueError(
                "`model` must hold layers and operations that Keras 2 has too. Received: "
                f"{', '.join(unknown)}. Replace them by plain layers."
            )

    def graph(self, model: Any, inputs: list[Any], prefix: str = "") -> list[Any]:
        graph = graph_of(model)
        tensors = {id(old): new for old, new in zip(graph.inputs, inputs, strict=True)}
        for node in nodes(graph):
            if node.is_input:
                continue
            arguments, options = node.arguments.fill_in(tensors)
            outputs = self.apply(node, arguments, options, prefix)
            for old, new in zip(node.outputs, outputs, strict=True):
                tensors[id(old)] = new
        return [tensors[id(tensor)] for tensor in graph.outputs]

    def apply(self, node: Any, arguments: Any, options: Any, prefix: str) -> list[Any]:
        import keras

        operation = node.operation
        if isinstance(operation, keras.Model):
            flat = [tensor for tensor in keras.tree.flatten(arguments) if tensor is not None]
            return self.graph(operation, flat, f"{prefix}{operation.name}_")
        kind = type(operation).__name__
        if not isinstance(operation, keras.layers.Layer):
            return [_OPERATIONS[kind](self, operation, arguments, options)]
        tensors = arguments[0] if arguments else options["inputs"]
        name = f"{prefix}{operation.name}"
        if kind in _SPECIAL:
            return [_SPECIAL[kind](self, operation, tensors, name)]
        if self.decompose and kind == "BatchNormalization":
            source = self.before(node)
            if source is not None and type(source.operation).__name__ in _ABSORBING:
                return [tensors]
            if source is None:
                done = _apart_normalization(self, operation, tensors, name)
                if done is not None:
                    return [done]
        elif self.decompose and kind in _DECOMPOSED:
            return [_DECOMPOSED[kind](self, operation, tensors, name)]
        elif self.decompose and kind in _ABSORBING:
            after = self.normalization_after(node)
            if after is not None:
                return [_absorbed(self, operation, after, tensors, name)]
        return [self.same(operation, tensors, name, options.get("training"))]

    def normalization_after(self, node: Any) -> Any:
        """The batch normalization that merges with the weights of a node's layer, or None."""
        layer = node.operation
        users = self.users.get(id(node.outputs[0]), [])
        if len(users) != 1 or users[0] is None or _activation_name(layer.activation) != "linear":
            return None
        after = users[0].operation
        if type(after).__name__ != "BatchNormalization":
            return None
        axes = [after.axis] if isinstance(after.axis, int) else list(after.axis)
        ndim = len(node.outputs[0].shape)
        once = self.calls[id(layer)] == 1 and self.calls[id(after)] == 1
        last = [axis % ndim for axis in axes] == [ndim - 1]
        return after if last and (once or type(layer).__name__ in _FOLDABLE) else None

    def before(self, node: Any) -> Any:
        """The node whose weights a node's batch normalization merges with, or None."""
        history = history_of(node.input_tensors[0])
        if type(history.operation).__name__ not in _FOLDABLE | _ABSORBING:
            return None
        source = call_behind(node.input_tensors[0])
        return source if self.normalization_after(source) is node.operation else None

    def same(self, layer: Any, tensors: Any, wanted: str, training: bool | None = None) -> Any:
        kind = type(layer).__name__
        config = layer.get_config()
        activation, after = None, None
        if "activation" in config:
            activation, after = self.activation(layer)
        calling = {} if training is None else {"training": training}
        if id(layer) not in self.layers:
            new_type = getattr(self.keras2.layers, kind)
            arguments = self.arguments(layer, config, new_type)
            if activation is not None:
                arguments["activation"] = activation
            name = self.name(wanted)
            new = self.layers[id(layer)] = new_type(name=name, **arguments)
            tensors = new(tensors, **calling)
            if layer.weights:
                new.set_weights([np.asarray(weight) for weight in layer.weights])
                self.pairs.append((layer, name))
        else:
            tensors = self.layers[id(layer)](tensors, **calling)
        return tensors if after is None else after(self, tensors, f"{wanted}_activation")

    def activation(self, layer: Any) -> tuple[str, Callable[..., Any] | None]:
        name = _activation_name(layer.activation)
        if name in _COMPOSED:
            return "linear", _COMPOSED[name]
        known = _ACTIVATIONS[name]
        alone = type(layer).__name__ == "Activation"
        if self.decompose and not alone and known not in _FUSED_ACTIVATIONS:
            return "linear", _activate(known)
        return known, None

    def arguments(self, layer: Any, config: dict[str, Any], new_type: type) -> dict[str, Any]:
        kind = type(layer).__name__
        # Some hand what their base class knows through `**kwargs`.
        known = set(inspect.signature(new_type).parameters) | {"keepdims", "trainable"}
        arguments: dict[str, Any] = {}
        for key, value in config.items():
            key = _RENAMED.get(kind, {}).get(key, key)
            if key in ("name", "activation") or key.endswith("_initializer"):
                continue
            if key.endswith(("_regularizer", "_constraint")):
                if value is not None:
                    arguments[key] = self.counterpart(layer, key, value)
            elif key in known:
                arguments[key] = value
            elif value and key not in _WITHOUT_EFFECT and value != "channels_last":
                raise ValueError(
                    f"`model` must hold layers that Keras 2 has too. Received: {layer.name} "
                    f"({kind}) with {key}={value!r}, which Keras 2 does not know."
                )
        return arguments

    def counterpart(self, layer: Any, key: str, value: Any) -> Any:
        home = self.keras2.regularizers if key.endswith("regularizer") else self.keras2.constraints
        found = (
            getattr(home, str(value.get("class_name")), None) if isinstance(value, dict) else None
        )
        if found is None:
            raise ValueError(
                "`model` must hold regularizers and constraints that Keras 2 has too. Received: "
                f"{key} of layer {layer.name!r}. Set it to None before."
            )
        return found(**value["config"])

    def layer(self, kind: str, name: str, **arguments: Any) -> Any:
        return getattr(self.keras2.layers, kind)(name=self.name(name), **arguments)

    def name(self, wanted: str) -> str:
        clean = re.sub(r"[^A-Za-z0-9_.]", "_", wanted)
        clean = clean if clean[:1].isalnum() else f"layer{clean}"
        self.names[clean] += 1
        return clean if self.names[clean] == 1 else self.name(f"{clean}_{self.names[clean] - 1}")

    def affine(self, x: Any, name: str, scale: Any, offset: Any, trained: Any = None) -> Any:
        """x * scale + offset as a layer: a 1x1 depthwise convolution where quantizers follow.

        `trained` is the layer it stands for, if that one learns; else it stays as it is.
        """
        channels = x.shape[-1]
        scale, offset = np.asarray(scale, "float32"), np.asarray(offset, "float32")
        per_channel = all(v.ndim == 0 or v.shape == (channels,) for v in (scale.squeeze(), offset))
        if not (self.decompose and len(x.shape) == 4 and per_channel and channels):
            arguments = {"scale": scale.tolist(), "offset": offset.tolist()}
            return self.layer("Rescaling", name, **arguments)(x)
        options = {"kernel_size": 1, "trainable": trained is not None and trained.trainable}
        if trained is not None and (id(trained), "affine") in self.parts:
            return self.parts[id(trained), "affine"](x)
        layer = self.layer("DepthwiseConv2D", name, **options)
        if trained is not None:
            self.parts[id(trained), "affine"] = layer
        outputs = layer(x)
        kernel = np.broadcast_to(scale.squeeze(), (channels,)).reshape(1, 1, channels, 1)
        layer.set_weights([kernel, np.broadcast_to(offset, (channels,))])
        return outputs


def _activation_name(activation: Any) -> str:
    name = getattr(activation, "__name__", "")
    return "" if name in ("<lambda>", "") else str(name)


def _nodes(model: Any) -> Iterator[Any]:
    """Each node of the graph, those inside a nested model as often as it is called."""
    import keras

    for node in nodes(graph_of(model)):
        yield node
        if isinstance(node.operation, keras.Model):
            yield from _nodes(node.operation)


def _uses(model: Any) -> Iterator[tuple[Any, Any]]:
    """Each symbolic tensor with each node that takes it, None standing for a model's output."""
    import keras

    for node in _nodes(model):
        yield from ((tensor, node) for tensor in node.input_tensors)
        if isinstance(node.operation, keras.Model):
            yield from ((tensor, None) for tensor in _outputs(node.operation))
    yield from ((tensor, None) for tensor in _outputs(model))


def _outputs(model: Any) -> list[Any]:
    return list(graph_of(model).outputs)


def _operations(model: Any) -> Iterator[Any]:
    import keras

    graph = graph_of(model)
    for operation in graph.operations:
        if isinstance(operation, keras.Model):
            yield from _operations(operation)
        else:
            yield operation


def _unknown(model: Any) -> Iterator[str]:
    import keras

    for operation in _operations(model):
        kind = type(operation).__name__
        if not isinstance(operation, keras.layers.Layer):
            if kind not in _OPERATIONS:
                yield f"{operation.name} (keras.ops, {kind})"
        elif not type(operation).__module__.startswith("keras.") or (
            kind != "InputLayer" and kind not in _SAME and kind not in _SPECIAL
        ):
            yield f"{operation.name} ({kind})"
        elif "activation" in operation.get_config():
            name = _activation_name(operation.activation)
            if name not in _ACTIVATIONS and name not in _COMPOSED:
                yield f"{operation.name} ({kind} with activation {name or operation.activation!r})"


# Activations that Keras 2 lacks or defines otherwise, of layers that it has.


def _activate(known: str) -> Callable[..., Any]:
    def apply(builder: _Rebuilder, x: Any, name: str) -> Any:
        return builder.layer("Activation", name, activation=known)(x)

    return apply


def _relu6(builder: _Rebuilder, x: Any, name: str) -> Any:
    return builder.layer("ReLU", name, max_value=6.0)(x)


def _leaky_relu(builder: _Rebuilder, x: Any, name: str) -> Any:
    return builder.layer("LeakyReLU", name, alpha=0.2)(x)


def _hard_sigmoid(builder: _Rebuilder, x: Any, name: str) -> Any:
    # Not a ReLU with a maximum of 1, which converts to three operators of which none is int8.
    x = _relu6(builder, builder.affine(x, f"{name}_shift", 1.0, 3.0), f"{name}_relu6")
    return builder.affine(x, name, 1 / 6, 0.0)


def _hard_silu(builder: _Rebuilder, x: Any, name: str) -> Any:
    return builder.layer("Multiply", name)([x, _hard_sigmoid(builder, x, f"{name}_gate")])


_COMPOSED: dict[str, Callable[..., Any]] = {
    "hard_sigmoid": _hard_sigmoid,
    "hard_silu": _hard_silu,
    "hard_swish": _hard_silu,
    "leaky_relu": _leaky_relu,
    "relu6": _relu6,
}


# Layers of another name or with other arguments.


def _normalization(builder: _Rebuilder, layer: Any, x: Any, name: str) -> Any:
    config = layer.get_config()
    mean, variance = np.asarray(layer.mean), np.asarray(layer.variance)
    if builder.decompose and not config["invert"]:
        # Keras bounds the standard deviation from below by its epsilon.
        scale = 1 / np.maximum(np.sqrt(variance), 1e-7)
        if mean.size in (1, x.shape[-1]):
            return builder.affine(x, name, scale.ravel(), (-mean * scale).ravel())
    kept = [edge for edge in mean.shape if edge != 1] or [1]
    return builder.layer(
        "Normalization",
        name,
        axis=config["axis"],
        mean=mean.reshape(kept) if mean.size > 1 else mean.ravel(),
        variance=variance.reshape(kept) if variance.size > 1 else variance.ravel(),
        invert=config["invert"],
    )(x)


def _identity(builder: _Rebuilder, layer: Any, x: Any, name: str) -> Any:
    return builder.layer("Activation", name, activation="linear")(x)


def _augmentation(builder: _Rebuilder, layer: Any, x: Any, name: str) -> Any:
    if id(layer) not in builder.layers:
        # A copy: the draws are not to change those that the user's own model will make.
        copy = type(layer).from_config(layer.get_config())
        builder.layers[id(layer)] = _augmentation_class(builder.keras2)(copy, builder.name(name))
    return builder.layers[id(layer)](x)


def _augmentation_class(keras2: Any) -> Any:
    class Augmentation(keras2.layers.Layer):
        """A Keras 3 layer that augments, applied in training alone."""

        def __init__(self, layer: Any, name: str) -> None:
            super().__init__(name=name)
            # Behind a function, where Keras 2 does not look for variables: of what Keras 3 makes
            # it knows nothing.
            self.augment = lambda x: layer(x, training=True)

        def call(self, x: Any, training: Any = None) -> Any:
            return self.augment(x) if training else x

    return Augmentation


_SPECIAL: dict[str, Callable[..., Any]] = {
    "Identity": _identity,
    "Normalization": _normalization,
    **dict.fromkeys(_AUGMENTATIONS, _augmentation),
}


# Layers whose inside quantizers can't reach, as several whose outside they can.


def _apart_rescaling(builder: _Rebuilder, layer: Any, x: Any, name: str) -> Any:
    return builder.affine(x, name, layer.scale, layer.offset)


def _apart_normalization(builder: _Rebuilder, layer: Any, x: Any, name: str) -> Any:
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    if len(x.shape) != 4 or [axis % 4 for axis in axes] != [3]:
        return None
    return builder.affine(x, name, *_line(layer), trained=layer)


def _line(layer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Scale and offset (channels,) of a batch normalization that has been trained."""
    mean, variance = np.asarray(layer.moving_mean), np.asarray(layer.moving_variance)
    scale = 1 / np.sqrt(variance + layer.epsilon)
    scale = scale * np.asarray(layer.gamma) if layer.scale else scale
    offset = -mean * scale
    return scale, offset + np.asarray(layer.beta) if layer.center else offset


def _absorbed(builder: _Rebuilder, layer: Any, after: Any, x: Any, name: str) -> Any:
    scale, offset = _line(after)
    kernel, *bias = [np.asarray(weight) for weight in layer.weights]
    new_type = getattr(builder.keras2.layers, type(layer).__name__)
    arguments = builder.arguments(layer, layer.get_config(), new_type)
    new = new_type(name=builder.name(name), **{**arguments, "use_bias": True})
    outputs = new(x)
    # Depthwise kernels (edge, channels, multiplier) end in two axes, others (..., filters) in one.
    shape = kernel.shape[-2:] if "Depthwise" in type(layer).__name__ else kernel.shape[-1:]
    merged = (bias[0] if bias else 0.0) * scale + offset
    new.set_weights([kernel * scale.reshape(shape), merged])
    return outputs


def _apart_separable(builder: _Rebuilder, layer: Any, x: Any, name: str) -> Any:
    activation, after = builder.activation(layer)
    if (id(layer), "depthwise") not in builder.parts:
        shared = {"data_format": layer.data_format, "trainable": layer.trainable}
        depthwise = builder.parts[id(layer), "depthwise"] = builder.layer(
            "DepthwiseConv2D",
            f"{name}_depthwise",
            kernel_size=layer.kernel_size,
            strides=layer.strides,
            padding=layer.padding,
            depth_multiplier=layer.depth_multiplier,
            dilation_rate=layer.dilation_rate,
            use_bias=False,
            **shared,
        )
        pointwise = builder.parts[id(layer), "pointwise"] = builder.layer(
            "Conv2D",
            name,
            filters=layer.filters,
            kernel_size=1,
            use_bias=layer.use_bias,
            activation=activation,
            **shared,
        )
        outputs = pointwise(depthwise(x))
        first, *second = [np.asarray(weight) for weight in layer.weights]
        depthwise.set_weights([first])
        pointwise.set_weights(second)
    else:
        outputs = builder.parts[id(layer), "depthwise"](x)
        outputs = builder.parts[id(layer), "pointwise"](outputs)
    return outputs if after is None else after(builder, outputs, f"{name}_activation")


def _pairwise(kind: str) -> Callable[..., Any]:
    def apply(builder: _Rebuilder, layer: Any, tensors: Any, name: str) -> Any:
        result = tensors[0]
        for number, tensor in enumerate(tensors[1:], start=1):
            label = name if number == len(tensors) - 1 else f"{name}_{number}"
            result = builder.layer(kind, label)([result, tensor])
        return result

    return apply


def _apart_average(builder: _Rebuilder, layer: Any, tensors: Any, name: str) -> Any:
    total = _pairwise("Add")(builder, layer, tensors, f"{name}_sum")
    return builder.affine(total, name, 1 / len(tensors), 0.0)


_DECOMPOSED: dict[str, Callable[..., Any]] = {
    "Add": _pairwise("Add"),
    "Average": _apart_average,
    "Maximum": _pairwise("Maximum"),
    "Minimum": _pairwise("Minimum"),
    "Multiply": _pairwise("Multiply"),
    "Rescaling": _apart_rescaling,
    "SeparableConv2D": _apart_separable,
}


# Operations of keras.ops in the graph.


def _of_tensor(kind: str, **attributes: str) -> Callable[..., Any]:
    """A layer whose arguments are attributes of the operation, given as argument=attribute."""

    def apply(builder: _Rebuilder, operation: Any, given: Any, options: Any) -> Any:
        arguments = {name: getattr(operation, source) for name, source in attributes.items()}
        return builder.layer(kind, operation.name, **arguments)(*_flat(given, options))

    return apply


def _of_activation(function: Callable[..., Any]) -> Callable[..., Any]:
    def apply(builder: _Rebuilder, operation: Any, given: Any, options: Any) -> Any:
        if getattr(operation, "approximate", False):
            raise _refused(operation, "approximate=True; Keras 2 layers compute it exactly")
        return function(builder, _flat(given, options)[0], operation.name)

    return apply


def _flat(given: Any, options: Any) -> list[Any]:
    return [*given, *options.values()][:1]


def _binary(
    kind: str, line: Callable[[Any, bool], tuple[Any, Any]] | None = None
) -> Callable[..., Any]:
    """Two tensors become a merging layer; a tensor and a constant become `line(constant, left)`,
    a scale and an offset, `left` telling that the constant stands on the left."""

    def apply(builder: _Rebuilder, operation: Any, given: Any, options: Any) -> Any:
        first, second = [*given, *options.values()][:2]
        symbolic = [history_of(operand) is not None for operand in (first, second)]
        if all(symbolic) and kind:
            return builder.layer(kind, operation.name)([first, second])
        if line is None or all(symbolic):
            raise _refused(operation, "these operands")
        left = symbolic[1]
        constant = np.asarray(first if left else second, dtype="float32")
        try:
            scale, offset = line(constant, left)
        except ZeroDivisionError as error:
            raise _refused(operation, "a constant on the left") from error
        return builder.affine(second if left else first, operation.name, scale, offset)

    return apply


def _over(constant: Any, left: bool) -> tuple[Any, Any]:
    if left:
        raise ZeroDivisionError
    return 1 / constant, 0.0


def _join(builder: _Rebuilder, operation: Any, given: Any, options: Any) -> Any:
    tensors = list(_flat(given, options)[0])
    return builder.layer("Concatenate", operation.name, axis=operation.axis)(tensors)


def _pooled(kind: str) -> Callable[..., Any]:
    def apply(builder: _Rebuilder, operation: Any, given: Any, options: Any) -> Any:
        x = _flat(given, options)[0]
        ndim = len(x.shape) - 2
        axes = operation.axis
        axes = list(range(ndim + 2)) if axes is None else [axes] if isinstance(axes, int) else axes
        if not 1 <= ndim <= 3 or sorted(axis % (ndim + 2) for axis in axes) != [
            *range(1, ndim + 1)
        ]:
            raise _refused(operation, f"axis={operation.axis}")
        return builder.layer(
            f"{kind}{ndim}D",
            operation.name,
            keepdims=bool(operation.keepdims),
            data_format="channels_last",
        )(x)

    return apply


def _reshape(builder: _Rebuilder, operation: Any, given: Any, options: Any) -> Any:
    x, shape = _flat(given, options)[0], list(operation.newshape)
    # Batch axis: None or -1; else the operation would not fit a batch of any size.
    if shape[0] not in (None, -1):
        raise _refused(operation, f"newshape={tuple(shape)}")
    shape = [-1 if edge is None else int(edge) for edge in shape[1:]]
    return builder.layer("Reshape", operation.name, target_shape=tuple(shape))(x)


def _transpose(builder: _Rebuilder, operation: Any, given: Any, options: Any) -> Any:
    axes = operation.axes
    if axes is None or axes[0] != 0:
        raise _refused(operation, f"axes={axes}")
    return builder.layer("Permute", operation.name, dims=tuple(axes[1:]))(*_flat(given, options))


def _refused(operation: Any, what: str) -> ValueError:
    return ValueError(
        "`model` must hold operations that Keras 2 layers can express. Received: "
        f"{operation.name} (keras.ops, {type(operation).__name__}) with {what}."
    )


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "Add": _binary("Add", lambda c, left: (1.0, c)),
    "Concatenate": _join,
    "Divide": _binary("", _over),
    "Elu": _of_tensor("ELU", alpha="alpha"),
    "Gelu": _of_activation(_activate("gelu")),
    "HardSigmoid": _of_activation(_hard_sigmoid),
    "HardSilu": _of_activation(_hard_silu),
    "Identity": _of_activation(_activate("linear")),
    "LeakyRelu": _of_tensor("LeakyReLU", alpha="negative_slope"),
    "Max": _pooled("GlobalMaxPooling"),
    "Maximum": _binary("Maximum"),
    "Mean": _pooled("GlobalAveragePooling"),
    "Minimum": _binary("Minimum"),
    "Multiply": _binary("Multiply", lambda c, left: (c, 0.0)),
    "Negative": _of_activation(lambda builder, x, name: builder.affine(x, name, -1.0, 0.0)),
    "Relu": _of_tensor("ReLU"),
    "Relu6": _of_activation(_relu6),
    "Reshape": _reshape,
    "Sigmoid": _of_activation(_activate("sigmoid")),
    "Silu": _of_activation(_activate("swish")),
    "Softmax": _of_tensor("Softmax", axis="axis"),
    "Softplus": _of_activation(_activate("softplus")),
    "Subtract": _binary("Subtract", lambda c, left: (-1.0, c) if left else (1.0, -c)),
    "Tanh": _of_activation(_activate("tanh")),
    "Transpose": _transpose,
    "TrueDivide": _binary("", _over),
}
