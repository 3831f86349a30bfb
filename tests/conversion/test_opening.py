"""Layers of one's own that hold layers become nested models of what they hold."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import dprp_tf as dprp
from dprp_tf.conversion.writing_out import unwritten
from dprp_tf.layers.factorizable import factorizable

_LONG, _WIDE = 5, 8


class Perceptron(layers.Layer):
    """Two dense layers; it can't be made again from its configuration."""

    def __init__(self, wide: layers.Layer, narrow: layers.Layer, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.wide, self.narrow = wide, narrow

    def call(self, x: Any) -> Any:
        return self.narrow(ops.relu(self.wide(x)))


@keras.saving.register_keras_serializable(package="tests")
class Block(layers.Layer):
    """A block of a transformer, with a part that its configuration does not hold."""

    def __init__(self, width: int, dropout: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.width, self.dropout = width, dropout
        self.norm = layers.LayerNormalization(name="norm")
        self.attention = layers.MultiHeadAttention(2, width // 2, name="attention")
        self.leave_out = layers.Dropout(dropout, seed=3)
        self.inner = Perceptron(
            layers.Dense(2 * width, name="wide"), layers.Dense(width, name="narrow"), name="inner"
        )

    def build(self, shape: Any) -> None:
        self.norm.build(shape)
        self.attention.build(shape, shape)
        self.inner.wide.build(shape)
        self.inner.narrow.build((*shape[:-1], 2 * self.width))
        self.inner.built = True

    def call(self, x: Any, scale: float = 1.0, training: bool | None = None) -> Any:
        y = self.norm(x)
        x = x + scale * self.leave_out(self.attention(y, y), training=training)
        return x + self.inner(x)

    def compute_output_shape(self, shape: Any) -> Any:
        return shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "width": self.width, "dropout": self.dropout}


def _model(**options: Any) -> keras.Model:
    keras.utils.set_random_seed(1)
    x = keras.Input((_LONG, _WIDE))
    y = Block(_WIDE, name="second", **options)(Block(_WIDE, name="first", **options)(x), scale=0.5)
    return keras.Model(x, layers.Dense(3, name="head")(layers.GlobalAveragePooling1D()(y)))


def _data(samples: int = 4) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(samples, _LONG, _WIDE)).astype("float32")


def test_blocks_within_blocks_are_opened_and_compute_the_same() -> None:
    model, x = _model(), _data()
    before = model.predict(x, verbose=0)
    plain = dprp.write_out(model)
    np.testing.assert_allclose(plain.predict(x, verbose=0), before, atol=1e-5)
    assert unwritten(model) == {}
    assert list(factorizable(model)[0]) == ["head"]
    reached = list(factorizable(plain)[0])
    assert len(reached) == 13
    assert "first/inner/wide" in reached
    assert "second/attention_query" in reached
    assert plain.count_params() == model.count_params()
    # The model given is as it was, and shares nothing.
    plain.get_layer("head").kernel.assign(ops.zeros_like(plain.get_layer("head").kernel))
    plain.get_layer("first").set_weights(
        [np.zeros_like(w) for w in plain.get_layer("first").get_weights()]
    )
    np.testing.assert_array_equal(model.predict(x, verbose=0), before)


def test_an_opened_model_is_cut_saved_and_trained_as_any(tmp_path: Any) -> None:
    model, x = _model(dropout=0.2), _data(32)
    plain = dprp.write_out(model)
    ranks = dprp.select_ranks(plain, method="activation", budget=0.6, data=x)
    small = dprp.cut(plain, ranks, calibration_data=x)
    assert small.count_params() < 0.65 * model.count_params()
    before = small.predict(x, verbose=0)
    dprp.FineTuning(epochs=2, batch_size=8).fit(small, (x, np.arange(32) % 3))
    assert np.abs(small.predict(x, verbose=0) - before).max() > 1e-3
    small.save(tmp_path / "small.keras")
    again = keras.models.load_model(tmp_path / "small.keras")
    np.testing.assert_allclose(
        again.predict(x, verbose=0), small.predict(x, verbose=0), rtol=1e-5, atol=1e-6
    )


def test_what_training_leaves_out_inside_is_left_out_in_the_opened_model() -> None:
    model, x = _model(dropout=0.9), _data(64)
    plain = dprp.write_out(model)
    quiet = ops.convert_to_numpy(plain(x, training=False))
    np.testing.assert_allclose(quiet, ops.convert_to_numpy(model(x, training=False)), atol=1e-5)
    loud = ops.convert_to_numpy(plain(x, training=True))
    assert np.abs(loud - quiet).max() > 1e-2
    # Of the same noise as the model's own, by its size.
    theirs = ops.convert_to_numpy(model(x, training=True))
    assert np.std(loud - quiet) == pytest.approx(np.std(theirs - quiet), rel=0.3)


class _Counting(layers.Layer):
    """Its result depends on the number of samples, told by what `ops.shape` says."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dense = layers.Dense(_WIDE, name="dense")

    def call(self, x: Any) -> Any:
        ones = ops.ones((ops.shape(x)[0], 1, _WIDE))
        return self.dense(x + ones)


class _ByBatch(_Counting):
    def call(self, x: Any) -> Any:
        return self.dense(x) * ops.cast(ops.shape(x)[0], "float32")


class _Windows(_Counting):
    """Samples are told from positions by the number of samples."""

    def call(self, x: Any) -> Any:
        flat = self.dense(ops.reshape(x, (ops.shape(x)[0] * _LONG, _WIDE)))
        return ops.reshape(flat, (ops.shape(x)[0], _LONG, _WIDE))


class _OwnWeight(_Counting):
    def build(self, shape: Any) -> None:
        self.dense.build(shape)
        self.token = self.add_weight(shape=(1, 1, _WIDE), initializer="ones", name="token")

    def call(self, x: Any) -> Any:
        return self.dense(x + self.token)


class _Branching(_Counting):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.noise = layers.GaussianNoise(0.5)

    def call(self, x: Any, training: bool | None = None) -> Any:
        if training:
            x = self.noise(x, training=True)
        return self.dense(x)


def _around(layer: layers.Layer) -> keras.Model:
    x = keras.Input((_LONG, _WIDE))
    return keras.Model(x, layers.Dense(2, name="head")(layer(x)))


def test_what_is_made_for_each_sample_alike_is_opened() -> None:
    model, x = _around(_Counting(name="own")), _data()
    plain = dprp.write_out(model)
    assert list(factorizable(plain)[0]) == ["dense", "head"]
    np.testing.assert_allclose(plain.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (_ByBatch, "computes something else"),
        (_Windows, "works for one sample alone"),
        (_OwnWeight, "weights beside those of its layers"),
        (_Branching, "takes another way in training"),
    ],
)
def test_what_can_not_be_opened_says_why_and_stays(kind: type[layers.Layer], reason: str) -> None:
    layer, x = kind(name="own"), _data()
    model = _around(layer)
    assert reason in unwritten(model)["own"]
    plain = dprp.write_out(model)
    assert type(plain.get_layer("own")) is kind
    np.testing.assert_allclose(plain.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-5)


def test_a_block_called_twice_is_opened_once_and_one_called_in_two_ways_stays() -> None:
    x = keras.Input((_LONG, _WIDE))
    shared = Block(_WIDE, name="shared")
    model = keras.Model(x, shared(shared(x)))
    plain = dprp.write_out(model)
    np.testing.assert_allclose(plain(_data()), model(_data()), atol=1e-5)
    assert plain.count_params() == model.count_params()
    other = Block(_WIDE, name="other")
    two = keras.Model(x, other(other(x), scale=0.5))
    assert unwritten(two) == {"other": "it is called in different ways"}
    np.testing.assert_allclose(dprp.write_out(two)(_data()), two(_data()), atol=1e-5)
