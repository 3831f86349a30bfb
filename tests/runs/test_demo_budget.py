"""What the demonstration asks for where half of the time can't be had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import pytest

from dprp_tf.costs.budget import Budget, BudgetError
from dprp_tf.data import load
from dprp_tf.files.atomic import read_json
from dprp_tf.runs import demo
from dprp_tf.runs.progress import Display
from dprp_tf.training.saving import save_model


@pytest.mark.parametrize(
    ("least", "expected"),
    [(0.52, Budget(time=0.65)), (0.605, Budget(time=0.75)), (0.95, Budget(parameters=0.5))],
)
def test_a_share_above_the_least_or_half_of_the_weights(least: float, expected: Budget) -> None:
    found = demo._attainable(least)
    assert found == expected
    assert found.time is None or least < found.time < 1


def test_the_cut_is_made_at_what_can_be_had_and_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Budget] = []

    def select(place: Path, model: keras.Model, dataset: Any, settings: Any, **options: Any) -> Any:
        asked.append(settings.budget)
        if settings.budget.time == 0.5:
            raise BudgetError(0.5, 0.6, metric="time")
        place.mkdir(exist_ok=True)
        save_model(model, place / "model.keras")

    monkeypatch.setattr(demo, "select_in_folder", select)
    monkeypatch.setattr(demo.WidthTable, "load", lambda path: None)
    (tmp_path / demo.WIDTHS).write_text("{}", encoding="utf-8")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])

    def cut() -> Budget:
        _, budget = demo._cut(tmp_path, model, load("digits"), 1, 0, False, Display(quiet=True))
        return budget

    assert cut() == Budget(time=0.7)
    assert asked == [Budget(time=0.5), Budget(time=0.7)]
    assert read_json(tmp_path / "budget.json")["time"] == 0.7
    # Run again, it asks for that at once, and what is finished there stays.
    assert cut() == Budget(time=0.7)
    assert asked[2:] == [Budget(time=0.7)]
