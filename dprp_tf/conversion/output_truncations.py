"""Truncations of a model's kernels that keep the outputs of its layers on some inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from dprp_tf.conversion.calibration import input_moments
from dprp_tf.decomposition import OutputTruncation
from dprp_tf.layers.factorizable import factorizable

__all__ = ["output_truncations"]


def output_truncations(
    model: keras.Model, layers: Any, x: Any
) -> Callable[[str, Any, str], OutputTruncation]:
    """Return what makes the truncation of a layer's kernel, nearest in its outputs on inputs.

    Args:
        model: A built model.
        layers: Names or paths of layers, or a function that says so; None for all that can be cut.
        x: Inputs, a few hundred.

    Returns:
        A function (name, kernel, decomposition) -> `OutputTruncation`, as `RankSpace` takes it.

    Example:

    >>> import numpy as np
    >>> inputs = keras.Input((2,))
    >>> model = keras.Model(inputs, keras.layers.Dense(2, name="a")(inputs))
    >>> truncate = output_truncations(model, None, np.diag([1.0, 10.0]))
    >>> round(truncate("a", np.diag([2.0, 1.0]), "channel").lost((1,)), 3)
    0.039
    """
    moments = input_moments(model, factorizable(model, layers)[0], x)

    def truncate(name: str, kernel: Any, decomposition: str) -> OutputTruncation:
        return OutputTruncation(kernel, decomposition, moments[name])

    return truncate
