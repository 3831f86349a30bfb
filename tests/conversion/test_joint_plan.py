"""Plans of channels and ranks together: what cutting by them does, and what files may hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import dprp_tf as dprp
from dprp_tf.conversion.chosen_forms import form_doubts
from dprp_tf.costs.channel_plan import PlannedChannels
from dprp_tf.costs.models import model_cost
from dprp_tf.costs.width_latency import CostGrid, WidthLatency
from dprp_tf.costs.width_table import WidthTable


def _model() -> keras.Model:
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", name="a")(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Conv2D(12, 3, name="b", activation="relu")(x)
    return keras.Model(inputs, layers.Dense(4, name="out")(layers.GlobalAveragePooling2D()(x)))


def _plan(model: keras.Model, truncation: str = "kernel", x: Any = None) -> dprp.JointPlan:
    gone = {"a": (1, 6), "b": (0, 4, 5)}
    rows = tuple(
        PlannedChannels(name, size, size - len(gone[name]), 0.1, {name: gone[name]})
        for name, size in (("a", 8), ("b", 12))
    )
    whole, fewer = model_cost(model), model_cost(dprp.remove_channels(model, gone))
    dense = {"parameters": float(whole.parameters), "macs": float(whole.macs or 0)}
    left = {"parameters": float(fewer.parameters), "macs": float(fewer.macs or 0)}
    channels = dprp.ChannelPlan("l1", 1, {}, rows, left, dense)
    ranks = dprp.select_ranks(
        dprp.cut(model, channels, calibration_data=x),
        method="energy",
        budget=dprp.Budget(parameters=0.7, tolerance=0.2),
        decomposition="channel",
        truncation=truncation,
        data=x,
    )
    cost = {name: ranks.cost[name] for name in dense}
    return dprp.JointPlan("by hand", channels, ranks, {"parameters": 0.5}, cost, dense)


def test_cutting_does_the_one_and_then_the_other() -> None:
    model = _model()
    plan = _plan(model)
    small = dprp.cut(model, plan)
    steps = dprp.cut(dprp.cut(model, plan.channels), plan.ranks)
    x = np.random.default_rng(0).normal(size=(5, 8, 8, 3)).astype("float32")
    np.testing.assert_array_equal(small(x), steps(x))
    counted = model_cost(small)
    assert counted.parameters == plan.cost["parameters"] < model.count_params()
    assert counted.macs == plan.cost["macs"]


def test_cutting_keeps_the_outputs_on_calibration_data() -> None:
    model = _model()
    rng = np.random.default_rng(1)
    x = rng.normal(size=(200, 8, 8, 3)).astype("float32")
    plan = _plan(model, "output", x)
    whole = np.asarray(model(x))

    def error(small: keras.Model) -> float:
        return float(np.mean((np.asarray(small(x)) - whole) ** 2))

    with pytest.warns(UserWarning, match="calibration_data"):
        without = dprp.cut(model, plan)
    assert error(dprp.cut(model, plan, calibration_data=x)) < 0.7 * error(without)


def test_a_width_table_says_the_forms_of_what_is_left() -> None:
    model = _model()
    plan = _plan(model)
    counts = tuple(range(1, 13))
    grid, stage = (
        CostGrid(counts, counts, tuple(tuple(scale * r * m for m in counts) for r in counts))
        for scale in (1.0, 0.1)
    )
    rows = tuple(
        WidthLatency(name, (3, 3), grid, "channel", stage, stage) for name in plan.ranks.ranks
    )
    table = WidthTable(rows, 20.0, 1.0, "local", "litert", "int8", 1, "ms", "some", "1")
    small = dprp.cut(model, plan, latency=table)
    assert form_doubts(small, "litert", "int8") == ()
    assert "int8, LiteRT, local" in form_doubts(small, "litert", "float32")[0]
    x = np.random.default_rng(0).normal(size=(5, 8, 8, 3)).astype("float32")
    np.testing.assert_array_equal(small(x), dprp.cut(model, plan)(x))
    # Where two stages take longer than the layer itself, it is folded to one.
    slow = replace(table, layers=tuple(replace(row, first=grid, second=grid) for row in rows))
    assert len(dprp.cut(model, plan, latency=slow).layers) == len(model.layers)
    (name,) = list(plan.ranks.ranks)[:1]
    other = replace(table, layers=tuple(row for row in rows if row.name != name))
    with pytest.raises(ValueError, match=f"must have the layer '{name}'"):
        dprp.cut(model, plan, latency=other)


def test_a_plan_is_kept_and_printed(tmp_path: Path) -> None:
    plan = replace(_plan(_model()), accuracy={"dense": 0.9, "planned": 0.8})
    assert dprp.JointPlan.load(plan.save(tmp_path / "plan.json")) == plan
    assert plan.shares["parameters"] == plan.cost["parameters"] / plan.dense["parameters"]
    printed = " ".join(str(plan).split())
    for part in ("multiples of 1", "ranks by by hand", "of the macs", "planned 80.00%"):
        assert part in printed


@pytest.mark.parametrize(
    "broken",
    [
        {"version": 2},
        {"channels": {}},
        {"channels": None},
        {"ranks": {"version": 1}},
        {"cost": {"macs": 1.0}},
        {"dense": {"macs": 4.0, "parameters": -1.0}},
        {"cost": {"macs": float("nan"), "parameters": 1.0}},
        {"accuracy": {"dense": "high"}},
        {"budget": 3},
    ],
)
def test_broken_plans_are_refused(broken: dict[str, Any]) -> None:
    values = _plan(_model()).as_dict()
    with pytest.raises(ValueError, match="joint plan"):
        dprp.JointPlan.from_dict({**values, **broken})
