"""Devices that lie, chatter, hang or break off: each a program that does what a liar would.

In place of `ssh`, of `adb` and of the runner stand programs of this test. Whatever they do, the
answer is a `TargetError` of a line or so that names the target, and nothing of them is left.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from dprp_tf.deploy.measurement.benchmark import measure_files
from dprp_tf.deploy.measurement.sweep import sweep
from dprp_tf.deploy.targets import ADBTarget, LocalTarget, SSHTarget, Target, TargetError
from dprp_tf.deploy.targets.edge import EdgeRunnerTarget
from dprp_tf.deploy.targets.limits import work_limits
from dprp_tf.deploy.targets.qemu import EmulatedTarget
from dprp_tf.files.atomic import read_json, write_json

_ROUNDS = 3

# An honest device, but for what LIE says: it runs where it stands, with `answer` at hand.
_HONEST = """\
#!{python} -IS
import json, os, signal, subprocess, sys, time
root = {root!r}
with open(os.path.join(root, "pids"), "a") as stream:
    stream.write(str(os.getpid()) + chr(10))
def model(path):
    suffix = os.path.splitext(path)[1]
    return {{
        "path": path, "runtime": "LiteRT" if suffix == ".tflite" else "ONNX Runtime",
        "runtime_version": "1", "threads": 1, "warmup": 10, "repeats": {rounds},
        "invocations_per_sample": 1, "size_bytes": 12,
        "samples_ms": [1.0, 1.5, 2.0], "median_ms": 1.5, "p10_ms": 1.1, "p90_ms": 1.9,
        "min_ms": 1.0, "mean_ms": 1.5, "spread": 0.3, "peak_memory_bytes": 10**7,
        "model_memory_bytes": 10**6, "load_ms": 3.0, "first_inference_ms": 2.0,
    }}
def moment(second):
    return {{"clock_s": second, "load_average": [0.1, 0.1, 0.1], "process_cpu_s": second,
             "machine_cpu_s": second, "stolen_cpu_s": 0.0, "cpu_frequencies": [],
             "temperatures_celsius": {{"zone": 40.0}}}}
machine = {{"architecture": "aarch64", "processor": "Cortex-A72", "cpus": 4, "system": "Linux",
            "python": "3.11.2"}}
answer = {{"machine": machine, "models": [model({path!r})],
           "conditions": {{"before": moment(1.0), "after": moment(2.0), "drift": [1.0]}}}}
(first,) = answer["models"]
described = {{"machine": machine, "runtimes": {{"LiteRT": "1", "ONNX Runtime": None}}}}
def lie():
    global answer, described
{lie}
"""
_SSH_END = """\
request = json.loads(sys.stdin.buffer.readline())
mark, files = request["mark"], request["files"]
def say(text):
    sys.stdout.write(text)
    sys.stdout.flush()
def tell(words):
    say(mark + json.dumps(words) + chr(10))
hello = {{"python": "3.11", "absent": [], "missing": []}}
ended = {{"returncode": 0, "stderr": "", "paths": [e["sha256"] + e["suffix"] for e in files]}}
def early():
    global hello
{early}
early()
tell(hello)
if not hello.get("absent"):
    lie()
    words = described if "--describe" in request["arguments"] else answer
    ended.setdefault("stdout", json.dumps(words) + chr(10))
{late}
    tell(ended)
"""
_RUNNER_END = """\
lie()
print(json.dumps(described if "--describe" in sys.argv else answer))
"""
_ADB_END = """\
figures = "INFO: count=1 first=9 curr=9 min=9 max=9 avg=1500.5 std=0" + chr(10)
figures += "INFO: Inference timings in us: Init: 500, First inference: 900, Warmup: 9" + chr(10)
figures += "INFO: Memory footprint delta from the start (MB): init=1 overall=2" + chr(10)
code, known, verb, rest = 0, {{}}, sys.argv[3], sys.argv[4:]
digests = os.path.join(root, "digests.json")
if os.path.exists(digests):
    known = json.load(open(digests))
def out(text):
    sys.stdout.write(text)
    sys.stdout.flush()
lie()
if verb == "get-state":
    out("device" + chr(10))
elif verb == "push":
    import hashlib
    known[rest[1].split("/")[-1]] = hashlib.sha256(open(rest[0], "rb").read()).hexdigest()
    json.dump(known, open(digests, "w"))
elif verb == "shell":
    words = rest[0].split(" 2>&1")[0].split()
    if words[0] == "sha256sum":
        found = known.get(words[1].split("/")[-1])
        code = 0 if found else 1
        out(f"{{found}}  {{words[1]}}" + chr(10) if found else "no such file" + chr(10))
    elif words[0] == "mv":
        known[words[2].split("/")[-1]] = known.pop(words[1].split("/")[-1])
        json.dump(known, open(digests, "w"))
    elif any("--graph" in word for word in words):
        out(figures)
    elif words[0] == "nproc":
        out("4" + chr(10))
    out("dprp_tf_exit=" + str(code) + chr(10))
"""


def _each(lies: dict[str, Any], *quick: str) -> list[Any]:
    """Every lie, those that are not of the quick ones marked slow."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in lies]


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in (text or "pass").splitlines())


@dataclass
class Stage:
    """Where a liar is put up, and what it left."""

    folder: Path
    path: Path
    monkeypatch: pytest.MonkeyPatch

    def put(self, name: str, end: str, lie: str = "", **parts: str) -> Path:
        program = self.folder / name
        text = (_HONEST + end).format(
            python=sys.executable,
            root=str(self.folder),
            path=str(self.path),
            rounds=_ROUNDS,
            lie=_indented(lie),
            **{key: _indented(part) for key, part in parts.items()},
        )
        program.write_text(text)
        program.chmod(0o755)
        self.monkeypatch.setenv("PATH", str(self.folder), prepend=os.pathsep)
        return program

    def ssh(self, lie: str = "", early: str = "", late: str = "", seconds: float = 20) -> SSHTarget:
        self.put("ssh", _SSH_END, lie, early=early, late=late)
        return SSHTarget("pi", "board", timeout_s=seconds)

    def adb(self, lie: str = "", seconds: float = 20) -> ADBTarget:
        self.put("adb", _ADB_END, lie)
        return ADBTarget("R58M", timeout_s=seconds)

    def local(self, lie: str = "", seconds: float = 20) -> LocalTarget:
        runner = self.put("runner.py", _RUNNER_END, lie)
        self.monkeypatch.setattr("dprp_tf.deploy.targets.local.RUNNER", runner)
        return LocalTarget(timeout_s=seconds)

    def pids(self) -> list[int]:
        path = self.folder / "pids"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def refused(self, target: Target, words: str, ask: Callable[[], Any] | None = None) -> str:
        """The error that a question ends in; nothing of the liar may be left."""
        ask = ask or (lambda: target.measure([self.path], repeats=_ROUNDS))
        with pytest.raises(TargetError, match=words) as told:
            ask()
        text = str(told.value)
        assert text.startswith(target.spec), text
        assert text.isprintable(), "control characters of a device would reach a terminal"
        assert len(text) < 1200
        assert self.pids(), "the liar was never asked"
        _, alive = psutil.wait_procs(
            [psutil.Process(pid) for pid in self.pids() if psutil.pid_exists(pid)], timeout=5
        )
        assert not alive, "left behind"
        return text


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    path = tmp_path / "model.tflite"
    path.write_bytes(b"\x00\x00\x00\x00TFL3" + bytes(92))
    return Stage(tmp_path, path, monkeypatch)


def test_the_honest_device_is_believed(stage: Stage) -> None:
    near = stage.local()
    near_answer = near.measure([stage.path], repeats=_ROUNDS)
    for target in (near, stage.ssh()):
        (entry,) = target.measure([stage.path], repeats=_ROUNDS)["models"]
        assert entry["samples_ms"] == [1.0, 1.5, 2.0]
        assert entry["median_ms"] == 1.5
        assert entry["size_bytes"] == 100, "the file's own size, whatever the device says"
        assert target.describe()["runtimes"] == {"LiteRT": "1", "ONNX Runtime": None}
    assert near_answer["conditions"]["drift"] == [2.0], "of the samples: 2.0 / 1.0"
    stage.put("benchmark_model", "")
    adb = stage.adb()
    (entry,) = ADBTarget("R58M", stage.folder / "benchmark_model").measure([stage.path], repeats=2)[
        "models"
    ]
    assert entry["samples_ms"] == [1.5005, 1.5005]
    assert entry["model_memory_bytes"] == 2 * 2**20
    assert adb.describe()["machine"]["cpus"] == 4


# What the runner says, changed; and what of it the error must name.
_FIGURES = {
    "NaN": ("first['samples_ms'][1] = float('nan')", "NaN, which is no JSON"),
    "infinite": ("first['samples_ms'][1] = float('-inf')", "-Infinity, which is no JSON"),
    "too large to be a float": ("first['samples_ms'][0] = 10**400", "samples_ms.*1329 bits"),
    "negative": ("first['samples_ms'][0] = -1.0", r"samples_ms.*finite number at least.*-1\.0"),
    "zero": ("first['samples_ms'] = [0, 0, 0]", r"samples_ms.*at least.*Received: 0\."),
    "below what clocks tell": (
        "first['samples_ms'][0] = 5e-324",
        "samples_ms.*at least.*5e-324",
    ),
    "text": ("first['samples_ms'][2] = '1.5'", r"samples_ms.*finite number.*Received: 1\.5"),
    "truth": ("first['samples_ms'][2] = True", "samples_ms.*Received: True"),
    "nothing": ("first['samples_ms'][2] = None", "samples_ms.*Received: None"),
    "a list": ("first['samples_ms'][2] = [1.0]", "samples_ms.*Received: a list of 1"),
    "longer than the whole run": ("first['samples_ms'][0] = 3.6e6", "samples_ms.*at most"),
    "longer than the whole run by its invocations": (
        "first['invocations_per_sample'] = 10**6",
        "samples_ms.*at most",
    ),
    "too few": ("first['samples_ms'] = [1.0]", "samples_ms.*a list of 3"),
    "too many": ("first['samples_ms'] *= 4", "samples_ms.*a list of 3.*of 12"),
    "none at all": ("del first['samples_ms']", "samples_ms.*Received: None"),
    "fewer by its own account": (
        "first['samples_ms'], first['repeats'] = [1.0], 1",
        "`repeats` of model.tflite must be 3.*Received: 1",
    ),
    "other threads": ("first['threads'] = 8", "`threads` of model.tflite must be 1"),
    "truth for threads": ("first['threads'] = True", "`threads` of model.tflite must be 1"),
    "another runtime": ("first['runtime'] = 'ONNX Runtime'", "`runtime` of model.tflite must be"),
    "a version that is a number": (
        "first['runtime_version'] = 2",
        "`runtime_version` must be text",
    ),
    "no warm-up": ("first['warmup'] = -1", "`warmup` must be an integer"),
    "memory of a text": ("first['peak_memory_bytes'] = '10 MB'", "`peak_memory_bytes` must be"),
    "memory below nothing": ("first['model_memory_bytes'] = -5", "`model_memory_bytes` must be"),
    "memory of an exabyte": ("first['peak_memory_bytes'] = 2**60", "`peak_memory_bytes` must be"),
    "a load before it began": ("first['load_ms'] = -3.0", "`load_ms` must be"),
    "no models": ("answer['models'] = []", "`models` must be a list of 1.*a list of 0"),
    "another file's as well": ("answer['models'] *= 2", "`models` must be a list of 1.*of 2"),
    "models that are none": ("answer['models'] = [3]", "`models` must be a mapping"),
    "no machine": ("del answer['machine']", "`machine` must be a mapping"),
    "a machine of numbers": ("machine['processor'] = 72", "`processor` must be text"),
    "CPUs without number": ("machine['cpus'] = 0", "`cpus` must be an integer"),
    "a clock that runs backwards": (
        "answer['conditions']['after']['clock_s'] = 0.5",
        "`clock_s` must not go back",
    ),
    "heat of a text": (
        "answer['conditions']['after']['temperatures_celsius'] = {'zone': 'hot'}",
        "`temperatures_celsius` must be",
    ),
    "no clock by its own account": (
        "sys.exit('edge_runner: error: the clock of this machine moved by 0 ns')",
        "local: the clock of this machine moved by 0 ns",
    ),
    "conditions that are none": ("answer['conditions'] = ['fine']", "`conditions` must be"),
    "a list for an answer": ("answer = [answer]", "`answer` must be a mapping.*a list of 1"),
    "nothing for an answer": ("answer = None", "`answer` must be a mapping.*None"),
}


@pytest.mark.parametrize("lie", _FIGURES)
def test_figures_are_not_believed(lie: str, stage: Stage) -> None:
    changed, words = _FIGURES[lie]
    stage.refused(stage.local(changed), words)


@pytest.mark.parametrize("lie", ["NaN", "negative", "too many", "a list for an answer"])
def test_nor_over_ssh(lie: str, stage: Stage) -> None:
    changed, words = _FIGURES[lie]
    stage.refused(stage.ssh(changed), words)


def test_statistics_are_those_of_the_samples(stage: Stage) -> None:
    target = stage.local("first.update(median_ms=-7, spread='none', min_ms=None, p10_ms=1e300)")
    (entry,) = target.measure([stage.path], repeats=_ROUNDS)["models"]
    assert (entry["median_ms"], entry["min_ms"], entry["p10_ms"]) == (1.5, 1.0, 1.1)
    assert entry["spread"] == pytest.approx(1 / 3)


def test_words_of_a_device_lose_what_a_terminal_would_obey(stage: Stage) -> None:
    target = stage.local("machine['processor'] = chr(27) + '[2J' + 'x' * 5000 + chr(10)")
    processor = target.measure([stage.path], repeats=_ROUNDS)["machine"]["processor"]
    assert processor.isprintable()
    assert processor.startswith(" [2Jx")
    assert len(processor) == 200
    lie = "sys.stderr.write('edge_runner: error: ' + chr(27) + ']0;owned' + chr(7)); sys.exit(2)"
    with pytest.raises(ValueError, match="owned") as told:
        stage.local(lie).measure([stage.path], repeats=_ROUNDS)
    assert str(told.value).isprintable()


def test_files_of_a_measurement_are_in_the_order_given_and_counted(stage: Stage) -> None:
    other = stage.path.with_name("other.tflite")
    other.write_bytes(b"\x00\x00\x00\x00TFL3")
    both = "answer['models'] = [dict(first), dict(first, repeats=2, samples_ms=[1.0, 1.0])]"
    target = stage.local(both)
    with pytest.raises(TargetError, match=r"`repeats` of other\.tflite must be 3"):
        target.measure([stage.path, other], repeats=_ROUNDS)


_TALK: dict[str, tuple[dict[str, Any], str]] = {
    "hangs before it says anything": (
        {"early": "time.sleep(600)", "seconds": 1},
        "no end in 1 s.*timeout_s.*timeout=SECONDS",
    ),
    "hangs at work": ({"lie": "time.sleep(600)", "seconds": 1}, "no end in 1 s"),
    "hangs with the answer half said": (
        {"late": "say(mark + '{\"returncode\": 0,'); time.sleep(600)", "seconds": 1},
        "no end in 1 s",
    ),
    "ignores signals": (
        {
            "early": "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "signal.signal(signal.SIGINT, signal.SIG_IGN)\ntime.sleep(600)",
            "seconds": 1,
        },
        "no end in 1 s",
    ),
    "chatters without end": (
        {"early": "while True: say('Welcome!' * 1000 + chr(10))"},
        "said more than|no end",
    ),
    "one line without end": ({"early": "while True: say('a' * 100000)"}, "said more than"),
    "complains without end": (
        {"early": "while True: sys.stderr.write('oh no! ' * 1000)"},
        "said more than",
    ),
    "a drop every now and then": (
        {"early": "while True: say('.' + chr(10)); time.sleep(0.05)", "seconds": 1},
        "no end in 1 s",
    ),
    "takes no input": (
        {
            "early": "hello['missing'] = [0, 1]",
            "lie": "time.sleep(600)",
            "seconds": 1,
        },
        "no end in 1 s",
    ),
    "closes the pipe in the middle": (
        {"late": "say(mark + '{\"returncode\": 0,'); os._exit(0)"},
        "exit code 0",
    ),
    "ends before the answer": ({"lie": "sys.exit(3)"}, "exit code 3"),
    "dies": ({"lie": "os.kill(os.getpid(), 9)"}, "exit code -9"),
    "no UTF-8": (
        {"late": "sys.stdout.flush(); os.write(1, mark.encode() + bytes([255, 254, 10]))"},
        "its words must be JSON",
    ),
    "no JSON": ({"late": "say(mark + 'done' + chr(10))"}, "its words must be JSON.*done"),
    "NaN around it": (
        {"late": "ended['returncode'] = float('nan')"},
        "its words must be JSON.*NaN",
    ),
    "nested without end": (
        {"late": "say(mark + '[' * 200000 + chr(10))"},
        "its words must be JSON.*nested",
    ),
    "an integer of a million digits": (
        {"late": "say(mark + '{\"returncode\": ' + '9' * 10**6 + '}' + chr(10))"},
        "its words must be JSON",
    ),
    "a list": ({"late": "ended = [ended]"}, "`answer` must be a mapping"),
    "an error that is none": ({"late": "ended = {'error': 5}"}, "`error` must be text"),
    "an error full of escapes": (
        {"late": "ended = {'error': chr(27) + '[31m' + 'x' * 10**5}"},
        r"on the device:  \[31mx+…",
    ),
    "another protocol version": (
        {"early": "global mark\nmark = 'dprp_tf: '"},
        "exit code 0",
    ),
    "another version of the agent's words": (
        {"early": "hello = {'version': 7}"},
        "`python` must be text",
    ),
    "a Python that is none": (
        {"early": "hello['python'] = '3.11; rm -rf'"},
        "`python` must be a version",
    ),
    "a Python of many digits": (
        {"early": "hello['python'] = '3.' + '1' * 5000"},
        "`python` must be a version",
    ),
    "modules nobody asked for": (
        {"early": "hello['absent'] = [['keras']]"},
        "`absent` must hold modules",
    ),
    "absent that is none": ({"early": "hello['absent'] = 5"}, "`absent` must be a list"),
    "lacks files that there are not": (
        {"early": "hello['missing'] = [7]"},
        "`missing` must be an integer of 0 to 1",
    ),
    "lacks a file from behind": (
        {"early": "hello['missing'] = [-1]"},
        "`missing` must be an integer of 0 to 1",
    ),
    "lacks a file many times": (
        {"early": "hello['missing'] = [0] * 1000"},
        "`missing` must name each file once",
    ),
    "lacks truth": ({"early": "hello['missing'] = [True]"}, "`missing` must be an integer"),
    "no code": ({"late": "del ended['returncode']"}, "`returncode` must be an integer"),
    "a code that is none": (
        {"late": "ended['returncode'] = 1e9"},
        "`returncode` must be an integer",
    ),
    "a signal that there is not": ({"late": "ended['returncode'] = -200"}, "signal 200"),
    "no output": ({"late": "ended['stdout'] = None"}, "`stdout` must be text"),
    "empty output": ({"late": "ended['stdout'] = ''"}, "must answer in JSON.*printed nothing"),
    "complaints that are none": ({"late": "ended['stderr'] = [1]"}, "`stderr` must be text"),
    "paths of others": (
        {"late": "ended['paths'] = ['', '']"},
        "`paths` must be those of the files",
    ),
    "fewer paths": ({"late": "ended['paths'] = []"}, "`paths` must be a list of 2"),
    "prose for an answer": (
        {"late": "ended['stdout'] = 'all went well' + chr(10)"},
        "must answer in JSON.*all went well",
    ),
}


@pytest.mark.parametrize(
    "lie", _each(_TALK, *(name for name, (parts, _) in _TALK.items() if "seconds" not in parts))
)
def test_a_device_that_does_not_keep_to_the_talk(lie: str, stage: Stage) -> None:
    parts, words = _TALK[lie]
    stage.refused(stage.ssh(**parts), words)


def test_an_echo_is_no_answer(stage: Stage) -> None:
    stage.put(
        "ssh", "sys.stdout.write(sys.stdin.readline())\nsys.stdout.flush()\ntime.sleep(600)\n"
    )
    stage.refused(SSHTarget("pi", "board", timeout_s=1), "no end in 1 s")


@pytest.mark.parametrize(
    "parts",
    [
        {"early": "say('Welcome to board' + chr(10) + '{}' + chr(10) + 'dprp_tf: {}' + chr(10))"},
        {"early": "sys.stderr.write('Battery low' + chr(10)); sys.stderr.flush()"},
        {"early": "say(json.dumps(request) + chr(10))"},
        {"late": "tell(ended); ended['returncode'] = 1"},
        {"late": "say('log: done' + chr(10))"},
        {"lie": "time.sleep(1.5)"},
        {"early": "signal.signal(signal.SIGINT, signal.SIG_IGN)"},
    ],
    ids=["banner", "banner on stderr", "echo first", "twice", "chat between", "slow", "deaf"],
)
def test_noise_and_slowness_are_no_lies(parts: dict[str, str], stage: Stage) -> None:
    target = stage.ssh(**parts)
    (entry,) = target.measure([stage.path], repeats=_ROUNDS)["models"]
    assert entry["samples_ms"] == [1.0, 1.5, 2.0]


_STARTING = """\
child = subprocess.Popen([sys.executable, "-ISc", "import time; time.sleep(600)"])
open(os.path.join(root, "pids"), "a").write(str(child.pid) + chr(10))
"""


@pytest.mark.parametrize(
    "then",
    ["os._exit(0)", pytest.param("time.sleep(600)", marks=pytest.mark.slow)],
    ids=["gone", "there"],
)
def test_what_the_device_started_ends_with_it(then: str, stage: Stage) -> None:
    # What was started holds the pipes, though the program itself may be gone.
    stage.refused(stage.ssh(early=_STARTING + then, seconds=3), "no end in 3 s")
    assert len(stage.pids()) == 2


@pytest.mark.slow
def test_so_it_does_on_this_machine(stage: Stage) -> None:
    stage.refused(stage.local(_STARTING + "os._exit(0)", seconds=3), "no end in 3 s")
    assert len(stage.pids()) == 2


def test_a_wait_can_be_broken_off(stage: Stage) -> None:
    ready = stage.folder / "ready"
    target = stage.ssh(early=f"open({str(ready)!r}, 'w'); time.sleep(600)", seconds=300)

    def interrupt() -> None:
        while not ready.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    # A shell's background jobs are started with the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            target.measure([stage.path], repeats=_ROUNDS)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not [pid for pid in stage.pids() if psutil.pid_exists(pid)], "left behind"


def test_the_time_limit_grows_with_the_work_and_is_the_users(stage: Stage) -> None:
    one, many = work_limits([stage.path], 60), work_limits([stage.path] * 10, 600)
    assert 60 < one.seconds < many.seconds
    assert work_limits([stage.path], 60, slowness=20).seconds > 10 * 60 * 5
    assert SSHTarget.from_spec("ssh://pi@board?timeout=7.5").timeout_s == 7.5
    assert ADBTarget.from_spec("adb://R58M?timeout=90&binary=/data/x").timeout_s == 90
    # Another patience is no other place: what was measured there stays known.
    assert SSHTarget.from_spec("ssh://pi@board?timeout=7.5").spec == "ssh://pi@board:22"
    for text in ("0", "-1", "nan", "inf", "1e400", "soon", "True"):
        with pytest.raises(ValueError, match="timeout"):
            SSHTarget.from_spec(f"ssh://pi@board?timeout={text}")
    for kind in (LocalTarget, EmulatedTarget):
        with pytest.raises(ValueError, match="`timeout_s` must be a finite number above 0"):
            kind(timeout_s=0)


# benchmark_model and the device's shell, changed.
_ADB: dict[str, tuple[str, str]] = {
    "negative": ("figures = figures.replace('avg=1500.5', 'avg=-3')", r"`avg` must be"),
    "zero": ("figures = figures.replace('avg=1500.5', 'avg=0')", "`samples_ms` must be"),
    "NaN": ("figures = figures.replace('avg=1500.5', 'avg=nan')", "`avg` must be.*nan"),
    "infinite": ("figures = figures.replace('avg=1500.5', 'avg=1e999')", "`avg` must be.*inf"),
    "two points": ("figures = figures.replace('1500.5', '1.5.5')", r"`avg` must be.*1\.5\.5"),
    "a week": ("figures = figures.replace('1500.5', '6e11')", "`samples_ms` must be"),
    "other count": ("figures = figures.replace('count=1 ', 'count=99 ')", "`count` must be.*99"),
    "no count": ("figures = figures.replace('count=1 ', 'count=-1 ')", "`count` must be"),
    "memory": ("figures = figures.replace('overall=2', 'overall=-2')", "`overall` must be"),
    "start": ("figures = figures.replace('Init: 500', 'Init: x')", "`Init` must be"),
    "nothing": ("figures = ''", "benchmark_model ended with code 0.*nothing"),
    "hangs": ("time.sleep(600)", "adb get-state came to no end in 1 s"),
    "chatters": ("while True: out('x' * 10**5)", "adb get-state said more than"),
    "complains": ("while True: sys.stderr.write('x' * 10**5)", "adb get-state said more than"),
    "silence": ("if verb == 'shell': sys.exit(0)", "the device went away"),
    "no code": (
        "if verb == 'shell': out('dprp_tf_exit=' + chr(178) + chr(10)); sys.exit(0)",
        "the device went away",
    ),
    "a code of many digits": (
        "if verb == 'shell': out('dprp_tf_exit=' + '1' * 9999 + chr(10)); sys.exit(0)",
        "the device went away",
    ),
    "escapes": (
        "if verb == 'get-state': sys.stderr.write(chr(27) + '[2J'); sys.exit(1)",
        r"not attached.* \[2J",
    ),
    "bytes": (
        "if verb == 'shell': os.write(1, bytes(range(128, 256))); sys.exit(0)",
        "the device went away",
    ),
    "lets a file fall": (
        "if verb == 'push': rest[0] = '/dev/null'",
        "arrived as something else",
    ),
}


@pytest.mark.parametrize(
    "lie", _each(_ADB, "NaN", "two points", "hangs", "silence", "bytes", "lets a file fall")
)
def test_a_device_behind_adb_is_not_believed(lie: str, stage: Stage) -> None:
    changed, words = _ADB[lie]
    names = "global figures, code, verb, rest, known\n"
    target = stage.adb(names + changed, seconds=1 if lie == "hangs" else 20)
    binary = stage.folder / "benchmark_model"
    binary.write_text("tool")
    pushing = ADBTarget("R58M", binary, timeout_s=target.timeout_s)
    stage.refused(pushing, words, lambda: pushing.measure([stage.path], repeats=2))


def test_adb_without_sha256_compares_what_comes_back(stage: Stage) -> None:
    # The device keeps files in a folder and knows neither sha256sum nor toybox.
    kept = stage.folder / "kept"
    kept.mkdir()
    lie = f"""\
import shutil
global code
here = lambda name: os.path.join({str(kept)!r}, name.split("/")[-1])
if verb == "push":
    shutil.copyfile(rest[0], here(rest[1]))
    if os.path.exists(os.path.join(root, "damaging")):
        open(here(rest[1]), "r+b").write(b"X")
    sys.exit(0)
if verb == "pull":
    shutil.copyfile(here(rest[0]), rest[1])
    sys.exit(0)
words = rest[0].split(" 2>&1")[0].split() if verb == "shell" else [""]
if words[0] in ("sha256sum", "toybox"):
    out("not found" + chr(10) + "dprp_tf_exit=127" + chr(10))
    sys.exit(0)
if words[0] == "wc":
    out(str(os.path.getsize(here(words[2]))) + " " + words[2] + chr(10))
    out("dprp_tf_exit=0" + chr(10))
    sys.exit(0)
if words[0] == "mv":
    os.replace(here(words[1]), here(words[2]))
    out("dprp_tf_exit=0" + chr(10))
    sys.exit(0)
"""
    stage.adb(lie)
    binary = stage.folder / "benchmark_model"
    binary.write_text("tool")
    target = ADBTarget("R58M", binary, timeout_s=20)
    with pytest.warns(UserWarning, match=r"adb://R58M.* has no sha256sum: .*pulled back"):
        (entry,) = target.measure([stage.path], repeats=1)["models"]
    assert entry["samples_ms"] == [1.5005]
    (stage.folder / "damaging").touch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stage.refused(target, "arrived as something else")


def _npz(path: Path, arrays: dict[str, np.ndarray], **options: Any) -> Path:
    import zipfile

    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=True)
    return path


def _header(path: Path, shape: str, dtype: str = "<f4", content: bytes = bytes(16)) -> Path:
    import zipfile

    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (118 - len(text) % 64 - 1) + b"\n"
    head = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("y.npy", head + content)
    return path


def _many(path: Path, count: int) -> Path:
    import zipfile

    with zipfile.ZipFile(path, "w") as archive:
        for number in range(count):
            archive.writestr(f"{number}.npy", b"")
    return path


_TWO = np.zeros((2, 4), np.float32)
_ARRAYS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "fewer samples": (lambda p: _npz(p, {"y": _TWO[:1]}), r"of 2 samples.*shape \(1, 4\)"),
    "more samples": (lambda p: _npz(p, {"y": np.zeros((9, 4))}), r"of 2 samples.*\(9, 4\)"),
    "no axis": (lambda p: _npz(p, {"y": np.float32(1)[()]}), r"of 2 samples.*shape \(\)"),
    "objects": (lambda p: _npz(p, {"y": np.array([{}, {}])}), "must hold numbers"),
    "texts": (lambda p: _npz(p, {"y": np.array(["a", "b"])}), "must hold numbers.*<U1"),
    "complex": (lambda p: _npz(p, {"y": _TWO.astype(complex)}), "must hold numbers"),
    "records": (lambda p: _npz(p, {"y": np.zeros(2, "i4,f4")}), "must hold numbers"),
    "no arrays": (lambda p: _npz(p, {}), "one array or more"),
    "compressed": (
        lambda p: _npz(p, {"y": _TWO}, compression=8),
        "must lie uncompressed",
    ),
    "no archive": (lambda p: p.write_bytes(b"PK" * 500), "must be an .npz file"),
    "empty": (lambda p: p.write_bytes(b""), "must be an .npz file"),
    "cut off": (
        lambda p: p.write_bytes(_npz(p, {"y": _TWO}).read_bytes()[:-40]),
        "must be an .npz file",
    ),
    "another checksum": (
        lambda p: p.write_bytes(_npz(p, {"y": _TWO + 3}).read_bytes().replace(b"@@", b"@A")),
        "arrays of numbers in an .npz",
    ),
    "larger than it is": (
        lambda p: _header(p, "(2, 10**9)".replace("10**9", "1000000000")),
        "take",
    ),
    "larger than anything": (lambda p: _header(p, "(2, " + "9" * 90 + ")"), "must take"),
    "below nothing": (lambda p: _header(p, "(2, -2)"), "of 2 samples"),
    "a call for a shape": (lambda p: _header(p, "(2, open('/x'))"), "arrays of numbers"),
    "a float of 16 bytes": (lambda p: _header(p, "(2,)", "<f16", bytes(32)), "must hold numbers"),
    "thousands": (lambda p: _many(p, 2000), "must be 1000 or fewer"),
    "no header": (lambda p: _header(p, "(2, 2)").write_bytes(_many(p, 3).read_bytes()), "arrays"),
    "a name with escapes": (
        lambda p: _npz(p, {"\x1b[2J": _TWO}),
        "names of their own",
    ),
}


@pytest.mark.parametrize("lie", _ARRAYS)
def test_arrays_are_held_against_what_they_can_be(lie: str, stage: Stage) -> None:
    make, words = _ARRAYS[lie]
    returned = stage.folder / "returned.npz"
    make(returned)
    late = (
        f"content = open({str(returned)!r}, 'rb').read()\n"
        "ended['outputs'] = len(content)\n"
        "tell(ended)\n"
        "sys.stdout.buffer.write(content)\n"
        "sys.exit(0)"
    )
    target = stage.ssh(late=late)
    stage.refused(target, words, lambda: target.outputs(stage.path, np.zeros((2, 3), "float32")))


def test_arrays_that_are_right_are_read(stage: Stage) -> None:
    arrays = {"y": _TWO + 3, "mask": np.ones((2,), bool), "q": np.full((2, 1, 5), -3, np.int8)}
    returned = _npz(stage.folder / "returned.npz", arrays)
    target = stage.ssh(
        late=f"content = open({str(returned)!r}, 'rb').read()\nended['outputs'] = len(content)\n"
        "tell(ended)\nsys.stdout.buffer.write(content)\nsys.exit(0)"
    )
    found = target.outputs(stage.path, np.zeros((2, 3), "float32"))
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize(
    ("late", "words"),
    [
        ("ended['outputs'] = 2**40", "`outputs` must be an integer of 0 to"),
        ("ended['outputs'] = -1", "`outputs` must be an integer of 0 to"),
        ("ended['outputs'] = '8'", "`outputs` must be an integer of 0 to"),
        ("ended['outputs'] = 500\ntell(ended)\nsay('abc')\nos._exit(0)", "exit code 0"),
        ("pass", "wrote no outputs"),
    ],
    ids=["a terabyte", "negative", "text", "breaks off", "none"],
)
def test_outputs_that_do_not_come(late: str, words: str, stage: Stage) -> None:
    target = stage.ssh(late=late)
    stage.refused(target, words, lambda: target.outputs(stage.path, np.zeros((2, 3), "float32")))


class _Sandbox:
    """An emulator whose program is a liar of this test."""

    python, emulator = "3.11", "7.2"

    def __init__(self, folder: Path, program: Path) -> None:
        self.folder, self._program = folder, program

    def command(self, core: str, arguments: Any, counts: Path | None = None) -> list[str]:
        return [str(self._program), *(str(word) for word in arguments), str(counts)]

    def environment(self) -> dict[str, str]:
        return dict(os.environ)


_COUNTS = "open(sys.argv[-1], 'w').write({!r})"


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        (_COUNTS.format("instructions 1 500\ninstructions 2 100\n"), "`instructions` must go up"),
        (_COUNTS.format("instructions 1 500\n"), "`instructions` must go up.*500, then None"),
        (_COUNTS.format("instructions 2 500\n") + "; first['threads'] = 2", "`threads`"),
        (_COUNTS.format("instructions x y\ninstructions 1\n"), "QEMU counted nothing"),
        (_COUNTS.format(f"instructions 1 {'9' * 5000}\n"), "QEMU counted nothing"),
        (_COUNTS.format("instructions 2 500\n") + "; answer = 5", "`answer` must be a mapping"),
        (_COUNTS.format("instructions 2 500\n") + "; answer['models'] = []", "list of 1"),
        (
            _COUNTS.format("instructions 2 9\n") + "; print('ok'); sys.exit(0)",
            "must answer in JSON",
        ),
        ("pass", "QEMU counted nothing"),
        ("time.sleep(600)", "no end in 1 s"),
        ("while True: print('x' * 10**5)", "said more than"),
    ],
)
def test_an_emulator_is_not_believed(lie: str, words: str, stage: Stage) -> None:
    program = stage.put("emulator", "first['repeats'] = 1\n" + _RUNNER_END, lie)
    sandbox: Any = _Sandbox(stage.folder, program)
    seconds = 1 if "sleep" in lie else 20
    stage.refused(EmulatedTarget("qemu:cortex-a72", sandbox, timeout_s=seconds), words)


class _Told(EdgeRunnerTarget):
    """A target of a user's own, which checks nothing."""

    spec = "mine"

    def __init__(self, samples: list[Any]) -> None:
        self._samples = samples

    def _run(self, *_: Any) -> Any:
        raise AssertionError("not asked")

    def measure(self, paths: Any, **options: Any) -> dict[str, Any]:
        models = [
            {
                "runtime": "LiteRT",
                "runtime_version": "1",
                "threads": 1,
                "warmup": 3,
                "repeats": len(self._samples),
                "invocations_per_sample": 1,
                "samples_ms": self._samples,
            }
            for _ in paths
        ]
        return {"machine": {"architecture": "aarch64"}, "models": models}


def test_a_target_of_the_users_own_is_checked_too_and_bench_stays_json(stage: Stage) -> None:
    with pytest.raises(TargetError, match=r"mine gave .*samples_ms.*nan"):
        measure_files([stage.path], target=_Told([1.0, math.nan]))
    found = sweep([stage.path], targets=(_Told([1.0, 2.0]), _Told([math.inf])), repeats=2)
    path = stage.folder / "bench.json"
    write_json(path, found.as_dict())

    def no_constant(name: str) -> Any:
        raise AssertionError(f"{name} in JSON")

    content = json.loads(path.read_text(), parse_constant=no_constant)
    assert content == read_json(path)
    assert len(content["runs"]) == 1
    (failure,) = content["failures"]
    assert "samples_ms" in failure["message"]
