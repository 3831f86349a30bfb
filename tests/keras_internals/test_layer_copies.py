"""Copies of layers whose configurations fail, say something else, or leave something out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import dprp_tf as dprp
from dprp_tf.keras_internals.layer_copies import copy_when_called
from dprp_tf.keras_internals.precision import in_float32

pytestmark = pytest.mark.backend


class Mixing(layers.Layer):
    """It can't be made from its configuration: its constructor takes none."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = layers.Dense(channels)

    def call(self, x: Any) -> Any:
        return self.inner(x)


class Encoder(layers.Layer):
    """Its configuration misspells one argument, leaves out another and holds a layer."""

    def __init__(self, width: int, parts: int = 1, slope: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.width = width
        self.mixing = [Mixing(width) for _ in range(parts)]
        self.bent = layers.LeakyReLU(slope)

    def call(self, x: Any) -> Any:
        for part in self.mixing:
            x = x + part(x)
        return self.bent(x)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "width": self.width,
            "slop": self.bent.negative_slope,
            "mixing": [keras.saving.serialize_keras_object(part) for part in self.mixing],
        }


class Gain(layers.Layer):
    """What is copied is silent: its configuration leaves out the gain, and no weight tells."""

    def __init__(self, gain: float = 1.0, of: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.gain, self.of = gain, of

    def call(self, x: Any) -> Any:
        x = x if self.of is None else self.of(x)
        return x * self.gain

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "of": self.of}


class Told(Gain):
    """Its configuration says what it is now, whatever it was made with."""

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "gain": self.gain}


class Leaking(layers.Layer):
    """The layer inside is made with what the configuration leaves out."""

    def __init__(self, slope: float = 0.1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.inner = layers.LeakyReLU(slope)

    def call(self, x: Any) -> Any:
        return self.inner(x)

    def get_config(self) -> dict[str, Any]:
        return super().get_config()


class Counting(layers.Layer):
    """What it counts is no setting."""

    def __init__(self, by: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.by, self.calls, self.size = by, 0, None

    def build(self, shape: Any) -> None:
        self.size = shape[-1]

    def call(self, x: Any) -> Any:
        self.calls += 1
        return x * self.by

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "by": self.by}


def _changed(layer: Any, **settings: Any) -> Any:
    for name, value in settings.items():
        setattr(layer, name, value)
    return layer


def _changed_inside() -> layers.Layer:
    layer = Leaking(0.7, name="it")
    layer.inner.negative_slope = 0.9
    return layer


COPIED: dict[str, Callable[[], layers.Layer]] = {
    "not made from its configuration": lambda: Encoder(5, 2, slope=0.3, name="it"),
    "without a name": lambda: _changed(Mixing(5), name="it"),
    "a setting left out": lambda: Gain(3.0, name="it"),
    "a setting of a layer inside left out": lambda: Leaking(0.7, name="it"),
    "changed since, as its configuration says": lambda: _changed(Told(1.0, name="it"), gain=3.0),
    "made with a function": lambda: Told(3.0, of=keras.ops.abs, name="it"),
    "counting": lambda: Counting(3.0, name="it"),
}


def _around(layer: layers.Layer) -> keras.Model:
    inputs = keras.Input((5,))
    hidden = layers.Dense(5, name="first")(inputs)
    # Called twice, so that the copy must be one layer too.
    joined = layers.Concatenate()([layer(hidden), layer(layers.Rescaling(2.0)(hidden))])
    model = keras.Model(inputs, layers.Dense(3, name="last")(joined))
    rng = np.random.default_rng(1)
    for weight in model.weights:
        weight.assign(rng.normal(size=weight.shape))
    return model


def _outputs(model: keras.Model, x: np.ndarray) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(model(x)))


@pytest.mark.parametrize("name", COPIED)
def test_a_copy_computes_the_same(name: str) -> None:
    model = _around(COPIED[name]())
    x = np.random.default_rng(2).normal(size=(7, 5)).astype("float32")
    expected = _outputs(model, x)
    low = dprp.factorize(model)
    assert list(low.ranks) == ["first", "last"]
    for copy in (low, dprp.fold(low, form="dense"), in_float32(model)):
        np.testing.assert_allclose(_outputs(copy, x), expected, rtol=1e-4, atol=1e-4)
        assert copy.get_layer("it") is not model.get_layer("it")
        assert not {id(v) for v in copy.variables} & {id(v) for v in model.variables}
    for weight in low.trainable_variables:
        weight.assign(weight + 1.0)
    np.testing.assert_array_equal(_outputs(model, x), expected)
    assert np.abs(_outputs(low, x) - expected).max() > 0.1


REFUSED: dict[str, tuple[Callable[[], layers.Layer], str]] = {
    "changed since, and its configuration is silent": (
        lambda: _changed(Gain(2.0, name="it"), gain=3.0),
        r"Gain 'it', whose copy has gain=\[1\.0\] where it was \[3\.0\]",
    ),
    "made with what is not recorded": (
        lambda: Gain(3.0, of=keras.ops.abs, name="it"),
        r"Gain 'it', whose copy has gain=\[1\.0\] where it was \[3\.0\]",
    ),
    "changed inside": (
        _changed_inside,
        r"whose copy has negative_slope=0\.1 in LeakyReLU inside where it was 0\.9",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_compute_something_else_is_refused_with_the_setting(name: str) -> None:
    make, message = REFUSED[name]
    model = _around(make())
    for convert in (dprp.factorize, in_float32):
        with pytest.raises(ValueError, match=message + r".*returns every argument of __init__"):
            convert(model)


def test_a_copy_that_fails_when_called_is_named() -> None:
    class Asking(layers.Layer):
        def __init__(self, table: Any = None, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.table = table

        def call(self, x: Any) -> Any:
            return x * self.table[0]

        def get_config(self) -> dict[str, Any]:
            return super().get_config()

    inputs = keras.Input((5,))
    layer = Asking(np.ones(1, "float32"), name="it")
    layer(inputs)
    with pytest.raises(ValueError, match=r"Asking 'it', whose copy could not be called \("):
        copy_when_called(layer, lambda config: config, inputs)
