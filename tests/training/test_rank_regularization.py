"""Rank-regularized training of plain dense models, held against a simulation in NumPy."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

import dprp_tf as dprp
from dprp_tf.training.rank_regularization import RankRegularization, singular_vectors
from dprp_tf.training.regularizers import ModifiedStableRank, NuclearNorm, TruncatedNuclearNorm

backend = pytest.mark.backend


def _array(value: Any) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(value))


def _linear(y: Any, y_pred: Any) -> Any:
    """A loss with the gradient x y^T on the kernel, which turns its singular vectors."""
    return ops.sum(ops.cast(y, "float32") * ops.cast(y_pred, "float32"), axis=-1)


def _one_layer(kernel: np.ndarray, **compiling: Any) -> keras.Model:
    """A model whose own loss has the same gradient at every step."""
    layer = keras.layers.Dense(
        kernel.shape[1], use_bias=False, name="only", **compiling.pop("layer", {})
    )
    model = keras.Sequential([keras.Input((kernel.shape[0],)), layer])
    layer.kernel.assign(kernel)
    model.compile(keras.optimizers.SGD(0.1), _linear, **compiling)
    return model


def _simulated(
    kernel: np.ndarray,
    refreshes: set[int],
    strengths: list[float],
    rank: int,
    decay: float = 0.0,
    y: np.ndarray | None = None,
) -> tuple[np.ndarray, list[float]]:
    """Steps of gradient descent at 0.1 on x W y^T + strength * mSR + decay ||W||^2; their mSR."""
    w = kernel.astype("float64")
    slope_of_loss = np.outer(X[0], Y[0] if y is None else y)
    seen = []
    for step, strength in enumerate(strengths):
        if step in refreshes:
            u, _, vt = np.linalg.svd(w, full_matrices=False)
        s = np.einsum("hr,hw,rw->r", u, w, vt)
        head, tail = np.abs(s[:rank]).sum(), np.abs(s[rank:]).sum()
        slope = np.sign(s) * np.where(np.arange(len(s)) < rank, -tail / head**2, 1 / head)
        seen.append(tail / head)
        w = w - 0.1 * (slope_of_loss + strength * (u * slope) @ vt + 2 * decay * w)
    return w, seen


KERNEL = np.random.default_rng(3).standard_normal((6, 4)).astype("float32")
# One sample, ten times.
X = np.tile(np.array([1, -2, 0.5, 1.5, -1, 0.3], "float32"), (10, 1))
Y = np.tile(np.array([0.6, -1, 1.2, 0.2], "float32"), (10, 1))


@backend
@pytest.mark.parametrize("compiling", [{}, {"jit_compile": True}, {"run_eagerly": True}], ids=str)
def test_the_optimizer_gets_the_analytic_gradient(compiling: dict[str, Any]) -> None:
    # 2 epochs of 5 steps: refreshed at the steps 0, 3 of each, growing from one to the other.
    model = _one_layer(KERNEL, **compiling)
    press = RankRegularization(
        ranks={"only": 1}, strength=0.7, growth=3.0, growth_epochs=1, refresh=3
    )
    history = model.fit(X, Y, batch_size=2, epochs=2, verbose=0, callbacks=[press]).history
    strengths = [0.7] * 5 + [2.1] * 5
    expected, seen = _simulated(KERNEL, {0, 3, 5, 8}, strengths, rank=1)
    np.testing.assert_allclose(_array(model.get_layer("only").kernel), expected, atol=2e-6)
    assert np.abs(expected - KERNEL).max() > 0.1
    # At every step's decomposition the result would be another.
    other, _ = _simulated(KERNEL, set(range(10)), strengths, rank=1)
    assert np.abs(other - expected).max() > 1e-2
    np.testing.assert_allclose(history["rank_strength"], [0.7, 2.1], rtol=1e-6)
    np.testing.assert_allclose(
        history["rank_loss"], [np.mean(seen[:5]), np.mean(seen[5:])], rtol=1e-5
    )


@backend
def test_several_steps_per_execution() -> None:
    # Executions begin at the steps 0, 2, 4: after 3 steps are over, at 4.
    model = _one_layer(KERNEL, steps_per_execution=2)
    press = RankRegularization(ranks=2, strength=1.3, refresh=3)
    model.fit(X, Y, batch_size=2, epochs=1, verbose=0, callbacks=[press])
    expected, _ = _simulated(KERNEL, {0, 4}, [1.3] * 5, rank=2)
    np.testing.assert_allclose(_array(model.get_layer("only").kernel), expected, atol=2e-6)


@backend
def test_the_layers_own_regularizer_stays() -> None:
    model = _one_layer(KERNEL, layer={"kernel_regularizer": keras.regularizers.L2(0.2)})
    press = RankRegularization(ranks=2, strength=0.9, refresh=2)
    model.fit(X, Y, batch_size=2, epochs=1, verbose=0, callbacks=[press])
    expected, _ = _simulated(KERNEL, {0, 2, 4}, [0.9] * 5, rank=2, decay=0.2)
    np.testing.assert_allclose(_array(model.get_layer("only").kernel), expected, atol=2e-6)
    assert isinstance(model.get_layer("only").kernel.regularizer, keras.regularizers.L2)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_counts_in_float32(policy: str) -> None:
    # The model's own loss, in half precision, is without a gradient here.
    model = _one_layer(KERNEL, layer={"dtype": policy})
    press = RankRegularization(ranks=1, strength=0.7, refresh=2)
    history = model.fit(X, 0 * Y, batch_size=2, epochs=1, verbose=0, callbacks=[press]).history
    expected, seen = _simulated(KERNEL, {0, 2, 4}, [0.7] * 5, rank=1, y=0 * Y[0])
    np.testing.assert_allclose(_array(model.get_layer("only").kernel), expected, atol=2e-6)
    assert history["rank_loss"][0] == pytest.approx(np.mean(seen), rel=1e-5)


def test_the_schedule() -> None:
    press = RankRegularization("nuclear_norm", strength=0.05, growth=1.2, growth_epochs=15)
    expected = [0.05] * 15 + [0.06] * 15 + [0.072]
    np.testing.assert_allclose([press.strength_at(j) for j in range(31)], expected, rtol=1e-12)


# --- training a network -----------------------------------------------------------------------


def _network(convolutions: bool = False) -> keras.Model:
    keras.utils.set_random_seed(5)
    inputs = keras.Input((8, 8, 1))
    if convolutions:
        x = keras.layers.Conv2D(8, 3, activation="relu", name="first")(inputs)
        x = keras.layers.Conv2D(8, 3, strides=2, activation="relu", name="second")(x)
        x = keras.layers.Flatten(name="flatten")(x)
    else:
        x = keras.layers.Flatten(name="flatten")(inputs)
        x = keras.layers.Dense(16, activation="relu", name="first")(x)
    model = keras.Model(inputs, keras.layers.Dense(10, name="last")(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss, metrics=["accuracy"])
    return model


@pytest.fixture
def batches(small_digits: tuple[np.ndarray, np.ndarray]) -> Callable[[keras.Model], Any]:
    """A function (model, **arguments of fit) -> history, over the same batches in each epoch."""
    x, y = small_digits

    def fit(model: keras.Model, *callbacks: Any, epochs: int = 4, **arguments: Any) -> Any:
        return model.fit(
            x[:640],
            y[:640],
            batch_size=64,
            epochs=epochs,
            shuffle=False,
            verbose=0,
            callbacks=list(callbacks),
            **arguments,
        ).history

    return fit


def _tails(model: keras.Model, rank: int) -> list[float]:
    """Share of the energy beyond a rank, by layer, of the matrix (filters, the rest)."""
    shares = []
    for name in ("first", "second", "last"):
        kernel = _array(model.get_layer(name).kernel)
        s = np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]), compute_uv=False)
        shares.append(float(np.sum(s[rank:] ** 2) / np.sum(s**2)))
    return shares


def test_the_tail_shrinks_and_the_task_is_learnt(batches: Callable[..., Any]) -> None:
    plain, pressed = _network(True), _network(True)
    batches(plain, epochs=8)
    press = RankRegularization(ranks=3, decomposition="channel", strength=2.0, refresh=10)
    history = batches(pressed, press, epochs=8)
    for free, small in zip(_tails(plain, 3), _tails(pressed, 3), strict=True):
        assert small < 0.05 < 0.1 < free
    assert history["accuracy"][-1] > 0.7
    assert history["rank_loss"][-1] < 0.5 * history["rank_loss"][0]


def test_validation_is_that_of_the_model_alone(
    batches: Callable[..., Any], small_digits: tuple[np.ndarray, np.ndarray]
) -> None:
    x, y = small_digits
    model = _network()
    press = RankRegularization(ranks=3, strength=5.0)
    validation = (x[640:800], y[640:800])
    history = batches(model, press, epochs=2, validation_data=validation)
    assert set(history) == {
        *("loss", "accuracy", "rank_loss", "rank_strength"),
        *("val_loss", "val_accuracy"),
    }
    alone = model.evaluate(*validation, verbose=0, return_dict=True)
    assert set(alone) == {"loss", "accuracy"}
    assert history["val_loss"][-1] == pytest.approx(alone["loss"], rel=1e-5)
    assert history["loss"][-1] > alone["loss"] + 1.0


@pytest.mark.slow_on_jax
@backend
def test_a_continued_training_is_the_unbroken_one(
    batches: Callable[..., Any], tmp_path: Path
) -> None:
    def press() -> RankRegularization:
        return RankRegularization(ranks=2, strength=0.4, growth=2.0, growth_epochs=2, refresh=7)

    whole = _network()
    history = batches(whole, press())
    batches(begun := _network(), press(), epochs=3)
    begun.save(tmp_path / "begun.keras")
    again = keras.saving.load_model(tmp_path / "begun.keras")
    rest = batches(again, press(), initial_epoch=3)
    assert rest["rank_strength"] == history["rank_strength"][3:] == pytest.approx([0.8])
    for one, other in zip(whole.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_checkpoints_are_those_of_a_plain_model(
    batches: Callable[..., Any], tmp_path: Path
) -> None:
    def entries(path: Path) -> tuple[str, list[str], list[tuple[int, ...]]]:
        import h5py

        found: list[tuple[str, tuple[int, ...]]] = []
        with zipfile.ZipFile(path) as archive:
            archive.extract("model.weights.h5", tmp_path / path.stem)
            config = archive.read("config.json").decode()
        with h5py.File(tmp_path / path.stem / "model.weights.h5") as file:
            file.visititems(
                lambda name, item: (
                    found.append((name, item.shape)) if hasattr(item, "shape") else None
                )
            )
        return config, [name for name, _ in found], [shape for _, shape in found]

    plain, pressed = _network(), _network()
    keep = keras.callbacks.ModelCheckpoint(str(tmp_path / "during.keras"))
    batches(plain, epochs=1)
    batches(pressed, keep, RankRegularization(ranks=2, strength=0.4), epochs=1)
    plain.save(tmp_path / "plain.keras")
    pressed.save(tmp_path / "after.keras")
    expected = entries(tmp_path / "plain.keras")
    for name in ("during.keras", "after.keras"):
        config, *weights = entries(tmp_path / name)
        assert weights == list(expected[1:])
        # A file without a word of ours needs nothing of ours to be read.
        assert "dprp" not in config
        assert "rank" not in json.dumps(json.loads(config)["compile_config"])
    loaded = keras.saving.load_model(tmp_path / "during.keras")
    for one, other in zip(loaded.get_weights(), pressed.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert [w.path for w in plain.weights] == [w.path for w in pressed.weights]


@backend
def test_nothing_is_left_in_the_model(batches: Callable[..., Any]) -> None:
    model, plain = _network(), _network()
    batches(plain, epochs=1)
    press = RankRegularization(ranks=2, strength=0.4)
    for _ in range(2):  # a callback may be used again
        assert "rank_loss" in batches(model, press, epochs=1)
    assert set(vars(model)) == set(vars(plain))
    assert len(model.metrics) == len(plain.metrics)
    assert "compute_loss" not in vars(model)
    assert "fit" not in vars(model)
    model.set_weights(plain.get_weights())
    for each in (model, plain):
        each.compile("sgd", "sparse_categorical_crossentropy")
    history, expected = batches(model, epochs=1), batches(plain, epochs=1)
    assert "rank_loss" not in history
    assert history["loss"] == pytest.approx(expected["loss"], rel=1e-6)


class _Breaking(keras.callbacks.Callback):
    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if batch == 2:
            raise KeyboardInterrupt


@backend
def test_a_broken_off_training_leaves_nothing_to_the_next(batches: Callable[..., Any]) -> None:
    model = _network()
    press = RankRegularization(ranks=2, strength=50.0)
    with pytest.raises(KeyboardInterrupt):
        batches(model, press, _Breaking(), epochs=1)
    assert "compute_loss" in vars(model)
    history = batches(model, epochs=1)
    assert set(history) == {"loss", "accuracy"}
    assert "compute_loss" not in vars(model)
    assert "rank_loss" in batches(model, press, epochs=1)


def test_two_at_once_add_up() -> None:
    model = _one_layer(KERNEL)
    first = RankRegularization(ranks=1, strength=0.3, refresh=2)
    second = RankRegularization(ranks=1, strength=0.5, refresh=2)
    model.fit(X, Y, batch_size=2, epochs=1, verbose=0, callbacks=[first, second])
    expected, _ = _simulated(KERNEL, {0, 2, 4}, [0.8] * 5, rank=1)
    np.testing.assert_allclose(_array(model.get_layer("only").kernel), expected, atol=2e-6)
    assert "compute_loss" not in vars(model)


# --- which layers, which ranks ------------------------------------------------------------------


def _terms(model: keras.Model, **arguments: Any) -> list[tuple[tuple[int, int], Any]]:
    press = RankRegularization(**arguments)
    press.set_model(model)
    press.on_train_begin()
    assert press._loss is not None
    found = [(each.shape, each.regularizer) for each in press._loss.directions]
    press.on_train_end()
    return found


class _Plan:
    """What a rank plan has that matters here."""

    decomposition = "tucker"
    ranks: dict[str, Any] = {"second": (3, 4), "last": 5}  # noqa: RUF012


class _KeyedPlan:
    """A plan for one of two layers that share a name."""

    decomposition = "channel"

    def __init__(self, key: str) -> None:
        self.ranks = {key: 2}


def test_a_plan_means_layers_by_their_keys() -> None:
    inner = keras.Sequential([keras.Input((6,)), keras.layers.Dense(5, name="it")], name="inner")
    inputs = keras.Input((7,))
    model = keras.Model(inputs, inner(keras.layers.Dense(6, name="it")(inputs)))
    model.compile("sgd", "mse")
    assert [shape for shape, _ in _terms(model, ranks=_KeyedPlan("it"))] == [(6, 7)]
    assert [shape for shape, _ in _terms(model, ranks=_KeyedPlan("inner/it"))] == [(5, 6)]


def test_a_chosen_plan_brings_its_decomposition() -> None:
    plan = dprp.select_ranks(_network(True), method="uniform", budget=0.5, decomposition="channel")
    assert RankRegularization(ranks=plan).decomposition == "channel"


def test_ranks_by_layer_for_all_and_from_a_plan() -> None:
    model = _network(True)
    rank = ModifiedStableRank
    assert _terms(model, ranks={"second": 3, "last": 4}, decomposition="channel") == [
        ((8, 72), rank(3)),
        ((10, 32), rank(4)),
    ]
    # Rank 8 of the filters' 8 may keep all: there is nothing to press.
    assert _terms(model, ranks=8, decomposition="channel") == [((10, 32), rank(8))]
    assert _terms(model, ranks=_Plan()) == [
        ((8, 72), rank(3)),
        ((8, 72), rank(4)),
        ((10, 32), rank(5)),
    ]
    model.get_layer("second").trainable = False
    assert _terms(model, penalty="nuclear_norm", layers="first") == [((8, 9), NuclearNorm())]
    assert [shape for shape, _ in _terms(model, penalty=NuclearNorm())] == [(8, 9), (10, 32)]
    found = _terms(model, penalty=lambda r: TruncatedNuclearNorm(2 * r), ranks={"last": 3})
    assert found == [((10, 32), TruncatedNuclearNorm(6))]


def test_layers_of_nested_models_by_path_and_by_name() -> None:
    inner = keras.Sequential([keras.Input((6,)), keras.layers.Dense(5, name="it")], name="inner")
    outer = keras.Sequential([keras.Input((6,)), inner, keras.layers.Dense(4, name="it")])
    outer.compile("sgd", "mse")
    assert [s for s, _ in _terms(outer, ranks={"inner/it": 2})] == [(5, 6)]
    assert [s for s, _ in _terms(outer, ranks={"it": 2})] == [(5, 6), (4, 5)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"`ranks` must be given.*modified_stable_rank"),
        ({"penalty": ModifiedStableRank}, r"`ranks` must be given"),
        ({"penalty": "nuclear"}, r"`penalty`.*'nuclear'"),
        ({"penalty": None}, r"`penalty`.*None"),
        ({"ranks": 0}, r"`rank`.*rank=0"),
        ({"ranks": {"a": 2.5}}, r"`rank`.*2\.5"),
        ({"ranks": 2, "decomposition": "rows"}, r"`decomposition`.*'rows'"),
        ({"ranks": _Plan(), "decomposition": "channel"}, r"`decomposition`.*'tucker'.*'channel'"),
        ({"ranks": 2, "strength": -1.0}, r"`strength`.*-1\.0"),
        ({"ranks": 2, "strength": float("nan")}, r"`strength`.*nan"),
        ({"ranks": 2, "growth": 0.0}, r"`growth`.*0\.0"),
        ({"ranks": 2, "refresh": 0}, r"`refresh`.*0"),
        ({"ranks": 2, "growth_epochs": 1.5}, r"`growth_epochs`.*1\.5"),
        ({"ranks": 2, "columns": 0}, r"`columns`.*0"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RankRegularization(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ranks": {"third": 2}}, r"'third'.*'first', 'second', 'last'"),
        ({"ranks": {"flatten": 2}}, r"'flatten'.*no kernel"),
        ({"ranks": {"first": 2}, "layers": ["last"]}, r"Received none for 'last'"),
        ({"ranks": {"first": (2, 3)}}, r"1 ranks for layer 'first'.*\(2, 3\)"),
        ({"ranks": 99}, r"values to press.*99"),
        ({"penalty": lambda rank: rank, "ranks": 2}, r"`penalty` must return"),
    ],
)
def test_what_does_not_fit_the_model_is_named(arguments: dict[str, Any], message: str) -> None:
    model = _network(True)
    with pytest.raises(ValueError, match=message):
        _terms(model, **arguments)


def test_a_diverged_training_is_named() -> None:
    model = _one_layer(np.where(np.eye(6, 4) > 0, np.nan, KERNEL))
    with pytest.raises(ValueError, match=r"layer 'only'.*diverged"):
        model.fit(X, Y, verbose=0, callbacks=[RankRegularization(ranks=1)])


# --- large matrices -----------------------------------------------------------------------------


def test_the_first_vectors_of_a_large_matrix() -> None:
    # A spectrum that falls by the half: the randomized vectors are exact but for rounding.
    rng = np.random.default_rng(0)
    left, _ = np.linalg.qr(rng.standard_normal((600, 40)))
    right, _ = np.linalg.qr(rng.standard_normal((520, 40)))
    s = 0.5 ** np.arange(40)
    matrix = ((left * s) @ right.T).astype("float32")
    u, v = singular_vectors(matrix, 12)
    assert u.shape == (600, 12)
    assert v.shape == (520, 12)
    np.testing.assert_allclose(np.diag(u.T @ matrix.astype("float64") @ v), s[:12], atol=2e-6)
    np.testing.assert_allclose(u.T @ u, np.eye(12), atol=2e-6)


def test_a_large_layer_is_pressed_along_its_first_columns() -> None:
    keras.utils.set_random_seed(0)
    model = _one_layer(np.zeros((520, 530), "float32"))
    u, v = (np.linalg.qr(np.random.default_rng(1).standard_normal((n, 3)))[0] for n in (520, 530))
    kernel = ((u * (3.0, 2.0, 1.0)) @ v.T).astype("float32")
    model.get_layer("only").kernel.assign(kernel)
    press = RankRegularization(TruncatedNuclearNorm(1), strength=2.0, columns=8)
    history = model.fit(
        np.ones((4, 520)), np.zeros((4, 530)), batch_size=4, epochs=2, verbose=0, callbacks=[press]
    ).history
    s = np.linalg.svd(_array(model.get_layer("only").kernel), compute_uv=False)
    # Each of the two steps takes 0.2 off every value beyond the first.
    np.testing.assert_allclose(s[:3], [3.0, 1.6, 0.6], atol=1e-4)
    assert history["rank_loss"][0] == pytest.approx(3.0, abs=1e-3)
