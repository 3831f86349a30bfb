"""Channels are held against their own ranges: limits against plain NumPy, on made outputs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dprp_tf.deploy.exporters.agreement import OutputParity, compare_output

EIGHT_BITS = pytest.mark.parametrize("precision", ["dynamic", "int8"])


def _boxes(samples: int = 64) -> np.ndarray:
    generator = np.random.default_rng(0)
    return (generator.random((samples, 4)) * [1, 10, 100, 1000]).astype("float32")


def _compare(reference: np.ndarray, values: np.ndarray, **options: object) -> OutputParity:
    given_options = {"kind": "values", "precision": "int8"} | options
    return compare_output("it", reference, values, **given_options)  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["float32", "float16", "dynamic", "int8"])
@pytest.mark.parametrize("channel", range(4))
def test_every_channel_has_a_limit_of_its_own(precision: str, channel: int) -> None:
    reference = _boxes()
    values = reference.copy()
    values[5, channel] += 0.5 * np.ptp(reference[:, channel])
    found = _compare(reference, values, precision=precision)
    assert not found.passed
    assert found.channel == channel
    assert found.relative_error == pytest.approx(0.5, rel=1e-3)
    assert found.range_ratio == pytest.approx(1000, rel=0.2)
    assert _compare(reference, reference, precision=precision).passed


def test_the_same_error_is_little_where_the_range_is_large() -> None:
    reference = _boxes()
    large, small = reference.copy(), reference.copy()
    large[:, 3] += 1.0
    small[:, 0] += 1.0
    assert _compare(reference, large).passed
    assert not _compare(reference, small).passed


def test_an_offset_that_drowns_what_varies_is_seen() -> None:
    generator = np.random.default_rng(1)
    reference = (1000 + generator.random((64, 2))).astype("float32")
    constant = np.full_like(reference, 1000.5)
    assert np.abs(constant - reference).max() / 1000 < 1e-3
    found = _compare(reference, constant)
    assert not found.passed
    assert found.noise > 0.9


@EIGHT_BITS
@pytest.mark.parametrize("kind", ["values", "class scores"])
@pytest.mark.parametrize(
    ("what", "broken"),
    [
        ("dead", lambda y: y * np.where(np.arange(10) == 3, 0, 1)),
        ("stuck", lambda y: np.where(np.arange(10) == 3, y.mean(), y)),
        ("permuted", lambda y: y[:, [0, 1, 2, 4, 3, 5, 6, 7, 8, 9]]),
        ("negated", lambda y: np.where(np.arange(10) == 3, -y, y)),
        ("half", lambda y: y / 2),
        ("double", lambda y: 2 * y),
        ("one channel doubled", lambda y: np.where(np.arange(10) == 3, 2 * y, y)),
    ],
)
def test_a_file_that_is_wrong_fails(precision: str, kind: str, what: str, broken: object) -> None:
    generator = np.random.default_rng(2)
    reference = (3 * generator.standard_normal((500, 10))).astype("float32")
    noisy = reference + 0.1 * generator.standard_normal(reference.shape)
    options = {"kind": kind, "precision": precision}
    good = _compare(reference, noisy, **options)
    assert good.passed
    assert 0.02 < good.noise < 0.05
    found = _compare(reference, broken(noisy), **options)  # type: ignore[operator]
    assert not found.passed, what
    assert found.exceeded


def test_two_permuted_classes_of_a_thousand_fail_though_the_largest_is_nearly_always_the_same() -> (
    None
):
    generator = np.random.default_rng(3)
    reference = generator.standard_normal((400, 1000)).astype("float32")
    order = np.arange(1000)
    order[[7, 8]] = [8, 7]
    found = _compare(reference, reference[:, order], kind="class scores")
    assert found.top1_agreement is not None
    assert found.top1_agreement > 0.99
    assert found.noisy_channel in (7, 8)
    assert not found.passed


def test_near_ties_of_a_softmax_are_no_fault_and_rare_classes_neither() -> None:
    generator = np.random.default_rng(4)
    logits = 6 * generator.standard_normal((500, 10))
    logits[:, 9] -= 40  # a class that never comes

    def softmax(z: np.ndarray) -> np.ndarray:
        e = np.exp(z - z.max(axis=1, keepdims=True))
        return (e / e.sum(axis=1, keepdims=True)).astype("float32")

    reference = softmax(logits)
    # Steps of 1/256, as int8 has them, on logits that are a little off.
    rounded = np.round(softmax(logits + 0.3 * generator.standard_normal(logits.shape)) * 256) / 256
    found = _compare(reference, rounded, kind="class scores", full_range=1.0)
    assert found.passed
    assert found.max_error > 0.2
    # Taken for values, the same figures are no good: nobody said that ties do not matter.
    assert not _compare(reference, rounded).passed


def test_a_bounded_output_that_hardly_moves_is_held_against_its_bounds() -> None:
    generator = np.random.default_rng(5)
    labels = generator.random((200, 5))
    labels[:, 2] *= 1e-3  # a label that never comes; 8 bits have steps of 1/256
    reference = labels.astype("float32")
    rounded = np.round(reference * 256) / 256
    assert not _compare(reference, rounded).passed
    assert _compare(reference, rounded, full_range=1.0).passed
    stuck = rounded.copy()
    stuck[:, 2] = 0.1
    assert not _compare(reference, stuck, full_range=1.0).passed


def test_constant_channels_are_held_against_their_size() -> None:
    reference = np.stack([np.full(20, 5.0), np.zeros(20), np.arange(20.0)], axis=1)
    values = reference.copy()
    values[:, 0] += 0.5
    found = _compare(reference, values)
    assert found.relative_error == pytest.approx(0.1)
    assert found.passed
    values[:, 0] += 2
    assert not _compare(reference, values).passed
    # One that is always zero has the whole output to be held against.
    values = reference + np.array([0, 1.0, 0])
    assert _compare(reference, values).relative_error == pytest.approx(1 / 19)


def test_whole_numbers_are_equal_or_not() -> None:
    reference = np.arange(200).reshape(100, 2)
    values = reference.copy()
    values[:20, 0] += 1
    found = _compare(reference, values, kind="whole numbers", precision="int8")
    assert found.top1_agreement == 0.9
    assert not found.passed
    assert _compare(reference, values, kind="whole numbers", minimum_agreement=0.9).passed
    assert not _compare(reference, values, kind="whole numbers", precision="float32").passed
    assert _compare(reference, reference, kind="whole numbers", precision="float32").passed


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["values", "class scores"])
def test_what_is_not_finite_fails_whatever_is_allowed(value: float, kind: str) -> None:
    reference = _boxes()
    values = reference.copy()
    values[3, 1] = value
    found = _compare(reference, values, kind=kind, tolerance=1e9, minimum_agreement=0)
    assert not found.passed


def test_a_tolerance_of_the_callers_takes_the_place_of_the_limits_and_always_holds() -> None:
    generator = np.random.default_rng(6)
    reference = generator.standard_normal((100, 4)).astype("float32")
    values = reference + 0.5 * generator.standard_normal(reference.shape)
    for kind in ("values", "class scores"):
        assert not _compare(reference, values, kind=kind, minimum_agreement=0).passed
        options = {"kind": kind, "minimum_agreement": 0}
        assert _compare(reference, values, tolerance=1.0, **options).passed
        assert not _compare(reference, values, tolerance=0.01, **options).passed
    exact = _compare(reference, reference + 1e-6, tolerance=0, precision="float32")
    assert not exact.passed
    assert _compare(reference, reference + 1e-6, precision="float32").passed


def test_segmentation_maps_agree_by_position() -> None:
    generator = np.random.default_rng(7)
    reference = generator.random((4, 8, 8, 3)).astype("float32")
    values = reference.copy()
    values[:, :2] = values[:, :2, :, ::-1]
    found = _compare(reference, values, kind="class scores")
    middle = (reference[:, :2].argmax(-1) == 1).mean()
    assert found.top1_agreement == pytest.approx(1 - 0.25 * (1 - middle))
    assert found.channels == 3


@settings(max_examples=40, deadline=None)
@given(
    samples=st.integers(2, 40),
    positions=st.integers(1, 5),
    channels=st.integers(1, 6),
    mean=st.sampled_from([0.0, 5.0, 1e4]),
    seed=st.integers(0, 10**6),
)
def test_figures_are_those_of_plain_numpy(
    samples: int, positions: int, channels: int, mean: float, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    shape = (samples, positions, channels)
    reference = (mean + generator.standard_normal(shape)).astype("float32")
    values = reference + 0.2 * generator.standard_normal(shape).astype("float32")
    found = _compare(reference, values)
    flat, other = (a.reshape(-1, channels).astype("float64") for a in (reference, values))
    assume((np.ptp(flat, axis=0) > 1e-5 * np.abs(flat).max(axis=0)).all())
    error = np.abs(other - flat)
    by_channel = error.max(axis=0) / np.ptp(flat, axis=0)
    assert found.relative_error == pytest.approx(by_channel.max(), rel=1e-9)
    assert found.channel == by_channel.argmax()
    assert found.max_error == pytest.approx(error.max())
    assert found.mean_error == pytest.approx(error.mean())
    noise = np.sqrt((error**2).mean(axis=0)) / flat.std(axis=0)
    assert found.channel_noise == pytest.approx(noise.max(), rel=1e-6)
    whole = np.sqrt((error**2).mean()) / flat.std()
    assert found.noise == pytest.approx(whole, rel=1e-6)
    limits = by_channel.max() <= 0.25 and whole <= 0.4 and noise.max() <= 0.9
    assert found.passed == limits
    assert bool(found.exceeded) != limits


def test_another_shape_is_a_converters_fault() -> None:
    with pytest.raises(RuntimeError, match="changed the shape"):
        _compare(np.zeros((4, 2)), np.zeros((4, 3)))
