"""Variational Bayesian ranks against synthetic truth and the free energy written out."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize, minimize_scalar

from dprp_tf.costs.budget import Budget
from dprp_tf.decomposition import matricize, variational_rank
from dprp_tf.selection.methods.vbmf import VariationalBayes
from dprp_tf.selection.selecting import select_ranks

# The threshold lies above what pure noise reaches, sqrt(v) (sqrt(h) + sqrt(w)).
SAFE = 1.5
SHAPES = [(9, 512), (512, 9), (64, 64), (64, 576), (300, 100), (30, 2000)]


def _signal(
    rng: np.random.Generator, shape: tuple[int, int], rank: int, deviation: float
) -> np.ndarray:
    """Rank `rank`, singular values from SAFE to 6 times the largest that noise alone has."""
    largest = deviation * (math.sqrt(shape[0]) + math.sqrt(shape[1]))
    left = np.linalg.qr(rng.standard_normal((shape[0], max(rank, 1))))[0][:, :rank]
    right = np.linalg.qr(rng.standard_normal((shape[1], max(rank, 1))))[0][:, :rank]
    return (left * largest * np.linspace(6.0, SAFE, rank)) @ right.T


def _noisy(
    rng: np.random.Generator, shape: tuple[int, int], rank: int, deviation: float
) -> np.ndarray:
    signal = _signal(rng, shape, rank, deviation)
    return signal + deviation * rng.standard_normal(shape)


# The noise is estimated from what the signal leaves: half of the singular values here.
@pytest.mark.parametrize(
    ("shape", "rank"),
    [(shape, rank) for shape in SHAPES for rank in (0, 1, 2, 4, 12, 20) if rank <= min(shape) / 2],
    ids=str,
)
@pytest.mark.parametrize("deviation", [1e-3, 1.0, 40.0])
def test_the_rank_under_the_noise_is_recovered(
    rng: np.random.Generator, shape: tuple[int, int], rank: int, deviation: float
) -> None:
    found = variational_rank(_noisy(rng, shape, rank, deviation))
    assert found.rank == rank
    assert len(found.singular_values) == rank


def test_pure_noise_has_rank_0_whatever_the_draw() -> None:
    ranks = [
        variational_rank(np.random.default_rng(seed).standard_normal((40, 160))).rank
        for seed in range(50)
    ]
    assert ranks == [0] * 50


@pytest.mark.parametrize("shape", [(64, 576), (300, 100), (30, 2000)], ids=str)
@pytest.mark.parametrize("rank", [0, 3, 8])
def test_the_noise_is_estimated_within_a_few_percent(
    rng: np.random.Generator, shape: tuple[int, int], rank: int
) -> None:
    found = variational_rank(_noisy(rng, shape, rank, 0.3))
    assert found.noise_variance == pytest.approx(0.09, rel=0.04)


def test_the_shrunk_matrix_is_nearer_to_the_truth_than_the_truncated_one(
    rng: np.random.Generator,
) -> None:
    shape, rank = (100, 400), 5
    signal = _signal(rng, shape, rank, 1.0)
    noisy = signal + rng.standard_normal(shape)
    u, s, vt = np.linalg.svd(noisy, full_matrices=False)
    shrunk = variational_rank(noisy).singular_values
    assert len(shrunk) == rank
    assert np.all(shrunk < s[:rank])
    truncated = np.linalg.norm((u[:, :rank] * s[:rank]) @ vt[:rank] - signal)
    assert np.linalg.norm((u[:, :rank] * shrunk) @ vt[:rank] - signal) < 0.97 * truncated


@given(
    st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**16), st.floats(1e-6, 1e6), st.data()
)
def test_neither_unit_nor_transposition_nor_form_matters(
    height: int, width: int, seed: int, unit: float, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    rank = data.draw(st.integers(0, min(height, width)))
    matrix = rng.standard_normal((height, rank)) @ rng.standard_normal((rank, width))
    matrix = matrix + 0.1 * rng.standard_normal((height, width))
    found = variational_rank(matrix)
    spectrum = np.linalg.svd(matrix, compute_uv=False)
    for other, factor in [
        (variational_rank(unit * matrix), unit),
        (variational_rank(matrix.T), 1.0),
        (variational_rank(spectrum[::-1], (width, height)), 1.0),
    ]:
        assert other.rank == found.rank
        assert other.noise_variance == pytest.approx(factor**2 * found.noise_variance, rel=1e-6)
        assert other.threshold == pytest.approx(factor * found.threshold, rel=1e-6)
        np.testing.assert_allclose(other.singular_values, factor * found.singular_values, rtol=1e-6)
    assert 0 <= found.rank <= min(height, width)
    assert found.rank == np.sum(spectrum >= found.threshold)
    kept = spectrum[: found.rank]
    assert np.all(found.singular_values <= kept)
    assert np.all(found.singular_values > 0)
    assert found.noise_variance <= np.mean(matrix**2) * (1 + 1e-12)


def _component(value: float, small: int, large: int, variance: float) -> tuple[float, float]:
    """Least 2 F_h of one component, and its posterior mean a b, by a generic minimiser.

    F over means a, b, posterior variances and prior variances, less the value at a = b = 0 with
    everything equal to its prior.
    """

    def energy(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        a, b = parameters[:2]
        spread_a, spread_b, prior_a, prior_b = np.exp(parameters[2:])
        second_a, second_b = a * a + large * spread_a, b * b + small * spread_b
        total = (
            large * math.log(prior_a / spread_a)
            + small * math.log(prior_b / spread_b)
            + second_a / prior_a
            + second_b / prior_b
            + (second_a * second_b - 2 * a * b * value) / variance
            - (small + large)
        )
        # By the second moments, then by what they are made of.
        by_a, by_b = 1 / prior_a + second_b / variance, 1 / prior_b + second_a / variance
        gradient = [
            2 * a * by_a - 2 * b * value / variance,
            2 * b * by_b - 2 * a * value / variance,
            large * spread_a * by_a - large,
            small * spread_b * by_b - small,
            large - second_a / prior_a,
            small - second_b / prior_b,
        ]
        return total, np.array(gradient)

    best, mean = 0.0, 0.0  # as the priors vanish: nothing is gained, nothing is kept
    for scale in (0.3, 1.0):
        root = math.sqrt(scale * value)
        logs = np.log([variance / value, variance / value, root**2 / large, root**2 / small])
        result = minimize(
            energy,
            np.concatenate([[root, root], logs]),
            jac=True,
            method="L-BFGS-B",
            # Below the threshold the variances fall without end.
            bounds=[(None, None)] * 2 + [(-20.0, 20.0)] * 4,
            options={"ftol": 1e-14, "gtol": 1e-9, "maxiter": 500, "maxcor": 30},
        )
        if result.fun < best:
            best, mean = float(result.fun), float(result.x[0] * result.x[1])
    return best, mean


@pytest.mark.parametrize(("small", "large"), [(5, 5), (4, 9), (3, 60)])
def test_threshold_and_shrinkage_are_those_of_the_free_energy_minimised_by_brute_force(
    small: int, large: int
) -> None:
    variance = 0.7
    threshold = variational_rank(np.ones(small), (small, large), variance).threshold
    for share in (0.9, 0.98, 1.02, 1.2, 3.0):
        spectrum = np.zeros(small)
        spectrum[0] = share * threshold
        found = variational_rank(spectrum, (large, small), noise_variance=variance)
        least, mean = _component(spectrum[0], small, large, variance)
        assert (least < -1e-6) == (found.rank == 1), share
        if found.rank:
            assert found.singular_values[0] == pytest.approx(mean, rel=1e-4)


def _whole(spectrum: np.ndarray, shape: tuple[int, int], variance: float) -> float:
    """2 F of the whole matrix with the optimal posterior of each component, by brute force."""
    small, large = min(shape), max(shape)
    energy = small * large * math.log(2 * math.pi * variance) + np.sum(spectrum**2) / variance
    return energy + sum(_component(value, small, large, variance)[0] for value in spectrum)


def test_the_noise_found_has_the_least_free_energy(rng: np.random.Generator) -> None:
    shape = (5, 20)
    matrix = _noisy(rng, shape, 2, 0.5)
    spectrum = np.linalg.svd(matrix, compute_uv=False)
    found = variational_rank(matrix).noise_variance
    refined = minimize_scalar(
        lambda log: _whole(spectrum, shape, math.exp(log)),
        bounds=(math.log(found / 1.3), math.log(found * 1.3)),
        method="bounded",
        options={"xatol": 1e-3},
    )
    assert found == pytest.approx(math.exp(refined.x), rel=3e-3)
    lowest = _whole(spectrum, shape, found)
    for variance in np.geomspace(found / 50, np.mean(matrix**2) * 2, 9):
        assert _whole(spectrum, shape, variance) >= lowest - 1e-6


@pytest.mark.parametrize("shape", [(9, 300), (40, 60), (64, 64)], ids=str)
def test_the_noise_is_minimal_against_a_dense_grid_by_the_papers_formulas(
    rng: np.random.Generator, shape: tuple[int, int]
) -> None:
    spectrum = np.linalg.svd(_noisy(rng, shape, 3, 2.0), compute_uv=False)
    # A slowly falling spectrum too, as kernels have: many near minima.
    for values in (spectrum, np.geomspace(1.0, 0.02, min(shape))):
        found = variational_rank(values, shape)
        small, large = min(shape), max(shape)
        ratio = small / large
        edge = found.threshold**2 / (large * found.noise_variance)

        def energy(
            variance: float,
            values: np.ndarray = values,
            large: int = large,
            ratio: float = ratio,
            edge: float = edge,
        ) -> float:
            total = 0.0
            for x in values**2 / (large * variance):
                total += x - math.log(x)
                if x > edge:
                    t = 0.5 * (x - (1 + ratio) + math.sqrt((x - (1 + ratio)) ** 2 - 4 * ratio))
                    total += math.log(t + 1) + ratio * math.log(t / ratio + 1) - t
            return total

        lowest = energy(found.noise_variance)
        for variance in np.geomspace(1e-4, 1.0, 1500) * np.mean(values**2):
            assert energy(variance) >= lowest - 1e-9 * abs(lowest)


def test_a_matrix_without_noise_keeps_its_rank(rng: np.random.Generator) -> None:
    matrix = rng.standard_normal((30, 4)) @ rng.standard_normal((4, 50))
    found = variational_rank(matrix)
    assert found.rank == 4
    assert math.sqrt(found.noise_variance) < 1e-10 * np.abs(matrix).max()
    np.testing.assert_allclose(
        found.singular_values, np.linalg.svd(matrix, compute_uv=False)[:4], rtol=1e-9
    )


def test_degenerate_matrices() -> None:
    assert variational_rank(np.zeros((3, 5))).rank == 0
    # Nothing tells signal from noise in one row, or where all singular values are equal.
    assert variational_rank(np.ones((1, 7))).rank == 0
    assert variational_rank(np.eye(6)).noise_variance == pytest.approx(1 / 6)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (([1.0, 2.0],), "shape"),
        (([1.0, 2.0], (3, 4)), "shape"),
        (([-1.0, 2.0], (2, 4)), "shape"),
        (([[1.0, 2.0]], (2, 4)), "shape"),
        (([[np.nan, 2.0]],), "matrix_or_spectrum"),
        ((np.zeros((0, 3)),), "matrix_or_spectrum"),
        ((np.zeros((2, 3, 4)),), "matrix_or_spectrum"),
        (([[1.0, 2.0]], None, 0.0), "noise_variance"),
        (([[1.0, 2.0]], None, math.inf), "noise_variance"),
    ],
)
def test_unusable_arguments_are_named(arguments: tuple, word: str) -> None:
    with pytest.raises(ValueError, match=f"`{word}`"):
        variational_rank(*arguments)


# --- as a selector ------------------------------------------------------------------------------


def _network() -> keras.Model:
    """Two convolutions and a dense layer: low rank in every form, plus noise."""
    inputs = keras.Input((10, 10, 12))
    x = keras.layers.Conv2D(20, 3, name="first", use_bias=False)(inputs)
    x = keras.layers.Conv2D(16, 3, name="second", use_bias=False)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(12, name="head", use_bias=False)(x))
    rng = np.random.default_rng(5)
    for layer in model.layers:
        if hasattr(layer, "kernel"):
            *spatial, channels, filters = layer.kernel.shape
            core = rng.standard_normal((*spatial, 3, 4))
            mixes = rng.standard_normal((channels, 3)), rng.standard_normal((filters, 4))
            kernel = np.einsum("...io,ci,so->...cs", core, *mixes)
            layer.kernel.assign(kernel + 0.2 * rng.standard_normal(kernel.shape))
    return model


def _unfolded(kernel: np.ndarray, matricization: str) -> list[np.ndarray]:
    *spatial, channels, filters = kernel.shape
    flat = kernel.reshape(-1, channels, filters)
    if matricization == "tucker" and spatial:
        return [np.moveaxis(flat, axis, 0).reshape(flat.shape[axis], -1) for axis in (1, 2)]
    return [matricize(kernel, "channel" if matricization == "tucker" else matricization)]


@pytest.mark.parametrize("matricization", ["spatial", "channel", "separable", "tucker"])
def test_without_a_budget_the_ranks_are_those_of_each_matrix(matricization: str) -> None:
    model = _network()
    plan = select_ranks(model, method="vbmf", decomposition=matricization)
    for row in plan.layers:
        kernel = keras.ops.convert_to_numpy(model.get_layer(row.name).kernel)
        expected = tuple(
            max(1, variational_rank(matrix).rank) for matrix in _unfolded(kernel, matricization)
        )
        # Dense where the factors would be no smaller.
        assert row.ranks == expected or row.parameters == row.dense_parameters
        if matricization == "tucker" and row.name != "head":
            assert row.ranks == (3, 4)
    assert any(row.ranks is not None for row in plan.layers)
    scaled = select_ranks(
        model, method=VariationalBayes(noise_scale=30.0), decomposition=matricization
    )
    assert scaled.cost["parameters"] < plan.cost["parameters"]


@pytest.mark.parametrize("matricization", ["spatial", "channel", "separable", "tucker"])
def test_under_a_budget_one_factor_on_the_noise_serves_all_layers(matricization: str) -> None:
    model = _network()
    plan = select_ranks(
        model,
        method="vbmf",
        budget=Budget(parameters=0.45, tolerance=0.05),
        decomposition=matricization,
    )
    assert 0.4275 <= plan.shares["parameters"] <= 0.45
    scale = plan.history[0]["noise scale"]
    below = 0
    for row in plan.layers:
        if row.ranks is None:
            continue
        kernel = keras.ops.convert_to_numpy(model.get_layer(row.name).kernel)
        for matrix, rank in zip(_unfolded(kernel, matricization), row.ranks, strict=True):
            own = variational_rank(matrix)
            kept = variational_rank(matrix, noise_variance=1.0001 * scale * own.noise_variance).rank
            # The rest of the budget may add ranks, and takes none away.
            assert rank >= max(1, kept)
            below += rank - max(1, kept)
    assert below <= 8


def test_the_noise_scale_must_be_above_0() -> None:
    with pytest.raises(ValueError, match="`noise_scale`"):
        VariationalBayes(noise_scale=0.0)
