"""Folders to ship: what is in them runs without us, and says what the file itself says."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flatbuffers
import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from dprp_tf import deploy
from dprp_tf.data import Dataset
from dprp_tf.data import load as load_data
from dprp_tf.deploy.packaging import packaging

MEAN, STD = 90.0, 70.0
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
KINDS = ["float.tflite", "int8.tflite", "float.onnx"]
ALL = {"labels.txt", "model.json", "README.md", "run.py", "sample.cpp", "Sample.kt"}
# As on a device: nothing of ours, whatever else is installed here.
ALONE = (
    "import runpy, sys; sys.modules['dprp_tf'] = None; sys.argv = sys.argv[1:]; "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_data("digits", image_size=8)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> Path:
    """Files of one trained network that needs normalized pixels."""
    keras.utils.set_random_seed(5)
    known = digits.normalized([MEAN], [STD])
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1), name="pixels"),
            keras.layers.Conv2D(12, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10, activation="softmax", name="scores"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(known.x_train, known.y_train, epochs=6, verbose=0)
    folder = tmp_path_factory.mktemp("files")
    x = known.sample("train", 200)[0]
    deploy.export(model, folder / "float.tflite", verification_data=x)
    deploy.export(
        model, folder / "int8.tflite", quantization="int8", calibration_data=x, integer_io=True
    )
    deploy.export(model, folder / "float.onnx", verification_data=x)
    return folder


@pytest.fixture(scope="module")
def packages(
    tmp_path_factory: pytest.TempPathFactory, files: Path, digits: Dataset
) -> dict[str, deploy.Package]:
    place = tmp_path_factory.mktemp("packages")
    return {
        kind: deploy.package(
            files / kind, place / kind, labels=NAMES, normalization=([MEAN], [STD]), license="MIT"
        )
        for kind in KINDS
    }


def run(folder: Path, *inputs: Path) -> list[list[tuple[float, str]]]:
    """What run.py prints of each sample, in a process that can't import this library."""
    command = [sys.executable, "-I", "-c", ALONE, str(folder / "run.py"), *map(str, inputs)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={"PATH": os.environ["PATH"]}, check=False
    )
    assert done.returncode == 0, done.stderr
    samples = re.split(r"^sample \d+\n", done.stdout, flags=re.MULTILINE)
    found = []
    for text in samples if len(samples) == 1 else samples[1:]:
        rows = [line.strip().split("\t") for line in text.splitlines()]
        found.append([(float(score), label) for score, label in rows])
    return found


def runtime_scores(path: Path, x: np.ndarray) -> np.ndarray:
    """Scores by the runtime itself, with the arithmetic of quantized tensors written here."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return session.run(None, {session.get_inputs()[0].name: x})[0]
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    rows = []
    for image in x:
        fed = image[None].astype(np.float32)
        if taken["dtype"] == np.int8:
            scale, zero = taken["quantization"]
            fed = np.clip(np.round(fed / scale) + zero, -128, 127).astype(np.int8)
        interpreter.set_tensor(taken["index"], fed)
        interpreter.invoke()
        row = interpreter.get_tensor(given["index"])[0]
        if given["dtype"] == np.int8:
            scale, zero = given["quantization"]
            row = (row.astype(np.float32) - zero) * scale
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("kind", KINDS)
def test_run_py_gives_what_the_runtime_gives(
    kind: str,
    files: Path,
    packages: dict[str, deploy.Package],
    digits: Dataset,
    tmp_path: Path,
) -> None:
    np.save(tmp_path / "x.npy", digits.x_test)
    normalized = ((digits.x_test - MEAN) / STD).astype(np.float32)
    expected = runtime_scores(files / kind, normalized)
    found = run(packages[kind].folder, tmp_path / "x.npy")
    assert len(found) == len(expected) == 359
    assert [rows[0][1] for rows in found] == [NAMES[at] for at in expected.argmax(-1)]
    for rows, scores in zip(found, expected, strict=True):
        assert len(rows) == 5
        assert [row[0] for row in rows] == sorted((row[0] for row in rows), reverse=True)
        np.testing.assert_allclose(rows[0][0], scores.max(), rtol=1e-4)
    right = np.mean([NAMES.index(rows[0][1]) for rows in found] == digits.y_test)
    assert right == deploy.evaluate_file(files / kind, normalized, digits.y_test)
    assert right > 0.8
    # The normalization does something: without it other labels come out.
    raw = runtime_scores(files / kind, digits.x_test.astype(np.float32)).argmax(-1)
    assert np.mean(raw == expected.argmax(-1)) < 0.97


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_is_run(
    kind: str, packages: dict[str, deploy.Package], digits: Dataset, tmp_path: Path
) -> None:
    image = np.round(digits.x_test[3]).astype(np.uint8)
    np.save(tmp_path / "x.npy", image)
    (tmp_path / "x.pgm").write_bytes(b"P5\n# a digit\n8 8\n255\n" + image.tobytes())
    # In color, where the model takes none; and of another size.
    (tmp_path / "x.ppm").write_bytes(b"P6 8 8 255\n" + np.repeat(image, 3, -1).tobytes())
    large = np.repeat(np.repeat(image, 2, 0), 2, 1)
    (tmp_path / "large.pgm").write_bytes(b"P5 16 16 255\n" + large.tobytes())
    folder = packages[kind].folder
    wanted = run(folder, tmp_path / "x.npy")
    assert run(folder, tmp_path / "x.pgm") == wanted
    assert run(folder, tmp_path / "x.ppm")[0][0][1] == wanted[0][0][1]
    assert run(folder, tmp_path / "large.pgm")[0][0][1] == wanted[0][0][1]


def test_run_py_says_in_a_line_what_is_wrong(
    packages: dict[str, deploy.Package], tmp_path: Path
) -> None:
    np.save(tmp_path / "wrong.npy", np.zeros((9, 8, 1), np.float32))
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (tmp_path / "cut.pgm").write_bytes(b"P5 8 8 255\nabc")
    (tmp_path / "no.ppm").write_bytes(b"GIF89a")
    program = packages["float.tflite"].folder / "run.py"
    for inputs in (["wrong.npy"], ["objects.npy"], ["cut.pgm"], ["no.ppm"], ["gone.pgm"], []):
        words = [sys.executable, "-I", str(program), *(str(tmp_path / name) for name in inputs)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 1, inputs
        last = done.stderr.strip().splitlines()
        assert "Traceback" not in done.stderr, done.stderr
        assert last[-1].startswith(("error: ", "usage: ")), done.stderr


def test_run_py_imports_numpy_and_a_runtime_alone(packages: dict[str, deploy.Package]) -> None:
    tree = ast.parse((packages["float.tflite"].folder / "run.py").read_text(encoding="utf-8"))
    found = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    runtimes = {"ai_edge_litert", "tflite_runtime", "onnxruntime"}
    assert found == {"json", "os", "sys", "numpy"} | runtimes


@pytest.mark.parametrize("kind", KINDS)
def test_the_packaged_file_computes_the_same_bits(
    kind: str, files: Path, packages: dict[str, deploy.Package]
) -> None:
    x = np.random.default_rng(1).normal(0, 2, (40, 8, 8, 1)).astype(np.float32)
    one, other = (runtime_scores(path, x) for path in (files / kind, packages[kind].model))
    assert one.tobytes() == other.tobytes()
    assert packages[kind].model.read_bytes() != (files / kind).read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_the_folder_holds_what_is_said(kind: str, packages: dict[str, deploy.Package]) -> None:
    made = packages[kind]
    assert {path.name for path in made.files} == ALL | {f"model{Path(kind).suffix}"}
    assert {path.name for path in made.folder.iterdir()} == {path.name for path in made.files}
    told = json.loads((made.folder / "model.json").read_text(encoding="utf-8"))
    assert told == made.description
    (entry,), (scores,) = told["inputs"], told["outputs"]
    assert (entry["name"], entry["layout"], entry["channels"]) == ("pixels", "NHWC", "grayscale")
    assert entry["shape"][1:] == [8, 8, 1]
    assert entry["normalization"] == {"mean": [MEAN], "std": [STD]}
    assert scores["labels"] == "labels.txt"
    assert scores["activation"] == "SOFTMAX"
    assert (entry["quantization"] is not None) == (kind == "int8.tflite")
    assert told["size_bytes"] == made.model.stat().st_size
    assert (made.folder / "labels.txt").read_text() == "".join(f"{name}\n" for name in NAMES)
    assert "run.py" in str(made)
    assert made.as_dict()["model"] == str(made.model)


def test_onnx_metadata_are_read_by_the_runtime(packages: dict[str, deploy.Package]) -> None:
    path = packages["float.onnx"].model
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.get_modelmeta().custom_metadata_map
    assert json.loads(found["labels"]) == NAMES
    assert json.loads(found["inputs"])[0]["normalization"] == {"mean": [MEAN], "std": [STD]}
    assert (found["name"], found["license"]) == ("float", "MIT")
    onnx.checker.check_model(str(path))


def test_a_package_is_written_anew_and_another_folder_is_not(files: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ship"
    deploy.package(files / "float.onnx", folder, labels=NAMES)
    again = deploy.package(files / "float.tflite", folder)
    names = {path.name for path in folder.iterdir()}
    assert names == (ALL | {"model.tflite"}) - {"labels.txt"}
    # In place, the file of the folder itself.
    deploy.package(again.model, folder, labels=NAMES)
    assert (folder / "labels.txt").exists()
    for other in ({"notes.txt": "mine"}, {"model.json": "{}"}, {"model.json": "no json"}):
        mine = tmp_path / f"mine{len(list(tmp_path.iterdir()))}"
        mine.mkdir()
        for name, text in other.items():
            (mine / name).write_text(text)
        with pytest.raises(ValueError, match=r"`folder` must be new, empty, .* another origin"):
            deploy.package(files / "float.tflite", mine)
        assert {p.name: p.read_text() for p in mine.iterdir()} == other
    with pytest.raises(ValueError, match="`folder` must be a folder"):
        deploy.package(files / "float.tflite", files / "float.onnx")


def test_a_file_that_computes_something_else_is_never_written(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = packaging.with_metadata

    def spoilt(content: bytes, *rest: Any) -> bytes:
        model = bytearray(whole(content, *rest))
        weights = content.find(np.float32(keras_weight(files / "float.tflite")).tobytes())
        at = model.find(content[weights : weights + 16])
        model[at + 3] ^= 0x40  # an exponent
        return bytes(model)

    monkeypatch.setattr(packaging, "with_metadata", spoilt)
    with pytest.raises(RuntimeError, match=r"does not compute .* Nothing was written"):
        deploy.package(files / "float.tflite", tmp_path / "ship")
    assert not (tmp_path / "ship").exists()


def keras_weight(path: Path) -> float:
    """A weight of the convolution, by the runtime."""
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    kernel = next(e for e in interpreter.get_tensor_details() if list(e["shape"]) == [12, 3, 3, 1])
    return float(interpreter.get_tensor(kernel["index"]).reshape(-1)[0])


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (NAMES[:9], r"`labels` must name as many classes .* 9 labels for .*scores.* 10"),
        ([*NAMES[:9], "nine\nten"], "`labels` must be of one line each"),
        ([*NAMES[:9], "nine\u2028ten"], "`labels` must be of one line each"),
        ([*NAMES[:9], "nine\r"], "`labels` must be of one line each"),
        ([*NAMES[:9], " "], "`labels` must hold a text for each class"),
        ([*NAMES[:9], ""], "`labels` must hold a text for each class"),
        ([*NAMES[:9], 9], "`labels` must hold a text for each class"),
        ([*NAMES[:9], "one"], "`labels` must be all different"),
        ([*NAMES[:9], "\udcff"], "`labels` must be text that UTF-8 can hold"),
        ("0123456789", "`labels` must be a list"),
        ([], "`labels` must name at least one"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    labels: Sequence[str], said: str, files: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        deploy.package(files / "float.tflite", tmp_path / "ship", labels=labels)
    assert not (tmp_path / "ship").exists()


@pytest.mark.parametrize(
    ("normalization", "said"),
    [
        (([1, 2], [1, 1]), r"`normalization` must have a mean of one number, .* \(1\)"),
        ((0, [1, 1, 1]), r"`normalization` must have a std of one number"),
        ((0, 0), r"standard deviations above 0"),
        ((0, 1e-60), r"standard deviations above 0"),
        ((float("nan"), 1), "finite"),
        ((1e300, 1), "finite"),
        ((1,), "a mean and a standard deviation"),
        ("ab", "a mean and a standard deviation"),
        (5, "a mean and a standard deviation"),
    ],
)
def test_normalizations_that_do_not_fit_are_refused(
    normalization: Any, said: str, files: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        deploy.package(files / "int8.tflite", tmp_path / "ship", normalization=normalization)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.tflite").write_text("TFL3TFL3, or so it says")
    (tmp_path / "text.onnx").write_text("no model")
    for name, kind in (("text.tflite", ValueError), ("text.onnx", ValueError)):
        with pytest.raises(kind, match="`path` must name a whole model file"):
            deploy.package(tmp_path / name, tmp_path / "ship")
    with pytest.raises(FileNotFoundError, match="`path` must name an existing file"):
        deploy.package(tmp_path / "gone.tflite", tmp_path / "ship")
    with pytest.raises(ValueError, match=r"`path` must name a \.tflite or \.onnx file"):
        deploy.package(tmp_path / "model.keras", tmp_path / "ship")
    assert not (tmp_path / "ship").exists()


@pytest.mark.parametrize(
    "figures", [{"accuracy": [1, 2]}, {"accuracy": float("nan")}, {1: 2}, {"": 1}, [("a", 1)]]
)
def test_figures_that_no_table_shows_are_refused(figures: Any, files: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`figures` must"):
        deploy.package(files / "float.tflite", tmp_path / "ship", figures=figures)


def test_figures_are_told(files: Path, tmp_path: Path) -> None:
    figures: dict[str, Any] = {
        "accuracy": np.float32(0.5),
        "median_ms": 0.1234567,
        "quantized": True,
        "threads": np.int64(2),
        "seen_on": "a | b <b>",
        "later": None,
    }
    made = deploy.package(files / "float.tflite", tmp_path / "ship", figures=figures)
    told = json.loads((made.folder / "model.json").read_text())["figures"]
    assert told == {**figures, "accuracy": 0.5, "threads": 2}
    card = (made.folder / "README.md").read_text(encoding="utf-8")
    for line in (
        "| top-1 accuracy | 50.00% |",
        "| time of one sample, median | 0.1235 ms |",
        "| quantized | yes |",
        "| threads | 2 |",
        r"| seen on | a \| b \<b\> |",
        "| later | not measured |",
    ):
        assert line in card
    assert "Not stated." in card
    bare = deploy.package(files / "float.tflite", tmp_path / "bare")
    assert "Nothing was measured" in (bare.folder / "README.md").read_text(encoding="utf-8")


def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    keras.utils.set_random_seed(3)
    picture, facts = keras.Input((6, 4, 3), name="picture"), keras.Input((5,), name="facts")
    x = keras.layers.Concatenate()([keras.layers.Flatten()(picture), facts])
    kinds = keras.layers.Dense(3, name="kinds")(x)
    size = keras.layers.Dense(1, activation="sigmoid", name="size")(x)
    model = keras.Model([picture, facts], [kinds, size])
    rng = np.random.default_rng(2)
    pixels = rng.integers(0, 256, (2, 6, 4, 3)).astype(np.float32)
    values = rng.normal(size=(2, 5)).astype(np.float32)
    np.save(tmp_path / "picture.npy", pixels)
    np.save(tmp_path / "facts.npy", values)
    mean, std = [1.0, 2.0, 3.0], [4.0, 5.0, 6.0]
    wanted = model.predict([(pixels - np.float32(mean)) / np.float32(std), values], verbose=0)
    for suffix in ("tflite", "onnx"):
        deploy.export(model, tmp_path / f"two.{suffix}")
        made = deploy.package(
            tmp_path / f"two.{suffix}",
            tmp_path / suffix,
            labels=["a", "b", "c"],
            normalization=(mean, std),
        )
        assert [entry["labels"] for entry in made.description["outputs"]] == ["labels.txt", None]
        done = subprocess.run(
            [
                *(sys.executable, "-I", str(made.folder / "run.py")),
                *(str(tmp_path / "picture.npy"), str(tmp_path / "facts.npy")),
            ],
            capture_output=True,
            text=True,
            check=True,
        )
        lines = [line.strip() for line in done.stdout.splitlines()]
        for sample in range(2):
            at = lines.index(f"sample {sample}")
            order = np.argsort(-wanted[0][sample])
            assert [line.split("\t")[1] for line in lines[at + 1 : at + 4]] == [
                "abc"[place] for place in order
            ]
            found = [float(line.split("\t")[0]) for line in lines[at + 1 : at + 4]]
            np.testing.assert_allclose(found, wanted[0][sample][order], rtol=1e-3)
            assert lines[at + 4].startswith("size (1,): ")
            np.testing.assert_allclose(
                float(lines[at + 4].split()[-1]), wanted[1][sample][0], rtol=1e-3, atol=1e-5
            )


def test_channels_in_front_are_told_and_fed(tmp_path: Path) -> None:
    """A file of other origin: pixels in the order that PyTorch has them, a batch of any size."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(3 * 4 * 5, 2)).astype(np.float32)
    nodes = [
        onnx.helper.make_node("Flatten", ["x"], ["flat"]),
        onnx.helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3, 4, 5])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 2])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8
    )
    entry = model.metadata_props.add()
    entry.key, entry.value = "trained by", "someone"
    onnx.save(model, tmp_path / "other.onnx")
    mean, std = [10.0, 20.0, 30.0], [2.0, 3.0, 4.0]
    made = deploy.package(
        tmp_path / "other.onnx", tmp_path / "ship", labels=["no", "yes"], normalization=(mean, std)
    )
    assert made.description["inputs"][0]["layout"] == "NCHW"
    image = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    (tmp_path / "x.ppm").write_bytes(b"P6\n5 4\n255\n" + image.tobytes())
    normalized = (image.astype(np.float64) - mean) / std
    wanted = normalized.transpose(2, 0, 1).reshape(-1) @ weights
    ((first, second),) = run(made.folder, tmp_path / "x.ppm")
    assert first[1] == ["no", "yes"][int(wanted.argmax())]
    np.testing.assert_allclose([first[0], second[0]], sorted(wanted, reverse=True), rtol=1e-4)
    props = {entry.key: entry.value for entry in onnx.load(made.model).metadata_props}
    assert props["trained by"] == "someone"


def test_a_batch_of_several_gets_the_sample_several_times(tmp_path: Path) -> None:
    weights = np.arange(8, dtype=np.float32).reshape(4, 2)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [3, 4])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [3, 2])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8
    )
    onnx.save(model, tmp_path / "three.onnx")
    made = deploy.package(tmp_path / "three.onnx", tmp_path / "ship", labels=["a", "b"])
    samples = np.array([[1, 0, 0, 0], [0, 0, 2, 0]], np.float32)
    np.save(tmp_path / "x.npy", samples)
    found = run(made.folder, tmp_path / "x.npy")
    assert found == [[(1.0, "b"), (0.0, "a")], [(10.0, "b"), (8.0, "a")]]


def test_a_signature_that_leaves_out_an_output_is_refused(tmp_path: Path) -> None:
    inputs = keras.Input((4,), name="x")
    heads = [keras.layers.Dense(2, name=name)(inputs) for name in ("a", "b")]
    deploy.export(keras.Model(inputs, heads), tmp_path / "two.tflite")
    content = bytearray((tmp_path / "two.tflite").read_bytes())
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    model.signatureDefs[0].outputs.pop()
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    (tmp_path / "one.tflite").write_bytes(builder.Output())
    with pytest.raises(ValueError, match=r"has all outputs of its graph\. Received: 1 of 2"):
        deploy.package(tmp_path / "one.tflite", tmp_path / "ship")
