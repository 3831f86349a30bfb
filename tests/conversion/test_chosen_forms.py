"""A file says when the forms of its layers were timed for another kind of file, or not at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from made_plans import fold_plan

import dprp_tf as dprp
from dprp_tf import deploy
from dprp_tf.conversion.chosen_forms import form_doubts
from dprp_tf.costs.latency_row import LayerLatency
from dprp_tf.costs.latency_table import LatencyTable
from dprp_tf.costs.layer_forms import own_form


def _dense() -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 8))
    return keras.Model(inputs, keras.layers.Conv2D(8, 3, name="a", padding="same")(inputs))


def _table(form: str) -> LatencyTable:
    ranks = tuple(range(1, 25))
    row = LayerLatency("a", "separable", 24, 1.0, ranks, (0.5,) * 24, (form,) * 24)
    return LatencyTable((row,), 2.0, "local", "litert", "int8", 1, "ms", "some", "2.3")


def _cut(form: str) -> keras.Model:
    dense = _dense()
    bounds = dprp.Budget(parameters=0.3, tolerance=0.3)
    plan = dprp.select_ranks(dense, method="energy", decomposition="separable", budget=bounds)
    assert list(plan.ranks) == ["a"]
    return dprp.cut(dense, plan, latency=_table(form))


def _planned() -> keras.Model:
    inputs = keras.Input((6, 6, 4))
    dense = keras.Model(inputs, keras.layers.Conv2D(6, 3, name="it")(inputs))
    lowrank = dprp.factorize(dense, ranks=2)
    form = own_form(lowrank.get_layer("it"))
    assert form.kind != "dense"
    return dprp.fold(lowrank, plan=replace(fold_plan(form), precision="int8"))


def test_what_was_never_timed_is_said(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(40, 6, 6, 8)).astype("float32")
    small = dprp.fold(dprp.factorize(_dense(), ranks=2))
    report = deploy.export(small, tmp_path / "small.tflite", verification_data=x)
    assert any("without timing anything" in note for note in report.notes)
    assert "note: the layers' forms were chosen without timing" in str(report)
    loaded = keras.Sequential([small])
    assert form_doubts(loaded, "litert", "float32") == ()
    kept = dprp.fold(dprp.factorize(_dense(), ranks=2), form="dense")
    assert deploy.export(kept, tmp_path / "kept.tflite", verification_data=x).notes == ()
    by_name = dprp.fold(dprp.factorize(_dense(), ranks=2), forms={"a": "two_stage"})
    assert form_doubts(by_name, "litert", "float32") == ()


@pytest.mark.parametrize(
    ("runtime", "precision", "expected"),
    [
        ("litert", "int8", None),
        ("litert", "float32", "times in int8, LiteRT, local, and this file is float32"),
        ("onnxruntime", "int8", "and this file is for ONNX Runtime"),
        ("onnxruntime", "float32", "and this file is float32 and for ONNX Runtime"),
    ],
)
def test_times_of_another_precision_or_runtime_are_said(
    runtime: str, precision: str, expected: str | None
) -> None:
    for small in (_cut("separable"), _planned()):
        doubts = form_doubts(small, runtime, precision)
        assert doubts == () if expected is None else expected in doubts[0]
    assert form_doubts(_cut("dense"), runtime, precision) == ()
