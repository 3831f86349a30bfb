"""Metadata inside .tflite files, read back by the primitives of the format and by other parsers."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import flatbuffers
import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from flatbuffers import number_types
from flatbuffers.table import Table

from dprp_tf import deploy
from dprp_tf.deploy.packaging.tflite_metadata import with_metadata

_PARSER = "DPRP_METADATA_PARSER"
LABELS = ["plain", "名前", "with, comma", "'\" $x"]


class Reader:
    """A table of a flatbuffer, its fields by their slots in the published schema."""

    def __init__(self, content: bytes, position: int | None = None) -> None:
        start = int.from_bytes(content[:4], "little") if position is None else position
        self.content, self._table = content, Table(bytearray(content), start)

    def _at(self, slot: int) -> int:
        offset = self._table.Offset(4 + 2 * slot)
        return self._table.Pos + offset if offset else 0

    def has(self, slot: int) -> bool:
        return self._at(slot) != 0

    def text(self, slot: int) -> str:
        return self._table.String(self._at(slot)).decode()

    def number(self, slot: int, kind: Any) -> int:
        return self._table.Get(kind, self._at(slot)) if self.has(slot) else 0

    def table(self, slot: int) -> Reader:
        return Reader(self.content, self._table.Indirect(self._at(slot)))

    def _vector(self, slot: int) -> tuple[int, int]:
        if not self.has(slot):
            return 0, 0
        at = self._table.Indirect(self._at(slot))
        return at + 4, self._table.Get(number_types.UOffsetTFlags, at)

    def tables(self, slot: int) -> list[Reader]:
        start, count = self._vector(slot)
        return [Reader(self.content, self._table.Indirect(start + 4 * at)) for at in range(count)]

    def floats(self, slot: int) -> list[float]:
        start, count = self._vector(slot)
        return np.frombuffer(self.content, "<f4", count, start).tolist()

    def data(self, slot: int) -> tuple[int, bytes]:
        start, count = self._vector(slot)
        return start, self.content[start : start + count]


def metadata_of(content: bytes) -> list[tuple[int, bytes]]:
    """Every buffer that the model calls TFLITE_METADATA, and where it lies."""
    model = Reader(content)
    buffers = model.tables(4)
    return [
        buffers[entry.number(1, number_types.Uint32Flags)].data(0)
        for entry in model.tables(6)
        if entry.text(0) == "TFLITE_METADATA"
    ]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6, 10, 3), name="picture")
    x = keras.layers.Conv2D(5, 3, activation="relu")(inputs)
    x = keras.layers.Dense(4, activation="softmax", name="kinds")(keras.layers.Flatten()(x))
    path = tmp_path_factory.mktemp("plain") / "some.tflite"
    deploy.export(keras.Model(inputs, x), path)
    return path


@pytest.fixture(scope="module")
def packed(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = deploy.package(
        plain,
        tmp_path_factory.mktemp("packed") / "ship",
        labels=LABELS,
        normalization=([1, 2, 3], [4, 5, 6]),
        name="Kinds",
        description="Tells kinds.\n\nOf things.",
        license="Apache-2.0",
    )
    return made.model


def test_it_is_read_back_without_our_code(packed: Path) -> None:
    content = packed.read_bytes()
    assert content[4:8] == b"TFL3"
    ((start, metadata),) = metadata_of(content)
    assert start % 16 == 0, "buffers of a model lie at multiples of 16"
    assert metadata[4:8] == b"M001"
    root = Reader(metadata)
    assert (root.text(0), root.text(5)) == ("Kinds", "Apache-2.0")
    assert root.text(1) == "Tells kinds.\n\nOf things."
    assert root.text(7) == "1.0.0"
    (graph,) = root.tables(3)
    (taken,), (given,) = graph.tables(2), graph.tables(3)
    assert taken.text(0) == "picture"
    content_of = taken.table(3)
    assert content_of.number(0, number_types.Uint8Flags) == 2, "ImageProperties"
    image = content_of.table(1)
    assert image.number(0, number_types.Int8Flags) == 1, "RGB"
    size = image.table(1)
    assert [size.number(slot, number_types.Uint32Flags) for slot in (0, 1)] == [10, 6]
    (unit,) = taken.tables(4)
    assert unit.number(0, number_types.Uint8Flags) == 1, "NormalizationOptions"
    assert unit.table(1).floats(0) == [1, 2, 3]
    assert unit.table(1).floats(1) == [4, 5, 6]
    mean, std = np.array([1, 2, 3]), np.array([4, 5, 6])
    np.testing.assert_allclose(taken.table(5).floats(0), (255 - mean) / std, rtol=1e-6)
    np.testing.assert_allclose(taken.table(5).floats(1), -mean / std, rtol=1e-6)
    assert given.text(0) == "kinds"
    assert given.table(3).number(0, number_types.Uint8Flags) == 1, "FeatureProperties"
    assert (given.table(5).floats(0), given.table(5).floats(1)) == ([1], [0])
    (file,) = given.tables(6)
    assert file.text(0) == "labels.txt"
    assert file.number(2, number_types.Int8Flags) == 2, "TENSOR_AXIS_LABELS"


def test_labels_lie_behind_it_uncompressed(packed: Path) -> None:
    with zipfile.ZipFile(packed) as archive:
        (entry,) = archive.infolist()
        assert (entry.filename, entry.compress_type) == ("labels.txt", zipfile.ZIP_STORED)
        assert archive.read(entry).decode().splitlines() == LABELS
        assert archive.testzip() is None
    # A reader that maps the file finds them as they are.
    assert "".join(f"{label}\n" for label in LABELS).encode() in packed.read_bytes()


def test_the_model_itself_is_untouched(plain: Path, packed: Path) -> None:
    before, after = plain.read_bytes(), packed.read_bytes()
    assert after.find(before) % 64 == 0, "whole, and where its weights were relative to a line"
    one, other = (schema.ModelT.InitFromPackedBuf(bytearray(c), 0) for c in (before, after))
    assert len(other.buffers) == len(one.buffers) + 1
    for old, new in zip(one.buffers, other.buffers[:-1], strict=True):
        assert np.array_equal(
            np.asarray([] if old.data is None else old.data),
            np.asarray([] if new.data is None else new.data),
        )
    names = [entry.name for entry in one.metadata or []]
    assert [entry.name for entry in other.metadata] == [*names, b"TFLITE_METADATA"]
    assert (other.version, other.description) == (one.version, one.description)
    assert [s.signatureKey for s in other.signatureDefs] == [
        s.signatureKey for s in one.signatureDefs
    ]


def test_without_labels_and_normalization(plain: Path, tmp_path: Path) -> None:
    made = deploy.package(plain, tmp_path / "ship")
    assert not zipfile.is_zipfile(made.model)
    ((_, metadata),) = metadata_of(made.model.read_bytes())
    root = Reader(metadata)
    assert root.text(0) == "some"
    assert not root.has(5)
    (graph,) = root.tables(3)
    (taken,), (given,) = graph.tables(2), graph.tables(3)
    # Task libraries refuse pictures of floats that say nothing: pixels as they are.
    (unit,) = taken.tables(4)
    assert (unit.table(1).floats(0), unit.table(1).floats(1)) == ([0], [1])
    assert not given.has(6)


def test_metadata_that_are_there_are_replaced(packed: Path, tmp_path: Path) -> None:
    again = deploy.package(packed, tmp_path / "again", labels=["a", "b", "c", "d"], name="New")
    ((_, metadata),) = metadata_of(again.model.read_bytes())
    assert Reader(metadata).text(0) == "New"
    with zipfile.ZipFile(again.model) as archive:
        assert archive.namelist() == ["labels.txt"]
        assert archive.read("labels.txt") == b"a\nb\nc\nd\n"
    third = deploy.package(again.model, tmp_path / "third")
    assert not zipfile.is_zipfile(third.model)
    assert len(metadata_of(third.model.read_bytes())) == 1


def test_the_same_model_gives_the_same_bytes(plain: Path, tmp_path: Path) -> None:
    one, other = (deploy.package(plain, tmp_path / n, labels=LABELS).model for n in "ab")
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("length", [0, 1, 15, 63])
def test_a_file_of_any_length_keeps_its_places(plain: Path, length: int, tmp_path: Path) -> None:
    """Other writers end their files anywhere."""
    content = plain.read_bytes() + bytes(length)
    (tmp_path / "odd.tflite").write_bytes(content)
    made = deploy.package(tmp_path / "odd.tflite", tmp_path / "ship", labels=LABELS)
    assert made.model.read_bytes().find(content) % 64 == 0
    interpreter = Interpreter(str(made.model))
    interpreter.allocate_tensors()
    interpreter.invoke()


def test_weights_outside_the_tables_are_refused(plain: Path) -> None:
    model = schema.ModelT.InitFromPackedBuf(bytearray(plain.read_bytes()), 0)
    model.buffers[-1].offset, model.buffers[-1].size = 5000, 16
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    with pytest.raises(ValueError, match="whose weights lie in its tables"):
        with_metadata(
            bytes(builder.Output()),
            {"name": "n", "description": "", "license": None, "inputs": [], "outputs": []},
        )


def _generated_reader() -> Path:
    """The reader that another project generated from the schema; skips, loudly, without one."""
    given = os.environ.get(_PARSER, "")
    if given:
        if not Path(given).is_file():
            pytest.fail(f"{_PARSER} must name a metadata_schema_py_generated.py. Received: {given}")
        return Path(given)
    for package, inner in (
        ("tensorflow_lite_support", "metadata"),
        ("mediapipe", "tasks/metadata"),
    ):
        found = importlib.util.find_spec(package)
        for place in (found.submodule_search_locations or ()) if found else ():
            path = Path(place) / inner / "metadata_schema_py_generated.py"
            if path.is_file():
                return path
    reason = (
        f"set {_PARSER} to a metadata_schema_py_generated.py of tflite-support or mediapipe, or "
        "install one of them, to read metadata by their code"
    )
    warnings.warn(f"skipped for want of a parser: {reason}", stacklevel=1)
    pytest.skip(reason)


def test_the_parser_of_another_project_reads_it(packed: Path) -> None:
    reader = _generated_reader()
    program = f"""
import sys, importlib.util, json
spec = importlib.util.spec_from_file_location("metadata_schema", {str(reader)!r})
found = importlib.util.module_from_spec(spec)
spec.loader.exec_module(found)
content = sys.stdin.buffer.read()
model = found.ModelMetadata.GetRootAs(content, 0)
graph = model.SubgraphMetadata(0)
taken, given = graph.InputTensorMetadata(0), graph.OutputTensorMetadata(0)
image = found.ImageProperties()
properties = taken.Content().ContentProperties()
image.Init(properties.Bytes, properties.Pos)
unit = taken.ProcessUnits(0)
options = found.NormalizationOptions()
options.Init(unit.Options().Bytes, unit.Options().Pos)
print(json.dumps([
    found.ModelMetadata.ModelMetadataBufferHasIdentifier(content, 0),
    model.Name().decode(), model.License().decode(), taken.Name().decode(), given.Name().decode(),
    taken.Content().ContentPropertiesType() == found.ContentProperties.ImageProperties,
    image.ColorSpace() == found.ColorSpaceType.RGB,
    [image.DefaultSize().Height(), image.DefaultSize().Width()],
    unit.OptionsType() == found.ProcessUnitOptions.NormalizationOptions,
    options.MeanAsNumpy().tolist(), options.StdAsNumpy().tolist(),
    given.AssociatedFiles(0).Name().decode(),
    given.AssociatedFiles(0).Type() == found.AssociatedFileType.TENSOR_AXIS_LABELS,
]))
"""
    ((_, metadata),) = metadata_of(packed.read_bytes())
    done = subprocess.run(
        [sys.executable, "-c", program], input=metadata, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert json.load(io.BytesIO(done.stdout)) == [
        True,
        *("Kinds", "Apache-2.0", "picture", "kinds"),
        *(True, True, [6, 10], True, [1, 2, 3], [4, 5, 6]),
        *("labels.txt", True),
    ]
