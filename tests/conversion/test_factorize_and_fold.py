"""original = factorized at full rank; factorized at low rank = folded, and differs from it."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import dprp_tf as dprp
from dprp_tf.conversion.assembly import build_form
from dprp_tf.costs.form import Form
from dprp_tf.costs.kernels import two_stage_parameters
from dprp_tf.decomposition import MATRICIZATIONS
from dprp_tf.keras_internals.graphs import walk_layers
from dprp_tf.layers import SVDLayer

Record = Callable[[str, str, float], None]
FULL, FOLDED = "factorized = original", "folded = factorized"
# float32 sums of up to a few hundred products, relative to the largest output.
TOLERANCE = 1e-5

SHAPES: dict[str, tuple[int, ...]] = {
    "Conv1D": (12, 4),
    "Conv2D": (9, 8, 3),
    "Conv3D": (6, 5, 7, 3),
    "Dense": (3, 7),
    "Conv1DTranspose": (6, 4),
    "Conv2DTranspose": (5, 4, 3),
    "Conv3DTranspose": (4, 3, 3, 3),
    "LSTM": (4, 7),
    "GRU": (4, 7),
    "SimpleRNN": (4, 7),
}
LAYERS: dict[str, type] = {
    "Conv1D": layers.Conv1D,
    "Conv2D": layers.Conv2D,
    "Conv3D": layers.Conv3D,
    "Dense": layers.Dense,
    "Conv1DTranspose": layers.Conv1DTranspose,
    "Conv2DTranspose": layers.Conv2DTranspose,
    "Conv3DTranspose": layers.Conv3DTranspose,
    "LSTM": layers.LSTM,
    "GRU": layers.GRU,
    "SimpleRNN": layers.SimpleRNN,
}
WINDOWS: list[tuple[str, dict[str, Any]]] = [
    ("Conv1D", {"padding": "same"}),
    ("Conv1D", {"padding": "valid", "strides": 2}),
    ("Conv1D", {"padding": "causal", "dilation_rate": 2}),
    ("Conv1D", {"padding": "causal", "strides": 3}),
    ("Conv1D", {"padding": "same", "strides": 2, "data_format": "channels_first"}),
    ("Conv1D", {"padding": "causal", "dilation_rate": 3, "data_format": "channels_first"}),
    ("Conv2D", {"padding": "same"}),
    ("Conv2D", {"padding": "same", "strides": 2}),
    ("Conv2D", {"padding": "valid", "strides": 3}),
    ("Conv2D", {"padding": "same", "strides": (2, 1)}),
    ("Conv2D", {"padding": "valid", "strides": (1, 3)}),
    ("Conv2D", {"padding": "same", "dilation_rate": 2}),
    ("Conv2D", {"padding": "valid", "dilation_rate": (1, 2)}),
    ("Conv2D", {"padding": "same", "strides": 2, "data_format": "channels_first"}),
    ("Conv2D", {"padding": "valid", "dilation_rate": 2, "data_format": "channels_first"}),
    ("Conv2D", {"kernel_size": (2, 4), "padding": "same", "strides": 2}),
    ("Conv2D", {"kernel_size": 1, "strides": 2}),
    ("Conv2D", {"kernel_size": (1, 3), "padding": "same"}),
    ("Conv2D", {"kernel_size": (3, 1), "padding": "same", "use_bias": False}),
    ("Conv3D", {"padding": "same"}),
    ("Conv3D", {"padding": "valid", "strides": 2}),
    ("Conv3D", {"padding": "same", "strides": (1, 2, 2), "kernel_size": (3, 2, 3)}),
    ("Conv3D", {"padding": "same", "data_format": "channels_first"}),
    ("Conv3D", {"kernel_size": 1}),
    ("Dense", {}),
    ("Dense", {"use_bias": False, "activation": "tanh"}),
    ("Conv1DTranspose", {"padding": "same", "strides": 2, "activation": "relu"}),
    ("Conv1DTranspose", {"kernel_size": 4, "strides": 3, "output_padding": 2}),
    ("Conv2DTranspose", {"kernel_size": 2, "strides": 2}),
    ("Conv2DTranspose", {"padding": "same", "strides": (2, 3)}),
    ("Conv2DTranspose", {"kernel_size": (4, 3), "strides": (2, 1), "output_padding": (1, 0)}),
    ("Conv2DTranspose", {"padding": "same", "dilation_rate": (2, 1), "use_bias": False}),
    ("Conv2DTranspose", {"padding": "same", "strides": 2, "data_format": "channels_first"}),
    ("Conv2DTranspose", {"kernel_size": 1, "strides": 2}),
    ("Conv3DTranspose", {"padding": "same", "strides": (1, 2, 2)}),
    ("LSTM", {"return_sequences": True}),
    ("LSTM", {"go_backwards": True, "return_state": True}),
    ("GRU", {"unroll": True, "use_bias": False}),
    ("GRU", {"reset_after": False, "return_sequences": True}),
    ("SimpleRNN", {"activation": "relu"}),
]


def _np(value: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(value)


def _flat(outputs: Any) -> list[np.ndarray]:
    return [_np(value) for value in keras.tree.flatten(outputs)]


def _error(outputs: Any, expected: Any) -> float:
    """Largest difference over all outputs, relative to each one's largest value."""
    pairs = list(zip(_flat(outputs), _flat(expected), strict=True))
    assert all(a.shape == b.shape for a, b in pairs)
    return max(float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-6)) for a, b in pairs)


def _inputs(model: keras.Model, seed: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [
        rng.standard_normal((2, *(n or 6 for n in tensor.shape[1:]))).astype("float32")
        for tensor in model.inputs
    ]


def _call(model: keras.Model, x: list[np.ndarray]) -> Any:
    return model(x if len(x) > 1 else x[0], training=False)


def _stir(model: keras.Model) -> keras.Model:
    """Give biases and normalization values that matter."""
    rng = np.random.default_rng(4)
    for layer in walk_layers(model):
        if isinstance(layer, layers.BatchNormalization):
            for weight in layer.weights:
                weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        elif getattr(layer, "bias", None) is not None:
            layer.bias.assign(rng.normal(0, 0.3, layer.bias.shape))
    return model


def _single(kind: str, **options: Any) -> keras.Model:
    inputs = SHAPES[kind]
    if options.get("data_format") == "channels_first":
        inputs = (inputs[-1], *inputs[:-1])
    x = keras.Input(inputs)
    if kind in ("Dense", "LSTM", "GRU", "SimpleRNN"):
        model = keras.Model(x, LAYERS[kind](5, name="it", **options)(x))
        rng = np.random.default_rng(4)
        for weight in model.get_layer("it").weights:
            weight.assign(rng.normal(0, 0.3, weight.shape))
        return model
    options = {"kernel_size": 3, **options}
    return _stir(keras.Model(x, LAYERS[kind](filters=5, name="it", **options)(x)))


def _only_keras(model: keras.Model) -> None:
    for layer in walk_layers(model):
        assert type(layer).__module__.startswith("keras."), type(layer)
        assert not isinstance(layer, SVDLayer)
        # Runtimes have no fast kernel for several filters per channel.
        assert getattr(layer, "depth_multiplier", 1) in (None, 1), layer.name
    assert type(model).__module__.startswith("keras.")


@pytest.mark.parametrize("matricization", MATRICIZATIONS)
@pytest.mark.parametrize(("kind", "options"), WINDOWS, ids=str)
def test_each_layer_in_each_form(
    kind: str, options: dict[str, Any], matricization: str, record_error: Record
) -> None:
    if kind in ("LSTM", "GRU", "SimpleRNN") and matricization != "channel":
        pytest.skip("input kernels are matrices: every matricization is that of one position")
    model = _single(kind, **options)
    x = _inputs(model)
    original = _call(model, x)

    full = dprp.factorize(model, decomposition=matricization)
    error = _error(_call(full, x), original)
    record_error(FULL, kind, error)
    assert error < TOLERANCE

    low = dprp.factorize(model, decomposition=matricization, ranks=2)
    layer = low.get_layer("it")
    reduced = _call(low, x)
    if layer.full_rank > 2:
        assert _error(reduced, original) > 1e-3, "a low rank must show, or the test is vacuous"
    for form in ("dense", "two_stage", "smallest"):
        folded = dprp.fold(low, form=form)
        error = _error(_call(folded, x), reduced)
        record_error(FOLDED, kind, error)
        assert error < TOLERANCE, form
        _only_keras(folded)
    plan = dprp.choose_forms(low, form="two_stage")[0]
    has_two_stages = plan.form != "dense"
    kind_used = (
        "channel" if "kernel_size" in options and options["kernel_size"] == 1 else matricization
    )
    without_depthwise = kind == "Conv3D" or not kind.startswith("Conv") or "Transpose" in kind
    if without_depthwise or kind_used != "spatial":
        # Where no depthwise convolution stands for the layer, `spatial` is taken as `channel`.
        assert has_two_stages, plan.reason
        assert not (kind.endswith("Transpose") and layer.decomposition == "spatial")
    elif isinstance(options.get("strides"), tuple):
        assert not has_two_stages
        assert plan.reason
        with pytest.raises(ValueError, match="'two_stage'"):
            dprp.fold(low, forms={"it": "two_stage"})
    else:
        assert has_two_stages, plan.reason
        kinds = [type(at).__name__ for at in dprp.fold(low, form="two_stage").layers]
        depthwise = [name for name in kinds if name.startswith("Depthwise")]
        assert len(depthwise) == layer.rank


def test_a_rank_of_one_needs_no_concatenation() -> None:
    low = dprp.factorize(_single("Conv2D", padding="same"), ranks=1)
    folded = dprp.fold(low, form="two_stage")
    assert "Concatenate" not in [type(layer).__name__ for layer in folded.layers]
    x = _inputs(low)
    assert _error(_call(folded, x), _call(low, x)) < TOLERANCE


def test_unsorted_and_negative_values_fold_as_they_are() -> None:
    # What training leaves: factors that are no SVD.
    rng = np.random.default_rng(6)
    for matricization in MATRICIZATIONS:
        low = dprp.factorize(
            _single("Conv2D", padding="same"), decomposition=matricization, ranks=3
        )
        layer = low.get_layer("it")
        layer.s.assign([0.4, -1.7, 0.9])
        layer.u.assign(rng.standard_normal(layer.u.shape) * 0.4)
        layer.v.assign(rng.standard_normal(layer.v.shape) * 0.4)
        x = _inputs(low)
        for form in ("dense", "two_stage"):
            assert _error(_call(dprp.fold(low, form=form), x), _call(low, x)) < TOLERANCE


def test_regularizers_constraints_and_activations_move_along() -> None:
    inputs = keras.Input((8, 8, 4))
    model = keras.Model(
        inputs,
        layers.Conv2D(
            6,
            3,
            name="it",
            activation="softplus",
            kernel_regularizer=keras.regularizers.L2(0.03),
            bias_regularizer=keras.regularizers.L1(0.02),
            activity_regularizer=keras.regularizers.L2(0.01),
            kernel_constraint=keras.constraints.MaxNorm(0.8),
            bias_constraint="non_neg",
        )(inputs),
    )
    low = dprp.factorize(model, ranks=2)
    layer = low.get_layer("it")
    assert (
        layer.get_config()["kernel_regularizer"]
        == model.get_layer("it").get_config()["kernel_regularizer"]
    )
    plan = dprp.choose_forms(low, form="two_stage")[0]
    assert plan.form == "dense"
    assert "constraint" in plan.reason
    folded = dprp.fold(low)
    x = _inputs(low)
    assert _error(_call(folded, x), _call(low, x)) < TOLERANCE
    assert folded.get_layer("it").bias_regularizer is not None
    assert folded.get_layer("it").activity_regularizer is not None
    full = dprp.factorize(model)
    assert [float(v) for v in full.losses] == pytest.approx(
        [float(v) for v in model.losses], rel=1e-4
    ) or sorted(float(v) for v in full.losses) == pytest.approx(
        sorted(float(v) for v in model.losses), rel=1e-4
    )


# --- whole models ------------------------------------------------------------------------------


def _plain() -> keras.Model:
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(6, 3, padding="same", use_bias=False, name="stem")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    y = layers.Conv2D(6, 3, padding="same", name="branch")(x)
    x = layers.Add(name="add")([x, y])
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(4, name="head")(x), name="plain")


def _nested() -> keras.Model:
    inner_input = keras.Input((8, 8, 4))
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="conv")(inner_input)
    x = layers.BatchNormalization(name="norm")(x)
    inner = keras.Model(inner_input, x, name="inner")
    sequence = keras.Sequential(
        [keras.Input((8, 8, 4)), layers.Conv2D(4, 3, padding="same", name="conv"), layers.ReLU()],
        name="sequence",
    )
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 1, name="outer")(inputs)
    x = sequence(inner(inner(x)))
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.Flatten(name="flat")(x)))


def _shared() -> keras.Model:
    shared = layers.Conv2D(4, 3, padding="same", name="shared")
    a, b = keras.Input((8, 8, 4), name="a"), keras.Input((8, 8, 4), name="b")
    x = layers.Concatenate(name="join")([shared(shared(a)), shared(b)])
    return keras.Model([a, b], layers.Conv2D(3, 3, name="last")(x))


def _sequential() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((10, 3)),
            layers.Conv1D(6, 3, padding="causal", name="conv"),
            layers.LayerNormalization(name="norm"),
            layers.Flatten(name="flat"),
            layers.Dropout(0.5, name="drop"),
            layers.Dense(5, name="head"),
        ],
        name="sequential",
    )


def _several() -> keras.Model:
    a, b = keras.Input((6, 6, 3), name="a"), keras.Input((5,), name="b")
    x = layers.Conv2D(4, 3, padding="same", name="conv")(a)
    y = layers.Dense(4, name="dense")(b)
    z = layers.Multiply(name="times")([x, layers.Reshape((1, 1, 4), name="shape")(y)])
    pooled = layers.GlobalMaxPooling2D(name="pool")(z)
    outputs = {"class": layers.Dense(3, name="head")(pooled), "map": z}
    return keras.Model({"a": a, "b": b}, outputs)


def _operations() -> keras.Model:
    inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(4, 3, padding="same", name="conv")(inputs)
    x = keras.ops.relu(x) * 0.5 + inputs
    x = keras.ops.transpose(x, (0, 2, 1, 3))[:, 1:, ::2]
    return keras.Model(inputs, layers.Conv2D(3, 3, name="last")(x))


MODELS = {
    "plain": _plain,
    "nested": _nested,
    "shared": _shared,
    "sequential": _sequential,
    "several": _several,
    "operations": _operations,
}


def _structured(model: keras.Model) -> Any:
    x = _inputs(model)
    if isinstance(getattr(model, "_inputs_struct", None), dict):
        names = list(model._inputs_struct)
        by_name = {t.name: value for t, value in zip(model.inputs, x, strict=True)}
        return {name: by_name[name] for name in names}
    return x if len(x) > 1 else x[0]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("matricization", ["spatial", "separable"])
def test_whole_models(name: str, matricization: str, record_error: Record) -> None:
    model = _stir(MODELS[name]())
    weights = model.get_weights()
    x = _structured(model)
    original = model(x, training=False)

    full = dprp.factorize(model, decomposition=matricization)
    error = _error(full(x, training=False), original)
    record_error(FULL, f"model: {name}", error)
    assert error < TOLERANCE

    low = dprp.factorize(model, decomposition=matricization, ranks=1)
    reduced = low(x, training=False)
    assert _error(reduced, original) > 1e-3
    for form in ("dense", "two_stage", "smallest"):
        folded = dprp.fold(low, form=form)
        outputs = folded(x, training=False)
        error = _error(outputs, reduced)
        record_error(FOLDED, f"model: {name}", error)
        assert error < TOLERANCE, form
        _only_keras(folded)
        if isinstance(original, dict):
            assert set(outputs) == set(original)
    # The original is untouched.
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("name", MODELS)
def test_names_order_and_flags_are_kept(name: str) -> None:
    def known(model: keras.Model) -> list[tuple[str, bool]]:
        # Keras names an input layer without a name after its tensor when it clones a graph.
        return [
            (layer.name, layer.trainable)
            for layer in walk_layers(model)
            if not isinstance(layer, layers.InputLayer)
        ]

    model = MODELS[name]()
    trained = [at for at in walk_layers(model) if at.weights]
    for layer in trained[1::2]:
        layer.trainable = False
    low = dprp.factorize(model, ranks=2)
    assert known(low) == known(dprp.fold(low, form="dense")) == known(model)
    assert low.name == dprp.fold(low).name == model.name
    two_stage = known(dprp.fold(low, form="two_stage"))
    for entry in known(model):
        assert entry in two_stage
    frozen = {at.name for at in trained[1::2]}
    for layer_name, trainable in two_stage:
        stem = layer_name.rsplit("_", 1)[0]
        if layer_name.endswith("_stage1") or "_branch" in layer_name:
            assert trainable == (stem not in frozen), layer_name


def test_a_frozen_nested_model_stays_frozen() -> None:
    model = _nested()
    model.get_layer("inner").trainable = False
    low = dprp.factorize(model, ranks=2)
    for result in (low, dprp.fold(low, form="dense"), dprp.fold(low, form="two_stage")):
        inner = result.get_layer("inner")
        assert inner.trainable is False
        assert inner.trainable_weights == []
        assert result.get_layer("sequence").trainable is True
        inner.trainable = True
        assert inner.trainable_weights


def test_a_shared_layer_stays_one_layer() -> None:
    model = _shared()
    low = dprp.factorize(model, ranks=2)
    assert [layer.name for layer in low.low_rank_layers] == ["shared", "last"]
    assert len(low.get_layer("shared")._inbound_nodes) == 3
    folded = dprp.fold(low, form="dense")
    assert folded.count_params() == model.count_params()
    two_stage = dprp.fold(low, form="two_stage")
    names = [layer.name for layer in two_stage.layers]
    assert len(names) == len(set(names))
    expected = sum(
        two_stage_parameters(at.kernel_shape, "spatial", low.ranks[at.name]) + at.filters
        for at in low.low_rank_layers
    )
    assert two_stage.count_params() == expected


def test_layers_of_equal_name_in_nested_models_keep_their_own_weights() -> None:
    # Keras wants unique names within one model only.
    model = _stir(_nested())
    convs = [at for at in walk_layers(model) if at.name == "conv"]
    assert len(convs) == 2
    convs[0].bias.assign(np.full(4, 0.7))
    convs[1].bias.assign(np.full(4, -0.4))
    low = dprp.factorize(model)
    biases = [_np(at.bias)[0] for at in low.low_rank_layers if at.name == "conv"]
    assert biases == pytest.approx([0.7, -0.4])
    x = _inputs(model)
    assert _error(_call(low, x), _call(model, x)) < TOLERANCE
    assert _error(_call(dprp.fold(low), x), _call(model, x)) < TOLERANCE


def test_skipped_layers_are_reported_with_the_reason() -> None:
    inputs = keras.Input((8, 8, 4))
    x = layers.DepthwiseConv2D(3, name="depthwise")(inputs)
    x = layers.Conv2D(4, 1, groups=2, name="grouped")(x)
    x = layers.Conv2DTranspose(4, 3, name="transposed")(x)
    x = layers.Conv2D(4, 3, name="chosen")(x)
    x = layers.SeparableConv2D(4, 3, name="separable")(x)
    model = _stir(keras.Model(inputs, layers.Conv2D(2, 1, name="left")(x)))
    low = dprp.factorize(model, layers=["chosen"])
    assert list(low.ranks) == ["chosen"]
    everything = dprp.factorize(model)
    assert set(everything.ranks) == {"transposed", "chosen", "left"}
    reasons = {row.name: str(row.skipped) for row in dprp.summarize(everything).skipped}
    assert set(reasons) == {"depthwise", "grouped", "separable"}
    assert "depthwise" in reasons["depthwise"]
    assert "groups=2" in reasons["grouped"]
    assert "write_out" in reasons["separable"]
    assert all(reason in str(dprp.summarize(everything)) for reason in ("groups=2", "depthwise"))
    x = _inputs(model)
    assert _error(_call(low, x), _call(model, x)) < TOLERANCE
    by_function = dprp.factorize(model, layers=lambda layer: layer.name == "left")
    assert list(by_function.ranks) == ["left"]


def test_ranks_by_number_and_by_name() -> None:
    model = _plain()
    assert dprp.factorize(model, ranks=5).ranks == {"stem": 5, "branch": 5, "head": 4}
    assert dprp.factorize(model, ranks={"branch": 2}).ranks == {"stem": 9, "branch": 2, "head": 4}


def test_mixed_precision_models_keep_their_policy() -> None:
    inputs = keras.Input((8, 8, 4))
    layer = layers.Conv2D(6, 3, padding="same", dtype="mixed_float16", name="it")
    model = keras.Model(inputs, layer(inputs))
    low = dprp.factorize(model, ranks=2)
    for result in (low, dprp.fold(low, form="dense"), dprp.fold(low, form="two_stage")):
        assert result.get_layer("it").dtype_policy.name == "mixed_float16"
        assert keras.backend.standardize_dtype(result.outputs[0].dtype) == "float16"


def test_folding_chooses_the_smaller_form_and_says_why() -> None:
    inputs = keras.Input((8, 8, 16))
    x = layers.Conv2D(16, 3, padding="same", name="low")(inputs)
    model = keras.Model(inputs, layers.Conv2D(16, 3, padding="same", name="high")(x))
    lowrank = dprp.factorize(model, ranks={"low": 2, "high": 8})
    rows = {row.name: row for row in dprp.choose_forms(lowrank)}
    assert (rows["low"].form, rows["high"].form) == ("concatenated", "dense")
    assert rows["low"].folded_parameters == 2 * (9 * 16 + 16 * 16) < rows["low"].dense_parameters
    assert rows["high"].folded_parameters == rows["high"].dense_parameters == 2304
    assert "2304" in rows["high"].reason
    folded = dprp.fold(lowrank)
    assert folded.count_params() == sum(row.folded_parameters for row in rows.values()) + 32
    forced = dprp.fold(lowrank, forms={"low": "dense"})
    assert forced.count_params() == model.count_params()


# --- the folded file stands alone --------------------------------------------------------------

_LOADER = """
import json, sys
sys.modules["dprp_tf"] = None  # importing it would now raise
import keras, numpy as np
arrays = np.load(sys.argv[2])
model = keras.saving.load_model(sys.argv[1])
x = [arrays[k] for k in sorted(arrays.files) if k.startswith("x")]
y = model(x if len(x) > 1 else x[0], training=False)
y = keras.tree.flatten(y)
error = max(float(np.abs(np.asarray(a) - arrays[f"y{i}"]).max()) for i, a in enumerate(y))
ours = sorted(name for name, module in sys.modules.items() if name.startswith("dprp_tf") and module)
print(json.dumps({"error": error, "ours": ours}))
"""


def test_the_folded_file_loads_without_this_library(tmp_path: Path, record_error: Record) -> None:
    low = dprp.factorize(_stir(_nested()), ranks=2)
    folded = dprp.fold(low, form="two_stage")
    folded.save(tmp_path / "small.keras")
    with zipfile.ZipFile(tmp_path / "small.keras") as archive:
        assert "dprp" not in archive.read("config.json").decode()
    x = _inputs(low)
    arrays: dict[str, Any] = {f"x{i}": value for i, value in enumerate(x)}
    arrays |= {f"y{i}": value for i, value in enumerate(_flat(_call(low, x)))}
    np.savez(tmp_path / "arrays.npz", **arrays)
    result = subprocess.run(
        [sys.executable, "-c", _LOADER, tmp_path / "small.keras", tmp_path / "arrays.npz"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    report = json.loads(result.stdout.strip().splitlines()[-1])
    assert report["ours"] == []
    record_error("reloaded alone", "model: nested", report["error"])
    assert report["error"] < 1e-5


def test_a_factorized_file_keeps_ranks_settings_and_outputs(tmp_path: Path) -> None:
    low = dprp.factorize(
        _plain(),
        decomposition="separable",
        ranks=2,
        settings=dprp.DPRPSettings(compression="funnel", compression_weight=0.37),
    )
    low.save(tmp_path / "low.keras")
    again = keras.saving.load_model(tmp_path / "low.keras")
    assert again.ranks == low.ranks
    assert again.settings == low.settings
    x = _inputs(low)
    np.testing.assert_array_equal(_flat(_call(again, x))[0], _flat(_call(low, x))[0])


# --- bad input ---------------------------------------------------------------------------------


class _Opaque(keras.Model):
    def call(self, inputs: Any) -> Any:
        return inputs


def _without_kernels() -> keras.Model:
    inputs = keras.Input((4,))
    return keras.Model(inputs, layers.ReLU()(inputs), name="empty")


def _with_nan() -> keras.Model:
    model = _plain()
    kernel = _np(model.get_layer("branch").kernel).copy()
    kernel[0, 0, 0, 0] = np.nan
    model.get_layer("branch").kernel.assign(kernel)
    return model


def _lowrank_with_nan() -> keras.Model:
    low = dprp.factorize(_plain(), ranks=2)
    low.get_layer("branch").s.assign([np.inf, 1.0])
    return low


BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: dprp.factorize(_Opaque()), r"`model` must be a built Functional.*_Opaque"),
    (lambda: dprp.factorize("resnet20"), r"`model`.*model=str"),
    (lambda: dprp.factorize(keras.Sequential([layers.Dense(3)])), r"`model` must be a built"),
    (lambda: dprp.factorize(_without_kernels()), r"`model` must have at least one.*'empty'"),
    (lambda: dprp.factorize(_with_nan()), r"`model` must have finite.*'branch'"),
    (lambda: dprp.factorize(_plain(), decomposition="rows"), r"`decomposition`.*'rows'"),
    (lambda: dprp.factorize(_plain(), layers=["stern"]), r"`layers` must name.*'stern'.*'stem'"),
    (lambda: dprp.factorize(_plain(), layers=["norm"]), r"`layers`.*'norm'.*no kernel"),
    (lambda: dprp.factorize(_plain(), ranks=0), r"`ranks`.*0"),
    (
        lambda: dprp.factorize(_plain(), ranks=2.5),  # type: ignore[arg-type]
        r"`ranks`.*2\.5",
    ),
    (lambda: dprp.factorize(_plain(), ranks=True), r"`ranks`.*True"),
    (lambda: dprp.factorize(_plain(), ranks={"stem": 10}), r"`ranks`.*'stem'.*1\.\.9.*10"),
    (lambda: dprp.factorize(_plain(), ranks={"stem": 0}), r"`ranks`.*'stem': 0"),
    (lambda: dprp.factorize(_plain(), ranks={"stem": -2}), r"`ranks`.*'stem': -2"),
    (lambda: dprp.factorize(_plain(), ranks={"pool": 2}), r"`ranks` must name.*\['pool'\]"),
    (
        lambda: dprp.factorize(_plain(), settings=dprp.DPRPSettings(structure="free")),
        r"`structure`.*'free'",
    ),
    (
        lambda: dprp.factorize(_plain(), settings=dprp.DPRPSettings(threshold=1.0)),
        r"`threshold`.*1\.0",
    ),
    (
        lambda: dprp.factorize(_plain(), settings=dprp.DPRPSettings(compression="nuclear")),
        r"`compression`.*'nuclear'",
    ),
    (
        lambda: dprp.factorize(_plain(), settings=dprp.DPRPSettings(compression_weight=-1.0)),
        r"`compression_weight`.*-1\.0",
    ),
    (
        lambda: dprp.factorize(_plain(), settings=dprp.DPRPSettings(sorting_weight=float("nan"))),
        r"`sorting_weight`.*nan",
    ),
    (
        lambda: dprp.factorize(_plain(), settings=dprp.DPRPSettings(retraction_period=0)),
        r"`retraction_period`.*0",
    ),
    (lambda: dprp.fold(_plain()), r"`model` must have SVD layers.*'plain'"),
    (lambda: dprp.fold(_Opaque()), r"`model` must be a built Functional"),
    (lambda: dprp.fold(_lowrank_with_nan()), r"`model` must have finite.*`s`.*'branch'"),
    (lambda: dprp.fold(dprp.factorize(_plain()), form="tiny"), r"`form`.*form='tiny'"),
    (lambda: dprp.fold(dprp.factorize(_plain()), forms={"x": "dense"}), r"`forms`.*\['x'\]"),
    (lambda: dprp.fold(dprp.factorize(_plain()), forms={"stem": "a"}), r"`forms`.*'a'.*'stem'"),
    (
        lambda: build_form(dprp.factorize(_plain()).get_layer("stem"), Form("three")),
        r"`kind`.*kind='three'",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
