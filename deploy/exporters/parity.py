"""Proof that an exported file computes what its Keras model computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dprp_tf.deploy.exporters.agreement import OutputKind, OutputParity, compare_output
from dprp_tf.deploy.exporters.class_scores import class_score_outputs, full_range, output_names
from dprp_tf.deploy.exporters.export_report import ExportReport, ParityError, compressed_size
from dprp_tf.deploy.exporters.sample_checks import (
    check_calibration,
    check_verification,
    require_variety,
)
from dprp_tf.deploy.exporters.source import Source
from dprp_tf.deploy.running.runtime import load_file
from dprp_tf.files.arguments import check_number

if TYPE_CHECKING:
    import keras

__all__ = ["ParityCheck"]

# Channels whose ranges differ by more can't share the one scale of an int8 tensor.
_WIDE = 32


@dataclass(frozen=True)
class ParityCheck:
    """What a file is checked on and against: made before a conversion, asked after it.

    Args:
        source: The model, as the exporters see it.
        precision: `"float32"`, `"float16"`, `"dynamic"` or `"int8"`.
        inputs: Input name to the arrays to compare on.
        reference: Output name to what the model gives for them.
        origin: Where they came from.
        calibration: Input name to the arrays that an int8 file takes its ranges from; None for
            other files.
        scores: Names of the outputs that hold class scores.
        spans: What the activation spans, of outputs that have bounds.
        tolerance: Error allowed as a share of a channel's range; None for the precision's.
        minimum_agreement: Required agreement of class scores; None for the precision's.
        notes: What a reader of the report must know about the model and the data.
    """

    source: Source
    precision: str
    inputs: dict[str, np.ndarray]
    reference: dict[str, np.ndarray]
    origin: str
    calibration: dict[str, np.ndarray] | None
    scores: frozenset[str]
    spans: Mapping[str, float]
    tolerance: float | None
    minimum_agreement: float | None
    notes: tuple[str, ...]

    @classmethod
    def of(
        cls,
        model: keras.Model,
        source: Source,
        *,
        quantization: str | None = None,
        calibration_data: Any = None,
        verification_data: Any = None,
        class_scores: bool | str | Sequence[str] | None = None,
        tolerance: float | None = None,
        minimum_agreement: float | None = None,
    ) -> ParityCheck:
        """Check the arguments of an export and settle what its file is compared on.

        Args:
            model: The user's model, whose softmax and compiled loss say what its outputs are.
            source: The same model as the exporters see it.
            quantization: None for float32, else the precision.
            calibration_data: Array, list or dict of arrays, or None.
            verification_data: The same. Default: the calibration data, else random inputs.
            class_scores: See `class_score_outputs`.
            tolerance: 0 or more. Default: the precision's.
            minimum_agreement: 0 to 1. Default: the precision's.

        Returns:
            The check.

        Raises:
            ValueError: If an argument is out of range, or data do not fit the inputs, are
                constant, or leave every output constant; if an output is not finite.

        Example:

        >>> import keras
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> ParityCheck.of(model, Source.of(model)).origin
        'random'
        """
        if tolerance is not None:
            check_number("tolerance", tolerance, minimum=0)
        if minimum_agreement is not None:
            check_number("minimum_agreement", minimum_agreement, 0, 1)
        names = dict(zip(output_names(model), source.outputs, strict=True))
        scores = class_score_outputs(model, class_scores)
        calibration = reference = calibrated = None
        notes = source.notes
        if quantization == "int8" and calibration_data is not None:
            calibration = source.check_data(calibration_data, "calibration_data")
            doubts, calibrated = check_calibration(source, calibration)
            notes += doubts
        if verification_data is not None:
            origin = "verification_data"
            inputs = source.check_data(verification_data, origin)
        elif calibration is not None:
            origin, inputs, reference = "calibration_data", calibration, calibrated
        elif calibration_data is not None:
            origin = "calibration_data"
            inputs = source.check_data(calibration_data, origin)
        else:
            origin, inputs = "random", source.random_data()
        if reference is None:
            reference = source.predict(inputs)
            if origin != "random":
                require_variety(reference, origin)
        return cls(
            source=source,
            precision=quantization or "float32",
            inputs=inputs,
            reference=reference,
            origin=origin,
            calibration=calibration,
            scores=frozenset(names[name] for name in scores),
            spans={names[name]: span for name, span in full_range(model).items()},
            tolerance=tolerance,
            minimum_agreement=minimum_agreement,
            notes=notes + check_verification(inputs, origin, calibration),
        )

    def compare(
        self,
        temporary: Path,
        path: Path,
        operators: Mapping[str, int],
        notes: tuple[str, ...] = (),
    ) -> ExportReport:
        """Run a file and compare its outputs with the model's, and report, or raise.

        Each output is held against the limits of `compare_output`.

        Args:
            temporary: The file as it lies on disk now.
            path: Its name in the report, whose suffix is its format.
            operators: Operator name to count.
            notes: What else a reader should know.

        Returns:
            The report of a file that passed.

        Raises:
            ParityError: If an output does not pass; it carries the report.
        """
        outputs = load_file(temporary).run(self.inputs)
        compared = tuple(
            compare_output(
                name,
                values,
                outputs[name],
                kind=self._kind(name, values),
                precision=self.precision,
                tolerance=self.tolerance,
                minimum_agreement=self.minimum_agreement,
                full_range=self.spans.get(name),
            )
            for name, values in self.reference.items()
        )
        notes = self.notes + notes
        if self.precision in ("dynamic", "int8"):
            notes += tuple(_wide(output) for output in compared if output.range_ratio > _WIDE)
        worst = max(compared, key=lambda output: (not output.passed, output.relative_error))
        agreements = [o.top1_agreement for o in compared if o.top1_agreement is not None]
        minimums = [o.minimum_agreement for o in compared if o.minimum_agreement is not None]
        report = ExportReport(
            path=path,
            format=path.suffix.lower().removeprefix("."),
            precision=self.precision,
            size_bytes=temporary.stat().st_size,
            samples=len(next(iter(self.reference.values()))),
            inputs=self.origin,
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

    def _kind(self, name: str, values: np.ndarray) -> OutputKind:
        if values.dtype.kind not in "f":
            return "whole numbers"
        several = values.ndim > 1 and values.shape[-1] > 1
        return "class scores" if name in self.scores and several else "values"


def _wide(output: OutputParity) -> str:
    return (
        f"the channels of {output.name} have ranges that differ by a factor of "
        f"{output.range_ratio:,.0f}, and 8 bits have one scale for all: give channels of one size "
        "an output of their own"
    )
