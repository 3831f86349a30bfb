"""A data set's own augmentation, changed as a user asks for."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from dprp_tf.data.augmentation.base import Augmentation
from dprp_tf.data.augmentation.crop_and_flip import CropAndFlip
from dprp_tf.data.augmentation.resized_crop import ResizedCrop

__all__ = ["adjust"]


def adjust(
    augmentation: Augmentation | ResizedCrop | None,
    *,
    augment: bool = True,
    padding: int | None = None,
    flip: bool | None = None,
) -> Augmentation | ResizedCrop | None:
    """Return an augmentation with another largest shift or with mirroring switched on or off.

    Args:
        augmentation: What the data set has; None for nothing.
        augment: Whether to augment at all. Defaults to True.
        padding: Largest shift in pixels; None for the data set's.
        flip: Whether to mirror; None for the data set's.

    Returns:
        The augmentation; None if nothing is to happen. Where the data set has none, a `padding`
        or `flip` makes a `CropAndFlip`.

    Raises:
        ValueError: If the augmentation has no such setting to switch on.

    Example:

    >>> adjust(CropAndFlip(), flip=False)
    CropAndFlip(padding=4, flip=False)
    """
    wanted: dict[str, Any] = {"padding": padding, "flip": flip}
    wanted = {name: value for name, value in wanted.items() if value is not None}
    if not augment:
        return None
    if augmentation is None:
        if not any(wanted.values()):
            return None
        augmentation = CropAndFlip(padding=0, flip=False)
    chosen: Any = augmentation  # every one of them is a dataclass
    known = {field.name for field in fields(chosen)}
    impossible = [name for name, value in wanted.items() if name not in known and value]
    if impossible:
        raise ValueError(
            f"`{impossible[0]}` must be left out: {type(augmentation).__name__}, the data set's "
            f"augmentation, has no such setting. Received: {impossible[0]}="
            f"{wanted[impossible[0]]}."
        )
    return replace(chosen, **{k: v for k, v in wanted.items() if k in known})
