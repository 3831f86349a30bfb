"""Names that files bring: shown as they are, kept in JSON, and neither obeyed nor markup."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import pytest
from keras import layers
from made_plans import fold_plan
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

import dprp_tf as dprp
from dprp_tf.cli.console import print_table, told_warnings
from dprp_tf.cli.main import app
from dprp_tf.conversion.summaries import summarize
from dprp_tf.costs.form import Form
from dprp_tf.costs.latency_row import LayerLatency
from dprp_tf.costs.latency_table import LatencyTable
from dprp_tf.costs.rank_plan import PlannedRanks, RankPlan
from dprp_tf.report import bench_report, results_table
from dprp_tf.report.formatting import clean_name
from dprp_tf.runs.progress import Display

NAMES = ("[red]x[red]", "[/x]", ":dog:", "\x1b[31mred\x1b[0m", "a\rb", "\u202eback", "\x9b2J")
SHOWN = (
    "[red]x[red]",
    "[/x]",
    ":dog:",
    r"\x1b[31mred\x1b[0m",
    r"a\rb",
    r"\u202eback",
    r"\x9b2J",
)


def _invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def _harmless(text: str) -> bool:
    return not {*text} & {"\x1b", "\r", "\u202e", "\x9b"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A slash can't be in the name of a layer.
    names = [name for name in NAMES if "/" not in name]
    inputs = x = keras.Input((4,))
    for name in names:
        x = layers.Dense(4, name=name)(x)
    path = tmp_path_factory.mktemp("models") / "named.keras"
    dprp.factorize(keras.Model(inputs, x), ranks=2).save(path)
    return path


def test_a_models_layers_are_listed(model: Path) -> None:
    said = _invoke("inspect", model)
    assert said.exit_code == 0, said.output
    assert _harmless(said.stdout)
    for name, text in zip(NAMES, SHOWN, strict=True):
        assert text in said.stdout or "/" in name
    listed = json.loads(_invoke("inspect", model, "--json").stdout)["layers"]
    assert [row["name"] for row in listed] == [name for name in NAMES if "/" not in name]
    summary = str(summarize(dprp.load_model(model)))
    assert _harmless(summary)
    assert SHOWN[0] in summary


def test_folding_tells_them(model: Path, tmp_path: Path) -> None:
    said = _invoke("fold", model, tmp_path / "\x1b[31m.keras")
    assert said.exit_code == 0, said.output
    assert _harmless(said.stdout)
    for text in (r"\x1b[31mred\x1b[0m: rank 2", "[red]x[red]: rank 2", r"\x1b[31m.keras: "):
        assert text in said.stdout.replace("\n", "")


def _plans(name: str) -> list[Any]:
    row = PlannedRanks(name, "channel", (3, 3, 4, 8), (8,), (2,), 0.1, 88, 288)
    ranks = RankPlan(name, "channel", "kernel", {"parameters": 0.4}, (row,), {}, {})
    forms = fold_plan(Form("summed", (2,)))
    forms = replace(
        forms,
        layers=(replace(forms.layers[0], name=name, reason=name),),
        notes=(name, name),
        target=name,
        runtime=name,
    )
    layer = LayerLatency(name, "spatial", 9, 1.0, (1, 3), (0.2, 0.6), (name, name))
    times = LatencyTable((layer,), 5.0, name, "litert", "float32", 1, "ms", "some", "2.3")
    return [ranks, forms, times]


@pytest.mark.parametrize(("name", "text"), zip(NAMES, SHOWN, strict=True))
def test_plans_and_tables_show_them(
    name: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for plan in _plans(name):
        loaded = type(plan).load(plan.save(tmp_path / "plan.json"))
        assert loaded == plan
        # As our command, Python's `print` and a user's own console draw it.
        print_table(loaded)
        Console(color_system=None, width=200).print(loaded)
        print(loaded)
        drawn = capsys.readouterr().out
        assert _harmless(drawn)
        assert drawn.count(text) >= 3, (type(plan), drawn)


@pytest.mark.parametrize("name", NAMES)
def test_results_show_them(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    results = {
        "headline": {"text": name, "achieved": True, "checks": [{"name": name, "passed": True}]},
        "models": [{"name": name, "parameters": 100}],
        "files": [{"file": name, "format": name, "size_bytes": 900}],
    }
    bench = {
        "files": [{"name": name, "size_bytes": 900}],
        "runs": [{"target": name, "results": [{"median_ms": 0.4, "warnings": [f"{name}: a. b"]}]}],
        "failures": [{"target": name, "message": name}],
    }
    print_table(results_table(results))
    print_table(bench_report(bench))
    Console(color_system=None, width=200).print(results_table(results), bench_report(bench))
    drawn = capsys.readouterr().out
    assert _harmless(drawn)
    # On a page as in a terminal they are cleaned to one line.
    assert drawn.count(clean_name(name)) >= 3


@pytest.mark.parametrize(("name", "text"), zip(NAMES, SHOWN, strict=True))
def test_errors_and_warnings_show_them(
    name: str,
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = _invoke("inspect", tmp_path / f"{name}.keras")
    assert said.exit_code == 2
    assert said.stderr.count("\n") == 1
    assert _harmless(said.stderr)
    assert text in said.stderr.replace(r"\\", "\\") or name == "a\rb"
    with told_warnings():
        warnings.simplefilter("always")
        warnings.warn(f"the layer {name}", stacklevel=1)
    shown = capsys.readouterr().err
    assert _harmless(shown)
    assert shown.startswith("warning: the layer ")


def test_classes_are_named_in_errors(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for name in ("\x1b[31mcat", " ", "[dog]"):
        (folder / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(folder / name / "\x1b[2J.png")
    said = _invoke(
        *("train", "--model", "resnet_small", "--data", folder, "--folder", tmp_path / "run")
    )
    assert said.exit_code == 2
    assert _harmless(said.stderr)
    assert r"\x1b[31mcat" in said.stderr


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize(("name", "text"), zip(NAMES, SHOWN, strict=True))
def test_progress_shows_them(name: str, text: str, live: bool) -> None:
    console = Console(width=200, force_terminal=live, color_system=None, legacy_windows=False)
    with console.capture() as captured, Display(console) as display:
        display.step(name)
        display.search(name)(1.0, name)
        display.finish()
    drawn = captured.get()
    assert live or _harmless(drawn)
    assert live or drawn.count(text) == 3
    if live:
        # The display moves the cursor itself; of the names nothing does.
        assert "\x9b" not in drawn
        assert "\u202e" not in drawn
        assert "\x1b[31mred" not in drawn


CLOSED = """
import sys
from dprp_tf.cli.app import app, command
from dprp_tf.cli.console import print_json, print_table, print_text

@command
def told() -> None:
    for _ in range(100):
        {call}(["x" * 10_000])
    raise ValueError("it went on")

@command
def other() -> None: ...

app(["told"], prog_name="dprp")
"""


@pytest.mark.parametrize("call", ["print_json", "print_text", "print_table"])
def test_a_closed_pipe_ends_a_command_quietly(call: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CLOSED.format(call=call)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 141
