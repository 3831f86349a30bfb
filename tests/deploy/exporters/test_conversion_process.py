"""Conversions in a process of their own: the same files, and crashes that the session survives."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import psutil
import pytest
import tensorflow as tf
from keras import layers
from tensorflow.python.framework import convert_to_constants

from dprp_tf import deploy
from dprp_tf.deploy.exporters import conversion_process, conversion_worker, converting
from dprp_tf.deploy.exporters.conversion_process import (
    CONVERTER,
    ConversionError,
    ConversionProcess,
    ConverterDiedError,
)
from dprp_tf.deploy.exporters.converting import Conversion
from dprp_tf.deploy.exporters.flatbuffer import in_order
from dprp_tf.deploy.exporters.source import Source
from dprp_tf.deploy.running.runtime import load_file

WORKER = str(Path(conversion_worker.__file__))

# Talks like the worker, at once, and dies where a graph holds a softsign.
DOUBLE = """
import json, os, pathlib, signal, sys
import numpy as np
here = pathlib.Path(__file__).parent
if (here / "broken").exists():
    sys.exit("no memory")
print('"ready"', flush=True)
for line in sys.stdin:
    request = json.loads(line)
    folder = pathlib.Path(request["folder"])
    samples = request["samples"] and len(np.load(folder / "samples_0.npy"))
    mode = (here / "mode").read_text() if (here / "mode").exists() else ""
    if mode == "once":
        (here / "mode").unlink()
    if mode == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "once" or (mode == "samples" and samples > 2) or (
        not mode and b"Softsign" in (folder / "graph.pb").read_bytes()
    ):
        print("I0000 a line that informs", file=sys.stderr)
        print("Check failed: softsign", file=sys.stderr, flush=True)
        os.abort()
    (folder / "model.tflite").write_bytes(b"converted")
    print('{"error": null}', flush=True)
"""

# What the real worker takes for TensorFlow: it does what a file beside the request says.
STAND_IN = """
from pathlib import Path
from types import SimpleNamespace

class Converter:
    target_spec = SimpleNamespace()

    def __init__(self, saved):
        self.mode = (Path(saved).parent / "mode").read_text()

    def convert(self):
        print("progress, on stdout")
        if self.mode == "refuses":
            raise RuntimeError("no such kernel\\nsecond line")
        if self.mode == "works on":
            # In C, where no other thread of Python gets its turn.
            sum(range(10**15))
        return self.mode.encode()

lite = SimpleNamespace(
    TFLiteConverter=SimpleNamespace(from_saved_model=Converter),
    OpsSet=SimpleNamespace(TFLITE_BUILTINS=None),
)
"""

SCRIPT = """
import os, signal, sys, tempfile, time
from pathlib import Path
from dprp_tf.deploy.exporters.conversion_process import CONVERTER

def convert(mode):
    folder = Path(tempfile.mkdtemp(dir=sys.argv[1]))
    (folder / "mode").write_text(mode)
    CONVERTER.convert({"folder": str(folder), "frozen": None, "quantization": None,
                       "integer_io": False, "samples": None, "batch": 1})
    return (folder / "model.tflite").read_text()

# Whatever fails, it does not stay; and who starts the tests may ignore Ctrl-C.
signal.alarm(120)
signal.signal(signal.SIGINT, signal.default_int_handler)
assert convert("first") == "first"
worker = CONVERTER._process.pid
"""


@pytest.fixture
def double(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a process that stands in for the converter's."""
    folder = tmp_path / "double"
    folder.mkdir()
    (folder / "worker.py").write_text(DOUBLE)
    process = ConversionProcess([sys.executable, "-P", str(folder / "worker.py")])
    monkeypatch.setattr(converting, "CONVERTER", process)
    yield folder
    process.stop()


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose `tensorflow` is what the worker finds first."""
    (tmp_path / "tensorflow.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def _request(folder: Path, mode: str) -> dict[str, Any]:
    folder.mkdir()
    (folder / "mode").write_text(mode)
    fixed = {"frozen": None, "quantization": None, "integer_io": False, "samples": None, "batch": 1}
    return {"folder": str(folder), **fixed}


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _gone(pid: int) -> bool:
    try:
        # What nobody waits for stays in the list as a zombie.
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _two_by_two() -> keras.Model:
    keras.utils.set_random_seed(0)
    first, second = keras.Input((6, 6, 2), name="zebra"), keras.Input((3,), name="ape")
    x = layers.Conv2D(32, 3, activation="relu")(first)
    x = layers.Concatenate()([layers.Flatten()(x), layers.Dense(5)(second)])
    outputs = [layers.Dense(4, name="yes")(x), layers.Dense(2, name="box")(x)]
    return keras.Model([first, second], outputs)


def _data(model: keras.Model, samples: int = 8) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.normal(size=(samples, *x.shape[1:])).astype("float32") for x in model.inputs]


def _converted_here(
    source: Source, quantization: str | None, calibration: Any, integer_io: bool, named: bool
) -> bytes:
    """What TensorFlow Lite's converter makes of the model in this process."""
    signature = [
        tf.TensorSpec((1, *shape[1:]), dtype, name=name)
        for name, (shape, dtype) in source.inputs.items()
    ]
    serve = source.serve if named else lambda *x: list(source.serve(*x).values())
    function = tf.function(serve, input_signature=signature).get_concrete_function()
    holder = tf.Module() if named else None
    if named:
        holder.held = list(function.graph.variables)
    else:
        function = convert_to_constants.convert_variables_to_constants_v2(function)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], holder)
    if quantization is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantization == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantization == "int8":

        def samples() -> Iterator[Any]:
            for row in range(len(calibration["zebra"])):
                sample = {name: array[row : row + 1] for name, array in calibration.items()}
                yield sample if named else list(sample.values())

        converter.representative_dataset = samples
        floats = [] if integer_io else [tf.lite.OpsSet.TFLITE_BUILTINS]
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8, *floats]
    if integer_io:
        converter.inference_input_type = converter.inference_output_type = tf.int8
    return bytes(converter.convert())


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(
    ("quantization", "integer_io"),
    [(None, False), ("float16", False), ("dynamic", False), ("int8", False), ("int8", True)],
)
def test_the_files_are_those_of_a_conversion_here(
    quantization: str | None, integer_io: bool, named: bool
) -> None:
    model = _two_by_two()
    source = Source.of(model)
    calibration = source.check_data(_data(model), "data") if quantization == "int8" else None
    found = Conversion(quantization, integer_io, named).convert(source, calibration)
    assert CONVERTER._process is not None
    wanted = _converted_here(source, quantization, calibration, integer_io, named)
    if named:
        wanted = in_order(wanted, ["zebra", "ape"], ["yes", "box"])
    assert len(found) == len(wanted)
    different = [n for n, pair in enumerate(zip(found, wanted, strict=True)) if len(set(pair)) > 1]
    # One byte among a file's notes on its making says that it came from a SavedModel.
    assert len(different) == (1 if named else 0)
    assert len(set(found)) > 50


def test_names_and_their_order_are_those_of_the_model(tmp_path: Path) -> None:
    model = _two_by_two()
    deploy.export(model, tmp_path / "a.tflite", verification_data=_data(model))
    file = load_file(tmp_path / "a.tflite")
    assert [tensor.name for tensor in file.inputs] == ["zebra", "ape"]
    assert [tensor.name for tensor in file.outputs] == ["yes", "box"]


# Crashes


def _branches() -> keras.Model:
    first, second = keras.Input((4,), name="a"), keras.Input((3,), name="b")
    x = layers.Dense(5, name="before")(first)
    y = layers.Dense(5, name="beside")(second)
    x = layers.Activation("softsign", name="culprit")(x)
    x = layers.Add(name="sum")([layers.Dense(5, name="behind")(x), y])
    return keras.Model([first, second], [layers.Dense(2, name="end")(x), y])


def _operation() -> keras.Model:
    x = keras.Input((4,))
    return keras.Model(x, layers.Dense(2)(keras.ops.softsign(layers.Dense(3)(x))))


def _nested(culprit: bool = True) -> keras.Model:
    inner = [keras.Input((5,)), layers.Dense(4, name="inside"), layers.ReLU(name="safe")]
    if culprit:
        inner.insert(2, layers.Activation("softsign", name="culprit"))
    stack = [keras.Input((4,)), layers.Dense(5), keras.Sequential(inner, name="inner")]
    return keras.Sequential([*stack, layers.Dense(2, name="end")])


@pytest.mark.parametrize(
    ("model", "layer"),
    [
        (_branches, r"'culprit' \(Activation\)"),
        (_operation, r"'softsign\w*' \(Softsign\)"),
        (_nested, r"'inner/culprit' \(Activation\)"),
    ],
)
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_a_crash_names_the_layer_and_the_session_goes_on(
    model: Callable[[], keras.Model], layer: str, quantization: Any, double: Path
) -> None:
    source = Source.of(model())
    data = source.random_data(8) if quantization else None
    conversion = Conversion(quantization, integer_io=False, named=False)
    message = rf"layer {layer}, on which it crashes \(SIGABRT: Check failed: softsign\)"
    with pytest.raises(ValueError, match=message):
        conversion.convert(source, data)
    assert conversion.convert(Source.of(_nested(culprit=False)), None) == b"converted"


def test_a_crash_of_some_samples_alone_is_told_as_such(double: Path) -> None:
    (double / "mode").write_text("samples")
    source = Source.of(_nested())
    conversion = Conversion("int8", integer_io=False, named=False)
    with pytest.raises(ValueError, match=r"crashes the converter \(SIGABRT.*some of the samples"):
        conversion.convert(source, source.random_data(3))
    assert conversion.convert(source, source.random_data(2)) == b"converted"


def test_a_process_that_someone_ended_is_no_crash(double: Path) -> None:
    (double / "mode").write_text("once")
    source = Source.of(_nested(culprit=False))
    assert Conversion(None, False, named=False).convert(source, None) == b"converted"
    assert not (double / "mode").exists()


def test_a_process_that_ran_out_of_memory_is_told_as_such(double: Path) -> None:
    (double / "mode").write_text("killed")
    with pytest.raises(ValueError, match=r"in the memory that there is.*SIGKILL.*fewer samples"):
        Conversion(None, False, named=False).convert(Source.of(_nested()), None)


@pytest.mark.slow
def test_a_crash_of_the_calibrator_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converting, "_refuse_loops", lambda function: None)
    monkeypatch.setattr(converting, "_without_loops", lambda source: source)
    steps = keras.Input((8, 5))
    x = layers.Conv1D(6, 3, name="first")(steps)
    x = layers.GRU(6, name="looping")(x)
    model = keras.Model(steps, layers.Dense(3, name="last")(x))
    data, path = _data(model, 40)[0], tmp_path / "a.tflite"
    with pytest.raises(ValueError, match=r"layer 'looping' \(GRU\).*SIGSEGV.*unroll=True"):
        deploy.export(model, path, quantization="int8", calibration_data=data)
    assert not list(tmp_path.iterdir())
    assert deploy.export(model, path, verification_data=data).passed


# Where no process can be had


@pytest.mark.parametrize(
    "command",
    [["/nowhere/python"], [sys.executable, "-c", "print('what?')"], [sys.executable, "?"]],
)
def test_without_a_process_conversions_run_here(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    process = ConversionProcess(command)
    monkeypatch.setattr(converting, "CONVERTER", process)
    source = Source.of(keras.Sequential([keras.Input((4,)), layers.Dense(2)]))
    conversion = Conversion(None, integer_io=False, named=False)
    found = conversion.convert(source, None)
    assert process._process is None
    assert found == conversion.convert(source, None)
    assert found == _converted_here(source, None, None, integer_io=False, named=False)
    x = keras.Input((4,), dtype="int32")
    shifted = keras.Model(x, keras.ops.bitwise_left_shift(x, 1))
    with pytest.raises(ValueError, match=r"built-in operators alone.*LeftShift"):
        conversion.convert(Source.of(shifted), None)


@pytest.fixture
def converted_here(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The requests that are carried out in this process, which are written down instead."""
    requests: list[Any] = []
    monkeypatch.setattr(conversion_process, "convert_saved", requests.append)
    return requests


def test_without_a_python_to_start_none_is_started(
    converted_here: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "")
    monkeypatch.setattr(subprocess, "Popen", None)
    ConversionProcess(["python"]).convert({"folder": "a"})
    assert converted_here == [{"folder": "a"}]


def test_a_process_that_never_answers_is_not_waited_for(
    converted_here: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion_process, "_START", 0.2)
    process = ConversionProcess([sys.executable, "-c", "import time; time.sleep(600)"])
    process.start()
    assert process._process is not None
    started = process._process.pid
    process.convert({"folder": "a"})
    assert _gone(started)
    assert converted_here == [{"folder": "a"}]


def test_after_a_crash_nothing_is_converted_here(double: Path) -> None:
    (double / "mode").write_text("samples")
    source = Source.of(_nested())
    conversion = Conversion("int8", integer_io=False, named=False)
    with pytest.raises(ValueError, match="crashes"):
        conversion.convert(source, source.random_data(3))
    (double / "broken").touch()
    with pytest.raises(OSError, match=r"must start again after a crash.*no memory"):
        conversion.convert(source, source.random_data(2))


# How the process lives


def test_what_the_converter_says_and_prints(stand_in: Path) -> None:
    process = ConversionProcess([sys.executable, "-P", WORKER, "600"])
    with pytest.raises(ConversionError, match="no such kernel\nsecond line"):
        process.convert(_request(stand_in / "a", "refuses"))
    process.convert(_request(stand_in / "b", "content"))
    assert (stand_in / "b" / "model.tflite").read_text() == "content"
    process.stop()
    process.convert(_request(stand_in / "c", "again"))
    assert (stand_in / "c" / "model.tflite").read_text() == "again"
    process.stop()


def test_threads_take_turns(stand_in: Path) -> None:
    process = ConversionProcess([sys.executable, "-P", WORKER, "600"])
    requests = {str(n): _request(stand_in / str(n), f"of thread {n}") for n in range(6)}
    threads = [threading.Thread(target=process.convert, args=[r]) for r in requests.values()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in requests:
        assert (stand_in / n / "model.tflite").read_text() == f"of thread {n}"
    process.stop()


def test_a_process_without_work_ends_and_another_takes_its_place(stand_in: Path) -> None:
    process = ConversionProcess([sys.executable, "-P", WORKER, "1"])
    process.convert(_request(stand_in / "a", "one"))
    assert process._process is not None
    first = process._process.pid
    _until(lambda: _gone(first))
    process.convert(_request(stand_in / "b", "two"))
    assert process._process.pid != first
    process.stop()


def test_a_death_carries_how_it_came() -> None:
    assert str(ConverterDiedError(-signal.SIGSEGV, "why")) == "SIGSEGV: why"
    assert str(ConverterDiedError(134)) == "exit code 134"
    assert str(ConverterDiedError(-40)) == "signal 40"


def _script(stand_in: Path, lines: str) -> subprocess.Popen[str]:
    (stand_in / "script.py").write_text(SCRIPT + lines)
    return subprocess.Popen(
        [sys.executable, str(stand_in / "script.py"), str(stand_in)],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_the_process_ends_with_a_session_that_is_killed_though_a_fork_lives(
    stand_in: Path,
) -> None:
    script = _script(
        stand_in,
        """
forked = os.fork()
if not forked:
    assert CONVERTER._process is None
    time.sleep(600)
print(worker, forked, flush=True)
convert("works on")
""",
    )
    assert script.stdout is not None
    worker, forked = map(int, script.stdout.readline().split())
    try:
        busy = psutil.Process(worker).cpu_times().user
        # At work, in C code that lets no Python run.
        _until(lambda: psutil.Process(worker).cpu_times().user > busy + 0.2)
        script.kill()
        script.wait()
        _until(lambda: _gone(worker))
        assert not _gone(forked)
    finally:
        psutil.Process(forked).kill()
        script.stdout.close()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere what is stopped waits to go on")
@pytest.mark.parametrize("mode", ["works on", None])
def test_a_process_that_is_stopped_ends_with_its_session(stand_in: Path, mode: str | None) -> None:
    script = _script(
        stand_in, f"print(worker, flush=True)\nconvert({mode!r}) if {mode!r} else time.sleep(600)"
    )
    assert script.stdout is not None
    worker = psutil.Process(int(script.stdout.readline()))
    if mode is not None:
        busy = worker.cpu_times().user
        _until(lambda: worker.cpu_times().user > busy + 0.2)
    worker.suspend()
    _until(lambda: worker.status() == psutil.STATUS_STOPPED)
    try:
        script.kill()
        script.wait()
        _until(lambda: _gone(worker.pid))
    finally:
        script.stdout.close()
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="descriptors of POSIX")
def test_a_process_whose_session_is_gone_before_it_asks_ends_at_once(stand_in: Path) -> None:
    end, other = os.pipe()
    os.close(other)
    command = [sys.executable, "-P", WORKER, "600", str(end)]
    # Its stdin stays open, so that this does not end it.
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=[end], text=True
    ) as worker:
        os.close(end)
        assert worker.stderr is not None
        assert worker.wait(timeout=60) == 1
        assert "has ended" in worker.stderr.read()


def test_the_process_ends_with_a_session_that_ends(stand_in: Path) -> None:
    script = _script(stand_in, "print(worker, flush=True)")
    told, _ = script.communicate()
    assert script.returncode == 0
    _until(lambda: _gone(int(told)))


def test_ctrl_c_ends_the_process_and_the_next_conversion_works(stand_in: Path) -> None:
    script = _script(
        stand_in,
        """
print(worker, flush=True)
try:
    convert("works on")
except KeyboardInterrupt:
    print("stopped", convert("next"), flush=True)
""",
    )
    assert script.stdout is not None
    worker = int(script.stdout.readline())
    busy = psutil.Process(worker).cpu_times().user
    _until(lambda: psutil.Process(worker).cpu_times().user > busy + 0.2)
    script.send_signal(signal.SIGINT)
    assert script.stdout.readline() == "stopped next\n"
    assert _gone(worker)
    script.communicate()
    assert script.returncode == 0


def test_the_session_of_another_python_finds_what_this_one_does() -> None:
    environment = conversion_process._environment()
    assert list(filter(None, sys.path)) == environment["PYTHONPATH"].split(os.pathsep)
    assert environment["CUDA_VISIBLE_DEVICES"] == "-1"
