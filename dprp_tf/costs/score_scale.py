"""How the values of a score are read: what it is called, its unit, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ACCURACY", "ScoreScale"]


@dataclass(frozen=True)
class ScoreScale:
    """The scale of a score's values as people know them, an error being positive.

    Args:
        name: What the score is called, such as `"psnr"`.
        unit: `"share"` for 0 to 1, which is shown in percent; another unit; or `""` for none.
            Defaults to none.
        less_is_better: Whether it counts an error. Defaults to False.

    Example:

    >>> ScoreScale("mean_squared_error", less_is_better=True).value(-0.25)
    0.25
    """

    name: str
    unit: str = ""
    less_is_better: bool = False

    def value(self, score: float) -> float:
        """Return a score, of which more is always better, on this scale.

        Args:
            score: What the score's function gives: an error counts negatively.

        Returns:
            The value, of which less is better if `less_is_better`.
        """
        return -score if self.less_is_better else score


ACCURACY = ScoreScale("accuracy", "share")
"""Top-1 accuracy, which is meant where no score is named."""
