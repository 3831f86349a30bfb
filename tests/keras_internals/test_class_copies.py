"""Models of classes of their own, nested or not, whose layers only that class can make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import dprp_tf as dprp
from dprp_tf.keras_internals.graphs import layer_paths, layers_inside, nodes

pytestmark = pytest.mark.backend


@keras.saving.register_keras_serializable(package="test_class_copies")
class Tiles(layers.Layer):
    """Its configuration says more than its constructor takes."""

    def __init__(self, size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size = size
        self.conv = layers.Conv2D(6, size, size)

    def build(self, shape: Any) -> None:
        self.conv.build(shape)

    def call(self, x: Any) -> Any:
        return self.conv(x)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "size": self.size, "tiles": 16}


@keras.saving.register_keras_serializable(package="test_class_copies")
class Backbone(keras.Model):
    """A Functional model whose class makes its graph, as those of model hubs do."""

    def __init__(self, size: int = 4, dense: bool = False, **kwargs: Any) -> None:
        inputs = keras.Input((16, 16, 3))
        x = Tiles(size)(inputs)
        x = layers.BatchNormalization()(x)
        x = layers.Dropout(0.5)(x)
        x = layers.Dense(6)(x) if dense else x * 0.5
        super().__init__(inputs=inputs, outputs=x, **kwargs)
        self.size, self.dense = size, dense
        self.levels = {"P2": self.output}

    def get_config(self) -> dict[str, Any]:
        return {"size": self.size, "dense": self.dense, "name": self.name}

    @classmethod
    def from_config(cls, config: Any, custom_objects: Any = None) -> Backbone:
        return cls(**config)


class Power(layers.Layer):
    """Its configuration says nothing."""

    def __init__(self, power: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.power = power

    def call(self, x: Any) -> Any:
        return keras.ops.power(keras.ops.abs(x), self.power)


class Forgetful(keras.Model):
    """Its configuration leaves out how steep it is."""

    def __init__(
        self, slope: float = 0.5, by: float = 1.0, power: float = 1.0, **kwargs: Any
    ) -> None:
        inputs = keras.Input((5,))
        x = layers.LeakyReLU(slope)(layers.Rescaling(2.0)(inputs))
        super().__init__(inputs, Power(power)(x) * by, **kwargs)

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name}

    @classmethod
    def from_config(cls, config: Any, custom_objects: Any = None) -> Forgetful:
        return cls(**config)


class Offset(layers.Layer):
    """It can't be made from its configuration at all."""

    def __init__(self, values: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.values = np.asarray(values, "float32")

    def call(self, x: Any) -> Any:
        return x + self.values


class Keyed(keras.Model):
    """It knows what its layer is made of."""

    def __init__(self, values: Any, **kwargs: Any) -> None:
        inputs = {"x": keras.Input((5,), name="x"), "y": keras.Input((5,), name="y")}
        x = layers.Add()([Offset(np.asarray(values))(inputs["x"]), inputs["y"]])
        super().__init__(inputs, layers.Dense(5)(x), **kwargs)
        self.values = list(values)

    def get_config(self) -> dict[str, Any]:
        return {"values": self.values, "name": self.name}

    @classmethod
    def from_config(cls, config: Any, custom_objects: Any = None) -> Keyed:
        return cls(**config)


def _stirred(model: keras.Model) -> keras.Model:
    rng = np.random.default_rng(2)
    for weight in model.weights:
        if "seed" not in weight.name:
            weight.assign(rng.uniform(0.2, 1.0, weight.shape))
    return model


def _images() -> np.ndarray:
    return np.random.default_rng(3).normal(size=(2, 16, 16, 3)).astype("float32")


def _same(model: Any, other: Any, x: Any) -> None:
    one, two = (keras.ops.convert_to_numpy(each(x, training=False)) for each in (model, other))
    np.testing.assert_allclose(one, two, rtol=2e-5, atol=2e-5)


def _with_head(backbone: keras.Model) -> keras.Model:
    inputs = keras.Input((16, 16, 3), name="image")
    x = layers.Flatten()(backbone(inputs))
    x = layers.Dense(12, activation="relu", name="hidden")(x)
    return _stirred(keras.Model(inputs, layers.Dense(5, name="classes")(x)))


@pytest.mark.slow_on_jax
def test_an_unchanged_nested_model_is_copied_through_its_class(tmp_path: Path) -> None:
    model = _with_head(Backbone(name="body"))
    source = model.get_layer("body")
    source.compile("sgd", "mse")  # of no matter inside another
    source.fit(np.zeros((2, 16, 16, 3)), np.zeros((2, 4, 4, 6)), verbose=0)
    source.trainable = False
    before, x = model.get_weights(), _images()
    low = dprp.factorize(model)
    copy = low.get_layer("body")
    assert type(copy) is Backbone
    assert copy is not source
    assert list(copy.levels) == ["P2"]
    assert list(dict(layer_paths(low))) == list(dict(layer_paths(model)))
    # Names of layers inside that the class left to Keras' counting are kept too.
    names = [[part.name for part in layers_inside(each)] for each in (source, copy)]
    assert names[0] == names[1]
    assert copy.output_names == source.output_names
    steps = [[node.operation.name for node in nodes(each)] for each in (source, copy)]
    assert steps[0] == steps[1]
    assert copy.trainable is False
    assert not {id(v) for v in low.variables} & {id(v) for v in model.variables}
    for mine, theirs in zip(copy.weights, source.weights, strict=True):
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (mine, theirs)))
    _same(low, model, x)
    small = dprp.fold(dprp.factorize(model, ranks=2), form="two_stage")
    assert type(small.get_layer("body")) is Backbone
    assert np.abs(np.asarray(small(x)) - np.asarray(model(x))).max() > 1e-3
    low.save(tmp_path / "low.keras")
    _same(keras.saving.load_model(tmp_path / "low.keras"), low, x)
    for weight in low.trainable_variables:
        weight.assign(weight + 1.0)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_it_is_copied_once_where_it_is_called_twice_or_deeper() -> None:
    body = Backbone(name="body")
    middle = keras.Sequential([keras.Input((16, 16, 3)), body], name="middle")
    inputs = keras.Input((16, 16, 3))
    joined = layers.Concatenate()([body(inputs), middle(inputs), body(2.0 * inputs)])
    model = _stirred(keras.Model(inputs, layers.Dense(5, name="classes")(joined)))
    low = dprp.factorize(model)
    # The kernel of the head becomes three factors.
    assert len(low.trainable_variables) == len(model.trainable_variables) + 2
    assert low.get_layer("middle").get_layer("body") is low.get_layer("body")
    _same(low, model, _images())


@pytest.mark.parametrize("nested", [True, False])
def test_layers_that_only_the_class_can_make_beside_layers_that_change(nested: bool) -> None:
    model = _with_head(Backbone(dense=True, name="body"))
    model = model if nested else _stirred(Backbone(dense=True, name="body"))
    x = _images()
    low = dprp.factorize(model)
    assert len(low.ranks) == (3 if nested else 1)
    assert list(dict(layer_paths(low))) == list(dict(layer_paths(model)))
    _same(low, model, x)
    less = dprp.factorize(model, ranks=1)
    assert np.abs(np.asarray(less(x)) - np.asarray(model(x))).max() > 1e-3
    _same(dprp.fold(low, form="dense"), model, x)
    body, own = (each.get_layer("body") if nested else each for each in (low, model))
    tiles = next(layer for layer in body.layers if isinstance(layer, Tiles))
    first = next(layer for layer in own.layers if isinstance(layer, Tiles))
    one, other = body.inputs[0], own.inputs[0]
    _same(keras.Model(one, tiles.output), keras.Model(other, first.output), x)


def test_what_a_configuration_leaves_out_is_not_lost() -> None:
    inputs = keras.Input((5,))
    for settings in ({"slope": 0.1}, {"by": 3.0}, {"power": 2.0}, {}):
        x = Forgetful(**settings, name="forgets")(layers.Dense(5, name="first")(inputs))
        model = keras.Model(inputs, x)
        data = np.random.default_rng(0).normal(size=(9, 5)).astype("float32")
        low = dprp.factorize(model)
        _same(low, model, data)
        assert isinstance(low.get_layer("forgets"), Forgetful) == (not settings)


def test_a_layer_that_its_own_configuration_can_not_make_is_left_to_the_class() -> None:
    inputs = keras.Input((5,))
    hidden = layers.Dense(5, name="first")(inputs)
    body = Keyed([1.0, 2.0, 3.0, 4.0, 5.0], name="body")
    model = _stirred(keras.Model(inputs, body({"x": hidden, "y": inputs})))
    data = np.random.default_rng(0).normal(size=(9, 5)).astype("float32")
    low = dprp.factorize(model, layers=["first"])
    assert isinstance(low.get_layer("body"), Keyed)
    _same(low, model, data)
    assert list(dict(layer_paths(low))) == list(dict(layer_paths(model)))
    with pytest.raises(ValueError, match=r"layers that serialize.*Offset"):
        dprp.factorize(model)


def test_a_layer_shared_with_what_is_around_stays_shared() -> None:
    body = Forgetful(slope=0.1, name="body")
    shared = body.layers[2]
    inputs = keras.Input((5,))
    x = layers.Dense(5, name="first")(shared(inputs))
    model = keras.Model(inputs, body(x))
    low = dprp.factorize(model)
    assert low.get_layer("body").get_layer(shared.name) is low.get_layer(shared.name)
    _same(low, model, np.random.default_rng(0).normal(size=(9, 5)).astype("float32"))


def test_a_class_that_asks_for_more_than_its_configuration_says_is_rebuilt() -> None:
    class Asking(keras.Model):
        def __init__(self, width: int, **kwargs: Any) -> None:
            inputs = keras.Input((5,))
            super().__init__(inputs, layers.Rescaling(float(width))(inputs), **kwargs)

        def get_config(self) -> dict[str, Any]:
            return {"name": self.name}

    inputs = keras.Input((5,))
    model = keras.Model(inputs, Asking(3)(layers.Dense(5)(inputs)))
    _same(dprp.factorize(model), model, np.ones((2, 5), "float32"))


def test_a_body_of_another_precision_keeps_it() -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        body = Forgetful(name="body")
    finally:
        keras.config.set_dtype_policy("float32")
    inputs = keras.Input((5,))
    low = dprp.factorize(keras.Model(inputs, body(layers.Dense(5)(inputs))))
    for part, copy in zip(body.layers, low.get_layer("body").layers, strict=True):
        if not isinstance(part, layers.InputLayer):
            assert part.dtype_policy == copy.dtype_policy
