"""Ranks, channels and both at shares of the int8 time: what each keeps, and what its file takes."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dprp_tf import data as datasets
from dprp_tf.conversion.cutting import cut
from dprp_tf.costs.budget import Budget, BudgetError
from dprp_tf.costs.width_table import WidthTable
from dprp_tf.data import Dataset
from dprp_tf.deploy.planning.width_latencies import measure_widths
from dprp_tf.files.atomic import read_json, write_json
from dprp_tf.runs.evaluation import accuracy
from dprp_tf.runs.files import timed_files
from dprp_tf.runs.progress import Display
from dprp_tf.selection.selecting import select_ranks
from dprp_tf.selection.selecting_both import select_channels_and_ranks
from dprp_tf.selection.selecting_channels import select_channels
from dprp_tf.training.saving import load_model, save_model

__all__ = ["main", "markdown"]

_SAMPLES = 512
_FORMAT = "TFLite int8"
_CHANNELS = ("outputs", "activation", "geometric_median", "l1")


def _plans(model: Any, table: WidthTable, samples: Any) -> dict[str, Callable[[Budget], Any]]:
    """The ways to spend a time, by name."""

    def ranks(budget: Budget) -> Any:
        rows = table.by_rank({})
        names = [row.name for row in rows.layers]
        return select_ranks(model, budget=budget, data=samples, latency=rows, layers=names)

    options = {"data": samples, "latency": table}

    def channels(method: str) -> Callable[[Budget], Any]:
        return lambda budget: select_channels(model, method=method, budget=budget, **options)

    return {
        "ranks": ranks,
        **{f"channels, {method}": channels(method) for method in _CHANNELS},
        "both": lambda budget: select_channels_and_ranks(model, budget=budget, **options),
    }


def _rows(
    folder: Path,
    model: Any,
    dataset: Dataset,
    table: WidthTable,
    share: float,
    target: str,
    ways: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Spend one share of the time in every way, without training, and time all files in turns."""
    samples = dataset.sample("train", _SAMPLES)
    models = {"dense": model}
    rows: dict[str, Any] = {"dense": {"accuracy": accuracy(model, dataset)}}
    for name, plan_for in _plans(model, table, samples).items():
        if ways and name not in ways:
            continue
        began = time.perf_counter()
        try:
            plan = plan_for(Budget(time=share))
        except BudgetError as error:
            rows[name] = {"missed": str(error)}
            continue
        seconds = time.perf_counter() - began
        alone = cut(model, plan, calibration_data=samples[0], refit=False, latency=table)
        small = cut(model, plan, calibration_data=samples[0], latency=table)
        models[name] = small
        # What `tuned_budgets` goes on with.
        save_model(small, folder / f"{name}.keras")
        rows[name] = {
            "seconds": round(seconds),
            "shares": dict(plan.shares),
            "without the fit": accuracy(alone, dataset),
            "accuracy": accuracy(small, dataset),
        }
    with Display(quiet=True) as display:
        files = timed_files(folder, _FORMAT, models, dataset, target=target, progress=display.step)
    for row in files:
        rows[row["model"]]["file"] = {
            "accuracy": row["accuracy"],
            "time": row.get("latency_ratio", 1.0),
            "size_bytes": row["size_bytes"],
        }
    return rows


def markdown(shares: dict[str, dict[str, Any]]) -> str:
    """Lay the rows out as a table.

    Args:
        shares: What the experiment wrote, rows by way by share of the time.

    Returns:
        A table in Markdown; accuracies in percent, times relative to the dense file.

    Example:

    >>> row = {"shares": {"milliseconds": 0.5}, "without the fit": 0.7, "accuracy": 0.8,
    ...        "file": {"accuracy": 0.79, "time": 0.51, "size_bytes": 1000}}
    >>> print(markdown({"0.5": {"both": row, "ranks": {"missed": "too little"}}}))
    | time | | cut alone | fitted | int8 file | predicted | measured | kB |
    |---|---|---|---|---|---|---|---|
    | 0.5 | both | 70.0 | 80.0 | 79.0 | 0.500 | 0.510 | 1 |
    | 0.5 | ranks | missed | | | | | |
    """
    titles = ["time", "", "cut alone", "fitted", "int8 file", "predicted", "measured", "kB"]
    lines = []
    for share, rows in shares.items():
        for name, row in rows.items():
            if "missed" in row:
                lines.append(f"| {share} | {name} | missed |{' |' * 5}")
                continue
            file = row["file"]
            cells = [
                share,
                name,
                f"{100 * row.get('without the fit', row['accuracy']):.1f}",
                f"{100 * row['accuracy']:.1f}",
                f"{100 * file['accuracy']:.1f}",
                f"{row.get('shares', {}).get('milliseconds', 1.0):.3f}",
                f"{file['time']:.3f}",
                f"{file['size_bytes'] / 1000:.0f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    head = f"| {' | '.join(titles)} |".replace("|  |", "| |")
    return "\n".join([head, "|---" * len(titles) + "|", *lines])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment on one network and target, going on with what is missing.

    Args:
        arguments: Of the command line. Default: `sys.argv`.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a trained .keras file")
    parser.add_argument("--data", required=True, help="its data, as `dprp select` takes them")
    parser.add_argument("--mean", type=float, nargs="*")
    parser.add_argument("--std", type=float, nargs="*")
    parser.add_argument("--target", default="local")
    parser.add_argument("--time", type=float, nargs="*", default=[0.8, 0.65, 0.5])
    parser.add_argument("--work", type=Path, required=True, help="folder for tables and files")
    parser.add_argument("--results", type=Path, default=Path("results/time_budgets"))
    parser.add_argument(
        "--ways", nargs="*", help="some of the ways; int8 files of what is cut to ruin are refused"
    )
    chosen = parser.parse_args(arguments)
    place = chosen.target.replace(":", "_").replace("/", "_")
    path = chosen.results / f"{chosen.model.stem}_{place}.json"
    found = dict(read_json(path)) if path.exists() else {}
    missing = [share for share in chosen.time if str(share) not in found]
    if missing:
        dataset = datasets.load(chosen.data)
        if chosen.mean:
            dataset = dataset.normalized(chosen.mean, chosen.std)
        model = load_model(chosen.model)
        kept = chosen.work / place / "widths.json"
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            measure_widths(
                model, target=chosen.target, precision="int8", decomposition="separable"
            ).save(kept)
        table = WidthTable.load(kept)
        for share in missing:
            folder = chosen.work / place / str(share)
            folder.mkdir(parents=True, exist_ok=True)
            found[str(share)] = _rows(
                folder, model, dataset, table, share, chosen.target, chosen.ways
            )
            write_json(path, found)
    print(markdown(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
