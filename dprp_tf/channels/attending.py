"""How heads go through attention: products that keep each head to itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from dprp_tf.channels.labels import LabelArray, Labels

__all__ = ["attended", "contracted", "repeated_along"]

_Shape = tuple[int | None, ...]


def attended(
    labels: Labels, before: list[LabelArray], shapes: list[_Shape]
) -> list[LabelArray] | None:
    """Follow heads through scaled dot-product attention, `keras.ops.dot_product_attention`.

    All that queries, keys and values hold of a head is tied: a head goes as a whole.

    Args:
        labels: Those of the model.
        before: Labels of queries (t, n, h), keys and values (s, n, h), and of a mask or bias.
        shapes: Sizes of these tensors without the batch.

    Returns:
        The labels of what was attended to, (1, n, 1); None where more than heads is told apart.
    """
    if len(before) < 3 or any(array.ndim != 3 for array in before[:3]):
        return None
    # (n or 1, t, s): what differs by head would have to lose heads too.
    beside = zip(before[3:], shapes[3:], strict=True)
    if any(shape[0] != 1 or max(array.shape) > 1 for array, shape in beside):
        return None
    heads = _tied_heads(labels, [(array, 1) for array in before[:3]], shapes[0][1])
    return None if heads is None else [heads[None, :, None]]


def contracted(
    labels: Labels, subscripts: str, before: list[LabelArray], shapes: list[_Shape]
) -> list[LabelArray] | None:
    """Follow heads through a product of two tensors that keeps one axis of both, besides the batch.

    Args:
        labels: Those of the model.
        subscripts: What `keras.ops.einsum` is told, such as `"btnh,bsnh->bnts"`.
        before: Labels of both tensors.
        shapes: Their sizes without the batch.

    Returns:
        Labels along the axis that is kept; None for another product.
    """
    operands, _, out = subscripts.replace(" ", "").partition("->")
    letters = operands.split(",")
    if len(letters) != 2 or len(before) != 2 or "." in subscripts or not out:
        return None
    if any(text[0] != out[0] or len(set(text)) != len(text) for text in (*letters, out)):
        return None
    kept = [letter for letter in out[1:] if all(letter in text for text in letters)]
    if len(kept) != 1:
        return None
    axes = [text.index(kept[0]) - 1 for text in letters]
    heads = _tied_heads(labels, list(zip(before, axes, strict=True)), shapes[0][axes[0]])
    if heads is None:
        return None
    shape = [1] * (len(out) - 1)
    shape[out.index(kept[0]) - 1] = heads.size
    return [heads.reshape(shape)]


def repeated_along(operation: Any, before: list[LabelArray]) -> list[LabelArray] | None:
    """Follow channels through `keras.ops.repeat`, as heads that several queries share go.

    Args:
        operation: The operation.
        before: Labels of what it repeats.

    Returns:
        The labels, each as often as its entry; None if the batch is repeated.
    """
    array, axis = before[0], operation.axis
    if axis is None or not isinstance(operation.repeats, int):
        return None
    axis = axis - 1 if axis > 0 else array.ndim + axis
    if not 0 <= axis < array.ndim:
        return None
    return [array if array.shape[axis] == 1 else np.repeat(array, operation.repeats, axis=axis)]


def _tied_heads(
    labels: Labels, tensors: list[tuple[LabelArray, int]], count: int | None
) -> LabelArray | None:
    """Tie all of each head in some tensors, given with their axis of heads; a label for each."""
    if count is None:
        return None
    heads: LabelArray | None = None
    for array, axis in tensors:
        # (n, all else of a head)
        rows = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
        if count % len(rows):
            return None
        # A head of keys may serve several of queries.
        rows = np.repeat(rows, count // len(rows) if len(rows) > 1 else 1, axis=0)
        rows = np.broadcast_to(rows, (count, rows.shape[1]))
        heads = np.array(rows[:, 0]) if heads is None else heads
        labels.tie(heads[:, None], rows)
    return heads
