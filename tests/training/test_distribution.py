"""Training on several devices and in several processes: alike, equal to one, and never hanging.

Real processes on loopback. The network is small, but has what differs between one replica and
several: batch normalization, momentum, retraction at every step, ranks that fall.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from typer.testing import CliRunner

from dprp_tf import data
from dprp_tf.cli.main import app
from dprp_tf.runs.settings import TrainSettings
from dprp_tf.runs.training import train
from dprp_tf.training.distribution import STRATEGIES, Distribution, cluster, distribution
from dprp_tf.training.rendezvous import meet

if keras.backend.backend() != "tensorflow":
    pytest.skip("starts its own processes, one of them on JAX", allow_module_level=True)

HERE = Path(__file__).resolve().parent
EPOCHS = 3
# Only there to end a test that hangs: what it waits for takes half a minute.
PATIENCE = 300


def _free_addresses(count: int) -> list[str]:
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    addresses = [f"localhost:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    return addresses


def _network(path: Path) -> None:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.Conv2D(12, 3, padding="same", use_bias=False, name="first")(x)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization(name="norm")(x))
    x = keras.layers.Conv2D(16, 3, strides=2, padding="same", name="second")(x)
    x = keras.layers.Flatten()(keras.layers.ReLU()(x))
    keras.Model(inputs, keras.layers.Dense(10, name="head")(x)).save(path)


class Trainings:
    """Everything that was trained, in one folder."""

    lost_code: int
    chief_code: int
    chief_output: str
    mirrored_code: int
    mirrored_output: str
    again: list[tuple[int, str]]
    # What the chief left behind when the other worker was lost.
    before: list[dict[str, Any]]
    left: list[str]

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[str]] = []
        _network(folder / "start.keras")

    def settings(self, start: str = "start.keras") -> dict[str, Any]:
        return {
            "model": str(self.folder / start),
            "epochs": EPOCHS,
            "batch_size": 64,
            "learning_rate": 0.002,
            "compression_weight": 1.0,
            "threshold": 0.45,
        }

    def alone(self, name: str, start: str = "start.keras") -> keras.Model:
        digits = data.load("digits", image_size=8)
        return train(self.folder / name, TrainSettings(**self.settings(start)), digits)

    def start(
        self,
        name: str,
        process: str,
        place: dict[str, Any],
        dies: tuple[int, int] | None = None,
        epochs: int = EPOCHS,
        **environment: str,
    ) -> subprocess.Popen[str]:
        """Start a process that trains in the folder `name` and writes `process`.jsonl."""
        request = {
            "folder": str(self.folder / name),
            "settings": {**self.settings(), "epochs": epochs},
            "distribution": place,
            "record": str(self.folder / f"{process}.jsonl"),
            "dies": dies,
        }
        path = self.folder / f"{process}.request.json"
        path.write_text(json.dumps(request), encoding="utf-8")
        command = [sys.executable, str(HERE / "training_process.py"), str(path)]
        return self.run(command, **environment)

    def run(self, command: list[str], **environment: str) -> subprocess.Popen[str]:
        started = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        )
        self.processes.append(started)
        return started

    def command_line(self, name: str, addresses: list[str], index: int) -> list[str]:
        settings = self.settings()
        command = [sys.executable, "-m", "dprp_tf.cli.main", "train", "--data", "digits"]
        command += ["--image-size", "8", "--folder", str(self.folder / name)]
        for key, value in settings.items():
            command += [f"--{key.replace('_', '-')}", str(value)]
        command += ["--strategy", "multiworker", "--workers", ",".join(addresses)]
        return [*command, "--worker-index", str(index)]

    def lines(self, process: str) -> list[dict[str, Any]]:
        text = (self.folder / f"{process}.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    def agreed(self, process: str) -> dict[str, Any]:
        text = (self.folder / f"{process}.agreed.json").read_text(encoding="utf-8")
        agreed: dict[str, Any] = json.loads(text)
        return agreed

    def history(self, name: str) -> list[dict[str, Any]]:
        text = (self.folder / name / "history.json").read_text(encoding="utf-8")
        history: list[dict[str, Any]] = json.loads(text)["runs"]["dprp"]
        return history

    def model(self, name: str) -> keras.Model:
        return keras.saving.load_model(self.folder / name / "model.keras")

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()


def _finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, errors = process.communicate(timeout=PATIENCE)
    return process.returncode, out + errors


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainings]:
    """Trainings alone, on two devices, on JAX, and of two workers that lost one and began again."""
    made = Trainings(tmp_path_factory.mktemp("workers"))
    try:
        _train_all(made)
        yield made
    finally:
        made.end()


def _train_all(made: Trainings) -> None:
    addresses = _free_addresses(2)
    chief = made.run(made.command_line("workers", addresses, 0))
    place = {"name": "multiworker", "workers": addresses}
    # In the midst of the second epoch, so that the first is what they go on from.
    lost = made.start("workers", "lost", {**place, "worker_index": 1}, dies=(1, 5))
    made.alone("alone")
    nudged = keras.saving.load_model(made.folder / "start.keras")
    nudged.set_weights([np.nextafter(w, np.float32(9e9)) for w in nudged.get_weights()])
    nudged.save(made.folder / "nudged.keras")
    made.alone("nudged", "nudged.keras")
    made.lost_code, _ = _finish(lost)
    mirrored = made.start("mirrored", "mirrored", {"name": "mirrored:2"})
    made.chief_code, made.chief_output = _finish(chief)
    made.left = sorted(path.name for path in (made.folder / "workers").iterdir())
    made.before = made.history("workers")

    addresses = _free_addresses(2)
    place = {"name": "multiworker", "workers": addresses}
    again = [made.start("workers", f"worker-{i}", {**place, "worker_index": i}) for i in range(2)]
    made.mirrored_code, made.mirrored_output = _finish(mirrored)
    made.again = [_finish(process) for process in again]


def _kernels(model: keras.Model) -> dict[str, np.ndarray]:
    return {layer.name: np.asarray(layer.kernel) for layer in model.low_rank_layers}


def _distance(first: keras.Model, second: keras.Model) -> float:
    """The largest difference of kernels and of what batch normalization learned, relative."""
    ours, theirs = _kernels(first), _kernels(second)
    pairs = [(ours[name], theirs[name]) for name in ours]
    norms = zip(
        first.get_layer("norm").get_weights(), second.get_layer("norm").get_weights(), strict=True
    )
    pairs += list(norms)
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs)


def _require_equal(trainings: Trainings, name: str) -> None:
    """The same ranks in every epoch, and weights as near as rounding lets any two runs be.

    Several replicas sum a batch in another order, and synchronized statistics come from sums of
    squares: differences of some units in the last place of float32, at every step. What such a
    difference becomes after a training is measured, not guessed: "nudged" differs from "alone" by
    one unit in the last place of the weights it starts with, once. Ten times that is allowed.
    """
    alone, found = trainings.model("alone"), trainings.model(name)
    assert found.ranks == alone.ranks
    noise = _distance(alone, trainings.model("nudged"))
    difference = _distance(alone, found)
    start = keras.saving.load_model(trainings.folder / "start.keras")
    moved = max(
        float(np.abs(kernel - np.asarray(start.get_layer(layer).kernel)).max())
        / float(np.abs(kernel).max())
        for layer, kernel in _kernels(alone).items()
    )
    print(f"{name}: {difference:.1e}, one rounding at the start: {noise:.1e}, moved: {moved:.1e}")
    # How far a rounding is amplified differs between processors; beside what the training moved,
    # the difference is small on every one.
    assert difference <= 10 * noise
    assert difference < 0.1 * moved
    assert noise < 0.1 * moved
    for ours, theirs in zip(trainings.history("alone"), trainings.history(name), strict=True):
        assert ours["total_rank"] == theirs["total_rank"]
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-3)
        assert theirs["val_loss"] == pytest.approx(ours["val_loss"], rel=1e-3)
        assert theirs["learning_rate"] == ours["learning_rate"]


@pytest.mark.slow
def test_ranks_fall_in_the_training_all_are_compared_with(trainings: Trainings) -> None:
    ranks = [entry["total_rank"] for entry in trainings.history("alone")]
    assert len(ranks) == EPOCHS
    assert ranks[-1] < ranks[0]


@pytest.mark.slow
def test_two_devices_train_what_one_does(trainings: Trainings) -> None:
    assert trainings.mirrored_code == 0, trainings.mirrored_output
    _require_equal(trainings, "mirrored")


@pytest.mark.slow
def test_the_replicas_of_two_devices_are_equal_to_the_last_bit(trainings: Trainings) -> None:
    lines = trainings.lines("mirrored")
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert len(line["digests"]) == 2
        assert len(set(line["digests"])) == 1


@pytest.mark.slow
def test_a_lost_worker_ends_the_other_with_a_message(trainings: Trainings) -> None:
    assert trainings.lost_code == -signal.SIGKILL
    assert trainings.chief_code == 75, trainings.chief_output
    last = trainings.chief_output.strip().splitlines()[-1]
    assert last.startswith("error: Worker 1 (localhost:")
    assert "start every worker again" in last
    assert "Traceback" not in trainings.chief_output


@pytest.mark.slow
def test_a_lost_worker_leaves_whole_epochs(trainings: Trainings) -> None:
    assert [entry["epoch"] for entry in trainings.before] == [1]
    assert "state.json" in trainings.left
    assert "model.keras" not in trainings.left


@pytest.mark.slow
def test_two_workers_started_again_train_what_one_does(trainings: Trainings) -> None:
    for code, output in trainings.again:
        assert code == 0, output
    _require_equal(trainings, "workers")
    assert trainings.history("workers")[0] == trainings.before[0]


@pytest.mark.slow
def test_two_workers_hold_the_same_at_every_epoch(trainings: Trainings) -> None:
    first, second = trainings.lines("worker-0"), trainings.lines("worker-1")
    assert [line["epoch"] for line in first] == [2, 3]
    assert first == second
    assert [sum(line["ranks"].values()) for line in first] == [
        entry["total_rank"] for entry in trainings.history("workers")[1:]
    ]


@pytest.mark.slow
def test_replicas_take_over_what_the_first_one_has(trainings: Trainings) -> None:
    assert trainings.agreed("mirrored")["first"] == [7.25, 7.25]
    for process in ("worker-0", "worker-1"):
        assert trainings.agreed(process)["first"] == [7.25]


@pytest.mark.slow
def test_workers_take_over_what_the_chief_has(trainings: Trainings) -> None:
    for process in ("worker-0", "worker-1"):
        agreed = trainings.agreed(process)
        assert agreed["chief"] == {"worker": 0, "text": "\u00e4"}
        assert agreed["arrays"] == [[[1 / 3, 1 / 3]] * 3, [0, 1, 2, 3, 4]]
        assert agreed["values"] == [[0.0, 0.5], [1.0, 0.5]]


@pytest.mark.slow
def test_only_the_chief_writes_the_run_folder(trainings: Trainings) -> None:
    left = sorted(path.name for path in (trainings.folder / "workers").iterdir())
    alone = sorted(path.name for path in (trainings.folder / "alone").iterdir())
    assert left == alone


@pytest.mark.slow
def test_batch_normalization_is_left_as_it_was(trainings: Trainings) -> None:
    for name in ("mirrored", "workers"):
        assert not trainings.model(name).get_layer("norm").synchronized


@pytest.mark.long
def test_on_jax_two_devices_train_what_one_does(trainings: Trainings) -> None:
    pytest.importorskip("jax", reason="JAX is not installed")
    process = trainings.start(
        "jax",
        "jax",
        {"name": "mirrored:2"},
        KERAS_BACKEND="jax",
        XLA_FLAGS="--xla_force_host_platform_device_count=2",
    )
    code, output = _finish(process)
    assert code == 0, output
    for line in trainings.lines("jax"):
        assert len(line["digests"]) == 2
        assert len(set(line["digests"])) == 1
    _require_equal(trainings, "jax")


@pytest.mark.long
@pytest.mark.parametrize(
    ("victim", "how"), [(0, signal.SIGKILL), (0, signal.SIGSTOP), (1, signal.SIGSTOP)]
)
def test_a_worker_that_dies_or_stands_still_ends_the_other(
    victim: int, how: signal.Signals, tmp_path: Path
) -> None:
    made = Trainings(tmp_path)
    addresses = _free_addresses(2)
    try:
        both = [
            made.start(
                "run",
                f"worker-{index}",
                {"name": "multiworker", "workers": addresses, "worker_index": index},
                epochs=1000,
            )
            for index in range(2)
        ]
        began = time.monotonic()
        while not (tmp_path / "run" / "state.json").exists():
            assert all(process.poll() is None for process in both)
            assert time.monotonic() - began < PATIENCE
            time.sleep(0.1)
        both[victim].send_signal(how)
        code, output = _finish(both[1 - victim])
        assert code == 75, output
        assert f"worker {1 - victim} (localhost:" in output
        assert "start every worker again" in output
    finally:
        made.end()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--strategy", "mirror"], "`--strategy` must be one of"),
        (["--workers", "a:1", "--worker-index", "0"], "go with `--strategy multiworker`"),
        (["--strategy", "multiworker", "--workers", "a:1"], "must be given together"),
    ],
)
def test_the_command_line_refuses_in_one_line(
    options: list[str], message: str, tmp_path: Path
) -> None:
    arguments = ["train", "--model", "resnet20", "--data", "digits"]
    result = CliRunner().invoke(app, [*arguments, "--folder", str(tmp_path / "run"), *options])
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert not (tmp_path / "run").exists()


def _pair(timeout: float, *terms: dict[str, Any]) -> list[Exception | None]:
    """Let two workers meet, each with its terms; what each raised."""
    addresses = _free_addresses(2)
    raised: list[Exception | None] = [None, None]

    def come(index: int) -> None:
        try:
            meet(addresses, index, terms[index], timeout=timeout)
        except Exception as error:
            raised[index] = error

    threads = [threading.Thread(target=come, args=(index,)) for index in range(len(terms))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=PATIENCE)
        assert not thread.is_alive()
    return raised


def test_workers_meet() -> None:
    assert _pair(60.0, {"version": 1}, {"version": 1}) == [None, None]


def test_workers_started_differently_are_told_so() -> None:
    for error in _pair(60.0, {"version": 1}, {"version": 2}):
        assert isinstance(error, ValueError)
        assert "version: 1 and 2" in str(error)


def test_an_absent_worker_is_named() -> None:
    (error, _) = _pair(0.5, {})
    assert isinstance(error, TimeoutError)
    assert "worker 1 (localhost:" in str(error)


def test_an_absent_chief_is_named() -> None:
    addresses = _free_addresses(2)
    with pytest.raises(TimeoutError, match=f"Worker 0 must listen at {addresses[0]}"):
        meet(addresses, 1, {}, timeout=0.5)


def test_a_stranger_does_not_disturb_the_meeting() -> None:
    addresses = _free_addresses(2)
    host, port = addresses[0].split(":")
    raised: list[Exception] = []

    def chief() -> None:
        try:
            meet(addresses, 0, {}, timeout=60.0)
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=chief)
    thread.start()
    for _ in range(100):
        try:
            stranger = socket.create_connection((host, int(port)), timeout=5)
            break
        except ConnectionRefusedError:
            time.sleep(0.05)
    else:
        pytest.fail("the chief did not listen")
    with stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
    meet(addresses, 1, {}, timeout=60.0)
    thread.join(timeout=PATIENCE)
    assert not thread.is_alive()
    assert raised == []


def test_the_cluster_is_read_as_tensorflow_writes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {
        "cluster": {"chief": ["a:1"], "worker": ["b:2", "c:3"]},
        "task": {"type": "worker", "index": 1},
    }
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    assert cluster() == (("a:1", "b:2", "c:3"), 2)
    assert cluster(["x:1", "y:2"], 1) == (("x:1", "y:2"), 1)


@pytest.mark.parametrize(
    ("workers", "index", "message"),
    [
        (["a:1"], None, "given together"),
        (["a"], 0, "host:port"),
        (["a:0"], 0, "host:port"),
        (["a:1", "a:1"], 0, "addresses of their own"),
        (["a:1", "b:1"], 2, r"lie in 0\.\.1"),
        (None, None, "TF_CONFIG"),
    ],
)
def test_an_unusable_cluster_is_refused(
    workers: list[str] | None, index: int | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(ValueError, match=message):
        cluster(workers, index)


@pytest.mark.parametrize(
    "config", ["{", "[]", '{"cluster": {"ps": ["a:1"]}, "task": {"type": "ps", "index": 0}}']
)
def test_an_unusable_environment_is_refused(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(ValueError, match="TF_CONFIG must"):
        cluster()


@pytest.mark.parametrize("name", ["mirror", "mirrored:0", "mirrored:x", "none:2", "multiworker:2"])
def test_an_unknown_strategy_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="`strategy` must"):
        distribution(name)


def test_workers_go_with_the_strategy_that_has_some() -> None:
    with pytest.raises(ValueError, match="go with strategy='multiworker'"):
        distribution("mirrored", workers=["a:1"], worker_index=0)


def test_no_strategy_is_one_device() -> None:
    assert STRATEGIES[0] == "none"
    assert distribution("none") == Distribution()


@pytest.mark.parametrize(
    ("count", "size"), [(359, 500), (359, 100), (200, 100), (201, 100), (3, 1)]
)
@pytest.mark.parametrize("replicas", [2, 3])
def test_every_replica_has_a_part_in_every_evaluation_batch(
    count: int, size: int, replicas: int
) -> None:
    chosen = Distribution(replicas=replicas).evaluation_batch_size(count, size)
    batches = [min(chosen, count - first) for first in range(0, count, chosen)]
    assert sum(batches) == count
    assert min(batches) >= replicas


def test_a_batch_that_can_not_be_shared_is_refused() -> None:
    with pytest.raises(ValueError, match="the nearest are 63 and 66"):
        Distribution(replicas=3).require_divisible(64)
