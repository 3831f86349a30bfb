"""The ranks of a layer at a compression ratio."""

from __future__ import annotations

import math

from dprp_tf.costs.rank_space import LayerChoices, Ranks
from dprp_tf.files.arguments import check_choice

__all__ = ["PAIRS", "ladder", "ranks_at_ratio", "ratio_of"]

PAIRS = ("equal", "most_macs", "fewest_macs")
# Weights are whole numbers: what a ratio allows may miss one by rounding.
_ROUNDING = 1e-6
_LADDER_STEPS = 100


def ratio_of(layer: LayerChoices, ranks: Ranks) -> float:
    """Return the compression ratio of a layer: 1 - weights / weights of the dense layer.

    Args:
        layer: The layer.
        ranks: Its ranks; None for dense, whose ratio is 0.

    Returns:
        The ratio, below 1.
    """
    return 1.0 - layer.parameters(ranks) / layer.parameters(None)


def ranks_at_ratio(layer: LayerChoices, ratio: float, pairs: str = "equal") -> Ranks:
    """Return the largest ranks whose layer is compressed by a ratio or more.

    Tucker-2 has many pairs of ranks with nearly the same number of weights. Of those that neither
    rank can be raised of, `"most_macs"` and `"fewest_macs"` take the one with most and fewest
    MACs; at strides of 1 MACs go with the weights and there is little between them. `"equal"`
    takes the largest pair of equal ranks; where one axis is at its full rank, the other goes on.

    Args:
        layer: The layer.
        ratio: Least compression ratio, below 1.
        pairs: One of `PAIRS`. Default `"equal"`.

    Returns:
        The ranks, at least 1 each even where those are larger; None, dense, for a ratio of 0 or
        below.

    Source: Kokhazadeh et al., A CNN Compression Methodology for Layer-Wise Rank Selection, III.5.

    Example:

    >>> import keras
    >>> from dprp_tf.costs.rank_space import RankSpace
    >>> inputs = keras.Input((8, 8, 16))
    >>> outputs = keras.layers.Conv2D(16, 3, name="a", use_bias=False)(inputs)
    >>> layer = RankSpace(keras.Model(inputs, outputs), "channel").layers["a"]
    >>> ranks_at_ratio(layer, 0.5), ranks_at_ratio(layer, 0.99), ranks_at_ratio(layer, 0.0)
    ((7,), (1,), None)
    """
    check_choice("pairs", pairs, PAIRS)
    if ratio <= _ROUNDING:
        return None
    allowed = math.floor((1.0 - ratio) * layer.parameters(None) + _ROUNDING)
    if len(layer.full_ranks) == 1:
        # Weights are proportional to the rank.
        return (max(1, min(layer.full_ranks[0], allowed // layer.parameters((1,)))),)
    if pairs == "equal":
        return _equal_pair(layer, allowed)
    found = _largest_pairs(layer, allowed)
    if not found:
        return (1, 1)

    def effort(pair: tuple[int, int]) -> tuple[int, int]:
        weights = layer.parameters(pair)
        macs = layer.macs(pair)
        return (weights if macs is None else macs), weights

    return max(found, key=effort) if pairs == "most_macs" else min(found, key=effort)


def ladder(layer: LayerChoices, pairs: str = "equal") -> list[tuple[int, ...]]:
    """Return the ranks of a layer from the smallest to the largest that make it smaller.

    Args:
        layer: The layer.
        pairs: Which pairs Tucker-2 takes; see `ranks_at_ratio`.

    Returns:
        The ranks; every single one, or every pair of equal ranks, or the pairs at each hundredth
        of the compression ratio.
    """
    rows: list[tuple[int, ...]]
    if len(layer.full_ranks) == 1:
        rows = [(rank,) for rank in range(1, layer.full_ranks[0] + 1)]
    elif pairs == "equal":
        rows = [_pair(layer, rank) for rank in range(1, max(layer.full_ranks) + 1)]
    else:
        found = (
            ranks_at_ratio(layer, 1.0 - at / _LADDER_STEPS, pairs) for at in range(_LADDER_STEPS)
        )
        rows = list(dict.fromkeys(entry for entry in found if entry is not None))
    dense = layer.parameters(None)
    return [entry for entry in rows if layer.parameters(entry) < dense]


def _pair(layer: LayerChoices, rank: int) -> tuple[int, ...]:
    return tuple(min(rank, full) for full in layer.full_ranks)


def _equal_pair(layer: LayerChoices, allowed: int) -> tuple[int, ...]:
    low, high = 1, max(layer.full_ranks)
    while low < high:  # weights grow with the rank
        middle = (low + high + 1) // 2
        fits = layer.parameters(_pair(layer, middle)) <= allowed
        low, high = (middle, high) if fits else (low, middle - 1)
    return _pair(layer, low)


def _largest_pairs(layer: LayerChoices, allowed: int) -> list[tuple[int, int]]:
    """The pairs within a number of weights that neither rank can be raised of."""
    *spatial, channels, filters = layer.kernel_shape
    area = math.prod(spatial)
    outer_at: list[int] = []
    for inner in range(1, layer.full_ranks[0] + 1):
        left = allowed - channels * inner
        outer_at.append(min(left // (area * inner + filters), layer.full_ranks[1]))
    return [
        (inner, outer)
        for inner, outer in enumerate(outer_at, start=1)
        if outer >= 1 and (inner == len(outer_at) or outer_at[inner] < outer)
    ]
