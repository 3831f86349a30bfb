"""What a run takes where nothing is said: by what is trained, the same everywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dprp_tf.cli.main import app
from dprp_tf.files.atomic import write_json
from dprp_tf.runs.checkpoints import check_config
from dprp_tf.runs.settings import FROM_SCRATCH, TRAINED, TrainSettings


@pytest.mark.parametrize(
    ("model", "table", "stop"),
    [("resnet20", FROM_SCRATCH, None), ("some/mine.keras", TRAINED, 8)],
)
def test_defaults_are_those_of_what_is_trained(
    model: str, table: dict[str, Any], stop: int | None
) -> None:
    settings = TrainSettings(model=model)
    assert {name: getattr(settings, name) for name in table} == dict(table)
    assert settings.stop_epoch == stop
    given = {"epochs": 5, "learning_rate": 0.3, "compression_weight": 2.0, "threshold": 0.7}
    given |= {"discarded_energy": 0.4, "frequency": 3, "stop_epoch": 2}
    settings = TrainSettings(model=model, **given)
    assert {name: getattr(settings, name) for name in given} == given


def test_zero_is_not_taken_for_nothing_said() -> None:
    settings = TrainSettings(model="a.keras", learning_rate=0, discarded_energy=0)
    assert (settings.learning_rate, settings.discarded_energy) == (0, 0)
    with pytest.raises(ValueError, match=r"`epochs` must be .* Received: epochs=0"):
        TrainSettings(model="a.keras", epochs=0)


def test_a_time_to_reach_says_itself_how_much_is_cut() -> None:
    settings = TrainSettings(model="a.keras", latency_table="t.json", milliseconds=1.0)
    assert settings.discarded_energy == 0
    assert settings.stop_epoch == 8


@pytest.mark.parametrize(
    ("epochs", "start", "stop"), [(1, 0, 1), (2, 0, 2), (3, 0, 2), (9, 3, 7), (4, 9, 10)]
)
def test_the_last_third_recovers(epochs: int, start: int, stop: int) -> None:
    settings = TrainSettings(model="a.keras", epochs=epochs, start_epoch=start)
    assert settings.stop_epoch == stop


def test_the_help_states_both_defaults() -> None:
    done = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "400"})
    for name in TRAINED:
        flag = f"--{name.replace('_', '-')} "
        (line,) = (one for one in done.output.splitlines() if one.strip("│* ").startswith(flag))
        scratch, trained = (
            value if isinstance(value, str) else f"{value:g}"
            for value in (FROM_SCRATCH[name], TRAINED[name])
        )
        assert f"{scratch}; from a trained .keras {trained}" in line


def _config(path: Path, **settings: Any) -> dict[str, Any]:
    values = {"settings": vars(TrainSettings(model="a.keras", **settings)), "data": "digits"}
    write_json(path, values)
    return json.loads(path.read_text())


def test_a_longer_run_may_shrink_for_longer(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    longer = _config(path, epochs=18)
    _config(path, epochs=12)
    check_config(path, longer)
    # Where it was given it is a setting like others.
    for before, now in (({"stop_epoch": 5}, {}), ({}, {"stop_epoch": 5}), ({}, {"stop_epoch": 9})):
        changed = _config(path, epochs=18, **now)
        _config(path, epochs=12, **before)
        with pytest.raises(ValueError, match="stop_epoch: "):
            check_config(path, changed)
