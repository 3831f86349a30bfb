"""`dprp select --cut channels` and `both` on digits: whole, gone on with, refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from told_widths import told_widths
from typer.testing import CliRunner

import dprp_tf as dprp
from dprp_tf import deploy
from dprp_tf.cli.main import app
from dprp_tf.costs.latency_table import LatencyTable
from dprp_tf.costs.models import model_cost
from dprp_tf.costs.width_table import WidthTable
from dprp_tf.data import Dataset
from dprp_tf.runs import choosing_channels, settings
from dprp_tf.runs.selecting import select_in_folder
from dprp_tf.runs.settings import SelectionSettings
from dprp_tf.runs.time_tables import load_table
from dprp_tf.selection.channel_choice import CHANNEL_METHODS


@pytest.fixture
def start(dense: keras.Model, tmp_path: Path) -> list[object]:
    dense.save(tmp_path / "dense.keras")
    given = ["select", tmp_path / "dense.keras", "--data", "digits", "--image-size", 8]
    return [*given, "--folder", tmp_path / "chosen", "--samples", 64]


def _invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def known_widths(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Times that are told instead of measured.

    Returns:
        What `measure_widths` was asked for, call by call.
    """
    asked: list[dict[str, Any]] = []

    def measure(model: Any, **options: Any) -> WidthTable:
        asked.append({name: value for name, value in options.items() if name != "progress"})
        place = {name: options[name] for name in ("target", "runtime", "precision", "threads")}
        return told_widths(model, options["decomposition"], **place)

    monkeypatch.setattr(deploy, "measure_widths", measure)
    return asked


def test_the_command_removes_channels_tunes_and_shows_it(
    start: list[object], digits: Dataset, tmp_path: Path
) -> None:
    folder = tmp_path / "chosen"
    bounds = ["--cut", "channels", "--macs", 0.6]
    result = _invoke(*start, *bounds, "--precision", "none", "--epochs", 1)
    assert result.exit_code == 0, result.output
    assert "Channels by outputs, in multiples of 8" in " ".join(result.stdout.split())
    assert "every candidate" not in result.stdout
    plan = dprp.ChannelPlan.load(folder / "channel_plan.json")
    found = json.loads((folder / "selection.json").read_text())
    assert found["shares"] == plan.shares
    assert plan.shares["macs"] <= 0.6
    cut = keras.saving.load_model(folder / "cut.keras")
    assert model_cost(cut).macs == plan.cost["macs"]
    x = digits.x_test.astype("float32")
    right = np.mean(cut.predict(x, verbose=0).argmax(-1) == digits.y_test)
    assert found["accuracy"]["cut"] == pytest.approx(right)
    assert set(found["accuracy"]) == {"dense", "cut", "tuned"}
    assert (folder / "channel_plan.png").stat().st_size > 5_000
    assert not (folder / "rank_plan.json").exists()
    config = json.loads((folder / "config.json").read_text())
    assert (config["cut"], config["multiple"]) == ("channels", 8)
    page = (folder / "report.html").read_text(encoding="utf-8")
    for part in ("Selected channels on digits", "plot-channel_plan", "asked: macs 0.6"):
        assert part in page
    assert _invoke("report", folder).exit_code == 0
    assert (folder / "report.html").read_text(encoding="utf-8") == page
    told = _invoke("look", folder)
    assert "channels chosen for a trained model" in told.stdout
    assert "ranks" not in told.stdout


@pytest.mark.slow
def test_the_same_command_goes_on_and_another_is_refused(
    start: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "chosen"
    command = [*start, "--cut", "channels", "--macs", 0.6, "--precision", "none"]
    command += ["--epochs", 1, "--distill"]
    with monkeypatch.context() as broken:
        broken.setattr("dprp_tf.runs.selecting.save_model", _stop)
        assert _invoke(*command).exit_code == 130
    plan = dprp.ChannelPlan.load(folder / "channel_plan.json")
    assert not (folder / "selection.json").exists()
    told = _invoke("look", folder)
    assert "channels chosen" in told.stdout
    assert "it was interrupted: the same `dprp select` goes on" in told.stdout
    # The plan that is there is taken; nothing is chosen again.
    monkeypatch.setattr(choosing_channels, "select_channels", pytest.fail)
    again = _invoke(*command)
    assert again.exit_code == 0, again.output
    assert dprp.ChannelPlan.load(folder / "channel_plan.json") == plan
    (log,) = (json.loads(path.read_text()) for path in folder.rglob("tuning.json"))
    assert "distillation_loss" in log["history"][0]
    refused = _invoke(*command, "--multiple", 4)
    assert refused.exit_code == 2
    assert "'multiple'" in refused.stderr
    monkeypatch.undo()
    fresh = _invoke(*command, "--multiple", 4, "--fresh")
    assert fresh.exit_code == 0, fresh.output
    assert dprp.ChannelPlan.load(folder / "channel_plan.json").multiple == 4


def _stop(*arguments: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_both_are_chosen_for_a_share_of_the_time_and_timed(
    dense: keras.Model,
    digits: Dataset,
    tmp_path: Path,
    known_widths: list[dict[str, Any]],
) -> None:
    chosen = SelectionSettings(
        cut="both", budget=dprp.Budget(time=0.4, tolerance=0.2), runtime="onnxruntime", samples=128
    )
    found = select_in_folder(tmp_path, dense, digits, chosen)
    place = {"target": "local", "runtime": "onnxruntime", "precision": "int8", "threads": 1}
    of = {"decomposition": "separable", "groups": None, "multiple": 8}
    assert known_widths == [{**place, **of}]
    plan = dprp.JointPlan.load(tmp_path / "joint_plan.json")
    assert plan.shares["milliseconds"] <= 0.4 + 1e-9
    table = load_table(tmp_path / "widths.json", chosen)
    assert isinstance(table, WidthTable)
    assert [row["file"] for row in found["files"]] == ["dense_int8.onnx", "cut_int8.onnx"]
    cut = keras.saving.load_model(tmp_path / "cut.keras")
    assert cut.count_params() == plan.cost["parameters"]
    # Fitted to the samples that it was chosen on, as the plan's accuracy is.
    alone = dprp.cut(dense, plan, latency=table)
    pairs = zip(cut.get_weights(), alone.get_weights(), strict=True)
    assert any(np.abs(one - other).max() > 1e-4 for one, other in pairs)
    assert not (tmp_path / "latency.json").exists()
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for part in ("Selected channels and ranks", 'id="joint-plan"', "plot-channel_plan"):
        assert part in page
    # A folder goes on with what was measured for it.
    select_in_folder(tmp_path, dense, digits, chosen)
    assert len(known_widths) == 1


def test_a_stored_table_of_widths_says_what_the_files_are_for(
    dense: keras.Model, digits: Dataset, tmp_path: Path, known_widths: list[dict[str, Any]]
) -> None:
    place = {"target": "local", "runtime": "onnxruntime", "precision": "float32", "threads": 1}
    table = told_widths(dense, None, **place)
    chosen = SelectionSettings(
        cut="channels", method="l1", budget=dprp.Budget(milliseconds=3.0), samples=64
    )
    found = select_in_folder(tmp_path / "chosen", dense, digits, chosen, latency=table)
    assert known_widths == []
    assert found["settings"]["precision"] == "float32"
    assert found["files"][-1]["file"] == "cut_float32.onnx"
    assert WidthTable.load(tmp_path / "chosen" / "widths.json") == table
    both = replace(chosen, cut="both", method="outputs")
    with pytest.raises(ValueError, match="`latency` must know 'separable' ranks"):
        select_in_folder(tmp_path / "both", dense, digits, both, latency=table)
    assert {path.name for path in (tmp_path / "both").iterdir()} <= {".lock"}


def test_a_table_of_the_other_kind_is_named(
    start: list[object], dense: keras.Model, tmp_path: Path
) -> None:
    place = {"target": "local", "runtime": "litert", "precision": "int8", "threads": 1}
    widths = told_widths(dense, None, **place).save(tmp_path / "widths.json")
    ranks = LatencyTable((), 1.0, **place, unit="ms", processor="some", runtime_version="1")
    ranks.save(tmp_path / "latency.json")
    (tmp_path / "else.json").write_text('{"version": 1}')
    for cut, path, message in (
        ("ranks", widths, "`--latency-table` must be a latency table, of times by rank"),
        ("channels", tmp_path / "latency.json", "must be a width table, of times by channels"),
        ("both", tmp_path / "latency.json", "Received: a latency table"),
        ("both", tmp_path / "else.json", "holds no usable width table"),
    ):
        result = _invoke(*start, "--cut", cut, "--time", 0.5, "--latency-table", path)
        assert result.exit_code == 2, result.output
        (line,) = (line for line in result.stderr.splitlines() if line.startswith("error"))
        assert message in line
    assert not (tmp_path / "chosen").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--cut sideways --macs 0.5", "`--cut` must be one of"),
        (
            "--cut channels --macs 0.5 --method mbs",
            "`--method` must be outputs or activation or l1 or",
        ),
        (
            "--cut both --macs 0.5 --method l1",
            "`--method` must be outputs or less where channels",
        ),
        ("--macs 0.5 --method l1", "`--method` must be one for ranks, or `--cut channels` given"),
        ("--cut channels --accuracy-drop 0.01", "Received: --accuracy-drop 0.01"),
        (
            "--cut both --macs 0.5 --accuracy-drop 0.01",
            "must bound `--parameters`, `--macs`, `--time`",
        ),
        ("--cut both --activations 0.5", "alone for `--cut both`. Received: --activations 0.5"),
        ("--cut both --macs 0.5 --decomposition spatial", "`--decomposition` must be separable"),
        ("--cut channels --macs 0.5 --truncation kernel", "`--truncation` is for `--cut ranks`"),
        ("--cut channels --macs 0.5 --search 3,5", "for mbs and bsr"),
        ("--cut channels --time 0.5 --precision none", "with a `--precision` to measure in"),
        ("--cut channels --macs 0.5 --exclude nothing", "`--exclude` must name layers"),
        (
            "--cut channels --macs 0.5 --exclude first --exclude second --precision none",
            "`--exclude` must leave layers of which channels may go",
        ),
        ("--cut channels --macs 0.001 --precision none", "`--macs` must be at least"),
    ],
)
def test_what_does_not_go_together_ends_with_one_line(
    arguments: str, message: str, start: list[object], tmp_path: Path
) -> None:
    result = _invoke(*start, *arguments.split())
    assert result.exit_code == 2, result.output
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("error: "))
    assert message in line
    assert "Traceback" not in result.output
    # Nothing is left that a better command would trip over.
    left = (tmp_path / "chosen").glob("*") if (tmp_path / "chosen").exists() else []
    assert {path.name for path in left} <= {".lock"}


def test_excluded_layers_keep_their_filters(
    dense: keras.Model, digits: Dataset, tmp_path: Path
) -> None:
    chosen = SelectionSettings(
        cut="channels",
        method="l2",
        budget=dprp.Budget(parameters=0.7),
        exclude=("second",),
        precision=None,
        samples=64,
    )
    select_in_folder(tmp_path, dense, digits, chosen)
    plan = dprp.ChannelPlan.load(tmp_path / "channel_plan.json")
    assert [row.name for row in plan.groups] == ["first"]
    assert keras.saving.load_model(tmp_path / "cut.keras").get_layer("second").filters == 24


def test_excluded_layers_are_cut_neither_way(
    dense: keras.Model, digits: Dataset, tmp_path: Path
) -> None:
    chosen = SelectionSettings(
        cut="both",
        budget=dprp.Budget(parameters=0.6),
        exclude=("first", "classes"),
        precision=None,
        samples=64,
    )
    select_in_folder(tmp_path, dense, digits, chosen)
    plan = dprp.JointPlan.load(tmp_path / "joint_plan.json")
    assert [row.name for row in plan.channels.groups] == ["second"]
    assert {row.name for row in plan.ranks.layers} <= {"second"}


def test_a_plan_of_another_model_is_not_taken(
    dense: keras.Model, digits: Dataset, tmp_path: Path
) -> None:
    chosen = SelectionSettings(
        cut="channels", method="l1", budget=dprp.Budget.of(0.7), precision=None, samples=64
    )
    select_in_folder(tmp_path, dense, digits, chosen)
    other = keras.models.clone_model(dense)
    other.set_weights([1.01 * weight for weight in dense.get_weights()])
    with pytest.raises(ValueError, match="the same weights, data and settings"):
        select_in_folder(tmp_path, other, digits, chosen)


def test_folders_that_were_begun_without_a_choice_go_on_as_ranks(
    dense: keras.Model, digits: Dataset, tmp_path: Path
) -> None:
    chosen = SelectionSettings(
        method="uniform", budget=dprp.Budget(parameters=0.7, tolerance=0.3), precision=None
    )
    known = chosen.as_dict()
    assert not {"cut", "multiple", "distill"} & set(known)
    (tmp_path / "config.json").write_text(json.dumps(known))
    select_in_folder(tmp_path, dense, digits, chosen)
    assert (tmp_path / "rank_plan.json").exists()
    narrower = replace(chosen, cut="channels", method="activation")
    with pytest.raises(ValueError, match=r"differs in \['cut', 'method', 'multiple'\]"):
        select_in_folder(tmp_path, dense, digits, narrower)


def test_settings_know_the_methods_there_are() -> None:
    assert settings._CHANNEL_METHODS == CHANNEL_METHODS
