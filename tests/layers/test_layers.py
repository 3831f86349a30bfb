"""One checklist that every SVD layer passes, against the Keras layer whose place it takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

import dprp_tf as dprp
from dprp_tf import decomposition
from dprp_tf.decomposition import Factors
from dprp_tf.keras_internals.graphs import walk_layers
from dprp_tf.layers import (
    SVDGRU,
    SVDLSTM,
    FactorizedConvolution,
    SVDConv1D,
    SVDConv1DTranspose,
    SVDConv2D,
    SVDConv2DTranspose,
    SVDConv3D,
    SVDConv3DTranspose,
    SVDDense,
    SVDLayer,
    SVDRecurrent,
    SVDSimpleRNN,
    low_rank_layers,
)
from dprp_tf.layers.kernels import kernel_of
from dprp_tf.layers.registry import registered_layers

pytestmark = pytest.mark.backend
KINDS = ("spatial", "channel", "separable")


@dataclass(frozen=True)
class Case:
    layer: type[SVDLayer]
    dense: type[keras.layers.Layer]
    arguments: dict[str, Any]
    inputs: tuple[int, ...]
    unknown: tuple[int | None, ...]

    @property
    def weights(self) -> list[str]:
        """Names of the weights of a layer with a bias."""
        recurrent = ["recurrent_kernel"] if issubclass(self.layer, SVDRecurrent) else []
        return ["u", "s", "v", *recurrent, "bias"]


CASES = {
    "Conv1D": Case(
        SVDConv1D,
        keras.layers.Conv1D,
        {"filters": 5, "kernel_size": 3, "padding": "causal", "dilation_rate": 2},
        (2, 9, 4),
        (None, None, 4),
    ),
    "Conv2D": Case(
        SVDConv2D,
        keras.layers.Conv2D,
        {"filters": 5, "kernel_size": (3, 2), "strides": (2, 1), "padding": "same"},
        (2, 7, 6, 4),
        (None, None, 6, 4),
    ),
    "Conv3D": Case(
        SVDConv3D,
        keras.layers.Conv3D,
        {"filters": 4, "kernel_size": (2, 3, 2), "strides": 2},
        (2, 5, 6, 4, 3),
        (None, 5, None, 4, 3),
    ),
    "Dense": Case(SVDDense, keras.layers.Dense, {"units": 5}, (2, 3, 7), (None, 3, 7)),
    "Conv1DTranspose": Case(
        SVDConv1DTranspose,
        keras.layers.Conv1DTranspose,
        {"filters": 5, "kernel_size": 4, "strides": 2, "padding": "same"},
        (2, 6, 4),
        (None, None, 4),
    ),
    "Conv2DTranspose": Case(
        SVDConv2DTranspose,
        keras.layers.Conv2DTranspose,
        {"filters": 5, "kernel_size": (3, 2), "strides": (2, 3), "output_padding": (1, 0)},
        (2, 4, 3, 6),
        (None, None, 3, 6),
    ),
    "Conv3DTranspose": Case(
        SVDConv3DTranspose,
        keras.layers.Conv3DTranspose,
        {"filters": 4, "kernel_size": (2, 3, 2), "padding": "same"},
        (2, 3, 4, 2, 3),
        (None, 3, None, 2, 3),
    ),
    "SimpleRNN": Case(
        SVDSimpleRNN,
        keras.layers.SimpleRNN,
        {"units": 5, "return_sequences": True},
        (2, 4, 7),
        (None, None, 7),
    ),
    "GRU": Case(
        SVDGRU,
        keras.layers.GRU,
        {"units": 5, "go_backwards": True, "return_sequences": True},
        (2, 4, 7),
        (None, 4, 7),
    ),
    "LSTM": Case(
        SVDLSTM,
        keras.layers.LSTM,
        {"units": 5, "unit_forget_bias": False},
        (2, 4, 7),
        (None, 4, 7),
    ),
}


def _like(kind: type[Any]) -> Case:
    """The case of the Keras layer that a newly registered one derives from."""
    for case in CASES.values():
        if issubclass(kind.stands_for, case.dense):
            return replace(case, layer=kind, dense=kind.stands_for)
    raise NotImplementedError(f"CASES needs one for {kind.stands_for.__name__}")


# A layer is tested by being registered.
CASES |= {
    kind.__name__: _like(kind)
    for kind in registered_layers()
    if kind not in [case.layer for case in CASES.values()]
}
EVERY = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def _np(value: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(value)


def _input(case: Case, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(case.inputs).astype("float32")


def _pair(
    case: Case, matricization: str = "spatial", rank: int | None = None, **arguments: Any
) -> tuple[SVDLayer, Any]:
    """An SVD layer and the dense layer of the kernel it stands for."""
    layer = case.layer(
        **case.arguments,
        matricization=matricization,
        rank=rank,
        bias_initializer="random_normal",
        **arguments,
    )
    layer.build(case.inputs)
    dense = case.dense(**case.arguments, **arguments)
    dense.build(case.inputs)
    kernel = decomposition.dematricize(
        layer.factors.matrix(), layer.kernel_shape, layer.matricization
    )
    dense.set_weights([layer.as_held(kernel, np), *layer.other_weights()])
    return layer, dense


def _arguments(layer_class: type) -> set[str]:
    """Every named argument of __init__, from the class up to Keras' own layer."""
    names: set[str] = set()
    for ancestor in layer_class.__mro__:
        if ancestor is keras.layers.Layer:
            break
        if "__init__" in vars(ancestor):
            names |= {
                name
                for name, parameter in inspect.signature(
                    vars(ancestor)["__init__"]
                ).parameters.items()
                if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
            }
    return (names | {"name", "trainable", "dtype"}) - {"self"}


@EVERY
def test_the_config_holds_every_argument_and_comes_back(case: Case) -> None:
    unusual = {
        "rank": 2,
        "matricization": "channel",
        "balanced_gradients": True,
        "use_bias": True,
        "activation": "softsign",
        "kernel_initializer": keras.initializers.HeNormal(seed=4),
        "bias_initializer": keras.initializers.Constant(0.3),
        "kernel_regularizer": keras.regularizers.L2(0.07),
        "bias_regularizer": keras.regularizers.L1(0.03),
        "activity_regularizer": keras.regularizers.L2(0.02),
        "kernel_constraint": keras.constraints.MaxNorm(1.7),
        "bias_constraint": keras.constraints.NonNeg(),
        "name": "unusual",
        "trainable": False,
        "dtype": "mixed_float16",
    }
    if issubclass(case.layer, FactorizedConvolution):
        unusual["data_format"] = "channels_first"
    layer = case.layer(**case.arguments, **unusual)
    config = layer.get_config()
    missing = _arguments(case.layer) - set(config)
    assert not missing, f"get_config leaves out {sorted(missing)}"
    assert set(unusual) <= _arguments(case.layer), "an argument of the test is not one of the layer"
    again = case.layer.from_config(config)
    assert again.get_config() == config
    default = case.layer(**case.arguments).get_config()
    same = [name for name in unusual if config[name] == default[name] and name != "use_bias"]
    assert not same, f"the test's values equal the defaults of {same}"
    assert case.layer(**case.arguments, use_bias=False).get_config()["use_bias"] is False
    saved = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(saved) is case.layer
    assert saved.get_config() == config


@EVERY
def test_the_config_has_the_rank_of_now(case: Case) -> None:
    layer = case.layer(**case.arguments)
    assert layer.get_config()["rank"] is None
    layer.build(case.inputs)
    assert layer.get_config()["rank"] == layer.rank == layer.full_rank


@EVERY
@pytest.mark.parametrize("matricization", KINDS)
def test_it_computes_what_the_dense_layer_computes(case: Case, matricization: str) -> None:
    x = _input(case)
    for rank in (None, 2):
        layer, dense = _pair(case, matricization, rank, activation="softplus")
        expected = _np(dense(x))
        np.testing.assert_allclose(_np(layer(x)), expected, atol=2e-6)
        assert expected.std() > 0.03
        assert [v.name for v in layer.trainable_variables] == case.weights
        assert layer.u.shape == (layer.matrix_shape[0], layer.rank)
        assert layer.v.shape == (layer.matrix_shape[1], layer.rank)


@EVERY
def test_symbolic_shapes_are_the_real_ones(case: Case) -> None:
    layer, dense = _pair(case)
    x = _input(case)
    real = tuple(layer(x).shape)
    assert layer.compute_output_shape(case.inputs) == real
    symbolic = keras.Input(case.inputs[1:], batch_size=case.inputs[0])
    assert tuple(layer(symbolic).shape) == real
    assert layer.compute_output_shape(case.unknown) == tuple(
        dense.compute_output_shape(case.unknown)
    )


@pytest.mark.parametrize("padding", ["valid", "same", "causal"])
@pytest.mark.parametrize(("strides", "dilation_rate"), [(1, 1), (2, 1), (3, 1), (1, 2)])
@pytest.mark.parametrize("size", [7, 8])
def test_output_shapes_over_paddings_strides_and_dilations(
    padding: str, strides: int, dilation_rate: int, size: int
) -> None:
    arguments: dict[str, Any] = {
        "filters": 2,
        "kernel_size": 3,
        "padding": padding,
        "strides": strides,
        "dilation_rate": dilation_rate,
    }
    shape = (1, size, 2)
    layer = SVDConv1D(**arguments)
    expected = keras.layers.Conv1D(**arguments).compute_output_shape(shape)
    assert layer.compute_output_shape(shape) == tuple(expected)
    assert tuple(layer(np.zeros(shape, "float32")).shape) == tuple(expected)


@EVERY
def test_the_kernel_regularizer_counts_once_and_as_the_dense_layers(case: Case) -> None:
    regularizers = {
        "kernel_regularizer": keras.regularizers.L1L2(0.03, 0.07),
        "bias_regularizer": keras.regularizers.L2(0.05),
    }
    layer, dense = _pair(case, **regularizers)
    x = _input(case)
    for _ in range(3):  # however often it is called
        layer(x)
        dense(x)
    ours, theirs = [float(_np(v)) for v in layer.losses], [float(_np(v)) for v in dense.losses]
    assert sorted(ours) == pytest.approx(sorted(theirs), rel=1e-5)
    assert len(ours) == 2
    inputs = keras.Input(case.inputs[1:])
    same = layer(inputs)
    model = keras.Model(inputs, [same, layer(inputs)])
    assert len(model.losses) == 2
    layer.trainable = False
    dense.trainable = False
    assert len(layer.losses) == len(dense.losses) == 0


@EVERY
def test_the_activity_regularizer_is_the_dense_layers(case: Case) -> None:
    layer, dense = _pair(case, activity_regularizer=keras.regularizers.L2(0.03))
    # Keras 3.15's SimpleRNN takes one and forgets it.
    dense.activity_regularizer = layer.activity_regularizer
    x = _input(case)
    layer(x)
    dense(x)
    assert [float(_np(v)) for v in layer.losses] == pytest.approx(
        [float(_np(v)) for v in dense.losses], rel=1e-5
    )
    assert len(layer.losses) == 1


@EVERY
def test_the_kernel_constraint_holds_in_every_call(case: Case) -> None:
    constraint = keras.constraints.MaxNorm(0.4)
    layer, dense = _pair(case, kernel_constraint=constraint)
    free, _ = _pair(case)
    x = _input(case)
    kernel = kernel_of(dense).held
    kernel.assign(constraint(kernel))
    np.testing.assert_allclose(_np(layer.kernel), _np(kernel), atol=1e-6)
    np.testing.assert_allclose(_np(layer(x)), _np(dense(x)), atol=2e-6)
    assert np.abs(_np(free.kernel) - _np(layer.kernel)).max() > 1e-3


@EVERY
def test_the_bias_constraint_reaches_the_variable(case: Case) -> None:
    layer = case.layer(**case.arguments, bias_constraint="non_neg")
    layer.build(case.inputs)
    assert layer.bias is not None
    assert layer.bias.constraint is not None
    assert case.layer(**case.arguments, use_bias=False)(_input(case)).shape is not None


@EVERY
def test_a_frozen_layer_trains_nothing(case: Case) -> None:
    layer, _ = _pair(case)
    layer.trainable = False
    assert layer.trainable_variables == []
    assert [v.name for v in layer.non_trainable_weights] == case.weights
    frozen = case.layer(**case.arguments, trainable=False)
    frozen.build(case.inputs)
    assert frozen.trainable_variables == []


@EVERY
def test_mixed_precision_computes_in_half_and_keeps_single(case: Case) -> None:
    layer = case.layer(
        **case.arguments, dtype="mixed_float16", kernel_regularizer=keras.regularizers.L2(0.1)
    )
    x = _input(case)
    result = layer(x)
    assert keras.backend.standardize_dtype(result.dtype) == "float16"
    assert {keras.backend.standardize_dtype(v.dtype) for v in layer.weights} == {"float32"}
    single = case.layer.from_config({**layer.get_config(), "dtype": "float32"})
    single.build(case.inputs)
    single.set_weights(layer.get_weights())
    np.testing.assert_allclose(_np(result).astype("float32"), _np(single(x)), atol=0.02)
    # The penalty is computed outside the call, in full precision.
    assert float(_np(layer.losses[0])) == pytest.approx(float(_np(single.losses[0])), rel=1e-6)


@EVERY
@pytest.mark.parametrize("matricization", KINDS)
def test_at_full_rank_it_starts_as_its_initializer_says(case: Case, matricization: str) -> None:
    initializer = keras.initializers.HeNormal(seed=11)
    layer = case.layer(
        **case.arguments, matricization=matricization, kernel_initializer=initializer
    )
    layer.build(case.inputs)
    # As Keras draws it: of transposed kernels fans are those of the axes as they lie.
    kernel = _np(keras.initializers.HeNormal(seed=11)(layer.kernel.shape))
    np.testing.assert_allclose(_np(layer.kernel), kernel, atol=1e-6)
    np.testing.assert_allclose(_np(layer.bias), 0.0)
    u, s, v = layer.factors
    np.testing.assert_allclose(u.T @ u, np.eye(len(layer.factors.s)), atol=1e-5)
    np.testing.assert_allclose(v.T @ v, np.eye(len(layer.factors.s)), atol=1e-5)
    assert np.all(s > 0)
    assert np.all(np.diff(s) <= 0)


def test_initial_kernels_have_the_initializers_spread() -> None:
    layer = SVDConv2D(64, 3, kernel_initializer="he_normal")
    layer.build((None, 8, 8, 32))
    kernel = _np(layer.kernel)
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 32)), rel=0.03)
    assert abs(kernel.mean()) < 0.002
    again = SVDConv2D(64, 3, kernel_initializer="he_normal")
    again.build((None, 8, 8, 32))
    assert np.abs(_np(again.kernel) - kernel).max() > 0.01


@EVERY
def test_weights_survive_saving(case: Case, tmp_path: Any) -> None:
    inputs = keras.Input(case.inputs[1:])
    model = keras.Model(inputs, case.layer(**case.arguments, rank=2, name="it")(inputs))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.get_layer("it").rank == 2
    x = _input(case)
    np.testing.assert_array_equal(_np(again(x)), _np(model(x)))


# --- balanced gradients ------------------------------------------------------------------------


@EVERY
def test_balancing_leaves_the_forward_pass_bit_identical(case: Case) -> None:
    layer, _ = _pair(case)
    x = _input(case)
    plain = _np(layer(x))
    layer.balanced_gradients = True
    np.testing.assert_array_equal(_np(layer(x)), plain)


def _with_factors(s: list[float], balanced: bool, height: int = 6) -> SVDDense:
    rng = np.random.default_rng(5)
    width = len(s)
    u = np.linalg.qr(rng.standard_normal((height, width)))[0]
    v = np.linalg.qr(rng.standard_normal((width, width)))[0]
    layer = SVDDense(height, use_bias=False, balanced_gradients=balanced)
    layer.start_from(Factors(u.astype("float32"), np.array(s, "float32"), v.astype("float32")))
    layer.build((None, width))
    return layer


def _matrix_step(
    layer: SVDDense, gradients: list[np.ndarray], rate: float
) -> tuple[np.ndarray, np.ndarray]:
    """The matrix before, and its change by one SGD step on the factors, in float64."""
    old = [part.astype(np.float64) for part in layer.factors]
    new = [part - rate * np.asarray(g, np.float64) for part, g in zip(old, gradients, strict=True)]
    before = (old[0] * old[1]) @ old[2].T
    return before, (new[0] * new[1]) @ new[2].T - before


@pytest.mark.parametrize("height", [6, 40], ids=["square", "tall"])
def test_a_balanced_step_moves_the_kernel_as_a_dense_step_does(
    layer_gradients: Callable[..., list[np.ndarray]], height: int
) -> None:
    # With orthonormal factors of full rank and the kernel's gradient G the step is
    #   -rate (G D V V^T ... ) = -rate [ G (V D V^T) + (U D U^T) G + U diag(U^T G V) V^T ],
    # D = diag(s^2 / (s^2 + (0.1 max s)^2)): the dense step -rate G through U, its part inside
    # the columns of U once more through V, and s's own share.
    s = [3.0, 2.5, 2.0, 1.5, 1.2, 0.9]
    rng = np.random.default_rng(8)
    target = rng.standard_normal((height, 6))  # d loss / d M, constant
    rate = 1e-4
    steps = {}
    for balanced in (True, False):
        layer = _with_factors(s, balanced, height)
        constant = ops.convert_to_tensor(target.T.astype("float32"))
        gradients = layer_gradients(layer, lambda c=constant, at=layer: ops.sum(c * at.kernel))
        _, steps[balanced] = _matrix_step(layer, gradients, rate)
    u, values, v = (part.astype(np.float64) for part in layer.factors)
    damped = values**2 / (values**2 + (0.1 * values.max()) ** 2 + 1e-6)
    exact = target @ (v * damped) @ v.T + (u * damped) @ u.T @ target
    exact += (u * np.diag(u.T @ target @ v)) @ v.T
    np.testing.assert_allclose(steps[True], -rate * exact, atol=1e-3 * rate * np.abs(exact).max())

    def cosine(step: np.ndarray) -> float:
        return float(-(step * target).sum() / np.linalg.norm(step) / np.linalg.norm(target))

    assert cosine(steps[True]) > 0.93
    assert cosine(steps[True]) > cosine(steps[False]) + 0.02
    # Size: once the dense step through U; square kernels get it again through V, tall ones
    # (what `spatial` makes) hardly. Unbalanced it grows with s^2, here about 4.
    size = np.linalg.norm(steps[True]) / (rate * np.linalg.norm(target))
    assert (1.7 < size < 2.3) if height == 6 else (0.9 < size < 1.5)


def test_a_balanced_step_does_not_depend_on_the_scale_of_the_kernel(
    layer_gradients: Callable[..., list[np.ndarray]],
) -> None:
    rng = np.random.default_rng(9)
    constant = ops.convert_to_tensor(rng.standard_normal((6, 6)).astype("float32"))
    sizes: dict[bool, list[float]] = {True: [], False: []}
    for balanced in (True, False):
        for scale in (0.5, 5.0):
            layer = _with_factors([scale * n for n in (3.0, 2.5, 2.0, 1.5, 1.2, 0.9)], balanced)
            gradients = layer_gradients(layer, lambda at=layer: ops.sum(constant * at.kernel))
            sizes[balanced].append(float(np.linalg.norm(_matrix_step(layer, gradients, 1e-5)[1])))
    assert sizes[True][1] / sizes[True][0] == pytest.approx(1.0, rel=0.02)
    assert sizes[False][1] / sizes[False][0] > 20


def test_a_dying_value_does_not_blow_its_gradient_up(
    layer_gradients: Callable[..., list[np.ndarray]],
) -> None:
    constant = ops.convert_to_tensor(np.ones((6, 6), "float32"))
    for last in (1e-3, 1e-6, 0.0):
        layer = _with_factors([3.0, 2.5, 2.0, 1.5, 1.2, last], balanced=True)
        gradients = layer_gradients(layer, lambda at=layer: ops.sum(constant * at.kernel))
        assert all(np.all(np.isfinite(g)) for g in gradients)
        assert np.linalg.norm(gradients[0][:, -1]) <= 12 * last / 0.09 + 1e-6


# --- finding layers, bad input -----------------------------------------------------------------


def test_layers_are_found_once_in_model_order_and_inside_nested_models() -> None:
    shared = SVDDense(4, name="shared")
    inner_input = keras.Input((4,))
    inner = keras.Model(inner_input, SVDDense(4, name="inside")(shared(inner_input)), name="inner")
    inputs = keras.Input((4,))
    x = shared(SVDDense(4, name="first")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2, name="plain")(inner(inner(x))))
    assert [layer.name for layer in low_rank_layers(model)] == ["first", "shared", "inside"]
    assert [layer.name for layer in walk_layers(model)][-1] == "plain"


def test_factors_given_before_building_are_used_and_not_after() -> None:
    rng = np.random.default_rng(2)
    factors = Factors(*(rng.standard_normal(n).astype("float32") for n in ((5, 2), (2,), (7, 2))))
    layer = SVDDense(5)
    layer.start_from(factors)
    layer.build((None, 7))
    np.testing.assert_array_equal(layer.factors.u, factors.u)
    with pytest.raises(ValueError, match=r"`start_from` must come before.*built"):
        layer.start_from(factors)


BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: SVDDense(4, matricization="rows"), r"`matricization`.*'rows'"),
    (lambda: SVDDense(4, rank=0), r"`rank`.*0"),
    (lambda: SVDDense(4, rank=2.5), r"`rank`.*2\.5"),
    (lambda: SVDDense(0), r"`units`.*units=0"),
    (
        lambda: SVDDense(4, rank=5, name="d").build((None, 9)),
        r"`rank` of layer 'd'.*1\.\.4.*rank=5",
    ),
    (lambda: SVDDense(4).build((None, None)), r"last axis.*None"),
    (lambda: SVDConv2D(-3, 3), r"`filters`.*filters=-3"),
    (lambda: SVDConv2D(4, 0), r"`kernel_size`.*kernel_size=0"),
    (lambda: SVDConv2D(4, (3, 3, 3)), r"`kernel_size`.*\(3, 3, 3\)"),
    (lambda: SVDConv2D(4, 3, strides=0), r"`strides`.*strides=0"),
    (lambda: SVDConv2D(4, 3, padding="causal"), r"`padding`.*'causal'"),
    (lambda: SVDConv2D(4, 3, data_format="first"), r"`data_format`.*'first'"),
    (lambda: SVDConv2D(4, 3, strides=2, dilation_rate=2), r"`strides`.*`dilation_rate`.*\(2, 2\)"),
    (lambda: SVDConv2D(4, 3).build((None, 8, 8, None)), r"None"),
    (lambda: SVDConv2D(4, 5, name="c").compute_output_shape((1, 3, 3, 2)), r"'c' is too small"),
    (lambda: SVDConv2D(4, 3)(np.zeros((2, 8, 8), "float32")), r"ndim"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_factors_of_the_wrong_shape_are_refused() -> None:
    layer = SVDDense(5, name="d")
    layer.start_from(Factors(np.zeros((5, 2)), np.zeros(2), np.zeros((6, 2))))
    with pytest.raises(ValueError, match=r"factors of layer 'd'.*u \(5, 2\).*v \(6, 2\)"):
        layer.build((None, 7))


@pytest.mark.parametrize("kind", [SVDLSTM, SVDGRU, SVDSimpleRNN])
def test_recurrent_layers_stay_frozen_and_keep_functions_and_settings(kind: Any) -> None:
    def own(x: Any) -> Any:
        return ops.tanh(x) * 0.5

    inputs = keras.Input((4, 6))
    dense = kind.stands_for(
        5, activation=own, recurrent_initializer=lambda shape, dtype: ops.ones(shape, dtype) * 0.1,
        trainable=False, dropout=0.2, name="it",
    )  # fmt: skip
    if kind is not SVDSimpleRNN:
        dense.use_cudnn = False
    dense.cell.implementation = 1
    model = keras.Model(inputs, dense(inputs))
    lowrank = dprp.factorize(model, ranks=2)
    layer = lowrank.get_layer("it")
    assert not layer.trainable_variables
    assert layer.activation is own
    assert layer.recurrent.cell.implementation == 1
    assert getattr(layer.recurrent, "use_cudnn", False) is False
    # One cell, and one seed of its dropout.
    cells = [part for part in layer._flatten_layers() if "cell" in part.name]
    assert len(cells) == 1
    x = np.random.default_rng(0).standard_normal((2, 4, 6)).astype("float32")
    for form in ("two_stage", "dense"):
        folded = dprp.fold(lowrank, form=form)
        np.testing.assert_allclose(_np(folded(x)), _np(lowrank(x)), atol=1e-6)
        assert not folded.get_layer("it").trainable_variables
        assert folded.get_layer("it").cell.implementation == 1
