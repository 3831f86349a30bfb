"""Run exported files in this process: LiteRT for .tflite, ONNX Runtime for .onnx."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dprp_tf.costs.accuracy import top_1_accuracy
from dprp_tf.deploy.running.batches import as_dtype, check_batches, split_batches
from dprp_tf.deploy.running.quiet import quiet
from dprp_tf.files.arguments import check_integer
from dprp_tf.files.extras import require

if TYPE_CHECKING:
    from dprp_tf.costs.scores import Score

__all__ = ["RuntimeModel", "evaluate_file", "load_file", "require_model_file", "run_file"]

_CHUNK = 64
_ONNX_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(int16)": "int16",
    "tensor(uint16)": "uint16",
    "tensor(int32)": "int32",
    "tensor(uint32)": "uint32",
    "tensor(int64)": "int64",
    "tensor(uint64)": "uint64",
    "tensor(bool)": "bool",
}
_DTYPES = frozenset(_ONNX_DTYPES.values())


@dataclass(frozen=True)
class _Tensor:
    name: str
    shape: tuple[int | None, ...]
    dtype: str
    index: int = 0
    scale: float = 0.0
    zero_point: int = 0


class RuntimeModel:
    """An exported file, loaded: named arrays in, named arrays out.

    Quantized inputs and outputs are converted from and to float32 by their scale and zero point;
    arrays that already have an input's integer dtype pass unchanged. Nothing else is converted
    but to a dtype that holds the values. Inputs and outputs stand in the order of the exported
    model, in files of other origin in the file's.

    Args:
        path: The `.tflite` or `.onnx` file.
        threads: Number of threads, 1 or more. Defaults to 1.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is of another format, truncated or not a model, or an input has no
            batch axis or holds no numbers.
    """

    inputs: tuple[_Tensor, ...]
    outputs: tuple[_Tensor, ...]

    def __init__(self, path: str | Path, threads: int = 1) -> None:
        self.path = require_model_file(path)
        self._load(check_integer("threads", threads))
        for tensor in self.inputs:
            if not tensor.shape or tensor.dtype not in _DTYPES:
                raise ValueError(
                    "`path` must name a file whose inputs are arrays of numbers with a batch axis. "
                    f"Received: path={self.path}, whose input {tensor.name!r} is of shape "
                    f"{tensor.shape} and dtype {tensor.dtype}. Give it a first axis for the "
                    "samples, or make a constant of it."
                )

    def run(self, inputs: Any, argument: str = "inputs") -> dict[str, np.ndarray]:
        """Run the file on a batch of any size.

        Args:
            inputs: An array `(samples, ...)`, or a list or dict of them for several inputs.
            argument: Name of the argument it came through, for the error message. Defaults to
                `"inputs"`.

        Returns:
            Output name to array of shape `(samples, ...)`; floating-point where quantized.

        Raises:
            ValueError: If a name, shape, sample count or value does not fit.
        """
        shapes = {tensor.name: tensor.shape for tensor in self.inputs}
        given = check_batches(inputs, shapes, argument)
        arrays = {
            tensor.name: _as_input(given[tensor.name], tensor, argument) for tensor in self.inputs
        }
        samples = len(next(iter(arrays.values())))
        chunks = []
        for part in split_batches(arrays, self.inputs[0].shape[0], _CHUNK):
            try:
                chunks.append(self._invoke(part))
            except Exception as error:  # runtimes raise whatever their kernels raise
                reason = " ".join(str(error).split())[:200]
                raise ValueError(
                    "`path` must name a file that the runtime can run. Received: "
                    f"path={self.path}, which it loads and fails to run: {reason}. Export it again."
                ) from error
        return {
            tensor.name: _as_output(
                np.concatenate([chunk[position] for chunk in chunks])[:samples], tensor
            )
            for position, tensor in enumerate(self.outputs)
        }

    def _load(self, threads: int) -> None:
        raise NotImplementedError

    def _invoke(self, arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        raise NotImplementedError


class _LiteRTModel(RuntimeModel):
    def _load(self, threads: int) -> None:
        litert = require(
            "ai_edge_litert.interpreter", extra="export", feature="Running a .tflite file"
        )
        try:
            with quiet():
                self._interpreter = litert.Interpreter(
                    model_path=str(self.path), num_threads=threads
                )
                # With open sizes the memory is planned when the data say them.
                if not any(_open(entry) for entry in self._interpreter.get_input_details()):
                    self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise _unreadable(self.path, error) from error
        all_inputs = self._interpreter.get_input_details()
        all_outputs = self._interpreter.get_output_details()
        signatures = self._interpreter.get_signature_list()
        if signatures:
            runner = self._interpreter.get_signature_runner(next(iter(signatures)))
            # A signature sorts by name.
            inputs = _in_order(runner.get_input_details(), all_inputs)
            outputs = _in_order(runner.get_output_details(), all_outputs)
        else:
            inputs = {entry["name"]: entry for entry in all_inputs}
            outputs = {entry["name"]: entry for entry in all_outputs}
        self.inputs = tuple(_litert_tensor(name, entry) for name, entry in inputs.items())
        self.outputs = tuple(_litert_tensor(name, entry) for name, entry in outputs.items())

    def _invoke(self, arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        if any(None in tensor.shape for tensor in self.inputs):
            with quiet():
                for tensor in self.inputs:
                    self._interpreter.resize_tensor_input(tensor.index, arrays[tensor.name].shape)
                self._interpreter.allocate_tensors()
        for tensor in self.inputs:
            self._interpreter.set_tensor(tensor.index, np.ascontiguousarray(arrays[tensor.name]))
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(tensor.index) for tensor in self.outputs]


class _OnnxModel(RuntimeModel):
    def _load(self, threads: int) -> None:
        onnxruntime = require("onnxruntime", extra="export", feature="Running an .onnx file")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            # On some broken files the runtime prints and tries again before it raises.
            with quiet():
                self._session = onnxruntime.InferenceSession(
                    str(self.path), options, providers=["CPUExecutionProvider"]
                )
            # Names of a broken file may be no text.
            self.inputs = tuple(_onnx_tensor(entry) for entry in self._session.get_inputs())
            self.outputs = tuple(_onnx_tensor(entry) for entry in self._session.get_outputs())
        except Exception as error:  # the runtime's exceptions share no base class but this one
            raise _unreadable(self.path, error) from error

    def _invoke(self, arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return self._session.run([tensor.name for tensor in self.outputs], dict(arrays))


_RUNTIMES: dict[str, type[RuntimeModel]] = {".tflite": _LiteRTModel, ".onnx": _OnnxModel}


def require_model_file(path: str | Path, argument: str = "path") -> Path:
    """Check that `path` names an existing file of a format that we can run.

    Args:
        path: The file.
        argument: Name of the argument it came through, for the error message.

    Returns:
        The path.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is empty or its suffix is neither `.tflite` nor `.onnx`.

    Example:

    >>> require_model_file("model.h5")
    Traceback (most recent call last):
      ...
    ValueError: `path` must name a .tflite or .onnx file. Received: path=model.h5.
    """
    path = Path(path)
    if path.suffix.lower() not in _RUNTIMES:
        raise ValueError(f"`{argument}` must name a .tflite or .onnx file. Received: path={path}.")
    if not path.is_file():
        raise FileNotFoundError(
            f"`{argument}` must name an existing file. Received: path={path}, which does not "
            "exist. Write it with deploy.export first."
        )
    if path.stat().st_size == 0:
        raise ValueError(f"`{argument}` must name a model. Received: path={path}, an empty file.")
    return path


def load_file(path: str | Path, threads: int = 1) -> RuntimeModel:
    """Load an exported file into this process.

    Args:
        path: The `.tflite` or `.onnx` file.
        threads: Number of threads, 1 or more. Defaults to 1.

    Returns:
        The loaded model; `.inputs` and `.outputs` describe its tensors, `.run` runs it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is of another format, truncated or not a model.

    Example:

    >>> load_file("missing.onnx")
    Traceback (most recent call last):
      ...
    FileNotFoundError: `path` must name an existing file. Received: path=missing.onnx, which \
does not exist. Write it with deploy.export first.
    """
    path = require_model_file(path)
    return _RUNTIMES[path.suffix.lower()](path, threads)


def run_file(
    path: str | Path,
    inputs: np.ndarray | Sequence[np.ndarray] | Mapping[str, np.ndarray],
    *,
    threads: int = 1,
) -> np.ndarray | dict[str, np.ndarray]:
    """Run an exported file on a batch of inputs, exactly as the target would.

    A file with a fixed batch of 1 runs sample by sample. Batching it through a resize gains
    nothing in LiteRT (measured: 0.81 ms per image at batch 1, 8 and 32).

    Args:
        path: The `.tflite` or `.onnx` file.
        inputs: An array `(samples, ...)`; for several inputs a dict by input name, or a list in
            the order of the model that was exported (of a file of other origin, in its own).
        threads: Number of threads, 1 or more. Defaults to 1.

    Returns:
        The output `(samples, ...)`, or a dict by output name if the file has several. Quantized
        outputs come back as float32.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file can't be read or the inputs do not fit it.

    Example:

    >>> import tempfile, keras, numpy as np
    >>> from dprp_tf.deploy import export
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> path = Path(tempfile.mkdtemp()) / "dense.onnx"
    >>> _ = export(model, path)
    >>> run_file(path, np.zeros((3, 4), "float32")).shape
    (3, 2)
    """
    outputs = load_file(path, threads).run(inputs)
    return next(iter(outputs.values())) if len(outputs) == 1 else outputs


def evaluate_file(
    path: str | Path,
    x: np.ndarray | Sequence[np.ndarray] | Mapping[str, np.ndarray],
    y: Any,
    *,
    score: Score | None = None,
    threads: int = 1,
) -> float:
    """Measure how good a file's outputs are: its top-1 accuracy, or any other score.

    Args:
        path: The `.tflite` or `.onnx` file; for top-1 accuracy with one output
            `(samples, classes)`.
        x: Inputs, as `run_file` takes them.
        y: Labels: for top-1 accuracy integers `(samples,)` or `(samples, 1)`, or one-hot
            `(samples, classes)`; else what the score takes, a dict by output name where there are
            several outputs.
        score: A name, such as `"mean_iou"`, `"mean_squared_error"` (counted negatively) or
            `"psnr"`; a Keras metric or its name; a function (y, predictions) -> float, larger is
            better. Defaults to top-1 accuracy.
        threads: Number of threads, 1 or more. Defaults to 1.

    Returns:
        Share of samples whose largest output is their label, 0 to 1; or the score.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file has no class scores, or `y` does not fit.

    Example:

    >>> import tempfile, keras
    >>> from dprp_tf.deploy import export
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Activation("softmax")])
    >>> path = Path(tempfile.mkdtemp()) / "softmax.onnx"
    >>> _ = export(model, path)
    >>> evaluate_file(path, np.eye(2, dtype="float32"), np.array([0, 1]))
    1.0
    """
    found = load_file(path, threads).run(x, "x")
    outputs: Any = next(iter(found.values())) if len(found) == 1 else found
    if score is not None:
        from dprp_tf.costs.scores import resolve_score

        return float(resolve_score(score)(y, outputs))
    if isinstance(outputs, dict):
        raise ValueError(
            f"`path` must name a file with one output, or `score` must be given. Received: "
            f"{list(outputs)}."
        )
    if outputs.ndim < 2 or outputs.shape[-1] < 2:
        raise ValueError(
            f"`path` must name a file with an output (samples, classes), or `score` must be given. "
            f"Received: {path} with output shape={outputs.shape}."
        )
    return top_1_accuracy(y, outputs)


def _as_input(array: np.ndarray, tensor: _Tensor, argument: str) -> np.ndarray:
    if not tensor.scale or str(array.dtype) == tensor.dtype:
        return as_dtype(array, tensor.dtype, tensor.name, argument)
    values = as_dtype(array, "float32", tensor.name, argument)
    if np.isnan(values).any():
        raise ValueError(
            f"`{argument}` must hold no NaN for input {tensor.name!r}, which is quantized to "
            f"{tensor.dtype}. Received: {int(np.isnan(values).sum())} NaN. Replace them."
        )
    limits = np.iinfo(tensor.dtype)
    steps = np.round(values / tensor.scale) + tensor.zero_point
    return np.clip(steps, limits.min, limits.max).astype(tensor.dtype)


def _as_output(array: np.ndarray, tensor: _Tensor) -> np.ndarray:
    if not tensor.scale:
        return array
    return ((array.astype(np.float32) - tensor.zero_point) * tensor.scale).astype(np.float32)


def _in_order(
    named: Mapping[str, Mapping[str, Any]], entries: Sequence[Mapping[str, Any]]
) -> dict[str, Mapping[str, Any]]:
    places = {entry["index"]: place for place, entry in enumerate(entries)}
    ordered = sorted(named.items(), key=lambda item: places.get(item[1]["index"], len(places)))
    return dict(ordered)


def _litert_tensor(name: str, entry: Mapping[str, Any]) -> _Tensor:
    scale, zero_point = entry["quantization"]
    dtype = np.dtype(entry["dtype"]).name
    return _Tensor(
        name=name,
        shape=tuple(None if edge < 0 else int(edge) for edge in _signature(entry)),
        dtype=dtype,
        index=int(entry["index"]),
        scale=float(scale) if dtype in ("int8", "uint8", "int16") else 0.0,
        zero_point=int(zero_point),
    )


def _signature(entry: Mapping[str, Any]) -> Any:
    # Files that declare no open size have none.
    declared = entry.get("shape_signature", ())
    return declared if len(declared) else entry["shape"]


def _open(entry: Mapping[str, Any]) -> bool:
    return any(edge < 0 for edge in _signature(entry))


def _onnx_tensor(entry: Any) -> _Tensor:
    shape = tuple(edge if isinstance(edge, int) else None for edge in entry.shape)
    return _Tensor(name=entry.name, shape=shape, dtype=_ONNX_DTYPES.get(entry.type, entry.type))


def _unreadable(path: Path, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())[:200]
    return ValueError(
        f"`path` must name a whole model file. Received: path={path}, which the runtime can't read "
        f"(truncated, or not a {path.suffix} model): {reason}. Export it again."
    )
