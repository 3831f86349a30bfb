"""Ranks for models of several outputs, labels as Keras takes them, and inputs without labels."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import dprp_tf as dprp
from dprp_tf.conversion.cutting import cut
from dprp_tf.costs.rank_space import RankSpace
from dprp_tf.selection.methods.beam import BeamSearch
from dprp_tf.selection.methods.similarity import FeatureSimilarity
from dprp_tf.selection.scoring.evaluator import CandidateEvaluator
from dprp_tf.selection.scoring.samples import samples_of
from dprp_tf.selection.selecting import select_ranks
from dprp_tf.training.fine_tuning import FineTuning

pytestmark = pytest.mark.backend

COUNT = 24
BUDGET = dprp.Budget(parameters=0.6, tolerance=0.2)


def _trunk() -> tuple[Any, Any]:
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(12, 3, name="c0")(inputs)
    x = layers.Conv2D(12, 3, name="c1")(layers.ReLU()(x))
    return inputs, layers.GlobalAveragePooling2D()(x)


@pytest.fixture(scope="module")
def heads() -> dict[str, keras.Model]:
    """The same network with its two outputs in a dict, in a list, and with the classes alone."""
    keras.utils.set_random_seed(7)
    inputs, x = _trunk()
    box, kind = layers.Dense(4, name="box")(x), layers.Dense(5, name="kind")(x)
    return {
        "dict": keras.Model(inputs, {"kind": kind, "box": box}),
        "list": keras.Model(inputs, [kind, box]),
        "one": keras.Model(inputs, kind),
        "one in a dict": keras.Model(inputs, {"classes": kind}),
        "one in a list": keras.Model(inputs, [kind]),
    }


@pytest.fixture(scope="module")
def data(heads: dict[str, keras.Model]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    x = np.random.default_rng(0).normal(size=(COUNT, 8, 8, 3)).astype("float32")
    found = heads["dict"].predict(x, verbose=0)
    return x, {"box": found["box"], "kind": found["kind"].argmax(-1)}


def _by_name(y: Any, found: Any) -> float:
    """Larger is better: classes that agree, less the error of the boxes."""
    right = float(np.mean(found["kind"].argmax(-1) == y["kind"]))
    return right - float(np.mean((found["box"] - y["box"]) ** 2))


def _in_order(y: Any, found: Any) -> float:
    assert isinstance(found, (list, tuple))
    kinds, boxes = y
    return _by_name({"kind": kinds, "box": boxes}, {"kind": found[0], "box": found[1]})


def _scored(model: keras.Model, plan: dprp.RankPlan, x: Any, y: Any, score: Any) -> float:
    calibration = x if plan.truncation == "output" else None
    return float(
        score(y, cut(model, plan, calibration_data=calibration, refit=False).predict(x, verbose=0))
    )


METHODS = ("activation", "energy", "similarity", BeamSearch(step=4, beams=2, samples=COUNT))


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_labels_by_name_and_in_order_give_the_score_of_the_cut_model(
    heads: dict[str, keras.Model], data: Any, method: Any
) -> None:
    x, y = data
    options = {"method": method, "budget": BUDGET, "decomposition": "channel"}
    named = select_ranks(heads["dict"], data=(x, y), score=_by_name, **options)
    assert 0.3 < named.shares["parameters"] <= 0.6
    expected = _scored(heads["dict"], named, x, y, _by_name)
    assert named.accuracy["planned"] == pytest.approx(expected, abs=1e-4)
    assert named.accuracy["dense"] == pytest.approx(1.0, abs=1e-5)
    assert named.accuracy["planned"] < 0.9999
    for kind in (list, tuple):
        pair = kind([y["kind"], y["box"]])
        ordered = select_ranks(heads["list"], data=(x, pair), score=_in_order, **options)
        assert ordered.ranks == named.ranks
        assert ordered.accuracy == pytest.approx(named.accuracy, abs=1e-5)
    # A dict by output name is taken for a list of outputs too; the score gets it as it is given.
    mixed = select_ranks(
        heads["list"],
        data=(x, y),
        score=lambda y, found: _by_name(y, {"kind": found[0], "box": found[1]}),
        **options,
    )
    assert mixed.ranks == named.ranks


@pytest.mark.slow
def test_an_accuracy_drop_is_kept_by_the_score(heads: dict[str, keras.Model], data: Any) -> None:
    x, y = data
    for method in ("energy", FeatureSimilarity(share=1.0, samples=COUNT)):
        plan = select_ranks(
            heads["dict"],
            method=method,
            budget=dprp.Budget(accuracy_drop=0.2),
            data=(x, y),
            decomposition="channel",
            score=_by_name,
        )
        drop = plan.accuracy["dense"] - plan.accuracy["planned"]
        assert 1e-3 < drop <= 0.2 + 1e-9
        assert plan.ranks


def test_what_a_score_understands_need_not_be_the_labels(
    heads: dict[str, keras.Model], data: Any
) -> None:
    x, y = data

    def score(rows: Any, found: Any) -> float:
        return _by_name({name: each[rows] for name, each in y.items()}, found)

    search = BeamSearch(step=4, beams=2, samples=10)
    options = {"method": search, "budget": BUDGET, "decomposition": "channel"}
    plan = select_ranks(heads["dict"], data=(x, np.arange(COUNT)), score=score, **options)
    assert plan.ranks == select_ranks(heads["dict"], data=(x, y), score=_by_name, **options).ranks


@pytest.mark.parametrize("data_of", [lambda x: x, lambda x: (x,), lambda x: (x, None)])
@pytest.mark.parametrize("method", ["activation", "similarity", "energy"])
def test_inputs_alone_do_where_no_labels_are_needed(
    heads: dict[str, keras.Model], data: Any, method: str, data_of: Any
) -> None:
    x, y = data
    options = {"method": method, "budget": BUDGET, "decomposition": "channel"}
    for name in ("dict", "one"):
        alone = select_ranks(heads[name], data=data_of(x), **options)
        assert alone.accuracy == {}
        assert "None" not in str(alone)
    labelled = select_ranks(heads["one"], data=(x, y["kind"]), **options)
    assert alone.ranks == labelled.ranks
    assert alone.truncation == labelled.truncation


@pytest.mark.parametrize("name", ["one", "one in a dict", "one in a list"])
def test_labels_of_one_output_may_be_in_a_list_or_a_dict(
    heads: dict[str, keras.Model], data: Any, name: str
) -> None:
    x, kinds = data[0], data[1]["kind"]
    model = heads[name]
    by_name = "classes" if name == "one in a dict" else "kind"
    plans = [
        select_ranks(model, method="beam", budget=BUDGET, data=(x, y), decomposition="channel")
        for y in (
            kinds,
            kinds.tolist(),
            [kinds],
            (kinds,),
            {by_name: kinds},
            list(np.eye(5)[kinds]),
        )
    ]
    assert all(plan.ranks == plans[0].ranks for plan in plans)
    cut_model = cut(model, plans[0])
    found = keras.tree.flatten(cut_model.predict(x, verbose=0))[0].argmax(-1)
    for plan in plans:
        assert plan.accuracy["planned"] == pytest.approx(float(np.mean(found == kinds)))


def test_several_inputs_alone_in_a_list_or_by_name() -> None:
    keras.utils.set_random_seed(3)
    b, a = keras.Input((6,), name="b"), keras.Input((9,), name="a")
    joined = layers.Concatenate()(
        [layers.Dense(10, name="wide")(b), layers.Dense(10, name="other")(a)]
    )
    model = keras.Model([b, a], layers.Dense(12, name="last")(joined))
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(COUNT, 6)), rng.normal(size=(COUNT, 9)) * np.arange(9)
    options = {"budget": BUDGET, "decomposition": "channel"}
    plans = [
        select_ranks(model, data=x, **options)
        for x in ([first, second], {"a": second, "b": first}, ([first, second], None))
    ]
    assert plans[0].ranks
    assert all(plan.as_dict() == plans[0].as_dict() for plan in plans)


def test_the_evaluator_gives_predictions_as_the_model_does(
    heads: dict[str, keras.Model], data: Any
) -> None:
    x, y = data
    for name, labels in (("dict", y), ("list", [y["kind"], y["box"]])):
        model = heads[name]
        seen: list[Any] = []
        evaluator = CandidateEvaluator(
            model,
            RankSpace(model, "channel"),
            x,
            labels,
            score=lambda y, found, seen=seen: seen.append(found) or 0.0,
            batch_size=7,
        )
        assert len(list(evaluator.evaluate([{}]))) == 1
        expected = model.predict(x, verbose=0)
        keras.tree.assert_same_structure(seen[0], expected)
        pairs = zip(keras.tree.flatten(seen[0]), keras.tree.flatten(expected), strict=True)
        for mine, theirs in pairs:
            np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


def test_bsr_takes_labels_of_several_outputs(heads: dict[str, keras.Model], data: Any) -> None:
    x, y = data
    short = FineTuning(epochs=0)
    found = dprp.bsr(
        heads["dict"],
        budget=BUDGET,
        data=(x, y),
        training_data=(x, np.zeros(COUNT)),
        search=BeamSearch(step=4, beams=2),
        regularized=short,
        tuning=short,
        score=_by_name,
    )
    assert found.model.count_params() < heads["dict"].count_params()
    assert sorted(found.model.predict(x, verbose=0)) == ["box", "kind"]


def test_what_does_not_fit_is_refused(heads: dict[str, keras.Model], data: Any) -> None:
    x, y = data

    def select(name: str, data: Any, method: Any = "energy", **options: Any) -> Any:
        return select_ranks(heads[name], method=method, budget=BUDGET, data=data, **options)

    with pytest.raises(ValueError, match=r"`score` must be given.*kind.*data=x alone"):
        select("dict", (x, y))
    for method in ("mbs", "beam"):
        with pytest.raises(ValueError, match=r"`data` must be given.*without labels"):
            select("dict", x, method, score=_by_name)
    with pytest.raises(ValueError, match=r"`data` must be given.*without labels"):
        select_ranks(heads["one"], method="energy", budget={"accuracy_drop": 0.1}, data=x)
    with pytest.raises(ValueError, match=r"name outputs.*'kind', 'box'.*'boxes'"):
        select("dict", (x, {"boxes": y["box"], "kind": y["kind"]}), score=_by_name)
    with pytest.raises(ValueError, match=r"for each of the 2 outputs.*Received: 3"):
        select("list", (x, [y["kind"], y["box"], y["box"]]), score=_in_order)
    with pytest.raises(ValueError, match=r"as many labels.*24.*\[24, 23\]"):
        select("list", (x, [y["kind"], y["box"][1:]]), score=_in_order)
    with pytest.raises(ValueError, match=r"as many labels.*24.*\[5\]"):
        select("one", (x, [0, 1, 2, 3, 4]))
    with pytest.raises(ValueError, match=r"`data` must be \(x, y\).*tuple of 3"):
        select("one", (x, y["kind"], np.ones(COUNT)))
    with pytest.raises(ValueError, match=r"`data` must hold one sample.*an empty stream"):
        select("one", (row for row in x[:0]))
    with pytest.raises(ValueError, match=r"`data` must be given, \(x, y\) or x alone.*data=None"):
        select("one", None, "activation")
    assert samples_of([x, y["kind"]], heads["one"])[1] is not None
