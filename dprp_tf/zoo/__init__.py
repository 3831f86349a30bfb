"""Networks to train, factorize and measure, by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import keras

from dprp_tf.zoo.alexnet import alexnet, alexnet_cifar
from dprp_tf.zoo.conv_mixer import conv_mixer, conv_mixer_1536_20, conv_mixer_cifar
from dprp_tf.zoo.densenet import densenet40, densenet121, densenet_bc100, densenet_cifar
from dprp_tf.zoo.googlenet import googlenet
from dprp_tf.zoo.lenet import lenet5
from dprp_tf.zoo.mobilenet import mobilenet_v2, mobilenet_v2_cifar
from dprp_tf.zoo.resnet_cifar import resnet20, resnet32, resnet56, resnet_cifar
from dprp_tf.zoo.resnet_imagenet import resnet18, resnet34, resnet50, resnet_imagenet
from dprp_tf.zoo.resnet_small import resnet_small
from dprp_tf.zoo.squeezenet import squeezenet, squeezenet1_0, squeezenet1_1
from dprp_tf.zoo.traffic_sign import traffic_sign
from dprp_tf.zoo.unet import unet
from dprp_tf.zoo.vgg import (
    vgg,
    vgg11,
    vgg11_cifar,
    vgg16,
    vgg16_cifar,
    vgg19,
    vgg19_cifar,
    vgg_cifar,
)
from dprp_tf.zoo.vision_transformer import vision_transformer, vit_cifar, vit_s16
from dprp_tf.zoo.voxnet import voxnet

__all__ = [
    "ZOO",
    "accepts",
    "alexnet",
    "alexnet_cifar",
    "build",
    "conv_mixer",
    "conv_mixer_1536_20",
    "conv_mixer_cifar",
    "densenet40",
    "densenet121",
    "densenet_bc100",
    "densenet_cifar",
    "googlenet",
    "lenet5",
    "mobilenet_v2",
    "mobilenet_v2_cifar",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet34",
    "resnet50",
    "resnet56",
    "resnet_cifar",
    "resnet_imagenet",
    "resnet_small",
    "squeezenet",
    "squeezenet1_0",
    "squeezenet1_1",
    "traffic_sign",
    "unet",
    "vgg",
    "vgg11",
    "vgg11_cifar",
    "vgg16",
    "vgg16_cifar",
    "vgg19",
    "vgg19_cifar",
    "vgg_cifar",
    "vision_transformer",
    "vit_cifar",
    "vit_s16",
    "voxnet",
]

ZOO: dict[str, Callable[..., keras.Model]] = {
    builder.__name__: builder
    for builder in (
        alexnet,
        alexnet_cifar,
        conv_mixer_1536_20,
        conv_mixer_cifar,
        densenet121,
        densenet40,
        densenet_bc100,
        googlenet,
        lenet5,
        mobilenet_v2,
        mobilenet_v2_cifar,
        resnet18,
        resnet20,
        resnet32,
        resnet34,
        resnet50,
        resnet56,
        resnet_small,
        squeezenet1_0,
        squeezenet1_1,
        traffic_sign,
        vgg11,
        vgg11_cifar,
        vgg16,
        vgg16_cifar,
        vgg19,
        vgg19_cifar,
        vit_cifar,
        vit_s16,
        voxnet,
    )
}


def build(name: str, /, **arguments: Any) -> keras.Model:
    """Build a network of the zoo by its name.

    Args:
        name: A key of `ZOO`.
        **arguments: Passed to the builder. All take `input_shape`, `classes`, `weight_decay`,
            `preprocess` and the model's `name`; `accepts` tells who takes another.

    Returns:
        An untrained functional model that returns logits.

    Raises:
        ValueError: If no network has that name, or if an argument is unknown to it or outside its
            range.

    Example:

    >>> build("resnet_small", classes=3).output_shape
    (None, 3)
    """
    builder = _builder(name)
    known = inspect.signature(builder).parameters
    unknown = [argument for argument in arguments if argument not in known]
    if unknown:
        raise ValueError(
            f"`arguments` must be arguments of {name}: {', '.join(known)}. "
            f"Received: {', '.join(unknown)}."
        )
    return builder(**arguments)


def accepts(name: str, argument: str) -> bool:
    """Tell whether a network of the zoo takes an argument.

    Args:
        name: A key of `ZOO`.
        argument: Name of the argument.

    Returns:
        Whether `build(name, argument=...)` is allowed.

    Raises:
        ValueError: If no network has that name.

    Example:

    >>> accepts("resnet20", "shortcut"), accepts("vgg16_cifar", "shortcut")
    (True, False)
    """
    return argument in inspect.signature(_builder(name)).parameters


def _builder(name: str) -> Callable[..., keras.Model]:
    if name not in ZOO:
        raise ValueError(
            f"`name` must be a network of the zoo: {', '.join(sorted(ZOO))}. "
            f"Received: name={name!r}."
        )
    return ZOO[name]
