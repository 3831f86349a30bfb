"""Which outputs of a model are class scores: what is known of them, not what their shape is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras

__all__ = ["class_score_outputs", "full_range", "output_names"]

# What an activation's values span.
_SPANS = {"sigmoid": 1.0, "hard_sigmoid": 1.0, "softmax": 1.0, "tanh": 2.0, "hard_tanh": 2.0}


def class_score_outputs(
    model: keras.Model, class_scores: bool | str | Sequence[str] | None = None
) -> tuple[str, ...]:
    """Return the names of a model's outputs whose channels are scores of classes.

    That is what the user says; else what a softmax gives, and what the model was compiled with a
    categorical loss for. A shape says nothing: four columns may be a box.

    Args:
        model: A built Functional or Sequential model.
        class_scores: Names of outputs; true for all of them, false for none. Default: to be found
            out.

    Returns:
        Output names as the model has them.

    Raises:
        ValueError: If a name is not one of the model's outputs.

    Example:

    >>> import keras
    >>> inputs = keras.Input((4,))
    >>> box = keras.layers.Dense(4, name="box")(inputs)
    >>> kind = keras.layers.Dense(3, activation="softmax", name="kind")(inputs)
    >>> class_score_outputs(keras.Model(inputs, [box, kind]))
    ('kind',)
    """
    from dprp_tf.keras_internals.output_activations import output_activation

    names = output_names(model)
    if class_scores is None:
        by_loss = _compiled_for_classes(model, names)
        found = zip(names, model.outputs, strict=True)
        by_softmax = {n: output_activation(tensor) == "softmax" for n, tensor in found}
        return tuple(n for n, is_softmax in by_softmax.items() if is_softmax or n in by_loss)
    if isinstance(class_scores, bool):
        return tuple(names) if class_scores else ()
    given = [class_scores] if isinstance(class_scores, str) else list(class_scores)
    unknown = [name for name in given if name not in names]
    if unknown:
        raise ValueError(
            f"`class_scores` must name outputs of the model, of {names}, or be true for all. "
            f"Received: {unknown}"
        )
    return tuple(given)


def full_range(model: keras.Model) -> dict[str, float]:
    """Return what the activation of an output spans, for outputs that have bounds.

    Args:
        model: A built Functional or Sequential model.

    Returns:
        Output name to the difference of the bounds: 1 of a sigmoid, 2 of a tanh.

    Example:

    >>> import keras
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, "tanh", name="pan")])
    >>> full_range(model)
    {'pan': 2.0}
    """
    from dprp_tf.keras_internals.output_activations import output_activation

    spans = {
        name: _SPANS.get(output_activation(tensor) or "")
        for name, tensor in zip(output_names(model), model.outputs, strict=True)
    }
    return {name: span for name, span in spans.items() if span is not None}


def output_names(model: keras.Model) -> list[str]:
    """Return the names of a model's outputs, in the order of `model.outputs`.

    Args:
        model: A built Functional or Sequential model.

    Returns:
        The names; that of the last layer for Sequential, which does not name its output.

    Example:

    >>> import keras
    >>> output_names(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="y")]))
    ['y']
    """
    return list(getattr(model, "output_names", None) or [model.layers[-1].name])


def _compiled_for_classes(model: keras.Model, names: Sequence[str]) -> set[str]:
    from dprp_tf.costs.compiled_loss import compiled_loss, is_categorical, losses_by_output

    losses = losses_by_output(compiled_loss(model), names)
    return {name for name, loss in losses.items() if is_categorical(loss)}
