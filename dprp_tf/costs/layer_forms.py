"""Which forms a layer can take."""

from __future__ import annotations

import math
from typing import Any

from dprp_tf import decomposition
from dprp_tf.costs.form import KINDS, OWN_KIND, Form
from dprp_tf.files.arguments import check_choice
from dprp_tf.keras_internals.layer_kinds import TRANSPOSED
from dprp_tf.layers import FactorizedLayer
from dprp_tf.layers.kernels import dense_class, kernel_of

__all__ = ["obstacle", "own_form", "same_factors", "smallest_form"]


def obstacle(layer: Any, kind: str) -> str | None:
    """Say why a layer can't take a kind of form; None if it can.

    Args:
        layer: A built low-rank layer, or the dense one it stands for.
        kind: One of `KINDS`.

    Returns:
        The reason, or None.

    Raises:
        ValueError: If `kind` is unknown.
    """
    check_choice("kind", kind, KINDS)
    if kind == "dense":
        return None
    if layer.kernel_constraint is not None:
        return "its kernel constraint may change the rank of the kernel"
    if kind == "channel":
        return None
    spatial = getattr(layer, "kernel_shape", None) or kernel_of(layer).shape
    spatial = spatial[:-2]
    if math.prod(spatial) == 1:
        return "its kernel has one position: only the channel form applies"
    if kind in ("separable", "tucker"):
        return None
    if issubclass(dense_class(layer), TRANSPOSED):
        return "Keras has no depthwise transposed convolution"
    if len(spatial) == 3:
        return "Keras has no three-dimensional depthwise convolution"
    if len(set(layer.strides)) > 1:
        return "depthwise convolutions need equal strides on both axes"
    return None


def own_form(layer: FactorizedLayer) -> Form:
    """Return the form whose stages are the layer's factors: two stages, or three for Tucker.

    Args:
        layer: A built SVD or Tucker layer.

    Returns:
        The form, whether or not the layer can take it; see `obstacle`.
    """
    if layer.decomposition == "tucker":
        return Form("tucker", layer.ranks)
    kind = decomposition.resolve(layer.kernel_shape, layer.decomposition)
    return Form(OWN_KIND[kind], layer.ranks)


def smallest_form(layer: FactorizedLayer) -> Form:
    """Return the form that stores fewer weights: a layer's own, if it can take it, or dense.

    Args:
        layer: A built SVD or Tucker layer.

    Returns:
        The form; dense where both store as many.

    Example:

    >>> from dprp_tf.layers import SVDDense
    >>> layer = SVDDense(8, rank=2)
    >>> layer.build((None, 8))
    >>> print(smallest_form(layer))
    channel 2
    """
    own = own_form(layer)
    fewer = own.parameters(layer.kernel_shape) < math.prod(layer.kernel_shape)
    return own if fewer and obstacle(layer, own.kind) is None else Form("dense")


def same_factors(own: Form) -> list[Form]:
    """Return the forms made of the same factors as a layer's own form.

    Args:
        own: What `own_form` returned.

    Returns:
        The forms, whether or not the layer can take them; see `obstacle`.

    Example:

    >>> [form.kind for form in same_factors(Form("concatenated", (2,)))]
    ['concatenated', 'summed', 'pointwise_first']
    """
    if own.kind == "tucker":
        return [own]
    single = (Form(kind, own.ranks) for kind in KINDS if kind not in ("dense", "tucker"))
    return [form for form in single if form.matricization == own.matricization]
