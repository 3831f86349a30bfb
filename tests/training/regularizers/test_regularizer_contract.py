"""What every registered rank regularizer must do; a new one is tested by being registered."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import dprp_tf as dprp
from dprp_tf.training import regularizers
from dprp_tf.training.regularizers import RankRegularizer
from dprp_tf.training.regularizers.names import NAMES, RANKED_NAMES

pytestmark = pytest.mark.backend
EVERY = pytest.mark.parametrize("name", NAMES)
RANK = 2
Gradient = Callable[[Callable[[Any], Any], np.ndarray], np.ndarray]
# Descending, not negative, no value near a default cap or a threshold of 0.2.
SPECTRUM = np.array([4.0, 2.5, 1.2, 0.6, 0.3], "float32")
# By its default it takes weights from the values and holds them constant, which differences do not.
HELD_CONSTANT = {"weighted_nuclear_norm": {"weights": (0.3, 1.7, 2.5)}}


def _make(name: str, **changes: Any) -> RankRegularizer:
    penalty = regularizers.get(name, 0.2, rank=RANK)
    assert penalty is not None
    return type(penalty).from_config({**penalty.get_config(), **changes})


def _array(value: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(value)


@EVERY
def test_its_config_holds_every_argument_and_makes_it_again(name: str) -> None:
    plain = _make(name)
    accepted = inspect.signature(type(plain)).parameters
    assert set(plain.get_config()) == set(accepted)
    # Away from the defaults, which an argument that is forgotten would fall back to.
    numbers = {
        key: value + 1 if isinstance(value, int) else 0.7 * value
        for key, value in plain.get_config().items()
        if isinstance(value, (int, float))
    }
    penalty = _make(name, **numbers, **HELD_CONSTANT.get(name, {}))
    assert (penalty == plain) == (not accepted)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(penalty))
    assert type(again) is type(penalty)
    assert again == penalty
    assert hash(again) == hash(penalty)
    assert again.get_config() == penalty.get_config()
    settings = dprp.DPRPSettings(compression=penalty)
    assert dprp.DPRPSettings.from_config(settings.get_config()).compression == penalty


@EVERY
def test_each_row_of_values_is_a_layer(name: str) -> None:
    penalty = _make(name)
    rows = np.stack([SPECTRUM * factor for factor in (1.0, 0.7, 1.3, 0.4)])
    single = [_array(penalty(row)) for row in rows]
    assert all(value.shape == () for value in single)
    together = _array(penalty(rows))
    assert together.shape == (4,)
    np.testing.assert_allclose(together, np.stack(single), rtol=1e-5)
    np.testing.assert_allclose(
        _array(penalty(rows.reshape(2, 2, 5))), together.reshape(2, 2), rtol=1e-5
    )


@EVERY
def test_its_gradient_is_what_differences_say(gradient: Gradient, name: str) -> None:
    penalty = _make(name, **HELD_CONSTANT.get(name, {}))
    found = gradient(penalty, SPECTRUM)
    step, expected = 1e-2, np.zeros(len(SPECTRUM))
    for index in range(len(SPECTRUM)):
        shift = np.zeros_like(SPECTRUM)
        shift[index] = step
        above, below = (float(_array(penalty(SPECTRUM + s))) for s in (shift, -shift))
        expected[index] = (above - below) / (2 * step)
    np.testing.assert_allclose(found, expected, atol=4e-3 * max(1.0, np.abs(expected).max()))
    assert np.abs(expected).max() > 1e-2


@EVERY
@pytest.mark.parametrize(
    "s",
    [np.zeros(4), np.ones(3), np.full(5, 0.3), np.zeros(1), np.ones(1), [2.0, 0.0, 0.0]],
    ids=str,
)
def test_it_is_finite_and_not_negative_at_zero_and_at_equal_values(
    gradient: Gradient, name: str, s: Any
) -> None:
    s = np.asarray(s, "float32")
    penalty = _make(name)
    value = float(_array(penalty(s)))
    assert np.isfinite(value)
    assert value >= 0
    assert np.all(np.isfinite(gradient(penalty, s)))


@EVERY
def test_it_is_not_negative_on_any_spectrum(name: str, rng: np.random.Generator) -> None:
    spectra = -np.sort(-rng.exponential(size=(50, 6)).astype("float32"), axis=-1)
    assert np.all(_array(_make(name)(spectra)) >= 0)


@EVERY
def test_a_factorized_model_trains_with_it_and_keeps_it_in_its_file(
    name: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    inputs = keras.Input((12,))
    hidden = keras.layers.Dense(8, activation="relu")(inputs)
    dense = keras.Model(inputs, keras.layers.Dense(6)(hidden))
    compression: Any = _make(name) if name in RANKED_NAMES else name
    model = dprp.factorize(dense, settings=dprp.DPRPSettings(compression=compression))
    assert type(model.settings.compression) is type(_make(name))
    model.compile("sgd", "mse")
    x = rng.standard_normal((16, 12)).astype("float32")
    before = [_array(layer.s) for layer in model.low_rank_layers]
    history = model.fit(x, x[:, :6], epochs=1, verbose=0).history
    assert all(np.all(np.isfinite(values)) for values in history.values())
    after = [_array(layer.s) for layer in model.low_rank_layers]
    assert any(np.abs(old - new).max() > 0 for old, new in zip(before, after, strict=True))
    model.save(tmp_path / "model.keras")
    again = dprp.load_model(tmp_path / "model.keras")
    assert again.settings.compression == model.settings.compression
