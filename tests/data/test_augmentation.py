"""Crops and flips against a plain numpy reference, on whichever backend Keras runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dprp_tf.data.augmentation import crop_and_flip_in_tensorflow, random_crop_and_flip

pytestmark = pytest.mark.backend


def _coordinates(batch: int, height: int, width: int, dtype: str = "float32") -> np.ndarray:
    """Images whose every pixel tells its row, its column and its image, each from 1."""
    index, row, column = np.indices((batch, height, width))
    return np.stack([row + 1, column + 1, index + 1], axis=-1).astype(dtype)


def _reference(image: np.ndarray, padding: int, top: int, left: int, flip: bool) -> np.ndarray:
    height, width, _ = image.shape
    padded = np.pad(image, [(padding, padding), (padding, padding), (0, 0)])
    crop = padded[top : top + height, left : left + width]
    return crop[:, ::-1] if flip else crop


def _all_crops(image: np.ndarray, padding: int, flip: bool) -> dict[tuple[int, int, bool], bytes]:
    shifts = range(2 * padding + 1)
    return {
        (top, left, mirrored): _reference(image, padding, top, left, mirrored).tobytes()
        for top in shifts
        for left in shifts
        for mirrored in ((False, True) if flip else (False,))
    }


def _which(images: np.ndarray, outputs: np.ndarray, padding: int, flip: bool) -> list[Any]:
    """The (top, left, mirrored) that made each output, by trying all."""
    chosen = []
    for image, output in zip(images, outputs, strict=True):
        matches = [k for k, v in _all_crops(image, padding, flip).items() if v == output.tobytes()]
        assert matches, "an output that is no crop of its own image"
        chosen.append(matches[0])
    return chosen


def _compiled(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function)
    import tensorflow as tf

    return tf.function(function, jit_compile=True)


@pytest.mark.long_on_jax
@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 5),
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    padding=st.integers(0, 3),
    flip=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(["float32", "uint8"]),
)
def test_every_output_is_a_crop_of_its_own_image(
    batch: int, height: int, width: int, padding: int, flip: bool, seed: int, dtype: str
) -> None:
    images = _coordinates(batch, height, width, dtype)
    given_images = images.copy()
    outputs = np.asarray(random_crop_and_flip(images, seed, padding, flip))
    assert outputs.dtype == images.dtype
    assert outputs.shape == images.shape
    _which(images, outputs, padding, flip)
    np.testing.assert_array_equal(images, given_images)


@pytest.mark.slow
def test_every_crop_occurs_about_equally_often() -> None:
    images = _coordinates(3600, 5, 4)
    outputs = np.asarray(random_crop_and_flip(images, seed=5, padding=1))
    counts = Counter(_which(images, outputs, padding=1, flip=True))
    assert set(counts) == set(_all_crops(images[0], 1, flip=True))
    # 17 degrees of freedom: above 40.8 once in a thousand honest generators
    assert sum((n - 200) ** 2 / 200 for n in counts.values()) < 40.8


def test_the_default_reaches_every_shift_of_four_pixels() -> None:
    images = np.repeat(_coordinates(1, 10, 10), 2000, axis=0)
    outputs = np.asarray(random_crop_and_flip(images, seed=1))
    counts = Counter(output.tobytes() for output in outputs)
    assert set(counts) == set(_all_crops(images[0], 4, flip=True).values())
    assert len(counts) == 9 * 9 * 2


def test_neighbouring_seeds_choose_independently() -> None:
    images = _coordinates(400, 6, 6)
    first, second = (
        _which(images, np.asarray(random_crop_and_flip(images, seed, 1)), 1, True)
        for seed in (7, 8)
    )
    agreeing = sum(a == b for a, b in zip(first, second, strict=True))
    assert 5 <= agreeing <= 45  # 400 / 18 = 22 by chance
    assert len({tuple(pair) for pair in zip(first, second, strict=True)}) > 180


def test_a_seed_fixes_the_outcome_and_a_traced_seed_gives_the_same() -> None:
    images = _coordinates(16, 8, 8)
    eager = np.asarray(random_crop_and_flip(images, 3))
    np.testing.assert_array_equal(eager, random_crop_and_flip(images, 3))
    compiled = _compiled(lambda x, seed: random_crop_and_flip(x, seed))
    for seed in (3, 4):
        outputs = compiled(images, keras.ops.convert_to_tensor(seed, dtype="int32"))
        np.testing.assert_array_equal(outputs, random_crop_and_flip(images, seed))
    assert (eager != np.asarray(random_crop_and_flip(images, 4))).any()


def test_every_backend_draws_these_crops() -> None:
    images = _coordinates(4, 5, 5)
    chosen = _which(images, np.asarray(random_crop_and_flip(images, 123, 2)), 2, True)
    assert chosen == [(3, 3, True), (2, 4, True), (1, 3, True), (0, 3, False)]


def test_nothing_to_do_changes_nothing() -> None:
    images = _coordinates(3, 4, 4)
    np.testing.assert_array_equal(random_crop_and_flip(images, 0, padding=0, flip=False), images)


def test_without_flip_no_image_is_mirrored() -> None:
    images = _coordinates(200, 4, 4)
    outputs = np.asarray(random_crop_and_flip(images, 0, padding=0, flip=True))
    mirrored = [k[2] for k in _which(images, outputs, 0, True)]
    assert 60 < sum(mirrored) < 140
    _which(images, np.asarray(random_crop_and_flip(images, 0, padding=1, flip=False)), 1, False)


def test_the_pipeline_form_crops_alike_and_uses_every_part_of_its_seed() -> None:
    tf = pytest.importorskip("tensorflow")
    images = _coordinates(300, 5, 5, "uint8")
    outcomes = []
    for seed in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]:
        outputs = crop_and_flip_in_tensorflow(tf.constant(images), seed, 1, True).numpy()
        outcomes.append(_which(images, outputs, 1, True))
    assert len(set(outcomes[0])) == 18
    for other in outcomes[1:]:
        assert sum(a == b for a, b in zip(outcomes[0], other, strict=True)) < 40  # 17 by chance


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": np.zeros((4, 4, 3), "float32")}, r"`images`.*\(4, 4, 3\)"),
        ({"padding": -1}, "`padding`.*padding=-1"),
        ({"seed": -1}, "`seed`.*seed=-1"),
        ({"seed": 2**32}, "`seed`.*seed=4294967296"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    usable = {"images": np.zeros((2, 4, 4, 3), "float32"), "seed": 0}
    with pytest.raises(ValueError, match=message):
        random_crop_and_flip(**{**usable, **arguments})
