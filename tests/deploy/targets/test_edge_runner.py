"""The lone file's other modes on this machine: what it tells, computes and marks."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import psutil
import pytest
from keras import layers

from dprp_tf.deploy import export
from dprp_tf.deploy.exporters.onnx import export_onnx
from dprp_tf.deploy.exporters.tflite import export_tflite
from dprp_tf.deploy.running.runtime import load_file
from dprp_tf.deploy.targets.edge import RUNNER


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    keras.utils.set_random_seed(41)
    image = keras.Input((8, 8, 3), name="image")
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, activation="relu")(image))
    model = keras.Model(image, [layers.Dense(4, name="a")(x), layers.Dense(2, name="b")(x)])
    samples = np.random.default_rng(0).random((16, 8, 8, 3), dtype=np.float32)
    export_tflite(model, folder / "two.tflite")
    export_onnx(model, folder / "two.onnx")
    single = keras.Model(image, model.outputs[0])
    export_tflite(
        single,
        folder / "integer.tflite",
        quantization="int8",
        calibration_data=samples,
        minimum_agreement=0,
        integer_io=True,
    )
    np.save(folder / "samples.npy", samples)
    return {path.name: path for path in folder.iterdir()}


def _run(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", str(RUNNER), *(str(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def _answer(*arguments: str | Path, cwd: Path) -> dict[str, Any]:
    done = _run(*arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_it_is_written_for_python_3_9() -> None:
    tree = ast.parse(RUNNER.read_text(encoding="utf-8"), feature_version=(3, 9))
    # Annotations such as `int | None` are 3.10's unless nobody evaluates them.
    assert any(
        isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body
    )


@pytest.mark.slow
def test_describe(tmp_path: Path) -> None:
    answer = _answer("--describe", cwd=tmp_path)
    machine = answer["machine"]
    assert set(machine) == {"architecture", "processor", "cpus", "system", "python"}
    assert machine["python"] == ".".join(str(part) for part in sys.version_info[:3])
    assert machine["processor"].strip()
    assert all(version[0].isdigit() for version in answer["runtimes"].values())
    assert list(answer["runtimes"]) == ["LiteRT", "ONNX Runtime"]


@pytest.mark.parametrize("name", ["two.tflite", "two.onnx"])
def test_outputs_are_the_files_own(name: str, files: dict[str, Path], tmp_path: Path) -> None:
    samples = np.load(files["samples.npy"])
    written = tmp_path / "outputs.npz"
    answer = _answer(
        files[name], "--input", files["samples.npy"], "--outputs", written, cwd=tmp_path
    )
    wanted = load_file(files[name]).run(samples)
    with np.load(written, allow_pickle=False) as outputs:
        assert set(outputs.files) == set(wanted)
        assert len(wanted) == 2
        for output, array in wanted.items():
            assert answer["outputs"][output] == {"shape": list(array.shape), "dtype": "float32"}
            np.testing.assert_allclose(outputs[output], array, atol=1e-6)
            assert np.ptp(array, axis=0).min() > 1e-4, "every sample gives the same"
    assert [path.name for path in tmp_path.iterdir()] == ["outputs.npz"]


def test_quantized_outputs_stay_integers(files: dict[str, Path], tmp_path: Path) -> None:
    written = tmp_path / "outputs.npz"
    _answer(
        files["integer.tflite"],
        "--input",
        files["samples.npy"],
        "--outputs",
        written,
        cwd=tmp_path,
    )
    model = load_file(files["integer.tflite"])
    wanted = model.run(np.load(files["samples.npy"]))
    (tensor,) = model.outputs
    with np.load(written, allow_pickle=False) as outputs:
        steps = outputs[tensor.name]
    assert steps.dtype == np.int8
    assert len(np.unique(steps)) > 2
    np.testing.assert_allclose(
        (steps.astype(float) - tensor.zero_point) * tensor.scale, wanted[tensor.name], rtol=1e-6
    )


def test_a_fixed_batch_is_filled_up(files: dict[str, Path], tmp_path: Path) -> None:
    image = keras.Input((4,), name="image", batch_size=3)
    bound = keras.ops.reshape(layers.Dense(2)(image), (3, 2))
    export_onnx(keras.Model(image, bound), tmp_path / "three.onnx")
    assert load_file(tmp_path / "three.onnx").inputs[0].shape == (3, 4)
    x = np.random.default_rng(1).random((7, 4), dtype=np.float32)
    np.savez(tmp_path / "x.npz", image=x)
    _answer("three.onnx", "--input", "x.npz", "--outputs", "y.npz", cwd=tmp_path)
    (wanted,) = load_file(tmp_path / "three.onnx").run(x).values()
    with np.load(tmp_path / "y.npz", allow_pickle=False) as outputs:
        (received,) = (outputs[name] for name in outputs.files)
    assert received.shape == (7, 2)
    np.testing.assert_allclose(received, wanted, atol=1e-6)


def test_conditions_and_cold_start(files: dict[str, Path], tmp_path: Path) -> None:
    names = ("two.tflite", "two.onnx")
    answer = _answer(*(files[name] for name in names), "--repeats", "6", cwd=tmp_path)
    conditions = answer["conditions"]
    before, after = conditions["before"], conditions["after"]
    assert after["clock_s"] > before["clock_s"]
    assert after["process_cpu_s"] >= before["process_cpu_s"]
    if sys.platform == "linux":
        assert len(before["load_average"]) == 3
        assert after["machine_cpu_s"] >= before["machine_cpu_s"] > 0
        assert after["stolen_cpu_s"] >= before["stolen_cpu_s"] >= 0
    for state in (before, after):
        for cpu in state["cpu_frequencies"]:
            assert set(cpu) == {"cpu", "governor", "current_khz", "limit_khz", "maximum_khz"}
        assert all(-60 < degrees < 200 for degrees in state["temperatures_celsius"].values())
    for entry, drift in zip(answer["models"], conditions["drift"], strict=True):
        samples = entry["samples_ms"]
        assert drift == pytest.approx(np.median(samples[-2:]) / np.median(samples[:2]))
        # A runtime loads in more than a millisecond, and a tiny model runs in less than a second.
        assert 1 < entry["load_ms"] < 60_000
        assert 0 < entry["first_inference_ms"] < 1000
    short = _answer(files["two.onnx"], "--repeats", "2", "--no-memory", cwd=tmp_path)
    assert short["conditions"]["drift"] == [None]
    assert short["models"][0]["load_ms"] is None


@pytest.mark.skipif(sys.platform != "linux", reason="the marker is a Linux system call")
def test_markers_change_nothing_on_a_real_processor(files: dict[str, Path], tmp_path: Path) -> None:
    answer = _answer(files["two.tflite"], files["two.onnx"], "--instructions", cwd=tmp_path)
    assert [entry["markers"] for entry in answer["models"]] == [[1, 2], [3, 4]]
    assert not any("instructions" in entry for entry in answer["models"])


def test_modes_need_their_models(files: dict[str, Path], tmp_path: Path) -> None:
    two = files["two.tflite"]
    cases: list[tuple[list[str | Path], str]] = [
        ([], "name a MODEL or more"),
        ([two, two, "--outputs", "y.npz"], "name one MODEL"),
        ([two, "--outputs", "y.npz", "--describe"], "not allowed with"),
        ([two, "--outputs", "y.npz", "--input", "absent.npy"], "absent.npy can't be read"),
        ([two, "--outputs", "absent/y.npz"], "absent"),
    ]
    for arguments, message in cases:
        done = _run(*arguments, cwd=tmp_path)
        assert done.returncode == 2, arguments
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", ["tflite", "onnx"])
def test_it_takes_what_an_input_holds_and_refuses_the_rest(suffix: str, tmp_path: Path) -> None:
    image = keras.Input((4,), dtype="uint8", name="image")
    model = keras.Model(image, layers.Dense(2)(layers.Rescaling(1 / 255)(image)))
    export(model, tmp_path / f"a.{suffix}")
    x = np.array([[0, 40, 100, 255]])
    for name, values in (
        ("whole", x.astype(float)),
        ("fraction", x / 255),
        ("negative", x - 1),
        ("large", x + 1),
        ("text", x.astype(str)),
    ):
        np.savez(tmp_path / f"{name}.npz", image=values)
    _answer(f"a.{suffix}", "--input", "whole.npz", "--outputs", "y.npz", cwd=tmp_path)
    with np.load(tmp_path / "y.npz", allow_pickle=False) as outputs:
        np.testing.assert_allclose(
            outputs[outputs.files[0]], model.predict(x, verbose=0), atol=1e-5
        )
    for name, message in (
        ("fraction", "holds 0.15"),
        ("negative", "holds -1, which uint8"),
        ("large", "holds 256, which uint8"),
        ("text", "of dtype <U"),
    ):
        done = _run(f"a.{suffix}", "--input", f"{name}.npz", "--no-memory", cwd=tmp_path)
        assert done.returncode == 2, name
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_quantized_inputs_take_integers_as_floats(files: dict[str, Path], tmp_path: Path) -> None:
    from dprp_tf.deploy.targets.edge_runner import RunnerError, _fit

    entry = {"shape": [1, 3], "dtype": "int8", "scale": 2.0, "zero_point": -100}
    values = np.array([[0, 255, 1000]])
    for dtype in ("int16", "int64", "float32"):
        fitted = _fit(values.astype(dtype), entry, tmp_path / "a.tflite")
        assert fitted.dtype == np.int8
        assert fitted.tolist() == [[-100, 28, 127]]
    raw = np.array([[1, 2, 3]], "int8")
    assert _fit(raw, entry, tmp_path / "a.tflite").tolist() == raw.tolist()
    with pytest.raises(RunnerError, match="holds nan, which int8"):
        _fit(np.array([[0.0, np.nan, 1]]), entry, tmp_path / "a.tflite")


def test_a_file_of_open_sizes_takes_those_of_the_inputs(tmp_path: Path) -> None:
    import tensorflow as tf

    image = keras.Input((None, None, 3), name="image")
    model = keras.Model(image, layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(image)))
    content = tf.lite.TFLiteConverter.from_keras_model(model).convert()
    (tmp_path / "open.tflite").write_bytes(content)
    for shape in ((5, 6, 8, 3), (2, 9, 5, 3)):
        x = np.random.default_rng(0).random(shape, dtype=np.float32)
        np.save(tmp_path / "x.npy", x)
        _answer("open.tflite", "--input", "x.npy", "--outputs", "y.npz", cwd=tmp_path)
        with np.load(tmp_path / "y.npz", allow_pickle=False) as outputs:
            np.testing.assert_allclose(outputs[outputs.files[0]], np.asarray(model(x)), atol=1e-5)
    answer = _answer("open.tflite", "--input", "x.npy", "--repeats", "2", cwd=tmp_path)
    assert answer["models"][0]["median_ms"] > 0
    done = _run("open.tflite", "--repeats", "2", cwd=tmp_path)
    assert done.returncode == 2
    assert "inputs of open shape [1, None, None, 3]: give --input" in done.stderr
    np.save(tmp_path / "x.npy", np.zeros((1, 2, 2, 3), "float32"))
    done = _run("open.tflite", "--input", "x.npy", "--repeats", "2", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("step", [0, -1000], ids=["stands", "runs back"])
def test_a_clock_that_does_not_go_forward_times_nothing(
    step: int, files: dict[str, Path], tmp_path: Path
) -> None:
    program = (
        "import runpy, sys, time\n"
        f"ticks = iter(range(10**12, -10**12, {step or 1}))\n"
        f"time.perf_counter_ns = lambda: next(ticks) if {bool(step)} else 5\n"
        f"sys.argv = ['edge_runner', {str(files['two.tflite'])!r}, '--no-memory']\n"
        f"runpy.run_path({str(RUNNER)!r}, run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "\nedge_runner: error: the clock of this machine moved by " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux to end it")
def test_a_measurement_ends_with_whoever_waits_for_it(files: dict[str, Path]) -> None:
    script = (
        "import pathlib, sys; from dprp_tf.deploy.targets import LocalTarget\n"
        "LocalTarget().measure([pathlib.Path(sys.argv[1])], repeats=10**8, memory=False)"
    )
    waiting = psutil.Popen([sys.executable, "-c", script, str(files["two.tflite"])])
    try:
        # Another may only describe this machine.
        _wait_for(lambda: any("--repeats" in one.cmdline() for one in waiting.children()))
        measuring = waiting.children()
    finally:
        waiting.kill()
        waiting.wait()
    _wait_for(lambda: not any(map(_at_work, measuring)))


def _at_work(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)
