"""scikit-learn's handwritten digits, which need no download."""

from __future__ import annotations

import numpy as np

from dprp_tf.data.augmentation import CropAndFlip
from dprp_tf.data.dataset import Dataset
from dprp_tf.data.images import resize
from dprp_tf.data.splitting import stratified_split

__all__ = ["load_digits"]


def load_digits(
    size: tuple[int, int] = (16, 16), test_fraction: float = 0.2, seed: int = 0
) -> Dataset:
    """Load the 1,797 digits, values 0 to 255.

    Args:
        size: Height and width they are enlarged to. Defaults to (16, 16).
        test_fraction: Share of each class held out.
        seed: Seed of the split.

    Returns:
        The dataset; its augmentation shifts by a pixel.

    Example:

    >>> load_digits((8, 8)).image_shape
    (8, 8, 1)
    """
    from sklearn import datasets

    digits = datasets.load_digits()
    images = (digits.images[..., None] * (255 / 16)).astype(np.float32)
    images = resize(images, size)
    train, test = stratified_split(digits.target, test_fraction, seed, "digits")
    labels = digits.target.astype(np.int32)
    return Dataset(
        "digits",
        images[train],
        labels[train],
        images[test],
        labels[test],
        tuple(str(n) for n in digits.target_names),
        CropAndFlip(padding=1, flip=False),
    )
