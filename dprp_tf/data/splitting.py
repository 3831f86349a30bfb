"""A test split for sources that bring none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["stratified_split"]


def stratified_split(
    labels: np.ndarray,
    test_fraction: float,
    seed: int,
    name: str,
    classes: Sequence[str] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Split examples so that every class is in both parts, by the same share.

    Args:
        labels: Label of each example.
        test_fraction: Share of each class held out, between 0 and 1.
        seed: Seed of the split and of the order.
        name: What to call the source in an error.
        classes: Name of each label, for an error.

    Returns:
        Shuffled rows of the training split and of the test split.

    Raises:
        ValueError: If a class has a single example.

    Example:

    >>> train, test = stratified_split(np.array([0, 0, 0, 1, 1]), 0.4, 0, "five")
    >>> len(train), len(test)
    (3, 2)
    """
    random = np.random.default_rng(seed)
    train: list[np.ndarray] = []
    test: list[np.ndarray] = []
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        if len(members) < 2:
            raise ValueError(
                "`source` must hold at least two images of every class, one to train and one to "
                f"test. Received: one of {classes[label] if classes else label} in {name}."
            )
        held_out = min(max(round(len(members) * test_fraction), 1), len(members) - 1)
        test.append(members[:held_out])
        train.append(members[held_out:])
    return random.permutation(np.concatenate(train)), random.permutation(np.concatenate(test))
