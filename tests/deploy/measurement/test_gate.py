"""A gate for builds: equal files never trip it, planted regressions always do."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
from counting_target import CountingTarget
from typer.testing import CliRunner

from dprp_tf import deploy
from dprp_tf.cli.main import app
from dprp_tf.data import load as load_data
from dprp_tf.deploy.measurement import gate as gates
from dprp_tf.deploy.measurement.intervals import ratio_interval


def _network(width: int, seed: int = 0) -> keras.Model:
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(width, 3, padding="same", activation="relu")(inputs)
    x = keras.layers.Conv2D(width, 3, padding="same", activation="relu")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(10)(x))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file, the same again, and one that takes several times as long."""
    folder = tmp_path_factory.mktemp("files")
    for name, width in (("base", 16), ("slow", 64)):
        deploy.export(_network(width), folder / f"{name}.tflite")
    shutil.copyfile(folder / "base.tflite", folder / "same.tflite")
    return {path.stem: path for path in folder.glob("*.tflite")}


class _Times:
    """Made-up times in place of measured ones: noise, a bias by place, and a true ratio."""

    def __init__(self, seed: int, ratio: float, noise: float, bias: float = 0.0) -> None:
        self._random = np.random.default_rng(seed)
        self._ratio, self._noise, self._bias = ratio, noise, bias
        self.repeats: list[int] = []

    def __call__(self, paths: Sequence[Path], *, repeats: int, **options: Any) -> Any:
        self.repeats.append(repeats)
        # A slow moment of the machine hits both files of a round.
        moment = np.exp(self._random.normal(0, self._noise, repeats))
        found = []
        for place, path in enumerate(paths):
            own = np.exp(self._random.normal(0, self._noise / 2, repeats))
            slower = self._ratio if path.stem != "base" else 1.0
            found.append(slower * (1 + self._bias * place) * moment * own)
        ratios = [SimpleNamespace(ratio=1.0)]
        ratio, low, high = ratio_interval(found[1], found[0])
        ratios.append(SimpleNamespace(ratio=ratio, low=low, high=high))
        return SimpleNamespace(ratios=ratios)


@pytest.mark.parametrize("bias", [0.0, 0.08])
def test_fifty_gates_of_equal_files_never_trip(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, bias: float
) -> None:
    # With a bias the second file of a run keeps 8 percent by its place alone.
    for seed in range(50):
        monkeypatch.setattr(gates, "compare", _Times(seed, 1.0, 0.2, bias))
        assert gates.gate(files["base"], files["same"]).passed


@pytest.mark.parametrize("noise", [0.02, 0.1, 0.2])
def test_fifty_planted_regressions_always_trip(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, noise: float
) -> None:
    for seed in range(50):
        monkeypatch.setattr(gates, "compare", _Times(seed, 1.3, noise, 0.05))
        report = gates.gate(files["base"], files["slow"])
        assert report.slower, report.ratios
        assert not report.passed


def test_what_is_not_clear_is_measured_longer_and_passes_with_a_word(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = _Times(1, 1.05, 0.5)
    monkeypatch.setattr(gates, "compare", times)
    report = gates.gate(files["base"], files["slow"], repeats=10)
    assert times.repeats == [10, 20, 40, 80, 160]
    assert report.passed
    assert report.undecided
    assert "which is not clear" in report.text


def test_counted_instructions_are_clear_in_one_run(files: dict[str, Path]) -> None:
    target = CountingTarget()
    slow = gates.gate(files["base"], files["slow"], target=target)
    assert slow.slower
    assert len(slow.ratios) == 1
    assert gates.gate(files["base"], files["same"], target=target).ratios == ((1.0, 1.0, 1.0),)
    assert gates.gate(files["slow"], files["base"], target=target).passed


def test_real_files_are_told_apart_on_this_machine(files: dict[str, Path]) -> None:
    report = gates.gate(files["base"], files["slow"], repeats=20)
    assert not report.passed
    assert len(report.ratios) == 3
    assert all(low > 1.05 for _, low, _ in report.ratios)
    assert gates.gate(files["slow"], files["base"], repeats=20).passed


@pytest.mark.slow
def test_fifty_real_gates_of_equal_files_never_trip(files: dict[str, Path]) -> None:
    reports = [gates.gate(files["base"], files["same"], repeats=20) for _ in range(50)]
    assert all(report.passed for report in reports)


def test_what_is_lost_of_the_score_is_exact_on_the_samples(
    files: dict[str, Path], tmp_path: Path
) -> None:
    x = np.random.default_rng(0).normal(size=(200, 8, 8, 1)).astype("float32")
    # The old file is always right by its own labels; the new one is of other weights.
    y = np.argmax(deploy.run_file(files["base"], x), -1)
    deploy.export(_network(16, seed=1), tmp_path / "other.tflite")
    other = np.argmax(deploy.run_file(tmp_path / "other.tflite", x), -1)
    right = float(np.mean(other == y))
    assert right < 0.9

    def judged(new: Path, drop: float) -> gates.GateReport:
        return gates.gate(files["base"], new, max_ratio=50, max_drop=drop, data=(x, y), repeats=5)

    same = judged(files["same"], 0.0)
    assert same.passed
    assert same.scores == (1.0, 1.0)
    worse = judged(tmp_path / "other.tflite", 0.9 - right)
    assert worse.worse
    assert worse.scores == pytest.approx((1.0, right))
    # Just as much as was lost may be lost.
    assert judged(tmp_path / "other.tflite", 1 - right).passed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_ratio": 0}, "`max_ratio` must"),
        ({"max_drop": 0.01}, "`max_drop` and `data` must be given together"),
        ({"max_drop": -1.0}, "`max_drop` must"),
        ({"repeats": 0}, "`repeats` must"),
        ({"target": "elsewhere"}, "elsewhere"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    files: dict[str, Path], options: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, deploy.TargetError), match=message):
        gates.gate(files["base"], files["same"], **options)
    with pytest.raises(FileNotFoundError):
        gates.gate(files["base"], "missing.tflite")


def test_the_command_ends_with_a_code_that_a_build_stops_at(files: dict[str, Path]) -> None:
    def dprp(*words: object) -> Any:
        return CliRunner().invoke(app, ["gate", *map(str, words)])

    passed = dprp(files["slow"], files["base"], "--repeats", 10)
    assert passed.exit_code == 0, passed.output
    assert "passed: base.tflite takes" in passed.output
    refused = dprp(files["base"], files["slow"], "--repeats", 10)
    assert refused.exit_code == 1
    assert "REFUSED: slow.tflite takes" in refused.output
    told = dprp(files["base"], files["slow"], "--repeats", 10, "--max-ratio", 100, "--json")
    assert told.exit_code == 0
    assert '"passed": true' in told.stdout
    wrong = dprp(files["base"], files["same"], "--max-drop", 0.5)
    assert wrong.exit_code == 2
    assert "`--max-drop` and `--data` must be given together" in wrong.output
    scored = dprp(
        *(files["base"], files["same"], "--repeats", 5, "--max-ratio", 50),
        *("--data", "digits", "--image-size", 8, "--max-drop", 0, "--samples", 50),
    )
    assert scored.exit_code == 0, scored.output
    assert load_data("digits", image_size=8).image_shape == (8, 8, 1)
    assert "lost at most 0" in scored.output
