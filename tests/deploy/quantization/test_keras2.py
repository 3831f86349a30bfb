"""The bridge to Keras 2: the same outputs there, the weights brought back, and clear refusals."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import dprp_tf as dprp
from dprp_tf import zoo
from dprp_tf.deploy.quantization.keras2 import load_keras2, load_optimization, to_keras2


def _chain(shape: tuple[int, ...], *steps: keras.layers.Layer) -> keras.Model:
    inputs = keras.Input(shape)
    x = inputs
    for step in steps:
        x = step(x)
    return keras.Model(inputs, x)


def _one_axis() -> keras.Model:
    return _chain(
        (12, 3),
        layers.Conv1D(4, 3, padding="causal", dilation_rate=2),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.ZeroPadding1D(2),
        layers.DepthwiseConv1D(3, use_bias=False),
        layers.BatchNormalization(),
        layers.MaxPooling1D(2),
        layers.SeparableConv1D(5, 3),
        layers.UpSampling1D(2),
        layers.Cropping1D(1),
        layers.GlobalAveragePooling1D(keepdims=True),
    )


def _two_axes() -> keras.Model:
    return _chain(
        (16, 16, 4),
        layers.Rescaling([2.0, 3.0, 2.0, 3.0], offset=[1.0, 2.0, 3.0, 4.0]),
        layers.Conv2D(8, 3, groups=2, dilation_rate=2, kernel_regularizer="l2"),
        layers.LeakyReLU(0.3),
        layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same"),
        layers.BatchNormalization(scale=False),
        layers.PReLU(shared_axes=[1, 2]),
        layers.SeparableConv2D(6, 3, depth_multiplier=2, activation="silu"),
        layers.BatchNormalization(center=False),
        layers.Conv2DTranspose(5, 3, strides=2, padding="same", output_padding=1),
        layers.ELU(0.5),
        layers.ZeroPadding2D(((1, 0), (0, 2))),
        layers.UpSampling2D(2, interpolation="bilinear"),
        layers.AveragePooling2D(3, 2, padding="same"),
        layers.MaxPooling2D(2),
        layers.BatchNormalization(),
        layers.Cropping2D(1),
        layers.SpatialDropout2D(0.2),
        layers.Conv2D(4, 1, activation="hard_silu"),
        layers.Conv2D(4, 1, activation="relu6"),
        layers.Flatten(),
        layers.Dense(12),
        layers.BatchNormalization(),
        layers.ReLU(6.0, negative_slope=0.1, threshold=0.1),
        layers.Dropout(0.5),
        layers.Reshape((3, 4)),
        layers.Permute((2, 1)),
        layers.Flatten(),
        layers.Dense(5, activation="softmax"),
    )


def _three_axes() -> keras.Model:
    return _chain(
        (6, 6, 6, 2),
        layers.Conv3D(4, 3, padding="same"),
        layers.BatchNormalization(),
        layers.AveragePooling3D(2),
        layers.ZeroPadding3D(1),
        layers.Conv3DTranspose(2, 3, strides=2),
        layers.Cropping3D(1),
        layers.GlobalMaxPooling3D(),
    )


def _nested_and_shared() -> keras.Model:
    first, second = keras.Input((8, 8, 3), name="z"), keras.Input((8, 8, 3), name="a")
    shared = layers.Conv2D(3, 3, padding="same", name="shared")
    block = keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Conv2D(3, 3, padding="same", name="shared")], name="block"
    )
    x, y = block(shared(first)), block(shared(second))
    z = layers.Average()([x, y, first])
    z = layers.Multiply()([layers.Maximum()([z, x]), y, x])
    z = layers.Concatenate()([z, x, layers.Subtract()([x, y]), layers.Minimum()([x, y])])
    pooled = layers.GlobalAveragePooling2D(keepdims=True)(z)
    z = layers.Multiply()([z, layers.Dense(12, activation="hard_sigmoid")(pooled)])
    return keras.Model([first, second], {"two": layers.Flatten()(z), "one": pooled, "x": x})


def _operations() -> keras.Model:
    inputs = keras.Input((8, 8, 4))
    x = ops.add(ops.relu(inputs * 2.0 + 1.0), inputs)
    x = -((1.0 - x) / 3.0) - np.array([1.0, 2.0, 3.0, 4.0])
    x = ops.silu(ops.concatenate([ops.multiply(x, inputs), inputs], -1))
    x = ops.reshape(ops.transpose(x, (0, 3, 1, 2)), (-1, 8, 64))
    return keras.Model(inputs, ops.mean(ops.softmax(ops.leaky_relu(x, 0.1)), axis=1))


def _normalized() -> keras.Model:
    step = layers.Normalization(mean=[1.0, 2.0, 3.0], variance=[1.0, 4.0, 2.0])
    return _chain((8, 8, 3), step, layers.Conv2D(2, 3))


def _folded(form: str, matricization: str) -> Callable[[], keras.Model]:
    def build() -> keras.Model:
        model = zoo.resnet_small((16, 16, 3), 4, widths=(4, 8), preprocess=(100.0, 50.0))
        return dprp.fold(dprp.factorize(model, decomposition=matricization, ranks=2), form=form)

    return build


NETWORKS: dict[str, Callable[[], keras.Model]] = {
    "one axis": _one_axis,
    "two axes": _two_axes,
    "three axes": _three_axes,
    "nested and shared": _nested_and_shared,
    "keras.ops": _operations,
    "Normalization": _normalized,
    "ResNet B": lambda: zoo.resnet_small((16, 16, 3), 4, widths=(4, 8), shortcut="B"),
    **{
        f"ResNet A, {matricization}, {form}": _folded(form, matricization)
        for matricization in ("spatial", "channel", "separable")
        for form in ("dense", "two_stage")
    },
    "MobileNetV3": lambda: keras.applications.MobileNetV3Small(
        input_shape=(32, 32, 3), weights=None, classes=4, alpha=0.5
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_bridge_computes_the_same_and_brings_weights_back(
    name: str, rng: np.random.Generator, record_error: Callable[[str, str, float], None]
) -> None:
    model = NETWORKS[name]()
    for variable in model.weights:
        values = np.asarray(variable)
        if values.ndim == 1:
            low = 0.5 if "variance" in variable.path or "gamma" in variable.path else -0.5
            variable.assign(rng.uniform(low, 1.5, values.shape))
    x = [rng.normal(size=(3, *t.shape[1:])).astype("float32") for t in model.inputs]
    given: Any = x if len(x) > 1 else x[0]
    wanted = keras.tree.flatten(model(given, training=False))
    for decompose in (False, True):
        bridge = to_keras2(model, decompose)
        outputs = bridge.model(given, training=False)
        outputs = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
        assert len(outputs) == len(wanted)
        for output, reference in zip(outputs, wanted, strict=True):
            scale = np.abs(reference).max()
            assert scale > 0
            error = float(np.abs(np.asarray(output) - np.asarray(reference)).max() / scale)
            record_error("Keras 2 bridge", name, error)
            assert error < 1e-6
    bridge = to_keras2(model)
    for layer in bridge.model.layers:
        layer.set_weights([weight + 0.25 for weight in layer.get_weights()])
    before = model.get_weights()
    copy = bridge.carry_back()
    assert before or name == "keras.ops"
    for old, new, kept in zip(before, copy.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, kept)
        np.testing.assert_allclose(new, old + 0.25, atol=1e-6)


def test_bridge_names_everything_unknown() -> None:
    inputs = keras.Input((8, 8, 4))
    x = layers.GroupNormalization(2, name="groups")(inputs)
    x = layers.Conv2D(2, 1, activation="log_softmax", name="odd")(ops.sin(x))
    with pytest.raises(ValueError, match=r"groups \(GroupN.*, odd \(.*log_softmax.*Sin"):
        to_keras2(keras.Model(inputs, x))


def test_bridge_carries_what_training_looks_at() -> None:
    model = _chain(
        (8, 8, 2),
        layers.Conv2D(
            2, 3, kernel_regularizer=keras.regularizers.L2(0.3), kernel_constraint="non_neg"
        ),
        layers.BatchNormalization(trainable=False),
    )
    bridge = to_keras2(model)
    convolution, normalization = bridge.model.layers[1:]
    assert float(convolution.kernel_regularizer.l2) == pytest.approx(0.3)
    assert type(convolution.kernel_constraint).__name__ == "NonNeg"
    assert not normalization.trainable
    assert convolution.trainable


def test_keras_stays_keras_3() -> None:
    load_keras2()
    load_optimization()
    assert "TF_USE_LEGACY_KERAS" not in os.environ
    assert tf.keras.__version__.startswith("3")
    assert keras.Model is not load_keras2().Model


def test_a_layer_of_ones_own_is_not_taken_for_keras_by_its_name() -> None:
    class Dense(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return 2 * x

    inputs = keras.Input((4,))
    model = keras.Model(inputs, Dense(name="mine")(inputs))
    with pytest.raises(ValueError, match=r"mine \(Dense\)"):
        to_keras2(model)
