"""What a variable holds is seen without a copy where it can be, and is the same in any case."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops

from dprp_tf.keras_internals.variable_values import values_to_look_at
from dprp_tf.training.divergence import is_finite


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int32", "bool"])
@pytest.mark.parametrize("shape", [(), (0, 3), (4, 3)])
def test_the_values_are_those_of_the_variable(dtype: str, shape: tuple[int, ...]) -> None:
    variable = keras.Variable(np.random.default_rng(0).normal(size=shape) > 0, dtype=dtype)
    found, expected = values_to_look_at(variable), ops.convert_to_numpy(variable)
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found.astype("f8"), expected.astype("f8"))


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="others may have to copy")
def test_they_are_looked_at_where_they_lie() -> None:
    assert not values_to_look_at(keras.Variable(np.ones((4, 3), "f4"))).flags.owndata


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_one_entry_that_is_not_finite_is_found(dtype: str, broken: float) -> None:
    values = np.ones((50, 30))
    assert is_finite(keras.Variable(values, dtype=dtype))
    values[17, 4] = broken
    assert not is_finite(keras.Variable(values, dtype=dtype))


def test_entries_of_both_signs_are_not_taken_for_finite() -> None:
    values = np.ones((5, 3), "f4")
    values[2], values[3] = np.inf, -np.inf
    assert not is_finite(keras.Variable(values))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_large_entries_whose_sum_overflows_are_finite(dtype: str) -> None:
    values = np.full((5, 3), np.finfo(dtype).max)
    assert is_finite(keras.Variable(values, dtype=dtype))
