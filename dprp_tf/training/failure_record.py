"""What a train step notes, inside its compiled code, the first time its loss is not finite."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from dprp_tf.keras_internals.graphs import layers_inside, walk_layers
from dprp_tf.layers import FactorizedLayer

__all__ = [
    "Block",
    "Evidence",
    "Failure",
    "FailureRecord",
    "Label",
    "all_finite",
    "gather_evidence",
    "gather_terms",
    "own_loss_names",
    "record_size",
]

# What is not a weight or an own loss: the terms of every layer come on top of it.
_SPARE = 64
_TERMS_PER_LAYER = 4
_UNDER_OVERFLOW = 2.0**-30


class Label(NamedTuple):
    """What one number of the evidence is; see `Evidence`."""

    kind: str
    layer: str | None
    name: str


class Evidence(NamedTuple):
    """One number seen in the failing step.

    Attributes:
        kind: `"weight"`, `"statistic"` (a weight no gradient reaches, such as a moving mean),
            `"term"` (of the loss), `"input"`, `"sample_weight"`, `"label"` or `"prediction"`.
        layer: The layer's name, None where there is none.
        name: What it is: a weight's or a term's name.
        value: The mean magnitude; of a term its value, of integer labels the smallest and largest.
    """

    kind: str
    layer: str | None
    name: str
    value: float


# Labels and their numbers, a tensor of shape (len(labels),): few operations for many numbers.
Block = tuple[Sequence[Label], Any]


@dataclass(frozen=True)
class Failure:
    """The first step that was not sound, and what was seen in it.

    Attributes:
        step: Steps of the epoch up to this one, it included.
        evidence: What was seen before the step's update, values as floats.
        input_step: The first step whose inputs were not finite; None if all were.
    """

    step: int
    evidence: tuple[Evidence, ...]
    input_step: int | None = None

    def broken(self, kind: str) -> list[Evidence]:
        """Return the evidence of a kind whose value is not finite."""
        return [e for e in self.evidence if e.kind == kind and not np.isfinite(e.value)]


@keras.saving.register_keras_serializable(package="dprp_tf")
class FailureRecord(keras.metrics.Metric):
    """Count the steps of an epoch and keep the evidence of the first that is not sound.

    A metric, because Keras carries a metric's variables through the train step of every backend,
    keeps one per replica and resets them at each epoch's beginning. What a step adds while all is
    well are comparisons and counters: the evidence is gathered in a branch that is taken once.

    Args:
        size: Most numbers the evidence can have.
        name: As `keras.metrics.Metric`. Default `"failure_record"`.

    Example:

    >>> record = FailureRecord(2)
    >>> record.observe(keras.ops.convert_to_tensor(True), list)
    >>> record.read() is None, record.steps_done
    (True, 1)
    """

    def __init__(self, size: int, name: str = "failure_record") -> None:
        super().__init__(name=name, dtype="float32")
        self.size = int(size)
        # A tuple: what a step notes while it is traced must not become tracked state.
        self._labels: tuple[Label, ...] = ()
        # Steps, sound steps before the first that is not, first step of unsound inputs or 0.
        self._counts = self.add_variable((3,), "zeros", name="counts")
        self._values = self.add_variable((self.size,), "zeros", name="evidence")

    def observe(
        self, healthy: Any, gather: Callable[[], Sequence[Block]], inputs: Any = None
    ) -> None:
        """Count a step; if it is the first that is not sound, keep what `gather` returns.

        Args:
            healthy: Whether the step's loss and what is cheap to look at is finite, a boolean
                scalar.
            gather: Returns the evidence; its operations run on failure only.
            inputs: The batch, any structure of tensors. A step that is sound in spite of its
                inputs, since a ReLU may turn NaN into 0, breaks the weights for the next one.
        """
        steps, sound, input_step = ops.unstack(ops.cast(self._counts, "float32"))
        kept = ops.cast(self._values, "float32")
        intact = ops.equal(steps, sound)

        def gathered() -> Any:
            blocks = [block for block in gather() if len(block[0])]
            self._labels = tuple(label for labels, _ in blocks for label in labels)
            missing = max(self.size - len(self._labels), 0)
            values = [ops.cast(value, "float32") for _, value in blocks]
            values.append(ops.zeros((missing,), "float32"))
            return ops.stop_gradient(ops.concatenate(values)[: self.size])

        first = ops.logical_and(intact, ops.logical_not(healthy))
        self._values.assign(ops.cond(first, gathered, lambda: kept))
        sound = sound + ops.cast(ops.logical_and(intact, healthy), "float32")
        new = ops.logical_and(ops.equal(input_step, 0.0), ops.logical_not(all_finite(inputs)))
        input_step = ops.where(new, steps + 1.0, input_step)
        self._counts.assign(ops.stack([steps + 1.0, sound, input_step]))

    def update_state(self, healthy: Any, gather: Callable[[], Sequence[Block]] = list) -> None:
        """Call `observe`, under the name that Keras calls."""
        self.observe(healthy, gather)

    def result(self) -> Any:
        """Return how many steps of the epoch came from the first failure on, that one included."""
        return self._counts[0] - self._counts[1]

    @property
    def steps_done(self) -> int:
        """Steps since the last reset."""
        return int(_replica_values(self._counts)[0][0])

    def read(self) -> Failure | None:
        """Return the first failure since the last reset; None if every loss was finite.

        With several replicas it is that of the replica that failed first.
        """
        counts = _replica_values(self._counts)
        failed = [i for i, (steps, sound, _) in enumerate(counts) if sound < steps]
        if not failed:
            return None
        replica = min(failed, key=lambda i: float(counts[i][1]))
        values = _replica_values(self._values)[replica]
        evidence = tuple(
            Evidence(*label, value=float(value))
            for label, value in zip(self._labels, values, strict=False)
        )
        _, sound, fed = counts[replica].astype(int)
        return Failure(int(sound) + 1, evidence, int(fed) or None)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor arguments."""
        return {"size": self.size, "name": self.name}

    # An epoch's record is no part of a saved model.
    def save_own_variables(self, store: Any) -> None:
        """Save nothing."""

    def load_own_variables(self, store: Any) -> None:
        """Load nothing."""


def all_finite(values: Any) -> Any:
    """Return whether every floating-point tensor of a structure is finite, as a boolean scalar.

    Args:
        values: Any structure of tensors or variables; what is not floating-point is not looked at.

    Returns:
        A boolean scalar tensor.

    Example:

    >>> bool(all_finite([keras.ops.ones(2), None]))
    True
    """
    found = [v for v in keras.tree.flatten(values) if v is not None and _is_floating(v)]
    result = ops.convert_to_tensor(True)
    for value in found:
        result = ops.logical_and(result, ops.all(ops.isfinite(ops.stop_gradient(value))))
    return result


def record_size(model: keras.Model) -> int:
    """Return how many numbers `gather_evidence` can give for a model.

    Args:
        model: A built Keras model.

    Returns:
        The size its `FailureRecord` needs.

    Example:

    >>> record_size(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])) > 2
    True
    """
    layers = list(walk_layers(model))
    weights = sum(len(layer.weights) for layer in layers)
    return 2 * weights + _TERMS_PER_LAYER * len(layers) + _SPARE


def gather_evidence(
    model: keras.Model,
    *,
    inputs: Any = None,
    labels: Any = None,
    predictions: Any = None,
    sample_weight: Any = None,
) -> list[Block]:
    """Return what a failing step can tell beside its terms: its batch and every weight's size.

    Args:
        model: The model that trains.
        inputs: The batch, any structure of tensors.
        labels: Its labels.
        predictions: What the model computed.
        sample_weight: Its weights.

    Returns:
        Labels and their numbers.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")])
    >>> [label.name for labels, _ in gather_evidence(model) for label in labels]
    ['kernel', 'bias']
    """
    singles: list[tuple[Label, Any]] = []
    for kind, values in (
        ("input", inputs),
        ("label", labels),
        ("sample_weight", sample_weight),
        ("prediction", predictions),
    ):
        for index, value in enumerate(keras.tree.flatten(values)):
            if value is not None and _is_floating(value):
                magnitude = _mean_magnitude(value)
                singles.append((Label(kind, None, str(index)), magnitude))
    singles += _label_range(labels, predictions)
    blocks: list[Block] = []
    if singles:
        blocks.append(([label for label, _ in singles], ops.stack([value for _, value in singles])))
    by_form: dict[Any, list[tuple[Label, keras.Variable]]] = {}
    for layer in walk_layers(model):
        for weight in layer.weights:
            if _is_floating(weight) and 0 not in weight.shape:
                moving = layer.trainable and not weight.trainable
                label = Label("statistic" if moving else "weight", layer.name, weight.name)
                by_form.setdefault((tuple(weight.shape), weight.dtype), []).append((label, weight))
    for (shape, _), group in by_form.items():
        # n weights of one shape: (n, *shape) -> (n,)
        # The cast turns a variable into a tensor on every backend.
        stacked = ops.stack([ops.cast(weight, "float32") for _, weight in group])
        axes = tuple(range(1, len(shape) + 1))
        blocks.append(([label for label, _ in group], _mean_magnitude(stacked, axes)))
    return blocks


def gather_terms(
    model: Any, app: Any, own: list[Any], layers: list[Any], by_layer: dict[str, Any]
) -> list[Block]:
    """Return the terms of a `DPRPModel`'s loss, to see which of them are not finite.

    Args:
        model: The model.
        app: The compiled loss.
        own: The model's added losses, in its order.
        layers: The layers of the structural terms.
        by_layer: Those terms by name, of shape (layers,); the ones that count are taken.

    Returns:
        Labels and values, in blocks.
    """
    # An infinite regularizer must not make the compiled loss look like one: inf - inf.
    regular = ops.isfinite(sum(own[1:], own[0])) if own else True
    labels = [Label("term", None, "app")]
    labels += [Label("term", *name) for name in own_loss_names(model, len(own))]
    scalars = [ops.where(regular, app, ops.zeros_like(app)), *own]
    blocks: list[Block] = [(labels, ops.stack([ops.cast(v, "float32") for v in scalars]))]
    counted = ["comp"] if model.settings.structure == "retraction" else ["orth", "sort", "comp"]
    blocks += [
        ([Label("term", layer.name, name) for layer in layers], by_layer[name]) for name in counted
    ]
    return blocks


def own_loss_names(model: keras.Model, count: int) -> list[tuple[str | None, str]]:
    """Return (layer, regularizer) of each entry of `model.losses`, as far as they can be told."""
    before: list[tuple[str | None, str]] = []
    for layer in layers_inside(model, include_self=False):
        if getattr(layer, "activity_regularizer", None) is not None:
            before.append((layer.name, "activity_regularizer"))
        if isinstance(layer, FactorizedLayer) and layer.kernel_regularizer is not None:
            before += [(layer.name, "kernel_regularizer")] if layer.trainable else []
    owners = _owners(model)
    after = [
        (owners.get(id(weight)), f"regularizer of {weight.name}")
        for weight in model.trainable_weights
        if weight.regularizer is not None
    ]
    names = before + after
    # A layer may call add_loss, or be called twice: then only their number is known.
    return names if len(names) == count else [(None, f"loss {i}") for i in range(count)]


def _owners(model: keras.Model) -> Mapping[int, str]:
    return {id(w): layer.name for layer in walk_layers(model) for w in layer.weights}


def _label_range(labels: Any, predictions: Any) -> list[tuple[Label, Any]]:
    """The smallest and the largest of integer labels, under the name of the classes' number."""
    found = []
    pairs = zip(keras.tree.flatten(labels), keras.tree.flatten(predictions), strict=False)
    for label, prediction in pairs:
        if label is None or prediction is None or _is_floating(label):
            continue
        if "int" not in keras.backend.standardize_dtype(label.dtype) or not prediction.shape:
            continue
        classes = prediction.shape[-1]
        sparse = len(label.shape) < len(prediction.shape) or label.shape[-1] == 1
        if not sparse or classes is None or classes < 2 or 0 in label.shape:
            continue
        for name, value in (("least", ops.min(label)), ("largest", ops.max(label))):
            found.append((Label("label", None, f"{name} of {classes}"), ops.cast(value, "float32")))
    return found


def _is_floating(value: Any) -> bool:
    dtype = getattr(value, "dtype", None)
    return dtype is not None and "float" in keras.backend.standardize_dtype(dtype)


def _mean_magnitude(value: Any, axes: tuple[int, ...] | None = None) -> Any:
    # A mean, unlike a maximum, is not finite on every backend if one entry is not. Scaled, since
    # the sum of finite values may overflow.
    scaled = ops.abs(ops.cast(value, "float32")) * _UNDER_OVERFLOW
    return ops.mean(scaled, axis=axes) / _UNDER_OVERFLOW


def _replica_values(variable: keras.Variable) -> list[np.ndarray]:
    """A variable's value on every replica of this process."""
    parts = getattr(variable.value, "values", None)
    if isinstance(parts, (list, tuple)):
        return [np.asarray(part.numpy()) for part in parts]
    return [ops.convert_to_numpy(variable)]
