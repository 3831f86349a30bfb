"""One call for every way to choose the channels that a trained model can do without."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import keras

from dprp_tf.conversion.cutting import cut
from dprp_tf.costs.budget import Budget, BudgetError
from dprp_tf.costs.channel_plan import ChannelPlan
from dprp_tf.costs.models import model_cost
from dprp_tf.costs.scores import Score, resolve_score
from dprp_tf.costs.width_table import WidthTable
from dprp_tf.selection.channel_choice import CHANNEL_METHODS, ChannelChoice
from dprp_tf.selection.chosen_widths import chosen_widths

__all__ = ["CHANNEL_METHODS", "select_channels"]


def select_channels(
    model: keras.Model,
    *,
    method: str = "outputs",
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
    | `"outputs"` | the model's outputs on `data`, measured for hundreds of candidates | ours |
    | `"activation"` | the outputs of what reads them on `data`, its kernels fitted anew | ours |
    | `"l1"`, `"l2"` | norms of the filters | Li et al. 2017 |
    | `"geometric_median"` | the filters' distances to the others of their layer | He et al. 2019 |
    | `"random"` | chance, as a control | |

    Each gives an order in which a group's places go and the share that is lost with them; that of
    `"outputs"` is that of `"activation"`. Widths are those that keep a large product of the shares
    left (see `choose_widths`), within the budget; of `"outputs"` those that change the model's
    outputs least, as `select_channels_and_ranks` finds them.

    Args:
        model: A built, trained Functional or Sequential model; it stays as it is.
        method: A name of the table. Default `"outputs"`, which needs `data`.
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
    choice = ChannelChoice(
        model,
        method=method,
        data=data,
        groups=groups,
        multiple=multiple,
        latency=latency,
        progress=progress,
        seed=seed,
    )
    asked = Budget.of(budget)
    bounds = choice.shares_allowed(asked)
    try:
        chosen = chosen_widths(model, choice, bounds, progress or (lambda share, text: None))
    except BudgetError as error:
        raise choice.in_units(error, asked) from None
    plan = choice.plan(chosen, asked.on(latency).bounds)
    if progress is not None:
        progress(None, "measuring what is left")
    small = cut(model, plan, calibration_data=choice.calibration)
    counted = model_cost(small)
    exact = {"parameters": float(counted.parameters)}
    if counted.macs is not None:
        exact["macs"] = float(counted.macs)
    accuracy = {}
    if choice.samples is not None and choice.samples[1] is not None:
        x, y = choice.samples
        judge = resolve_score(score, model, y)
        accuracy = {
            name: float(judge(y, network.predict(x, verbose=0)))
            for name, network in (("dense", model), ("planned", small))
        }
    return replace(plan, cost={**plan.cost, **exact}, accuracy=accuracy)
