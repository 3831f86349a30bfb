"""The demonstration: from scikit-learn's digits to measured files and a report, in one call."""

from __future__ import annotations

import math
import os
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import keras

from dprp_tf import data, deploy
from dprp_tf.costs.budget import Budget, BudgetError, bounds_text
from dprp_tf.costs.joint_plan import JointPlan
from dprp_tf.costs.width_table import WidthTable
from dprp_tf.data import Dataset
from dprp_tf.files.atomic import read_json, write_json
from dprp_tf.files.lock import run_lock
from dprp_tf.runs.comparison import Contender, compare_models
from dprp_tf.runs.kept_plans import plan_path
from dprp_tf.runs.ownership import DEMO, require_own
from dprp_tf.runs.progress import Display
from dprp_tf.runs.reporting import report_run
from dprp_tf.runs.selecting import select_in_folder
from dprp_tf.runs.settings import SelectionSettings, TrainSettings
from dprp_tf.runs.time_tables import WIDTHS
from dprp_tf.runs.training import train
from dprp_tf.training.fine_tuning import FineTuning
from dprp_tf.training.saving import load_model

__all__ = ["CUT", "DENSE", "LOWRANK", "run_demo"]

DENSE = TrainSettings(
    model="resnet_small",
    method="dense",
    epochs=15,
    batch_size=64,
    learning_rate=0.05,
    weight_decay=5e-4,
    padding=1,
    flip=False,
)
# The pressure is far above the paper's 0.1: a demonstration has some 400 steps to do what the
# paper does in 58,000. The classifier's 1,290 weights stay dense; there is nothing to save.
LOWRANK = replace(
    DENSE,
    method="dprp",
    epochs=24,
    exclude=("logits",),
    decomposition="spatial",
    compression_weight=13.0,
    threshold=0.2,
    frequency=3,
    # The last third recovers what the cuts cost.
    stop_epoch=16,
)
# Ranks that fall in training are the paper's, and pay in float32. For int8, channels and ranks go
# by the time that each layer takes there. Half of the default's samples take half of its time.
_TUNING = FineTuning(epochs=8)
CUT = SelectionSettings(
    cut="both",
    budget=Budget(time=0.5),
    precision="int8",
    samples=128,
    tuning=_TUNING,
    distill=True,
)
# Three numbers of channels and of ranks on each axis of the table: it is measured in seconds.
_POINTS = 3
# The budget of the cut, where it is another than `CUT`'s.
_BUDGET = "budget.json"
# The largest share of the time that is worth a cut.
_WORTHWHILE = 0.9


def run_demo(
    folder: str | os.PathLike[str] = "runs/demo",
    *,
    epochs: int | None = None,
    seed: int = 0,
    fresh: bool = False,
    display: Display | None = None,
) -> dict[str, Any]:
    """Train a dense model on digits, shrink it in two ways, export, verify and time all, report.

    Both ways start from the trained dense model, as most users do: DPRP, whose ranks fall while it
    trains, for float32; and channels and ranks cut for half of the int8 file's time, for int8. On
    processors where an operator costs much the same however small it is, half can't be had: then
    for a larger share, or, where no share is worth it, for half of the weights.

    Args:
        folder: Run folder; made if missing. Trainings that are finished there are not repeated.
        epochs: Epochs of each training. Default 15 dense, 24 with falling ranks, 8 after the cut.
        seed: Seed of everything random.
        fresh: Whether to discard earlier trainings in the folder.
        display: Where progress is shown.

    Returns:
        The content of `results.json`.

    Raises:
        OSError: If the folder can't be written.
        ValueError: If the folder holds what is no demo.
        ParityError: If a file computes something else than its model.
        RuntimeError: If another process is at work in the folder.

    Example:

    >>> DENSE.method, LOWRANK.method, CUT.cut
    ('dense', 'dprp', 'both')
    """
    folder = Path(folder)
    require_own(folder, DEMO)
    with run_lock(folder):
        return _run(folder, epochs, seed, fresh, display or Display(quiet=True))


def _run(
    folder: Path, epochs: int | None, seed: int, fresh: bool, display: Display
) -> dict[str, Any]:
    began = time.perf_counter()
    write_json(folder / DEMO.mark, {"demo": DENSE.model})
    display.step("loading digits")
    dataset = data.load("digits")
    models: dict[str, keras.Model] = {}
    timing: dict[str, float] = {}
    histories: dict[str, Any] = {}
    for name, chosen in (("dense", DENSE), ("dprp", LOWRANK)):
        settings = replace(chosen, seed=seed, epochs=epochs or chosen.epochs)
        if name == "dprp":
            settings = replace(settings, model=str(folder / "dense" / "model.keras"))
        start = time.perf_counter()
        models[name] = train(
            folder / name,
            settings,
            dataset,
            callbacks=[display.training(name, settings.epochs)],
            fresh=fresh,
        )
        timing[f"training {name}"] = round(time.perf_counter() - start, 1)
        history = read_json(folder / name / "history.json")
        histories.update(history["runs"])
        timing[f"training {name}: tracing and retracing"] = round(
            sum(entry["tracing_seconds"] for entry in histories[name]), 1
        )
    start = time.perf_counter()
    models["cut"], budget = _cut(folder, models["dense"], dataset, epochs, seed, fresh, display)
    timing["choosing channels and ranks, tuning"] = round(time.perf_counter() - start, 1)
    start = time.perf_counter()
    results = compare_models(
        folder,
        models["dense"],
        {
            "dprp": Contender("DPRP, folded", models["dprp"], "TFLite float32"),
            "cut": Contender(_label(folder / "cut"), models["cut"], "TFLite int8"),
        },
        dataset,
        title="DPRP on handwritten digits",
        command="dprp demo",
        settings={
            **asdict(LOWRANK),
            "seed": seed,
            "epochs": epochs or LOWRANK.epochs,
            "model": f"{DENSE.model}, trained for {epochs or DENSE.epochs} epochs",
            "cut": {
                "budget": budget.as_dict(),
                "samples": CUT.samples,
                "epochs": epochs or _TUNING.epochs,
                "distill": CUT.distill,
            },
        },
        progress=display.step,
    )
    results["notes"].append(
        "Fold plan, ranks, singular values, training and layers are those of the DPRP model; the "
        "channels and ranks that were chosen are those of the model that was cut."
    )
    timing["folding, export, measuring"] = round(time.perf_counter() - start, 1)
    ranks = read_json(folder / "dprp" / "ranks.json")
    write_json(folder / "ranks.json", ranks)
    write_json(plan_path(folder, CUT.cut), read_json(plan_path(folder / "cut", CUT.cut)))
    write_json(folder / "history.json", {"runs": histories})
    timing["whole demo"] = round(time.perf_counter() - began, 1)
    results["timing"] = timing
    write_json(folder / "results.json", results)
    display.step("plots and report")
    report_run(folder)
    display.finish()
    return results


def _cut(
    folder: Path,
    dense: keras.Model,
    dataset: Dataset,
    epochs: int | None,
    seed: int,
    fresh: bool,
    display: Display,
) -> tuple[keras.Model, Budget]:
    """Cut the dense model's channels and ranks for int8 and tune what is left, in a folder.

    The budget is `CUT`'s, or what could be had in its place.
    """
    tuning = replace(_TUNING, epochs=epochs or _TUNING.epochs, seed=seed)
    path = folder / WIDTHS
    if fresh or not path.exists():
        deploy.measure_widths(
            dense,
            precision="int8",
            decomposition=CUT.decomposition,
            points=_POINTS,
            progress=display.step,
        ).save(path)
    table, place, kept = WidthTable.load(path), folder / "cut", folder / _BUDGET
    budget = CUT.budget
    if kept.exists() and not fresh:
        budget = Budget(**read_json(kept))

    def cut_to(budget: Budget, fresh: bool) -> None:
        settings = replace(CUT, budget=budget, seed=seed, tuning=tuning)
        select_in_folder(
            place, dense, dataset, settings, latency=table, display=display, fresh=fresh
        )

    try:
        cut_to(budget, fresh)
    except BudgetError as error:
        budget = _attainable(error.least)
        told = bounds_text(budget.as_dict())
        display.step(f"half of the int8 time can't be had on this processor: {told} instead")
        cut_to(budget, True)
        write_json(kept, budget.as_dict())
    return load_model(place / "model.keras"), budget


def _attainable(least: float) -> Budget:
    """What is asked for where half of the time can't be had, but this share of it at least."""
    share = math.ceil(20 * (least + (1 - least) / 4)) / 20
    return Budget(time=share) if share <= _WORTHWHILE else Budget(parameters=0.5)


def _label(place: Path) -> str:
    """What the model that was cut is called: by the plan, which may cut channels or ranks alone."""
    plan = JointPlan.load(plan_path(place, CUT.cut))
    parts = (("channels", plan.channels.removed), ("ranks", plan.ranks.ranks))
    return f"{' and '.join(name for name, found in parts if found)} cut".strip().capitalize()
