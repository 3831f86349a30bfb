"""Which layers of a model an SVD layer can stand for, and why not the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import keras

from dprp_tf.keras_internals.graphs import layer_keys, layers_inside
from dprp_tf.keras_internals.rewriting import require_graph
from dprp_tf.layers.registry import is_registered

__all__ = ["factorizable", "holds_matrix", "skip_reason"]

# By what a layer is, its subclasses included, never by what it is called.
_KNOWN_REASONS: tuple[tuple[tuple[type[keras.layers.Layer], ...], str], ...] = (
    (
        (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D),
        "depthwise: each channel has its own small kernel, there is no rank to share",
    ),
    (
        (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D),
        "separable convolution, factorized already; dprp_tf.write_out(model) makes a depthwise and "
        "a pointwise convolution of it",
    ),
    ((keras.layers.Embedding,), "an embedding table is looked up, not multiplied"),
    (
        (keras.layers.Bidirectional,),
        "its kernels are those of layers inside it; dprp_tf.write_out(model) writes both out",
    ),
    (
        (keras.layers.RNN,),
        "recurrent: its kernels are those of a cell that runs along the sequence",
    ),
    (
        (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention),
        "attention: its projections are layers of its own inside it, out of reach of the graph; "
        "dprp_tf.write_out(model) writes them out",
    ),
    (
        (keras.layers.EinsumDense,),
        "its equation may give the kernel any number of axes; dprp_tf.write_out(model) makes a "
        "Dense layer of it where one computes the same",
    ),
)


def skip_reason(layer: keras.layers.Layer) -> str | None:
    """Say why a layer with a kernel is left as it is; None if it can be factorized.

    Args:
        layer: Any Keras layer.

    Returns:
        A short reason, or None for a layer that can be factorized.

    Example:

    >>> skip_reason(keras.layers.DepthwiseConv2D(3))
    'depthwise: each channel has its own small kernel, there is no rank to share'
    """
    kind = type(layer).__name__
    if not is_registered(type(layer)):
        for kinds, reason in _KNOWN_REASONS:
            if isinstance(layer, kinds):
                return reason
        return _reason_of_composite(layer) or f"no SVD layer stands for {kind}"
    activation = layer.activation
    if isinstance(activation, keras.layers.Layer) and (activation.weights or not activation.built):
        return f"its activation is a {type(activation).__name__} layer with weights of its own"
    if getattr(layer, "groups", 1) != 1:
        return f"grouped convolution (groups={layer.groups})"
    if getattr(layer, "stateful", False):
        return "stateful: it keeps its state from batch to batch"
    if getattr(layer, "lora_enabled", False):
        return "LoRA is enabled on it"
    if getattr(layer, "quantization_mode", None) is not None:
        return f"quantized ({layer.quantization_mode})"
    return None


def factorizable(
    model: keras.Model,
    layers: Iterable[str] | Callable[[keras.layers.Layer], bool] | None = None,
) -> tuple[dict[str, keras.layers.Layer], list[str]]:
    """List the layers of a model that can be factorized, and why the others can't.

    Args:
        model: A built Functional or Sequential model.
        layers: As `factorize` takes them.

    Returns:
        Layers by their keys in model order, and "key: reason" of each other layer that holds a
        matrix.

    Raises:
        ValueError: If the model has no graph or nothing to factorize, or `layers` names a layer
            that is not there or can't be factorized.

    Example:

    >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, name="a")])
    >>> list(factorizable(model)[0])
    ['a']
    """
    require_graph(model)
    wanted = _selection(model, layers)
    found, skipped = {}, []
    for key, layer in layer_keys(model).items():
        if not holds_matrix(layer):
            continue
        reason = "not among `layers`" if not wanted(layer) else skip_reason(layer)
        if reason is None:
            found[key] = layer
        else:
            skipped.append(f"{key}: {reason}")
    if not found:
        listed = "; ".join(skipped) or "no layer has a kernel"
        raise ValueError(
            "`model` must have at least one convolution, dense or recurrent layer to factorize. "
            f"Received: {model.name!r} with nothing to factorize ({listed})"
        )
    return found, skipped


def holds_matrix(layer: keras.layers.Layer) -> bool:
    """Say whether a layer has a kernel or another weight of two axes or more.

    Args:
        layer: A built Keras layer.

    Returns:
        True if it has one, so that it is factorized or skipped with a reason.

    Example:

    >>> layer = keras.layers.Embedding(9, 4)
    >>> layer.build((1,))
    >>> holds_matrix(layer), holds_matrix(keras.layers.ReLU())
    (True, False)
    """
    return any(map(_is_matrix, layer.weights))


def _is_matrix(weight: keras.Variable) -> bool:
    return str(weight.name).endswith("kernel") or len(weight.shape) > 1


def _reason_of_composite(layer: keras.layers.Layer) -> str | None:
    """Say that the kernels of a layer are those of layers inside it; None if it holds none."""
    kind = type(layer).__name__
    if isinstance(layer, keras.layers.Wrapper):
        over_time = type(layer) is keras.layers.TimeDistributed
        hint = "; dprp_tf.write_out(model) takes it out where it can" if over_time else ""
        return f"inside a {kind} wrapper, which keeps its layer to itself{hint}"
    if isinstance(layer, keras.Model):
        return f"inside the subclassed model {kind}, whose call() can't be rewritten"
    parts = [part for part in layers_inside(layer, include_self=False) if part is not layer]
    theirs = {id(weight) for part in parts for weight in part.weights}
    if any(_is_matrix(weight) and id(weight) not in theirs for weight in layer.weights):
        return None
    # Of nested parts the inner ones, which hold the kernels themselves.
    kernels = [part for part in parts if holds_matrix(part) and len(layers_inside(part)) == 1]
    if not kernels:
        return None
    counts = Counter(type(part).__name__ for part in kernels)
    listed = ", ".join(f"{count} {name}" for name, count in counts.items())
    return (
        f"its kernels are those of layers inside {kind} ({listed}), out of reach of the graph; "
        "dprp_tf.write_out(model) opens it where it can"
    )


def _selection(
    model: keras.Model, layers: Iterable[str] | Callable[[keras.layers.Layer], bool] | None
) -> Callable[[keras.layers.Layer], bool]:
    if layers is None:
        return lambda layer: True
    if callable(layers):
        return layers
    names = [layers] if isinstance(layers, str) else list(layers)
    known = layer_keys(model)
    chosen: set[int] = set()
    for name in names:
        # A name that layers of several nested models bear means them all; a path just one.
        found = [at for key, at in known.items() if name in (key, at.name)]
        if not found:
            raise ValueError(
                f"`layers` must name layers of the model. Received: {name!r}; "
                f"the layers with kernels are {[n for n, at in known.items() if holds_matrix(at)]}"
            )
        for layer in found:
            reason = skip_reason(layer) if holds_matrix(layer) else "it has no kernel"
            if reason is not None:
                raise ValueError(
                    f"`layers` must name layers that can be factorized. Received: {name!r}, which "
                    f"can't be: {reason}"
                )
            chosen.add(id(layer))
    return lambda layer: id(layer) in chosen
