"""Benchmarks: structure, direction, memory, damaged files, and the runner on its own."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from dprp_tf.deploy import benchmark, compare
from dprp_tf.deploy.exporters.onnx import export_onnx
from dprp_tf.deploy.exporters.tflite import export_tflite
from dprp_tf.deploy.measurement.intervals import ratio_interval
from dprp_tf.deploy.targets.edge import RUNNER as _RUNNER


def _network(filters: int, depth: int) -> keras.Model:
    keras.utils.set_random_seed(31)
    x = image = keras.Input((16, 16, 3), name="image")
    for _ in range(depth):
        x = layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
    return keras.Model(image, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    x = np.random.default_rng(0).random((8, 16, 16, 3), dtype=np.float32)
    small, large = _network(8, 1), _network(256, 8)
    export_tflite(small, folder / "small.tflite")
    export_tflite(large, folder / "large.tflite")
    export_tflite(
        small,
        folder / "integer.tflite",
        quantization="int8",
        calibration_data=x,
        minimum_agreement=0,
        integer_io=True,
    )
    export_onnx(small, folder / "small.onnx")
    export_onnx(large, folder / "large.onnx")
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("name", "runtime"),
    [
        ("small.tflite", "LiteRT"),
        ("integer.tflite", "LiteRT"),
        ("small.onnx", "ONNX Runtime"),
    ],
)
def test_benchmark_is_consistent(name: str, runtime: str, files: dict[str, Path]) -> None:
    result = benchmark(files[name], threads=2, warmup=4, repeats=9)
    assert result.path == files[name]
    assert result.runtime == runtime
    assert result.runtime_version[0].isdigit()
    assert (result.threads, result.warmup, result.repeats) == (2, 4, 9)
    assert result.target == "local"
    assert result.machine["cpus"] >= 1
    assert result.size_bytes == files[name].stat().st_size
    assert len(result.samples_ms) == 9
    assert 0 < result.min_ms <= result.p10_ms <= result.median_ms <= result.p90_ms
    assert result.median_ms == pytest.approx(float(np.median(result.samples_ms)))
    assert result.mean_ms == pytest.approx(float(np.mean(result.samples_ms)))
    quarter, three_quarters = np.percentile(result.samples_ms, [25, 75])
    assert result.spread == pytest.approx((three_quarters - quarter) / result.median_ms)
    assert result.invocations_per_sample > 1, "a tiny model needs several invocations a sample"
    assert result.peak_memory_bytes is not None
    assert result.model_memory_bytes is not None
    # A process with Python, numpy and a runtime, not one with TensorFlow.
    assert 15e6 < result.peak_memory_bytes < 200e6
    assert 0 <= result.model_memory_bytes < result.peak_memory_bytes
    assert json.loads(json.dumps(result.as_dict()))["path"] == str(files[name])
    assert name in str(result)
    assert "median ms" in str(result)


@pytest.mark.parametrize("suffix", ["tflite", "onnx"])
def test_compare_sees_an_enormous_difference(suffix: str, files: dict[str, Path]) -> None:
    small, large = files[f"small.{suffix}"], files[f"large.{suffix}"]
    assert large.stat().st_size > 20 * small.stat().st_size
    comparison = compare([small, large], warmup=2, repeats=7)
    first, second = comparison.ratios
    assert (first.ratio, first.low, first.high) == (1, 1, 1)
    assert second.path == large
    assert 1 < second.low <= second.ratio <= second.high
    medians = [result.median_ms for result in comparison.results]
    assert second.ratio == pytest.approx(medians[1] / medians[0])
    assert compare([large, small], warmup=2, repeats=7).ratios[1].high < 1
    memory = [result.model_memory_bytes for result in comparison.results]
    # The large one holds 4.7 million weights.
    assert memory[0] is not None
    assert memory[1] is not None
    assert memory[1] - memory[0] > 15e6


def test_compare_across_formats(files: dict[str, Path]) -> None:
    names = ("small.tflite", "integer.tflite", "small.onnx")
    comparison = compare([files[name] for name in names], warmup=2, repeats=5)
    assert [result.runtime for result in comparison.results] == ["LiteRT", "LiteRT", "ONNX Runtime"]
    assert {len(result.samples_ms) for result in comparison.results} == {5}
    assert all(name in str(comparison) for name in names)
    assert "ratio" in str(comparison)
    again = json.loads(json.dumps(comparison.as_dict()))
    assert [entry["ratio"] for entry in again["ratios"]] == [r.ratio for r in comparison.ratios]


def test_interval_is_paired() -> None:
    # Every round is disturbed alike: the ratio is exactly 2 in each of them.
    reference = np.random.default_rng(0).lognormal(size=51)
    ratio, low, high = ratio_interval(2 * reference, reference)
    assert (ratio, low, high) == pytest.approx((2, 2, 2))
    noise = np.random.default_rng(1).lognormal(sigma=0.5, size=51)
    ratio, low, high = ratio_interval(2 * noise, reference)
    assert low < ratio < high
    assert high - low > 0.1


def test_inputs_are_fed(files: dict[str, Path]) -> None:
    x = np.zeros((3, 16, 16, 3), "float32")
    assert benchmark(files["small.tflite"], repeats=2, inputs=x).repeats == 2
    assert benchmark(files["integer.tflite"], repeats=2, inputs={"image": x}).repeats == 2
    assert benchmark(files["small.onnx"], repeats=2, inputs={"image": x}).repeats == 2
    with pytest.raises(ValueError, match=r"shape \(1, 5\)"):
        benchmark(files["small.onnx"], inputs=np.zeros((1, 5)))
    with pytest.raises(ValueError, match=r"lacks arrays for \['image'\]"):
        benchmark(files["small.onnx"], inputs={"picture": x})


@pytest.mark.parametrize("suffix", ["tflite", "onnx"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
def test_truncated_file(suffix: str, share: float, files: dict[str, Path], tmp_path: Path) -> None:
    whole = files[f"small.{suffix}"]
    content = whole.read_bytes()
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=rf"cut\.{suffix}.*truncated"):
        benchmark(cut)
    with pytest.raises(ValueError, match=rf"cut\.{suffix}.*truncated"):
        compare([whole, cut])


def test_bad_arguments(files: dict[str, Path], tmp_path: Path) -> None:
    good = files["small.tflite"]
    with pytest.raises(FileNotFoundError, match=r"absent\.tflite"):
        benchmark(tmp_path / "absent.tflite")
    with pytest.raises(FileNotFoundError, match=r"`paths`.*absent\.onnx"):
        compare([good, tmp_path / "absent.onnx"])
    with pytest.raises(ValueError, match=r"\.tflite or \.onnx"):
        benchmark(tmp_path / "model.keras")
    with pytest.raises(ValueError, match=r"`target` must be .*target='raspberrypi'"):
        benchmark(good, target="raspberrypi")
    with pytest.raises(ValueError, match="two files or more"):
        compare([good])
    with pytest.raises(ValueError, match="two files or more"):
        compare(str(good))
    wrong: list[tuple[str, Any]] = [
        ("threads", 0),
        ("warmup", -1),
        ("repeats", 0),
        ("repeats", 2.5),
    ]
    for name, value in wrong:
        with pytest.raises(ValueError, match=f"`{name}` must be an integer"):
            benchmark(good, **{name: value})


def _run(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *(str(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def test_runner_works_as_a_lone_copy(files: dict[str, Path], tmp_path: Path) -> None:
    shutil.copy(_RUNNER, tmp_path / "runner.py")
    shutil.copy(files["small.tflite"], tmp_path)
    shutil.copy(files["small.onnx"], tmp_path)
    options = ("--threads", "1", "--warmup", "1", "--repeats", "3", "--json", "out.json")
    done = _run("runner.py", "small.tflite", "small.onnx", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer == json.loads((tmp_path / "out.json").read_text())
    assert [entry["path"] for entry in answer["models"]] == ["small.tflite", "small.onnx"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "out.json",
        "runner.py",
        "small.onnx",
        "small.tflite",
    ]


def test_runner_imports_nothing_of_ours() -> None:
    tree = ast.parse(_RUNNER.read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.add(str(node.module).split(".")[0])
    allowed = {"numpy", "ai_edge_litert", "tflite_runtime", "onnxruntime"}
    assert names - set(sys.stdlib_module_names) == allowed


def test_runner_tells_bad_input_in_one_line(files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    for arguments, message in (
        (["absent.tflite"], "absent.tflite does not exist"),
        (["text.onnx"], "text.onnx can't be run"),
        ([files["small.onnx"], "--input", "absent.npy"], "absent.npy can't be read"),
    ):
        done = _run(_RUNNER, *arguments, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stdout == ""
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    assert _run(_RUNNER, files["small.onnx"], "--repeats", "0", cwd=tmp_path).returncode == 2
    assert "example:" in _run(_RUNNER, "--help", cwd=tmp_path).stdout
