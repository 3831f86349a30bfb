"""Channels and ranks chosen together, for one budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from dprp_tf.conversion.cutting import cut
from dprp_tf.conversion.removing import Removal
from dprp_tf.conversion.sequential_refitting import refit_in_sequence
from dprp_tf.conversion.times_by_rank import times_by_rank
from dprp_tf.costs.budget import Budget, BudgetError
from dprp_tf.costs.channel_plan import ChannelPlan
from dprp_tf.costs.joint_plan import JointPlan
from dprp_tf.costs.latency_table import LatencyTable
from dprp_tf.costs.models import model_cost
from dprp_tf.costs.rank_plan import RankPlan
from dprp_tf.costs.scores import Score, resolve_score
from dprp_tf.costs.width_table import WidthTable
from dprp_tf.files.arguments import check_choice, check_integer
from dprp_tf.selection.channel_choice import ChannelChoice
from dprp_tf.selection.selecting import select_ranks

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
    splits: int = 5,
    score: Score | None = None,
    progress: Callable[[float | None, str], None] | None = None,
    seed: int = 0,
) -> JointPlan:
    """Choose the channels that go and the ranks of what is left, together, against one budget.

    With b the share of the cost that may stay, channels alone bring the model to b^p of it, for p =
    0, ..., 1, and ranks of the smaller model bring it the rest of the way to b. Each of these is
    cut for real and scored on `data`; then p is halved towards both neighbours of the best. As p =
    0 is ranks alone and p = 1 channels alone, the result scores no less than the better of the two.

    Channels and ranks are both those of `"activation"`: what is lost of the outputs on `data`, with
    the kernels of what reads removed channels fitted anew.

    Args:
        model: A built, trained Functional or Sequential model; it stays as it is.
        budget: A `Budget` of parameters, MACs or time, its bounds by name, or a share of the
            parameters alone.
        data: `(x, y)`, a few hundred labelled samples, none of the test split.
        latency: A width table with the same decomposition, as `deploy.measure_widths(model,
            decomposition="separable")` makes it, for budgets of time.
        decomposition: `"separable"` or `"channel"`. Default `"separable"`.
        groups: Names of the groups that may lose channels; see `channel_groups`. Default: all.
        layers: Names or paths of the layers whose ranks may fall. Default: every one that can.
        multiple: Multiples in which places of a group stay. Default 8.
        splits: How many p are tried at first, 2 or more. Default 5.
        score: What is called accuracy, as `select_ranks` takes it.
        progress: Called with the share done, 0 to 1 or None, and a text. Default: nothing shown.
        seed: Seed of everything random.

    Returns:
        The `JointPlan`; `cut(model, plan, calibration_data=x)` applies it.

    Raises:
        BudgetError: If neither channels nor ranks nor both meet the budget.
        ValueError: If an argument is unusable.

    Source: the alternation is ours; the parts are those of `select_channels` and `select_ranks`.

    Example:

    >>> inputs = keras.Input((8, 8, 3))
    >>> x = keras.layers.Conv2D(16, 3, name="a")(inputs)
    >>> x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(16, 3, name="b")(x))
    >>> model = keras.Model(inputs, keras.layers.Dense(4, activation="softmax", name="c")(x))
    >>> model.compile(loss="sparse_categorical_crossentropy")
    >>> x, y = np.random.default_rng(0).normal(size=(32, 8, 8, 3)), np.arange(32) % 4
    >>> plan = select_channels_and_ranks(model, budget={"macs": 0.6}, data=(x, y), splits=2)
    >>> plan.shares["macs"] <= 0.6
    True
    """
    check_choice("decomposition", decomposition, _DECOMPOSITIONS)
    check_integer("splits", splits, minimum=2)
    told = progress or (lambda share, text: None)
    choice = ChannelChoice(
        model,
        method="activation",
        data=data,
        groups=groups,
        multiple=multiple,
        latency=latency,
        progress=progress,
        seed=seed,
    )
    asked = Budget.of(budget)
    shares = choice.shares_allowed(asked)
    if choice.samples is None or choice.samples[1] is None:
        raise ValueError(
            "`data` must be (x, y): what is left is scored on it. Received: x alone, without labels"
        )
    search = _Search(
        model, choice, asked, shares, latency, decomposition, layers, score, told, seed
    )
    first = np.linspace(0.0, 1.0, splits)
    for at, part in enumerate(first):
        told(at / (splits + 2), f"channels for {part:.0%} of the way, ranks for the rest")
        search.try_at(float(part))
    best = search.best()
    gap = (first[1] - first[0]) / 2
    for part in (best.part - gap, best.part + gap):
        if 0.0 < part < 1.0:
            told(None, f"channels for {part:.0%} of the way, ranks for the rest")
            search.try_at(float(part))
    return search.best().plan


@dataclass(frozen=True)
class _Found:
    """A candidate: which part of the way its channels go, and what came of it."""

    part: float
    plan: JointPlan


class _Search:
    """Tries parts of the way that channels go."""

    def __init__(
        self,
        model: keras.Model,
        choice: ChannelChoice,
        asked: Budget,
        shares: Mapping[str, float],
        latency: WidthTable | None,
        decomposition: str,
        layers: Iterable[str] | None,
        score: Score | None,
        told: Callable[[float | None, str], None],
        seed: int,
    ) -> None:
        assert choice.samples is not None
        self._model, self._choice, self._asked = model, choice, asked
        self._shares, self._latency, self._decomposition = shares, latency, decomposition
        self._layers = _able(latency, decomposition, layers)
        self._told, self._seed = told, seed
        self._x, self._y = choice.samples
        self._judge = resolve_score(score, model, self._y)
        self._dense = float(self._judge(self._y, model.predict(self._x, verbose=0)))
        self._found: list[_Found] = []
        self._seen: dict[tuple[int, ...], bool] = {}
        self._refused: list[BudgetError] = []

    def best(self) -> _Found:
        """The candidate of the best score; of equal ones that of the least cost.

        Raises:
            BudgetError: If there is none.
        """
        if not self._found:
            raise self._choice.in_units(self._refused[-1], self._asked)

        def rank(found: _Found) -> tuple[float, float]:
            plan = found.plan
            return -plan.accuracy["planned"], max(
                plan.cost[name] / plan.dense[name] for name in self._shares
            )

        return min(self._found, key=rank)

    def try_at(self, part: float) -> None:
        """Try one part of the way; where it can't be had, nothing is added."""
        try:
            widths = self._choice.widths({n: share**part for n, share in self._shares.items()})
            whole = part == 1.0
            # Steps of several channels may lead to the same widths as another part.
            key = (*widths.values(), int(whole))
            if key in self._seen:
                return
            self._seen[key] = True
            self._found.append(_Found(part, self._planned(widths, whole)))
        except BudgetError as error:
            self._refused.append(error)

    def _planned(self, widths: Mapping[str, int], whole: bool) -> JointPlan:
        """The joint plan at some widths; `whole` if channels alone meet the budget."""
        bounds = self._asked.on(self._latency).bounds
        channels = self._choice.plan(widths, bounds)
        small = cut(self._model, channels, calibration_data=self._x)
        latency = self._by_rank(small, channels)
        ranks = self._kept(channels) if whole else self._ranks(small, channels, latency)
        result = small
        if ranks.ranks:
            # As `cut` does with both, but for the channels, which have gone already.
            result = cut(small, ranks, calibration_data=self._x, refit=False, latency=latency)
            masks = Removal(self._model, channels.removed).masks()
            kept = {name: makes for name, (_, makes) in masks.items()}
            refit_in_sequence(self._model, result, self._x, kept=kept)
        counted = model_cost(result)
        cost = {"parameters": float(counted.parameters)}
        if counted.macs is not None:
            cost["macs"] = float(counted.macs)
        if self._latency is not None:
            cost["milliseconds"] = (ranks if ranks.ranks else channels).cost["milliseconds"]
        planned = float(self._judge(self._y, result.predict(self._x, verbose=0)))
        return JointPlan(
            "activation",
            channels,
            ranks,
            bounds,
            cost,
            {name: channels.dense[name] for name in cost},
            {"dense": self._dense, "planned": planned},
        )

    def _by_rank(self, small: keras.Model, channels: ChannelPlan) -> LatencyTable | None:
        """The times of what channels leave; None without a table."""
        if self._latency is None:
            return None
        return times_by_rank(small, self._latency, maps=channels.shares.get("activations", 1.0))

    def _ranks(
        self, small: keras.Model, channels: ChannelPlan, latency: LatencyTable | None
    ) -> RankPlan:
        left = {
            name: min(share / channels.shares[name], 1.0) for name, share in self._shares.items()
        }
        time = left.pop("milliseconds", None)
        return select_ranks(
            small,
            method="activation",
            budget=Budget(**left, time=time),
            data=self._x,
            decomposition=self._decomposition,
            layers=self._layers,
            latency=latency,
            seed=self._seed,
        )

    def _kept(self, channels: ChannelPlan) -> RankPlan:
        """Every layer dense: channels alone."""
        own = channels.cost
        kind = self._decomposition
        return RankPlan("activation", kind, "output", {}, (), own, own, unit=channels.unit)


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
