"""What a training shows after an epoch: figures that are there, and no others."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from dprp_tf.runs.progress import Display


@pytest.mark.parametrize(
    ("logs", "shown"),
    [
        ({"val_accuracy": 0.5, "accuracy": 0.9, "loss": 1.0}, "accuracy 0.500"),
        ({"accuracy": 0.9, "loss": 1.0}, "training accuracy 0.900"),
        ({"loss": 1.25}, "loss 1.250"),
        ({"val_accuracy": float("nan"), "loss": 1.0}, "accuracy not known"),
        ({}, ""),
        (None, ""),
        ({"loss": 1.0, "total_rank": 7.0, "parameters": 1234.0}, "loss 1.000  ranks 7"),
    ],
)
def test_a_missing_figure_is_not_shown_as_one(logs: dict[str, Any] | None, shown: str) -> None:
    text = io.StringIO()
    display = Display(Console(file=text, width=200))
    display.training("tuning", 3).on_epoch_end(0, logs)
    line = text.getvalue()
    assert line.startswith("tuning: epoch 1/3")
    assert shown in line
    assert "nan" not in line
