"""Cuts measured on the model's outputs: swapped kernels, costs and choices against real cuts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

import dprp_tf as dprp
from dprp_tf import zoo
from dprp_tf.conversion.output_truncations import output_truncations
from dprp_tf.costs.models import model_cost
from dprp_tf.costs.rank_plan import RankPlan
from dprp_tf.costs.rank_space import RankSpace
from dprp_tf.selection.channel_choice import ChannelChoice
from dprp_tf.selection.measured_cuts import MeasuredCuts, gives_classes
from dprp_tf.selection.scoring.output_change import OutputChange
from dprp_tf.selection.solving.cut_levels import Levels, descend, exchange
from dprp_tf.selection.solving.joint_costs import JointCosts


def _network() -> keras.Model:
    """A residual block, a concatenation, pooling and a dense layer."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))

    def block(x: Any, filters: int, name: str) -> Any:
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=name)(x)
        return layers.ReLU()(layers.BatchNormalization(name=f"{name}_bn")(x))

    x = block(inputs, 16, "stem")
    y = layers.Conv2D(16, 3, padding="same", name="second")(block(x, 24, "first"))
    x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.Concatenate()([block(x, 8, "left"), block(x, 16, "right")])
    x = layers.Conv2D(32, 3, padding="same", strides=2, activation="relu", name="down")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(5, name="out")(x))
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            values = [rng.normal(1, 0.2, w.shape) for w in layer.get_weights()]
            values[1], values[2] = values[1] - 1, values[2] - 1
            values[3] = np.abs(values[3])
            layer.set_weights(values)
    # Of low rank but for a little, so that there is something for ranks to save.
    for name in ("first", "down"):
        kernel = np.asarray(model.get_layer(name).kernel)
        rows = kernel.reshape(-1, kernel.shape[-1])
        factors = rng.normal(size=(len(rows), 3)) @ rng.normal(size=(3, rows.shape[1]))
        changed = 0.1 * factors + 0.1 * rows
        model.get_layer(name).kernel.assign(changed.reshape(kernel.shape))
    return model


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return _network()


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(128, 8, 8, 3)).astype("float32")


@pytest.fixture(scope="module")
def choice(model: keras.Model, x: np.ndarray) -> ChannelChoice:
    return ChannelChoice(
        model,
        method="outputs",
        data=x,
        groups=None,
        multiple=8,
        latency=None,
        progress=None,
        seed=0,
    )


def _cuts(model: keras.Model, choice: ChannelChoice, decomposition: str | None) -> MeasuredCuts:
    costs = JointCosts(model, choice.costs, decomposition)
    return MeasuredCuts(model, choice, costs, classes=True, told=lambda share, text: None)


def _predicted(cuts: MeasuredCuts, widths: Mapping[str, int], ranks: Mapping[str, int]) -> Any:
    gone = {name: cuts._sizes[name] - width for name, width in widths.items()}
    choices = {name: kernel.choice(gone, ranks.get(name)) for name, kernel in cuts._kernels.items()}
    return next(iter(cuts._swaps.predictions([choices])))


def test_swapped_kernels_compute_what_removed_channels_leave(
    model: keras.Model, choice: ChannelChoice, x: np.ndarray
) -> None:
    cuts = _cuts(model, choice, None)
    whole = model.predict(x, verbose=0)
    widths = {group.name: group.widths(8)[-1] for group in choice.groups}
    assert sum(widths.values()) < sum(group.size for group in choice.groups)
    for name in (*widths, None):
        some = widths if name is None else {name: widths[name]}
        small = dprp.cut(model, choice.plan(some, {}), calibration_data=x, refit=False)
        expected = small.predict(x, verbose=0)
        found = _predicted(cuts, some, {})
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(whole).max())
        if small.count_params() < model.count_params():
            assert np.abs(found - whole).max() > 1e-2 * np.abs(whole).max()


@pytest.mark.parametrize("decomposition", ["separable", "channel"])
def test_swapped_kernels_compute_what_ranks_leave(
    model: keras.Model, choice: ChannelChoice, x: np.ndarray, decomposition: str
) -> None:
    cuts = _cuts(model, choice, decomposition)
    space = RankSpace(model, decomposition, truncate=output_truncations(model, None, x))
    ranks = {name: row[-3] for name, row in cuts._costs.ranks.items() if len(row) > 3}
    assert len(ranks) >= 3
    plan = RankPlan(
        "outputs",
        decomposition,
        "output",
        {},
        space.planned({name: (rank,) for name, rank in ranks.items()}),
        {"parameters": 1.0},
        {"parameters": 2.0},
    )
    expected = dprp.cut(model, plan, calibration_data=x, refit=False).predict(x, verbose=0)
    whole = model.predict(x, verbose=0)
    found = _predicted(cuts, {}, ranks)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(whole).max())
    assert np.abs(found - whole).max() > 1e-2 * np.abs(whole).max()


@pytest.mark.parametrize("decomposition", ["separable", "channel"])
def test_costs_are_those_of_the_model_that_is_cut(
    model: keras.Model, choice: ChannelChoice, x: np.ndarray, decomposition: str
) -> None:
    costs = JointCosts(model, choice.costs, decomposition)
    widths = {group.name: group.widths(8)[-1] for group in choice.groups}
    small = dprp.cut(model, choice.plan(widths, {}))
    ranks = {"first": 3, "down": 4}
    space = RankSpace(small, decomposition, list(ranks))
    rows = space.planned({name: (rank,) for name, rank in ranks.items()})
    plan = RankPlan("outputs", decomposition, "kernel", {}, rows, {"macs": 1.0}, {"macs": 2.0})
    counted, whole = model_cost(dprp.cut(small, plan)), model_cost(model)
    found = costs.shares(widths, ranks)
    assert found["macs"] == pytest.approx((counted.macs or 0) / (whole.macs or 1), rel=1e-9)
    assert found["parameters"] == pytest.approx(counted.parameters / whole.parameters, rel=1e-9)
    spent = space.cost({name: (rank,) for name, rank in ranks.items()}).values
    share = spent["activations"] / choice.costs.dense["activations"]
    assert found["activations"] == pytest.approx(share, rel=1e-9)


def test_what_is_chosen_changes_outputs_less_than_what_is_lost_inside(
    model: keras.Model, choice: ChannelChoice, x: np.ndarray
) -> None:
    change = OutputChange(model.predict(x, verbose=0), classes=True)

    def changed(plan: Any) -> float:
        small = dprp.cut(model, plan, calibration_data=x, refit=False)
        return change(small.predict(x, verbose=0))

    y = model.predict(x, verbose=0).argmax(-1)
    options: dict[str, Any] = {"budget": {"macs": 0.6}, "data": (x, y)}
    inside = dprp.select_channels(model, method="activation", **options)
    plan = dprp.select_channels(model, **options)
    assert plan.method == "outputs"
    assert plan.shares["macs"] <= 0.6 + 1e-9
    assert 0 < changed(plan) <= changed(inside) * (1 + 1e-3)
    both = dprp.select_channels_and_ranks(model, decomposition="channel", **options)
    assert both.shares["macs"] <= 0.6 + 1e-9
    assert both.ranks.ranks
    assert both.accuracy["dense"] == 1.0
    small = dprp.cut(model, both, calibration_data=x)
    assert np.mean(small.predict(x, verbose=0).argmax(-1) == y) == both.accuracy["planned"]
    unlabelled = dprp.select_channels_and_ranks(model, budget={"macs": 0.6}, data=x)
    assert unlabelled.accuracy == {}
    with pytest.raises(dprp.BudgetError, match=r"`macs`.*Channels stay in multiples of 8"):
        dprp.select_channels_and_ranks(model, budget={"macs": 0.001}, data=x)


def test_groups_whose_readers_have_no_kernel_to_swap_are_chosen_too() -> None:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(16, 3, activation="relu", name="a")(inputs)
    x = layers.Conv2DTranspose(16, 3, activation="relu", name="b")(x)
    x = layers.Conv2D(16, 3, activation="relu", name="c")(x)
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))
    data = np.random.default_rng(0).normal(size=(64, 8, 8, 3)).astype("float32")
    plan = dprp.select_channels(model, budget={"macs": 0.5}, data=data)
    assert plan.shares["macs"] <= 0.5
    assert {row.name for row in plan.groups} == {"a", "b", "c"}


def test_changes_are_divergences_or_squared_errors() -> None:
    rng = np.random.default_rng(0)
    logits, other = rng.normal(size=(2, 50, 7))

    def softmax(scores: np.ndarray) -> np.ndarray:
        powers = np.exp(scores)
        return np.asarray(powers / powers.sum(-1, keepdims=True))

    expected = float(np.mean(keras.losses.kl_divergence(softmax(logits), softmax(other))))
    assert OutputChange(logits, classes=True)(other) == pytest.approx(expected, rel=1e-4)
    found = OutputChange(softmax(logits), classes=True)(softmax(other))
    assert found == pytest.approx(expected, rel=1e-4)
    assert OutputChange(logits, classes=True)(logits + 3.0) == pytest.approx(0, abs=1e-9)
    values = OutputChange([logits, 2 * logits], classes=False)
    assert values([logits, 2 * logits]) == 0
    mean = np.broadcast_to(logits.mean(0), logits.shape)
    assert values([mean, 2 * mean]) == pytest.approx(2.0)
    assert values([logits, np.full_like(logits, np.nan)]) == np.inf


def test_classes_are_told_from_values() -> None:
    inputs = keras.Input((4,))
    ends = keras.Model(inputs, layers.Dense(3, activation="softmax")(inputs))
    plain = keras.Model(inputs, layers.Dense(3)(inputs))
    assert gives_classes(ends)
    assert not gives_classes(plain)
    assert gives_classes(plain, np.array([0, 2]))
    plain.compile(loss="mse")
    assert not gives_classes(plain, np.array([0, 2]))
    plain.compile(loss=keras.losses.CategoricalCrossentropy(from_logits=True))
    assert gives_classes(plain)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 4), st.floats(0.35, 0.95))
def test_levels_meet_bounds_and_exchange_never_makes_worse(
    seed: int, parts: int, bound: float
) -> None:
    rng = np.random.default_rng(seed)
    counts = {str(i): int(rng.integers(1, 4)) for i in range(parts)}
    saved = {name: np.append(0, np.cumsum(rng.random(n - 1))) for name, n in counts.items()}
    harm = {name: np.append(0, np.cumsum(rng.random(n - 1))) for name, n in counts.items()}
    total = sum(row[-1] for row in saved.values()) + 0.5

    def cost(at: Levels) -> dict[str, float]:
        return {"macs": 1 - sum(saved[name][level] for name, level in at.items()) / total}

    def damage(rows: Sequence[Levels], near: Levels) -> list[float]:
        # What is harmed together is harmed more.
        each = [sum(harm[name][level] for name, level in row.items()) for row in rows]
        return [value + 0.3 * value**2 for value in each]

    bounds = {"macs": bound}
    every = [
        dict(zip(counts, levels, strict=True)) for levels in product(*map(range, counts.values()))
    ]
    meeting = [at for at in every if cost(at)["macs"] <= bound]
    found = descend({name: row.tolist() for name, row in harm.items()}, cost, bounds)
    if found is None:
        assert not meeting
        return
    assert cost(found)["macs"] <= bound
    better = exchange(found, counts, cost, bounds, damage)
    assert cost(better)["macs"] <= bound
    (before,), (after,) = damage([found], found), damage([better], better)
    least = min(damage(meeting, found))
    assert least - 1e-12 <= after <= before + 1e-12


def test_exchange_finds_what_descent_misses() -> None:
    # Two small cuts are each cheap, and together worse than the one that saves as much.
    saved = {"a": [0, 1], "b": [0, 1], "c": [0, 2]}

    def cost(at: Levels) -> dict[str, float]:
        return {"macs": 4.0 - sum(saved[name][level] for name, level in at.items())}

    def damage(rows: Sequence[Levels], near: Levels) -> list[float]:
        return [at["a"] + at["b"] + 2.5 * at["c"] + 2 * at["a"] * at["b"] for at in rows]

    bounds = {"macs": 2.0}
    found = descend({"a": [0, 1], "b": [0, 1], "c": [0, 2.5]}, cost, bounds)
    assert found == {"a": 1, "b": 1, "c": 0}
    better = exchange(found, {"a": 2, "b": 2, "c": 2}, cost, bounds, damage)
    assert better == {"a": 0, "b": 0, "c": 1}


@pytest.mark.slow
def test_a_network_of_the_zoo_is_cut_by_both() -> None:
    model = zoo.resnet_small(input_shape=(16, 16, 1), classes=10)
    rng = np.random.default_rng(0)
    data = rng.normal(size=(96, 16, 16, 1)).astype("float32")
    told: list[str] = []
    plan = dprp.select_channels_and_ranks(
        model, budget={"macs": 0.5}, data=data, progress=lambda share, text: told.append(text)
    )
    assert plan.shares["macs"] <= 0.5
    small = dprp.cut(model, plan, calibration_data=data)
    assert model_cost(small).parameters == plan.cost["parameters"]
    assert any("measuring cuts of" in text for text in told)


def test_one_selection_serves_several_budgets_like_one_for_each(
    model: keras.Model, x: np.ndarray
) -> None:
    together = dprp.JointSelection(model, data=x)
    for macs in (0.8, 0.5, 0.65):
        plan, small = together.choose({"macs": macs})
        alone = dprp.select_channels_and_ranks(model, budget={"macs": macs}, data=x)
        assert plan.as_dict() == alone.as_dict()
        counted = model_cost(small)
        assert counted.macs == plan.cost["macs"] <= macs * plan.dense["macs"]
        expected = dprp.cut(model, plan, calibration_data=x).predict(x, verbose=0)
        found = small.predict(x, verbose=0)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        assert np.abs(found - model.predict(x, verbose=0)).max() > 1e-3


def test_a_selection_may_cut_channels_or_ranks_alone(model: keras.Model, x: np.ndarray) -> None:
    selection = dprp.JointSelection(model, data=x)
    channels, _ = selection.choose({"macs": 0.6}, "channels")
    assert channels.channels.removed
    assert not channels.ranks.ranks
    by_itself = dprp.select_channels(model, budget={"macs": 0.6}, data=x)
    assert channels.channels.removed == by_itself.removed
    ranks, _ = selection.choose({"macs": 0.8}, "ranks")
    assert ranks.ranks.ranks
    assert not ranks.channels.removed
    assert ranks.shares["macs"] <= 0.8
    with pytest.raises(dprp.BudgetError, match="the cost at the least ranks"):
        selection.choose({"macs": 0.01}, "ranks")
    with pytest.raises(dprp.BudgetError, match="the cost at the least widths\\."):
        selection.choose({"macs": 0.01}, "channels")


@pytest.mark.parametrize("macs", [0.7, 0.35])
def test_an_evenly_narrower_network_keeps_one_share_of_each_group_and_nothing_it_learned(
    model: keras.Model, x: np.ndarray, macs: float
) -> None:
    plan, small = dprp.JointSelection(model, data=x, multiple=4).narrower({"macs": macs})
    kept = [row.kept / row.size for row in plan.channels.groups]
    sizes = [row.size for row in plan.channels.groups]
    # As even as multiples of 4 allow, and within the budget as counted of the real network.
    nearest = [2.001 / size for size in sizes]
    assert max(k - n for k, n in zip(kept, nearest, strict=True)) <= min(
        k + n for k, n in zip(kept, nearest, strict=True)
    )
    assert model_cost(small).macs <= macs * model_cost(model).macs
    assert plan.cost["macs"] == pytest.approx(model_cost(small).macs)
    assert (plan.accuracy, plan.ranks.ranks) == ({}, {})
    cut = dprp.cut(model, plan.channels, calibration_data=x, refit=False)
    assert [layer.name for layer in small.layers] == [layer.name for layer in cut.layers]
    for new, old in zip(small.trainable_weights, cut.trainable_weights, strict=True):
        assert new.shape == old.shape
        if new.path.endswith("kernel"):
            assert not np.isclose(np.asarray(new), np.asarray(old)).all()
    again = dprp.JointSelection(model, data=x, multiple=4).narrower({"macs": macs})[1]
    np.testing.assert_array_equal(small.predict(x, verbose=0), again.predict(x, verbose=0))


def test_no_even_widths_for_too_small_a_budget(model: keras.Model, x: np.ndarray) -> None:
    with pytest.raises(dprp.BudgetError, match=r"`macs` must be at least .* least even widths"):
        dprp.JointSelection(model, data=x).narrower({"macs": 0.001})
