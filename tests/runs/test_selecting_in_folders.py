"""`dprp select` and BSR on digits: whole, interrupted, resumed, refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import dprp_tf as dprp
from dprp_tf import deploy
from dprp_tf.cli.main import app
from dprp_tf.cli.selecting import _speed
from dprp_tf.costs.latency_row import LayerLatency
from dprp_tf.costs.latency_table import LatencyTable
from dprp_tf.costs.rank_plan import RankPlan
from dprp_tf.data import Dataset, StreamedImages
from dprp_tf.data.augmentation import ResizedCrop
from dprp_tf.layers import low_rank_layers
from dprp_tf.runs.selecting import _held_out, select_in_folder, selector_of
from dprp_tf.runs.settings import SelectionSettings
from dprp_tf.selection.methods.beam import BeamSearch
from dprp_tf.selection.methods.similarity import FeatureSimilarity
from dprp_tf.selection.selecting import select_ranks


def _accuracy(model: keras.Model, data: Dataset) -> float:
    outputs = model.predict(data.x_test.astype("float32"), verbose=0)
    return float(np.mean(np.argmax(outputs, -1) == data.y_test))


def _invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_selects_cuts_and_tunes(
    dense: keras.Model, digits: Dataset, tmp_path: Path
) -> None:
    dense.save(tmp_path / "dense.keras")
    folder = tmp_path / "ranks"
    command = [
        *["select", tmp_path / "dense.keras", "--data", "digits", "--image-size", 8],
        *["--folder", folder, "--parameters", 0.5, "--decomposition", "channel", "--samples", 64],
    ]
    command += ["--method", "mbs", "--precision", "none"]
    result = _invoke(*command, "--search", "5,2", "--epochs", 2, "--tolerance", 0.03, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout[result.stdout.index("{") :])
    plan = RankPlan.load(folder / "rank_plan.json")
    assert 0.485 <= found["shares"]["parameters"] <= 0.5
    cut = keras.saving.load_model(folder / "cut.keras")
    assert sum(int(np.prod(w.shape)) for w in cut.trainable_weights) == plan.cost["parameters"]
    assert found["accuracy"]["dense"] == pytest.approx(_accuracy(dense, digits))
    assert found["accuracy"]["cut"] == pytest.approx(_accuracy(cut, digits))
    tuned = keras.saving.load_model(folder / "model.keras")
    assert found["accuracy"]["tuned"] == pytest.approx(_accuracy(tuned, digits))
    assert found["accuracy"]["tuned"] > 0.8
    assert (folder / "rank_plan.png").stat().st_size > 10_000
    lines = (folder / "candidates.jsonl").read_text().splitlines()
    assert len(lines) > 10
    assert "accuracy" in json.loads(lines[-1])
    refused = _invoke(*command, "--search", "3,2", "--epochs", 2, "--tolerance", 0.03)
    assert refused.exit_code == 2
    assert "searches" in refused.output


@pytest.mark.slow
@pytest.mark.parametrize("method", ["energy", "similarity", "bsr"])
def test_every_fine_tuning_of_a_selection_may_have_the_dense_model_for_a_teacher(
    method: str, dense: keras.Model, digits: Dataset, tmp_path: Path
) -> None:
    dense.save(tmp_path / "dense.keras")
    weights = dense.get_weights()
    folder = tmp_path / "ranks"
    command = ["select", tmp_path / "dense.keras", "--data", "digits", "--image-size", 8]
    command += ["--folder", folder, "--method", method, "--samples", 64, "--precision", "none"]
    bound = ["--accuracy-drop", 0.6] if method == "similarity" else ["--parameters", 0.5]
    command += [*bound, "--tolerance", 0.1, "--epochs", 1, "--regularized-epochs", 1]
    result = _invoke(*command, "--distill")
    assert result.exit_code == 0, result.output
    logs = [json.loads(path.read_text()) for path in folder.rglob("tuning.json")]
    taught = [log for log in logs if "distillation_loss" in log["history"][0]]
    # A search trains in a folder that it removes once it has chosen; its settings tell.
    assert len(taught) == (method != "similarity")
    assert all("Distillation(teacher=" in log["identity"] for log in taught)
    assert (folder / "model.keras").exists()
    assert json.loads((folder / "config.json").read_text())["distill"] is True
    assert "settings" in _invoke(*command).output  # of another tuning
    for ours, theirs in zip(dense.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_fine_tuning_that_diverges_ends_with_one_line(dense: keras.Model, tmp_path: Path) -> None:
    dense.save(tmp_path / "dense.keras")
    folder = tmp_path / "ranks"
    result = _invoke(
        *["select", tmp_path / "dense.keras", "--data", "digits", "--image-size", 8],
        *["--folder", folder, "--parameters", 0.5, "--method", "energy", "--samples", 64],
        *["--epochs", 2, "--learning-rate", 1e30],
    )
    assert result.exit_code == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "Training diverged in epoch 1" in line
    assert result.stderr.splitlines()[-1] == line
    assert not (folder / "model.keras").exists()
    assert not list(folder.glob("tuned/*.keras"))
    # What came before it is there, and sound.
    assert keras.saving.load_model(folder / "cut.keras").count_params() < dense.count_params()


def test_unusable_options_end_with_one_line(dense: keras.Model, tmp_path: Path) -> None:
    dense.save(tmp_path / "dense.keras")
    start = ["select", tmp_path / "dense.keras", "--data", "digits", "--image-size", 8]
    start += ["--folder", tmp_path / "ranks", "--precision", "none"]
    for arguments, message in (
        ([], "must have a bound"),
        (["--parameters", 0.5, "--method", "guess"], "`--method` must be one of"),
        (["--parameters", 0.5, "--method", "energy", "--search", "3,5"], "for mbs and bsr"),
        (["--parameters", 0.5, "--method", "mbs", "--search", "3"], "step,beams"),
        (["--parameters", 0.001, "--method", "energy"], "`--parameters` must be at least"),
        (["--milliseconds", 3, "--method", "energy"], "latency table"),
        (["--time", 0.5, "--method", "energy"], "latency table"),
        (["--parameters", 0.5, "--exclude", "nothing"], "`--exclude`"),
        (
            ["--parameters", 0.5, "--distill"],
            "`--distill` needs a fine-tuning, of one of the `--ep",
        ),
        (
            ["--parameters", 0.001, "--method", "bsr", "--learning-rate", 0.2],
            "`--parameters` must be at least",
        ),
    ):
        result = _invoke(*start, *arguments, "--fresh")
        assert result.exit_code == 2, result.output
        assert message in result.output
        assert "Traceback" not in result.output
    # A budget that can't be met leaves nothing that a better one would trip over.
    assert _invoke(*start, "--parameters", 0.001, "--method", "energy").exit_code == 2
    met = _invoke(*start, "--parameters", 0.5, "--method", "energy", "--tolerance", 0.1)
    assert met.exit_code == 0, met.output


@pytest.fixture
def known_costs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """Times that are told instead of measured: rank 1 takes a tenth, half of the ranks all of it.

    Returns:
        What `measure_latency` was asked for, call by call.
    """
    asked: list[dict[str, Any]] = []

    def measure(model: Any, **options: Any) -> LatencyTable:
        asked.append({name: value for name, value in options.items() if name != "progress"})
        rows = tuple(
            LayerLatency(
                layer.name,
                layer.decomposition,
                layer.full_ranks[0],
                1.0,
                (1, max(2, layer.full_ranks[0] // 2)),
                (0.1, 1.0),
                (layer.matricization,) * 2,
            )
            for layer in low_rank_layers(model)
        )
        setting = {name: options[name] for name in ("target", "runtime", "precision", "threads")}
        return LatencyTable(
            rows, dense=1.5 + len(rows), **setting, unit="ms", processor="some", runtime_version="1"
        )

    monkeypatch.setattr(deploy, "measure_latency", measure)
    return asked


def test_a_share_of_the_time_is_measured_for_kept_and_shown(
    dense: keras.Model,
    digits: Dataset,
    tmp_path: Path,
    known_costs: list[dict[str, Any]],
) -> None:
    settings = SelectionSettings(
        budget=dprp.Budget(time=0.6, tolerance=0.2), runtime="onnxruntime", samples=128
    )
    found = select_in_folder(tmp_path, dense, digits, settings)
    place = {"target": "local", "runtime": "onnxruntime", "precision": "int8", "threads": 1}
    assert known_costs == [place]
    plan, table = (
        RankPlan.load(tmp_path / "rank_plan.json"),
        LatencyTable.load(tmp_path / "latency.json"),
    )
    assert plan.decomposition == "separable"
    assert 0.48 <= plan.shares["milliseconds"] <= 0.6
    assert table.model_cost(plan.ranks) == pytest.approx(plan.cost["milliseconds"])
    assert [row["file"] for row in found["files"]] == ["dense_int8.onnx", "cut_int8.onnx"]
    first, last = found["files"]
    assert "latency_ratio" not in first
    assert last["latency_ratio_interval"][0] <= last["latency_ratio"]
    for row in found["files"]:
        path = tmp_path / row["file"]
        assert row["size_bytes"] == path.stat().st_size
        assert row["accuracy"] == deploy.evaluate_file(path, digits.x_test, digits.y_test)
    assert json.loads((tmp_path / "selection.json").read_text())["files"] == found["files"]
    # A folder goes on with what was measured for it.
    select_in_folder(tmp_path, dense, digits, settings)
    assert len(known_costs) == 1


@pytest.mark.slow
def test_the_file_beside_the_dense_one_is_the_tuned_models(
    dense: keras.Model, digits: Dataset, tmp_path: Path
) -> None:
    settings = SelectionSettings(
        budget=dprp.Budget(parameters=0.3, tolerance=0.1),
        method="energy",
        precision="float32",
        samples=64,
        tuning=dprp.FineTuning(epochs=2, learning_rate=0.05),
    )
    found = select_in_folder(tmp_path, dense, digits, settings)
    assert [row["model"] for row in found["files"]] == ["dense", "tuned"]
    assert found["accuracy"]["cut"] != found["accuracy"]["tuned"]
    for row in found["files"]:
        assert row["accuracy"] == pytest.approx(found["accuracy"][row["model"]], abs=0.005)


def test_a_table_says_what_the_files_are_for(
    dense: keras.Model,
    digits: Dataset,
    tmp_path: Path,
    known_costs: list[dict[str, Any]],
) -> None:
    lowrank = dprp.factorize(dense, decomposition="channel")
    place = {"target": "local", "runtime": "litert", "precision": "float32", "threads": 1}
    table = deploy.measure_latency(lowrank, **place)
    settings = SelectionSettings(
        budget=dprp.Budget(time=0.7, tolerance=0.2),
        decomposition="channel",
        method="energy_product",
        samples=64,
    )
    found = select_in_folder(tmp_path, dense, digits, settings, latency=table)
    assert len(known_costs) == 1
    assert [row["file"] for row in found["files"]] == [
        "dense_float32.tflite",
        "cut_float32.tflite",
    ]
    assert found["settings"]["precision"] == "float32"


def test_the_command_says_how_fast_the_file_is_or_that_nothing_is_known() -> None:
    settings = {"precision": "int8", "target": "local", "runtime": "litert"}

    def files(ratio: float, low: float, high: float) -> list[dict[str, Any]]:
        interval = [low, high]
        row = {"file": "a.tflite", "latency_ratio": ratio, "latency_ratio_interval": interval}
        return [{"file": "dense.tflite"}, row]

    for ratio, low, high, told in (
        (0.5, 0.4, 0.6, "a.tflite is faster than the dense file: 0.50 x its time"),
        (1.6, 1.5, 1.7, "a.tflite is SLOWER than the dense file: 1.60 x its time"),
        (1.0, 0.9, 1.1, "a.tflite is as fast as the dense file: 1.00 x its time"),
    ):
        assert told in _speed({"settings": settings, "files": files(ratio, low, high)})
    assert "Nothing was timed" in _speed({"settings": settings})


def test_bsr_trains_at_the_rate_given_without_being_asked_to_tune(
    dense: keras.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense.save(tmp_path / "dense.keras")
    seen: list[SelectionSettings] = []

    def note(folder: Any, model: Any, dataset: Any, settings: Any, **options: Any) -> None:
        seen.append(settings)
        raise ValueError("seen")

    monkeypatch.setattr("dprp_tf.runs.selecting.select_in_folder", note)
    start = ["select", tmp_path / "dense.keras", "--data", "digits", "--image-size", 8]
    start += ["--folder", tmp_path / "ranks", "--parameters", 0.5, "--learning-rate", 0.2]
    assert "seen" in _invoke(*start, "--method", "bsr").output
    assert seen[0].tuning == dprp.FineTuning(epochs=30, learning_rate=0.2)
    assert "seen" in _invoke(*start, "--method", "mbs").output
    assert seen[1].tuning is None


def test_an_interrupted_search_goes_on_and_ends_alike(
    dense: keras.Model, digits: Dataset, tmp_path: Path
) -> None:
    data = digits.x_train[:96].astype("float32"), digits.y_train[:96]
    budget = dprp.Budget(parameters=0.6, tolerance=0.05)
    arguments = {"decomposition": "separable", "seed": 3}
    search = BeamSearch(step=6, beams=2, samples=96)
    whole = select_ranks(
        dense, method=search, budget=budget, data=data, log=tmp_path / "whole.jsonl", **arguments
    )
    calls = 0

    def stop(share: float | None, text: str) -> None:
        nonlocal calls
        calls += 1
        if calls == 12:
            raise KeyboardInterrupt

    path = tmp_path / "broken.jsonl"
    with pytest.raises(KeyboardInterrupt):
        select_ranks(
            dense, method=search, budget=budget, data=data, log=path, progress=stop, **arguments
        )
    before = path.read_text().splitlines()
    assert 5 < len(before) < len((tmp_path / "whole.jsonl").read_text().splitlines())
    again = select_ranks(dense, method=search, budget=budget, data=data, log=path, **arguments)
    assert again.ranks == whole.ranks
    after = path.read_text().splitlines()
    assert after[: len(before)] == before
    assert len(set(after)) == len(after)
    assert sorted(after[1:]) == sorted((tmp_path / "whole.jsonl").read_text().splitlines()[1:])


class _Stop(keras.callbacks.Callback):
    """Ends a training in the middle of its n-th epoch."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self._epoch == 0 and batch == 2:
            raise KeyboardInterrupt

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._epoch -= 1


@pytest.mark.slow
def test_bsr_prepares_the_kernels_and_resumes(
    dense: keras.Model, digits: Dataset, tmp_path: Path
) -> None:
    x, y = digits.x_train[:512].astype("float32"), digits.y_train[:512]
    tuning = dprp.FineTuning(epochs=3, learning_rate=0.02, batch_size=64)

    def run(folder: Path, *callbacks: keras.callbacks.Callback) -> dprp.Compressed:
        return dprp.bsr(
            dense,
            budget=dprp.Budget(parameters=0.5, tolerance=0.05),
            data=(x[:96], y[:96]),
            training_data=(x, y),
            search=BeamSearch(step=6, beams=2, samples=96),
            strength=2.0,
            growth=2.0,
            growth_epochs=1,
            regularized=tuning,
            tuning=replace(tuning, epochs=2),
            folder=folder,
            callbacks=callbacks,
        )

    whole = run(tmp_path / "whole")
    assert whole.plan.shares["parameters"] <= 0.5
    assert [entry["rank_strength"] for entry in whole.regularized] == [2.0, 4.0, 8.0]
    assert whole.regularized[-1]["rank_loss"] < 0.7 * whole.regularized[0]["rank_loss"]
    assert len(whole.tuned) == 2
    assert _accuracy(whole.model, digits) > 0.8
    # Beside a cut without the preparation.
    plain = dprp.cut(dense, whole.plan)
    assert whole.model.count_params() == plain.count_params()
    for stop in (1, 4):  # in the training before the cut, and after it
        folder = tmp_path / f"stopped{stop}"
        with pytest.raises(KeyboardInterrupt):
            run(folder, _Stop(stop))
        again = run(folder)
        for own, expected in zip(again.model.weights, whole.model.weights, strict=True):
            np.testing.assert_allclose(own, expected, rtol=1e-4, atol=1e-6)
        assert len(again.regularized) == 3
        assert len(again.tuned) == 2
    with pytest.raises(ValueError, match="same settings"):
        dprp.bsr(
            dense,
            budget=dprp.Budget(parameters=0.5, tolerance=0.05),
            data=(x[:96], y[:96]),
            training_data=(x, y),
            search=BeamSearch(step=6, beams=2, samples=96),
            regularized=replace(tuning, learning_rate=0.1),
            folder=tmp_path / "whole",
        )
    # What was pressed towards other ranks, or by another strength, is not gone on from.
    for ours, differing in (({"strength": 1.0}, "strength"), ({"share": 0.6}, "ranks")):
        share = ours.pop("share", 0.5)
        with pytest.raises(ValueError, match=rf"same settings.*'{differing}'"):
            dprp.bsr(
                dense,
                budget=dprp.Budget(parameters=share, tolerance=0.05),
                data=(x[:96], y[:96]),
                training_data=(x, y),
                search=BeamSearch(step=6, beams=2, samples=96),
                **{"strength": 2.0, "growth": 2.0, "growth_epochs": 1, **ours},
                regularized=tuning,
                tuning=replace(tuning, epochs=2),
                folder=tmp_path / "whole",
            )


@pytest.mark.filterwarnings("ignore:`calibration_data`")
def test_bsr_cuts_as_its_plan_says(dense: keras.Model, digits: Dataset) -> None:
    data = digits.x_train[:128].astype("float32"), digits.y_train[:128]
    none = dprp.FineTuning(epochs=0)
    budget = dprp.Budget(parameters=0.4, tolerance=0.05)
    found = dprp.bsr(
        dense,
        budget=budget,
        data=data,
        training_data=data,
        search="activation",
        regularized=none,
        tuning=none,
    )
    assert found.plan.truncation == "output"
    for calibration, same in ((data[0], True), (None, False)):
        small = dprp.cut(dense, found.plan, calibration_data=calibration)
        expected = small.predict(data[0], verbose=0)
        own = found.model.predict(data[0], verbose=0)
        assert np.allclose(own, expected, rtol=1e-3, atol=1e-3) is same


def test_settings_mean_what_they_say(dense: keras.Model, digits: Dataset, tmp_path: Path) -> None:
    settings = SelectionSettings(
        method="energy",
        budget=dprp.Budget(parameters=0.8, tolerance=0.2),
        exclude=("second",),
        precision=None,
    )
    select_in_folder(tmp_path, dense, digits, settings)
    plan = RankPlan.load(tmp_path / "rank_plan.json")
    assert [row.name for row in plan.layers] == ["first", "classes"]
    # Candidates are only trained in a search for an accuracy.
    tuned = replace(settings, method="similarity", tuning=dprp.FineTuning(epochs=1))
    free = selector_of(tuned)
    assert isinstance(free, FeatureSimilarity)
    assert free.tuning is None
    dropping = selector_of(replace(tuned, budget=dprp.Budget(accuracy_drop=0.1)))
    assert isinstance(dropping, FeatureSimilarity)
    assert dropping.tuning == tuned.tuning


@pytest.mark.slow
def test_what_a_search_fine_tuned_is_not_fine_tuned_again(
    dense: keras.Model, digits: Dataset, tmp_path: Path
) -> None:
    settings = SelectionSettings(
        method="similarity",
        budget=dprp.Budget(accuracy_drop=0.6),
        decomposition="channel",
        tuning=dprp.FineTuning(epochs=1, learning_rate=0.05, batch_size=64),
        precision=None,
    )
    found = select_in_folder(tmp_path, dense, digits, settings)
    assert not (tmp_path / "tuned").exists()
    searched = keras.saving.load_model(tmp_path / "similarity" / "fine_tuned.keras")
    kept = keras.saving.load_model(tmp_path / "model.keras")
    x = digits.x_test.astype("float32")
    np.testing.assert_array_equal(kept.predict(x, verbose=0), searched.predict(x, verbose=0))
    assert kept.count_params() < dense.count_params()
    assert found["accuracy"]["tuned"] == pytest.approx(_accuracy(kept, digits))
    cut = keras.saving.load_model(tmp_path / "cut.keras")
    assert cut.count_params() == kept.count_params()
    assert found["accuracy"]["cut"] == pytest.approx(_accuracy(cut, digits))
    assert found["accuracy"]["cut"] != found["accuracy"]["tuned"]


def test_a_time_that_cannot_be_met_leaves_the_folder_for_another(
    dense: keras.Model, digits: Dataset, tmp_path: Path, known_costs: list[dict[str, Any]]
) -> None:
    settings = SelectionSettings(budget=dprp.Budget(time=0.001), runtime="onnxruntime", samples=128)
    with pytest.raises(ValueError, match="`time` must be at least"):
        select_in_folder(tmp_path, dense, digits, settings)
    assert len(known_costs) == 1
    assert {path.name for path in tmp_path.iterdir()} <= {".lock"}


def test_fresh_discards_what_an_earlier_selection_left(
    dense: keras.Model, digits: Dataset, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"budget": {"macs": 0.5}, "decomposition": "tucker"}')
    (tmp_path / "selection.json").write_text("{}")
    (tmp_path / "tuned").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    settings = SelectionSettings(method="energy", budget=dprp.Budget(parameters=0.01))
    with pytest.raises(ValueError, match="`folder` must hold a selection with the same settings"):
        select_in_folder(tmp_path, dense, digits, settings)
    with pytest.raises(ValueError, match="`parameters` must be at least"):
        select_in_folder(tmp_path, dense, digits, settings, fresh=True)
    assert {path.name for path in tmp_path.iterdir()} - {".lock"} == {"notes.txt"}


def test_images_on_disk_are_not_read_to_hold_some_out(tmp_path: Path) -> None:
    for name, value in (("a", 50), ("b", 200)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8), (value, 0, 0)).save(tmp_path / name / "1.png")
    labels = np.arange(40) % 2
    images = StreamedImages(tmp_path, ("a", "b"), np.full(40, b"1.png"), labels, (8, 8))
    data = Dataset("d", images, labels, images, labels, ("a", "b"), ResizedCrop())
    (held, y), rest = _held_out(data, 10, 0)
    assert held.shape == (10, 8, 8, 3)
    np.testing.assert_array_equal(held[:, 4, 4, 0], np.where(y, 200, 50))
    assert isinstance(rest.x_train, StreamedImages)
    assert len(rest.x_train) == 30
    np.testing.assert_array_equal(rest.x_train[:][:, 4, 4, 0], np.where(rest.y_train, 200, 50))


def test_samples_held_out_are_of_every_class_alike() -> None:
    labels = np.repeat([0, 1, 2, 3], [61, 30, 8, 1])
    images = np.arange(100, dtype="uint8").reshape(-1, 1, 1, 1)
    data = Dataset("d", images, labels, images, labels, ("a", "b", "c", "d"))
    (held, y), rest = _held_out(data, 15, 0)
    # A class of eight gives half, one of a single image stays with the training.
    assert np.bincount(y, minlength=4).tolist() in ([6, 5, 4, 0], [5, 6, 4, 0])
    taken = held.ravel().astype(int)
    np.testing.assert_array_equal(labels[taken], y)
    # Every image is in one of the two, and with its label.
    assert sorted([*taken, *rest.x_train.ravel()]) == list(range(100))
    np.testing.assert_array_equal(labels[rest.x_train.ravel()], rest.y_train)
    (other, _), _ = _held_out(data, 15, 1)
    assert other.ravel().tolist() != held.ravel().tolist()


def test_outputs_may_be_kept_in_place_of_kernels(
    dense: keras.Model, digits: Dataset, tmp_path: Path
) -> None:
    settings = SelectionSettings(
        method="activation",
        budget=dprp.Budget(parameters=0.4, tolerance=0.05),
        decomposition="channel",
        samples=128,
        precision=None,
    )
    found = select_in_folder(tmp_path, dense, digits, settings)
    plan = RankPlan.load(tmp_path / "rank_plan.json")
    assert plan.truncation == "output"
    with pytest.warns(UserWarning, match="`calibration_data` should be given"):
        other = dprp.cut(dense, plan)
    assert found["accuracy"]["cut"] != pytest.approx(_accuracy(other, digits))
    assert "tuned" not in found["accuracy"]
