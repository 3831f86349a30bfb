"""Channels and ranks chosen together, for one budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

import keras

from dprp_tf.conversion.cutting import cut as apply_plan
from dprp_tf.conversion.output_truncations import output_truncations
from dprp_tf.conversion.reinitializing import reinitialized
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

__all__ = ["JointSelection", "select_channels_and_ranks"]

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
    selection = JointSelection(
        model,
        data=data,
        latency=latency,
        decomposition=decomposition,
        groups=groups,
        layers=layers,
        multiple=multiple,
        score=score,
        progress=progress,
        seed=seed,
    )
    return selection.choose(budget)[0]


class JointSelection:
    """Chooses channels, ranks or both of one model for one budget after another.

    What is measured of the model once, what each cut changes by itself, serves them all.

    Args:
        model: As `select_channels_and_ranks` takes it, and all others.
        data: Likewise.
        latency: Likewise.
        decomposition: Likewise.
        groups: Likewise.
        layers: Likewise.
        multiple: Likewise.
        score: Likewise.
        progress: Likewise.
        seed: Likewise.

    Raises:
        ValueError: If an argument is unusable.

    Example:

    >>> import numpy as np
    >>> inputs = keras.Input((8, 8, 3))
    >>> x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(16, 3, name="a")(inputs))
    >>> model = keras.Model(inputs, keras.layers.Dense(4, activation="softmax", name="c")(x))
    >>> x = np.random.default_rng(0).normal(size=(32, 8, 8, 3))
    >>> selection = JointSelection(model, data=x)
    >>> plan, small = selection.choose({"macs": 0.6}, "channels")
    >>> [row.kept for row in plan.channels.groups], plan.ranks.ranks
    ([8], {})
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        data: Any,
        latency: WidthTable | None = None,
        decomposition: str = "separable",
        groups: Iterable[str] | None = None,
        layers: Iterable[str] | None = None,
        multiple: int = 8,
        score: Score | None = None,
        progress: Callable[[float | None, str], None] | None = None,
        seed: int = 0,
    ) -> None:
        check_choice("decomposition", decomposition, _DECOMPOSITIONS)
        self._model, self._latency, self._decomposition = model, latency, decomposition
        self._told = progress or (lambda share, text: None)
        self._layers, self._seed = layers, seed
        self._choice = ChannelChoice(
            model,
            method="outputs",
            data=data,
            groups=groups,
            multiple=multiple,
            latency=latency,
            progress=progress,
            seed=seed,
        )
        assert self._choice.samples is not None
        self._x, self._y = self._choice.samples
        self._judge = None if self._y is None else resolve_score(score, model, self._y)

    @cached_property
    def _cuts(self) -> MeasuredCuts:
        able = _able(self._latency, self._decomposition, self._layers)
        costs = JointCosts(
            self._model, self._choice.costs, self._decomposition, able, self._latency
        )
        classes = gives_classes(self._model, self._y)
        return MeasuredCuts(self._model, self._choice, costs, classes=classes, told=self._told)

    @cached_property
    def _dense_accuracy(self) -> dict[str, float]:
        return self._accuracy("dense", self._model)

    def _accuracy(self, name: str, network: keras.Model) -> dict[str, float]:
        if self._judge is None:
            return {}
        return {name: float(self._judge(self._y, network.predict(self._x, verbose=0)))}

    def choose(
        self, budget: Budget | float | Mapping[str, float], cut: str = "both"
    ) -> tuple[JointPlan, keras.Model]:
        """Choose what is cut for a budget, and return the plan with the model cut by it.

        Args:
            budget: As `select_channels_and_ranks` takes it.
            cut: `"both"`, or `"channels"` or `"ranks"` alone. Default `"both"`.

        Returns:
            The plan, and the smaller model as `dprp_tf.cut` makes it, fitted to the data.

        Raises:
            BudgetError: If what may be cut does not meet the budget.
            ValueError: If an argument is unusable.
        """
        asked = Budget.of(budget)
        shares = self._choice.shares_allowed(asked)
        try:
            widths, ranks = self._cuts.choose(shares, cut)
        except BudgetError as error:
            raise self._choice.in_units(error, asked) from None
        self._told(None, "cutting what was chosen")
        channels = self._choice.plan(widths, asked.on(self._latency).bounds)
        # With ranks too, all is fitted once at the end, as `cut` does.
        small = apply_plan(self._model, channels, calibration_data=self._x, refit=not ranks)
        return self._planned(channels, ranks, small, {**self._dense_accuracy})

    def narrower(
        self, budget: Budget | float | Mapping[str, float]
    ) -> tuple[JointPlan, keras.Model]:
        """Return the evenly narrower network for a budget, with new weights: to train from scratch.

        It is what cuts are to be compared with. Each group of channels keeps the same share, as far
        as the multiples allow. Layers that train nothing, such as those that normalize inputs, stay
        as they are.

        Args:
            budget: As `select_channels_and_ranks` takes it.

        Returns:
            Its plan, which tells no accuracy, and the network.

        Raises:
            BudgetError: If no even widths meet the budget.
            ValueError: If an argument is unusable.
        """
        asked = Budget.of(budget)
        try:
            widths = self._choice.even_widths(self._choice.shares_allowed(asked))
        except BudgetError as error:
            raise self._choice.in_units(error, asked) from None
        channels = self._choice.plan(widths, asked.on(self._latency).bounds)
        small = apply_plan(self._model, channels, calibration_data=self._x, refit=False)
        keras.utils.set_random_seed(self._seed)
        return self._planned(channels, {}, reinitialized(small), None)

    def _planned(
        self,
        channels: ChannelPlan,
        ranks: Mapping[str, int],
        small: keras.Model,
        accuracy: Mapping[str, float] | None,
    ) -> tuple[JointPlan, keras.Model]:
        """The plan of channels that went and of ranks, applied, with all that it costs."""
        part, result = _ranked(
            self._model, small, channels, ranks, self._decomposition, self._latency, self._x
        )
        counted = model_cost(result)
        cost = {"parameters": float(counted.parameters)}
        if counted.macs is not None:
            cost["macs"] = float(counted.macs)
        if self._latency is not None:
            cost["milliseconds"] = part.cost["milliseconds"]
        told = {} if accuracy is None else {**accuracy, **self._accuracy("planned", result)}
        dense = {name: channels.dense[name] for name in cost}
        return JointPlan("outputs", channels, part, channels.budget, cost, dense, told), result


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
    result = apply_plan(small, part, calibration_data=x, refit=False, latency=times)
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
