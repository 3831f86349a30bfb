"""What a search shows while it works: the best so far, what is running, what remains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dprp_tf.compression.goal import Goal
from dprp_tf.compression.outcome import STAGES, Outcome
from dprp_tf.files.tables import lay_out

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["board", "step_line"]

_SHOWN = 6
_DOING = {
    "cut": "cutting",
    "tuned": "training a little",
    "finished": "training to the end",
    "narrow": "training",
    "quantized": "training with int8 rounding",
}


def board(
    outcomes: Sequence[Outcome], goal: Goal, dense: Sequence[Mapping[str, Any]], left: float
) -> Table:
    """Lay out where a search stands.

    Args:
        outcomes: All steps so far.
        goal: The wish.
        dense: Rows of the dense files, the first of the precision that is wished.
        left: Seconds that are left.

    Returns:
        A table: the dense file, then the best that are finished, then the best of what is not; the
        title says what is running, the caption what remains.

    Example:

    >>> from dprp_tf.compression.outcome import Dense
    >>> from dprp_tf.compression.settings import CompressionSettings
    >>> goal = Goal(CompressionSettings(), Dense(0.9, 2.0, 1000.0, 1.0, 500))
    >>> board([], goal, [{"format": "TFLite int8", "score": 0.89}], 60).row_count
    1
    """
    rows = [("as it is", "dense", f"{dense[0]['score']:.2%}", "1.00", "1.00", "")]
    latest: dict[int, Outcome] = {}
    for one in outcomes:
        if one.done:
            kept = latest.get(one.origin)
            if kept is None or STAGES.index(one.stage) >= STAGES.index(kept.stage):
                latest[one.origin] = one
    ordered = sorted(
        latest.values(),
        key=lambda one: (one.is_file, goal.rank(one.score, one.time, one.size)),
        reverse=True,
    )
    for one in ordered[:_SHOWN]:
        will_do = one.is_file and one.verified and goal.meets(one.score, one.time, one.size)
        figures = (f"{one.score:.2%}", f"{one.time:.2f}", f"{one.size:.2f}")
        rows.append((one.label, one.stage, *figures, "yes" if will_do else ""))
    running = [one for one in outcomes if one.state == "running"]
    doing = "; ".join(f"{_DOING[one.stage]}: {one.label}" for one in running)
    counts = ", ".join(
        f"{sum(one.stage == stage and one.done for one in outcomes)} {stage}"
        for stage in STAGES
        if stage in STAGES[:3] or any(one.stage == stage for one in outcomes)
    )
    return lay_out(
        {
            "candidate": "fold",
            "stage": "left",
            "accuracy": "right",
            "time": "right",
            "bytes": "right",
            "will do": "left",
        },
        rows,
        title=doing or "choosing what is next",
        caption=f"{counts}; {max(0.0, left) / 60:.1f} minutes left",
    )


def step_line(one: Outcome, goal: Goal) -> str:
    """Say in a line what came of a step.

    Args:
        one: The step.
        goal: The wish.

    Returns:
        The line.

    Example:

    >>> from dprp_tf.compression.outcome import Candidate, Dense
    >>> from dprp_tf.compression.settings import CompressionSettings
    >>> goal = Goal(CompressionSettings(), Dense(0.9, 2.0, 1000.0, 1.0, 500))
    >>> step_line(Outcome(3, "cut", Candidate("ranks", 0.5), "complete", 0.8, 0.5, 0.6), goal)
    '3 cut: ranks, 0.50: 80.00% (dense 90.00%), 0.50 of the time, 0.60 of the bytes'
    """
    head = f"{one.number} {one.stage}: {one.label}"
    if one.state == "missed":
        reason = str(one.values.get("missed", ""))
        return f"{head}: {'there is no such cut' if one.stage == 'cut' else reason}"
    if not one.done:
        return f"{head}: {one.state}"
    return (
        f"{head}: {one.score:.2%} (dense {goal.dense.score:.2%}), {one.time:.2f} of the time, "
        f"{one.size:.2f} of the bytes"
    )
