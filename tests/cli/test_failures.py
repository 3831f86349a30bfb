"""What is wrong with a folder, a file, the memory or the disk is one line and exit code 2."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from typer.testing import CliRunner

import dprp_tf as dprp
from dprp_tf.cli.console import print_table
from dprp_tf.cli.main import app
from dprp_tf.costs.rank_plan import PlannedRanks, RankPlan

JUNK = ("[]", "null", "3", '"text"', "true", "[[]]", "", "{", "[" * 10**5, "NaN", "\x00")


def _refused(*arguments: object) -> str:
    said = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert said.exit_code == 2, (said.exception, said.output)
    *warnings, error = said.stderr.splitlines()
    assert error.startswith("error: ")
    assert all(line.startswith("warning: ") for line in warnings)
    return str(error)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(10)]
    )
    path = tmp_path_factory.mktemp("models") / "dense.keras"
    network.save(path)
    return path


def _select(model: Path, folder: Path, *more: object) -> tuple[object, ...]:
    options = ("--data", "digits", "--image-size", 8, "--parameters", 0.5, "--method", "uniform")
    return ("select", model, "--folder", folder, *options, *more)


@pytest.mark.parametrize("content", JUNK, ids=range(len(JUNK)))
def test_settings_of_a_selection_that_are_none(model: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    for more in ((), ("--fresh",)):
        line = _refused(*_select(model, tmp_path, *more))
        assert str(tmp_path) in line.replace("\\\\", "\\")
        assert "config.json" in line
    assert (tmp_path / "config.json").read_text(encoding="utf-8") == content


@pytest.mark.parametrize("content", JUNK, ids=range(len(JUNK)))
@pytest.mark.parametrize("option", ["--plan", "--latency-table"])
def test_plans_that_are_none(model: Path, tmp_path: Path, content: str, option: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(content, encoding="utf-8")
    if option == "--plan":
        line = _refused("fold", model, tmp_path / "small.keras", "--plan", path)
    else:
        line = _refused(*_select(model, tmp_path / "run", option, path))
    assert str(path) in line


@pytest.mark.parametrize(
    "error", [MemoryError(), MemoryError("Unable to allocate 3 GiB for an array")]
)
def test_too_little_memory(model: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr("dprp_tf.conversion.summaries.summarize", fail)
    line = _refused("inspect", model)
    assert line.startswith(f"error: there is not enough memory ({str(error) or 'MemoryError'})")


def test_more_memory_than_there_is(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "dprp_tf.conversion.summaries.summarize", lambda _: np.ones(2**62 // 16, "f8")
    )
    assert "not enough memory (Unable to allocate" in _refused("inspect", model)


def test_a_mistake_of_ours_is_no_line(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dprp_tf.conversion.summaries.summarize", lambda _: {}["missing"])
    said = CliRunner().invoke(app, ["inspect", str(model)])
    assert isinstance(said.exception, KeyError)


@pytest.mark.parametrize(
    "write", ["pathlib.Path.write_text", "keras.Model.save"], ids=["text", "model"]
)
def test_a_full_disk(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(write, fail)
    line = _refused(*_select(model, tmp_path / "run", "--tolerance", 0.2))
    assert "No space left on device" in line
    assert str(tmp_path / "run") in line
    assert not list(tmp_path.rglob(".*.json"))


def test_a_long_name_of_a_model_is_written(model: Path, tmp_path: Path) -> None:
    factorized = tmp_path / "factorized.keras"
    dprp.factorize(keras.saving.load_model(model), ranks=2).save(factorized)
    output = tmp_path / ("a" * 240 + ".keras")
    said = CliRunner().invoke(app, ["fold", str(factorized), str(output)])
    assert said.exit_code == 0, said.output
    assert output.is_file()
    assert "File name too long" in _refused("fold", factorized, tmp_path / ("a" * 256 + ".keras"))


ZERO: dict[str, Callable[[dict[str, Any]], None]] = {
    "dense parameters": lambda plan: plan["dense"].update(parameters=0.0),
    "all of the dense model": lambda plan: plan["dense"].update(parameters=0.0, macs=0.0),
    "a cost that the dense model has not": lambda plan: plan["dense"].pop("macs"),
    "all": lambda plan: (plan["dense"].clear(), plan["cost"].clear()),  # type: ignore[func-returns-value]
    "weights of the layers": lambda plan: plan["layers"][0].update(
        parameters=0, dense_parameters=0
    ),
}


@pytest.mark.parametrize("what", ZERO)
def test_a_plan_of_nothing_is_shown(
    tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    row = PlannedRanks("conv", "channel", (3, 3, 4, 8), (8,), (2,), 0.1, 88, 288)
    costs = {"parameters": 96.0, "macs": 100.0}
    plan = RankPlan("energy", "channel", "kernel", {}, (row,), costs, costs)
    plan.save(tmp_path / "plan.json")
    values = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    ZERO[what](values)
    (tmp_path / "plan.json").write_text(json.dumps(values), encoding="utf-8")
    print_table(RankPlan.load(tmp_path / "plan.json"))
    assert "conv" in capsys.readouterr().out
