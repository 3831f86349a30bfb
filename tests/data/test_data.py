"""Every source, every way it can be broken, and the training pipeline."""

from __future__ import annotations

import gzip
import importlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dprp_tf import data
from dprp_tf.data.augmentation import CropAndFlip


def _arrays(
    count: int = 12, shape: tuple[int, ...] = (6, 5, 3), classes: int = 3, dtype: str = "uint8"
) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    labels = np.arange(count) % classes
    return {
        "x_train": random.integers(0, 256, (count, *shape)).astype(dtype),
        "y_train": labels,
        "x_test": random.integers(0, 256, (count // 2, *shape)).astype(dtype),
        "y_test": labels[: count // 2],
    }


def _save(path: Path, **changed: Any) -> Path:
    arrays = {k: v for k, v in {**_arrays(), **changed}.items() if v is not None}
    np.savez_compressed(path, **arrays)
    return path


def _write_image(path: Path, value: int, size: tuple[int, int] = (7, 5), mode: str = "RGB") -> None:
    """An image of one value; `size` is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, value, value)).save(path)


def _write_classes(root: Path, counts: dict[str, int], first: int = 0) -> None:
    value = first
    for name, count in counts.items():
        for number in range(count):
            _write_image(root / name / f"{number:03}.png", value)
            value += 1


# Dataset


def test_mean_and_std_are_those_of_the_training_split() -> None:
    arrays = _arrays(count=3000)
    dataset = data.Dataset("d", **arrays, classes=("a", "b", "c"))
    x = arrays["x_train"].astype(np.float64)
    np.testing.assert_allclose(dataset.mean, x.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(dataset.std, x.std(axis=(0, 1, 2)), rtol=1e-12)
    assert dataset.image_shape == (6, 5, 3)


@pytest.mark.parametrize(("dtype", "value"), [("uint8", 0), ("uint8", 9), ("float32", 0.1)])
def test_a_constant_channel_gets_std_one(dtype: str, value: float) -> None:
    arrays = _arrays(count=3001, dtype=dtype)
    arrays["x_train"][..., 1] = value
    dataset = data.Dataset("d", **arrays, classes=("a", "b", "c"))
    assert dataset.mean[1] == pytest.approx(value)
    assert dataset.std[1] == 1
    assert dataset.std[0] > 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"classes": ("a",)}, "`classes` must name at least two"),
        ({"x_train": np.zeros((12, 6, 5), np.uint8)}, r"`x_train`.*shape=\(12, 6, 5\)"),
        ({"x_train": np.zeros((0, 6, 5, 3), np.uint8)}, r"`x_train`.*shape=\(0, 6, 5, 3\)"),
        ({"x_train": np.zeros((12, 6, 5, 3), np.float64)}, "`x_train`.*dtype=float64"),
        ({"x_test": np.zeros((6, 6, 6, 3), np.uint8)}, r"`x_test`.*\(6, 6, 3\) in x_test"),
        ({"x_test": np.zeros((6, 6, 5, 3), np.float32)}, "`x_test` must have the dtype"),
        ({"y_test": np.zeros(5, np.int32)}, "`y_test` must have one label.*6 images and 5 labels"),
        ({"y_train": np.zeros(12, np.float32)}, "`y_train` must hold one whole number"),
        ({"y_train": np.arange(12) % 4}, "`y_train`.*from 0 to 2.*from 0 to 3"),
        ({"y_train": np.arange(12) % 3 - 1}, "`y_train`.*from -1 to 1"),
        ({"y_train": np.ones(12, np.int64)}, "`y_train` must hold at least two classes"),
    ],
)
def test_a_dataset_that_does_not_fit_together_is_refused(
    changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        data.Dataset(**{"name": "d", **_arrays(), "classes": ("a", "b", "c"), **changed})


# Digits


def test_digits_are_split_alike_in_every_class_and_nothing_is_lost() -> None:
    from sklearn.datasets import load_digits

    digits = data.load("digits", image_size=8, test_fraction=0.25, seed=3)
    original = load_digits()
    everything = np.concatenate([digits.x_train, digits.x_test])[..., 0]
    labels = np.concatenate([digits.y_train, digits.y_test])
    expected = Counter(
        (np.float32(image * 255 / 16).tobytes(), int(label))
        for image, label in zip(original.images, original.target, strict=True)
    )
    assert expected == Counter(
        (image.tobytes(), int(label)) for image, label in zip(everything, labels, strict=True)
    )
    for label in range(10):
        share = (digits.y_test == label).sum() / (labels == label).sum()
        assert share == pytest.approx(0.25, abs=0.005)
    assert digits.classes == tuple("0123456789")


def test_digits_are_enlarged_smoothly_within_their_range() -> None:
    small, large = data.load("digits", image_size=8), data.load("digits")
    assert large.image_shape == (16, 16, 1)
    assert large.x_train.dtype == np.float32
    assert (large.x_train.min(), large.x_train.max()) == (0, 255)
    np.testing.assert_array_equal(small.y_train, large.y_train)
    blocks = large.x_train.reshape(-1, 8, 2, 8, 2).mean(axis=(2, 4))
    # Bicubic overshoot is cut off at 0 and 255, so means are near, not equal.
    assert np.abs(blocks - small.x_train[..., 0]).mean() < 12
    repeated = small.x_train.repeat(2, axis=1).repeat(2, axis=2)

    def roughness(x: np.ndarray) -> float:
        return float(np.abs(np.diff(x, n=2, axis=1)).mean())

    assert roughness(large.x_train) < 0.6 * roughness(repeated)


def test_the_seed_decides_the_split() -> None:
    first, again, other = (data.load("digits", image_size=8, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(first.x_test, again.x_test)
    assert (first.x_test != other.x_test).any()


# .npz


def test_an_npz_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    dataset = data.load(_save(tmp_path / "mine.npz"))
    for name, array in _arrays().items():
        np.testing.assert_array_equal(getattr(dataset, name), array)
    assert dataset.x_train.dtype == np.uint8
    assert dataset.name == "mine"
    assert dataset.classes == ("0", "1", "2")


@settings(max_examples=15, deadline=None)
@given(
    shape=st.one_of(
        st.tuples(st.integers(1, 4), st.integers(1, 4)),
        st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)),
    ),
    dtype=st.sampled_from(["uint8", "int64", "float16", "float32", "float64"]),
    column=st.booleans(),
)
def test_usual_shapes_and_dtypes_are_understood(
    shape: tuple[int, ...], dtype: str, column: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    arrays = _arrays(shape=shape, dtype=dtype)
    saved = dict(arrays)
    if column:
        saved["y_train"] = arrays["y_train"][:, None]
    dataset = data.load(_save(tmp_path_factory.mktemp("npz") / "a.npz", **saved))
    assert dataset.image_shape == (*shape, 1)[:3]
    assert dataset.x_train.dtype == (np.float32 if dtype.startswith("float") else np.uint8)
    np.testing.assert_array_equal(
        dataset.x_train.reshape(12, -1), arrays["x_train"].reshape(12, -1).astype(np.float64)
    )
    np.testing.assert_array_equal(dataset.y_train, arrays["y_train"])


def test_an_npz_may_name_its_classes_and_be_resized(tmp_path: Path) -> None:
    names = np.array(["cat", "dog", "eel", "fox"])
    dataset = data.load(_save(tmp_path / "a.npz", classes=names), image_size=(12, 10))
    assert dataset.classes == ("cat", "dog", "eel", "fox")
    assert dataset.image_shape == (12, 10, 3)
    assert dataset.x_train.dtype == np.uint8
    assert dataset.x_test.shape == (6, 12, 10, 3)
    before, after = (
        x.astype(float).mean(axis=(1, 2)) for x in (_arrays()["x_train"], dataset.x_train)
    )
    np.testing.assert_allclose(after, before, atol=6)


def test_an_npz_may_name_its_classes_in_bytes(tmp_path: Path) -> None:
    names = np.array(["Käfer".encode(), b"dog", b"eel"])
    assert data.load(_save(tmp_path / "a.npz", classes=names)).classes == ("Käfer", "dog", "eel")


_NAN = np.zeros((12, 6, 5, 3), np.float32)
_NAN[4, 2, 2, 1] = np.nan


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"y_test": None}, r"must hold the arrays.*without y_test \(it holds x_train"),
        ({"x_train": _NAN}, "`x_train` must be finite"),
        ({"x_test": _NAN[:6] + np.inf}, "`x_test` must be finite"),
        ({"x_train": np.array([{}] * 12)}, r"a\.npz, which can't be read"),
        ({"x_train": np.array(["a"] * 12)}, "`x_train` must hold numbers.*<U1"),
        ({"x_train": np.zeros((12, 30), np.uint8)}, r"`x_train`.*shape=\(12, 30\)"),
        ({"y_train": np.eye(3)[np.arange(12) % 3]}, r"`y_train`.*shape=\(12, 3\).*argmax.*--score"),
        ({"y_train": np.arange(12) % 3 + 1}, "`y_train`.*from 1 to 3.*from 0 without gaps"),
        ({"y_train": np.arange(12) % 2 * 2}, "`y_train`.*from 0 to 2.*from 0 without gaps"),
        ({"y_train": np.zeros(12, int)}, "`y_train` must hold at least two classes"),
        ({"y_test": np.full(6, 3)}, "`y_test`.*from 0 to 2.*from 3 to 3"),
        ({"y_train": np.arange(11) % 3}, "`y_train`.*12 images and 11 labels"),
        ({"classes": np.array([1, 2, 3])}, "`classes` must be a one-dimensional array of text"),
    ],
)
def test_a_wrong_npz_is_refused_by_what_is_wrong(
    changed: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        data.load(_save(tmp_path / "a.npz", **changed))


@settings(max_examples=30, deadline=None)
@given(share=st.floats(0, 0.999))
def test_a_truncated_npz_is_one_clear_error(
    share: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = _save(tmp_path_factory.mktemp("cut") / "cut.npz")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=r"`source` must be a whole \.npz.*cut\.npz"):
        data.load(path)


@settings(max_examples=30, deadline=None)
@given(position=st.floats(0, 0.999), length=st.integers(1, 40))
def test_a_damaged_npz_never_ends_in_another_error(
    position: float, length: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = _save(tmp_path_factory.mktemp("bad") / "bad.npz")
    content = bytearray(path.read_bytes())
    start = int(len(content) * position)
    content[start : start + length] = bytes(255 - b for b in content[start : start + length])
    path.write_bytes(content)
    try:
        dataset = data.load(path)
    except ValueError as error:
        assert "bad" in str(error)  # noqa: PT017
    else:  # bytes no reader looks at
        np.testing.assert_array_equal(dataset.x_train, _arrays()["x_train"])


def test_other_files_are_refused(tmp_path: Path) -> None:
    single = tmp_path / "single.npz"
    with single.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match="single array"):
        data.load(single)
    (tmp_path / "a.csv").write_text("1,2\n")
    with pytest.raises(ValueError, match=r"must be an \.npz file or a folder.*a\.csv"):
        data.load(tmp_path / "a.csv")
    with pytest.raises(FileNotFoundError, match=r"digits, cifar10.*'cifar-10', which does not"):
        data.load("cifar-10")


# Folders of images


def test_a_folder_is_read_in_sorted_order_and_split_alike(tmp_path: Path) -> None:
    _write_classes(tmp_path / "pets", {"dog": 10, "cat": 5}, first=1)
    (tmp_path / "pets" / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "pets" / ".cache").mkdir()
    dataset = data.load(tmp_path / "pets")
    assert dataset.classes == ("cat", "dog")
    assert dataset.name == "pets"
    assert dataset.image_shape == (5, 7, 3)
    assert Counter(dataset.y_test.tolist()) == {0: 1, 1: 2}
    values = {0: set(), 1: set()}  # type: dict[int, set[int]]
    for x, y in ((dataset.x_train, dataset.y_train), (dataset.x_test, dataset.y_test)):
        for image, label in zip(x, y, strict=True):
            assert image.min() == image.max()
            values[int(label)].add(int(image.min()))
    assert values == {0: set(range(11, 16)), 1: set(range(1, 11))}
    again = data.load(tmp_path / "pets")
    np.testing.assert_array_equal(again.x_train, dataset.x_train)
    assert (data.load(tmp_path / "pets", seed=1).x_test != dataset.x_test).any()


def test_a_folder_may_bring_its_own_test_split(tmp_path: Path) -> None:
    _write_classes(tmp_path / "train", {"cat": 2, "dog": 3}, first=10)
    _write_classes(tmp_path / "test", {"dog": 2}, first=20)
    dataset = data.load(tmp_path)
    assert dataset.x_train[:, 0, 0, 0].tolist() == [10, 11, 12, 13, 14]
    assert dataset.y_train.tolist() == [0, 0, 1, 1, 1]
    assert dataset.x_test[:, 0, 0, 0].tolist() == [20, 21]
    assert dataset.y_test.tolist() == [1, 1]


def test_a_train_folder_alone_is_split_and_a_class_may_be_called_train(tmp_path: Path) -> None:
    _write_classes(tmp_path / "a" / "train", {"cat": 4, "dog": 4})
    assert data.load(tmp_path / "a", test_fraction=0.25).classes == ("cat", "dog")
    _write_classes(tmp_path / "b", {"car": 4, "train": 4})
    assert data.load(tmp_path / "b").classes == ("car", "train")


def test_images_of_different_sizes_need_image_size(tmp_path: Path) -> None:
    _write_classes(tmp_path, {"cat": 3, "dog": 3})
    _write_image(tmp_path / "dog" / "wide.jpg", 50, size=(20, 6))
    with pytest.raises(ValueError, match=r"`image_size` is required.*5x7.*wide\.jpg of 6x20"):
        data.load(tmp_path)
    assert data.load(tmp_path, image_size=(8, 9)).image_shape == (8, 9, 3)


@pytest.mark.parametrize(("colored", "channels"), [(False, 1), (True, 3)])
def test_gray_stays_gray_unless_color_joins(tmp_path: Path, colored: bool, channels: int) -> None:
    for name in ("cat", "dog"):
        for number in range(2):
            _write_image(tmp_path / name / f"{number}.png", 100, mode="L")
    if colored:
        Image.new("RGB", (7, 5), (10, 20, 30)).save(tmp_path / "dog" / "2.png")
    dataset = data.load(tmp_path)
    assert dataset.image_shape == (5, 7, channels)
    pixels = np.concatenate([dataset.x_train, dataset.x_test]).reshape(-1, channels)
    expected = {(100,) * channels} | ({(10, 20, 30)} if colored else set())
    assert set(map(tuple, pixels.tolist())) == expected


def test_phone_pictures_are_turned_upright_and_deep_gray_is_scaled(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        _write_image(tmp_path / name / "0.png", 1, mode="L")
        (tmp_path / name).mkdir(exist_ok=True)
    turned = np.zeros((7, 5), np.uint8)
    turned[:, 0] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(turned).save(tmp_path / "cat" / "1.png", exif=exif)
    Image.fromarray(np.full((5, 7), 65535, np.uint16)).save(tmp_path / "dog" / "1.png")
    dataset = data.load(tmp_path)
    images = np.concatenate([dataset.x_train, dataset.x_test])[..., 0]
    assert images.shape == (4, 5, 7)
    upright = np.rot90(turned, -1)
    assert sum(np.array_equal(image, upright) for image in images) == 1
    assert sum((image == 255).all() for image in images) == 1


@pytest.mark.parametrize("content", [b"", b"not an image", "truncated"])
def test_an_unreadable_image_is_named(tmp_path: Path, content: bytes | str) -> None:
    _write_classes(tmp_path, {"cat": 3, "dog": 3})
    broken = tmp_path / "dog" / "broken.png"
    if isinstance(content, str):
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
        Image.fromarray(noise).save(broken)
        content = broken.read_bytes()[:4000]
    broken.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.png, which can't be read"):
        data.load(tmp_path)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ({}, "at least two class folders.*0"),
        ({"cat": 4}, r"at least two class folders.*1 \(cat\)"),
        ({"cat": 4, "dog": 0}, "images in every class folder.*dog with none"),
        ({"cat": 4, "dog": 1}, "at least two images of every class.*dog"),
        ({"train/cat": 3, "train/dog": 3, "test/cow": 1}, "only classes that train/ holds.*cow"),
        ({"train/cat": 3, "train/dog": 3, "test": 1}, "only classes that train/ holds.*no class"),
        ({"train/cat": 3, "train/dog": 3, "val/dog": 1}, "only train/ and test/.*val"),
    ],
)
def test_a_folder_that_is_no_dataset_is_refused(
    tmp_path: Path, folders: dict[str, int], message: str
) -> None:
    for name in folders:
        (tmp_path / name).mkdir(parents=True)
    _write_classes(tmp_path, folders)
    with pytest.raises(ValueError, match=message):
        data.load(tmp_path)


# Downloads and arguments


def _write_idx(path: Path, array: np.ndarray, header: int) -> None:
    """What MNIST's files are: a header that Keras passes over, then bytes."""
    with gzip.open(path, "wb") as file:
        file.write(bytes(header) + array.tobytes())


def test_what_keras_keeps_is_loaded_and_a_failed_download_says_to_pass_a_file(
    tmp_path: Path,
) -> None:
    """Fashion-MNIST lies in Keras' cache; of MNIST nothing does, and the network is closed."""
    cache = tmp_path / "datasets" / "fashion-mnist"
    cache.mkdir(parents=True)
    random = np.random.default_rng(0)
    for part, count in (("train", 20), ("t10k", 10)):
        images = random.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        _write_idx(cache / f"{part}-images-idx3-ubyte.gz", images, 16)
        labels = (np.arange(count) % 10).astype(np.uint8)
        _write_idx(cache / f"{part}-labels-idx1-ubyte.gz", labels, 8)
    closed = "http://127.0.0.1:9"
    environment = {
        **{k: v for k, v in os.environ.items() if k.lower() != "no_proxy"},
        "KERAS_HOME": str(tmp_path),
        "https_proxy": closed,
        "HTTPS_PROXY": closed,
    }
    script = (
        "from dprp_tf import data\n"
        "found = data.load('fashion_mnist')\n"
        "print('FOUND', found.description, found.y_test.tolist(), found.classes[9])\n"
        "print('SUM', int(found.x_test.sum()))\n"
        "try:\n    data.load('mnist')\n"
        "except OSError as error:\n    print('CAUGHT', error)\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert (
        "FOUND {'name': 'fashion_mnist', 'classes': 10, 'train': 20, 'test': 10, "
        "'image_shape': [28, 28, 1], 'drawn_test_split': False} "
        "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9] ankle boot"
    ) in finished.stdout
    assert f"SUM {images.sum()}\n" in finished.stdout
    (line,) = [text for text in finished.stdout.splitlines() if "CAUGHT" in text]
    assert "`source`='mnist' could not be downloaded" in line
    assert "pass the path of an .npz file" in line


@pytest.mark.parametrize(
    ("name", "shape", "classes", "augmentation"),
    [
        ("cifar10", (32, 32, 3), 10, CropAndFlip(4, True)),
        ("cifar100", (32, 32, 3), 100, CropAndFlip(4, True)),
        ("mnist", (28, 28), 10, None),
        ("fashion_mnist", (28, 28), 10, CropAndFlip(4, True)),
    ],
)
def test_each_of_keras_data_sets_brings_its_classes_and_its_augmentation(
    name: str,
    shape: tuple[int, ...],
    classes: int,
    augmentation: CropAndFlip | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Keras accepts only its own archives, so its arrays are replaced by ones of their shape."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (classes, *shape)).astype(np.uint8)
    labels = np.arange(classes, dtype=np.uint8)
    if len(shape) == 3:
        labels = labels[:, None]
    module = importlib.import_module(f"keras.datasets.{name}")
    monkeypatch.setattr(module, "load_data", lambda: ((images, labels), (images[:5], labels[:5])))
    dataset = data.load(name)
    assert dataset.image_shape == (*shape, 1)[:3]
    assert len(set(dataset.classes)) == classes
    assert dataset.augmentation == augmentation
    np.testing.assert_array_equal(dataset.x_train.reshape(images.shape), images)
    assert dataset.y_test.tolist() == [0, 1, 2, 3, 4]
    stream = data.batches(dataset, classes, shuffle=False)
    changed = (next(stream.as_numpy_iterator())[0] != dataset.x_train).any()
    assert changed == (augmentation is not None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"test_fraction": 0}, "`test_fraction`.*test_fraction=0"),
        ({"test_fraction": 1.0}, "`test_fraction`.*test_fraction=1.0"),
        ({"image_size": 0}, "`image_size`.*image_size=0"),
        ({"image_size": (8, 8, 3)}, r"`image_size`.*\(8, 8, 3\)"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.load("digits", **arguments)


# The pipeline


def _numbered(count: int = 50) -> data.Dataset:
    """Image i is i + 1 everywhere, its label i % 5."""
    x = np.broadcast_to(np.arange(1, count + 1)[:, None, None, None], (count, 8, 8, 3))
    x, y = x.astype(np.uint8), np.arange(count) % 5
    return data.Dataset("numbered", x, y, x, y, tuple("abcde"))


def _read(stream: Any) -> tuple[np.ndarray, np.ndarray]:
    images, labels = zip(*stream.as_numpy_iterator(), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def test_an_epoch_holds_every_image_once_with_its_own_label() -> None:
    stream = data.batches(_numbered(), 16, padding=2)
    assert len(stream) == 4
    assert [len(y) for _, y in stream] == [16, 16, 16, 2]
    images, labels = _read(stream)
    assert images.dtype == np.float32
    assert labels.dtype == np.int32
    index = images.max(axis=(1, 2, 3)).astype(int) - 1
    assert sorted(index) == list(range(50))
    np.testing.assert_array_equal(labels, index % 5)
    assert (np.diff(index) != 1).sum() > 30
    # The padding shows in most images, and only ever as whole rows and columns of zeros.
    padded = (images == 0).any(axis=(1, 2, 3))
    assert 35 < padded.sum() <= 50


def test_the_pipeline_crops_as_numpy_does() -> None:
    random = np.random.default_rng(0)
    x = random.integers(1, 256, (40, 7, 6, 2)).astype(np.uint8)
    y = np.arange(40)
    dataset = data.Dataset("noise", x, y, x, y, tuple(map(str, range(40))))
    seen = set()
    for image, label in zip(*_read(data.batches(dataset, 16, padding=1)), strict=True):
        padded = np.pad(x[label], [(1, 1), (1, 1), (0, 0)])
        crops = {(t, c): padded[t : t + 7, c : c + 6] for t in range(3) for c in range(3)}
        matches = [
            (*place, turned)
            for place, crop in crops.items()
            for turned in (False, True)
            if np.array_equal(crop[:, ::-1] if turned else crop, image)
        ]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) > 9


def test_seed_and_epoch_decide_everything() -> None:
    dataset = _numbered()
    stream = data.batches(dataset, 16, seed=3)
    epochs = [_read(stream) for _ in range(3)]
    resumed = data.batches(dataset, 16, seed=3, epoch=1)
    for expected in epochs[1:]:
        for left, right in zip(expected, _read(resumed), strict=True):
            np.testing.assert_array_equal(left, right)
    assert (epochs[0][1] != epochs[1][1]).any()
    assert (epochs[0][1] != _read(data.batches(dataset, 16, seed=4))[1]).any()


def test_crops_differ_from_epoch_to_epoch_and_from_batch_to_batch() -> None:
    stream = data.batches(_numbered(40), 20, shuffle=False)
    (first, labels), (second, _) = _read(stream), _read(stream)
    np.testing.assert_array_equal(labels, np.arange(40) % 5)
    places = [(images == 0).any(axis=-1) for images in (first, second)]
    assert (places[0] != places[1]).any(axis=(1, 2)).sum() > 20
    assert (places[0][:20] != places[0][20:]).any(axis=(1, 2)).sum() > 10


def test_without_augmentation_and_shuffling_the_split_comes_as_it_is() -> None:
    dataset = _numbered()
    images, labels = _read(data.batches(dataset, 16, augment=False, shuffle=False))
    np.testing.assert_array_equal(images, dataset.x_train.astype(np.float32))
    np.testing.assert_array_equal(labels, dataset.y_train)


def test_digits_are_shifted_by_a_pixel_and_never_mirrored() -> None:
    digits = data.load("digits", image_size=8)
    images, labels = _read(data.batches(digits, 1500, shuffle=False))
    shifts = Counter()  # type: Counter[tuple[int, int]]
    for image, original in zip(images, digits.x_train, strict=True):
        padded = np.pad(original, [(1, 1), (1, 1), (0, 0)])
        places = [
            (top, left)
            for top in range(3)
            for left in range(3)
            if np.array_equal(padded[top : top + 8, left : left + 8], image)
        ]
        assert places
        shifts.update(places)
    assert len(shifts) == 9
    np.testing.assert_array_equal(labels, digits.y_train)


def test_an_image_is_changed_alike_in_a_batch_of_any_size() -> None:
    ordered = [_read(data.batches(_numbered(), n, seed=2, epoch=1))[0] for n in (7, 50)]
    np.testing.assert_array_equal(*ordered)


def test_full_batches_only() -> None:
    stream = data.batches(_numbered(), 16, drop_remainder=True)
    assert len(stream) == 3
    assert stream.element_spec[0].shape == (16, 8, 8, 3)
    assert [len(y) for _, y in stream] == [16] * 3


def test_fit_takes_one_pass_per_epoch() -> None:
    import keras

    if keras.backend.backend() != "tensorflow":
        pytest.skip("Keras' JAX trainer peeks at the pipeline before the first epoch")
    stream = data.batches(_numbered(), 16, seed=1)
    layers = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(5)]
    model = keras.Sequential([keras.Input((8, 8, 3)), *layers])
    model.compile("sgd", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = model.fit(stream, epochs=2, verbose=0, shuffle=False)
    assert len(history.history["loss"]) == 2
    expected = _read(data.batches(_numbered(), 16, seed=1, epoch=2))
    for left, right in zip(_read(stream), expected, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "`batch_size`.*batch_size=0"),
        ({"batch_size": 51, "drop_remainder": True}, "`batch_size`.*50 training images"),
        ({"padding": -1}, "`padding`.*padding=-1"),
        ({"seed": -1}, "`seed`.*seed=-1"),
        ({"epoch": -1}, "`epoch`.*epoch=-1"),
    ],
)
def test_bad_pipeline_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.batches(_numbered(), **{"batch_size": 8, **arguments})
