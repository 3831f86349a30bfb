"""How well an output of a file agrees with the Keras model's: each channel on its own range."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

__all__ = ["OutputKind", "OutputParity", "compare_output"]

OutputKind = Literal["class scores", "values", "whole numbers"]

# Largest error of a channel as a share of its range. Float32 differs in the order of additions
# alone, about 1e-7 per layer; float16 rounds each weight by at most 5e-4 of its size; in 8 bits
# the limit catches wrong files, not imprecise ones.
_TOLERANCES = {"float32": 1e-4, "float16": 1e-2, "dynamic": 0.25, "int8": 0.25}
# What rounding may add to a channel however small its own range is: values of the whole output's
# size stood in the sums that made it. In 8 bits nothing is added: one scale for a tensor whose
# channels differ widely is the commonest way to lose the small ones.
_ROUNDING = {"float32": 5e-6, "float16": 5e-5, "dynamic": 0.0, "int8": 0.0}
# Root mean square of the error over the standard deviation of the reference, of a whole output and
# of any one channel of it. A channel that is dead, or another's, has 1 or more; one whose scale is
# wrong by 2 has 0.5 or more.
_NOISE, _CHANNEL_NOISE = 0.4, 0.9
_AGREEMENTS = {"dynamic": 0.95, "int8": 0.95}
_EQUALITIES = {"float32": 0.999, "float16": 0.99, "dynamic": 0.95, "int8": 0.95}
# A channel is constant where it varies by less than this share of its size.
_CONSTANT = 1e-5
# Own ranges below this share of a range that is common (class scores, a sigmoid's) count as it: a
# class that hardly occurs in the data has no range of its own to be held against.
_COMMON = 1 / 16
# Likewise for the largest error of an output that has bounds: a label that is nearly always no.
_BOUNDED = 1 / 4
_BLOCK = 1 << 22


@dataclass(frozen=True)
class OutputParity:
    """How well one output of a file agrees with the Keras model.

    A channel is an index of the last axis: a column of `(samples, columns)`, a class of a
    segmentation map. Its range is the largest minus the smallest value that the Keras model gives
    it, or its size where it is constant.

    Args:
        name: The output's name.
        kind: `"class scores"`, `"values"` or `"whole numbers"`.
        max_error: Largest absolute difference over all samples and elements.
        mean_error: Mean absolute difference.
        reference_scale: Largest absolute value the Keras model gives.
        channels: How many channels it has.
        channel: The channel whose error is largest for its range, rounding aside.
        relative_error: That error as a share of that range.
        tolerance: Allowed `relative_error`, but for rounding; `None` means not limited.
        allowance: Allowed `relative_error` in that channel, with what rounding may add to it.
        noise: Root mean square of the error over the standard deviation of the reference.
        noise_limit: Allowed `noise`; `None` means not limited.
        noisy_channel: The channel with the largest noise.
        channel_noise: That noise.
        channel_noise_limit: Allowed `channel_noise`; `None` means not limited.
        range_ratio: Largest channel's range over the smallest one's, constant channels aside.
        top1_agreement: Share of samples (of positions, in a map) with the same largest class, 0
            to 1; of whole numbers, the share that is equal; `None` for values.
        minimum_agreement: Required `top1_agreement`; `None` means none is required.
        passed: Whether all limits hold and all values are finite.
    """

    name: str
    kind: OutputKind
    max_error: float
    mean_error: float
    reference_scale: float
    channels: int
    channel: int
    relative_error: float
    tolerance: float | None
    allowance: float | None
    noise: float
    noise_limit: float | None
    noisy_channel: int
    channel_noise: float
    channel_noise_limit: float | None
    range_ratio: float
    top1_agreement: float | None
    minimum_agreement: float | None
    passed: bool

    @property
    def exceeded(self) -> list[str]:
        """What does not hold, in words; empty for an output that passed."""
        found = []
        if not np.isfinite(self.max_error):
            found.append("values that are not finite")
        if _above(self.relative_error, self.allowance):
            found.append(f"channel {self.channel} is off by {self.relative_error:.3g} of its range")
        if _above(self.noise, self.noise_limit):
            found.append(f"noise {self.noise:.3g} of the signal")
        if _above(self.channel_noise, self.channel_noise_limit):
            found.append(
                f"noise {self.channel_noise:.3g} of the signal in channel {self.noisy_channel}"
            )
        if _above(self.minimum_agreement, self.top1_agreement):
            found.append(f"agreement {self.top1_agreement:.2%}")
        return found

    def __str__(self) -> str:
        limit = "no limit" if self.tolerance is None else f"limit {self.tolerance:g}"
        text = (
            f"{self.name} ({self.kind}): max error {self.max_error:.3g}, mean "
            f"{self.mean_error:.3g} at output scale {self.reference_scale:.3g}; at most "
            f"{self.relative_error:.3g} of a channel's own range, in channel {self.channel} of "
            f"{self.channels} ({limit})"
        )
        if self.noise_limit is not None:
            text += f"; noise {self.noise:.3g} of the signal (limit {self.noise_limit:g})"
        if self.top1_agreement is not None:
            minimum = self.minimum_agreement
            required = "" if minimum is None else f" (at least {minimum:.2%})"
            what = "equal" if self.kind == "whole numbers" else "top-1 agreement"
            text += f"; {what} {self.top1_agreement:.2%}{required}"
        return text


def compare_output(
    name: str,
    reference: np.ndarray,
    values: np.ndarray,
    *,
    kind: OutputKind,
    precision: str,
    tolerance: float | None = None,
    minimum_agreement: float | None = None,
    full_range: float | None = None,
) -> OutputParity:
    """Compare an output of a file with the Keras model's.

    With reference Y and file output Z, both `(samples, ..., C)`, and for each channel c of the last
    axis its range R_c = max Y_c - min Y_c and standard deviation S_c:

    - values: max|Z_c - Y_c| <= tolerance R_c + rounding max|Y| for every c, with tolerance 1e-4,
      1e-2, 0.25, 0.25 and rounding 5e-6, 5e-5, 0, 0 in float32, float16, dynamic and int8. A
      `tolerance` of the caller's holds without `rounding`.
    - class scores: the same in float32 and float16; in 8 bits near ties dominate the largest error,
      so there it is limited by a `tolerance` of the caller's alone, and the same largest class is
      required in 95 % of samples.
    - values and class scores in 8 bits besides: rms(Z - Y) <= 0.4 std(Y), and
      rms(Z_c - Y_c) <= 0.9 S_c for every c. A `tolerance` of the caller's takes their place.
    - whole numbers: equal in 99.9 %, 99 %, 95 % and 95 % of elements.

    A constant channel is held against its size, and one that is always zero against the size of
    the whole output. For class scores R_c is at least 1/16 of the whole output's range; in 8 bits,
    with a `full_range`, at least 1/4 of that.

    Args:
        name: The output's name.
        reference: The Keras model's output.
        values: The file's output.
        kind: `"class scores"`, `"values"` or `"whole numbers"`.
        precision: `"float32"`, `"float16"`, `"dynamic"` or `"int8"`.
        tolerance: Allowed error as a share of a channel's range, 0 or more. Default: as above.
        minimum_agreement: Required agreement, 0 to 1. Default: as above.
        full_range: What the output's activation spans, 1 of a sigmoid, where it has bounds.

    Returns:
        The figures, and whether they pass.

    Raises:
        RuntimeError: If the file's output has another shape.

    Example:

    >>> reference = np.linspace(0, 1, 8, dtype="float32").reshape(4, 2) * [1, 100]
    >>> compare = lambda values: compare_output(
    ...     "box", reference, values, kind="values", precision="int8")
    >>> compare(reference + 0.5).exceeded
    ['channel 0 is off by 0.583 of its range', 'noise 1.57 of the signal in channel 0']
    """
    if values.shape != reference.shape:
        raise RuntimeError(
            f"The converter changed the shape of output {name!r}: {reference.shape} in Keras, "
            f"{values.shape} in the file."
        )
    # (samples, ..., C) -> (samples * ..., C)
    channels = reference.shape[-1] if reference.ndim > 1 else 1
    found = _Sums(reference.reshape(-1, channels), values.reshape(-1, channels))
    scale = float(found.size.max(initial=0.0))
    coarse = precision in ("dynamic", "int8")
    default_limits = tolerance is None
    agreement = None
    if kind == "whole numbers":
        agreement = found.equal
        if minimum_agreement is None:
            minimum_agreement = _EQUALITIES[precision]
    elif kind == "class scores":
        agreement = found.same_largest
        if minimum_agreement is None:
            minimum_agreement = _AGREEMENTS.get(precision)
    else:
        minimum_agreement = None
    if default_limits and kind != "whole numbers" and not (kind == "class scores" and coarse):
        tolerance = _TOLERANCES[precision]
    ranges, deviations = found.ranges(), found.deviations()
    own = ranges
    if kind == "class scores":
        own = np.maximum(own, _COMMON * float(found.high.max() - found.low.min()))
        deviations = np.maximum(deviations, _COMMON * found.deviation)
    if coarse and full_range:
        own = np.maximum(own, _BOUNDED * full_range)
        # std <= range / 2 for whatever lies within a range
        deviations = np.maximum(deviations, _COMMON * full_range / 2)
    rounding = _ROUNDING[precision] * scale if default_limits else 0.0
    relative, added = _ratios(found.largest_error, own), _ratios(np.full_like(own, rounding), own)
    noises = _ratios(found.error_rms, deviations)
    noise = float(_ratios(np.asarray([found.rms]), np.asarray([found.deviation or scale]))[0])
    varying = ranges[found.varying]
    limited = default_limits and coarse and kind != "whole numbers"
    worst, noisy = int(np.argmax(relative - added)), int(np.argmax(noises))
    result = OutputParity(
        name=name,
        kind=kind,
        max_error=float(np.max(found.largest_error)),
        mean_error=found.mean_error,
        reference_scale=scale,
        channels=channels,
        channel=worst,
        relative_error=float(relative[worst]),
        tolerance=tolerance,
        allowance=None if tolerance is None else tolerance + float(added[worst]),
        noise=noise,
        noise_limit=_NOISE if limited else None,
        noisy_channel=noisy,
        channel_noise=float(noises[noisy]),
        channel_noise_limit=_CHANNEL_NOISE if limited else None,
        range_ratio=float(varying.max() / varying.min()) if varying.size else 1.0,
        top1_agreement=agreement,
        minimum_agreement=minimum_agreement,
        passed=False,
    )
    return replace(result, passed=not result.exceeded)


class _Sums:
    """What a comparison needs of two outputs (positions, C), gathered in one pass over blocks."""

    def __init__(self, reference: np.ndarray, values: np.ndarray) -> None:
        positions, channels = reference.shape
        self.positions = positions
        # Sums are around the first position: squares of a large mean would drown the deviation.
        self.centre = reference[0].astype(np.float64)
        self.low, self.high = np.full(channels, np.inf), np.full(channels, -np.inf)
        self.total, self.squares = np.zeros(channels), np.zeros(channels)
        self.largest_error = np.zeros(channels)
        self.error_total, self.error_squares = np.zeros(channels), np.zeros(channels)
        equal = same = 0
        rows = max(1, _BLOCK // channels)
        for first in range(0, positions, rows):
            wanted = reference[first : first + rows].astype(np.float64)
            given = values[first : first + rows].astype(np.float64)
            error, centred = np.abs(given - wanted), wanted - self.centre
            self.low = np.minimum(self.low, wanted.min(axis=0))
            self.high = np.maximum(self.high, wanted.max(axis=0))
            self.total += centred.sum(axis=0)
            self.squares += (centred**2).sum(axis=0)
            # NaN stays: it fails every comparison.
            self.largest_error = np.maximum(self.largest_error, error.max(axis=0))
            self.error_total += error.sum(axis=0)
            self.error_squares += (error**2).sum(axis=0)
            equal += int((given == wanted).sum())
            same += int((given.argmax(axis=1) == wanted.argmax(axis=1)).sum())
        self.equal = equal / (positions * channels)
        self.same_largest = same / positions

    @property
    def size(self) -> np.ndarray:
        """Largest absolute value of each channel."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    @property
    def varying(self) -> np.ndarray:
        """Which channels are not constant."""
        return self.high - self.low > _CONSTANT * self.size

    def ranges(self) -> np.ndarray:
        """Each channel's range; of a constant one its size, of a zero one the whole's size."""
        own = np.where(self.varying, self.high - self.low, self.size)
        return np.where(own > 0, own, self.size.max(initial=0.0))

    def deviations(self) -> np.ndarray:
        """Each channel's standard deviation, with constant channels as in `ranges`."""
        mean = self.total / self.positions
        own = np.sqrt(np.maximum(self.squares / self.positions - mean**2, 0.0))
        return np.where(self.varying, own, self.ranges())

    @property
    def deviation(self) -> float:
        """The standard deviation of the whole output."""
        means = self.total / self.positions + self.centre
        within = np.maximum(self.squares / self.positions - (self.total / self.positions) ** 2, 0.0)
        return float(np.sqrt(within.mean() + means.var()))

    @property
    def error_rms(self) -> np.ndarray:
        """Root mean square of each channel's error."""
        return np.sqrt(self.error_squares / self.positions)

    @property
    def rms(self) -> float:
        """Root mean square of the whole output's error."""
        return float(np.sqrt(self.error_squares.mean() / self.positions))

    @property
    def mean_error(self) -> float:
        """Mean absolute error of the whole output."""
        return float(self.error_total.mean() / self.positions)


def _ratios(errors: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """errors / scales; 0 where both are 0, infinite where the scale alone is."""
    safe = np.where(scales > 0, scales, 1.0)
    return np.where(scales > 0, errors / safe, np.where(errors == 0, 0.0, np.inf))


def _above(value: float | None, limit: float | None) -> bool:
    # NaN is above every limit.
    return value is not None and limit is not None and not value <= limit
