"""`dprp channels`: what may go, as a table and as JSON, and what comes next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
from typer.testing import CliRunner

from dprp_tf.cli.main import app


def _invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["channels", *map(str, arguments)])


def test_groups_are_listed_with_what_keeps_them(tmp_path: Path) -> None:
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(16, 3, padding="same", name="first")(inputs)
    y = keras.layers.Conv2D(16, 3, padding="same", name="second")(x)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Add()([x, y]))
    path = tmp_path / "mine.keras"
    keras.Model(inputs, keras.layers.Dense(10, name="classes")(x)).save(path)
    told = _invoke(path)
    assert told.exit_code == 0, told.output
    for words in ("first", "second", "what keeps", "a model output", "next, a narrower model"):
        assert words in told.stdout
    found = json.loads(_invoke(path, "--json").stdout)
    assert found["groups"][0] == {
        "name": "first",
        "channels": 16,
        "prunable": 16,
        "layers": ["first", "second"],
        "readers": ["second", "classes"],
        "reason": None,
    }
    assert found["groups"][1]["reason"] == "a model output"
    assert found["prunable_share"] == 30 / 42


def test_a_model_that_can_lose_none_is_led_nowhere(tmp_path: Path) -> None:
    inputs = keras.Input((4,))
    path = tmp_path / "only.keras"
    keras.Model(inputs, keras.layers.Dense(2)(inputs)).save(path)
    told = _invoke(path)
    assert told.exit_code == 0, told.output
    assert "next" not in told.stdout
    missing = _invoke(tmp_path / "none.keras")
    assert missing.exit_code == 2
    assert missing.stderr.count("\n") == 1
