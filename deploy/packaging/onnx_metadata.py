"""Metadata inside an .onnx file: entries of its `metadata_props`, each a text or JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dprp_tf.files.extras import require
from dprp_tf.files.json_text import to_json

__all__ = ["with_properties"]


def with_properties(
    path: Path, description: Mapping[str, Any], labels: Sequence[str] | None = None
) -> bytes:
    """Give an .onnx file metadata; entries of these names that it had are replaced.

    Weights that lie in files beside it come into it.

    Args:
        path: The file.
        description: `name`, `description`, `license`, `inputs` and `outputs`.
        labels: Names of the classes; None for none.

    Returns:
        The content of the file with metadata: `name`, `description` and `license` as texts,
        `labels`, `inputs` and `outputs` as JSON.

    Raises:
        ImportError: If the extra `export` is missing.
        ValueError: If its weights do not fit into one file.

    Example:

    >>> with_properties.__name__
    'with_properties'
    """
    onnx = require("onnx", extra="export", feature="Packaging an .onnx file")
    model = onnx.load(str(path))
    values = {key: description[key] or "" for key in ("name", "description", "license")}
    values |= {key: to_json(description[key]) for key in ("inputs", "outputs")}
    values["labels"] = "" if labels is None else to_json(list(labels))
    kept = {entry.key: entry.value for entry in model.metadata_props if entry.key not in values}
    kept |= {key: value for key, value in values.items() if value}
    onnx.helper.set_model_props(model, kept)
    try:
        return model.SerializeToString()
    except Exception as error:  # of protobuf, whose classes differ by its implementation
        raise ValueError(
            f"`path` must name a model that fits into one file of 2 GB. Received: path={path}. "
            "Package a smaller one."
        ) from error
