"""Write a Keras model whole or not at all; read one, or say in one line why it can't be."""

from __future__ import annotations

import os
import warnings
import zipfile
from pathlib import Path

import keras

from dprp_tf import layers
from dprp_tf.files.atomic import atomic_path
from dprp_tf.keras_internals.variable_limit import variables_up_to
from dprp_tf.training import model as training
from dprp_tf.training.divergence import broken_slots, broken_weights, is_finite
from dprp_tf.training.model_archives import check_weights, largest_model

__all__ = ["load_model", "load_weights", "save_model"]

# Loading needs the classes above registered with Keras, which importing them does.
_REGISTERED = (layers, training)

_LONGEST_REASON = 200
_OLDER = (".h5", ".hdf5")
_OLDER_HINT = (
    ". Of weights alone, build the model and call model.load_weights(); a model of Keras 2 that "
    "this version can't read is opened by tf_keras, whose get_weights() fill the same model "
    "built in Keras 3. Then save that as .keras."
)


def save_model(model: keras.Model, path: str | os.PathLike[str]) -> Path:
    """Write a model, with its optimizer if it is compiled, whole or not at all.

    What is NaN or infinite is not written: `load_model` would refuse it.

    Args:
        model: A Keras model.
        path: The `.keras` file, replaced if it is there.

    Returns:
        The path.

    Raises:
        ValueError: If a weight or a variable of the optimizer is not finite; a file that is there
            already stays as it is.

    Example:

    >>> import tempfile
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> save_model(model, Path(tempfile.mkdtemp()) / "small.keras").exists()
    True
    """
    broken = [f"`{name}` of layer {layer!r}" for layer, name in broken_weights(model)]
    broken += [f"the optimizer's `{name}`" for name in broken_slots(model)]
    if broken:
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise ValueError(
            f"`model` must hold finite weights to be saved. Received: {broken[0]}{more} with NaN "
            f"or infinite values, so {path} was not written. Go on from an earlier checkpoint."
        )
    with atomic_path(path) as temporary:
        model.save(temporary)
    return Path(path)


def load_model(path: str | os.PathLike[str]) -> keras.Model:
    """Load a model, plain or factorized, with its optimizer if it was saved with one.

    What was damaged on the way is refused: every member is checked against its checksum before it
    is used. (Keras itself reads weights by seeking, where Python's zip reader, by version, checks
    none.) A changed configuration whose checksum is right describes another model and is loaded as
    such, if the weights fit it. What a file claims is held against what it holds before memory is
    taken: a configuration of weights that are not in the file is refused, and so are members that
    expand to more than a hundred times the file.

    A `.h5` file of older versions is read where Keras reads it.

    Args:
        path: The `.keras` file, or a whole model as `.h5`.

    Returns:
        The model, with the ranks it was saved with.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not a whole Keras archive, can't be understood, or holds weights
            that are NaN or infinite; if it is a SavedModel, which Keras 3 does not take apart.

    Example:

    >>> load_model("missing.keras")
    Traceback (most recent call last):
    ...
    FileNotFoundError: `path` must be a .keras file. Received: missing.keras, which does not exist.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(
            f"`path` must be a .keras file. Received: the folder {path}{_if_saved_model(path)}"
        )
    if not path.is_file():
        raise FileNotFoundError(
            f"`path` must be a .keras file. Received: {path}, which does not exist."
        )
    older = path.suffix.lower() in _OLDER
    if not older and (path.suffix != ".keras" or not zipfile.is_zipfile(path)):
        raise ValueError(
            f"`path` must be a whole .keras archive. Received: {path} ({path.stat().st_size} "
            "bytes), which is truncated or of another kind. Save it again with model.save()."
        )
    try:
        with variables_up_to(largest_model(path)):
            model = keras.saving.load_model(path)
    except Exception as error:  # Keras, HDF5 and TensorFlow raise whatever they come across
        hint = _OLDER_HINT if older else ""
        raise ValueError(
            "`path` must be a Keras model this version can load. "
            f"Received: {path} ({_reason(error)}){hint}"
        ) from error
    _require_finite(model, path)
    return model


def load_weights(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Load what `save_model` wrote into a model of the same network, its optimizer included.

    The file is checked as `load_model` checks it, but none of its configuration is used.

    Args:
        model: The model, compiled; its optimizer built.
        path: The `.keras` file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not a whole Keras archive, does not fit the model, or holds
            values that are NaN or infinite.

    Example:

    >>> import tempfile
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> load_weights(model, save_model(model, Path(tempfile.mkdtemp()) / "small.keras"))
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"`path` must be a .keras file. Received: {path}, which does not exist."
        )
    try:
        check_weights(path)
        with warnings.catch_warnings():
            # Keras warns of what it leaves out, and goes on with what the model had.
            warnings.simplefilter("error", UserWarning)
            model.load_weights(path)
    except Exception as error:  # Keras, HDF5 and TensorFlow raise whatever they come across
        raise ValueError(
            f"`path` must be a whole .keras archive of this model. Received: {path} "
            f"({_reason(error)})."
        ) from error
    _require_finite(model, path)
    slots = broken_slots(model)
    if slots:
        raise ValueError(
            f"`path` must hold a finite optimizer. Received: {path}, in which {slots[0]} has NaN "
            "or infinite values."
        )


def _if_saved_model(folder: Path) -> str:
    if not (folder / "saved_model.pb").is_file():
        return "."
    return (
        ", a SavedModel: a computation without layers that could be factorized, folded or exported "
        "anew. Save the model that it was made from with model.save('model.keras'); where there is "
        "only this, tf.lite.TFLiteConverter.from_saved_model converts it as it is."
    )


def _require_finite(model: keras.Model, path: Path) -> None:
    for variable in model.weights:
        if not is_finite(variable):
            raise ValueError(
                f"`path` must hold finite weights. Received: {path}, in which {variable.path} has "
                "NaN or infinite values: it was saved after the training had diverged. Load an "
                "earlier checkpoint."
            )


def _reason(error: Exception) -> str:
    # Where one object holds another, Keras puts the first reason last.
    text = str(error).rpartition("Exception encountered: ")[2]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # Of a list of what failed, Keras names the object first and the reason after it.
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}..."
