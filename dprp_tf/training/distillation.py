"""Distillation: a model trains towards the outputs of another one, such as its dense original."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from dprp_tf.files.arguments import check_number
from dprp_tf.keras_internals.captured_outputs import CapturedOutputs
from dprp_tf.keras_internals.compiled import sync
from dprp_tf.keras_internals.graphs import graph_of, layer_keys
from dprp_tf.keras_internals.strategies import strategy_scope
from dprp_tf.training.added_loss import AddedLoss, LossOfStep, added_losses
from dprp_tf.training.distilled_outputs import (
    DistilledOutput,
    distilled_outputs,
    output_spread,
    squared_error,
)
from dprp_tf.training.divergence import broken_weights
from dprp_tf.training.guarded_callback import GuardedCallback
from dprp_tf.training.refused_step import keep_state_of_a_refused_step
from dprp_tf.training.replicas import replica_count

__all__ = ["Distillation"]


class Distillation(GuardedCallback):
    """Train a model towards the outputs of a teacher, and not towards its labels alone.

    The loss of training becomes (1 - weight) L_app + weight D, where L_app is the application's
    (the compiled loss, and what layers add to it); regularizers of weights and the structural terms
    of DPRP stay as they are. D sums over the outputs, each times its compiled loss's weight. For
    outputs t of the teacher and s of the model, both (n, ..., c), it is

    - of classes (a softmax, or what a categorical loss is compiled for), with logits z,
      T^2 mean_{n, ...} KL(softmax(z_t / T) || softmax(z_s / T));
    - of labels (a sigmoid, or what a binary loss is compiled for) the same of each channel's yes
      against its no, the mean over n, ..., c: the binary cross-entropy with the teacher's
      probabilities at T, less its least value;
    - of other values mean (s - t)^2 / V, where V = mean (t - m_c)^2 is their variance about the
      channels' means m_c in the batch, averaged over the batches of the epoch so far;

    plus `feature_weight` times the mean over the layers in `features` of that last one of what
    these give. An output that is compiled without a loss is left out. What sample weights say holds
    for L_app alone.

    A callback for `fit` of any compiled model, a `DPRPModel` with falling ranks included; or
    `FineTuning(teacher=...)`. The logs of training get `distillation_loss`, the mean of D. The
    teacher sees the batch that the model sees, with training=False: what a layer of the model's own
    augments, it sees without. It is copied when a training begins: nothing trains it, and it is in
    no file and no list of the model's weights. Everything of it is computed in float32 from what it
    gives; a step takes the teacher's forward pass longer.

    Args:
        teacher: A built model with the inputs and outputs of the one that trains, such as its dense
            original.
        weight: Share of D in the loss, 0 to 1. 0 trains without it, exactly. Default 0.5.
        temperature: T, above 0. Default 4.
        features: Names of layers, in both models, whose outputs are to agree; by path where layers
            share a name. Every cut and fold keeps the names. Default: none.
        feature_weight: What they count beside the outputs, 0 or more. Default 1.

    Raises:
        ValueError: At construction if an argument is out of range, the teacher is not built or not
            finite; in training, before any step, if the teacher does not fit the model.
        DivergenceError: In training, if the loss, a weight or the optimizer is no longer finite.

    Source: Hinton et al., Distilling the Knowledge in a Neural Network (arXiv 1503.02531); of
        features, Romero et al., FitNets (arXiv 1412.6550).

    Example:

    >>> def network(width):
    ...     inputs = keras.Input((4,))
    ...     hidden = keras.layers.Dense(width, "relu")(inputs)
    ...     return keras.Model(inputs, keras.layers.Dense(3)(hidden))
    >>> teacher, student = network(8), network(2)
    >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    >>> student.compile("sgd", loss)
    >>> teaching = Distillation(teacher, weight=0.9)
    >>> history = student.fit(np.ones((8, 4)), np.ones(8), callbacks=[teaching], verbose=0)
    >>> sorted(history.history)
    ['distillation_loss', 'loss']
    """

    def __init__(
        self,
        teacher: keras.Model,
        weight: float = 0.5,
        temperature: float = 4.0,
        features: Iterable[str] = (),
        feature_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if not isinstance(teacher, keras.Model) or not teacher.built:
            state = "not built" if isinstance(teacher, keras.Model) else "no model"
            raise ValueError(
                "`teacher` must be a built Keras model, such as the dense original. Received: "
                f"{type(teacher).__name__}, which is {state}."
            )
        broken = broken_weights(teacher)
        if broken:
            layer, name = broken[0]
            raise ValueError(
                f"`teacher` must have finite weights. Received: {teacher.name!r} with NaN or "
                f"infinite values in `{name}` of layer {layer!r}; give one from before it diverged."
            )
        self.teacher = teacher
        self.weight = check_number("weight", weight, 0, 1)
        self.temperature = check_number("temperature", temperature, above=0)
        self.features = (features,) if isinstance(features, str) else tuple(features)
        self.feature_weight = check_number("feature_weight", feature_weight, minimum=0)
        _layers_named(teacher, self.features, "the teacher")
        self._term: _Teaching | None = None

    def __repr__(self) -> str:
        """Return the settings and a digest of the teacher, the same in every process."""
        return (
            f"Distillation(teacher={_digest(self.teacher)}, weight={self.weight}, "
            f"temperature={self.temperature}, features={self.features}, "
            f"feature_weight={self.feature_weight})"
        )

    def renewed(self) -> Distillation:
        """Return one of the same settings and teacher that is in no training."""
        new = copy.copy(self)
        new._term = None
        return new

    def require_fit(self, model: keras.Model) -> None:
        """Refuse a model that the teacher can't teach; nothing of either is changed.

        Args:
            model: The model that is to train, compiled or not.

        Raises:
            ValueError: If the models share weights, take or give different things, or a layer of
                `features` is missing or gives something else.

        Example:

        >>> teacher = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)], name="small")
        >>> Distillation(teacher).require_fit(student)
        Traceback (most recent call last):
          ...
        ValueError: `teacher` must give what the model 'small' gives, [(None, 2)]. Received: a \
teacher that gives [(None, 3)]. Give the dense model that 'small' was made of.
        """
        own = {id(weight) for weight in self.teacher.weights}
        if model is self.teacher or any(id(weight) in own for weight in model.weights):
            raise ValueError(
                "`teacher` must be a model with weights of its own, which stay as they are. "
                f"Received: {self.teacher.name!r}, whose weights the model {model.name!r} trains; "
                "give a copy, such as what dprp_tf.load_model reads."
            )
        for word, name in (("take", "inputs"), ("give", "outputs")):
            expected, received = _shapes(model, name), _shapes(self.teacher, name)
            if expected is not None and received is not None:
                _require_alike(model, word, expected, received)
        layers = _layers_named(model, self.features, f"the model {model.name!r}")
        for name, theirs in _layers_named(self.teacher, self.features, "the teacher").items():
            expected, received = _given_shape(layers[name]), _given_shape(theirs)
            if expected is not None and received is not None and not _alike(expected, received):
                raise _other_feature(name, expected, received)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        super().on_train_begin(logs)
        self.detach()
        self.require_fit(self.model)
        if self.weight == 0:
            return
        if any(isinstance(term, _Teaching) for term in added_losses(self.model)):
            raise ValueError(
                "`callbacks` must hold one `Distillation` at most. Received: several; make a model "
                "that averages what the teachers give, and give that one."
            )
        with strategy_scope(self.model):
            self._term = _Teaching(self, self.model)
        self._term.attach(self.model)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if batch > 0 and self._term is not None and not self._term.joined_once:
            raise ValueError(
                f"`train_step` of {type(self.model).__name__} must get its loss from "
                "compute_loss(x=x, y=y, y_pred=y_pred), which `Distillation` changes. Received: a "
                "step that does not call it."
            )

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        super().on_test_begin(logs)
        if self._term is not None:
            self._term.evaluating = True

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        if self._term is not None:
            self._term.evaluating = False

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self.detach()

    def detach(self) -> None:
        """Take the teacher out of a training that has ended, or has stopped by an exception."""
        term, self._term = self._term, None
        if term is not None:
            term.detach()


class _Held:
    """What a metric's attributes must not show, where Keras would take variables for its own."""

    def __init__(self, settings: Distillation, model: keras.Model) -> None:
        self.settings, self.teacher = settings, settings.teacher
        self.outputs: list[DistilledOutput] = distilled_outputs(model, settings.teacher)
        self.copies: list[keras.Variable] = []
        # One after the other of the student's and of the teacher's layers.
        self.captured: list[CapturedOutputs] = []
        self.joined_once = False

    def capture(self, model: keras.Model) -> None:
        names = self.settings.features
        if names:
            self.captured = [
                CapturedOutputs(_layers_named(model, names, f"the model {model.name!r}")),
                CapturedOutputs(_layers_named(self.teacher, names, "the teacher")),
            ]

    def release(self) -> None:
        for captured in reversed(self.captured):
            captured.close()
        self.captured = []


class _Teaching(AddedLoss):
    """weight (D - L_app), which turns a loss into one with the teacher's share."""

    of_application = True

    def __init__(self, settings: Distillation, model: keras.Model) -> None:
        super().__init__("distillation_loss")
        self._held = _Held(settings, model)
        sync(self._held.teacher)
        # Copies, which Keras carries through the step as it does a metric's state: on every device
        # of a strategy, and on JAX as no constant of the compiled step.
        self._held.copies.extend(
            self.hold(ops.convert_to_numpy(weight), keras.backend.standardize_dtype(weight.dtype))
            for weight in self._held.teacher.weights
        )
        self.strength.assign(settings.weight)
        spreads = sum(output.kind == "values" and output.weight > 0 for output in self._outputs)
        spreads += len(settings.features)
        # n V of each output of values and each feature, summed over the epoch.
        self._spreads = self.add_variable((spreads,), "zeros", name="spreads") if spreads else None
        self._shifts = self.add_variable((), "zeros", name="shifts")

    @property
    def _outputs(self) -> list[DistilledOutput]:
        return self._held.outputs

    @property
    def joined_once(self) -> bool:
        return self._held.joined_once

    def attach(self, model: keras.Model) -> None:
        super().attach(model)
        keep_state_of_a_refused_step(model)
        self._held.capture(model)

    def detach(self) -> None:
        super().detach()
        self._held.release()

    def joined(self, total: Any, step: LossOfStep, training: bool) -> Any:
        if not training or self.evaluating:
            for captured in self._held.captured:
                captured.take()
        return super().joined(total, step, training)

    def value_in(self, step: LossOfStep) -> Any:
        held = self._held
        held.joined_once = True
        if step.inputs is None or step.predictions is None:
            raise ValueError(
                f"`compute_loss` of {type(step.model).__name__} must be called with x= and y_pred="
                " for `Distillation`. Received: a call without them."
            )
        students = keras.tree.flatten(step.predictions)
        teachers = keras.tree.flatten(self._taught(step.inputs))
        shapes = [[tuple(x.shape) for x in tensors] for tensors in (students, teachers)]
        _require_alike(step.model, "give", *shapes)
        terms, values = [], []
        for output, theirs, own in zip(held.outputs, teachers, students, strict=True):
            if output.weight == 0:
                continue
            if output.kind == "values":
                values.append((output.weight, theirs, own))
                continue
            distance = output.distance(theirs, own, held.settings.temperature)
            terms.append(output.weight * distance)
        values += self._features()
        spreads = self._mean_spreads([theirs for _, theirs, _ in values], step.count)
        for (weight, theirs, own), spread in zip(values, spreads, strict=True):
            terms.append(weight * ops.divide_no_nan(squared_error(theirs, own), spread))
        return sum(terms[1:], terms[0]) if terms else ops.zeros((), "float32")

    def shift(self, value: Any, total: Any, step: LossOfStep) -> Any:
        application = ops.cast(total, "float32") - ops.cast(step.structure(), "float32")
        strength = ops.cast(self.strength, "float32")
        shift = super().shift(value, total, step) - strength * application
        # Keras scales a replica's loss by 1 / their number; the mean is to be that of all.
        seen = ops.stop_gradient(shift) * replica_count() * ops.cast(step.count, "float32")
        self._shifts.assign(self._shifts + seen)
        return shift

    def mean_shift(self) -> Any:
        return ops.divide_no_nan(self._shifts, self._count)

    def reset_state(self) -> None:
        super().reset_state()
        for variable in (self._shifts, self._spreads):
            if variable is not None:
                variable.assign(ops.zeros(variable.shape, "float32"))

    def _taught(self, inputs: Any) -> Any:
        teacher = self._held.teacher
        mapping = list(zip(teacher.weights, self._held.copies, strict=True))
        # The copies are no trained variables: no gradient is computed through the teacher.
        with keras.StatelessScope(state_mapping=mapping):
            outputs = teacher(inputs, training=False)
        return keras.tree.map_structure(ops.stop_gradient, outputs)

    def _features(self) -> list[tuple[float, Any, Any]]:
        held = self._held
        names = held.settings.features
        if not names:
            return []
        own, theirs = (captured.take() for captured in held.captured)
        missing = [name for name in names if name not in own or name not in theirs]
        if missing:
            raise ValueError(
                "`features` must name layers that both models call in every step. Received: "
                f"{missing}, which are not called."
            )
        weight = held.settings.feature_weight / len(names)
        found = []
        for name in names:
            pairs = [keras.tree.flatten(captured[name]) for captured in (own, theirs)]
            shapes = [[tuple(x.shape) for x in tensors] for tensors in pairs]
            if len(pairs[0]) != 1 or not _alike(*shapes):
                raise _other_feature(name, *shapes)
            found.append((weight, ops.stop_gradient(pairs[1][0]), pairs[0][0]))
        return found

    def _mean_spreads(self, teachers: Sequence[Any], count: Any) -> list[Any]:
        """Each variance V, the mean over the batches of the epoch so far by their samples."""
        if self._spreads is None:
            return []
        count = ops.cast(count, "float32")
        now = ops.stack([output_spread(values) for values in teachers])
        sums = ops.cast(self._spreads, "float32") + count * ops.stop_gradient(now)
        self._spreads.assign(sums)
        return list(ops.unstack(sums / (ops.cast(self._count, "float32") + count), len(teachers)))


def _layers_named(
    model: keras.Model, names: Sequence[str], whose: str
) -> dict[str, keras.layers.Layer]:
    found = layer_keys(model) if names else {}
    unknown = [name for name in names if name not in found]
    if unknown:
        raise ValueError(
            f"`features` must name layers of {whose}: {list(found)}. Received: {unknown}"
        )
    return {name: found[name] for name in names}


def _shapes(model: keras.Model, name: str) -> list[tuple[int | None, ...]] | None:
    """Shapes of a model's inputs or outputs, in the order of a call; None if it does not say."""
    tensors = getattr(graph_of(model), name, None)
    return None if not tensors else [tuple(tensor.shape) for tensor in tensors]


def _given_shape(layer: keras.layers.Layer) -> list[tuple[int | None, ...]] | None:
    try:
        tensors = keras.tree.flatten(layer.output)
    except (AttributeError, ValueError):  # not called on symbols, or several times
        return None
    return [tuple(tensor.shape) for tensor in tensors]


def _alike(expected: Sequence[Any], received: Sequence[Any]) -> bool:
    return len(expected) == len(received) and all(
        len(one) == len(other)
        and all(a == b or a is None or b is None for a, b in zip(one, other, strict=True))
        for one, other in zip(expected, received, strict=True)
    )


def _require_alike(model: keras.Model, word: str, expected: Any, received: Any) -> None:
    if not _alike(expected, received):
        raise ValueError(
            f"`teacher` must {word} what the model {model.name!r} {word}s, {expected}. Received: a "
            f"teacher that {word}s {received}. Give the dense model that {model.name!r} was made "
            "of."
        )


def _other_feature(name: str, expected: Any, received: Any) -> ValueError:
    return ValueError(
        "`features` must name layers that give one tensor of the same shape in both models. "
        f"Received: {name!r}, which gives {expected} in the model and {received} in the teacher; "
        "leave it out."
    )


def _digest(model: keras.Model) -> str:
    digest = hashlib.sha256()
    sync(model)
    for weight in model.weights:
        values = np.ascontiguousarray(ops.convert_to_numpy(weight))
        digest.update(f"{weight.name} {values.shape} {values.dtype}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()[:16]
