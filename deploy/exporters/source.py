"""A Keras model as the exporters see it: plain layers, float32, named inputs and outputs."""

from __future__ import annotations

import keyword
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dprp_tf.deploy.running.batches import as_dtype, check_batches, split_batches

if TYPE_CHECKING:
    import keras

__all__ = ["Source"]

_CHUNK = 64
_RANDOM_SAMPLES = 32
_RANDOM_EDGE = 32


@dataclass(frozen=True)
class Source:
    """A checked, float32 model with one name, shape and dtype per input and a name per output.

    Args:
        model: The model to convert; a float32 twin of the user's where that one computes in
            another precision.
        inputs: Input name to `(shape, dtype)`; `shape` starts with the batch axis: `None`, or the
            only batch size that the model computes with.
        outputs: Output names in the order of `keras.tree.flatten(model.output)`.
        notes: What a reader of the export report should know about the model.
        model_names: Name of each input and output in the file to its name in the model. The
            file's are legal in every format, and no two of them are equal.
    """

    model: keras.Model
    inputs: dict[str, tuple[tuple[int | None, ...], str]]
    outputs: tuple[str, ...]
    notes: tuple[str, ...] = ()
    model_names: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Any) -> Source:
        """Check `model` and describe it for an exporter.

        Args:
            model: A built Functional or Sequential model without low-rank layers.

        Returns:
            The description that exporters and the parity check share.

        Raises:
            ValueError: If the backend is not TensorFlow, the model is not built, is
                subclassed with its own `call`, holds low-rank layers, quantized ones or
                ones with a state, takes texts, or does not give one output per sample.

        Example:

        >>> import keras
        >>> model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2, name="y")])
        >>> Source.of(model).inputs
        {'x': ((None, 4), 'float32')}
        """
        import keras

        if keras.backend.backend() != "tensorflow":
            raise ValueError(
                "Export needs Keras' TensorFlow backend. Received: "
                f"backend={keras.backend.backend()!r}. Save the model as .keras, set "
                "KERAS_BACKEND=tensorflow, load it there and export it."
            )
        _require_plain(model)
        twin, notes = _in_float32(model)
        # Sequential, which has one output, does not name it.
        outputs = getattr(model, "output_names", None) or [model.layers[-1].name]
        given = [*(tensor.name for tensor in model.inputs), *outputs]
        # Together: an output that has an input's name would be that input to ONNX.
        names = _unique_names(given)
        batch = _batch_size(twin)
        if batch is not None:
            notes += (f"the model computes with batches of {batch} only, and so does the file",)
        inputs = {}
        for name, tensor in zip(names, twin.inputs, strict=False):
            _require_numbers(f"input {tensor.name!r}", str(tensor.dtype))
            inputs[name] = ((batch, *tensor.shape[1:]), str(tensor.dtype))
        return cls(
            twin,
            inputs,
            tuple(names[len(inputs) :]),
            (*notes, *_renamed(given, names, len(inputs))),
            dict(zip(names, given, strict=True)),
        )

    @property
    def batch(self) -> int | None:
        """The only batch size that the model computes with, `None` if it takes any."""
        return next(iter(self.inputs.values()))[0][0]

    def serve(self, *tensors: Any) -> dict[str, Any]:
        """Call the model on one tensor per input, in the order of `inputs`.

        Args:
            *tensors: Tensors of shape `(batch, ...)`.

        Returns:
            Output name to tensor.

        Example:

        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="y")])
        >>> Source.of(model).serve(np.zeros((1, 4), "float32"))["y"].shape
        TensorShape([1, 2])
        """
        import keras

        # Sequential, which has one input, has no `input` before it was called.
        single = isinstance(self.model, keras.Sequential)
        packed = (
            tensors[0] if single else keras.tree.pack_sequence_as(self.model.input, list(tensors))
        )
        flat = keras.tree.flatten(self.model(packed, training=False))
        return dict(zip(self.outputs, flat, strict=True))

    def predict(self, data: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute the model's outputs on checked data, chunk by chunk.

        Args:
            data: Input name to array, as `check_data` returns it.

        Returns:
            Output name to array of shape `(samples, ...)`.

        Raises:
            ValueError: If an output is not finite, which no file could reproduce, or holds no
                real numbers.

        Example:

        >>> import keras
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="y")])
        >>> source = Source.of(model)
        >>> source.predict(source.random_data())["y"].shape
        (32, 2)
        """
        samples = len(next(iter(data.values())))
        chunks: dict[str, list[np.ndarray]] = {name: [] for name in self.outputs}
        for part in split_batches(data, self.batch, _CHUNK):
            for name, tensor in self.serve(*(part[name] for name in self.inputs)).items():
                chunks[name].append(np.asarray(tensor))
        outputs = {name: np.concatenate(parts)[:samples] for name, parts in chunks.items()}
        for name, values in outputs.items():
            # What Keras promises of an output's dtype is not always what it gives.
            kind = "string" if values.dtype.kind in "OSU" else values.dtype.name
            _require_numbers(f"output {name!r}", kind)
            if not np.isfinite(values).all():
                raise ValueError(
                    f"`model` must give finite outputs on the data it is verified on. Received: "
                    f"output {name!r} with {int((~np.isfinite(values)).sum())} NaN or infinite "
                    "values. Look for NaN weights or unscaled inputs."
                )
        return outputs

    def check_data(self, data: Any, argument: str) -> dict[str, np.ndarray]:
        """Bring a user's array, list or dict of arrays into the form of the model's inputs.

        Args:
            data: One array for a single input, else a list in the order of `model.inputs` or a
                dict by the inputs' names in the model or the file. Each has shape
                `(samples, ...)`.
            argument: Name of the argument it came through, for the error message.

        Returns:
            Input name to array in the input's dtype.

        Raises:
            ValueError: If names, number of arrays, shapes or sample counts do not fit, a value is
                not finite, or the input's dtype can't hold it.

        Example:

        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2)])
        >>> Source.of(model).check_data(np.zeros((3, 4)), "verification_data")["x"].dtype
        dtype('float32')
        """
        shapes = {name: shape for name, (shape, _) in self.inputs.items()}
        if isinstance(data, Mapping) and set(data) != set(shapes):
            wanted = {self.model_names.get(name, name): name for name in shapes}
            data = {wanted.get(name, name): array for name, array in data.items()}
        checked = {}
        for name, array in check_batches(data, shapes, argument).items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ValueError(
                    f"`{argument}` must be finite. Received: NaN or infinite values in input "
                    f"{name!r}."
                )
            checked[name] = as_dtype(array, self.inputs[name][1], name, argument)
        return checked

    def random_data(self, samples: int = _RANDOM_SAMPLES, seed: int = 0) -> dict[str, np.ndarray]:
        """Draw seeded random inputs, for want of real ones.

        Floating-point inputs are uniform in [0, 1), uint8 in 0..255, other integers 0 or 1;
        an axis of unknown length gets 32.

        Args:
            samples: How many. Defaults to 32.
            seed: Seed of the generator. Defaults to 0.

        Returns:
            Input name to array.

        Example:

        >>> import keras
        >>> model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2)])
        >>> Source.of(model).random_data(samples=5)["x"].shape
        (5, 4)
        """
        generator = np.random.default_rng(seed)
        data: dict[str, np.ndarray] = {}
        for name, (shape, dtype) in self.inputs.items():
            full = (samples, *(edge or _RANDOM_EDGE for edge in shape[1:]))
            if "float" in dtype:
                data[name] = generator.random(full, dtype=np.float32)
            else:
                high = 256 if dtype == "uint8" else 2
                data[name] = generator.integers(0, high, full).astype(dtype)
        return data


def _require_plain(model: Any) -> None:
    import keras

    from dprp_tf.keras_internals.graphs import layers_inside
    from dprp_tf.layers import FactorizedLayer

    if not isinstance(model, keras.Model):
        raise ValueError(
            f"`model` must be a Keras model. Received: {type(model).__name__}{_remedy(model)}."
        )
    if not model.built or not getattr(model, "inputs", None):
        raise ValueError(
            "`model` must be a built Functional or Sequential model. Received: "
            f"model={model.name!r} without known inputs. Give it a keras.Input first."
        )
    if not type(model).call.__module__.startswith("keras."):
        raise ValueError(
            "`model` must compute what its graph says. Received: "
            f"{model.name!r} of the class {type(model).__name__}, whose own call() may do more. "
            "Export keras.Model(model.inputs, model.outputs), or make what call() adds a "
            "layer."
        )
    low_rank = []
    for layer in layers_inside(model):
        if isinstance(layer, FactorizedLayer):
            low_rank.append(f"{layer.name} ({type(layer).__name__})")
        elif "quantized" in type(layer.dtype_policy).__name__.lower():
            raise ValueError(
                "`model` must not be quantized by Keras before export. Received: layer "
                f"{layer.name!r} with dtype policy {layer.dtype_policy.name!r}. Export the "
                "unquantized model with quantization='int8' instead."
            )
        elif getattr(layer, "stateful", False):
            raise ValueError(
                "`model` must hold no layer that keeps its state from one call to the next, which "
                f"no file does. Received: layer {layer.name!r} with stateful=True. Rebuild it "
                "with stateful=False, its state as inputs and outputs of the model if need be."
            )
    if low_rank:
        shown = ", ".join(low_rank[:5])
        shown += f" and {len(low_rank) - 5} more" if low_rank[5:] else ""
        raise ValueError(
            "`model` must not hold low-rank layers, whose kernels would be rebuilt in every "
            f"inference. Received: {shown}. Call dprp_tf.fold(model) first."
        )


def _remedy(model: Any) -> str:
    """What to do about something that is no Keras model, as the end of a message."""
    if isinstance(model, (str, os.PathLike)):
        return ". Load the file first: keras.saving.load_model(path)"
    kinds = [kind for kind in type(model).__mro__ if kind.__module__.split(".")[0] != "builtins"]
    # Both packages are called Keras; the one that speaks of an engine is the second version.
    if any(kind.__module__.startswith(("tf_keras.", "keras.src.engine.")) for kind in kinds):
        return (
            " of Keras 2 (tf_keras, or tf.keras with TF_USE_LEGACY_KERAS=1). Build the same "
            "network with the layers of Keras 3 and copy the weights: "
            "new.set_weights(old.get_weights())"
        )
    if hasattr(model, "signatures"):
        return (
            ", a SavedModel, which holds no layers. Load the .keras file that it was made from: "
            "keras.saving.load_model(path)"
        )
    return ". Pass the model itself, such as keras.Model(inputs, outputs)"


def _require_numbers(what: str, dtype: str) -> None:
    if not dtype.startswith(("float", "int", "uint", "bool")):
        raise ValueError(
            f"`model` must take and give real numbers. Received: {what} of dtype {dtype}. Keep "
            "layers that turn texts into numbers, such as StringLookup and TextVectorization, in "
            "front of the model, and give it what they give through keras.Input(dtype='int64')."
        )


def _in_float32(model: Any) -> tuple[Any, tuple[str, ...]]:
    from dprp_tf.keras_internals.precision import in_float32, other_precisions

    computed = other_precisions(model)
    if not computed:
        return model, ()
    note = (
        f"the model computes in {', '.join(computed)}; the file was made from, and compared with, "
        "the same weights in float32"
    )
    return in_float32(model), (note,)


def _batch_size(model: Any) -> int | None:
    """The batch size that the model's computation is bound to, None if it takes any."""
    import keras

    declared = {tensor.shape[0] for tensor in model.inputs} - {None}
    if len(declared) > 1:
        raise ValueError(
            "`model` must take as many samples in every input. Received: batch sizes "
            f"{sorted(declared)}. Rebuild it on keras.Input without batch_size."
        )
    batch = declared.pop() if declared else None
    for tensor in model.outputs:
        if not tensor.shape or tensor.shape[0] not in {batch, None}:
            raise ValueError(
                "`model` must compute one output per sample. Received: an output of shape "
                f"{tensor.shape} for a batch of {batch or 'any size'}. Give it outputs whose "
                "first axis is that of the inputs."
            )
    if batch is None:
        return None
    single = isinstance(model, keras.Sequential)
    opened = [keras.KerasTensor((None, *t.shape[1:]), dtype=t.dtype) for t in model.inputs]
    try:
        outputs = model.compute_output_spec(
            opened[0] if single else keras.tree.pack_sequence_as(model.input, opened)
        )
    except Exception:  # operations raise whatever they like on shapes that do not fit
        return int(batch)
    spread = all(tensor.shape[0] is None for tensor in keras.tree.flatten(outputs))
    return None if spread else int(batch)


def _unique_names(names: list[str]) -> list[str]:
    """Make names that TensorFlow takes as arguments of a function, no two of them equal."""
    legal = [_legal_name(name) for name in names]
    unique = [""] * len(names)
    taken: set[str] = set()
    # A name that may stay as it is comes before one that becomes the same by being cleaned.
    for position in sorted(range(len(names)), key=lambda n: legal[n] != names[n]):
        candidate, count = legal[position], 0
        # TensorFlow does not tell upper case from lower here.
        while candidate.lower() in taken:
            count += 1
            candidate = f"{legal[position]}_{count}"
        taken.add(candidate.lower())
        unique[position] = candidate
    return unique


def _legal_name(name: str) -> str:
    clean = re.sub(r"\W", "_", name, flags=re.ASCII) or "tensor"
    # TensorFlow drops the names of a function's arguments where one of them could not be an
    # argument's in Python or is `self`.
    illegal = keyword.iskeyword(clean) or clean == "self" or not clean[0].isalpha()
    return f"t_{clean}" if illegal else clean


def _renamed(given: list[str], names: list[str], inputs: int) -> tuple[str, ...]:
    changed = [
        f"{'input' if position < inputs else 'output'} {old!r} is {new!r}"
        for position, (old, new) in enumerate(zip(given, names, strict=True))
        if old != new
    ]
    return (f"names changed in the file: {', '.join(changed)}",) if changed else ()
