"""Candidates scored by swapped kernels: the same as a model built for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from keras import layers
from random_networks import Program, build, programs

import dprp_tf as dprp
from dprp_tf.costs.rank_space import Ranks, RankSpace
from dprp_tf.decomposition import dematricize, matricize
from dprp_tf.keras_internals.graphs import layer_keys, walk_layers
from dprp_tf.selection.scoring.evaluator import CandidateEvaluator
from dprp_tf.selection.scoring.stages import Stage, StagedModel

_COUNT = 12


def _convolution(filters: int, name: str, **arguments: Any) -> layers.Layer:
    return layers.Conv2D(filters, 3, padding="same", name=name, **arguments)


def _residual() -> keras.Model:
    """Two tensors are alive at the cut inside the block; a dropout does nothing at inference."""
    inputs = keras.Input((6, 6, 2), name="x")
    x = start = layers.ReLU()(layers.BatchNormalization()(_convolution(6, "stem")(inputs)))
    x = layers.ReLU()(layers.BatchNormalization()(_convolution(6, "first")(x)))
    x = layers.Dropout(0.5)(layers.BatchNormalization()(_convolution(6, "second")(x)))
    x = layers.ReLU()(layers.Add()([x, start]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(3, name="head")(x))


def _shared() -> keras.Model:
    """One layer is used three times, another model twice, with other layers between."""
    inputs = keras.Input((6, 6, 4), name="x")
    again = _convolution(4, "again", activation="relu")
    inside = keras.Input((6, 6, 4), name="y")
    inner = keras.Model(
        inside, layers.Add()([_convolution(4, "inner")(inside), inside]), name="block"
    )
    x = _convolution(4, "middle")(inner(again(inputs)))
    x = again(inner(again(x)))
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.Flatten()(x)))


def _nested() -> keras.Model:
    """A sequential model in a functional one in a sequential one."""
    deepest = keras.Sequential(
        [keras.Input((6, 6, 4)), _convolution(5, "deep"), layers.BatchNormalization()],
        name="deepest",
    )
    inside = keras.Input((6, 6, 2), name="y")
    x = deepest(_convolution(4, "before")(inside), training=False)
    inner = keras.Model(inside, layers.ReLU()(x), name="inner")
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            inner,
            _convolution(4, "after"),
            layers.GlobalMaxPooling2D(),
            layers.Dense(3, name="head", activation="softmax"),
        ]
    )


def _two_inputs() -> keras.Model:
    """The second input is first used far behind the first cut."""
    first, second = keras.Input((6, 6, 2), name="first"), keras.Input((3,), name="second")
    x = layers.GlobalAveragePooling2D()(_convolution(5, "image")(first))
    x = layers.Concatenate()([x, layers.Dense(4, name="vector")(second), second])
    return keras.Model([first, second], layers.Dense(3, name="head")(x))


def _masked() -> keras.Model:
    """A mask would be lost at a cut."""
    inputs = keras.Input((5,), dtype="int32", name="x")
    x = layers.Embedding(7, 6, mask_zero=True)(inputs)
    x = layers.Dense(5, name="words")(x)
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.GlobalAveragePooling1D()(x)))


_MODELS: dict[str, Callable[[], keras.Model]] = {
    "residual": _residual,
    "shared": _shared,
    "nested": _nested,
    "two inputs": _two_inputs,
    "masked": _masked,
}


def _samples(model: keras.Model, rng: np.random.Generator) -> Any:
    made = [
        rng.integers(0, 7, (_COUNT, *x.shape[1:]))
        if x.dtype == "int32"
        else rng.standard_normal((_COUNT, *x.shape[1:])).astype("float32")
        for x in model.inputs
    ]
    return made[0] if len(made) == 1 else made


def _randomized(model: keras.Model, rng: np.random.Generator) -> keras.Model:
    """No weight at its default: unit statistics would hide what is done with them."""
    for weight in model.weights:
        if "seed" not in weight.name:
            weight.assign(np.abs(rng.normal(0.5, 0.3, weight.shape)) * rng.choice([1, 0.5]))
            if weight.name.endswith("kernel"):
                weight.assign(rng.normal(0, 0.4, weight.shape))
    return model


def _built(model: keras.Model, ranks: Mapping[str, Ranks], matricization: str) -> keras.Model:
    """A copy with kernels that NumPy cut."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    keys = layer_keys(copy)
    for key, entry in ranks.items():
        if entry is None:
            continue
        kernel = np.asarray(keys[key].kernel)
        u, s, v = np.linalg.svd(matricize(kernel, matricization), full_matrices=False)
        cut = (u[:, : entry[0]] * s[: entry[0]]) @ v[: entry[0]]
        keys[key].kernel.assign(dematricize(cut, kernel.shape, matricization))
    return copy


def _called(model: keras.Model, x: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(model(x, training=False)))


def _drawn(space: RankSpace, rng: np.random.Generator, dense: float = 0.4) -> dict[str, Ranks]:
    return {
        name: None
        if rng.random() < dense
        else tuple(int(rng.integers(1, max(2, full))) for full in layer.full_ranks)
        for name, layer in space.layers.items()
    }


def _changed(
    parent: Mapping[str, Ranks], space: RankSpace, rng: np.random.Generator
) -> dict[str, Ranks]:
    name = rng.choice(list(space.layers))
    return {**parent, name: _drawn(space, rng, dense=0.2)[name]}


# Two models are enough for the other backend, whose compiler takes its time.
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=pytest.mark.backend if kind in ("nested", "two inputs") else [])
        for kind in _MODELS
    ],
)
def test_predicts_as_a_model_built_for_each(kind: str, rng: np.random.Generator) -> None:
    model = _randomized(_MODELS[kind](), rng)
    x = _samples(model, rng)
    space = RankSpace(model, "channel")
    evaluator = CandidateEvaluator(model, space, x, np.zeros(_COUNT, int))
    dense = _called(model, x)
    parent = _drawn(space, rng)
    for _ in range(2):
        children = [parent, *(_changed(parent, space, rng) for _ in range(3))]
        # In any order, with and without what was kept of the parent.
        found = list(evaluator.predictions(children, parent))
        for child, predictions in zip(children, found, strict=True):
            expected = _called(_built(model, child, "channel"), x)
            np.testing.assert_allclose(predictions, expected, rtol=1e-5, atol=1e-5)
            alone = next(evaluator.predictions([child]))
            np.testing.assert_allclose(alone, predictions, rtol=1e-6, atol=1e-6)
            if any(child.values()):
                assert np.abs(predictions - dense).max() > 1e-3
        parent = children[-1]
    np.testing.assert_array_equal(_called(model, x), dense)


@pytest.mark.parametrize("matricization", ["spatial", "separable"])
def test_predicts_as_the_factorized_and_folded_model(
    matricization: str, rng: np.random.Generator
) -> None:
    model = _randomized(_residual(), rng)
    x = _samples(model, rng)
    space = RankSpace(model, matricization)
    ranks: dict[str, Ranks] = {"first": (2,), "second": (1,), "head": (2,)}
    low = dprp.factorize(
        model,
        decomposition=matricization,
        ranks={"first": 2, "second": 1, "head": 2},
        layers=list(ranks),
    )
    folded = dprp.fold(low, forms=dict.fromkeys(ranks, "dense"))
    found = next(CandidateEvaluator(model, space, x, np.zeros(_COUNT, int)).predictions([ranks]))
    np.testing.assert_allclose(found, folded.predict(x, verbose=0), rtol=1e-5, atol=1e-5)


def _reads_past_the_end(layer: layers.Layer) -> bool:
    """TensorFlow's convolutions (2.21, oneDNN on x86) of one channel with strides now and then
    read what is not theirs, where a last row or column is reached by no window."""
    return (
        isinstance(layer, layers.Conv1D | layers.Conv2D | layers.Conv3D)
        and layer.padding == "valid"
        and max(layer.strides) > 1
        and layer.kernel.shape[-2] == 1
    )


def _check_program(program: Program, cases: int) -> None:
    model = build(program)
    if any(_reads_past_the_end(layer) for layer in walk_layers(model)):
        return
    try:
        space = RankSpace(model, "separable")
    except ValueError:
        return  # a network that has nothing to factorize, or weights of a width of 0
    rng = np.random.default_rng(program.seed)
    x = [rng.standard_normal((4, *at.shape[1:])).astype("float32") for at in model.inputs]
    evaluator = CandidateEvaluator(model, space, x, [0] * 4, score=lambda y, found: 0.0)
    parent = _drawn(space, rng)
    children = [parent, *(_changed(parent, space, rng) for _ in range(cases))]
    for child, found in zip(children, evaluator.predictions(children, parent), strict=True):
        outputs = _built(model, child, "separable")(x if len(x) > 1 else x[0], training=False)
        pairs = zip(keras.tree.flatten(found), keras.tree.flatten(outputs), strict=True)
        for ours, theirs in pairs:
            scale = 1e-5 * max(1.0, float(np.abs(theirs).max()))
            np.testing.assert_allclose(ours, np.asarray(theirs), rtol=1e-4, atol=scale)


@settings(max_examples=5)
@given(programs(2, longest=5))
def test_random_networks(program: Program) -> None:
    _check_program(program, cases=1)


@pytest.mark.long
@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(programs(1, 2, 3))
def test_many_random_networks(program: Program) -> None:
    _check_program(program, cases=4)


def test_a_child_computes_only_what_lies_behind_its_change(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _residual()
    space = RankSpace(model, "channel")
    evaluator = CandidateEvaluator(model, space, _samples(model, rng), np.zeros(_COUNT, int))
    calls: list[tuple[str, ...]] = []
    run = Stage.__call__

    def counting(self: Stage, tensors: Any, kernels: Any) -> list[Any]:
        calls.append(self.layers)
        return run(self, tensors, kernels)

    monkeypatch.setattr(Stage, "__call__", counting)
    names = [("stem",), ("first",), ("second",), ("head",)]
    parent: dict[str, Ranks] = {"first": (2,)}
    list(evaluator.evaluate([{**parent, "head": (1,)}], parent))
    assert calls == names
    calls.clear()
    list(evaluator.evaluate([{**parent, "second": (3,)}, {**parent, "head": (2,)}], parent))
    assert calls == [("second",), ("head",), ("head",)]
    calls.clear()
    # A child of the child: its own kernels up to the change, then the new one.
    child: dict[str, Ranks] = {**parent, "second": (3,)}
    list(evaluator.evaluate([{**child, "head": (1,)}, {**child, "stem": (2,)}], child))
    assert calls == [("second",), ("head",), *names]


def test_little_memory_and_small_batches_change_nothing(rng: np.random.Generator) -> None:
    model = _randomized(_residual(), rng)
    space = RankSpace(model, "channel")
    x, y = _samples(model, rng), rng.integers(0, 3, _COUNT)
    plain = CandidateEvaluator(model, space, x, y)
    small = CandidateEvaluator(model, space, x, y, memory=9000)
    batched = CandidateEvaluator(model, space, x, y, batch_size=5)
    parent = _drawn(space, rng)
    children = [_changed(parent, space, rng) for _ in range(6)]
    expected = list(plain.predictions(children, parent))
    for other in (small, batched):
        for ours, theirs in zip(other.predictions(children, parent), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
        scores = [found.score for found in other.evaluate(children, parent)]
        assert scores == [found.score for found in plain.evaluate(children, parent)]


def test_the_model_stays_as_it_was_even_when_interrupted(rng: np.random.Generator) -> None:
    model = _randomized(_residual(), rng)
    before = [np.array(weight) for weight in model.get_weights()]
    flags = [layer.trainable for layer in model.layers]
    nodes = [len(layer._inbound_nodes) for layer in model.layers]
    space = RankSpace(model, "channel")

    def interrupted(y: Any, predictions: Any) -> float:
        raise KeyboardInterrupt

    evaluator = CandidateEvaluator(
        model, space, _samples(model, rng), np.zeros(_COUNT, int), score=interrupted
    )
    with pytest.raises(KeyboardInterrupt):
        list(evaluator.evaluate([{"stem": (1,)}], {}))
    for ours, theirs in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert [layer.trainable for layer in model.layers] == flags
    assert [len(layer._inbound_nodes) for layer in model.layers] == nodes
    assert model.losses == []


def test_a_model_without_a_graph_is_one_stage(rng: np.random.Generator) -> None:
    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = layers.Dense(3, name="dense")

        def call(self, x: Any) -> Any:
            return self.dense(x) * 2.0

    model = Own()
    x = rng.standard_normal((5, 4)).astype("float32")
    model(x)
    kernel = rng.standard_normal((4, 3)).astype("float32")
    staged = StagedModel(model, {"dense": model.dense})
    tensors: list[Any] = staged.inputs(x)
    for stage in staged.stages:
        tensors = stage(tensors, [keras.ops.convert_to_tensor(kernel) for _ in stage.layers])
    np.testing.assert_allclose(np.asarray(tensors[0]), x @ kernel * 2, rtol=1e-5, atol=1e-6)


def test_scores_are_accuracy_and_cross_entropy(rng: np.random.Generator) -> None:
    inputs = keras.Input((2,))
    model = keras.Model(inputs, layers.Dense(2, use_bias=False, name="a")(inputs))
    model.set_weights([np.array([[2.0, 0.0], [0.0, 1.0]])])
    space = RankSpace(model, "channel")
    x = np.eye(2, dtype="float32")
    found = next(CandidateEvaluator(model, space, x, [0, 1]).evaluate([{}]))
    assert found.score == 1.0
    expected = np.mean([np.log1p(np.exp(-2.0)), np.log1p(np.exp(-1.0))])
    assert found.cross_entropy == pytest.approx(expected, rel=1e-6)
    # Rank 1 keeps the larger value alone: the second row becomes a tie, which the first class wins.
    cut = next(CandidateEvaluator(model, space, x, [0, 1]).evaluate([{"a": (1,)}]))
    assert cut.score == 0.5
    ends = keras.Model(model.input, layers.Softmax()(model.output))
    same = next(CandidateEvaluator(ends, RankSpace(ends, "channel"), x, np.eye(2)).evaluate([{}]))
    assert same.cross_entropy == pytest.approx(expected, rel=1e-5)


def test_unusable_arguments_are_named(rng: np.random.Generator) -> None:
    model = _residual()
    space = RankSpace(model, "channel")
    x = _samples(model, rng)
    with pytest.raises(ValueError, match="same number of samples"):
        CandidateEvaluator(model, space, x, np.zeros(_COUNT - 1))
    with pytest.raises(ValueError, match="must have the shape of the model's input"):
        CandidateEvaluator(model, space, x[..., :1], np.zeros(_COUNT))
    evaluator = CandidateEvaluator(model, space, x, np.zeros(_COUNT, int))
    with pytest.raises(ValueError, match="must name layers whose kernels may be swapped"):
        list(evaluator.evaluate([{"no such": (1,)}]))
    with pytest.raises(ValueError, match="must lie in"):
        list(evaluator.evaluate([{"stem": (99,)}]))
