"""The zoo: sizes the papers quote, what the shortcuts compute, files that load anywhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dprp_tf import zoo
from dprp_tf.costs.models import model_cost
from dprp_tf.zoo.residual import residual_network


def _trainable(model: keras.Model) -> int:
    return sum(int(np.prod(v.shape)) for v in model.trainable_weights)


def _images(shape: tuple[int, ...], seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).random(shape) * scale).astype(np.float32)


def _randomize(model: keras.Model, seed: int = 0) -> None:
    """Move every weight off its initial value, batch statistics included."""
    random = np.random.default_rng(seed)
    model.set_weights([w + random.uniform(0.01, 0.2, w.shape) for w in model.get_weights()])


@pytest.mark.parametrize(
    ("name", "shortcut", "expected"),
    [
        ("resnet20", "A", 269_722),
        ("resnet32", "A", 464_154),
        ("resnet56", "A", 853_018),
        ("resnet20", "B", 272_474),
    ],
)
def test_parameters_are_those_of_the_paper(name: str, shortcut: str, expected: int) -> None:
    assert _trainable(zoo.build(name, shortcut=shortcut)) == expected


# Parameters and GMACs that torchvision's documentation publishes for its ResNet18_Weights,
# ResNet34_Weights and ResNet50_Weights ("num_params", "_ops").
@pytest.mark.parametrize(
    ("name", "parameters", "gigamacs"),
    [
        ("resnet18", 11_689_512, 1.814),
        ("resnet34", 21_797_672, 3.664),
        ("resnet50", 25_557_032, 4.089),
    ],
)
def test_parameters_and_macs_are_the_published_ones(
    name: str, parameters: int, gigamacs: float
) -> None:
    cost = model_cost(zoo.build(name))
    assert cost.parameters == parameters
    assert cost.macs is not None
    assert round(cost.macs / 1e9, 3) == gigamacs


def test_imagenet_network_halves_five_times_and_strides_where_it_says() -> None:
    model = zoo.resnet50(width=4, classes=5)
    shapes = {layer.name: layer.output.shape[1:] for layer in model.layers}
    assert shapes["stem_relu"] == (112, 112, 4)
    assert shapes["stem_pool"] == (56, 56, 4)
    last = {1: "block2", 2: "block3", 3: "block5", 4: "block2"}
    for stage, side, filters in ((1, 56, 16), (2, 28, 32), (3, 14, 64), (4, 7, 128)):
        assert shapes[f"stage{stage}_{last[stage]}_relu3"] == (side, side, filters)
        assert f"stage{stage}_block6_relu3" not in shapes
    strided = [
        (layer.name, layer.kernel_size)
        for layer in model.layers
        if isinstance(layer, keras.layers.Conv2D) and layer.strides != (1, 1)
    ]
    assert dict(strided) == {
        "stem_conv": (7, 7),
        **{f"stage{n}_block0_conv2": (3, 3) for n in (2, 3, 4)},
        **{f"stage{n}_block0_shortcut_conv": (1, 1) for n in (2, 3, 4)},
    }
    # A bottleneck's first stage widens without a stride: a projection there too.
    assert "stage1_block0_shortcut_conv" in shapes
    assert not {n for n in shapes if "shortcut" in n} & {
        layer.name for layer in zoo.resnet18(width=4, classes=5).layers if "stage1" in layer.name
    }


@pytest.mark.parametrize(("name", "last"), [("resnet18", "_bn2"), ("resnet50", "_bn3")])
def test_an_imagenet_block_adds_its_residual_to_the_shortcut(name: str, last: str) -> None:
    model = zoo.build(name, input_shape=(32, 32, 3), classes=3, width=4)
    _randomize(model)
    add = model.get_layer("stage1_block1_add")
    probe = keras.Model(model.inputs[0], [*add.input, add.output])
    x = _images((2, 32, 32, 3))
    shortcut, residual, total = (np.asarray(t) for t in probe(x))
    np.testing.assert_allclose(total, shortcut + residual, rtol=1e-5)
    assert np.abs(residual).max() > 1e-2
    before = model.get_layer("stage1_block0_relu" + last[-1]).output
    np.testing.assert_array_equal(shortcut, keras.Model(model.inputs[0], before)(x))


def test_imagenet_shortcut_a_saves_the_projections() -> None:
    with_a, with_b = (zoo.resnet18(width=4, classes=3, shortcut=s) for s in ("A", "B"))
    # 1x1 kernels 4 -> 8 -> 16 -> 32 and two batch normalization vectors each
    expected = 4 * 8 + 8 * 16 + 16 * 32 + 2 * (8 + 16 + 32)
    assert _trainable(with_b) - _trainable(with_a) == expected


def test_imagenet_options_reach_the_network() -> None:
    model = zoo.resnet18(
        input_shape=(32, 32, 3),
        classes=3,
        width=4,
        weight_decay=3e-4,
        preprocess=((120.0, 115.0, 100.0), (60.0, 61.0, 62.0)),
        name="small",
    )
    assert model.name == "small"
    assert model.get_layer("preprocess").output.shape == (None, 32, 32, 3)
    assert len(model.losses) == 1 + 16 + 3 + 1


def test_classes_and_width_change_the_size_by_what_they_should() -> None:
    small, large = zoo.resnet20(width=4), zoo.resnet20(width=4, classes=100)
    assert _trainable(large) - _trainable(small) == 90 * (4 * 4 + 1)
    kernels = [layer.filters for layer in small.layers if isinstance(layer, keras.layers.Conv2D)]
    assert kernels == [4] * 7 + [8] * 6 + [16] * 6


def test_layer_names_tell_where_they_stand() -> None:
    model = zoo.resnet20(shortcut="B")
    assert model.name == "resnet20"
    names = [layer.name for layer in model.layers]
    assert {"stem_conv", "stage1_block0_conv1", "stage3_block2_conv2", "logits"} <= set(names)
    pattern = r"image|stem_\w+|stage[123]_block[012]_(conv[12]|bn[12]|relu[12]|add|shortcut_\w+)"
    assert [n for n in names if not re.fullmatch(rf"{pattern}|pool|logits", n)] == []
    bridges = [n for n in names if "shortcut_conv" in n]
    assert bridges == ["stage2_block0_shortcut_conv", "stage3_block0_shortcut_conv"]


def test_layers_are_set_as_the_paper_sets_them() -> None:
    model = zoo.resnet_small(widths=(8, 16), shortcut="B")
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            assert not layer.use_bias
            assert isinstance(layer.kernel_initializer, keras.initializers.HeNormal)
        if isinstance(layer, keras.layers.BatchNormalization):
            assert (layer.momentum, layer.epsilon) == (0.9, 1e-5)


def test_output_is_logits() -> None:
    model = zoo.resnet_small(widths=(8, 16))
    _randomize(model)
    outputs = np.asarray(model(_images((4, 16, 16, 1))))
    assert model.get_layer("logits").activation is keras.activations.linear
    assert np.abs(outputs.sum(axis=-1) - 1).min() > 1e-3


@settings(max_examples=12, deadline=None)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    before=st.integers(1, 5),
    added=st.integers(0, 6),
)
def test_shortcut_a_takes_every_second_pixel_and_adds_zero_channels(
    height: int, width: int, before: int, added: int
) -> None:
    model = residual_network((height, width, 2), 2, widths=(before, before + added), blocks=1)
    add = model.get_layer("stage2_block0_add")
    bridge = keras.Model(
        model.inputs[0], [model.get_layer("stage1_block0_relu2").output, add.input[0]]
    )
    x, y = (np.asarray(t) for t in bridge(_images((2, height, width, 2))))
    expected = np.zeros((2, -(-height // 2), -(-width // 2), before + added), np.float32)
    expected[..., added // 2 : added // 2 + before] = x[:, ::2, ::2]
    np.testing.assert_array_equal(y, expected)


def test_without_residuals_shortcut_a_is_a_subsampled_stem() -> None:
    model = zoo.resnet_small(widths=(4, 8, 12), blocks=2)
    _randomize(model)
    x = _images((3, 16, 16, 1))
    before = np.asarray(model(x))
    for layer in model.layers:
        if layer.name.endswith("_bn2"):
            layer.gamma.assign(keras.ops.zeros_like(layer.gamma))
            layer.beta.assign(keras.ops.zeros_like(layer.beta))
    after = np.asarray(model(x))
    stem = keras.Model(model.inputs[0], model.get_layer("stem_relu").output)
    features = np.asarray(stem(x))[:, ::4, ::4].mean(axis=(1, 2))
    # 4 channels -> 8 (2 zeros on each side) -> 12 (2 more)
    kernel, bias = model.get_layer("logits").get_weights()
    np.testing.assert_allclose(after, features @ kernel[4:8] + bias, rtol=1e-4, atol=1e-5)
    assert np.abs(before - after).max() > 1e-2


def test_weight_decay_is_half_the_squared_kernels() -> None:
    model = zoo.resnet_small(widths=(4, 8), shortcut="B", weight_decay=3e-4)
    _randomize(model)
    kernels = [v for v in model.trainable_weights if v.name == "kernel"]
    assert len(kernels) == 1 + 2 * 2 + 1 + 1
    expected = 3e-4 / 2 * sum(float(np.square(np.asarray(k)).sum()) for k in kernels)
    assert float(sum(model.losses)) == pytest.approx(expected, rel=1e-5)
    assert zoo.resnet_small(widths=(4, 8)).losses == []


@pytest.mark.parametrize(
    ("mean", "std"), [(120.0, 60.0), ((125.0, 123.0, 114.0), (63.0, 62.0, 67.0))]
)
def test_preprocess_standardizes_inside_the_model(mean: Any, std: Any) -> None:
    raw = zoo.resnet_cifar(8, (16, 16, 3), width=4, preprocess=(mean, std))
    plain = zoo.resnet_cifar(8, (16, 16, 3), width=4)
    _randomize(raw)
    plain.set_weights(raw.get_weights())
    x = _images((4, 16, 16, 3), scale=255)
    standardized = ((x - np.array(mean)) / np.array(std)).astype(np.float32)
    np.testing.assert_allclose(raw(x), plain(standardized), rtol=1e-4, atol=1e-4)
    assert np.abs(np.asarray(raw(x)) - np.asarray(plain(x))).max() > 1e-2


@pytest.mark.slow
def test_a_saved_model_loads_without_this_library(tmp_path: Path) -> None:
    model = zoo.resnet_small(widths=(4, 8), preprocess=(78.0, 89.0))
    _randomize(model)
    x = _images((2, 16, 16, 1), scale=255)
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "x.npy", x)
    script = (
        "import sys, keras, numpy as np\n"
        "y = keras.saving.load_model('model.keras')(np.load('x.npy'))\n"
        "assert not any(name.startswith('dprp_tf') for name in sys.modules)\n"
        "np.save('y.npy', np.asarray(y))\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=120)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_tflite_computes_the_same_with_builtin_operators(shortcut: Any) -> None:
    tf = pytest.importorskip("tensorflow")
    from ai_edge_litert.interpreter import Interpreter

    model = zoo.resnet_small(widths=(4, 8), shortcut=shortcut, preprocess=(78.0, 89.0))
    _randomize(model)
    x = _images((1, 16, 16, 1), scale=255)
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    interpreter = Interpreter(model_content=converter.convert())
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    outputs = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(outputs, model(x), rtol=1e-4, atol=1e-4)
    operators = {o["op_name"] for o in interpreter._get_ops_details()} - {"DELEGATE"}
    bridge = {"AVERAGE_POOL_2D", "PAD", "TRANSPOSE"} if shortcut == "A" else set()
    assert operators == {"ADD", "CONV_2D", "FULLY_CONNECTED", "MEAN", "MUL"} | bridge


def test_shortcut_a_has_int8_kernels_throughout() -> None:
    tf = pytest.importorskip("tensorflow")
    from ai_edge_litert.interpreter import Interpreter

    model = zoo.resnet_small(widths=(4, 8), preprocess=(78.0, 89.0))
    images = _images((32, 16, 16, 1), scale=255)
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([x[None]] for x in images)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    interpreter = Interpreter(model_content=converter.convert())
    interpreter.allocate_tensors()
    dtypes = {np.dtype(d["dtype"]).name for d in interpreter.get_tensor_details()}
    assert "int8" in dtypes
    assert not dtypes & {"float32", "float16"}


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_onnx_computes_the_same(shortcut: Any) -> None:
    tf = pytest.importorskip("tensorflow")
    import onnxruntime
    import tf2onnx

    model = zoo.resnet_small(widths=(4, 8), shortcut=shortcut, preprocess=(78.0, 89.0))
    _randomize(model)
    x = _images((3, 16, 16, 1), scale=255)
    signature = [tf.TensorSpec((None, 16, 16, 1), tf.float32, name="image")]
    function = tf.function(lambda image: model(image, training=False), input_signature=signature)
    proto, _ = tf2onnx.convert.from_function(function, input_signature=signature, opset=17)
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (outputs,) = session.run(None, {session.get_inputs()[0].name: x})
    np.testing.assert_allclose(outputs, model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_shape": (16, 16)}, r"`input_shape`.*\(16, 16\)"),
        ({"input_shape": (0, 16, 1)}, r"`input_shape`.*\(0, 16, 1\)"),
        ({"classes": 1}, "`classes`.*classes=1"),
        ({"widths": ()}, "`widths`"),
        ({"widths": (8, 0)}, "`widths`"),
        ({"widths": (8, 4)}, '`widths` must not fall.*shortcut="B"'),
        ({"blocks": 0}, "`blocks`.*blocks=0"),
        ({"blocks": (1, 2, 3)}, r"`blocks`.*2 in `widths`.*\(1, 2, 3\)"),
        ({"shortcut": "C"}, "`shortcut`.*'C'"),
        ({"weight_decay": -1e-4}, "`weight_decay`.*-0.0001"),
        ({"weight_decay": float("nan")}, "`weight_decay`.*nan"),
        ({"preprocess": (1.0,)}, "`preprocess` must be a pair"),
        ({"preprocess": ((1.0, 2.0), 1.0)}, "`preprocess` must hold one finite number or 1"),
        ({"preprocess": (0.0, 0.0)}, "`preprocess` must hold a std above 0"),
        ({"preprocess": (float("nan"), 1.0)}, "`preprocess` must hold one finite number"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        zoo.resnet_small(**{"widths": (4, 8), **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"stem": "5x5"}, "`stem`.*'5x5'"), ({"block": "wide"}, "`block`.*'wide'")],
)
def test_unknown_parts_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        residual_network((8, 8, 1), 2, widths=(4,), blocks=1, **arguments)


@pytest.mark.parametrize("depth", [17, 20, 101])
def test_an_unpublished_imagenet_depth_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match=rf"`depth`.*\[18, 34, 50\].*depth={depth}"):
        zoo.resnet_imagenet(depth)


def test_an_imagenet_width_below_1_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`width`.*width=0"):
        zoo.resnet18(width=0)


@pytest.mark.parametrize("depth", [2, 18, 21, -4])
def test_a_depth_that_is_no_6n_plus_2_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match=rf"`depth` must be 6n \+ 2.*depth={depth}"):
        zoo.resnet_cifar(depth)


def test_widths_may_fall_with_projections() -> None:
    model = zoo.resnet_small(widths=(8, 4), shortcut="B")
    assert model.get_layer("stage2_block0_add").output.shape == (None, 8, 8, 4)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"resnet18, resnet20, resnet32.*resnet_small.*'resnet21'"):
        zoo.build("resnet21")
