"""Stop a training whose loss or weights are no longer finite, and say where it went wrong."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np

from dprp_tf.keras_internals.compiled import sync
from dprp_tf.keras_internals.graphs import walk_layers
from dprp_tf.keras_internals.optimizers import model_optimizers
from dprp_tf.keras_internals.variable_values import values_to_look_at
from dprp_tf.training.failure_record import Evidence, Failure

__all__ = [
    "DivergenceError",
    "DivergenceGuard",
    "broken_slots",
    "broken_weights",
    "diagnose",
    "is_finite",
]

_TERMS = {
    "app": "the compiled loss (app)",
    "own": "the model's own regularizers (own)",
    "orth": "the orthogonality loss (orth)",
    "sort": "the sorting loss (sort)",
    "comp": "the compression loss (comp)",
}
# A mean magnitude of weights or inputs from here on is named as the likely cause of an overflow.
_EXTREME = 1e3


class DivergenceError(ValueError):
    """A training was stopped because its loss, a weight or its optimizer became NaN or infinite.

    Attributes:
        epoch: The epoch, counted from 1 as Keras prints it.
        step: The step of that epoch, counted from 1; None if no step can be named.
        terms: What was not finite in that step's loss, of `"app"` (the compiled loss), `"own"`
            (the model's own regularizers), `"orth"`, `"sort"` and `"comp"`; empty if every loss
            was finite and a weight is not.
        layer: Name of the layer it went wrong in; None if it was not in a layer.

    Example:

    >>> DivergenceError("Training diverged", epoch=2, step=7, terms=("app",)).step
    7
    """

    def __init__(
        self,
        message: str,
        *,
        epoch: int,
        step: int | None = None,
        terms: Sequence[str] = (),
        layer: str | None = None,
    ) -> None:
        super().__init__(message)
        self.epoch = epoch
        self.step = step
        self.terms = tuple(terms)
        self.layer = layer
        self._complete: Callable[[], DivergenceError] | None = None

    def completed(self) -> DivergenceError:
        """Return this error completed from the failure record; itself if nothing is missing."""
        return self if self._complete is None else self._complete()


class DivergenceGuard(keras.callbacks.Callback):
    """Stop the training with an error once the loss, a weight or the optimizer is not finite.

    A `DPRPModel` adds one to every `fit` by itself, before the other callbacks, so that no
    checkpoint of a broken state replaces a good one; `FineTuning` does the same, and the callbacks
    that train other models have one inside. On other models it works too, but knows the step and
    the term only as far as the logs tell. The loss is looked at after every batch, weights and
    optimizer at the end of an epoch and before a callback with an integer `save_freq` saves.

    Under loss scaling a gradient that is not finite is normal and skips a step; only a loss, a
    weight or an optimizer's variable that is not finite is a failure.

    Args:
        raise_error: Whether to raise; if not, to warn once and let the training go on. Default
            True.

    Raises:
        DivergenceError: In training, if the loss, a weight or a variable of the optimizer is NaN
            or infinite.

    Example:

    >>> DivergenceGuard().raise_error
    True
    """

    # Batch logs may be looked at beside the next step; what is not, is left to `completed`.
    async_safe = True

    def __init__(self, raise_error: bool = True) -> None:
        super().__init__()
        self.raise_error = bool(raise_error)
        self._savers: dict[Any, int] = {}
        self._reset()

    def _reset(self) -> None:
        self._epoch: int | None = None
        self._warned = False
        self._last_batch = -1
        self._thread = threading.get_ident()
        self._savers = dict.fromkeys(self._savers, 0)

    def watch(self, callbacks: Iterable[keras.callbacks.Callback]) -> None:
        """Check the weights too before one of these callbacks saves in the middle of an epoch.

        Args:
            callbacks: The training's other callbacks.
        """
        self._savers = {
            callback: 0
            for callback in callbacks
            if isinstance(getattr(callback, "save_freq", None), int)
        }

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._reset()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch, self._last_batch = epoch, -1

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        batches, self._last_batch = batch - self._last_batch, batch
        saving = False
        for callback, seen in self._savers.items():
            seen += batches
            due = seen >= max(int(callback.save_freq), 1)
            self._savers[callback] = 0 if due else seen
            saving = saving or due
        loss = (logs or {}).get("loss", 0.0)
        if saving or not np.all(np.isfinite(loss)):
            self._stop(batch + 1, logs or {}) if not saving else self.check()

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        # fit() validates before it ends an epoch, and that resets the record.
        if self._epoch is not None:
            self.check()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        loss = (logs or {}).get("loss", 0.0)
        self.check() if np.all(np.isfinite(loss)) else self._stop(None, logs or {})
        self._epoch = None

    def check(self) -> None:
        """Stop the training, as the class says, if it has diverged by now.

        Raises:
            DivergenceError: If it has.
        """
        if self._warned:
            return
        error = diagnose(self.model, 0 if self._epoch is None else self._epoch)
        if error is not None:
            self._raise_or_warn(error)

    def _stop(self, step: int | None, logs: dict[str, Any]) -> None:
        if self._warned:
            return
        epoch = 0 if self._epoch is None else self._epoch

        def found() -> DivergenceError:
            recorded = getattr(self.model, "failure_record", None) is not None
            known = diagnose(self.model, epoch) if recorded else None
            return known or _from_logs(epoch, step, logs, broken_weights(self.model), self.model)

        if threading.get_ident() == self._thread:
            error = found()
        else:
            # Another step may be running: its state must not be touched from here.
            error = _from_logs(epoch, step, logs)
            error._complete = found
        self._raise_or_warn(error)

    def _raise_or_warn(self, error: DivergenceError) -> None:
        if self.raise_error:
            raise error
        self._warned = True
        warnings.warn(str(error.completed()), stacklevel=2)


def is_finite(variable: keras.Variable) -> bool:
    """Say whether a variable holds no NaN and no infinite value.

    Args:
        variable: A variable of any type; one that is not floating-point is finite.

    Returns:
        True if every entry is finite.

    Example:

    >>> is_finite(keras.Variable([1.0, float("nan")]))
    False
    """
    if "float" not in keras.backend.standardize_dtype(variable.dtype):
        return True
    values = values_to_look_at(variable)
    # NumPy's own test knows no bfloat16, which has float32's range.
    values = values if values.dtype.kind == "f" else values.astype("f4")
    # What is not finite stays so in every sum, and a sum takes no memory; but sums may overflow.
    with np.errstate(all="ignore"):
        sums = np.isfinite(values.sum())
    return bool(sums or np.isfinite(values).all())


def broken_weights(model: keras.Model) -> list[tuple[str, str]]:
    """Return the (layer, weight) names of the weights that hold NaN or infinite values.

    Args:
        model: A built Keras model, inside `fit` or not.

    Returns:
        The pairs in model order; empty if every weight is finite.

    Example:

    >>> broken_weights(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))
    []
    """
    sync(model)
    return [
        (layer.name, weight.name)
        for layer in walk_layers(model)
        for weight in layer.weights
        if not is_finite(weight)
    ]


def broken_slots(model: keras.Model) -> list[str]:
    """Return the names of the optimizers' variables that hold NaN or infinite values.

    Args:
        model: A Keras model, compiled or not, inside `fit` or not.

    Returns:
        Their paths; empty if every one is finite. A weight whose slot overflowed is finite and
        no longer trains.

    Example:

    >>> broken_slots(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))
    []
    """
    sync(model)
    return [
        variable.path
        for optimizer in model_optimizers(model)
        for variable in optimizer.variables
        if not is_finite(variable)
    ]


def diagnose(model: keras.Model, epoch: int) -> DivergenceError | None:
    """Return the error that tells how a training went wrong; None if it has not.

    Args:
        model: The model in training.
        epoch: The epoch, counted from 0.

    Returns:
        The error, to be raised.

    Example:

    >>> diagnose(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]), 0) is None
    True
    """
    sync(model)
    record = getattr(model, "failure_record", None)
    failure = None if record is None else record.read()
    if failure is not None:
        return _from_record(model, epoch, failure)
    broken, slots = broken_weights(model), broken_slots(model)
    if not broken and not slots:
        return None
    step = None if record is None else record.steps_done or None
    layer = None
    if broken:
        layer, where = _place(broken, model)
        where += ", though the loss was finite so far"
    else:
        where = f"the optimizer's `{slots[0]}` holds NaN or infinite values, though every weight "
        where += "and the loss were finite so far"
    place = f"epoch {epoch + 1}" if step is None else f"epoch {epoch + 1}, step {step}"
    return DivergenceError(
        f"Training diverged in {place}: {where}. {_remedy(model)}",
        epoch=epoch + 1,
        step=step,
        layer=layer,
    )


def _from_logs(
    epoch: int,
    step: int | None,
    logs: dict[str, Any],
    weights: Sequence[tuple[str, str]] = (),
    model: keras.Model | None = None,
) -> DivergenceError:
    broken = sorted(name for name, value in logs.items() if not np.all(np.isfinite(value)))
    terms = tuple(name for name in _TERMS if f"{name}_loss" in broken)
    layer, where = None, ""
    if weights and model is not None:
        layer, where = _place(weights, model)
        where = f"; {where}"
    place = f"epoch {epoch + 1}" + ("" if step is None else f", at or before step {step}")
    return DivergenceError(
        f"Training diverged in {place}: {', '.join(broken) or 'loss'} is not finite{where}. "
        "Lower the learning rate, or look for NaN in the data.",
        epoch=epoch + 1,
        step=step,
        terms=terms,
        layer=layer,
    )


def _from_record(model: keras.Model, epoch: int, failure: Failure) -> DivergenceError:
    broken_terms = failure.broken("term")
    terms = tuple(
        name
        for name in _TERMS
        if any((e.name if e.name in _TERMS else "own") == name for e in broken_terms)
    )
    what = ", ".join(_TERMS[name] for name in terms)
    what += " are not finite; " if len(terms) > 1 else " is not finite; " if terms else ""
    layer, cause, remedy = _cause(model, failure)
    step = failure.step
    if failure.input_step == step - 1:
        # A ReLU can turn NaN into 0: the loss was finite then, the gradient was not.
        step -= 1
        layer, remedy = None, "Repair the data."
        cause = "the inputs of that step hold NaN or infinite values, and its update broke weights"
    return DivergenceError(
        f"Training diverged in epoch {epoch + 1}, step {step}: {what}{cause}. {remedy}",
        epoch=epoch + 1,
        step=step,
        terms=terms,
        layer=layer,
    )


def _cause(model: keras.Model, failure: Failure) -> tuple[str | None, str, str]:
    """Return the layer, what is wrong there, and what to do, by the most direct evidence."""
    remedy = _remedy(model)
    broken = {(str(e.layer), e.name) for e in failure.broken("weight")}
    if broken:
        order = [
            (layer.name, weight.name) for layer in walk_layers(model) for weight in layer.weights
        ]
        weights = [pair for pair in order if pair in broken]
        return *_place(weights, model), remedy
    for kind, words in (
        ("input", "the inputs of that step hold"),
        ("sample_weight", "the sample weights of that step hold"),
        ("label", "the labels of that step hold"),
    ):
        if failure.broken(kind):
            return None, f"{words} NaN or infinite values", "Repair the data."
    out_of_range = _labels_out_of_range(failure)
    if out_of_range:
        return None, out_of_range, "Repair the labels."
    of_layers = _in_model_order(model, failure.broken("term"))
    largest = max(
        (e for e in failure.evidence if e.kind == "weight"), key=lambda e: e.value, default=None
    )
    if of_layers:
        first = of_layers[0]
        others = len({e.layer for e in of_layers}) - 1
        more = f" and {others} more" if others else ""
        term = f"its term {first.name}" if first.name in _TERMS else f"its {first.name}"
        size = max(
            (e.value for e in failure.evidence if (e.kind, e.layer) == ("weight", first.layer)),
            default=0.0,
        )
        cause = (
            f"in layer {first.layer!r}{more}, {term} is {first.value:g} while its weights are "
            f"finite, {size:.3g} in the mean"
        )
        return first.layer, cause, remedy
    if largest is not None and largest.value >= _EXTREME:
        cause = (
            f"every weight is finite, but `{largest.name}` of layer {largest.layer!r} has grown to "
            f"{largest.value:.3g} in the mean"
        )
        return largest.layer, cause, remedy
    inputs = max((e.value for e in failure.evidence if e.kind == "input"), default=0.0)
    if inputs >= _EXTREME:
        cause = f"every weight is finite, but the inputs are {inputs:.3g} in the mean"
        return None, cause, "Scale the inputs to about 1."
    statistics = _in_model_order(model, failure.broken("statistic"))
    if statistics:
        name = statistics[0].layer
        cause = f"every weight is finite, but what layer {name!r} is given is not"
        return name, cause, remedy
    predictions = failure.broken("prediction")
    where = "the model's output" if predictions else "the loss of a finite output"
    return None, f"every weight is finite, but {where} overflows", remedy


def _in_model_order(model: keras.Model, evidence: Sequence[Evidence]) -> list[Evidence]:
    place = {layer.name: index for index, layer in enumerate(walk_layers(model))}
    return sorted((e for e in evidence if e.layer in place), key=lambda e: place[str(e.layer)])


def _labels_out_of_range(failure: Failure) -> str | None:
    ranges = [e for e in failure.evidence if e.kind == "label" and " of " in e.name]
    for least, largest in zip(ranges[::2], ranges[1::2], strict=True):
        classes = int(least.name.rsplit(" ", 1)[1])
        if least.value < 0 or largest.value >= classes:
            return (
                f"the labels of that step reach from {least.value:.0f} to {largest.value:.0f} "
                f"where the model has {classes} outputs"
            )
    return None


def _place(broken: Sequence[tuple[str, str]], model: keras.Model) -> tuple[str, str]:
    """Return the layer to name for broken weights, and words that say which are broken."""
    layers = list(dict.fromkeys(layer for layer, _ in broken))
    # Gradients run backwards: of several layers the last is where they broke.
    layer = layers[-1]
    names = ", ".join(f"`{name}`" for owner, name in broken if owner == layer)
    verb = "hold" if names.count("`") > 2 else "holds"
    words = f"{names} of layer {layer!r} {verb} NaN or infinite values"
    if len(layers) > 1:
        total = sum(bool(candidate.weights) for candidate in walk_layers(model))
        words += f", as do weights in {len(layers) - 1} of the model's other {total - 1} layers"
    return layer, words


def _remedy(model: keras.Model) -> str:
    settings = getattr(model, "settings", None)
    if settings is None:
        return "Lower the learning rate."
    if settings.structure == "retraction":
        return "Lower the learning rate or the loss weights."
    return "Lower the learning rate or the loss weights, or use structure='retraction'."
