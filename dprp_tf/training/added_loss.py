"""A loss that a callback adds to a plain model's own for the time of one `fit`."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from dprp_tf.keras_internals.added_metrics import add_metric, added_metrics, remove_metric
from dprp_tf.keras_internals.call_losses import added_in_calls
from dprp_tf.keras_internals.compiled import sync
from dprp_tf.training.log_names import LOG_PREFIX, beside_the_users

__all__ = [
    "AddedLoss",
    "LossOfStep",
    "WeightLoss",
    "added_losses",
    "assign_copy",
    "note_structure",
]

# What a model with added losses has of its own in place of its class's.
_WRAPPED = ("compute_loss", "fit", "get_metrics_result")
# What Keras calls the arguments of `compute_loss`, in their order.
_ARGUMENTS = ("x", "y", "y_pred", "sample_weight", "training")

# Where a loss that is being computed notes which of its terms are not the application's.
_NOTED: ContextVar[list[Any] | None] = ContextVar("noted", default=None)


@dataclass(frozen=True)
class LossOfStep:
    """What a step's loss is computed from; lives as long as the step is traced.

    Attributes:
        model: The model whose loss it is.
        inputs: The batch's inputs, in any structure; None where `compute_loss` was not told.
        predictions: What the model computed; None likewise.
        count: Samples in the batch, or in this replica's share of it.
        structure: Returns the sum of those terms of the loss that are not the application's: the
            weights' regularizers and the structural terms of a `DPRPModel`, scaled as the loss is.
    """

    model: keras.Model
    inputs: Any
    predictions: Any
    count: Any
    structure: Callable[[], Any]


class AddedLoss(keras.metrics.Metric):
    """A term that joins a model's loss in training while it is attached: strength * value_in(step).

    A term of the weights alone is a `WeightLoss`.

    A metric, because Keras carries a metric's variables through the compiled train step of every
    backend and keeps them out of the model's weights and files. So what changes between steps
    (the strength, arrays given to `hold`) is assigned without tracing anything anew, and nothing
    is left of it in the model afterwards. The logs of training get the mean of its value under
    the metric's name, and the strength, or with `LOG_PREFIX` before it where the user's model has
    a log of that name; validation has neither the term nor its logs.

    A subclass keeps the model's own variables out of its attributes, lists and tuples: Keras takes
    every variable there for the metric's, and JAX would get it twice.

    A training that ends by an exception leaves the term attached; the next `fit` of the model
    takes it off before it begins.

    A subclass with `of_application` set joins before the others, while the loss is the model's own.

    Args:
        name: Name of the mean of its value in the logs.
        strength_name: Name of the strength in the logs; None leaves it out.
    """

    of_application = False

    def __init__(self, name: str, strength_name: str | None = None) -> None:
        super().__init__(name=name, dtype="float32")
        self._strength_name = strength_name
        self._model: keras.Model | None = None
        self._total = self.add_variable((), "zeros", name="total")
        self._count = self.add_variable((), "zeros", name="count")
        self.strength = keras.Variable(0.0, trainable=False, name=f"{name}_strength")
        self._logged = True
        self.evaluating = False

    @abstractmethod
    def value_in(self, step: LossOfStep) -> Any:
        """Return the term without its strength; runs inside the train step.

        Args:
            step: What the loss is computed from.

        Returns:
            A float32 scalar.
        """

    def shift(self, value: Any, total: Any, step: LossOfStep) -> Any:
        """Return by how much the term changes the loss: its value, times its strength.

        Args:
            value: What `value_in` returned.
            total: The loss so far, a scalar.
            step: What the loss is computed from.

        Returns:
            A scalar, scaled as Keras scales the loss of a replica.
        """
        strength = ops.cast(self.strength, "float32")
        return step.model._aggregate_additional_loss(strength * value)

    def hold(self, array: Any, dtype: str = "float32") -> keras.Variable:
        """Return a new variable that starts at this array and is carried through the train step.

        Args:
            array: What it holds at first; later values are assigned to it between steps.
            dtype: Its type. Default float32.

        Returns:
            The variable.
        """
        # A copy of its own: JAX may use the memory of a NumPy array as it is.
        values = np.array(array)
        variable = keras.Variable(values, trainable=False, dtype=dtype, name=f"{self.name}_held")
        self._tracker.add_to_store("variables", variable)
        return variable

    @property
    def attached(self) -> bool:
        """Whether the term is part of a model's loss now."""
        return self._model is not None and any(term is self for term in _terms(self._model))

    def attach(self, model: keras.Model) -> None:
        """Make the term part of the model's loss in training.

        Args:
            model: A compiled Keras model.

        Raises:
            RuntimeError: If it is part of a model's loss already.
        """
        if self.attached:
            raise RuntimeError(
                f"The added loss {self.name!r} is part of a model's loss already: detach it first."
            )
        sync(model)
        add_metric(model, self)
        self._model = model
        if not _is_wrapped(model):
            _wrap(model)
        model.make_train_function(force=True)

    def detach(self) -> None:
        """Take the term out of the model's loss again; nothing happens if it is not in there."""
        model = self._model
        if model is None or not self.attached:
            return
        self._model = None
        sync(model)
        remove_metric(model, self)
        if not _terms(model):
            _unwrap(model)
        model.make_train_function(force=True)

    def joined(self, total: Any, step: LossOfStep, training: bool) -> Any:
        """Return a loss with the term, and note the term's value; runs inside the train step.

        Args:
            total: The loss so far, a scalar.
            step: What it is computed from.
            training: Whether this is a train step.

        Returns:
            The loss, a scalar.
        """
        self._logged = training and not self.evaluating
        if not self._logged:
            return total
        value = ops.cast(self.value_in(step), "float32")
        seen, count = ops.stop_gradient(value), ops.cast(step.count, "float32")
        self._total.assign(self._total + seen * count)
        self._count.assign(self._count + count)
        return ops.add(total, self.shift(value, total, step))

    def mean_shift(self) -> Any:
        """Return by how much the term has raised the loss, on average over the epoch so far."""
        mean = ops.divide_no_nan(self._total, self._count)
        return ops.cast(self.strength, "float32") * mean

    def update_state(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing, since `joined` updates the mean inside the train step."""

    def result(self) -> dict[str, Any]:
        """Return what the logs get, names prefixed: in training the mean value and the strength."""
        if not self._logged or self.evaluating:
            return {}
        logs = {LOG_PREFIX + self.name: ops.divide_no_nan(self._total, self._count)}
        if self._strength_name is not None:
            # The product is a value of its own: JAX donates a variable's buffer to the next step.
            strength = 1.0 * ops.cast(self.strength, "float32")
            logs[LOG_PREFIX + self._strength_name] = strength
        return logs

    @property
    def log_names(self) -> list[str]:
        """The names that the logs get where no log of the user's has them."""
        return [name for name in (self.name, self._strength_name) if name is not None]

    def reset_state(self) -> None:
        """Begin the mean anew, as Keras does at each epoch's beginning; the rest stays."""
        for variable in (self._total, self._count):
            variable.assign(ops.zeros((), "float32"))


class WeightLoss(AddedLoss):
    """An `AddedLoss` that the batch has no part in: strength * value()."""

    @abstractmethod
    def value(self) -> Any:
        """Return the term without its strength, a float32 scalar; runs inside the train step."""

    def value_in(self, step: LossOfStep) -> Any:
        """Return `value()`.

        Args:
            step: What the loss is computed from.
        """
        return self.value()


def assign_copy(variable: keras.Variable, array: Any) -> None:
    """Assign a NumPy array to a variable between two steps of a training.

    JAX may use the memory of a NumPy array as it is, and a train step writes into the buffers of
    its state: the variable gets one of its own.

    Args:
        variable: The variable.
        array: Its new value.
    """
    variable.assign(ops.copy(ops.convert_to_tensor(array, dtype=variable.dtype)))


def note_structure(terms: Sequence[Any]) -> None:
    """Say which terms of the loss that is being computed are not the application's.

    Args:
        terms: Scalars, scaled as they are in the loss; the weights' regularizers are among them.
    """
    noted = _NOTED.get()
    if noted is not None:
        noted.append(list(terms))


def added_losses(model: keras.Model) -> list[AddedLoss]:
    """Return the terms that are attached to a model now.

    Args:
        model: A Keras model.

    Returns:
        The terms, those of the application first.
    """
    return sorted(_terms(model), key=lambda term: not term.of_application)


@contextlib.contextmanager
def _noting() -> Iterator[list[Any]]:
    noted: list[Any] = []
    token = _NOTED.set(noted)
    try:
        yield noted
    finally:
        _NOTED.reset(token)


def _terms(model: keras.Model) -> list[AddedLoss]:
    return [metric for metric in added_metrics(model) if isinstance(metric, AddedLoss)]


def _is_wrapped(model: keras.Model) -> bool:
    return hasattr(vars(model).get("compute_loss"), "replaced")


def _wrap(model: keras.Model) -> None:
    """Let this one model's loss have its terms; its class, and other models of it, stay as is."""
    own = {name: vars(model)[name] for name in _WRAPPED if name in vars(model)}
    compute_loss, metrics_result = model.compute_loss, model.get_metrics_result

    def with_terms(*args: Any, **kwargs: Any) -> Any:
        # As they come: a class's own version may name its arguments in its own way.
        with _noting() as noted:
            total = compute_loss(*args, **kwargs)
        arrays = keras.tree.flatten([list(args), list(kwargs.values())])
        shaped = (array for array in arrays if len(getattr(array, "shape", ())) > 0)
        given = {**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}
        step = LossOfStep(
            model=model,
            inputs=given.get("x"),
            predictions=given.get("y_pred"),
            count=ops.shape(next(shaped))[0],
            structure=lambda: sum(noted[-1] if noted else _regularizers(model), 0.0),
        )
        for term in added_losses(model):
            total = term.joined(total, step, kwargs.get("training", True))
        return total

    def fit(*args: Any, **kwargs: Any) -> Any:
        # A training that ended otherwise than by its end has left its terms.
        for term in _terms(model):
            term.detach()
        return model.fit(*args, **kwargs)

    def get_metrics_result() -> Any:
        names = [name for term in _terms(model) for name in term.log_names]
        return beside_the_users(metrics_result(), names)

    marked: Any = with_terms
    marked.replaced = own
    model.compute_loss = with_terms
    model.fit = fit
    model.get_metrics_result = get_metrics_result


def _regularizers(model: keras.Model) -> list[Any]:
    losses = model.losses
    added = added_in_calls(model, losses)
    return [
        model._aggregate_additional_loss(loss)
        for loss, is_added in zip(losses, added, strict=True)
        if not is_added
    ]


def _unwrap(model: keras.Model) -> None:
    replaced: dict[str, Any] = vars(model)["compute_loss"].replaced
    for name in _WRAPPED:
        delattr(model, name)
        if name in replaced:
            setattr(model, name, replaced[name])
