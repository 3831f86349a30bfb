"""Files times targets times threads, measured for real on this machine."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from dprp_tf.deploy.exporters.onnx import export_onnx
from dprp_tf.deploy.exporters.tflite import export_tflite
from dprp_tf.deploy.measurement.sweep import sweep
from dprp_tf.deploy.targets import Target, TargetError


class _Unreachable(Target):
    """A device that is switched off."""

    def __init__(self, spec: str = "ssh://nobody@nowhere:22") -> None:
        self.spec = spec

    def describe(self) -> dict[str, Any]:
        raise TargetError(f"{self.spec} can't be reached.")

    def measure(
        self,
        paths: Sequence[Path],
        *,
        threads: int = 1,
        warmup: int = 10,
        repeats: int = 50,
        inputs: Path | None = None,
        memory: bool = True,
    ) -> dict[str, Any]:
        raise TargetError(f"{self.spec} can't be reached with {threads} threads.")

    def outputs(
        self, path: Path, inputs: Mapping[str, np.ndarray] | np.ndarray
    ) -> dict[str, np.ndarray]:
        raise TargetError(f"{self.spec} can't be reached.")


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(3)
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(8, 3, activation="relu")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(4)(x))


@pytest.fixture(scope="module")
def files(model: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("files")
    paths = [folder / "a" / "net.tflite", folder / "b" / "net.tflite", folder / "b" / "net.onnx"]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        if path.suffix == ".onnx":
            export_onnx(model, path)
        else:
            export_tflite(model, path)
    return paths


@pytest.fixture(scope="module")
def data(model: keras.Model) -> tuple[np.ndarray, np.ndarray]:
    """Inputs, and labels of which the model has three in four right."""
    x = np.random.default_rng(0).random((16, 8, 8, 3)).astype("float32")
    labels = np.asarray(model(x)).argmax(axis=1)
    labels[::4] = (labels[::4] + 1) % 4
    return x, labels


def test_every_target_and_thread_count_has_every_file(
    files: list[Path], data: tuple[np.ndarray, np.ndarray]
) -> None:
    steps: list[str] = []
    found = sweep(files, threads=(1, 2, 1), repeats=4, warmup=1, data=data, progress=steps.append)
    assert [(run.target, run.threads, run.unit) for run in found.runs] == [
        ("local", 1, "ms"),
        ("local", 2, "ms"),
    ]
    for run in found.runs:
        results, ratios = run.comparison.results, run.comparison.ratios
        assert [result.path for result in results] == files
        assert [result.runtime for result in results] == ["LiteRT", "LiteRT", "ONNX Runtime"]
        assert {(result.threads, result.repeats) for result in results} == {(run.threads, 4)}
        assert ratios[0].ratio == 1
        expected = np.median(results[2].samples) / np.median(results[0].samples)
        assert ratios[2].ratio == pytest.approx(expected)
    assert found.scores == (0.75, 0.75, 0.75)
    assert found.failures == ()
    assert steps == [
        "accuracy of net.tflite",
        "accuracy of net.tflite",
        "accuracy of net.onnx",
        "local, 1 thread",
        "local, 2 threads",
    ]


class _Ranks:
    """A score of one's own, by an object."""

    def __call__(self, y: np.ndarray, outputs: np.ndarray) -> float:
        return float(len(y) + outputs.shape[1])


@pytest.mark.parametrize(
    ("score", "scale", "expected"),
    [
        ("psnr", ("psnr", "dB", False), lambda e: 10 * np.log10(1 / (e**2).mean(axis=1)).mean()),
        ("mean_squared_error", ("mean_squared_error", "", True), lambda e: (e**2).mean()),
        ("mae", ("mae", "", True), lambda e: np.abs(e).mean()),
        (_Ranks(), ("_Ranks", "", False), lambda e: 20.0),
    ],
)
def test_files_are_held_against_values_by_any_score(
    model: keras.Model, files: list[Path], score: Any, scale: tuple[Any, ...], expected: Any
) -> None:
    x = np.random.default_rng(0).random((16, 8, 8, 3)).astype("float32")
    y = np.random.default_rng(1).random((16, 4)).astype("float32")
    steps: list[str] = []
    found = sweep(files[1:], repeats=3, data=(x, y), score=score, progress=steps.append)
    assert (found.score.name, found.score.unit, found.score.less_is_better) == scale
    truth = expected(np.asarray(model(x)) - y)
    assert truth > 0
    np.testing.assert_allclose(found.scores, [truth] * 2, rtol=1e-4)
    content = json.loads(json.dumps(found.as_dict()))
    assert [file[scale[0]] for file in content["files"]] == list(found.scores)
    assert content["score"]["less_is_better"] is scale[2]
    assert steps[0] == f"{scale[0]} of net.tflite"


def test_it_is_written_as_json_with_names_that_tell_files_apart(files: list[Path]) -> None:
    found = sweep(files, repeats=3)
    content = json.loads(json.dumps(found.as_dict()))
    assert [file["name"] for file in content["files"]] == [
        "a/net.tflite",
        "b/net.tflite",
        "net.onnx",
    ]
    assert [file["accuracy"] for file in content["files"]] == [None] * 3
    assert [file["size_bytes"] for file in content["files"]] == [p.stat().st_size for p in files]
    (run,) = content["runs"]
    assert [result["path"] for result in run["results"]] == [str(path) for path in files]
    assert [len(result["samples_ms"]) for result in run["results"]] == [3, 3, 3]
    assert run["ratios"][0]["ratio"] == 1


def test_one_file_stands_beside_itself(files: list[Path]) -> None:
    (run,) = sweep(files[:1], repeats=3).runs
    assert [ratio.ratio for ratio in run.comparison.ratios] == [1.0]
    assert run.comparison.results[0].median_ms


def test_a_target_that_fails_leaves_the_others(files: list[Path]) -> None:
    found = sweep(files[:2], threads=(1, 2), targets=(_Unreachable(), "local"), repeats=3)
    assert [(run.target, run.threads) for run in found.runs] == [("local", 1), ("local", 2)]
    assert [(f.target, f.threads, f.message) for f in found.failures] == [
        ("ssh://nobody@nowhere:22", 1, "ssh://nobody@nowhere:22 can't be reached with 1 threads."),
        ("ssh://nobody@nowhere:22", 2, "ssh://nobody@nowhere:22 can't be reached with 2 threads."),
    ]
    assert json.loads(json.dumps(found.as_dict()))["failures"][0]["threads"] == 1


def test_where_every_target_fails_the_cause_is_raised(files: list[Path]) -> None:
    with pytest.raises(RuntimeError, match=r"first can't be reached.*; second can't be reached"):
        sweep(files, targets=(_Unreachable("first"), _Unreachable("second")))


def test_warnings_all_files_share_are_those_of_the_run(files: list[Path]) -> None:
    too_many = (os.cpu_count() or 1) + 1
    (run,) = sweep(files[:2], threads=(too_many,), repeats=3).runs
    assert any(said.startswith(f"More threads than CPUs: {too_many}") for said in run.warnings)
    assert run.as_dict()["warnings"] == list(run.warnings)
    for result in run.comparison.results:
        assert set(run.warnings) <= set(result.warnings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"paths": []}, r"`paths` must hold one file or more"),
        ({"paths": "one.tflite"}, r"`paths` must hold one file or more"),
        ({"targets": ()}, r"`targets` must hold one entry or more"),
        ({"threads": ()}, r"`threads` must hold one entry or more"),
        ({"threads": (1, 0)}, r"`threads` must hold integers of 1 or more.*threads=\[1, 0\]"),
        ({"targets": ("local", "raspberry")}, r"`target` must be.*'raspberry'"),
        ({"repeats": 0}, r"`repeats`.*repeats=0"),
        ({"score": "psnr"}, r"`data` must be given with a score.*data=None, score='psnr'"),
        (
            {"score": "beauty", "data": (np.zeros((1, 8, 8, 3)), np.zeros(1))},
            r"`score` must be one of \['accuracy'.*score='beauty'",
        ),
    ],
)
def test_bad_arguments_are_named(
    files: list[Path], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sweep(**{"paths": files[:1], "repeats": 3, **arguments})


def test_an_unknown_target_is_refused_before_anything_is_measured(files: list[Path]) -> None:
    steps: list[str] = []
    with pytest.raises(ValueError, match="raspberry"):
        sweep(files, targets=("local", "raspberry"), progress=steps.append)
    assert steps == []


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.tflite"):
        sweep([tmp_path / "missing.tflite"])
