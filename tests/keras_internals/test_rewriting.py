"""Graph surgery on what people bring: odd graphs, odd layers, odd state, and clear refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import dprp_tf as dprp
from dprp_tf.costs.models import model_cost
from dprp_tf.keras_internals.graphs import graph_of, layer_keys, layer_paths, walk_layers
from dprp_tf.keras_internals.rewriting import rewrite
from dprp_tf.layers import SVDLayer
from dprp_tf.layers.factorizable import skip_reason

TOLERANCE = 2e-5


def _np(value: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(value)


def _error(outputs: Any, expected: Any) -> float:
    """Largest difference over all outputs, relative to each one's largest value."""
    keras.tree.assert_same_structure(outputs, expected)
    pairs = list(zip(keras.tree.flatten(outputs), keras.tree.flatten(expected), strict=True))
    assert all(a.shape == b.shape for a, b in pairs)
    return max(
        float(np.abs(_np(a) - _np(b)).max() / max(np.abs(_np(b)).max(), 1e-6)) for a, b in pairs
    )


def _data(model: keras.Model) -> Any:
    """Inputs of the model's own structure."""
    rng = np.random.default_rng(1)

    def draw(tensor: Any) -> np.ndarray:
        shape = (2, *(size or 6 for size in tensor.shape[1:]))
        if "int" in str(tensor.dtype):
            return rng.integers(0, 5, shape).astype(tensor.dtype)
        return rng.standard_normal(shape).astype("float32")

    structure = graph_of(model)._inputs_struct
    return keras.tree.map_structure(draw, structure)


def _stir(model: keras.Model) -> keras.Model:
    rng = np.random.default_rng(4)
    for weight in model.weights:
        if weight.name in ("bias", "beta", "moving_mean"):
            weight.assign(rng.normal(0, 0.3, weight.shape))
        elif weight.name in ("gamma", "moving_variance"):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    return model


def _known(model: keras.Model) -> list[tuple[str, bool]]:
    return [(path, layer.trainable) for path, layer in layer_paths(model)]


def _trained(model: keras.Model) -> set[str]:
    """Paths of the layers whose weights the model trains."""
    wanted = {id(weight) for weight in model.trainable_variables}
    return {
        path
        for path, layer in layer_paths(model)
        if any(id(weight) in wanted for weight in layer.variables)
    }


def _check(model: keras.Model, ranks: int = 1) -> tuple[Any, keras.Model, keras.Model]:
    """Factorize and fold a model and hold everything that must be held for any model."""
    before = [_np(weight).copy() for weight in model.variables]
    x = _data(model)
    original = model(x, training=False)

    full = dprp.factorize(model)
    assert _error(full(x, training=False), original) < TOLERANCE
    assert _error(dprp.fold(full, form="two_stage")(x, training=False), original) < TOLERANCE

    low = dprp.factorize(model, ranks=ranks)
    reduced = low(x, training=False)
    assert _error(reduced, original) > 1e-3
    folds = {form: dprp.fold(low, form=form) for form in ("dense", "two_stage")}
    for folded in folds.values():
        assert _error(folded(x, training=False), reduced) < TOLERANCE
        assert not any(isinstance(layer, SVDLayer) for layer in walk_layers(folded))

    assert _known(low) == _known(model) == _known(folds["dense"])
    assert set(_known(model)) <= set(_known(folds["two_stage"]))
    assert _trained(low) == _trained(model) == _trained(folds["dense"])
    assert [t.shape for t in low.outputs] == [t.shape for t in model.outputs]
    assert [t.name for t in low.inputs] == [t.name for t in model.inputs]
    assert graph_of(low).output_names == graph_of(model).output_names

    # The original is untouched and shares no variable with the others.
    for old, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, _np(variable))
    own = {id(variable) for variable in model.variables}
    assert not own & {id(variable) for variable in [*low.variables, *full.variables]}
    for weight in low.weights:
        weight.assign(_np(weight) + 1.0)
    for old, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, _np(variable))

    # Every layer with a matrix is a row, factorized or with a reason.
    table = dprp.summarize(full)
    rows = [row.name for row in table.rows]
    assert len(rows) == len(set(rows))
    assert all(row.rank or row.skipped for row in table.rows)
    assert set(rows) == {
        key
        for key, layer in layer_keys(full).items()
        if any(len(weight.shape) > 1 for weight in layer.weights)
    }
    return low, folds["dense"], folds["two_stage"]


@keras.saving.register_keras_serializable(package="test_surgery")
class Scaled(layers.Layer):
    """A custom layer with a weight, an argument and a loss of its own."""

    def __init__(self, factor: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.factor = factor

    def build(self, input_shape: Any) -> None:
        self.scale = self.add_weight(name="scale", shape=(input_shape[-1],), initializer="ones")

    def call(self, inputs: Any) -> Any:
        self.add_loss(keras.ops.sum(keras.ops.square(self.scale)))
        return inputs * self.scale * self.factor

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "factor": self.factor}


class Block(layers.Layer):
    """A custom layer, not registered, that owns layers with kernels."""

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units
        self.first = layers.Dense(units, activation="relu", name="first")
        self.second = layers.Dense(units, name="second")

    def build(self, input_shape: Any) -> None:
        self.first.build(input_shape)
        self.second.build((*input_shape[:-1], self.units))

    def call(self, inputs: Any) -> Any:
        return self.second(self.first(inputs))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}


class Subclassed(keras.Model):
    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units
        self.dense = layers.Dense(units, name="inside")

    def build(self, input_shape: Any) -> None:
        self.dense.build(input_shape)

    def call(self, inputs: Any) -> Any:
        return self.dense(inputs) * 2.0

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}


class Overriding(keras.Model):
    """Made from inputs and outputs, but computing something else."""

    def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        return super().call(inputs, training=training, mask=mask) + 1.0


def _twice(x: Any) -> Any:
    return 2.0 * x


def _backbone(name: str = "backbone") -> keras.Model:
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same", use_bias=False, name="conv")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    return keras.Model(inputs, layers.Conv2D(3, 3, padding="same", name="mix")(x), name=name)


def _deeply_nested() -> keras.Model:
    inner = keras.Sequential([keras.Input((8, 8, 3)), _backbone("a"), _backbone("b")], name="inner")
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(3, 3, padding="same", name="conv")(inner(inputs))
    x = _backbone("c")(x)
    return keras.Model(inputs, layers.GlobalAveragePooling2D(name="pool")(x))


def _layer_in_two_models() -> keras.Model:
    # One layer, used in the outer model and in a nested one.
    shared = layers.Conv2D(3, 3, padding="same", name="shared")
    inside = keras.Input((8, 8, 3))
    inner = keras.Model(inside, layers.ReLU(name="relu")(shared(inside)), name="inner")
    inputs = keras.Input((8, 8, 3))
    return keras.Model(inputs, shared(inner(shared(inputs))))


def _shared_at_several_sizes() -> keras.Model:
    head = layers.Conv2D(4, 3, padding="same", name="head")
    dense = layers.Dense(3, name="dense")
    inputs = keras.Input((8, 8, 3))
    fine = head(inputs)
    coarse = head(layers.AveragePooling2D(2, name="half")(inputs))
    flat = dense(layers.GlobalAveragePooling2D(name="pool")(coarse))
    return keras.Model(inputs, [fine, coarse, dense(fine), flat])


def _structures() -> keras.Model:
    a, b, c = (keras.Input((6,), name=name) for name in "abc")
    x = layers.Concatenate(name="join")([layers.Dense(4, name="one")(a), b])
    y = layers.Dense(3, name="two")(x)
    outputs = {"deep": [y, (layers.Dense(2, name="three")(c), x)], "same": a}
    return keras.Model({"a": a, "pair": (b, c)}, outputs)


def _bare_sequential() -> keras.Model:
    model = keras.Sequential([layers.Dense(5, name="one"), layers.Dense(3, name="two")])
    model(np.zeros((4, 7), "float32"))
    return model


def _lambdas() -> keras.Model:
    offset = 0.25
    inputs = keras.Input((8, 8, 3))
    x = layers.Lambda(lambda value: value * 2.0 + offset, name="closure")(inputs)
    x = layers.Conv2D(4, 3, activation=_twice, name="conv")(x)
    x = layers.Lambda(_twice, name="named", output_shape=(6, 6, 4))(x)
    x = layers.Lambda(lambda value, by: value * by, arguments={"by": 3.0}, name="by")(x)
    x = layers.DepthwiseConv2D(3, activation=_twice, name="depthwise")(x)
    x = layers.Activation(_twice, name="activation")(x)
    return keras.Model(inputs, layers.Dense(2, name="dense")(x))


def _custom() -> keras.Model:
    inputs = keras.Input((6,))
    x = Scaled(1.5, name="scaled")(layers.Dense(5, name="one")(inputs))
    x = Block(4, name="block")(x)
    x = Subclassed(4, name="subclassed")(x)
    return keras.Model(inputs, layers.Dense(3, name="two")(x))


def _operations() -> keras.Model:
    inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(4, 3, padding="same", name="conv")(inputs)
    parts = keras.ops.split(x, 2, axis=-1)
    x = keras.ops.concatenate([parts[1], parts[0] - 1.0], axis=-1)
    x = keras.ops.where(x > 0.0, x, 0.1 * x) + np.full((4,), 0.5, "float32")
    x = keras.ops.einsum("bhwc,bhwd->bcd", x, inputs) / keras.ops.cast(3, "float32")
    x = keras.ops.expand_dims(keras.ops.max(x, axis=1), 1)[:, 0, ...]
    return keras.Model(inputs, layers.Dense(3, name="dense")(x))


def _recurrent() -> keras.Model:
    tokens = keras.Input((7,), dtype="int32", name="tokens")
    x = layers.Embedding(9, 5, mask_zero=True, name="embedding")(tokens)
    x = layers.Dense(4, name="dense")(x)
    x = layers.Bidirectional(layers.LSTM(3, return_sequences=True), name="both")(x)
    x = layers.TimeDistributed(layers.Dense(4), name="each")(x)
    x, state = layers.GRU(3, return_state=True, name="gru")(x)
    x = layers.Concatenate(name="join")([x, state])
    return keras.Model(tokens, layers.Dense(2, name="last")(x))


def _video() -> keras.Model:
    inputs = keras.Input((3, 8, 8, 2))
    x = layers.TimeDistributed(layers.Conv2D(3, 3), name="each")(inputs)
    x = layers.TimeDistributed(_backbone(), name="all")(layers.Conv3D(3, 1, name="mix")(inputs))
    return keras.Model(inputs, layers.ConvLSTM2D(2, 3, name="lstm")(x))


def _odd_calls() -> keras.Model:
    # training=True inside, a dropout that is off, a layer called with a keyword.
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="conv")(inputs=inputs)
    x = layers.BatchNormalization(name="norm")(x, training=False)
    x = layers.Dropout(0.5, name="drop")(x, training=False)
    x = layers.Dense(3, name="dense")(x, training=False)
    return keras.Model(inputs, x)


def _regularized() -> keras.Model:
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(
        4,
        3,
        kernel_regularizer=keras.regularizers.L2(0.1),
        bias_regularizer="l1",
        activity_regularizer=keras.regularizers.L2(0.01),
        name="conv",
    )(inputs)
    x = layers.DepthwiseConv2D(3, depthwise_regularizer="l2", name="depthwise")(x)
    x = layers.Activation("relu", activity_regularizer="l2", name="activation")(x)
    x = layers.ActivityRegularization(l1=0.01, name="activity")(x)
    x = Scaled(0.5, name="scaled")(x)
    return keras.Model(inputs, layers.Dense(2, kernel_regularizer="l2", name="dense")(x))


def _channels_first() -> keras.Model:
    options = {"data_format": "channels_first"}
    inputs = keras.Input((3, 8, 8))
    x = layers.Conv2D(4, 3, name="conv", **options)(inputs)
    x = layers.Conv2D(4, 1, name="point", **options)(x)
    x = layers.GlobalAveragePooling2D(name="pool", **options)(x)
    return keras.Model(inputs, layers.Dense(2, name="dense")(x))


def _one_channel() -> keras.Model:
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(1, 3, name="one")(inputs)
    x = layers.Conv2D(1, 1, name="point")(x)
    x = layers.Conv2D(3, (1, 4), name="row")(x)
    return keras.Model(inputs, layers.Dense(1, name="dense")(layers.Flatten(name="flat")(x)))


MODELS: dict[str, Callable[[], keras.Model]] = {
    "deeply_nested": _deeply_nested,
    "layer_in_two_models": _layer_in_two_models,
    "shared_at_several_sizes": _shared_at_several_sizes,
    "structures": _structures,
    "bare_sequential": _bare_sequential,
    "lambdas": _lambdas,
    "custom": _custom,
    "operations": _operations,
    "recurrent": _recurrent,
    "video": _video,
    "odd_calls": _odd_calls,
    "regularized": _regularized,
    "channels_first": _channels_first,
    "one_channel": _one_channel,
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:.*structure of `inputs`.*")
@pytest.mark.filterwarnings("ignore:When providing `inputs` as a dict")
@pytest.mark.filterwarnings("ignore:.*includes a `lambda`.*")
def test_odd_models_keep_everything(name: str) -> None:
    _check(_stir(MODELS[name]()))


@pytest.mark.backend
def test_rows_ranks_and_forms_carry_the_path_where_names_clash() -> None:
    model = _deeply_nested()
    paths = ["inner/a/conv", "inner/a/mix", "inner/b/conv", "inner/b/mix"]
    paths += ["conv", "c/conv", "c/mix"]
    low = dprp.factorize(model, ranks={"inner/b/conv": 2, "conv": 3, "mix": 4})
    expected = dict(zip(paths, (3, 4, 2, 4, 3, 3, 4), strict=True))
    assert low.ranks == expected
    rows = {row.name: row for row in dprp.summarize(low).rows}
    assert {name: row.rank for name, row in rows.items()} == expected
    costs = {row.name: row.parameters for row in model_cost(low).layers if row.parameters}
    assert {name: rows[name].parameters for name in paths} == {p: costs[p] for p in paths}
    assert {row.name for row in dprp.choose_forms(low)} == set(paths)
    chosen = dprp.choose_forms(
        low, form="dense", forms={"inner/a/conv": "two_stage", "mix": "summed"}
    )
    forms = {row.name: row.form for row in chosen}
    assert forms == dict.fromkeys(paths, "dense") | {
        "inner/a/conv": "concatenated",
        **dict.fromkeys((path for path in paths if path.endswith("mix")), "summed"),
    }
    folded = dprp.fold(low, form="dense", forms={"inner/a/conv": "two_stage"})
    assert "inner/a/conv_stage1" not in dict(layer_paths(folded))
    assert "inner/a/conv_branch0" in dict(layer_paths(folded))
    assert "inner/b/conv_branch0" not in dict(layer_paths(folded))
    only = dprp.factorize(model, layers=["inner/a/conv", "c/conv"])
    assert list(only.ranks) == ["inner/a/conv", "c/conv"]


def test_stages_keep_clear_of_names_that_are_taken() -> None:
    inputs = keras.Input((8, 8, 3))
    x = layers.ZeroPadding2D(1, name="a_pad")(inputs)
    x = layers.Conv2D(4, 3, name="a")(x)
    x = layers.Conv2D(4, 3, name="a_branch0")(x)
    x = layers.ReLU(name="a_branch0_1")(x)
    x = layers.Activation("relu", name="a_concatenate")(x)
    model = keras.Model(inputs, layers.Conv2D(2, 1, name="a_stage1")(x))
    _, _, staged = _check(model, ranks=2)
    assert {"a_branch0_2", "a_branch1", "a_concatenate_1"} <= {at.name for at in staged.layers}


def test_a_history_keeps_layers_of_equal_name_apart() -> None:
    model = _deeply_nested()
    low = dprp.factorize(model, ranks={"inner/a/conv": 2, "inner/b/conv": 5})
    low.compile("sgd", loss="mse")
    history = dprp.RankHistory()
    x = np.random.default_rng(0).standard_normal((4, 8, 8, 3)).astype("float32")
    low.fit(x, np.zeros((4, 3)), epochs=1, verbose=0, callbacks=[history])
    assert history.record["layers"] == list(low.ranks)
    assert history.record["epochs"][0]["ranks"] == low.ranks
    assert len(history.record["epochs"][0]["singular_values"]["inner/b/conv"]) == 5
    assert history.record["full_ranks"]["inner/a/conv"] == 9


FLAGS = {
    "whole nested model": lambda model: setattr(model.get_layer("backbone"), "trainable", False),
    "one layer inside": lambda model: setattr(
        model.get_layer("backbone").get_layer("conv"), "trainable", False
    ),
    "normalization inside": lambda model: setattr(
        model.get_layer("backbone").get_layer("norm"), "trainable", False
    ),
    "all but the head": lambda model: [
        setattr(layer, "trainable", False) for layer in model.layers if layer.name != "head"
    ],
    "the whole model": lambda model: setattr(model, "trainable", False),
}


def _with_backbone() -> keras.Model:
    inputs = keras.Input((8, 8, 3), name="image")
    x = _backbone()(inputs)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return _stir(keras.Model(inputs, layers.Dense(4, name="head")(x)))


@pytest.mark.parametrize("which", FLAGS)
def test_frozen_parts_stay_frozen(which: str) -> None:
    model = _with_backbone()
    FLAGS[which](model)
    low, dense, staged = _check(model)
    flags = [model.trainable, model.get_layer("backbone").trainable]
    for result in (low, dense, staged):
        assert [result.trainable, result.get_layer("backbone").trainable] == flags


@pytest.mark.backend
def test_a_frozen_model_with_a_layer_set_free_inside_trains_that_layer() -> None:
    model = _with_backbone()
    model.get_layer("backbone").trainable = False
    model.get_layer("backbone").get_layer("mix").trainable = True
    low, dense, staged = _check(model)
    assert _trained(low) == {"backbone/mix", "head"}
    assert _trained(staged) == {
        path for path, _ in layer_paths(staged) if path.startswith(("backbone/mix", "head"))
    } - {"backbone/mix_concatenate"}
    for result in (low, dense, staged):
        assert result.get_layer("backbone").trainable is False


@pytest.mark.backend
def test_losses_of_layers_move_along() -> None:
    model = _stir(_regularized())
    x = _data(model)
    model(x)
    expected = sorted(float(loss) for loss in model.losses)
    low = dprp.factorize(model)
    low(x)
    # The regularizers of the folded stages would act on other weights: those of the kernel go.
    assert sorted(float(loss) for loss in low.losses) == pytest.approx(expected, rel=1e-5)
    folded = dprp.fold(low, form="dense")
    folded(x)
    assert sorted(float(loss) for loss in folded.losses) == pytest.approx(expected, rel=1e-5)


@pytest.mark.backend
def test_adapted_statistics_vocabularies_and_seeds_are_copied() -> None:
    rng = np.random.default_rng(3)
    data = rng.normal(5.0, 3.0, (50, 6)).astype("float32")
    normalization = layers.Normalization(name="adapted")
    normalization.adapt(data)
    inputs = keras.Input((6,), name="x")
    x = layers.Dense(4, name="dense")(normalization(inputs))
    x = layers.GaussianNoise(0.5, seed=3, name="noise")(x)
    x = layers.Dropout(0.5, name="drop")(x)
    model = keras.Model(inputs, x)
    model(data[:4], training=True)  # moves the seeds on
    low = dprp.factorize(model)
    dense = dprp.fold(low, form="dense")
    assert _error(low(data), model(data)) < TOLERANCE
    drawn = _np(model(data[:8], training=True))
    for result in (low, dense):
        np.testing.assert_allclose(_np(result(data[:8], training=True)), drawn, atol=1e-4)
    assert (drawn == 0).any()


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="text layers run in TensorFlow graphs alone"
)
def test_a_vocabulary_is_copied() -> None:
    text = layers.TextVectorization(output_mode="tf_idf", name="text")
    text.adapt(["low rank", "rank of a kernel", "a kernel"])
    inputs = keras.Input((), dtype="string", name="sentence")
    model = keras.Model(inputs, layers.Dense(3, name="dense")(text(inputs)))
    low = dprp.factorize(model, ranks=2)
    x = keras.ops.convert_to_tensor(["a rank", "kernel of it"])
    assert low.get_layer("text").get_vocabulary() == text.get_vocabulary()
    assert _error(dprp.fold(low)(x), low(x)) < TOLERANCE
    assert _error(dprp.factorize(model)(x), model(x)) < TOLERANCE


def test_masks_pass_through_factorized_layers() -> None:
    tokens = keras.Input((5,), dtype="int32")
    x = layers.Embedding(9, 4, mask_zero=True)(tokens)
    x = layers.Dense(4, name="dense")(x)
    model = _stir(keras.Model(tokens, layers.LSTM(3, name="lstm")(x)))
    low = dprp.factorize(model)
    padded, longer = np.array([[3, 4, 0, 0, 0]]), np.array([[3, 4, 5, 0, 0]])
    for result in (low, dprp.fold(low, form="dense"), dprp.fold(low, form="two_stage")):
        assert _error(result(padded), model(padded)) < TOLERANCE
        assert _error(result(longer), model(longer)) < TOLERANCE
    assert _error(model(longer), model(padded)) > 1e-2


def test_dtype_policies_stay_with_their_layers() -> None:
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, dtype="mixed_bfloat16", name="half")(inputs)
    x = layers.BatchNormalization(dtype="mixed_bfloat16", name="norm")(x)
    x = layers.Conv2D(4, 3, dtype="bfloat16", name="pure")(x)
    model = keras.Model(inputs, layers.Dense(2, dtype="float32", name="dense")(x))
    low = dprp.factorize(model, ranks=2)
    for result in (low, dprp.fold(low, form="dense"), dprp.fold(low, form="two_stage")):
        for name in ("half", "norm", "pure", "dense"):
            assert (
                result.get_layer(name).dtype_policy.name == model.get_layer(name).dtype_policy.name
            )
            variables = {str(v.dtype) for v in result.get_layer(name).weights}
            assert variables == {str(v.dtype) for v in model.get_layer(name).weights}
    full = dprp.factorize(model)
    x = _data(model)
    assert _error(full(x), model(x)) < 0.05


def test_a_compiled_model_with_objects_of_its_own_is_no_obstacle() -> None:
    def loss(y_true: Any, y_pred: Any) -> Any:
        return keras.ops.mean(keras.ops.abs(y_true - y_pred))

    model = _with_backbone()
    model.compile("adam", loss=loss)
    low = dprp.factorize(model)
    low.compile("adam", loss=loss)
    folded = dprp.fold(low)
    assert [model.compiled, low.compiled, folded.compiled] == [True, True, False]
    x = _data(model)
    assert _error(folded(x), low(x, training=False)) < TOLERANCE


def test_the_result_saves_and_loads(tmp_path: Path) -> None:
    for name in ("deeply_nested", "structures", "shared_at_several_sizes"):
        model = _stir(MODELS[name]())
        x = _data(model)
        low = dprp.factorize(model, ranks=2)
        for kind, result in (("low", low), ("folded", dprp.fold(low, form="two_stage"))):
            path = tmp_path / f"{name}_{kind}.keras"
            result.save(path)
            again = keras.saving.load_model(path)
            # Keras itself loads tuples as lists.
            outputs = [keras.tree.flatten(at(x, training=False)) for at in (again, result)]
            assert _error(*outputs) < TOLERANCE
            assert list(dict(layer_paths(again))) == list(dict(layer_paths(result)))


def test_a_factorized_model_can_be_factorized_further() -> None:
    model = _with_backbone()
    once = dprp.factorize(model, layers=["head"], ranks=2)
    twice = dprp.factorize(once, layers=["conv"])
    assert twice.ranks == {"conv": 9, "head": 2}
    x = _data(model)
    assert _error(twice(x), once(x)) < TOLERANCE


def _reasons() -> dict[str, tuple[layers.Layer, str]]:
    low_rank_adapted = layers.Dense(4)
    low_rank_adapted.build((1, 6))
    low_rank_adapted.enable_lora(2)
    return {
        "grouped": (layers.Conv2D(4, 3, groups=2), "groups=2"),
        "depthwise": (layers.DepthwiseConv1D(3), "depthwise"),
        "separable": (layers.SeparableConv1D(4, 3), "separable"),
        "embedding": (layers.Embedding(4, 3), "looked up"),
        "recurrent": (layers.RNN(layers.LSTMCell(4)), "recurrent"),
        "stateful": (layers.LSTM(4, stateful=True), "from batch to batch"),
        "convolutional recurrent": (layers.ConvLSTM1D(4, 3), "recurrent"),
        "wrapped recurrent": (layers.Bidirectional(layers.GRU(3)), "writes both out"),
        "wrapped": (layers.TimeDistributed(layers.Dense(3)), "TimeDistributed wrapper"),
        "attention": (layers.MultiHeadAttention(2, 3), "attention"),
        "einsum": (layers.EinsumDense("abc,cd->abd", (None, 4)), "makes a Dense layer of it"),
        "subclassed": (Subclassed(3), "subclassed model Subclassed"),
        "custom": (Block(3), "Block"),
        "adapted": (low_rank_adapted, "LoRA"),
    }


@pytest.mark.parametrize("name", list(_reasons()))
def test_every_skip_has_its_reason(name: str) -> None:
    layer, part = _reasons()[name]
    assert part in str(skip_reason(layer))


def test_quantized_layers_are_copied_as_they_are() -> None:
    inputs = keras.Input((6,))
    x = layers.Dense(8, name="int8")(inputs)
    model = keras.Model(inputs, layers.Dense(3, name="plain")(x))
    model.get_layer("int8").quantize("int8")
    low = dprp.factorize(model)
    assert list(low.ranks) == ["plain"]
    assert "int8" in str(dprp.summarize(low).skipped[0].skipped)
    x = _data(model)
    assert _error(low(x), model(x)) < TOLERANCE


def test_an_activation_with_weights_is_a_reason_to_skip() -> None:
    inputs = keras.Input((6,))
    x = layers.Dense(4, activation=layers.PReLU(alpha_initializer="ones"), name="learned")(inputs)
    x = layers.Dense(4, activation=layers.LeakyReLU(0.3), name="leaky")(x)
    model = keras.Model(inputs, x)
    model(_data(model))
    model.get_layer("learned").activation.alpha.assign([0.1, 0.2, 0.3, 0.4])
    low = dprp.factorize(model)
    assert list(low.ranks) == ["leaky"]
    assert "PReLU" in str(dprp.summarize(low).skipped[0].skipped)
    x = _data(model)
    assert _error(low(x), model(x)) < TOLERANCE


class Unserializable(layers.Layer):
    def __init__(self, table: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.table = table

    def call(self, inputs: Any) -> Any:
        return inputs * len(self.table)

    def get_config(self) -> dict[str, Any]:
        return super().get_config()


class Growing(layers.Layer):
    """A layer whose copy has fewer weights than it."""

    def call(self, inputs: Any) -> Any:
        return inputs


def _growing() -> keras.Model:
    inputs = keras.Input((4,))
    layer = Growing(name="growing")
    layer.add_weight(shape=(2,), name="late")
    return keras.Model(inputs, layers.Dense(3)(layer(inputs)))


def _unserializable() -> keras.Model:
    inputs = keras.Input((4,))
    return keras.Model(inputs, layers.Dense(3)(Unserializable(np.ones(2), name="table")(inputs)))


class Tied(layers.Layer):
    """A layer that uses the kernel of another one."""

    def __init__(self, source: layers.Layer, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.source = source

    def call(self, inputs: Any) -> Any:
        return keras.ops.matmul(inputs, keras.ops.transpose(self.source.kernel))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "source": keras.saving.serialize_keras_object(self.source)}


def _tied() -> keras.Model:
    inputs = keras.Input((4,))
    one = layers.Dense(3, name="one")
    return keras.Model(inputs, Tied(one, name="two")(one(inputs)))


def _overriding() -> keras.Model:
    inputs = keras.Input((4,))
    return Overriding(inputs, layers.Dense(3)(inputs))


def _unbuilt_subclass() -> keras.Model:
    model = Subclassed(3)
    model(np.zeros((1, 4), "float32"))
    return model


BAD = [
    (_unbuilt_subclass, r"Subclassed.*subclassed model.*keras\.Model\(inputs, outputs\)"),
    (_overriding, "Overriding.*subclassed model"),
    (lambda: keras.Sequential([layers.Dense(3)]), r"Sequential.*keras\.Input.*call it on data"),
    (lambda: layers.Dense(3), "Dense"),
    (_unserializable, "Unserializable 'table'.*configuration.*get_config"),
    (_growing, "Growing 'growing'.*weights.*get_config"),
    (_tied, "'one' and 'two'.*Call one layer twice"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_what_cannot_be_rewritten_is_named(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){message}"):
        dprp.factorize(make())


def test_a_model_that_overrides_its_call_is_copied_when_nested() -> None:
    inputs = keras.Input((4,))
    inner = _overriding()
    with pytest.raises(ValueError, match="Overriding"):
        rewrite(inner, lambda layer: None)
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(2, name="last")(inner(inputs)))
    low = dprp.factorize(model)
    assert list(low.ranks) == ["last"]
    assert "Overriding" in str(dprp.summarize(low).skipped[0].skipped)
    x = _data(model)
    assert _error(low(x), model(x)) < TOLERANCE


def test_unused_layers_and_names_that_do_not_exist_are_reported() -> None:
    model = _with_backbone()
    with pytest.raises(ValueError, match=r"`layers` must name layers.*'nowhere/conv'"):
        dprp.factorize(model, layers=["nowhere/conv"])
    with pytest.raises(ValueError, match=r"`ranks` must name layers.*'backbone/norm'"):
        dprp.factorize(model, ranks={"backbone/norm": 1})
    low = dprp.factorize(model)
    with pytest.raises(ValueError, match=r"`forms` must name SVD layers.*'nowhere'"):
        dprp.fold(low, forms={"nowhere": "dense"})
