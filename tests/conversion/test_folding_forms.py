"""Every exact form of a low-rank layer, its count of weights and MACs, and plans as data."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras import layers
from made_plans import fold_plan

import dprp_tf as dprp
from dprp_tf.conversion.assembly import assemble
from dprp_tf.conversion.form_weights import layer_forms, random_weights
from dprp_tf.costs.fold_plan import FoldPlan
from dprp_tf.costs.form import KINDS, Form
from dprp_tf.costs.layer_forms import obstacle
from dprp_tf.costs.models import model_cost
from dprp_tf.decomposition import decompose, dematricize, matricize, tucker2, tucker_ranks
from dprp_tf.deploy.planning.probes import layer_sites

TOLERANCE = 2e-5
CONVOLUTIONS: dict[int, Any] = {1: layers.Conv1D, 2: layers.Conv2D, 3: layers.Conv3D}


def _model(
    ndim: int = 2, size: int = 9, channels: int = 4, filters: int = 6, **options: Any
) -> keras.Model:
    inputs = keras.Input((size,) * ndim + (channels,))
    options = {"kernel_size": 3, **options}
    outputs = CONVOLUTIONS[ndim](filters, name="it", **options)(inputs)
    model = keras.Model(inputs, outputs)
    layer = model.get_layer("it")
    if layer.bias is not None:
        values = np.random.default_rng(3).normal(0, 0.3, layer.bias.shape)
        layer.bias.assign(values)
    return model


def _error(first: keras.Model, second: keras.Model, seed: int = 1) -> float:
    shape = (2, *first.inputs[0].shape[1:])
    x = np.random.default_rng(seed).standard_normal(shape).astype("float32")
    a, b = np.asarray(first(x)), np.asarray(second(x))
    assert a.shape == b.shape
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-6))


@pytest.mark.parametrize("matricization", ["spatial", "channel", "separable"])
@pytest.mark.parametrize(
    ("ndim", "options"),
    [
        (1, {"padding": "causal", "dilation_rate": 2}),
        (1, {"padding": "same", "strides": 2, "activation": "relu"}),
        (2, {"padding": "same"}),
        (2, {"padding": "valid", "strides": 2, "activation": "softplus"}),
        (2, {"padding": "same", "strides": 2, "use_bias": False}),
        (2, {"padding": "same", "dilation_rate": 2, "activation": "relu"}),
        (2, {"padding": "valid", "kernel_size": (3, 5), "use_bias": False, "activation": "relu"}),
        (2, {"padding": "same", "kernel_size": 1}),
        (3, {"padding": "same", "strides": (1, 2, 1), "activation": "relu"}),
    ],
    ids=str,
)
def test_every_form_computes_the_layer(
    matricization: str, ndim: int, options: dict[str, Any]
) -> None:
    original = _model(ndim, **options)
    low = dprp.factorize(original, decomposition=matricization, ranks=2)
    layer = low.get_layer("it")
    if layer.full_rank > 2:
        assert _error(low, original) > 1e-3, "a low rank must show, or the test is vacuous"
    forms = layer_forms(layer)
    assert forms[0] == Form("dense")
    single = options.get("kernel_size") == 1
    if matricization == "spatial" and ndim < 3 and not single:
        kinds = {form.kind for form in forms}
        assert kinds >= {"dense", "concatenated", "summed", "pointwise_first"}
    for form in forms:
        folded = dprp.fold(low, forms={"it": form})
        assert _error(folded, low) < TOLERANCE, form
        assert folded.layers[-1].name == "it"
        bias = math.prod(layer.bias.shape) if layer.bias is not None else 0
        assert folded.count_params() - bias == form.parameters(layer.kernel_shape)
        spatial = low.inputs[0].shape[1:-1], low.outputs[0].shape[1:-1]
        if options["padding"] != "causal" or form.kind != "pointwise_first":  # works on the pad too
            assert model_cost(folded).macs == form.macs(layer.kernel_shape, *spatial), form
        assert all(getattr(at, "depth_multiplier", 1) == 1 for at in folded.layers)


def test_a_rank_of_one_needs_no_sum() -> None:
    low = dprp.factorize(_model(padding="same", activation="relu"), ranks=1)
    for kind in ("concatenated", "summed", "pointwise_first"):
        folded = dprp.fold(low, forms={"it": kind})
        assert len(folded.layers) == 3, [layer.name for layer in folded.layers]
        assert _error(folded, low) < TOLERANCE


def _with_kernel(kernel: np.ndarray, matricization: str) -> keras.Model:
    model = _model(2, channels=kernel.shape[-2], filters=kernel.shape[-1], padding="same")
    model.get_layer("it").kernel.assign(kernel)
    return dprp.factorize(model, decomposition=matricization)


def test_a_kernel_that_is_low_rank_elsewhere_offers_that_form_too() -> None:
    rng = np.random.default_rng(0)
    separable = decompose(matricize(rng.normal(size=(3, 3, 8, 12)), "separable"), 2)
    kernel = dematricize(separable.matrix(), (3, 3, 8, 12), "separable")
    low = _with_kernel(kernel, "spatial")
    layer = low.get_layer("it")
    forms = {form.kind: form for form in layer_forms(layer)}
    assert forms["separable"].ranks == (2,)
    assert forms["separable"].error == 0
    # Two columns over 3 positions each: both channel unfoldings have rank 2 * 3.
    assert forms["tucker"].ranks == (6, 6)
    assert _error(dprp.fold(low, forms={"it": forms["separable"]}), low) < TOLERANCE


def test_tucker_is_offered_where_both_channel_unfoldings_are_low_rank() -> None:
    rng = np.random.default_rng(1)
    core = rng.normal(size=(3, 3, 2, 3))
    kernel = np.einsum("xyio,ci,so->xycs", core, rng.normal(size=(8, 2)), rng.normal(size=(12, 3)))
    low = _with_kernel(kernel, "spatial")
    layer = low.get_layer("it")
    forms = {form.kind: form for form in layer_forms(layer)}
    assert forms["tucker"].ranks == (2, 3)
    assert forms["channel"].ranks == (3,)
    for kind in ("tucker", "channel"):
        assert _error(dprp.fold(low, forms={"it": forms[kind]}), low) < TOLERANCE


def test_tolerance_buys_smaller_forms_and_says_what_they_cost() -> None:
    low = dprp.factorize(_model(channels=16, filters=16, padding="same"), decomposition="channel")
    layer = low.get_layer("it")
    assert [form.kind for form in layer_forms(layer)] == ["dense", "channel"]
    loose = {form.kind: form for form in layer_forms(layer, 0.5) if form.error > 0}
    assert {"channel", "separable", "tucker"} <= set(loose)
    kernel = np.asarray(layer.kernel)
    for kind, form in loose.items():
        assert 0.01 < form.error <= 0.5, form
        folded = dprp.fold(low, forms={"it": form})
        assert _error(folded, low) > 1e-2, "an approximate form must differ"
        # The kernel it computes, read off by its responses to unit impulses.
        impulses = np.zeros((16, 9, 9, 16), "float32")
        impulses[np.arange(16), 4, 4, np.arange(16)] = 1.0
        bias = np.asarray(layer.bias)
        seen = np.asarray(folded(impulses))[:, 3:6, 3:6] - bias
        # (C, 3, 3, S), mirrored by the correlation -> (3, 3, C, S)
        computed = seen[:, ::-1, ::-1].transpose(1, 2, 0, 3)
        error = np.linalg.norm(computed - kernel) / np.linalg.norm(kernel)
        assert error == pytest.approx(form.error, rel=1e-2), kind
    for wrong in (-0.1, 1.0):
        with pytest.raises(ValueError, match=rf"`tolerance`.*{wrong}"):
            layer_forms(layer, wrong)


def test_tucker_agrees_with_tensorly() -> None:
    import tensorly

    kernel = np.random.default_rng(2).normal(size=(3, 3, 6, 7))
    ours = tucker2(kernel, (4, 5))
    core, factors = tensorly.decomposition.partial_tucker(
        kernel, rank=[4, 5], modes=[2, 3], init="svd", n_iter_max=50
    )[0]
    theirs = tensorly.tenalg.multi_mode_dot(core, factors, modes=[2, 3])
    error = np.linalg.norm(ours.kernel() - kernel)
    assert error == pytest.approx(np.linalg.norm(theirs - kernel), rel=1e-4)
    assert 0.1 * np.linalg.norm(kernel) < error
    assert tucker_ranks(kernel, 1e-9) == (6, 7)
    assert tucker_ranks(ours.kernel(), 1e-6) == (4, 5)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    kind=st.sampled_from(KINDS),
    channels=st.integers(1, 5),
    filters=st.integers(1, 5),
    rank=st.integers(1, 2),
    strides=st.integers(1, 2),
    padding=st.sampled_from(["same", "valid"]),
)
def test_random_weights_have_the_shapes_that_a_form_stores(
    kind: str, channels: int, filters: int, rank: int, strides: int, padding: str
) -> None:
    model = _model(2, 8, channels, filters, strides=strides, padding=padding, use_bias=False)
    low = dprp.factorize(model)
    layer = low.get_layer("it")
    ranks = {
        "dense": (),
        "tucker": (min(rank, channels), min(rank, filters)),
    }.get(kind, (min(rank, filters),))
    form = Form(kind, ranks)
    inputs = keras.Input((8, 8, channels))
    weights = random_weights(layer.kernel_shape, form, seed=5)
    built = keras.Model(inputs, assemble(layer, form, weights)(inputs))
    assert built.output_shape == low.output_shape
    assert built.count_params() == form.parameters(layer.kernel_shape)
    assert model_cost(built).macs == form.macs(layer.kernel_shape, (8, 8), built.output_shape[1:-1])


def test_what_a_layer_cannot_take_is_said() -> None:
    solid = dprp.factorize(_model(3, 5, padding="same"), ranks=2).get_layer("it")
    assert "three-dimensional" in str(obstacle(solid, "summed"))
    assert obstacle(solid, "tucker") is None
    uneven = dprp.factorize(_model(strides=(1, 2)), ranks=2).get_layer("it")
    assert "equal strides" in str(obstacle(uneven, "concatenated"))
    point = dprp.factorize(_model(kernel_size=1), ranks=2).get_layer("it")
    assert "one position" in str(obstacle(point, "separable"))
    low = dprp.factorize(_model(), decomposition="channel", ranks=2)
    for asked, message in (
        ("summed", r"own factors.*'summed'.*'it'"),
        (Form("separable", (1000,)), r"1\.\.12.*separable 1000"),
        ("tucker", r"'tucker'.*'it'"),
    ):
        with pytest.raises(ValueError, match=message):
            dprp.fold(low, forms={"it": asked})
    for call, message in (
        (lambda: Form("tucker", (3,)), r"`ranks`.*2 positive.*\(3,\)"),
        (lambda: Form("channel", (0,)), r"`ranks`.*\(0,\)"),
        (lambda: Form("channel", 3), r"`ranks`.*ranks=3"),
        (lambda: Form("channel", (2.5,)), r"`ranks`.*2\.5"),
        (lambda: dprp.fold(low, form=fold_plan(Form("dense"))), r"fold\(model, plan=plan\)"),
        (lambda: Form.from_dict({"kind": "dense"}), r"`ranks`"),
    ):
        with pytest.raises(ValueError, match=message):
            _call(call)


def test_forms_take_what_json_and_arithmetic_give() -> None:
    assert Form("tucker", [np.int64(3), 4]) == Form("tucker", (3, 4))  # type: ignore[arg-type]
    assert json.dumps(Form("channel", (np.int64(3),)).as_dict()["ranks"]) == "[3]"


def test_a_layer_called_with_a_training_flag_folds() -> None:
    inputs = keras.Input((9, 9, 4))
    outputs = layers.Conv2D(6, 3, padding="same", name="it")(inputs, training=False)
    low = dprp.factorize(keras.Model(inputs, outputs), ranks=2)
    for form in layer_forms(low.get_layer("it")):
        assert _error(dprp.fold(low, forms={"it": form}), low) < TOLERANCE


def test_a_name_that_a_stage_needs_may_be_taken() -> None:
    inputs = keras.Input((9, 9, 4))
    x = layers.Conv2D(6, 3, padding="same", name="it")(inputs)
    x = layers.Conv2D(6, 3, padding="same", name="it_stage1")(x)
    low = dprp.factorize(keras.Model(inputs, x), decomposition="channel", ranks=2)
    folded = dprp.fold(low, form="two_stage")
    assert [layer.name for layer in folded.layers[1:]] == [
        "it_stage1_1",
        "it",
        "it_stage1_stage1",
        "it_stage1",
    ]
    assert _error(folded, low) < TOLERANCE


def test_factors_that_are_not_finite_are_named() -> None:
    low = dprp.factorize(_model(padding="same"), ranks=2)
    low.get_layer("it").u.assign(low.get_layer("it").u * np.nan)
    for call in (lambda: dprp.fold(low), lambda: layer_sites(low)):
        with pytest.raises(ValueError, match=r"finite.*`u`.*'it'"):
            _call(call)


def _call(function: Callable[[], Any]) -> None:
    function()


def test_a_plan_saves_loads_and_is_applied(tmp_path: Path) -> None:
    low = dprp.factorize(_model(padding="same"), ranks=2)
    plan = fold_plan(Form("summed", (2,)))
    path = plan.save(tmp_path / "plan.json")
    assert FoldPlan.load(path) == plan
    assert "summed 2" in str(plan)
    assert "measured on noise" in str(plan)
    assert _error(dprp.fold(low, plan=path), low) < TOLERANCE
    folded = dprp.fold(low, plan=plan)
    assert [type(layer).__name__ for layer in folded.layers].count("DepthwiseConv2D") == 2
    assert "Add" in [type(layer).__name__ for layer in folded.layers]
    assert _error(folded, low) < TOLERANCE
    assert dprp.choose_forms(low, plan=plan)[0].form == "summed"
    # A form asked for by name wins over the plan.
    assert dprp.choose_forms(low, forms={"it": "dense"}, plan=plan)[0].form == "dense"


def test_a_plan_for_other_weights_or_layers_is_refused() -> None:
    low = dprp.factorize(_model(padding="same"), ranks=3)
    other_rank = fold_plan(Form("summed", (2,)))
    other_kernel = fold_plan(Form("summed", (3,)), 3, (5, 5, 4, 6))
    for stale in (other_rank, other_kernel):
        with pytest.raises(ValueError, match=r"`plan`.*at their ranks.*\['it'\]"):
            dprp.fold(low, plan=stale)
    for form in (Form("separable", (1,)), Form("summed", (2,))):
        with pytest.raises(ValueError, match=rf"`plan`.*weights of this model.*{form}"):
            dprp.fold(low, plan=fold_plan(form, rank=3))
    renamed = keras.Sequential(
        [keras.Input((9, 9, 4)), layers.Conv2D(6, 3, padding="same", name="other")]
    )
    with pytest.raises(ValueError, match=r"`plan`.*\['it', 'other'\]"):
        dprp.fold(dprp.factorize(renamed, ranks=2), plan=fold_plan(Form("summed", (2,))))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda values: values.pop("layers"), "layers"),
        (lambda values: values.update(version=99), "version"),
        (lambda values: values["layers"][0].update(form="three"), "`kind`"),
        (lambda values: values["layers"][0].update(ranks=[7]), "without"),
        (lambda values: values["layers"][0]["candidates"].clear(), "without"),
        (lambda values: values["layers"][0]["candidates"].reverse(), "dense form as first"),
        (lambda values: values.update(dense_cost="much"), "much"),
    ],
)
def test_a_damaged_plan_is_refused(
    tmp_path: Path, damage: Callable[[dict[str, Any]], Any], message: str
) -> None:
    path = fold_plan(Form("summed", (2,))).save(tmp_path / "plan.json")
    values = json.loads(path.read_text(encoding="utf-8"))
    damage(values)
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        FoldPlan.load(path)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="JSON"):
        FoldPlan.load(path)
