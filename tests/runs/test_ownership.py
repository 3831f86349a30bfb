"""No command writes over another's folder, or over what a person has put there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import pytest
from typer.testing import CliRunner

import dprp_tf as dprp
from dprp_tf.cli.main import app
from dprp_tf.data import Dataset, load
from dprp_tf.experiments.table_ii import reproduce
from dprp_tf.runs.demo import run_demo
from dprp_tf.runs.ownership import DEMO, REPRODUCTION, SELECTION, TRAINING, Owner, require_own
from dprp_tf.runs.selecting import select_in_folder
from dprp_tf.runs.settings import SelectionSettings, TrainSettings
from dprp_tf.runs.training import train

Command = Callable[[Path, keras.Model, Dataset, bool], Any]


def _select(folder: Path, model: keras.Model, data: Dataset, fresh: bool) -> Any:
    settings = SelectionSettings(method="uniform", budget=dprp.Budget.of(0.5))
    return select_in_folder(folder, model, data, settings, fresh=fresh)


def _train(folder: Path, model: keras.Model, data: Dataset, fresh: bool) -> Any:
    return train(folder, TrainSettings(model="resnet20", epochs=1), data, fresh=fresh)


def _demo(folder: Path, model: keras.Model, data: Dataset, fresh: bool) -> Any:
    return run_demo(folder, epochs=1, fresh=fresh)


def _reproduce(folder: Path, model: keras.Model, data: Dataset, fresh: bool) -> Any:
    # The folder of its runs is held by `train`, that of its results by itself.
    work, results = folder.parent / "work", folder.parent
    return reproduce(folder.name, data, epochs=1, work=work, results=results)


COMMANDS: dict[str, Command] = {
    "train": _train,
    "select": _select,
    "demo": _demo,
    "reproduce": _reproduce,
}
# What the folder's mark holds, and the command whose own the folder is.
HELD: dict[str, tuple[dict[str, Any] | None, str | None]] = {
    "a training run": ({"settings": {"decomposition": "spatial"}, "data": "digits"}, "train"),
    "a selection": ({"budget": {"macs": 0.5}, "decomposition": "spatial"}, "select"),
    "a demo": ({"demo": "resnet_small"}, "demo"),
    "files of another origin": (None, None),
    # A file of the same name, of another program.
    "files of another origin ": ({"settings": {"theme": "dark"}}, None),
}


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits", image_size=8)


@pytest.fixture
def model() -> keras.Model:
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(4, 3, name="conv")(inputs)
    return keras.Model(inputs, keras.layers.Dense(10)(keras.layers.Flatten()(x)))


def _content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize(
    ("command", "held"),
    [(one, held) for one in COMMANDS for held in HELD if HELD[held][1] != one],
)
def test_what_is_anothers_stays_byte_for_byte(
    command: str, held: str, fresh: bool, model: keras.Model, digits: Dataset, tmp_path: Path
) -> None:
    mark, _ = HELD[held]
    folder = tmp_path / "resnet20-dense"
    folder.mkdir()
    for name in ("model.keras", "results.json", "history.json", "candidates.jsonl"):
        (folder / name).write_text("a week's work")
    if mark is not None:
        (folder / "config.json").write_text(json.dumps(mark))
    before = _content(tmp_path)
    with pytest.raises(ValueError, match=rf"`folder` must be new or.* holds {held.strip()}: ") as e:
        COMMANDS[command](folder, model, digits, fresh)
    assert "\n" not in str(e.value)
    assert "history.json" in str(e.value) or command == "select"
    assert _content(tmp_path) == before


@pytest.mark.parametrize("owner", [TRAINING, SELECTION, DEMO, REPRODUCTION], ids=lambda o: o.what)
def test_every_file_an_owner_writes_is_asked_for(owner: Owner, tmp_path: Path) -> None:
    for number, pattern in enumerate((*owner.writes, owner.mark)):
        place = tmp_path / str(number)
        path = place / pattern.replace("[0-9]", "7").replace("*", "x")
        path.parent.mkdir(parents=True)
        path.write_text("{}")
        with pytest.raises(ValueError, match=path.name):
            require_own(place, owner)
        (place / owner.mark).write_text(json.dumps(dict.fromkeys(owner.keys)))
        require_own(place, owner)
        assert path.relative_to(place).as_posix() in owner.held(place)
    require_own(tmp_path / "new", owner)
    (tmp_path / "notes.txt").write_text("mine")
    require_own(tmp_path, owner)


def test_a_damaged_mark_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"settings": {"model"')
    with pytest.raises(ValueError, match=r"of another origin: config\.json"):
        require_own(tmp_path, TRAINING)


@pytest.mark.parametrize("fresh", [False, True])
def test_the_model_to_start_from_is_not_one_that_the_run_replaces(
    fresh: bool, digits: Dataset, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"settings": {}, "data": "digits"}')
    (tmp_path / "model.keras").write_bytes(b"trained for a week")
    settings = TrainSettings(model=str(tmp_path / "model.keras"), epochs=1)
    with pytest.raises(ValueError, match="`model` must not be a file that the run"):
        train(tmp_path, settings, digits, fresh=fresh)
    assert (tmp_path / "model.keras").read_bytes() == b"trained for a week"


def test_a_model_that_cannot_be_made_takes_no_earlier_run_with_it(
    digits: Dataset, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"settings": {}, "data": "digits"}')
    for name in ("state.json", "history.json", "ranks.json", "model.keras"):
        (tmp_path / name).write_text("{}")
    before = _content(tmp_path)
    # A model beside the run's files is no such file.
    absent = str(tmp_path / "absent.keras")
    with pytest.raises(FileNotFoundError):
        train(tmp_path, TrainSettings(model=absent), digits, fresh=True)
    assert _content(tmp_path).items() - {(".lock", b"")} == before.items()


@pytest.mark.slow
@pytest.mark.parametrize("fresh", [[], ["--fresh"]], ids=["", "fresh"])
def test_the_commands_refuse_each_others_folders(
    fresh: list[str], model: keras.Model, tmp_path: Path
) -> None:
    start, folder = tmp_path / "mine.keras", tmp_path / "runs"
    model.save(start)

    def run(command: str, *rest: Any) -> Any:
        given = [command, *rest, "--data", "digits", "--image-size", "8"]
        return CliRunner().invoke(app, [*map(str, given), *fresh])

    select = ("select", start, "--method", "uniform", "--parameters", "0.7", "--tolerance", "0.3")
    train = ("train", "--model", start, "--epochs", "1", "--learning-rate", "1e-4")
    ways = {"selected": (select, train), "trained": (train, select)}
    for name, (first, second) in ways.items():
        done = run(*first, "--folder", folder / name)
        assert done.exit_code == 0, done.output
        before = _content(folder / name)
        refused = run(*second, "--folder", folder / name)
        assert refused.exit_code != 0
        assert refused.output.startswith("error: `--folder` must be new or hold")
        assert refused.output.count("\n") == 1
        assert _content(folder / name) == before
