"""Proof that an exported file computes what its Keras model computes."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dprp_tf.files.arguments import check_number

if TYPE_CHECKING:
    from dprp_tf.deploy.exporters.source import Source

__all__ = [
    "ExportReport",
    "OutputParity",
    "ParityError",
    "check_limits",
    "check_parity",
    "compressed_size",
    "verification_inputs",
]

_TOLERANCES = {"float32": 1e-4, "float16": 1e-2, "dynamic": 0.25, "int8": 0.25}
_INT8_AGREEMENT = 0.95
_BLOCK = 1 << 20


@dataclass(frozen=True)
class OutputParity:
    """How well one output of a file agrees with the Keras model.

    Args:
        name: The output's name.
        max_error: Largest absolute difference over all samples and elements.
        mean_error: Mean absolute difference.
        reference_scale: Largest absolute value the Keras model gives.
        tolerance: Allowed `max_error / reference_scale`; `None` means not limited.
        top1_agreement: Share of samples with the same largest class, 0 to 1; `None` if the
            output is not `(samples, classes)` with two classes or more.
        minimum_agreement: Required `top1_agreement`; `None` means none is required.
        passed: Whether both limits hold and all values are finite.
    """

    name: str
    max_error: float
    mean_error: float
    reference_scale: float
    tolerance: float | None
    top1_agreement: float | None
    minimum_agreement: float | None
    passed: bool

    @property
    def relative_error(self) -> float:
        """`max_error` as a share of the output's scale."""
        return _relative(self.max_error, self.reference_scale)

    def __str__(self) -> str:
        limit = "no limit" if self.tolerance is None else f"limit {self.tolerance:g}"
        text = (
            f"{self.name}: max error {self.max_error:.3g}, mean {self.mean_error:.3g} at output "
            f"scale {self.reference_scale:.3g} ({self.relative_error:.3g} relative, {limit})"
        )
        if self.top1_agreement is not None:
            minimum = self.minimum_agreement
            required = "" if minimum is None else f" (at least {minimum:.2%})"
            text += f", top-1 agreement {self.top1_agreement:.2%}{required}"
        return text


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how its outputs compare with the Keras model's.

    `max_error`, `mean_error`, `reference_scale` and `tolerance` are those of the output with
    the largest relative error, `top1_agreement` is the lowest; `outputs` holds each one's.

    Args:
        path: The file.
        format: `"tflite"` or `"onnx"`.
        precision: `"float32"`, `"float16"`, `"dynamic"` or `"int8"`.
        size_bytes: Size of the file.
        samples: How many inputs were compared.
        inputs: Where they came from: `"verification_data"`, `"calibration_data"`, `"random"`,
            `"training data"`.
        max_error: Largest absolute difference.
        mean_error: Mean absolute difference.
        reference_scale: Largest absolute value of the Keras model's output.
        tolerance: Allowed `max_error / reference_scale`; `None` means not limited.
        top1_agreement: Share of samples with the same largest class, or `None`.
        minimum_agreement: Required `top1_agreement`, or `None`.
        passed: Whether every output passed.
        operators: Operator name to how often the file holds it.
        outputs: One entry per output.
        notes: What else a reader should know.
        compressed_bytes: Size of the file in a zip archive, see `compressed_size`.
    """

    path: Path
    format: str
    precision: str
    size_bytes: int
    samples: int
    inputs: str
    max_error: float
    mean_error: float
    reference_scale: float
    tolerance: float | None
    top1_agreement: float | None
    minimum_agreement: float | None
    passed: bool
    operators: dict[str, int]
    outputs: tuple[OutputParity, ...]
    notes: tuple[str, ...] = field(default=())
    compressed_bytes: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Give the report as JSON-ready values.

        Returns:
            Field name to value; the path as a string.
        """
        return {**asdict(self), "path": str(self.path)}

    def __str__(self) -> str:
        source = "random inputs" if self.inputs == "random" else self.inputs
        lines = [
            f"{self.path} ({self.format}, {self.precision}, {self.size_bytes / 1000:,.1f} kB, "
            f"{self.compressed_bytes / 1000:,.1f} kB zipped): "
            f"{'same outputs as the Keras model' if self.passed else 'OUTPUTS DIFFER'} "
            f"on {self.samples} samples of {source}",
            *(f"  {output}" for output in self.outputs),
            "  operators: "
            + ", ".join(f"{name} x{count}" for name, count in sorted(self.operators.items())),
            *(f"  note: {note}" for note in self.notes),
        ]
        return "\n".join(lines)


class ParityError(RuntimeError):
    """An exported file's outputs differ from the Keras model's by more than is allowed.

    Args:
        report: The figures.

    Attributes:
        report: The figures.
    """

    def __init__(self, report: ExportReport) -> None:
        self.report = report
        failed = "; ".join(str(output) for output in report.outputs if not output.passed)
        hint = {
            "float32": "This is a conversion fault: do not ship the file; a larger `tolerance` "
            "is right only where the model amplifies rounding.",
            "float16": "Weights beyond float16's range or precision: export without quantization.",
            "dynamic": "Use quantization='float16', or raise `tolerance` knowingly.",
            "int8": "Give more and more typical `calibration_data`, use quantization='dynamic', "
            "or lower `minimum_agreement` knowingly.",
        }[report.precision]
        super().__init__(
            f"The {report.precision} {report.format} file does not compute what the Keras model "
            f"computes on {report.samples} samples ({report.inputs}). {failed}. {hint} "
            f"Nothing was written to {report.path}."
        )

    def __reduce__(self) -> tuple[type[ParityError], tuple[ExportReport]]:
        return type(self), (self.report,)


def compressed_size(path: str | Path) -> int:
    """Measure how many bytes a file takes inside a zip archive, as it is shipped or downloaded.

    Clustered and sparse weights show here and not in the file's own size.

    Args:
        path: Any file.

    Returns:
        Bytes of the file's content compressed by deflate, level 9, the archive's own headers
        (about 100 bytes) left out.

    Raises:
        OSError: If the file can't be read.

    Example:

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "zeros"
    >>> _ = path.write_bytes(bytes(100_000))
    >>> compressed_size(path) < 200
    True
    """
    # Negative window bits: the bare deflate stream that a zip archive holds.
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    size = 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            size += len(deflate.compress(block))
    return size + len(deflate.flush())


def verification_inputs(
    source: Source, verification_data: Any, calibration_data: Any = None
) -> tuple[dict[str, np.ndarray], str]:
    """Choose the inputs to compare on: the caller's, else the calibration's, else random ones.

    Args:
        source: The model.
        verification_data: Array, list or dict of arrays, or `None`.
        calibration_data: The same, or `None`.

    Returns:
        Input name to array, and where they came from.

    Raises:
        ValueError: If the data do not fit the model's inputs.

    Example:

    >>> import keras
    >>> from dprp_tf.deploy.exporters.source import Source
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> verification_inputs(Source.of(model), None)[1]
    'random'
    """
    if verification_data is not None:
        return source.check_data(verification_data, "verification_data"), "verification_data"
    if calibration_data is not None:
        return source.check_data(calibration_data, "calibration_data"), "calibration_data"
    return source.random_data(), "random"


def check_limits(tolerance: float | None, minimum_agreement: float | None) -> None:
    """Refuse limits outside their ranges.

    Args:
        tolerance: 0 or more, or `None`.
        minimum_agreement: 0 to 1, or `None`.

    Raises:
        ValueError: If one is out of range.

    Example:

    >>> check_limits(0.01, 0.95)
    """
    if tolerance is not None:
        check_number("tolerance", tolerance, minimum=0)
    if minimum_agreement is not None:
        check_number("minimum_agreement", minimum_agreement, 0, 1)


def check_parity(
    reference: Mapping[str, np.ndarray],
    outputs: Mapping[str, np.ndarray],
    *,
    temporary: Path,
    path: Path,
    format: str,
    precision: str,
    inputs: str,
    operators: Mapping[str, int],
    tolerance: float | None = None,
    minimum_agreement: float | None = None,
    notes: tuple[str, ...] = (),
) -> ExportReport:
    """Compare a file's outputs with the Keras model's and report, or raise.

    With reference Y and file output Z, both `(samples, ...)`, an output passes if
    `max|Z - Y| <= tolerance * max|Y|`, all of Z is finite, and, where a minimum is required,
    `mean(argmax(Z) == argmax(Y)) >= minimum_agreement`. Defaults for `tolerance`:

    - float32, 1e-4: only the order of additions differs, about 1e-7 per layer.
    - float16, 1e-2: weights are rounded by at most 2^-11 (5e-4) of their size; rounding errors
      of many weights add like a random walk, so even deep networks stay below 1e-2.
    - dynamic, 0.25: weights and, at run time, activations are rounded to 8 bits, up to 0.4 % of
      a tensor's largest value each, in every layer; a softmax turns that into large differences
      where two classes nearly tie. The limit catches wrong files, not imprecise ones.
    - int8: for class scores no limit on the largest error, which near ties dominate, but a
      top-1 agreement of at least 0.95; other outputs 0.25.

    Args:
        reference: The Keras model's outputs by name.
        outputs: The file's outputs by name.
        temporary: The file as it lies on disk now.
        path: The file's name in the report.
        format: `"tflite"` or `"onnx"`.
        precision: `"float32"`, `"float16"`, `"dynamic"` or `"int8"`.
        inputs: Where the inputs came from.
        operators: Operator name to count.
        tolerance: Relative limit, 0 or more. Defaults to the precision's.
        minimum_agreement: 0 to 1. Defaults to 0.95 for int8, else none is required.
        notes: Passed on to the report.

    Returns:
        The report of a file that passed.

    Raises:
        ParityError: If an output does not pass; it carries the report.
    """
    compared = tuple(
        _compare(name, values, outputs[name], precision, tolerance, minimum_agreement)
        for name, values in reference.items()
    )
    worst = max(compared, key=lambda output: (not output.passed, output.relative_error))
    agreements = [o.top1_agreement for o in compared if o.top1_agreement is not None]
    minimums = [o.minimum_agreement for o in compared if o.minimum_agreement is not None]
    report = ExportReport(
        path=path,
        format=format,
        precision=precision,
        size_bytes=temporary.stat().st_size,
        samples=len(next(iter(reference.values()))),
        inputs=inputs,
        max_error=worst.max_error,
        mean_error=worst.mean_error,
        reference_scale=worst.reference_scale,
        tolerance=worst.tolerance,
        top1_agreement=min(agreements, default=None),
        minimum_agreement=max(minimums, default=None),
        passed=all(output.passed for output in compared),
        operators=dict(operators),
        outputs=compared,
        notes=notes,
        compressed_bytes=compressed_size(temporary),
    )
    if not report.passed:
        raise ParityError(report)
    return report


def _compare(
    name: str,
    reference: np.ndarray,
    values: np.ndarray,
    precision: str,
    tolerance: float | None,
    minimum_agreement: float | None,
) -> OutputParity:
    if values.shape != reference.shape:
        raise RuntimeError(
            f"The converter changed the shape of output {name!r}: {reference.shape} in Keras, "
            f"{values.shape} in the file."
        )
    difference = np.abs(values.astype(np.float64) - reference.astype(np.float64))
    scale = float(np.abs(reference).max(initial=0.0))
    max_error = float(difference.max(initial=0.0))
    agreement = None
    if reference.ndim == 2 and reference.shape[1] >= 2:
        agreement = float(np.mean(values.argmax(axis=1) == reference.argmax(axis=1)))
        if precision == "int8" and minimum_agreement is None:
            minimum_agreement = _INT8_AGREEMENT
    else:
        minimum_agreement = None
    if tolerance is None and not (precision == "int8" and agreement is not None):
        tolerance = _TOLERANCES[precision]
    # A NaN error fails both comparisons.
    passed = math.isfinite(max_error)
    passed = passed and (tolerance is None or _relative(max_error, scale) <= tolerance)
    if agreement is not None and minimum_agreement is not None:
        passed = passed and agreement >= minimum_agreement
    return OutputParity(
        name=name,
        max_error=max_error,
        mean_error=float(difference.mean()) if difference.size else 0.0,
        reference_scale=scale,
        tolerance=tolerance,
        top1_agreement=agreement,
        minimum_agreement=minimum_agreement,
        passed=passed,
    )


def _relative(error: float, scale: float) -> float:
    if scale == 0.0:
        return 0.0 if error == 0.0 else math.inf
    return error / scale
