"""What a converted model is compiled with, in memory and in its file."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import dprp_tf as dprp
from dprp_tf.costs.scores import resolve_score
from dprp_tf.deploy.exporters.class_scores import class_score_outputs

pytestmark = pytest.mark.backend

CLASSES = "sparse_categorical_crossentropy"


def _model() -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,), name="x")
    hidden = layers.Dense(12, "relu", name="hidden")(inputs)
    outputs = [layers.Dense(4, name="kind")(hidden), layers.Dense(4, name="box")(hidden)]
    return keras.Model(inputs, outputs)


def _data() -> tuple[np.ndarray, list[np.ndarray]]:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(32, 6)).astype("float32")
    return x, [rng.integers(0, 4, 32), rng.random((32, 4)).astype("float32")]


def _plan(model: keras.Model) -> dprp.RankPlan:
    budget = dprp.Budget(parameters=0.8, tolerance=0.3)
    return dprp.select_ranks(model, method="energy", budget=budget)


def _own_loss(y: Any, p: Any) -> Any:
    return keras.ops.mean((y - p) ** 2)


def _compiled(model: keras.Model) -> keras.Model:
    model.compile(
        "adam",
        loss=[keras.losses.SparseCategoricalCrossentropy(from_logits=True), "mse"],
        loss_weights=[1.0, 3.0],
        metrics=[["accuracy"], [keras.metrics.MeanAbsoluteError(name="far")]],
    )
    return model


CONVERTED = {
    "fold": lambda model: dprp.fold(_compiled(dprp.factorize(model))),
    "fold by form": lambda model: dprp.fold(
        _compiled(dprp.factorize(model, ranks=2)), form="dense"
    ),
    "cut": lambda model: dprp.cut(model, _plan(model)),
    "cut of nothing": lambda model: dprp.cut(
        model, dprp.select_ranks(model, method="energy", budget=1.0)
    ),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_a_converted_model_evaluates_as_the_original(name: str, tmp_path: Path) -> None:
    model = _compiled(_model())
    x, y = _data()
    converted = CONVERTED[name](model)
    assert class_score_outputs(converted) == ("kind",)
    assert converted.loss is not model.loss
    assert not {id(m) for m in converted.metrics} & {id(m) for m in model.metrics}
    found = converted.evaluate(x, y, verbose=0, return_dict=True)
    assert found.keys() == model.evaluate(x, y, verbose=0, return_dict=True).keys()
    kind, box = (np.asarray(keras.ops.convert_to_numpy(out)) for out in converted(x))
    chosen = kind - kind.max(axis=1, keepdims=True)
    chosen -= np.log(np.exp(chosen).sum(axis=1, keepdims=True))
    truth = -chosen[np.arange(32), y[0]].mean() + 3.0 * ((box - y[1]) ** 2).mean()
    assert found["loss"] == pytest.approx(truth, rel=1e-4)
    assert found["box_far"] == pytest.approx(np.abs(box - y[1]).mean(), rel=1e-4)
    assert resolve_score(None, converted)(y, converted(x)) == pytest.approx(-truth, rel=1e-4)
    # Its file says so too, and loading it neither warns nor changes what it computes.
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=UserWarning)
        converted.save(tmp_path / "a.keras")
        loaded = keras.saving.load_model(tmp_path / "a.keras")
    assert class_score_outputs(loaded) == ("kind",)
    for one, other in zip(loaded(x), converted(x), strict=True):
        np.testing.assert_allclose(*map(keras.ops.convert_to_numpy, (one, other)), rtol=1e-6)


def test_its_file_is_that_of_a_model_not_compiled_but_for_what_it_says(tmp_path: Path) -> None:
    low = _compiled(dprp.factorize(_model()))
    compiled = dprp.fold(low)
    low.loss = None
    plain = dprp.fold(low)
    assert compiled.compiled
    assert not plain.compiled
    for name, model in (("a", compiled), ("b", plain)):
        model.save(tmp_path / f"{name}.keras")
    size, least = ((tmp_path / f"{name}.keras").stat().st_size for name in "ab")
    assert 0 < size - least < 6000
    code = "import sys, keras; assert keras.saving.load_model(sys.argv[1]).compiled"
    code += "; assert 'dprp_tf' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.keras")], check=True)


@pytest.mark.parametrize(
    "loss",
    [_own_loss, lambda y, p: keras.ops.mean(y - p), {"kind": CLASSES, "box": _own_loss}, None],
)
def test_a_loss_of_ones_own_leaves_it_not_compiled(loss: Any, tmp_path: Path) -> None:
    model = _model()
    model.compile("adam", loss, metrics=None)
    low = dprp.factorize(model)
    low.compile("adam", loss)
    for converted in (dprp.cut(model, _plan(model)), dprp.fold(low)):
        assert not converted.compiled
        converted.save(tmp_path / "a.keras")
        keras.saving.load_model(tmp_path / "a.keras")


def test_metrics_of_ones_own_are_left_out() -> None:
    model = _model()
    model.compile(
        "sgd", ["mse", "mse"], metrics=[[_own_loss], ["mae"]], weighted_metrics=["mae"] * 2
    )
    x, y = _data()
    small = dprp.cut(model, _plan(model))
    found = small.evaluate(x, [np.eye(4)[y[0]], y[1]], verbose=0, return_dict=True)
    assert not [name for name in found if "own_loss" in name]
    assert {"loss", "kind_mae", "box_mae"} <= found.keys()


def test_a_class_that_compiles_by_itself_is_left_alone() -> None:
    class Own(keras.Model):
        def compile(self, *args: Any, **kwargs: Any) -> None:
            raise AssertionError

    low = _compiled(dprp.factorize(_model()))
    assert not dprp.fold(low, model_class=Own).compiled
