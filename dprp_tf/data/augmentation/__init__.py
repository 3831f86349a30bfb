"""Random changes of training examples, a whole batch at once, the same on every backend."""

from __future__ import annotations

from dprp_tf.data.augmentation.adjusting import adjust
from dprp_tf.data.augmentation.base import Augmentation
from dprp_tf.data.augmentation.crop_and_flip import (
    CropAndFlip,
    crop_and_flip_in_tensorflow,
    random_crop_and_flip,
)
from dprp_tf.data.augmentation.resized_crop import ResizedCrop
from dprp_tf.data.augmentation.voxels import TurnAndShift
from dprp_tf.data.augmentation.warp import Warp

__all__ = [
    "Augmentation",
    "CropAndFlip",
    "ResizedCrop",
    "TurnAndShift",
    "Warp",
    "adjust",
    "crop_and_flip_in_tensorflow",
    "random_crop_and_flip",
]
