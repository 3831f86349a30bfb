"""What works without extras, and what each feature says where its extra is absent."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OWN = {"export", "qat", "report", "search"}
MODULES = {
    "ai-edge-litert": "ai_edge_litert",
    "tensorflow-model-optimization": "tensorflow_model_optimization",
    "tf-keras": "tf_keras",
}


def _modules(extra: str) -> set[str]:
    """The modules of the packages that an extra brings by itself."""
    names = {re.split(r"[\[<>=]", line)[0] for line in PROJECT["optional-dependencies"][extra]}
    return {MODULES.get(name, name) for name in names - {PROJECT["name"]}}


OPTIONAL = {module for extra in (*OWN, "jax") for module in _modules(extra)}

# Read by every Python process at its start, those that measure files included.
ABSENCE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""

TRAINING = """
import tempfile
from pathlib import Path
import keras
import numpy as np
import dprp_tf as dprp
from dprp_tf import data, zoo

digits = data.load("digits", image_size=8)
x, y = digits.x_train[:64].astype("float32") / 255, digits.y_train[:64]
dense = zoo.resnet_small((8, 8, 1), 10, widths=(8, 16))
model = dprp.factorize(dense)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile("adam", loss, metrics=["accuracy"])
model.fit(x, y, epochs=2, verbose=0, callbacks=[dprp.RankPruning(threshold=0.5)])
path = Path(tempfile.mkdtemp()) / "model.keras"
model.save(path)
again = dprp.load_model(path)
plain = dprp.fold(again)
close = np.abs(plain.predict(x, verbose=0) - model.predict(x, verbose=0)).max()
plan = dprp.select_ranks(dense, method="energy", budget=0.5)
smaller = dprp.cut(dense, plan).count_params() < dense.count_params()
print(dprp.summarize(model))
print({"close": bool(close < 1e-3), "smaller": bool(smaller)})
"""

FEATURES = """
import json, os, tempfile
from pathlib import Path
import keras
import numpy as np
from typer.testing import CliRunner
from dprp_tf import deploy
from dprp_tf.cli.main import app
from dprp_tf.deploy.exporters.onnx import convert_onnx
from dprp_tf.deploy.exporters.tflite import convert_tflite
from dprp_tf.deploy.quantization.keras2 import load_keras2

folder = Path(tempfile.mkdtemp())
for name in ("some.tflite", "some.onnx"):
    (folder / name).write_bytes(b"x" * 64)
model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
model.save(folder / "model.keras")
x, y = np.zeros((4, 8, 8, 1), "float32"), np.zeros(4, int)
features = {
    "export_tflite": lambda: deploy.export(model, folder / "new.tflite"),
    "export_onnx": lambda: deploy.export(model, folder / "new.onnx"),
    "convert_tflite": lambda: convert_tflite(model),
    "convert_onnx": lambda: convert_onnx(model),
    "run .tflite": lambda: deploy.run_file(folder / "some.tflite", x),
    "run .onnx": lambda: deploy.run_file(folder / "some.onnx", x),
    "time .tflite": lambda: deploy.benchmark(folder / "some.tflite"),
    "time .onnx": lambda: deploy.benchmark(folder / "some.onnx"),
    "package .tflite": lambda: deploy.package(folder / "some.tflite", folder / "ship"),
    "package .onnx": lambda: deploy.package(folder / "some.onnx", folder / "ship"),
    "train_quantized": lambda: deploy.train_quantized(model, x, y),
    "cluster_weights": lambda: deploy.cluster_weights(model, x, y),
    "sparsify": lambda: deploy.sparsify(model, x, y),
    "keras2": load_keras2,
}
told = {}
for name, feature in features.items():
    try:
        feature()
    except (ImportError, deploy.TargetError) as error:
        told[name] = [type(error).__name__, str(error)]
run = folder / "run"
words = "train --model resnet_small --data digits --image-size 8 --epochs 1 --exclude logits"
result = CliRunner().invoke(app, [*words.split(), "--folder", str(run)])
told["dprp train"] = [str(result.exit_code), sorted(path.name for path in run.iterdir())]
result = CliRunner().invoke(app, ["report", str(run)])
told["dprp report"] = [str(result.exit_code), result.output]
result = CliRunner().invoke(
    app, ["export", str(folder / "model.keras"), str(folder / "new.tflite")]
)
told["dprp export"] = [str(result.exit_code), result.output]
told["left behind"] = sorted(path.name for path in folder.iterdir())
print(json.dumps(told))
"""


def _run(script: str, folder: Path) -> str:
    (folder / "sitecustomize.py").write_text(ABSENCE.format(absent=OPTIONAL), encoding="utf-8")
    environment = dict(os.environ, KERAS_BACKEND="tensorflow", TF_CPP_MIN_LOG_LEVEL="3")
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**environment, "PYTHONPATH": str(folder)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()[-1]


def test_dev_and_all_bring_everything() -> None:
    extras = PROJECT["optional-dependencies"]
    assert extras["all"] == ["dprp-tf[export,jax,qat,report,search]"]
    assert "dprp-tf[all]" in extras["dev"]
    assert set(extras) == {*OWN, "jax", "all", "dev"}
    needed = {re.split(r"[\[<>=]", line)[0] for line in PROJECT["dependencies"]}
    assert not {MODULES.get(name, name) for name in needed} & OPTIONAL


@pytest.mark.parametrize("folder", ["dprp_tf", "deploy", "experiments"])
def test_optional_packages_are_imported_where_they_are_needed(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            found = {name.partition(".")[0] for name in names} & OPTIONAL
            assert not found, f"{path.relative_to(ROOT)}:{node.lineno} imports {found} at the top"


@pytest.mark.slow
def test_training_factorizing_and_selecting_need_no_extra(tmp_path: Path) -> None:
    assert ast.literal_eval(_run(TRAINING, tmp_path)) == {"close": True, "smaller": True}


def test_a_feature_names_the_extra_that_it_needs(tmp_path: Path) -> None:
    told = json.loads(_run(FEATURES, tmp_path))
    assert told.pop("left behind") == ["model.keras", "run", "some.onnx", "some.tflite"]
    code, left = told.pop("dprp train")
    assert code == "0"
    assert {"model.keras", "folded.keras", "results.json"} <= set(left)
    assert "report.html" not in left
    code, line = told.pop("dprp report")
    assert code == "2"
    assert re.fullmatch(r'error: A figure needs matplotlib, .*"dprp-tf\[report\]"\n', line)
    code, line = told.pop("dprp export")
    assert code == "2"
    assert re.fullmatch(
        r'error: Writing a \.tflite file needs ai_edge_litert, .*"dprp-tf\[export\]"\n', line
    )
    extras = {
        **dict.fromkeys(["export_tflite", "convert_tflite", "run .tflite", "time .tflite"], 0),
        **dict.fromkeys(["export_onnx", "convert_onnx", "run .onnx", "time .onnx"], 0),
        **dict.fromkeys(["package .tflite", "package .onnx"], 0),
        **dict.fromkeys(["train_quantized", "cluster_weights", "sparsify", "keras2"], 1),
    }
    assert set(told) == set(extras)
    for name, (kind, message) in told.items():
        assert kind == ("TargetError" if name.startswith("time") else "ImportError")
        assert f'pip install "dprp-tf[{("export", "qat")[extras[name]]}]"' in message, name
        assert "\n" not in message
        assert any(package in message for package in OPTIONAL | {"LiteRT", "ONNX Runtime"})
