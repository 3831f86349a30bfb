"""Scores against plain NumPy and Keras' own metrics; what a model was compiled for decides."""

from __future__ import annotations

import functools
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from dprp_tf.costs.accuracy import top_1_accuracy
from dprp_tf.costs.compiled_loss import are_classes, described, is_binary, is_categorical
from dprp_tf.costs.scores import (
    SCORES,
    binary_accuracy,
    peak_signal_to_noise,
    resolve_score,
    score_scale,
)


def _model(outputs: int = 3, activation: Any = None) -> keras.Model:
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((5,)), layers.Dense(outputs, activation, name="it")])


@pytest.mark.parametrize("name", [*SCORES, "mae", "hinge", "AUC"])
def test_a_scale_knows_which_way_is_better(name: str) -> None:
    y = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    near, far = y * 0.8 + 0.1, (1 - y) * 0.8 + 0.1
    scale, score = score_scale(name), resolve_score(name)
    # Of maps of classes the labels are whole numbers.
    good, bad = (scale.value(score(y.astype(int), each)) for each in (near, far))
    assert (good < bad) == scale.less_is_better
    assert good >= 0
    assert scale.name == name
    assert (scale.unit == "share") == (name in ("accuracy", "binary_accuracy", "mean_iou"))


def test_a_function_is_called_by_its_name_and_more_of_it_is_better() -> None:
    found = score_scale(functools.partial(peak_signal_to_noise, peak=255))
    assert (found.name, found.less_is_better) == ("peak_signal_to_noise", False)
    assert score_scale(None).name == "accuracy"
    assert score_scale(keras.metrics.MeanSquaredError(name="far")).less_is_better


def _data(outputs: int = 3) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(1)
    return (
        generator.random((40, 5)).astype("float32"),
        generator.random((40, outputs)).astype("float32"),
    )


@pytest.mark.parametrize("name", sorted(set(SCORES) - {"psnr"}))
def test_scores_by_name_are_those_of_keras(name: str) -> None:
    generator = np.random.default_rng(2)
    if name == "mean_iou":
        y = generator.integers(0, 4, (6, 9, 9))
        p = generator.random((6, 9, 9, 4))
        own: Any = keras.metrics.MeanIoU(4, sparse_y_pred=False)
    elif name == "accuracy":
        y, p = generator.integers(0, 4, 50), generator.random((50, 4))
        own = keras.metrics.SparseCategoricalAccuracy()
    else:
        y, p = generator.integers(0, 2, (50, 4)), generator.random((50, 4))
        own = keras.metrics.get({"binary_accuracy": "BinaryAccuracy"}.get(name, name))
    value = SCORES[name](y, p)
    if isinstance(own, keras.metrics.Metric):
        own.update_state(y, p)
        expected = float(own.result())
    else:
        expected = float(np.mean(own(y, p)))
    sign = -1 if "error" in name else 1
    assert value == pytest.approx(sign * expected, rel=1e-5)


def test_signal_to_noise_is_that_of_tensorflow() -> None:
    import tensorflow as tf

    generator = np.random.default_rng(3)
    y = generator.random((5, 8, 8, 3)).astype("float32")
    p = np.clip(y + 0.1 * generator.standard_normal(y.shape), 0, 1).astype("float32")
    expected = float(np.mean(tf.image.psnr(y, p, 1.0)))
    assert SCORES["psnr"](y, p) == pytest.approx(expected, rel=1e-5)
    in_bytes = functools.partial(peak_signal_to_noise, peak=255)
    assert in_bytes(255 * y, 255 * p) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="peak=255"):
        peak_signal_to_noise(255 * y, 255 * p)


def test_keras_metrics_by_name_and_as_objects() -> None:
    generator = np.random.default_rng(4)
    y, p = generator.integers(0, 2, 60), generator.random(60)
    area = keras.metrics.AUC()
    area.update_state(y, p)
    for given in ("AUC", keras.metrics.AUC()):
        score = resolve_score(given)
        assert score(y, p) == pytest.approx(float(area.result()))
        assert score(y, p) == score(y, p), "a metric that was not reset"
    for name in ("mae", "MeanAbsoluteError", "mean_absolute_percentage_error", "kl_divergence"):
        worse, better = (resolve_score(name)(p + 1, p + offset) for offset in (0.1, 0.9))
        assert better > worse, name
    with pytest.raises(ValueError, match=r"`score` must be one of \['accuracy'"):
        resolve_score("goodness")


@pytest.mark.parametrize(
    ("loss", "activation", "expected"),
    [
        ("sparse_categorical_crossentropy", "softmax", top_1_accuracy),
        (keras.losses.CategoricalCrossentropy(from_logits=True), None, top_1_accuracy),
        ("binary_crossentropy", "sigmoid", binary_accuracy),
        (keras.losses.BinaryFocalCrossentropy(), "sigmoid", binary_accuracy),
    ],
)
def test_a_loss_for_classes_or_labels_says_which(loss: Any, activation: Any, expected: Any) -> None:
    model = _model(activation=activation)
    model.compile("sgd", loss)
    assert resolve_score(None, model) is expected
    assert resolve_score("mae", model) is not expected
    chosen = lambda y, p: 0.5  # noqa: E731
    assert resolve_score(chosen, model) is chosen


@pytest.mark.parametrize(
    "loss",
    [
        "mse",
        keras.losses.Huber(0.3),
        keras.losses.BinaryCrossentropy(from_logits=True),
        lambda y, p: keras.ops.mean(keras.ops.abs(y - p) ** 3),
    ],
)
def test_any_other_loss_counts_negatively_and_is_what_evaluate_says(loss: Any) -> None:
    model = _model()
    model.compile("sgd", loss)
    x, y = _data()
    found = resolve_score(None, model)(y, model.predict(x, verbose=0))
    assert found == pytest.approx(-model.evaluate(x, y, batch_size=40, verbose=0), rel=1e-5)


@pytest.mark.parametrize("weighted", [None, {"box": 2.0, "kind": 0.5}, [2.0, 0.5]])
@pytest.mark.parametrize("named", [True, False])
def test_losses_of_several_outputs_add_up_as_compiled(weighted: Any, named: bool) -> None:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5,))
    box, kind = layers.Dense(4, name="box")(inputs), layers.Dense(3, name="kind")(inputs)
    model = keras.Model(inputs, {"box": box, "kind": kind} if named else [box, kind])
    cross = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    losses: Any = {"box": "mse", "kind": cross} if named else ["mse", cross]
    if weighted is not None and isinstance(weighted, dict) != named:
        weighted = dict(zip(("box", "kind"), (2.0, 0.5), strict=True)) if named else [2.0, 0.5]
    model.compile("sgd", losses, loss_weights=weighted)
    generator = np.random.default_rng(5)
    x = generator.random((40, 5)).astype("float32")
    y: Any = {"box": generator.random((40, 4)), "kind": generator.integers(0, 3, 40)}
    y = y if named else list(y.values())
    predictions = model.predict(x, verbose=0)
    total = model.evaluate(x, y, batch_size=40, verbose=0, return_dict=True)["loss"]
    assert resolve_score(None, model)(y, predictions) == pytest.approx(-total, rel=1e-5)


@pytest.mark.parametrize(
    "y",
    [
        np.random.default_rng(0).random((40, 3)).astype("float32"),
        (np.random.default_rng(0).random((40, 3)) < 0.5).astype("float32"),
        np.random.default_rng(0).random(40),
    ],
)
def test_without_a_loss_values_and_several_labels_are_no_classes(y: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"`score` must be given .*'mean_iou'"):
        resolve_score(None, _model(), y)
    # Nor do they pass for classes where accuracy is asked for.
    with pytest.raises(ValueError, match="`score`"):
        top_1_accuracy(y, np.random.default_rng(1).random((40, 3)))


@pytest.mark.parametrize("y", [np.arange(40) % 3, np.eye(3)[np.arange(40) % 3]])
def test_without_a_loss_classes_are_classes(y: np.ndarray) -> None:
    assert resolve_score(None, _model(), y) is top_1_accuracy


@pytest.mark.parametrize(
    ("y", "channels", "expected"),
    [
        ([0, 1, 2], 3, True),
        ([[0], [1]], 3, True),
        (np.zeros((2, 4, 4), "int64"), 3, True),
        (np.eye(3), 3, True),
        (np.eye(3, dtype="int64"), 3, True),
        ([0, 1], 1, False),
        ([0.0, 1.0], 3, False),
        ([[1, 1, 0]], 3, False),
        ([[0, 0, 0]], 3, False),
        ([[0.2, 0.3, 0.5]], 3, False),
        ([], 3, False),
        (["a", "b"], 3, False),
        ([0, 1], None, False),
    ],
)
def test_labels_that_can_only_be_classes(y: Any, channels: int | None, expected: bool) -> None:
    assert are_classes(y, channels) is expected


def test_losses_by_object_name_class_and_function() -> None:
    for loss in (
        "sparse_categorical_crossentropy",
        "SparseCategoricalCrossentropy",
        keras.losses.SparseCategoricalCrossentropy(name="mine"),
        keras.losses.sparse_categorical_crossentropy,
    ):
        assert is_categorical(loss), loss
        assert not is_binary(loss), loss
    for loss in ("binary_crossentropy", keras.losses.BinaryCrossentropy(), "BinaryCrossentropy"):
        assert is_binary(loss), loss
        assert not is_categorical(loss), loss
    for loss in (None, "mse", keras.losses.MeanSquaredError(), lambda y, p: 0, 3):
        assert not is_categorical(loss), loss
        assert not is_binary(loss), loss


def test_described_losses_are_the_same_in_every_process() -> None:
    told = repr(
        described(
            {
                "a": keras.losses.BinaryCrossentropy(label_smoothing=0.3),
                "b": ["mse", keras.losses.mean_squared_error],
            }
        )
    )
    assert "0x" not in told
    assert "0.3" in told
