"""How far a student's outputs are from its teacher's: a distance for each kind of output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from dprp_tf.costs.compiled_loss import (
    compiled_loss,
    is_binary,
    is_categorical,
    is_of_values,
    loss_weights_by_output,
    losses_by_output,
    names_of_outputs,
    takes_probabilities,
)
from dprp_tf.keras_internals.graphs import graph_of, output_structure
from dprp_tf.keras_internals.output_activations import output_activation
from dprp_tf.training.replicas import mean_over_replicas, replica_count

__all__ = [
    "DistilledOutput",
    "class_distance",
    "distilled_outputs",
    "label_distance",
    "output_spread",
    "squared_error",
]

# Of probabilities, below which Keras' own cross-entropies do not look either.
_LEAST = 1e-7
# Of the mean square, below which a variance is taken for none.
_LEAST_SPREAD = 1e-4


@dataclass(frozen=True)
class DistilledOutput:
    """One output of a student, and what it is.

    Attributes:
        name: What `compile` calls it.
        kind: `"classes"` that exclude each other, `"labels"` that do not, or `"values"`.
        weight: What its distance counts: the compiled loss's weight.
        student_probabilities: Whether the student gives probabilities, or logits.
        teacher_probabilities: Whether the teacher does.
    """

    name: str
    kind: str
    weight: float = 1.0
    student_probabilities: bool = False
    teacher_probabilities: bool = False

    def distance(self, teacher: Any, student: Any, temperature: float) -> Any:
        """Return the distance of classes or labels, a float32 scalar.

        Args:
            teacher: The teacher's output (n, ..., c).
            student: The student's.
            temperature: T, above 0.
        """
        function = class_distance if self.kind == "classes" else label_distance
        to_scores = _class_scores if self.kind == "classes" else _label_scores
        scores = to_scores(teacher) if self.teacher_probabilities else ops.cast(teacher, "float32")
        own = to_scores(student) if self.student_probabilities else ops.cast(student, "float32")
        return function(scores, own, temperature)


def class_distance(teacher: Any, student: Any, temperature: float = 1.0) -> Any:
    """Return T^2 KL(softmax(z_t / T) || softmax(z_s / T)), the mean over all but the last axis.

    With p = softmax(z_t / T) and q = softmax(z_s / T), both (n, ..., c):
    T^2 mean_{n, ...} sum_c p_c (log p_c - log q_c). T^2 keeps the gradient's size at any T.

    Args:
        teacher: Logits z_t (n, ..., c), or logarithms of probabilities.
        student: Logits z_s of the same shape.
        temperature: T, above 0. Default 1.

    Returns:
        A float32 scalar, 0 or more.

    Source: Hinton et al., Distilling the Knowledge in a Neural Network (arXiv 1503.02531).

    Example:

    >>> logits = ops.convert_to_tensor([[2.0, 0.0]])
    >>> float(class_distance(logits, logits, 4.0))
    0.0
    """
    p = ops.log_softmax(ops.cast(teacher, "float32") / temperature, axis=-1)
    q = ops.log_softmax(ops.cast(student, "float32") / temperature, axis=-1)
    return temperature**2 * ops.mean(ops.sum(ops.exp(p) * (p - q), axis=-1))


def label_distance(teacher: Any, student: Any, temperature: float = 1.0) -> Any:
    """Return `class_distance` of each channel's yes against its no, the mean over all axes.

    With p = sigmoid(z_t / T) and q = sigmoid(z_s / T), both (n, ..., c):
    T^2 mean_{n, ..., c} [p (log p - log q) + (1 - p) (log(1 - p) - log(1 - q))], the binary
    cross-entropy with the teacher's probabilities less its least value.

    Args:
        teacher: Logits z_t (n, ..., c).
        student: Logits z_s of the same shape.
        temperature: T, above 0. Default 1.

    Returns:
        A float32 scalar, 0 or more.

    Example:

    >>> float(label_distance(ops.zeros((1, 3)), ops.zeros((1, 3))))
    0.0
    """
    t = ops.cast(teacher, "float32") / temperature
    s = ops.cast(student, "float32") / temperature
    yes = ops.sigmoid(t) * (ops.log_sigmoid(t) - ops.log_sigmoid(s))
    no = ops.sigmoid(-t) * (ops.log_sigmoid(-t) - ops.log_sigmoid(-s))
    return temperature**2 * ops.mean(yes + no)


def output_spread(teacher: Any) -> Any:
    """Return the variance of a teacher's values about each channel's mean, over the whole batch.

    V = mean_{n, ..., c} (t - m_c)^2 for t (n, ..., c), with m_c the mean of channel c, over all
    replicas' shares; of a single vector the mean square. At least 1e-4 of the mean square.

    Args:
        teacher: Values t (n, ..., c), or (n,).

    Returns:
        A float32 scalar.

    Example:

    >>> float(output_spread(ops.convert_to_tensor([[1.0, 5.0], [3.0, 5.0]])))
    0.5
    """
    t = ops.cast(teacher, "float32")
    t = ops.reshape(t, (-1, t.shape[-1] if len(t.shape) > 1 else 1))
    rows = ops.shape(t)[0] * replica_count()
    own = [ops.mean(t, axis=0), ops.mean(ops.square(t))]
    mean, square = mean_over_replicas(own)
    (variance,) = mean_over_replicas([ops.mean(ops.square(t - mean))])
    variance = ops.where(ops.greater(rows, 1), variance, square)
    return ops.maximum(variance, _LEAST_SPREAD * square)


def squared_error(teacher: Any, student: Any) -> Any:
    """Return the mean squared difference of two tensors of one shape, a float32 scalar.

    Args:
        teacher: Values (n, ..., c).
        student: Values of the same shape.

    Example:

    >>> float(squared_error(ops.zeros((2, 2)), ops.ones((2, 2))))
    1.0
    """
    return ops.mean(ops.square(ops.cast(student, "float32") - ops.cast(teacher, "float32")))


def distilled_outputs(student: keras.Model, teacher: keras.Model) -> list[DistilledOutput]:
    """Return what each output of a compiled student is, in the order in which a call gives them.

    A softmax gives classes, and so does what a categorical loss was compiled for; a binary loss
    takes labels, and a sigmoid gives them unless the loss is one of values. The rest are values.
    An output without a loss does not count where another has one.

    Args:
        student: The model that trains, compiled.
        teacher: Its teacher.

    Returns:
        The outputs, those of weight 0 too.

    Raises:
        ValueError: If neither model says how many outputs it has.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    >>> [(output.kind, output.student_probabilities) for output in distilled_outputs(model, model)]
    [('classes', False)]
    """
    tensors, taught = _tensors(student), _tensors(teacher)
    count = len(tensors) or len(taught)
    if not count:
        raise ValueError(
            "`teacher` must be a Functional or Sequential model where the student is none. "
            f"Received: {type(teacher).__name__} {teacher.name!r}; make it with "
            "keras.Model(inputs, outputs)."
        )
    names = _names_in_order(student if tensors else teacher, count)
    losses = losses_by_output(compiled_loss(student), names)
    weights = loss_weights_by_output(student)
    found = []
    for index, name in enumerate(names):
        loss = losses.get(name)
        own = output_activation(tensors[index]) if tensors else None
        theirs = output_activation(taught[index]) if len(taught) == count else None
        kind = _kind(own or theirs, loss)
        gives = {"classes": "softmax", "labels": "sigmoid"}.get(kind)
        by_loss = kind != "values" and takes_probabilities(loss)
        student_gives = own == gives if own else by_loss
        # A teacher that does not say how it ends does so as the student does.
        unknown = theirs is None and own != gives
        teacher_gives = student_gives if not taught or unknown else theirs == gives
        if gives is None:
            student_gives = teacher_gives = False
        counts = loss is not None or not any(each is not None for each in losses.values())
        weight = weights.get(name, 1.0) if counts else 0.0
        found.append(DistilledOutput(name, kind, weight, student_gives, teacher_gives))
    return found


def _kind(activation: str | None, loss: Any) -> str:
    if activation == "softmax" or is_categorical(loss):
        return "classes"
    if is_binary(loss) or (activation == "sigmoid" and not is_of_values(loss)):
        return "labels"
    return "values"


def _tensors(model: keras.Model) -> list[Any]:
    return list(getattr(graph_of(model), "outputs", None) or [])


def _names_in_order(model: keras.Model, count: int) -> list[str]:
    """What `compile` calls the outputs, in the order in which a call's outputs are flattened."""
    names = names_of_outputs(model)
    if isinstance(output_structure(graph_of(model)), dict):
        names = keras.tree.flatten({name: name for name in names})
    # Two outputs of one layer have one name; a nested structure has fewer names than outputs.
    unique = len(names) == count and len(set(names)) == count
    return names if unique else [f"output_{index}" for index in range(count)]


def _class_scores(probabilities: Any) -> Any:
    return ops.log(ops.maximum(ops.cast(probabilities, "float32"), _LEAST))


def _label_scores(probabilities: Any) -> Any:
    p = ops.clip(ops.cast(probabilities, "float32"), _LEAST, 1.0 - _LEAST)
    return ops.log(p) - ops.log1p(-p)
