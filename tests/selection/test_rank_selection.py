"""Ranks for a trained model: spaces, budgets, the methods without data, plans, logs."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dprp_tf as dprp
from dprp_tf.costs.budget import Budget, BudgetError
from dprp_tf.costs.latency_row import LayerLatency
from dprp_tf.costs.latency_table import LatencyTable
from dprp_tf.costs.program import Bound, choose
from dprp_tf.costs.rank_plan import RankPlan
from dprp_tf.costs.rank_space import RankSpace
from dprp_tf.decomposition import KernelTruncation, matricize
from dprp_tf.selection.candidate_log import CandidateLog
from dprp_tf.selection.methods.energy import Energy
from dprp_tf.selection.methods.uniform import Uniform
from dprp_tf.selection.selecting import select_ranks
from dprp_tf.selection.solving.filling import fill
from dprp_tf.training.fine_tuning import classification_loss

MATRICIZATIONS = ("spatial", "channel", "separable", "tucker")


@pytest.fixture(scope="module")
def network() -> keras.Model:
    """Convolutions (one strided, one pointwise) and a dense layer, with decaying spectra."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((12, 12, 8))
    x = keras.layers.Conv2D(24, 3, padding="same", name="wide")(inputs)
    x = keras.layers.ReLU()(x)
    x = keras.layers.Conv2D(24, 3, strides=2, padding="same", name="strided")(x)
    x = keras.layers.Conv2D(32, 1, name="point")(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Conv2D(32, 3, name="deep", use_bias=False)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(10, name="classes")(x))
    random = np.random.default_rng(0)
    for layer in model.layers:
        if not hasattr(layer, "kernel"):
            continue
        shape = layer.kernel.shape
        matrix = random.normal(size=(math.prod(shape[:-1]), shape[-1]))
        u, s, vt = np.linalg.svd(matrix, full_matrices=False)
        decayed = (u * s * np.exp(-np.arange(len(s)) / (2 + len(s) / 4))) @ vt
        layer.kernel.assign(decayed.reshape(shape))
    return model


def _labelled(model: keras.Model, samples: int = 64) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(1).normal(size=(samples, *model.input_shape[1:])).astype("float32")
    return x, np.argmax(model.predict(x, verbose=0), axis=-1)


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)),
    st.sampled_from(MATRICIZATIONS),
    st.integers(0, 99),
)
def test_truncations_are_those_of_numpy(
    shape: tuple[int, ...], matricization: str, seed: int
) -> None:
    kernel = np.random.default_rng(seed).normal(size=shape)
    truncation = KernelTruncation(kernel, matricization)
    energy = np.sum(kernel**2)
    for ranks in itertools.product(*(range(1, full + 1) for full in truncation.full_ranks)):
        cut = truncation.kernel(ranks)
        lost = np.sum((cut - kernel) ** 2) / energy
        assert truncation.lost(ranks) == pytest.approx(lost, abs=1e-9)
        if truncation.decomposition == "tucker":
            for axis, rank in zip((-2, -1), ranks, strict=True):
                unfolded = np.moveaxis(cut, axis, 0).reshape(cut.shape[axis], -1)
                assert np.linalg.matrix_rank(unfolded, tol=1e-8) <= rank
        else:
            s = np.linalg.svd(matricize(kernel, truncation.decomposition), compute_uv=False)
            assert lost == pytest.approx(np.sum(s[ranks[0] :] ** 2) / energy, abs=1e-9)
    assert truncation.lost(truncation.full_ranks) == pytest.approx(0.0, abs=1e-9)


def test_tucker_truncation_is_close_to_tensorlys(network: keras.Model) -> None:
    from dprp_tf.decomposition import tucker2

    kernel = np.asarray(network.get_layer("deep").kernel)
    truncation = KernelTruncation(kernel, "tucker")
    for ranks in ((4, 4), (8, 16), (32, 8)):
        best = np.sum((tucker2(kernel, ranks).kernel() - kernel) ** 2) / np.sum(kernel**2)
        # De Lathauwer: the projection's squared error is at most twice (two modes) the best.
        assert best - 1e-6 <= truncation.lost(ranks) <= 2 * best + 1e-6


def test_wrong_ranks_and_kernels_are_refused() -> None:
    truncation = KernelTruncation(np.ones((3, 3, 4, 4)), "tucker")
    with pytest.raises(ValueError, match=r"1\.\.4, 1\.\.4.*\(5, 1\)"):
        truncation.kernel((5, 1))
    with pytest.raises(ValueError, match="must lie in"):
        truncation.lost((1,))
    with pytest.raises(ValueError, match="finite"):
        KernelTruncation(np.full((2, 2), np.nan), "channel")
    with pytest.raises(ValueError, match="`decomposition`"):
        KernelTruncation(np.ones((2, 2)), "rows")


@pytest.mark.parametrize("matricization", MATRICIZATIONS)
def test_a_plan_costs_what_the_folded_model_does(network: keras.Model, matricization: str) -> None:
    plan = select_ranks(network, method="energy", budget=0.5, decomposition=matricization)
    folded = dprp.fold(dprp.factorize(network, ranks=plan))
    trainable = sum(math.prod(weight.shape) for weight in folded.trainable_weights)
    assert plan.cost["parameters"] == trainable
    assert 0.495 <= plan.shares["parameters"] <= 0.5
    from dprp_tf.costs.models import model_cost

    assert plan.cost["macs"] == model_cost(folded).macs
    assert plan.dense["macs"] == model_cost(network).macs
    # The maps of everything with a kernel; a depthwise branch has as many as channels.
    maps = [layer.output for layer in folded.layers if hasattr(layer, "kernel") and layer.weights]
    assert plan.cost["activations"] == sum(math.prod(t.shape[1:]) for t in maps)
    x, _ = _labelled(network)
    before, after = network.predict(x, verbose=0), folded.predict(x, verbose=0)
    assert np.max(np.abs(before - after)) > 1e-3
    low_rank = dprp.factorize(network, ranks=plan)
    np.testing.assert_allclose(
        low_rank.predict(x, verbose=0), after, atol=1e-4 * np.max(np.abs(before))
    )


def test_costs_by_hand() -> None:
    inputs = keras.Input((8, 10, 6))
    outputs = keras.layers.Conv2D(12, 3, strides=2, padding="same", name="a")(inputs)
    model = keras.Model(inputs, outputs)
    area, before = 4 * 5, 8 * 10
    dense = {"parameters": 9 * 6 * 12 + 12, "macs": 9 * 6 * 12 * area, "activations": 12 * area}
    by_hand = {
        "spatial": (9 * 6 * 2 + 6 * 2 * 12, (9 * 6 * 2 + 6 * 2 * 12) * area, 12 * area, 12 * area),
        "channel": (9 * 6 * 2 + 2 * 12, (9 * 6 * 2 + 2 * 12) * area, 2 * area, 12 * area),
        "separable": (
            3 * 6 * 2 + 3 * 2 * 12,
            3 * 6 * 2 * 4 * 10 + 3 * 2 * 12 * area,
            2 * 4 * 10,
            12 * area,
        ),
        "tucker": (
            6 * 2 + 9 * 2 * 3 + 3 * 12,
            6 * 2 * before + (9 * 2 * 3 + 3 * 12) * area,
            2 * before + 3 * area,
            12 * area,
        ),
    }
    for matricization, (weights, macs, inner, outer) in by_hand.items():
        space = RankSpace(model, matricization)
        cost = space.cost({"a": (2, 3) if matricization == "tucker" else (2,)})
        assert dict(cost.dense) == dense
        assert dict(cost.values) == {
            "parameters": weights + 12,
            "macs": macs,
            "activations": inner + outer,
        }


def test_break_even_is_the_last_rank_that_weighs_less(network: keras.Model) -> None:
    for matricization in MATRICIZATIONS[:3]:
        for layer in RankSpace(network, matricization).layers.values():
            dense = layer.parameters(None)
            paying = [
                r for r in range(1, layer.full_ranks[0] + 1) if layer.parameters((r,)) < dense
            ]
            assert layer.break_even == (max(paying, default=0),)


_BOUNDS = ({"parameters": 0.6, "macs": 0.45}, {"parameters": 0.35}, {"macs": 0.6})


@pytest.mark.parametrize("matricization", MATRICIZATIONS)
@pytest.mark.parametrize("method", ["uniform", "energy", "energy_product", "vbmf"])
@pytest.mark.parametrize(
    "bounds", [_BOUNDS[0], *(pytest.param(b, marks=pytest.mark.long) for b in _BOUNDS[1:])]
)
def test_budgets_are_met_within_one_percent(
    network: keras.Model, matricization: str, method: str, bounds: dict[str, float]
) -> None:
    plan = select_ranks(network, method=method, budget=bounds, decomposition=matricization)
    excess = [plan.shares[name] / bound - 1 for name, bound in bounds.items()]
    assert -0.01 <= max(excess) <= 1e-9
    assert plan.method == method
    assert all(row.ranks is None or row.parameters < row.dense_parameters for row in plan.layers)


def test_bounds_on_activations_and_time(network: keras.Model) -> None:
    bounds = {"parameters": 0.5, "activations": 1.2}
    plan = select_ranks(network, method="energy", budget=bounds, decomposition="channel")
    free = select_ranks(
        network, method="energy", budget={"parameters": 0.5}, decomposition="channel"
    )
    assert plan.shares["activations"] <= 1.2 < free.shares["activations"]
    assert plan.shares["parameters"] <= 0.5
    names = {"wide": 24, "strided": 24, "point": 24, "deep": 32, "classes": 10}
    rows = tuple(
        LayerLatency(name, "channel", full, 1.0, (1, full), (0.1, 1.4), ("channel",) * 2)
        for name, full in names.items()
    )
    table = LatencyTable(rows, 6.0, "local", "litert", "float32", 1, "ms", "some", "1")
    timed = select_ranks(
        network,
        method="energy_product",
        budget={"milliseconds": 4.0},
        decomposition="channel",
        latency=table,
    )
    ranks = {name: rank for name, rank in timed.ranks.items() if isinstance(rank, int)}
    assert 3.96 <= table.model_cost(ranks) <= 4.0 + 1e-9
    assert timed.cost["milliseconds"] == pytest.approx(table.model_cost(ranks))
    with pytest.raises(ValueError, match=r"milliseconds.*latency table"):
        select_ranks(network, method="energy", budget={"milliseconds": 4.0})
    with pytest.raises(ValueError, match=r"`latency` must be.*'separable' form.*'channel' form"):
        select_ranks(network, method="energy", budget={"milliseconds": 4.0}, latency=table)
    share = Budget(time=4.0 / 6.0)
    options = {"method": "energy_product", "decomposition": "channel"}
    assert select_ranks(network, budget=share, latency=table, **options).ranks == timed.ranks
    with pytest.raises(ValueError, match=r"`time` must come with a latency table"):
        select_ranks(network, budget=share, **options)
    # Asked for as a share, it is refused as one.
    with pytest.raises(BudgetError, match=r"`time` must be at least 0\.25.*time=0\.2"):
        select_ranks(network, budget={"time": 0.2}, latency=table, **options)
    with pytest.raises(BudgetError, match=r"`milliseconds` must be at least 1\.5"):
        select_ranks(network, budget={"milliseconds": 1.2}, latency=table, **options)
    with pytest.raises(ValueError, match=r"`time` must be a share.*time=60"):
        Budget(time=60)


def test_an_accuracy_drop_is_kept_in_the_least_time_where_times_are_known(
    network: keras.Model,
) -> None:
    x, y = _labelled(network, 64)
    names = {"wide": 24, "strided": 24, "point": 24, "deep": 32, "classes": 10}
    # Weights are nearly all in `deep`, time nearly all in `wide`.
    rows = tuple(
        LayerLatency(
            name, "channel", full, dense, (1, full), (0.1 * dense, dense), ("channel",) * 2
        )
        for (name, full), dense in zip(names.items(), (5.0, 0.1, 0.1, 0.1, 0.1), strict=True)
    )
    table = LatencyTable(rows, 6.0, "local", "litert", "int8", 1, "ms", "some", "1")
    options = {"budget": {"accuracy_drop": 0.3}, "data": (x, y), "decomposition": "channel"}
    found = select_ranks(network, method="energy_product", latency=table, **options)
    plain = select_ranks(network, method="energy_product", **options)
    assert found.accuracy["planned"] >= found.accuracy["dense"] - 0.3
    ranks = {name: rank for name, rank in plain.ranks.items() if isinstance(rank, int)}
    assert found.cost["milliseconds"] < table.model_cost(ranks)
    assert "time" in found.history[0]


def test_what_can_not_be_met_is_named(network: keras.Model) -> None:
    with pytest.raises(BudgetError, match=r"`parameters` must be at least 0\.1508.*=0\.001"):
        select_ranks(network, method="energy", budget=0.001, decomposition="spatial")
    # Each bound can be met by itself: what is told keeps the other.
    for method in ("energy", "energy_product", "uniform"):
        with pytest.raises(
            BudgetError, match=r"=1\.001; the nearest found: [\d.]+ above it"
        ) as told:
            select_ranks(network, method=method, budget={"parameters": 0.3, "activations": 1.001})
        nearest = float(str(told.value).split("found: ")[1].split()[0])
        bounds = {"parameters": 0.3, "activations": nearest + 1e-5}
        plan = select_ranks(network, method=method, budget=Budget(**bounds, tolerance=0.2))
        assert plan.shares["activations"] == pytest.approx(nearest, abs=1e-4)
    inputs = keras.Input((6, 6, 16))
    one = keras.Model(inputs, keras.layers.Conv2D(16, 3, use_bias=False, name="a")(inputs))
    # 2,304 weights: ranks 3 and 4 weigh 1,200 and 1,600.
    with pytest.raises(BudgetError, match=r"0\.520833 below it and 0\.694444 above it"):
        select_ranks(one, method="energy", budget=0.6, decomposition="spatial")
    assert select_ranks(
        one,
        method="energy",
        budget=Budget(parameters=0.6, tolerance=0.2),
        decomposition="spatial",
    ).ranks == {"a": 3}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "must have a bound"),
        ({"parameters": 0.0}, "above 0"),
        ({"parameters": 1.5}, "at most 1"),
        ({"accuracy_drop": 1.5}, "below 1"),
        ({"macs": float("nan")}, "above 0"),
        ({"weights": 0.5}, "bounds among"),
        ("half", "must be a Budget"),
    ],
)
def test_unusable_budgets(value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Budget.of(value)  # type: ignore[arg-type]


def test_energy_is_the_smallest_rank_that_keeps_the_share(network: keras.Model) -> None:
    plan = select_ranks(network, method=Energy(share=0.8), decomposition="channel")
    for row in plan.layers:
        s = KernelTruncation(network.get_layer(row.name).kernel, "channel").spectra[0]
        kept = np.cumsum(s**2) / np.sum(s**2)
        smallest = int(np.argmax(kept >= 0.8)) + 1
        assert row.ranks in ((smallest,), None)
        if row.ranks is None:
            assert smallest > RankSpace(network, "channel").layers[row.name].break_even[0]


def test_uniform_is_one_share(network: keras.Model) -> None:
    plan = select_ranks(network, method=Uniform(share=0.25), decomposition="separable")
    for row in plan.layers:
        if row.ranks is not None:
            assert row.ranks == (max(1, round(0.25 * row.full_ranks[0])),)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 4), st.integers(1, 2))
def test_the_program_finds_what_trying_everything_finds(seed: int, layers: int, count: int) -> None:
    random = np.random.default_rng(seed)
    losses = [random.random(random.integers(1, 5)) for _ in range(layers)]
    costs = [[random.random(len(row)) for row in losses] for _ in range(count)]
    uppers = [random.uniform(0.1, 0.7) * layers for _ in range(count)]
    best = math.inf
    for picks in itertools.product(*(range(len(row)) for row in losses)):
        sums = [sum(c[p] for c, p in zip(rows, picks, strict=True)) for rows in costs]
        if all(total <= upper for total, upper in zip(sums, uppers, strict=True)):
            best = min(best, sum(row[p] for row, p in zip(losses, picks, strict=True)))
    found = choose(losses, [Bound(c, u) for c, u in zip(costs, uppers, strict=True)], gap=0.0)
    if math.isinf(best):
        assert found is None
    else:
        assert found is not None
        assert sum(row[p] for row, p in zip(losses, found, strict=True)) == pytest.approx(best)


def test_the_program_keeps_bounds_exactly() -> None:
    # Over the bound by less than what the solver tolerates.
    assert choose([np.array([1.0, 0.0])], [Bound([np.array([1e6, 2e6 + 1])], 2e6)]) == [0]


def test_product_of_energies_beats_one_share(network: keras.Model) -> None:
    for matricization in MATRICIZATIONS:
        kept = {}
        for method in ("uniform", "energy", "energy_product"):
            plan = select_ranks(network, method=method, budget=0.4, decomposition=matricization)
            kept[method] = sum(math.log(1 - row.lost) for row in plan.layers)
        assert kept["energy_product"] >= kept["energy"] - 1e-6
        assert kept["energy_product"] > kept["uniform"]


def test_filling_keeps_the_bounds_and_never_lowers(network: keras.Model) -> None:
    space = RankSpace(network, "channel")
    start = dict.fromkeys(space.layers, (2,))
    budget = Budget(parameters=0.5)
    filled = fill(space, start, budget)
    assert budget.met(space.cost(filled).shares)
    assert all(ranks is None or ranks >= (2,) for ranks in filled.values())


def test_an_accuracy_drop_finds_ranks_whose_costs_lie_far_apart() -> None:
    random = np.random.default_rng(0)
    inputs = keras.Input((16,))
    model = keras.Model(inputs, keras.layers.Dense(16, use_bias=False, name="a")(inputs))
    u, _, vt = np.linalg.svd(random.normal(size=(16, 16)))
    model.set_weights([(u * np.exp(-2.0 * np.arange(16))) @ vt])
    x, y = _labelled(model, 200)
    kernel = KernelTruncation(model.layers[-1].kernel, "channel")
    kept = [np.mean(np.argmax(x @ kernel.kernel((r,)), -1) == y) for r in range(1, 8)]
    smallest = 1 + int(np.argmax(np.asarray(kept) >= 0.7))
    assert 1 < smallest < 6
    # An eighth of the parameters per rank: most shares have no rank within one percent.
    plan = select_ranks(
        model, method="energy", budget={"accuracy_drop": 0.3}, data=(x, y), decomposition="channel"
    )
    assert plan.ranks == {"a": smallest}


def test_an_accuracy_drop_is_kept_with_fewer_parameters(network: keras.Model) -> None:
    data = _labelled(network, 96)
    plan = select_ranks(
        network,
        method="energy_product",
        budget={"accuracy_drop": 0.3},
        data=data,
        decomposition="channel",
    )
    assert plan.accuracy["dense"] == 1.0
    assert plan.accuracy["planned"] >= 0.7
    assert plan.shares["parameters"] < 0.9
    folded = dprp.fold(dprp.factorize(network, ranks=plan))
    outputs = folded.predict(data[0], verbose=0)
    assert np.mean(np.argmax(outputs, -1) == data[1]) == pytest.approx(plan.accuracy["planned"])
    with pytest.raises(BudgetError, match=r"accuracy_drop=0\.01; the nearest found"):
        select_ranks(
            network, method="energy", budget={"parameters": 0.25, "accuracy_drop": 0.01}, data=data
        )
    with pytest.raises(ValueError, match="`data` must be given"):
        select_ranks(network, method="energy", budget={"accuracy_drop": 0.01})


def test_plans_print_save_and_load(network: keras.Model, tmp_path: Path) -> None:
    for matricization in ("spatial", "tucker"):
        plan = select_ranks(
            network,
            method="energy",
            budget=0.5,
            data=_labelled(network),
            decomposition=matricization,
        )
        assert "deep" in str(plan)
        assert "of dense" in str(plan)
        path = plan.save(tmp_path / "plan.json")
        again = RankPlan.load(path)
        one, other = (json.loads(json.dumps(each.as_dict())) for each in (again, plan))
        assert one == other
        assert again.ranks == plan.ranks
        assert dprp.factorize(network, ranks=again).count_params() > 0
    values = json.loads(path.read_text())
    for change in (
        {"version": 2},
        {"layers": [{**values["layers"][0], "ranks": [99, 99]}]},
        {"layers": values["layers"] * 2},
        {"cost": {"parameters": -1.0}},
        {"decomposition": "rows"},
        {"history": None},
    ):
        path.write_text(json.dumps({**values, **change}))
        with pytest.raises(ValueError, match=r"plan\.json"):
            RankPlan.load(path)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"plan\.json"):
        RankPlan.load(path)


def test_a_log_goes_on_after_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "candidates.jsonl"
    log = CandidateLog(path, ["a", "b"], "model")
    log.candidate({"a": (2,)}, accuracy=0.5)
    log.candidate({"a": (2, 3), "b": (1,)}, "tuned", accuracy=0.7)
    with path.open("a") as file:
        file.write('{"kind": "candidate", "ranks": [[1], nu')
    again = CandidateLog(path, ["a", "b"], "model")
    assert len(again) == 2
    assert again.known({"a": (2,), "b": None}) == {"accuracy": 0.5}
    assert again.known({"a": (2, 3), "b": (1,)}) is None
    assert again.known({"a": (2, 3), "b": (1,)}, "tuned") == {"accuracy": 0.7}
    again.candidate({}, accuracy=1.0)
    assert len(CandidateLog(path, ["a", "b"], "model")) == 3
    with pytest.raises(ValueError, match="log of this search"):
        CandidateLog(path, ["a", "b"], "another model")
    assert len(CandidateLog(path, ["a", "b"], "another model", fresh=True)) == 0


def test_a_log_holds_json_where_a_score_is_no_number(tmp_path: Path) -> None:
    path = tmp_path / "candidates.jsonl"
    log = CandidateLog(path, ["a"], "model")
    log.candidate({"a": (1,)}, accuracy=-math.inf, cross_entropy=math.nan)
    log.candidate({"a": (2,)}, accuracy=0.5, cross_entropy=1.25)
    rows = [json.loads(line, parse_constant=pytest.fail) for line in path.open(encoding="utf-8")]
    assert (rows[1]["accuracy"], rows[1]["cross_entropy"]) == (None, None)
    again = CandidateLog(path, ["a"], "model")
    known = again.known({"a": (1,)}) or {}
    assert known["accuracy"] == -math.inf
    assert math.isnan(known["cross_entropy"])
    assert again.known({"a": (2,)}) == {"accuracy": 0.5, "cross_entropy": 1.25}


@pytest.mark.parametrize(
    "line",
    [
        {"accuracy": []},
        {"accuracy": "0.9"},
        {"accuracy": True},
        {"accuracy": 0.5, "cross_entropy": {}},
        {"similarity": 0.5},
        {},
        {"kind": "similarity", "accuracy": 0.5},
        {"kind": "similarity search", "accuracy": 0.5},
    ],
)
def test_a_log_takes_no_line_without_figures(tmp_path: Path, line: dict[str, Any]) -> None:
    path = tmp_path / "candidates.jsonl"
    CandidateLog(path, ["a"], "model").candidate({"a": (2,)}, accuracy=0.5)
    before = path.read_text(encoding="utf-8")
    path.write_text(
        before + json.dumps({"kind": "candidate", "ranks": [[1]], **line}) + "\n", encoding="utf-8"
    )
    assert len(CandidateLog(path, ["a"], "model")) == 1
    assert path.read_text(encoding="utf-8") == before


def test_layers_that_can_not_fold_stay_out() -> None:
    inputs = keras.Input((6, 6, 4))
    x = keras.layers.Conv2D(8, 3, strides=(1, 2), name="uneven")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(16, name="last")(x))
    space = RankSpace(model, "spatial")
    assert list(space.layers) == ["last"]
    assert any("uneven" in reason for reason in space.skipped)
    assert list(RankSpace(model, "channel").layers) == ["uneven", "last"]
    with pytest.raises(ValueError, match="`method` must be one of"):
        select_ranks(model, method="guess", budget=0.5)


def test_a_plan_means_its_own_layer_where_a_nested_one_has_the_same_name() -> None:
    within = keras.Input((8, 8, 8))
    conv = keras.layers.Conv2D(8, 3, use_bias=False, name="conv")
    nested = keras.Model(within, conv(within), name="backbone")
    inputs = keras.Input((8, 8, 8))
    last = keras.layers.Conv2D(24, 3, use_bias=False, name="conv")
    model = keras.Model(inputs, last(nested(inputs)))
    plan = select_ranks(
        model,
        method="energy",
        budget=Budget(parameters=0.7, tolerance=0.2),
        layers=lambda layer: layer is last,
        decomposition="channel",
    )
    assert list(plan.ranks) == ["conv"]
    assert dprp.cut(model, plan).count_params() == plan.cost["parameters"]


def _two_inputs() -> tuple[keras.Model, list[np.ndarray], np.ndarray]:
    inputs = [keras.Input((6,)), keras.Input((6,))]
    hidden = [keras.layers.Dense(12, name=f"d{i}")(x) for i, x in enumerate(inputs)]
    outputs = keras.layers.Dense(4, name="last")(keras.layers.Concatenate()(hidden))
    random = np.random.default_rng(0)
    x = [random.normal(size=(40, 6)).astype("float32") for _ in inputs]
    return keras.Model(inputs, outputs), x, random.integers(0, 4, 40)


def test_models_of_several_inputs() -> None:
    model, x, y = _two_inputs()
    budget = Budget(parameters=0.7, tolerance=0.2)
    plan = select_ranks(
        model, method="activation", budget=budget, data=(x, y), layers=(n for n in ("d0", "last"))
    )
    assert [row.name for row in plan.layers] == ["d0", "last"]
    predicted = np.argmax(model.predict(x, verbose=0), -1)
    assert plan.accuracy["dense"] == pytest.approx(np.mean(predicted == y))
    before = model.get_weights()
    assert len(dprp.FineTuning(epochs=2).fit(model, (x, y))) == 2
    assert not np.array_equal(before[0], model.get_weights()[0])
    with pytest.raises(ValueError, match=r"same number of samples.*40, 39 and 40"):
        dprp.FineTuning(epochs=1).fit(model, ([x[0], x[1][:39]], y))


def test_the_default_loss_needs_classes() -> None:
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(1, "sigmoid")(inputs))
    data = np.ones((4, 3), "float32"), np.array([0, 1, 0, 1])
    with pytest.raises(ValueError, match=r"`loss` must be given.*not classes"):
        dprp.FineTuning(epochs=1).fit(model, data)
    assert len(dprp.FineTuning(epochs=1, loss="binary_crossentropy").fit(model, data)) == 1
    soft = keras.layers.Dense(2, activation=keras.layers.Softmax())
    loss = classification_loss(keras.Model(inputs, soft(inputs)), data[1])
    assert loss.get_config()["from_logits"] is False


def test_a_tuning_goes_on_from_its_own_checkpoint_alone(tmp_path: Path) -> None:
    model, x, y = _two_inputs()
    start = model.get_weights()

    def squared(wanted: object, outputs: object) -> object:
        rows = keras.ops.one_hot(keras.ops.cast(keras.ops.reshape(wanted, (-1,)), "int32"), 4)
        return keras.ops.mean(keras.ops.square(rows - outputs), axis=-1)

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
            if epoch == 2:
                raise KeyboardInterrupt

    tuning = dprp.FineTuning(epochs=3, learning_rate=0.1, batch_size=16, loss=squared)
    tuning.fit(model, (x, y))
    whole = model.get_weights()
    model.set_weights(start)
    with pytest.raises(KeyboardInterrupt):
        tuning.fit(model, (x, y), folder=tmp_path, callbacks=[Stop()])
    again, _, _ = _two_inputs()
    again.set_weights(start)
    # The same loss by another object, as another process has it.
    loss = type(squared)(squared.__code__, squared.__globals__, "squared")
    loss.__qualname__ = squared.__qualname__
    other = dprp.FineTuning(epochs=3, learning_rate=0.1, batch_size=16, loss=loss)
    assert len(other.fit(again, (x, y), folder=tmp_path)) == 3
    for own, expected in zip(again.get_weights(), whole, strict=True):
        np.testing.assert_allclose(own, expected, rtol=1e-5, atol=1e-7)
    small = dprp.cut(
        model, select_ranks(model, method="energy", budget=Budget(parameters=0.7, tolerance=0.2))
    )
    with pytest.raises(ValueError, match="same settings and model"):
        tuning.fit(small, (x, y), folder=tmp_path)
    next(tmp_path.glob("*.keras")).unlink()
    with pytest.raises(
        ValueError, match=r"sound checkpoint .*tuning-0003\.keras, which does not exist"
    ):
        tuning.fit(model, (x, y), folder=tmp_path)


def test_an_accuracy_that_is_not_finite_stays_the_worst_in_a_log(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = CandidateLog(path, ["a"], "model")
    for rank, accuracy in ((1, float("-inf")), (2, float("nan")), (3, 0.25)):
        log.candidate({"a": (rank,)}, accuracy=accuracy, cross_entropy=float("nan"))
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"holds {name}"))
    again = CandidateLog(path, ["a"], "model")
    found = [(again.known({"a": (rank,)}) or {})["accuracy"] for rank in (1, 2, 3)]
    assert found == [float("-inf"), float("-inf"), 0.25]


def test_a_log_is_refused_where_what_is_drawn_differs(tmp_path: Path) -> None:
    model, x, y = _two_inputs()
    path = tmp_path / "candidates.jsonl"

    def run(method: str, **options: object) -> None:
        budget = Budget(parameters=0.7, tolerance=0.2)
        select_ranks(
            model,
            method=method,
            budget=budget,
            data=(x, y),
            log=path,
            decomposition="channel",
            **options,
        )  # type: ignore[arg-type]

    run("similarity", seed=1)
    run("similarity", seed=1)
    for options in ({"seed": 2}, {"seed": 1, "training_data": (x, y)}):
        with pytest.raises(ValueError, match="log of this search"):
            run("similarity", **options)
    path.unlink()
    run("uniform", seed=1)
    run("uniform", seed=2)


def test_what_a_latency_table_counts_is_called_by_its_name(network: keras.Model) -> None:
    rows = []
    for name, layer in RankSpace(network, "spatial").layers.items():
        full = layer.full_ranks[0]
        rows.append(LayerLatency(name, "spatial", full, 1e6, (1,), (2e5,), ("summed",)))
    table = LatencyTable(
        tuple(rows), 1e7, "qemu:cortex-a72", "litert", "int8", 1, "instructions", "a", "2"
    )
    budget = {"milliseconds": 9.5e6, "tolerance": 0.5}
    plan = select_ranks(
        network, method="energy", budget=budget, latency=table, decomposition="spatial"
    )
    assert plan.unit == "instructions"
    title, caption = plan.table().title, plan.table().caption
    assert "asked: instructions 9.5e+06" in str(title)
    assert "instructions " in str(caption)
    assert "milliseconds" not in f"{title} {caption}"
    assert RankPlan.from_dict(plan.as_dict()) == plan
    before = {name: value for name, value in plan.as_dict().items() if name != "unit"}
    assert RankPlan.from_dict(before).unit == "ms", "files of 0.1.0"
    with pytest.raises(BudgetError, match=r"at least \d+ instructions.*=3 instructions"):
        select_ranks(
            network,
            method="energy",
            budget={"milliseconds": 3},
            latency=table,
            decomposition="spatial",
        )


def test_inputs_without_labels_are_named(network: keras.Model) -> None:
    x, y = _labelled(network)
    for data, received in (
        (x, "an array of the shape"),
        ((x,), "tuple of 1"),
        ((x, None), "tuple"),
    ):
        with pytest.raises(ValueError, match=rf"`data` must be .* \(x, y\)\. Received: {received}"):
            dprp.FineTuning(epochs=1).fit(network, data)
    with pytest.raises(ValueError, match=r"`data` must hold labels from 0 to \d+, .* to 99 for"):
        dprp.FineTuning(epochs=1).fit(network, (x, np.where(y == y[0], 99, y)))
    with pytest.raises(ValueError, match="inputs without labels"):
        select_ranks(network, method="similarity", budget=0.5, data=(x, y), training_data=x, seed=1)
    with pytest.raises(ValueError, match="inputs without labels"):
        select_ranks(network, method="mbs", budget=0.5, data=x)
