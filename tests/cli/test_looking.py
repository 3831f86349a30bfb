"""What is a path, what comes next: commands that lead on, and messages in the command's words."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import keras
import pytest
from typer.testing import CliRunner

import dprp_tf as dprp
from dprp_tf.cli.main import app
from dprp_tf.cli.wording import in_options


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def next_commands(output: str) -> list[list[str]]:
    """The words after `dprp` of each command that is named as the next one."""
    found = re.findall(r"^next, [^:]+: dprp (.*)$", output, re.MULTILINE)
    assert found, output
    return [shlex.split(line) for line in found]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    keras.utils.set_random_seed(4)
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.Conv2D(16, 3, activation="relu")(x)
    x = keras.layers.Conv2D(24, 3, strides=2, activation="relu")(x)
    x = keras.layers.Dense(10)(keras.layers.Flatten()(x))
    path = tmp_path_factory.mktemp("my models") / "mine.keras"
    keras.Model(inputs, x).save(path)
    return path


def test_a_model_is_told_with_its_costs_and_what_comes_next(dense: Path) -> None:
    result = invoke(dense)
    assert result.exit_code == 0, result.output
    # 160 + 3,480 + 970 weights; 36 positions of 144 products, 4 of 3,456, and 960.
    for part in ("8x8x1 to 10", "4,610 parameters", "19,968 MACs", "100% of", "in 3 layers"):
        assert part in result.stdout
    steps = next_commands(result.stdout)
    order = ["look", "compress", "select", "train", "channels", "export", "bench"]
    assert [words[0] for words in steps] == order
    assert all(str(dense) in words for words in steps[:-1]), "the real path, blanks and all"
    found = json.loads(invoke(dense, "--json").stdout)
    assert found["model"]["parameters"] == 4610
    assert found["model"]["factorizable_share"] == 1.0
    assert found["next"][0][:2] == ["dprp", "look"]


def test_low_rank_layers_lead_to_a_plan(dense: Path, tmp_path: Path) -> None:
    path = tmp_path / "low.keras"
    dprp.save_model(dprp.factorize(dprp.load_model(dense)), path)
    steps = next_commands(invoke(path).stdout)
    assert [words[0] for words in steps] == ["look", "plan", "fold"]


def test_plain_layers_are_no_dead_end(dense: Path, tmp_path: Path) -> None:
    for words in (("plan", dense, tmp_path / "p.json"), ("fold", dense, tmp_path / "s.keras")):
        result = invoke(*words)
        assert result.exit_code == 2
        (line,) = (line for line in result.stderr.splitlines() if line.startswith("error"))
        assert line.startswith("error: `MODEL` must have low-rank layers, as `dprp train` makes")
        assert "factorize" not in line
        for name in ("export", "bench"):
            assert f"dprp {name} '" in line
    assert list(tmp_path.iterdir()) == []


def test_a_model_and_its_data_are_seen_together(dense: Path) -> None:
    result = invoke(dense, "digits")
    assert result.exit_code == 0, result.output
    assert "digits: " in result.stdout
    assert "images of 8x8x1, 10 classes" in result.stdout, "the size is the model's"
    assert re.search(r"first look: \d+% of 300 test images are right", result.stdout)
    assert "warning: Guessing: " in result.stderr
    assert "(`--mean`, `--std`)" in result.stderr
    steps = next_commands(result.stdout)
    assert all("digits" in words for words in steps if words[0] != "channels")


def test_a_folder_that_was_written_is_told_without_keras(tmp_path: Path) -> None:
    chosen, trained = tmp_path / "chosen", tmp_path / "trained"
    for folder, name, content in (
        (chosen, "selection", {"shares": {"macs": 0.31}, "accuracy": {"dense": 0.9, "cut": 0.8}}),
        (
            trained,
            "results",
            {"title": "A on B", "models": [{"label": "a", "accuracy": 0.5, "parameters": 1234}]},
        ),
    ):
        folder.mkdir()
        (folder / f"{name}.json").write_text(json.dumps(content))
    (chosen / "cut.keras").touch()
    result = invoke(chosen, "digits")
    for part in ("ranks chosen", "macs: 31.0%", "accuracy, cut: 80.00%"):
        assert part in result.stdout
    for words in next_commands(result.stdout):
        assert words[-2:] == ["--data", "digits"]
    assert str(chosen / "cut.keras") in next_commands(result.stdout)[0]
    for plan, told in (("channel_plan", "channels chosen"), ("joint_plan", "channels and ranks")):
        (chosen / f"{plan}.json").write_text("{}")
        assert told in invoke(chosen).stdout
    (chosen / "model.keras").touch()
    assert str(chosen / "model.keras") in next_commands(invoke(chosen).stdout)[0]
    (trained / "folded.keras").touch()
    result = invoke(trained)
    assert "A on B" in result.stdout
    assert "a: 50.00%, 1,234 parameters" in result.stdout
    assert [w[0] for w in next_commands(result.stdout)] == ["plan", "fold", "report"]
    (trained / "results.json").write_text("{")
    assert invoke(trained).exit_code == 2


def test_only_paths_may_stand_for_a_command(tmp_path: Path, dense: Path) -> None:
    unknown = invoke("selct")
    assert unknown.exit_code == 2
    assert "No such command 'selct'" in unknown.output
    missing = invoke(tmp_path / "no.keras")
    assert missing.exit_code == 2
    assert missing.stderr.startswith("error: `THINGS` must be a .keras file")
    assert invoke(dense, dense).exit_code == 2
    assert "Usage" in invoke("--help").output


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("`source` must exist. Received: source='x'", "`--data` must exist. Received: --data 'x'"),
        (
            "Use quantization='int8' or `image_size=32`. Received: samples=3; give samples=4.",
            "Use `--quantization int8` or `--image-size 32`. Received: --samples 3; give "
            "`--samples 4`.",
        ),
        ("make one with dprp_tf.fold(model).", "make one with `dprp fold`."),
        ("`Conv2D` and `other(x=1)` stay, dprp_tf.DPRPModel too.", None),
        ("`class_scores=False` is said.", "`--no-class-scores` is said."),
    ],
)
def test_messages_speak_the_words_of_the_command(
    message: str, expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise ValueError(message)

    monkeypatch.setattr("dprp_tf.training.saving.load_model", refuse)
    result = invoke("export", "a.keras", tmp_path / "a.tflite")
    assert result.stderr.splitlines()[-1] == f"error: {expected or message}"
    assert in_options(message) == (expected or message)


@pytest.mark.slow
def test_what_is_printed_can_be_done(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DPRP_TF_CACHE", str(tmp_path / "cache"))
    done = []
    pending = next_commands(invoke(dense, "digits").stdout)
    select = next(words for words in pending if words[0] == "select")
    train = next(words for words in pending if words[0] == "train")
    train += ["--epochs", "1", "--learning-rate", "0.01"]
    select += ["--epochs", "1"]
    pending = [select, train]
    while pending:
        words = pending.pop(0)
        result = invoke(*words)
        assert result.exit_code == 0, (words, result.output)
        done.append(words[0])
        if words[0] not in ("bench", "report"):
            for printed in next_commands(result.stdout):
                step = ["digits" if word == "PHOTOS" else word for word in printed]
                if step not in pending:
                    pending.append(step)
    assert {"select", "train", "plan", "fold", "export", "bench"} <= set(done)


def test_what_a_run_is_writing_or_removing_meanwhile_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "history.json").write_text('{"runs": {}}', encoding="utf-8")
    (tmp_path / f".state.{32 * '0'}.json").write_text('{"epo', encoding="utf-8")
    # Its name was listed, and then the run removed it.
    (tmp_path / "results.json").symlink_to(tmp_path / "gone.json")
    result = invoke(tmp_path)
    assert result.exit_code == 0, result.output
    assert "a training that is not finished" in result.stdout


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (
            {"settings": {"model": "resnet20", "epochs": 30}, "data": "cifar10"},
            (
                "the settings of a training run alone: no epoch has been trained to its end yet",
                "resnet20 on cifar10, epochs: 30",
                "the same `dprp train` goes on",
            ),
        ),
        (
            {"budget": {}, "decomposition": "spatial"},
            ("the settings of a selection alone: no ranks have been chosen", "`dprp select` goes"),
        ),
        ({"demo": 1}, ("the settings of a demo alone: nothing has been", "`dprp demo` goes on")),
    ],
)
def test_a_run_of_which_only_the_settings_are_there_is_told_as_such(
    config: dict[str, Any], told: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    result = invoke("look", tmp_path)
    assert result.exit_code == 0, result.output
    for part in told:
        assert part in result.stdout
    assert "times of files" not in result.stdout
    assert "next, " not in result.stdout, "nothing is there that a page could show"
    assert json.loads(invoke("look", tmp_path, "--json").stdout)["next"] == []


def test_a_demo_is_told_by_its_results_and_not_as_the_selection_within(tmp_path: Path) -> None:
    model = {"name": "cut", "label": "Channels and ranks cut", "accuracy": 0.9, "parameters": 60}
    parts = {
        "config": {"demo": "resnet_small"},
        "results": {"title": "DPRP on handwritten digits", "models": [model]},
        "joint_plan": {},
    }
    for name, value in parts.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    result = invoke("look", tmp_path)
    assert result.exit_code == 0, result.output
    assert "DPRP on handwritten digits" in result.stdout
    assert "Channels and ranks cut: 90.00%, 60 parameters" in result.stdout
    assert "interrupted" not in result.stdout
    assert str(tmp_path / "cut" / "model.keras") in result.stdout


def test_a_config_of_anything_else_makes_no_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"settings": 1}')
    result = invoke("look", tmp_path)
    assert result.exit_code == 2
    assert "settings of" not in result.output
