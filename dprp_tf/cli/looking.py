"""The command that says what a model, data or a run folder is, and what can be done with it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dprp_tf.cli.app import command
from dprp_tf.cli.console import load_keras, print_json, print_text
from dprp_tf.cli.inputs import load_data
from dprp_tf.cli.next_steps import (
    Step,
    data_options,
    say_next,
    steps_of_low_rank,
    steps_of_plain,
)
from dprp_tf.cli.options import ImageSize, Json, Mean, Std
from dprp_tf.runs.ownership import COMPRESSION, DEMO, SELECTION, TRAINING, owner_of

if TYPE_CHECKING:
    from dprp_tf.data import Dataset
    from dprp_tf.runs.first_look import FirstLook

__all__ = ["look"]

_FILES = (".tflite", ".onnx")
# What is missing, by whose folder it is, and the command that goes on.
_NOT_YET = {
    TRAINING: ("no epoch has been trained to its end yet", "train"),
    SELECTION: ("no ranks have been chosen yet", "select"),
    DEMO: ("nothing has been trained yet", "demo"),
    COMPRESSION: ("no file has been finished yet", "compress"),
}
_PLANS = {
    "joint_plan": "channels and ranks",
    "channel_plan": "channels",
    "rank_plan": "ranks",
}
# Any of these makes a folder one that a command wrote, if the settings of a run do not.
_WRITTEN = (
    *(f"{name}.json" for name in _PLANS),
    *("selection.json", "results.json", "history.json", "bench.json"),
)


@command
def look(
    things: Annotated[
        list[str],
        typer.Argument(help="A .keras, .tflite or .onnx file, data, or a run folder; or two."),
    ],
    image_size: ImageSize = None,
    mean: Mean = None,
    std: Std = None,
    as_json: Json = False,
) -> None:
    """Say what a model, data or a run folder is, and what comes next; `look` may be left out.

    Example: dprp mine.keras photos/
    """
    kinds = {_kind(thing): thing for thing in things}
    if len(kinds) < len(things) or {"run", "model"} <= set(kinds) or {"run", "file"} <= set(kinds):
        raise ValueError(
            "`things` must be a model, data, or both, or a run folder, perhaps with its data. "
            f"Received: {', '.join(f'{thing} ({_kind(thing)})' for thing in things)}"
        )
    data = kinds.get("data")
    words = data_options(data, image_size, mean, std)
    if "run" in kinds:
        facts, steps = _run(Path(kinds["run"]), words)
        _say({"run": facts}, steps, as_json)
        return
    load_keras()
    found: dict[str, Any] = {}
    network = None
    path = Path(kinds.get("model") or kinds.get("file") or "")
    if "model" in kinds:
        from dprp_tf.training.saving import load_model

        network = load_model(path)
        found["model"] = _model_facts(path, network)
    elif "file" in kinds:
        from dprp_tf.deploy.running.runtime import require_model_file

        network = require_model_file(path)
        found["model"] = {"told": f"{path}: {path.stat().st_size / 1000:,.0f} kB"}
    if data is not None:
        dataset = load_data(data, image_size, mean, std, network)
        found["data"] = {**dataset.description, "told": _data_told(dataset)}
        if network is not None:
            from dprp_tf.runs.evaluation import plain_model
            from dprp_tf.runs.first_look import first_look

            seen = first_look(
                network if isinstance(network, Path) else plain_model(network), dataset
            )
            seen.warn()
            found["data"] |= seen.as_dict()
            found["look"] = {
                "told": f"first look: {seen.accuracy:.0%} of {seen.samples} test images are right"
            }
            words = _with_scaling(words, data, image_size, seen)
    _say(found, _steps(kinds, path, found.get("model", {}), data, words), as_json)


def _kind(thing: str) -> str:
    path = Path(thing)
    if path.suffix == ".keras":
        return "model"
    if path.suffix in _FILES:
        return "file"
    if any((path / name).exists() for name in _WRITTEN) or owner_of(path) in _NOT_YET:
        return "run"
    return "data"


def _model_facts(path: Path, model: Any) -> dict[str, Any]:
    from dprp_tf.conversion.summaries import summarize
    from dprp_tf.conversion.writing_out import reachable

    # As every command that cuts it takes it.
    found = summarize(reachable(model))
    cost = found.cost
    able = [row for row in found.rows if row.skipped is None]
    low_rank = any(row.rank is not None for row in able)
    share = sum(row.parameters for row in able) / max(cost.parameters, 1)
    shapes = [
        " and ".join("x".join(map(_size, tensor.shape[1:])) for tensor in tensors)
        for tensors in (model.inputs, model.outputs)
    ]
    macs = "" if cost.macs is None else f", {cost.macs:,} MACs"
    layers = "low-rank layers hold" if low_rank else "can be factorized:"
    return {
        "input": shapes[0],
        "output": shapes[1],
        "parameters": cost.parameters,
        "macs": cost.macs,
        "low_rank": low_rank,
        "factorizable_share": share,
        "factorizable_layers": [row.name for row in able],
        "told": f"{path}: {shapes[0]} to {shapes[1]}, {cost.parameters:,} parameters{macs}; "
        f"{layers} {share:.0%} of the parameters, in {len(able)} layers",
    }


def _size(size: int | None) -> str:
    return "any" if size is None else str(size)


def _data_told(dataset: Dataset) -> str:
    names = ", ".join(dataset.classes[:6]) + (", …" if len(dataset.classes) > 6 else "")
    shape = "x".join(map(str, dataset.image_shape))
    return (
        f"{dataset.name}: {len(dataset.x_train):,} training and {len(dataset.x_test):,} test "
        f"images of {shape}, {len(dataset.classes)} classes ({names})"
    )


def _with_scaling(
    words: list[object], data: str, image_size: int | None, seen: FirstLook
) -> list[object]:
    """The options of the data with the scaling that was found missing."""
    found = seen.scaling
    if found is None or found.reversed_channels:
        return words
    plain = found.mean == (0.0,) and found.std == (1.0,)
    return data_options(
        data, image_size, None if plain else found.mean, None if plain else found.std
    )


def _steps(
    kinds: Mapping[str, str],
    path: Path,
    model: Mapping[str, Any],
    data: str | None,
    words: Sequence[object],
) -> list[Step]:
    if "file" in kinds:
        return [("its time and accuracy", ("bench", path, *words) if data else ("bench", path))]
    if "model" not in kinds:
        folder = Path("runs") / Path(data or "").name
        return [
            ("a look at it with a network of yours", ("look", "MINE.keras", data)),
            ("a network trained from scratch", ("train", *words, "--folder", folder)),
        ]
    look = [("a look at it with its data", ("look", path, "PHOTOS"))] if data is None else []
    if model["low_rank"]:
        return [*look, *steps_of_low_rank(path)]
    folder, trained = Path("runs") / path.stem, Path("runs") / f"{path.stem}-trained"
    # Half of the time can be too little for a small network; a drop of accuracy can always be met.
    faster = ("--accuracy-drop", 0.02, "--epochs", 20)
    best = Path("runs") / f"{path.stem}-best"
    return [
        *look,
        ("the best int8 file in an hour", ("compress", path, *words, "--folder", best)),
        ("a faster int8 file", ("select", path, *words, "--folder", folder, *faster)),
        ("ranks that fall in training", ("train", "--model", path, *words, "--folder", trained)),
        ("channels that could go", ("channels", path)),
        *steps_of_plain(path, words),
    ]


def _run(folder: Path, words: Sequence[object]) -> tuple[dict[str, Any], list[Step]]:
    """What a folder of a run or a selection holds, and what comes next; read without Keras."""
    # What is being written meanwhile has a hidden name, and what is removed meanwhile is None.
    paths = [path for path in sorted(folder.glob("*.json")) if not path.name.startswith(".")]
    read = {path.stem: _read(path) for path in paths}
    parts = {name: value for name, value in read.items() if value is not None}
    told, steps = [], []
    # A demo's results have a plan beside them.
    if {"selection", *_PLANS} & set(parts) and "results" not in parts:
        chosen = parts.get("selection", {})
        shares = chosen.get("shares", {}).items()
        of = next((words for name, words in _PLANS.items() if name in parts), "ranks")
        told.append(f"{folder}: {of} chosen for a trained model")
        told += [f"{name}: {share:.1%} of the dense model's" for name, share in shares]
        told += [f"accuracy, {name}: {value:.2%}" for name, value in _accuracies(chosen)]
        models = [folder / name for name in ("model.keras", "cut.keras")]
        steps = steps_of_plain(next((m for m in models if m.exists()), models[-1]), words)
        if "selection" not in parts:
            told.append("it was interrupted: the same `dprp select` goes on")
    elif "results" in parts or "history" in parts:
        results = parts.get("results", {})
        told.append(f"{folder}: {results.get('title', 'a training that is not finished')}")
        told += [
            f"{row.get('label')}: {row.get('accuracy', 0):.2%}, {row.get('parameters', 0):,} "
            "parameters"
            for row in results.get("models", [])
        ]
        folded = folder / "folded.keras"
        best = next(iter(sorted(folder.glob("best.[to]*"))), None)
        if best is not None and owner_of(folder) is COMPRESSION:
            told.append(str(results.get("headline", {}).get("text", "")))
            told.append("the same `dprp compress` with more --minutes goes on")
            steps = [("its time and accuracy", ("bench", best, *words))]
        elif folded.exists():
            steps = steps_of_low_rank(folder / "model.keras")
        elif results:
            place = folder / "cut" if owner_of(folder) is DEMO else folder
            steps = steps_of_plain(place / "model.keras", words)
        else:
            told.append("the same `dprp train` goes on")
    elif "bench" in parts:
        told.append(f"{folder}: times of files")
    else:
        told += _begun(folder, parts.get("config", {}))
    if {"results", "history", "bench", "plan"} & set(parts):
        steps.append(("its page", ("report", folder)))
    return {
        "holds": sorted(path.name for path in folder.iterdir()),
        "told": "\n  ".join(told),
    }, steps


def _begun(folder: Path, config: Mapping[str, Any]) -> list[str]:
    """What is to be said of a folder that has the settings of a run and nothing else."""
    owner = owner_of(folder)
    if owner not in _NOT_YET:  # removed, or begun anew, since its kind was seen
        return [f"{folder}: nothing that a run wrote"]
    missing, name = _NOT_YET[owner]
    told = [f"{folder}: the settings of {owner.what} alone: {missing}"]
    settings = config.get("settings")
    if owner is TRAINING and isinstance(settings, Mapping):
        told.append(
            f"{settings.get('model')} on {config.get('data')}, epochs: {settings.get('epochs')}"
        )
    told.append(f"unless it is at work now, the same `dprp {name}` goes on")
    return told


def _accuracies(chosen: Mapping[str, Any]) -> list[tuple[str, float]]:
    return [(name, float(value)) for name, value in chosen.get("accuracy", {}).items()]


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(
            f"{path} must hold valid JSON. Received: a file that can't be read as JSON ({error}). "
            "Repeat the run, or delete the file."
        ) from error


def _say(found: Mapping[str, Any], steps: Sequence[Step], as_json: bool) -> None:
    if as_json:
        content = {
            part: {name: value for name, value in facts.items() if name != "told"}
            for part, facts in found.items()
            if part != "look"
        }
        commands = [["dprp", *map(str, words)] for _, words in steps]
        print_json({**content, "next": commands})
        return
    for facts in found.values():
        print_text(facts["told"])
    say_next(*steps)
