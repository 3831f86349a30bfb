"""What people bring, end to end: summary, factorize, fit with pruning, select, cut, fold, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from networks import CLIENTS, SAMPLES, Client

import dprp_tf as dprp
from dprp_tf import deploy
from dprp_tf.training.fine_tuning import FineTuning

# Trained in every run of the tests; the rest takes the same way in `make test-all`.
QUICK = ("time_series",)
EVERY = pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CLIENTS]
)


def _client(name: str) -> Client:
    keras.utils.set_random_seed(0)
    client = CLIENTS[name]()
    client.model.compile(keras.optimizers.Adam(3e-3), client.loss)
    client.model.fit(client.x, client.y, epochs=25, batch_size=8, verbose=0)
    return client


def _outputs(model: keras.Model, x: Any) -> list[np.ndarray]:
    return [np.asarray(array) for array in keras.tree.flatten(model.predict(x, verbose=0))]


def _differ(model: keras.Model, other: keras.Model, x: Any) -> float:
    """Largest difference of two models as a share of the outputs' size."""
    return max(
        float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-9))
        for a, b in zip(_outputs(model, x), _outputs(other, x), strict=True)
    )


@EVERY
def test_from_the_dense_model_to_its_files(
    name: str, tmp_path: Path, record_property: pytest.RecordProperty
) -> None:
    client = _client(name)
    model, x, y = client.model, client.x, client.y

    # What is reached, and why the rest is not.
    low = dprp.factorize(model, decomposition="channel")
    summary = dprp.summarize(low)
    reached = sum(
        int(np.prod(layer.kernel_shape)) for layer in dprp.layers.factorized_layers(low)
    ) / sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    skipped = sorted({f"{row.type}: {row.skipped}" for row in summary.rows if row.skipped})
    dense = dprp.summarize(model)
    counted = sum(row.macs or 0 for row in dense.rows if row.name in low.ranks)
    total = dense.cost.macs
    record_property("share_of_parameters", round(reached, 3))
    record_property("share_of_macs", None if total is None else round(counted / total, 3))
    record_property("skipped", skipped)
    assert 0.05 < reached <= 1
    assert _differ(model, low, x[:8]) < 1e-3

    # Trained by its own loss, with the pressure of DPRP, and pruned inside fit.
    low.compile(keras.optimizers.Adam(3e-3), client.loss)
    before = sum(layer.rank for layer in low.low_rank_layers)
    history = low.fit(
        x,
        y,
        epochs=4,
        batch_size=16,
        verbose=0,
        callbacks=[dprp.RankPruning(discarded_energy=0.05)],
    ).history
    assert np.isfinite([history["loss"], history["app_loss"]]).all()
    assert sum(layer.rank for layer in low.low_rank_layers) < before
    folded = dprp.fold(low)
    assert _differ(low, folded, x[:8]) < 1e-3
    assert _differ(model, folded, x[:8]) > 1e-3

    # Ranks chosen without training, by inputs alone and by what the model was compiled for.
    inner = [layer.name for layer in low.low_rank_layers][:-1] or None
    plan = dprp.select_ranks(
        model,
        method="energy",
        budget=dprp.Budget(parameters=0.98, tolerance=0.2),
        data=(x, y),
        layers=inner,
        decomposition="channel",
    )
    assert set(plan.accuracy) == {"dense", "planned"}
    small = dprp.cut(model, plan)
    assert small.count_params() < model.count_params()
    tuning = FineTuning(epochs=2, learning_rate=1e-3, batch_size=16).for_model(model, y)
    assert np.isfinite([log["loss"] for log in tuning.fit(small, (x, y))]).all()

    # Files of the folded model, checked channel by channel.
    half = SAMPLES // 2
    options: dict[str, Any] = {"verification_data": x[half:], **client.options}
    path = tmp_path / "a.tflite"
    assert deploy.export(folded, path, **options).passed
    quantized = {"quantization": "int8", "calibration_data": x[:half]}
    if client.int8 is None:
        report = deploy.export(folded, path, **options, **quantized)
        assert max(output.relative_error for output in report.outputs) > 1e-4
        record_property("int8_notes", report.notes)
    else:
        with pytest.raises(ValueError, match=client.int8):
            deploy.export(folded, path, **options, **quantized)
    assert deploy.export(folded, tmp_path / "a.onnx", **options).passed
