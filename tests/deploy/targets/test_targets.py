"""Targets: ssh against a real sshd on loopback, adb against a recorded device, and what names them.

Where sshd, ssh or adb is missing the tests that need it are skipped and say so.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import psutil
import pytest
from keras import layers

from dprp_tf.deploy import benchmark, compare
from dprp_tf.deploy.exporters.onnx import export_onnx
from dprp_tf.deploy.exporters.tflite import export_tflite
from dprp_tf.deploy.measurement.benchmark import measure_files
from dprp_tf.deploy.targets import (
    ADBTarget,
    LocalTarget,
    SSHTarget,
    Target,
    TargetError,
    resolve_target,
)
from dprp_tf.deploy.targets.edge import RUNNER, write_arrays

_RUNNER_SHA256 = hashlib.sha256(RUNNER.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    keras.utils.set_random_seed(5)
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(6, 3, padding="same", activation="relu")(image)
    model = keras.Model(image, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))
    folder = tmp_path_factory.mktemp("files")
    export_tflite(model, folder / "small.tflite")
    export_onnx(model, folder / "small.onnx")
    return {path.name: path for path in folder.iterdir()}


def _program(name: str) -> str:
    found = shutil.which(name, path=os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"]))
    if found is None:
        reason = f"skipped for want of {name}: install it to test this target for real"
        warnings.warn(reason, stacklevel=1)
        pytest.skip(reason)
    return found


@dataclass
class Server:
    """An sshd of this test run, and what a client needs to reach it."""

    process: subprocess.Popen[bytes]
    port: int
    config: Path
    cache: Path
    folder: Path

    def target(self, **arguments: Any) -> SSHTarget:
        settings: dict[str, Any] = {
            "user": getpass.getuser(),
            "host": "127.0.0.1",
            "port": self.port,
            "python": sys.executable,
            "config_file": self.config,
        }
        return SSHTarget(**{**settings, **arguments})

    def cached(self) -> set[str]:
        folder = self.cache / "dprp_tf" / "device"
        return {path.name for path in folder.iterdir()} if folder.is_dir() else set()

    def sessions(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _key(path: Path) -> str:
    command = [_program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"]
    subprocess.run([*command, str(path)], check=True, stdin=subprocess.DEVNULL)
    return path.with_name(path.name + ".pub").read_text()


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    sshd = _program("sshd")
    _program("ssh")
    folder = tmp_path_factory.mktemp("sshd")
    if os.geteuid() == 0:
        # Where sshd run by root locks the half of it that talks to strangers in.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    host_key = _key(folder / "host_key")
    (folder / "authorized_keys").write_text(_key(folder / "client_key"))
    cache = folder / "cache"
    port = _free_port()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}")
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\n"
        f"HostKey {folder / 'host_key'}\n"
        f"AuthorizedKeysFile {folder / 'authorized_keys'}\n"
        "StrictModes no\n"
        "PasswordAuthentication no\n"
        "KbdInteractiveAuthentication no\n"
        "UsePAM no\n"
        "PidFile none\n"
        # Its variables are all that a session's program sees of where to keep files.
        f"SetEnv XDG_CACHE_HOME={cache}\n"
    )
    (folder / "config").write_text(
        # What users should not write, to show that it changes nothing.
        "StrictHostKeyChecking no\n"
        f"UserKnownHostsFile {folder / 'known_hosts'}\n"
        "GlobalKnownHostsFile /dev/null\n"
        f"IdentityFile {folder / 'client_key'}\n"
        "IdentitiesOnly yes\n"
    )
    log = folder / "log"
    command = [sshd, "-D", "-f", str(folder / "sshd_config"), "-E", str(log)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        else:
            pytest.fail(f"sshd does not listen: {log.read_text()}")
        yield Server(process, port, folder / "config", cache, folder)
    finally:
        process.terminate()
        process.wait(10)


def _nothing_ran(server: Server) -> bool:
    return not server.cache.exists()


def test_ssh_measures_as_the_local_target_does(
    server: Server, files: dict[str, Path], tmp_path: Path
) -> None:
    target = server.target()
    paths = [files["small.tflite"], files["small.onnx"]]
    far = compare(paths, warmup=2, repeats=7, target=target)
    near = compare(paths, warmup=2, repeats=7)
    for there, here in zip(far.results, near.results, strict=True):
        assert there.target == f"ssh://{getpass.getuser()}@127.0.0.1:{server.port}" + (
            f"?python={sys.executable}"
        )
        assert (there.path, there.runtime) == (here.path, here.runtime)
        assert there.runtime_version == here.runtime_version
        assert there.size_bytes == here.size_bytes
        assert len(there.samples_ms) == len(here.samples_ms) == 7
        assert there.unit == "ms"
        assert there.cost == there.median_ms
        assert there.peak_memory_bytes is not None
        assert there.cold_start_ms is not None
        assert there.cold_start_ms > 0
        assert there.machine["architecture"] == here.machine["architecture"]
    assert [ratio.path for ratio in far.ratios] == paths
    assert target.describe() == LocalTarget().describe()

    x = np.random.default_rng(1).random((5, 8, 8, 3), dtype=np.float32)
    for path in paths:
        ours, theirs = LocalTarget().outputs(path, x), target.outputs(path, x)
        assert list(ours) == list(theirs)
        for name, array in ours.items():
            assert array.shape == (5, 4)
            assert np.ptp(array) > 0
            np.testing.assert_array_equal(theirs[name], array)


def test_ssh_sends_a_file_once_and_again_when_it_is_damaged(
    server: Server, files: dict[str, Path]
) -> None:
    target, path = server.target(), files["small.tflite"]
    name = hashlib.sha256(path.read_bytes()).hexdigest() + ".tflite"
    target.measure([path, path], repeats=1, memory=False)
    assert server.cached() == {name, f"{_RUNNER_SHA256}.py"}
    stored = server.cache / "dprp_tf" / "device" / name
    assert stored.read_bytes() == path.read_bytes()
    inode = stored.stat().st_ino
    target.measure([path], repeats=1, memory=False)
    assert stored.stat().st_ino == inode, "a file that lay there was sent again"
    stored.write_bytes(b"damaged")
    target.measure([path], repeats=1, memory=False)
    assert stored.read_bytes() == path.read_bytes()
    assert server.cached() == {name, f"{_RUNNER_SHA256}.py"}, "a part was left"


def test_ssh_forgets_files_unused_for_a_month(server: Server, files: dict[str, Path]) -> None:
    folder = server.cache / "dprp_tf" / "device"
    folder.mkdir(parents=True)
    for name, days in (("old.tflite", 31), ("recent.tflite", 29)):
        (folder / name).write_bytes(b"")
        then = time.time() - days * 24 * 3600
        os.utime(folder / name, (then, then))
    server.target().measure([files["small.onnx"]], repeats=1, memory=False)
    assert "recent.tflite" in server.cached()
    assert "old.tflite" not in server.cached()


def test_ssh_runs_nothing_on_a_host_whose_key_is_unknown(
    server: Server, files: dict[str, Path]
) -> None:
    known = server.folder / "known_hosts"
    known.write_text("")
    with pytest.raises(TargetError, match=r"host key is not known.*nothing was sent.*ssh -p"):
        benchmark(files["small.tflite"], repeats=1, target=server.target())
    assert known.read_text() == "", "the key was taken on trust"
    assert _nothing_ran(server)
    other = _key(server.folder / "another_key")
    known.write_text(f"[127.0.0.1]:{server.port} {other}")
    with pytest.raises(TargetError, match="host key is not the one known"):
        benchmark(files["small.tflite"], repeats=1, target=server.target())
    assert _nothing_ran(server)


def test_ssh_refused_unreachable_or_without_python(
    server: Server, files: dict[str, Path], tmp_path: Path
) -> None:
    path = files["small.tflite"]
    with pytest.raises(TargetError, match=r"can't be run there.*not found"):
        benchmark(path, repeats=1, target=server.target(python="python-that-is-not"))
    with pytest.raises(TargetError, match=r"can't be reached.*refused"):
        benchmark(path, repeats=1, target=server.target(port=_free_port()))
    with pytest.raises(TargetError, match=r"can't be reached.*resolve"):
        benchmark(path, repeats=1, target=server.target(host="nowhere.invalid"))
    (server.folder / "authorized_keys").write_text("")
    with pytest.raises(TargetError, match=r"refuses the login.*ssh-copy-id"):
        benchmark(path, repeats=1, target=server.target())
    assert _nothing_ran(server)


@pytest.mark.parametrize(
    "name",
    ["a b;$(touch X).tflite", "`touch X`.onnx", 'it\'s "so" && touch X.tflite', "-rf.onnx"],
)
def test_ssh_takes_any_file_name(
    name: str, server: Server, files: dict[str, Path], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(files[f"small{Path(name).suffix}"], tmp_path / name)
    marks = [folder / "X" for folder in (tmp_path, Path.home())]
    assert not any(mark.exists() for mark in marks)
    path = Path(name)
    answer = server.target().measure([path], repeats=2, memory=False)
    assert answer["models"][0]["path"] == name
    assert len(answer["models"][0]["samples_ms"]) == 2
    assert len(LocalTarget().measure([path], repeats=2, memory=False)["models"]) == 1
    assert not any(mark.exists() for mark in marks)
    (tmp_path / name).write_bytes(b"no model")
    with pytest.raises(ValueError, match="must name a file that runs") as told:
        server.target().measure([path], repeats=2, memory=False)
    assert name in str(told.value)


def test_ssh_takes_any_interpreter_name(server: Server, files: dict[str, Path]) -> None:
    mark = server.folder / "X"
    with pytest.raises(TargetError, match="can't be run there"):
        server.target(python=f"python; touch {mark}").measure([files["small.onnx"]])
    odd = server.folder / "my $(touch X) python's"
    odd.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    odd.chmod(0o755)
    answer = server.target(python=str(odd)).measure([files["small.onnx"]], repeats=2)
    assert len(answer["models"]) == 1
    assert not mark.exists()
    assert not (Path.home() / "X").exists()


@dataclass
class Work:
    """A measurement that would never end, in a thread."""

    thread: threading.Thread
    outcome: list[BaseException | None]
    running: list[psutil.Process]


def _outlive(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    return list(psutil.wait_procs(processes, timeout=seconds)[1])


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _runs_the_runner(process: psutil.Process) -> bool:
    try:
        return any(_RUNNER_SHA256 in word for word in process.cmdline())
    except psutil.Error:
        return False  # it has ended meanwhile


def _endless_work(server: Server, path: Path) -> Work:
    outcome: list[BaseException | None] = []

    def work() -> None:
        try:
            server.target().measure([path], repeats=10**7, memory=False)
            outcome.append(None)
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    for _ in range(400):
        running = [process for process in server.sessions() if _runs_the_runner(process)]
        if running:
            return Work(thread, outcome, running)
        time.sleep(0.05)
    pytest.fail(f"the runner did not start: {outcome}")


def _servants(server: Server) -> list[psutil.Process]:
    found = [process for process in server.sessions() if "sshd" in process.name()]
    assert found
    return found


@pytest.mark.parametrize("whole", [False, True], ids=["connection", "sshd"])
def test_ssh_connection_that_ends_midway(
    whole: bool, server: Server, files: dict[str, Path]
) -> None:
    work = _endless_work(server, files["small.onnx"])
    for process in _servants(server):
        process.kill()
    if whole:
        server.process.kill()
    try:
        work.thread.join(30)
        assert not work.thread.is_alive(), "still waiting for a connection that is gone"
        assert isinstance(work.outcome[0], TargetError)
        assert "interrupted" in str(work.outcome[0])
        assert not _outlive(work.running, 20), "the device goes on with what nobody waits for"
    finally:
        _kill(work.running)


def test_ssh_device_that_falls_silent(
    server: Server, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dprp_tf.deploy.targets.ssh._KEEP_ALIVE_SECONDS", 1)
    work = _endless_work(server, files["small.onnx"])
    stopped = _servants(server)
    try:
        for process in stopped:
            process.suspend()
        work.thread.join(40)
        assert not work.thread.is_alive(), "still waiting for a device that says nothing"
        assert isinstance(work.outcome[0], TargetError)
        assert "not responding" in str(work.outcome[0])
    finally:
        _kill(stopped)
        _outlive(work.running, 20)
        _kill(work.running)


def _python(folder: Path, name: str, *flags: str) -> str:
    path = folder / name
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {" ".join(flags)} "$@"\n')
    path.chmod(0o755)
    return str(path)


def test_ssh_device_without_numpy_or_runtime(
    server: Server, files: dict[str, Path], tmp_path: Path
) -> None:
    bare = server.target(python=_python(tmp_path, "bare", "-I", "-S"))
    with pytest.raises(TargetError, match=r"lacks numpy and ai-edge-litert.*pip install"):
        benchmark(files["small.tflite"], repeats=1, target=bare)
    assert _nothing_ran(server)
    assert bare.describe()["runtimes"] == {"LiteRT": None, "ONNX Runtime": None}

    # numpy alone: its folder linked into an otherwise empty one.
    site = tmp_path / "site"
    site.mkdir()
    numpy_folder = Path(np.__file__).parent
    for folder in (numpy_folder, numpy_folder.with_name("numpy.libs")):
        if folder.exists():
            (site / folder.name).symlink_to(folder)
    path = tmp_path / "numpy_alone"
    path.write_text(f'#!/bin/sh\nPYTHONPATH={site} exec {sys.executable} -S "$@"\n')
    path.chmod(0o755)
    with pytest.raises(TargetError, match=r"numpy_alone there lacks onnxruntime\. Install"):
        benchmark(files["small.onnx"], repeats=1, target=server.target(python=str(path)))


def test_ssh_device_with_an_old_python(server: Server, files: dict[str, Path]) -> None:
    # No old Python at hand: this one says that it is one before the agent's text begins.
    old = server.folder / "old"
    old.write_text(
        f"#!{sys.executable}\nimport sys\nsys.version_info = (3, 8, 10)\nexec(sys.argv[2])\n"
    )
    old.chmod(0o755)
    with pytest.raises(TargetError, match=r"is Python 3\.8, and 3\.9 or newer is needed"):
        benchmark(files["small.onnx"], repeats=1, target=server.target(python=str(old)))
    assert _nothing_ran(server)


def test_ssh_tells_what_the_runtime_said(
    server: Server, files: dict[str, Path], tmp_path: Path
) -> None:
    cut = tmp_path / "cut.tflite"
    cut.write_bytes(files["small.tflite"].read_bytes()[:400])
    with pytest.raises(ValueError, match=r"cut\.tflite can't be run \(truncated"):
        benchmark(cut, target=server.target())
    x = np.zeros((1, 5), "float32")
    with pytest.raises(ValueError, match=r"shape \(1, 5\)"):
        benchmark(files["small.onnx"], target=server.target(), inputs=x)
    crash = server.folder / "crash"
    crash.write_text(
        f"#!{sys.executable}\n"
        "import os, signal, sys\n"
        "if sys.argv[1] != '-c':\n"
        "    os.kill(os.getpid(), signal.SIGSEGV)\n"
        "exec(sys.argv[2])\n"
    )
    crash.chmod(0o755)
    with pytest.raises(TargetError, match=r"crashed \(SIGSEGV\).*small\.onnx"):
        benchmark(files["small.onnx"], target=server.target(python=str(crash)))


def test_ssh_heeds_no_noise_of_the_login_shell(server: Server, files: dict[str, Path]) -> None:
    chatty = server.folder / "chatty"
    chatty.write_text(
        f'#!/bin/sh\necho "Welcome! {{}}"\necho "Battery low" >&2\nexec {sys.executable} "$@"\n'
    )
    chatty.chmod(0o755)
    answer = server.target(python=str(chatty)).measure([files["small.onnx"]], repeats=3)
    assert len(answer["models"][0]["samples_ms"]) == 3


def _wrapper(server: Server, name: str, program: str) -> str:
    """A Python of the device that does something else in the runner's place."""
    path = server.folder / name
    path.write_text(
        f"#!{sys.executable}\nimport os, sys, time\nif sys.argv[1] == '-c':\n"
        f"    sys.argv[1:2] = []\n    exec(sys.argv[1])\n{program}\n"
    )
    path.chmod(0o755)
    return str(path)


def test_ssh_device_that_chatters_is_ended_there(server: Server, files: dict[str, Path]) -> None:
    endless = _wrapper(server, "endless", "while True: print('a' * 10**6)")
    with pytest.raises(TargetError, match=r"on the device: edge_runner\.py said more than"):
        server.target(python=endless).measure([files["small.onnx"]], repeats=3)
    assert not _outlive(server.sessions(), 20), "the device goes on"


@pytest.mark.slow
def test_ssh_device_that_hangs_is_given_up_and_ended_there(
    server: Server, files: dict[str, Path]
) -> None:
    mark = server.folder / "hanging"
    hanging = _wrapper(server, "hangs", f"open({str(mark)!r}, 'w').close()\ntime.sleep(600)")
    target = server.target(python=hanging, timeout_s=5)
    with pytest.raises(TargetError, match=r"came to no end in 5 s.*\?timeout=SECONDS"):
        target.measure([files["small.onnx"]], repeats=3)
    assert mark.exists()
    assert not _outlive(server.sessions(), 20), "the device goes on with what nobody waits for"


def test_ssh_by_its_spec(server: Server, files: dict[str, Path]) -> None:
    spec = f"ssh://{getpass.getuser()}@127.0.0.1:{server.port}"
    spec += f"?config={server.config}&python={sys.executable}"
    assert len(benchmark(files["small.onnx"], repeats=2, target=spec).samples) == 2


@pytest.mark.parametrize(
    "spec",
    [
        "ssh://pi",
        "ssh://@pi",
        "ssh://pi@",
        "ssh://-oProxyCommand=touch@pi",
        "ssh://pi@-oProxyCommand=touch",
        "ssh://pi@-v",
        "ssh://a b@pi",
        "ssh://pi@pi;touch X",
        "ssh://pi@pi:0",
        "ssh://pi@pi:70000",
        "ssh://pi@pi:port",
        "ssh://pi@pi/folder",
        "ssh://pi@pi?pyhton=python3",
        "ssh://pi@pi?python=",
        "ssh://pi@pi?python=-c",
        "ssh://pi@pi?python=a&python=b",
        "adb://",
        "adb://-s",
        "adb://one two",
        "adb://one?binary=relative/benchmark_model",
        "adb://one?flags=x",
        "qemu:pentium",
        "local:",
        "ssh:pi@pi",
        "",
    ],
)
def test_specs_that_name_nothing(spec: str) -> None:
    with pytest.raises(ValueError, match=r"must|may"):
        resolve_target(spec)


def test_specs_that_name_a_target(tmp_path: Path) -> None:
    assert isinstance(resolve_target("local"), LocalTarget)
    target = resolve_target("ssh://pi@[fe80::1%eth0]:2222?python=venv/bin/python")
    assert isinstance(target, SSHTarget)
    parts = (target.user, target.host, target.port, target.python)
    assert parts == ("pi", "fe80::1%eth0", 2222, "venv/bin/python")
    for spec in (
        "ssh://pi@raspberrypi.local:22",
        "ssh://pi@[::1]:2222",
        "ssh://pi@Pi:22?python=my%20venv/bin/python",
        "adb://emulator-5554",
        "adb://192.168.1.7:5555?binary=/data/local/tmp/mine",
    ):
        assert resolve_target(spec).spec == spec
    again = resolve_target("adb://R58M")
    assert resolve_target(again) is again
    assert SSHTarget("pi", "pi", python="~/venv/bin/python").python == "./venv/bin/python"
    with pytest.raises(FileNotFoundError, match="`config_file`"):
        SSHTarget("pi", "pi", config_file=tmp_path / "absent")
    with pytest.raises(ValueError, match="`connect_timeout`"):
        SSHTarget("pi", "pi", connect_timeout=0)


def test_inputs_of_any_name_are_written(tmp_path: Path) -> None:
    given = {"file": np.arange(3), "serving_default_x:0": np.ones((2, 2), "int8")}
    path = write_arrays(given, tmp_path / "inputs")
    with np.load(path, allow_pickle=False) as loaded:
        assert sorted(loaded.files) == sorted(given)
        for name, array in given.items():
            np.testing.assert_array_equal(loaded[name], array)


class _Emulated(Target):
    """Answers as an emulated target does, to see what becomes of counts."""

    spec = "counted"
    unit = "instructions"

    def __init__(self, counts: list[int]) -> None:
        self.counts = counts

    def describe(self) -> dict[str, Any]:
        return {}

    def measure(self, paths: Any, **options: Any) -> dict[str, Any]:
        models = [
            {
                "path": str(path),
                "runtime": {".tflite": "LiteRT", ".onnx": "ONNX Runtime"}[path.suffix],
                "runtime_version": "1",
                "threads": 1,
                "warmup": 3,
                "repeats": 1,
                "invocations_per_sample": 1,
                "size_bytes": 5,
                "instructions": count,
            }
            for path, count in zip(paths, self.counts, strict=True)
        ]
        return {"machine": {"architecture": "aarch64"}, "models": models}

    def outputs(self, path: Any, inputs: Any) -> dict[str, np.ndarray]:
        return {}


def test_instructions_stand_for_time_and_are_called_a_proxy(files: dict[str, Path]) -> None:
    comparison = compare(list(files.values()), target=_Emulated([2_000_000, 3_000_000]))
    first, second = comparison.results
    assert (first.unit, first.cost, first.samples) == ("instructions", 2_000_000, (2_000_000,))
    assert first.median_ms is None
    assert first.samples_ms == ()
    assert second.instructions == 3_000_000
    ratio = comparison.ratios[1]
    assert (ratio.ratio, ratio.low, ratio.high) == (1.5, 1.5, 1.5)
    assert "proxy" in str(comparison)
    assert "2,000,000" in str(comparison)
    assert " ms" not in str(comparison)
    assert "proxy" in str(first)
    assert json.loads(json.dumps(comparison.as_dict()))["results"][0]["unit"] == "instructions"


def test_measure_files_leaves_memory_out(files: dict[str, Path]) -> None:
    paths = list(files.values())
    with_memory = measure_files(paths, repeats=2)
    without = measure_files(paths, repeats=2, memory=False)
    assert [result.path for result in without] == paths
    assert all(result.cold_start_ms is None for result in without)
    assert all(result.peak_memory_bytes is None for result in without)
    assert all(result.cold_start_ms is not None for result in with_memory)


# What benchmark_model prints, by release: of 2021 and later on a phone, and of 2019.
_RECORDED = {
    "current": """\
INFO: STARTING!
INFO: Log parameter values verbosely: [0]
INFO: Min num runs: [5]
INFO: Num threads: [1]
INFO: Graph: [/data/local/tmp/dprp_tf/model.tflite]
INFO: Loaded model /data/local/tmp/dprp_tf/model.tflite
INFO: Initialized TensorFlow Lite runtime.
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
INFO: The input model file size (MB): 4.27635
INFO: Initialized session in 5.685ms.
INFO: Running benchmark for at least 10 iterations and at least 0 seconds but terminate if \
exceeding 150 seconds.
INFO: count=10 first=18535 curr=14410 min=14389 max=18535 avg=14462.3 std=412 p5=14389 \
median=14410 p95=18535

INFO: Running benchmark for at least 5 iterations and at least 0 seconds but terminate if \
exceeding 150 seconds.
INFO: count={runs} first={first} curr=14570 min=14400 max=14800 avg={average} std=150 p5=14400 \
median=14570 p95=14800

INFO: Inference timings in us: Init: 5685, First inference: 18535, Warmup (avg): 14462.3, \
Inference (avg): {average}
INFO: Note: as the benchmark tool itself affects memory footprint, the following is only \
APPROXIMATE to the actual memory footprint of the model at runtime. Take the information at \
your discretion.
INFO: Memory footprint delta from the start of the tool (MB): init=4.58984 overall=7.82031
""",
    "single run": """\
STARTING!
Initialized session in 0.855ms.
count=1 curr=49060

Running benchmark for at least 1 iterations and at least 0 seconds.
count=1 curr={average}

Inference timings in us: Init: 855, First inference: 49060, Warmup (avg): 49060, \
Inference (avg): {average}
Peak memory footprint (MB): init=0 overall=12.8672
""",
    "2019": """\
STARTING!
Initialized session in 9.933ms
Running benchmark for at least 4 iterations and at least 0.5 seconds
count=7 first=127425 curr=66709 min=66709 max=127425 avg=76605.9 std=20944

Running benchmark for at least 10 iterations and at least 1 seconds
count={runs} first=66753 curr=66800 min=66699 max=66838 avg={average} std=39

Average inference timings in us: Warmup: 76605.9, Init: 9933, no stats: {average}
""",
    "slow": """\
INFO: count=1 first=9992420 curr=9992420 min=9992420 max=9992420 avg=9.99242e+06 std=0
INFO: Inference timings in us: Init: 25558, First inference: 9992420, Warmup (avg): \
9.99242e+06, Inference (avg): 9.99242e+06
""",
}

# A device in a folder: its commands run in a shell of this machine with / moved there by name.
_DEVICE = """\
#!{python}
import json, os, shutil, subprocess, sys
root = {root!r}
arguments = sys.argv[1:]
with open(os.path.join(root, "log"), "a") as log:
    log.write(json.dumps(arguments) + chr(10))
def here(text):
    return text.replace("/data/local/tmp", root + "/data/local/tmp")
if arguments[:2] != ["-s", "R58M123"]:
    print("error: device '%s' not found" % arguments[1], file=sys.stderr)
    sys.exit(1)
if os.path.exists(os.path.join(root, "offline")):
    print("error: device offline", file=sys.stderr)
    sys.exit(1)
verb, rest = arguments[2], arguments[3:]
if verb == "get-state":
    print("device")
elif verb == "push":
    shutil.copyfile(rest[0], here(rest[1]))
    print(rest[0] + ": 1 file pushed, 0 skipped. 21.4 MB/s")
elif verb == "shell":
    (line,) = rest
    environment = dict(os.environ, PATH=os.path.join(root, "bin") + os.pathsep + os.environ["PATH"])
    done = subprocess.run(["/bin/sh", "-c", here(line)], env=environment, capture_output=True)
    sys.stdout.buffer.write(done.stdout.replace(b"\\n", b"\\r\\n"))
    sys.exit(0)
else:
    sys.exit("unknown verb " + verb)
"""
_GETPROP = """\
#!/bin/sh
case "$1" in
  ro.product.cpu.abi) echo arm64-v8a ;;
  ro.product.manufacturer) echo Maker ;;
  ro.product.model) echo "Phone 7" ;;
  ro.board.platform) echo kona ;;
  ro.build.version.release) echo 13 ;;
  *) echo ;;
esac
"""
_TOOL = """\
#!{python}
import os, sys
root = {root!r}
flags = dict(flag.split("=", 1) for flag in sys.argv[1:])
with open(flags["--graph"], "rb") as stream:
    content = stream.read()
if content[4:8] != b"TFL3":
    print("ERROR: The model is not a valid Flatbuffer buffer")
    print("ERROR: Failed to load model " + flags["--graph"])
    print("ERROR: Benchmarking failed.")
    sys.exit(1)
counter = os.path.join(root, "turns")
turn = int(open(counter).read()) if os.path.exists(counter) else 0
with open(counter, "w") as stream:
    stream.write(str(turn + 1))
if turn + 1 == int(os.environ.get("GONE_AT", "-1")):
    open(os.path.join(root, "offline"), "w").close()
# The second file takes twice as long; every turn is a little slower.
average = (10000 if len(content) % 2 == 0 else 20000) + 10 * turn
with open(os.path.join(root, "recorded")) as stream:
    text = stream.read()
for word, value in (("average", average), ("first", 14500), ("runs", flags["--num_runs"])):
    text = text.replace("{{" + word + "}}", str(value))
print(text, end="")
"""


@dataclass
class Device:
    """A recorded device and the `adb` that speaks for it."""

    root: Path
    binary: Path

    def log(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.root / "log").read_text().splitlines()]

    def shell_lines(self, word: str) -> list[str]:
        return [line[3] for line in self.log() if line[2] == "shell" and word in line[3]]

    def record(self, name: str) -> None:
        (self.root / "recorded").write_text(_RECORDED[name])


def _executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    root = tmp_path / "device"
    (root / "data/local/tmp").mkdir(parents=True)
    _executable(tmp_path / "bin/adb", _DEVICE.format(python=sys.executable, root=str(root)))
    _executable(root / "bin/getprop", _GETPROP)
    binary = _executable(
        tmp_path / "benchmark_model", _TOOL.format(python=sys.executable, root=str(root))
    )
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    recorded = Device(root, binary)
    recorded.record("current")
    return recorded


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    # Only the recorded tool reads them: a flatbuffer's mark, one of even and one of odd length.
    folder = tmp_path / "models"
    folder.mkdir()
    paths = [folder / "a b;$(touch X).tflite", folder / "second.tflite"]
    paths[0].write_bytes(b"\x00\x00\x00\x00TFL3" + bytes(92))
    paths[1].write_bytes(b"\x00\x00\x00\x00TFL3" + bytes(93))
    return paths


def test_adb_times_files_in_turns(
    device: Device, pair: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    target = ADBTarget("R58M123", device.binary)
    comparison = compare(pair, threads=2, warmup=4, repeats=50, target=target)
    first, second = comparison.results
    for result in (first, second):
        assert (result.repeats, result.invocations_per_sample, result.warmup) == (10, 5, 4)
        assert len(result.samples_ms) == 10
        assert result.threads == 2
        assert result.model_memory_bytes == round(7.82031 * 2**20)
        assert result.peak_memory_bytes is None
        assert result.cold_start_ms == pytest.approx(5.685 + 18.535)
    # In turns 0 1, 1 0, 0 1, ...; every launch of the tool takes 10 us more.
    steps = [2 * turn + turn % 2 for turn in range(10)]
    assert first.samples_ms == pytest.approx([(10000 + 10 * step) / 1000 for step in steps])
    steps = [2 * turn + 1 - turn % 2 for turn in range(10)]
    assert second.samples_ms == pytest.approx([(20000 + 10 * step) / 1000 for step in steps])
    assert comparison.ratios[1].ratio == pytest.approx(2, abs=0.02)
    assert first.machine["architecture"] == "arm64-v8a"
    assert first.machine["device"] == "Maker Phone 7"
    assert first.machine["system"] == "Android 13"
    digest = hashlib.sha256(device.binary.read_bytes()).hexdigest()
    assert first.runtime_version == f"benchmark_model {digest[:12]}"
    launches = device.shell_lines("--graph=")
    assert len(launches) == 20
    for flag in ("num_threads=2", "num_runs=5", "warmup_runs=4", "min_secs=0", "use_xnnpack=true"):
        assert all(f" --{flag} " in f"{line} " for line in launches)
    assert not (tmp_path / "X").exists()
    assert not (device.root / "X").exists()

    pushed = [line for line in device.log() if line[2] == "push"]
    assert len(pushed) == 3, "the tool and two models"
    target.measure(pair, repeats=1)
    assert [line for line in device.log() if line[2] == "push"] == pushed, "sent again"
    folder = device.root / "data/local/tmp/dprp_tf"
    names = {f"{hashlib.sha256(path.read_bytes()).hexdigest()}.tflite" for path in pair}
    assert {path.name for path in folder.iterdir()} == {*names, digest}


@pytest.mark.parametrize(
    ("name", "memory"),
    [("current", 7.82031), ("single run", 12.8672), ("2019", None), ("slow", None)],
)
def test_adb_reads_what_each_release_prints(
    name: str, memory: float | None, device: Device, pair: list[Path]
) -> None:
    device.record(name)
    target = ADBTarget("R58M123", device.binary)
    (entry,) = target.measure(pair[:1], repeats=2)["models"]
    expected = [9992.42, 9992.42] if name == "slow" else [10.0, 10.01]
    assert entry["samples_ms"] == pytest.approx(expected)
    assert entry["load_ms"] == {"current": 5.685, "single run": 0.855, "2019": 9.933}.get(
        name, 25.558
    )
    assert entry["model_memory_bytes"] == (None if memory is None else round(memory * 2**20))
    (entry,) = target.measure(pair[:1], repeats=2, memory=False)["models"]
    assert entry["model_memory_bytes"] is None


def test_adb_finds_the_tool_on_the_device(device: Device, pair: list[Path]) -> None:
    with pytest.raises(TargetError, match="no executable /data/local/tmp/benchmark_model"):
        benchmark(pair[0], target="adb://R58M123")
    shutil.copy(device.binary, device.root / "data/local/tmp/benchmark_model")
    assert benchmark(pair[0], repeats=3, target="adb://R58M123").median_ms == pytest.approx(10.01)
    assert resolve_target("adb://R58M123").describe()["runtimes"]["ONNX Runtime"] is None
    broken = _executable(device.root / "data/local/tmp/broken", "#!/no/such/linker64\n")
    with pytest.raises(TargetError, match=r"broken does not run there.*built for the device"):
        benchmark(pair[0], target=f"adb://R58M123?binary=/data/local/tmp/{broken.name}")


def test_adb_failures_are_told(
    device: Device, pair: list[Path], files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = ADBTarget("R58M123", device.binary)
    with pytest.raises(ValueError, match=r"must name a \.tflite file.*small\.onnx"):
        benchmark(files["small.onnx"], target=target)
    with pytest.raises(ValueError, match="`inputs` must be None"):
        benchmark(pair[0], target=target, inputs=np.zeros((1, 4)))
    with pytest.raises(TargetError, match="gives no outputs back"):
        target.outputs(pair[0], np.zeros((1, 4)))
    with pytest.raises(TargetError, match=r"adb://other.* is not attached.*'other' not found"):
        benchmark(pair[0], target=ADBTarget("other", device.binary))
    pair[0].write_bytes(b"no model at all")
    with pytest.raises(ValueError, match=r"file that runs.*touch X.*not a valid Flatbuffer"):
        benchmark(pair[0], target=target)
    monkeypatch.setenv("GONE_AT", "3")
    with pytest.raises(TargetError, match=r"the device went away.*offline"):
        benchmark(pair[1], target=target)
    monkeypatch.setenv("PATH", str(device.root))
    with pytest.raises(TargetError, match="needs `adb`, which is not on the PATH"):
        benchmark(pair[1], target=target)


@pytest.fixture
def adb_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The real adb, with a server of its own that ends with the test."""
    adb = _program("adb")
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(_free_port()))
    subprocess.run([adb, "start-server"], check=True, capture_output=True, timeout=60)
    yield adb
    subprocess.run([adb, "kill-server"], check=False, capture_output=True, timeout=60)


def test_adb_for_real_without_a_device(adb_server: str, pair: list[Path]) -> None:
    listed = subprocess.run([adb_server, "devices"], check=True, capture_output=True, text=True)
    assert "no-such-serial" not in listed.stdout
    with pytest.raises(TargetError, match=r"adb://no-such-serial is not attached.*not found"):
        benchmark(pair[0], target="adb://no-such-serial")
