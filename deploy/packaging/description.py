"""Inputs and outputs of a model file as plain data: what to feed, and what comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dprp_tf.deploy.running.runtime import RuntimeModel

__all__ = ["Normalization", "describe_inputs", "describe_outputs", "shape_text"]

Normalization = tuple[float | Sequence[float], float | Sequence[float]]
"""The mean and the standard deviation that inputs lose: each one number, or one per channel."""

_COLORS = {1: "grayscale", 3: "RGB"}
_SHARES = {
    "SOFTMAX": "probabilities, which add up to 1",
    "LOGISTIC": "probabilities, each for itself from 0 to 1",
}


def describe_inputs(
    model: RuntimeModel, normalization: Normalization | None = None
) -> list[dict[str, Any]]:
    """Describe what a file takes.

    Args:
        model: The file, loaded.
        normalization: Mean and standard deviation of its picture, or of its only input; None for
            values that go in as they are.

    Returns:
        For each input `name`, `shape` (null for any length), `dtype`, `quantization` (`scale` and
        `zero_point`, or null), `kind` (`"image"` or `"values"`), `layout` (`"NHWC"`, `"NCHW"` or
        null), `channels` (`"RGB"`, `"grayscale"` or null), `normalization` (`mean` and `std`, or
        null) and `values`, in words.

    Raises:
        ValueError: If the normalization fits no input.

    Example:

    >>> import tempfile, keras
    >>> from pathlib import Path
    >>> from dprp_tf.deploy import export
    >>> from dprp_tf.deploy.running.runtime import load_file
    >>> dense = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2)])
    >>> path = Path(tempfile.mkdtemp()) / "dense.onnx"
    >>> _ = export(dense, path)
    >>> describe_inputs(load_file(path))[0]["shape"]
    [None, 4]
    """
    described = [_input(tensor) for tensor in model.inputs]
    if normalization is not None:
        _normalize(described, normalization)
    for entry in described:
        entry["values"] = _input_words(entry)
    return described


def describe_outputs(
    model: RuntimeModel,
    labels: Sequence[str] | None = None,
    activations: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Describe what a file gives.

    Args:
        model: The file, loaded.
        labels: Names of the classes; None for none.
        activations: Output name to the activation that computes it, `"SOFTMAX"` or `"LOGISTIC"`,
            where it is known.

    Returns:
        For each output `name`, `shape`, `dtype` and `quantization` as of inputs, `labels` (the
        file that names its last axis, or null), `activation` and `values`, in words.

    Raises:
        ValueError: If no output has a score for each label.

    Example:

    >>> import tempfile, keras
    >>> from pathlib import Path
    >>> from dprp_tf.deploy import export
    >>> from dprp_tf.deploy.running.runtime import load_file
    >>> dense = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="y")])
    >>> path = Path(tempfile.mkdtemp()) / "dense.onnx"
    >>> _ = export(dense, path)
    >>> describe_outputs(load_file(path), ["cat", "dog"])[0]["labels"]
    'labels.txt'
    """
    found = activations or {}
    described = [
        {**_tensor(tensor), "labels": None, "activation": found.get(tensor.name)}
        for tensor in model.outputs
    ]
    if labels is not None:
        fitting = [
            entry
            for entry in described
            if len(entry["shape"]) > 1 and entry["shape"][-1] == len(labels)
        ]
        # Maps of classes have labels too, where no output is a row of scores.
        fitting = [entry for entry in fitting if len(entry["shape"]) == 2] or fitting
        if not fitting:
            shapes = ", ".join(f"{e['name']!r} of {shape_text(e['shape'])}" for e in described)
            raise ValueError(
                "`labels` must name as many classes as an output has scores. Received: "
                f"{len(labels)} labels for the outputs {shapes}. Give a label for each score."
            )
        for entry in fitting:
            entry["labels"] = "labels.txt"
    for entry in described:
        entry["values"] = _output_words(entry)
    return described


def shape_text(shape: Sequence[int | None]) -> str:
    """Write a shape as people do.

    Args:
        shape: Lengths of the axes; None for any length.

    Returns:
        The text.

    Example:

    >>> shape_text([None, 8, 8, 1])
    'any x 8 x 8 x 1'
    """
    return " x ".join("any" if edge is None else str(edge) for edge in shape) or "a number"


def _tensor(tensor: Any) -> dict[str, Any]:
    quantization = None
    if tensor.scale:
        quantization = {"scale": tensor.scale, "zero_point": tensor.zero_point}
    return {
        "name": tensor.name,
        "shape": list(tensor.shape),
        "dtype": tensor.dtype,
        "quantization": quantization,
    }


def _input(tensor: Any) -> dict[str, Any]:
    shape, layout, channels = tensor.shape, None, None
    if len(shape) == 4:
        # Keras' order first: a picture of one or three rows is rarer than one in this order.
        axis = next((axis for axis in (3, 1) if shape[axis] in _COLORS), None)
        if axis is not None:
            layout, channels = ("NHWC" if axis == 3 else "NCHW"), _COLORS[shape[axis]]
    return {
        **_tensor(tensor),
        "kind": "values" if layout is None else "image",
        "layout": layout,
        "channels": channels,
        "normalization": None,
    }


def _normalize(described: Sequence[dict[str, Any]], normalization: Normalization) -> None:
    """Write the mean and the standard deviation to the input that they are of."""
    pictures = [entry for entry in described if entry["kind"] == "image"]
    candidates = pictures or described
    if len(candidates) != 1:
        raise ValueError(
            "`normalization` must be for a file with one input, or one picture. Received: "
            f"{[entry['name'] for entry in candidates]}. Leave it out, and say in `description` "
            "what goes in."
        )
    entry = candidates[0]
    shape = entry["shape"]
    channels = shape[1 if entry["layout"] == "NCHW" else -1] if len(shape) > 1 else 1
    parts = _pair(normalization)
    for name, values in parts.items():
        if len(values) not in (1, channels):
            raise ValueError(
                f"`normalization` must have a {name} of one number, or one per channel "
                f"({channels or 'any'}). Received: {values} for {entry['name']!r} of "
                f"{shape_text(shape)}."
            )
    if "float" not in entry["dtype"] and entry["quantization"] is None:
        raise ValueError(
            "`normalization` must be for an input of floating-point or quantized values. Received: "
            f"{entry['name']!r}, which takes {entry['dtype']} as it is. Leave it out."
        )
    entry["normalization"] = parts


def _pair(normalization: Any) -> dict[str, list[float]]:
    try:
        mean, std = normalization
        parts = {
            name: np.asarray(values, np.float64).reshape(-1).tolist()
            for name, values in (("mean", mean), ("std", std))
        }
    except (TypeError, ValueError) as error:
        raise ValueError(
            "`normalization` must be a mean and a standard deviation, each one number or one per "
            f"channel. Received: {normalization!r:.80}"
        ) from error
    # As the samples compute with them: in float32 a small number may be 0, a large one infinite.
    with np.errstate(over="ignore"):
        as_float32 = {name: np.asarray(values, np.float32) for name, values in parts.items()}
    finite = all(np.isfinite(values).all() for values in as_float32.values())
    if not finite or (as_float32["std"] <= 0).any():
        raise ValueError(
            "`normalization` must hold finite numbers, standard deviations above 0. Received: "
            f"mean={parts['mean']}, std={parts['std']}"
        )
    return parts


def _input_words(entry: Mapping[str, Any]) -> str:
    words = "values as in training"
    if entry["kind"] == "image":
        words = f"{entry['channels']} pixels as in training"
    normalization = entry["normalization"]
    if normalization is not None:
        source = f"{entry['channels']} pixels from 0 to 255" if entry["kind"] == "image" else "x"
        mean, std = (
            ", ".join(f"{value:.7g}" for value in normalization[part]) for part in ("mean", "std")
        )
        words = f"{source}, as (x - mean) / std with mean {mean} and std {std}"
    return words + _quantized_words(entry, "round(x / {scale:.9g}) + ({zero_point})")


def _output_words(entry: Mapping[str, Any]) -> str:
    words = "values"
    if entry["labels"]:
        words = "a score for each label, larger is likelier"
    words = _SHARES.get(entry["activation"] or "", words)
    return words + _quantized_words(entry, "(x - ({zero_point})) * {scale:.9g}")


def _quantized_words(entry: Mapping[str, Any], formula: str) -> str:
    if entry["quantization"] is None:
        return ""
    return f"; {entry['dtype']}: " + formula.format(**entry["quantization"])
