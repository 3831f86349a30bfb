"""How the score of benchmarked files is named and shown, and which way is better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dprp_tf.costs.score_scale import ACCURACY, ScoreScale
from dprp_tf.report.formatting import clean_name, number, score_text
from dprp_tf.report.loading import mapping
from dprp_tf.report.tables.cells import Cell, accuracy_cell, less_is_better_cell

__all__ = ["bench_score", "score_cell", "score_title"]

_TITLES = {"mean_iou": "Mean IoU", "psnr": "PSNR"}


def bench_score(bench: Mapping[str, Any]) -> ScoreScale:
    """Return the scale of the scores in a benchmark: accuracy where it names none.

    Args:
        bench: Content of `bench.json`; each file has its value by the scale's name.

    Returns:
        The scale.

    Example:

    >>> bench_score({"score": {"name": "psnr", "unit": "dB"}}).name, bench_score({}).name
    ('psnr', 'accuracy')
    """
    said = mapping(bench, "score")
    if not said.get("name"):
        return ACCURACY
    return ScoreScale(
        str(said["name"]), str(said.get("unit") or ""), bool(said.get("less_is_better"))
    )


def score_title(scale: ScoreScale) -> str:
    """Return a score's name as a heading.

    Example:

    >>> score_title(ScoreScale("mean_squared_error")), score_title(ScoreScale("psnr"))
    ('Mean squared error', 'PSNR')
    """
    name = clean_name(scale.name)
    return _TITLES.get(name) or name[:1].upper() + name[1:].replace("_", " ")


def score_cell(value: Any, baseline: Any, scale: ScoreScale) -> Cell:
    """Show a score and its change from the baseline's.

    A share changes by points, an error by a part of it, any other score by its unit.

    Example:

    >>> score_cell(31.5, 32.0, ScoreScale("psnr", "dB"))
    Cell(text='31.5 dB', note='−0.5 dB', tone='worse')
    >>> score_cell(0.02, 0.04, ScoreScale("mean_squared_error", less_is_better=True))
    Cell(text='0.02', note='−50 %', tone='better')
    """
    if scale.unit == "share":
        return accuracy_cell(value, baseline)

    def text(amount: Any) -> str:
        return score_text(amount, scale.unit)

    if scale.less_is_better:
        return less_is_better_cell(value, baseline, text)
    difference = number(value) - number(baseline)
    if math.isnan(difference):
        return Cell(text(value))
    sign, tone = ("", "worse") if difference < 0 else ("+", "better") if difference else ("±", "")
    return Cell(text(value), sign + text(difference), tone)
