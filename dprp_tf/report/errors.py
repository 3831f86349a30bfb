"""What a report raises where a run has nothing to show."""

from __future__ import annotations

__all__ = ["NothingToPlotError"]


class NothingToPlotError(ValueError):
    """The run holds none of the figures that a plot would show.

    Example:

    >>> issubclass(NothingToPlotError, ValueError)
    True
    """
