"""Ranks by feature-map similarity: the graph, the measure, the ratios, the searches."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

from dprp_tf.costs.budget import Budget, BudgetError
from dprp_tf.costs.rank_space import RankSpace
from dprp_tf.keras_internals.flat_graph import FlatGraph, tensor_bytes
from dprp_tf.keras_internals.graphs import layer_keys
from dprp_tf.selection.candidate_log import CandidateLog
from dprp_tf.selection.methods.similarity import FeatureSimilarity, largest_layers
from dprp_tf.selection.scoring.feature_maps import FeatureMaps, cosine_similarity
from dprp_tf.selection.scoring.trainable_candidate import TrainableCandidate
from dprp_tf.selection.selector import Problem, Selection
from dprp_tf.selection.solving.levels import Levels, RankCurve
from dprp_tf.selection.solving.ratios import ladder, ranks_at_ratio, ratio_of
from dprp_tf.training.fine_tuning import FineTuning

Data = tuple[np.ndarray, np.ndarray]


def _followed() -> keras.Model:
    """A convolution followed by BatchNorm, ReLU and pooling, then a Dense layer."""
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, name="conv")(inputs)
    x = layers.BatchNormalization(epsilon=1e-3, name="norm")(x)
    x = layers.MaxPooling2D(2)(layers.ReLU()(x))
    return keras.Model(inputs, layers.Dense(3, name="dense")(layers.Flatten()(x)))


def _fill_randomly(model: keras.Model, rng: np.random.Generator) -> None:
    model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.moving_variance.assign(rng.uniform(0.5, 2.0, layer.moving_variance.shape))


def _convolved(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    size = x.shape[1] - kernel.shape[0] + 1
    out = np.zeros((len(x), size, size, kernel.shape[-1]))
    for i, j in itertools.product(range(size), range(size)):
        patch = x[:, i : i + kernel.shape[0], j : j + kernel.shape[1]]
        out[:, i, j] = np.tensordot(patch, kernel, axes=3) + bias
    return out


def _behind(maps: np.ndarray, norm: layers.BatchNormalization) -> np.ndarray:
    gamma, beta, mean, variance = (np.asarray(v) for v in norm.get_weights())
    maps = np.maximum((maps - mean) / np.sqrt(variance + 1e-3) * gamma + beta, 0.0)
    n, h, w, c = maps.shape
    return maps.reshape(n, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))


def _mean_cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.mean(np.sum(a * b, axis=1) / norms))


@pytest.mark.backend
@pytest.mark.parametrize("memory", [2**20, 1])
def test_similarity_is_the_mean_cosine_behind_normalization_activation_and_pooling(
    rng: np.random.Generator, memory: int
) -> None:
    model = _followed()
    _fill_randomly(model, rng)
    x = rng.normal(size=(7, 6, 6, 2)).astype("float32")
    kernel, bias = (np.asarray(w) for w in model.get_layer("conv").get_weights())
    other = RankSpace(model, "channel").layers["conv"].truncation.kernel((2,))
    norm = model.get_layer("norm")
    expected = _mean_cosine(
        _behind(_convolved(x, kernel, bias), norm), _behind(_convolved(x, other, bias), norm)
    )
    maps = FeatureMaps(model, ["conv", "dense"], x, batch_size=3, memory=memory)
    before = model.get_weights()
    found = maps.with_kernels({"conv": other, "dense": model.get_layer("dense").kernel})
    assert found["conv"] == pytest.approx(expected, abs=1e-5)
    assert expected < 0.99  # nothing else was compared
    assert found["dense"] == pytest.approx(1.0, abs=1e-6)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_fewer_samples_where_maps_do_not_fit(rng: np.random.Generator) -> None:
    model = _followed()
    x = rng.normal(size=(40, 6, 6, 2)).astype("float32")
    # One sample: 72 entries before the convolution, 16 behind the pooling, 16 before Dense, 3 out;
    # the pooled map flattened is a tensor of its own.
    bytes_per_sample = 4 * (72 + 16 + 16 + 3)
    maps = FeatureMaps(
        model, ["conv", "dense"], x, batch_size=5, memory=3 * 5 * bytes_per_sample, fewer=True
    )
    assert maps.samples == 15


def test_cosines_of_maps_without_entries_above_zero() -> None:
    zero, some = np.zeros((1, 3)), np.array([[1.0, -2.0, 2.0]])
    for a, b, expected in ((zero, zero, 1.0), (zero, some, 0.0), (some, -some, -1.0)):
        assert cosine_similarity(a, b) == pytest.approx([expected])


def test_a_layer_called_twice_counts_with_the_mean_of_its_calls(rng: np.random.Generator) -> None:
    shared = layers.Dense(3, use_bias=False, name="shared")
    inputs = keras.Input((3,))
    model = keras.Model(inputs, layers.Add()([shared(inputs), shared(ops.abs(inputs))]))
    x = rng.normal(size=(5, 3)).astype("float32")
    kernel, other = np.asarray(shared.kernel), np.diag([1.0, 2.0, 0.0])
    expected = np.mean(
        [_mean_cosine(entering @ kernel, entering @ other) for entering in (x, np.abs(x))]
    )
    found = FeatureMaps(model, ["shared"], x).with_kernels({"shared": other})
    assert found["shared"] == pytest.approx(expected, abs=1e-5)


def _residual() -> keras.Model:
    inputs = keras.Input((8, 8, 4))
    x = stem = layers.ReLU()(layers.Conv2D(4, 3, padding="same", name="stem")(inputs))
    x = layers.ReLU()(layers.BatchNormalization(name="n")(layers.Conv2D(4, 1, name="first")(x)))
    x = layers.BatchNormalization()(layers.Conv2D(4, 1, name="second")(x))
    x = layers.ReLU()(layers.Add()([x, stem]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(2, name="head")(x))


def _inception() -> keras.Model:
    inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(4, 1, name="stem")(inputs)
    branches = [
        layers.Conv2D(2, 1, name="one")(x),
        layers.Conv2D(2, 3, padding="same", name="three")(layers.Conv2D(2, 1, name="reduce")(x)),
        layers.MaxPooling2D(3, strides=1, padding="same")(x),
    ]
    x = layers.Concatenate()(branches)
    return keras.Model(inputs, layers.Conv2D(2, 1, name="behind")(x))


def _nested() -> keras.Model:
    """A residual block inside a nested model, a sequence inside another."""
    first, second = keras.Input((8, 8, 4)), keras.Input((8, 8, 4))
    block = layers.Add()([layers.Conv2D(4, 1, name="inside")(first), first])
    row = layers.Conv2D(4, 1, name="row")(second)
    inputs = keras.Input((8, 8, 4))
    x = keras.Model(second, row, name="outer_row")(keras.Model(first, block)(inputs))
    return keras.Model(inputs, layers.ReLU(name="after")(x))


@pytest.mark.parametrize(
    ("build", "blocks"),
    [
        (_followed, set()),
        (_residual, {"first", "second"}),
        (_inception, {"one", "three", "reduce"}),
        (_nested, {"inside"}),
    ],
)
def test_blocks_are_what_a_path_leads_around(build: Any, blocks: set[str]) -> None:
    model = build()
    names = list(RankSpace(model, "channel").layers)
    maps = FeatureMaps(model, names, np.zeros((1, *model.input_shape[1:]), "float32"))
    assert {name for name in names if maps.in_block(name)} == blocks
    assert set(names) > blocks  # each has layers outside too


def test_rows_behind_a_layer_end_where_its_map_is_joined_or_shared() -> None:
    def behind(model: keras.Model, name: str) -> list[str]:
        graph = FlatGraph(model)
        (step,) = graph.calls(layer_keys(model)[name])
        return [type(entry.operation).__name__ for entry in graph.behind(step)]

    residual = _residual()
    assert behind(residual, "first") == ["BatchNormalization", "ReLU"]
    assert behind(residual, "second") == ["BatchNormalization"]  # then Add
    assert behind(residual, "stem") == ["ReLU"]  # then two consumers
    assert behind(residual, "head") == []
    assert behind(_inception(), "stem") == []
    assert behind(_nested(), "row") == ["ReLU"]  # across the border of the nested model
    inputs = keras.Input((8, 8, 4))
    x = ops.relu(layers.Conv2D(4, 3, name="a")(inputs))
    x = layers.Dropout(0.5)(layers.LeakyReLU()(layers.Conv2D(4, 3, name="b")(x)))
    operations = keras.Model(inputs, [x, ops.sum(x)])
    assert behind(operations, "a") == ["Relu"]
    assert behind(operations, "b") == ["LeakyReLU", "Dropout"]  # an output of the model


def test_a_flat_graph_computes_what_the_model_does(rng: np.random.Generator) -> None:
    for model in (_followed(), _residual(), _nested()):
        _fill_randomly(model, rng)
        x = rng.normal(size=(3, *model.input_shape[1:])).astype("float32")
        graph = FlatGraph(model)
        (number,) = graph.outputs
        np.testing.assert_allclose(
            ops.convert_to_numpy(graph.run(x, [number])[number]),
            ops.convert_to_numpy(model(x)),
            rtol=1e-5,
            atol=1e-5,
        )


def test_the_fewest_layers_that_hold_a_share() -> None:
    sizes = {"a": 10, "b": 500, "c": 90, "d": 400}
    assert largest_layers(sizes, 0.9) == ["b", "d"]  # exactly 900 of 1000
    assert largest_layers(sizes, 0.91) == ["b", "c", "d"]
    assert largest_layers(sizes, 1.0) == list(sizes)
    # The kernels of the residual network: stem 144, first and second 16 each, head 8.
    space = RankSpace(_residual(), "channel")
    assert FeatureSimilarity(share=0.75).targets(space) == ["stem"]
    # By MACs, where the head is 8 of 64 * 176: the stem has 0.818 of them.
    by_macs = FeatureSimilarity(share=0.85).targets(space, Budget(macs=0.5))
    assert by_macs == ["stem", "first"]


def test_more_layers_where_those_alone_can_not_keep_the_bounds() -> None:
    space = RankSpace(_residual(), "channel")
    smallest = {"stem": (1,)}
    share = space.cost(smallest).shares["parameters"]
    method = FeatureSimilarity(share=0.75)
    assert method.targets(space, Budget(parameters=share)) == ["stem"]
    assert method.targets(space, Budget(parameters=share - 0.01)) == ["stem", "first"]


def _layer(matricization: str, strides: int = 1) -> Any:
    inputs = keras.Input((4, 4, 2))
    x = layers.Conv2D(3, 3, strides=strides, padding="same", use_bias=False, name="a")(inputs)
    return RankSpace(keras.Model(inputs, x), matricization).layers["a"]


def test_ranks_at_a_ratio_by_hand() -> None:
    # A kernel (3, 3, 2, 3) of 54 weights; channel: r (18 + 3) weights.
    layer = _layer("channel")
    expected = {0.99: (1,), 1 - 21 / 54: (1,), 0.23: (1,), 1 - 42 / 54: (2,), 0.05: (2,), 0.0: None}
    assert {ratio: ranks_at_ratio(layer, ratio) for ratio in expected} == expected
    assert ratio_of(layer, (2,)) == pytest.approx(1 - 42 / 54)
    assert ladder(layer) == [(1,), (2,)]  # 63 weights are more than 54


@pytest.mark.parametrize(
    ("pairs", "expected"), [("equal", (1, 1)), ("most_macs", (1, 3)), ("fewest_macs", (2, 1))]
)
def test_tucker_pairs_at_a_ratio_by_hand(pairs: str, expected: tuple[int, int]) -> None:
    # 2 i + 9 i o + 3 o weights: (1, 1) 14, (1, 2) 26, (1, 3) 38, (2, 1) 25, (2, 2) 46, (2, 3) 67.
    # Of 40 weights neither rank of (1, 3) and (2, 1) can be raised. At strides of 2, 16 positions
    # become 4: 2 * 16 + 27 * 4 + 9 * 4 = 176 MACs, and 4 * 16 + 18 * 4 + 3 * 4 = 148.
    assert ranks_at_ratio(_layer("tucker", strides=2), 1 - 40 / 54, pairs) == expected


def test_tucker_ladders_rise_in_weights_and_stay_below_the_dense_layer() -> None:
    layer = _layer("tucker")
    assert ladder(layer) == [(1, 1), (2, 2)]  # (2, 3) would be 67
    for pairs in ("most_macs", "fewest_macs"):
        weights = [layer.parameters(ranks) for ranks in ladder(layer, pairs)]
        assert weights == sorted(weights)
        assert 14 == weights[0] < weights[-1] < 54


def test_tucker_pairs_are_the_extremes_of_all_that_fit(rng: np.random.Generator) -> None:
    inputs = keras.Input((8, 8, 6))
    x = layers.Conv2D(10, 3, strides=2, name="a")(inputs)
    layer = RankSpace(keras.Model(inputs, x), "tucker").layers["a"]
    every = list(itertools.product(range(1, 7), range(1, 11)))
    for ratio in rng.uniform(0.02, 0.97, 12):
        allowed = (1 - ratio) * layer.parameters(None)
        fitting = {pair for pair in every if layer.parameters(pair) <= allowed}
        largest = [
            (i, o) for i, o in fitting if (i + 1, o) not in fitting and (i, o + 1) not in fitting
        ]
        macs = [layer.macs(pair) or 0 for pair in largest]
        assert layer.macs(ranks_at_ratio(layer, ratio, "most_macs")) == max(macs)
        assert layer.macs(ranks_at_ratio(layer, ratio, "fewest_macs")) == min(macs)
        equal = [r for r in range(1, 11) if (min(r, 6), r) in fitting]
        assert ranks_at_ratio(layer, ratio) == (min(max(equal), 6), max(equal))


def test_the_largest_common_level_is_that_of_trying_them_all(rng: np.random.Generator) -> None:
    inputs = x = keras.Input((8, 8, 6))
    for name in "abc":
        x = layers.Conv2D(6, 3, padding="same", use_bias=False, name=name)(x)
    space = RankSpace(keras.Model(inputs, x), "separable")
    looks: list[tuple[str, int]] = []
    for budget in (Budget(parameters=0.4), Budget(parameters=0.7, macs=0.5)):
        curves = {name: np.sort(rng.uniform(0.1, 0.999, 8)) for name in "abc"}
        slack = {"a": 1.0, "b": 0.5, "c": 0.5}

        def ranks(level: float, curves: Any = curves, slack: Any = slack) -> dict[str, Any]:
            reached = {n: curves[n] >= 1 - slack[n] * (1 - level) - 1e-12 for n in curves}
            return {n: (int(np.argmax(r)) + 1,) if r.any() else None for n, r in reached.items()}

        # Ranks change just above the levels that one of them reaches exactly.
        steps = [1 - (1 - q) / slack[name] for name, row in curves.items() for q in row]
        kept = [level for level in [*steps, 1.0] if budget.kept(space.cost(ranks(level)).shares)]

        def quality(name: str, at: tuple[int, ...], curves: Any = curves) -> float:
            looks.append((name, at[0]))
            return float(curves[name][at[0] - 1])

        rows = [(r,) for r in range(1, 9)]
        levels = Levels(
            space,
            {n: RankCurve(rows, functools.partial(quality, n), slack[n]) for n in "abc"},
        )
        level = levels.largest(budget)
        assert level == pytest.approx(max(kept), abs=1e-6)
        assert levels.ranks(level) == ranks(level)
        assert len(set(looks)) == len(looks)  # none is looked at twice
        looks.clear()


@pytest.mark.parametrize("matricization", ["spatial", "separable", "tucker"])
def test_a_candidate_computes_the_model_with_cut_kernels(
    rng: np.random.Generator, matricization: str
) -> None:
    model = _residual()
    _fill_randomly(model, rng)
    space = RankSpace(model, matricization)
    ranks: dict[str, tuple[int, ...]] = {
        "stem": (2, 3) if matricization == "tucker" else (2,),
        "first": (2,),
        "head": (1,),
    }
    candidate = TrainableCandidate(model, space, ranks)
    x = rng.normal(size=(4, 8, 8, 4)).astype("float32")
    maps = FeatureMaps(model, list(ranks), x)
    cut = maps.with_kernels({n: space.layers[n].truncation.kernel(r) for n, r in ranks.items()})
    found = maps.similarity(candidate.replacements, candidate.behind)
    assert found == pytest.approx(cut, abs=1e-4)
    reference = keras.models.clone_model(model)
    reference.set_weights(model.get_weights())
    for name, entry in ranks.items():
        reference.get_layer(name).kernel.assign(space.layers[name].truncation.kernel(entry))
    np.testing.assert_allclose(
        ops.convert_to_numpy(candidate.model(x)),
        ops.convert_to_numpy(reference(x)),
        rtol=1e-3,
        atol=1e-3,
    )
    # Trained weights count: those of the factors, and of the normalization behind them.
    for trained in (candidate.model.get_layer("first").kernel, candidate.model.get_layer("n").beta):
        before = maps.similarity(candidate.replacements, candidate.behind)
        trained.assign(rng.normal(size=trained.shape))
        after = maps.similarity(candidate.replacements, candidate.behind)
        assert abs(after["first"] - before["first"]) > 1e-3
        assert after["stem"] == before["stem"]


@pytest.fixture(scope="module")
def trained() -> tuple[keras.Model, Data, Data]:
    """A small network with one residual block, trained on digits."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = (digits.images[..., None] / 16).astype("float32"), digits.target.astype("int32")
    keras.utils.set_random_seed(5)
    inputs = keras.Input((8, 8, 1))
    x1 = layers.Conv2D(12, 3, padding="same", name="stem", activation="relu")(inputs)
    x2 = layers.Conv2D(12, 3, padding="same", name="inside", use_bias=False)(x1)
    x2 = layers.Add()([layers.ReLU()(layers.BatchNormalization(momentum=0.8)(x2)), x1])
    x2 = layers.MaxPooling2D(2)(x2)
    x2 = layers.Conv2D(16, 3, name="outside", activation="relu")(x2)
    model = keras.Model(inputs, layers.Dense(10, name="head")(layers.Flatten()(x2)))
    tuning = FineTuning(epochs=6, learning_rate=0.05, batch_size=64)
    tuning.fit(model, (x[:1000], y[:1000]))
    return model, (x[:1000], y[:1000]), (x[1200:], y[1200:])


_TUNING = FineTuning(epochs=3, learning_rate=0.006, batch_size=32)


def _problem(
    trained: tuple[keras.Model, Data, Data], budget: Budget | None, path: Path | None = None
) -> tuple[Problem, list[str]]:
    model, train, data = trained
    space = RankSpace(model, "channel")
    texts: list[str] = []
    log = CandidateLog(path, list(space.layers), "digits")
    return (
        Problem(model, space, budget, data, train, log, lambda share, text: texts.append(text)),
        texts,
    )


@pytest.fixture(scope="module")
def searched(
    trained: tuple[keras.Model, Data, Data], tmp_path_factory: pytest.TempPathFactory
) -> tuple[FeatureSimilarity, Budget, Path, Selection, list[str]]:
    """The search with fine-tuning, interrupted in its second iteration and taken up again."""
    folder = tmp_path_factory.mktemp("search")
    method = FeatureSimilarity(
        share=0.95, threshold=0.8, step=0.3, samples=200, tuning=_TUNING, folder=folder
    )
    budget = Budget(accuracy_drop=0.015)
    problem, texts = _problem(trained, budget, folder / "log.jsonl")

    def interrupted(share: float | None, text: str) -> None:
        texts.append(text)
        if text == "iteration 2: epoch 1":
            raise KeyboardInterrupt

    stopping = Problem(**{**vars(problem), "progress": interrupted})
    with pytest.raises(KeyboardInterrupt):
        method.select(stopping)
    again, more = _problem(trained, budget, folder / "log.jsonl")
    return method, budget, folder, method.select(again), more


@pytest.mark.slow
def test_the_search_meets_its_accuracy_and_compresses(
    trained: tuple[keras.Model, Data, Data], searched: Any
) -> None:
    _, _, folder, selection, _ = searched
    model, _, (x, y) = trained
    last = selection.history[-1]
    dense = np.mean(model.predict(x, verbose=0).argmax(-1) == y)
    tuned = keras.saving.load_model(folder / "fine_tuned.keras")
    accuracy = np.mean(tuned.predict(x, verbose=0).argmax(-1) == y)
    assert dense > 0.9
    assert accuracy >= dense - 0.015
    assert last["accuracy"] == pytest.approx(accuracy)
    assert tuned.count_params() < 0.9 * model.count_params()
    assert last["parameters"] == pytest.approx(
        RankSpace(model, "channel").cost(selection.ranks).shares["parameters"]
    )
    assert selection.ranks["stem"] is None  # not among the layers with 95 % of the weights
    assert all(row["accuracy"] < dense - 0.015 for row in selection.history[:-1])
    assert len(selection.history) >= 3, "the case must have something to search"


def test_layers_at_their_threshold_keep_their_ranks_and_the_others_lose_a_step(
    searched: Any,
) -> None:
    method, _, _, selection, _ = searched
    first = selection.history[0]
    assert set(first["ranks"]) == {"inside", "outside", "head"}
    assert all(ranks == [1] for ranks in first["ranks"].values())
    passed: set[str] = set()
    for row, following in itertools.pairwise(selection.history):
        for name, similarity in row["similarity"].items():
            limit = method.block_threshold if name == "inside" else method.threshold
            if similarity >= limit:
                passed.add(name)
        assert set(row["raised"]) == (set(row["ranks"]) - passed or set(row["ranks"]))
        for name, ratio in row["ratio"].items():
            now = following["ratio"].get(name, 0.0)
            if name in row["raised"]:
                steps = (ratio - now) / method.step
                assert name not in following["ratio"] or steps == pytest.approx(round(steps))
                assert now < ratio
            else:
                assert now == ratio
                assert following["ranks"][name] == row["ranks"][name]
    assert passed, "some layer must have passed"


def test_an_interrupted_search_trains_no_iteration_again(
    trained: tuple[keras.Model, Data, Data], searched: Any
) -> None:
    method, budget, folder, selection, texts = searched
    begun = [text for text in texts if "epoch 1" in text]
    assert begun == [f"iteration {i + 1}: epoch 1" for i in range(1, len(selection.history))]
    problem, texts = _problem(trained, budget, folder / "log.jsonl")
    replayed = method.select(problem)
    assert replayed == selection
    assert not [text for text in texts if "epoch" in text]
    assert len(problem.log) == len(selection.history) + 1  # and the dense model's accuracy


def test_bounds_on_costs_end_the_search(
    trained: tuple[keras.Model, Data, Data], searched: Any
) -> None:
    method, _, folder, selection, _ = searched
    shares = [row["parameters"] for row in selection.history]
    bound = (shares[-2] + shares[-1]) / 2
    problem, _ = _problem(
        trained, Budget(parameters=bound, accuracy_drop=0.015), folder / "log.jsonl"
    )
    with pytest.raises(BudgetError, match=r"parameters.*nearest found: [\d.]+ above it"):
        method.select(problem)


@pytest.mark.parametrize("share", [1.0, 0.8])
def test_without_fine_tuning_one_level_meets_the_budget(
    trained: tuple[keras.Model, Data, Data], share: float
) -> None:
    # Within 1 % ranks would have to be exchanged between layers this small.
    budget = Budget(parameters=0.5, tolerance=0.05)
    problem, _ = _problem(trained, budget)
    method = FeatureSimilarity(share=share, samples=120)
    selection = method.select(problem)
    assert budget.met(problem.space.cost(selection.ranks).shares)
    names = method.targets(problem.space, budget)
    assert {name for name, ranks in selection.ranks.items() if ranks is not None} <= set(names)
    # By trying every rank: at the level, the smallest that reach it; none above keeps the budget.
    chosen = np.sort(np.random.default_rng(0).permutation(1000)[:120])
    maps = FeatureMaps(problem.model, names, trained[1][0][chosen])

    def at(level: float) -> dict[str, Any]:
        ranks: dict[str, Any] = {}
        for name in names:
            wanted = 1 - (1 - level) * (0.5 if name == "inside" else 1.0)
            reached = [r for r, value in curves[name].items() if value >= wanted]
            ranks[name] = min(reached, default=None)
        return ranks

    curves = {
        name: {
            ranks: maps.with_kernels({name: problem.space.layers[name].truncation.kernel(ranks)})[
                name
            ]
            for ranks in ladder(problem.space.layers[name])
        }
        for name in names
    }
    level = selection.history[0]["similarity"]
    assert budget.kept(problem.space.cost(at(level - 1e-6)).shares)
    assert not budget.kept(problem.space.cost(at(level + 1e-4)).shares)
    for name, ranks in at(level - 1e-6).items():  # what was left only raised ranks
        found = selection.ranks[name]
        assert found is None or (ranks is not None and found >= ranks)
    evaluated = len(problem.log)
    assert evaluated < sum(map(len, curves.values())) or share < 1
    assert method.select(problem) == selection
    assert len(problem.log) == evaluated


def test_without_a_budget_the_threshold_is_the_level(
    trained: tuple[keras.Model, Data, Data],
) -> None:
    problem, _ = _problem(trained, None)
    method = FeatureSimilarity(share=1.0, samples=60)
    found = method.select(problem)
    similarities = found.history[0]["similarities"]
    assert similarities, "some layer must be cut"
    for name, ranks in found.ranks.items():
        threshold = 0.96 if name == "inside" else 0.92
        rows = ladder(problem.space.layers[name])
        at = len(rows) if ranks is None else rows.index(ranks)
        assert ranks is None or similarities[name] >= threshold
        if at:  # the ranks below are not enough
            less = problem.log.known({name: rows[at - 1]}, "similarity")
            assert less is not None
            assert less["similarity"] < threshold


def test_what_can_not_be_is_refused(trained: tuple[keras.Model, Data, Data]) -> None:
    for bad in (
        {"share": 0.0},
        {"threshold": 1.0},
        {"block_threshold": 0.0},
        {"step": 1.0},
        {"samples": 0},
        {"pairs": "all"},
    ):
        with pytest.raises(ValueError, match=f"`{next(iter(bad))}`"):
            FeatureSimilarity(**bad)
    problem, _ = _problem(trained, Budget(parameters=0.5))
    with pytest.raises(ValueError, match="accuracy_drop"):
        FeatureSimilarity(tuning=_TUNING).select(problem)
    without = Problem(
        **{**vars(problem), "training_data": None, "budget": Budget(accuracy_drop=0.1)}
    )
    with pytest.raises(ValueError, match="`training_data`"):
        FeatureSimilarity(tuning=_TUNING).select(without)
    with pytest.raises(BudgetError, match="parameters"):
        FeatureSimilarity(samples=10).select(_problem(trained, Budget(parameters=0.01))[0])
    with pytest.raises(ValueError, match="'nowhere'"):
        FeatureMaps(problem.model, ["nowhere"], np.zeros((1, 8, 8, 1)))


@pytest.mark.parametrize(
    ("dtype", "width"),
    [("bool", 1), ("uint8", 1), ("bfloat16", 2), ("float16", 2), ("int32", 4), ("float64", 8)],
)
def test_a_tensors_bytes_follow_its_type(dtype: str, width: int) -> None:
    assert tensor_bytes(keras.KerasTensor((None, 3, 5), dtype)) == 15 * width
