"""Which file is better for a wish: by hand, and beside brute force."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dprp_tf.compression.ending import _headline
from dprp_tf.compression.goal import Goal, front
from dprp_tf.compression.outcome import Candidate, Dense, Outcome
from dprp_tf.compression.settings import CompressionSettings

DENSE = Dense(0.9, milliseconds=4.0, size_bytes=200_000, epoch_seconds=1.0, samples=5000)


def _best(wish: dict[str, object], *files: tuple[float, float, float]) -> int:
    goal = Goal(CompressionSettings(**wish), DENSE)  # type: ignore[arg-type]
    rows = [dict(zip(("score", "time", "size"), file, strict=True)) for file in files]
    return rows.index(dict(goal.best(rows)))


@pytest.mark.parametrize(
    ("wish", "files", "best"),
    [
        # The fastest within half a point, by default.
        ({}, [(0.9, 1, 1), (0.897, 0.6, 0.5), (0.88, 0.3, 0.3)], 1),
        ({"max_drop": 0.03}, [(0.9, 1, 1), (0.897, 0.6, 0.5), (0.88, 0.3, 0.3)], 2),
        # The smallest.
        ({"max_drop": 0.01, "smallest": True}, [(0.895, 0.5, 0.7), (0.895, 0.8, 0.4)], 1),
        # The most accurate in 2 ms, half of the dense file's 4.
        ({"milliseconds": 2.0}, [(0.9, 1, 1), (0.85, 0.45, 0.5), (0.87, 0.5, 0.6)], 2),
        ({"kilobytes": 100.0}, [(0.9, 1, 1), (0.85, 0.45, 0.5), (0.87, 0.4, 0.6)], 1),
        # Both bounds: within half a point, the fastest of those that are small enough.
        (
            {"max_drop": 0.005, "kilobytes": 100.0},
            [(0.9, 0.3, 0.6), (0.899, 0.6, 0.5), (0.899, 0.7, 0.4)],
            1,
        ),
        # None will do: the one that misses least.
        ({"milliseconds": 1.0}, [(0.9, 1, 1), (0.5, 0.3, 0.3)], 1),
        ({"max_drop": 0.001}, [(0.89, 0.5, 0.5), (0.88, 0.4, 0.4)], 0),
    ],
)
def test_the_best_file_by_hand(
    wish: dict[str, object], files: list[tuple[float, float, float]], best: int
) -> None:
    assert _best(wish, *files) == best


_shares = st.sampled_from([0.2, 0.4, 0.6, 0.8])


@given(st.lists(st.tuples(_shares, _shares, _shares), min_size=1, max_size=8))
def test_the_front_holds_what_no_other_beats(points: list[tuple[float, float, float]]) -> None:
    outcomes = [
        Outcome(at, "cut", Candidate("both", 0.5), "complete", *point)
        for at, point in enumerate(points)
    ]
    kept = front(outcomes)
    for one, other in itertools.product(outcomes, kept):
        better = (one.score >= other.score, one.time <= other.time, one.size <= other.size)
        same = (one.score, one.time, one.size) == (other.score, other.time, other.size)
        assert same or not all(better)
    numbers = {one.number for one in kept}
    for one in (one for one in outcomes if one.number not in numbers):
        assert any(
            other.score >= one.score and other.time <= one.time and other.size <= one.size
            for other in kept
        )


def test_one_sample_may_be_lost_where_there_are_few() -> None:
    few, none = (
        Goal(CompressionSettings(max_drop=drop), Dense(0.9, 4.0, 200_000, 1.0, samples=100))
        for drop in (0.005, 0.0)
    )
    assert few.meets(0.89, 0.5, 0.5)
    assert not few.meets(0.88, 0.5, 0.5)
    assert not none.meets(0.89, 0.5, 0.5)
    assert none.meets(0.9, 0.5, 0.5)


def test_half_a_point_is_the_wish_unless_something_else_is_bounded() -> None:
    assert CompressionSettings().max_drop == 0.005
    assert CompressionSettings(kilobytes=50.0).max_drop is None
    assert CompressionSettings(kilobytes=50.0, max_drop=0.01).max_drop == 0.01


@pytest.mark.parametrize(
    ("wish", "metric"),
    [
        ({}, "milliseconds"),
        ({"max_drop": 0.01, "smallest": True}, "parameters"),
        ({"milliseconds": 2.0}, "milliseconds"),
        ({"kilobytes": 50.0}, "parameters"),
        ({"kilobytes": 50.0, "milliseconds": 2.0}, "milliseconds"),
        ({"kilobytes": 50.0, "max_drop": 0.01}, "milliseconds"),
    ],
)
def test_cuts_are_bounded_in_what_the_wish_is_about(wish: dict[str, object], metric: str) -> None:
    assert CompressionSettings(**wish).metric == metric  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"max_drop": 0.5}, "`max_drop` must be"),
        ({"max_drop": -0.01}, "`max_drop` must be"),
        ({"milliseconds": 0.0}, "`milliseconds` must be"),
        ({"smallest": True, "milliseconds": 2.0}, "`smallest` needs `max_drop`"),
        ({"precision": "float16"}, "`precision` must be"),
        ({"sampler": "grid"}, "`sampler` must be"),
        ({"decomposition": "spatial"}, "`decomposition` must be"),
    ],
)
def test_wishes_that_make_no_sense_are_refused(wish: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CompressionSettings(**wish)  # type: ignore[arg-type]


def test_the_page_says_of_the_best_file_what_decided_about_it() -> None:
    # One of 100 samples is more than half a point, and may be lost all the same.
    goal = Goal(CompressionSettings(max_drop=0.005), Dense(0.9, 4.0, 200_000, 1.0, samples=100))
    workshop = SimpleNamespace(dense_accuracy=0.9, files=SimpleNamespace(label="TFLite int8"))
    for score in (0.89, 0.88):
        best = {"score": score, "time": 0.5, "size": 0.5, "dense": False, "label": "ranks, 0.50"}
        best |= {"accuracy": 0.89, "model": "cut0", "meets": goal.meets(score, 0.5, 0.5)}
        found = _headline(best, [{**best, "dense": True}], goal, workshop)  # type: ignore[arg-type]
        assert [check["passed"] for check in found["checks"]] == [best["meets"]]
        assert found["achieved"] == best["meets"] == (score == 0.89)
