"""A time budget: tables of cost by rank, ranks that fit one, and training towards it."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

import dprp_tf as dprp
from dprp_tf.costs.allocation import allocate_ranks
from dprp_tf.costs.budget import BudgetError
from dprp_tf.costs.latency_row import LayerLatency
from dprp_tf.costs.latency_table import LatencyTable


def _row(name: str, full_rank: int, dense: float, *points: tuple[int, float]) -> LayerLatency:
    ranks, costs = zip(*points, strict=True)
    return LayerLatency(name, "channel", full_rank, dense, ranks, costs, ("channel",) * len(ranks))


def _table(*rows: LayerLatency, dense: float = 10.0) -> LatencyTable:
    return LatencyTable(rows, dense, "local", "litert", "float32", 1, "ms", "some", "2.3")


def test_costs_between_measured_ranks_lie_on_a_line_and_never_above_dense() -> None:
    row = _row("a", 16, 1.0, (2, 0.2), (4, 0.4), (8, 1.3))
    assert row.cost(1) == 0.2, "below the smallest rank measured nothing is promised"
    assert row.cost(2) == 0.2
    assert row.cost(3) == pytest.approx(0.3)
    assert row.cost(6) == pytest.approx(0.7), "towards the dense form, not towards 1.3"
    assert row.cost(8) == row.cost(16) == 1.0
    assert [row.form(rank) for rank in (1, 4, 5, 16)] == ["channel", "channel", "dense", "dense"]
    for rank in (0, 17):
        with pytest.raises(ValueError, match=rf"1\.\.16.*{rank}"):
            row.cost(rank)


def test_noise_does_not_make_a_smaller_rank_dearer() -> None:
    row = _row("a", 16, 1.0, (2, 0.5), (4, 0.45), (8, 0.6))
    costs = [row.cost(rank) for rank in range(1, 17)]
    assert costs == sorted(costs)
    assert row.cost(2) == 0.45


def test_a_model_costs_what_its_layers_save() -> None:
    table = _table(_row("a", 8, 4.0, (2, 1.0)), _row("b", 8, 3.0, (4, 2.0)))
    assert table.model_cost({}) == 10.0
    assert table.model_cost({"a": 2}) == 7.0
    assert table.model_cost({"a": 2, "b": 4}) == table.least == 6.0
    assert table.forms({"a": 2, "b": 8}) == {"a": "channel", "b": "dense"}
    assert "channel" in str(table)
    with pytest.raises(ValueError, match=r"'c'.*\['a', 'b'\]"):
        table.model_cost({"c": 1})


def test_a_table_comes_back_from_its_file_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    table = _table(_row("a", 8, 4.0, (2, 1.0), (4, 2.5)))
    path = table.save(tmp_path / "latency.json")
    assert LatencyTable.load(path) == table
    values = json.loads(path.read_text(encoding="utf-8"))
    for damage in (
        lambda v: v.update(version=7),
        lambda v: v.pop("dense"),
        lambda v: v["layers"][0].pop("costs"),
        lambda v: v.update(layers=3),
        lambda v: v["layers"][0].update(ranks=[4, 2]),
        lambda v: v["layers"][0].update(costs=[float("nan"), 1.0]),
    ):
        broken = json.loads(json.dumps(values))
        damage(broken)
        path.write_text(json.dumps(broken), encoding="utf-8")
        with pytest.raises(
            ValueError, match=r"latency table (of version 1|in JSON\. Received: it holds NaN)"
        ):
            LatencyTable.load(path)


def _best(
    spectra: dict[str, list[float]], cost: Callable[[str, int], float], budget: float
) -> float:
    """The largest product of energies by trying everything; -1 if nothing fits."""
    best = -1.0
    for ranks in itertools.product(*(range(1, len(s) + 1) for s in spectra.values())):
        pairs = list(zip(spectra, ranks, strict=True))
        if sum(cost(name, rank) for name, rank in pairs) <= budget:
            kept = math.prod(
                np.square(spectra[name][:rank]).sum() / np.square(spectra[name]).sum()
                for name, rank in pairs
            )
            best = max(best, kept)
    return best


@settings(max_examples=60, deadline=None)
@given(
    spectra=st.dictionaries(
        st.sampled_from("abc"),
        st.lists(st.floats(0.05, 4.0), min_size=1, max_size=5).map(
            lambda s: sorted(s, reverse=True)
        ),
        min_size=1,
    ),
    steps=st.lists(st.floats(0.0, 2.0), min_size=15, max_size=15),
    share=st.floats(0.0, 1.1),
)
def test_allocation_against_trying_everything(
    spectra: dict[str, list[float]], steps: list[float], share: float
) -> None:
    table = {
        name: np.cumsum(steps[5 * position : 5 * position + 5])
        for position, name in enumerate(sorted(spectra))
    }

    def cost(name: str, rank: int) -> float:
        return float(table[name][rank - 1])

    least = sum(cost(name, 1) for name in spectra)
    most = sum(cost(name, len(s)) for name, s in spectra.items())
    budget = least + share * (most - least) + 1e-9
    found = allocate_ranks(spectra, cost, budget)
    assert found.cost <= budget
    assert found.cost == pytest.approx(sum(cost(name, r) for name, r in found.ranks.items()))
    best = _best(spectra, cost, budget)
    assert found.kept <= best * (1 + 1e-9)
    # Greedy on a knapsack of a handful of items: near, not always at, the optimum.
    assert found.kept >= 0.6 * best
    if share >= 1.0:
        assert found.kept == pytest.approx(1.0)


def test_an_impossible_budget_says_what_is_possible() -> None:
    spectra = {"a": [2.0, 1.0], "b": [1.0, 1.0]}
    with pytest.raises(BudgetError, match=r"at least 7.*budget=6") as caught:
        allocate_ranks(spectra, lambda name, rank: float(rank), 6.0, fixed_cost=5.0)
    assert caught.value.least == 7.0
    assert allocate_ranks(spectra, lambda name, rank: float(rank), 7.0, fixed_cost=5.0).ranks == {
        "a": 1,
        "b": 1,
    }
    with pytest.raises(ValueError, match=r"`spectra`.*'a'.*nan"):
        allocate_ranks({"a": [float("nan")]}, lambda name, rank: 1.0, 6.0)


def test_ranks_that_save_no_time_are_not_cut() -> None:
    # `a` costs the same from rank 2 on: cutting it there would lose energy for nothing.
    spectra = {"a": [4.0, 3.0, 2.0, 1.0], "b": [4.0, 3.0, 2.0, 1.0]}
    costs = {"a": [0.1, 1.0, 1.0, 1.0], "b": [1.0, 2.0, 3.0, 4.0]}
    found = allocate_ranks(spectra, lambda name, rank: costs[name][rank - 1], 4.0)
    assert found.ranks == {"a": 4, "b": 3}


# --- training towards a budget ------------------------------------------------------------------


def _model(**options: Any) -> dprp.DPRPModel:
    keras.utils.set_random_seed(5)
    inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="first")(inputs)
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="second")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(3, name="head")(x))
    model = dprp.factorize(
        model,
        decomposition="channel",
        layers=["first", "second"],
        settings=dprp.DPRPSettings(**options),
    )
    model.compile(
        keras.optimizers.SGD(0.02, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


_ROWS = (
    _row("first", 8, 2.0, *((r, 0.25 * r) for r in range(1, 8))),
    _row("second", 8, 6.0, *((r, 0.75 * r) for r in range(1, 8))),
)


def _pruning(latency: LatencyTable, milliseconds: float, **options: Any) -> dprp.BudgetPruning:
    return dprp.BudgetPruning(dprp.Budget(milliseconds=milliseconds), latency=latency, **options)


def _data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.standard_normal((32, 8, 8, 4)).astype("float32"), rng.integers(0, 3, 32)


@pytest.mark.slow
@pytest.mark.backend
@pytest.mark.long_on_jax
def test_training_reaches_the_budget_step_by_step_and_keeps_its_energy() -> None:
    model = _model(compression_weight=0.01, threshold=1e-6)
    table = _table(*_ROWS)
    pruning = _pruning(table, 5.0, stop_epoch=4)
    given, pressures = model.settings, []
    each = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: pressures.append(model.pressure)
    )
    history = model.fit(
        *_data(), epochs=6, batch_size=8, callbacks=[pruning, each], verbose=0
    ).history
    assert table.model_cost(model.ranks) <= 5.0
    # 10 ms falls to 5 over four epochs, then nothing is cut any more.
    allowed = [8.75, 7.5, 6.25, 5.0, 5.0, 5.0]
    costs = history["predicted_cost"]
    assert all(cost <= limit + 1e-9 for cost, limit in zip(costs, allowed, strict=True)), costs
    assert costs[3] == costs[4] == costs[5]
    assert costs[0] > costs[3], "not all at once"
    assert all(cost > limit - 0.75 for cost, limit in zip(costs, allowed, strict=True)), (
        "no more than the next rank below what is allowed"
    )
    assert pressures == [1, 1, 1, 0, 0, 0], "the pressure ends with the budget met"
    assert model.settings == given
    x = _data()[0]
    folded = dprp.fold(model)
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(folded(x)),
        keras.ops.convert_to_numpy(model(x)),
        atol=1e-5,
    )


@pytest.mark.backend
@pytest.mark.long_on_jax
def test_without_a_stop_the_last_epoch_meets_the_budget() -> None:
    model = _model(compression_weight=0.0, threshold=1e-6)
    pruning = _pruning(_table(*_ROWS), 4.0)
    model.fit(*_data(), epochs=2, batch_size=16, callbacks=[pruning], verbose=0)
    assert _table(*_ROWS).model_cost(model.ranks) <= 4.0
    assert len(pruning.shrinks) == 2


@pytest.mark.backend
@pytest.mark.long_on_jax
def test_layers_left_out_keep_their_rank_and_their_time() -> None:
    model = _model(compression_weight=0.0, threshold=1e-6)
    pruning = _pruning(_table(*_ROWS), 6.0, layers=["second"])
    model.fit(*_data(), epochs=2, batch_size=16, callbacks=[pruning], verbose=0)
    assert model.ranks["first"] == 8
    assert _table(*_ROWS).model_cost(model.ranks) <= 6.0


@pytest.mark.backend
def test_an_impossible_budget_stops_before_the_first_epoch() -> None:
    model = _model()
    # 10 - 8 + 0.25 + 0.75, and so on.
    for options, least in (({}, 3), ({"minimum_rank": 4}, 6), ({"layers": ["first"]}, 8.25)):
        pruning = _pruning(_table(*_ROWS), 2.5, **options)
        with pytest.raises(BudgetError, match=rf"at least {least}\b"):
            model.fit(*_data(), epochs=1, callbacks=[pruning], verbose=0)
    assert model.ranks == {"first": 8, "second": 8}


@pytest.mark.backend
def test_the_budget_is_a_time_and_the_table_knows_the_layers() -> None:
    table = _table(*_ROWS)
    bounds: list[dict[str, float]] = [
        {"parameters": 0.5},
        {"milliseconds": 3.0, "macs": 0.5},
        {"milliseconds": 3.0, "accuracy_drop": 0.01},
    ]
    for bound in bounds:
        with pytest.raises(ValueError, match=r"`budget` must bound the time.*milliseconds=\.\.\."):
            dprp.BudgetPruning(bound, latency=table)
    for budget in (3.0, None):
        with pytest.raises(ValueError, match=rf"`budget` must be a Budget.*budget={budget}"):
            dprp.BudgetPruning(budget, latency=table)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`latency` must be a LatencyTable.*None"):
        dprp.BudgetPruning(dprp.Budget(milliseconds=3.0), latency=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`milliseconds` must lie between 0 and 10 ms"):
        _pruning(table, 40.0)
    for time in (float("nan"), 0.0, "3"):
        with pytest.raises(ValueError, match=r"`milliseconds` must be a finite number above 0"):
            _pruning(table, time)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`latency` must be a LatencyTable.*'latency.json'"):
        _pruning("latency.json", 3.0)  # type: ignore[arg-type]
    assert dprp.BudgetPruning({"milliseconds": 3.0}, latency=table).budget.milliseconds == 3.0
    wider = replace(_ROWS[1], full_rank=64)
    spatial = replace(_ROWS[1], decomposition="spatial")
    for rows, names in (
        ((_ROWS[0],), r"\['second'\]"),
        ((*_ROWS, _row("third", 8, 1.0, (1, 0.5))), r"\['third'\]"),
        ((_ROWS[0], wider), r"\['second'\]"),
        ((_ROWS[0], spatial), r"\['second'\]"),
    ):
        pruning = _pruning(_table(*rows), 9.0)
        with pytest.raises(ValueError, match=rf"`latency`.*for this model.*{names}"):
            _model().fit(*_data(), epochs=1, callbacks=[pruning], verbose=0)
    late = _pruning(_table(*_ROWS), 9.0, start_epoch=3)
    with pytest.raises(ValueError, match=r"`start_epoch` must be below epochs=2"):
        _model().fit(*_data(), epochs=2, callbacks=[late], verbose=0)


@pytest.mark.backend
def test_the_least_budget_is_reached_to_the_last_digit() -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        rows = [
            _row(name, 4, 10.0, *((r, float(c)) for r, c in enumerate(np.sort(costs), start=1)))
            for name, costs in zip("abcdef", rng.uniform(0.1, 1.0, (6, 3)), strict=True)
        ]
        table = _table(*rows, dense=70.0)
        found = allocate_ranks(
            {row.name: [2.0, 1.0, 0.5, 0.2] for row in rows},
            lambda name, rank, table=table: table.layer(name).cost(rank),
            table.least,
            fixed_cost=table.dense - sum(row.dense for row in rows),
        )
        assert set(found.ranks.values()) == {1}
    model = _model(compression_weight=0.0, threshold=1e-6)
    table = _table(*_ROWS)
    pruning = _pruning(table, table.least)
    model.fit(*_data(), epochs=1, batch_size=16, callbacks=[pruning], verbose=0)
    assert model.ranks == {"first": 1, "second": 1}


@pytest.mark.slow
@pytest.mark.backend
def test_a_budget_that_was_not_reached_is_told() -> None:
    model = _model(compression_weight=0.0, threshold=1e-6)
    pruning = _pruning(_table(*_ROWS), 4.0, stop_epoch=20)
    with pytest.warns(UserWarning, match=r"takes .* of a budget of 4 ms"):
        model.fit(*_data(), epochs=2, batch_size=16, callbacks=[pruning], verbose=0)
    assert _table(*_ROWS).model_cost(model.ranks) > 4.0


@pytest.mark.backend
def test_the_pressure_stays_until_the_cuts_are_made() -> None:
    model = _model(compression_weight=0.01, threshold=0.999)
    pruning = _pruning(_table(*_ROWS), 9.0, minimum_removed=100)
    weights = []
    each = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: weights.append((model.pressure, sum(model.ranks.values())))
    )
    model.fit(*_data(), epochs=3, batch_size=16, callbacks=[pruning, each], verbose=0)
    assert weights[0] == weights[1] == (1, 16)
    assert weights[2][0] == 0
    assert weights[2][1] < 16
