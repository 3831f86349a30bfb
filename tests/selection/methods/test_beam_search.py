"""Beam search for ranks: Algorithm 1 beside a plain reading of it, and what interrupts it."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from dprp_tf.costs.budget import Budget, BudgetError
from dprp_tf.costs.rank_space import Ranks, RankSpace
from dprp_tf.decomposition import KernelTruncation
from dprp_tf.selection.candidate_log import CandidateLog
from dprp_tf.selection.methods.beam import BeamSearch, CostBeamSearch
from dprp_tf.selection.scoring.evaluator import CandidateEvaluator
from dprp_tf.selection.selector import Problem

_SAMPLES = 48


@pytest.fixture(scope="module")
def model() -> keras.Model:
    """A random residual network; its own predictions are the labels, so that cuts do harm."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6, 6, 3))
    x = start = layers.Conv2D(12, 3, padding="same", activation="relu", name="stem")(inputs)
    x = layers.Conv2D(12, 3, padding="same", activation="relu", name="first")(x)
    x = layers.Conv2D(12, 3, padding="same", name="second")(x)
    x = layers.Flatten()(layers.AveragePooling2D(3)(layers.Add()([x, start])))
    return keras.Model(inputs, layers.Dense(6, name="head")(x))


@pytest.fixture(scope="module")
def data(model: keras.Model) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(5).standard_normal((_SAMPLES, 6, 6, 3)).astype("float32")
    return x, np.argmax(model(x), axis=-1)


def _problem(
    model: keras.Model,
    data: tuple[np.ndarray, np.ndarray],
    budget: Any,
    matricization: str = "channel",
    **arguments: Any,
) -> Problem:
    space = RankSpace(model, matricization)
    log = arguments.pop("log", CandidateLog(None, list(space.layers), "test"))
    return Problem(model, space, Budget.of(budget), data, None, log, **arguments)


def _closeness(y: Any, predictions: Any) -> float:
    """A score without ties: minus the distance of the outputs from labels."""
    return -float(np.mean(np.square(predictions - np.eye(predictions.shape[-1])[y])))


def _reference(problem: Problem, step: int, beams: int) -> dict[str, Ranks]:
    """Algorithm 1 as it reads, a whole prediction per candidate, no memo."""
    space, budget = problem.space, problem.budget
    assert budget is not None
    x, y = problem.data or (None, None)
    names = list(space.layers)
    full = {name: space.layers[name].break_even[0] + 1 for name in names}
    network = keras.models.clone_model(problem.model)

    def score(vector: tuple[int, ...]) -> float:
        network.set_weights(problem.model.get_weights())
        for name, rank in zip(names, vector, strict=True):
            kernel = np.asarray(problem.model.get_layer(name).kernel)
            if rank < full[name]:
                cut = KernelTruncation(kernel, space.decomposition).kernel((rank,))
                network.get_layer(name).kernel.assign(cut)
        return _closeness(y, np.asarray(network(x)))

    def ranks(vector: tuple[int, ...]) -> dict[str, Ranks]:
        pairs = zip(names, vector, strict=True)
        return {name: None if rank == full[name] else (rank,) for name, rank in pairs}

    def share(vector: tuple[int, ...]) -> float:
        return space.cost(ranks(vector)).share("parameters")

    bound = budget.bounds["parameters"]
    low = bound * (1 - budget.tolerance)
    start = tuple(full.values())
    beam = [(score(start), start)]
    inside: list[tuple[float, tuple[int, ...]]] = []
    while not low <= share(beam[0][1]) <= bound:
        found = set()
        for (_, parent), place in itertools.product(beam, range(len(names))):
            rank = parent[place] - step
            if parent[place] == full[names[place]]:
                rank = max(rank, 1)
            child = (*parent[:place], rank, *parent[place + 1 :])
            if rank >= 1 and share(child) >= low:
                found.add(child)
        scored = sorted(((score(child), child) for child in found), reverse=True)
        inside += [pair for pair in scored if low <= share(pair[1]) <= bound]
        if scored:
            beam = scored[:beams]
        elif step == 1:
            break
        else:
            step = (step + 1) // 2
    return ranks(max(inside)[1])


@pytest.mark.parametrize(("step", "beams"), [(3, 2), (2, 4)])
def test_finds_what_the_printed_algorithm_finds(
    model: keras.Model, data: tuple[np.ndarray, np.ndarray], step: int, beams: int
) -> None:
    budget = Budget(parameters=0.45, tolerance=0.04)
    problem = _problem(model, data, budget, score=_closeness)
    found = BeamSearch(step, beams).select(problem)
    assert found.ranks == _reference(problem, step, beams)
    assert budget.met(problem.space.cost(found.ranks).shares)
    assert len(found.history) > 3


@pytest.mark.parametrize("matricization", ["channel", "tucker"])
def test_levels_of_equal_cost(
    model: keras.Model, data: tuple[np.ndarray, np.ndarray], matricization: str
) -> None:
    budget = Budget(parameters=0.6, tolerance=0.03)
    problem = _problem(model, data, budget, matricization)
    found = CostBeamSearch(level=0.1, beams=2).select(problem)
    assert budget.met(problem.space.cost(found.ranks).shares)
    # Children of a level are compared at about the same cost.
    drops = -np.diff([1.0, *(entry["share_parameters"] for entry in found.history)])
    assert np.all(drops[:3] >= 0.1 * 0.6 - 1e-9)
    assert found.ranks != BeamSearch(step=3, beams=2).select(problem).ranks
    if matricization == "tucker":
        return
    # In the first level a layer gets the largest rank that saves enough, if one does.
    fresh = _problem(model, data, budget, matricization)
    CostBeamSearch(level=0.1, beams=2).select(fresh)
    for name, layer in fresh.space.layers.items():
        ranks = range(1, layer.break_even[0] + 1)
        share = {r: fresh.space.cost({name: (r,)}).shares["parameters"] for r in ranks}
        enough = [r for r in ranks if share[r] <= 1.0 - 0.1 * 0.6]
        tried = [r for r in ranks if fresh.log.known({name: (r,)}) is not None]
        assert max(tried, default=0) == max(enough, default=0)


def test_the_first_step_leads_below_break_even(
    model: keras.Model, data: tuple[np.ndarray, np.ndarray]
) -> None:
    problem = _problem(model, data, Budget(parameters=0.8, tolerance=0.1))
    BeamSearch(step=3, beams=1).select(problem)
    for name, layer in problem.space.layers.items():
        rank = layer.break_even[0] - 2
        assert problem.log.known({name: (rank,)}) is not None
        assert layer.parameters((layer.break_even[0],)) < layer.parameters(None)
        # Nothing above is ever looked at.
        for above in range(rank + 1, layer.full_ranks[0] + 1):
            assert problem.log.known({name: (above,)}) is None


@pytest.mark.parametrize(
    ("matricization", "budget"),
    [
        pytest.param("spatial", {"macs": 0.5, "tolerance": 0.05}, marks=pytest.mark.backend),
        ("separable", {"parameters": 0.6, "macs": 0.5, "tolerance": 0.05}),
        ("tucker", {"parameters": 0.5, "tolerance": 0.03}),
    ],
)
def test_meets_budgets_of_every_kind(
    model: keras.Model,
    data: tuple[np.ndarray, np.ndarray],
    matricization: str,
    budget: dict[str, float],
) -> None:
    problem = _problem(model, data, budget, matricization)
    found = BeamSearch(step=2, beams=2).select(problem)
    shares = problem.space.cost(found.ranks).shares
    assert problem.budget is not None
    assert problem.budget.met(shares)
    known = problem.log.known(found.ranks)
    assert known is not None
    # What was logged is what the ranks score.
    x, y = data
    again = next(CandidateEvaluator(model, problem.space, x, y).evaluate([found.ranks]))
    assert known["accuracy"] == again.score
    pairs = [entry for entry in found.ranks.values() if entry and len(entry) == 2]
    assert bool(pairs) == (matricization == "tucker")


def test_tucker_lowers_each_rank_by_itself(
    model: keras.Model, data: tuple[np.ndarray, np.ndarray]
) -> None:
    problem = _problem(model, data, Budget(parameters=0.55, tolerance=0.05), "tucker")
    found = BeamSearch(step=2, beams=1).select(problem)
    first = found.history[0]
    (entry,) = [ranks for ranks in first["ranks"] if ranks]
    name = list(problem.space.layers)[first["ranks"].index(entry)]
    if len(entry) == 2:
        options = [option for option in problem.space.layers[name].options() if option]
        highest = options[-1]
        assert tuple(entry) in {(highest[0] - 1, highest[1]), (highest[0], highest[1] - 1)}


def test_ranks_too_coarse_for_the_band_are_filled_up(
    model: keras.Model, data: tuple[np.ndarray, np.ndarray]
) -> None:
    budget = Budget(parameters=0.5, tolerance=0.005)
    problem = _problem(model, data, budget)
    found = BeamSearch(step=3, beams=1).select(problem)
    assert budget.met(problem.space.cost(found.ranks).shares)


def test_a_budget_out_of_reach_says_what_is_least(
    model: keras.Model, data: tuple[np.ndarray, np.ndarray]
) -> None:
    with pytest.raises(BudgetError, match="`parameters` must be at least"):
        BeamSearch().select(_problem(model, data, 0.01))


def test_an_accuracy_drop_alone_is_used_up(
    model: keras.Model, data: tuple[np.ndarray, np.ndarray]
) -> None:
    shares = []
    for drop in (0.05, 0.3):
        problem = _problem(model, data, Budget(accuracy_drop=drop))
        found = BeamSearch(step=3, beams=2).select(problem)
        known = problem.log.known(found.ranks)
        assert known is not None
        assert known["accuracy"] >= 1.0 - drop
        shares.append(problem.space.cost(found.ranks).share("parameters"))
    assert shares[1] < shares[0] < 1.0
    both = _problem(model, data, Budget(parameters=0.2, accuracy_drop=0.0))
    with pytest.raises(ValueError, match="accuracy_drop"):
        BeamSearch(step=5, beams=1).select(both)


def test_several_searches_share_their_scores_and_the_best_is_kept(
    model: keras.Model, data: tuple[np.ndarray, np.ndarray]
) -> None:
    budget = Budget(parameters=0.5, tolerance=0.05)
    single, scores = 0, []
    pairs = ((3, 1), (2, 2))
    for pair in pairs:
        problem = _problem(model, data, budget, score=_closeness)
        found = BeamSearch(*pair).select(problem)
        single += len(problem.log)
        scores.append((problem.log.known(found.ranks) or {})["accuracy"])
    problem = _problem(model, data, budget, score=_closeness)
    found = BeamSearch(searches=pairs).select(problem)
    assert (problem.log.known(found.ranks) or {})["accuracy"] == max(scores)
    assert len(problem.log) < single
    assert {tuple(level["search"]) for level in found.history} == set(pairs)


def test_an_interrupted_search_goes_on_where_it_was(
    model: keras.Model,
    data: tuple[np.ndarray, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    budget, search = Budget(parameters=0.5, tolerance=0.05), BeamSearch(step=2, beams=2)
    whole = _problem(model, data, budget)
    expected = search.select(whole)
    before = [np.array(weight) for weight in model.get_weights()]
    calls = 0

    def interrupting(share: float | None, text: str) -> None:
        nonlocal calls
        calls += 1
        if calls == 9:
            raise KeyboardInterrupt

    path, names = tmp_path / "log.jsonl", list(whole.space.layers)
    with pytest.raises(KeyboardInterrupt):
        search.select(
            _problem(
                model, data, budget, progress=interrupting, log=CandidateLog(path, names, "one")
            )
        )
    for ours, theirs in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    partial = CandidateLog(path, names, "one")
    kept = len(partial)
    assert 0 < kept < len(whole.log)
    resumed = _problem(model, data, budget, log=partial)
    found = search.select(resumed)
    assert found.ranks == expected.ranks
    assert len(resumed.log) == len(whole.log)
    assert found.history == expected.history

    def refused(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("everything is in the log")

    # Nothing is left to compute.
    monkeypatch.setattr(CandidateEvaluator, "__init__", refused)
    replayed = _problem(model, data, budget, log=CandidateLog(path, names, "one"))
    assert search.select(replayed).ranks == expected.ranks


def test_progress_rises_to_the_end(model: keras.Model, data: tuple[np.ndarray, np.ndarray]) -> None:
    shares: list[float] = []

    def progress(share: float | None, text: str) -> None:
        assert share is not None
        assert "candidates" in text
        shares.append(share)

    problem = _problem(model, data, Budget(parameters=0.5, tolerance=0.05), progress=progress)
    BeamSearch(step=3, beams=1).select(problem)
    assert shares[0] == 0.0
    assert shares == sorted(shares)
    assert 0.9 < shares[-1] <= 1.0


def test_one_seed_one_result(model: keras.Model, data: tuple[np.ndarray, np.ndarray]) -> None:
    budget = Budget(parameters=0.4, tolerance=0.05)
    found = [
        BeamSearch(step=3, beams=2).select(_problem(model, data, budget, seed=4)) for _ in range(2)
    ]
    assert found[0] == found[1]


def test_a_score_that_is_no_number_is_the_worst_read_again_too(
    model: keras.Model, data: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    def score(y: Any, predictions: Any) -> float:
        found = _closeness(y, predictions)
        return math.nan if round(1e6 * found) % 3 == 0 else found

    names = list(RankSpace(model, "channel").layers)
    path = tmp_path / "candidates.jsonl"
    found = []
    for _ in range(2):
        log = CandidateLog(path, names, "one")
        found.append(BeamSearch(step=2).select(_problem(model, data, 0.6, score=score, log=log)))
    assert "null" in path.read_text(encoding="utf-8")
    assert found[0].ranks == found[1].ranks


@pytest.mark.parametrize(
    "arguments",
    [{"step": 0}, {"beams": 1.5}, {"samples": True}, {"searches": ()}, {"searches": ((3, 0),)}],
)
def test_unusable_arguments_are_named(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(arguments))}"):
        BeamSearch(**arguments)


def test_data_and_budget_are_needed(
    model: keras.Model, data: tuple[np.ndarray, np.ndarray]
) -> None:
    space = RankSpace(model, "channel")
    log = CandidateLog(None, list(space.layers), "test")
    with pytest.raises(ValueError, match="`data` must be given"):
        BeamSearch().select(Problem(model, space, Budget(0.5), None, None, log))
    with pytest.raises(ValueError, match="`budget` must be given"):
        BeamSearch().select(Problem(model, space, None, data, None, log))
