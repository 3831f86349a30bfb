"""The papers' networks: published sizes, the same as Keras' own, and ready to be compressed."""

from __future__ import annotations

import gc
import inspect
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import dprp_tf as dprp
from dprp_tf import zoo
from dprp_tf.costs.models import model_cost
from dprp_tf.data import Dataset
from dprp_tf.layers import low_rank_layers
from dprp_tf.runs.settings import TrainSettings
from dprp_tf.runs.training import train

_SLOW, _LONG = pytest.mark.slow, pytest.mark.long


@pytest.fixture
def zero_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no random numbers where only sizes are looked at: VGG-19 has 144 million weights."""

    def zeros(self: Any, shape: tuple[int, ...], dtype: Any = None) -> Any:
        return keras.ops.zeros(shape, dtype)

    monkeypatch.setattr(keras.initializers.VarianceScaling, "__call__", zeros)


@pytest.fixture
def released() -> Iterator[None]:
    """Half a gigabyte of weights goes when a test ends, not when the collector next looks."""
    yield
    gc.collect()


# Trainable parameters, which leave out the moving statistics, and MACs in millions.
_TORCHVISION = [
    ("alexnet", {}, 61_100_840, 714),
    pytest.param("vgg11", {}, 132_863_336, 7_609, marks=_SLOW),
    ("vgg16", {}, 138_357_544, 15_470),
    pytest.param("vgg19", {}, 143_667_240, 19_632, marks=_SLOW),
    pytest.param("vgg11", {"batch_norm": True}, 132_868_840, 7_609, marks=_LONG),
    pytest.param("vgg16", {"batch_norm": True}, 138_365_992, 15_470, marks=_SLOW),
    pytest.param("vgg19", {"batch_norm": True}, 143_678_248, 19_632, marks=_LONG),
    ("googlenet", {}, 6_624_904, 1_498),
    ("squeezenet1_0", {}, 1_248_424, 819),
    ("squeezenet1_1", {}, 1_235_496, 349),
    ("densenet121", {}, 7_978_856, 2_834),
    ("mobilenet_v2", {}, 3_504_872, 301),
]


def _identity(case: Any) -> str:
    if isinstance(case, dict):
        return "-".join(str(value) for value in case.values()) or "default"
    return getattr(case, "__name__", str(case))


# "num_params" and "_ops" (in thousands of millions, three digits) of the `*_Weights` in
# torchvision's documentation.
@pytest.mark.usefixtures("zero_kernels", "released")
@pytest.mark.parametrize(("name", "options", "parameters", "megamacs"), _TORCHVISION, ids=_identity)
def test_imagenet_networks_have_the_published_sizes(
    name: str, options: dict[str, Any], parameters: int, megamacs: int
) -> None:
    model = zoo.build(name, **options)
    cost = model_cost(model)
    assert cost.parameters == parameters
    assert cost.macs is not None
    assert round(cost.macs / 1e6) == megamacs
    assert model.output_shape == (None, 1000)


# Exact where the source is exact; see the docstrings for the sources.
@pytest.mark.usefixtures("zero_kernels")
@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [
        ("lenet5", {}, 61_706),
        ("traffic_sign", {}, 1_543_443),
        ("voxnet", {}, 921_736),
        ("vgg11_cifar", {"hidden": ()}, 9_231_114),
        ("vgg16_cifar", {"hidden": ()}, 14_728_266),
        ("vgg19_cifar", {"hidden": ()}, 20_040_522),
        ("densenet40", {}, 1_019_722),
        ("densenet_bc100", {}, 769_162),
        ("googlenet", {"auxiliary": True}, 13_004_888),
        ("googlenet", {"form": "paper"}, 6_998_552),
        # timm's 22,050,664 of ViT-S/16 less its class token and its 197 positions of 384.
        ("vit_s16", {}, 22_050_664 - 384 - 197 * 384),
        ("vit_cifar", {}, 676_906),
        # Table 1 has 51.6 million; this is timm's count.
        ("conv_mixer_1536_20", {}, 51_625_960),
        ("conv_mixer_cifar", {}, 99_946),
    ],
    ids=_identity,
)
def test_networks_have_the_exact_published_sizes(
    name: str, options: dict[str, Any], parameters: int
) -> None:
    assert model_cost(zoo.build(name, **options)).parameters == parameters


# Parameters and MACs in millions, as the tables round them: pytorch-cifar-models, for AlexNet
# pytorch-classification.
@pytest.mark.usefixtures("zero_kernels")
@pytest.mark.parametrize(
    ("name", "options", "megaparameters", "megamacs"),
    [
        ("alexnet_cifar", {}, 2.47, None),
        ("vgg11_cifar", {"hidden": (512, 512)}, 9.76, 153.29),
        ("vgg16_cifar", {"hidden": (512, 512)}, 15.25, 313.73),
        ("vgg19_cifar", {"hidden": (512, 512)}, 20.57, 398.66),
        ("mobilenet_v2_cifar", {}, 2.24, 87.98),
        ("mobilenet_v2_cifar", {"alpha": 1.4}, 4.33, 170.07),
    ],
    ids=_identity,
)
def test_cifar_networks_have_the_published_sizes(
    name: str, options: dict[str, Any], megaparameters: float, megamacs: float | None
) -> None:
    cost = model_cost(zoo.build(name, **options))
    assert round(cost.parameters / 1e6, 2) == megaparameters
    if megamacs is not None:
        assert cost.macs is not None
        assert round(cost.macs / 1e6, 2) == megamacs


@pytest.mark.usefixtures("zero_kernels")
def test_vgg16_of_the_pruning_papers_has_14_98_million_without_normalization() -> None:
    model = zoo.vgg16_cifar()
    counted = sum(
        int(np.prod(weight.shape))
        for layer in model.layers
        if not isinstance(layer, keras.layers.BatchNormalization)
        for weight in layer.weights
    )
    assert round(counted / 1e6, 2) == 14.98
    # The LeSS thesis, table 4.2: (millions left, percent removed, its digits cut off).
    for left, removed in ((2.24, 85.0), (1.79, 88.0), (1.47, 90.1)):
        assert 100 * (1 - left / (counted / 1e6)) == pytest.approx(removed, abs=0.1)


def _by_layer(model: keras.Model) -> dict[str, int]:
    return {layer.name: layer.count_params() for layer in model.layers if layer.weights}


@pytest.mark.usefixtures("zero_kernels")
def test_small_networks_weigh_what_the_papers_layers_weigh() -> None:
    # Filters x (entries of one filter + bias), from the papers' tables of layers.
    assert _by_layer(zoo.lenet5()) == {
        "stage1_conv": 6 * (25 * 1 + 1),
        "stage2_conv": 16 * (25 * 6 + 1),
        "dense1": 120 * (25 * 16 + 1),
        "dense2": 84 * (120 + 1),
        "logits": 10 * (84 + 1),
    }
    assert _by_layer(zoo.traffic_sign()) == {
        "stage1_conv": 100 * (49 * 3 + 1),
        "stage2_conv": 150 * (16 * 100 + 1),
        "stage3_conv": 250 * (16 * 150 + 1),
        "dense1": 300 * (9 * 250 + 1),
        "logits": 43 * (300 + 1),
    }
    assert _by_layer(zoo.voxnet(classes=10)) == {
        "stage1_conv": 32 * (125 * 1 + 1),
        "stage2_conv": 32 * (27 * 32 + 1),
        "dense1": 128 * (216 * 32 + 1),
        "logits": 10 * (128 + 1),
    }


def test_small_networks_have_the_papers_maps() -> None:
    sides = {
        layer.name: layer.output.shape[1]
        for model in (zoo.traffic_sign(), zoo.voxnet())
        for layer in model.layers
        if re.fullmatch(r"stage\d_(conv|pool)|pool", layer.name)
        for layer.name in [f"{model.name}_{layer.name}"]
    }
    assert sides == {
        "traffic_sign_stage1_conv": 42,
        "traffic_sign_stage1_pool": 21,
        "traffic_sign_stage2_conv": 18,
        "traffic_sign_stage2_pool": 9,
        "traffic_sign_stage3_conv": 6,
        "traffic_sign_stage3_pool": 3,
        "voxnet_stage1_conv": 14,
        "voxnet_stage2_conv": 12,
        "voxnet_pool": 6,
    }


@pytest.mark.usefixtures("zero_kernels", "released")
@pytest.mark.parametrize(
    ("name", "options", "theirs"),
    [
        ("vgg16", {}, keras.applications.VGG16),
        pytest.param("vgg19", {}, keras.applications.VGG19, marks=_LONG),
        pytest.param("densenet121", {}, keras.applications.DenseNet121, marks=_LONG),
        pytest.param("mobilenet_v2", {"alpha": 0.5}, keras.applications.MobileNetV2, marks=_LONG),
        pytest.param("mobilenet_v2", {"alpha": 1.0}, keras.applications.MobileNetV2, marks=_LONG),
        pytest.param("mobilenet_v2", {"alpha": 1.3}, keras.applications.MobileNetV2, marks=_LONG),
        pytest.param("mobilenet_v2", {"alpha": 1.4}, keras.applications.MobileNetV2, marks=_LONG),
    ],
    ids=_identity,
)
def test_networks_cost_what_keras_applications_cost(
    name: str, options: dict[str, Any], theirs: Callable[..., keras.Model]
) -> None:
    ours, reference = zoo.build(name, **options), theirs(weights=None, **options)
    assert ours.count_params() == reference.count_params()
    mine, expected = model_cost(ours), model_cost(reference)
    assert mine.parameters == expected.parameters
    assert mine.non_trainable_parameters == expected.non_trainable_parameters
    assert mine.macs == expected.macs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "theirs", "epsilon"),
    [
        ("vgg16", {}, keras.applications.VGG16, None),
        ("mobilenet_v2", {"alpha": 0.35}, keras.applications.MobileNetV2, 1e-3),
    ],
)
def test_networks_compute_what_keras_applications_compute(
    name: str,
    options: dict[str, Any],
    theirs: Callable[..., keras.Model],
    epsilon: float | None,
) -> None:
    shape = (32, 32, 3)
    ours = zoo.build(name, input_shape=shape, classes=3, **options)
    reference = theirs(
        weights=None, input_shape=shape, classes=3, classifier_activation=None, **options
    )
    x = _samples(shape, 4)
    _settle(ours, x)
    assert [w.shape for w in ours.weights] == [w.shape for w in reference.weights]
    assert model_cost(ours).macs == model_cost(reference).macs
    reference.set_weights(ours.get_weights())
    for layer in ours.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.epsilon = epsilon
    expected = np.asarray(reference(x))
    assert np.ptp(expected, axis=0).max() > 1e-2
    np.testing.assert_allclose(ours(x), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


# The smallest sample of each network and a narrow form of it, for what is done to every network.
_SMALL: dict[str, dict[str, Any]] = {
    "alexnet": {"input_shape": (63, 63, 3), "alpha": 1 / 16},
    "alexnet_cifar": {"input_shape": (29, 29, 3), "alpha": 1 / 16},
    "conv_mixer_cifar": {"input_shape": (8, 8, 3)},
    "densenet121": {"input_shape": (29, 29, 3), "growth_rate": 2},
    "densenet40": {"input_shape": (4, 4, 3), "growth_rate": 2},
    "densenet_bc100": {"input_shape": (4, 4, 3), "growth_rate": 2},
    "googlenet": {"input_shape": (32, 32, 3), "alpha": 1 / 16},
    "lenet5": {"input_shape": (12, 12, 1)},
    "mobilenet_v2": {"input_shape": (32, 32, 3), "alpha": 0.1},
    "mobilenet_v2_cifar": {"input_shape": (8, 8, 3), "alpha": 0.1},
    "squeezenet1_0": {"input_shape": (21, 21, 3), "alpha": 1 / 8},
    "squeezenet1_1": {"input_shape": (17, 17, 3), "alpha": 1 / 8},
    "traffic_sign": {"input_shape": (32, 32, 3)},
    "vgg11": {"input_shape": (32, 32, 3), "alpha": 1 / 16},
    "vgg11_cifar": {"input_shape": (32, 32, 3), "alpha": 1 / 16},
    "vgg16": {"input_shape": (32, 32, 3), "alpha": 1 / 16},
    "vgg16_cifar": {"input_shape": (32, 32, 3), "alpha": 1 / 16},
    "vgg19": {"input_shape": (32, 32, 3), "alpha": 1 / 16},
    "vgg19_cifar": {"input_shape": (32, 32, 3), "alpha": 1 / 16},
    "vit_cifar": {"input_shape": (8, 8, 3)},
    "voxnet": {"input_shape": (11, 11, 11, 1)},
}
# What CI trains; the others are deeper forms of these.
_TRAINED = {
    "alexnet",
    "alexnet_cifar",
    "googlenet",
    "lenet5",
    "mobilenet_v2_cifar",
    "squeezenet1_1",
    "traffic_sign",
    "vgg16",
    "vgg16_cifar",
    "voxnet",
}
_SKIPPED = {"mobilenet_v2": 17, "mobilenet_v2_cifar": 17, "conv_mixer_cifar": 8, "vit_cifar": 6}


def _samples(shape: tuple[int, ...], count: int) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(count, *shape)).astype(np.float32)


def _settle(model: keras.Model, x: np.ndarray) -> None:
    """Set the moving statistics to those of a batch, and no bias to zero."""
    random = np.random.default_rng(5)
    for weight in model.trainable_weights:
        if weight.name in ("bias", "beta"):
            weight.assign(random.uniform(0.05, 0.2, weight.shape))
    layers = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    model(x, training=True)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum


def test_every_network_of_the_papers_has_a_small_form_here() -> None:
    # Of these the small form is another network of the zoo.
    large = {"conv_mixer_1536_20", "vit_s16"}
    assert set(_SMALL) == {name for name in zoo.ZOO if not name.startswith("resnet")} - large


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "densenet_cifar",
        *(pytest.param(name, marks=() if name in _TRAINED else _LONG) for name in sorted(_SMALL)),
    ],
)
def test_every_network_factorizes_trains_and_folds(name: str) -> None:
    shallow = {"depth": 10, "bottleneck": True, "compression": 0.5, "input_shape": (8, 8, 3)}
    options = _SMALL.get(name, shallow)
    model = getattr(zoo, name)(classes=4, **options)
    x, y = _samples(options["input_shape"], 6), np.arange(6) % 4
    _settle(model, x)
    expected = np.asarray(model(x))
    assert expected.shape == (6, 4)
    assert np.ptp(expected, axis=0).max() > 1e-3

    lowrank = dprp.factorize(model)
    scale = np.abs(expected).max()
    # One rounding of every weight moves MobileNetV2's outputs by 3e-4 of their scale (in float64
    # they agree to 2e-12); a layer computed wrongly moves them by 1e-1.
    np.testing.assert_allclose(lowrank(x), expected, rtol=1e-3, atol=1e-3 * scale)
    skipped = dprp.summarize(lowrank).skipped
    assert len(skipped) == _SKIPPED.get(name, 0)
    assert all(str(row.skipped).startswith(("depthwise", "attention")) for row in skipped)

    lowrank.compile(
        keras.optimizers.SGD(1e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        run_eagerly=len(model.layers) > 15,  # a trace takes longer than a step
    )
    before = {layer.name: np.asarray(layer.s) for layer in low_rank_layers(lowrank)}
    logs = lowrank.train_on_batch(x, y, return_dict=True)
    assert all(np.isfinite(value) for value in logs.values())
    moved = [
        layer.name
        for layer in low_rank_layers(lowrank)
        if np.abs(np.asarray(layer.s) - before[layer.name]).max() > 0
    ]
    assert len(moved) > 0.8 * len(before)

    folded = dprp.fold(lowrank)
    assert {type(layer).__module__.partition(".")[0] for layer in folded.layers} == {"keras"}
    trained = np.asarray(lowrank(x))
    np.testing.assert_allclose(folded(x), trained, rtol=1e-3, atol=1e-4 * np.abs(trained).max())


_LEAST = {
    "alexnet": 63,
    "alexnet_cifar": 29,
    "densenet121": 29,
    "densenet40": 4,
    "lenet5": 12,
    "squeezenet1_0": 21,
    "squeezenet1_1": 17,
    "traffic_sign": 32,
    "vgg11": 32,
    "vgg16_cifar": 32,
    "voxnet": 11,
}


@pytest.mark.parametrize(("name", "least"), list(_LEAST.items()))
def test_the_least_size_is_named(name: str, least: int) -> None:
    # Each is built at this very size in the test of every network above.
    *sides, channels = _SMALL[name]["input_shape"]
    assert set(sides) == {least}
    options = {k: v for k, v in _SMALL[name].items() if k != "input_shape"}
    for axis in range(len(sides)):
        shape = [*sides, channels]
        shape[axis] -= 1
        with pytest.raises(ValueError, match=rf"`input_shape`.*at least {least} for .*{least - 1}"):
            zoo.build(name, input_shape=tuple(shape), **options)


@pytest.mark.parametrize("name", [pytest.param("googlenet", marks=_LONG), "mobilenet_v2_cifar"])
def test_networks_without_a_least_size_take_one_pixel(name: str) -> None:
    options = {k: v for k, v in _SMALL[name].items() if k != "input_shape"}
    model = zoo.build(name, input_shape=(1, 1, 1), classes=2, **options)
    assert np.isfinite(np.asarray(model(_samples((1, 1, 1), 2)))).all()


@pytest.mark.parametrize(
    ("shape", "pooled"), [((32, 32, 3), (1, 1)), ((64, 32, 3), (2, 1)), ((256, 240, 3), (7, 7))]
)
def test_other_sizes_pool_to_at_most_what_the_paper_has(
    shape: tuple[int, int, int], pooled: tuple[int, int]
) -> None:
    model = zoo.vgg11(input_shape=shape, classes=3, alpha=1 / 64)
    assert model.get_layer("flatten").input.shape[1:3] == pooled
    assert model.get_layer("dense1").kernel.shape[0] == pooled[0] * pooled[1] * 8
    assert ("pool" in {layer.name for layer in model.layers}) == (shape[0] > 224)


def test_pooling_to_a_size_averages_even_windows() -> None:
    image = keras.Input((14, 8, 1))
    model = keras.Model(image, zoo.blocks.pooled_to(image, 4, "pool"))
    x = _samples((14, 8, 1), 1)
    expected = np.array(
        [[x[0, 3 * i : 3 * i + 5, 2 * j : 2 * j + 2].mean() for j in range(4)] for i in range(4)]
    )
    np.testing.assert_allclose(np.asarray(model(x))[0, ..., 0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sides", [(27, 30), (30, 27), (30, 30), (27, 27)])
def test_squeezenet_pools_with_windows_that_hang_over_the_end(sides: tuple[int, int]) -> None:
    model = zoo.squeezenet1_1(input_shape=(*sides, 1), classes=2, alpha=1 / 16)
    pool = model.get_layer("stem_pool")
    probe = keras.Model(model.inputs[0], [model.get_layer("stem_relu").output, pool.output])
    before, after = (np.asarray(t) for t in probe(_samples((*sides, 1), 1)))
    rows, columns = (-(-(side - 3) // 2) + 1 for side in before.shape[1:3])
    expected = [
        [before[0, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((0, 1)) for j in range(columns)]
        for i in range(rows)
    ]
    np.testing.assert_array_equal(after[0], np.array(expected))
    assert before.max() > 0


def test_googlenet_heads_stand_where_the_paper_puts_them() -> None:
    model = zoo.googlenet((64, 64, 3), classes=3, auxiliary=True, alpha=1 / 16)
    assert [tuple(output.shape) for output in model.outputs] == 3 * [(None, 3)]
    assert model.output_names == ["logits", "auxiliary1_logits", "auxiliary2_logits"]
    for head, module in (("auxiliary1", "inception4a"), ("auxiliary2", "inception4d")):
        first = model.get_layer(f"{head}_conv").input
        assert first is model.get_layer(f"{module}_concatenate").output
    x = _samples((64, 64, 3), 2)
    plain = zoo.googlenet((64, 64, 3), classes=3, alpha=1 / 16)
    for layer in plain.layers:
        layer.set_weights(model.get_layer(layer.name).get_weights())
    np.testing.assert_array_equal(plain(x), model(x)[0])


def test_densenet_layers_see_all_before_them() -> None:
    model = zoo.densenet_cifar(16, (8, 8, 1), classes=2, growth_rate=3)
    widths = [
        model.get_layer(f"block{block}_layer{layer}_conv").input.shape[-1]
        for block in (1, 2, 3)
        for layer in range(4)
    ]
    assert widths == [16 + 3 * n for n in range(12)]
    sides = [model.get_layer(f"block{n}_layer0_conv").input.shape[1] for n in (1, 2, 3)]
    assert sides == [8, 4, 2]
    last = model.get_layer("block1_layer3_concatenate")
    first = model.get_layer("block1_layer3_bn").input
    assert last.input[0] is first


def test_mobilenet_adds_only_where_shapes_agree() -> None:
    model = zoo.mobilenet_v2(input_shape=(64, 64, 3), alpha=0.5)
    added = [layer.name for layer in model.layers if isinstance(layer, keras.layers.Add)]
    assert [tuple(re.findall(r"\d", name)) for name in added] == [
        (str(stage), str(block))
        for stage, blocks in ((2, 2), (3, 3), (4, 4), (5, 3), (6, 3))
        for block in range(1, blocks)
    ]
    sides = [model.get_layer(f"stage{n}_block0_project_conv").output.shape[1] for n in range(1, 8)]
    assert sides == [32, 16, 8, 4, 4, 2, 2]
    small = zoo.mobilenet_v2_cifar(alpha=0.5)
    sides = [small.get_layer(f"stage{n}_block0_project_conv").output.shape[1] for n in range(1, 8)]
    assert sides == [32, 32, 16, 8, 8, 4, 4]


_COMMON = {"input_shape", "classes", "weight_decay", "preprocess", "name"}


@pytest.mark.parametrize("name", sorted(zoo.ZOO))
def test_every_builder_takes_the_common_arguments(name: str) -> None:
    parameters = inspect.signature(zoo.ZOO[name]).parameters
    assert set(parameters) >= _COMMON
    assert "arguments" not in parameters
    assert not any(p.default is inspect.Parameter.empty for p in parameters.values())
    assert zoo.accepts(name, "shortcut") == name.startswith("resnet")


@pytest.mark.parametrize(
    "name",
    [
        "alexnet_cifar",
        pytest.param("densenet40", marks=_LONG),
        pytest.param("googlenet", marks=_LONG),
        "mobilenet_v2_cifar",
        "squeezenet1_1",
        "vgg11_cifar",
        "voxnet",
    ],
)
def test_common_arguments_reach_the_network(name: str) -> None:
    options = {"classes": 3, **_SMALL[name]}
    shape = options["input_shape"]
    mean, std = [120.0] * shape[-1], [60.0] * shape[-1]
    raw = zoo.build(name, weight_decay=3e-4, preprocess=(mean, std), **{**options, "name": "mine"})
    assert raw.name == "mine"
    kernels = [weight for weight in raw.trainable_weights if weight.name.endswith("kernel")]
    assert len(kernels) == len(raw.losses) > 0
    expected = 3e-4 / 2 * sum(float(np.square(np.asarray(kernel)).sum()) for kernel in kernels)
    assert float(sum(raw.losses)) == pytest.approx(expected, rel=1e-5)
    plain = zoo.build(name, **options)
    assert plain.name == name
    assert plain.losses == []
    plain.set_weights(raw.get_weights())
    x = 120 + 60 * _samples(shape, 2)
    scale = np.abs(np.asarray(plain((x - 120) / 60))).max()
    np.testing.assert_allclose(raw(x), plain((x - 120) / 60), rtol=1e-3, atol=1e-4 * scale)


def test_layer_names_tell_where_they_stand() -> None:
    pattern = re.compile(
        r"(image|voxels|preprocess|flatten|pool\d?|dropout|logits|logits_relu)"
        r"|(stem|stage|dense|fire|inception|transition|block|final|head)\w*"
    )
    for name in ("alexnet_cifar", "googlenet", "lenet5", "squeezenet1_1", "vgg11", "voxnet"):
        model = zoo.build(name, **_SMALL[name])
        unnamed = [layer.name for layer in model.layers if not pattern.fullmatch(layer.name)]
        assert unnamed == []
        assert "logits" in {layer.name for layer in model.layers}


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("lenet5", "dense"),
        pytest.param("vgg11_cifar", "dprp", marks=_LONG),
        pytest.param("voxnet", "dprp", marks=_LONG),
    ],
)
def test_a_run_trains_any_network_by_its_name(name: str, method: str, tmp_path: Path) -> None:
    shape = _SMALL[name]["input_shape"]
    x, y = _samples(shape, 12), np.arange(12) % 2
    dataset = Dataset("tiny", x, y, x[:4], y[:4], ("chair", "table"), augmentation=None)
    settings = TrainSettings(
        model=name, method=method, epochs=1, batch_size=4, augment=False, schedule="constant"
    )
    model = train(tmp_path, settings, dataset)
    assert model.input_shape == (None, *shape)
    assert model.output_shape == (None, 2)
    assert bool(low_rank_layers(model)) == (method == "dprp")
    history = json.loads((tmp_path / "history.json").read_text())["runs"][method]
    assert len(history) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("vgg", 13), "`depth` must be one of.*depth=13"),
        (("vgg_cifar", 12), "`depth` must be one of.*depth=12"),
        (("squeezenet", "1.2"), "`version`.*'1.2'"),
        (("densenet_cifar", 41), r"`depth` must be 3n \+ 4.*depth=41"),
    ],
)
def test_an_unpublished_form_is_refused(arguments: tuple[str, Any], message: str) -> None:
    name, form = arguments
    with pytest.raises(ValueError, match=message):
        getattr(zoo, name)(form)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("alexnet", {"alpha": 0.0}, "`alpha`.*alpha=0.0"),
        ("alexnet", {"input_shape": (32, 32, 3)}, "at least 63.*alexnet_cifar"),
        ("densenet121", {"growth_rate": 0}, "`growth_rate`.*growth_rate=0"),
        ("googlenet", {"form": "lrn"}, "`form`.*'lrn'"),
        ("googlenet", {"dropout": 1.0}, "`dropout`.*dropout=1.0"),
        ("mobilenet_v2", {"alpha": float("nan")}, "`alpha`.*nan"),
        ("vgg11", {"classes": 1}, "`classes`.*classes=1"),
        ("vgg11_cifar", {"hidden": (0,)}, r"`hidden`.*\(0,\)"),
        ("voxnet", {"input_shape": (32, 32, 1)}, r"depth, height, width.*\(32, 32, 1\)"),
        ("vgg16", {"shortcut": "A"}, "`arguments`.*of vgg16: input_shape.*Received: shortcut"),
    ],
)
def test_bad_arguments_are_named(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        zoo.build(name, **arguments)


def test_compression_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`compression`.*compression=0"):
        zoo.densenet_cifar(10, bottleneck=True, compression=0)


def test_a_unet_has_the_weights_of_its_levels_and_ends_as_it_began() -> None:
    model = zoo.unet((32, 16, 3), classes=5, width=4, depth=2)
    assert model.output_shape == (None, 32, 16, 5)
    # Two 3x3 convolutions and normalizations a level, down and up; 2x2 transposed ones up.
    down = [(3, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)]
    up = [(16, 8), (8, 8), (8, 4), (4, 4)]
    twice = sum(9 * reads * makes + 2 * makes for reads, makes in down + up)
    longer = 4 * 16 * 8 + 8 + 4 * 8 * 4 + 4
    assert model_cost(model).parameters == twice + longer + (4 * 5 + 5)
    with pytest.raises(ValueError, match=r"`input_shape`.*multiples of 8.*\(20, 16, 3\)"):
        zoo.unet((20, 16, 3))


def test_a_transformer_may_not_have_parts_of_patches_or_heads() -> None:
    with pytest.raises(ValueError, match=r"`input_shape`.*patch=4.*\(30, 32, 3\)"):
        zoo.vit_cifar((30, 32, 3))
    with pytest.raises(ValueError, match=r"`width`.*width=12, heads=5"):
        zoo.vision_transformer((8, 8, 3), 4, patch=4, width=12, heads=5)
