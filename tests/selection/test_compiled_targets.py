"""Regressors, labellers, denoisers, segmenters: chosen and tuned by what they were compiled for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import dprp_tf as dprp
from dprp_tf.training.fine_tuning import FineTuning

BUDGET_NEAR = dprp.Budget(parameters=0.99, tolerance=0.2)
BUDGET = dprp.Budget(parameters=0.6, tolerance=0.2)


def _images(samples: int = 64) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(samples, 8, 8, 3)).astype("float32")


def _network(head: Any) -> keras.Model:
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(12, 3, padding="same", activation="relu", name="first")(image)
    x = layers.Conv2D(12, 3, padding="same", activation="relu", name="second")(x)
    return keras.Model(image, head(x))


def _keypoints() -> tuple[keras.Model, np.ndarray, Any]:
    model = _network(lambda x: layers.Dense(4, name="points")(layers.Flatten()(x)))
    weights = np.random.default_rng(1).normal(size=(192, 4))
    return model, (0.05 * _images().reshape(64, -1) @ weights).astype("float32"), "mse"


def _labels() -> tuple[keras.Model, np.ndarray, Any]:
    model = _network(lambda x: layers.Dense(5, "sigmoid", name="labels")(layers.Flatten()(x)))
    return (
        model,
        (np.random.default_rng(1).random((64, 5)) < 0.4).astype("float32"),
        ("binary_crossentropy"),
    )


def _yes_or_no() -> tuple[keras.Model, np.ndarray, Any]:
    model = _network(lambda x: layers.Dense(1, "sigmoid", name="yes")(layers.Flatten()(x)))
    return model, (_images().mean((1, 2, 3)) > 0).astype("int32")[:, None], "binary_crossentropy"


def _denoiser() -> tuple[keras.Model, np.ndarray, Any]:
    model = _network(lambda x: layers.Conv2D(3, 3, padding="same", name="clean")(x))
    return model, _images(), "mae"


def _segmenter() -> tuple[keras.Model, np.ndarray, Any]:
    model = _network(lambda x: layers.Conv2D(3, 1, name="map")(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return model, _images().argmax(-1), loss


KINDS = {f.__name__: f for f in (_keypoints, _labels, _yes_or_no, _denoiser, _segmenter)}
EVERY = pytest.mark.parametrize("kind", KINDS)
EVERY_BEHIND_ONE = pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[pytest.mark.slow] if at else []) for at, kind in enumerate(KINDS)],
)


def _trained(kind: str, epochs: int = 30) -> tuple[keras.Model, np.ndarray, Any]:
    model, y, loss = KINDS[kind]()
    model.compile(keras.optimizers.Adam(3e-3), loss)
    model.fit(_images(), y, epochs=epochs, verbose=0)
    return model, y, loss


@EVERY_BEHIND_ONE
def test_tuning_learns_what_the_model_was_compiled_for(kind: str) -> None:
    model, y, loss = _trained(kind)
    x = _images()
    before = model.evaluate(x, y, verbose=0, return_dict=True)["loss"]
    logs = FineTuning(epochs=3, learning_rate=1e-4).fit(model, (x, y))
    model.compile("sgd", loss)
    assert model.evaluate(x, y, verbose=0, return_dict=True)["loss"] < before * 1.05
    assert logs[-1]["loss"] < before * 1.2
    told = {"_labels": {"binary_accuracy"}, "_yes_or_no": {"binary_accuracy"}}
    expected = told.get(kind, {"accuracy"} if kind == "_segmenter" else set())
    assert set(logs[-1]) == {"loss"} | expected


@EVERY
@pytest.mark.parametrize(
    "method", ["energy", *(pytest.param(m, marks=pytest.mark.slow) for m in ("activation", "mbs"))]
)
def test_a_plan_tells_a_score_that_means_something(kind: str, method: str) -> None:
    model, y, loss = _trained(kind, epochs=10)
    x = _images()
    layers_to_cut = {"layers": ["first", "second"]}
    options: dict[str, Any] = {"method": method, "budget": dprp.Budget(parameters=0.9)}
    if kind in ("_keypoints", "_labels", "_yes_or_no"):
        options["budget"] = dprp.Budget(parameters=0.95)
    plan = dprp.select_ranks(model, data=(x, y), **options, **layers_to_cut)
    found = model.predict(x, verbose=0)
    expected = {
        "_keypoints": lambda: -np.mean((found - y) ** 2),
        "_labels": lambda: np.mean((found > 0.5) == (y > 0.5)),
        "_yes_or_no": lambda: np.mean((found > 0.5) == (y > 0.5)),
        "_denoiser": lambda: -np.mean(np.abs(found - y)),
        "_segmenter": lambda: np.mean(found.argmax(-1) == y),
    }
    assert plan.accuracy["dense"] == pytest.approx(float(expected[kind]()), rel=1e-3, abs=1e-6)
    data = x if plan.truncation == "output" else None
    small = dprp.cut(model, plan, calibration_data=data, refit=False)
    small.compile("sgd", loss)
    assert small.count_params() < model.count_params()


def test_a_score_by_name_is_what_the_search_goes_by() -> None:
    model, y, _ = _trained("_segmenter", epochs=10)
    x = _images()
    plan = dprp.select_ranks(model, method="mbs", budget=BUDGET, data=(x, y), score="mean_iou")
    own = keras.metrics.MeanIoU(3, sparse_y_pred=False)
    own.update_state(y, model.predict(x, verbose=0))
    assert plan.accuracy["dense"] == pytest.approx(float(own.result()), rel=1e-5)


@pytest.mark.parametrize("kind", ["_keypoints", "_labels", "_denoiser"])
def test_without_a_loss_or_a_score_nothing_is_guessed(kind: str) -> None:
    model, y, _ = KINDS[kind]()
    with pytest.raises(ValueError, match="`score` must be given"):
        dprp.select_ranks(model, method="energy", budget=0.9, data=(_images(), y))
    with pytest.raises(ValueError, match="`loss` must be given"):
        FineTuning(epochs=1).fit(model, (_images(), y))


@pytest.mark.slow
def test_bsr_of_a_regressor_trains_a_regressor(tmp_path: Path) -> None:
    model, y, _ = _trained("_keypoints", epochs=40)
    x = _images()
    short = FineTuning(epochs=8, learning_rate=2e-3)
    options: dict[str, Any] = {"data": (x, y), "training_data": (x, y), "layers": ["second"]}
    found = dprp.bsr(
        model,
        budget=dprp.Budget(parameters=0.9, tolerance=0.1),
        regularized=short,
        tuning=short,
        **options,
    )
    error = float(np.mean((found.model.predict(x, verbose=0) - y) ** 2))
    cut_alone = dprp.cut(model, found.plan)
    assert error < float(np.mean((cut_alone.predict(x, verbose=0) - y) ** 2))
    assert "accuracy" not in found.tuned[-1]


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize(
    "loss", ["sparse_categorical_crossentropy", "categorical_crossentropy", None]
)
def test_classes_may_come_in_the_other_form(rows: bool, loss: str | None) -> None:
    model = _network(lambda x: layers.Dense(3, "softmax")(layers.Flatten()(x)))
    if loss is not None:
        model.compile("sgd", loss)
    y: Any = np.arange(64) % 3
    logs = FineTuning(epochs=1).fit(model, (_images(), np.eye(3)[y] if rows else y))
    assert 0.5 < logs[0]["loss"] < 3
    assert 0 <= logs[0]["accuracy"] <= 1


def test_a_resumed_tuning_is_the_same_by_its_loss_wherever_it_came_from(tmp_path: Path) -> None:
    model, y, _ = _trained("_keypoints", epochs=1)
    x = _images()
    FineTuning(epochs=2).fit(model, (x, y), folder=tmp_path)
    fresh = keras.models.clone_model(model)
    logs = FineTuning(epochs=2, loss="mse").fit(fresh, (x, y), folder=tmp_path)
    assert len(logs) == 2
    np.testing.assert_array_equal(fresh.predict(x, verbose=0), model.predict(x, verbose=0))
    with pytest.raises(ValueError, match="the same settings"):
        FineTuning(epochs=2, loss="mae").fit(fresh, (x, y), folder=tmp_path)


def _loader(x: np.ndarray, y: np.ndarray) -> Any:
    class Batches(keras.utils.PyDataset):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> Any:
            return x[16 * index : 16 * index + 16], y[16 * index : 16 * index + 16]

    return Batches()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tf.data", "PyDataset"])
def test_streams_are_tuned_on_and_chosen_by(kind: str, tmp_path: Path) -> None:
    model, y, _ = _trained("_keypoints", epochs=20)
    x = _images()

    def data() -> Any:
        if kind == "PyDataset":
            return _loader(x, y)
        return tf.data.Dataset.from_tensor_slices((x, y)).batch(16)

    options: dict[str, Any] = {"method": "activation", "budget": dprp.Budget(parameters=0.95)}
    plan = dprp.select_ranks(model, data=data(), **options)
    same = dprp.select_ranks(model, data=(x, y), **options)
    assert plan.ranks == same.ranks
    assert plan.accuracy == pytest.approx(same.accuracy)
    small = dprp.cut(model, plan, calibration_data=x)
    before = float(np.mean((small.predict(x, verbose=0) - y) ** 2))
    tuning = FineTuning(epochs=6, learning_rate=2e-3).for_model(model, y)
    assert len(tuning.fit(small, data(), folder=tmp_path)) == 6
    assert float(np.mean((small.predict(x, verbose=0) - y) ** 2)) < before


def test_a_stream_that_does_not_end_is_refused() -> None:
    model, y, _ = _trained("_keypoints", epochs=1)
    endless = tf.data.Dataset.from_tensor_slices((_images(), y)).batch(8).repeat()
    for data in (endless, iter([(_images(), y)])):
        with pytest.raises(ValueError, match=r"`data` must come round again"):
            FineTuning(epochs=1).fit(model, data)
    assert dprp.select_ranks(model, method="energy", budget=0.95, data=endless).accuracy


@pytest.mark.parametrize("named", [True, False])
def test_several_outputs_are_tuned_by_their_losses(named: bool) -> None:
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3))
    x = layers.Flatten()(layers.Conv2D(12, 3, activation="relu", name="first")(image))
    box, kind = layers.Dense(4, name="box")(x), layers.Dense(3, name="kind")(x)
    model = keras.Model(image, {"box": box, "kind": kind} if named else [box, kind])
    cross = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    losses: Any = {"box": "mse", "kind": cross}
    labels: Any = {"box": _images()[:, 0, :4, 0], "kind": np.arange(64) % 3}
    if not named:
        losses, labels = list(losses.values()), list(labels.values())
    model.compile("adam", losses)
    before = model.evaluate(_images(), labels, verbose=0, return_dict=True)["loss"]
    logs = FineTuning(epochs=8).fit(model, (_images(), labels))
    assert logs[-1]["loss"] < before
    plan = dprp.select_ranks(
        model, method="energy", budget=BUDGET_NEAR, data=(_images(), labels), layers=["first"]
    )
    model.compile("adam", losses)
    after = model.evaluate(_images(), labels, verbose=0, return_dict=True, batch_size=64)["loss"]
    assert plan.accuracy["dense"] == pytest.approx(-after, rel=1e-4)
