"""What every network of the zoo asks of its arguments."""

from __future__ import annotations

from collections.abc import Sequence

from dprp_tf.files.arguments import check_integer, check_number, is_integer

__all__ = ["check_arguments", "check_width"]


def check_arguments(
    input_shape: Sequence[int],
    classes: int,
    weight_decay: float,
    *,
    network: str = "this network",
    axes: tuple[str, ...] = ("height", "width"),
    least: int = 1,
    hint: str = "",
) -> None:
    """Refuse arguments that no network of a family can be built with.

    Args:
        input_shape: Sizes of one sample, one per name in `axes`, then its channels.
        classes: Number of logits, at least 2.
        weight_decay: Coupled weight decay, finite and at least 0.
        network: What the message calls the network.
        axes: Names of the spatial axes. Defaults to `("height", "width")`.
        least: Smallest size of each spatial axis that leaves something to classify. Defaults
            to 1.
        hint: A sentence on what to do with smaller samples.

    Raises:
        ValueError: If one is outside its range.

    Example:

    >>> check_arguments((32, 32, 3), 10, 1e-4, network="VGG-16", least=32)
    """
    names = (*axes, "channels")
    if len(input_shape) != len(names) or not all(map(is_integer, input_shape)):
        raise ValueError(
            f"`input_shape` must be ({', '.join(axes)} and channels), each a whole number of at "
            f"least 1. Received: input_shape={tuple(input_shape)}."
        )
    if min(input_shape[:-1]) < least:
        raise ValueError(
            f"`input_shape` must have {' and '.join(axes)} of at least {least} for {network}, "
            f"whose maps are empty otherwise. Received: input_shape={tuple(input_shape)}.{hint}"
        )
    check_integer("classes", classes, minimum=2)
    check_number("weight_decay", weight_decay, minimum=0)


def check_width(alpha: float = 1.0, dropout: float = 0.0) -> None:
    """Refuse a width multiplier or a dropout rate outside its range.

    Args:
        alpha: Width multiplier, above 0.
        dropout: Share of activations that are dropped in training, in [0, 1).

    Raises:
        ValueError: If one is outside its range.

    Example:

    >>> check_width(alpha=0.5, dropout=0.2)
    """
    check_number("alpha", alpha, above=0)
    check_number("dropout", dropout, minimum=0, below=1)
