"""Turns saved graphs into .tflite files, one request after another, in a process of its own.

`conversion_process.py` starts this file as a script; it imports nothing of ours, so that it is
there as soon as TensorFlow is. A request is a line of JSON on stdin, the answer one on stdout.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["convert_saved", "failure", "samples_file"]

_ENDS_IDLE = hasattr(signal, "alarm")


def convert_saved(request: Mapping[str, Any]) -> None:
    """Convert what lies in a folder to `model.tflite` there.

    Args:
        request: `folder`; `frozen`, None for the SavedModel `saved`, else the names of the
            `inputs` and `outputs` of the frozen graph in `graph.pb`; `quantization`, None,
            `"float16"`, `"dynamic"` or `"int8"`; `integer_io`; `samples`, the names of the inputs
            whose calibration data lie in `samples_file`, in order, or None for none; `batch`, how
            many samples the model takes at a time.

    Raises:
        Exception: What the converter raises; its exceptions share no base class.
    """
    import tensorflow as tf

    folder = Path(request["folder"])
    if request["frozen"] is None:
        converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / "saved"))
    else:
        function = _frozen_function(folder / "graph.pb", **request["frozen"])
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function], None)
    quantization, integer_io = request["quantization"], request["integer_io"]
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    converter.allow_custom_ops = False
    if quantization is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantization == "float16":
        converter.target_spec.supported_types = [tf.float16]
    # Without samples the model was trained with quantizers and carries its own ranges.
    if request["samples"] is not None:
        converter.representative_dataset = _samples(request)
        int8 = tf.lite.OpsSet.TFLITE_BUILTINS_INT8
        # Integer-only targets can't run what stays in float; others get it with a note.
        converter.target_spec.supported_ops = (
            [int8] if integer_io else [int8, tf.lite.OpsSet.TFLITE_BUILTINS]
        )
    if integer_io:
        converter.inference_input_type = tf.int8
        converter.inference_output_type = tf.int8
    (folder / "model.tflite").write_bytes(converter.convert())


def samples_file(folder: Path, position: int) -> Path:
    """Name the file with the calibration data of an input.

    Args:
        folder: The request's folder.
        position: The input's, from 0.

    Returns:
        The path, which need not exist.

    Example:

    >>> samples_file(Path("request"), 1).name
    'samples_1.npy'
    """
    return folder / f"samples_{position}.npy"


def failure(error: Exception) -> str:
    """Say what an exception of the converter says, or at least its kind.

    Args:
        error: The exception.

    Returns:
        A text that is not empty.

    Example:

    >>> failure(ValueError("no kernel")), failure(KeyError())
    ('no kernel', 'KeyError')
    """
    return str(error).strip() or type(error).__name__


def _frozen_function(path: Path, inputs: list[str], outputs: list[str]) -> Any:
    import tensorflow as tf

    graph = tf.compat.v1.GraphDef.FromString(path.read_bytes())
    whole = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(graph, name=""), [])
    return whole.prune(
        [whole.graph.get_tensor_by_name(name) for name in inputs],
        [whole.graph.get_tensor_by_name(name) for name in outputs],
    )


def _samples(request: Mapping[str, Any]) -> Callable[[], Iterator[Any]]:
    import numpy as np

    folder, names, batch = Path(request["folder"]), request["samples"], request["batch"]
    arrays = [
        np.load(samples_file(folder, position), mmap_mode="r", allow_pickle=False)
        for position in range(len(names))
    ]

    def samples() -> Iterator[Any]:
        for start in range(0, len(arrays[0]), batch):
            parts = [np.array(array[start : start + batch]) for array in arrays]
            # A frozen graph has no names to give them by.
            yield parts if request["frozen"] else dict(zip(names, parts, strict=True))

    return samples


def _end_with_the_parent(lifeline: int) -> None:
    """Have the kernel end this process when the other end of a pipe that nobody writes to closes.

    The converter lets no Python run for long, and what is stopped runs nothing at all. (Linux can
    also tell of a parent's end, but means the thread that started this process, which may be done.)
    """
    import fcntl
    import select

    # Only what SIGKILL ends ends while it is stopped; elsewhere than on Linux it is SIGIO.
    if hasattr(fcntl, "F_SETSIG"):
        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    else:
        signal.signal(signal.SIGIO, signal.SIG_DFL)  # it may have been started with this ignored
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    flags = fcntl.fcntl(lifeline, fcntl.F_GETFL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, flags | os.O_ASYNC)
    # Of what happened before the kernel was asked it does not tell.
    if select.select([lifeline], [], [], 0)[0]:
        sys.exit("The process that this one was to work for has ended.")


def _serve(idle: int, lifeline: int | None) -> None:
    if lifeline is not None:
        _end_with_the_parent(lifeline)
    # What the converter prints must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    import tensorflow  # noqa: F401

    # The converter collects garbage in every run, and would walk all of TensorFlow each time.
    gc.freeze()
    if _ENDS_IDLE:  # this too it may have been started with ignored
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    print(json.dumps("ready"), file=answers, flush=True)
    while True:
        if _ENDS_IDLE:
            signal.alarm(idle)
        line = sys.stdin.buffer.readline()
        if _ENDS_IDLE:
            signal.alarm(0)
        if not line:
            return
        os.lseek(2, 0, os.SEEK_SET)
        os.ftruncate(2, 0)
        try:
            convert_saved(json.loads(line))
            error = None
        except Exception as raised:  # the converter's exceptions share no public base class
            error = failure(raised)
        print(json.dumps({"error": error}), file=answers, flush=True)


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
