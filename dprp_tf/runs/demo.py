"""The demonstration: from scikit-learn's digits to measured files and a report, in one call."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import keras

from dprp_tf import data
from dprp_tf.files.atomic import read_json, write_json
from dprp_tf.files.lock import run_lock
from dprp_tf.runs.evaluation import compare_models
from dprp_tf.runs.ownership import DEMO, require_own
from dprp_tf.runs.progress import Display
from dprp_tf.runs.reporting import report_run
from dprp_tf.runs.settings import TrainSettings
from dprp_tf.runs.training import train

__all__ = ["DENSE", "LOWRANK", "run_demo"]

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


def run_demo(
    folder: str | os.PathLike[str] = "runs/demo",
    *,
    epochs: int | None = None,
    seed: int = 0,
    fresh: bool = False,
    display: Display | None = None,
) -> dict[str, Any]:
    """Train a dense model on digits, shrink its ranks, export, verify and time both, report.

    The DPRP model starts from the trained dense one, as most users' do.

    Args:
        folder: Run folder; made if missing. Trainings that are finished there are not repeated.
        epochs: Epochs of each training. Default 15 dense, 24 with falling ranks.
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

    >>> DENSE.method, LOWRANK.method
    ('dense', 'dprp')
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
    results = compare_models(
        folder,
        models["dense"],
        models["dprp"],
        dataset,
        title="DPRP on handwritten digits",
        command="dprp demo",
        settings={
            **asdict(LOWRANK),
            "seed": seed,
            "epochs": epochs or LOWRANK.epochs,
            "model": f"{DENSE.model}, trained for {epochs or DENSE.epochs} epochs",
        },
        progress=display.step,
    )
    timing["folding, export, measuring"] = round(time.perf_counter() - start, 1)
    ranks = read_json(folder / "dprp" / "ranks.json")
    write_json(folder / "ranks.json", ranks)
    write_json(folder / "history.json", {"runs": histories})
    timing["whole demo"] = round(time.perf_counter() - began, 1)
    results["timing"] = timing
    write_json(folder / "results.json", results)
    display.step("plots and report")
    report_run(folder)
    display.finish()
    return results
