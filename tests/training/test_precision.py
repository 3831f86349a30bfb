"""Mixed precision: layers compute in half, factors, losses and rank decisions stay in float32."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import dprp_tf as dprp
from dprp_tf import decomposition
from dprp_tf.keras_internals.optimizers import momentum_slots
from dprp_tf.layers import SVDConv2D, SVDDense
from dprp_tf.training.divergence import broken_weights
from dprp_tf.training.retraction import TrainedFactors, retract

pytestmark = pytest.mark.backend
POLICIES = ("mixed_float16", "mixed_bfloat16")
CLASSES = 3


@pytest.fixture
def policy(request: pytest.FixtureRequest) -> Iterator[str]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy(before)


each_policy = pytest.mark.parametrize("policy", POLICIES, indirect=True)


def _np(value: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(value))


def _dtype(value: Any) -> str:
    return str(keras.backend.standardize_dtype(value.dtype))


def _plain() -> keras.Model:
    keras.utils.set_random_seed(4)
    inputs = keras.Input((6, 6, 2))
    x = keras.layers.Conv2D(8, 3, padding="same", name="conv")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.ReLU(name="relu")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    outputs = keras.layers.Dense(CLASSES, name="head", dtype="float32")(x)
    return keras.Model(inputs, outputs)


def _compiled(model: keras.Model, **options: Any) -> Any:
    model.compile(
        options.pop("optimizer", None) or keras.optimizers.SGD(0.1, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **options,
    )
    return model


def _data(samples: int = 32) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    y = rng.integers(0, CLASSES, samples)
    x = rng.standard_normal((samples, 6, 6, 2)) + y[:, None, None, None]
    return x.astype("float32"), y


# --- a layer -----------------------------------------------------------------------------------


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_the_kernel_is_rounded_once_as_the_dense_layers(
    half: str, rng: np.random.Generator
) -> None:
    units, inputs = 48, 64
    single, mixed = SVDDense(units), SVDDense(units, dtype=f"mixed_{half}")
    dense = keras.layers.Dense(units, dtype=f"mixed_{half}")
    for layer in (single, mixed, dense):
        layer.build((None, inputs))
    mixed.set_weights(single.get_weights())
    dense.set_weights([_np(single.kernel), _np(single.bias)])
    x = rng.standard_normal((200, inputs)).astype("float32")
    exact = _np(single(x))

    def error(result: Any) -> float:
        assert _dtype(result) == half
        return float(np.linalg.norm(_np(result).astype("float32") - exact))

    ours = error(mixed(x))
    assert ours == pytest.approx(error(dense(x)), rel=0.01)
    # Three roundings of the factors and those of their product instead of one of the kernel.
    u, s, v = (keras.ops.cast(value, half) for value in (mixed.u, mixed.s, mixed.v))
    kernel = keras.ops.transpose(keras.ops.matmul(u * s, keras.ops.transpose(v)))
    naive = error(keras.ops.matmul(keras.ops.cast(x, half), kernel))
    assert naive > 1.3 * ours


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["mixed", "pure"])
def test_gradients_of_dead_and_tiny_values_stay_finite(
    half: str, kind: str, layer_gradients: Any
) -> None:
    # 1 / (s^2 + ...) of the balanced gradients is 1e6 for a kernel of zeros: infinite in float16.
    name = f"mixed_{half}" if kind == "mixed" else half
    layer = SVDConv2D(4, 3, balanced_gradients=True, dtype=name)
    layer.build((None, 5, 5, 2))
    layer.s.assign(np.zeros(layer.rank))
    x = np.ones((2, 5, 5, 2), "float32")
    assert _dtype(layer.s) == ("float32" if kind == "mixed" else half)
    assert _dtype(layer.kernel) == "float32"
    assert _dtype(layer(x)) == half
    gradients = layer_gradients(
        layer, lambda: keras.ops.sum(keras.ops.cast(layer(x), "float32") * 1e-3)
    )
    assert all(np.all(np.isfinite(g.astype("float32"))) for g in gradients)


def test_half_precision_weights_become_arrays_that_can_be_computed_with() -> None:
    for half in ("float16", "bfloat16"):
        layer = SVDConv2D(4, 3, dtype=half)
        layer.build((None, 5, 5, 2))
        assert {part.dtype for part in layer.factors} == {np.dtype("float32")}
        order, signs = decomposition.canonical_order(layer.factors.s)
        assert np.all(np.diff(layer.factors.s[order]) <= 0)
        assert set(signs) == {1.0}
        again = decomposition.decompose(layer.factors.matrix())
        np.testing.assert_allclose(again.s, layer.factors.s, atol=0.02 * again.s[0])


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_retraction_computes_in_single_and_gives_back_what_it_was_given(
    half: str, rng: np.random.Generator
) -> None:
    # Columns of length 300: their Gram matrix, 90,000, is beyond float16.
    u, v = (np.linalg.qr(rng.standard_normal((n, 3)))[0] for n in (40, 9))
    s = np.array([3.0, 2.0, 1.0])
    parts = [keras.ops.cast(part, half) for part in (300 * u, s / 300, v)]
    momentum = TrainedFactors(*(0 * part for part in parts))
    (new,), (carried,) = retract([TrainedFactors(*parts)], [momentum])
    assert carried is not None
    assert {_dtype(part) for part in (*new, *carried)} == {half}
    np.testing.assert_allclose(_np(new.s).astype("float32"), s, rtol=0.02)
    gram = _np(new.u).astype("float32").T @ _np(new.u).astype("float32")
    np.testing.assert_allclose(gram, np.eye(3), atol=0.02)


# --- a model -----------------------------------------------------------------------------------


@pytest.mark.parametrize("structure", ["retraction", "paper"])
@each_policy
def test_terms_and_rank_decisions_are_those_of_single_precision(
    policy: str, structure: str
) -> None:
    mixed = dprp.factorize(_plain(), settings=dprp.DPRPSettings(structure=structure))
    keras.config.set_dtype_policy("float32")
    single = dprp.factorize(_plain(), settings=dprp.DPRPSettings(structure=structure))
    keras.config.set_dtype_policy(policy)
    assert mixed.get_layer("conv").compute_dtype == policy.removeprefix("mixed_")
    # Factors that float16 can't hold: 2^-12 apart, and a Gram matrix of 1e5.
    rng = np.random.default_rng(9)
    for layer in single.low_rank_layers:
        rank = layer.rank
        layer.u.assign(100 * rng.standard_normal(layer.u.shape))
        layer.s.assign(1.0 * 0.1001 ** np.arange(rank))
    mixed.set_weights(single.get_weights())
    terms = mixed.structural_losses()
    assert {_dtype(value) for value in terms.values()} == {"float32"}
    for name, value in single.structural_losses().items():
        assert float(terms[name]) == pytest.approx(float(value), rel=1e-6), name
        assert np.isfinite(float(value))
    pruning = [dprp.RankPruning(threshold=0.1) for _ in range(2)]
    found = []
    for callback, model in zip(pruning, (mixed, single), strict=True):
        callback.set_model(model)
        callback.on_epoch_begin(0)
        found.append({layer.name: rank for layer, rank in callback.pending_ranks().items()})
    assert found[0] == found[1]
    # 0.1001 rounds to 0.1001 in float32 and falls below 0.1 in bfloat16: nothing is pending.
    assert found[0] == {}


@pytest.mark.parametrize(
    ("policy", "jit_compile"),
    [
        pytest.param("mixed_float16", False, marks=pytest.mark.long_on_jax),
        pytest.param("mixed_bfloat16", False, marks=pytest.mark.long_on_jax),
        pytest.param("mixed_float16", True, marks=pytest.mark.long),
    ],
    ids=["float16", "bfloat16", "float16 compiled by XLA"],
    indirect=["policy"],
)
def test_training_shrinks_saves_reloads_and_folds(
    policy: str, jit_compile: bool, tmp_path: Path
) -> None:
    x, y = _data()
    model = _compiled(
        dprp.factorize(_plain(), settings=dprp.DPRPSettings(compression_weight=2.0, threshold=0.4)),
        jit_compile=jit_compile,
    )
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (policy == "mixed_float16")
    before = sum(model.ranks.values())
    pruning = dprp.RankPruning(threshold=0.4, start_epoch=1, stop_epoch=2)
    history = model.fit(
        x, y, batch_size=8, epochs=3, verbose=0, shuffle=False, callbacks=[pruning]
    ).history
    assert history["app_loss"][-1] < history["app_loss"][0]
    assert sum(model.ranks.values()) < before
    assert pruning.shrinks
    for layer in model.low_rank_layers:
        factors = (layer.u, layer.s, layer.v)
        assert {_dtype(value) for value in factors} == {"float32"}
        slots = momentum_slots(model.optimizer, factors)
        assert [tuple(slot.shape) for slot in slots] == [tuple(f.shape) for f in factors]
        assert {_dtype(slot) for slot in slots} == {"float32"}
        for q in (layer.factors.u, layer.factors.v):
            np.testing.assert_allclose(q.T @ q, np.eye(layer.rank), atol=1e-5)
        assert np.all(np.diff(layer.factors.s) <= 1e-6)

    model.save(tmp_path / "mixed.keras")
    # As in a fresh process, whose policy is Keras' own.
    keras.config.set_dtype_policy("float32")
    loaded = keras.saving.load_model(tmp_path / "mixed.keras")
    keras.config.set_dtype_policy(policy)
    assert loaded.ranks == model.ranks
    assert loaded.dtype_policy.name == policy
    # Keras does not save an input's policy, which computes nothing.
    pairs = list(zip(loaded.layers, model.layers, strict=True))[1:]
    assert all(ours.dtype_policy.name == theirs.dtype_policy.name for ours, theirs in pairs)
    assert type(loaded.optimizer) is type(model.optimizer)
    assert len(loaded.optimizer.variables) == len(model.optimizer.variables)
    for ours, theirs in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(_np(ours), _np(theirs), err_msg=ours.path)
    if scaled:
        assert float(loaded.optimizer.dynamic_scale) == float(model.optimizer.dynamic_scale)

    folded = dprp.fold(loaded)
    policies = {layer.name: layer.dtype_policy.name for layer in folded.layers}
    assert policies["norm"] == policy
    assert policies["head"] == "float32"
    assert set(policies.values()) == {policy, "float32"}
    outputs = loaded.predict(x, verbose=0)
    assert np.abs(folded.predict(x, verbose=0) - outputs).max() < 0.05 * np.abs(outputs).max()
    # Reloaded it goes on as the one in memory.
    after = [m.train_on_batch(x[:8], y[:8], return_dict=True)["loss"] for m in (model, loaded)]
    assert after[0] == pytest.approx(after[1], rel=1e-3)


@pytest.mark.parametrize("policy", ["mixed_float16"], indirect=True)
@pytest.mark.long_on_jax
@pytest.mark.long
def test_compiled_by_xla_a_step_is_the_same(policy: str) -> None:
    x, y = _data(8)
    losses = []
    for jit_compile in (False, True):
        model = _compiled(dprp.factorize(_plain()), jit_compile=jit_compile)
        steps = [model.train_on_batch(x, y, return_dict=True) for _ in range(3)]
        assert broken_weights(model) == []
        losses.append([[step[name] for name in ("app_loss", "comp_loss")] for step in steps])
    np.testing.assert_allclose(losses[1], losses[0], rtol=5e-3)
    assert losses[0][2][0] < losses[0][0][0]


@pytest.mark.long_on_jax
def test_the_policy_is_the_given_models_even_under_another() -> None:
    keras.config.set_dtype_policy("mixed_float16")
    plain = _plain()
    keras.config.set_dtype_policy("float32")
    lowrank = dprp.factorize(plain)
    assert lowrank.dtype_policy.name == plain.dtype_policy.name == "mixed_float16"
    optimizer = _compiled(lowrank).optimizer
    assert isinstance(optimizer, keras.optimizers.LossScaleOptimizer)


# --- loss scaling ------------------------------------------------------------------------------


@pytest.mark.parametrize("period", [1, 3])
@pytest.mark.long_on_jax
def test_a_skipped_step_changes_nothing(period: int) -> None:
    x, y = _data(8)
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.1, momentum=0.9), initial_scale=2.0**10
    )
    model = _compiled(
        dprp.factorize(_plain(), settings=dprp.DPRPSettings(retraction_period=period)),
        optimizer=optimizer,
        jit_compile=False,
    )
    for _ in range(2 * period + 1):
        model.train_on_batch(x, y)
    iterations = int(optimizer.inner_optimizer.iterations)
    assert iterations == 2 * period + 1
    optimizer.dynamic_scale.assign(3e38)
    watched = [
        (layer, [_np(f) for f in (layer.u, layer.s, layer.v)], _np(layer.kernel))
        for layer in model.low_rank_layers
    ]
    momenta = {
        layer.name: [_np(m) for m in momentum_slots(optimizer, [layer.u, layer.s, layer.v])]
        for layer in model.low_rank_layers
    }
    loss = model.train_on_batch(x * 1e4, y, return_dict=True)["loss"]
    assert np.isfinite(loss)
    assert float(optimizer.dynamic_scale) == pytest.approx(1.5e38)
    assert int(optimizer.inner_optimizer.iterations) == iterations
    for layer, factors, kernel in watched:
        np.testing.assert_allclose(_np(layer.kernel), kernel, atol=1e-6)
        assert np.abs(factors[0] - _np(layer.u)).max() < 1e-4
        slots = momentum_slots(optimizer, [layer.u, layer.s, layer.v])
        for slot, old in zip(slots, momenta[layer.name], strict=True):
            np.testing.assert_allclose(_np(slot), old, atol=1e-3 * np.abs(old).max() + 1e-7)
    optimizer.dynamic_scale.assign(2.0**10)
    model.train_on_batch(x, y)
    assert int(optimizer.inner_optimizer.iterations) == iterations + 1
    assert np.abs(_np(watched[0][0].kernel) - watched[0][2]).max() > 1e-5


# --- export ------------------------------------------------------------------------------------


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="exporting needs the TensorFlow backend"
)
@pytest.mark.parametrize("policy", ["mixed_float16"], indirect=True)
@pytest.mark.parametrize("runtime", ["tflite", "onnx"])
@pytest.mark.long_on_jax
def test_exports_are_single_precision_and_say_so(policy: str, runtime: str, tmp_path: Path) -> None:
    from dprp_tf import deploy

    folded = dprp.fold(dprp.factorize(_plain(), ranks=2))
    export = {"tflite": deploy.export, "onnx": deploy.export}[runtime]
    result = export(folded, tmp_path / f"small.{runtime}")
    assert "computes in float16" in str(result)
    assert "same weights in float32" in str(result)
