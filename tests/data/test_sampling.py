"""A few examples that stand for all."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dprp_tf.data import Dataset
from dprp_tf.data.sampling import balanced_sample


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    samples=st.integers(1, 200),
    seed=st.integers(0, 1000),
)
def test_no_class_has_two_more_than_another_that_has_some_left(
    sizes: list[int], samples: int, seed: int
) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    rows = balanced_sample(labels, samples, seed)
    assert len(rows) == min(samples, len(labels))
    assert len(set(rows.tolist())) == len(rows)
    assert (np.diff(rows) > 0).all()
    drawn = np.bincount(labels[rows], minlength=len(sizes))
    for count, size in zip(drawn, sizes, strict=True):
        if count < size:
            assert count >= drawn.max() - 1
    np.testing.assert_array_equal(rows, balanced_sample(labels, samples, seed))


def test_another_seed_draws_others_and_every_example_can_come() -> None:
    labels = np.zeros(40, np.int64)
    draws = [balanced_sample(labels, 10, seed) for seed in range(40)]
    assert len({tuple(rows) for rows in draws}) == 40
    assert set(np.concatenate(draws).tolist()) == set(range(40))


def test_labels_of_any_numbers_and_order() -> None:
    generator = np.random.default_rng(0)
    labels = generator.choice([3, 700, -5], 300, p=[0.9, 0.09, 0.01])
    rows = balanced_sample(labels, 30)
    _, counts = np.unique(labels[rows], return_counts=True)
    assert counts.min() >= min(10, (labels == -5).sum())


def test_a_data_set_gives_float_images_with_their_labels() -> None:
    labels = np.repeat([0, 1], 6)
    images = np.tile(np.arange(12, dtype="uint8")[:, None, None, None], (1, 4, 4, 1))
    dataset = Dataset("sorted", images, labels, images, labels, ("no", "yes"))
    x, y = dataset.sample("test", 4)
    assert x.dtype == np.float32
    assert y.tolist() == [0, 0, 1, 1]
    np.testing.assert_array_equal(x[:, 0, 0, 0] >= 6, y == 1)


def test_of_no_class_more_than_its_share_while_another_has_more() -> None:
    labels = np.repeat([0, 1, 2], [40, 5, 1])
    counts = [
        np.bincount(labels[balanced_sample(labels, samples, 3, share=0.5)], minlength=3).tolist()
        for samples in (4, 20, 22, 46)
    ]
    assert counts[:3] == [[2, 2, 0], [18, 2, 0], [20, 2, 0]]
    assert counts[3] == [40, 5, 1]
