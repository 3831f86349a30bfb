"""A folder to ship: a model file with metadata, labels, a model card, programs that run it."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dprp_tf.deploy.packaging.activations import output_activations
from dprp_tf.deploy.packaging.description import (
    Normalization,
    describe_inputs,
    describe_outputs,
)
from dprp_tf.deploy.packaging.labels import check_labels, check_text, label_lines
from dprp_tf.deploy.packaging.model_card import Figure, check_figures, model_card
from dprp_tf.deploy.packaging.onnx_metadata import with_properties
from dprp_tf.deploy.packaging.samples import samples as make_samples
from dprp_tf.deploy.packaging.tflite_metadata import require_all_named, with_metadata
from dprp_tf.deploy.running.runtime import RuntimeModel, load_file
from dprp_tf.files.atomic import atomic_path, read_json, require_writable
from dprp_tf.files.json_text import to_json
from dprp_tf.files.tables import Tabular, lay_out

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Package", "package"]

_MARK = "model.json"
_KEYS = {"dprp_package", "inputs", "outputs", "file"}
_VERSION = 1
_SAMPLES, _SEED, _OPEN_EDGE = 4, 20240115, 32
_WHAT = {
    "model.tflite": "the model, with metadata",
    "model.onnx": "the model, with metadata",
    "labels.txt": "the classes, a line each",
    _MARK: "inputs, outputs and figures for programs",
    "README.md": "the model card",
    "run.py": "runs it on a device, with numpy and a runtime",
    "sample.cpp": "the same in C++",
    "Sample.kt": "the same on Android",
}


@dataclass(frozen=True)
class Package(Tabular):
    """What `package` wrote.

    Attributes:
        folder: The folder to ship.
        model: The model file in it.
        files: All files in it that `package` wrote, the model first.
        description: What `model.json` holds.

    Example:

    >>> Package(Path("ship"), Path("ship/model.tflite"), (Path("ship/run.py"),), {}).folder.name
    'ship'
    """

    folder: Path
    model: Path
    files: tuple[Path, ...]
    description: Mapping[str, Any]

    def table(self) -> Table:
        """Lay it out for `rich`: a row for each file."""
        rows = [
            # The folder may have been moved since.
            (path.name, f"{path.stat().st_size:,}" if path.exists() else "", _WHAT[path.name])
            for path in self.files
        ]
        return lay_out(
            {"file": "fold", "bytes": "right", "what": "left"},
            rows,
            title=str(self.folder),
            caption=f"{self.model.name} computes bit for bit what it was made from",
        )

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        return {
            "folder": str(self.folder),
            "model": str(self.model),
            "files": [str(path) for path in self.files],
            "description": dict(self.description),
        }


def package(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    labels: Iterable[str] | None = None,
    normalization: Normalization | None = None,
    name: str | None = None,
    description: str = "",
    license: str | None = None,
    figures: Mapping[str, Figure] | None = None,
) -> Package:
    """Put a model file into a folder that can be shipped.

    The folder gets the file as `model.tflite` or `model.onnx` with metadata inside (in a .tflite
    file what TensorFlow Lite's and MediaPipe's libraries read, in an .onnx file entries of its
    `metadata_props`), `labels.txt`, `model.json` (inputs, outputs and figures), `README.md` (the
    model card), `run.py` (needs NumPy and a runtime alone), `sample.cpp` and `Sample.kt`. Before
    anything is written, the file with metadata computes the same as the given one, bit for bit,
    on seeded inputs.

    Args:
        path: The `.tflite` or `.onnx` file.
        folder: A new or empty folder, or one that this function has written; that is written anew.
        labels: Names of the classes, in the order of the scores. Default: none.
        normalization: Mean and standard deviation that the model's training took from its
            inputs, each one number or one per channel: what the samples do to pixels of 0 to 255.
            Default: inputs go in as they are.
        name: What the model is called. Defaults to the file's name without its suffix.
        description: What it is for, as plain text. Default: nothing.
        license: What it may be used for, such as `"Apache-2.0"`. Default: not stated.
        figures: What was measured, by name: numbers, texts, truth values. `accuracy`,
            `top1_agreement` (both 0 to 1), `median_ms`, `p10_ms`, `p90_ms`, `time_ratio`,
            `size_ratio` and `data` are told in words. Default: none.

    Returns:
        What was written.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no model, labels do not match its outputs or do not fit into
            lines, the normalization does not match its channels, or the folder holds something
            else.
        RuntimeError: If the file with metadata computes something else; nothing is written.
        ImportError: If the extra `export` is missing.
        OSError: If the folder can't be written.

    Example:

    >>> import tempfile, keras
    >>> from dprp_tf.deploy import export
    >>> dense = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> place = Path(tempfile.mkdtemp())
    >>> _ = export(dense, place / "dense.onnx")
    >>> found = package(place / "dense.onnx", place / "ship", labels=["cat", "dog"])
    >>> [file.name for file in found.files][:3]
    ['model.onnx', 'labels.txt', 'model.json']
    """
    source, place = Path(path), Path(folder)
    original = load_file(source)
    _require_own(place)
    names = check_labels(labels)
    given = source.read_bytes()
    if source.suffix.lower() == ".tflite":
        sides = ([tensor.index for tensor in side] for side in (original.inputs, original.outputs))
        require_all_named(given, *sides)
    told: dict[str, Any] = {
        "dprp_package": _VERSION,
        "name": check_text("name", source.stem if name is None else name).strip() or source.stem,
        "description": check_text("description", description).strip(),
        "license": None if license is None else check_text("license", license).strip() or None,
        "file": f"model{source.suffix.lower()}",
        "format": source.suffix.lower()[1:],
        "inputs": describe_inputs(original, normalization),
        "outputs": describe_outputs(original, names, output_activations(original)),
        "labels": None if names is None else len(names),
        "figures": check_figures(figures),
    }
    lines = None if names is None else label_lines(names)
    if told["format"] == "onnx":
        content = with_properties(source, told, names)
    else:
        content = with_metadata(given, told, lines)
    _require_same(original, content)
    told |= {
        "size_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "source_sha256": hashlib.sha256(given).hexdigest(),
        "verification": {"samples": _SAMPLES, "seed": _SEED, "identical": True},
    }
    texts = {} if lines is None else {"labels.txt": lines}
    texts |= {_MARK: to_json(told, indent=2) + "\n", "README.md": model_card(told, names)}
    texts |= make_samples(told)
    contents = {told["file"]: content, **{key: text.encode() for key, text in texts.items()}}
    _write(place, contents)
    return Package(place, place / told["file"], tuple(place / key for key in contents), told)


def _require_own(folder: Path) -> None:
    """Refuse a folder in which someone else's files lie."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(
            f"`folder` must be a folder, or a name for a new one. Received: {folder}, a file."
        )
    require_writable(folder / _MARK)
    if not folder.exists():
        return
    # Hidden ones are the system's, or what a writing that was killed has left.
    held = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if not held or _is_ours(folder / _MARK):
        return
    some = ", ".join(held[:5]) + (", ..." if len(held) > 5 else "")
    raise ValueError(
        f"`folder` must be new, empty, or a package to write anew. Received: {folder}, which holds "
        f"files of another origin: {some}. Give another folder, or move them away."
    )


def _is_ours(mark: Path) -> bool:
    try:
        found = read_json(mark)
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and set(found) >= _KEYS


def _write(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write the files, the one that says whose folder it is first, and remove older ones' rest."""
    for key in sorted(contents, key=lambda key: key != _MARK):
        with atomic_path(folder / key) as temporary:
            temporary.write_bytes(contents[key])
    for key in set(_WHAT) - set(contents):
        (folder / key).unlink(missing_ok=True)


def _require_same(original: RuntimeModel, content: bytes) -> None:
    """Refuse a file with metadata that computes anything else than the one without."""
    inputs = _seeded_inputs(original)
    before = original.run(inputs)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / f"model{original.path.suffix.lower()}"
        path.write_bytes(content)
        after = load_file(path).run(inputs)
    if [*before] != [*after] or not all(_same_bits(before[key], after[key]) for key in before):
        raise RuntimeError(
            f"The file with metadata does not compute what {original.path} computes on {_SAMPLES} "
            "seeded samples. Nothing was written. Please report it, with the file."
        )


def _same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    same_kind = one.shape == other.shape and one.dtype == other.dtype
    # As bytes: what is no number equals itself too.
    return same_kind and one.tobytes() == other.tobytes()


def _seeded_inputs(model: RuntimeModel) -> dict[str, np.ndarray]:
    """Samples as seeded draws: pixels for floats, all steps for quantized inputs, else 0 or 1."""
    generator = np.random.default_rng(_SEED)
    drawn = {}
    for tensor in model.inputs:
        shape = _sample_shape(tensor.shape)
        if "float" in tensor.dtype:
            drawn[tensor.name] = (255 * generator.random(shape)).astype(tensor.dtype)
        elif tensor.scale:
            limits = np.iinfo(tensor.dtype)
            values = generator.integers(limits.min, limits.max, shape, endpoint=True)
            drawn[tensor.name] = values.astype(tensor.dtype)
        else:
            # What is counted, such as the number of a word, may have few values.
            drawn[tensor.name] = generator.integers(0, 2, shape).astype(tensor.dtype)
    return drawn


def _sample_shape(shape: Sequence[int | None]) -> tuple[int, ...]:
    return (_SAMPLES, *(edge or _OPEN_EDGE for edge in shape[1:]))
