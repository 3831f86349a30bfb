"""Labelled images and voxels from files, folders and Keras, and the batches made of them."""

from __future__ import annotations

from dprp_tf.data.dataset import Dataset
from dprp_tf.data.folders import image_sizes
from dprp_tf.data.gtsrb import load_gtsrb
from dprp_tf.data.imagenet import load_imagenet
from dprp_tf.data.loading import LAYOUTS, SOURCES, load
from dprp_tf.data.modelnet import load_modelnet
from dprp_tf.data.pipeline import batches, evaluation_batches
from dprp_tf.data.streaming import StreamedImages, reading_errors

__all__ = [
    "LAYOUTS",
    "SOURCES",
    "Dataset",
    "StreamedImages",
    "batches",
    "evaluation_batches",
    "image_sizes",
    "load",
    "load_gtsrb",
    "load_imagenet",
    "load_modelnet",
    "reading_errors",
]
