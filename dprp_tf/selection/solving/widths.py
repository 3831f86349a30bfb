"""How many channels each group keeps: the least lost for a cost that depends on all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from dprp_tf.costs.budget import BudgetError
from dprp_tf.selection.solving.cut_levels import descend, penalty

__all__ = ["choose_widths"]


Widths = Mapping[str, int]


def choose_widths(
    lost: Mapping[str, ArrayLike],
    widths: Mapping[str, Sequence[int]],
    cost: Callable[[Widths], Mapping[str, float]],
    bounds: Mapping[str, float],
    multiple: int = 1,
) -> dict[str, int]:
    """Return widths that meet all bounds and keep a large product of what groups keep.

    See `descend`, to which a group's penalty is -log of the share kept.

    Args:
        lost: By group the share lost when k places have gone, of shape (places + 1,).
        widths: By group the widths that it may have, the largest first.
        cost: From widths to costs by name.
        bounds: The largest costs allowed, by name.
        multiple: In which multiples widths are, to be said where they do not suffice. Default 1.

    Returns:
        A width for each group.

    Raises:
        BudgetError: If no widths meet the bounds.

    Example:

    >>> lost = {"a": [0, 0.1, 0.5], "b": [0, 0.01, 0.05]}
    >>> choose_widths(lost, {"a": [2, 1], "b": [2, 1]}, lambda w: {"macs": sum(w.values())},
    ...               {"macs": 3})
    {'a': 2, 'b': 1}
    """
    penalties = {
        name: [penalty(float(np.asarray(lost[name])[sizes[0] - w])) for w in sizes]
        for name, sizes in widths.items()
    }

    def spent(levels: Mapping[str, int]) -> Mapping[str, float]:
        return cost({name: widths[name][level] for name, level in levels.items()})

    found = descend(penalties, spent, bounds)
    if found is None:
        least = spent({name: len(sizes) - 1 for name, sizes in widths.items()})
        metric = max(bounds, key=lambda name: least[name] / bounds[name])
        raise BudgetError(
            bounds[metric],
            least[metric],
            metric=metric,
            smallest="at the least widths",
            remedy="Raise it, or let more layers be cut. Channels stay in multiples of "
            f"{multiple}.",
        )
    return {name: widths[name][level] for name, level in found.items()}
