"""The German Traffic Sign Recognition Benchmark in its official folders."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dprp_tf.data.augmentation import Warp
from dprp_tf.data.dataset import Dataset
from dprp_tf.data.folders import class_folders
from dprp_tf.data.images import decode, first_line, pixels

__all__ = ["load_gtsrb"]

_COLUMNS = ("Filename", "Roi.X1", "Roi.Y1", "Roi.X2", "Roi.Y2", "ClassId")
_TEST = "GT-final_test.csv"
_WORKERS = 4


def load_gtsrb(root: Path, size: tuple[int, int] = (48, 48), seed: int = 0) -> Dataset:
    """Load the benchmark's training and test images, cut to the sign and resized.

    Read are `Final_Training/Images/000NN/*.ppm` with their `GT-000NN.csv`, and
    `Final_Test/Images/*.ppm` with `GT-final_test.csv`, the file with the classes, which lies
    beside them, above them or at the top. The region of interest goes from (x1, y1) up to, but
    without, (x2, y2): so it lies in the middle of images whose border is 5 pixels. Training
    images come in a shuffled order, so that the first ones are a sample of all classes.

    Args:
        root: The folder that holds `Final_Training` and `Final_Test`, or its parent if it is
            called GTSRB.
        size: Height and width to resize to. Defaults to (48, 48).
        seed: Seed of the training images' order. Defaults to 0.

    Returns:
        The dataset; its augmentation is `Warp`, which does not mirror.

    Raises:
        ValueError: If files are missing, a table does not fit its images, or an image can't be
            read.

    Source: Stallkamp et al., "Man vs. computer: benchmarking machine learning algorithms for
    traffic sign recognition", 2012.

    Example:

    >>> load_gtsrb.__name__
    'load_gtsrb'
    """
    if not (root / "Final_Training").is_dir() and (root / "GTSRB").is_dir():
        root = root / "GTSRB"
    training, test = root / "Final_Training" / "Images", root / "Final_Test" / "Images"
    for folder in (training, test):
        if not folder.is_dir():
            raise ValueError(
                "`source` must hold Final_Training/Images and Final_Test/Images. Received: "
                f"{root} without {folder.relative_to(root)}. Unpack the benchmark's archives "
                "there."
            )
    folders = class_folders(training)
    expected = [f"{number:05}" for number in range(len(folders))]
    if not 2 <= len(folders) <= len(_NAMES) or [f.name for f in folders] != expected:
        raise ValueError(
            f"`source` must hold the class folders 00000, 00001, ... (up to {len(_NAMES)}, at "
            f"least two) without gaps. Received: {', '.join(f.name for f in folders) or 'none'} "
            f"in {training}."
        )
    signs: list[_Sign] = []
    for label, folder in enumerate(folders):
        found = _read_table(folder / f"GT-{folder.name}.csv", folder, len(folders))
        wrong = next((sign for sign in found if sign.label != label), None)
        if wrong is not None:
            raise ValueError(
                f"`source` must hold signs of class {label} in {folder}. Received: ClassId="
                f"{wrong.label} for {wrong.file.name}. Restore the table from the archive."
            )
        signs += found
    tables = [folder / _TEST for folder in (test, test.parent, root)]
    table = next((file for file in tables if file.is_file()), None)
    if table is None:
        raise ValueError(
            f"`source` must hold {_TEST}, the table with the classes of the test images. "
            f"Received: {root} without it (looked in {', '.join(str(t.parent) for t in tables)}). "
            "It has an archive of its own, GTSRB_Final_Test_GT."
        )
    shuffled = np.random.default_rng(seed).permutation(len(signs))
    x_train, y_train = _read_signs([signs[n] for n in shuffled], size)
    x_test, y_test = _read_signs(_read_table(table, test, len(folders)), size)
    names = _NAMES[: len(folders)]
    return Dataset("gtsrb", x_train, y_train, x_test, y_test, names, Warp())


@dataclass(frozen=True)
class _Sign:
    file: Path
    box: tuple[int, int, int, int]  # left, top, right, bottom
    label: int


def _read_table(table: Path, folder: Path, classes: int) -> list[_Sign]:
    try:
        with table.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, delimiter=";")
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"`source` must hold a readable {table.name} for {folder}. Received: {table}, which "
            f"can't be read ({first_line(error)})."
        ) from error
    missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
    if missing or not rows:
        raise ValueError(
            f"`source` must hold tables with the columns {'; '.join(_COLUMNS)} and a row for each "
            f"image. Received: {table} {'without ' + ', '.join(missing) if missing else 'empty'}."
        )
    signs = [_read_row(row, number, table, folder) for number, row in enumerate(rows, start=2)]
    for sign in signs:
        if not 0 <= sign.label < classes:
            raise ValueError(
                f"`source` must hold ClassId from 0 to {classes - 1}, one per class folder. "
                f"Received: ClassId={sign.label} for {sign.file.name} in {table}."
            )
    listed = {sign.file.name for sign in signs}
    present = {file.name for file in folder.iterdir() if file.suffix == ".ppm"}
    if listed != present:
        unlisted, absent = sorted(present - listed), sorted(listed - present)
        raise ValueError(
            f"`source` must hold exactly the images that {table.name} lists. Received: "
            f"{len(absent)} missing and {len(unlisted)} unlisted in {folder}, such as "
            f"{(absent or unlisted)[0]}. Unpack the archive again."
        )
    return signs


def _read_row(row: dict[str, str], number: int, table: Path, folder: Path) -> _Sign:
    try:
        left, top, right, bottom, label = (int(row[name]) for name in _COLUMNS[1:])
        if row["Filename"] != Path(row["Filename"]).name:
            raise ValueError(f"Filename={row['Filename']!r}")
    except (TypeError, ValueError) as error:
        raise ValueError(
            "`source` must hold a file name without folder and whole numbers in each row of a "
            f"table. Received: line {number} of {table} ({first_line(error)})."
        ) from error
    return _Sign(folder / row["Filename"], (left, top, right, bottom), label)


def _read_signs(signs: Sequence[_Sign], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    images = np.empty((len(signs), *size, 3), np.uint8)

    def read(sign: _Sign) -> np.ndarray:
        image = decode(sign.file, upright=False).convert("RGB")
        left, top, right, bottom = sign.box
        if not (0 <= left < right <= image.width and 0 <= top < bottom <= image.height):
            raise ValueError(
                "`source` must hold regions of interest inside their images. Received: x from "
                f"{left} to {right} and y from {top} to {bottom} in {sign.file} of "
                f"{image.height}x{image.width} (height x width) pixels."
            )
        return pixels(image.crop(sign.box), size)

    with ThreadPoolExecutor(_WORKERS) as pool:
        for target, image in zip(images, pool.map(read, signs), strict=True):
            target[...] = image
    return images, np.array([sign.label for sign in signs], np.int32)


_NAMES = (
    "speed limit 20",
    "speed limit 30",
    "speed limit 50",
    "speed limit 60",
    "speed limit 70",
    "speed limit 80",
    "end of speed limit 80",
    "speed limit 100",
    "speed limit 120",
    "no passing",
    "no passing for trucks",
    "right of way at the next junction",
    "priority road",
    "yield",
    "stop",
    "no vehicles",
    "no trucks",
    "no entry",
    "danger",
    "curve to the left",
    "curve to the right",
    "double curve",
    "bumpy road",
    "slippery road",
    "road narrows on the right",
    "road works",
    "traffic signals",
    "pedestrians",
    "children",
    "bicycles",
    "ice or snow",
    "wild animals",
    "end of all limits",
    "turn right ahead",
    "turn left ahead",
    "ahead only",
    "straight or right",
    "straight or left",
    "keep right",
    "keep left",
    "roundabout",
    "end of no passing",
    "end of no passing for trucks",
)
