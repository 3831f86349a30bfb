"""Class scores are what a softmax, the compiled loss or the user says, whatever the shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import dprp_tf as dprp
from dprp_tf import deploy
from dprp_tf.deploy.exporters.class_scores import class_score_outputs, full_range


def _two_heads(activation: Any = None) -> keras.Model:
    keras.utils.set_random_seed(0)
    image = keras.Input((6, 6, 3))
    x = layers.Flatten()(layers.Conv2D(4, 3)(image))
    kind = layers.Dense(4, name="kind", activation=activation)(x)
    return keras.Model(image, [layers.Dense(4, name="box")(x), kind])


@pytest.mark.parametrize("softmax", ["softmax", keras.activations.softmax])
def test_a_softmax_says_so(softmax: Any) -> None:
    assert class_score_outputs(_two_heads(softmax)) == ("kind",)
    assert class_score_outputs(_two_heads("sigmoid")) == ()
    assert class_score_outputs(_two_heads()) == ()


@pytest.mark.parametrize(
    "end",
    [
        lambda x: layers.Softmax()(x),
        lambda x: layers.Activation("softmax")(x),
        lambda x: keras.ops.softmax(x),
        lambda x: layers.Activation("linear", dtype="float32")(layers.Softmax()(x)),
        lambda x: layers.Dropout(0.1)(layers.Softmax()(x)),
        lambda x: layers.Reshape((1, 4))(layers.Softmax()(x)),
        lambda x: keras.Sequential([keras.Input((4,)), layers.Softmax()])(x),
    ],
)
def test_wherever_the_softmax_stands(end: Any) -> None:
    inputs = keras.Input((4,))
    model = keras.Model(inputs, end(layers.Dense(4)(inputs)))
    assert len(class_score_outputs(model)) == 1
    assert list(full_range(model).values()) == [1.0]


@pytest.mark.parametrize(
    "end",
    [
        lambda x: x,
        lambda x: layers.Dense(4)(layers.Softmax()(x)),
        lambda x: 3 * layers.Softmax()(x),
        lambda x: layers.Reshape((2, 2))(layers.Softmax()(x)),
        lambda x: layers.Lambda(lambda t: t)(layers.Softmax()(x)),
    ],
)
def test_what_only_holds_a_softmax_does_not(end: Any) -> None:
    inputs = keras.Input((4,))
    assert class_score_outputs(keras.Model(inputs, end(layers.Dense(4)(inputs)))) == ()


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("sparse_categorical_crossentropy", True),
        ("SparseCategoricalCrossentropy", True),
        ("categorical_crossentropy", True),
        (keras.losses.SparseCategoricalCrossentropy(from_logits=True), True),
        (keras.losses.CategoricalCrossentropy(label_smoothing=0.1, name="mine"), True),
        (keras.losses.CategoricalFocalCrossentropy(), True),
        (keras.losses.sparse_categorical_crossentropy, True),
        ("binary_crossentropy", False),
        ("mse", False),
        (keras.losses.MeanAbsoluteError(), False),
        (lambda y, z: keras.ops.mean(z), False),
        (None, False),
    ],
)
def test_the_compiled_loss_says_so(loss: Any, expected: bool) -> None:
    inputs = keras.Input((6,))
    model = keras.Model(inputs, layers.Dense(4, name="it")(inputs))
    model.compile("sgd", loss)
    assert class_score_outputs(model) == (("it",) if expected else ())


@pytest.mark.parametrize(
    "losses",
    [
        {"box": "mse", "kind": "sparse_categorical_crossentropy"},
        ["mse", keras.losses.CategoricalCrossentropy()],
        {"kind": "categorical_crossentropy"},
    ],
)
def test_each_output_has_its_own_loss(losses: Any) -> None:
    model = _two_heads()
    model.compile("sgd", losses)
    assert class_score_outputs(model) == ("kind",)


def test_the_user_has_the_last_word() -> None:
    model = _two_heads("softmax")
    assert class_score_outputs(model, False) == ()
    assert class_score_outputs(model, True) == ("box", "kind")
    assert class_score_outputs(model, "box") == ("box",)
    assert class_score_outputs(model, ["kind", "box"]) == ("kind", "box")
    with pytest.raises(ValueError, match=r"`class_scores` must name outputs .*'box', 'kind'"):
        class_score_outputs(model, ["kind", "boxes"])


@pytest.mark.parametrize("suffix", [".tflite", ".onnx"])
def test_a_regressor_has_a_limit_on_its_error_and_no_agreement(suffix: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    x = generator.random((96, 6, 6, 3), dtype=np.float32)
    y = generator.random((96, 6, 6, 3), dtype=np.float32)
    options = {"quantization": "int8", "calibration_data": x, "verification_data": y}
    report = deploy.export(_two_heads(), tmp_path / f"a{suffix}", **options)
    assert [output.kind for output in report.outputs] == ["values", "values"]
    assert [output.tolerance for output in report.outputs] == [0.25, 0.25]
    assert report.top1_agreement is None
    assert "outputs near the Keras model's on 96 samples" in str(report)
    chosen = {"class_scores": "kind", "minimum_agreement": 0.5}
    report = deploy.export(_two_heads(), tmp_path / f"a{suffix}", **options, **chosen)
    assert [output.kind for output in report.outputs] == ["values", "class scores"]
    assert report.top1_agreement is not None
    assert report.outputs[1].noise_limit == 0.4
    assert "top-1 agreement" in str(report)
    assert f"agrees with the Keras model in {report.top1_agreement:.2%} on" in str(report)
    assert "same outputs" not in str(report)


@pytest.mark.parametrize("suffix", [".tflite", ".onnx"])
def test_whole_numbers_are_compared_as_such(suffix: str, tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    image = keras.Input((6, 6, 3))
    logits = layers.Conv2D(5, 3)(image)
    model = keras.Model(image, keras.ops.cast(logits > 0, "int32"))
    report = deploy.export(model, tmp_path / f"a{suffix}")
    assert report.outputs[0].kind == "whole numbers"
    assert report.top1_agreement is not None
    assert report.top1_agreement >= 0.999


@pytest.mark.parametrize("compiled", [True, False])
def test_a_folded_model_keeps_what_its_original_was_compiled_for(
    compiled: bool, tmp_path: Path
) -> None:
    low = dprp.factorize(_two_heads())
    if compiled:
        losses = {"kind": keras.losses.SparseCategoricalCrossentropy(from_logits=True)}
        low.compile("adam", {**losses, "box": "mse"})
    x = np.random.default_rng(0).random((64, 6, 6, 3)).astype("float32")
    report = deploy.export(dprp.fold(low), tmp_path / "a.onnx", verification_data=x)
    assert report.passed
    assert (report.top1_agreement is not None) == compiled
