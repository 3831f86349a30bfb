"""Model files that claim more than they hold: refused before memory is taken, and by name."""

from __future__ import annotations

import io
import json
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from keras import layers

import dprp_tf as dprp
from dprp_tf.training import model_archives
from dprp_tf.training.model_archives import check_weights, largest_model
from dprp_tf.training.saving import load_model, save_model

CONFIG, WEIGHTS = "config.json", "model.weights.h5"


def _network() -> keras.Model:
    return keras.Sequential(
        [keras.Input((8, 8, 3), name="image"), layers.Conv2D(4, 3, name="conv"), layers.Flatten()]
    )


@pytest.fixture
def members(tmp_path: Path) -> dict[str, bytes]:
    _network().save(tmp_path / "good.keras")
    with zipfile.ZipFile(tmp_path / "good.keras") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _write(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def _refused(path: Path, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        load_model(path)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


def _configured(members: dict[str, bytes], *added: dict[str, Any], **changed: Any) -> bytes:
    """The configuration, with changes to its convolution and with more layers at its end."""
    config = json.loads(members[CONFIG])
    entries = config["config"]["layers"]
    for entry in entries:
        if entry["config"].get("name") == "conv":
            entry["config"].update(changed)
            entry["build_config"]["input_shape"] = [None, 8, 8, 3]
    entries.extend(added)
    config["build_config"] = {}
    return json.dumps(config).encode()


def _layer(kind: str, **config: Any) -> dict[str, Any]:
    return {"module": "keras.layers", "class_name": kind, "config": {"name": kind, **config}}


LARGE: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "a kernel": ([], {"kernel_size": [3000, 3000], "padding": "same"}),
    "a kernel, and no filter": ([], {"kernel_size": [4000, 4000], "filters": 1, "padding": "same"}),
    "a width": ([_layer("Dense", units=10**6)], {}),
    "a table": ([_layer("Embedding", input_dim=10**9, output_dim=8)], {}),
    "many middling ones": ([_layer("Dense", name=f"{i}", units=4000) for i in range(5)], {}),
    "states": ([_layer("Reshape", target_shape=[36, 4]), _layer("LSTM", units=4000)], {}),
    "a constant": (
        [
            _layer(
                "Dense",
                units=10**6,
                kernel_initializer={
                    "module": "keras.initializers",
                    "class_name": "Constant",
                    "config": {"value": 1.0},
                },
            )
        ],
        {},
    ),
}


@pytest.mark.parametrize("what", LARGE)
def test_weights_that_are_not_in_the_file_are_refused(
    members: dict[str, bytes], tmp_path: Path, what: str
) -> None:
    added, changed = LARGE[what]
    content = {**members, CONFIG: _configured(members, *added, **changed)}
    path = _write(tmp_path / "large.keras", content)
    assert path.stat().st_size < 2**17
    _refused(path, r"declare weights of more than \d+ bytes|more than the \d+ bytes of its")


def test_the_refusal_comes_before_the_initializer(
    members: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[int, ...]] = []
    original = keras.initializers.GlorotUniform.__call__

    def noted(self: Any, shape: Any, *args: Any, **named: Any) -> Any:
        drawn.append(tuple(shape))
        return original(self, shape, *args, **named)

    monkeypatch.setattr(keras.initializers.GlorotUniform, "__call__", noted)
    config = _configured(members, kernel_size=[3000, 3000], padding="same")
    _refused(_write(tmp_path / "a.keras", {**members, CONFIG: config}), r"shape \(3000, 3000, 3, 4")
    assert drawn == []
    load_model(_write(tmp_path / "b.keras", members))
    assert drawn == [(3, 3, 3, 4)]


@pytest.mark.parametrize("value", [-1, -(10**9), 2.5, 1e300, True, None, "9", [3], 10**400])
@pytest.mark.parametrize("key", ["kernel_size", "filters"])
def test_sizes_that_are_none_are_refused(
    members: dict[str, bytes], tmp_path: Path, key: str, value: Any
) -> None:
    path = _write(tmp_path / "odd.keras", {**members, CONFIG: _configured(members, **{key: value})})
    _refused(path, "Received")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400"])
def test_numbers_that_json_has_not_are_refused(
    members: dict[str, bytes], tmp_path: Path, number: str
) -> None:
    content = members[CONFIG].replace(b'"filters": 4', f'"filters": {number}'.encode())
    assert content != members[CONFIG]
    _refused(_write(tmp_path / "odd.keras", {**members, CONFIG: content}), "Received")


def test_lists_that_a_metric_makes_are_limited(members: dict[str, bytes], tmp_path: Path) -> None:
    model = _network()
    model.compile("sgd", "mse", metrics=[keras.metrics.AUC(num_thresholds=50)])
    save_model(model, tmp_path / "auc.keras")
    load_model(tmp_path / "auc.keras")
    with zipfile.ZipFile(tmp_path / "auc.keras") as archive:
        config = archive.read(CONFIG)
    assert b'"num_thresholds": 50' in config
    config = config.replace(b'"num_thresholds": 50', b'"num_thresholds": 1000000000')
    _refused(_write(tmp_path / "many.keras", {**members, CONFIG: config}), "`num_thresholds` is 1e")


def test_chains_of_many_layers_are_refused(members: dict[str, bytes], tmp_path: Path) -> None:
    # The time to build one grows with the square of their number.
    many = [_layer("Activation", name=f"a{index}", activation="relu") for index in range(1001)]
    path = _write(tmp_path / "long.keras", {**members, CONFIG: _configured(members, *many)})
    _refused(path, "more layers than")


# --- members --------------------------------------------------------------------------------------


def test_a_configuration_has_a_few_megabytes(members: dict[str, bytes], tmp_path: Path) -> None:
    # 16 MiB of empty lists are a third of a gigabyte for Python.
    config = members[CONFIG][:-1] + b', "more": [' + b"[]," * (2**24 // 3) + b"[]]}"
    path = _write(tmp_path / "long.keras", {**members, CONFIG: config}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**17
    _refused(path, r"config\.json has \d+ bytes, more than")


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(
    members: dict[str, bytes], tmp_path: Path, compression: int
) -> None:
    _refused(_write(tmp_path / "a.keras", members, compression), "neither stored nor deflated")


def test_a_deflated_archive_loads(members: dict[str, bytes], tmp_path: Path) -> None:
    load_model(_write(tmp_path / "a.keras", members, zipfile.ZIP_DEFLATED))


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "assets/../../evil.txt", "C:\\evil"])
def test_members_outside_the_archive_are_refused(
    members: dict[str, bytes], tmp_path: Path, name: str
) -> None:
    _refused(_write(tmp_path / "b.keras", {**members, name: b"x"}), "lies outside it")
    assert not list(tmp_path.parent.glob("**/evil*"))


def test_members_of_folders_are_not_those_of_the_archive(
    members: dict[str, bytes], tmp_path: Path
) -> None:
    nested = {f"inner/{name}": content for name, content in members.items()}
    _refused(_write(tmp_path / "a.keras", nested), r"must hold config\.json")


def test_many_members_are_counted_soon(members: dict[str, bytes], tmp_path: Path) -> None:
    # Comparing each name with all others took hours for these.
    many = {f"assets/{index}": b"" for index in range(20_000)}
    path = _write(tmp_path / "a.keras", {**many, WEIGHTS: members[WEIGHTS]})
    _refused(path, r"must hold config\.json")


# --- arrays in HDF5 -------------------------------------------------------------------------------


def _weights(change: Callable[[h5py.File], None], members: dict[str, bytes]) -> dict[str, bytes]:
    stream = io.BytesIO(members[WEIGHTS])
    with h5py.File(stream, "r+") as file:
        change(file)
    return {**members, WEIGHTS: stream.getvalue()}


def _replace_kernel(file: h5py.File, **made: Any) -> None:
    del file["layers/conv2d/vars/0"]
    file["layers/conv2d/vars"].create_dataset("0", **made)


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((3, 3, 3, 4), "f4")
    layout[:] = h5py.VirtualSource("/etc/elsewhere.h5", "x", shape=(3, 3, 3, 4))
    del file["layers/conv2d/vars/0"]
    file["layers/conv2d/vars"].create_virtual_dataset("0", layout)


def _linked(file: h5py.File) -> None:
    del file["layers/conv2d/vars/0"]
    file["layers/conv2d/vars"]["0"] = h5py.ExternalLink("/etc/elsewhere.h5", "x")


def _many(file: h5py.File) -> None:
    for index in range(9):
        file.create_dataset(f"x{index}", shape=(2**22,), dtype="f4", chunks=(64,))


HDF5: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "never written": (
        lambda file: _replace_kernel(file, shape=(10**5, 10**5), dtype="f4", chunks=(64, 64)),
        "claims shape",
    ),
    "compressed": (
        lambda file: _replace_kernel(file, data=np.zeros(2**25, "f4"), compression="gzip"),
        "claims shape",
    ),
    "many": (_many, "all arrays more than"),
    "external": (
        lambda file: _replace_kernel(
            file, shape=(3, 3, 3, 4), dtype="f4", external=[("/etc/passwd", 0, 432)]
        ),
        "lies in another file",
    ),
    "virtual": (_virtual, "lies in another file"),
    "text of any length": (
        lambda file: _replace_kernel(file, data=["a" * 100] * 9, dtype=h5py.string_dtype()),
        "no array of numbers",
    ),
    "a link elsewhere": (
        _linked,
        "Received",
    ),
}


@pytest.mark.parametrize("what", HDF5)
def test_arrays_that_are_not_in_the_file(
    members: dict[str, bytes], tmp_path: Path, what: str
) -> None:
    change, reason = HDF5[what]
    path = _write(tmp_path / "a.keras", _weights(change, members))
    assert path.stat().st_size < 2**20
    _refused(path, reason)
    if reason != "Received":
        # Weights alone go the same way.
        weights = tmp_path / "a.weights.h5"
        weights.write_bytes(_weights(change, members)[WEIGHTS])
        model = dprp.factorize(_network())
        for file in (path, weights):
            with pytest.raises(ValueError, match=rf"`filepath` must hold.*{file.name}.*{reason}"):
                model.load_weights(file)


def test_an_older_file_is_held_to_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    _network().save(path)
    load_model(path)
    with h5py.File(path, "r+") as file:
        config = file.attrs["model_config"]
        changed = config.replace('"kernel_size": [3, 3]', '"kernel_size": [3000, 3000]')
        assert changed != config
        file.attrs["model_config"] = changed.replace('"valid"', '"same"')
    _refused(path, "declare weights of more than")


def test_a_file_that_is_two_things_is_checked_as_it_is_read(
    members: dict[str, bytes], tmp_path: Path
) -> None:
    # HDF5 begins at its front, an archive at its end.
    path = tmp_path / "a.h5"
    _network().save(path)
    with h5py.File(path, "r+") as file:
        file.create_dataset("x", shape=(10**6, 10**6), dtype="f4", chunks=(64, 64))
    with zipfile.ZipFile(path, "a") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    assert zipfile.is_zipfile(path)
    _refused(path, "claims shape")


@pytest.mark.parametrize("name", ["../a.weights.h5", "/etc/passwd", "b/c.h5"])
def test_shards_lie_beside_their_list(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.weights.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": {"/layers/0/vars": name}}))
    with pytest.raises(ValueError, match=r"a\.weights\.json.*lies elsewhere"):
        dprp.factorize(_network()).load_weights(path)


def test_sharded_weights_still_load(tmp_path: Path) -> None:
    model = dprp.factorize(_network())
    model.save_weights(tmp_path / "a.weights.json", max_shard_size=0.01)
    other = dprp.factorize(_network())
    other.load_weights(tmp_path / "a.weights.json")
    for ours, theirs in zip(other.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


# --- what must load as before ---------------------------------------------------------------------


def _adapted() -> keras.Model:
    normalized = layers.Normalization()
    normalized.adapt(np.random.default_rng(0).random((8, 5), "float32"))
    return keras.Sequential([keras.Input((5,)), normalized, layers.Dense(2)])


def _with_text() -> keras.Model:
    lookup = layers.StringLookup(vocabulary=[f"word {i}" for i in range(1000)], output_mode="count")
    return keras.Sequential([keras.Input((3,), dtype="string"), lookup, layers.Dense(2)])


def _with_seeds() -> keras.Model:
    return keras.Sequential([keras.Input((8,)), layers.Dropout(0.5, seed=1), layers.Dense(2)])


def _shared() -> keras.Model:
    inputs, shared = keras.Input((64,)), layers.Dense(64)
    return keras.Model(inputs, shared(shared(shared(inputs))))


def _half() -> keras.Model:
    return keras.Sequential([keras.Input((64,)), layers.Dense(64, dtype="bfloat16")])


def _eight_bits() -> keras.Model:
    model = keras.Sequential([keras.Input((64,)), layers.Dense(64)])
    model.quantize("int8")
    return model


@pytest.mark.parametrize("make", [_adapted, _with_text, _with_seeds, _shared, _half, _eight_bits])
def test_sound_models_load(make: Callable[[], keras.Model], tmp_path: Path) -> None:
    model = make()
    save_model(model, tmp_path / "a.keras")
    loaded = load_model(tmp_path / "a.keras")
    for ours, theirs in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_limit_grows_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a file holds it may claim, however large it is, and the slots of its optimizer too."""
    monkeypatch.setattr(model_archives, "_ALWAYS_ALLOWED", 0)
    model = keras.Sequential([keras.Input((64,)), layers.Dense(256), layers.Dense(256)])
    model.compile(keras.optimizers.Adam(amsgrad=True, use_ema=True), "mse", metrics=["mae"])
    held = sum(weight.nbytes for weight in model.get_weights())
    # As a file without them: they are made anew.
    model.optimizer.built = False
    save_model(model, tmp_path / "a.keras")
    assert held * 8 <= largest_model(tmp_path / "a.keras") < held * 40
    assert load_model(tmp_path / "a.keras").count_params() == model.count_params()
    check_weights(tmp_path / "a.keras")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_each_member_is_unpacked_once_and_held_against_its_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: int
) -> None:
    members = {CONFIG: b"{}", "metadata.json": b"{}", "more": b"3" * 10**6}
    file = io.BytesIO()
    with h5py.File(file, "w") as arrays:
        arrays["layers/a/vars/0"] = np.arange(10**6, dtype="f4")
        arrays["layers/b/vars/0"] = np.arange(7, dtype="f8")
    path = _write(tmp_path / "a.keras", {**members, WEIGHTS: file.getvalue()}, compression)
    opened: list[str] = []
    original = zipfile.ZipFile.open

    def counted(archive: zipfile.ZipFile, name: Any, *args: Any, **named: Any) -> Any:
        opened.append(getattr(name, "filename", name))
        return original(archive, name, *args, **named)

    monkeypatch.setattr(zipfile.ZipFile, "open", counted)
    monkeypatch.setattr(model_archives, "_COPIES", 1)
    assert largest_model(path) - model_archives._ALWAYS_ALLOWED == 4 * 10**6 + 7 * 8
    assert sorted(opened) == sorted([*members, WEIGHTS])
    with zipfile.ZipFile(path) as archive:
        places = {member.filename: member.header_offset for member in archive.infolist()}
    for name in (WEIGHTS, "more"):
        spoiled = bytearray(path.read_bytes())
        # The length of its name and note, its name, and some of its content.
        spoiled[places[name] + 30 + len(name) + 900] ^= 1
        (tmp_path / "b.keras").write_bytes(spoiled)
        with pytest.raises(Exception, match=r"checksum|decompressing"):
            largest_model(tmp_path / "b.keras")


def test_stored_weights_are_not_taken_into_memory(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((1000,)), layers.Dense(8000)])
    model.save(tmp_path / "a.keras")
    tracemalloc.start()
    try:
        largest_model(tmp_path / "a.keras")
        assert tracemalloc.get_traced_memory()[1] < 8_000_000 < model.count_params() * 4
    finally:
        tracemalloc.stop()
