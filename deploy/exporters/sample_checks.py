"""Whether samples can calibrate a file and verify it: not constant, not few, not the same ones."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from dprp_tf.deploy.exporters.source import Source

__all__ = ["check_calibration", "check_verification", "require_variety"]

# Below that many samples ranges are too narrow as a rule.
_FEW = 32
# Share of a calibrated span by which others may lie outside it without a word.
_OUTSIDE = 0.5
# A calibrated span that many times as wide as the other leaves few of the 256 steps in use.
_WIDER = 4.0


def check_calibration(
    source: Source, calibration: Mapping[str, np.ndarray]
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Refuse samples that give no ranges, and say what is doubtful about others.

    Args:
        source: The model.
        calibration: Input name to array, as `Source.check_data` returns it.

    Returns:
        Notes for the report, and the model's outputs by name.

    Raises:
        ValueError: If every input is constant, or every output is, over two samples or more.

    Example:

    >>> import keras
    >>> from dprp_tf.deploy.exporters.source import Source
    >>> model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2)])
    >>> check_calibration(Source.of(model), {"x": np.eye(4, dtype="float32")})[0]
    ('calibrated on 4 samples: 100 or more give ranges that last',)
    """
    samples = len(next(iter(calibration.values())))
    constant = [name for name, array in calibration.items() if array.min() == array.max()]
    if len(constant) == len(calibration):
        value = next(iter(calibration.values())).flat[0]
        raise ValueError(
            "`calibration_data` must be typical inputs, 100 or more. Received: "
            f"{samples} samples that hold nothing but {value}, which gives no ranges."
        )
    notes = [f"input {name} is constant in the calibration data" for name in constant]
    outputs = source.predict(calibration)
    require_variety(outputs, "calibration_data")
    if samples > 1:
        same = [name for name, values in outputs.items() if _is_constant(values)]
        notes += [f"output {name} is constant on the calibration data" for name in same]
    if samples < _FEW:
        plural = "s" if samples > 1 else ""
        notes.append(f"calibrated on {samples} sample{plural}: 100 or more give ranges that last")
    return tuple(notes), outputs


def require_variety(outputs: Mapping[str, np.ndarray], argument: str) -> None:
    """Refuse samples on which the model gives one answer: no check would fail.

    Args:
        outputs: Output name to what the model gives for the samples.
        argument: Name of the argument the samples came through, for the error message.

    Raises:
        ValueError: If every output is the same for two samples or more.

    Example:

    >>> require_variety({"y": np.eye(2)}, "verification_data")
    """
    samples = len(next(iter(outputs.values())))
    if samples > 1 and all(map(_is_constant, outputs.values())):
        raise ValueError(
            f"`{argument}` must make the model's outputs vary. Received: {samples} samples with "
            "the same outputs. Give samples of every kind, scaled as in training."
        )


def check_verification(
    inputs: Mapping[str, np.ndarray], origin: str, calibration: Mapping[str, np.ndarray] | None
) -> tuple[str, ...]:
    """Say what is doubtful about the samples that a file is checked on.

    Args:
        inputs: Input name to array.
        origin: Where they came from.
        calibration: What the file is calibrated on, by input name; None if it is not.

    Returns:
        Notes for the report.

    Example:

    >>> check_verification({"x": np.ones((1, 4))}, "verification_data", None)
    ('checked on a single sample',)
    """
    samples = len(next(iter(inputs.values())))
    notes = []
    if samples == 1 and origin != "random":
        notes.append("checked on a single sample")
    if calibration is None:
        return tuple(notes)
    known = set(_samples(calibration))
    seen = sum(sample in known for sample in _samples(inputs))
    if seen == samples:
        notes.append(
            "checked on the samples it was calibrated on: give `verification_data` of its own"
        )
    elif seen:
        notes.append(f"{seen} of the {samples} samples it was checked on were calibrated on")
    for name, array in inputs.items():
        low, high = (float(edge(calibration[name])) for edge in (np.min, np.max))
        least, most = float(array.min()), float(array.max())
        span, other = high - low, most - least
        outside = max(low - least, most - high)
        if outside > _OUTSIDE * span or span > _WIDER * other > 0:
            notes.append(
                f"input {name} was calibrated on {low:.4g} to {high:.4g} and checked on "
                f"{least:.4g} to {most:.4g}: are both scaled as in training?"
            )
    return tuple(notes)


def _is_constant(values: np.ndarray) -> bool:
    return bool((values == values[:1]).all())


def _samples(data: Mapping[str, np.ndarray]) -> Iterator[bytes]:
    """A short mark of each sample: equal for equal ones."""
    arrays = list(data.values())
    for index in range(len(arrays[0])):
        mark = hashlib.blake2b(digest_size=16)
        for array in arrays:
            mark.update(np.ascontiguousarray(array[index]).tobytes())
        yield mark.digest()
