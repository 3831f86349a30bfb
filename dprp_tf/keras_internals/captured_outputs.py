"""What layers inside a model give while it is called, for losses on what lies between."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import keras

__all__ = ["CapturedOutputs"]


class CapturedOutputs:
    """Note what layers return each time they are called, until `close`.

    The layers compute what they computed; nothing of it is part of their configuration or files.
    Each thread sees its own calls: replicas trace one step in turns, each in a thread.

    Args:
        layers: The layers by name.

    Example:

    >>> layer = keras.layers.ReLU()
    >>> captured = CapturedOutputs({"it": layer})
    >>> _ = layer(keras.ops.convert_to_tensor([-1.0, 2.0]))
    >>> [float(value) for value in captured.take()["it"]], captured.take()
    ([0.0, 2.0], {})
    >>> captured.close()
    """

    def __init__(self, layers: Mapping[str, keras.layers.Layer]) -> None:
        self._seen = threading.local()
        self._before: list[tuple[Any, Any]] = []
        for name, layer in layers.items():
            self._before.append((layer, vars(layer).get("call")))
            # Not through the setter, which would track it as a part of the layer.
            vars(layer)["call"] = self._noting(name, layer.call)

    def _noting(self, name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            outputs = function(*args, **kwargs)
            vars(self._seen)[name] = outputs
            return outputs

        return call

    def take(self) -> dict[str, Any]:
        """Return what each layer gave in its last call since this was asked, by name."""
        found = dict(vars(self._seen))
        # A step's tensors must not outlive its trace.
        vars(self._seen).clear()
        return found

    def close(self) -> None:
        """Let the layers be as they were."""
        for layer, own in reversed(self._before):
            if own is None:
                vars(layer).pop("call", None)
            else:
                vars(layer)["call"] = own
        self._before = []
        vars(self._seen).clear()
