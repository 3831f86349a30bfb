"""One call that learns which channels and which ranks a trained model can do without."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from dprp_tf.channels import ChannelGroup, Places, follow, groups_of, places_of
from dprp_tf.conversion.calibration import input_moments
from dprp_tf.conversion.cutting import cut
from dprp_tf.conversion.output_truncations import output_truncations
from dprp_tf.conversion.times_by_rank import times_by_rank
from dprp_tf.costs.budget import Budget, BudgetError
from dprp_tf.costs.channel_plan import ChannelPlan, PlannedChannels
from dprp_tf.costs.joint_plan import JointPlan
from dprp_tf.costs.models import model_cost
from dprp_tf.costs.rank_plan import RankPlan
from dprp_tf.costs.rank_space import Ranks, RankSpace
from dprp_tf.costs.scores import Score, resolve_score
from dprp_tf.costs.width_table import WidthTable
from dprp_tf.data import Dataset, StreamedImages
from dprp_tf.files.arguments import check_choice, check_integer
from dprp_tf.keras_internals.layer_kinds import RECURRENT, TRANSPOSED
from dprp_tf.layers.factorizable import factorizable
from dprp_tf.layers.kernels import kernel_of
from dprp_tf.selection.methods.less import Learned, LeSS
from dprp_tf.selection.scoring.samples import picked, samples_of
from dprp_tf.selection.solving.bounds import as_shares, bounds_of
from dprp_tf.selection.solving.rounded_counts import (
    narrowed,
    nearest_widths,
    order_of_places,
    scaled_ranks,
    widened,
)
from dprp_tf.selection.solving.soft_costs import SoftCosts
from dprp_tf.selection.solving.timed_costs import TimedCosts
from dprp_tf.selection.solving.width_costs import WidthCosts

__all__ = ["CALIBRATION_SAMPLES", "learn_channels_and_ranks"]

_TIME, _MAPS = "milliseconds", "activations"
_TRUNCATIONS = ("kernel", "output")
_DECOMPOSITIONS = ("channel", "tucker")
CALIBRATION_SAMPLES = 512
"""On how many of the samples, the first ones, cuts keep the outputs."""
# Samples that accuracies are measured on.
_MEASURED = 4096


def learn_channels_and_ranks(
    model: keras.Model,
    data: Any,
    *,
    budget: Budget | float | Mapping[str, float],
    learning: LeSS | None = None,
    decomposition: str = "channel",
    groups: Iterable[str] | None = None,
    layers: Iterable[str] | Callable[[keras.layers.Layer], bool] | None = None,
    multiple: int = 8,
    truncation: str = "output",
    latency: WidthTable | None = None,
    validation_data: Any = None,
    score: Score | None = None,
    folder: str | os.PathLike[str] | None = None,
    progress: Callable[[float | None, str], None] | None = None,
    seed: int = 0,
) -> JointPlan:
    """Learn which channels and ranks of a trained model go, both at once, against a budget.

    LeSS: the weights stay as they are, and gradient steps lower

        loss(y, model with kernels SVT(mask * W, g)) + lambda ||B - B_d||^2

    by a mask m (places,) of each group of channels and a threshold g of each kernel's singular
    values, with W as a matrix (L*C, S) of L positions, C channels and S filters; in Tucker-2 with
    a second threshold, of its unfolding (L*S, C):

        mask = 1 / (1 + exp(-mu (m - 0.5)));  SVT(U S V^T, g) = U ReLU(S - g) V^T
        channels c = sum mask;  rank r = sum tanh(ReLU(S - g) t)
        B = sum A min(r (L c_in + c_out), L c_in c_out) / sum A L C S  for MACs, A positions each,
        and in Tucker-2  A_0 c_in r_in + A (L r_in r_out + r_out c_out)  at A_0 positions read

    Then counts of channels are rounded to multiples, and ranks in proportion to the soft ones are
    taken as large as the budget allows, within its tolerance where whole numbers come as close.
    Unlike `select_channels` and `select_ranks`, which look at a model, this trains: give it
    labelled training data, a few thousand samples or more.

    Args:
        model: A built, trained Functional or Sequential model; it stays as it is.
        data: Labelled training data `(x, y)` or a `Dataset`, as `select_ranks` takes data.
        budget: A `Budget` of parameters, MACs, activations or time, its bounds by name, or a share
            of the parameters alone.
        learning: Settings; masks or thresholds alone are among them. Default: `LeSS()`.
        decomposition: `"channel"` or `"tucker"`: two ranks of each convolution of more than one
            position; the rest is `"channel"`. Default `"channel"`.
        groups: Names of the groups that may lose channels; see `channel_groups`. Default: all.
        layers: As `select_ranks` takes them, the layers whose ranks may fall. Default: all.
        multiple: Multiples in which places of a group stay. Default 8, which int8 kernels are
            made for.
        truncation: `"output"`: cuts keep the outputs on the first 512 samples of `data`, and so do
            the kernels of what reads channels that went; `cut` then needs calibration data.
            `"kernel"`: they keep the kernels. Default `"output"`.
        latency: For budgets of time, a width table of the model, as `deploy.measure_widths(model,
            decomposition="channel")` makes it; none knows the times of Tucker-2's stages.
        validation_data: Labelled samples that accuracies are measured on. Default: the first of
            `data`.
        score: What is called accuracy, as `select_ranks` takes it.
        folder: Where to keep what was learned so far; the same call goes on from there. Default:
            nowhere.
        progress: Called with the share done, 0 to 1 or None, and a text. Default: nothing shown.
        seed: Seed of the order of the samples; equal seeds give equal plans.

    Returns:
        The `JointPlan`; `cut(model, plan, calibration_data=x)` applies it. Fine-tune the result.

    Raises:
        DivergenceError: If the loss is no longer finite.
        BudgetError: If no widths and ranks meet the budget; it names the bound and what can be met.
        ValueError: If an argument is unusable, labels are missing, nothing can go, or the folder
            is of another learning.

    Source: BSR/LeSS thesis, chapter 4: Eq. 4.3 to 4.12, Algorithm 2; 4.7.4 for `"tucker"`.

    Example:

    >>> inputs = keras.Input((8, 8, 3))
    >>> x = keras.layers.Conv2D(16, 3, activation="relu", name="a")(inputs)
    >>> x = keras.layers.Flatten()(keras.layers.Conv2D(16, 3, name="b")(x))
    >>> model = keras.Model(inputs, keras.layers.Dense(2, name="out")(x))
    >>> images = np.random.default_rng(0).normal(size=(64, 8, 8, 3)).astype("float32")
    >>> labels = (images.mean(axis=(1, 2, 3)) > 0).astype("int32")
    >>> few = LeSS(steps=20, most_steps=20, batch_size=16)
    >>> plan = learn_channels_and_ranks(
    ...     model, (images, labels), budget={"macs": 0.5}, learning=few, multiple=4)
    >>> 0.49 < plan.shares["macs"] <= 0.5
    True
    """
    learning = learning or LeSS()
    check_integer("multiple", multiple)
    check_choice("truncation", truncation, _TRUNCATIONS)
    check_choice("decomposition", decomposition, _DECOMPOSITIONS)
    given = Budget.of(budget)
    asked = _budget(given, latency, learning, decomposition)
    x, y = _labelled(data, model, "data")
    told = progress or (lambda share, text: None)
    problem = _problem(model, learning, decomposition, groups, layers, asked, latency)
    try:
        _require_possible(problem, learning, multiple)
    except BudgetError as error:
        raise error.asked_as(given, latency) from None
    seen = None if truncation == "kernel" else picked(x, slice(0, CALIBRATION_SAMPLES))
    told(None, "running the data")
    moments = {} if seen is None else input_moments(model, problem.factorized, seen)
    soft = learning.soften(model, problem.places, problem.costs, problem.bounds, moments)
    place = None if folder is None else Path(folder)
    learned = learning.learn(model, soft, x, y, told=told, seed=seed, folder=place)
    told(None, "rounding")
    try:
        channels, space, ranks = _rounded(model, problem, learned, learning, multiple, asked, seen)
    except BudgetError as error:
        raise error.asked_as(given, latency) from None
    plan = _plan(learning, problem, learned, channels, space, ranks, truncation, asked)
    told(None, "measuring what is left")
    small = cut(model, plan, calibration_data=seen, latency=latency)
    counted = model_cost(small)
    exact = {"parameters": float(counted.parameters), "macs": float(counted.macs or 0)}
    plan = replace(
        plan, cost={**plan.cost, **{name: exact[name] for name in exact if name in plan.dense}}
    )
    if validation_data is None:
        x, y = picked(x, slice(0, _MEASURED)), picked(y, slice(0, _MEASURED))
    else:
        x, y = _labelled(validation_data, model, "validation_data")
    judge = resolve_score(score, model, y)
    accuracy = {
        name: float(judge(y, network.predict(x, verbose=0)))
        for name, network in (("dense", model), ("planned", small))
    }
    return replace(plan, accuracy=accuracy)


@dataclass(frozen=True, eq=False)
class _Problem:
    """What is learned of: places and layers, what they cost, and the bounds on that."""

    places: Places
    factorized: tuple[str, ...]
    decomposition: str
    costs: SoftCosts
    bounds: Mapping[str, float]
    latency: WidthTable | None


def _problem(
    model: keras.Model,
    learning: LeSS,
    decomposition: str,
    groups: Any,
    layers: Any,
    asked: Budget,
    latency: WidthTable | None,
) -> _Problem:
    followed = follow(model)
    found: list[ChannelGroup] = []
    if learning.masks:
        known = groups_of(model, followed)
        if groups is not None or not learning.thresholds or any(g.prunable for g in known.values()):
            found = known.able(groups)
    names: dict[str, keras.layers.Layer] = {}
    if learning.thresholds:
        try:
            names, _ = factorizable(model, layers)
        except ValueError:
            if layers is not None or not found:
                raise
    # Their stages see maps of other sizes than the costs here tell.
    odd = [key for key, layer in names.items() if isinstance(layer, (*RECURRENT, *TRANSPOSED))]
    if layers is not None and odd:
        raise ValueError(
            "`layers` must name convolutions and dense layers, whose thresholds can be learned. "
            f"Received: {odd}; `select_ranks` chooses ranks of transposed and recurrent ones."
        )
    places = places_of(model, followed, found)
    # Those that `RankSpace` passes over, and whose weights count as nobody's.
    able = {
        key
        for key, layer in names.items()
        if layer.kernel_constraint is None and key not in odd and kernel_of(layer).held.trainable
    }
    if latency is not None:
        WidthCosts(model, followed, [], latency)  # refuses a table of another model
        able &= {row.name for row in latency.layers if row.decomposition == "channel"}
    factorized = tuple(layer.key for layer in places.layers if layer.key in able)
    metrics = list(asked.bounds)
    if latency is None:
        costs = SoftCosts(model, places, factorized, metrics, decomposition=decomposition)
    else:
        metrics += [] if _TIME in metrics else [_TIME]
        costs = TimedCosts(model, places, factorized, metrics, latency)
    bounds = as_shares(asked.bounds, latency)
    return _Problem(places, factorized, decomposition, costs, bounds, latency)


def _budget(
    asked: Budget, latency: WidthTable | None, learning: LeSS, decomposition: str
) -> Budget:
    timed = latency is not None or asked.of_time
    if timed and learning.thresholds and decomposition == "tucker":
        raise ValueError(
            "`decomposition` must be 'channel' where times count: no table knows those of "
            "Tucker-2's three stages. Received: decomposition='tucker' with "
            + ("a budget of time" if asked.of_time else "`latency`")
            + "; bound parameters, MACs or activations instead, without `latency`."
        )
    ranks = "channel" if learning.thresholds else None
    bounds = bounds_of(asked, latency, decomposition=ranks)
    ranked = latency is not None and any(r.decomposition == "channel" for r in latency.layers)
    if latency is not None and learning.thresholds and not ranked:
        raise ValueError(
            "`latency` must know 'channel' ranks, which are learned here. Received: a table of "
            "widths alone, or of another decomposition; make it with "
            'deploy.measure_widths(model, decomposition="channel").'
        )
    return Budget(**bounds, tolerance=asked.tolerance)


def _labelled(data: Any, model: keras.Model, name: str) -> tuple[Any, Any]:
    if isinstance(data, Dataset):
        if isinstance(data.x_train, StreamedImages):
            return data.x_train, data.y_train  # read as steps ask for them
        data = (data.x_train, data.y_train)
    x, y = samples_of(data, model) if data is not None else (None, None)
    if y is None:
        raise ValueError(
            f"`{name}` must be labelled samples (x, y): masks and thresholds are learned from the "
            f"loss. Received: {'None' if data is None else 'inputs without labels'}; "
            "select_channels and select_ranks have methods that need none."
        )
    return x, y


class _Widths:
    """The widths that the groups of a problem may have, and what they cost and leave."""

    def __init__(self, problem: _Problem, learned: Learned, learning: LeSS, multiple: int) -> None:
        self._problem = problem
        places = problem.places
        # As the first steps saw them: at the end all that stay look alike.
        soft = 1 / (1 + np.exp(-learning.first_steepness * (learned.masks - 0.5)))
        self.orders: dict[str, list[int]] = {}
        self.left: dict[str, np.ndarray] = {}
        self.allowed: dict[str, list[int]] = {}
        self.kept: dict[str, float] = {}
        for number, group in enumerate(places.groups):
            loose = places.of(places.loose, number)
            order = order_of_places(places.of(learned.masks, number), loose)
            self.orders[group.name] = order
            of_group = places.of(soft, number)
            self.left[group.name] = np.concatenate([[0.0], np.cumsum(of_group[order])])
            self.allowed[group.name] = group.widths(multiple)
            self.kept[group.name] = float(places.of(learned.kept, number).sum())

    def over(self, widths: Mapping[str, int], *, least: bool = False) -> float:
        """The largest cost relative to its bound, dense or at the least ranks."""
        whole = self.shares(widths)
        if least and self._problem.factorized:
            costs = self._problem.costs
            ones = np.ones(costs.stages.count, dtype=np.float32)
            lower = costs.shares(self._mask(widths), ones)
            whole = {name: min(share, float(lower[name])) for name, share in whole.items()}
        return max(whole[name] / bound for name, bound in self._problem.bounds.items())

    def shares(self, widths: Mapping[str, int]) -> dict[str, float]:
        """The costs at some widths, every layer dense, as shares of the whole model's."""
        found = self._problem.costs.shares(self._mask(widths))
        return {name: float(share) for name, share in found.items()}

    def narrow(self, at: dict[str, int]) -> dict[str, int] | None:
        return narrowed(at, self.allowed, self.left, self.over)

    def widen(self, at: dict[str, int], most: float = np.inf) -> dict[str, int] | None:
        return widened(at, self.allowed, self.left, self.over, most=most)

    def gone(self, widths: Mapping[str, int]) -> dict[str, list[int]]:
        return {
            name: order[: self.allowed[name][0] - widths[name]]
            for name, order in self.orders.items()
        }

    def time(self, widths: Mapping[str, int]) -> float:
        """The time at some widths, every layer dense; 0 without a width table."""
        latency = self._problem.latency
        return 0.0 if latency is None else self.shares(widths)[_TIME] * latency.dense

    def _mask(self, widths: Mapping[str, int]) -> Any:
        places = self._problem.places
        mask = np.ones(places.count, dtype=np.float32)
        for number, group in enumerate(places.groups):
            mask[places.starts[number] + np.array(self.gone(widths)[group.name], dtype=int)] = 0
        return mask


def _rounded(
    model: keras.Model,
    problem: _Problem,
    learned: Learned,
    learning: LeSS,
    multiple: int,
    asked: Budget,
    seen: Any,
) -> tuple[ChannelPlan, RankSpace | None, dict[str, Ranks]]:
    """The channels that go, the ranks that what is left could have, and those it gets."""
    widths = _Widths(problem, learned, learning, multiple)
    at = nearest_widths(widths.kept, widths.allowed)
    ranked = bool(problem.factorized)
    while widths.over(at, least=ranked) > 1 + 1e-6:
        narrower = widths.narrow(at)
        if narrower is None:
            raise _impossible(problem, widths, at, multiple)
        at = narrower
    wide = 1 - asked.tolerance if ranked else 0.0
    while not ranked or widths.over(at) < wide:
        # Dense, it costs less than it may: channels that stay are worth more than nothing.
        wider = widths.widen(at, np.inf if ranked else 1 + 1e-6)
        if wider is None:
            break
        at = wider
    if not ranked:
        return _channel_plan(model, problem, widths, at, learning, multiple, seen), None, {}
    soft = problem.costs.stages.by_layer(np.asarray(learned.ranks))
    tolerance, first = asked.tolerance, at
    while True:
        channels = _channel_plan(model, problem, widths, at, learning, multiple, seen)
        small = cut(model, channels, calibration_data=seen, refit=False)
        space = _space(small, problem, seen, widths.time(at))
        bounds = {
            name: bound
            if name == _TIME
            else min(1.0, bound * problem.costs.dense[name] / space.cost({}).dense[name])
            for name, bound in asked.bounds.items()
        }
        within = Budget(**bounds, tolerance=tolerance)
        try:
            return channels, space, scaled_ranks(space, soft, within)
        except BudgetError:
            # No whole ranks come as close at these widths: others may, else what is nearest.
            narrower = widths.narrow(at)
            if narrower is None or widths.over(narrower) < wide:
                if tolerance > 1:
                    raise
                tolerance, narrower = max(2 * tolerance, 1e-3), first
            at = narrower


def _require_possible(problem: _Problem, learning: LeSS, multiple: int) -> None:
    """Refuse, before minutes of learning, a budget that nothing would meet."""
    whole = np.ones(problem.places.count)
    widths = _Widths(problem, Learned(whole, whole, None, (), False), learning, multiple)
    least = {name: allowed[-1] for name, allowed in widths.allowed.items()}
    if widths.over(least, least=bool(problem.factorized)) > 1 + 1e-6:
        raise _impossible(problem, widths, least, multiple)


def _impossible(
    problem: _Problem, widths: _Widths, at: Mapping[str, int], multiple: int
) -> BudgetError:
    metric = min(problem.bounds, key=lambda name: problem.bounds[name])
    timed = problem.latency is not None and metric == _TIME
    scale = problem.latency.dense if problem.latency is not None and timed else 1.0
    return BudgetError(
        scale * problem.bounds[metric],
        scale * widths.over(at, least=True) * problem.bounds[metric],
        metric=metric,
        unit="ms" if problem.latency is None else problem.latency.unit,
        smallest="at the least widths" + (" and ranks" if problem.factorized else ""),
        remedy=f"Raise it, or let more layers be cut. Channels stay in multiples of {multiple}.",
    )


def _space(small: keras.Model, problem: _Problem, seen: Any, time: float) -> RankSpace:
    names = list(problem.factorized)
    latency = None
    if problem.latency is not None:
        # What works on maps is counted as it was learned.
        latency = replace(times_by_rank(small, problem.latency), dense=time)
    truncate = None if seen is None else output_truncations(small, names, seen)
    return RankSpace(small, problem.decomposition, names, truncate=truncate, latency=latency)


def _channel_plan(
    model: keras.Model,
    problem: _Problem,
    widths: _Widths,
    at: Mapping[str, int],
    learning: LeSS,
    multiple: int,
    seen: Any,
) -> ChannelPlan:
    gone = widths.gone(at)
    rows = []
    for group in problem.places.groups:
        removed: dict[str, list[int]] = {}
        for place in gone[group.name]:
            name, tied = group.filters_at(place)
            removed.setdefault(name, []).extend(tied)
        left = widths.left[group.name]
        stay = group.size - len(left) + 1
        lost = float(left[len(gone[group.name])] / max(left[-1] + stay, 1e-12))
        rows.append(
            PlannedChannels(
                group.name,
                group.size,
                at[group.name],
                float(np.clip(lost, 0.0, 1.0)),
                {name: tuple(sorted(tied)) for name, tied in removed.items()},
            )
        )
    dense = model_cost(model)
    whole = {"parameters": float(dense.parameters), "macs": float(dense.macs or 0)}
    whole = {name: value for name, value in whole.items() if value}
    plan = ChannelPlan(learning.name, multiple, {}, tuple(rows), whole, whole)
    small = model_cost(cut(model, plan))
    exact = {"parameters": float(small.parameters), "macs": float(small.macs or 0)}
    cost = {name: exact[name] for name in whole}
    if _MAPS in problem.costs.dense:
        whole[_MAPS] = problem.costs.dense[_MAPS]
        cost[_MAPS] = float(round(whole[_MAPS] * widths.shares(at)[_MAPS]))
        plan = replace(plan, dense=whole)
    if problem.latency is not None:
        whole, cost = whole | {_TIME: problem.latency.dense}, cost | {_TIME: widths.time(at)}
        plan = replace(plan, dense=whole, unit=problem.latency.unit)
    return replace(plan, cost=cost)


def _plan(
    learning: LeSS,
    problem: _Problem,
    learned: Learned,
    channels: ChannelPlan,
    space: RankSpace | None,
    ranks: Mapping[str, Ranks],
    truncation: str,
    asked: Budget,
) -> JointPlan:
    history, unit = tuple(learned.history), channels.unit
    if space is None:
        own = channels.cost
        kind = problem.decomposition
        part = RankPlan(learning.name, kind, "kernel", {}, (), own, own, {}, history, unit)
        cost = dict(channels.cost)
    else:
        spent = space.cost(ranks)
        part = RankPlan(
            learning.name,
            problem.decomposition,
            truncation,
            {},
            space.planned(ranks),
            spent.values,
            spent.dense,
            {},
            history,
            unit,
        )
        cost = dict(spent.values)
    dense = dict(channels.dense)
    if problem.latency is not None:
        dense[_TIME] = problem.latency.dense
        cost.setdefault(_TIME, channels.cost.get(_TIME, dense[_TIME]))
    return JointPlan(
        learning.name,
        channels,
        part,
        dict(asked.bounds),
        {name: cost[name] for name in dense},
        dense,
    )
