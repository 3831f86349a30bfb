"""The calls that a layer makes of the layers it holds, found by running it on symbolic tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras

from dprp_tf.keras_internals.graphs import layers_inside
from dprp_tf.keras_internals.layer_calls import LayerCall, run_on_symbols

__all__ = ["inner_calls"]


def inner_calls(call: LayerCall) -> list[LayerCall] | None:
    """Return the calls that a layer makes of layers it holds, as at inference.

    Its `call()` runs once on symbolic tensors, and each layer inside notes what it is given. A
    layer that such a layer calls in turn is no call of the outer one.

    Args:
        call: A call of a built layer that holds others.

    Returns:
        The calls in order; None where they are not known: a size is undefined, the layer can't
        be run so, or it calls one in a loop or branch that is traced once, however often it runs.

    Example:

    >>> class Twice(keras.layers.Layer):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.dense = keras.layers.Dense(4, name="inside")
    ...     def build(self, shape):
    ...         self.dense.build(shape)
    ...     def call(self, x):
    ...         return self.dense(self.dense(x))
    >>> layer = Twice()
    >>> layer.build((None, 4))
    >>> found = inner_calls(LayerCall(layer, (1, 4), (1, 4), args=(keras.KerasTensor((1, 4)),)))
    >>> [inner.layer.name for inner in found]
    ['inside', 'inside']
    """
    layer, kwargs = call.layer, dict(call.kwargs)
    given = keras.tree.flatten((call.args, kwargs))
    if any(isinstance(x, keras.KerasTensor) and None in x.shape for x in given):
        return None
    if layer._call_has_training_arg:
        kwargs["training"] = False
    record = _Record(call.batch)
    try:
        with record.watching(layer):
            # The layer itself: what says its shapes may not run anything.
            run_on_symbols(layer, call.args, kwargs)
    # A layer's own code, which may fail in any way on tensors that hold no values.
    except Exception:
        return None
    return record.calls if record.complete else None


class _Record:
    """What the layers inside a layer are called with while it runs."""

    def __init__(self, batch: int) -> None:
        self.calls: list[LayerCall] = []
        self.complete = False
        self._batch = batch
        self._inside = False
        self._place: Any = None

    @contextmanager
    def watching(self, layer: Any) -> Iterator[None]:
        """Have the layer and those inside it note their calls."""
        parts = {id(part): part for part in layers_inside(layer, include_self=False)}
        parts.pop(id(layer), None)
        noted = [(layer, self._outer(layer.call))]
        noted += [(part, self._inner(part, part.call)) for part in parts.values()]
        before = [vars(part).get("call") for part, _ in noted]
        try:
            for part, function in noted:
                # Not through the setter, which would track it as a part of the layer.
                vars(part)["call"] = function
            yield
        finally:
            for (part, _), own in zip(noted, before, strict=True):
                if own is None:
                    vars(part).pop("call", None)
                else:
                    vars(part)["call"] = own

    def _outer(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            # A backend may run it several times to learn a shape; the last counts.
            self.calls, self.complete, self._place = [], True, _trace()
            return function(*args, **kwargs)

        return call

    def _inner(self, part: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return function(*args, **kwargs)
            self._inside = True
            try:
                outputs = function(*args, **kwargs)
            finally:
                self._inside = False
            if _trace() != self._place:
                self.complete = False
            given_args, given_kwargs, made = keras.tree.map_structure(
                _symbolic, (args, kwargs, outputs)
            )
            flat = keras.tree.flatten((given_args, given_kwargs))
            entering = next((x for x in flat if isinstance(x, keras.KerasTensor)), None)
            leaving = next(
                (x for x in keras.tree.flatten(made) if isinstance(x, keras.KerasTensor)), None
            )
            if leaving is None:
                self.complete = False
                return outputs
            self.calls.append(
                LayerCall(
                    part,
                    tuple((leaving if entering is None else entering).shape),
                    tuple(leaving.shape),
                    batch=self._batch,
                    args=given_args,
                    kwargs=given_kwargs,
                )
            )
            return outputs

        return call


def _symbolic(value: Any) -> Any:
    if keras.ops.is_tensor(value) or isinstance(value, keras.Variable):
        return keras.KerasTensor(tuple(value.shape), keras.backend.standardize_dtype(value.dtype))
    return value


def _trace() -> Any:
    """Say which function is being traced: a loop's body and a branch are another than theirs."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.compat.v1.get_default_graph()
    if backend == "jax":
        from jax.extend.core import get_opaque_trace_state

        return get_opaque_trace_state(convention="flax")
    return None
