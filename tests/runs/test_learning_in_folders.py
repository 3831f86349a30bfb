"""`dprp select --method less` on digits: whole, interrupted, gone on with, refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
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
from dprp_tf.costs.models import model_cost
from dprp_tf.costs.width_table import WidthTable
from dprp_tf.data import Dataset
from dprp_tf.runs import learning_plans
from dprp_tf.runs.kept_plans import load_plan
from dprp_tf.runs.learning_plans import learning_data, learning_of, samples_of_cuts
from dprp_tf.runs.selecting import _held_out, select_in_folder
from dprp_tf.runs.settings import SelectionSettings
from dprp_tf.selection.methods.learning_state import LearningState
from dprp_tf.selection.methods.less import LeSS

_SCRIPT = Path(__file__).with_name("killed_dprp.py")
_LIMIT = 300
FEW = {"steps": 60, "most_steps": 60, "adam_rate": 0.03}
KINDS = {"ranks": dprp.RankPlan, "channels": dprp.ChannelPlan, "both": dprp.JointPlan}
WORDS = {"ranks": "ranks", "channels": "channels", "both": "channels and ranks"}


@pytest.fixture
def start(dense: keras.Model, tmp_path: Path) -> list[object]:
    dense.save(tmp_path / "dense.keras")
    given = ["select", tmp_path / "dense.keras", "--data", "digits", "--image-size", 8]
    given += ["--folder", tmp_path / "chosen", "--samples", 64, "--method", "less"]
    return [*given, "--precision", "none"]


@pytest.fixture
def few(start: list[object]) -> list[object]:
    options = [word for name, value in FEW.items() for word in (_flag(name), value)]
    return [*start, *options, "--macs", 0.5]


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends a learning when it has been kept for the first time."""
    keep = LearningState.keep

    def keep_and_stop(self: LearningState, variables: Any) -> None:
        keep(self, variables)
        raise KeyboardInterrupt

    monkeypatch.setattr(LearningState, "keep", keep_and_stop)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def _error(result: Any) -> str:
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("error: "))
    return line


@pytest.mark.parametrize(
    ("cut", "decomposition"),
    [
        ("channels", None),
        ("both", None),
        ("ranks", None),
        ("both", "tucker"),
        pytest.param("ranks", "tucker", marks=pytest.mark.slow),
    ],
)
def test_what_is_learned_is_cut_scored_on_what_was_held_out_and_shown(
    cut: str, decomposition: str | None, few: list[object], digits: Dataset, tmp_path: Path
) -> None:
    folder = tmp_path / "chosen"
    words = () if decomposition is None else ("--decomposition", decomposition)
    result = _invoke(*few, "--cut", cut, *words)
    assert result.exit_code == 0, result.output
    assert (folder / "less" / "less.npz").exists()
    assert "every candidate" not in result.stdout
    plan = load_plan(folder, cut)
    assert isinstance(plan, KINDS[cut])
    assert plan.method == "less"
    found = json.loads((folder / "selection.json").read_text())
    assert found["shares"] == plan.shares
    assert plan.budget["macs"] == 0.5
    if cut != "channels":
        part = plan.ranks if isinstance(plan, dprp.JointPlan) else plan
        assert isinstance(part, dprp.RankPlan)
        assert part.decomposition == (decomposition or "channel")
        assert any(isinstance(pair, tuple) for pair in part.ranks.values()) == bool(decomposition)
    assert (0.0 if cut == "channels" else 0.495) <= plan.shares["macs"] <= 0.5
    small = keras.saving.load_model(folder / "cut.keras")
    counted = model_cost(small)
    assert (plan.cost["parameters"], plan.cost["macs"]) == (counted.parameters, counted.macs)
    # The model that is kept is the one the plan tells the accuracy of, on samples held out.
    (x, y), _ = _held_out(digits, 64, seed=0)
    right = float(np.mean(small.predict(x, verbose=0).argmax(-1) == y))
    assert plan.accuracy["planned"] == pytest.approx(right)
    assert {name: found["settings"][name] for name in FEW} == FEW
    page = (folder / "report.html").read_text(encoding="utf-8")
    for part in (f"Selected {WORDS[cut]} on digits", "asked: macs 0.5", "less"):
        assert part in page
    assert f"{WORDS[cut]} chosen for a trained model" in _invoke("look", folder).stdout


def test_what_is_learned_from_is_neither_held_out_nor_tested(
    dense: keras.Model, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: dict[str, Any] = {}

    def learn(model: Any, data: Any, **options: Any) -> Any:
        taken.update(options, data=data)
        raise KeyboardInterrupt

    monkeypatch.setattr(learning_plans, "learn_channels_and_ranks", learn)
    settings = SelectionSettings(
        dprp.Budget(macs=0.5), cut="both", method="less", samples=64, data_share=0.5, seed=3
    )
    with pytest.raises(KeyboardInterrupt):
        select_in_folder(tmp_path, dense, digits, settings)
    assert taken["learning"] == LeSS(data_share=0.5)
    x, _ = taken["validation_data"]
    data = taken["data"]
    whole = len(digits.x_train)
    assert (len(x), len(data.x_train)) == (64, whole - 64)
    rows = {image.astype("float32").tobytes(): at for at, image in enumerate(digits.x_train)}
    learned = {rows[image.astype("float32").tobytes()] for image in data.x_train}
    held_out = {rows[image.tobytes()] for image in x}
    alike = whole - len(rows)  # a few images are there twice
    assert len(learned & held_out) <= alike
    assert len(learned | held_out) == len(rows)
    # Of samples sorted by class, the first ones would not stand for all.
    assert set(data.y_train[:64].tolist()) == set(range(10))
    np.testing.assert_array_equal(samples_of_cuts(data), data.x_train[:512].astype("float32"))
    again = learning_data(digits, seed=3)
    assert sorted(again.y_train) == sorted(digits.y_train)


def test_an_interrupted_learning_goes_on_and_another_is_refused(
    few: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: None
) -> None:
    folder = tmp_path / "chosen"
    command = [*few, "--cut", "channels"]
    assert _invoke(*command).exit_code == 130
    assert not (folder / "channel_plan.json").exists()
    assert (folder / "less" / "less.npz").exists()
    monkeypatch.undo()
    for words, name in ((("--adam-rate", 0.02), "adam_rate"), (("--steps", 30), "steps")):
        assert name in _error(_invoke(*command, *words))
    taken = []
    note = LearningState.note
    monkeypatch.setattr(
        LearningState, "note", lambda self, *values: taken.append(values) or note(self, *values)
    )
    result = _invoke(*command)
    assert result.exit_code == 0, result.output
    assert len(taken) == FEW["most_steps"] - 50
    plan = dprp.ChannelPlan.load(folder / "channel_plan.json")
    # The plan that is there is taken; nothing is learned again.
    monkeypatch.setattr(learning_plans, "learn_channels_and_ranks", pytest.fail)
    assert _invoke(*command).exit_code == 0
    monkeypatch.undo()
    afresh = [word if word != folder else tmp_path / "afresh" for word in command]
    assert _invoke(*afresh).exit_code == 0
    assert dprp.ChannelPlan.load(tmp_path / "afresh" / "channel_plan.json") == plan


@pytest.mark.slow
def test_a_learning_of_another_model_is_refused_and_discarded_if_asked(
    few: list[object],
    dense: keras.Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stopped: None,
) -> None:
    assert _invoke(*few).exit_code == 130
    monkeypatch.undo()
    state = (tmp_path / "chosen" / "less" / "less.npz").read_bytes()
    other = keras.models.clone_model(dense)
    other.set_weights([1.01 * weight for weight in dense.get_weights()])
    other.save(tmp_path / "dense.keras")
    assert "the same weights, data and settings" in _error(_invoke(*few))
    assert (tmp_path / "chosen" / "less" / "less.npz").read_bytes() == state
    fresh = _invoke(*few, "--fresh")
    assert fresh.exit_code == 0, fresh.output


@pytest.mark.slow
def test_a_learning_that_was_killed_is_bit_for_bit_one_that_was_not(
    few: list[object], tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    words = [*few, "--cut", "both", "--steps", 120, "--most-steps", 120]

    def select(folder: Path, moment: str) -> int:
        here = [str(folder if word == tmp_path / "chosen" else word) for word in words]
        process = subprocess.run(
            [sys.executable, str(_SCRIPT), str(folder / "less"), moment, *here],
            capture_output=True,
            timeout=_LIMIT,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        assert process.returncode in (0, -signal.SIGKILL), process.stderr.decode()[-2000:]
        return process.returncode

    assert select(whole, "none") == 0
    # Its second state is written and has not got its name.
    assert select(killed, "rename:less.npz:2") == -signal.SIGKILL
    with np.load(killed / "less" / "less.npz") as kept:
        assert len(kept["losses"]) == 50
    assert list((killed / "less").glob(".less.*"))
    assert select(killed, "none") == 0
    for name in ("joint_plan.json", "selection.json"):
        assert (killed / name).read_text() == (whole / name).read_text(), name
    ours, theirs = (keras.saving.load_model(f / "cut.keras") for f in (killed, whole))
    for mine, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, other)
    assert not list((killed / "less").glob(".less.*"))


@pytest.mark.slow
@pytest.mark.parametrize("cut", ["ranks", "channels", "both"])
def test_a_share_of_the_time_is_measured_for_by_width(
    cut: str,
    dense: keras.Model,
    digits: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[dict[str, Any]] = []

    def measure(model: Any, **options: Any) -> WidthTable:
        asked.append({name: value for name, value in options.items() if name != "progress"})
        place = {name: options[name] for name in ("target", "runtime", "precision", "threads")}
        return told_widths(model, options["decomposition"], **place)

    monkeypatch.setattr(deploy, "measure_widths", measure)
    chosen = SelectionSettings(
        dprp.Budget(time=0.6, tolerance=0.2),
        cut=cut,
        method="less",
        runtime="onnxruntime",
        samples=64,
        **FEW,
    )
    found = select_in_folder(tmp_path, dense, digits, chosen)
    (options,) = asked
    assert options["decomposition"] == (None if cut == "channels" else "channel")
    assert options["groups"] == (() if cut == "ranks" else None)
    plan = load_plan(tmp_path, cut)
    assert plan.shares["milliseconds"] <= 0.6 + 1e-9
    assert plan.budget["milliseconds"] == pytest.approx(0.6 * plan.dense["milliseconds"])
    assert found["files"][-1]["file"] == "cut_int8.onnx"
    assert not (tmp_path / "latency.json").exists()
    select_in_folder(tmp_path, dense, digits, chosen)
    assert len(asked) == 1


def test_a_table_by_rank_alone_is_refused(start: list[object], tmp_path: Path) -> None:
    place = {"target": "local", "runtime": "litert", "precision": "int8", "threads": 1}
    table = dprp.LatencyTable((), 1.0, **place, unit="ms", processor="some", runtime_version="1")
    table.save(tmp_path / "latency.json")
    words = ("--time", 0.5, "--latency-table", tmp_path / "latency.json")
    line = _error(_invoke(*start, *words))
    assert (
        "`--latency-table` must be a width table, of times by channels, for `--method less" in line
    )
    assert "`dprp latency --widths`" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--macs 0.5 --decomposition separable", "must be channel or tucker, whose ranks"),
        ("--time 0.5 --decomposition tucker", "`--decomposition` must be channel for a budget of"),
        ("--milliseconds 5 --decomposition tucker --cut both", "no table knows the times"),
        ("--macs 0.5 --cut both --decomposition spatial", "Received: --decomposition 'spatial'"),
        ("--macs 0.5 --cut both --truncation kernel", "`--truncation` is for `--cut ranks`"),
        ("--accuracy-drop 0.01", "must bound `--parameters`, `--macs`, `--time`"),
        ("--macs 0.5 --data-share 1.5", "`--data-share` must be a finite number above 0 and at"),
        ("--macs 0.5 --steps 0", "--steps"),
        ("--macs 0.5 --method energy --steps 5", "`--steps` is for `--method less`, which learns"),
        ("--macs 0.5 --method l1 --cut channels --data-share 0.5", "Received: --data-share 0.5"),
        ("--macs 0.0001 --cut channels", "`--macs` must be at least"),
        ("--macs 0.0001", "`--macs` must be at least"),
        ("--macs 0.5 --exclude nothing", "`--exclude` must name layers"),
        ("--time 0.5 --cut both", "with a `--precision` to measure in"),
    ],
)
def test_what_does_not_go_together_ends_with_one_line(
    arguments: str,
    message: str,
    start: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(LeSS, "learn", pytest.fail)  # it is said before minutes are spent
    result = _invoke(*start, *arguments.split())
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
    # Nothing is left that a better command would trip over.
    left = (tmp_path / "chosen").glob("*") if (tmp_path / "chosen").exists() else []
    assert {path.name for path in left} <= {".lock"}


def test_settings_are_those_of_the_method() -> None:
    made = SelectionSettings(dprp.Budget(macs=0.5), cut="both", method="less")
    assert learning_of(made) == LeSS()
    assert made.decomposition == "channel"
    assert replace(made, decomposition="tucker").as_dict()["decomposition"] == "tucker"
    assert learning_of(replace(made, cut="ranks")) == LeSS(masks=False)
    other = SelectionSettings(dprp.Budget(macs=0.5))
    assert other.decomposition == "separable"
    # Folders of other methods are as they were before there was this one.
    assert set(made.as_dict()) - set(other.as_dict()) == {*FEW, "data_share", "cut", "multiple"}
