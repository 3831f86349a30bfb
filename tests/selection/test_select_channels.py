"""Channels chosen to go: orders, widths, costs and fits against independent truths."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import dprp_tf as dprp
from dprp_tf import zoo
from dprp_tf.channels import ChannelGroup, channel_groups, follow, groups_of
from dprp_tf.costs.channel_plan import ChannelPlan, PlannedChannels
from dprp_tf.costs.models import model_cost
from dprp_tf.selection.methods.channel_norms import filter_scores
from dprp_tf.selection.methods.channel_outputs import Reader, order_by_outputs
from dprp_tf.selection.selecting_channels import CHANNEL_METHODS
from dprp_tf.selection.solving.width_costs import WidthCosts
from dprp_tf.selection.solving.widths import choose_widths


def _outputs(model: keras.Model, x: Any) -> np.ndarray:
    return np.asarray(model(x, training=False))


def _redundant(seed: int = 0) -> tuple[keras.Model, np.ndarray]:
    """A network in which half of the channels say what the others say, times a factor."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(16, 3, padding="same", activation="relu", name="a")(inputs)
    x = layers.Conv2D(16, 3, padding="same", activation="relu", name="b")(x)
    x = layers.Flatten()(layers.MaxPooling2D(4)(x))
    model = keras.Model(inputs, layers.Dense(4, name="out")(x))
    rng = np.random.default_rng(seed)
    for name in ("a", "b"):
        kernel = np.array(model.get_layer(name).kernel)
        bias = rng.normal(0, 0.1, 16).astype("float32")
        # Four pairs are small on both sides, so that norms take these instead of one of each pair.
        kernel[..., 4:8], bias[4:8] = 0.5 * kernel[..., 4:8], 0.5 * bias[4:8]
        kernel[..., 8:], bias[8:] = 1.1 * kernel[..., :8], 1.1 * bias[:8]
        order = rng.permutation(16)
        model.get_layer(name).kernel.assign(kernel[..., order])
        model.get_layer(name).bias.assign(bias[order])
    return model, rng.normal(size=(300, 8, 8, 3)).astype("float32")


def test_greedy_removal_loses_what_least_squares_says() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(12, 12))
    p = rng.normal(size=(4000, 12)) @ mixing
    kernels = [rng.normal(size=(12, 3)), rng.normal(size=(12, 5))]
    places = [np.arange(2 * i, 2 * i + 2) for i in range(6)]
    moments = p.T @ p / len(p)
    readers = [Reader(moments, kernel, places) for kernel in kernels]
    order, lost = order_by_outputs(readers, np.ones(6, bool))
    assert len(order) == 5
    assert lost[0] == 0.0

    def left_out(gone: list[int], kernel: np.ndarray) -> float:
        kept = [row for at in range(6) if at not in gone for row in places[at]]
        expected = p @ kernel
        fitted = p[:, kept] @ np.linalg.lstsq(p[:, kept], expected, rcond=None)[0]
        return float(np.sum((expected - fitted) ** 2) / np.sum(expected**2))

    gone: list[int] = []
    for place, share in zip(order, lost[1:], strict=True):
        sums = {
            at: sum(left_out([*gone, at], kernel) for kernel in kernels)
            for at in range(6)
            if at not in gone
        }
        assert sums[place] <= 1.02 * min(sums.values())
        gone.append(place)
        kept = np.prod([1 - left_out(gone, kernel) for kernel in kernels])
        assert share == pytest.approx(1 - kept, rel=0.02, abs=1e-3)


def test_pinned_places_do_not_go() -> None:
    reader = Reader(np.eye(3), np.ones((3, 1)), [np.array([i]) for i in range(3)])
    order, lost = order_by_outputs([reader], np.array([True, False, True]))
    assert sorted(order) == [0, 2]
    assert lost[-1] == pytest.approx(2 / 3, rel=1e-3)


def test_criteria_by_hand() -> None:
    layer = layers.Dense(3, name="a")
    layer.build((None, 2))
    layer.kernel.assign([[1.0, -2.0, 0.0], [1.0, 0.0, 3.0]])
    group = ChannelGroup("a", {"a": ((0,), (1,), (2,))}, (), (None,) * 3)
    found = {
        name: filter_scores({"a": layer}, group, name, np.random.default_rng(0)) * 1.0
        for name in ("l1", "l2", "geometric_median", "random")
    }
    np.testing.assert_allclose(found["l1"], np.array([2, 2, 3]) / 7)
    np.testing.assert_allclose(found["l2"], np.array([2, 4, 9]) / 15)
    between = np.array([[0, 10**0.5, 5**0.5], [10**0.5, 0, 13**0.5], [5**0.5, 13**0.5, 0]])
    np.testing.assert_allclose(found["geometric_median"], between.sum(0) / between.sum(), rtol=1e-6)
    assert sorted(found["random"] * 6) == pytest.approx([1, 2, 3])


def test_widths_are_near_the_best_of_all() -> None:
    rng = np.random.default_rng(3)
    for _ in range(5):
        sizes = {name: list(range(5, 0, -1)) for name in "abc"}
        lost = {name: np.concatenate([[0], np.sort(rng.uniform(0, 0.9, 5))]) for name in sizes}

        def cost(w: Any) -> dict[str, float]:
            return {"macs": 3 * w["a"] + w["a"] * w["b"] + w["b"] * w["c"] + 2 * w["c"]}

        bound = 0.55 * cost({"a": 5, "b": 5, "c": 5})["macs"]

        def kept(w: dict[str, int], lost: Any = lost) -> float:
            return float(np.prod([1 - lost[name][5 - width] for name, width in w.items()]))

        every = [dict(zip("abc", widths, strict=True)) for widths in product(range(1, 6), repeat=3)]
        best = max(kept(w) for w in every if cost(w)["macs"] <= bound)
        chosen = choose_widths(lost, sizes, cost, {"macs": bound})
        assert cost(chosen)["macs"] <= bound
        assert kept(chosen) >= 0.75 * best


@pytest.mark.parametrize("make", [lambda: zoo.resnet_cifar(8), lambda: zoo.build("squeezenet1_1")])
def test_predicted_costs_are_those_of_the_smaller_model(make: Any) -> None:
    model = make()
    followed = follow(model)
    groups = [group for group in groups_of(model, followed).values() if group.prunable]
    rng = np.random.default_rng(0)
    orders = [(group, rng.permutation(group.size).tolist()) for group in groups]
    costs = WidthCosts(model, followed, orders)
    widths = {group.name: int(rng.integers(1, group.size + 1)) for group in groups}
    removed: dict[str, list[int]] = {}
    for group, order in orders:
        for place in order[: group.size - widths[group.name]]:
            name, tied = group.filters_at(place)
            removed.setdefault(name, []).extend(tied)
    small = model_cost(dprp.remove_channels(model, removed))
    dense = model_cost(model)
    shares = costs.shares(widths)
    assert shares["parameters"] == pytest.approx(small.parameters / dense.parameters, rel=1e-9)
    assert shares["macs"] == pytest.approx(small.macs / dense.macs, rel=1e-9)


def test_refitted_kernels_are_least_squares() -> None:
    model, x = _redundant()
    plan = ChannelPlan("l1", 1, {}, (PlannedChannels("a", 16, 13, 0.1, {"a": (1, 4, 9)}),), {}, {})
    small = dprp.cut(model, plan, calibration_data=x)
    kept = np.delete(np.arange(16), [1, 4, 9])
    maps = np.asarray(model.get_layer("a")(x))
    # The same fit by a plain solver, on the patches of the maps themselves.
    patches = np.asarray(
        keras.ops.image.extract_patches(maps, (3, 3), strides=1, padding="same")
    ).reshape(-1, 9 * 16)
    expected = patches @ np.array(model.get_layer("b").kernel).reshape(9 * 16, 16)
    taken = patches.reshape(-1, 9, 16)[:, :, kept].reshape(-1, 9 * 13)

    def error(kernel: np.ndarray) -> float:
        return float(np.mean((taken @ kernel.reshape(9 * 13, 16) - expected) ** 2))

    best = error(np.linalg.lstsq(taken, expected, rcond=None)[0])
    fitted = error(np.array(small.get_layer("b").kernel))
    unfitted = error(np.array(dprp.cut(model, plan).get_layer("b").kernel))
    scale = float(np.mean(expected**2))
    assert fitted - best < 1e-4 * scale
    assert unfitted > 1e-2 * scale


def test_what_others_say_too_goes_first(tmp_path: Path) -> None:
    model, x = _redundant()
    whole = _outputs(model, x)

    def error(method: str) -> float:
        plan = dprp.select_channels(
            model, method=method, budget={"macs": 0.4}, data=x, multiple=8, groups=["a", "b"]
        )
        assert plan.shares["macs"] <= 0.4
        small = dprp.cut(model, plan, calibration_data=x)
        assert small.get_layer("a").filters == small.get_layer("b").filters == 8
        path = plan.save(tmp_path / f"{method}.json")
        assert ChannelPlan.load(path) == plan
        return float(np.abs(_outputs(small, x) - whole).max() / np.abs(whole).max())

    errors = {method: error(method) for method in CHANNEL_METHODS}
    # Half of the channels go, and nothing is lost; by other criteria something is.
    assert max(errors["activation"], errors["outputs"]) < 1e-2
    assert min(errors["l1"], errors["l2"], errors["random"]) > 5e-2


def test_a_plan_prints_and_states_accuracies() -> None:
    model, x = _redundant()
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    y = _outputs(model, x).argmax(-1)
    plan = dprp.select_channels(model, budget=dprp.Budget(macs=0.5, parameters=0.9), data=(x, y))
    assert plan.accuracy["dense"] == 1.0
    assert plan.accuracy["planned"] > 0.97
    assert plan.budget == {"macs": 0.5, "parameters": 0.9}
    printed = str(plan)
    for part in ("outputs", "in multiples of", "of the parameters", "planned"):
        assert part in printed
    groups = channel_groups(model)
    assert {row.name for row in plan.groups} == {n for n in groups if groups[n].prunable}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "l3"}, "method"),
        ({"method": "activation"}, "`data` must be given"),
        ({"method": "outputs"}, "`data` must be given"),
        ({"budget": dprp.Budget(time=0.5)}, "`latency` must be given for a budget of time"),
        ({"budget": {"accuracy_drop": 0.1, "macs": 0.5}}, "accuracy_drop"),
        ({"budget": {"milliseconds": 0.5}}, "`latency` must be given for a budget of time"),
        ({"budget": 0.001}, "Channels stay in multiples of 8"),
        ({"groups": ["nobody"]}, "nobody"),
        ({"groups": ["out"]}, "a model output"),
        ({"multiple": 0}, "multiple"),
    ],
)
def test_what_cannot_be_chosen_is_said(options: dict[str, Any], message: str) -> None:
    model, _ = _redundant()
    before = model.get_weights()
    with pytest.raises(ValueError, match=message):
        dprp.select_channels(model, **{"method": "l1", "budget": 0.5, **options})
    for ours, kept in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, kept)


@pytest.mark.parametrize(
    "broken",
    [
        {"version": 2},
        {"groups": [{"name": "a", "size": 4, "kept": 5, "lost": 0.1, "removed": {}}]},
        {"groups": [{"name": "a", "size": 4, "kept": 3, "lost": 0.1, "removed": {"a": [1, 1]}}]},
        {"groups": [{"name": "a", "size": 4, "kept": 3, "lost": 0.1, "removed": {"a": [-1]}}]},
        {"groups": [{"name": "a", "size": 4, "kept": 3, "lost": float("nan"), "removed": {}}]},
        {"groups": [3]},
        {"cost": {"macs": "many"}},
        {"dense": {"macs": 0.0}},
        {"multiple": None},
    ],
)
def test_broken_plans_are_refused(broken: dict[str, Any]) -> None:
    row = PlannedChannels("a", 4, 3, 0.1, {"a": (2,)})
    plan = ChannelPlan("l1", 1, {"macs": 0.8}, (row,), {"macs": 3.0}, {"macs": 4.0})
    values = plan.as_dict()
    assert ChannelPlan.from_dict(values) == plan
    with pytest.raises(ValueError, match="channel plan"):
        ChannelPlan.from_dict({**values, **broken})
