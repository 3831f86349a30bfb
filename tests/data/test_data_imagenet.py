"""Images that stay on disk: what is read, when, and how a run resumes, fails and evaluates."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dprp_tf import data
from dprp_tf.data import StreamedImages
from dprp_tf.data.augmentation import CropAndFlip, ResizedCrop
from dprp_tf.runs.evaluation import accuracy
from dprp_tf.runs.results import finish
from dprp_tf.runs.settings import TrainSettings
from dprp_tf.runs.training import train

_COUNTS = {"n01440764": 5, "n01443537": 4, "n02085620": 6}


def _picture(seed: int, height: int, width: int) -> Image.Image:
    """A smooth picture, which a JPEG keeps."""
    corners = np.random.default_rng(seed).integers(0, 256, (3, 3, 3)).astype(np.uint8)
    return Image.fromarray(corners).resize((width, height), Image.Resampling.BICUBIC)


def _write(root: Path, counts: dict[str, int] | None = None) -> Path:
    """Pictures of different sizes, most of them JPEG with ImageNet's suffix, some PNG or gray."""
    seed = 0
    for split, share in (("train", 1.0), ("val", 0.5)):
        for name, count in (counts or _COUNTS).items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(max(1, round(count * share))):
                picture = _picture(seed, 40 + seed % 7, 30 + 3 * (seed % 11))
                file = folder / f"{name}_{number}.JPEG"
                if number == 1:
                    picture.save(file.with_suffix(".png"))
                elif number == 2:
                    picture.convert("L").save(file, "JPEG")
                elif number == 3:
                    picture.convert("CMYK").save(file, "JPEG")
                else:
                    picture.save(file, "JPEG", quality=95)
                seed += 1
    (root / "train" / name / "notes.txt").write_text("no image")
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write(tmp_path_factory.mktemp("imagenet"))


def _streamed(images: Any) -> StreamedImages:
    assert isinstance(images, StreamedImages)
    return images


def _epoch(stream: Any) -> tuple[np.ndarray, np.ndarray]:
    images, labels = zip(*stream.as_numpy_iterator(), strict=True)
    return np.concatenate(images), np.concatenate(labels)


# Listing


def test_every_file_is_listed_once_with_the_label_of_its_folder(root: Path) -> None:
    dataset = data.load(f"imagenet:{root}", image_size=24)
    assert dataset.classes == tuple(_COUNTS)
    assert dataset.image_shape == (24, 24, 3)
    assert dataset.augmentation == ResizedCrop()
    assert dataset.streamed
    for split, x, y in (
        ("train", dataset.x_train, dataset.y_train),
        ("val", dataset.x_test, dataset.y_test),
    ):
        files = [_streamed(x).path(n) for n in range(len(x))]
        assert sorted(files) == sorted(
            f for f in (root / split).rglob("*") if f.suffix in (".JPEG", ".png")
        )
        assert [file.parent.name for file in files] == [dataset.classes[label] for label in y]
        # Shuffled, so that the first ones are no single class.
        assert (np.diff(y) < 0).any()
    again = data.load(f"imagenet:{root}", image_size=24)
    np.testing.assert_array_equal(again.y_train, dataset.y_train)
    assert (data.load(f"imagenet:{root}", seed=1).y_train != dataset.y_train).any()
    assert data.load(f"imagenet:{root}").image_shape == (224, 224, 3)


def test_val_may_lack_a_class(tmp_path: Path) -> None:
    _write(tmp_path, {"ant": 2, "bee": 2, "cow": 2})
    for file in (tmp_path / "val" / "bee").iterdir():
        file.unlink()
    (tmp_path / "val" / "bee").rmdir()
    dataset = data.load(f"imagenet:{tmp_path}", image_size=8)
    assert sorted(dataset.y_test) == [0, 2]
    files = [_streamed(dataset.x_test).path(n).parent.name for n in range(2)]
    assert [dataset.classes[label] for label in dataset.y_test] == files


@pytest.mark.parametrize("name", ["classes.txt", "LOC_synset_mapping.txt"])
def test_a_file_may_name_the_classes(tmp_path: Path, name: str) -> None:
    _write(tmp_path)
    lines = ["n01440764 tench, Tinca tinca", "n09 other", "n02085620 Chihuahua", "n01443537 fish"]
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    assert data.load(f"imagenet:{tmp_path}").classes == ("tench", "fish", "Chihuahua")
    (tmp_path / name).write_text("\n".join(lines[:2]))
    with pytest.raises(ValueError, match=f"{name} without n01443537, n02085620"):
        data.load(f"imagenet:{tmp_path}")


def _empty(folder: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        for file in (root / folder).iterdir():
            file.unlink()

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "val").rename(root / "test"), "without val/"),
        (lambda root: (root / "train").rename(root / "training"), "without train/"),
        (_empty("train/n01443537"), "images in every class folder.*train/n01443537 with none"),
        (_empty("val/n01443537"), "images in every class folder.*val/n01443537 with none"),
        (lambda root: (root / "val/n01443537").rename(root / "val/cow"), "only those.*cow"),
    ],
)
def test_another_arrangement_is_refused(
    tmp_path: Path, damage: Callable[[Path], Any], message: str
) -> None:
    _write(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        data.load(f"imagenet:{tmp_path}")


def test_images_that_are_not_in_folders_and_a_single_class_are_refused(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
    with pytest.raises(ValueError, match=r"at least two class folders in train/.*0 \(none\)"):
        data.load(f"imagenet:{tmp_path}")
    for name in ("ant", "bee"):
        (tmp_path / "train" / name).mkdir()
        _picture(0, 9, 9).save(tmp_path / "train" / name / "1.png")
    _picture(0, 9, 9).save(tmp_path / "val" / "ILSVRC2012_val_00000001.png")
    with pytest.raises(ValueError, match=r"no class folder in .*val\. Sort"):
        data.load(f"imagenet:{tmp_path}")


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("imagenet:{}/nowhere", FileNotFoundError, "a folder after imagenet:.*does not exist"),
        ("gtsrb:{}/file", NotADirectoryError, "a folder after gtsrb:.*something else"),
        ("modelnet:{}", IsADirectoryError, r"an \.npz file after modelnet:.*something else"),
        ("modelnet:", IsADirectoryError, r"an \.npz file after modelnet:"),
        ("mars:{}", FileNotFoundError, "gtsrb:, imagenet:, modelnet:.*does not exist"),
        ("imagenet", FileNotFoundError, "gtsrb:, imagenet:, modelnet:"),
    ],
)
def test_a_path_that_is_none_is_named(
    tmp_path: Path, source: str, error: type[Exception], message: str
) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(error, match=message):
        data.load(source.format(tmp_path))


# Reading


@pytest.mark.parametrize("size", [(24, 24), (20, 36), (60, 60)])
def test_the_middle_is_what_pillow_gives(root: Path, size: tuple[int, int]) -> None:
    """Resize so that 7/8 of the deciding side fit, then cut the middle."""
    images = _streamed(data.load(f"imagenet:{root}", image_size=size).x_test)
    for number in range(len(images)):
        with Image.open(images.path(number)) as opened:
            picture = opened.convert("RGB")
        scale = max(size[0] / picture.height, size[1] / picture.width) * 8 / 7
        rows, columns = round(picture.height * scale), round(picture.width * scale)
        picture = picture.resize((columns, rows), Image.Resampling.BILINEAR)
        top, left = round((rows - size[0]) / 2), round((columns - size[1]) / 2)
        expected = np.asarray(picture)[top : top + size[0], left : left + size[1]]
        np.testing.assert_array_equal(images[number], expected)


def test_the_usual_size_is_256_and_224(tmp_path: Path) -> None:
    """A picture of 256 x 300 is not resized at all, only cut."""
    noise = np.random.default_rng(0).integers(0, 256, (256, 300, 3)).astype(np.uint8)
    (tmp_path / "a").mkdir()
    Image.fromarray(noise).save(tmp_path / "a" / "1.png")
    images = StreamedImages(tmp_path, ("a",), np.array([b"1.png"]), np.array([0]))
    np.testing.assert_array_equal(images[0], noise[16:240, 38:262])


@settings(max_examples=25, deadline=None)
@given(index=st.one_of(st.integers(-15, 14), st.slices(15), st.lists(st.integers(-15, 14))))
def test_indexing_is_that_of_an_array(root: Path, index: Any) -> None:
    images = _streamed(data.load(f"imagenet:{root}", image_size=6).x_train)
    assert (len(images), images.ndim, images.dtype) == (15, 4, np.uint8)
    whole = np.stack([images.read(n) for n in range(15)])
    assert images.shape == whole.shape
    chosen = np.array(index, int) if isinstance(index, list) else index
    np.testing.assert_array_equal(images[chosen], whole[chosen])


def test_nothing_is_read_before_it_is_asked_for(tmp_path: Path) -> None:
    _write(tmp_path)
    broken = tmp_path / "train" / "n02085620" / "n02085620_0.JPEG"
    broken.write_bytes(broken.read_bytes()[:200])
    dataset = data.load(f"imagenet:{tmp_path}", image_size=8)
    images = _streamed(dataset.x_train)
    at = next(n for n in range(15) if images.path(n) == broken)
    assert images[[n for n in range(15) if n != at]].shape == (14, 8, 8, 3)
    with pytest.raises(ValueError, match=r"n02085620_0\.JPEG, which can't be read"):
        images[at]
    broken.unlink()
    with pytest.raises(ValueError, match=r"n02085620_0\.JPEG, which can't be read"):
        images[:]


def test_moments_and_normalization(root: Path) -> None:
    dataset = data.load(f"imagenet:{root}", image_size=10)
    x = dataset.x_train[:].astype(np.float64)
    np.testing.assert_allclose(dataset.mean, x.mean(axis=(0, 1, 2)), rtol=1e-9)
    np.testing.assert_allclose(dataset.std, x.std(axis=(0, 1, 2)), rtol=1e-9)
    changed = dataset.normalized(dataset.mean, dataset.std)
    assert changed.x_train.dtype == np.float32
    expected = (x - np.float32(dataset.mean)) / np.float32(dataset.std)
    np.testing.assert_allclose(changed.x_train[:], expected, atol=1e-5)
    images, _ = _epoch(data.batches(changed, 15, shuffle=False, augment=False))
    np.testing.assert_allclose(images, expected, atol=1e-5)
    with pytest.raises(ValueError, match="`mean` and `std` must be given once"):
        changed.normalized([0], [1])


def test_the_mean_of_many_is_that_of_1024_spread_evenly(tmp_path: Path) -> None:
    """3,000 entries of 3 files, so that reading more than a sample would show."""
    folder = tmp_path / "a"
    folder.mkdir()
    for value in range(3):
        Image.new("RGB", (4, 4), (value, 0, 0)).save(folder / f"{value}.png")
    names = np.array([b"0.png", b"1.png", b"2.png"]).repeat(1000)
    images = StreamedImages(tmp_path, ("a",), names, np.zeros(3000, int), (2, 2))
    labels = np.arange(3000) % 2
    dataset = data.Dataset("d", images, labels, images, labels, ("x", "y"))
    assert dataset.mean[0] == pytest.approx(1, abs=2 / 1024)
    assert dataset.std[1:] == (1, 1)


# Batches


def _coordinates(root: Path) -> data.Dataset:
    """One picture per class whose pixels tell their own row and column."""
    row, column = np.indices((200, 240))
    pixels = np.stack([row, column, np.zeros_like(row)], axis=-1).astype(np.uint8)
    for split in ("train", "val"):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for number in range(20):
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return data.load(f"imagenet:{root}", image_size=32)


def test_training_images_are_random_parts_some_of_them_mirrored(tmp_path: Path) -> None:
    dataset = _coordinates(tmp_path)
    images, _ = _epoch(data.batches(dataset, 8, seed=3))
    shares, mirrored = [], []
    for image in images:
        down = np.polyfit(np.arange(32), image[:, :, 0].mean(axis=1), 1)[0]
        right = np.polyfit(np.arange(32), image[:, :, 1].mean(axis=0), 1)[0]
        # Straight lines: no turn, no shear, up to the rounding of pixels.
        assert np.abs(np.diff(image[:, :, 0], axis=1)).max() <= 1
        assert np.abs(np.diff(image[:, :, 1], axis=0)).max() <= 1
        assert down > 0
        mirrored.append(right < 0)
        shares.append(down * abs(right) * 32 * 32 / (200 * 240))
        assert 3 / 4 / 1.1 < abs(right) / down < 4 / 3 * 1.1
    assert 8 < sum(mirrored) < 32
    assert 0.07 < min(shares) < 0.35
    assert 0.7 < max(shares) < 1.06
    off, _ = _epoch(data.batches(dataset, 8, seed=3, augment=False))
    # The middle: 7/8 of 200 rows, the same of every image.
    assert off[:, 0, :, 0] == pytest.approx(np.full((40, 32), 200 / 16 + 2.2), abs=2)
    unflipped, _ = _epoch(data.batches(dataset, 8, seed=3, flip=False))
    assert (np.diff(unflipped[:, :, :, 1].mean(axis=1), axis=1) >= 0).all()


def test_seed_epoch_and_number_decide_a_part_whatever_the_batch(root: Path) -> None:
    dataset = data.load(f"imagenet:{root}", image_size=12)
    stream = data.batches(dataset, 4, seed=3)
    assert len(stream) == 4
    epochs = [_epoch(stream) for _ in range(3)]
    for resumed, batch_size in ((1, 4), (2, 7)):
        again = _epoch(data.batches(dataset, batch_size, seed=3, epoch=resumed))
        for left, right in zip(epochs[resumed], again, strict=True):
            np.testing.assert_array_equal(left, right)
    for images, labels in epochs:
        assert Counter(labels.tolist()) == dict(enumerate(_COUNTS.values()))
        assert images.dtype == np.float32
    assert (epochs[0][0] != epochs[1][0]).any()
    assert (_epoch(data.batches(dataset, 4, seed=4))[0] != epochs[0][0]).any()
    unshuffled = data.batches(dataset, 4, seed=3, shuffle=False)
    crop, images = ResizedCrop(), _streamed(dataset.x_train)
    for epoch in range(2):
        pixels, labels = _epoch(unshuffled)
        np.testing.assert_array_equal(labels, dataset.y_train)
        for number, image in enumerate(pixels):
            np.testing.assert_array_equal(image, images.read(number, crop, (3, epoch)))
    parts = [images.read(2, crop, seed) for seed in ((3, 0), (3, 1), (4, 0))]
    assert all((a != b).any() for a, b in zip(parts, parts[1:] + parts[:1], strict=True))
    full = data.batches(dataset, 4, drop_remainder=True)
    assert [x.shape for x, _ in full.as_numpy_iterator()] == [(4, 12, 12, 3)] * 3


def test_another_augmentation_works_on_what_was_decoded(root: Path) -> None:
    from dataclasses import replace

    dataset = replace(data.load(f"imagenet:{root}", image_size=12), augmentation=CropAndFlip(2))
    streamed = _epoch(data.batches(dataset, 4, seed=1))
    whole = replace(dataset, x_train=dataset.x_train[:], x_test=dataset.x_test[:])
    for left, right in zip(streamed, _epoch(data.batches(whole, 4, seed=1)), strict=True):
        np.testing.assert_array_equal(left, right)
    with pytest.raises(ValueError, match=r"`augmentation` must fit.*ResizedCrop for ndarray"):
        replace(whole, augmentation=ResizedCrop())


def test_the_test_split_comes_in_order_and_unchanged(root: Path) -> None:
    dataset = data.load(f"imagenet:{root}", image_size=12)
    stream = data.evaluation_batches(dataset, 3)
    assert len(stream) == 3
    images, labels = _epoch(stream)
    np.testing.assert_array_equal(images, dataset.x_test[:].astype(np.float32))
    np.testing.assert_array_equal(labels, dataset.y_test)
    with pytest.raises(ValueError, match=r"`batch_size`.*batch_size=0"):
        data.evaluation_batches(dataset, 0)


# Training


_SETTINGS = TrainSettings(
    model="resnet_small", method="dense", epochs=1, batch_size=5, learning_rate=0.01
)


@pytest.mark.slow
def test_a_network_trains_and_is_evaluated_from_disk(root: Path, tmp_path: Path) -> None:
    dataset = data.load(f"imagenet:{root}", image_size=16)
    model = train(tmp_path, _SETTINGS, dataset)
    results = finish(tmp_path, _SETTINGS, dataset, model)
    (entry,) = json.loads((tmp_path / "history.json").read_text())["runs"]["dense"]
    outputs = model.predict(dataset.x_test[:].astype("float32"), verbose=0)
    expected = float(np.mean(outputs.argmax(axis=-1) == dataset.y_test))
    assert entry["val_accuracy"] == pytest.approx(expected)
    assert accuracy(model, dataset) == pytest.approx(expected)
    assert results["models"][0]["accuracy"] == pytest.approx(expected)
    assert results["data"]["train"] == 15
    # What it normalizes by is what it was trained on.
    step = model.get_layer("preprocess")
    np.testing.assert_allclose(step.scale, 1 / np.array(dataset.std), rtol=1e-6)


def test_a_damaged_image_ends_the_run_with_its_name_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from typer.testing import CliRunner

    from dprp_tf.cli.main import app

    images = _write(tmp_path / "images")
    broken = images / "train" / "n01443537" / "n01443537_0.JPEG"
    broken.write_bytes(b"broken")
    x = keras.Input((8, 8, 3))
    y = keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x))
    keras.Model(x, y).save(tmp_path / "small.keras")
    command = ["train", "--model", str(tmp_path / "small.keras"), "--method", "dense"]
    command += ["--data", f"imagenet:{images}", "--image-size", "8", "--batch-size", "5"]
    command += ["--folder", str(tmp_path / "run"), "--epochs", "1"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2, result.output
    (line,) = [text for text in result.output.splitlines() if text.startswith("error:")]
    assert f"{broken}, which can't be read" in line
    assert "Traceback" not in result.output
    assert not (tmp_path / "run" / "model.keras").exists()


def test_what_is_on_disk_is_not_copied_to_a_device(root: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    dataset = data.load(f"imagenet:{root}", image_size=16)
    with pytest.raises(ValueError, match=r"`dataset` must be in memory.*on_device=False"):
        train(tmp_path, replace(_SETTINGS, on_device=True), dataset)


def test_a_data_set_that_has_no_such_setting_says_so(root: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    dataset = data.load(f"imagenet:{root}", image_size=16)
    with pytest.raises(ValueError, match=r"`padding` must be left out: ResizedCrop"):
        train(tmp_path, replace(_SETTINGS, padding=4), dataset)


def test_files_are_compared_on_images_that_stay_on_disk(root: Path, tmp_path: Path) -> None:
    """The accuracy of an exported file, part by part, is that of the model."""
    from dprp_tf import deploy
    from dprp_tf.runs.files import file_accuracy

    if keras.backend.backend() != "tensorflow":
        pytest.skip("export needs Keras' TensorFlow backend")

    dataset = data.load(f"imagenet:{root}", image_size=8)
    x = keras.Input((8, 8, 3))
    y = keras.layers.Dense(3)(keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(x)))
    model = keras.Model(x, y)
    deploy.export(model, tmp_path / "a.tflite")
    assert file_accuracy(tmp_path / "a.tflite", dataset, images=3) == pytest.approx(
        accuracy(model, dataset)
    )
