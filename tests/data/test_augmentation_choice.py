"""Which augmentation happens, to which example, and the parts that are cut from large images."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dprp_tf.data.augmentation import (
    Augmentation,
    CropAndFlip,
    ResizedCrop,
    TurnAndShift,
    Warp,
    adjust,
)


@pytest.mark.parametrize(
    ("augmentation", "shape"),
    [(CropAndFlip(2), (7, 6, 3)), (Warp(), (7, 6, 3)), (TurnAndShift(), (5, 6, 7, 1))],
)
def test_in_a_pipeline_the_number_of_an_example_decides_not_its_place(
    augmentation: Augmentation, shape: tuple[int, ...]
) -> None:
    import tensorflow as tf

    images = np.random.default_rng(0).integers(0, 256, (30, *shape)).astype("float32")
    rows = np.random.default_rng(1).permutation(30)[:11].astype("int32")
    everything = augmentation.in_pipeline(tf.constant(images), (5, 2), tf.range(30)).numpy()
    some = augmentation.in_pipeline(tf.constant(images[rows]), (5, 2), tf.constant(rows)).numpy()
    np.testing.assert_allclose(some, everything[rows], atol=1e-4)
    for other in ((6, 2), (5, 3)):
        outcome = augmentation.in_pipeline(tf.constant(images), other, tf.range(30)).numpy()
        assert (np.abs(outcome - everything).max(axis=tuple(range(1, images.ndim))) > 1).sum() > 20


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 600),
    width=st.integers(1, 600),
    seed=st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 300), st.integers(0, 2**21)),
)
def test_a_part_lies_in_its_image_and_has_an_allowed_shape(
    height: int, width: int, seed: tuple[int, int, int]
) -> None:
    top, left, rows, columns, _ = ResizedCrop().draw(height, width, seed)
    assert 0 <= top <= top + rows <= height
    assert 0 <= left <= left + columns <= width
    assert rows >= 1
    assert columns >= 1
    # Both sides are rounded to whole pixels; a single row or column can't be split.
    if min(rows, columns) > 1:
        assert (columns + 0.5) / (rows - 0.5) >= 3 / 4
        assert (columns - 0.5) / (rows + 0.5) <= 4 / 3
        if 3 / 4 <= width / height <= 4 / 3:
            assert (rows + 0.5) * (columns + 0.5) >= 0.08 * height * width


def test_parts_are_spread_as_the_source_says() -> None:
    crop = ResizedCrop()
    parts = [crop.draw(2000, 2000, (1, 0, index)) for index in range(3000)]
    shares = np.array([rows * columns for _, _, rows, columns, _ in parts]) / 2000**2
    logs = np.log([columns / rows for _, _, rows, columns, _ in parts])
    mirrored = np.mean([part[4] for part in parts])
    # Up to a share of 3/4 every ratio fits, so all such shares are equally likely.
    counts, _ = np.histogram(shares, bins=10, range=(0.08, 0.75))
    assert counts.min() > 0.75 * counts.mean()
    assert counts.max() < 1.25 * counts.mean()
    assert shares.max() > 0.95
    assert abs(logs.mean()) < 0.01
    small = logs[shares < 0.75]
    assert small.std() == pytest.approx(2 * math.log(4 / 3) / 12**0.5, rel=0.05)
    assert 0.46 < mirrored < 0.54
    assert not any(ResizedCrop(flip=False).draw(9, 9, (0, 0, n))[4] for n in range(30))


def test_every_number_of_the_seed_counts() -> None:
    crop = ResizedCrop()
    seeds = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    assert len({crop.draw(500, 400, seed) for seed in seeds}) == 4
    assert crop.draw(500, 400, seeds[1]) == crop.draw(500, 400, seeds[1])


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(3, 300, (0, 148, 3, 4)), (300, 3, (148, 0, 4, 3))]
)
def test_a_strip_gives_its_middle(height: int, width: int, expected: tuple[int, ...]) -> None:
    """Of 3 x 300 pixels 8 % are 72, which fit no allowed shape."""
    assert ResizedCrop().draw(height, width, (0, 0, 0))[:4] == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"area": (0, 1)}, r"`area`.*up to 1.*\(0, 1\)"),
        ({"area": (0.5, 1.1)}, "`area`"),
        ({"ratio": (2, 1)}, r"`ratio`.*\(2, 1\)"),
    ],
)
def test_a_crop_that_is_none_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResizedCrop(**arguments)


@pytest.mark.parametrize(
    ("own", "asked", "expected"),
    [
        (CropAndFlip(), {}, CropAndFlip(4, True)),
        (CropAndFlip(), {"padding": 2}, CropAndFlip(2, True)),
        (CropAndFlip(), {"padding": 0, "flip": False}, CropAndFlip(0, False)),
        (CropAndFlip(), {"augment": False, "padding": 2}, None),
        (None, {}, None),
        (None, {"flip": False, "padding": 0}, None),
        (None, {"padding": 1}, CropAndFlip(1, False)),
        (Warp(), {"flip": False, "padding": 0}, Warp()),
        (ResizedCrop(), {"flip": False}, ResizedCrop(flip=False)),
        (TurnAndShift(), {"flip": False}, TurnAndShift(flip=False)),
    ],
)
def test_a_user_changes_what_the_data_set_brings(own: Any, asked: Any, expected: Any) -> None:
    assert adjust(own, **asked) == expected


@pytest.mark.parametrize(
    ("own", "asked", "message"),
    [
        (Warp(), {"flip": True}, "`flip` must be left out: Warp.*flip=True"),
        (ResizedCrop(), {"padding": 4}, "`padding` must be left out: ResizedCrop.*padding=4"),
    ],
)
def test_a_setting_that_does_not_exist_is_refused(own: Any, asked: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adjust(own, **asked)
