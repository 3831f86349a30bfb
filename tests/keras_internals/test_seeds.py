"""The random states that Keras leaves out of its files, in every range a seed may have."""

from __future__ import annotations

import keras
import pytest

from dprp_tf.keras_internals.seeds import seed_states, set_seed_states


def _model(seed: int) -> keras.Model:
    return keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.5, seed=seed)])


def _require_seed(seed: int) -> None:
    if keras.backend.backend() != "tensorflow" and not 0 <= seed < 2**32:
        pytest.skip("this backend of Keras has no seeds of more than 32 bits or below 0")


@pytest.mark.backend
@pytest.mark.parametrize("seed", [3, 2**32 - 1, 2**33 + 1, -1])
def test_states_go_over_to_another_model(seed: int) -> None:
    _require_seed(seed)
    model, other = _model(seed), _model(5)
    model(keras.ops.ones((1, 4)), training=True)
    set_seed_states(other, seed_states(model))
    assert seed_states(other) == [[seed, 1]]


def test_a_model_of_another_number_of_generators_is_refused() -> None:
    with pytest.raises(ValueError, match="each of the 1 seed generators"):
        set_seed_states(_model(3), [])
