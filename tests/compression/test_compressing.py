"""The whole way from a trained model to the best file, on digits and this machine."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from digits_network import digits_network
from told_widths import told_widths
from typer.testing import CliRunner

import dprp_tf as dprp
from dprp_tf import deploy
from dprp_tf.cli.main import app
from dprp_tf.compression import filing
from dprp_tf.costs.width_table import WidthTable
from dprp_tf.data import Dataset
from dprp_tf.data import load as load_data

# By size and not by time: on some processors every operator of so small a network costs the same,
# and no file is quicker than the dense one.
SEARCH = {"minutes": 0.7, "samples": 64, "max_drop": 0.03, "smallest": True}


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_data("digits", image_size=8)


@pytest.fixture(scope="module")
def dense(digits: Dataset) -> keras.Model:
    return digits_network(digits, 24, 32)


@pytest.fixture
def known_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times that are told instead of measured, to save their seconds."""

    def measure(model: Any, **options: Any) -> WidthTable:
        place = {name: options[name] for name in ("target", "runtime", "precision", "threads")}
        return told_widths(model, options["decomposition"], **place)

    monkeypatch.setattr(deploy, "measure_widths", measure)


@pytest.fixture(scope="module")
def found(
    dense: keras.Model, digits: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dprp.BestFile, float]:
    """A search that was left to itself, and the seconds it took."""
    began = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        known_widths.__wrapped__(patch)  # type: ignore[attr-defined]
        best = dprp.compress(dense, digits, folder=tmp_path_factory.mktemp("best"), **SEARCH)
    return best, time.monotonic() - began


@pytest.mark.slow
def test_the_best_file_is_there_and_computes_what_is_told_of_it(
    found: tuple[dprp.BestFile, float], dense: keras.Model, digits: Dataset
) -> None:
    best, _ = found
    assert best.met
    assert best.path.name == "best.tflite"
    (row,) = (row for row in best.results["front"] if row["best"])
    # Nothing was called best that was not measured as a file, and it is not the dense one.
    assert not row["dense"]
    assert best.path.read_bytes() == (best.path.parent / "files" / row["file"]).read_bytes()
    order = np.random.default_rng(0).permutation(len(digits.y_test))
    told = np.sort(order[len(order) // 2 :])
    right = deploy.evaluate_file(best.path, digits.x_test[told], digits.y_test[told])
    assert right == pytest.approx(row["accuracy"])
    # The model is smaller, works, and is not the one that was given.
    assert best.model.count_params() < dense.count_params()
    x = digits.x_test[told].astype("float32")
    small, whole = (model.predict(x, verbose=0) for model in (best.model, dense))
    assert np.abs(small - whole).max() > 1e-3
    assert np.mean(np.argmax(small, -1) == digits.y_test[told]) > 0.9


@pytest.mark.slow
def test_the_dense_files_of_every_precision_take_part(found: tuple[dprp.BestFile, float]) -> None:
    rows = found[0].results["front"]
    assert {row["label"] for row in rows if row["dense"]} == {
        f"TFLite {precision}, dense" for precision in ("float32", "float16", "int8")
    }
    assert rows[0]["time"] == rows[0]["size"] == 1


@pytest.mark.slow
def test_the_front_holds_no_file_that_another_beats(found: tuple[dprp.BestFile, float]) -> None:
    best, _ = found
    rows = best.results["front"]
    for one in rows:
        beaten = any(
            other["score"] >= one["score"]
            and other["time"] <= one["time"]
            and other["size"] <= one["size"]
            and other is not one
            for other in rows
        )
        assert one["beaten"] == beaten
    assert best.front == sorted(best.front, key=lambda row: row["time"])
    assert {row["file"] for row in best.front} == {r["file"] for r in rows if not r["beaten"]}


@pytest.mark.slow
def test_the_search_goes_through_its_stages_in_its_minutes(
    found: tuple[dprp.BestFile, float],
) -> None:
    best, seconds = found
    stages = [row["stage"] for row in best.results["search"]]
    assert stages[0] == "cut"
    assert "finished" in stages
    # What an interpreter that begins compiles is not in the time that a step was seen to take.
    assert seconds < 1.5 * 60 * SEARCH["minutes"] + 10
    assert best.results["minutes"] == pytest.approx(seconds / 60, abs=0.1)


@pytest.mark.slow
def test_all_is_told_in_the_folder(found: tuple[dprp.BestFile, float]) -> None:
    folder = found[0].path.parent
    results = json.loads((folder / "results.json").read_text())
    assert results["front"] == found[0].results["front"]
    page = (folder / "report.html").read_text()
    # The front is what people look at first, and the large figures are the winner's.
    assert 0 < page.index("The best file among all") < page.index('id="models"')
    (best,) = (row for row in results["front"] if row["best"])
    outcome = {"model": best["model"], "format": "TFLite int8"}
    assert results["headline"]["outcomes"] == [outcome]
    assert (folder / "plots" / "front.png").exists()
    assert (folder / "study.sqlite3").exists()


@pytest.mark.slow
def test_the_same_again_looks_for_nothing_more(
    found: tuple[dprp.BestFile, float], dense: keras.Model, digits: Dataset, tmp_path: Path
) -> None:
    place = tmp_path / "again"
    shutil.copytree(found[0].path.parent, place)
    before = found[0].results["search"]
    over = {**SEARCH, "minutes": 0.9 * found[0].results["minutes"]}
    again = dprp.compress(dense, digits, folder=place, **over)
    assert again.results["search"] == before
    assert again.met
    # The files are timed anew, so that of equally fast ones another may be the best.
    (best,) = (row for row in again.results["front"] if row["best"])
    assert again.path.read_bytes() == (place / "files" / best["file"]).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("changed", ["model", "data", "max_drop"])
def test_a_folder_of_another_search_is_refused_and_stays(
    found: tuple[dprp.BestFile, float],
    dense: keras.Model,
    digits: Dataset,
    tmp_path: Path,
    changed: str,
) -> None:
    place = tmp_path / "other"
    shutil.copytree(found[0].path.parent, place)
    model, data, search = dense, digits, dict(SEARCH)
    if changed == "model":
        model = keras.models.clone_model(dense)
    elif changed == "data":
        data = digits.with_rows(np.arange(400))
    else:
        search["max_drop"] = 0.01
    before = (place / "results.json").read_bytes()
    with pytest.raises(ValueError, match="`folder` must hold a search with the same settings"):
        dprp.compress(model, data, folder=place, **search)
    assert (place / "results.json").read_bytes() == before


@pytest.mark.usefixtures("known_widths")
def test_too_few_minutes_say_how_many_are_needed_and_lose_nothing(
    dense: keras.Model, digits: Dataset, tmp_path: Path
) -> None:
    few = {**SEARCH, "minutes": 0.02}
    with pytest.raises(ValueError, match="`minutes` must be enough for one candidate here, about"):
        dprp.compress(dense, digits, folder=tmp_path / "few", **few)
    assert (tmp_path / "few" / "dense.json").exists()


def test_inputs_and_labels_are_data_too(dense: keras.Model, digits: Dataset) -> None:
    from dprp_tf.compression.compressing import _dataset

    made = _dataset((digits.x_train[:200], digits.y_train[:200]))
    assert len(made.y_train) + len(made.y_test) == 200
    assert made.drawn_test_split
    assert set(made.y_train) == set(made.y_test) == set(range(10))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([1, 2], "`data` must be a Dataset"),
        ("nowhere", "nowhere"),
    ],
)
def test_data_that_are_none_are_refused(
    dense: keras.Model, tmp_path: Path, data: Any, message: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        dprp.compress(dense, data, folder=tmp_path)


@pytest.mark.slow
def test_a_target_that_goes_away_midway_is_waited_for(
    found: tuple[dprp.BestFile, float],
    dense: keras.Model,
    digits: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = tmp_path / "again"
    shutil.copytree(found[0].path.parent, place)
    timed, tried = filing.time_rows, []

    def gone_twice(*arguments: Any, **options: Any) -> Any:
        tried.append(time.monotonic())
        if len(tried) < 3:
            raise deploy.TargetError("no route to host")
        return timed(*arguments, **options)

    monkeypatch.setattr(filing, "time_rows", gone_twice)
    monkeypatch.setattr(filing, "_WAIT", 0.1)
    minutes = {**SEARCH, "minutes": found[0].results["minutes"] + 0.2}
    assert dprp.compress(dense, digits, folder=place, **minutes).met
    assert len(tried) >= 3


def _dprp(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def _with_an_outlier(model: keras.Model) -> keras.Model:
    """The same function, but of one channel so large that int8 leaves the others few steps."""
    wild = keras.models.clone_model(model)
    wild.set_weights(model.get_weights())
    wild.compile(loss=model.loss)
    first, second = wild.get_layer("first"), wild.get_layer("second")
    kernel, bias = first.get_weights()
    kernel[..., 0], bias[0] = 2000 * kernel[..., 0], 2000 * bias[0]
    first.set_weights([kernel, bias])
    kernel, bias = second.get_weights()
    kernel[:, :, 0] /= 2000
    second.set_weights([kernel, bias])
    return wild


@pytest.mark.slow
@pytest.mark.usefixtures("known_widths")
def test_what_int8_breaks_is_trained_with_its_rounding(
    dense: keras.Model, digits: Dataset, tmp_path: Path
) -> None:
    wild = _with_an_outlier(dense)
    # The layer with that channel stays as it is.
    search = {**SEARCH, "minutes": 1.5, "max_drop": 0.01, "exclude": ("first",)}
    best = dprp.compress(wild, digits, folder=tmp_path, **search)
    # What quantizing alone does to it is told, and ends nothing.
    (int8,) = (row for row in best.results["front"] if row["label"] == "TFLite int8, dense")
    assert (int8["verified"], int8["meets"], int8["best"]) == (False, False, False)
    assert int8["score"] < 0.6
    assert any("dense_int8.tflite" in note for note in best.results["notes"])
    steps = [row for row in best.results["search"] if row["stage"] == "quantized"]
    assert steps
    for step in steps:
        assert step["state"] == "complete"
        plain = next(
            row
            for row in best.results["search"]
            if row["stage"] == "finished" and row["of"] == step["of"]
        )
        assert step["score"] > plain["score"]
    rows = {row["label"]: row for row in best.results["front"]}
    rounded = [row for label, row in rows.items() if label.endswith("trained as int8")]
    assert rounded
    for row in rounded:
        path = tmp_path / "files" / row["file"]
        order = np.random.default_rng(0).permutation(len(digits.y_test))
        told = np.sort(order[len(order) // 2 :])
        right = deploy.evaluate_file(path, digits.x_test[told], digits.y_test[told])
        assert right == pytest.approx(row["accuracy"])
        assert path.with_name(f"{row['model']}.keras").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("known_widths")
def test_the_command_searches_shows_the_front_and_says_what_comes_next(
    dense: keras.Model, tmp_path: Path
) -> None:
    dense.save(tmp_path / "dense.keras")
    place = tmp_path / "phone"
    given = ["compress", tmp_path / "dense.keras", "--data", "digits", "--image-size", 8]
    given += ["--folder", place, "--samples", 64, "--minutes", 0.7, "--max-drop", 3]
    said = _dprp(*given)
    assert said.exit_code == 0, said.output
    assert "TFLite int8, dense" in said.output
    assert "best" in said.output
    assert "next, the same beside the dense file: dprp bench" in said.output
    assert json.loads((place / "config.json").read_text())["compression"]["max_drop"] == 0.03
    again = _dprp(*given, "--json")
    assert again.exit_code == 0
    assert json.loads(again.stdout)["front"]
    looked = _dprp(place)
    assert looked.exit_code == 0
    assert "The best file" in looked.output
    assert f"next, its time and accuracy: dprp bench {place / 'best.tflite'}" in looked.output
    packaged = _dprp("package", place, tmp_path / "ship")
    assert packaged.exit_code == 0, packaged.output
    card = (tmp_path / "ship" / "README.md").read_text()
    (best,) = (row for row in json.loads(again.stdout)["front"] if row["best"])
    assert f"{best['accuracy']:.2%}" in card
    refused = _dprp(*given[:-1], 1)
    assert refused.exit_code == 2
    assert len(refused.output.strip().splitlines()) == 1
    assert "differs in ['compression']" in refused.output


@pytest.mark.slow
def test_killed_three_times_at_random_moments_it_goes_on_and_nothing_is_lost(
    dense: keras.Model, tmp_path: Path
) -> None:
    dense.save(tmp_path / "dense.keras")
    place, moments = tmp_path / "phone", random.Random(3)
    words = ["compress", tmp_path / "dense.keras", "--data", "digits", "--image-size", 8]
    words += ["--folder", place, "--samples", 64, "--minutes", 1.2, "--max-drop", 3]
    words += ["--smallest"]
    command = [sys.executable, "-m", "dprp_tf.cli", *map(str, words)]
    complete: list[dict[str, Any]] = []
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(moments.uniform(18, 35))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kept = _completed(place)
        assert kept[: len(complete)] == complete
        complete = kept
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kept = _completed(place)
    assert kept[: len(complete)] == complete
    assert "finished" in {row["stage"] for row in kept}
    assert (place / "best.tflite").exists()


def _completed(place: Path) -> list[dict[str, Any]]:
    """The steps that came to their end, as the study holds them."""
    if not (place / "study.sqlite3").exists():
        return []
    import optuna

    study = optuna.load_study(
        study_name="compression", storage=f"sqlite:///{place / 'study.sqlite3'}"
    )
    return [
        {"number": trial.number, "stage": trial.params["stage"], "values": trial.values}
        for trial in study.get_trials()
        if trial.state.name == "COMPLETE"
    ]
