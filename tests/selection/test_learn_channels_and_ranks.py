"""Channels and ranks that are learned: costs, rounding and plans against independent truths."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from channel_checks import draw_removal
from keras import layers
from PIL import Image
from told_widths import told_widths

import dprp_tf as dprp
from dprp_tf import zoo
from dprp_tf.channels import channel_groups, follow, places_of
from dprp_tf.costs.models import model_cost
from dprp_tf.costs.rank_space import RankSpace
from dprp_tf.data import Dataset, StreamedImages
from dprp_tf.selection.solving.soft_costs import SoftCosts

_RESNET20 = "DPRP_RESNET20_CIFAR10"
FEW = dprp.LeSS(steps=60, most_steps=120, batch_size=32, learning_rate=0.03)


def _network(seed: int, depth: int = 2) -> keras.Model:
    """A small network of random widths with residual, concatenated and plain layers."""
    rng = np.random.default_rng(seed)
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(16, 3, padding="same", activation="relu", name="first")(inputs)
    for block in range(depth):
        width = int(rng.integers(2, 5)) * 8
        kind = ("add", "concatenate", "plain")[int(rng.integers(3))]
        y = layers.Conv2D(width, 3, padding="same", use_bias=False, name=f"in{block}")(x)
        y = layers.ReLU()(layers.BatchNormalization()(y))
        if kind == "add":
            y = layers.Conv2D(x.shape[-1], int(rng.choice([1, 3])), padding="same")(y)
            y = layers.Add()([x, y])
        elif kind == "concatenate":
            y = layers.Concatenate()([x, y])
        x = layers.ReLU()(y)
    x = layers.Flatten()(layers.MaxPooling2D(4)(x))
    model = keras.Model(inputs, layers.Dense(4, name="out")(x))
    model.compile(
        optimizer=keras.optimizers.Adam(0.003),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def _strided(seed: int) -> keras.Model:
    """A network whose convolutions have strides and windows of several kinds."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(16, 3, padding="same", activation="relu", name="first")(inputs)
    x = layers.Conv2D(24, 3, strides=2, padding="same", activation="relu", name="down")(x)
    y = layers.Conv2D(24, (1, 3), padding="same", activation="relu", name="wide")(x)
    x = layers.Add()([x, layers.Conv2D(24, 1, name="point")(y)])
    x = layers.Conv2D(16, 2, strides=2, activation="relu", name="small")(x)
    model = keras.Model(inputs, layers.Dense(4, name="out")(layers.Flatten()(x)))
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def _positioned(model: keras.Model) -> int:
    """How many of the kernels have more positions than one."""
    kernels = [layer.kernel.shape for layer in model.layers if hasattr(layer, "kernel")]
    return sum(int(np.prod(shape[:-2])) > 1 for shape in kernels)


def _data(seed: int = 0, count: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Four classes told by where the image is bright."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 8, 8, 3)).astype("float32")
    y = rng.integers(0, 4, count)
    for at, label in enumerate(y):
        row, column = divmod(int(label), 2)
        x[at, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 0.6
    return x, y


@pytest.fixture(scope="module")
def trained() -> tuple[keras.Model, np.ndarray, np.ndarray]:
    model = _network(1)
    x, y = _data(count=512)
    model.fit(x, y, epochs=4, batch_size=32, verbose=0)
    return model, x, y


@pytest.mark.backend
@pytest.mark.parametrize("decomposition", ["channel", "tucker"])
@pytest.mark.parametrize("metric", ["macs", "parameters", "activations"])
def test_derivatives_of_the_cost_are_numerical_ones(
    metric: str, decomposition: str, gradient: Callable[..., np.ndarray]
) -> None:
    model = _network(4) if decomposition == "channel" else _strided(4)
    groups = [g for g in channel_groups(model).values() if g.prunable]
    places = places_of(model, follow(model), groups)
    names = [x.key for x in places.layers if hasattr(x.record.layer, "kernel")]
    costs = SoftCosts(model, places, names, [metric], decomposition=decomposition)
    count = costs.stages.count
    rng = np.random.default_rng(0)
    # Ranks at which the factorized form is the cheaper one: elsewhere they have derivatives that
    # the costs do not follow, on purpose.
    at = np.concatenate([rng.uniform(0.6, 1, places.count), rng.uniform(0.5, 1.5, count)])

    def cost(value: Any) -> Any:
        return costs.shares(value[: places.count], value[places.count :])[metric]

    found = gradient(cost, at)
    step = 0.05
    ranks = range(places.count, len(at))
    assert count == len(names) + (decomposition == "tucker") * _positioned(model)
    for entry in [*rng.choice(places.count, 12, replace=False).tolist(), *ranks]:
        above, below = at.copy(), at.copy()
        above[entry] += step
        below[entry] -= step
        numerical = (
            float(cost(keras.ops.convert_to_tensor(above.astype("float32"))))
            - float(cost(keras.ops.convert_to_tensor(below.astype("float32"))))
        ) / (2 * step)
        assert found[entry] == pytest.approx(numerical, rel=0.02, abs=1e-5)


@pytest.mark.parametrize("decomposition", ["channel", "tucker"])
@pytest.mark.parametrize("make", [lambda: _network(7), lambda: zoo.resnet_cifar(8)])
@pytest.mark.parametrize("decisive", ["parameters", "macs"])
def test_costs_at_whole_counts_are_those_of_the_smaller_model(
    make: Any, decomposition: str, decisive: str
) -> None:
    model = make()
    groups = [g for g in channel_groups(model).values() if g.prunable]
    places = places_of(model, follow(model), groups)
    names = list(RankSpace(model, decomposition).layers)
    metrics = ["parameters", "macs", "activations"]
    metrics = metrics if decisive == "parameters" else metrics[1:]
    costs = SoftCosts(model, places, names, metrics, decomposition=decomposition)
    rng = np.random.default_rng(2)
    gone = draw_removal(channel_groups(model), rng)
    kept = np.ones(places.count, dtype="float32")
    for number, group in enumerate(places.groups):
        for name, tied in group.layers.items():
            for place, filters in enumerate(tied):
                if set(filters) & set(gone.get(name, ())):
                    kept[places.starts[number] + place] = 0
    small = dprp.remove_channels(model, gone)
    space = RankSpace(small, decomposition)
    ranks = {
        name: tuple(int(rng.integers(1, full + 1)) for full in layer.full_ranks)
        for name, layer in space.layers.items()
    }
    settled = space.settled(ranks, [decisive])
    assert decomposition == "channel" or None in settled.values()
    assert any(settled.values())
    whole = RankSpace(model, decomposition).cost({}).dense
    expected = space.cost(settled).values
    flat = np.concatenate([ranks[name] for name in names]).astype("float32")
    assert costs.stages.by_layer(flat) == ranks
    found = costs.shares(kept, flat)
    for metric in metrics:
        assert costs.dense[metric] == whole[metric]
        assert float(found[metric]) == pytest.approx(expected[metric] / whole[metric], rel=1e-5)


def test_three_stages_cost_what_is_counted_by_hand() -> None:
    inputs = keras.Input((9, 9, 8))
    x = layers.Conv2D(16, 3, strides=2, use_bias=False, name="a")(inputs)  # 4 x 4 positions
    model = keras.Model(inputs, layers.Dense(4, use_bias=False, name="out")(layers.Flatten()(x)))
    places = places_of(model, follow(model), [channel_groups(model)["a"]])
    whole = {"parameters": 9 * 8 * 16 + 256 * 4, "activations": 16 * 16 + 4}
    whole["macs"] = 16 * 9 * 8 * 16 + 256 * 4

    def told(ranks: list[float], metrics: list[str]) -> dict[str, float]:
        costs = SoftCosts(model, places, ["a", "out"], metrics, decomposition="tucker")
        assert costs.dense == {metric: whole[metric] for metric in metrics}
        mask = np.repeat([1.0, 0.0], 8).astype("float32")  # 8 of 16 filters are left
        found = costs.shares(mask, np.array(ranks, "float32"))
        return {metric: float(found[metric]) * whole[metric] for metric in metrics}

    # Ranks 2.5 and 3.5 of `a`, and 1 of `out`, which reads 16 positions of 8 channels.
    metrics = ["parameters", "macs", "activations"]
    found = told([2.5, 3.5, 1.0], metrics)
    core, last = 9 * 2.5 * 3.5, 3.5 * 8
    assert found["parameters"] == pytest.approx(8 * 2.5 + core + last + 128 + 4, rel=1e-5)
    assert found["macs"] == pytest.approx(
        81 * 8 * 2.5 + 16 * (core + last) + 128 + 4, rel=1e-5
    )  # the first stage works before the strides, at 9 x 9 positions
    assert found["activations"] == pytest.approx(81 * 2.5 + 16 * 3.5 + 16 * 8 + 1 + 4, rel=1e-5)
    # Fewer weights than the dense 576 and more MACs than its 9,216: what is asked for decides.
    ranks = [8.0, 4.0, 1e3]
    weights = 8 * 8 + 9 * 8 * 4 + 4 * 8
    assert told(ranks, metrics)["macs"] == pytest.approx(
        81 * 64 + 16 * (9 * 32 + 32) + 128 * 4, rel=1e-5
    )
    assert told(ranks, ["parameters"])["parameters"] == pytest.approx(weights + 512, rel=1e-5)
    assert told(ranks, ["macs"])["macs"] == pytest.approx(16 * 9 * 8 * 8 + 512, rel=1e-5)


def test_derivatives_lead_to_lower_ranks_from_full_ones(
    gradient: Callable[..., np.ndarray],
) -> None:
    model = _strided(4)
    groups = [g for g in channel_groups(model).values() if g.prunable]
    places = places_of(model, follow(model), groups)
    space = RankSpace(model, "tucker")
    costs = SoftCosts(model, places, list(space.layers), ["macs"], decomposition="tucker")
    full = np.concatenate([layer.full_ranks for layer in space.layers.values()])
    kept = np.ones(places.count, "float32")

    def cost(ranks: Any) -> Any:
        return costs.shares(kept, ranks)["macs"]

    assert float(cost(full.astype("float32"))) == pytest.approx(1.0)
    slopes = gradient(cost, full)
    assert (slopes > 0).all()
    # As the three stages' MACs fall, by hand for the first layer: 64 (C r_in) and so on.
    inner, outer = space.layers["first"].full_ranks
    whole = model_cost(model).macs
    assert whole is not None
    assert slopes[0] == pytest.approx(64 * (3 + 9 * outer) / whole, rel=1e-4)
    assert slopes[1] == pytest.approx(64 * (9 * inner + 16) / whole, rel=1e-4)


@pytest.mark.parametrize(
    "seed", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(5, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    ("decomposition", "metric", "share"),
    [
        ("channel", "macs", 0.5),
        ("channel", "parameters", 0.35),
        ("tucker", "macs", 0.4),
        ("tucker", "parameters", 0.3),
    ],
)
def test_the_budget_is_met_from_below(
    seed: int, decomposition: str, metric: str, share: float
) -> None:
    model = _network(seed) if decomposition == "channel" else _strided(seed)
    x, y = _data(seed)
    few = dprp.LeSS(steps=20, most_steps=20, batch_size=32, learning_rate=0.03)
    plan = dprp.learn_channels_and_ranks(
        model, (x, y), budget={metric: share}, learning=few, decomposition=decomposition
    )
    assert 0.99 * share <= plan.shares[metric] <= share
    counted = model_cost(dprp.cut(model, plan, calibration_data=x[:512]))
    assert plan.cost == {"parameters": counted.parameters, "macs": counted.macs}


def test_both_go_and_what_is_left_still_tells_classes(
    trained: tuple[keras.Model, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    model, x, y = trained
    before = model.get_weights()
    plan = dprp.learn_channels_and_ranks(
        model, (x, y), budget={"macs": 0.2}, learning=FEW, validation_data=_data(9)
    )
    for ours, kept in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, kept)
    assert plan.accuracy["dense"] > 0.9
    assert plan.accuracy["planned"] > plan.accuracy["dense"] - 0.15
    assert plan.channels.removed
    assert plan.ranks.ranks
    small = dprp.cut(model, plan, calibration_data=x[:512])
    assert np.abs(np.asarray(small(x[:9])) - np.asarray(model(x[:9]))).max() > 1e-3
    assert dprp.JointPlan.load(plan.save(tmp_path / "plan.json")) == plan
    assert all(row.kept % 8 == 0 for row in plan.channels.groups)
    # By chance as many channels of each group, with the same kernels fitted anew, do worse.
    rng = np.random.default_rng(0)
    groups = channel_groups(model)
    drawn = {
        row.name: rng.permutation(row.size)[: row.size - row.kept].tolist()
        for row in plan.channels.groups
        if row.kept < row.size
    }
    rows = tuple(
        dprp.costs.channel_plan.PlannedChannels(
            row.name,
            row.size,
            row.kept,
            0.0,
            {groups[row.name].name: tuple(sorted(drawn[row.name]))} if row.name in drawn else {},
        )
        for row in plan.channels.groups
    )
    chance = dprp.ChannelPlan("random", 8, {}, rows, {}, {})

    def loss(network: keras.Model) -> float:
        return float(
            keras.losses.sparse_categorical_crossentropy(
                y, network.predict(x, verbose=0), from_logits=True
            )
            .numpy()
            .mean()
        )

    learned = loss(dprp.cut(model, plan.channels, calibration_data=x))
    assert learned < loss(dprp.cut(model, chance, calibration_data=x))


@pytest.mark.parametrize("truncation", [pytest.param("output", marks=pytest.mark.slow), "kernel"])
def test_two_ranks_of_a_kernel_are_learned_cut_and_kept(
    truncation: str, trained: tuple[keras.Model, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    model, x, y = trained
    options: dict[str, Any] = {
        "budget": {"macs": 0.3},
        "learning": FEW,
        "decomposition": "tucker",
        "truncation": truncation,
    }
    folder = tmp_path / "learning"
    plan = dprp.learn_channels_and_ranks(
        model, (x, y), **options, folder=folder, validation_data=_data(9)
    )
    assert plan.ranks.decomposition == "tucker"
    assert plan.ranks.truncation == truncation
    kinds = {row.name: row.decomposition for row in plan.ranks.layers}
    assert kinds.pop("out") == "channel"
    assert set(kinds.values()) == {"tucker"}
    pairs = [row for row in plan.ranks.layers if row.ranks is not None and len(row.ranks) == 2]
    assert pairs
    assert any(row.ranks != row.full_ranks for row in pairs)
    assert plan.accuracy["planned"] > plan.accuracy["dense"] - 0.2
    assert 0.297 <= plan.shares["macs"] <= 0.3
    seen = x[:512] if truncation == "output" else None
    small = dprp.cut(model, plan, calibration_data=seen)
    counted = model_cost(small)
    assert plan.cost == {"parameters": counted.parameters, "macs": counted.macs}
    kernels = [
        sum(1 for layer in small.layers if layer.name.startswith(row.name) and layer.weights)
        for row in pairs
    ]
    assert set(kernels) == {3}
    assert np.abs(np.asarray(small(x[:9])) - np.asarray(model(x[:9]))).max() > 1e-3
    assert dprp.JointPlan.load(plan.save(tmp_path / "plan.json")) == plan
    # From the last state that was kept it goes on to the same plan.
    again = dprp.learn_channels_and_ranks(
        model, (x, y), **options, folder=folder, validation_data=_data(9)
    )
    assert again == plan
    with pytest.raises(ValueError, match="'decomposition'"):
        dprp.learn_channels_and_ranks(
            model, (x, y), **{**options, "decomposition": "channel"}, folder=folder
        )


@pytest.mark.slow
def test_masks_alone_leave_ranks_full_and_thresholds_alone_channels(
    trained: tuple[keras.Model, np.ndarray, np.ndarray],
) -> None:
    model, x, y = trained
    both = {"steps": 60, "most_steps": 60, "batch_size": 32, "learning_rate": 0.03}
    channels = dprp.learn_channels_and_ranks(
        model, (x, y), budget={"macs": 0.5}, learning=dprp.LeSS(thresholds=False, **both)
    )
    assert channels.ranks.ranks == {}
    assert channels.channels.removed
    assert channels.shares["macs"] <= 0.5
    ranks = dprp.learn_channels_and_ranks(
        model, (x, y), budget={"macs": 0.5}, learning=dprp.LeSS(masks=False, **both)
    )
    assert ranks.channels.removed == {}
    assert ranks.ranks.ranks
    assert 0.495 <= ranks.shares["macs"] <= 0.5


@pytest.mark.slow
def test_equal_seeds_give_equal_plans() -> None:
    model = _network(3, depth=1)
    x, y = _data()
    few = dprp.LeSS(steps=4, most_steps=4, batch_size=32, learning_rate=0.05)

    def plan(seed: int) -> dprp.JointPlan:
        return dprp.learn_channels_and_ranks(
            model, (x, y), budget={"macs": 0.4}, learning=few, seed=seed
        )

    first = plan(0)
    assert plan(0) == first
    assert plan(1).ranks.history != first.ranks.history


def test_what_nothing_would_meet_is_said_before_learning(
    trained: tuple[keras.Model, np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x, y = trained
    monkeypatch.setattr(dprp.LeSS, "learn", pytest.fail)
    with pytest.raises(dprp.BudgetError, match="`macs` must be at least") as least:
        dprp.learn_channels_and_ranks(model, (x, y), budget={"macs": 1e-4})
    monkeypatch.undo()
    few = dprp.LeSS(steps=1, most_steps=1, batch_size=8)
    bound = {"macs": float(np.ceil(least.value.least * 1e6) / 1e6), "tolerance": 0.2}
    plan = dprp.learn_channels_and_ranks(model, (x, y), budget=bound, learning=few)
    assert plan.shares["macs"] <= bound["macs"]
    place = {"target": "local", "runtime": "litert", "precision": "int8", "threads": 1}
    table = told_widths(model, "channel", **place)
    for asked, name in (({"time": 1e-3}, "time"), ({"milliseconds": 1e-3}, "milliseconds")):
        with pytest.raises(dprp.BudgetError, match=f"`{name}` must be at least .* least widths"):
            dprp.learn_channels_and_ranks(model, (x, y), budget=asked, latency=table)


def test_a_budget_of_maps_and_a_table_without_a_bound_are_told_in_the_plan(
    trained: tuple[keras.Model, np.ndarray, np.ndarray],
) -> None:
    model, x, y = trained
    place = {"target": "local", "runtime": "litert", "precision": "int8", "threads": 1}
    few = dprp.LeSS(steps=4, most_steps=4, batch_size=32, thresholds=False)
    table = told_widths(model, None, **place)  # without ranks, as none are learned
    plan = dprp.learn_channels_and_ranks(
        model, (x, y), budget={"activations": 0.7}, learning=few, latency=table
    )
    assert set(plan.shares) == {"parameters", "macs", "activations", "milliseconds"}
    assert plan.shares["activations"] <= 0.7
    counted = sum(
        np.prod(output.shape[1:])
        for network in (dprp.cut(model, plan, calibration_data=x),)
        for output in (layer.output for layer in network.layers if hasattr(layer, "kernel"))
    )
    assert plan.cost["activations"] == counted


def test_images_on_disk_are_read_as_steps_ask_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    names, labels = [], np.arange(60) % 4
    for at, label in enumerate(labels.tolist()):
        (tmp_path / str(label)).mkdir(exist_ok=True)
        names.append(f"{at}.png".encode())
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(
            tmp_path / str(label) / f"{at}.png"
        )
    folders = tuple("0123")
    images = StreamedImages(tmp_path, folders, np.array(names), labels, (8, 8), 1.0)
    data = Dataset("disk", images, labels, images, labels, folders, None)
    model = _network(3, depth=1)
    few = dprp.LeSS(steps=2, most_steps=2, batch_size=4)
    options = {"budget": {"macs": 0.6}, "learning": few, "truncation": "kernel"}
    held_out = (images[:8], labels[:8])
    expected = dprp.learn_channels_and_ranks(
        model, (images[:], labels), **options, validation_data=held_out
    )
    read = []
    reading = StreamedImages.read
    monkeypatch.setattr(
        StreamedImages, "read", lambda self, index: read.append(index) or reading(self, index)
    )
    found = dprp.learn_channels_and_ranks(model, data, **options, validation_data=held_out)
    assert len(read) == 2 * 4
    assert found == expected


def test_a_share_of_the_data_is_learned_from() -> None:
    few = dprp.LeSS(data_share=0.1)
    batches = few._batches(200, np.random.default_rng(0))
    drawn = [next(batches) for _ in range(5)]
    assert {len(rows) for rows in drawn} == {20}
    assert len(set(np.concatenate(drawn).tolist())) == 20


@pytest.mark.slow
def test_groups_and_layers_can_be_chosen(
    trained: tuple[keras.Model, np.ndarray, np.ndarray],
) -> None:
    model, x, y = trained
    plan = dprp.learn_channels_and_ranks(
        model, (x, y), budget={"macs": 0.8}, learning=FEW, groups=["in1"], layers=["first", "in0"]
    )
    assert [row.name for row in plan.channels.groups] == ["in1"]
    assert [row.name for row in plan.ranks.layers] == ["first", "in0"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": None}, "Received: None"),
        ({"data": "x"}, "inputs without labels"),
        ({"budget": dprp.Budget(time=0.5)}, "`latency` must be given for a budget of time"),
        ({"budget": {"accuracy_drop": 0.1, "macs": 0.5}}, "accuracy_drop"),
        ({"budget": {"speed": 0.1}}, "speed"),
        ({"budget": {"macs": 0.0001}}, "Channels stay in multiples of 8"),
        ({"groups": ["nobody"]}, "nobody"),
        ({"groups": ["out"]}, "a model output"),
        ({"layers": ["nobody"]}, "nobody"),
        ({"multiple": 0}, "multiple"),
        ({"truncation": "both"}, "truncation"),
        ({"decomposition": "separable"}, "`decomposition` must be one of .*'channel', 'tucker'"),
        (
            {"decomposition": "tucker", "budget": {"time": 0.5}},
            "three stages. Received: decomposition='tucker' with a budget of time",
        ),
        ({"decomposition": "tucker", "latency": "told"}, "three stages.*with `latency`"),
        ({"decomposition": "tucker", "budget": {"macs": 0.0001}}, "least widths and ranks"),
    ],
)
def test_what_cannot_be_learned_is_said(
    options: dict[str, Any],
    message: str,
    trained: tuple[keras.Model, np.ndarray, np.ndarray],
) -> None:
    model, x, y = trained
    few = dprp.LeSS(steps=1, most_steps=1, batch_size=8)
    asked = {"data": (x, y), "budget": 0.5, "learning": few, **options}
    if asked["data"] == "x":
        asked["data"] = x
    if asked.get("latency") == "told":
        place = {"target": "local", "runtime": "litert", "precision": "int8", "threads": 1}
        asked["latency"] = told_widths(model, "channel", **place)
    with pytest.raises(ValueError, match=message):
        dprp.learn_channels_and_ranks(model, asked.pop("data"), **asked)


def test_a_model_in_which_nothing_can_go_is_refused() -> None:
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Rescaling(2.0)(inputs))
    with pytest.raises(ValueError, match="nothing to factorize"):
        dprp.learn_channels_and_ranks(model, (np.ones((4, 4)), np.zeros(4)), budget=0.5)


@pytest.mark.slow
def test_a_trained_resnet_keeps_more_than_by_channels_alone(cifar10_path: str) -> None:
    path = os.environ.get(_RESNET20, "")
    if not path:
        reason = f"set {_RESNET20} to a ResNet-20 trained for CIFAR-10 to run this"
        warnings.warn(f"skipped for want of a model: {reason}", stacklevel=1)
        pytest.skip(reason)
    model = keras.models.load_model(path, compile=False)
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with np.load(cifar10_path) as held:
        x, test = (
            (held[name][:2000].astype("float32") - np.float32([125.3, 123.0, 113.9]))
            / np.float32([63.0, 62.1, 66.7])
            for name in ("x_train", "x_test")
        )
        y, expected = (held[name][:2000].reshape(-1) for name in ("y_train", "y_test"))
    few = dprp.LeSS(steps=150, most_steps=300, batch_size=64)
    plan = dprp.learn_channels_and_ranks(
        model, (x, y), budget={"macs": 0.5}, learning=few, validation_data=(test, expected)
    )
    assert 0.495 <= plan.shares["macs"] <= 0.5
    channels = dprp.select_channels(model, budget={"macs": 0.5}, data=(x[:512], y[:512]))
    small = dprp.cut(model, channels, calibration_data=x[:512])
    by_channels = float((small.predict(test, verbose=0).argmax(-1) == expected).mean())
    assert plan.accuracy["planned"] > by_channels + 0.02
