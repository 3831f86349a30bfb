"""Emulated arm64: the very files compute there what they compute here, and counts repeat."""

from __future__ import annotations

import hashlib
import os
import subprocess
import warnings
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from dprp_tf.deploy import benchmark
from dprp_tf.deploy.exporters.onnx import export_onnx
from dprp_tf.deploy.exporters.tflite import export_tflite
from dprp_tf.deploy.targets import LocalTarget, TargetError, resolve_target
from dprp_tf.deploy.targets.cores import CORES
from dprp_tf.deploy.targets.qemu import EmulatedTarget
from dprp_tf.deploy.targets.sandbox import Sandbox, _wheels, build_sandbox, missing_tools

_NETWORK = ("Reading the package sources", "Downloading", "Looking for an arm64 Python")


@pytest.fixture(scope="session")
def sandbox() -> Sandbox:
    reason = ""
    if missing_tools():
        reason = f"no arm64 sandbox without {', '.join(missing_tools())}"
    else:
        try:
            return build_sandbox()
        except TargetError as error:
            if not str(error).startswith(_NETWORK):
                raise
            reason = f"no arm64 sandbox: {error}"
    warnings.warn(f"skipped the emulated target: {reason}", stacklevel=1)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def target(sandbox: Sandbox) -> EmulatedTarget:
    return EmulatedTarget("qemu:cortex-a72", sandbox)


def _network(filters: int, depth: int) -> keras.Model:
    keras.utils.set_random_seed(51)
    x = image = keras.Input((12, 12, 3), name="image")
    for _ in range(depth):
        x = layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
    x = layers.Dense(4, activation="softmax")(layers.Flatten()(x))
    return keras.Model(image, x)


def _form(name: str) -> keras.Model:
    channels = 16
    x = image = keras.Input((16, 16, channels), name="image")
    for _ in range(2):
        if name == "dense":
            x = layers.Conv2D(channels, 3, padding="same")(x)
        elif name == "multiplied":
            x = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=3)(x)
            x = layers.Conv2D(channels, 1)(x)
        else:
            x = layers.Conv2D(channels // 2, (3, 1), padding="same")(x)
            x = layers.Conv2D(channels, (1, 3), padding="same")(x)
    return keras.Model(image, x)


@pytest.fixture(scope="session")
def samples() -> np.ndarray:
    return np.random.default_rng(5).random((6, 12, 12, 3), dtype=np.float32)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory, samples: np.ndarray) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    small, large = _network(8, 1), _network(24, 4)
    for name, model in (("small", small), ("large", large)):
        export_tflite(model, folder / f"{name}.tflite")
        export_onnx(model, folder / f"{name}.onnx")
    export_tflite(
        large,
        folder / "integer.tflite",
        quantization="int8",
        calibration_data=samples,
        minimum_agreement=0,
        integer_io=True,
    )
    for name in ("dense", "multiplied", "separable"):
        export_tflite(_form(name), folder / f"{name}.tflite")
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture(scope="session")
def counts(target: EmulatedTarget, files: dict[str, Path]) -> dict[str, float]:
    """Instructions of every file, counted in one process."""
    answer = target.measure(list(files.values()))
    return {Path(entry["path"]).name: entry["instructions"] for entry in answer["models"]}


@pytest.mark.slow
def test_describe(target: EmulatedTarget, sandbox: Sandbox) -> None:
    emulated = target.describe()
    assert emulated["machine"]["architecture"] == "aarch64"
    assert emulated["machine"]["processor"] == "Cortex-A72"
    assert emulated["machine"]["python"].startswith(f"{sandbox.python}.")
    # The versions of this environment: an answer here is an answer there.
    assert emulated["runtimes"] == LocalTarget().describe()["runtimes"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["large.tflite", "large.onnx"])
def test_floats_equal_this_machines(
    name: str, target: EmulatedTarget, files: dict[str, Path], samples: np.ndarray
) -> None:
    there = target.outputs(files[name], samples)
    here = LocalTarget().outputs(files[name], samples)
    assert list(there) == list(here)
    ((received, wanted),) = zip(there.values(), here.values(), strict=True)
    assert received.shape == (6, 4)
    assert received.dtype == np.float32
    assert np.ptp(wanted, axis=0).min() > 1e-3, "every sample gives the same"
    np.testing.assert_allclose(received, wanted, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("core", sorted(CORES))
def test_integers_equal_this_machines(
    core: str, sandbox: Sandbox, files: dict[str, Path], samples: np.ndarray
) -> None:
    # The a76 multiplies int8 by other instructions (dot products) than the two others.
    path = files["integer.tflite"]
    emulated = EmulatedTarget(f"qemu:{core}", sandbox)
    (received,) = emulated.outputs(path, samples).values()
    (wanted,) = LocalTarget().outputs(path, samples).values()
    assert received.dtype == wanted.dtype == np.int8
    assert len(np.unique(wanted)) > 4
    assert np.abs(received.astype(int) - wanted.astype(int)).max() <= 1


@pytest.mark.slow
def test_counts_repeat(
    target: EmulatedTarget, files: dict[str, Path], counts: dict[str, float]
) -> None:
    some = [files["large.onnx"], files["large.tflite"]]
    first, second = (target.measure(some)["models"] for _ in range(2))
    for one, other, tolerance in zip(first, second, (1e-2, 1e-4), strict=True):
        assert one["instructions"] == pytest.approx(other["instructions"], rel=tolerance)
        # Among other files the heap lies elsewhere, which costs about a hundred instructions.
        name = Path(one["path"]).name
        assert one["instructions"] == pytest.approx(counts[name], rel=max(tolerance, 1e-3))


def test_counts_follow_the_work(counts: dict[str, float]) -> None:
    for suffix in ("tflite", "onnx"):
        assert counts[f"large.{suffix}"] > 5 * counts[f"small.{suffix}"]
    # Eight lanes of multiply-adds at most: no count can lie below that of the MACs.
    macs = 12 * 12 * 9 * (3 * 24 + 3 * 24 * 24) + 12 * 12 * 24 * 4
    assert macs / 8 < counts["large.tflite"] < 10 * macs


def test_counts_rank_forms_as_devices_do(counts: dict[str, float]) -> None:
    # On real processors a depth multiplier is slower than the dense layer and separable faster,
    # though both have fewer MACs.
    assert counts["multiplied.tflite"] > 1.3 * counts["dense.tflite"]
    assert counts["separable.tflite"] < 0.7 * counts["dense.tflite"]


def test_a_benchmark_of_it_holds_no_times(
    target: EmulatedTarget, files: dict[str, Path], counts: dict[str, float]
) -> None:
    result = benchmark(files["small.tflite"], target=target)
    assert (result.target, result.unit) == ("qemu:cortex-a72", "instructions")
    assert result.cost == pytest.approx(counts["small.tflite"], rel=1e-2)
    assert (result.repeats, result.samples) == (1, (result.cost,))
    timed = {name: value for name, value in result.as_dict().items() if name.endswith("_ms")}
    assert timed
    assert not any(timed.values())


def test_cores_have_their_own_kernels(
    sandbox: Sandbox, files: dict[str, Path], counts: dict[str, float]
) -> None:
    path = files["integer.tflite"]
    answer = EmulatedTarget("qemu:cortex-a76", sandbox).measure([path])
    assert answer["machine"]["processor"] == "Cortex-A76"
    # The a76 has dot products of int8; a runtime that does not know it from an a72 counts alike.
    assert answer["models"][0]["instructions"] < 0.8 * counts[path.name]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["tflite", "onnx"])
def test_cold_start(suffix: str, target: EmulatedTarget, files: dict[str, Path]) -> None:
    path = files[f"large.{suffix}"]
    start: dict[str, Any] = target.cold_start(path)
    assert start["cold_start_instructions"] == (
        start["load_instructions"] + start["first_inference_instructions"]
    )
    # Importing numpy and a runtime takes far more than one inference of a small network.
    assert start["load_instructions"] > 10 * start["first_inference_instructions"] > 0
    assert start["python_instructions"] > 1e6
    (here,) = LocalTarget().measure([path], repeats=1)["models"]
    assert 0 < start["model_memory_bytes"] < start["resident_memory_bytes"]
    # The same Python and the same runtime, without the emulator's own memory.
    ratio = start["resident_memory_bytes"] / here["peak_memory_bytes"]
    assert 0.5 < ratio < 1.5


def test_faults_are_told(
    target: EmulatedTarget, sandbox: Sandbox, files: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ValueError, match=r"text\.onnx can't be run"):
        target.measure([tmp_path / "text.onnx"])
    with pytest.raises(ValueError, match=r"shape \(1, 5\)"):
        target.outputs(files["small.tflite"], np.zeros((1, 5), "float32"))
    hasty = EmulatedTarget("qemu:cortex-a72", sandbox, timeout_s=0.1)
    with pytest.raises(TargetError, match=r"0\.1 s.*timeout_s"):
        hasty.describe()


def test_specs() -> None:
    assert isinstance(resolve_target("qemu:cortex-a53"), EmulatedTarget)
    # `max` gives wrong integers: it must not be reachable.
    for spec in ("qemu:max", "qemu:", "cortex-a72", "qemu:cortex-a72,pauth=off"):
        with pytest.raises(ValueError, match="qemu:cortex-a53"):
            EmulatedTarget(spec)
    with pytest.raises(ValueError, match="`timeout_s` must be a finite number above 0"):
        EmulatedTarget(timeout_s=0)


def test_without_tools(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert {"apt-get", "apt-cache", "dpkg-deb", "cc"} <= set(missing_tools())
    with pytest.raises(TargetError, match="needs apt-get, apt-cache, dpkg-deb, cc"):
        build_sandbox(tmp_path / "sandboxes")
    assert not (tmp_path / "sandboxes").exists()
    monkeypatch.setenv("DPRP_TF_CACHE", str(tmp_path / "cache"))
    with pytest.raises(TargetError, match="needs apt-get"):
        EmulatedTarget().describe()
    monkeypatch.undo()
    built: Sandbox = request.getfixturevalue("sandbox")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    # Built once, it is found without any tool.
    assert build_sandbox() == built
    assert build_sandbox(built.folder.parent) == built


@pytest.mark.skipif(bool(missing_tools()), reason=f"lacks {missing_tools()} to try building")
def test_a_failed_build_leaves_nothing_that_is_taken_for_a_sandbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "apt.conf").write_text(
        'Dir::Etc::sourcelist "/dev/null"; Dir::Etc::sourceparts "/dev/null";'
    )
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    for _ in range(2):
        with pytest.raises(TargetError, match="arm64 Python in this machine's package sources"):
            build_sandbox(tmp_path / "sandboxes")
        left = [path.name for path in (tmp_path / "sandboxes").iterdir()]
        assert all(name.startswith((".lock", ".downloads-")) for name in left)


def _wheel(folder: Path) -> str:
    """Write a wheel of nothing and return its hash."""
    folder.mkdir()
    path = folder / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n"
        )
        archive.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny-1.0.dist-info/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.skipif("pip" in missing_tools(), reason="lacks pip")
def test_a_wheel_of_another_hash_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = _wheel(tmp_path / "index")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    lock = tmp_path / "python3.11.lock"
    wheels = tmp_path / "wheels"
    lock.write_text(f"tiny==1.0 --hash=sha256:{right}\n")
    (found,) = _wheels(wheels, "3.11", tmp_path)
    assert found.name == "tiny-1.0-py3-none-any.whl"
    for line, message in (
        (f"tiny==1.0 --hash=sha256:{'0' * 64}", "DO NOT MATCH THE HASHES|hash"),
        ("tiny==1.0", "hash"),
    ):
        lock.write_text(line + "\n")
        with pytest.raises(TargetError, match=message):
            _wheels(wheels, "3.11", tmp_path)
        assert not list(wheels.glob("*.whl"))
    with pytest.raises(TargetError, match=r"arm64 Python of 3\.11, .*Received: Python 3\.9"):
        _wheels(wheels, "3.9", tmp_path)


def test_the_environment_is_the_same_for_everyone(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONSTARTUP", "/nonexistent")
    monkeypatch.setenv("SECRET", "x")
    program = "import os, sys; print(sorted(os.environ), sys.flags.no_site)"
    done = subprocess.run(
        sandbox.command("cortex-a53", ["-c", program]),
        env=sandbox.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "SECRET" not in done.stdout
    assert "PYTHONHASHSEED" in done.stdout
    # The emulator's libraries are x86-64's: no concern of the guest.
    assert "LD_LIBRARY_PATH" not in done.stdout
    assert done.stdout.split()[-1] == "1"
