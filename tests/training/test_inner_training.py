"""Models that hold a low-rank network and train it in their own way: with all its losses."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import dprp_tf as dprp
from dprp_tf.costs.latency_row import LayerLatency

pytestmark = pytest.mark.backend
FULL = 8 + 3
ON_JAX = keras.backend.backend() == "jax"


def _np(value: Any) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(value))


def _data(samples: int = 24) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((samples, 6, 6, 2)).astype("float32")
    return x, rng.standard_normal((samples, 3)).astype("float32")


def _dense(name: str | None = None) -> keras.Model:
    keras.utils.set_random_seed(6)
    inputs = keras.Input((6, 6, 2))
    x = layers.Flatten()(layers.Conv2D(4, 3, name="conv", activation="tanh")(inputs))
    return keras.Model(inputs, layers.Dense(3, name="head")(x), name=name)


def _low(name: str = "net", **settings: Any) -> dprp.DPRPModel:
    options = {"compression_weight": 0.3, "threshold": 0.2, **settings}
    return dprp.factorize(_dense(name), settings=dprp.DPRPSettings(**options))


def _momentum() -> keras.optimizers.Optimizer:
    return keras.optimizers.SGD(0.05, momentum=0.9)


class Trainer(keras.Model):
    def __init__(self, network: keras.Model) -> None:
        super().__init__()
        self.network = network

    def call(self, x: Any) -> Any:
        return self.network(x)


class Siamese(Trainer):
    """Calls its network twice, and has a loss and metrics of its own, arguments renamed."""

    def __init__(self, network: keras.Model) -> None:
        super().__init__(network)
        self.mean = keras.metrics.Mean(name="distance")

    def call(self, x: Any) -> Any:
        return self.network(x), self.network(-x)

    def compute_loss(self, images: Any, _: Any, outputs: Any, weights: Any) -> Any:
        loss = ops.mean(ops.square(outputs[0] - outputs[1] - 1.0))
        self.mean.update_state(loss)
        return loss


def _fit(model: keras.Model, *callbacks: Any, **options: Any) -> dict[str, list[float]]:
    x, y = _data()
    options = {"epochs": 2, "batch_size": 8, "shuffle": False, "verbose": 0, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return model.fit(x, y, callbacks=list(callbacks), **options).history


def _factors(network: dprp.DPRPModel) -> list[np.ndarray]:
    return [_np(variable).copy() for variable in network.trainable_variables]


def _orthonormal(network: dprp.DPRPModel) -> bool:
    grams = [(_np(q).T @ _np(q)) for at in network.low_rank_layers for q in (at.u, at.v)]
    return all(np.abs(gram - np.eye(len(gram))).max() < 1e-3 for gram in grams)


SETTINGS = [
    pytest.param({"retraction_period": 1}, marks=pytest.mark.slow),
    {"retraction_period": 2},
    {"structure": "smoothed", "orthogonality_weight": 2.0},
]


@pytest.mark.slow_on_jax
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
def test_a_network_in_a_trainer_trains_as_by_itself(settings: dict[str, Any]) -> None:
    twin, held = _low(**settings), _low(**settings)
    trainer = Trainer(held)
    twin.compile(_momentum(), loss="mse")
    trainer.compile(_momentum(), loss="mse")
    x, y = _data()
    ours = _fit(twin, validation_data=(x, y))
    theirs = _fit(trainer, dprp.InnerTraining(), validation_data=(x, y))
    for mine, other in zip(_factors(held), _factors(twin), strict=True):
        np.testing.assert_allclose(mine, other, atol=2e-5)
    assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-4)
    expected = np.subtract(ours["loss"], ours["app_loss"])
    np.testing.assert_allclose(theirs["structural_loss"], expected, rtol=1e-2)
    # Validation has no such terms, there and here.
    assert theirs["val_loss"] == pytest.approx(ours["val_loss"], rel=1e-4)
    assert "val_structural_loss" not in theirs


@pytest.mark.slow
def test_ranks_fall_in_a_trainer_as_by_themselves() -> None:
    twin, held = _low(compression_weight=2.0), _low(compression_weight=2.0)
    trainer = Trainer(held)
    twin.compile(_momentum(), loss="mse")
    trainer.compile(_momentum(), loss="mse")
    x, y = _data()
    histories = [dprp.RankHistory(), dprp.RankHistory()]
    ours = _fit(twin, dprp.RankPruning(), histories[0], epochs=3, validation_data=(x, y))
    pruning = dprp.RankPruning()
    theirs = _fit(trainer, pruning, histories[1], epochs=3, validation_data=(x, y))
    assert held.ranks == twin.ranks
    assert sum(held.ranks.values()) < FULL
    for mine, other in zip(_factors(held), _factors(twin), strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-4)
    for name in ("total_rank", "parameters"):
        assert theirs[name] == ours[name]
    assert theirs["val_loss"] == pytest.approx(ours["val_loss"], rel=1e-3)
    records = [[entry["ranks"] for entry in h.record["epochs"]] for h in histories]
    assert records[0] == records[1]
    # Nothing of it is left.
    assert "train_step" not in vars(trainer)
    assert "compute_loss" not in vars(trainer)
    held.compile(_momentum(), loss="mse")
    assert np.isfinite(_fit(held, epochs=1)["loss"][0])


@pytest.mark.slow
def test_a_network_compiled_by_itself_predicts_with_the_ranks_of_its_trainer() -> None:
    held = _low(compression_weight=2.0)
    held.compile(_momentum(), loss="mse")
    x, _ = _data()
    _fit(held, epochs=1)
    held.predict(x, verbose=0)
    trainer = Trainer(held)
    trainer.compile(_momentum(), loss="mse")
    _fit(trainer, dprp.RankPruning(), epochs=3)
    assert sum(held.ranks.values()) < FULL
    np.testing.assert_allclose(held.predict(x, verbose=0), _np(held(x)), atol=1e-5)
    assert np.isfinite(_fit(held, epochs=1)["loss"][0])


@pytest.mark.slow_on_jax
def test_the_terms_count_once_however_often_the_network_is_called() -> None:
    held = _low(compression_weight=0.7)
    trainer = Siamese(held)
    trainer.compile(keras.optimizers.SGD(0.0))
    x, _ = _data()
    logs = _fit(trainer, dprp.InnerTraining(), epochs=1)
    comp = 0.7 * float(_np(held.structural_losses()["comp"]))
    own = float(np.mean((_np(held(x)) - _np(held(-x)) - 1.0) ** 2))
    assert logs["structural_loss"][0] == pytest.approx(comp, rel=1e-4)
    assert logs["loss"][0] == pytest.approx(own + comp, rel=1e-4)
    assert logs["distance"][0] == pytest.approx(own, rel=1e-4)


def test_the_distiller_of_keras_trains_a_low_rank_student() -> None:
    student, teacher = _low("student", compression_weight=2.0), _dense("teacher")
    distiller = keras.distillation.Distiller(
        teacher, student, keras.distillation.LogitsDistillation(temperature=2.0)
    )
    distiller.compile(keras.optimizers.SGD(0.0), loss="mse")
    logs = _fit(distiller, dprp.InnerTraining(), epochs=1)
    comp = 2.0 * float(_np(student.structural_losses()["comp"]))
    assert logs["loss"][0] - logs["total_loss"][0] == pytest.approx(comp, rel=1e-3)
    distiller.compile(_momentum(), loss="mse")
    logs = _fit(distiller, dprp.RankPruning(), epochs=3)
    assert logs["total_rank"][-1] == sum(student.ranks.values()) < FULL
    assert logs["student_loss"][-1] > 0
    assert _orthonormal(student)


def test_a_network_as_a_layer_of_a_functional_model_is_found() -> None:
    held = _low()
    inputs = keras.Input((6, 6, 2))
    outer = keras.Model(inputs, layers.Dense(3, name="after")(held(inputs)))
    outer.compile(_momentum(), loss="mse")
    logs = _fit(outer, dprp.RankPruning(), epochs=1)
    assert logs["structural_loss"][0] > 0
    assert _orthonormal(held)


# --- a step of its own ---------------------------------------------------------------------------


class OwnStep(Trainer):
    """Trains without `compute_loss`, as many examples for Keras do."""

    told = False

    def _loss(self, x: Any, y: Any) -> Any:
        loss = ops.mean(ops.square(self.network(x, training=True) - y))
        return loss + self.network.structural_loss() if self.told else loss

    if ON_JAX:

        def train_step(self, state: Any, data: Any) -> Any:
            import jax

            trainable, others, slots, metrics = state

            def loss_of(values: Any) -> Any:
                mapping = list(zip(self.trainable_variables, values, strict=True))
                with keras.StatelessScope(state_mapping=mapping):
                    return self._loss(*data)

            loss, gradients = jax.value_and_grad(loss_of)(trainable)
            trainable, slots = self.optimizer.stateless_apply(slots, gradients, trainable)
            return {"loss": loss}, (trainable, others, slots, metrics)

    else:

        def train_step(self, data: Any) -> Any:
            import tensorflow as tf

            with tf.GradientTape() as tape:
                loss = self._loss(*data)
            weights = self.trainable_weights
            gradients = tape.gradient(loss, weights)
            self.optimizer.apply_gradients(zip(gradients, weights, strict=True))
            return {"loss": loss}


def test_a_step_that_leaves_the_terms_out_is_refused_before_it_trains() -> None:
    held = _low()
    trainer = OwnStep(held)
    trainer.compile(_momentum())
    before = _factors(held)
    with pytest.raises(ValueError, match=r"structural terms.*net.structural_loss\(\)"):
        _fit(trainer, dprp.RankPruning())
    for mine, other in zip(_factors(held), before, strict=True):
        np.testing.assert_array_equal(mine, other)
    # Without pressure there is nothing to add, and the retraction is done all the same.
    free = OwnStep(_low(compression=None))
    free.compile(_momentum())
    _fit(free, dprp.InnerTraining())
    assert _orthonormal(free.network)


def test_a_step_that_adds_the_terms_itself_trains_as_the_network_by_itself() -> None:
    twin, held = _low(), _low()
    trainer = OwnStep(held)
    trainer.told = True
    twin.compile(_momentum(), loss="mse")
    trainer.compile(_momentum())
    _fit(twin)
    _fit(trainer, dprp.InnerTraining())
    for mine, other in zip(_factors(held), _factors(twin), strict=True):
        np.testing.assert_allclose(mine, other, atol=2e-5)


class OwnOptimizer(OwnStep):
    """Keeps its optimizer out of Keras' sight, as a GAN keeps its two."""

    told = True

    def compile(self, own: Any) -> None:
        super().compile()
        self.own, self.optimizer = own, None

    def train_step(self, data: Any) -> Any:
        self.optimizer = self.own
        try:
            return super().train_step(data)
        finally:
            self.optimizer = None


@pytest.mark.skipif(ON_JAX, reason="a step of JAX trains with the compiled optimizer alone")
def test_an_optimizer_in_an_attribute_is_found() -> None:
    twin, held = _low(compression_weight=2.0), _low(compression_weight=2.0)
    trainer = OwnOptimizer(held)
    twin.compile(_momentum(), loss="mse")
    trainer.compile(_momentum())
    _fit(twin, dprp.RankPruning(), epochs=3)
    _fit(trainer, dprp.RankPruning(), epochs=3)
    assert held.ranks == twin.ranks
    for mine, other in zip(_factors(held), _factors(twin), strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-4)


# --- nothing in silence --------------------------------------------------------------------------


def _warnings(train: Callable[[], Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train()
    return [str(w.message) for w in caught if "outside of its own fit" in str(w.message)]


def _plain_fit(model: keras.Model, **options: Any) -> Any:
    x, y = _data()
    return model.fit(x, y, batch_size=8, verbose=0, **options)


@pytest.mark.parametrize("structure", ["retraction", "smoothed"])
def test_a_trainer_without_a_callback_of_ours_is_told(structure: str) -> None:
    trainer = Trainer(_low(structure=structure))
    trainer.compile(_momentum(), loss="mse")
    told = _warnings(lambda: _plain_fit(trainer, epochs=2))
    assert len(told) == 1
    assert "InnerTraining" in told[0]
    # Once is enough, and evaluation trains nothing.
    fresh = Trainer(_low())
    fresh.compile(_momentum(), loss="mse")
    x, y = _data()
    assert _warnings(lambda: (fresh.evaluate(x, y, verbose=0), fresh.predict(x, verbose=0))) == []


@pytest.mark.slow
def test_no_one_is_told_who_trains_rightly() -> None:
    own, frozen, held = _low(), _low(), _low()
    own.compile(_momentum(), loss="mse")
    frozen.trainable = False
    inputs = keras.Input((6, 6, 2))
    on_top = keras.Model(inputs, layers.Dense(3)(frozen(inputs)))
    on_top.compile(_momentum(), loss="mse")
    trainer = OwnStep(held)
    trainer.told = True
    trainer.compile(_momentum())
    if ON_JAX:
        held.structural_loss()  # a gradient is traced with its forward pass there, before the loss
    x, y = _data()
    for train in (
        lambda: _plain_fit(own),
        lambda: own.train_on_batch(x, y),
        lambda: _plain_fit(on_top),
        lambda: _plain_fit(trainer),
    ):
        assert _warnings(train) == []


def test_a_model_without_a_network_is_refused() -> None:
    for trainer in (Trainer(_dense()), Trainer(_low())):
        trainer.network.trainable = isinstance(trainer.network, dprp.DPRPModel) is False
        trainer.compile(_momentum(), loss="mse")
        for callback in (dprp.RankPruning(), dprp.InnerTraining()):
            with pytest.raises(ValueError, match="works on a DPRPModel, or on a model that holds"):
                _fit(trainer, callback)


class Pair(Trainer):
    def __init__(self, first: keras.Model, second: keras.Model) -> None:
        super().__init__(first)
        self.second = second

    def call(self, x: Any) -> Any:
        return self.network(x) + self.second(x)


def test_of_several_networks_a_callback_is_for_one() -> None:
    first, second = _low("first", compression_weight=2.0), _low("second", compression_weight=2.0)
    trainer = Pair(first, second)
    trainer.compile(_momentum(), loss="mse")
    with pytest.raises(ValueError, match=r"`network` must say which .*\['first', 'second'\]"):
        _fit(trainer, dprp.RankPruning())
    with pytest.raises(ValueError, match="`network` must be a DPRPModel that the model"):
        _fit(trainer, dprp.RankPruning(network=_low("third")))
    prunings = [dprp.RankPruning(network=first), dprp.RankPruning(network=second)]
    logs = _fit(trainer, *prunings, epochs=3)
    assert logs["first_structural_loss"][0] > 0
    assert logs["second_structural_loss"][0] > 0
    assert sum(first.ranks.values()) < FULL
    assert sum(second.ranks.values()) < FULL
    assert _orthonormal(first)
    assert _orthonormal(second)
    assert {"train_step", "compute_loss", "fit"}.isdisjoint(vars(trainer))


@pytest.mark.slow
def test_pressure_ends_in_a_trainer_too() -> None:
    held = _low()
    trainer = Trainer(held)
    trainer.compile(_momentum(), loss="mse")
    logs = _fit(trainer, dprp.RankPruning(stop_epoch=2), dprp.InnerTraining(), epochs=4)
    assert min(logs["structural_loss"][:2]) > 0
    assert logs["structural_loss"][2:] == [0.0, 0.0]
    assert held.pressure == 1.0


@pytest.mark.slow
def test_a_training_that_ended_by_an_exception_is_gone_on_with() -> None:
    held = _low()
    trainer = Trainer(held)
    trainer.compile(_momentum(), loss="mse")

    def fail(batch: int, logs: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _fit(trainer, dprp.RankPruning(), keras.callbacks.LambdaCallback(on_train_batch_end=fail))
    other = Trainer(held)
    other.compile(_momentum(), loss="mse")
    for model in (trainer, other):
        logs = _fit(model, dprp.RankPruning())
        assert logs["structural_loss"][0] > 0
        assert "train_step" not in vars(model)
    assert _orthonormal(held)


def test_averages_of_turning_factors_are_refused_in_a_trainer() -> None:
    trainer = Trainer(_low())
    trainer.compile(keras.optimizers.Adam(1e-3, use_ema=True), loss="mse")
    with pytest.raises(ValueError, match="use_ema=True"):
        _fit(trainer, dprp.RankPruning())


def test_a_budget_is_reached_in_a_trainer() -> None:
    held = _low(compression=None)
    rows = tuple(
        LayerLatency(
            key, "spatial", layer.full_rank, 1.0, (1, layer.full_rank), (0.2, 0.9), ("x",) * 2
        )
        for key, layer in zip(held.ranks, held.low_rank_layers, strict=True)
    )
    table = dprp.LatencyTable(rows, 3.0, "local", "litert", "float32", 1, "ms", "some", "2.3")
    trainer = Trainer(held)
    trainer.compile(_momentum(), loss="mse")
    logs = _fit(trainer, dprp.BudgetPruning({"milliseconds": 2.0}, latency=table))
    assert logs["predicted_cost"][-1] <= 2.0
    assert sum(held.ranks.values()) < FULL
