"""Times by width: held against targets that count, and against models really cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from counting_target import CountingTarget
from keras import layers

import dprp_tf as dprp
from dprp_tf import deploy, zoo
from dprp_tf.channels import follow, groups_of, places_of
from dprp_tf.conversion.times_by_rank import times_by_rank
from dprp_tf.costs.width_table import WidthTable
from dprp_tf.deploy.planning.form_costs import Setting
from dprp_tf.selection.solving.timed_costs import TimedCosts
from dprp_tf.selection.solving.width_costs import WidthCosts

FIXED = 100.0
# The model that says what nothing costs has a weight, which each layer is told without.
WITHIN = 10.0


def _block(x: Any, filters: int, name: str, **options: Any) -> Any:
    x = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=name, **options)(x)
    return layers.ReLU()(layers.BatchNormalization()(x))


def _network() -> keras.Model:
    """Sums, a window of its own for each channel, a stride, and rows of a flattened map."""
    inputs = keras.Input((8, 8, 3))
    x = _block(inputs, 16, "stem")
    y = _block(x, 24, "inner")
    y = layers.Conv2D(16, 3, padding="same", name="back")(y)
    x = layers.Add()([x, y])
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = _block(x, 32, "down", strides=2)
    x = layers.Flatten()(x)
    x = layers.Dense(16, activation="relu", name="hidden")(x)
    return keras.Model(inputs, layers.Dense(4, name="head")(x))


def _counted(model: keras.Model, target: CountingTarget, folder: Path) -> float:
    path = Setting(target, "litert", "float32").convert(model, folder / "model")
    return target.fixed + target._count(path)


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    return _network()


@pytest.fixture(scope="module")
def table(model: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> WidthTable:
    return deploy.measure_widths(
        model,
        target=CountingTarget(fixed=FIXED),
        points=2,
        cache=tmp_path_factory.mktemp("cache"),
    )


@pytest.fixture(scope="module")
def by_separable(model: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> WidthTable:
    return deploy.measure_widths(
        model,
        target=CountingTarget(fixed=FIXED),
        decomposition="separable",
        cache=tmp_path_factory.mktemp("separable"),
    )


def _costs(model: keras.Model, table: WidthTable) -> WidthCosts:
    followed = follow(model)
    found = groups_of(model, followed).able()
    return WidthCosts(model, followed, [(g, range(g.size)) for g in found], table)


@pytest.mark.parametrize("seed", range(3))
def test_a_model_cut_costs_what_its_widths_say(
    model: keras.Model, table: WidthTable, tmp_path: Path, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    groups = {group.name: group for group in groups_of(model, follow(model)).able()}
    widths = {name: int(rng.choice(group.widths(8))) for name, group in groups.items()}
    if seed == 0:
        widths = {name: group.widths(8)[-1] for name, group in groups.items()}
    removed = {
        name: [
            at for place in range(group.size - widths[name]) for at in group.filters_at(place)[1]
        ]
        for name, group in groups.items()
    }
    small = dprp.remove_channels(model, {name: at for name, at in removed.items() if at})
    target = CountingTarget(fixed=FIXED)
    told = _costs(model, table).shares(widths)["milliseconds"] * table.dense
    counted = _counted(small, target, tmp_path)
    assert told == pytest.approx(counted, abs=WITHIN)
    assert counted < _counted(model, target, tmp_path)


@pytest.mark.slow
def test_ranks_at_a_width_cost_what_their_two_stages_do(
    model: keras.Model, by_separable: WidthTable, tmp_path: Path
) -> None:
    table = by_separable
    costs = _costs(model, table)
    widths = {"inner": 16, "down": 24}
    small = dprp.remove_channels(model, {"inner": list(range(8)), "down": list(range(8))})
    by_rank = times_by_rank(small, table, maps=costs.shares(widths)["activations"])
    target = CountingTarget(fixed=FIXED)
    assert by_rank.dense == pytest.approx(_counted(small, target, tmp_path), abs=WITHIN)
    ranks = {"back": 8, "down": 16}
    low = dprp.factorize(small, ranks=ranks, layers=list(ranks), decomposition="separable")
    plain = dprp.fold(low, forms=dict.fromkeys(ranks, "separable"))
    told = by_rank.model_cost(ranks)
    assert told == pytest.approx(_counted(plain, target, tmp_path), abs=WITHIN)
    assert told != pytest.approx(by_rank.dense, rel=1e-2)
    row = by_rank.layer("back")
    assert (row.full_rank, row.form(8)) == (48, "separable")


def test_the_table_is_kept_and_read_again(table: WidthTable, tmp_path: Path) -> None:
    table.save(tmp_path / "widths.json")
    again = WidthTable.load(tmp_path / "widths.json")
    assert again == table
    assert "depthwise" in str(again)
    assert "instructions" in str(again)
    # Behind a flattening a channel is sixteen columns, and counts are measured in those.
    assert again.by_name["hidden"].dense.reads[-1] == 4 * 4 * 32
    assert again.by_name["depthwise"].dense.makes == (16,)
    assert again.by_name["head"].dense.makes == (4,)
    values = again.as_dict()
    values["layers"][0]["dense"]["costs"][0][0] = -1.0
    with pytest.raises(ValueError, match="a cost above 0"):
        WidthTable.from_dict(values)


def test_what_is_known_is_not_measured_again(model: keras.Model, tmp_path: Path) -> None:
    target = CountingTarget(fixed=FIXED)
    deploy.measure_widths(model, target=target, cache=tmp_path, groups=["inner"])
    before = sum(target.calls)
    deploy.measure_widths(model, target=target, cache=tmp_path, groups=["inner"])
    # The yardstick beside an empty model, and the whole model beside another.
    assert sum(target.calls) - before == 4


@pytest.mark.parametrize("share", [0.8, 0.5])
def test_channels_are_chosen_for_a_time(
    model: keras.Model, table: WidthTable, tmp_path: Path, share: float
) -> None:
    x = np.random.default_rng(0).normal(size=(64, 8, 8, 3)).astype("float32")
    plan = dprp.select_channels(model, budget=dprp.Budget(time=share), data=x, latency=table)
    assert plan.unit == "instructions"
    assert "instructions" in str(plan)
    assert plan.shares["milliseconds"] <= share
    counted = _counted(dprp.cut(model, plan), CountingTarget(fixed=FIXED), tmp_path)
    assert plan.cost["milliseconds"] == pytest.approx(counted, abs=WITHIN)
    same = dprp.Budget(milliseconds=share * table.dense)
    again = dprp.select_channels(model, budget=same, data=x, latency=table)
    assert again.removed == plan.removed
    with pytest.raises(dprp.BudgetError, match=r"`time` must be at least 0\.[0-9]+, the cost at"):
        dprp.select_channels(model, budget={"time": 1e-4}, data=x, latency=table)


@pytest.mark.slow
def test_both_meet_a_time_and_are_no_worse_than_either(
    model: keras.Model, by_separable: WidthTable, tmp_path: Path
) -> None:
    table = by_separable
    rng = np.random.default_rng(1)
    x = rng.normal(size=(96, 8, 8, 3)).astype("float32")
    y = model.predict(x, verbose=0).argmax(-1)
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    options: dict[str, Any] = {"budget": dprp.Budget(time=0.5), "latency": table}
    plan = dprp.select_channels_and_ranks(model, data=(x, y), **options)
    alone = dprp.select_channels(model, data=(x, y), **options)
    rows = table.by_rank({})
    ranks = dprp.select_ranks(
        model,
        data=(x, y),
        budget=dprp.Budget(time=0.5),
        latency=rows,
        layers=[row.name for row in rows.layers],
    )
    least = max(alone.accuracy["planned"], ranks.accuracy["planned"])
    assert plan.accuracy["planned"] >= least - 1e-9
    assert plan.accuracy["dense"] == 1.0
    assert plan.shares["milliseconds"] <= 0.5 + 1e-9
    small = dprp.cut(model, plan, calibration_data=x)
    assert np.mean(small.predict(x, verbose=0).argmax(-1) == y) == plan.accuracy["planned"]
    counted = _counted(small, CountingTarget(fixed=FIXED), tmp_path)
    assert plan.cost["milliseconds"] == pytest.approx(counted, rel=1e-2)
    assert small.count_params() < model.count_params()


def test_what_cannot_be_measured_or_chosen_is_said(
    model: keras.Model, table: WidthTable, tmp_path: Path
) -> None:
    inputs = keras.Input((8, 8, 3))
    fixed = keras.Model(inputs, layers.Conv2D(4, 3, name="only")(inputs))
    with pytest.raises(ValueError, match="all must stay"):
        deploy.measure_widths(fixed, target=CountingTarget(), cache=tmp_path)
    with pytest.raises(ValueError, match="`points`"):
        deploy.measure_widths(model, target=CountingTarget(), points=1, cache=tmp_path)
    with pytest.raises(ValueError, match="`decomposition`"):
        deploy.measure_widths(model, decomposition="spatial", cache=tmp_path)
    other = keras.Model(inputs, layers.Dense(4)(_block(inputs, 16, "stem")))
    with pytest.raises(ValueError, match=r"table of this model's widths.*'inner'|'stem'"):
        dprp.select_channels(other, method="l1", budget={"time": 0.9}, latency=table)
    x = np.zeros((8, 8, 8, 3), "float32")
    with pytest.raises(ValueError, match="a table of widths alone"):
        dprp.select_channels_and_ranks(
            model, budget={"time": 0.5}, data=(x, np.zeros(8, int)), latency=table
        )


@pytest.fixture(scope="module")
def by_channel(model: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> WidthTable:
    return deploy.measure_widths(
        model,
        target=CountingTarget(fixed=FIXED),
        decomposition="channel",
        cache=tmp_path_factory.mktemp("channel"),
    )


@pytest.mark.slow
def test_soft_times_are_the_tables_own_and_fall_as_their_derivatives_say(
    model: keras.Model,
    by_channel: WidthTable,
    gradient: Callable[[Callable[[Any], Any], np.ndarray], np.ndarray],
) -> None:
    followed = follow(model)
    groups = groups_of(model, followed).able()
    places = places_of(model, followed, groups)
    ranked = [row.name for row in by_channel.layers if row.decomposition == "channel"]
    costs = TimedCosts(model, places, ranked, ["milliseconds"], by_channel)
    widths = {"stem": 8, "inner": 16, "down": 24}
    hard = WidthCosts(model, followed, [(g, range(g.size)) for g in groups], by_channel)
    mask = np.ones(places.count, dtype="float32")
    for number, group in enumerate(groups):
        mask[places.starts[number] :][: group.size - widths.get(group.name, group.size)] = 0
    told = float(costs.shares(mask)["milliseconds"])
    assert told == pytest.approx(hard.shares(widths)["milliseconds"], rel=1e-5)
    # All dense but one, whose two stages are quicker.
    ranks = np.full(len(ranked), 1e4, dtype="float32")
    ranks[ranked.index("inner")] = 4
    gone = {
        name: [at for place in range(g.size - widths[name]) for at in g.filters_at(place)[1]]
        for name, g in ((g.name, g) for g in groups if g.name in widths)
    }
    small = dprp.remove_channels(model, gone)
    table = times_by_rank(small, by_channel, maps=hard.shares(widths)["activations"])
    expected = table.model_cost({"inner": 4}) / by_channel.dense
    found = float(costs.shares(mask, ranks)["milliseconds"])
    assert found == pytest.approx(expected, rel=1e-5) != pytest.approx(told, rel=1e-3)

    # Where two stages are quicker derivatives are those of the costs themselves.
    soft = TimedCosts(model, places, ["inner", "back"], ["milliseconds"], by_channel)
    at = np.random.default_rng(0).uniform(0.6, 0.9, places.count + 2)
    at[-2:] = 10.3, 9.6

    def cost(values: Any) -> Any:
        return soft.shares(values[:-2], values[-2:])["milliseconds"]

    slopes = gradient(cost, at.astype("float32"))
    assert (slopes[-2:] > 1e-3).all()
    for place in [*range(0, places.count, 7), places.count, places.count + 1]:
        step = np.zeros(len(at))
        step[place] = 0.05
        up, down = (float(cost((at + sign * step).astype("float32"))) for sign in (1, -1))
        assert slopes[place] == pytest.approx((up - down) / 0.1, rel=0.01, abs=5e-6)


@pytest.mark.slow
def test_channels_and_ranks_are_learned_for_a_time(
    model: keras.Model, by_channel: WidthTable, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(96, 8, 8, 3)).astype("float32")
    y = model.predict(x, verbose=0).argmax(-1)
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    options: dict[str, Any] = {
        "latency": by_channel,
        "learning": dprp.LeSS(steps=20, most_steps=20, batch_size=16),
    }
    plan = dprp.learn_channels_and_ranks(model, (x, y), budget={"time": 0.5}, **options)
    assert plan.shares["milliseconds"] <= 0.5
    assert plan.ranks.unit == plan.channels.unit == "instructions"
    small = dprp.cut(model, plan, calibration_data=x, latency=by_channel)
    counted = _counted(small, CountingTarget(fixed=FIXED), tmp_path)
    assert plan.cost["milliseconds"] == pytest.approx(counted, rel=0.01)
    assert 0.45 * by_channel.dense < counted
    assert dprp.JointPlan.load(plan.save(tmp_path / "plan.json")) == plan
    with pytest.raises(dprp.BudgetError, match="instructions"):
        dprp.learn_channels_and_ranks(model, (x, y), budget={"milliseconds": 1.0}, **options)
    with pytest.raises(ValueError, match="`latency` must be given"):
        dprp.learn_channels_and_ranks(model, (x, y), budget={"time": 0.5})


def test_ranks_alone_are_measured_of_whole_layers(model: keras.Model, tmp_path: Path) -> None:
    target = CountingTarget(fixed=FIXED)
    options = {"target": target, "cache": tmp_path}
    table = deploy.measure_widths(model, decomposition="channel", groups=(), **options)
    assert {row.name for row in table.layers} >= {"stem", "inner", "back", "down", "hidden"}
    assert all(len(row.dense.reads) == len(row.dense.makes) == 1 for row in table.layers)
    row = table.by_name["back"]
    assert (row.first.reads, row.second.makes) == ((24,), (16,))
    with pytest.raises(ValueError, match="must have channels that may go"):
        deploy.measure_widths(model, groups=(), **options)


def test_points_bound_both_axes_and_none_lies_below_a_step(tmp_path: Path) -> None:
    # Zeros join the stages' channels, so that of the first stage's fewer than 8 may be left.
    model = zoo.resnet_small((8, 8, 1), widths=(16, 32, 64))
    table = deploy.measure_widths(
        model, target=CountingTarget(), decomposition="separable", points=2, cache=tmp_path
    )
    assert table.by_name["stem_conv"].dense.makes == (8, 16)
    for row in table.layers:
        assert max(map(len, (row.dense.reads, row.dense.makes, row.first.makes))) <= 2


@pytest.mark.long
def test_a_model_of_gray_images_is_measured_in_int8(tmp_path: Path) -> None:
    model = zoo.resnet_small((8, 8, 1), widths=(16, 32, 64))
    table = deploy.measure_widths(model, precision="int8", points=2, rounds=3, cache=tmp_path)
    assert 0 < table.fixed <= table.dense
