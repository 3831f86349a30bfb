"""What every registered way to choose ranks must do; a new one is tested by being registered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from dprp_tf.conversion.cutting import cut
from dprp_tf.costs.budget import Budget, BudgetError
from dprp_tf.costs.rank_plan import RankPlan
from dprp_tf.selection.selecting import SELECTORS, select_ranks
from dprp_tf.selection.selector import Selector

EVERY = pytest.mark.parametrize("method", SELECTORS)
BUDGET = Budget(parameters=0.6, tolerance=0.1)
Data = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def trained(small_digits: Data) -> keras.Model:
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(12, 3, activation="relu"),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss)
    model.fit(small_digits[0][:512], small_digits[1][:512], epochs=3, verbose=0)
    return model


@pytest.fixture(scope="module")
def plans(trained: keras.Model, small_digits: Data) -> Any:
    """A function (method, anew=False) -> its plan at the budget; remembered for the module."""
    known: dict[str, RankPlan] = {}

    def plan(method: str, *, anew: bool = False) -> RankPlan:
        if anew or method not in known:
            known[method] = _select(trained, method, small_digits, BUDGET)
        return known[method]

    return plan


def _select(model: keras.Model, method: str, digits: Data, budget: Budget) -> RankPlan:
    x, y = digits
    return select_ranks(
        model,
        method=method,
        budget=budget,
        data=(x[512:640], y[512:640]),
        training_data=(x[:128], y[:128]),
        decomposition="channel",
        seed=5,
    )


@EVERY
def test_it_is_registered_by_its_name_and_needs_no_settings(method: str) -> None:
    selector = SELECTORS[method]()
    assert isinstance(selector, Selector)
    assert selector.name == method
    assert selector.identity() == SELECTORS[method]().identity()
    assert type(selector).__doc__


@EVERY
def test_a_parameter_budget_is_kept_within_its_tolerance(plans: Any, method: str) -> None:
    plan = plans(method)
    assert plan.method == method
    assert 0.6 * (1 - BUDGET.tolerance) <= plan.shares["parameters"] <= 0.6
    assert plan.budget["parameters"] == 0.6
    assert plan.ranks
    assert {"dense", "planned"} <= set(plan.accuracy)
    json.dumps(plan.as_dict())


@EVERY
def test_a_seed_decides_everything_and_the_model_stays_as_it_was(
    trained: keras.Model, plans: Any, method: str
) -> None:
    first = plans(method)
    before = [weight.copy() for weight in trained.get_weights()]
    config = trained.get_config()
    optimizer = [keras.ops.convert_to_numpy(v) for v in trained.optimizer.variables]
    keras.utils.set_random_seed(99)  # the state of the process has no say
    again = plans(method, anew=True)
    assert (again.ranks, again.cost, again.accuracy) == (first.ranks, first.cost, first.accuracy)
    for old, new in zip(before, trained.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)
    for old, variable in zip(optimizer, trained.optimizer.variables, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), old)
    assert trained.get_config() == config


@EVERY
def test_its_plan_survives_a_file(plans: Any, method: str, tmp_path: Path) -> None:
    plan = plans(method)
    again = RankPlan.load(plan.save(tmp_path / "plan.json"))
    assert again.ranks == plan.ranks
    one, other = (json.loads(json.dumps(each.as_dict())) for each in (again, plan))
    assert one == other


@EVERY
def test_the_cut_model_weighs_what_the_plan_says_and_computes_something_else(
    trained: keras.Model, plans: Any, method: str, small_digits: Data
) -> None:
    plan, x = plans(method), small_digits[0][512:640]
    data = x if plan.truncation == "output" else None
    # A plan's accuracy is that of the cuts alone.
    small = cut(trained, plan, calibration_data=data, refit=False)
    assert small.count_params() == plan.cost["parameters"] < plan.dense["parameters"]
    assert plan.dense["parameters"] == trained.count_params()
    found, dense = (model.predict(x, verbose=0) for model in (small, trained))
    assert np.all(np.isfinite(found))
    assert np.abs(found - dense).max() > 1e-2
    accuracy = float(np.mean(found.argmax(-1) == small_digits[1][512:640]))
    assert accuracy == pytest.approx(plan.accuracy["planned"], abs=0.01)


@EVERY
def test_a_budget_that_can_not_be_met_is_refused_by_the_name_of_its_bound(
    trained: keras.Model, small_digits: Data, method: str
) -> None:
    with pytest.raises(BudgetError, match=r"`parameters` must be at least 0\.\d+"):
        _select(trained, method, small_digits, Budget(parameters=0.001))
