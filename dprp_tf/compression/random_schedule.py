"""Random search: what a staged search is to be compared with."""

from __future__ import annotations

from collections.abc import Sequence

from dprp_tf.compression.outcome import Outcome
from dprp_tf.compression.schedule import (
    LEAST_EPOCHS,
    MOST_CUTS,
    RECIPES,
    Schedule,
    Step,
    whole_or_part,
)

__all__ = ["RandomSchedule"]

# Candidates that share the time equally.
_CANDIDATES = 6


class RandomSchedule(Schedule):
    """Cuts at random, and trains each to the end, for an equal part of the time.

    It knows no stages: nothing is tried a little first, and nothing that was seen decides what is
    done next. Recipes of training take turns.

    Args:
        goal: As for `Schedule`.
        seconds: Likewise.
        file_seconds: Likewise.

    Example:

    >>> from dprp_tf.compression.goal import Goal
    >>> from dprp_tf.compression.outcome import Dense
    >>> from dprp_tf.compression.settings import CompressionSettings
    >>> goal = Goal(CompressionSettings(max_drop=0.01), Dense(0.9, 2.0, 1000.0, 10.0, 500))
    >>> step = RandomSchedule(goal, seconds=600, file_seconds=5).next([], left=600)
    >>> step.stage, step.candidate
    ('cut', None)
    """

    def next(self, outcomes: Sequence[Outcome], left: float) -> Step | None:
        """Return what is to be done now.

        Args:
            outcomes: All steps so far, those that are running too.
            left: Seconds that are left.

        Returns:
            A step; None when nothing can be finished in what is left.
        """
        known = [one for one in outcomes if one.state != "failed"]
        cuts = [one for one in known if one.stage == "cut"]
        trained = {one.of for one in known if one.stage == "finished"}
        waiting = [one for one in cuts if one.done and one.number not in trained]
        if not waiting:
            return Step("cut") if self._may_cut(cuts, left) and len(cuts) < MOST_CUTS else None
        (chosen, *_) = waiting
        # What is left over for the last is better used than not.
        for seconds in (min(left, self._whole / _CANDIDATES), left):
            epochs = whole_or_part((seconds - self._file) / self._goal.dense.epoch_seconds)
            if epochs >= LEAST_EPOCHS:
                recipe = RECIPES[len(trained) % len(RECIPES)]
                return Step("finished", chosen.candidate, chosen.number, epochs, *recipe)
        return None
