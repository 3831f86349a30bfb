"""Attention layers written out: dense projections, scores, weighted sums."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from dprp_tf.conversion.einsum_forms import EinsumForm, WrittenEinsum
from dprp_tf.keras_internals.attention_parts import AttentionParts

__all__ = ["WrittenAttention"]


class WrittenAttention:
    """An attention layer as plain ones, called as the layer is; a second call shares the weights.

    With queries q (b, t, n, h), keys k (b, s, n, h) and values v (b, s, n, v) of the projections,

        o[b, t, n] = sum over s of softmax over s (q[b, t, n] . k[b, s, n] / sqrt(h)) v[b, s, n],

    scores that a mask forbids left out, is projected to the outputs.

    Args:
        layer: The layer, built: `MultiHeadAttention` or `GroupQueryAttention`.
        parts: Its parts.
        forms: Forms of `query`, `key`, `value`, `output` and, if there is one, `gate`.

    Source: Vaswani et al. 2017 (arXiv 1706.03762); of shared heads Ainslie et al. 2023 (arXiv
        2305.13245).

    Example:

    >>> WrittenAttention.__name__
    'WrittenAttention'
    """

    def __init__(
        self, layer: keras.layers.Layer, parts: AttentionParts, forms: dict[str, EinsumForm]
    ) -> None:
        self._name, self._parts, self._policy = layer.name, parts, layer.dtype_policy
        self._project = {
            part: WrittenEinsum(getattr(parts, part), form, f"{layer.name}_{part}")
            for part, form in forms.items()
        }
        self._calls = 0

    def __call__(
        self,
        query: Any,
        value: Any,
        key: Any = None,
        query_mask: Any = None,
        value_mask: Any = None,
        key_mask: Any = None,
        attention_mask: Any = None,
        return_attention_scores: bool = False,
        training: bool | None = None,
        use_causal_mask: bool = False,
    ) -> Any:
        """Attend.

        Args:
            query: Inputs of the queries (b, t, d_q).
            value: Those of the values (b, s, d_v).
            key: Those of the keys (b, s, d_k). Default: `value`.
            query_mask: Which queries count, (b, t). Default: all.
            value_mask: Which values count, (b, s). Default: all.
            key_mask: Which keys count, (b, s). Default: all.
            attention_mask: Which keys a query attends to, (b, t, s). Default: all.
            return_attention_scores: Whether the scores are returned too.
            training: Whether scores are left out at random. Default: as the model is called.
            use_causal_mask: Whether no query attends to what comes after it.

        Returns:
            The outputs (b, t, d_o), and the scores (b, n, t, s) if they were asked for.
        """
        self._calls += 1
        parts, call = self._parts, "" if self._calls == 1 else f"_{self._calls}"
        window, long = parts.window, (query.shape[1], value.shape[1])
        if not parts.heeds_query_mask:
            query_mask = None
        told = (query_mask, value_mask, key_mask, attention_mask)
        # Keras' operation tells a wrong shape of values that are wider than keys.
        odd = parts.key.kernel.shape[-1] != parts.value.kernel.shape[-1]
        written = bool(parts.dropout) or return_attention_scores or odd
        # Of causal attention alone the operation needs no mask.
        plain = window is None and all(mask is None for mask in told)
        causal = use_causal_mask and plain and not written
        mask = _mask(*told, causal=use_causal_mask and not causal, window=window, long=long)
        projected = self._project
        q = projected["query"](query)
        k = projected["key"](value if key is None else key)
        v = projected["value"](value)
        if parts.repeats > 1:
            k, v = (ops.repeat(each, parts.repeats, axis=2) for each in (k, v))
        scores = None
        if written:
            q = ops.multiply(q, ops.cast(parts.scale, q.dtype))
            scores = ops.einsum("btnh,bsnh->bnts", q, k)
            softmax = keras.layers.Softmax(dtype=self._policy, name=f"{self._name}_softmax{call}")
            scores = softmax(scores) if mask is None else softmax(scores, mask=mask)
            kept = scores
            if parts.dropout:
                dropout = keras.layers.Dropout(
                    parts.dropout,
                    seed=parts.seed,
                    dtype=self._policy,
                    name=f"{self._name}_dropout{call}",
                )
                kept = dropout(scores, training=training)
            attended = ops.einsum("bnts,bsnv->btnv", kept, v)
        else:
            attended = ops.dot_product_attention(
                q,
                k,
                v,
                mask=mask,
                scale=parts.scale,
                is_causal=causal,
                flash_attention=parts.flash,
            )
        if parts.gate is not None:
            attended = ops.multiply(attended, projected["gate"](query))
        outputs = projected["output"](attended)
        return (outputs, scores) if return_attention_scores else outputs


def _mask(
    query_mask: Any,
    value_mask: Any,
    key_mask: Any,
    attention_mask: Any,
    *,
    causal: bool,
    window: int | None,
    long: tuple[int | None, int | None],
) -> Any:
    """All masks together, (b or 1, n or 1, t, s), or None where nothing is forbidden."""
    # (b, t) -> (b, 1, t, 1); (b, s) -> (b, 1, 1, s)
    found = [
        ops.expand_dims(ops.expand_dims(ops.cast(mask, "bool"), 1), axis)
        for mask, axis in ((query_mask, -1), (value_mask, 2), (key_mask, 2))
        if mask is not None
    ]
    if attention_mask is not None:
        given = ops.cast(attention_mask, "bool")
        found.append(ops.expand_dims(given, 1) if len(given.shape) == 3 else given)
    if causal or window is not None:
        t, s = long
        assert t is not None
        assert s is not None
        ahead = np.arange(t)[:, None] - np.arange(s)[None, :]
        allowed = np.ones((t, s), bool)
        if causal:
            allowed &= ahead >= 0
        if window is not None:
            allowed &= np.abs(ahead) < window
        found.append(ops.convert_to_tensor(allowed[None, None]))
    if not found:
        return None
    whole = found[0]
    for mask in found[1:]:
        whole = ops.logical_and(whole, mask)
    return whole
