"""Traffic signs in the official folders, written here image by image, whole and damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dprp_tf import data
from dprp_tf.data.augmentation import Warp

_HEADER = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"
_COUNTS = (4, 3, 5)


def _write_signs(
    folder: Path, table: Path, labels: list[int], size: tuple[int, int] = (8, 8), seed: int = 0
) -> list[np.ndarray]:
    """Write noise with a region of `size` (height, width) at another place in each image."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    lines, signs = [_HEADER], []
    for number, label in enumerate(labels):
        height, width = size[0] + 5 + number, size[1] + 7 + 2 * number
        pixels = random.integers(0, 256, (height, width, 3)).astype(np.uint8)
        top, left = 1 + number % 4, 2 + number % 5
        # A PPM is three numbers and the bytes.
        header = f"P6\n{width} {height}\n255\n".encode()
        (folder / f"{number:05}.ppm").write_bytes(header + pixels.tobytes())
        right, bottom = left + size[1], top + size[0]
        lines.append(f"{number:05}.ppm;{width};{height};{left};{top};{right};{bottom};{label}")
        signs.append(pixels[top:bottom, left:right])
    table.write_text("\r\n".join(lines) + "\r\n")
    return signs


def _write(root: Path, size: tuple[int, int] = (8, 8)) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The signs of the training split, class after class, and of the test split."""
    train = []
    for label, count in enumerate(_COUNTS):
        folder = root / "Final_Training" / "Images" / f"{label:05}"
        table = folder / f"GT-{label:05}.csv"
        train += _write_signs(folder, table, [label] * count, size, seed=label)
    folder = root / "Final_Test" / "Images"
    test = _write_signs(folder, folder / "GT-final_test.csv", [2, 0, 1, 1], size, seed=9)
    return train, test


def test_each_sign_is_cut_to_its_region_and_keeps_its_label(tmp_path: Path) -> None:
    train, test = _write(tmp_path)
    dataset = data.load(f"gtsrb:{tmp_path}", image_size=8)
    np.testing.assert_array_equal(dataset.x_test, test)
    assert dataset.y_test.tolist() == [2, 0, 1, 1]
    labels = {
        sign.tobytes(): label
        for sign, label in zip(train, np.repeat([0, 1, 2], _COUNTS), strict=True)
    }
    assert len(dataset.x_train) == len(labels) == 12
    assert {sign.tobytes() for sign in dataset.x_train} == set(labels)
    assert [labels[sign.tobytes()] for sign in dataset.x_train] == dataset.y_train.tolist()
    # Shuffled, so that the first images are no single class.
    assert (np.diff(dataset.y_train) < 0).any()
    assert dataset.name == "gtsrb"
    assert dataset.classes == ("speed limit 20", "speed limit 30", "speed limit 50")
    assert dataset.augmentation == Warp()
    again = data.load(f"gtsrb:{tmp_path}", image_size=8)
    np.testing.assert_array_equal(again.x_train, dataset.x_train)


def test_signs_are_resized_as_pillow_does_and_to_48_by_default(tmp_path: Path) -> None:
    _, test = _write(tmp_path / "GTSRB", size=(21, 17))
    # The parent of a folder GTSRB will do.
    dataset = data.load(f"gtsrb:{tmp_path}")
    assert dataset.image_shape == (48, 48, 3)
    expected = [
        np.asarray(Image.fromarray(sign).resize((48, 48), Image.Resampling.BICUBIC))
        for sign in test
    ]
    np.testing.assert_array_equal(dataset.x_test, expected)


@pytest.mark.parametrize("place", ["", "Final_Test"])
def test_the_table_of_the_test_images_may_lie_above_them(tmp_path: Path, place: str) -> None:
    _, test = _write(tmp_path)
    table = tmp_path / "Final_Test" / "Images" / "GT-final_test.csv"
    table.rename(tmp_path / place / table.name)
    # What comes with the images has no classes.
    table.with_name("GT-final_test.test.csv").write_text("Filename;Width;Height\n")
    np.testing.assert_array_equal(data.load(f"gtsrb:{tmp_path}", image_size=8).x_test, test)


def _replace(file: str, old: str, new: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        text = (root / file).read_text()
        assert old in text
        (root / file).write_text(text.replace(old, new, 1))

    return change


def _remove(file: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (root / file).unlink()

    return change


def _rename(old: str, new: str) -> Callable[[Path], None]:
    return lambda root: (root / old).rename(root / new) and None


_FOLDER = "Final_Training/Images/00001"
_TABLE = f"{_FOLDER}/GT-00001.csv"
_TEST = "Final_Test/Images"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_rename("Final_Test", "Test"), r"without Final_Test/Images\."),
        (_rename("Final_Training", "Training"), r"without Final_Training/Images\."),
        (_remove(f"{_TEST}/GT-final_test.csv"), r"GT-final_test\.csv, the table.*GT\."),
        (_remove(_TABLE), r"GT-00001\.csv, which can't be read"),
        (_remove(f"{_FOLDER}/00002.ppm"), r"1 missing and 0 unlisted in .*00001, such as 00002"),
        (_rename(f"{_FOLDER}/00002.ppm", f"{_FOLDER}/7.ppm"), "1 missing and 1 unlisted"),
        (_rename(_FOLDER, "Final_Training/Images/00005"), "without gaps.*00000, 00002, 00005"),
        (_rename(_FOLDER, "Final_Training/Images/stop"), "without gaps.*stop"),
        (_replace(_TABLE, "Roi.X2", "x2"), r"GT-00001\.csv without Roi\.X2"),
        (_replace(_TABLE, ";1\n", ";2\n"), r"class 1 in .*ClassId=2 for 00000\.ppm"),
        (_replace(_TABLE, ";1\n", ";one\n"), r"line 2 of .*GT-00001\.csv.*'one'"),
        (_replace(_TABLE, ";1\n", "\n"), "line 2 of .*GT-00001"),
        (
            _replace(_TABLE, "00001.ppm", "../1.ppm"),
            r"without folder.*line 3 of .*'\.\./1\.ppm'",
        ),
        (_replace(_TABLE, "00000.ppm;15;13;2;", "00000.ppm;15;13;-2;"), r"x from -2 to 10"),
        (_replace(_TABLE, "2;1;10;9;", "2;1;10;99;"), r"y from 1 to 99 in .*00000\.ppm of 13x15"),
        (_replace(_TABLE, "2;1;10;9;", "2;9;10;9;"), "y from 9 to 9"),
        (
            _replace(f"{_TEST}/GT-final_test.csv", ";2\n", ";3\n"),
            r"ClassId from 0 to 2.*ClassId=3 for 00000\.ppm in .*GT-final_test\.csv",
        ),
    ],
)
def test_damage_is_named(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    _write(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        data.load(f"gtsrb:{tmp_path}", image_size=8)


@pytest.mark.parametrize("content", [b"", b"P6\n9 9\n255\nshort"])
def test_an_unreadable_sign_is_named(tmp_path: Path, content: bytes) -> None:
    _write(tmp_path)
    (tmp_path / _TEST / "00003.ppm").write_bytes(content)
    with pytest.raises(ValueError, match=r"Final_Test/Images/00003\.ppm, which can't be read"):
        data.load(f"gtsrb:{tmp_path}")


def test_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    _write(tmp_path)
    for file in (tmp_path / _FOLDER).glob("*.ppm"):
        file.unlink()
    (tmp_path / _TABLE).write_text(_HEADER + "\n")
    with pytest.raises(ValueError, match=r"a row for each image.*GT-00001\.csv empty"):
        data.load(f"gtsrb:{tmp_path}")


def test_no_batch_is_mirrored_and_every_pass_differs(tmp_path: Path) -> None:
    """Signs that are dark on the left stay dark on the left."""
    _write(tmp_path)
    dataset = data.load(f"gtsrb:{tmp_path}", image_size=16)
    dataset.x_train[:, :, :8] = 20
    dataset.x_train[:, :, 8:] = 200
    stream = data.batches(dataset, 4, seed=1)
    passes = [np.concatenate([x for x, _ in stream.as_numpy_iterator()]) for _ in range(5)]
    for images in passes:
        assert (images[:, 2:-2, :4].mean(axis=(1, 2, 3)) < 60).all()
        assert (images[:, 2:-2, -4:].mean(axis=(1, 2, 3)) > 120).all()
    assert all((a != passes[0]).any() for a in passes[1:])
    resumed = data.batches(dataset, 4, seed=1, epoch=3)
    np.testing.assert_array_equal(
        np.concatenate([x for x, _ in resumed.as_numpy_iterator()]), passes[3]
    )
    plain = data.batches(dataset, 12, augment=False, shuffle=False)
    np.testing.assert_array_equal(next(plain.as_numpy_iterator())[0], dataset.x_train)
