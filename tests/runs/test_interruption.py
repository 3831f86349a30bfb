"""`kill -9` at any moment of `dprp train`, then the same command: as if nothing had happened."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from dprp_tf.data import load
from dprp_tf.files import atomic
from dprp_tf.files.lock import run_lock
from dprp_tf.runs.settings import TrainSettings
from dprp_tf.runs.training import train
from dprp_tf.training.saving import load_model

_SCRIPT = Path(__file__).with_name("killed_dprp.py")
_EPOCHS = 4
# A guard against a hang, far above what a loaded machine takes.
_LIMIT = 400


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with everything that has a state: normalization, dropout, a kernel that shrinks."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((8, 8, 1))
    x = layers.Rescaling(1 / 16.0)(inputs)
    x = layers.Conv2D(6, 3, strides=2, padding="same", name="conv")(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Conv2D(6, 3, padding="same", name="second")(x)
    x = layers.Dropout(0.1)(layers.GlobalAveragePooling2D()(layers.ReLU()(x)))
    model = keras.Model(inputs, layers.Dense(10, name="head")(x))
    taps = np.random.default_rng(0).standard_normal((3, 3, 1, 1))
    model.get_layer("second").kernel.assign(
        0.2 * taps * np.random.default_rng(1).standard_normal((1, 1, 6, 6))
    )
    path = tmp_path_factory.mktemp("start") / "tiny.keras"
    model.save(path)
    return path


def _settings(start: Path, method: str = "dprp") -> TrainSettings:
    return TrainSettings(
        model=str(start), method=method, epochs=_EPOCHS, batch_size=64, learning_rate=0.05,
        schedule="plateau", weight_decay=0.0, compression_weight=0.4, threshold=0.05,
        padding=1, flip=False, seed=5,
    )  # fmt: skip


def _command(start: Path, folder: Path, method: str = "dprp") -> list[str]:
    return [
        "train", "--model", str(start), "--data", "digits", "--image-size", "8",
        "--folder", str(folder), "--method", method, "--epochs", str(_EPOCHS),
        "--batch-size", "64", "--learning-rate", "0.05", "--schedule", "plateau",
        "--weight-decay", "0", "--compression-weight", "0.4", "--threshold", "0.05",
        "--padding", "1", "--no-flip", "--seed", "5",
    ]  # fmt: skip


def _start(start: Path, folder: Path, moment: str, method: str = "dprp") -> subprocess.Popen[bytes]:
    command = [sys.executable, str(_SCRIPT), str(folder), moment]
    return subprocess.Popen(
        [*command, *_command(start, folder, method)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )


def _killed(start: Path, folder: Path, moment: str, method: str = "dprp") -> None:
    process = _start(start, folder, moment, method)
    _, errors = process.communicate(timeout=_LIMIT)
    assert process.returncode == -signal.SIGKILL, errors.decode()[-2000:]


def _finished(start: Path, folder: Path, method: str = "dprp") -> None:
    process = _start(start, folder, "none", method)
    _, errors = process.communicate(timeout=_LIMIT)
    assert process.returncode == 0, errors.decode()[-2000:]


def _when(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _LIMIT
    while not condition():
        if process.poll() is not None:
            errors = process.communicate()[1].decode()[-2000:]
            pytest.fail(f"the run ended before it could be killed: {process.returncode} {errors}")
        assert time.monotonic() < deadline
        time.sleep(0.002)


def _epochs_done(folder: Path) -> int:
    try:
        return int(json.loads((folder / "state.json").read_text())["epoch"])
    except FileNotFoundError:
        return 0


@pytest.fixture(scope="module")
def whole(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    train(folder, _settings(start), load("digits", image_size=8))
    return folder


def _history(folder: Path, method: str = "dprp") -> list[dict[str, Any]]:
    entries = json.loads((folder / "history.json").read_text())["runs"][method]
    timed = ("seconds", "tracing_seconds")
    return [{k: v for k, v in entry.items() if k not in timed} for entry in entries]


def _assert_equal_runs(found: Path, expected: Path, method: str = "dprp") -> None:
    ours, theirs = load_model(found / "model.keras"), load_model(expected / "model.keras")
    assert [v.shape for v in ours.variables] == [v.shape for v in theirs.variables]
    states = zip(
        [*ours.variables, *ours.optimizer.variables],
        [*theirs.variables, *theirs.optimizer.variables],
        strict=True,
    )
    for mine, other in states:
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(mine),
            keras.ops.convert_to_numpy(other),
            rtol=1e-4,
            atol=1e-5,
            err_msg=mine.path,
        )
    mine_log, other_log = _history(found, method), _history(expected, method)
    assert [entry["epoch"] for entry in mine_log] == list(range(1, _EPOCHS + 1))
    for mine_entry, other_entry in zip(mine_log, other_log, strict=True):
        assert mine_entry == pytest.approx(other_entry, rel=1e-4, abs=1e-5)
    if method == "dprp":
        ranks = [json.loads((f / "ranks.json").read_text())["epochs"] for f in (found, expected)]
        assert [e["ranks"] for e in ranks[0]] == [e["ranks"] for e in ranks[1]]
        assert ranks[0][0]["ranks"] != ranks[0][-1]["ranks"]
    names = {path.name for path in found.iterdir()}
    assert {n for n in names if n.startswith(".")} <= {".lock", ".lock-holder"}


@pytest.mark.slow
def test_a_run_killed_four_times_equals_one_never_killed(
    start: Path, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    # Before there is a checkpoint: the folder is already known as its own.
    _killed(start, folder, "rename:first_look.json:1")
    assert not (folder / "state.json").exists()
    # The second epoch's checkpoint is whole, the state that names it is not there yet.
    _killed(start, folder, "rename:state.json:2")
    assert _epochs_done(folder) == 1
    assert (folder / "checkpoint-0002.keras").exists()
    # Somewhere within the third epoch.
    process = _start(start, folder, "none")
    _when(lambda: _epochs_done(folder) >= 2, process)
    time.sleep(0.05)
    process.kill()
    process.communicate()
    # The last checkpoint is there, the model and the results are not.
    _killed(start, folder, "rename:model.keras:1")
    assert _epochs_done(folder) == _EPOCHS
    assert list(folder.glob(".model.*.keras"))
    _finished(start, folder)
    _assert_equal_runs(folder, whole)
    assert (folder / "results.json").exists()


def _selection(start: Path, folder: Path) -> list[str]:
    return [
        "select", str(start), "--data", "digits", "--image-size", "8", "--folder", str(folder),
        "--parameters", "0.8", "--tolerance", "0.1", "--method", "mbs", "--search", "1,3",
        "--samples", "64", "--decomposition", "channel", "--epochs", "3", "--batch-size", "64",
        "--seed", "0", "--precision", "none",
    ]  # fmt: skip


def _select(start: Path, folder: Path, watched: Path, moment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, str(_SCRIPT), str(watched), moment, *_selection(start, folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )


def _candidates(folder: Path) -> int:
    try:
        return len((folder / "candidates.jsonl").read_bytes().splitlines())
    except FileNotFoundError:
        return 0


@pytest.mark.slow
def test_a_selection_killed_twice_is_bit_for_bit_one_never_killed(
    start: Path, tmp_path: Path
) -> None:
    whole, again, killed = (tmp_path / name for name in ("whole", "again", "killed"))
    for folder in (whole, again):
        process = _select(start, folder, folder, "none")
        _, errors = process.communicate(timeout=_LIMIT)
        assert process.returncode == 0, errors.decode()[-2000:]
    # Somewhere in the search; then in the second epoch of the fine-tuning, its state not written.
    process = _select(start, killed, killed, "none")
    _when(lambda: _candidates(killed) >= 4, process)
    process.kill()
    process.communicate()
    process = _select(start, killed, killed / "tuned", "rename:tuning.json:2")
    _, errors = process.communicate(timeout=_LIMIT)
    assert process.returncode == -signal.SIGKILL, errors.decode()[-2000:]
    assert len(json.loads((killed / "tuned" / "tuning.json").read_text())["history"]) == 1
    process = _select(start, killed, killed, "none")
    _, errors = process.communicate(timeout=_LIMIT)
    assert process.returncode == 0, errors.decode()[-2000:]

    plan = json.loads((whole / "rank_plan.json").read_text())
    assert plan["history"][-1]["evaluated"] > 0
    expected = load_model(whole / "model.keras")
    assert any(isinstance(layer, layers.Dropout) for layer in expected.layers)
    for folder in (again, killed):
        for name in ("rank_plan.json", "selection.json", "tuned/tuning.json"):
            assert (folder / name).read_text() == (whole / name).read_text(), (folder.name, name)
        found = load_model(folder / "model.keras")
        for ours, theirs in zip(
            [*found.variables, *found.optimizer.variables],
            [*expected.variables, *expected.optimizer.variables],
            strict=True,
        ):
            if ours.name != "seed_generator_state":  # drawn anew where a file is loaded
                np.testing.assert_array_equal(
                    keras.ops.convert_to_numpy(ours), keras.ops.convert_to_numpy(theirs)
                )


@pytest.mark.long
@pytest.mark.parametrize("method", ["dprp", "dense"])
def test_killed_before_each_rename(start: Path, tmp_path: Path, method: str) -> None:
    expected = tmp_path / "whole"
    train(expected, _settings(start, method), load("digits", image_size=8))
    folder = tmp_path / "run"
    for count in range(1, 40):
        process = _start(start, folder, f"rename:{count}", method)
        _, errors = process.communicate(timeout=_LIMIT)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, errors.decode()[-2000:]
    assert process.returncode == 0
    assert count > 5
    _assert_equal_runs(folder, expected, method)


def test_a_second_process_is_refused_and_a_dead_one_forgotten(tmp_path: Path) -> None:
    code = (
        "import sys, time; from dprp_tf.files.lock import run_lock\n"
        "with run_lock(sys.argv[1]): print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(RuntimeError, match=f"process {holder.pid} is at work"), run_lock(tmp_path):
        pass
    holder.kill()
    holder.communicate()
    with run_lock(tmp_path):
        assert (tmp_path / ".lock-holder").read_text() == str(os.getpid())
    assert not (tmp_path / ".lock-holder").exists()


def test_a_drive_without_locks_is_used_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with run_lock(tmp_path):
        assert (tmp_path / ".lock").exists()


def test_leftovers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    token = 4 * "0123abcd"
    kept = [".lock", ".hidden", "model.keras", ".config.json", ".model.keras", f"a.{token}.keras"]
    kept.append(".backup.20250131.tar")
    for name in [*kept, f".model.{token}.keras", f".a.b.{32 * 'f'}.json", f".plain.{32 * '0'}"]:
        (tmp_path / name).write_text("x")
    atomic.remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_a_run_made_longer_forgets_what_it_ended_with(start: Path, tmp_path: Path) -> None:
    digits = load("digits", image_size=8)
    short = TrainSettings(
        model=str(start), method="dense", epochs=1, batch_size=256, weight_decay=0.0
    )
    train(tmp_path, short, digits)
    assert (tmp_path / "model.keras").exists()

    class Stop(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            raise KeyboardInterrupt

    longer = TrainSettings(**{**vars(short), "epochs": 2})
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, longer, digits, callbacks=[Stop()])
    assert not (tmp_path / "model.keras").exists()
    assert _epochs_done(tmp_path) == 1
