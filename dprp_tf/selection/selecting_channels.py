"""One call for every way to choose the channels that a trained model can do without."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from dprp_tf.channels import ChannelGroup, Followed, follow, groups_of, place_labels
from dprp_tf.conversion.calibration import has_moments, input_moments
from dprp_tf.conversion.cutting import cut
from dprp_tf.conversion.refitting import kernel_matrix, rows_of_channels
from dprp_tf.costs.budget import METRICS, Budget, BudgetError
from dprp_tf.costs.channel_plan import ChannelPlan, PlannedChannels
from dprp_tf.costs.models import model_cost
from dprp_tf.costs.scores import Score, resolve_score
from dprp_tf.costs.width_table import WidthTable
from dprp_tf.files.arguments import check_choice, check_integer
from dprp_tf.keras_internals.graphs import layer_keys
from dprp_tf.selection.methods.channel_norms import CRITERIA, filter_scores, order_by_scores
from dprp_tf.selection.methods.channel_outputs import Reader, order_by_outputs
from dprp_tf.selection.scoring.samples import samples_of
from dprp_tf.selection.solving.width_costs import WidthCosts
from dprp_tf.selection.solving.widths import choose_widths

__all__ = ["CHANNEL_METHODS", "select_channels"]

CHANNEL_METHODS = ("activation", *CRITERIA)


def select_channels(
    model: keras.Model,
    *,
    method: str = "activation",
    budget: Budget | float | Mapping[str, float],
    data: Any = None,
    groups: Iterable[str] | None = None,
    multiple: int = 8,
    latency: WidthTable | None = None,
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
        budget: A `Budget` of parameters, MACs, activations or time, its bounds by name, or a share
            of the parameters alone. Channels go in multiples, so that the result may stay below.
        data: As `select_ranks` takes it: `(x, y)`, or x alone; the plan then states no accuracy.
        groups: Names of the groups that may lose channels; see `channel_groups`. Default: all.
        multiple: Multiples in which places of a group stay; groups of no more stay whole.
            Default 8, which int8 kernels are made for.
        latency: A width table of the model, as `deploy.measure_widths` makes it, for budgets of
            time.
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
    bounds = _bounds(budget, latency)
    followed = follow(model)
    found = groups_of(model, followed).able(groups)
    samples = None if data is None else samples_of(data, model)
    if method == "activation" and samples is None:
        raise ValueError(
            "`data` must be given for method='activation': (x, y) or x alone, a few hundred "
            "samples. Received: data=None. method='l1' needs none."
        )
    told = progress or (lambda share, text: None)
    orders = _orders(model, followed, found, method, samples, told, seed)
    ordered = [(group, orders[group.name][0]) for group in found]
    costs = WidthCosts(model, followed, ordered, latency)
    widths = {group.name: group.widths(multiple) for group in found}
    lost = {name: share for name, (_, share) in orders.items()}
    _require_known(bounds, costs.dense)
    limits = {
        name: bound / latency.dense if latency and name == "milliseconds" else bound
        for name, bound in bounds.items()
    }
    try:
        chosen = choose_widths(lost, widths, costs.shares, limits, multiple)
    except BudgetError as error:
        raise _in_units(error, budget, latency) from None
    rows = tuple(_row(group, orders[group.name], chosen[group.name]) for group in found)
    unit = "ms" if latency is None else latency.unit
    plan = ChannelPlan(method, multiple, bounds, rows, costs.dense, costs.dense, unit=unit)
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
    predicted = {name: share * costs.dense[name] for name, share in costs.shares(chosen).items()}
    exact = {"parameters": float(counted.parameters)}
    if counted.macs is not None:
        exact["macs"] = float(counted.macs)
    return replace(plan, cost=predicted | exact, accuracy=accuracy)


def _bounds(
    budget: Budget | float | Mapping[str, float], latency: WidthTable | None
) -> dict[str, float]:
    asked = Budget.of(budget)
    if asked.accuracy_drop is not None:
        raise ValueError(
            f"`budget` must bound {', '.join(METRICS)} or time where channels are chosen. "
            "Received: accuracy_drop"
        )
    if asked.of_time and latency is None:
        raise ValueError(
            "`latency` must be given for a budget of time: deploy.measure_widths(model, "
            "target=...). Received: latency=None"
        )
    return dict(asked.on(latency).bounds)


def _require_known(bounds: Mapping[str, float], dense: Mapping[str, float]) -> None:
    unknown = sorted(set(bounds) - set(dense))
    if unknown:
        raise ValueError(
            f"`budget` must bound costs that are known: {list(dense)}. Received: {unknown}; "
            "rebuild the model with a fixed input shape."
        )


def _in_units(
    error: BudgetError, budget: Budget | float | Mapping[str, float], latency: WidthTable | None
) -> BudgetError:
    """The error about shares in the units that the budget was given in."""
    if latency is None or error.metric != "milliseconds":
        return error
    by_time = Budget.of(budget).time is not None
    scale = 1.0 if by_time else latency.dense
    return BudgetError(
        error.budget * scale,
        error.least * scale,
        metric="time" if by_time else "milliseconds",
        unit=latency.unit,
        smallest="at the least widths",
        remedy="Raise it, or let more layers be cut.",
    )


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
