"""Models with new weights: all that trains is drawn anew, all else stays."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers

from dprp_tf.conversion.reinitializing import reinitialized


def _trained() -> keras.Model:
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(5, name="inside")], name="nested")
    inputs = keras.Input((4,))
    x = layers.Normalization(mean=[1.0, 2.0, 3.0, 4.0], variance=[4.0] * 4, name="scaled")(inputs)
    x = layers.Dense(6, name="first", bias_initializer="ones")(x)
    x = layers.BatchNormalization(name="norm")(x)
    frozen = layers.Dense(6, name="frozen")
    x = frozen(x)
    frozen.trainable = False
    model = keras.Model(inputs, layers.Dense(3, name="head")(inner(x)))
    rng = np.random.default_rng(0)
    for layer in (*model.layers, *inner.layers):
        if layer.name != "scaled" and layer.name != "nested":
            layer.set_weights([rng.normal(size=w.shape) for w in layer.get_weights()])
    return model


def test_what_trains_is_drawn_as_its_layers_say_and_the_rest_stays() -> None:
    model = _trained()
    before = [np.array(weight) for weight in model.weights]
    keras.utils.set_random_seed(3)
    new = reinitialized(model)
    for name in ("first", "head"):
        old, drawn = (np.array(found.get_layer(name).kernel) for found in (model, new))
        assert not np.isclose(old, drawn).any()
    inside = new.get_layer("nested").get_layer("inside")
    was = model.get_layer("nested").get_layer("inside")
    assert not np.isclose(np.array(inside.kernel), np.array(was.kernel)).any()
    np.testing.assert_array_equal(np.array(new.get_layer("first").bias), np.ones(6))
    gamma, beta, mean, variance = new.get_layer("norm").get_weights()
    assert (gamma == 1).all()
    assert (beta == 0).all()
    assert (mean == 0).all()
    assert (variance == 1).all()
    np.testing.assert_array_equal(
        np.array(new.get_layer("frozen").kernel), np.array(model.get_layer("frozen").kernel)
    )
    x = np.random.default_rng(1).normal(size=(5, 4)).astype("float32")
    scaled = keras.Model(new.inputs, new.get_layer("scaled").output)
    np.testing.assert_allclose(scaled.predict(x, verbose=0), (x - [1, 2, 3, 4]) / 2, rtol=1e-5)
    # The model given is as it was, and equal seeds draw equally.
    for weight, kept in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(np.array(weight), kept)
    keras.utils.set_random_seed(3)
    again = reinitialized(model)
    for first, second in zip(new.weights, again.weights, strict=True):
        np.testing.assert_array_equal(np.array(first), np.array(second))
