"""What a model's file claims, held against what it holds, before a model is made of it."""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import Any, BinaryIO

import h5py

from dprp_tf.files.archives import check_members, most_unpacked
from dprp_tf.files.atomic import read_json
from dprp_tf.files.stored_members import StoredMember

__all__ = ["check_weights", "largest_model"]

# As Keras does: by content, one file may be two things.
_ARCHIVE, _SHARDED, _OLDER = ".keras", ".json", (".h5", ".hdf5")
_CONFIG = "config.json"
_WEIGHTS = ("model.weights.h5", "model.weights.npz")
_OLDER_CONFIG = "model_config"
_ALWAYS_ALLOWED = 2**26  # bytes
_PIECE = 2**20  # bytes
# As Python's objects it may take twenty times that.
_LONGEST_CONFIG = 2**24  # bytes
# An optimizer that was never built has its slots made beside the weights when the model is loaded,
# the largest about five; and a class may build its layers twice.
_COPIES = 8
# Of these a layer has a weight for every one, so none can exceed what the archive holds.
_COUNTS = ("filters", "units", "rank", "depth_multiplier", "output_dim", "num_heads", "groups")
# Of these Keras makes a list for every one, without a weight.
_LISTED = ("num_thresholds",)
_LONGEST_LIST = 10**5
# The largest networks have about a thousand, and a chain is built anew for every one of its layers.
_MOST_LAYERS, _LONGEST_CHAIN = 10_000, 1_000


def largest_model(path: Path) -> int:
    """Check a `.keras` archive, or a whole model as `.h5`, and say how large its model may be.

    Args:
        path: The file.

    Returns:
        Bytes of variables that loading it may make.

    Raises:
        Exception: What zip, JSON and HDF5 raise for damaged files; `ValueError` where the members
            are not what was written, or claim sizes that the file can't hold. The message leaves
            the file's name to the caller.
    """
    limit = most_unpacked(path.stat().st_size, _ALWAYS_ALLOWED)
    if path.suffix == _ARCHIVE:
        with path.open("rb") as file:
            config, held = _check_archive(file, limit)
    else:
        with h5py.File(path, "r") as whole:
            config, held = whole.attrs.get(_OLDER_CONFIG, "{}"), _held(whole, limit)
    _check_config(config, held)
    return _COPIES * held + _ALWAYS_ALLOWED


def check_weights(path: Path) -> None:
    """Check a file that weights are read from: `.keras`, `.h5`, or `.weights.json` with its shards.

    Args:
        path: The file. Whatever else Keras reads weights from is passed over, and so is what is not
            there, of which Keras tells.

    Raises:
        ValueError: If it claims sizes that it can't hold, is damaged, or leads to other folders.
    """
    if path.suffix not in (_ARCHIVE, _SHARDED, *_OLDER) or not path.is_file():
        return
    limit = most_unpacked(path.stat().st_size, _ALWAYS_ALLOWED)
    try:
        if path.suffix == _SHARDED:
            for shard in _shards(path):
                check_weights(path.parent / shard)
        elif path.suffix == _ARCHIVE:
            with path.open("rb") as file:
                _check_archive(file, limit)
        else:
            with h5py.File(path, "r") as whole:
                _held(whole, limit)
    except Exception as error:  # zip, JSON and HDF5 each have errors of their own
        raise ValueError(
            f"`filepath` must hold weights as Keras writes them. Received: {path} ({error}). Save "
            "them again."
        ) from error


def _shards(path: Path) -> set[str]:
    if path.stat().st_size > _LONGEST_CONFIG:
        raise ValueError(f"it has more than {_LONGEST_CONFIG} bytes")
    shards: set[str] = set()
    for name in read_json(path)["weight_map"].values():
        shards.update([name] if isinstance(name, str) else name)
    outside = sorted(name for name in shards if name != PureWindowsPath(name).name)
    if outside:
        raise ValueError(f"it names {outside[0]!r}, which lies elsewhere")
    return shards


def _check_archive(file: BinaryIO, limit: int) -> tuple[bytes, int]:
    """Refuse members that are not what was written; return the configuration and weights' bytes."""
    with zipfile.ZipFile(file) as archive:
        check_members(archive, limit)
        members = {member.filename: member for member in archive.infolist()}
        weights = next((name for name in _WEIGHTS if name in members), None)
        if _CONFIG not in members or weights is None:
            raise ValueError(f"it must hold {_CONFIG} and {_WEIGHTS[0]}; it holds {[*members]}")
        length = members[_CONFIG].file_size
        if length > _LONGEST_CONFIG:
            raise ValueError(f"{_CONFIG} has {length} bytes, more than {_LONGEST_CONFIG}")
        wanted = {_CONFIG}
        if weights == _WEIGHTS[0] and members[weights].compress_type != zipfile.ZIP_STORED:
            wanted.add(weights)
        # Each member is unpacked once: reading it to its end holds it against its checksum.
        read = {name: _whole(archive, name, name in wanted) for name in members}
    if weights != _WEIGHTS[0]:
        return read[_CONFIG], members[weights].file_size
    packed = weights in wanted
    with h5py.File(
        io.BytesIO(read[weights]) if packed else StoredMember(file, members[weights]), "r"
    ) as arrays:
        return read[_CONFIG], _held(arrays, limit)


def _whole(archive: zipfile.ZipFile, name: str, wanted: bool) -> bytes:
    """The content of a member that is as it was written; of one that is not wanted, none."""
    try:
        if wanted:
            return archive.read(name)
        with archive.open(name) as member:
            while member.read(_PIECE):
                pass
    except zipfile.BadZipFile as error:
        raise ValueError(f"{name} does not have the checksum it was written with") from error
    return b""


def _held(file: h5py.File, limit: int) -> int:
    """The bytes of all arrays in an HDF5 file; of a few bytes on disk they can be any number."""
    held = 0

    # With HDF5's own handles: objects of h5py for every group would take twice the time.
    def add(name: bytes, info: Any) -> None:
        nonlocal held
        if info.type != h5py.h5o.TYPE_DATASET:
            return
        array = h5py.h5d.open(file.id, name)
        created, shape, dtype = array.get_create_plist(), array.shape, array.dtype
        if created.get_external_count() or created.get_layout() == h5py.h5d.VIRTUAL:
            raise ValueError(f"{name.decode(errors='replace')} lies in another file")
        if dtype.hasobject:
            raise ValueError(
                f"{name.decode(errors='replace')} holds {dtype}, which is no array of numbers"
            )
        held += math.prod(shape) * dtype.itemsize
        if held > limit:
            raise ValueError(
                f"{name.decode(errors='replace')} claims shape {shape}, all arrays more than the "
                f"{limit} bytes that a file of this size may hold"
            )

    h5py.h5o.visit(file.id, add, info=True)
    return held


def _check_config(text: str | bytes, held: int) -> None:
    if len(text) > _LONGEST_CONFIG:
        raise ValueError(f"its configuration has {len(text)} bytes, more than {_LONGEST_CONFIG}")
    layers = 0
    # Under a key of its own, so that the outermost is looked at as those inside it are.
    for key, value in _entries({"model": json.loads(text)}):
        if key == "layers" and isinstance(value, list):
            layers += len(value)
        if layers > _MOST_LAYERS or (isinstance(value, dict) and _is_long_chain(value)):
            raise ValueError(
                f"it has more layers than {_MOST_LAYERS}, or {_LONGEST_CHAIN} in a row"
            )
        if not isinstance(value, (int, float)):
            continue
        if key in _COUNTS and value > held:
            raise ValueError(f"`{key}` is {value:.6g}, more than the {held} bytes of its weights")
        if key in _LISTED and value > _LONGEST_LIST:
            raise ValueError(f"`{key}` is {value:.6g}, more than {_LONGEST_LIST}")


def _is_long_chain(entry: dict[str, Any]) -> bool:
    config = entry.get("config")
    layers = config.get("layers") if isinstance(config, dict) else config  # a list in old files
    if entry.get("class_name") != "Sequential" or not isinstance(layers, list):
        return False
    return len(layers) > _LONGEST_CHAIN


def _entries(config: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value of nested dicts and lists; a stack, for no depth is too deep for it."""
    pending = [config]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            yield from value.items()
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)
