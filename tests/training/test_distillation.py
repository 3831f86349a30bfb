"""Distillation, held against NumPy: what is added to a loss, for how long, and to what."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

import dprp_tf as dprp
from dprp_tf.data import Dataset
from dprp_tf.training.distilled_outputs import (
    class_distance,
    distilled_outputs,
    label_distance,
    output_spread,
)
from dprp_tf.training.on_device import fit_on_device
from dprp_tf.training.saving import load_model, save_model

backend = pytest.mark.backend

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
DATA = np.random.default_rng(4)
X = DATA.standard_normal((8, 5)).astype("float32")
CLASSES = np.arange(8) % 3
LABELS = (DATA.random((8, 3)) < 0.5).astype("float32")
VALUES = DATA.standard_normal((8, 3)).astype("float32")
# The teacher's columns are of another size each, and one is far from zero.
OFFSET = np.array([0.0, 3.0, 0.0])


# --- the truth, in float64 ------------------------------------------------------------------------


def _softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def _kl(z_t: np.ndarray, z_s: np.ndarray, T: float) -> float:
    p, q = _softmax(z_t / T), _softmax(z_s / T)
    return float(T**2 * (p * np.log(p / q)).sum(axis=-1).mean())


def _binary_kl(z_t: np.ndarray, z_s: np.ndarray, T: float) -> float:
    p, q = _sigmoid(z_t / T), _sigmoid(z_s / T)
    return float(T**2 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean())


def _spread(t: np.ndarray) -> float:
    rows = t.reshape(-1, t.shape[-1])
    return float(((rows - rows.mean(axis=0)) ** 2).mean())


def _slope(function: Callable[[np.ndarray], float], at: np.ndarray) -> np.ndarray:
    """Central differences."""
    slope = np.zeros_like(at)
    for index in np.ndindex(*at.shape):
        step = np.zeros_like(at)
        step[index] = 1e-5
        slope[index] = (function(at + step) - function(at - step)) / 2e-5
    return slope


@backend
@pytest.mark.parametrize("T", [1.0, 4.0])
@pytest.mark.parametrize(
    ("distance", "expected"), [(class_distance, _kl), (label_distance, _binary_kl)]
)
def test_a_distance_and_its_gradient(
    distance: Any, expected: Any, T: float, gradient: Any, rng: np.random.Generator
) -> None:
    teacher, student = rng.standard_normal((2, 4, 2, 3)) * 3
    found = float(distance(ops.convert_to_tensor(teacher), ops.convert_to_tensor(student), T))
    assert found == pytest.approx(expected(teacher, student, T), rel=1e-5)
    assert found > 0.1
    slope = gradient(lambda s: distance(ops.convert_to_tensor(teacher), s, T), student)
    difference = _slope(lambda s: expected(teacher, s, T), student)
    np.testing.assert_allclose(slope, difference, atol=1e-5)
    assert float(distance(ops.convert_to_tensor(teacher), ops.convert_to_tensor(teacher), T)) == (
        pytest.approx(0, abs=1e-6)
    )


@backend
def test_the_spread_of_values(rng: np.random.Generator) -> None:
    values = rng.standard_normal((6, 2, 3)) * [1, 10, 100] + [0, 50, 0]
    assert float(output_spread(ops.convert_to_tensor(values))) == pytest.approx(
        _spread(values), rel=1e-5
    )
    one = np.array([[3.0, 4.0]])  # a single vector has no variance
    assert float(output_spread(ops.convert_to_tensor(one))) == pytest.approx(12.5)
    same = np.full((4, 2), 3.0)
    assert float(output_spread(ops.convert_to_tensor(same))) == pytest.approx(9e-4)


# --- steps ----------------------------------------------------------------------------------------

# Output, loss, labels; the model's activation, the application's loss and D as functions of logits.
KINDS: dict[str, tuple[Any, Any, np.ndarray]] = {
    "logits": (None, LOGITS, CLASSES),
    "softmax": ("softmax", "sparse_categorical_crossentropy", CLASSES),
    "one-hot": ("softmax", "categorical_crossentropy", np.eye(3, dtype="float32")[CLASSES]),
    "sigmoid": ("sigmoid", "binary_crossentropy", LABELS),
    "labels": (None, keras.losses.BinaryCrossentropy(from_logits=True), LABELS),
    "values": (None, "mse", VALUES),
    "bounded values": ("sigmoid", "mse", LABELS),
}


def _application(kind: str, z: np.ndarray, y: np.ndarray) -> float:
    if "values" in kind:
        s = _sigmoid(z) if kind == "bounded values" else z
        return float(((s - y) ** 2).mean())
    if kind in ("sigmoid", "labels"):
        q = _sigmoid(z)
        return float(-(y * np.log(q) + (1 - y) * np.log(1 - q)).mean())
    rows = y if y.ndim > 1 else np.eye(3)[y]
    return float(-(rows * np.log(_softmax(z))).sum(axis=-1).mean())


def _taught(kind: str, z_t: np.ndarray, z_s: np.ndarray, T: float, spread: float) -> float:
    if "values" in kind:
        t, s = (_sigmoid(z) if kind == "bounded values" else z for z in (z_t, z_s))
        return float(((s - t) ** 2).mean() / spread)
    return (_binary_kl if kind in ("sigmoid", "labels") else _kl)(z_t, z_s, T)


def _one_layer(kernel: np.ndarray, activation: Any, decay: float = 0.0) -> keras.Model:
    inputs = keras.Input((5,))
    layer = keras.layers.Dense(
        3, activation=activation, name="only", kernel_regularizer=keras.regularizers.L2(decay)
    )
    model = keras.Model(inputs, layer(inputs))
    layer.set_weights([kernel, OFFSET])
    return model


STUDENT, TEACHER = DATA.standard_normal((2, 5, 3))
RATE, DECAY, WEIGHT, T = 0.1, 0.05, 0.7, 3.0


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[backend] if kind in ("softmax", "labels", "values") else [])
        for kind in KINDS
    ],
)
def test_steps_go_down_the_slope_of_the_loss_that_is_said(kind: str) -> None:
    _require_steps_as_simulated(kind)


@backend
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["softmax", "values"])
@pytest.mark.parametrize("compiling", [{"jit_compile": True}, {"run_eagerly": True}], ids=str)
def test_steps_compiled_by_xla_and_not_at_all(kind: str, compiling: dict[str, Any]) -> None:
    _require_steps_as_simulated(kind, **compiling)


def _require_steps_as_simulated(kind: str, **compiling: Any) -> None:
    """Two epochs of two steps with a regularizer of the weights, which keeps its full weight."""
    activation, loss, y = KINDS[kind]
    model = _one_layer(STUDENT, activation, DECAY)
    model.get_layer("only").bias.trainable = False
    teacher = _one_layer(TEACHER, activation)
    model.compile(keras.optimizers.SGD(RATE), loss, **compiling)
    teaching = dprp.Distillation(teacher, weight=WEIGHT, temperature=T)
    logs = model.fit(
        X, y, batch_size=4, epochs=2, shuffle=False, verbose=0, callbacks=[teaching]
    ).history

    w, seen = STUDENT.copy(), []
    for _ in range(2):
        spreads: list[float] = []
        for rows in (slice(0, 4), slice(4, 8)):
            x, z_t = X[rows].astype("float64"), X[rows].astype("float64") @ TEACHER + OFFSET
            spreads.append(_spread(_sigmoid(z_t) if kind == "bounded values" else z_t))

            def parts(w: np.ndarray, rows: slice = rows, x: Any = x, z_t: Any = z_t) -> Any:
                z = x @ w + OFFSET
                distance = _taught(kind, z_t, z, T, float(np.mean(spreads)))  # noqa: B023
                return _application(kind, z, y[rows]), distance

            def total(w: np.ndarray, parts: Any = parts) -> float:
                app, distance = parts(w)
                return (1 - WEIGHT) * app + WEIGHT * distance + DECAY * float((w**2).sum())

            seen.append((total(w), parts(w)[1]))
            w = w - RATE * _slope(total, w)
    found = np.asarray(ops.convert_to_numpy(model.get_layer("only").kernel))
    np.testing.assert_allclose(found, w, atol=3e-5)
    assert np.abs(w - STUDENT).max() > 0.02
    means = np.array(seen).reshape(2, 2, 2).mean(axis=1)
    np.testing.assert_allclose(logs["loss"], means[:, 0], rtol=2e-4)
    np.testing.assert_allclose(logs["distillation_loss"], means[:, 1], rtol=2e-4)


# --- what an output is ----------------------------------------------------------------------------


def _heads(**activations: Any) -> keras.Model:
    inputs = keras.Input((5,))
    heads = {
        name: keras.layers.Dense(3, activation, name=name)(inputs)
        for name, activation in activations.items()
    }
    return keras.Model(inputs, heads)


def test_each_output_is_what_it_is_compiled_for_or_ends_in() -> None:
    model = _heads(kind="softmax", box=None, flags="sigmoid", logits=None, spare=None)
    loss = {"kind": "mse", "box": "mae", "flags": lambda y, p: p, "logits": LOGITS}
    model.compile("sgd", loss, loss_weights={"box": 0.25, "kind": 2.0})
    found = {each.name: each for each in distilled_outputs(model, model)}
    # A call gives the outputs of a dict in the order of their names.
    assert list(found) == sorted(found)
    kinds = {name: (each.kind, each.weight) for name, each in found.items()}
    assert kinds == {
        "box": ("values", 0.25),
        "flags": ("labels", 1.0),
        "kind": ("classes", 2.0),
        "logits": ("classes", 1.0),
        "spare": ("values", 0.0),
    }
    probabilities = {name for name, each in found.items() if each.student_probabilities}
    assert probabilities == {"kind", "flags"}
    logits = _heads(kind=None, box=None, flags=None, logits="softmax", spare=None)
    other = {each.name: each.teacher_probabilities for each in distilled_outputs(model, logits)}
    assert [name for name, gives in other.items() if gives] == ["logits"]


@backend
def test_outputs_add_up_by_their_weights() -> None:
    model, teacher = (_heads(kind="softmax", box=None, spare=None) for _ in range(2))
    model.compile(
        keras.optimizers.SGD(0.0),
        {"kind": "sparse_categorical_crossentropy", "box": "mse"},
        loss_weights={"kind": 0.5, "box": 3.0},
    )
    logs = model.fit(
        X,
        {"kind": CLASSES, "box": VALUES},
        batch_size=8,
        verbose=0,
        callbacks=[dprp.Distillation(teacher, weight=1.0, temperature=2.0)],
    ).history
    ours, theirs = (
        {name: each.astype("float64") for name, each in net.predict(X, verbose=0).items()}
        for net in (model, teacher)
    )
    kind = _kl(np.log(theirs["kind"]), np.log(ours["kind"]), 2.0)
    box = float(((ours["box"] - theirs["box"]) ** 2).mean() / _spread(theirs["box"]))
    assert logs["distillation_loss"][0] == pytest.approx(0.5 * kind + 3.0 * box, rel=1e-4)
    # The labels count nothing where the teacher counts all.
    assert logs["loss"][0] == pytest.approx(logs["distillation_loss"][0], rel=1e-4)


# --- networks -------------------------------------------------------------------------------------


def _network(
    width: int = 6, seed: int = 1, name: str | None = None, dropout: float = 0.3
) -> keras.Model:
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((5,))
    x = keras.layers.Dense(width, name="first")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.ReLU(name="between")(x)
    x = keras.layers.Dropout(dropout, name="drop")(x)
    return keras.Model(inputs, keras.layers.Dense(3, name="head")(x), name=name)


def _data(samples: int = 24) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    return rng.standard_normal((samples, 5)).astype("float32"), np.arange(samples) % 3


def _values(model: keras.Model) -> list[np.ndarray]:
    variables = [*model.weights, *model.optimizer.variables]
    return [np.array(ops.convert_to_numpy(variable)) for variable in variables]


def _require_equal(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


TEACHES = {"weight": 0.8, "temperature": 2.0}


@backend
def test_features_are_those_of_the_step_itself() -> None:
    model, teacher = _network(dropout=0.0), _network(seed=3)
    model.compile(keras.optimizers.SGD(0.0), LOGITS)
    x, y = _data(8)
    teaching = dprp.Distillation(teacher, features=["first", "norm"], feature_weight=2.0, **TEACHES)
    logs = model.fit(x, y, batch_size=8, verbose=0, callbacks=[teaching]).history

    def both(net: keras.Model, training: bool) -> list[np.ndarray]:
        first = x @ net.get_layer("first").get_weights()[0].astype("float64")
        gamma, beta, mean, variance = net.get_layer("norm").get_weights()
        if training:  # a teacher never trains: its statistics are those it has
            mean, variance = first.mean(axis=0), first.var(axis=0)
        return [first, gamma * (first - mean) / np.sqrt(variance + 1e-3) + beta]

    pairs = list(zip(both(model, True), both(teacher, False), strict=True))
    expected = np.mean([((s - t) ** 2).mean() / _spread(t) for s, t in pairs])
    without = _network(dropout=0.0)
    without.compile(keras.optimizers.SGD(0.0), LOGITS)
    teaching = dprp.Distillation(teacher, **TEACHES)
    of_logits = without.fit(x, y, batch_size=8, verbose=0, callbacks=[teaching]).history
    added = logs["distillation_loss"][0] - of_logits["distillation_loss"][0]
    assert added == pytest.approx(2.0 * expected, rel=1e-4)
    assert expected > 0.1


@backend
def test_nothing_of_it_stays(tmp_path: Path) -> None:
    model, teacher = _network(), _network(seed=3)
    model.compile("sgd", LOGITS)
    before, taught = set(vars(model)), teacher.get_weights()
    seen: dict[str, Any] = {}

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
            seen["weights"] = len(self.model.weights)
            seen["trained"] = len(self.model.trainable_variables)
            save_model(self.model, tmp_path / "within.keras")

    teaching = dprp.Distillation(teacher, features=["between"], **TEACHES)
    model.fit(*_data(), batch_size=8, epochs=2, verbose=0, callbacks=[teaching, Look()])
    assert seen == {"weights": len(model.weights), "trained": 6}
    _require_equal(teacher.get_weights(), taught)
    # Of Keras' own there is more in a model that has trained.
    assert {name for name in set(vars(model)) - before if name[0] != "_"} <= {"history"}
    assert not any("call" in vars(layer) for layer in (*model.layers, *teacher.layers))
    assert len(model.metrics) == 1
    save_model(model, tmp_path / "after.keras")
    plain = _network()
    plain.compile("sgd", LOGITS)
    plain.fit(*_data(), batch_size=8, verbose=0)
    save_model(plain, tmp_path / "plain.keras")
    sizes = []
    for name in ("within", "after", "plain"):
        with zipfile.ZipFile(tmp_path / f"{name}.keras") as file:
            assert b"istill" not in file.read("config.json")
            sizes.append(file.getinfo("model.weights.h5").file_size)
    assert len(set(sizes)) == 1
    assert len(load_model(tmp_path / "within.keras").weights) == len(model.weights)
    # It trains on as if there had never been a teacher.
    logs = model.fit(*_data(), batch_size=8, verbose=0).history
    assert list(logs) == ["loss"]


def test_a_weight_of_0_trains_without_it_to_the_last_bit() -> None:
    trained, logs = [], []
    for teacher in (None, dprp.Distillation(_network(seed=3), weight=0)):
        model = _network()
        tuning = dprp.FineTuning(epochs=2, learning_rate=0.05, batch_size=8, teacher=teacher)
        logs.append(tuning.fit(model, _data()))
        trained.append(_values(model))
    _require_equal(*trained)
    assert logs[0] == logs[1]


def test_a_fine_tuning_comes_nearer_to_its_teacher() -> None:
    x, y = _data(64)
    teacher = _network(seed=3)
    y = teacher.predict(x, verbose=0).argmax(axis=-1)
    wrong = (y + 1) % 3  # what the labels say is another thing
    settings = {"epochs": 6, "learning_rate": 0.05, "batch_size": 8}
    agreement = {}
    for name, taught in (("alone", None), ("taught", dprp.Distillation(teacher, weight=0.95))):
        model = _network()
        dprp.FineTuning(**settings, teacher=taught).fit(model, (x, wrong))
        agreement[name] = float((model.predict(x, verbose=0).argmax(axis=-1) == y).mean())
    assert agreement["taught"] > agreement["alone"] + 0.3


def test_a_model_that_is_taught_by_its_equal_stays() -> None:
    # Without dropout and at weight 1 there is nothing to learn from one's own outputs.
    model = _one_layer(STUDENT, "softmax")
    teacher = _one_layer(STUDENT, "softmax")
    dprp.FineTuning(
        epochs=2, loss="sparse_categorical_crossentropy", teacher=dprp.Distillation(teacher, 1.0)
    ).fit(model, (X, CLASSES))
    np.testing.assert_allclose(model.get_weights()[0], STUDENT, atol=1e-5)


@pytest.mark.parametrize("features", [(), ("between",)], ids=["outputs", "features"])
def test_an_interrupted_one_ends_bit_for_bit_as_one_that_was_not(
    features: tuple[str, ...], tmp_path: Path
) -> None:
    class Interrupt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
            if epoch == 1:
                raise KeyboardInterrupt

    def tuning(seed: int = 3) -> dprp.FineTuning:
        # Made anew, as in another process: what a folder knows a teacher by are its weights.
        taught = dprp.Distillation(_network(seed=seed), features=features)
        return dprp.FineTuning(epochs=3, learning_rate=0.05, batch_size=8, teacher=taught)

    whole = _network()
    expected = tuning().fit(whole, _data())
    stopped = _network()
    with pytest.raises(KeyboardInterrupt):
        tuning().fit(stopped, _data(), callbacks=[Interrupt()], folder=tmp_path)
    assert "compute_loss" not in vars(stopped)
    assert not any("call" in vars(layer) for layer in stopped.layers)
    resumed = _network()
    with pytest.raises(ValueError, match="must hold a tuning of the same settings"):
        tuning(seed=4).fit(resumed, _data(), folder=tmp_path)
    assert tuning().fit(resumed, _data(), folder=tmp_path) == expected
    _require_equal(_values(resumed), _values(whole))


def test_without_a_teacher_a_tuning_tells_of_none() -> None:
    text = dprp.FineTuning(epochs=2).identity
    assert text == (
        "FineTuning(epochs=2, optimizer=None, learning_rate=None, schedule='cosine', "
        "batch_size=None, momentum=0.9, weight_decay=0.0, augment=True, loss=None, metrics=None, "
        "seed=0)"
    )
    taught = dprp.FineTuning(epochs=2, teacher=_network())
    assert taught.identity.startswith(text[:-1] + ", teacher=Distillation(teacher=")
    assert taught.identity == dprp.FineTuning(epochs=2, teacher=_network()).identity


# --- falling ranks --------------------------------------------------------------------------------


def _pressed(teacher: keras.Model, model_class: Any = None, **settings: Any) -> dprp.DPRPModel:
    chosen = dprp.DPRPSettings(compression_weight=0.5, threshold=0.2, **settings)
    lowrank = dprp.factorize(teacher, settings=chosen, model_class=model_class)
    lowrank.compile(keras.optimizers.SGD(0.05, momentum=0.9), LOGITS)
    return lowrank


def test_ranks_fall_within_a_fit_that_has_a_teacher() -> None:
    _require_falling_ranks("retraction")


@backend
@pytest.mark.slow
@pytest.mark.parametrize("structure", ["retraction", "smoothed"])
def test_ranks_fall_with_a_teacher_on_each_backend(structure: str) -> None:
    _require_falling_ranks(structure)


def _require_falling_ranks(structure: str) -> None:
    teacher = _network(12)
    lowrank, x, y = _pressed(teacher, structure=structure), *_data()
    full = sum(lowrank.ranks.values())
    taught = teacher.get_weights()
    teaching = dprp.Distillation(teacher, features=["first"])
    logs = lowrank.fit(
        x,
        y,
        batch_size=8,
        epochs=3,
        verbose=0,
        validation_data=(x, y),
        callbacks=[dprp.RankPruning(discarded_energy=0.1, stop_epoch=2), teaching],
    ).history
    assert logs["total_rank"][0] < full
    assert logs["total_rank"][-1] == sum(lowrank.ranks.values())
    assert np.isfinite(logs["distillation_loss"]).all()
    assert not [name for name in logs if name.startswith("val_") and "distill" in name]
    _require_equal(teacher.get_weights(), taught)
    assert not {"compute_loss", "fit"} & set(vars(lowrank))


def test_the_terms_of_dprp_keep_their_weight() -> None:
    _require_weights_of_terms(True, "paper")


@backend
@pytest.mark.slow
@pytest.mark.parametrize("own_class", [False, True], ids=["as it is", "a class of one's own"])
@pytest.mark.parametrize("structure", ["retraction", "smoothed"])
def test_the_terms_of_dprp_on_each_backend(own_class: bool, structure: str) -> None:
    _require_weights_of_terms(own_class, structure)


def _require_weights_of_terms(own_class: bool, structure: str) -> None:
    class Offset(dprp.DPRPModel):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            return 10.0 + super().compute_loss(*args, **kwargs)

    teacher, x, y = _network(), *_data(8)
    lowrank = _pressed(_network(seed=3), Offset if own_class else None, structure=structure)
    lowrank.get_layer("drop").rate = 0.0
    lowrank.compile(keras.optimizers.SGD(0.0), LOGITS)
    teaching = dprp.Distillation(teacher, **TEACHES)
    logs = lowrank.fit(x, y, batch_size=8, verbose=0, callbacks=[teaching]).history
    found = {name: values[0] for name, values in logs.items()}
    settings = lowrank.settings
    structural = settings.compression_weight * found["comp_loss"]
    if structure != "retraction":
        structural += settings.orthogonality_weight * found["orth_loss"] + found["sort_loss"]
        assert structure == "smoothed" or settings.orthogonality_weight * found["orth_loss"] > 1e-4
    # The application's loss is told as it is, whatever share of it is trained.
    alone = lowrank.fit(x, y, batch_size=8, verbose=0).history
    assert found["app_loss"] == pytest.approx(alone["app_loss"][0], rel=1e-3)
    expected = 0.2 * found["app_loss"] + 0.8 * found["distillation_loss"] + structural
    assert found["loss"] == pytest.approx(expected, rel=1e-4)
    assert found["distillation_loss"] > 0.1


@pytest.mark.slow
def test_a_model_that_holds_the_network_is_taught_as_a_whole() -> None:
    class Twice(keras.Model):
        def __init__(self, network: keras.Model) -> None:
            super().__init__()
            self.network = network

        def call(self, x: Any, training: bool = False) -> Any:
            return 2.0 * self.network(x, training=training)

    teacher = _network(12)
    lowrank, (x, y) = _pressed(teacher), _data()
    trainer = Twice(lowrank)
    trainer.compile(keras.optimizers.SGD(0.05), LOGITS)
    pruning = dprp.RankPruning(discarded_energy=0.1)
    teaching = dprp.Distillation(teacher, **TEACHES)
    logs = trainer.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[pruning, teaching])
    found = logs.history
    assert found["total_rank"][-1] < 8
    for total, distance in zip(found["loss"], found["distillation_loss"], strict=True):
        assert total > 0.8 * distance


# --- precision, backends, replicas ----------------------------------------------------------------


@backend
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_in_mixed_precision_it_counts_in_float32(policy: str) -> None:
    made = []
    for name in (policy, "float32"):
        keras.utils.set_random_seed(1)
        inputs = keras.Input((5,))
        outputs = keras.layers.Dense(3, "softmax", dtype=name, name="only")(inputs)
        made.append(keras.Model(inputs, outputs))
    student, teacher = made
    student.get_layer("only").set_weights([STUDENT, OFFSET])
    teacher.get_layer("only").set_weights([TEACHER, OFFSET])
    student.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
    # At this temperature T^2 KL is far out of float16's range, were it not for float32.
    teaching = dprp.Distillation(teacher, weight=1.0, temperature=300.0)
    logs = student.fit(X, CLASSES, batch_size=8, verbose=0, callbacks=[teaching]).history
    z_t, z_s = (X.astype("float64") @ w + OFFSET for w in (TEACHER, STUDENT))
    assert logs["distillation_loss"][0] == pytest.approx(_kl(z_t, z_s, 300.0), rel=5e-2)


_REPLICAS = """
import sys
import numpy as np
from dprp_tf.training.distribution import distribution
place = distribution(sys.argv[1])
import keras
import dprp_tf as dprp

def network(seed):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((5,))
    x = keras.layers.Dense(8, name="first")(inputs)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization(name="norm", synchronized=True)(x))
    heads = {"box": keras.layers.Dense(4, name="box")(x),
             "kind": keras.layers.Dense(3, "softmax", name="kind")(x)}
    return keras.Model(inputs, heads)

rng = np.random.default_rng(0)
x = rng.standard_normal((64, 5)).astype("float32")
x[::2] += 3.0  # what two replicas share is not alike
y = {"box": rng.standard_normal((64, 4)), "kind": rng.integers(0, 3, 64)}
teacher = network(3)
with place.scope():
    model = dprp.factorize(network(1), settings=dprp.DPRPSettings(compression_weight=0.5))
    model.compile(keras.optimizers.SGD(0.02),
                  {"box": "mse", "kind": "sparse_categorical_crossentropy"})
pruning = dprp.RankPruning(discarded_energy=0.05)
teaching = dprp.Distillation(teacher, weight=0.6, features=["first", "norm"])
logs = model.fit(x, y, batch_size=16, epochs=3, shuffle=False, verbose=0,
                 callbacks=[pruning, teaching]).history
kernels = [np.asarray(layer.kernel) for layer in model.low_rank_layers]
np.savez(sys.argv[2], *kernels, ranks=logs["total_rank"], loss=logs["loss"],
         distance=logs["distillation_loss"], replicas=place.replicas)
"""


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="two halves of a processor")
def test_two_replicas_train_what_one_device_does(tmp_path: Path) -> None:
    found = []
    for place in ("none", "mirrored:2"):
        path = tmp_path / f"{place[:4]}.npz"
        command = [sys.executable, "-c", _REPLICAS, place, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
        found.append(dict(np.load(path)))
    one, two = found
    assert (int(one.pop("replicas")), int(two.pop("replicas"))) == (1, 2)
    assert one["ranks"][-1] < 12
    for name, values in one.items():
        np.testing.assert_allclose(two[name], values, rtol=1e-3, atol=1e-4, err_msg=name)


@backend
@pytest.mark.slow
def test_data_on_the_device(small_digits: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = small_digits
    dataset = Dataset("few", x[:96], y[:96], x[96:128], y[96:128], tuple("0123456789"))
    inputs = keras.Input((8, 8, 1))
    hidden = keras.layers.Dense(16, "relu", name="hidden")(keras.layers.Flatten()(inputs))
    teacher = keras.Model(inputs, keras.layers.Dense(10, name="head")(hidden))
    lowrank = _pressed(teacher)
    pruning = dprp.RankPruning(discarded_energy=0.1)
    logs = fit_on_device(
        lowrank,
        dataset,
        batch_size=32,
        epochs=2,
        steps_per_dispatch=2,
        callbacks=[pruning, dprp.Distillation(teacher, features=["hidden"])],
    ).history
    assert logs["total_rank"][-1] < 26
    assert all(value > 0 for value in logs["distillation_loss"])


# --- whole ways -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_bsr_tunes_what_it_cut_towards_the_dense_model() -> None:
    x, y = _data()
    teacher = _network(12)
    short = dprp.FineTuning(epochs=1)
    found = dprp.bsr(
        teacher,
        budget=dprp.Budget(parameters=0.7, tolerance=0.2),
        data=(x, y),
        training_data=(x, y),
        regularized=short,
        tuning=dprp.FineTuning(epochs=1, teacher=teacher),
    )
    assert "distillation_loss" in found.tuned[0]
    assert "distillation_loss" not in found.regularized[0]
    # Beside the pressure on the singular values the teacher has its share, too.
    found = dprp.bsr(
        teacher,
        budget=dprp.Budget(parameters=0.7, tolerance=0.2),
        data=(x, y),
        training_data=(x, y),
        strength=0.3,
        regularized=dprp.FineTuning(epochs=1, teacher=dprp.Distillation(teacher, weight=1.0)),
        tuning=short,
    )
    logs = found.regularized[0]
    expected = logs["distillation_loss"] + 0.3 * logs["rank_loss"]
    assert logs["loss"] == pytest.approx(expected, rel=1e-4)


# --- errors ---------------------------------------------------------------------------------------


def _sequential(outputs: int = 3, inputs: int = 5) -> keras.Model:
    return keras.Sequential([keras.Input((inputs,)), keras.layers.Dense(outputs)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"teacher": "dense"}, "`teacher` must be a built Keras model.*Received: str, which is no"),
        ({"teacher": keras.Sequential([keras.layers.Dense(2)])}, "Sequential, which is not built"),
        ({"weight": 1.5}, "`weight` must be .*0.* 1.*Received: weight=1.5"),
        ({"temperature": 0}, "`temperature` must be .*above 0.*Received: temperature=0"),
        ({"feature_weight": -1}, "`feature_weight` must be .*Received: feature_weight=-1"),
        ({"features": "fist"}, r"must name layers of the teacher: .*'first'.*Received: \['fist'\]"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dprp.Distillation(**{"teacher": _network(), **arguments})


def test_a_teacher_that_diverged() -> None:
    teacher = _network()
    teacher.get_layer("head").bias.assign([0.0, np.nan, 0.0])
    with pytest.raises(ValueError, match=r"must have finite weights.*`bias` of layer 'head'"):
        dprp.FineTuning(teacher=teacher)


@pytest.mark.parametrize(
    ("teacher", "features", "message"),
    [
        (
            _sequential(4),
            (),
            r"must give what the model 'mine' gives, \[\(None, 3\)\].*None, 4\)\]",
        ),
        (_sequential(3, 7), (), r"must take what the model 'mine' takes, .*5\)\].*None, 7\)\]"),
        (_network(4), ["first"], r"`features` must name layers that give one tensor .*'first'"),
        (_heads(a=None, b=None), (), r"gives, \[\(None, 3\)\].*\[\(None, 3\), \(None, 3\)\]"),
    ],
    ids=["outputs", "inputs", "features", "number"],
)
@pytest.mark.parametrize("compiled", [False, True])
def test_a_teacher_of_another_kind_is_refused_before_anything_is_done(
    teacher: keras.Model, features: Any, message: str, compiled: bool
) -> None:
    model = _network(name="mine")
    if compiled:
        model.compile("adam", LOGITS)
    before, weights = dict(vars(model)), model.get_weights()
    taught = dprp.Distillation(teacher, features=features)
    with pytest.raises(ValueError, match=message):
        dprp.FineTuning(epochs=1, teacher=taught).fit(model, _data())
    assert vars(model) == before
    _require_equal(model.get_weights(), weights)
    assert model.compiled is compiled


@backend
def test_a_fit_of_ones_own_refuses_it_as_well() -> None:
    model = _network()
    model.compile("adam", LOGITS)
    weights = model.get_weights()
    for callbacks, message in (
        ([dprp.Distillation(_sequential(4))], "`teacher` must give"),
        ([dprp.Distillation(model)], "must be a model with weights of its own"),
        ([dprp.Distillation(_network(seed=seed)) for seed in (3, 4)], "one `Distillation` at most"),
    ):
        with pytest.raises(ValueError, match=message):
            model.fit(*_data(), verbose=0, callbacks=callbacks)
        _require_equal(model.get_weights(), weights)
    assert list(model.fit(*_data(), verbose=0).history) == ["loss"]


class _Subclassed(keras.Model):
    """A model that says nothing of what it gives before it is called."""

    def __init__(self, outputs: int) -> None:
        super().__init__(name="mine")
        self.dense = keras.layers.Dense(outputs)

    def call(self, x: Any) -> Any:
        return self.dense(x)


@backend
def test_a_model_without_a_graph_is_refused_in_its_first_step_and_keeps_its_weights() -> None:
    model = _Subclassed(3)
    model(X)
    model.compile("adam", LOGITS)
    weights = model.get_weights()
    with pytest.raises(ValueError, match=r"`teacher` must give what the model 'mine' gives"):
        model.fit(*_data(), verbose=0, callbacks=[dprp.Distillation(_sequential(4))])
    _require_equal(model.get_weights(), weights)
    logs = model.fit(*_data(), verbose=0, callbacks=[dprp.Distillation(_sequential(3))]).history
    assert logs["distillation_loss"][0] > 0
    # And one without a graph may teach.
    student = _sequential()
    student.compile("adam", LOGITS)
    logs = student.fit(*_data(), verbose=0, callbacks=[dprp.Distillation(model)]).history
    assert logs["distillation_loss"][0] > 0
    model.compile("adam", LOGITS)
    other = _Subclassed(3)
    other(X)
    with pytest.raises(ValueError, match="Functional or Sequential model where the student is non"):
        model.fit(*_data(), verbose=0, callbacks=[dprp.Distillation(other)])


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="writes TensorFlow's step")
def test_a_step_without_compute_loss_is_refused() -> None:
    import tensorflow as tf

    class Own(keras.Model):
        def train_step(self, data: Any) -> Any:
            x, y = data
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(LOGITS(y, self(x, training=True)))
            variables = self.trainable_variables
            self.optimizer.apply_gradients(
                zip(tape.gradient(loss, variables), variables, strict=True)
            )
            return {"loss": loss}

    inputs = keras.Input((5,))
    model = Own(inputs, keras.layers.Dense(3)(inputs))
    model.compile("sgd")
    with pytest.raises(ValueError, match="must get its loss from compute_loss"):
        model.fit(*_data(), batch_size=8, verbose=0, callbacks=[dprp.Distillation(_sequential())])
