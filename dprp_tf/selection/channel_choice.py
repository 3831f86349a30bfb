"""Which channels of a model go at which cost: ordered once, then chosen for any budget."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from dprp_tf.channels import ChannelGroup, Followed, follow, groups_of, place_labels
from dprp_tf.conversion.calibration import has_moments, input_moments
from dprp_tf.conversion.refitting import kernel_matrix, rows_of_channels
from dprp_tf.costs.budget import Budget, BudgetError
from dprp_tf.costs.channel_plan import ChannelPlan, PlannedChannels
from dprp_tf.costs.width_table import WidthTable
from dprp_tf.files.arguments import check_choice, check_integer
from dprp_tf.keras_internals.graphs import layer_keys
from dprp_tf.selection.methods.channel_norms import CRITERIA, filter_scores, order_by_scores
from dprp_tf.selection.methods.channel_outputs import Reader, order_by_outputs
from dprp_tf.selection.scoring.samples import samples_of
from dprp_tf.selection.solving.bounds import as_shares, bounds_of
from dprp_tf.selection.solving.width_costs import WidthCosts
from dprp_tf.selection.solving.widths import choose_widths

__all__ = ["CHANNEL_METHODS", "METHODS_BY_DATA", "ChannelChoice"]

CHANNEL_METHODS = ("outputs", "activation", *CRITERIA)
METHODS_BY_DATA = ("outputs", "activation")

# Even widths are looked for in steps of this part of a group.
_EVEN_STEPS = 128

# Places in the order in which they go, and the share lost when k of them have gone.
_Order = tuple[list[int], NDArray[np.float64]]


class ChannelChoice:
    """The order in which a model's channels go, and plans for budgets made of it.

    Args:
        model: A built, trained model.
        method: One of `CHANNEL_METHODS`.
        data: `(x, y)` or x alone; None for methods that look at none.
        groups: Names of the groups that may lose channels; None for all.
        multiple: Multiples in which places stay.
        latency: The model's width table; None to know no times.
        progress: Called with the share done and a text; None for silence.
        seed: Seed of chance.

    Attributes:
        samples: The data as arrays, `(x, y)`; None without.
        calibration: Inputs that a cut by these plans is fitted on; None where they look at none.
        dense: Costs of the whole model by metric, those that are known.
        moments: What `input_moments` gave of the layers that were looked at so far.

    Raises:
        ValueError: If an argument is unusable.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        method: str,
        data: Any,
        groups: Iterable[str] | None,
        multiple: int,
        latency: WidthTable | None,
        progress: Callable[[float | None, str], None] | None,
        seed: int,
    ) -> None:
        check_choice("method", method, CHANNEL_METHODS)
        check_integer("multiple", multiple)
        self.method, self.multiple, self._latency = method, multiple, latency
        self._model, self._followed, self._seed = model, follow(model), seed
        self._groups = groups_of(model, self._followed).able(groups)
        self.samples = None if data is None else samples_of(data, model)
        if method in METHODS_BY_DATA and self.samples is None:
            raise ValueError(
                f"`data` must be given for method={method!r}: (x, y) or x alone, a few hundred "
                "samples. Received: data=None. method='l1' needs none."
            )
        known = method in METHODS_BY_DATA and self.samples is not None
        self.calibration = self.samples[0] if known and self.samples else None
        self._told = progress or (lambda share, text: None)
        self.moments: dict[str, NDArray[np.float64]] = {}
        # What does not fit is refused before minutes are spent on an order.
        self.dense = WidthCosts(model, self._followed, [], latency).dense

    @cached_property
    def _orders(self) -> dict[str, _Order]:
        return _orders(
            self._model,
            self._followed,
            self._groups,
            self.method,
            self.samples,
            self._told,
            self._seed,
            self.moments,
        )

    @property
    def groups(self) -> list[ChannelGroup]:
        """The groups that may lose channels."""
        return list(self._groups)

    @property
    def followed(self) -> Followed:
        """Where the model's channels go."""
        return self._followed

    def order(self, group: str) -> _Order:
        """Return the places of a group in the order in which they go, and what is lost with them.

        Args:
            group: Its name.

        Returns:
            The places, and the share lost when k of them have gone, which starts with 0.
        """
        return self._orders[group]

    @cached_property
    def costs(self) -> WidthCosts:
        """What the model costs by the widths of its groups."""
        ordered = [(group, self._orders[group.name][0]) for group in self._groups]
        return WidthCosts(self._model, self._followed, ordered, self._latency)

    def shares_allowed(self, budget: Budget) -> dict[str, float]:
        """Return the bounds of a budget as shares of the whole model's costs.

        Args:
            budget: The budget.

        Returns:
            Shares by metric.

        Raises:
            ValueError: If it bounds an accuracy, a time without a table, or a cost not known.
        """
        bounds = bounds_of(budget, self._latency)
        unknown = sorted(set(bounds) - set(self.dense))
        if unknown:
            raise ValueError(
                f"`budget` must bound costs that are known: {list(self.dense)}. Received: "
                f"{unknown}; rebuild the model with a fixed input shape."
            )
        return as_shares(bounds, self._latency)

    def widths(self, shares: Mapping[str, float]) -> dict[str, int]:
        """Return how many places each group keeps for the least loss within some bounds.

        Args:
            shares: The largest shares of the whole model's costs, by metric.

        Returns:
            Widths by group.

        Raises:
            BudgetError: If no widths meet the bounds; in shares.
        """
        widths = {group.name: group.widths(self.multiple) for group in self._groups}
        lost = {name: share for name, (_, share) in self._orders.items()}
        return choose_widths(lost, widths, self.costs.shares, shares, self.multiple)

    def even_widths(self, shares: Mapping[str, float]) -> dict[str, int]:
        """Return the widest even widths within some bounds: one share of each group, as rounded.

        Args:
            shares: The largest shares of the whole model's costs, by metric.

        Returns:
            Widths by group.

        Raises:
            BudgetError: If no such widths meet the bounds; in shares.
        """
        known = {group.name: (group.size, group.widths(self.multiple)) for group in self._groups}
        widths: dict[str, int] = {}
        for part in range(_EVEN_STEPS, 0, -1):
            widths = {
                name: _nearest(able, size * part / _EVEN_STEPS)
                for name, (size, able) in known.items()
            }
            spent = self.costs.shares(widths)
            if all(spent[metric] <= bound for metric, bound in shares.items()):
                return widths
        spent = self.costs.shares(widths)
        metric = max(shares, key=lambda name: spent[name] / shares[name])
        raise BudgetError(
            shares[metric], spent[metric], metric=metric, smallest="at the least even widths"
        )

    @property
    def least(self) -> dict[str, int]:
        """The fewest places that each group may keep."""
        return {group.name: group.widths(self.multiple)[-1] for group in self._groups}

    def without_data(self) -> ChannelChoice:
        """Return one that looks at the filters instead of the data, to see what can be met."""
        found = copy.copy(self)
        found.method = "l2" if self.method == "activation" else self.method
        return found

    def plan(self, widths: Mapping[str, int], bounds: Mapping[str, float]) -> ChannelPlan:
        """Return the plan of some widths, its costs as predicted.

        Args:
            widths: Places that groups keep; groups left out are whole.
            bounds: The bounds that were asked for, by name.

        Returns:
            The plan, which tells no accuracy.
        """
        rows = tuple(
            _row(group, self._orders[group.name], widths.get(group.name, group.size))
            for group in self._groups
        )
        dense = self.dense
        cost = {name: share * dense[name] for name, share in self.costs.shares(widths).items()}
        unit = "ms" if self._latency is None else self._latency.unit
        return ChannelPlan(self.method, self.multiple, bounds, rows, cost, dense, unit=unit)

    def in_units(self, error: BudgetError, budget: Budget) -> BudgetError:
        """Return an error about shares in the units that the budget was given in.

        Args:
            error: What `widths` raised.
            budget: The budget.

        Returns:
            The error to raise.
        """
        if self._latency is None or error.metric != "milliseconds":
            return error
        absolute = BudgetError(
            error.budget * self._latency.dense,
            error.least * self._latency.dense,
            metric=error.metric,
            unit=self._latency.unit,
            smallest="at the least widths",
            remedy="Raise it, or let more layers be cut. Channels stay in multiples of "
            f"{self.multiple}.",
        )
        return absolute.asked_as(budget, self._latency)


def _nearest(widths: list[int], wanted: float) -> int:
    return min(widths, key=lambda width: abs(width - wanted))


def _orders(
    model: keras.Model,
    followed: Followed,
    groups: list[ChannelGroup],
    method: str,
    samples: Any,
    told: Callable[[float | None, str], None],
    seed: int,
    moments: dict[str, NDArray[np.float64]],
) -> dict[str, _Order]:
    """In which order the places of each group go, and what is lost with them; fills `moments`."""
    layers = layer_keys(model)
    rng = np.random.default_rng(seed)
    found: dict[str, _Order] = {}
    if method not in METHODS_BY_DATA:
        for group in groups:
            scores = filter_scores(layers, group, method, rng)
            found[group.name] = order_by_scores(scores, _loose(group))
        return found
    readers = {name for group in groups for name in group.readers if has_moments(layers[name])}
    told(None, "running the data")
    if readers:
        moments.update(input_moments(model, sorted(readers), samples[0]))
    for at, group in enumerate(groups):
        told(at / len(groups), f"channels of {group.name}")
        read = [
            Reader(moments[name], kernel_matrix(layers[name]), _rows(followed, layers, group, name))
            for name in group.readers
            if name in moments
        ]
        if read:
            found[group.name] = order_by_outputs(read, _loose(group))
        else:
            # Readers of other kinds say nothing here: the filters themselves do.
            scores = filter_scores(layers, group, "l2", rng)
            found[group.name] = order_by_scores(scores, _loose(group))
    return found


def _loose(group: ChannelGroup) -> NDArray[np.bool_]:
    return np.array([reason is None for reason in group.reasons])


def _rows(
    followed: Followed, layers: Mapping[str, Any], group: ChannelGroup, reader: str
) -> list[NDArray[np.intp]]:
    """The rows of a reader's kernel by place of a group."""
    reads = followed.labels.find(followed.layers[id(layers[reader])].reads)
    rows = rows_of_channels(layers[reader])
    return [
        rows[reads == label].reshape(-1) for label in place_labels(followed, layers, group).tolist()
    ]


def _row(group: ChannelGroup, order: _Order, kept: int) -> PlannedChannels:
    places, lost = order
    gone = places[: group.size - kept]
    removed: dict[str, list[int]] = {}
    for place in gone:
        name, tied = group.filters_at(place)
        removed.setdefault(name, []).extend(tied)
    return PlannedChannels(
        group.name,
        group.size,
        kept,
        float(np.clip(lost[len(gone)], 0.0, 1.0)),
        {name: tuple(sorted(tied)) for name, tied in removed.items()},
    )
