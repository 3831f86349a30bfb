"""Every family of keras.applications, factorized and folded: same outputs, names and flags."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import numpy as np
import pytest
from keras import applications

import dprp_tf as dprp
from dprp_tf.keras_internals.graphs import layer_paths, walk_layers
from dprp_tf.layers import SVDLayer
from dprp_tf.training.resizing import resize

Record = Callable[[str, str, float], None]

# What rounding grows to on the way through up to 200 layers: 3e-6, but 2e-5 in EfficientNet, whose
# gates multiply. A layer computed wrongly shows as 1e-1 or more.
TOLERANCE = 5e-5

# One small member of each family, its smallest input, and what is skipped for which reason.
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "VGG16": ({"include_top": False, "pooling": "avg"}, {}),
    "ResNet50": ({"include_top": False, "pooling": "avg"}, {}),
    "ResNet50V2": ({"include_top": False, "pooling": "avg"}, {}),
    "MobileNet": ({"alpha": 0.25}, {"depthwise": 13}),
    "MobileNetV2": ({"alpha": 0.35}, {"depthwise": 17}),
    "MobileNetV3Small": ({"minimalistic": True}, {"depthwise": 11}),
    "MobileNetV3Large": ({"alpha": 0.75}, {"depthwise": 15}),
    "EfficientNetB0": ({}, {"depthwise": 16}),
    "EfficientNetV2B0": ({}, {"depthwise": 16}),
    "DenseNet121": ({}, {}),
    "Xception": ({"include_top": False, "pooling": "avg"}, {"separable": 34}),
    "InceptionV3": ({"include_top": False, "pooling": "avg"}, {}),
    "InceptionResNetV2": ({"include_top": False, "pooling": "avg"}, {}),
    "NASNetMobile": ({"include_top": False, "pooling": "avg"}, {"separable": 160}),
    "ConvNeXtTiny": ({}, {"grouped": 18}),
}
SLOW = (
    "DenseNet121",
    "EfficientNetV2B0",
    "InceptionResNetV2",
    "InceptionV3",
    "MobileNetV3Large",
    "NASNetMobile",
    "ResNet50V2",
)


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    """The benchmark of all networks, whose way to make outputs meaningful is used here too."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "architectures.py"
    specification = importlib.util.spec_from_file_location("architectures", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def _error(outputs: Any, expected: Any) -> float:
    a, b = keras.ops.convert_to_numpy(outputs), keras.ops.convert_to_numpy(expected)
    assert a.shape == b.shape
    return float(np.abs(a - b).max() / np.abs(b).max())


def _known(model: keras.Model) -> list[tuple[str, bool]]:
    return [(path, layer.trainable) for path, layer in layer_paths(model)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(at, marks=pytest.mark.long) if at in SLOW else at for at in FAMILIES],
)
def test_every_family_keeps_its_function(
    name: str, benchmark: ModuleType, record_error: Record
) -> None:
    options, reasons = FAMILIES[name]
    side = 32 if name not in ("InceptionV3", "InceptionResNetV2", "Xception") else 75
    if "include_top" not in options:
        options = {**options, "classes": 10, "classifier_activation": None}
    model = getattr(applications, name)(weights=None, input_shape=(side, side, 3), **options)
    x = benchmark.images(4, side)
    benchmark.settle(model, x)
    # Some of it frozen, as in fine-tuning.
    for layer in model.layers[: len(model.layers) // 3]:
        layer.trainable = False
    original = model(x, training=False)
    assert _error(original[:1], original[1:2]) > 1e-2, "the output must depend on the input"

    lowrank = dprp.factorize(model)
    error = _error(lowrank(x, training=False), original)
    record_error("factorized = original", f"network: {name}", error)
    assert error < TOLERANCE
    assert _known(lowrank) == _known(model)
    assert lowrank.output_shape == model.output_shape

    ranks = {at: (3 * int(at.rank or 1) + 3) // 4 for at in lowrank.low_rank_layers}
    resize(lowrank, ranks)
    # With a part of each kernel gone the signal would fade, and only the biases be compared.
    benchmark.settle(lowrank, x)
    reduced = lowrank(x, training=False)
    assert _error(reduced, original) > 1e-2
    assert _error(reduced[:1], reduced[1:2]) > 1e-2
    folded = dprp.fold(lowrank)
    error = _error(folded(x, training=False), reduced)
    record_error("folded = factorized", f"network: {name}", error)
    assert error < TOLERANCE
    assert set(_known(model)) <= set(_known(folded))
    assert not any(isinstance(layer, SVDLayer) for layer in walk_layers(folded))

    table = dprp.summarize(lowrank)
    found = [str(row.skipped).split(" ")[0].rstrip(":") for row in table.skipped]
    assert {reason: found.count(reason) for reason in found} == reasons
    kernels = {at.name for at in walk_layers(model) if any("kernel" in w.name for w in at.weights)}
    assert {row.name for row in table.rows} == kernels


def test_the_benchmark_names_every_network_or_says_why_not(benchmark: ModuleType) -> None:
    public = {name for name, value in vars(applications).items() if name[:1].isupper()}
    assert set(benchmark._names()) == public
    assert set(benchmark.LEFT_OUT) < public
    assert {name.rstrip("0123456789") for name in FAMILIES} <= {
        name.rstrip("0123456789") for name in public
    }
