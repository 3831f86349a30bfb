"""Small warps: what they did is read off coordinates, without knowing what was drawn."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from dprp_tf.data.augmentation import Warp

pytestmark = pytest.mark.backend


def _coordinates(batch: int, height: int, width: int) -> np.ndarray:
    """Images whose pixels are their own row and column."""
    row, column = np.indices((height, width))
    return np.repeat(np.stack([row, column], axis=-1)[None].astype("float32"), batch, axis=0)


def _affine(output: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Matrix and offset, from the middle, of where each pixel came from: an exact linear fit."""
    height, width, _ = output.shape
    middle = np.array([(height - 1) / 2, (width - 1) / 2])
    places = np.stack(np.indices((height, width)), axis=-1).reshape(-1, 2) - middle
    came = output.reshape(-1, 2)
    limits = np.array([height - 1, width - 1])
    # What came from beyond the border is the border.
    free = ((came > 1e-3) & (came < limits - 1e-3)).all(axis=1)
    design = np.concatenate([places[free], np.ones((free.sum(), 1))], axis=1)
    solution, *_ = np.linalg.lstsq(design, came[free] - middle, rcond=None)
    np.testing.assert_allclose(design @ solution, came[free] - middle, atol=2e-3)
    return solution[:2].T, solution[2]


def test_an_image_is_turned_scaled_and_shifted_within_the_ranges_and_never_mirrored() -> None:
    height, width = 24, 32
    outputs = np.asarray(Warp(brightness=0)(_coordinates(300, height, width), seed=4))
    angles, scales, shifts = [], [], []
    for output in outputs:
        matrix, offset = _affine(output)
        scale = 1 / np.sqrt(np.linalg.det(matrix))
        np.testing.assert_allclose(matrix @ matrix.T * scale**2, np.eye(2), atol=1e-3)
        angles.append(np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0])))
        scales.append(scale)
        # came = matrix (place - shift)
        shifts.append(-np.linalg.solve(matrix, offset))
    down, right = np.transpose(shifts)
    for values, low, high in (
        (angles, -15, 15),
        (scales, 0.9, 1.1),
        (down, -height / 16, height / 16),
        (right, -width / 16, width / 16),
    ):
        length = high - low
        assert low - 1e-2 * length < min(values) < low + 0.05 * length
        assert high - 0.05 * length < max(values) < high + 1e-2 * length
        # 300 uniform numbers: their mean strays by length / 60, their spread is length / 12 ** 0.5.
        assert abs(np.mean(values) - (low + high) / 2) < 4 * length / 60
        assert np.std(values) == pytest.approx(length / 12**0.5, rel=0.15)
    assert np.abs(np.corrcoef([angles, scales, down, right]) - np.eye(4)).max() < 0.25


def test_brightness_multiplies_the_whole_image_and_whole_numbers_stay_in_range() -> None:
    images = np.full((200, 6, 5, 3), 100.0, "float32")
    outputs = np.asarray(Warp()(images, seed=1))
    gains = outputs[:, 0, 0, 0] / 100
    np.testing.assert_allclose(outputs, images * gains[:, None, None, None], rtol=1e-5)
    assert 0.8 <= gains.min() < 0.83
    assert 1.17 < gains.max() <= 1.2
    whole = np.asarray(Warp()(np.full((200, 6, 5, 3), 240, "uint8"), seed=1))
    assert whole.dtype == np.uint8
    np.testing.assert_array_equal(
        whole[:, 2, 2, 1], np.minimum(255, np.floor(np.float32(240) * gains + 0.5))
    )


def test_values_between_pixels_are_interpolated_and_the_border_goes_on() -> None:
    from scipy import ndimage

    random = np.random.default_rng(0)
    image = random.uniform(0, 255, (9, 12)).astype("float32")
    # The coordinates tell which places were read; scipy reads the same from noise.
    batch = np.concatenate([_coordinates(20, 9, 12), np.repeat(image[None, ..., None], 20, 0)], -1)
    warp = Warp(rotation=40, scale=0.5, shift=0.2, brightness=0)
    for output in np.asarray(warp(batch, seed=2)):
        places = output[..., :2].transpose(2, 0, 1)
        expected = ndimage.map_coordinates(image, places, order=1, mode="nearest")
        np.testing.assert_allclose(output[..., 2], expected, atol=0.05)


def test_nothing_to_do_changes_nothing() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 7, 6, 3)).astype("uint8")
    np.testing.assert_array_equal(Warp(0, 0, 0, 0)(images, seed=0), images)


def test_a_seed_fixes_the_outcome_on_every_backend_compiled_or_not() -> None:
    images = _coordinates(8, 16, 16)
    eager = np.asarray(Warp(brightness=0)(images, 3))

    def apply(x: Any, seed: Any) -> Any:
        return Warp(brightness=0)(x, seed)

    if keras.backend.backend() == "jax":
        import jax

        compiled: Any = jax.jit(apply)
    else:
        import tensorflow as tf

        compiled = tf.function(apply, jit_compile=True)
    seed = keras.ops.convert_to_tensor(3, dtype="int32")
    np.testing.assert_allclose(compiled(images, seed), eager, atol=1e-3)
    assert (eager != np.asarray(Warp(brightness=0)(images, 4))).any()
    # As drawn by one backend; the other has to come to the same.
    drawn = [[6.7086, 2.9647], [7.6363, 8.2570], [8.3785, 12.4907]]
    np.testing.assert_allclose(eager[0, 8, [3, 8, 12]], drawn, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rotation": -1}, "`rotation`.*rotation=-1"),
        ({"rotation": 181}, "`rotation`.*to 180"),
        ({"scale": 1}, "`scale`.*below 1.*scale=1"),
        ({"shift": float("nan")}, "`shift`.*shift=nan"),
        ({"brightness": 1.5}, "`brightness`.*brightness=1.5"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Warp(**arguments)


def test_other_axes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`images`.*batch, height, width.*\(4, 4, 3\)"):
        Warp()(np.zeros((4, 4, 3), "float32"), 0)
