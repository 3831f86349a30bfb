"""`dprp latency --widths`: what each layer takes at each number of channels, in a file."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import keras
import pytest
from told_widths import told_widths
from typer.testing import CliRunner

import dprp_tf as dprp
from dprp_tf import deploy
from dprp_tf.cli.main import app
from dprp_tf.costs.width_table import WidthTable


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(16, 3, padding="same", activation="relu", name="first")(inputs)
    x = keras.layers.Conv2D(16, 3, strides=2, activation="relu", name="second")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    path = tmp_path_factory.mktemp("models") / "mine.keras"
    keras.Model(inputs, keras.layers.Dense(10, name="classes")(x)).save(path)
    return path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Times that are told instead of measured.

    Returns:
        What `measure_widths` was asked for, call by call.
    """
    calls: list[dict[str, Any]] = []

    def measure(network: keras.Model, **options: Any) -> WidthTable:
        calls.append({name: value for name, value in options.items() if name != "progress"})
        place = {name: options[name] for name in ("target", "runtime", "precision", "threads")}
        return told_widths(network, options["decomposition"], **place)

    monkeypatch.setattr(deploy, "measure_widths", measure)
    return calls


def test_a_table_by_width_is_measured_as_asked_printed_and_kept(
    model: Path, tmp_path: Path, asked: list[dict[str, Any]]
) -> None:
    path = tmp_path / "widths.json"
    words = ["--widths", "--precision", "int8", "--runtime", "onnxruntime", "--threads", 2]
    words += ["--multiple", 4, "--rounds", 5, "--exclude", "first", "--refresh"]
    result = invoke("latency", model, path, *words)
    assert result.exit_code == 0, result.output
    place = {"target": "local", "runtime": "onnxruntime", "precision": "int8", "threads": 2}
    of = {"decomposition": None, "groups": ["second"], "multiple": 4}
    assert asked == [{**place, **of, "rounds": 5, "refresh": True}]
    for part in ("share of the ms", "16 to 16", str(path)):
        assert part in result.stdout
    table = WidthTable.load(path)
    assert (table.runtime, table.threads) == ("onnxruntime", 2)
    shown = invoke("latency", "resnet_small", path, "--widths", "--json")
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout[shown.stdout.index("{") :]) == WidthTable.load(path).as_dict()


@pytest.mark.parametrize(
    "decomposition", [None, "separable", pytest.param("channel", marks=pytest.mark.slow)]
)
def test_the_next_step_takes_the_table(
    decomposition: str | None, model: Path, tmp_path: Path, asked: list[dict[str, Any]]
) -> None:
    path = tmp_path / "widths.json"
    words = () if decomposition is None else ("--decomposition", decomposition)
    result = invoke("latency", model, path, "--widths", *words, "--runtime", "onnxruntime")
    assert [one["decomposition"] for one in asked] == [decomposition]
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("next, "))
    step = shlex.split(line.partition(": dprp ")[2])
    step[step.index("PHOTOS")] = "digits"
    step[step.index("--folder") + 1] = str(tmp_path / "run")
    step[step.index("--time") + 1] = "0.9"
    assert ("less" in step) == (decomposition == "channel")
    step += ["--steps", "2", "--most-steps", "2"] if "less" in step else []
    done = invoke(*step, "--samples", 64, "--tolerance", 0.5)
    assert done.exit_code == 0, done.output
    assert WidthTable.load(tmp_path / "run" / "widths.json") == WidthTable.load(path)
    assert len(asked) == 1


@pytest.mark.slow
def test_what_is_measured_is_what_a_selection_spends(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DPRP_TF_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "widths.json"
    result = invoke("latency", model, path, "--widths", "--runtime", "onnxruntime", "--rounds", 3)
    assert result.exit_code == 0, result.output
    table = WidthTable.load(path)
    assert {row.name for row in table.layers} == {"first", "second", "classes"}
    assert table.by_name["second"].dense.reads == (8, 16)
    plan = dprp.select_channels(
        keras.saving.load_model(model), method="l1", budget={"time": 0.99}, latency=table
    )
    assert plan.shares["milliseconds"] <= 0.99


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--widths --rank 3", "`--rank` is for a table without `--widths`"),
        ("--multiple 4", "`--multiple` is for `--widths`"),
        ("--widths --multiple 0", "equal to 1"),
        ("--widths --exclude nobody", "`--exclude` must name layers of the model"),
        ("--widths --exclude first --exclude second", "must leave layers of which channels may go"),
        ("--widths --decomposition spatial", "`--decomposition` must be one of"),
        ("--widths --target moon", "moon"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    words: str, message: str, model: Path, tmp_path: Path
) -> None:
    result = invoke("latency", model, tmp_path / "widths.json", *words.split())
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
    assert not (tmp_path / "widths.json").exists()


def test_layers_with_ranks_have_no_table_by_width(model: Path, tmp_path: Path) -> None:
    low = tmp_path / "low.keras"
    dprp.factorize(keras.saving.load_model(model), decomposition="channel").save(low)
    result = invoke("latency", low, tmp_path / "widths.json", "--widths")
    assert result.exit_code == 2
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("error: "))
    assert "`MODEL` must have plain layers for `--widths`" in line
    assert "`dprp fold`" in line
