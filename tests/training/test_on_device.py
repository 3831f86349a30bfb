"""Training with the data on the device: the same run however it is cut up, on every backend."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dprp_tf import data
from dprp_tf.data import Dataset
from dprp_tf.experiments import table_ii
from dprp_tf.runs.settings import TrainSettings
from dprp_tf.runs.training import train
from dprp_tf.training.on_device import epoch_order, fit_on_device

pytestmark = pytest.mark.backend

SETTINGS = TrainSettings(
    model="resnet_small",
    epochs=3,
    batch_size=32,
    learning_rate=0.05,
    schedule="plateau",
    on_device=True,
    steps_per_execution=3,
    compression_weight=60.0,
    threshold=0.4,
    padding=1,
    flip=False,
)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    whole = data.load("digits", image_size=8)
    return replace(whole, x_train=whole.x_train[:160], y_train=whole.y_train[:160])


def _history(folder: Path) -> list[dict[str, Any]]:
    history = json.loads((folder / "history.json").read_text())["runs"]["dprp"]
    timed = ("seconds", "tracing_seconds")
    return [{k: v for k, v in entry.items() if k not in timed} for entry in history]


@pytest.fixture(scope="module")
def whole(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(folder, SETTINGS, digits)


@pytest.mark.slow
@pytest.mark.long_on_jax
def test_ranks_fall_and_the_loss_too(whole: Any) -> None:
    history = _history(whole[0])
    assert history[-1]["total_rank"] < history[0]["total_rank"]
    assert history[-1]["app_loss"] < history[0]["app_loss"]


@pytest.mark.long
def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    whole: Any, digits: Dataset, tmp_path: Path
) -> None:
    train(tmp_path, replace(SETTINGS, epochs=1), digits)
    resumed = train(tmp_path, SETTINGS, digits)
    assert _history(tmp_path) == _history(whole[0])
    for ours, theirs in zip(resumed.get_weights(), whole[1].get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_every_image_comes_once_per_epoch_in_another_order() -> None:
    first, keys = epoch_order(96, 32, seed=1, epoch=0)
    again, _ = epoch_order(96, 32, seed=1, epoch=0)
    second, other = epoch_order(96, 32, seed=1, epoch=1)
    assert sorted(first.ravel()) == list(range(96))
    assert first.shape == (3, 32)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, second)
    assert len({*keys.tolist(), *other.tolist()}) == 6


@pytest.mark.long_on_jax
def test_a_batch_larger_than_the_data_is_refused(whole: Any, digits: Dataset) -> None:
    with pytest.raises(ValueError, match=r"`batch_size` must be .* 1 to 160.*batch_size=999"):
        fit_on_device(whole[1], digits, batch_size=999, epochs=1)


@pytest.mark.slow
def test_reproduce_writes_the_papers_figures_beside_ours(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The paper's row with a network small enough to train here; everything else as it is.
    small = replace(table_ii.ROWS["resnet20-proposed1"], model="resnet_small")
    monkeypatch.setitem(table_ii.ROWS, "resnet20-proposed1", small)
    plain = table_ii.settings_of

    def settings_of(*args: Any, **kwargs: Any) -> TrainSettings:
        return replace(plain(*args, **kwargs), batch_size=80, padding=1)

    monkeypatch.setattr(table_ii, "settings_of", settings_of)
    result = table_ii.reproduce(
        "resnet20-proposed1", digits, work=tmp_path / "w", results=tmp_path / "r", epochs=1
    )
    assert (result["epochs_run"], result["epochs_planned"]) == (1, 1)
    assert result["settings"]["compression_weight"] == 0.5
    assert result["settings"]["threshold"] == 0.01
    ours = result["ours"]
    assert ours["compression"] == pytest.approx(
        1 - ours["parameters"] / ours["baseline_parameters"]
    )
    written = json.loads((tmp_path / "r" / "resnet20-proposed1" / "result.json").read_text())
    assert written["ours"] == ours
    table = table_ii.list_rows(tmp_path / "r")
    assert "1 of 1" in list(table.columns[5].cells)


def test_the_papers_settings() -> None:
    dense = table_ii.settings_of("resnet20-dense")
    first = table_ii.settings_of("resnet20-proposed1")
    second = table_ii.settings_of("resnet20-proposed2", structure="paper")
    for settings in (dense, first, second):
        assert settings.batch_size == 256
        assert settings.epochs == 300
        assert settings.learning_rate == 0.1
        assert settings.momentum == 0.9
        assert settings.schedule == "plateau"
        assert settings.patience == 10
        assert settings.weight_decay == 1e-4
        assert settings.shortcut == "A"
    assert (first.compression_weight, first.threshold) == (0.5, 0.01)
    assert (second.compression_weight, second.threshold) == (0.1, 0.1)
    assert (dense.method, first.structure, second.structure) == ("dense", "retraction", "paper")
