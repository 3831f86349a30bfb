"""How sure a ratio of two sets of samples is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["CONFIDENCE", "ratio_interval"]

CONFIDENCE = 0.95
_RESAMPLES = 2000


def ratio_interval(
    samples: Sequence[float], reference: Sequence[float]
) -> tuple[float, float, float]:
    """Return the ratio of medians of paired samples and its bootstrap interval.

    Rounds are drawn with replacement (2,000 times, seeded), the ratio of medians is taken each
    time, and the middle 95 % are reported; a slow round hits both sides alike.

    Args:
        samples: One value per round, above 0.
        reference: The values it is held against, of the same rounds.

    Returns:
        `(ratio, low, high)`.

    Raises:
        ValueError: If there are no samples, or not as many of both.

    Example:

    >>> ratio_interval([2.0, 2.0], [4.0, 4.0])
    (0.5, 0.5, 0.5)
    """
    ours, theirs = np.asarray(samples, dtype=float), np.asarray(reference, dtype=float)
    if ours.shape != theirs.shape or ours.ndim != 1 or not len(ours):
        raise ValueError(
            "`samples` and `reference` must hold as many values, one or more. Received: "
            f"{ours.shape} and {theirs.shape}."
        )
    rounds = len(ours)
    drawn = np.random.default_rng(0).integers(0, rounds, (_RESAMPLES, rounds))
    # (resamples, rounds) -> (resamples,)
    resampled = np.median(ours[drawn], axis=1) / np.median(theirs[drawn], axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return float(np.median(ours) / np.median(theirs)), float(low), float(high)
