"""Samples in C++ and Kotlin: they compile, feed what the runtime is fed, and hold nobody's code."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import keras
import numpy as np
import onnx
import pytest
from ai_edge_litert.interpreter import Interpreter

from dprp_tf import deploy
from dprp_tf.deploy.packaging.samples import cpp_text, kotlin_text

_INCLUDE = "DPRP_LITERT_INCLUDE"
FLAGS = ["-std=c++17", "-Wall", "-Wextra", "-Werror"]

# The part of the C interface that the sample calls, as its header declares it. Behind it stands a
# runtime that writes down what it is fed and gives what a file holds.
LITERT_HEADER = r"""
#pragma once
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>
typedef enum { kTfLiteOk = 0, kTfLiteError = 1 } TfLiteStatus;
struct TfLiteModel {};
struct TfLiteInterpreterOptions {};
struct TfLiteTensor { std::string bytes; };
struct TfLiteInterpreter { TfLiteTensor fed[8], given; };
inline TfLiteModel* TfLiteModelCreateFromFile(const char* path) {
  return std::ifstream(path) ? new TfLiteModel : nullptr;
}
inline void TfLiteModelDelete(TfLiteModel* model) { delete model; }
inline TfLiteInterpreterOptions* TfLiteInterpreterOptionsCreate() {
  return new TfLiteInterpreterOptions;
}
inline void TfLiteInterpreterOptionsDelete(TfLiteInterpreterOptions* options) { delete options; }
inline void TfLiteInterpreterOptionsSetNumThreads(TfLiteInterpreterOptions*, int32_t) {}
inline TfLiteInterpreter* TfLiteInterpreterCreate(
    const TfLiteModel*, const TfLiteInterpreterOptions*) {
  return new TfLiteInterpreter;
}
inline void TfLiteInterpreterDelete(TfLiteInterpreter* interpreter) { delete interpreter; }
inline TfLiteStatus TfLiteInterpreterResizeInputTensor(
    TfLiteInterpreter*, int32_t, const int*, int32_t) {
  return kTfLiteOk;
}
inline TfLiteStatus TfLiteInterpreterAllocateTensors(TfLiteInterpreter*) { return kTfLiteOk; }
inline TfLiteTensor* TfLiteInterpreterGetInputTensor(
    const TfLiteInterpreter* interpreter, int32_t place) {
  return &const_cast<TfLiteInterpreter*>(interpreter)->fed[place];
}
inline TfLiteStatus TfLiteTensorCopyFromBuffer(
    TfLiteTensor* tensor, const void* data, size_t size) {
  tensor->bytes.assign(static_cast<const char*>(data), size);
  return kTfLiteOk;
}
inline TfLiteStatus TfLiteInterpreterInvoke(TfLiteInterpreter* interpreter) {
  std::ofstream(std::getenv("FED"), std::ios::binary) << interpreter->fed[0].bytes;
  std::ifstream given(std::getenv("GIVEN"), std::ios::binary);
  interpreter->given.bytes.assign(std::istreambuf_iterator<char>(given),
      std::istreambuf_iterator<char>());
  return kTfLiteOk;
}
inline const TfLiteTensor* TfLiteInterpreterGetOutputTensor(
    const TfLiteInterpreter* interpreter, int32_t) {
  return &interpreter->given;
}
inline size_t TfLiteTensorByteSize(const TfLiteTensor* tensor) { return tensor->bytes.size(); }
inline TfLiteStatus TfLiteTensorCopyToBuffer(const TfLiteTensor* tensor, void* data, size_t size) {
  tensor->bytes.copy(static_cast<char*>(data), size);
  return kTfLiteOk;
}
"""

# Likewise of ONNX Runtime's C++ interface, as far as a compiler looks.
ONNX_HEADER = r"""
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>
enum ONNXTensorElementDataType {
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING, ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64
};
enum OrtLoggingLevel { ORT_LOGGING_LEVEL_WARNING = 2 };
enum OrtAllocatorType { OrtArenaAllocator = 1 };
enum OrtMemType { OrtMemTypeDefault = 0 };
struct OrtMemoryInfo;
namespace Ort {
struct Env { Env(OrtLoggingLevel, const char*); };
struct SessionOptions { SessionOptions& SetIntraOpNumThreads(int); };
struct RunOptions { explicit RunOptions(std::nullptr_t); };
struct MemoryInfo {
  static MemoryInfo CreateCpu(OrtAllocatorType, OrtMemType);
  operator const OrtMemoryInfo*() const;
};
struct TensorTypeAndShapeInfo { size_t GetElementCount() const; };
struct Value {
  Value(Value&&);
  Value(const Value&) = delete;
  template <typename T>
  static Value CreateTensor(const OrtMemoryInfo*, T*, size_t, const int64_t*, size_t);
  static Value CreateTensor(const OrtMemoryInfo*, void*, size_t, const int64_t*, size_t,
      ONNXTensorElementDataType);
  TensorTypeAndShapeInfo GetTensorTypeAndShapeInfo() const;
  const void* GetTensorRawData() const;
};
struct Session {
  Session(const Env&, const char*, const SessionOptions&);
  std::vector<Value> Run(const RunOptions&, const char* const*, const Value*, size_t,
      const char* const*, size_t);
};
}
"""


@pytest.fixture(scope="module")
def compiler() -> str:
    found = shutil.which("g++") or shutil.which("clang++")
    if found is None:
        reason = "a C++ compiler is needed to compile the samples: g++ or clang++"
        warnings.warn(f"skipped for want of a compiler: {reason}", stacklevel=1)
        pytest.skip(reason)
    return found


@pytest.fixture(scope="module")
def headers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("headers")
    place = folder / "tensorflow" / "lite" / "c"
    place.mkdir(parents=True)
    (place / "c_api.h").write_text(LITERT_HEADER)
    (folder / "onnxruntime_cxx_api.h").write_text(ONNX_HEADER)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    keras.utils.set_random_seed(8)
    inputs = keras.Input((5, 7, 3), name="picture")
    x = keras.layers.Conv2D(6, 3, activation="relu")(inputs)
    x = keras.layers.Dense(4, name="kinds")(keras.layers.Flatten()(x))
    model = keras.Model(inputs, x)
    folder = tmp_path_factory.mktemp("files")
    data = np.random.default_rng(0).normal(0, 1.5, (100, 5, 7, 3)).astype(np.float32)
    deploy.export(model, folder / "float.tflite")
    deploy.export(
        model, folder / "int8.tflite", quantization="int8", calibration_data=data, integer_io=True
    )
    deploy.export(model, folder / "float.onnx")
    return folder


def compile_sample(compiler: str, folder: Path, headers: Path, *more: str) -> None:
    done = subprocess.run(
        [compiler, *FLAGS, "-I", str(headers), *more, str(folder / "sample.cpp")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["float.tflite", "int8.tflite"])
def test_the_cpp_sample_feeds_and_reads_as_the_runtime_does(
    kind: str, files: Path, compiler: str, headers: Path, tmp_path: Path
) -> None:
    mean, std = [120.0, 110.5, 99.9], [60.0, 58.3, 57.1]
    labels = ["none", "one", "a few", "lots"]
    made = deploy.package(files / kind, tmp_path / "ship", labels=labels, normalization=(mean, std))
    compile_sample(compiler, made.folder, headers, "-O1", "-o", str(tmp_path / "sample"))
    image = np.random.default_rng(4).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    (tmp_path / "x.ppm").write_bytes(b"P6\n# made up\n7 5\n255\n" + image.tobytes())
    (tmp_path / "x.bin").write_bytes(image.astype(np.float32).tobytes())
    fed = ((image.astype(np.float32) - np.float32(mean)) / np.float32(std))[None]
    interpreter = Interpreter(str(files / kind))
    interpreter.allocate_tensors()
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    if kind == "int8.tflite":
        scale, zero = taken["quantization"]
        fed = np.clip(np.round(fed / np.float32(scale)) + zero, -128, 127).astype(np.int8)
    interpreter.set_tensor(taken["index"], fed)
    interpreter.invoke()
    raw = interpreter.get_tensor(given["index"])
    (tmp_path / "given").write_bytes(raw.tobytes())
    scores = raw[0].astype(np.float32)
    if kind == "int8.tflite":
        scale, zero = given["quantization"]
        scores = (scores - zero) * np.float32(scale)
    for name in ("x.ppm", "x.bin"):
        done = subprocess.run(
            [tmp_path / "sample", made.model, made.folder / "labels.txt", tmp_path / name],
            capture_output=True,
            text=True,
            check=False,
            env={"FED": str(tmp_path / "fed"), "GIVEN": str(tmp_path / "given")},
        )
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "fed").read_bytes() == fed.tobytes()
        rows = [line.split("\t") for line in done.stdout.splitlines()]
        order = np.argsort(-scores, kind="stable")
        assert [label for _, label in rows] == [labels[at] for at in order]
        np.testing.assert_allclose([float(s) for s, _ in rows], scores[order], rtol=1e-4)
    for bad in (b"P6 7 4 255\n", b"P6 7 5 255\nabc", b"P5 7 5 255\n" + bytes(35), b"abc"):
        (tmp_path / "bad").write_bytes(bad)
        words = [tmp_path / "sample", made.model, "-", tmp_path / "bad"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")


def test_the_cpp_sample_of_an_onnx_file_compiles(
    files: Path, compiler: str, headers: Path, tmp_path: Path
) -> None:
    made = deploy.package(files / "float.onnx", tmp_path / "ship", normalization=(0, 255))
    compile_sample(compiler, made.folder, headers, "-fsyntax-only")


def test_the_cpp_sample_compiles_with_the_real_headers(
    files: Path, compiler: str, tmp_path: Path
) -> None:
    place = os.environ.get(_INCLUDE, "")
    if not place:
        reason = f"set {_INCLUDE} to a folder that holds tensorflow/lite/c/c_api.h to run this"
        warnings.warn(f"skipped for want of headers: {reason}", stacklevel=1)
        pytest.skip(reason)
    made = deploy.package(files / "int8.tflite", tmp_path / "ship")
    compile_sample(compiler, made.folder, Path(place), "-fsyntax-only")


HOSTILE = [
    '"; system("touch OWNED"); //',
    "*/ #error OWNED \\",
    '${Runtime.getRuntime().exec("touch OWNED")}',
    "$(touch OWNED) `touch OWNED`",
    "@@INPUTS@@ ??/",
    "</td><script>alert(1)</script>",
    "a | b [c](javascript:alert) # ![d](http://x)",
    "\x1b[31mred\x07 \u202egnp",
    "'''\"\"\"; import os #",
    "emoji \U0001f600 名前",
]


def hostile_onnx(path: Path, names: tuple[str, str]) -> None:
    """A file whose input and output are called as someone likes."""
    weights = np.random.default_rng(0).normal(size=(4, len(HOSTILE))).astype(np.float32)
    taken, given = names
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", [taken, "w"], [given])],
        "g",
        [onnx.helper.make_tensor_value_info(taken, onnx.TensorProto.FLOAT, [1, 4])],
        [onnx.helper.make_tensor_value_info(given, onnx.TensorProto.FLOAT, [1, len(HOSTILE)])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8
    )
    onnx.save(model, path)


@pytest.mark.parametrize("name", HOSTILE)
def test_names_of_anyone_are_never_code(
    name: str, compiler: str, headers: Path, tmp_path: Path
) -> None:
    hostile_onnx(tmp_path / "model.onnx", (name, f"out {name}"))
    made = deploy.package(
        tmp_path / "model.onnx",
        tmp_path / "ship",
        labels=HOSTILE,
        name=f"{name}\n#error OWNED",
        description=name,
        license=name,
        figures={name: name},
    )
    compile_sample(compiler, made.folder, headers, "-fsyntax-only", "-trigraphs")
    # The literal is the name again, by the compiler's own reading.
    (tmp_path / "echo.cpp").write_text(
        f"#include <cstdio>\nint main() {{ std::fputs({cpp_text(name)}, stdout); }}\n"
    )
    subprocess.run([compiler, str(tmp_path / "echo.cpp"), "-o", str(tmp_path / "echo")], check=True)
    assert subprocess.run([tmp_path / "echo"], capture_output=True).stdout == name.encode()
    for program in ("run.py", "sample.cpp", "Sample.kt"):
        text = (made.folder / program).read_text(encoding="utf-8")
        assert not any(label in text for label in HOSTILE)
        assert 'touch OWNED"' not in text
        assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", text)
    np.save(tmp_path / "x.npy", np.ones(4, np.float32))
    done = subprocess.run(
        [sys.executable, "-I", made.folder / "run.py", tmp_path / "x.npy"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert not list(tmp_path.rglob("OWNED"))
    card = (made.folder / "README.md").read_text(encoding="utf-8")
    assert "<script" not in card.replace("\\<", "")
    assert "\x1b" not in card
    assert card.count("\n# ") == 0, "no heading but the first"
    told = json.loads((made.folder / "model.json").read_text(encoding="utf-8"))
    assert told["inputs"][0]["name"] == name
    lines = (made.folder / "labels.txt").read_text(encoding="utf-8").split("\n")
    assert lines == [*HOSTILE, ""]


def test_a_literal_of_kotlin_is_ascii_without_its_signs() -> None:
    for name in HOSTILE:
        literal = kotlin_text(name)
        assert re.fullmatch(r'"(?:[A-Za-z0-9 _]|\\u[0-9a-f]{4})*"', literal)
        assert json.loads(literal) == name  # JSON's escapes are Kotlin's


@pytest.mark.parametrize("kind", ["float.tflite", "int8.tflite", "float.onnx"])
def test_the_kotlin_sample_is_filled(kind: str, files: Path, tmp_path: Path) -> None:
    made = deploy.package(files / kind, tmp_path / "ship", normalization=([1, 2, 3], [4.5, 5, 6]))
    text = (made.folder / "Sample.kt").read_text(encoding="utf-8")
    assert "@@" not in text
    assert "floatArrayOf(1.0f, 2.0f, 3.0f), floatArrayOf(4.5f, 5.0f, 6.0f)" in text
    for opening, closing in ("()", "{}", "[]"):
        assert text.count(opening) == text.count(closing)
    runtime = "ai.onnxruntime" if kind.endswith("onnx") else "org.tensorflow.lite.Interpreter"
    assert f"import {runtime}" in text
