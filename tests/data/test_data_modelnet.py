"""Voxel grids from .npz files: keys, padding, what is refused, and a training run on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dprp_tf import data
from dprp_tf.data.augmentation import CropAndFlip, TurnAndShift
from dprp_tf.runs.results import finish
from dprp_tf.runs.settings import TrainSettings
from dprp_tf.runs.training import train


def _arrays(size: int = 6, count: int = 12, dtype: str = "bool") -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "x_train": random.integers(0, 2, (count, size, size, size)).astype(dtype),
        "y_train": np.arange(count) % 3,
        "x_test": random.integers(0, 2, (6, size, size, size)).astype(dtype),
        "y_test": np.arange(6) % 3,
    }


def _save(path: Path, **changed: Any) -> str:
    arrays = {k: v for k, v in {**_arrays(), **changed}.items() if v is not None}
    np.savez_compressed(path, **arrays)
    return f"modelnet:{path}"


@settings(max_examples=20, deadline=None)
@given(
    size=st.integers(2, 9),
    margin=st.integers(0, 3),
    dtype=st.sampled_from(["bool", "uint8", "int64", "float32", "float64"]),
    channel=st.booleans(),
)
def test_grids_come_back_in_the_middle_of_empty_voxels(
    size: int, margin: int, dtype: str, channel: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    arrays = _arrays(size, dtype=dtype)
    saved = {k: v[..., None] if channel and v.ndim == 4 else v for k, v in arrays.items()}
    path = tmp_path_factory.mktemp("voxels") / "chairs.npz"
    dataset = data.load(_save(path, **saved), image_size=size + margin)
    assert dataset.image_shape == (size + margin,) * 3 + (1,)
    assert dataset.x_train.dtype == (np.float32 if dtype.startswith("float") else np.uint8)
    for split in ("train", "test"):
        grids, padded = arrays[f"x_{split}"], getattr(dataset, f"x_{split}")
        low = margin // 2
        inner = padded[:, low : low + size, low : low + size, low : low + size, 0]
        np.testing.assert_array_equal(inner, grids)
        assert padded.sum() == grids.sum()
    np.testing.assert_array_equal(dataset.y_train, arrays["y_train"])
    assert dataset.name == "chairs"
    assert dataset.augmentation == TurnAndShift()


def test_grids_of_30_become_32_as_in_voxnet_and_larger_ones_stay(tmp_path: Path) -> None:
    arrays = _arrays(30, count=6)
    dataset = data.load(_save(tmp_path / "a.npz", **arrays))
    assert dataset.image_shape == (32, 32, 32, 1)
    np.testing.assert_array_equal(dataset.x_test[:, 1:-1, 1:-1, 1:-1, 0], arrays["x_test"])
    large = _save(tmp_path / "b.npz", **_arrays(33, count=6))
    assert data.load(large).image_shape == (33, 33, 33, 1)
    with pytest.raises(ValueError, match=r"`image_size` must be at least.*image_size=32"):
        data.load(large, image_size=32)


def test_classes_may_be_named_and_moments_are_those_of_the_voxels(tmp_path: Path) -> None:
    names = np.array(["bathtub", "bed", "chair", "desk"])
    dataset = data.load(_save(tmp_path / "a.npz", classes=names), image_size=6)
    assert dataset.classes == ("bathtub", "bed", "chair", "desk")
    x = _arrays()["x_train"].astype(float)
    np.testing.assert_allclose(dataset.mean, [x.mean()], rtol=1e-12)
    np.testing.assert_allclose(dataset.std, [x.std()], rtol=1e-12)
    assert dataset.description["image_shape"] == [6, 6, 6, 1]
    np.testing.assert_array_equal(dataset.normalized([0.5], [0.5]).x_test, dataset.x_test * 2.0 - 1)


_NAN = np.full((12, 6, 6, 6), np.nan, "float32")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"y_test": None}, r"must hold the arrays.*without y_test"),
        ({"x_train": np.zeros((12, 6, 6), bool)}, r"`x_train` must hold voxel.*\(12, 6, 6\)"),
        ({"x_train": np.zeros((0, 6, 6, 6), bool)}, r"`x_train` must hold voxel.*at least one"),
        ({"x_train": np.full((12, 6, 6, 6), "a")}, "`x_train` must hold voxel.*<U1"),
        ({"x_train": _NAN}, "`x_train` must be finite"),
        ({"x_test": np.zeros((6, 6, 6, 6, 2), bool)}, r"`x_test`.*\(32, 32, 32, 2\) in x_test"),
        ({"y_train": np.arange(12) % 3 + 1}, "`y_train`.*from 1 to 3.*from 0 without gaps"),
        ({"y_test": np.full(6, 3)}, "`y_test`.*from 0 to 2.*from 3 to 3"),
        ({"y_train": np.arange(11) % 3}, "`y_train`.*12 images and 11 labels"),
    ],
)
def test_a_wrong_file_is_refused_by_what_is_wrong(
    changed: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        data.load(_save(tmp_path / "a.npz", **changed))


def test_voxels_are_no_images_and_images_no_voxels(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    _save(path, **{k: v[..., None] if v.ndim == 4 else v for k, v in _arrays().items()})
    with pytest.raises(ValueError, match=r"`x_train` must hold images.*modelnet:PATH"):
        data.load(path)
    with pytest.raises(ValueError, match=r"`image_size` must be one number.*\(8, 9\)"):
        data.load(f"modelnet:{path}", image_size=(8, 9))
    grids, labels = np.zeros((2, 4, 4, 4, 1), "uint8"), np.array([0, 1])
    for wrong in (CropAndFlip(), TurnAndShift()):
        images = grids if isinstance(wrong, CropAndFlip) else grids[..., 0]
        with pytest.raises(ValueError, match=f"`augmentation` must fit.*{type(wrong).__name__}"):
            data.Dataset("d", images, labels, images, labels, ("a", "b"), wrong)


def test_a_pass_is_decided_by_seed_and_epoch(tmp_path: Path) -> None:
    dataset = data.load(_save(tmp_path / "a.npz"), image_size=8)
    stream = data.batches(dataset, 5, seed=2)
    passes = [list(stream.as_numpy_iterator()) for _ in range(3)]
    resumed = list(data.batches(dataset, 5, seed=2, epoch=2).as_numpy_iterator())
    for (x, y), (again, labels) in zip(passes[2], resumed, strict=True):
        assert x.shape[1:] == (8, 8, 8, 1)
        assert set(np.unique(x)) == {0, 1}
        np.testing.assert_array_equal(x, again)
        np.testing.assert_array_equal(y, labels)
    everything = [np.concatenate([x for x, _ in batches]) for batches in passes]
    assert (everything[0] != everything[1]).any()


@pytest.mark.slow
def test_a_volumetric_network_trains_on_them_with_falling_ranks(tmp_path: Path) -> None:
    # Columns along the one or the other horizontal axis, or upright ones.
    random = np.random.default_rng(0)
    grids = np.zeros((48, 8, 8, 8), bool)
    labels = np.arange(48) % 2
    for grid, label in zip(grids, labels, strict=True):
        row, column = random.integers(2, 6, 2)
        if label:
            grid[row : row + 2, column : column + 2] = True
        else:
            grid[row : row + 2, :, column : column + 2] = True
    source = tmp_path / "bars.npz"
    np.savez_compressed(
        source, x_train=grids, y_train=labels, x_test=grids[:16], y_test=labels[:16]
    )
    dataset = data.load(f"modelnet:{source}", image_size=8)
    layers = keras.layers
    network = keras.Sequential(
        [
            keras.Input((8, 8, 8, 1)),
            layers.Conv3D(6, 3, padding="same", activation="relu", name="first"),
            layers.MaxPooling3D(2),
            layers.Conv3D(8, 3, padding="same", activation="relu", name="second"),
            layers.GlobalMaxPooling3D(),
            layers.Dense(2, name="logits"),
        ]
    )
    network.save(tmp_path / "start.keras")
    chosen = TrainSettings(
        model=str(tmp_path / "start.keras"),
        epochs=1,
        batch_size=16,
        learning_rate=0.05,
        weight_decay=0.0,
        exclude=("logits",),
    )
    folder = tmp_path / "run"
    model = train(folder, chosen, dataset)
    results = finish(folder, chosen, dataset, model)
    assert results["data"]["image_shape"] == [8, 8, 8, 1]
    assert {row["name"] for row in results["layers"]} == {"first", "second"}
    (entry,) = json.loads((folder / "history.json").read_text())["runs"]["dprp"]
    assert np.isfinite(entry["loss"])
    folded = keras.saving.load_model(folder / "folded.keras")
    outputs = folded.predict(dataset.x_test.astype("float32"), verbose=0)
    np.testing.assert_allclose(
        outputs, model.predict(dataset.x_test.astype("float32"), verbose=0), atol=1e-4
    )
    assert np.abs(outputs - network.predict(dataset.x_test.astype("float32"), verbose=0)).max() > 0
