"""What every augmentation of arrays shares: how it is seeded and where it runs."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import keras
import numpy as np

from dprp_tf.data.augmentation.draws import KERAS, batch_index, seed_key, tensorflow
from dprp_tf.files.arguments import check_integer

if TYPE_CHECKING:
    import tensorflow as tf

__all__ = ["Augmentation"]


class Augmentation(abc.ABC):
    """Random changes of a batch of training examples, from an integer hash.

    What happens to an example depends on the seed and on the example's number, so a seed gives
    the same outcome on every backend, eager or compiled. A subclass is a frozen dataclass.

    Example:

    >>> import numpy as np
    >>> from dprp_tf.data.augmentation import CropAndFlip
    >>> tuple(CropAndFlip(padding=1)(np.ones((2, 8, 8, 3), "float32"), seed=0).shape)
    (2, 8, 8, 3)
    """

    axes: ClassVar[tuple[str, ...]] = ("batch", "height", "width", "channels")
    """The axes of what it takes."""

    def __call__(self, images: Any, seed: Any) -> Any:
        """Change a batch, in `keras.ops` alone.

        Args:
            images: A batch with the axes `axes`; all but the first must be known.
            seed: Whole number from 0 to 2**32 - 1, or a scalar integer tensor, which may be
                traced. Use another for every batch.

        Returns:
            A tensor like `images`.

        Raises:
            ValueError: If `images` has other axes, or `seed` is outside its range.
        """
        if isinstance(seed, (int, np.integer)):
            check_integer("seed", seed, 0, 2**32 - 1)
        images = keras.ops.convert_to_tensor(images)
        self._check(images)
        return self._apply(KERAS, images, KERAS.cast(seed, "uint32"), batch_index(KERAS, images))

    def in_pipeline(
        self, images: tf.Tensor, seed: Sequence[Any], index: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Change a batch inside a tf.data pipeline, under any Keras backend.

        Args:
            images: A batch with the axes `axes`; all but the first must be known.
            seed: Whole numbers or integer tensors, such as (seed, epoch), hashed into one.
            index: Number of each example, `(batch,)`, such as its row in the data set, which
                makes the outcome independent of the batch it is in. Defaults to 0, 1, ...

        Returns:
            A tensor like `images`.

        Raises:
            ValueError: If `images` has other axes.
        """
        ops = tensorflow()
        self._check(images)
        number = batch_index(ops, images) if index is None else index
        return self._apply(ops, images, seed_key(ops, seed), number)

    def _check(self, images: Any) -> None:
        if len(images.shape) != len(self.axes):
            raise ValueError(
                f"`images` must have the shape ({', '.join(self.axes)}). Received: "
                f"shape={tuple(images.shape)}. Add an axis for single or gray images."
            )

    @abc.abstractmethod
    def _apply(self, ops: SimpleNamespace, images: Any, seed: Any, index: Any) -> Any:
        """Change `images` by numbers drawn from the scalar uint32 `seed` and `index` (batch,)."""
