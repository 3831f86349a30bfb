"""Channels and ranks chosen together, for one budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras

from dprp_tf.conversion.cutting import cut
from dprp_tf.conversion.output_truncations import output_truncations
from dprp_tf.conversion.removing import Removal
from dprp_tf.conversion.sequential_refitting import refit_in_sequence
from dprp_tf.conversion.times_by_rank import times_by_rank
from dprp_tf.costs.budget import Budget, BudgetError
from dprp_tf.costs.channel_plan import ChannelPlan
from dprp_tf.costs.joint_plan import JointPlan
from dprp_tf.costs.models import model_cost
from dprp_tf.costs.rank_plan import RankPlan
from dprp_tf.costs.rank_space import RankSpace
from dprp_tf.costs.scores import Score, resolve_score
from dprp_tf.costs.width_table import WidthTable
from dprp_tf.files.arguments import check_choice
from dprp_tf.selection.channel_choice import ChannelChoice
from dprp_tf.selection.measured_cuts import MeasuredCuts, gives_classes
from dprp_tf.selection.solving.joint_costs import JointCosts

__all__ = ["select_channels_and_ranks"]

# Those whose stages are plain layers, of which a width table knows the cost.
_DECOMPOSITIONS = ("separable", "channel")


def select_channels_and_ranks(
    model: keras.Model,
    *,
    budget: Budget | float | Mapping[str, float],
    data: Any,
    latency: WidthTable | None = None,
    decomposition: str = "separable",
    groups: Iterable[str] | None = None,
    layers: Iterable[str] | None = None,
    multiple: int = 8,
    score: Score | None = None,
    progress: Callable[[float | None, str], None] | None = None,
    seed: int = 0,
) -> JointPlan:
    """Choose the channels that go and the ranks of what is left, together, against one budget.

    Both are told in one currency: what they change of the model's outputs on `data`, measured, as
    `OutputChange` says. Each width of each group and each rank of each layer is measured alone;
    by these changes, and by what is lost of layers' outputs, channels alone, ranks alone and both
    are brought within the budget; the best of those is then improved by exchanging cuts for others,
    each exchange measured with all the rest, until none is left that changes less. So the result
    changes the outputs no more than what channels alone or ranks alone began with.

    Args:
        model: A built, trained Functional or Sequential model; it stays as it is.
        budget: A `Budget` of parameters, MACs or time, its bounds by name, or a share of the
            parameters alone.
        data: `(x, y)`, a few hundred labelled samples, none of the test split; or x alone, and the
            plan states no accuracy.
        latency: A width table with the same decomposition, as `deploy.measure_widths(model,
            decomposition="separable")` makes it, for budgets of time.
        decomposition: `"separable"` or `"channel"`. Default `"separable"`.
        groups: Names of the groups that may lose channels; see `channel_groups`. Default: all.
        layers: Names or paths of the layers whose ranks may fall. Default: every one that can.
        multiple: Multiples in which places of a group stay. Default 8.
        score: What is called accuracy, as `select_ranks` takes it.
        progress: Called with the share done, 0 to 1 or None, and a text. Default: nothing shown.
        seed: Seed of everything random.

    Returns:
        The `JointPlan`; `cut(model, plan, calibration_data=x)` applies it.

    Raises:
        BudgetError: If neither channels nor ranks nor both meet the budget.
        ValueError: If an argument is unusable.

    Source: ours. NetAdapt (Yang et al. 2018) measures candidates of one layer at a time; it
    lowers a budget step by step, and knows channels alone.

    Example:

    >>> import numpy as np
    >>> inputs = keras.Input((8, 8, 3))
    >>> x = keras.layers.Conv2D(16, 3, name="a")(inputs)
    >>> x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(16, 3, name="b")(x))
    >>> model = keras.Model(inputs, keras.layers.Dense(4, activation="softmax", name="c")(x))
    >>> model.compile(loss="sparse_categorical_crossentropy")
    >>> x, y = np.random.default_rng(0).normal(size=(32, 8, 8, 3)), np.arange(32) % 4
    >>> plan = select_channels_and_ranks(model, budget={"macs": 0.6}, data=(x, y))
    >>> plan.shares["macs"] <= 0.6
    True
    """
    check_choice("decomposition", decomposition, _DECOMPOSITIONS)
    told = progress or (lambda share, text: None)
    choice = ChannelChoice(
        model,
        method="outputs",
        data=data,
        groups=groups,
        multiple=multiple,
        latency=latency,
        progress=progress,
        seed=seed,
    )
    asked = Budget.of(budget)
    shares = choice.shares_allowed(asked)
    costs = JointCosts(
        model, choice.costs, decomposition, _able(latency, decomposition, layers), latency
    )
    assert choice.samples is not None
    x, y = choice.samples
    judge = None if y is None else resolve_score(score, model, y)
    cuts = MeasuredCuts(model, choice, costs, classes=gives_classes(model, y), told=told)
    try:
        widths, ranks = cuts.choose(shares)
    except BudgetError as error:
        raise choice.in_units(error, asked) from None
    told(None, "cutting what was chosen")
    bounds = asked.on(latency).bounds
    channels = choice.plan(widths, bounds)
    # With ranks too, all is fitted once at the end, as `cut` does.
    small = cut(model, channels, calibration_data=x, refit=not ranks)
    part, result = _ranked(model, small, channels, ranks, decomposition, latency, x)
    counted = model_cost(result)
    cost = {"parameters": float(counted.parameters)}
    if counted.macs is not None:
        cost["macs"] = float(counted.macs)
    if latency is not None:
        cost["milliseconds"] = part.cost["milliseconds"]
    accuracy = {}
    if judge is not None:
        accuracy = {
            name: float(judge(y, network.predict(x, verbose=0)))
            for name, network in (("dense", model), ("planned", result))
        }
    dense = {name: channels.dense[name] for name in cost}
    return JointPlan("outputs", channels, part, bounds, cost, dense, accuracy)


def _ranked(
    model: keras.Model,
    small: keras.Model,
    channels: ChannelPlan,
    ranks: Mapping[str, int],
    decomposition: str,
    latency: WidthTable | None,
    x: Any,
) -> tuple[RankPlan, keras.Model]:
    """The plan of the ranks of what channels left, and that cut to them."""
    own = channels.cost
    if not ranks:
        part = RankPlan("outputs", decomposition, "output", {}, (), own, own, unit=channels.unit)
        return part, small
    times = None
    if latency is not None:
        times = times_by_rank(small, latency, maps=channels.shares.get("activations", 1.0))
    space = RankSpace(
        small,
        decomposition,
        list(ranks),
        truncate=output_truncations(small, list(ranks), x),
        latency=times,
    )
    chosen = {name: (rank,) for name, rank in ranks.items()}
    spent = space.cost(chosen)
    part = RankPlan(
        "outputs",
        decomposition,
        "output",
        {},
        space.planned(chosen),
        spent.values,
        spent.dense,
        unit=channels.unit,
    )
    # As `cut` does with both, but for the channels, which have gone already.
    result = cut(small, part, calibration_data=x, refit=False, latency=times)
    refit_in_sequence(model, result, x, kept=Removal(model, channels.removed).kept())
    return part, result


def _able(
    latency: WidthTable | None, decomposition: str, layers: Iterable[str] | None
) -> list[str] | None:
    """The layers whose ranks may fall: those of which the table knows both stages."""
    wanted = None if layers is None else [layers] if isinstance(layers, str) else list(layers)
    if latency is None:
        return wanted
    staged = [row.name for row in latency.layers if row.decomposition == decomposition]
    if not staged:
        raise ValueError(
            f"`latency` must know {decomposition!r} ranks. Received: a table of widths alone, or "
            "of another decomposition; make it with deploy.measure_widths(model, "
            f"decomposition={decomposition!r})."
        )
    return [name for name in staged if wanted is None or name in wanted]
