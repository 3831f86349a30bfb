"""Layers, weights and batches at the edge of what there is: everything stays finite and exact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import dprp_tf as dprp
from dprp_tf import decomposition
from dprp_tf.layers import SVDDense
from dprp_tf.training import regularizers
from dprp_tf.training.divergence import broken_weights
from dprp_tf.training.resizing import resize
from dprp_tf.training.retraction import TrainedFactors, retract

pytestmark = pytest.mark.backend
CLASSES = 3
SIZE, CHANNELS = 4, 6


def _np(value: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(value))


def _kernels() -> dict[str, np.ndarray]:
    """3x3 kernels (3, 3, channels, filters), each degenerate in its own way."""
    rng = np.random.default_rng(8)
    shape = (3, 3, CHANNELS, CHANNELS)
    orthonormal = np.linalg.qr(rng.standard_normal((CHANNELS * CHANNELS, 9)))[0]
    random = 0.3 * rng.standard_normal(shape)
    duplicated = random.copy()
    duplicated[..., 1:] = random[..., :1]
    one = np.einsum("i,j,k,l->ijkl", *(rng.standard_normal(size) for size in shape), optimize=True)
    kernels = {
        "zeros": np.zeros(shape),
        "equal_values": orthonormal.T.reshape(shape),
        "rank_one": one,
        "duplicates": duplicated,
        "constant": np.full(shape, 0.1),
        "tiny": 1e-30 * random,
    }
    return {name: kernel.astype("float32") for name, kernel in kernels.items()}


def _plain(names: list[str] | None = None) -> keras.Model:
    """Every degenerate layer beside the others: by kernel, filters, size or inputs."""
    keras.utils.set_random_seed(6)
    inputs = keras.Input((SIZE, SIZE, CHANNELS), name="image")
    branches = []
    kernels = {n: k for n, k in _kernels().items() if names is None or n in names}
    for name in kernels:
        branches.append(keras.layers.Conv2D(CHANNELS, 3, padding="same", name=name)(inputs))
    if names is None:
        last = branches[-1]
        one = keras.layers.Conv2D(1, 3, padding="same", name="one_filter")(inputs)
        one = keras.layers.Conv2D(CHANNELS, 3, padding="same", name="one_channel")(one)
        point = keras.layers.Conv2D(CHANNELS, 1, name="pointwise")(last)
        wide = keras.layers.Conv2D(CHANNELS, 7, padding="same", name="larger_than_input")(inputs)
        branches += [one, point, wide]
    x = keras.layers.Concatenate(name="together")(branches)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.GlobalAveragePooling2D(keepdims=True, name="pool")(x)
    x = keras.layers.Conv2D(5, 3, padding="same", activation="relu", name="on_one_pixel")(x)
    x = keras.layers.Dense(1, name="one_unit")(keras.layers.Flatten(name="flat")(x))
    outputs = keras.layers.Dense(CLASSES, name="head")(x)
    model = keras.Model(inputs, outputs)
    for name, kernel in kernels.items():
        model.get_layer(name).kernel.assign(kernel)
    return model


def _data(samples: int = 9) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((samples, SIZE, SIZE, CHANNELS)).astype("float32")
    x[0] = 0.0
    x[1:3] = 1.0
    return x, rng.integers(0, CLASSES, samples)


def _compile(model: keras.Model) -> keras.Model:
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


# --- factorize, fold ---------------------------------------------------------------------------


@pytest.mark.long_on_jax
@pytest.mark.parametrize("matricization", decomposition.MATRICIZATIONS)
def test_factorized_and_folded_it_computes_the_same(matricization: str) -> None:
    plain = _plain()
    x, _ = _data()
    expected = _np(plain(x))
    lowrank = dprp.factorize(plain, decomposition=matricization)
    assert broken_weights(lowrank) == []
    assert len(lowrank.low_rank_layers) == 13
    np.testing.assert_allclose(_np(lowrank(x)), expected, atol=2e-5)
    # Cut to what is not zero nothing is lost, whatever the values are.
    numeric = {}
    for layer in lowrank.low_rank_layers:
        s = layer.factors.s
        assert np.all(s >= 0)
        assert np.all(np.diff(s) <= 0)
        numeric[layer] = max(1, int(np.sum(s > 1e-6 * max(s[0], 1e-6))))
    ranks = {layer.name: rank for layer, rank in numeric.items()}
    assert ranks["zeros"] == ranks["rank_one"] == ranks["one_unit"] == 1
    resize(lowrank, numeric)
    assert lowrank.ranks == ranks
    np.testing.assert_allclose(_np(lowrank(x)), expected, atol=2e-5)
    for form in ("two_stage", "dense", "smallest", "fast"):
        folded = dprp.fold(lowrank, form=form)
        assert broken_weights(folded) == []
        np.testing.assert_allclose(_np(folded(x)), expected, atol=2e-5, err_msg=form)


# --- training ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("structure", ["retraction", "smoothed", "paper"])
@pytest.mark.long_on_jax
def test_every_structure_trains_and_prunes_them(structure: str) -> None:
    x, y = _data()
    names = None if structure == "retraction" else ["zeros", "equal_values", "rank_one"]
    plain = _plain(names)
    model = _compile(
        dprp.factorize(
            plain, settings=dprp.DPRPSettings(structure=structure, orthogonality_weight=1.0)
        )
    )
    before = model.ranks
    # Nine images in batches of four: the last batch has one.
    pruning = dprp.RankPruning(start_epoch=1)
    history = model.fit(x, y, batch_size=4, epochs=2, verbose=0, callbacks=[pruning]).history
    assert np.all(np.isfinite([v for values in history.values() for v in values]))
    assert broken_weights(model) == []
    assert sum(model.ranks.values()) < sum(before.values())
    assert all(rank >= 1 for rank in model.ranks.values())
    if structure != "retraction":
        return
    for layer in model.low_rank_layers:
        for q in (layer.factors.u, layer.factors.v):
            np.testing.assert_allclose(q.T @ q, np.eye(layer.rank), atol=2e-5, err_msg=layer.name)
        assert np.all(np.diff(layer.factors.s) <= 1e-6), layer.name
        assert np.all(layer.factors.s >= 0), layer.name
    folded = dprp.fold(model)
    np.testing.assert_allclose(_np(folded(x)), _np(model(x)), atol=1e-5)


@pytest.mark.long_on_jax
def test_batches_of_one_and_of_none() -> None:
    x, y = _data()
    model = _compile(dprp.factorize(_plain(["zeros", "equal_values"])))
    model.fit(x[:2], y[:2], batch_size=1, epochs=1, verbose=0)
    assert broken_weights(model) == []
    for computing in (model, dprp.fold(model)):
        assert computing.predict(x[:1], verbose=0).shape == (1, CLASSES)


@pytest.mark.parametrize("layers", ["convolution", "dense"])
@pytest.mark.long_on_jax
def test_no_rows_are_treated_as_a_plain_model_treats_them(layers: str) -> None:
    inputs = keras.Input((5, 5, 2))
    x = keras.layers.Conv2D(3, 3, name="conv")(inputs) if layers == "convolution" else inputs
    plain = keras.Model(inputs, keras.layers.Dense(4, name="head")(keras.layers.Flatten()(x)))
    lowrank = dprp.factorize(plain, ranks=2)
    none = np.zeros((0, 5, 5, 2), "float32")

    def called(model: keras.Model) -> Any:
        return tuple(model(none).shape)

    def predicted(model: keras.Model) -> Any:
        return model.predict(none, verbose=0).shape

    def outcome(compute: Callable[[keras.Model], Any], model: keras.Model) -> Any:
        # predict() refuses to begin without a batch, and TensorFlow's convolution without rows.
        try:
            return compute(model)
        except Exception as error:
            return type(error)

    if layers == "dense" or keras.backend.backend() == "jax":
        assert called(lowrank) == (0, 4)
    folded = dprp.fold(lowrank)
    # On JAX Keras leaves a model empty after a predict() that refused: that one comes last.
    for compute in (called, predicted):
        expected = outcome(compute, plain)
        assert outcome(compute, lowrank) == expected
        assert outcome(compute, folded) == expected


# --- sizes of weights --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1e-30, 1e30, 1e37])
def test_weights_whose_squares_are_no_float32(size: float, gradient: Any) -> None:
    rng = np.random.default_rng(0)
    kernel = (size * rng.uniform(0.5, 1.0, (9, 5))).astype("float32")
    factors = decomposition.decompose(kernel)
    np.testing.assert_allclose(factors.matrix(), kernel, rtol=1e-5, atol=1e-43)
    s = factors.s
    for penalty in (
        regularizers.TailPenalty(0.1),
        regularizers.L1Penalty(),
        regularizers.L2Penalty(),
        regularizers.FunnelPenalty(),
        lambda values: regularizers.sorting(values[::-1]),
    ):
        assert np.isfinite(float(penalty(s))), penalty
        assert np.all(np.isfinite(gradient(penalty, s))), penalty
    # The tail's share of the norm does not depend on the size.
    if size > 1:
        same = float(regularizers.TailPenalty(0.1)(s / np.float32(size)))
        assert float(regularizers.TailPenalty(0.1)(s)) == pytest.approx(same, rel=1e-4)
    (new,), _ = retract([TrainedFactors(*factors)])
    parts = [_np(part) for part in new]
    assert all(np.all(np.isfinite(part)) for part in parts)
    np.testing.assert_allclose(parts[1], s, rtol=1e-3, atol=1e-38)
    for q in (parts[0], parts[2]):
        np.testing.assert_allclose(q.T @ q, np.eye(5), atol=2e-5)
    layer = SVDDense(5, use_bias=False)
    layer.start_from(decomposition.decompose(kernel.T))
    layer.build((None, 9))
    np.testing.assert_allclose(_np(layer.kernel), kernel, rtol=1e-4, atol=1e-43)


@pytest.mark.long_on_jax
def test_a_model_of_huge_weights_is_factorized_pruned_and_folded() -> None:
    inputs = keras.Input((6,))
    plain = keras.Model(inputs, keras.layers.Dense(5, name="huge")(inputs))
    rng = np.random.default_rng(3)
    kernel = (1e30 * rng.uniform(0.5, 1.0, (6, 5))).astype("float32")
    plain.set_weights([kernel, np.zeros(5)])
    lowrank = dprp.factorize(plain)
    x = rng.uniform(0.1, 1.0, (4, 6)).astype("float32")
    expected = _np(plain(x))
    np.testing.assert_allclose(_np(lowrank(x)), expected, rtol=1e-5)
    terms = lowrank.structural_losses()
    assert all(np.isfinite(float(value)) for value in terms.values())
    pruning = dprp.RankPruning(threshold=0.5)
    pruning.set_model(lowrank)
    pruning.on_epoch_begin(0)
    resize(lowrank, pruning.pending_ranks())
    assert lowrank.ranks == {"huge": 1}
    folded = dprp.fold(lowrank)
    np.testing.assert_allclose(_np(folded(x)), _np(lowrank(x)), rtol=1e-5)
    np.testing.assert_allclose(_np(folded(x)), expected, rtol=0.5)


# --- shapes ------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(
    image=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    window=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    channels=st.integers(1, 3),
    filters=st.integers(1, 4),
    batch=st.integers(1, 2),
    matricization=st.sampled_from(decomposition.MATRICIZATIONS),
    kind=st.sampled_from(["zeros", "ones", "random_normal"]),
)
@example((1, 1), (1, 1), 1, 1, 1, "spatial", "random_normal")
@example((1, 1), (6, 6), 1, 1, 1, "separable", "zeros")
@example((1, 5), (6, 1), 3, 1, 2, "channel", "ones")
@pytest.mark.long_on_jax
def test_any_window_on_any_image(
    image: tuple[int, int],
    window: tuple[int, int],
    channels: int,
    filters: int,
    batch: int,
    matricization: str,
    kind: str,
) -> None:
    inputs = keras.Input((*image, channels))
    outputs = keras.layers.Conv2D(
        filters, window, padding="same", kernel_initializer=kind, name="conv"
    )(inputs)
    plain = keras.Model(inputs, outputs)
    x = np.random.default_rng(batch).standard_normal((batch, *image, channels)).astype("float32")
    expected = _np(plain(x))
    lowrank = dprp.factorize(plain, decomposition=matricization)
    layer = lowrank.low_rank_layers[0]
    assert layer.broken_factor is None
    np.testing.assert_allclose(_np(lowrank(x)), expected, atol=1e-4)
    for form in ("two_stage", "dense"):
        np.testing.assert_allclose(_np(dprp.fold(lowrank, form=form)(x)), expected, atol=1e-4)
    (new,), _ = retract([TrainedFactors(*layer.factors)])
    product = (_np(new.u) * _np(new.s)) @ _np(new.v).T
    np.testing.assert_allclose(product, layer.factors.matrix(), atol=1e-4)


# --- export ------------------------------------------------------------------------------------


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="exporting needs the TensorFlow backend"
)
@pytest.mark.long_on_jax
def test_exported_they_compute_the_same(tmp_path: Path) -> None:
    from dprp_tf import deploy

    names = ["zeros", "equal_values", "rank_one", "tiny"]
    folded = dprp.fold(dprp.factorize(_plain(names), ranks=1), form="two_stage")
    for export, name in (
        (deploy.export, "small.tflite"),
        (deploy.export, "small.onnx"),
    ):
        # The exporters compare the file's outputs with the model's and raise if they differ.
        assert "same outputs" in str(export(folded, tmp_path / name))
