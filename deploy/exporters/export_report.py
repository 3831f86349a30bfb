"""What an export wrote, and how the file compares with the Keras model."""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dprp_tf.deploy.exporters.agreement import OutputParity

__all__ = ["ExportReport", "ParityError", "compressed_size"]

_BLOCK = 1 << 20


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how its outputs compare with the Keras model's.

    `max_error`, `mean_error`, `reference_scale` and `tolerance` are those of the output with
    the largest relative error, `top1_agreement` is the lowest among class scores; `outputs` holds
    each one's.

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

    @property
    def _verdict(self) -> str:
        """What is true of the outputs: those of rounded weights are never the same."""
        if not self.passed:
            return "OUTPUTS DIFFER from the Keras model's"
        if self.precision == "float32" and self.top1_agreement in (None, 1.0):
            return "same outputs as the Keras model"
        if self.top1_agreement is not None:
            return f"agrees with the Keras model in {self.top1_agreement:.2%}"
        return "outputs near the Keras model's"

    def __str__(self) -> str:
        source = "random inputs" if self.inputs == "random" else self.inputs
        lines = [
            f"{self.path} ({self.format}, {self.precision}, {self.size_bytes / 1000:,.1f} kB, "
            f"{self.compressed_bytes / 1000:,.1f} kB zipped): "
            f"{self._verdict} "
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
        failed = "; ".join(
            f"{output.name}: {', '.join(output.exceeded)} ({output})"
            for output in report.outputs
            if not output.passed
        )
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
            + "".join(f" Note: {note}." for note in report.notes)
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
