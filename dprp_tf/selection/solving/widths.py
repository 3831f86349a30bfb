"""How many channels each group keeps: the least lost for a cost that depends on all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from dprp_tf.costs.budget import BudgetError

__all__ = ["choose_widths"]

_FLOOR = 1e-9
# Steps that are looked ahead.
_AHEAD = 8

Widths = Mapping[str, int]


def choose_widths(
    lost: Mapping[str, ArrayLike],
    widths: Mapping[str, Sequence[int]],
    cost: Callable[[Widths], Mapping[str, float]],
    bounds: Mapping[str, float],
    multiple: int = 1,
) -> dict[str, int]:
    """Return widths that meet all bounds and keep a large product of what groups keep.

    Step by step, the group is narrowed whose loss is the smallest for what it saves: the loss is
    -log of the share kept, the saving is of the bound that is exceeded most. A step that pays only
    together with those behind it counts by the best of them. Then groups are widened again as far
    as the bounds allow, those first that gain most.

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
    place = dict.fromkeys(widths, 0)
    penalty = {
        name: [-np.log(max(1 - float(np.asarray(lost[name])[sizes[0] - w]), _FLOOR)) for w in sizes]
        for name, sizes in widths.items()
    }

    def at(places: Mapping[str, int]) -> dict[str, int]:
        return {name: widths[name][place] for name, place in places.items()}

    spent = cost(at(place))
    while True:
        over = {name: spent[name] / bound for name, bound in bounds.items() if spent[name] > bound}
        if not over:
            break
        metric = max(over, key=over.__getitem__)
        best: tuple[float, str] | None = None
        for name, sizes in widths.items():
            for to in range(place[name] + 1, min(place[name] + 1 + _AHEAD, len(sizes))):
                saved = spent[metric] - cost(at({**place, name: to}))[metric]
                if saved > 0:
                    rate = (penalty[name][to] - penalty[name][place[name]]) / saved
                    best = min(best or (rate, name), (rate, name))
        if best is None:
            least = cost({name: sizes[-1] for name, sizes in widths.items()})[metric]
            raise BudgetError(
                bounds[metric],
                least,
                metric=metric,
                smallest="at the least widths",
                remedy="Raise it, or let more layers be cut. Channels stay in multiples of "
                f"{multiple}.",
            )
        place[best[1]] += 1
        spent = cost(at(place))
    # The last steps may have saved more than was needed: what fits again comes back.
    while True:
        gains = []
        for name in widths:
            for to in range(place[name]):
                wider = {**place, name: to}
                if all(value <= bounds.get(m, np.inf) for m, value in cost(at(wider)).items()):
                    gains.append((penalty[name][place[name]] - penalty[name][to], name, to))
                    break
        if not gains or max(gains)[0] <= 0:
            return at(place)
        _, name, to = max(gains)
        place[name] = to
