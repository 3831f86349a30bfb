"""Test samples whose labels are maps, values or images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dprp_tf.data.labelled_samples import are_class_labels, load_test_arrays


@pytest.mark.parametrize("shape", [(3, 4, 4), (3, 2), (3,)])
def test_labels_come_as_they_are(shape: tuple[int, ...], tmp_path: Path) -> None:
    x = np.arange(3 * 16, dtype="uint8").reshape(3, 4, 4, 1)
    y = np.random.default_rng(0).random(shape)
    np.savez(tmp_path / "a.npz", x_test=x, y_test=y)
    found_x, found_y = load_test_arrays(tmp_path / "a.npz")
    np.testing.assert_array_equal(found_x, x)
    np.testing.assert_array_equal(found_y, y)
    assert (found_x.dtype, found_y.dtype) == (np.float32, np.float64)
    assert not are_class_labels(found_y)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_test": np.zeros((2, 4))}, r"arrays x_test, y_test.*without y_test.*x_test=..., y_te"),
        ({"x_test": np.zeros((2, 4)), "y_test": np.zeros(3)}, r"shapes \(2, 4\) and \(3,\)"),
        ({"x_test": np.zeros((0, 4)), "y_test": np.zeros(0)}, "at least one"),
    ],
)
def test_what_does_not_fit_is_named(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load_test_arrays(tmp_path / "a.npz")
