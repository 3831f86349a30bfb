"""Folders of images that fit in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dprp_tf.data.dataset import Dataset
from dprp_tf.data.images import IMAGE_SUFFIXES, decode, is_image, pixels
from dprp_tf.data.splitting import stratified_split

__all__ = ["class_folders", "image_sizes", "load_folder"]


def load_folder(
    root: Path, size: tuple[int, int] | None = None, test_fraction: float = 0.2, seed: int = 0
) -> Dataset:
    """Load a folder of images, all at once.

    Args:
        root: `root/<class>/<image>.png`, or with train/ and perhaps test/ in between.
        size: Height and width to resize to; None if all images have the same.
        test_fraction: Share of each class held out where there is no test split.
        seed: Seed of that split.

    Returns:
        The dataset, named as the folder.

    Raises:
        ValueError: If the folder is arranged in another way or an image can't be read.

    Example:

    >>> load_folder.__name__
    'load_folder'
    """
    train_root, test_root = root / "train", root / "test"
    # A class may be called "train": only a folder of folders is a split.
    nested = train_root.is_dir() and bool(class_folders(train_root))
    split = nested and test_root.is_dir()
    others = [f.name for f in class_folders(root) if f not in (train_root, test_root)]
    if nested and others:
        raise ValueError(
            "`source` must hold only train/ and test/ when train/ holds class folders. Received: "
            f"{', '.join(others)} in {root}. Call the held-out folder test and move the rest; "
            "train/ and val/ that do not fit in memory load as imagenet:PATH."
        )
    files, labels, classes = _list_images(train_root if nested else root)
    if len(classes) < 2:
        raise ValueError(
            "`source` must hold at least two class folders of images. Received: "
            f"{len(classes)} ({', '.join(classes) or 'none'}) in {root}. Arrange it as "
            "root/<class>/<image>.png."
        )
    test_files: list[Path] = []
    test_labels = np.zeros(0, np.int32)
    if split:
        test_files, positions, test_classes = _list_images(test_root)
        unknown = sorted(set(test_classes) - set(classes))
        if unknown or not test_classes:
            raise ValueError(
                f"`source` must hold in test/ only classes that train/ holds. Received: "
                f"{', '.join(unknown) or 'no class'} in {test_root}, {', '.join(classes)} in "
                f"{train_root}."
            )
        test_labels = np.array([classes.index(test_classes[p]) for p in positions], np.int32)
    images = _read_images([*files, *test_files], size)
    train_images, test_images = images[: len(files)], images[len(files) :]
    if split:
        return Dataset(root.resolve().name, train_images, labels, test_images, test_labels, classes)
    train, test = stratified_split(labels, test_fraction, seed, str(root), classes)
    return Dataset(
        root.resolve().name,
        train_images[train],
        labels[train],
        train_images[test],
        labels[test],
        classes,
        drawn_test_split=True,
    )


def class_folders(path: Path) -> list[Path]:
    """List the folders in a folder that are not hidden.

    Args:
        path: The folder.

    Returns:
        Their paths, sorted.
    """
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def image_sizes(root: Path) -> set[tuple[int, int]]:
    """Read the sizes that images in a folder have, from their heads alone.

    Args:
        root: A folder as `load_folder` takes it.

    Returns:
        Heights and widths; those of files that can't be read are left out.

    Example:

    >>> image_sizes(Path("no such folder"))
    set()
    """
    from PIL import Image

    found = set()
    for path in root.rglob("*"):
        if is_image(path.name):
            with contextlib.suppress(Exception), Image.open(path) as image:
                found.add((image.height, image.width))
    return found


def _list_images(root: Path) -> tuple[list[Path], np.ndarray, tuple[str, ...]]:
    files: list[Path] = []
    labels: list[int] = []
    folders = class_folders(root)
    for label, folder in enumerate(folders):
        found = sorted(p for p in folder.iterdir() if is_image(p.name) and p.is_file())
        if not found:
            raise ValueError(
                f"`source` must hold images in every class folder. Received: {folder} with none "
                f"(looked for {', '.join(sorted(IMAGE_SUFFIXES))}). Add images or remove it."
            )
        files += found
        labels += [label] * len(found)
    return files, np.array(labels, np.int32), tuple(folder.name for folder in folders)


def _read_images(files: Sequence[Path], size: tuple[int, int] | None) -> np.ndarray:
    images: list[np.ndarray] = []
    for file in files:
        image = pixels(decode(file), size)
        # Told of the first that differs, before many large ones fill the memory.
        if images and image.shape[:2] != images[0].shape[:2]:
            raise ValueError(
                "`image_size` is required because the images differ in size. Received: "
                f"image_size=None, {files[0]} of {images[0].shape[0]}x{images[0].shape[1]} and "
                f"{file} of {image.shape[0]}x{image.shape[1]} (height x width) pixels."
            )
        images.append(image)
    channels = max(image.shape[-1] for image in images)
    # (h, w, 1) -> (h, w, 3) where gray and color meet
    return np.stack([np.broadcast_to(i, (*i.shape[:2], channels)) for i in images])
