"""SqueezeNet: fire modules, which squeeze to few channels and expand by 1x1 and 3x3 kernels."""

from __future__ import annotations

from typing import Any, Literal

import keras

from dprp_tf.files.arguments import check_choice
from dprp_tf.zoo.arguments import check_arguments, check_width
from dprp_tf.zoo.blocks import (
    CHANNELS_LAST,
    activated,
    convolution,
    dropped,
    global_average,
    l2,
    sample_input,
    scaled,
)
from dprp_tf.zoo.preprocessing import Preprocess
from dprp_tf.zoo.variants import variant_of

__all__ = ["SqueezeNetVersion", "squeezenet", "squeezenet1_0", "squeezenet1_1"]

SqueezeNetVersion = Literal["1.0", "1.1"]

# Filters and side of the stem's kernel, and the modules that a pooling follows.
_STEMS: dict[str, tuple[int, int, tuple[int, ...]]] = {
    "1.0": (96, 7, (4, 8)),
    "1.1": (64, 3, (3, 5)),
}
_LEAST = {"1.0": 21, "1.1": 17}
# Filters of the squeeze and of each expansion, by the paper's numbers of the modules.
_FIRE = {
    2: (16, 64),
    3: (16, 64),
    4: (32, 128),
    5: (32, 128),
    6: (48, 192),
    7: (48, 192),
    8: (64, 256),
    9: (64, 256),
}


def squeezenet(
    version: SqueezeNetVersion,
    input_shape: tuple[int, int, int] = (224, 224, 3),
    classes: int = 1000,
    alpha: float = 1.0,
    dropout: float = 0.5,
    weight_decay: float = 0.0,
    preprocess: Preprocess | None = None,
    name: str | None = None,
) -> keras.Model:
    """Build SqueezeNet, whose classifier is a 1x1 convolution, a ReLU and an average.

    Args:
        version: `"1.0"`, the paper's, or `"1.1"`, its authors' later form, with 2.4 times fewer
            MACs.
        input_shape: Height, width and channels of one image, 21 pixels or more for 1.0 and 17 or
            more for 1.1. Defaults to `(224, 224, 3)`.
        classes: Number of logits, at least 2. Defaults to 1000.
        alpha: Width multiplier of the filters, above 0. Defaults to 1.
        dropout: Share dropped before the classifier, in [0, 1). Defaults to 0.5.
        weight_decay: Coupled weight decay on every kernel (an L2 penalty of half of it).
            Defaults to 0.
        preprocess: `(mean, std)` to take raw values and standardize them inside the model, or
            None for input as it is. Defaults to None.
        name: Name of the model. Defaults to `squeezenet<version>`, `_` for the point.

    Returns:
        A functional model, `(batch, height, width, channels) -> (batch, classes)`, logits, which
        the ReLU keeps at 0 or above.

    Raises:
        ValueError: If an argument is outside its range.

    Source: Iandola et al., "SqueezeNet", table 1; parameters and MACs of torchvision's
    `SqueezeNet1_0_Weights` and `SqueezeNet1_1_Weights`.

    Example:

    >>> squeezenet("1.1", (32, 32, 3), classes=5, alpha=1 / 16).output_shape
    (None, 5)
    """
    check_choice("version", version, sorted(_STEMS))
    check_arguments(
        input_shape,
        classes,
        weight_decay,
        network=f"SqueezeNet {version}",
        least=_LEAST[version],
    )
    check_width(alpha, dropout)
    decay = weight_decay / 2
    filters, kernel_size, pooled = _STEMS[version]
    inputs, x = sample_input(input_shape, preprocess)
    x = convolution(
        x,
        scaled(filters, alpha),
        "stem",
        decay,
        kernel_size=kernel_size,
        strides=2,
        padding="valid",
        use_bias=True,
        batch_norm=False,
    )
    x = _pool(x, "stem_pool")
    for module, (squeeze, expand) in _FIRE.items():
        x = _fire(x, scaled(squeeze, alpha), scaled(expand, alpha), f"fire{module}", decay)
        if module in pooled:
            x = _pool(x, f"fire{module}_pool")
    x = dropped(x, dropout, "dropout")
    x = keras.layers.Conv2D(
        int(classes),
        1,
        data_format=CHANNELS_LAST,
        kernel_initializer="he_normal",
        kernel_regularizer=l2(decay),
        name="logits",
    )(x)
    x = global_average(activated(x, "relu", "logits"))
    return keras.Model(inputs, x, name=name or f"squeezenet{version.replace('.', '_')}")


@variant_of(squeezenet, "version")
def squeezenet1_0(**arguments: Any) -> keras.Model:
    """Build SqueezeNet 1.0, 1,248,424 parameters and 0.82 GMACs by default.

    Args:
        **arguments: Those of `squeezenet` but `version`.

    Returns:
        A functional model that returns logits.

    Example:

    >>> squeezenet1_0().count_params()
    1248424
    """
    return squeezenet("1.0", **arguments)


@variant_of(squeezenet, "version")
def squeezenet1_1(**arguments: Any) -> keras.Model:
    """Build SqueezeNet 1.1, 1,235,496 parameters and 0.35 GMACs by default.

    Args:
        **arguments: Those of `squeezenet` but `version`.

    Returns:
        A functional model that returns logits.

    Example:

    >>> squeezenet1_1().count_params()
    1235496
    """
    return squeezenet("1.1", **arguments)


def _fire(
    x: keras.KerasTensor, squeeze: int, expand: int, name: str, decay: float
) -> keras.KerasTensor:
    parts: list[keras.KerasTensor] = []
    for part, filters, kernel_size in (
        ("squeeze", squeeze, 1),
        ("expand1x1", expand, 1),
        ("expand3x3", expand, 3),
    ):
        parts.append(
            convolution(
                parts[0] if parts else x,
                filters,
                f"{name}_{part}",
                decay,
                kernel_size=kernel_size,
                use_bias=True,
                batch_norm=False,
            )
        )
    return keras.layers.Concatenate(axis=-1, name=f"{name}_concatenate")(parts[1:])


def _pool(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    # Windows of 3 with stride 2 that may hang over the end, as the published sizes need: an even
    # side lacks one pixel. What goes in is a ReLU's output, so a zero never is the maximum alone.
    lacking = [1 - side % 2 for side in x.shape[1:3]]
    if lacking[0] != lacking[1]:
        x = keras.layers.ZeroPadding2D(
            tuple((0, more) for more in lacking), data_format=CHANNELS_LAST, name=f"{name}_pad"
        )(x)
        lacking = [0, 0]
    return keras.layers.MaxPooling2D(
        3,
        strides=2,
        padding="same" if lacking[0] else "valid",
        data_format=CHANNELS_LAST,
        name=name,
    )(x)
