"""Metadata inside a .tflite file, in the form that TensorFlow Lite's own libraries read.

The table `ModelMetadata` (file identifier M001) lies in a buffer that the model calls
TFLITE_METADATA; the labels lie in a zip archive behind the model. The model's bytes stay as they
are: a new root is written before them, whose fields point into them. What a runtime computes with
is therefore the same, byte for byte and at the same alignment.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

from dprp_tf.files.extras import require

__all__ = ["require_all_named", "with_metadata"]

_NAME = b"TFLITE_METADATA"
_MODEL_IDENTIFIER, _METADATA_IDENTIFIER = b"TFL3", b"M001"
_LABELS = "labels.txt"
# Weights keep their place relative to lines of the cache, wherever the writer had put them.
_ALIGNMENT = 64
# Fields of the table Model, by their slots; one of a later schema might not be an offset.
_VERSION, _BUFFERS, _METADATA, _EXTERNAL, _KNOWN = 0, 4, 6, (8, 9), 10
# Entries of unions and enumerations of the metadata's schema.
_FEATURE, _IMAGE = 1, 2
_NORMALIZATION = 1
_TENSOR_AXIS_LABELS = 2
_COLOR_SPACES = {"RGB": 1, "grayscale": 2}
# The least version of a parser that knows all of the fields that are used here.
_PARSER = "1.0.0"


def with_metadata(
    content: bytes, description: Mapping[str, Any], labels: str | None = None
) -> bytes:
    """Give a .tflite file metadata; what metadata it had is replaced.

    Args:
        content: The file's content.
        description: `name`, `description`, `license`, and `inputs` and `outputs` as
            `describe_inputs` and `describe_outputs` return them, in the file's order.
        labels: The content of labels.txt; None for a model without labels.

    Returns:
        The content of the file with metadata.

    Raises:
        ImportError: If the extra `export` is missing.
        ValueError: If the file keeps its weights outside its tables, or is of a later schema.

    Example:

    >>> with_metadata(b"nonsense", {})
    Traceback (most recent call last):
      ...
    ValueError: `path` must name a .tflite file. Received: 8 bytes without its identifier.
    """
    if content[4:8] != _MODEL_IDENTIFIER:
        raise ValueError(
            "`path` must name a .tflite file. Received: "
            f"{len(content)} bytes without its identifier."
        )
    model = _without_archive(content)
    found = _append(model, _metadata(description, labels is not None))
    return found if labels is None else _with_archive(found, labels)


def require_all_named(content: bytes, inputs: Sequence[int], outputs: Sequence[int]) -> None:
    """Refuse a .tflite file whose signature leaves out some of what its graph takes or gives.

    Metadata and samples go by the graph's order: with fewer entries they would be of others.

    Args:
        content: The file's content.
        inputs: Numbers of the signature's input tensors, in the graph's order.
        outputs: Numbers of its output tensors, likewise.

    Raises:
        ImportError: If the extra `export` is missing.
        ValueError: If they are not the graph's.

    Example:

    >>> require_all_named.__name__
    'require_all_named'
    """
    schema = require(
        "ai_edge_litert.schema_py_generated", extra="export", feature="Packaging a .tflite file"
    )
    graph = schema.Model.GetRootAs(content, 0).Subgraphs(0)
    for what, named, numbers in (
        ("inputs", inputs, [graph.Inputs(at) for at in range(graph.InputsLength())]),
        ("outputs", outputs, [graph.Outputs(at) for at in range(graph.OutputsLength())]),
    ):
        if list(named) != numbers:
            raise ValueError(
                f"`path` must name a .tflite file whose first signature has all {what} of its "
                f"graph. Received: {len(named)} of {len(numbers)} {what}, or those of another "
                "graph. Export it again."
            )


def _without_archive(content: bytes) -> bytes:
    """The model without the files that older metadata put behind it."""
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return content
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        starts = [entry.header_offset for entry in archive.infolist()]
    return content[: min(starts, default=len(content))]


def _with_archive(content: bytes, labels: str) -> bytes:
    stream = io.BytesIO(content)
    # Readers on devices map the file and take labels as they lie there: stored, never compressed.
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_STORED) as archive:
        # A fixed date: the same model gives the same bytes.
        archive.writestr(zipfile.ZipInfo(_LABELS), labels.encode("utf-8"))
    return stream.getvalue()


def _append(content: bytes, metadata: bytes) -> bytes:
    """Write a new root before the content, with one buffer and one entry of metadata more."""
    flatbuffers = require("flatbuffers", extra="export", feature="Writing metadata")
    table = require("flatbuffers.table", extra="export", feature="Writing metadata").Table
    number_types = require("flatbuffers.number_types", extra="export", feature="Writing metadata")
    uoffset = number_types.UOffsetTFlags
    old = bytearray(content)
    old += bytes(-len(old) % _ALIGNMENT)
    root = table(old, int.from_bytes(old[:4], "little"))
    fields = {slot: root.Pos + at for slot in range(_KNOWN) if (at := root.Offset(4 + 2 * slot))}
    slots = (root.Get(number_types.VOffsetTFlags, root.Pos - _soffset(root, number_types)) - 4) // 2
    if slots > _KNOWN or any(slot in fields for slot in _EXTERNAL):
        raise ValueError(
            "`path` must name a .tflite file of one piece, of a schema that is known here. "
            "Received: a model with weights in other files, or of a later schema. Export it again."
        )

    def entries(slot: int) -> list[int]:
        """Where the tables of a vector lie."""
        if slot not in fields:
            return []
        at = root.Indirect(fields[slot])
        count = root.Get(uoffset, at)
        return [root.Indirect(at + 4 + 4 * place) for place in range(count)]

    buffers = entries(_BUFFERS)
    kept = [place for place in entries(_METADATA) if _entry_name(table, old, place) != _NAME]
    if any(_lies_outside(table, old, place, number_types) for place in buffers):
        raise ValueError(
            "`path` must name a .tflite file whose weights lie in its tables. Received: one that "
            "keeps them behind the model, as files of 2 GB and more do. Package a smaller one."
        )
    # The builder writes from the end: what is old is laid there first, as it is.
    builder = flatbuffers.Builder(len(old) + len(metadata) + 8 * len(buffers) + 1024)
    builder.head -= len(old)
    builder.Bytes[builder.head : builder.head + len(old)] = old
    builder.Prep(_ALIGNMENT, 0)  # the whole gets a multiple of it, as the old part has

    def old_offset(position: int) -> int:
        return len(old) - position

    data = _aligned_bytes(builder, metadata, number_types)
    builder.StartObject(1)
    builder.PrependUOffsetTRelativeSlot(0, data, 0)
    buffer = builder.EndObject()
    name = builder.CreateString(_NAME.decode())
    builder.StartObject(2)
    builder.PrependUOffsetTRelativeSlot(0, name, 0)
    builder.PrependUint32Slot(1, len(buffers), 0)
    entry = builder.EndObject()
    new = {
        _BUFFERS: _vector(builder, [*map(old_offset, buffers), buffer]),
        _METADATA: _vector(builder, [*map(old_offset, kept), entry]),
    }
    builder.StartObject(_KNOWN)
    for slot, position in fields.items():
        if slot == _VERSION:
            builder.PrependUint32Slot(slot, root.Get(number_types.Uint32Flags, position), 0)
        elif slot not in new:
            target = root.Indirect(position)
            builder.PrependUOffsetTRelativeSlot(slot, old_offset(target), 0)
    for slot, offset in new.items():
        builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
    builder.Finish(builder.EndObject(), file_identifier=_MODEL_IDENTIFIER)
    return bytes(builder.Output())


def _soffset(root: Any, number_types: Any) -> int:
    return root.Get(number_types.SOffsetTFlags, root.Pos)


def _entry_name(table: Any, content: bytearray, position: int) -> bytes:
    entry = table(content, position)
    at = entry.Offset(4)
    return entry.String(entry.Pos + at) if at else b""


def _lies_outside(table: Any, content: bytearray, position: int, number_types: Any) -> bool:
    """Whether a buffer's bytes stand behind the model, at a place counted from its beginning."""
    buffer = table(content, position)
    at = buffer.Offset(6)
    # One is a placeholder that the converter leaves in buffers of ordinary files.
    return bool(at) and buffer.Get(number_types.Uint64Flags, buffer.Pos + at) > 1


def _aligned_bytes(builder: Any, content: bytes, number_types: Any) -> int:
    """A vector of bytes that lies as the schema asks of buffers."""
    builder.StartVector(1, len(content), 16)
    builder.head -= len(content)
    builder.Bytes[builder.head : builder.head + len(content)] = content
    return builder.EndVector()


def _vector(builder: Any, offsets: Sequence[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return builder.EndVector()


def _metadata(description: Mapping[str, Any], has_labels: bool) -> bytes:
    """The table ModelMetadata, by the slots of its schema."""
    flatbuffers = require("flatbuffers", extra="export", feature="Writing metadata")
    write = _Writer(flatbuffers.Builder(1024))
    inputs = [_input_tensor(write, entry) for entry in description["inputs"]]
    outputs = [_output_tensor(write, entry, has_labels) for entry in description["outputs"]]
    graph = write.table({2: _vector(write.builder, inputs), 3: _vector(write.builder, outputs)})
    root = write.table(
        {
            0: write.text(description["name"]),
            1: write.text(description["description"]),
            3: _vector(write.builder, [graph]),
            5: write.text(description["license"]),
            7: write.text(_PARSER),
        }
    )
    write.builder.Finish(root, file_identifier=_METADATA_IDENTIFIER)
    return bytes(write.builder.Output())


class _Writer:
    """Tables of a flatbuffer from their fields, those that are missing left out."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def text(self, value: str | None) -> int | None:
        return self.builder.CreateString(value) if value else None

    def numbers(self, values: Sequence[float]) -> int:
        self.builder.StartVector(4, len(values), 4)
        for value in reversed(values):
            self.builder.PrependFloat32(value)
        return self.builder.EndVector()

    def table(
        self,
        offsets: Mapping[int, int | None],
        *,
        small: Mapping[int, int] | None = None,
        counts: Mapping[int, int] | None = None,
    ) -> int:
        """Write a table of offsets, of numbers in a byte and of unsigned ones, each by its slot."""
        small, counts = small or {}, counts or {}
        self.builder.StartObject(max([*offsets, *small, *counts], default=-1) + 1)
        for slot, offset in offsets.items():
            if offset is not None:
                self.builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
        for slot, value in small.items():
            self.builder.PrependUint8Slot(slot, value, 0)
        for slot, value in counts.items():
            self.builder.PrependUint32Slot(slot, value, 0)
        return self.builder.EndObject()


def _input_tensor(write: _Writer, entry: Mapping[str, Any]) -> int:
    if entry["kind"] == "image":
        height, width = entry["shape"][2:] if entry["layout"] == "NCHW" else entry["shape"][1:3]
        size = None
        if height and width:
            size = write.table({}, counts={0: width, 1: height})
        image = write.table({1: size}, small={0: _COLOR_SPACES[entry["channels"]]})
        content = write.table({1: image}, small={0: _IMAGE})
    else:
        content = write.table({1: write.table({})}, small={0: _FEATURE})
    units = stats = None
    normalization = entry["normalization"]
    if normalization is None and entry["kind"] == "image":
        # Libraries refuse a picture of floats of which this is not said.
        normalization = {"mean": [0.0], "std": [1.0]}
    if normalization is not None:
        # MediaPipe's reader takes one number for all channels alone: it is said so where it can.
        said = {
            part: values[:1] if len(set(values)) == 1 else values
            for part, values in normalization.items()
        }
        options = write.table({0: write.numbers(said["mean"]), 1: write.numbers(said["std"])})
        units = _vector(write.builder, [write.table({1: options}, small={0: _NORMALIZATION})])
    if entry["kind"] == "image" and entry["normalization"] is not None:
        limits = _limits(normalization)
        stats = write.table({0: write.numbers(limits[1]), 1: write.numbers(limits[0])})
    return write.table(
        {
            0: write.text(entry["name"]),
            1: write.text(entry["values"]),
            3: content,
            4: units,
            5: stats,
        }
    )


def _limits(normalization: Mapping[str, Sequence[float]]) -> tuple[list[float], list[float]]:
    """What black and white pixels become, by channel."""
    mean, std = normalization["mean"], normalization["std"]
    count = max(len(mean), len(std))
    pairs = [(mean[at % len(mean)], std[at % len(std)]) for at in range(count)]
    return [(0 - m) / s for m, s in pairs], [(255 - m) / s for m, s in pairs]


def _output_tensor(write: _Writer, entry: Mapping[str, Any], has_labels: bool) -> int:
    content = write.table({1: write.table({})}, small={0: _FEATURE})
    files = stats = None
    if has_labels and entry["labels"]:
        file = write.table(
            {0: write.text(_LABELS), 1: write.text("the name of each class, a line each")},
            small={2: _TENSOR_AXIS_LABELS},
        )
        files = _vector(write.builder, [file])
    if entry["activation"]:
        stats = write.table({0: write.numbers([1.0]), 1: write.numbers([0.0])})
    return write.table(
        {
            0: write.text(entry["name"]),
            1: write.text(entry["values"]),
            3: content,
            5: stats,
            6: files,
        }
    )
