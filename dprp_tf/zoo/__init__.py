"""Networks to train, factorize and measure, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from dprp_tf.zoo.resnet_cifar import resnet20, resnet32, resnet56, resnet_cifar
from dprp_tf.zoo.resnet_imagenet import resnet18, resnet34, resnet50, resnet_imagenet
from dprp_tf.zoo.resnet_small import resnet_small

__all__ = [
    "ZOO",
    "build",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet34",
    "resnet50",
    "resnet56",
    "resnet_cifar",
    "resnet_imagenet",
    "resnet_small",
]

ZOO: dict[str, Callable[..., keras.Model]] = {
    "resnet18": resnet18,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "resnet56": resnet56,
    "resnet_small": resnet_small,
}


def build(name: str, **arguments: Any) -> keras.Model:
    """Build a network of the zoo by its name.

    Args:
        name: A key of `ZOO`.
        **arguments: Passed to the builder, such as `input_shape`, `classes`, `shortcut`.

    Returns:
        An untrained functional model that returns logits.

    Raises:
        ValueError: If no network has that name, or if an argument is outside its range.

    Example:

    >>> build("resnet_small", classes=3).output_shape
    (None, 3)
    """
    if name not in ZOO:
        raise ValueError(
            f"`name` must be a network of the zoo: {', '.join(sorted(ZOO))}. "
            f"Received: name={name!r}."
        )
    return ZOO[name](**arguments)
