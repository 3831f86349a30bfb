"""Options made from settings: every field is reachable, says its choices, and keeps its default."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass, fields
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from dprp_tf.cli.console import print_json
from dprp_tf.cli.main import app
from dprp_tf.cli.options import with_settings
from dprp_tf.costs.budget import Budget
from dprp_tf.files.setting_fields import check_settings, setting
from dprp_tf.runs.settings import SelectionSettings, TrainSettings
from dprp_tf.selection import SELECTORS
from dprp_tf.selection.channel_choice import CHANNEL_METHODS
from dprp_tf.training.regularizers import NAMES, RANKED_NAMES


@dataclass(frozen=True)
class Baking:
    """Settings of every kind."""

    flour: str = setting("wheat", "The flour.", choices=("wheat", "rye"))
    grams: int = setting(500, "How much.", minimum=1)
    salt: float = setting(0.02, "Its share.", minimum=0, below=1)
    knead: bool = setting(True, "Whether it is kneaded.")
    proof: str | None = setting("cold", "How it proofs, or none.")
    hours: int | None = setting(None, "How long.", minimum=1, none_means="until it has doubled")
    seeds: tuple[str, ...] = setting((), "A kind of seed; repeat for more.")

    def __post_init__(self) -> None:
        check_settings(self)


def baker() -> tuple[typer.Typer, list[dict[str, Any]]]:
    kitchen, baked = typer.Typer(), []

    @kitchen.command()
    @with_settings("settings", Baking, required=("flour",))
    def bake(
        oven: Annotated[str, typer.Argument()],
        settings: dict[str, Any],
        hot: Annotated[bool, typer.Option()] = False,
    ) -> None:
        baked.append({"oven": oven, "hot": hot, **settings})

    return kitchen, baked


def test_defaults_are_those_of_the_class() -> None:
    kitchen, baked = baker()
    result = CliRunner().invoke(kitchen, ["stone", "--flour", "wheat"])
    assert result.exit_code == 0, result.output
    assert baked == [{"oven": "stone", "hot": False, **vars(Baking())}]


def test_every_kind_of_field_is_given() -> None:
    kitchen, baked = baker()
    words = "stone --flour rye --grams 7 --salt 0.5 --no-knead --proof none --hours 3 --hot"
    result = CliRunner().invoke(kitchen, [*words.split(), "--seeds", "flax", "--seeds", "poppy"])
    assert result.exit_code == 0, result.output
    assert baked[0].pop("oven") == "stone"
    assert baked[0].pop("hot") is True
    assert Baking(**baked[0]) == Baking("rye", 7, 0.5, False, None, 3, ("flax", "poppy"))


@pytest.mark.parametrize("words", ["stone", "stone --flour rye --grams 0"])
def test_what_is_missing_or_out_of_range_is_refused(words: str) -> None:
    kitchen, baked = baker()
    assert CliRunner().invoke(kitchen, words.split()).exit_code == 2
    assert not baked


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("flour", "oat"),
        ("grams", 0),
        ("grams", 1.5),
        ("grams", True),
        ("salt", 1.0),
        ("salt", float("nan")),
        ("knead", 2),
        ("hours", 0),
    ],
)
def test_settings_are_checked(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be .* Received: {name}="):
        Baking(**{name: value})


def parameters_of(command: str) -> dict[str, Any]:
    found = typer.main.get_command(app).commands[command]  # type: ignore[attr-defined]
    return {parameter.name: parameter for parameter in found.params}


@pytest.mark.parametrize(
    ("command", "settings", "own"),
    [
        ("train", TrainSettings(), {"model"}),
        ("select", SelectionSettings(budget=Budget.of(0.5)), {"budget", "searches", "tuning"}),
        ("select", Budget(macs=0.5), {"macs"}),
    ],
)
def test_every_setting_is_an_option_with_the_same_default(
    command: str, settings: Any, own: set[str]
) -> None:
    options = parameters_of(command)
    for entry in fields(settings):
        if entry.name not in own:
            # Of what is looked up later the class itself has none.
            default = getattr(type(settings), entry.name)
            assert options[entry.name].default == (default or None if default == () else default)
            assert options[entry.name].help


@pytest.mark.parametrize(
    ("command", "option", "names"),
    [
        ("train", "compression", [*(set(NAMES) - set(RANKED_NAMES)), "none"]),
        ("select", "method", [*SELECTORS, "bsr", *CHANNEL_METHODS, "less"]),
        ("select", "cut", ["ranks", "channels", "both"]),
    ],
)
def test_the_help_lists_every_name_there_is(command: str, option: str, names: list[str]) -> None:
    words = re.split(r"[\s,.;:]+", parameters_of(command)[option].help)
    assert set(names) <= set(words)


def test_help_does_not_wait_for_keras() -> None:
    program = (
        "import sys; from dprp_tf.cli.main import app\n"
        "try: app(['--help'])\n"
        "except SystemExit as done: assert done.code == 0\n"
        "assert not {'keras', 'tensorflow', 'jax'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "select" in done.stdout


def test_errors_name_the_options() -> None:
    words = "train --model lenet5 --data digits --folder unused"
    result = CliRunner().invoke(app, [*words.split(), "--threshold", "3"])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: `--threshold` must be")


def test_json_on_the_command_line_knows_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"val_accuracy": float("nan"), "rank": 3})
    told = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert told == {"val_accuracy": None, "rank": 3}
