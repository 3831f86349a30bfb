"""Rewrite a Keras graph: replace layers by others, one by one or by several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

__all__ = ["require_graph", "rewrite"]


def require_graph(model: Any, argument: str = "model") -> None:
    """Refuse what has no graph to rewrite.

    Args:
        model: What a caller passed.
        argument: The argument's name, for the message.

    Raises:
        ValueError: If `model` is not a built Functional or Sequential model.
    """
    graph = getattr(model, "_functional", None) or model
    if not isinstance(model, keras.Model) or not hasattr(graph, "_nodes_by_depth"):
        raise ValueError(
            f"`{argument}` must be a built Functional or Sequential Keras model: a subclassed "
            "model's call() can't be rewritten. "
            f"Received: {argument}={type(model).__name__}. Rebuild it as "
            "keras.Model(inputs, outputs), or call a Sequential model on data once."
        )


def rewrite(
    model: keras.Model,
    replace: Callable[[keras.layers.Layer], Any],
    model_class: type[keras.Model] = keras.Model,
    **arguments: Any,
) -> keras.Model:
    """Return a copy of a model in which some layers are replaced; the original is untouched.

    Layers keep their names, order, weights and trainable flags; shared layers stay shared, and
    nested models are rewritten inside.

    Args:
        model: A built Functional or Sequential model.
        replace: Called once per layer; returns None to copy the layer, or a callable from the
            layer's inputs to its outputs, such as another Keras layer.
        model_class: Class of the model returned. Default `keras.Model`.
        **arguments: Passed to `model_class` beside inputs, outputs and name.

    Returns:
        The rewritten model, not compiled.

    Raises:
        ValueError: If `model` has no graph; see `require_graph`.
    """
    require_graph(model)
    copies: dict[int, Any] = {}
    copied: list[tuple[keras.layers.Layer, keras.layers.Layer]] = []

    def copy(layer: Any) -> Any:
        if id(layer) not in copies:
            if isinstance(layer, keras.Model):
                copies[id(layer)] = rebuild(layer, keras.Model, {})
            else:
                new = replace(layer) if isinstance(layer, keras.layers.Layer) else None
                if new is None:
                    new = layer.__class__.from_config(layer.get_config())
                    copied.append((layer, new))
                copies[id(layer)] = new
        return copies[id(layer)]

    def rebuild(
        source: keras.Model, target: type[keras.Model], extra: dict[str, Any]
    ) -> keras.Model:
        # A Sequential model's graph is the functional one it keeps inside.
        graph = getattr(source, "_functional", None) or source
        clone = keras.models.clone_model(
            graph,
            clone_function=lambda layer: layer,
            call_function=lambda layer, *inputs, **options: copy(layer)(*inputs, **options),
        )
        result = target(inputs=clone.input, outputs=clone.output, name=source.name, **extra)
        if not source.trainable:
            result.trainable = False
        return result

    result = rebuild(model, model_class, arguments)
    for layer, new in copied:
        if getattr(layer, "weights", None):
            new.set_weights(layer.get_weights())
    return result
