"""Turns, mirrorings and shifts of voxel grids against numpy's own."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from dprp_tf.data.augmentation import TurnAndShift

pytestmark = pytest.mark.backend


def _shifted(grid: np.ndarray, shifts: tuple[int, ...]) -> np.ndarray:
    """Move a grid, what comes from outside is 0."""
    result = np.zeros_like(grid)
    source, target = [], []
    for shift, size in zip(shifts, grid.shape, strict=True):
        target.append(slice(max(shift, 0), size + min(shift, 0)))
        source.append(slice(max(-shift, 0), size + min(-shift, 0)))
    result[tuple(target)] = grid[tuple(source)]
    return result


def _all_poses(grid: np.ndarray, axis: int, shift: int) -> dict[bytes, tuple[Any, ...]]:
    """Every outcome with quarter turns, by its bytes."""
    plane = tuple(n for n in range(3) if n != axis)
    moves = range(-shift, shift + 1)
    return {
        np.ascontiguousarray(_shifted(posed, (a, b, c))).tobytes(): (quarter, mirrored, a, b, c)
        for quarter in range(4)
        for mirrored in (False, True)
        for posed in [np.rot90(np.flip(grid, plane[0]) if mirrored else grid, quarter, plane)]
        for a in moves
        for b in moves
        for c in moves
    }


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_quarter_turns_mirrorings_and_shifts_are_exact_and_equally_likely(axis: int) -> None:
    grid = np.random.default_rng(axis).integers(1, 255, (4, 4, 4)).astype("uint8")
    poses = _all_poses(grid, axis, shift=1)
    assert len(poses) == 4 * 2 * 27
    turn = TurnAndShift(rotations=4, shift=1, vertical_axis=axis)
    outputs = np.asarray(turn(np.repeat(grid[None, ..., None], 216 * 25, 0), seed=3))
    assert outputs.dtype == np.uint8
    counts = Counter(poses[output[..., 0].tobytes()] for output in outputs)
    assert set(counts) == set(poses.values())
    # 215 degrees of freedom: above 285 once in a thousand honest generators
    assert sum((n - 25) ** 2 / 25 for n in counts.values()) < 285


def test_twelve_angles_move_a_column_around_the_middle() -> None:
    grids = np.zeros((400, 21, 21, 5, 1), "float32")
    grids[:, 16:19, 9:12, :] = 1  # 3 x 3 voxels, 7 from the middle, at every height
    outputs = np.asarray(TurnAndShift(flip=False, shift=0)(grids, seed=0))[..., 0]
    assert set(np.unique(outputs)) == {0, 1}
    seen = Counter()  # type: Counter[int]
    for output in outputs:
        # Every level alike: the axis that points up is left alone.
        assert (output == output[..., :1]).all()
        u, v = np.nonzero(output[..., 0])
        assert 7 <= len(u) <= 11
        u, v = u.mean() - 10, v.mean() - 10
        assert np.hypot(u, v) == pytest.approx(7, abs=0.3)
        angle = np.degrees(np.arctan2(v, u)) % 360
        step = round(angle / 30) % 12
        assert abs((angle - 30 * step + 180) % 360 - 180) < 3
        seen[step] += 1
    assert set(seen) == set(range(12))
    assert max(seen.values()) < 3 * min(seen.values())


def test_what_is_switched_off_does_not_happen() -> None:
    grids = np.random.default_rng(0).integers(0, 2, (50, 3, 4, 5, 2)).astype("uint8")
    still = TurnAndShift(rotations=1, flip=False, shift=0)
    np.testing.assert_array_equal(still(grids, seed=0), grids)
    mirrored = np.asarray(TurnAndShift(rotations=1, flip=True, shift=0)(grids, seed=0))
    alike = [np.array_equal(a, b) for a, b in zip(grids, mirrored, strict=True)]
    other = [np.array_equal(a[::-1], b) for a, b in zip(grids, mirrored, strict=True)]
    assert 12 < sum(alike) < 38
    assert sum(alike) + sum(other) == 50


def test_every_backend_draws_these_poses() -> None:
    grid = np.arange(27, dtype="uint8").reshape(3, 3, 3)
    poses = _all_poses(grid, 2, shift=1)
    turn = TurnAndShift(rotations=4, shift=1)
    outputs = np.asarray(turn(np.repeat(grid[None, ..., None], 4, 0), seed=123))
    assert [poses[output[..., 0].tobytes()] for output in outputs] == [
        (1, True, 1, 1, 1),
        (0, True, 1, -1, 1),
        (3, False, 1, 0, -1),
        (3, False, -1, 0, 1),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rotations": 0}, "`rotations`.*rotations=0"),
        ({"shift": -1}, "`shift`.*shift=-1"),
        ({"vertical_axis": 3}, "`vertical_axis`.*0 to 2.*vertical_axis=3"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TurnAndShift(**arguments)


def test_images_are_no_voxels() -> None:
    with pytest.raises(ValueError, match=r"batch, depth, height.*\(2, 4, 4, 3\)"):
        TurnAndShift()(np.zeros((2, 4, 4, 3), "uint8"), 0)
