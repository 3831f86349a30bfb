"""Table II of the DPRP paper, ResNet-20 on CIFAR-10: dense, proposed 1 and proposed 2.

The paper's settings: SGD with momentum 0.9 and coupled weight decay 1e-4, learning rate 0.1, a
tenth of it after 10 epochs without a lower application loss, batch 256, 300 epochs, ranks cut
after every epoch. What is not the paper's, unless `structure="paper"` is asked for, is the way the
SVD structure is kept: its own penalty diverges at its own learning rate once a rank gets low.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import keras
from rich.table import Table
from rich.text import Text

from dprp_tf.costs.models import model_cost
from dprp_tf.data import Dataset
from dprp_tf.files.arguments import check_choice
from dprp_tf.files.atomic import read_json, write_json
from dprp_tf.files.shown import shown
from dprp_tf.report import save_plots
from dprp_tf.runs.ownership import REPRODUCTION, require_own
from dprp_tf.runs.settings import TrainSettings
from dprp_tf.runs.training import train

__all__ = ["ROWS", "PaperRow", "list_rows", "reproduce", "settings_of"]


@dataclass(frozen=True)
class PaperRow:
    """A row of the paper's table: what it prints, and what it was trained with.

    Attributes:
        model: A network of the zoo.
        accuracy: Top-1 accuracy printed, in percent.
        compression: Share of parameters removed as printed, in percent.
        compression_weight: lambda_comp; None for the dense baseline.
        threshold: epsilon; None for the dense baseline.
        source: Where it stands.
    """

    model: str
    accuracy: float
    compression: float
    compression_weight: float | None
    threshold: float | None
    source: str


ROWS = {
    "resnet20-dense": PaperRow("resnet20", 90.98, 0.0, None, None, "Table II, baseline"),
    "resnet20-proposed1": PaperRow("resnet20", 90.99, 30.66, 0.5, 0.01, "Table II, proposed 1"),
    "resnet20-proposed2": PaperRow("resnet20", 92.16, 5.79, 0.1, 0.1, "Table II, proposed 2"),
}


def settings_of(
    row: str, *, epochs: int = 300, structure: str = "retraction", seed: int = 0
) -> TrainSettings:
    """Return the paper's settings of a row.

    Args:
        row: A key of `ROWS`.
        epochs: Epochs in all. Default 300, the paper's.
        structure: How the SVD structure is kept. Default the library's.
        seed: Seed of everything random.

    Returns:
        The settings.

    Raises:
        ValueError: If there is no such row.

    Example:

    >>> settings_of("resnet20-proposed2").batch_size
    256
    """
    check_choice("row", row, sorted(ROWS))
    paper = ROWS[row]
    settings = TrainSettings(
        model=paper.model,
        method="dense",
        epochs=epochs,
        batch_size=256,
        learning_rate=0.1,
        schedule="plateau",
        patience=10,
        weight_decay=1e-4,
        shortcut="A",
        seed=seed,
        on_device=True,
        steps_per_execution=39,
    )
    if paper.compression_weight is None or paper.threshold is None:
        return settings
    return replace(
        settings,
        method="dprp",
        structure=structure,
        compression_weight=paper.compression_weight,
        threshold=paper.threshold,
    )


def reproduce(
    row: str,
    dataset: Dataset,
    *,
    work: str | os.PathLike[str] = "runs/reproduce",
    results: str | os.PathLike[str] = "results/table_ii",
    epochs: int = 300,
    structure: str = "retraction",
    seed: int = 0,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> dict[str, Any]:
    """Train a row, from its last finished epoch if there is one, and write what came out.

    The result is written after every epoch, so that a run that is stopped has its figures kept.

    Args:
        row: A key of `ROWS`.
        dataset: CIFAR-10.
        work: Folder of the resumable runs.
        results: Folder of the JSON and the plots.
        epochs: Epochs in all. Default 300, the paper's.
        structure: How the SVD structure is kept.
        seed: Seed of everything random.
        callbacks: More Keras callbacks.

    Returns:
        What was written: the paper's figures, ours, and epochs run of how many.

    Raises:
        ValueError: If there is no such row, its run folder holds other settings, or one of its
            folders holds something else.

    Example:

    >>> reproduce.__name__
    'reproduce'
    """
    settings = settings_of(row, epochs=epochs, structure=structure, seed=seed)
    name = row if structure == "retraction" or settings.method == "dense" else f"{row}-{structure}"
    folder, target = Path(work) / name, Path(results) / name
    require_own(target, REPRODUCTION)
    writer = _Writer(row, settings, dataset.name, folder, target / "result.json")
    train(folder, settings, dataset, callbacks=[writer, *callbacks])
    if (folder / "ranks.json").exists():
        ranks = json.loads((folder / "ranks.json").read_text(encoding="utf-8"))
        write_json(target / "ranks.json", ranks)
    history = json.loads((folder / "history.json").read_text(encoding="utf-8"))
    write_json(target / "history.json", history)
    save_plots(target)
    return writer.write(history["runs"][settings.method])


def list_rows(results: str | os.PathLike[str] = "results/table_ii") -> Table:
    """Return a table of the paper's figures and ours, with the epochs run of how many.

    Args:
        results: Folder of the results.

    Returns:
        A table for `rich`; rows that were never run say so.

    Raises:
        ValueError: If a result file can't be read.

    Example:

    >>> list_rows("nowhere").row_count
    3
    """
    table = Table()
    for header in ("row", "paper top-1", "paper fewer", "our top-1", "our fewer", "epochs", "data"):
        words = header in ("row", "data")
        table.add_column(
            header, justify="left" if words else "right", no_wrap=header in ("row", "epochs")
        )
    found: dict[str, Path] = {name: Path(results) / name / "result.json" for name in ROWS}
    if Path(results).is_dir():
        for path in sorted(Path(results).glob("*/result.json")):
            found.setdefault(path.parent.name, path)
    for name, path in found.items():
        result: dict[str, Any] = {}
        if path.exists():
            result = _result(path)
        paper = ROWS[result.get("row", name)]
        ours = result.get("ours")
        table.add_row(
            Text(shown(name)),
            f"{paper.accuracy:.2f} %",
            f"{paper.compression:.2f} %",
            f"{100 * ours['accuracy']:.2f} %" if ours else "not run",
            f"{100 * ours['compression']:.2f} %" if ours else "",
            f"{result['epochs_run']} of {result['epochs_planned']}" if ours else "0 of 300",
            Text(shown(result.get("data", ""))),
        )
    return table


def _result(path: Path) -> dict[str, Any]:
    try:
        result = read_json(path)
        row, ours = result.get("row", path.parent.name), result.get("ours")
        figures = [ours["accuracy"], ours["compression"]] if ours else []
        figures += [result["epochs_run"], result["epochs_planned"]] if ours else []
        if row not in ROWS or not all(isinstance(figure, (int, float)) for figure in figures):
            raise ValueError(f"row {row!r} with figures {figures}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"`results` must hold readable JSON of the table's rows. Received: {path} ({error})"
        ) from error
    return dict(result)


class _Writer(keras.callbacks.Callback):
    def __init__(
        self, row: str, settings: TrainSettings, data: str, folder: Path, path: Path
    ) -> None:
        super().__init__()
        self._row, self._settings, self._data = row, settings, data
        self._folder, self._path = folder, path
        self._baseline: int | None = None

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        # The run's own recorder stands before this callback and has written the epoch.
        text = (self._folder / "history.json").read_text(encoding="utf-8")
        self._baseline = model_cost(self.model).dense_parameters
        self.write(json.loads(text)["runs"][self._settings.method])

    def write(self, history: list[dict[str, Any]]) -> dict[str, Any]:
        last = history[-1]
        if self._baseline is None and self._path.exists():
            earlier = json.loads(self._path.read_text(encoding="utf-8"))
            self._baseline = earlier["ours"]["baseline_parameters"]
        baseline = self._baseline or last.get("parameters") or 1
        parameters = last.get("parameters", baseline)
        result = {
            "row": self._row,
            "paper": asdict(ROWS[self._row]),
            "ours": {
                "accuracy": last["val_accuracy"],
                "best_accuracy": max(entry["val_accuracy"] for entry in history),
                "parameters": parameters,
                "baseline_parameters": baseline,
                "compression": 1 - parameters / baseline,
                "application_loss": last["app_loss"],
            },
            "epochs_run": last["epoch"],
            "epochs_planned": self._settings.epochs,
            "data": self._data,
            "backend": keras.backend.backend(),
            "settings": asdict(self._settings),
            "seconds": round(sum(entry["seconds"] for entry in history), 1),
            "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        write_json(self._path, result)
        return result
