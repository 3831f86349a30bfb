"""The losses of DPRP: orthogonality, sorting and compression of the layers that train."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from keras import ops

from dprp_tf.layers import SVDLayer
from dprp_tf.training import regularizers
from dprp_tf.training.settings import DPRPSettings

__all__ = ["layer_losses", "mean_losses", "weighted_loss"]


def layer_losses(
    layers: Iterable[SVDLayer], settings: DPRPSettings, learning_rate: Any
) -> tuple[list[SVDLayer], dict[str, Any]]:
    """Return each layer's own terms, computed at once for the layers of equal rank.

    Args:
        layers: Built SVD layers; frozen ones are left out.
        settings: The structure, which decides on the norm, and the penalty on the values.
        learning_rate: The optimizer's, which the norm of `structure="smoothed"` follows.

    Returns:
        The layers that train, in the order of the terms, and their unweighted terms, float32 of
        shape (layers,): `orth` (Eq. 10), `sort` (Eq. 11) and `comp` (Eq. 12).

    Source: DPRP (arXiv 2401.08014) III-C; the smoothed norm is ours.

    Example:

    >>> tuple(layer_losses([], DPRPSettings(), 0.1)[1]["orth"].shape)
    (0,)
    """
    by_rank: dict[int, list[SVDLayer]] = {}
    for layer in layers:
        if layer.trainable:
            by_rank.setdefault(int(layer.rank or 0), []).append(layer)
    found = [layer for group in by_rank.values() for layer in group]
    terms: dict[str, list[Any]] = {"orth": [], "sort": [], "comp": []}
    for rank, group in by_rank.items():
        # n layers of equal rank: s (n, r), Gram matrices (2n, r, r)
        s = ops.stack([ops.cast(layer.s, "float32") for layer in group])
        gram = regularizers.gram_matrices([q for layer in group for q in (layer.u, layer.v)])
        softening: Any = 0.0
        if settings.structure == "smoothed":
            strength = settings.structure_weight * settings.orthogonality_weight
            softening = 2.0 * learning_rate * strength / (len(found) * rank**2)
        # u and v of a layer stand side by side: (2n,) -> (n, 2) -> (n,)
        errors = ops.reshape(regularizers.gram_error(gram, softening), (len(group), 2))
        terms["orth"].append(ops.sum(errors, axis=-1))
        terms["sort"].append(regularizers.sorting(s))
        compression = settings.compression
        terms["comp"].append(
            ops.zeros((len(group),), "float32") if compression is None else compression(s)
        )
    if not found:
        return found, {name: ops.zeros((0,), "float32") for name in terms}
    return found, {name: ops.concatenate(parts) for name, parts in terms.items()}


def mean_losses(terms: dict[str, Any]) -> dict[str, Any]:
    """Return the mean of each term over the layers; 0 for no layers, where a mean is NaN.

    Args:
        terms: Terms of shape (layers,), by name.

    Returns:
        Scalars by name.

    Example:

    >>> float(mean_losses({"orth": ops.array([1.0, 3.0])})["orth"])
    2.0
    """
    return {name: ops.sum(value) / max(value.shape[0], 1) for name, value in terms.items()}


def weighted_loss(means: dict[str, Any], settings: DPRPSettings, pressure: float = 1.0) -> Any:
    """Return the weighted sum of the mean terms, which joins a model's loss.

    pressure compression_weight comp + structure_weight (orthogonality_weight orth + sorting_weight
    sort); the structure costs nothing where retraction keeps it.

    Args:
        means: What `mean_losses` returns.
        settings: The weights.
        pressure: Factor on the compression weight, 0 or more. Default 1.

    Returns:
        A scalar.

    Source: DPRP (arXiv 2401.08014) Eq. 8 and 9.

    Example:

    >>> weighted_loss({"orth": 0.5, "sort": 0.5, "comp": 2.0}, DPRPSettings(), 0.5)
    0.1
    """
    weighted = pressure * settings.compression_weight * means["comp"]
    if settings.structure == "retraction":
        return weighted
    return weighted + settings.structure_weight * (
        settings.orthogonality_weight * means["orth"] + settings.sorting_weight * means["sort"]
    )
