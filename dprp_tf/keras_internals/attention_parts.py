"""What attention layers of Keras are made of: their projections and how they attend."""

from __future__ import annotations

import math
from dataclasses import dataclass

import keras

__all__ = ["AttentionParts", "attention_parts"]


@dataclass(frozen=True)
class AttentionParts:
    """The parts of an attention layer that was built.

    Attributes:
        query: From inputs (b, t, d_q) to queries (b, t, n, h).
        key: From inputs (b, s, d_k) to keys (b, s, m, h).
        value: From inputs (b, s, d_v) to values (b, s, m, v).
        output: From what was attended to (b, t, n, v) to outputs (b, t, d_o).
        gate: From the query's inputs to factors (b, t, n, v) of what was attended to; None for
            none.
        repeats: How many query heads share a key head, n / m.
        scale: What scores are multiplied by.
        dropout: Share of the scores that training leaves out.
        window: Positions on each side that a query attends to, itself counted; None for all.
        flash: Whether, or None where Keras decides whether, the fused kernel is taken.
        seed: Seed of the dropout.
        heeds_query_mask: Whether a `query_mask` that is given does anything; Keras 3.15's
            `MultiHeadAttention` heeds only one that the inputs carry.
    """

    query: keras.layers.EinsumDense
    key: keras.layers.EinsumDense
    value: keras.layers.EinsumDense
    output: keras.layers.EinsumDense
    gate: keras.layers.EinsumDense | None
    repeats: int
    scale: float
    dropout: float
    window: int | None
    flash: bool | None
    seed: int | None
    heeds_query_mask: bool


def attention_parts(layer: keras.layers.Layer) -> AttentionParts | None:
    """Return the parts of an attention layer of Keras.

    Args:
        layer: A layer, built.

    Returns:
        The parts; None for another layer, and for a subclass, which may compute something else.

    Example:

    >>> layer = keras.layers.MultiHeadAttention(2, key_dim=4)
    >>> x = keras.Input((5, 8))
    >>> _ = layer(x, x)
    >>> attention_parts(layer).scale, attention_parts(keras.layers.ReLU())
    (0.5, None)
    """
    if type(layer) is keras.layers.MultiHeadAttention:
        width, repeats, dropout = layer._key_dim, 1, layer._dropout
        window = layer._sliding_window
    elif type(layer) is keras.layers.GroupQueryAttention:
        width, repeats, dropout = layer.head_dim, layer.num_repeats, layer.dropout
        window = layer.sliding_window
    else:
        return None
    return AttentionParts(
        layer._query_dense,
        layer._key_dense,
        layer._value_dense,
        layer._output_dense,
        getattr(layer, "_gate_dense", None),
        repeats,
        1 / math.sqrt(float(width)),
        float(dropout),
        window,
        layer._flash_attention or None,
        layer.seed,
        type(layer) is keras.layers.GroupQueryAttention,
    )
