"""Keras models to the bytes of .tflite files: traced here, converted in a process of its own."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dprp_tf.deploy.exporters.conversion_process import (
    CONVERTER,
    ConversionError,
    ConverterDiedError,
)
from dprp_tf.deploy.exporters.conversion_worker import failure, samples_file
from dprp_tf.deploy.exporters.dying_layer import first_dying_layer
from dprp_tf.deploy.exporters.flatbuffer import in_order
from dprp_tf.deploy.exporters.source import Source
from dprp_tf.deploy.running.batches import split_batches
from dprp_tf.deploy.running.quiet import quiet

__all__ = ["Conversion"]

Calibration = dict[str, np.ndarray]

# Enough for a crash to show again, in one part of the model after another.
_FEW = 2
# A full disk, and limits of how much may be written; TensorFlow tells of them in words alone.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Conversion:
    """How models become the bytes of a .tflite file.

    Args:
        quantization: `None`, `"float16"`, `"dynamic"` or `"int8"`.
        integer_io: Inputs and outputs are int8 too.
        named: Whether the file keeps the names of inputs and outputs, which takes twice the time;
            else outputs are `Identity`, `Identity_1`, ... in the model's order.

    Example:

    >>> import keras
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> Conversion("float16", integer_io=False).convert(Source.of(model), None)[4:8]
    b'TFL3'
    """

    quantization: str | None
    integer_io: bool
    named: bool = True

    def convert(self, source: Source, calibration: Calibration | None) -> bytes:
        """Convert a model.

        Args:
            source: The model, with inputs of fixed shape.
            calibration: Input name to array for `"int8"`; None if the model was trained with
                quantizers, or for another precision.

        Returns:
            The file's content.

        Raises:
            ValueError: If the converter refuses the model, or crashes on it.
        """
        if calibration is not None:
            source = _without_loops(source)
        content = self._content(source, calibration)
        # The converter sorts them by name.
        return in_order(content, list(source.inputs), source.outputs) if self.named else content

    def _content(self, source: Source, calibration: Calibration | None) -> bytes:
        try:
            return self._attempt(source, calibration)
        except ConverterDiedError as death:
            if death.from_outside:
                raise ValueError(
                    "`model` must be convertible in the memory that there is. Received: "
                    f"{self._of(source)}, which was ended from outside ({death}), as systems do "
                    "where memory runs out. Close what else needs memory, or give fewer samples."
                ) from death
            samples = calibration and {name: x[:_FEW] for name, x in calibration.items()}
            layer = first_dying_layer(source, samples, self._dies)
            if layer is not None:
                raise ValueError(
                    "`model` must hold layers that the converter can take. Received: layer "
                    f"{layer.name!r} ({layer.kind}), on which it crashes ({death}) for "
                    f"quantization={self.quantization!r}. Use another quantization, replace the "
                    "layer, or, if it loops over steps, give it unroll=True."
                ) from death
        # Someone may have ended the process, or the crash takes more samples than a few.
        try:
            return self._attempt(source, calibration)
        except ConverterDiedError as death:
            raise ValueError(
                f"`model` must be convertible to .tflite. Received: {self._of(source)}, which "
                f"crashes the converter ({death}) with some of the samples. Use another "
                "quantization, or leave those samples out."
            ) from death

    def _of(self, source: Source) -> str:
        return f"the conversion of {source.model.name!r} for quantization={self.quantization!r}"

    def _dies(self, source: Source, calibration: Calibration | None) -> bool:
        try:
            self._attempt(source, calibration)
        except ConverterDiedError:
            return True
        except ValueError:  # a part may be refused where the whole is not
            return False
        return False

    def _attempt(self, source: Source, calibration: Calibration | None) -> bytes:
        CONVERTER.start()
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
            folder = Path(temporary).resolve()
            try:
                with quiet():
                    frozen = self._write(source, folder, calibrated=calibration is not None)
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                # Else it would be told of the file that is exported, which lies elsewhere.
                raise ValueError(_conversion_message(str(error))) from error
            if calibration is not None:
                _write_samples(calibration, source.batch, folder)
            try:
                CONVERTER.convert(
                    {
                        "folder": str(folder),
                        "frozen": frozen,
                        "quantization": self.quantization,
                        "integer_io": self.integer_io,
                        "samples": None if calibration is None else list(calibration),
                        "batch": source.batch or 1,
                    }
                )
            except ConversionError as error:
                raise ValueError(_conversion_message(str(error))) from error
            return (folder / "model.tflite").read_bytes()

    def _write(
        self, source: Source, folder: Path, *, calibrated: bool
    ) -> dict[str, list[str]] | None:
        """Write the traced model; return the names of a frozen graph's inputs and outputs."""
        import tensorflow as tf
        from tensorflow.python.framework import convert_to_constants

        def listed(*tensors: Any) -> list[Any]:
            # A list keeps the outputs' order; a dict's would be sorted by name.
            return list(source.serve(*tensors).values())

        function = _concrete(source, source.serve if self.named else listed)
        if calibrated:
            _refuse_loops(function)
        if self.named:
            # A SavedModel holds what can be reached from here.
            holder = tf.Module()
            holder.variables_of_model = list(function.graph.variables)
            try:
                tf.saved_model.save(holder, str(folder / "saved"), signatures=function)
            except Exception as error:  # TensorFlow's exceptions share no public base class
                raise ValueError(_conversion_message(failure(error))) from error
            return None
        frozen = convert_to_constants.convert_variables_to_constants_v2(function)
        (folder / "graph.pb").write_bytes(frozen.graph.as_graph_def().SerializeToString())
        return {
            "inputs": [tensor.name for tensor in frozen.inputs],
            "outputs": [tensor.name for tensor in frozen.outputs],
        }


def _write_samples(calibration: Calibration, batch: int | None, folder: Path) -> None:
    for position, array in enumerate(calibration.values()):
        # Filled up to whole batches of a model that takes no others.
        parts = [part["x"] for part in split_batches({"x": array}, batch, chunk=len(array))]
        np.save(samples_file(folder, position), np.concatenate(parts), allow_pickle=False)


def _without_loops(source: Source) -> Source:
    """The model as the int8 calibrator can run it: it crashes on a loop."""
    from dprp_tf.keras_internals.unrolling import has_loops, unrolled

    return replace(source, model=unrolled(source.model)) if has_loops(source.model) else source


def _refuse_loops(function: Any) -> None:
    loops = [
        operation.name
        for operation in function.graph.get_operations()
        if operation.type in ("While", "StatelessWhile")
    ]
    if loops:
        raise ValueError(
            "`model` must hold no loop for quantization='int8': LiteRT's calibrator can't run one. "
            f"Received: a loop in {', '.join(loops)}. Give the layer unroll=True where it has "
            "that, or use quantization='dynamic' or 'float16'."
        )


def _concrete(source: Source, serve: Callable[..., Any]) -> Any:
    import tensorflow as tf

    # batch axis: None -> 1, which lets the converter fold shapes and the runtime plan memory
    signature = [
        tf.TensorSpec((shape[0] or 1, *shape[1:]), dtype, name=name)
        for name, (shape, dtype) in source.inputs.items()
    ]
    return tf.function(serve, input_signature=signature, autograph=False).get_concrete_function()


def _conversion_message(text: str) -> str:
    missing = re.findall(r"(?:TF Select|Custom) ops: ([^\n]+)", text)
    if missing:
        return (
            "`model` must need LiteRT's built-in operators alone. Received: operators that need "
            f"Flex (SELECT_TF_OPS) or a custom kernel: {', '.join(missing)}. Replace the layers "
            "that use them."
        )
    full = next((said for said in map(os.strerror, _FULL) if said in text), None)
    if full is not None:
        return (
            "The folder for temporary files must have room for a conversion. Received: "
            f"{tempfile.gettempdir()} ({full}). Make room, or set TMPDIR to another folder."
        )
    line = next(line for line in text.splitlines() if line.strip())
    return f"`model` must be convertible to .tflite. Received: the converter's error: {line[:300]}"
