"""Damaged files: one clear line that names the file, or what was saved; never anything else."""

from __future__ import annotations

import io
import json
import math
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from keras import layers
from made_plans import fold_plan

import dprp_tf as dprp
from dprp_tf.costs.fold_plan import FoldPlan
from dprp_tf.costs.form import Form
from dprp_tf.costs.latency_row import LayerLatency
from dprp_tf.costs.latency_table import LatencyTable
from dprp_tf.data import Dataset, load
from dprp_tf.deploy.exporters.onnx import convert_onnx
from dprp_tf.deploy.exporters.tflite import convert_tflite
from dprp_tf.deploy.targets import edge_runner
from dprp_tf.report import write_report
from dprp_tf.runs.settings import TrainSettings
from dprp_tf.runs.training import train
from dprp_tf.training.saving import load_model

CONFIG, WEIGHTS, METADATA = "config.json", "model.weights.h5", "metadata.json"
_many = settings(suppress_health_check=list(HealthCheck))


@dataclass(frozen=True, repr=False)
class Saved:
    """A model's file and what it must give when it is loaded."""

    path: Path
    content: bytes
    weights: list[np.ndarray]
    x: np.ndarray
    outputs: np.ndarray

    def members(self) -> dict[str, bytes]:
        with zipfile.ZipFile(io.BytesIO(self.content)) as archive:
            return {name: archive.read(name) for name in archive.namelist()}

    def config(self) -> Any:
        return json.loads(self.members()[CONFIG])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A factorized network that was trained for a step, with its optimizer."""
    keras.utils.set_random_seed(5)
    inputs = keras.Input((6, 6, 3), name="image")
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="conv")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    model = dprp.factorize(keras.Model(inputs, layers.Dense(3, name="head")(x)), ranks=2)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse")
    images = np.random.default_rng(0).random((4, 6, 6, 3)).astype("float32")
    model.train_on_batch(images, np.zeros((4, 3), "float32"))
    path = tmp_path_factory.mktemp("saved") / "whole.keras"
    model.save(path)
    outputs = np.asarray(model(images, training=False))
    return Saved(path, path.read_bytes(), model.get_weights(), images, outputs)


def _archive(path: Path, members: dict[str, bytes]) -> Path:
    """Write members with right checksums: what they hold is all that is wrong."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def _one_line(error: BaseException, path: Path | None = None) -> None:
    message = str(error)
    assert path is None or path.name in message, message
    assert "\n" not in message.strip(), message
    assert len(message) < 1000, message


def _load_or_refuse(path: Path) -> keras.Model | None:
    try:
        return load_model(path)
    except (ValueError, OSError) as error:
        _one_line(error, path)
        return None


def _refused(path: Path, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        load_model(path)
    _one_line(caught.value, path)


# --- .keras: damage on the way, which checksums show ----------------------------------------------


@_many
@given(data=st.data())
def test_flipped_bits_are_refused_or_without_effect(
    saved: Saved, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    # The weights are most of the file: a third of the flips go to the rest.
    start = saved.content.index(b"\x89HDF")
    end = saved.content.rindex(b"PK\x01\x02")
    last = len(saved.content) - 1
    place = st.one_of(st.integers(0, start), st.integers(start, end), st.integers(end, last))
    content = bytearray(saved.content)
    for position in data.draw(st.lists(place, min_size=1, max_size=3), label="positions"):
        content[position] ^= 1 << data.draw(st.integers(0, 7), label="bit")
    path = tmp_path_factory.getbasetemp() / "flipped.keras"
    path.write_bytes(content)
    model = _load_or_refuse(path)
    if model is not None:  # such as in a member's date
        _same(model, saved)


def test_a_flipped_weight_is_refused_although_hdf5_reads_it(saved: Saved, tmp_path: Path) -> None:
    content = bytearray(saved.content)
    raw = next(values for values in saved.weights if values.ndim == 2).tobytes()
    content[content.index(raw) + 2] ^= 0x40
    path = tmp_path / "weight.keras"
    path.write_bytes(content)
    _refused(path, "model.weights.h5 does not have the checksum")


@_many
@given(share=st.floats(0.0, 0.999), junk=st.binary(max_size=8))
@example(share=0.0, junk=b"")
def test_truncated_files_are_refused(
    saved: Saved, tmp_path_factory: pytest.TempPathFactory, share: float, junk: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.keras"
    path.write_bytes(saved.content[: int(share * len(saved.content))] + junk)
    _refused(path, "cut.keras")


def _same(model: keras.Model, saved: Saved) -> None:
    for ours, theirs in zip(model.get_weights(), saved.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(model(saved.x, training=False), saved.outputs, rtol=0, atol=1e-6)


# --- .keras: members and configurations that are wrong, with right checksums ----------------------


def _swapped(members: dict[str, bytes]) -> dict[str, bytes]:
    return {**members, CONFIG: members[METADATA], METADATA: members[CONFIG]}


MEMBERS: dict[str, tuple[Callable[[dict[str, bytes]], dict[str, bytes]], str]] = {
    "no config": (lambda m: _without(m, CONFIG), "must hold config.json"),
    "no weights": (lambda m: _without(m, WEIGHTS), "must hold config.json and model.weights"),
    "nothing": (lambda m: {}, "whole.keras|must hold"),
    "weights renamed": (
        lambda m: {**_without(m, WEIGHTS), "weights.h5": m[WEIGHTS]},
        "must hold config.json and model.weights",
    ),
    "config and metadata swapped": (_swapped, "Received"),
    "config and weights swapped": (
        lambda m: {**m, CONFIG: m[WEIGHTS], WEIGHTS: m[CONFIG]},
        "Received",
    ),
    "empty config": (lambda m: {**m, CONFIG: b""}, "Received"),
    "empty weights": (lambda m: {**m, WEIGHTS: b""}, "Received"),
    "config nested too deeply": (lambda m: {**m, CONFIG: b"[" * 10**5}, "Received.*recursion"),
    "config is a list": (lambda m: {**m, CONFIG: b"[1, 2]"}, "Received"),
    "config in another encoding": (lambda m: {**m, CONFIG: b"\xff\xfe{}"}, "Received"),
    "half the weights": (lambda m: {**m, WEIGHTS: m[WEIGHTS][: len(m[WEIGHTS]) // 2]}, "Received"),
}


def _without(members: dict[str, bytes], name: str) -> dict[str, bytes]:
    return {key: value for key, value in members.items() if key != name}


@pytest.mark.parametrize("damage", MEMBERS)
def test_missing_and_exchanged_members(saved: Saved, tmp_path: Path, damage: str) -> None:
    change, reason = MEMBERS[damage]
    _refused(_archive(tmp_path / "members.keras", change(saved.members())), reason)


def test_a_member_that_is_there_twice_is_refused(saved: Saved, tmp_path: Path) -> None:
    # Readers differ in which of the two they take.
    path = _archive(tmp_path / "twice.keras", saved.members())
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(CONFIG, b"{}")
    _refused(path, "config.json more than once")


def test_a_file_that_asks_for_more_than_it_holds_is_refused(saved: Saved, tmp_path: Path) -> None:
    members = saved.members()
    path = tmp_path / "bomb.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(CONFIG, members[CONFIG])
        with archive.open(WEIGHTS, "w") as stream:
            for _ in range(300):
                stream.write(bytes(2**20))
    assert path.stat().st_size < 2**20
    _refused(path, "model.weights.h5 claims")


def _layer(config: Any, name: str) -> dict[str, Any]:
    return next(e for e in config["config"]["layers"] if e["config"].get("name") == name)


EDITS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a rank": (lambda c: _layer(c, "conv")["config"].update(rank=1), "Received"),
    "a rank above the full one": (
        lambda c: _layer(c, "conv")["config"].update(rank=12),
        "`rank` of layer 'conv' must lie in 1..9",
    ),
    "a rank that is text": (lambda c: _layer(c, "conv")["config"].update(rank="2"), "`rank`"),
    "a huge rank": (lambda c: _layer(c, "conv")["config"].update(rank=10**9), "`rank` is 1e"),
    "a huge width": (lambda c: _layer(c, "head")["config"].update(units=10**10), "`units` is 1e"),
    "a number beyond floats": (
        lambda c: _layer(c, "conv")["config"].update(filters=10**400),
        "Received",
    ),
    "a matricization": (
        lambda c: _layer(c, "conv")["config"].update(matricization="tucker"),
        "`matricization` must be one of",
    ),
    "another matricization": (
        lambda c: _layer(c, "conv")["config"].update(matricization="channel"),
        "Received",
    ),
    "a class": (
        lambda c: _layer(c, "conv").update(registered_name="dprp_tf>Nobody", class_name="Nobody"),
        "Nobody",
    ),
    "code": (
        lambda c: _layer(c, "norm").update(
            module="keras.layers",
            class_name="Lambda",
            config={"name": "norm", "function": {"class_name": "__lambda__", "config": {}}},
        ),
        "Received",
    ),
    "a shape": (lambda c: _layer(c, "head")["config"].update(units=4), "Received"),
    "no bias": (lambda c: _layer(c, "head")["config"].update(use_bias=False), "Received"),
    "settings": (
        lambda c: c["config"]["dprp_settings"].update(threshold=math.nan),
        "`threshold`",
    ),
    "a link": (
        lambda c: c["config"].update(output_layers=[["nobody", 0, 0]]),
        "Received",
    ),
    "its layers": (lambda c: c["config"].update(layers=[]), "Received"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_edited_configurations(saved: Saved, tmp_path: Path, edit: str) -> None:
    change, reason = EDITS[edit]
    config = saved.config()
    change(config)
    members = {**saved.members(), CONFIG: json.dumps(config).encode()}
    _refused(_archive(tmp_path / "edited.keras", members), reason)


_deep: Any = []
for _ in range(60):
    _deep = [_deep]
JUNK = (
    *(None, True, False, -1, 0, 1, 2, 3.5, math.nan, math.inf, 10**30, "", "junk", "relu"),
    *([], {}, [1], {"a": 1}, _deep),
)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON value, outermost first."""
    found: list[tuple[Any, Any]] = []
    pending = [value]
    for at in pending:
        keys = list(at) if isinstance(at, dict) else range(len(at)) if isinstance(at, list) else ()
        for key in keys:
            found.append((at, key))
            pending.append(at[key])
    return found


def _spoil(value: Any, data: st.DataObject) -> str:
    """Replace or remove something in a JSON value; return what, for the failure's report."""
    places = _places(value)
    index = data.draw(st.integers(0, len(places) - 1), label="place")
    junk = data.draw(st.sampled_from([*range(len(JUNK)), -1]), label="junk")
    container, key = places[index]
    was = container[key]
    if junk == -1:
        del container[key]
        return f"{key!r} removed, was {was!r:.80}"
    container[key] = JUNK[junk]
    return f"{key!r} is {JUNK[junk]!r:.80}, was {was!r:.80}"


@pytest.mark.slow
@settings(_many, max_examples=150)
@given(data=st.data())
def test_spoiled_configurations_never_lose_weights(
    saved: Saved, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """A configuration defines the model, so one that changed may mean another function (another
    activation, say). But every weight of the file must be in the model that is loaded.
    """
    config = saved.config()
    what = _spoil(config, data)
    members = {**saved.members(), CONFIG: json.dumps(config).encode()}
    path = _archive(tmp_path_factory.getbasetemp() / "spoiled.keras", members)
    model = _load_or_refuse(path)
    if model is not None:
        weights = model.get_weights()
        assert len(weights) == len(saved.weights), what
        for ours, theirs in zip(weights, saved.weights, strict=True):
            np.testing.assert_array_equal(ours, theirs, what)


def _edit_weights(saved: Saved, change: Callable[[h5py.File], None]) -> dict[str, bytes]:
    stream = io.BytesIO(saved.members()[WEIGHTS])
    with h5py.File(stream, "r+") as file:
        change(file)
    return {**saved.members(), WEIGHTS: stream.getvalue()}


def _datasets(file: h5py.File) -> dict[str, h5py.Dataset]:
    found: dict[str, h5py.Dataset] = {}
    file.visititems(
        lambda name, item: (
            found.update({name: item})
            if isinstance(item, h5py.Dataset) and name.startswith("layers")
            else None
        )
    )
    return found


def _poison(file: h5py.File, value: float) -> None:
    first = next(iter(_datasets(file).values()))
    first[...] = np.where(np.arange(first.size).reshape(first.shape) == 1, value, first[...])


def _reshape(file: h5py.File) -> None:
    name, first = next(iter(_datasets(file).items()))
    values = first[...]
    del file[name]
    file[name] = values[:-1]


def _remove(file: h5py.File) -> None:
    del file[next(iter(_datasets(file)))]


def _rename(file: h5py.File) -> None:
    name = next(iter(_datasets(file)))
    group = name.rsplit("/vars", 1)[0]
    file.move(group, f"{group}_old")


WEIGHT_EDITS: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "NaN": (lambda file: _poison(file, math.nan), "must hold finite weights"),
    "infinite": (lambda file: _poison(file, -math.inf), "must hold finite weights"),
    "another shape": (_reshape, "Received"),
    "one missing": (_remove, "Received"),
    "a layer renamed": (_rename, "Received"),
}


@pytest.mark.parametrize("edit", WEIGHT_EDITS)
def test_weights_that_do_not_fit(saved: Saved, tmp_path: Path, edit: str) -> None:
    change, reason = WEIGHT_EDITS[edit]
    _refused(_archive(tmp_path / "weights.keras", _edit_weights(saved, change)), reason)


def test_weights_of_another_model_are_refused(saved: Saved, tmp_path: Path) -> None:
    other = keras.Sequential([keras.Input((6, 6, 3)), layers.Conv2D(4, 3, name="conv")])
    other.save(tmp_path / "other.keras")
    with zipfile.ZipFile(tmp_path / "other.keras") as archive:
        members = {**saved.members(), WEIGHTS: archive.read(WEIGHTS)}
    _refused(_archive(tmp_path / "mixed.keras", members), "Received")


# --- JSON: plans, tables, run folders -------------------------------------------------------------


def _fold_plan() -> FoldPlan:
    return fold_plan(Form("summed", (2,)))


def _table() -> LatencyTable:
    rows = tuple(
        LayerLatency(name, "spatial", 9, 1.0, (1, 3), (0.2, 0.6), ("summed",) * 2) for name in "ab"
    )
    return LatencyTable(rows, 5.0, "local", "litert", "float32", 1, "ms", "some", "2.3")


@settings(_many, max_examples=200)
@given(data=st.data())
@pytest.mark.parametrize("made", [_fold_plan, _table], ids=["plan", "table"])
def test_spoiled_plans_and_tables(
    made: Callable[[], Any], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "spoiled.json"
    made().save(path)
    values = json.loads(path.read_text(encoding="utf-8"))
    what = _spoil(values, data)
    path.write_text(json.dumps(values), encoding="utf-8")
    try:
        loaded = type(made()).load(path)
    except (ValueError, OSError) as error:
        _one_line(error, path)
        return
    # Labels may say anything; figures must be such as a measurement gives.
    assert str(loaded), what
    if isinstance(loaded, LatencyTable):
        assert 0 < loaded.dense < math.inf, what
        for row in loaded.layers:
            assert 0 < row.cost(1) <= row.dense < math.inf, what
    else:
        assert math.isfinite(loaded.prediction_error), what


@pytest.mark.parametrize("made", [_fold_plan, _table], ids=["plan", "table"])
@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\x00", b"[" * 10**5, b'{"version": 1', b"3"],
    ids=["empty", "bytes", "deep", "half", "number"],
)
def test_what_is_no_json_is_refused(
    made: Callable[[], Any], tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.json") as caught:
        type(made()).load(path)
    _one_line(caught.value, path)


@dataclass(frozen=True, repr=False)
class Run:
    """The folder of a finished run, and how it was trained."""

    folder: Path
    settings: TrainSettings
    digits: Dataset


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of one epoch."""
    whole = load("digits", image_size=8)
    few = (whole.x_train[:32], whole.y_train[:32], whole.x_test[:16], whole.y_test[:16])
    digits = Dataset("few digits", *few, whole.classes)
    keras.utils.set_random_seed(3)
    inputs = keras.Input(digits.image_shape)
    x = layers.Conv2D(4, 3, strides=2, name="conv")(layers.Rescaling(1 / 255.0)(inputs))
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(x))
    folder = tmp_path_factory.mktemp("run")
    keras.Model(inputs, layers.Dense(10, name="head")(x)).save(folder / "start.keras")
    chosen = TrainSettings(
        model=str(folder / "start.keras"),
        epochs=1,
        batch_size=16,
        augment=False,
        schedule="plateau",
    )
    train(folder, chosen, digits)
    return Run(folder, chosen, digits)


@settings(_many, max_examples=50)
@given(data=st.data())
@pytest.mark.parametrize("name", ["state.json", "config.json"])
def test_a_spoiled_run_is_refused_or_goes_on_as_it_was(
    finished: Run,
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.getbasetemp() / "spoiled_run"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(finished.folder, folder)
    values = json.loads((folder / name).read_text(encoding="utf-8"))
    what = _spoil(values, data)
    (folder / name).write_text(json.dumps(values), encoding="utf-8")
    try:
        model = train(folder, finished.settings, finished.digits)
    except (ValueError, OSError) as error:
        _one_line(error, folder)
        return
    expected = load_model(finished.folder / "model.keras")
    for ours, theirs in zip(model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs, what)


@settings(_many, max_examples=60)
@given(data=st.data())
@pytest.mark.parametrize("name", ["history.json", "ranks.json"])
def test_a_report_on_spoiled_figures_says_so(
    finished: Run, tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "spoiled_report"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for kept in ("history.json", "ranks.json"):
        shutil.copy(finished.folder / kept, folder / kept)
    values = json.loads((folder / name).read_text(encoding="utf-8"))
    what = _spoil(values, data)
    (folder / name).write_text(json.dumps(values), encoding="utf-8")
    try:
        page = write_report(folder)
    except (ValueError, OSError) as error:
        _one_line(error)
        return
    assert page.stat().st_size > 1000, what


# --- .tflite and .onnx ----------------------------------------------------------------------------

# Neither format has a checksum: a flipped weight is another weight, and a flipped attribute or
# shape another network, which no reader can tell from the one that was written. What is held here
# is that they end in figures or in one line, in the same process, soon.
_DRIVER = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import edge_runner
for path in sorted(Path(sys.argv[2]).glob("*" + sys.argv[3])):
    print("FILE", path.name, flush=True)
    print(path.name, file=sys.stderr, flush=True)
    code = edge_runner.main([str(path), "--no-memory", "--warmup", "0", "--repeats", "1"])
    print("CODE", code, flush=True)
"""


@pytest.fixture(scope="module")
def exported() -> dict[str, bytes]:
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(inputs)
    x = layers.GlobalAveragePooling2D()(layers.DepthwiseConv2D(3)(x))
    model = keras.Model(inputs, layers.Dense(3)(x))
    return {".tflite": convert_tflite(model), ".onnx": convert_onnx(model)}


def _damaged(content: bytes, rng: np.random.Generator) -> bytes:
    spoiled = bytearray(content)
    kind = rng.integers(5)
    at = int(rng.integers(len(content) - 4))
    if kind == 0:
        spoiled[at] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        for place in rng.integers(len(content), size=8):
            spoiled[place] = int(rng.integers(256))
    elif kind == 2:
        spoiled[at : at + 4] = b"\xff\xff\xff\x7f"
    elif kind == 3:
        del spoiled[at:]
    else:
        spoiled[at : at + 4] = bytes(4)
    return bytes(spoiled)


@pytest.mark.parametrize("suffix", [".tflite", ".onnx"])
def test_damaged_exports_end_in_figures_or_in_one_line(
    exported: dict[str, bytes], tmp_path: Path, suffix: str
) -> None:
    rng = np.random.default_rng(11)
    for index in range(60):
        (tmp_path / f"damaged{index:03d}{suffix}").write_bytes(_damaged(exported[suffix], rng))
    folder = Path(edge_runner.__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", _DRIVER, folder, tmp_path, suffix],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, (done.returncode, done.stdout[-300:], done.stderr[-2000:])
    codes = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("CODE")]
    assert len(codes) == 60
    assert {"0", "2"} == set(codes)
    errors = [line for line in done.stderr.splitlines() if line.startswith("edge_runner: error")]
    assert len(errors) == codes.count("2")
    assert all("damaged" in line and suffix in line for line in errors), errors
    assert len(done.stdout.splitlines()) == 2 * 60 + codes.count("0")
