"""One call for every way to choose the channels that a trained model can do without."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from dprp_tf.channels import ChannelGroup, ChannelGroups, Followed, follow, groups_of
from dprp_tf.conversion.calibration import has_moments, input_moments
from dprp_tf.conversion.cutting import cut
from dprp_tf.conversion.refitting import kernel_matrix, rows_of_channels
from dprp_tf.costs.budget import Budget
from dprp_tf.costs.channel_plan import ChannelPlan, PlannedChannels
from dprp_tf.costs.models import model_cost
from dprp_tf.costs.scores import Score, resolve_score
from dprp_tf.files.arguments import check_choice, check_integer
from dprp_tf.keras_internals.graphs import layer_keys
from dprp_tf.selection.methods.channel_norms import CRITERIA, filter_scores, order_by_scores
from dprp_tf.selection.methods.channel_outputs import Reader, order_by_outputs
from dprp_tf.selection.scoring.samples import samples_of
from dprp_tf.selection.solving.width_costs import WidthCosts
from dprp_tf.selection.solving.widths import choose_widths, widths_in_multiples

__all__ = ["CHANNEL_METHODS", "prunable_groups", "select_channels"]

CHANNEL_METHODS = ("activation", *CRITERIA)
_METRICS = ("parameters", "macs")


def select_channels(
    model: keras.Model,
    *,
    method: str = "activation",
    budget: Budget | float | Mapping[str, float],
    data: Any = None,
    groups: Iterable[str] | None = None,
    multiple: int = 8,
    score: Score | None = None,
    progress: Callable[[float | None, str], None] | None = None,
    seed: int = 0,
) -> ChannelPlan:
    """Choose the channels that go of a trained model, against a budget.

    | method | looks at | source |
    |---|---|---|
    | `"activation"` | the outputs of what reads them on `data`, its kernels fitted anew | ours |
    | `"l1"`, `"l2"` | norms of the filters | Li et al. 2017 |
    | `"geometric_median"` | the filters' distances to the others of their layer | He et al. 2019 |
    | `"random"` | chance, as a control | |

    Each gives an order in which a group's places go and the share that is lost with them; widths
    are those that keep a large product of the shares left (see `choose_widths`), within the budget.

    Args:
        model: A built, trained Functional or Sequential model; it stays as it is.
        method: A name of the table. Default `"activation"`, which needs `data`.
        budget: A `Budget` of parameters, MACs or both, its bounds by name, or a share of the
            parameters alone. Channels go in multiples, so that the result may stay below.
        data: As `select_ranks` takes it: `(x, y)`, or x alone; the plan then states no accuracy.
        groups: Names of the groups that may lose channels; see `channel_groups`. Default: all.
        multiple: Multiples in which places of a group stay; groups of no more stay whole.
            Default 8, which int8 kernels are made for.
        score: What is called accuracy, as `select_ranks` takes it.
        progress: Called with the share done, 0 to 1 or None, and a text. Default: nothing shown.
        seed: Seed of chance.

    Returns:
        The `ChannelPlan`; `cut(model, plan, calibration_data=x)` applies it, and fits the kernels
        of what reads the channels; `remove_channels(model, plan.removed)` leaves them.

    Raises:
        BudgetError: If no widths meet the budget; it names the bound and what can be met.
        ValueError: If an argument is unusable.

    Example:

    >>> inputs = keras.Input((8, 8, 3))
    >>> x = keras.layers.Conv2D(32, 3, name="a")(inputs)
    >>> model = keras.Model(inputs, keras.layers.Conv2D(4, 1, name="b")(x))
    >>> plan = select_channels(model, method="l1", budget=0.6)
    >>> [(row.name, row.size, row.kept) for row in plan.groups], plan.shares["parameters"] <= 0.6
    ([('a', 32, 16)], True)
    """
    check_choice("method", method, CHANNEL_METHODS)
    check_integer("multiple", multiple)
    bounds = _bounds(budget)
    followed = follow(model)
    found = prunable_groups(groups_of(model, followed), groups)
    samples = None if data is None else samples_of(data, model)
    if method == "activation" and samples is None:
        raise ValueError(
            "`data` must be given for method='activation': (x, y) or x alone, a few hundred "
            "samples. Received: data=None. method='l1' needs none."
        )
    told = progress or (lambda share, text: None)
    orders = _orders(model, followed, found, method, samples, told, seed)
    costs = WidthCosts(model, followed, [(group, orders[group.name][0]) for group in found])
    widths = {
        group.name: widths_in_multiples(group.size, len(orders[group.name][0]), multiple)
        for group in found
    }
    lost = {name: share for name, (_, share) in orders.items()}
    chosen = choose_widths(lost, widths, costs.shares, bounds, multiple)
    rows = tuple(_row(group, orders[group.name], chosen[group.name]) for group in found)
    plan = ChannelPlan(method, multiple, bounds, rows, costs.dense, costs.dense)
    x = None if samples is None or method != "activation" else samples[0]
    told(None, "measuring what is left")
    small = cut(model, plan, calibration_data=x)
    counted = model_cost(small)
    accuracy = {}
    if samples is not None and samples[1] is not None:
        judge = resolve_score(score, model, samples[1])
        accuracy = {
            name: float(judge(samples[1], network.predict(samples[0], verbose=0)))
            for name, network in (("dense", model), ("planned", small))
        }
    exact = {"parameters": float(counted.parameters), "macs": float(counted.macs or 0)}
    cost = {name: exact[name] for name in plan.dense}
    return replace(plan, cost=cost, accuracy=accuracy)


def _bounds(budget: Budget | float | Mapping[str, float]) -> dict[str, float]:
    asked = Budget.of(budget)
    bounds = asked.bounds
    others = [name for name in ("time", "accuracy_drop") if getattr(asked, name) is not None]
    if others or set(bounds) - set(_METRICS):
        raise ValueError(
            f"`budget` must bound {' or '.join(_METRICS)} where channels are chosen. Received: "
            f"{', '.join(sorted({*bounds, *others}))}"
        )
    return dict(bounds)


def prunable_groups(
    groups: ChannelGroups, names: Iterable[str] | None = None
) -> list[ChannelGroup]:
    """Return the groups that may lose channels.

    Args:
        groups: All groups of a model.
        names: Names of those that are wanted. Default: all that may lose some.

    Returns:
        The groups.

    Raises:
        ValueError: If a name is unknown or its channels must stay, or there are none.
    """
    able = {group.name: group for group in groups.values() if group.prunable}
    if names is None:
        wanted = list(able)
    else:
        wanted = [names] if isinstance(names, str) else list(names)
        unable = [name for name in wanted if name not in able]
        if unable:
            reasons = {name: groups[name].reason for name in unable if name in groups}
            raise ValueError(
                f"`groups` must name groups of which channels may go: {list(able)}. Received: "
                f"{unable}{f'; what keeps them: {reasons}' if reasons else ''}"
            )
    if not wanted:
        raise ValueError(
            "`model` must have channels that may go. Received: one in which all must stay; "
            "print(dprp_tf.channel_groups(model)) says why."
        )
    return [able[name] for name in wanted]


_Order = tuple[list[int], NDArray[np.float64]]


def _orders(
    model: keras.Model,
    followed: Followed,
    groups: list[ChannelGroup],
    method: str,
    samples: Any,
    told: Callable[[float | None, str], None],
    seed: int,
) -> dict[str, _Order]:
    """In which order the places of each group go, and what is lost with them."""
    layers = layer_keys(model)
    rng = np.random.default_rng(seed)
    found: dict[str, _Order] = {}
    if method != "activation":
        for group in groups:
            scores = filter_scores(layers, group, method, rng)
            found[group.name] = order_by_scores(scores, _loose(group))
        return found
    readers = {name for group in groups for name in group.readers if has_moments(layers[name])}
    told(None, "running the data")
    moments = input_moments(model, sorted(readers), samples[0]) if readers else {}
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
    labels = followed.labels
    reads = labels.find(followed.layers[id(layers[reader])].reads)
    rows = rows_of_channels(layers[reader])
    found = []
    for place in range(group.size):
        name, tied = group.filters_at(place)
        root = labels.find(followed.layers[id(layers[name])].makes[[tied[0]]])[0]
        found.append(rows[reads == root].reshape(-1))
    return found


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
