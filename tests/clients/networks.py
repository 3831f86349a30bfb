"""Small networks of the kinds that people bring, each with data and the loss that is its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras import layers, ops

__all__ = ["CLIENTS", "Client"]

SAMPLES = 48


@dataclass(frozen=True)
class Client:
    """A model, what it trains on, and what is known about it beforehand.

    Attributes:
        model: The dense model, not compiled.
        x: Inputs.
        y: Targets.
        loss: What `compile` takes.
        int8: Why the int8 file is refused, as a pattern; None where it is written.
        onnx: Likewise for ONNX.
        options: More arguments of every export.
    """

    model: keras.Model
    x: Any
    y: Any
    loss: Any
    int8: str | None = None
    onnx: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


def _images(*shape: int, seed: int = 0) -> np.ndarray:
    """Blobs on noise: inputs whose neighbours resemble each other, as those of photos do."""
    generator = np.random.default_rng(seed)
    coarse = generator.random((SAMPLES, *((-(-edge // 4)) for edge in shape[:-1]), shape[-1]))
    for axis in range(1, coarse.ndim - 1):
        coarse = np.repeat(coarse, 4, axis=axis)
    window = tuple(slice(edge) for edge in shape[:-1])
    fine = generator.random((SAMPLES, *shape))
    return (0.8 * coarse[(slice(None), *window)] + 0.2 * fine).astype("float32")


def _kinds(photos: np.ndarray, classes: int) -> np.ndarray:
    """Classes by brightness, as many of each, so that there is something to learn."""
    brightness = photos.reshape(len(photos), -1).mean(axis=1)
    return np.argsort(np.argsort(brightness)) * classes // len(photos)


# Trained for seconds, scores are close: near ties flip more often than in a finished network.
_TIES = {"class_scores": True, "minimum_agreement": 0.8}


def _conv(x: Any, filters: int, strides: int = 1, name: str | None = None) -> Any:
    x = layers.Conv2D(filters, 3, strides, "same", use_bias=False, name=name)(x)
    return layers.ReLU()(layers.BatchNormalization()(x))


def unet() -> Client:
    image = keras.Input((32, 32, 3), name="image")
    first = _conv(_conv(image, 12), 12)
    second = _conv(layers.MaxPooling2D()(first), 24)
    deep = _conv(layers.MaxPooling2D()(second), 32)
    up = layers.Conv2DTranspose(24, 2, 2, name="up_1")(deep)
    up = _conv(layers.Concatenate()([up, second]), 24)
    up = layers.Conv2DTranspose(12, 2, 2, name="up_2")(up)
    up = _conv(layers.Concatenate()([up, first]), 12)
    model = keras.Model(image, layers.Conv2D(3, 1, activation="softmax", name="map")(up))
    x = _images(32, 32, 3)
    return Client(model, x, x.argmax(-1), "sparse_categorical_crossentropy")


def deeplab() -> Client:
    image = keras.Input((32, 32, 3), name="image")
    low = _conv(image, 16, 2)
    x = _conv(low, 24, 2)
    branches = [layers.Conv2D(16, 1, activation="relu")(x)]
    for rate in (2, 3):
        branches.append(
            layers.Conv2D(16, 3, padding="same", dilation_rate=rate, activation="relu")(x)
        )
    pooled = layers.Conv2D(16, 1, activation="relu")(layers.AveragePooling2D(8)(x))
    branches.append(layers.UpSampling2D(8, interpolation="bilinear")(pooled))
    x = layers.Conv2D(24, 1, activation="relu")(layers.Concatenate()(branches))
    x = layers.UpSampling2D(2, interpolation="bilinear")(x)
    x = _conv(layers.Concatenate()([x, layers.Conv2D(8, 1)(low)]), 16)
    x = layers.UpSampling2D(2, interpolation="bilinear")(layers.Conv2D(3, 1, name="logits")(x))
    photo = _images(32, 32, 3)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return Client(keras.Model(image, x), photo, photo.argmax(-1), loss)


def retinanet() -> Client:
    """A pyramid whose levels share their heads, with a focal loss and boxes of their own."""
    image = keras.Input((32, 32, 3), name="image")
    c3 = _conv(_conv(image, 16, 2), 24, 2)
    c4 = _conv(c3, 32, 2)
    p4 = layers.Conv2D(16, 1, name="lateral_4")(c4)
    p3 = layers.Add()([layers.Conv2D(16, 1, name="lateral_3")(c3), layers.UpSampling2D(2)(p4)])

    def head(outputs: int, name: str) -> keras.Model:
        features = keras.Input((None, None, 16))
        x = layers.Conv2D(16, 3, padding="same", activation="relu")(features)
        x = layers.Conv2D(outputs, 3, padding="same")(x)
        return keras.Model(features, x, name=name)

    kinds, boxes = head(3, "kind_head"), head(4, "box_head")

    def joined(shared: keras.Model, size: int, name: str) -> Any:
        parts = [layers.Reshape((-1, size))(shared(level)) for level in (p3, p4)]
        return layers.Concatenate(axis=1, name=name)(parts)

    model = keras.Model(image, {"kind": joined(kinds, 3, "kind"), "box": joined(boxes, 4, "box")})
    generator = np.random.default_rng(1)
    y = {
        "kind": (generator.random((SAMPLES, 80, 3)) < 0.1).astype("float32"),
        "box": generator.normal(size=(SAMPLES, 80, 4)).astype("float32"),
    }
    losses = {
        "kind": keras.losses.BinaryFocalCrossentropy(from_logits=True),
        "box": keras.losses.Huber(),
    }
    return Client(model, _images(32, 32, 3), y, losses)


def ssd() -> Client:
    """Classes and boxes of every place in outputs of their own; boxes in pixels."""
    image = keras.Input((32, 32, 3), name="image")
    x = _conv(_conv(image, 16, 2), 24, 2)
    y = _conv(x, 32, 2)
    kinds, boxes = [], []
    for level in (x, y):
        kinds.append(layers.Reshape((-1, 4))(layers.Conv2D(4, 3, padding="same")(level)))
        boxes.append(layers.Reshape((-1, 4))(layers.Conv2D(4, 3, padding="same")(level)))
    kind = layers.Softmax(name="kind")(layers.Concatenate(axis=1)(kinds))
    box = layers.Rescaling(32.0, name="box")(layers.Concatenate(axis=1)(boxes))
    model = keras.Model(image, [kind, box])
    generator = np.random.default_rng(1)
    labels = [generator.integers(0, 4, (SAMPLES, 80)), 32 * generator.random((SAMPLES, 80, 4))]
    losses = ["sparse_categorical_crossentropy", "mae"]
    # Labels drawn by lot: nothing to learn, and ties everywhere.
    return Client(model, _images(32, 32, 3), labels, losses, options={"minimum_agreement": 0.8})


def keypoints() -> Client:
    image = keras.Input((24, 24, 3), name="image")
    x = _conv(_conv(image, 16, 2), 24, 2)
    x = layers.SeparableConv2D(24, 3, activation="relu")(x)
    x = layers.Flatten()(x)
    model = keras.Model(image, layers.Dense(8, name="points")(layers.Dense(32, "relu")(x)))
    photo = _images(24, 24, 3)
    return Client(model, photo, photo[:, ::12, ::12, :2].reshape(SAMPLES, 8), "mse")


def multi_label() -> Client:
    image = keras.Input((24, 24, 3), name="image")
    x = _conv(_conv(image, 16, 2), 32, 2)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, layers.Dense(6, "sigmoid", name="labels")(x))
    y = (_images(24, 24, 6).mean((1, 2)) > 0.5).astype("float32")
    return Client(model, _images(24, 24, 3), y, "binary_crossentropy")


def captcha() -> Client:
    """Convolutions, a bidirectional LSTM along the width, and CTC over letters."""
    image = keras.Input((32, 16, 1), name="image")
    x = layers.MaxPooling2D()(layers.Conv2D(16, 3, padding="same", activation="relu")(image))
    x = layers.MaxPooling2D((1, 2))(layers.Conv2D(16, 3, padding="same", activation="relu")(x))
    x = layers.Dense(16, "relu", name="mixed")(layers.Reshape((16, 64))(x))
    x = layers.Bidirectional(layers.LSTM(8, return_sequences=True))(x)
    model = keras.Model(image, layers.Dense(6, name="letters")(x))
    y = np.random.default_rng(1).integers(1, 6, (SAMPLES, 4))
    return Client(model, _images(32, 16, 1), y, keras.losses.CTC(), options={"class_scores": True})


def keyword() -> Client:
    """A spectrogram, depthwise-separable blocks, twelve words."""
    sound = keras.Input((40, 20, 1), name="spectrogram")
    x = _conv(sound, 16, 2)
    for _ in range(2):
        x = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.Conv2D(24, 1, use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(sound, layers.Dense(12, "softmax", name="word")(x))
    sounds = _images(40, 20, 1)
    loss = "sparse_categorical_crossentropy"
    return Client(model, sounds, _kinds(sounds, 12), loss, options=_TIES)


def speaker() -> Client:
    """Residual blocks of one-dimensional convolutions on a waveform."""
    wave = keras.Input((128, 1), name="wave")
    x: Any = wave
    for filters in (8, 16, 24):
        short = layers.Conv1D(filters, 1)(x)
        x = layers.Conv1D(filters, 3, padding="same", activation="relu")(x)
        x = layers.Conv1D(filters, 3, padding="same")(x)
        x = layers.MaxPooling1D(2)(layers.ReLU()(layers.Add()([x, short])))
    x = layers.Dense(24, "relu")(layers.Flatten()(layers.AveragePooling1D(3)(x)))
    model = keras.Model(wave, layers.Dense(5, "softmax", name="speaker")(x))
    waves = _images(128, 1)
    y = np.eye(5)[_kinds(waves, 5)]
    return Client(model, waves, y, "categorical_crossentropy", options=_TIES)


def time_series() -> Client:
    """Causal, dilated convolutions that forecast three values."""
    past = keras.Input((48, 4), name="past")
    x = past
    for rate in (1, 2, 4):
        x = layers.Conv1D(16, 3, padding="causal", dilation_rate=rate, activation="relu")(x)
    x = layers.Dense(16, "relu")(layers.Lambda(lambda t: t[:, -1])(x))
    model = keras.Model(past, layers.Dense(3, name="next")(x))
    series = _images(48, 4)
    return Client(model, series, series[:, -1, :3], "mae")


def espcn() -> Client:
    """Convolutions, then channels moved to pixels."""
    small = keras.Input((16, 16, 1), name="small")
    x = layers.Conv2D(16, 5, padding="same", activation="tanh")(small)
    x = layers.Conv2D(16, 3, padding="same", activation="tanh")(x)
    x = layers.Conv2D(4, 3, padding="same")(x)
    x = layers.Reshape((16, 16, 2, 2))(x)
    x = layers.Reshape((32, 32, 1), name="large")(layers.Permute((1, 3, 2, 4))(x))
    large = _images(32, 32, 1)
    return Client(keras.Model(small, x), large[:, ::2, ::2], large, "mse")


def denoiser() -> Client:
    noisy = keras.Input((24, 24, 1), name="noisy")
    x = layers.Conv2D(16, 3, 2, "same", activation="relu")(noisy)
    x = layers.Conv2D(16, 3, 2, "same", activation="relu")(x)
    x = layers.Conv2DTranspose(16, 3, 2, "same", activation="relu")(x)
    x = layers.Conv2DTranspose(16, 3, 2, "same", activation="relu")(x)
    x = layers.Conv2D(1, 3, padding="same", activation="sigmoid", name="clean")(x)
    clean = _images(24, 24, 1)
    return Client(keras.Model(noisy, x), clean, clean, "binary_crossentropy")


def zero_dce() -> Client:
    """Curves that brighten an image: skips by concatenation, tanh, and a loss without labels."""
    image = keras.Input((24, 24, 3), name="image")
    x1 = layers.Conv2D(12, 3, padding="same", activation="relu")(image)
    x2 = layers.Conv2D(12, 3, padding="same", activation="relu")(x1)
    x3 = layers.Conv2D(12, 3, padding="same", activation="relu")(layers.Concatenate()([x1, x2]))
    curve = layers.Conv2D(3, 3, padding="same", activation="tanh")(layers.Concatenate()([x1, x3]))
    brighter = image
    for _ in range(2):
        brighter = brighter + curve * (ops.square(brighter) - brighter)
    model = keras.Model(image, brighter)
    photo = _images(24, 24, 3)

    def exposure(y: Any, predictions: Any) -> Any:
        return ops.mean(ops.square(ops.mean(predictions, axis=-1) - 0.6))

    return Client(model, 0.4 * photo, photo, exposure)


def volumes() -> Client:
    """A strided convolution in place of pooling, for which LiteRT has no operator."""
    scan = keras.Input((12, 12, 12, 1), name="scan")
    x = layers.Conv3D(12, 3, activation="relu")(scan)
    x = layers.Conv3D(16, 3, 2, activation="relu")(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling3D()(x)
    model = keras.Model(scan, layers.Dense(1, "sigmoid", name="ill")(x))
    y = np.arange(SAMPLES) % 2
    scans = _images(12, 12, 12, 1)
    return Client(model, scans, y[:, None], "binary_crossentropy", int8="CONV_3D|Conv3D")


def video() -> Client:
    """A network for each frame, then a GRU over them."""
    frames = keras.Input((4, 16, 16, 3), name="frames")
    image = keras.Input((16, 16, 3))
    x = layers.GlobalAveragePooling2D()(_conv(_conv(image, 12, 2), 16, 2))
    x = layers.TimeDistributed(keras.Model(image, x, name="frame"))(frames)
    x = layers.Dense(16, "relu")(layers.GRU(8)(x))
    model = keras.Model(frames, layers.Dense(4, "softmax", name="action")(x))
    clips = _images(4, 16, 16, 3)
    loss = "sparse_categorical_crossentropy"
    return Client(model, clips, _kinds(clips, 4), loss, options=_TIES)


def _transformer(x: Any, heads: int, size: int) -> Any:
    y = layers.LayerNormalization()(x)
    x = x + layers.MultiHeadAttention(heads, size // heads)(y, y)
    y = layers.Dense(2 * size, "gelu")(layers.LayerNormalization()(x))
    return x + layers.Dense(size)(y)


def vit() -> Client:
    image = keras.Input((24, 24, 3), name="image")
    x = layers.Conv2D(24, 8, 8, name="patches")(image)
    x = _transformer(layers.Reshape((9, 24))(x), 2, 24)
    x = layers.LayerNormalization()(layers.GlobalAveragePooling1D()(x))
    model = keras.Model(image, layers.Dense(5, "softmax", name="kind")(x))
    photos = _images(24, 24, 3)
    loss = "sparse_categorical_crossentropy"
    return Client(model, photos, _kinds(photos, 5), loss, options=_TIES)


def mobilevit() -> Client:
    image = keras.Input((16, 16, 3), name="image")
    x = _conv(image, 16, 2)
    local = _conv(x, 16)
    patches = layers.Reshape((64, 16))(layers.Conv2D(16, 1)(local))
    whole = layers.Reshape((8, 8, 16))(_transformer(patches, 2, 16))
    x = _conv(layers.Concatenate()([x, layers.Conv2D(16, 1)(whole)]), 16)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, layers.Dense(5, "softmax", name="kind")(x))
    photos = _images(16, 16, 3)
    loss = "sparse_categorical_crossentropy"
    return Client(model, photos, _kinds(photos, 5), loss, options=_TIES)


def convmixer() -> Client:
    image = keras.Input((24, 24, 3), name="image")
    x = layers.Conv2D(24, 4, 4, activation="gelu")(image)
    for _ in range(2):
        y = layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same")(x))
        x = layers.Conv2D(24, 1, activation="gelu")(layers.Add()([x, layers.ReLU()(y)]))
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, layers.Dense(5, name="kind")(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    photos = _images(24, 24, 3)
    return Client(model, photos, _kinds(photos, 5), loss, options=_TIES)


CLIENTS: dict[str, Callable[[], Client]] = {
    builder.__name__: builder
    for builder in (
        unet,
        deeplab,
        retinanet,
        ssd,
        keypoints,
        multi_label,
        captcha,
        keyword,
        speaker,
        time_series,
        espcn,
        denoiser,
        zero_dce,
        volumes,
        video,
        vit,
        mobilevit,
        convmixer,
    )
}
