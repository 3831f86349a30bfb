"""The soft model that LeSS learns with, against independent truths."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import dprp_tf as dprp
from dprp_tf.channels import Places, channel_groups, follow, places_of
from dprp_tf.conversion.calibration import input_moments
from dprp_tf.decomposition import KernelTruncation, regular_moments
from dprp_tf.selection.methods.less import LeSS
from dprp_tf.selection.methods.soft_cut import SoftCut, SoftSettings
from dprp_tf.selection.solving.soft_costs import SoftCosts
from dprp_tf.training.divergence import DivergenceError

SHARP = (1e4, 1e4, 0.0)


def _model(seed: int = 0) -> keras.Model:
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 3, padding="same", name="a")(inputs)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    y = layers.Conv2D(8, 3, padding="same", activation="relu", name="b")(x)
    x = layers.Concatenate()([layers.Add()([x, y]), layers.Conv2D(4, 1, name="c")(y)])
    x = layers.Conv2DTranspose(6, 2, strides=2, activation="relu", name="up")(x)
    x = layers.SeparableConv2D(5, 3, strides=2, activation="relu", name="apart")(x)
    model = keras.Model(inputs, layers.Dense(4, name="out")(layers.Flatten()(x)))
    rng = np.random.default_rng(seed)
    norm = model.get_layer("norm")
    for variable in norm.variables:
        variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return model


def _soft(
    model: keras.Model,
    settings: SoftSettings,
    moments: Any = None,
    bound: float = 0.5,
    decomposition: str = "channel",
) -> tuple[SoftCut, Places]:
    groups = [group for group in channel_groups(model).values() if group.prunable]
    places = places_of(model, follow(model), groups if settings.masks else [])
    factorized = [x.key for x in places.layers if x.key in ("a", "b", "c", "out")]
    costs = SoftCosts(model, places, factorized, ["macs"], decomposition=decomposition)
    return SoftCut(model, places, costs, {"macs": bound}, settings, moments), places


def _inputs(count: int = 5) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(count, 6, 6, 3)).astype("float32")


def _outputs(model: Any, x: np.ndarray) -> np.ndarray:
    return np.asarray(model(x, training=False))


@pytest.mark.backend
@pytest.mark.parametrize("decomposition", ["channel", "tucker"])
@pytest.mark.parametrize("masked", ["channels", "filters"])
@pytest.mark.parametrize("cut", ["shrink", "gate"])
def test_masks_of_one_and_thresholds_of_zero_change_nothing(
    masked: str, cut: str, decomposition: str
) -> None:
    model = _model()
    settings = SoftSettings(steepness=SHARP, masked=masked, cut=cut)
    soft, _ = _soft(model, settings, decomposition=decomposition)
    x = _inputs()
    np.testing.assert_allclose(_outputs(soft, x), _outputs(model, x), rtol=1e-3, atol=1e-4)
    kept, ranks = soft.counts()
    np.testing.assert_array_equal(kept, 1.0)
    if cut == "gate":
        assert ranks is not None
        # Pointwise and dense kernels have one unfolding.
        full = {"channel": [8, 8, 4, 4], "tucker": [3, 8, 8, 8, 4, 4]}[decomposition]
        np.testing.assert_allclose(ranks, full, rtol=0.02)


def test_masks_of_zero_are_removed_channels() -> None:
    model = _model()
    soft, places = _soft(model, SoftSettings(steepness=SHARP, cut="shrink"))
    gone = {"a": [1, 5], "c": [0, 3], "up": [2], "apart": [4]}
    masks = np.ones(places.count)
    for number, group in enumerate(places.groups):
        for name, filters in gone.items():
            if name in group.layers:
                masks[places.starts[number] + np.array(filters)] = 0
    soft.masks.assign(masks)
    x = _inputs()
    expected = _outputs(dprp.remove_channels(model, gone), x)
    # Whether or not the singular vectors know of it.
    np.testing.assert_allclose(_outputs(soft, x), expected, rtol=1e-3, atol=1e-4)
    soft.refresh()
    np.testing.assert_allclose(_outputs(soft, x), expected, rtol=1e-3, atol=1e-4)
    assert float(soft.counts()[0].sum()) == places.count - 6


def _kernel(soft: SoftCut, variable: Any) -> np.ndarray:
    """The kernel that a soft model computes with."""
    return next(np.asarray(value) for own, value in soft._cut()[2] if own is variable)


def test_filters_are_masked_and_singular_values_cut_as_in_the_thesis() -> None:
    model = _model()
    settings = SoftSettings(
        steepness=(5, 50, 4), masked="filters", cut="shrink", rank_steepness=2.0
    )
    soft, places = _soft(model, settings)
    rng = np.random.default_rng(5)
    masks = rng.uniform(0, 1.2, places.count)
    soft.masks.assign(masks)
    soft.thresholds.assign([0.1, 0.2, 0.3, 0.4])
    soft.refresh()
    _, ranks = soft.counts()
    assert ranks is not None
    for number, name in enumerate(("a", "b", "c")):
        kernel = np.array(model.get_layer(name).kernel, dtype=np.float64)
        matrix = kernel.reshape(-1, kernel.shape[-1]).T  # filters x (C k k)
        top = np.linalg.svd(matrix, compute_uv=False)[0]
        group = next(i for i, g in enumerate(places.groups) if name in g.layers)
        m = places.of(masks, group)
        m = m[: kernel.shape[-1]]
        masked = matrix / (1 + np.exp(-5 * (m - 0.5)))[:, None]
        u, s, vt = np.linalg.svd(masked, full_matrices=False)
        left = np.maximum(s - [0.1, 0.2, 0.3][number] * top, 0)
        expected = (u * left @ vt).T.reshape(kernel.shape)
        found = _kernel(soft, model.get_layer(name).kernel)
        np.testing.assert_allclose(found, expected, atol=2e-5)
        assert ranks[number] == pytest.approx(np.tanh(left * 2 / top).sum(), rel=1e-3)


@pytest.mark.parametrize("cut", ["shrink", "gate"])
def test_soft_ranks_become_the_number_of_singular_values_above(cut: str) -> None:
    model = _model()
    soft, _ = _soft(
        model,
        SoftSettings(masks=False, cut=cut, rank_steepness=1e4),
        input_moments(model, ["a", "b", "c", "out"], _inputs(40)) if cut == "gate" else None,
    )
    share = 0.3
    threshold = share if cut == "shrink" else 1 + np.log(share) / 6
    soft.thresholds.assign(np.full(4, threshold))
    _, ranks = soft.counts()
    assert ranks is not None
    for name, rank in zip(("a", "b", "c", "out"), ranks, strict=True):
        kernel = np.array(model.get_layer(name).kernel, dtype=np.float64)
        if cut == "shrink":
            s = np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]), compute_uv=False)
        else:
            # The energies of what the layer really gives, its bias left out.
            whole = keras.Model(model.inputs[0], model.get_layer(name).input)
            maps = np.asarray(whole(_inputs(40)))
            if name == "out":
                given = maps @ kernel
            else:
                layer = model.get_layer(name)
                given = np.asarray(
                    keras.ops.conv(maps, layer.kernel, padding=layer.padding), dtype=np.float64
                )
            given = given.reshape(-1, kernel.shape[-1])
            s = np.sqrt(np.linalg.eigvalsh(given.T @ given))
        assert rank == pytest.approx(int((s > share * s.max()).sum()), abs=0.02)


def _unfolded(kernel: np.ndarray, axis: int) -> np.ndarray:
    """The rows of a kernel along one of its axes, (C, L*S) or (S, L*C)."""
    return np.moveaxis(np.asarray(kernel, np.float64), axis, 0).reshape(kernel.shape[axis], -1)


def _projected(kernel: np.ndarray, axis: int, columns: np.ndarray) -> np.ndarray:
    """A kernel projected along one axis on some orthonormal columns."""
    turned = np.moveaxis(np.asarray(kernel, np.float64), axis, -1) @ columns @ columns.T
    return np.moveaxis(turned, -1, axis)


def _threshold(share: float, cut: str) -> float:
    """The threshold at which singular values below a share of the largest go."""
    return share if cut == "shrink" else 1 + np.log(share) / 6


@pytest.mark.backend
def test_two_hard_thresholds_are_the_truncated_higher_order_svd() -> None:
    model = _model()
    soft, _ = _soft(model, SoftSettings(masks=False, rank_steepness=1e4), decomposition="tucker")
    shares = {"a": (0.9, 0.5), "b": (0.8, 0.7)}
    given = [share for name in shares for share in shares[name]]
    soft.thresholds.assign([*(_threshold(share, "gate") for share in given), 0.0, 0.0])
    _, ranks = soft.counts()
    assert ranks is not None
    for number, name in enumerate(shares):
        kernel = np.array(model.get_layer(name).kernel, dtype=np.float64)
        expected, hard = kernel, []
        for axis, share in zip((-2, -1), shares[name], strict=True):
            left, values, _ = np.linalg.svd(_unfolded(kernel, axis), full_matrices=False)
            hard.append(int((values > share * values[0]).sum()))
            expected = _projected(expected, axis, left[:, : hard[-1]])
        assert hard[0] < kernel.shape[-2]
        assert hard[1] < kernel.shape[-1]
        np.testing.assert_allclose(ranks[2 * number : 2 * number + 2], hard, atol=0.02)
        found = _kernel(soft, model.get_layer(name).kernel)
        np.testing.assert_allclose(found, expected, atol=2e-5)
        ours = KernelTruncation(kernel, "tucker").kernel((hard[0], hard[1]))
        np.testing.assert_allclose(found, ours, atol=2e-5)


@pytest.mark.parametrize("masked", ["channels", "filters"])
def test_both_unfoldings_are_those_of_the_kernel_as_it_is_masked(masked: str) -> None:
    model = _model()
    settings = SoftSettings(steepness=SHARP, rank_steepness=1e4, masked=masked)
    soft, places = _soft(model, settings, decomposition="tucker")
    masks = np.ones(places.count)
    # Of the one group that a and b share, some read by b and made by both.
    group = next(number for number, g in enumerate(places.groups) if "b" in g.layers)
    gone = [1, 4, 6]
    masks[places.starts[group] + np.array(gone)] = 0
    soft.masks.assign(masks)
    soft.thresholds.assign([_threshold(0.5, "gate")] * 4 + [0.0, 0.0])
    soft.refresh()
    _, ranks = soft.counts()
    assert ranks is not None
    stay = np.setdiff1d(np.arange(8), gone)
    kernel = np.array(model.get_layer("b").kernel, dtype=np.float64)
    read = stay if masked == "channels" else np.arange(8)
    small = kernel[:, :, read][..., stay]
    hard, expected = [], small
    for axis, whole in ((-2, kernel), (-1, kernel)):
        # Thresholds are shares of the largest singular value of the kernel without masks.
        top = np.linalg.svd(_unfolded(whole, axis), compute_uv=False)[0]
        left, values, _ = np.linalg.svd(_unfolded(small, axis), full_matrices=False)
        hard.append(int((values > 0.5 * top).sum()))
        expected = _projected(expected, axis, left[:, : hard[-1]])
    np.testing.assert_allclose(ranks[2:4], hard, atol=0.02)
    found = _kernel(soft, model.get_layer("b").kernel)
    np.testing.assert_allclose(found[:, :, read][..., stay], expected, atol=2e-5)
    np.testing.assert_allclose(found[..., gone], 0, atol=2e-5)


@pytest.mark.backend
def test_with_moments_the_channels_unfolding_is_whitened_by_them() -> None:
    model = _model()
    moments = input_moments(model, ["a", "b", "c", "out"], _inputs(40))
    soft, _ = _soft(
        model, SoftSettings(masks=False, rank_steepness=1e4), moments, decomposition="tucker"
    )
    # No rank of the filters goes, nor of the other layers.
    soft.thresholds.assign([0.0, 0.0, _threshold(0.4, "gate"), 0.0, 0.0, 0.0])
    _, ranks = soft.counts()
    assert ranks is not None
    kernel = np.array(model.get_layer("b").kernel, dtype=np.float64)
    channels, positions = 8, 9
    p = regular_moments(moments["b"], channels * positions)
    # P has row c*9 + l for channel c at position l of the window.
    each = [p[np.ix_(np.arange(8) * 9 + at, np.arange(8) * 9 + at)] for at in range(9)]
    values, vectors = np.linalg.eigh(np.mean(each, axis=0))
    root = vectors * np.sqrt(values) @ vectors.T
    # (S*L, C), whitened on the side of the channels.
    left, spectrum, _ = np.linalg.svd(_unfolded(kernel, -2).T @ root, full_matrices=False)
    hard = int((spectrum > 0.4 * spectrum[0]).sum())
    assert 0 < hard < 8
    assert ranks[2] == pytest.approx(hard, abs=0.02)
    expected = (left[:, :hard] @ left[:, :hard].T @ _unfolded(kernel, -2).T).T
    found = _unfolded(_kernel(soft, model.get_layer("b").kernel), -2)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    # Kept whole, it is exact.
    other = _kernel(soft, model.get_layer("a").kernel)
    np.testing.assert_allclose(other, np.array(model.get_layer("a").kernel), atol=1e-4)


def test_removed_channels_are_exact_in_tucker_too() -> None:
    model = _model()
    moments = input_moments(model, ["a", "b", "c", "out"], _inputs(40))
    soft, places = _soft(model, SoftSettings(steepness=SHARP), moments, decomposition="tucker")
    masks = np.ones(places.count)
    number = next(at for at, g in enumerate(places.groups) if "a" in g.layers)
    masks[places.starts[number] + np.array([1, 5])] = 0
    soft.masks.assign(masks)
    x = _inputs()
    expected = _outputs(dprp.remove_channels(model, {"a": [1, 5]}), x)
    np.testing.assert_allclose(_outputs(soft, x), expected, rtol=5e-3, atol=5e-4)
    soft.refresh()
    np.testing.assert_allclose(_outputs(soft, x), expected, rtol=5e-3, atol=5e-4)


@pytest.mark.backend
@pytest.mark.parametrize("decomposition", ["channel", "tucker"])
def test_a_step_moves_masks_and_thresholds_and_nothing_else(
    decomposition: str,
) -> None:
    model = _model()
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = model.get_weights()
    soft, _ = _soft(model, SoftSettings(), bound=0.3, decomposition=decomposition)
    assert [v.name for v in soft.trainable_variables] == ["masks", "thresholds"]
    x, y = _inputs(64), np.arange(64) % 4
    learning = LeSS(steps=5, most_steps=5, batch_size=16, refresh=2)
    learned = learning.learn(model, soft, x, y)
    assert learned.history[0]["steps"] == 5
    assert float(np.std(learned.masks)) > 0
    assert float(np.asarray(soft.steps)) == 5
    for ours, kept in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, kept)


@pytest.mark.backend
@pytest.mark.parametrize("decomposition", ["channel", "tucker"])
def test_every_threshold_has_a_derivative_from_the_first_step(
    decomposition: str, gradient: Callable[..., np.ndarray]
) -> None:
    # Kernels at random, whose singular values are nearly alike: of all of them all is left.
    soft, _ = _soft(_model(), SoftSettings(), decomposition=decomposition)

    def total(thresholds: Any) -> Any:
        with keras.StatelessScope(state_mapping=[(soft.thresholds, thresholds)]):
            return keras.ops.sum(soft._cut()[1])

    assert (gradient(total, np.zeros(soft.thresholds.shape)) < 0).all()


@pytest.mark.parametrize("decomposition", ["channel", "tucker"])
def test_an_interrupted_learning_goes_on_to_the_same_end(
    tmp_path: Path, decomposition: str
) -> None:
    model = _model()
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, y = _inputs(64), np.arange(64) % 4
    learning = LeSS(steps=60, most_steps=60, batch_size=8)

    def learn(folder: Path | None, told: Any = lambda share, text: None) -> Any:
        soft, _ = _soft(model, SoftSettings(), decomposition=decomposition)
        return learning.learn(model, soft, x, y, folder=folder, told=told)

    class StoppedError(Exception):
        pass

    def stop(share: float | None, text: str) -> None:
        if share == 1.0:  # at step 60; kept at 50
            raise StoppedError

    with pytest.raises(StoppedError):
        learn(tmp_path, stop)
    steps: list[float | None] = []
    found = learn(tmp_path, lambda share, text: steps.append(share))
    assert steps == [1.0]
    whole = learn(None)
    np.testing.assert_allclose(found.masks, whole.masks, rtol=1e-5)
    np.testing.assert_allclose(found.ranks, whole.ranks, rtol=1e-4)
    assert found.history[0]["loss"] == pytest.approx(whole.history[0]["loss"], rel=1e-5)
    learning = LeSS(steps=60, most_steps=60, batch_size=16)
    with pytest.raises(ValueError, match="batch_size"):
        learn(tmp_path)
    learning = LeSS(steps=60, most_steps=60, batch_size=8)
    decomposition = "tucker" if decomposition == "channel" else "channel"
    with pytest.raises(ValueError, match="'decomposition', 'variables'"):
        learn(tmp_path)
    decomposition = "tucker" if decomposition == "channel" else "channel"
    (tmp_path / "less.npz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="sound state"):
        learn(tmp_path)


def test_a_loss_that_is_not_finite_ends_it() -> None:
    model = _model()
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    soft, _ = _soft(model, SoftSettings())
    x = np.full((16, 6, 6, 3), np.nan, "float32")
    with pytest.raises(DivergenceError, match="diverged at step"):
        LeSS(batch_size=8).learn(model, soft, x, np.zeros(16, int))


def test_several_outputs_learn_by_the_losses_they_were_compiled_with() -> None:
    pictures, figures = keras.Input((6, 6, 3), name="pictures"), keras.Input((4,), name="figures")
    x = layers.Conv2D(8, 3, activation="relu", name="a")(pictures)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, name="b")(x))
    x = layers.Concatenate()([x, layers.Dense(8, name="c")(figures)])
    outputs = [layers.Dense(3, name="kind")(x), layers.Dense(1, name="size")(x)]
    model = keras.Model([pictures, figures], outputs)
    model.compile(
        loss={"kind": keras.losses.SparseCategoricalCrossentropy(from_logits=True), "size": "mse"},
        loss_weights={"kind": 1.0, "size": 0.5},
    )
    rng = np.random.default_rng(0)
    x = [_inputs(32), rng.normal(size=(32, 4)).astype("float32")]
    y = [rng.integers(0, 3, 32), rng.normal(size=(32, 1)).astype("float32")]
    groups = [group for group in channel_groups(model).values() if group.prunable]
    places = places_of(model, follow(model), groups)
    costs = SoftCosts(model, places, ["a", "b"], ["macs"])
    learning = LeSS(steps=1, most_steps=1, batch_size=32, first_steepness=50)
    soft = learning.soften(model, places, costs, {"macs": 1.0})
    expected = float(model.evaluate(x, y, batch_size=32, verbose=0, return_dict=True)["loss"])
    learned = learning.learn(model, soft, x, y)
    # At its first step it computes what the model does, and costs nothing too much.
    assert learned.history[0]["loss"] == pytest.approx(expected, rel=0.02)


def test_the_sigmoid_becomes_steeper_up_to_its_most() -> None:
    soft, _ = _soft(_model(), SoftSettings(steepness=(5.0, 50.0, 4.0)))
    found = []
    for step in (0, 1, 11, 12, 100):
        soft.steps.assign(step)
        found.append(float(soft.steepness))
    assert found == [5, 9, 49, 50, 50]


def test_what_learns_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="neither"):
        LeSS(masks=False, thresholds=False)
    with pytest.raises(ValueError, match="data_share"):
        LeSS(data_share=1.5)
    with pytest.raises(ValueError, match="cut"):
        LeSS(cut="hard")
