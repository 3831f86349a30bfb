"""The data sets that Keras downloads: CIFAR-10 and -100, MNIST and Fashion-MNIST."""

from __future__ import annotations

import importlib

from dprp_tf.data.arrays import ARRAYS, from_arrays
from dprp_tf.data.augmentation import Augmentation, CropAndFlip
from dprp_tf.data.dataset import Dataset
from dprp_tf.data.images import first_line

__all__ = ["KERAS_SETS", "load_keras_set"]

KERAS_SETS: dict[str, Augmentation | None] = {
    "cifar10": CropAndFlip(),
    "cifar100": CropAndFlip(),
    "mnist": None,
    "fashion_mnist": CropAndFlip(),
}
"""Each data set with the augmentation that papers train it with."""


def load_keras_set(name: str, size: tuple[int, int] | None = None) -> Dataset:
    """Load a data set through Keras, which downloads it once and keeps it.

    Args:
        name: A key of `KERAS_SETS`.
        size: Height and width to resize to; None for those it has.

    Returns:
        The dataset.

    Raises:
        OSError: If the download fails.

    Example:

    >>> sorted(KERAS_SETS)
    ['cifar10', 'cifar100', 'fashion_mnist', 'mnist']
    """
    module = importlib.import_module(f"keras.datasets.{name}")
    try:
        (x_train, y_train), (x_test, y_test) = module.load_data()
    except Exception as error:  # Keras raises a bare Exception
        raise OSError(
            f"`source`={name!r} could not be downloaded by Keras ({first_line(error)}). Connect "
            "to the internet, or pass the path of an .npz file with x_train, y_train, x_test, "
            "y_test, or of a folder of images."
        ) from error
    arrays = dict(zip(ARRAYS, (x_train, y_train, x_test, y_test), strict=True))
    return from_arrays(name, arrays, size, _CLASS_NAMES[name], augmentation=KERAS_SETS[name])


_CLASS_NAMES: dict[str, tuple[str, ...]] = {
    "mnist": tuple("0123456789"),
    "fashion_mnist": (
        "t-shirt",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle boot",
    ),
    "cifar10": (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ),
    "cifar100": tuple(str(n) for n in range(100)),
}
