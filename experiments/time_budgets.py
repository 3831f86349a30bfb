"""Ranks, channels, both and learned ones at shares of the int8 time: what each keeps and takes."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
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
from dprp_tf.runs.learning_plans import learning_data, samples_of_cuts
from dprp_tf.runs.progress import Display
from dprp_tf.selection.learning_channels_and_ranks import learn_channels_and_ranks
from dprp_tf.selection.selecting import select_ranks
from dprp_tf.selection.selecting_both import select_channels_and_ranks
from dprp_tf.selection.selecting_channels import select_channels
from dprp_tf.training.saving import load_model, save_model

__all__ = ["main", "markdown"]

_SAMPLES = 512
_SEED = 0
_FORMAT = "TFLite int8"
_CHANNELS = ("outputs", "activation", "geometric_median", "l1")
_WAYS = ("ranks", *(f"channels, {method}" for method in _CHANNELS), "both", "less")


@dataclass(frozen=True)
class _Way:
    """One way to spend a time.

    Attributes:
        plan: From a budget to a plan.
        table: Makes or reads the table that it goes by.
        seen: Returns the inputs on which its cuts keep the outputs.
    """

    plan: Callable[[Budget], Any]
    table: Callable[[], WidthTable]
    seen: Callable[[], Any]


def _ways(model: Any, dataset: Dataset, table_of: Callable[[str], WidthTable]) -> dict[str, _Way]:
    """The ways to spend a time, by name; tables are measured when they are first asked for."""
    # Tables of either decomposition know the same widths.
    separable, channel = (lambda: table_of("separable")), (lambda: table_of("channel"))
    samples = dataset.sample("train", _SAMPLES)
    learned = cache(lambda: learning_data(dataset, _SEED))

    def ranks(budget: Budget) -> Any:
        rows = separable().by_rank({})
        names = [row.name for row in rows.layers]
        return select_ranks(model, budget=budget, data=samples, latency=rows, layers=names)

    def channels(method: str) -> Callable[[Budget], Any]:
        return lambda budget: select_channels(
            model, method=method, budget=budget, data=samples, latency=separable()
        )

    def both(budget: Budget) -> Any:
        return select_channels_and_ranks(model, budget=budget, data=samples, latency=separable())

    def less(budget: Budget) -> Any:
        return learn_channels_and_ranks(
            model,
            learned(),
            budget=budget,
            latency=channel(),
            validation_data=samples,
            seed=_SEED,
        )

    chosen = {
        "ranks": ranks,
        **{f"channels, {method}": channels(method) for method in _CHANNELS},
        "both": both,
    }
    found = {name: _Way(plan, separable, lambda: samples[0]) for name, plan in chosen.items()}
    # Its ranks are of the first samples that it learns from.
    return {**found, "less": _Way(less, channel, lambda: samples_of_cuts(learned()))}


def _rows(
    folder: Path,
    model: Any,
    dataset: Dataset,
    ways: Mapping[str, _Way],
    share: float,
    target: str,
) -> dict[str, Any]:
    """Spend one share of the time in some ways, without training, and time all files in turns."""
    models = {"dense": model}
    rows: dict[str, Any] = {"dense": {"accuracy": accuracy(model, dataset)}}
    for name, way in ways.items():
        table, seen = way.table(), way.seen()
        began = time.perf_counter()
        try:
            plan = way.plan(Budget(time=share))
        except BudgetError as error:
            rows[name] = {"missed": str(error)}
            continue
        seconds = time.perf_counter() - began
        alone = cut(model, plan, calibration_data=seen, refit=False, latency=table)
        small = cut(model, plan, calibration_data=seen, latency=table)
        models[name] = small
        # What `tuned_budgets` goes on with.
        save_model(small, folder / f"{name}.keras")
        rows[name] = {
            "seconds": round(seconds),
            "shares": dict(plan.shares),
            "without the fit": accuracy(alone, dataset),
            "accuracy": accuracy(small, dataset),
        }
    if len(models) == 1:
        # Nothing to time in turns with the dense file, whose row comes with the first way that is.
        return {name: rows[name] for name in ways}
    with Display(quiet=True) as display:
        files = timed_files(folder, _FORMAT, models, dataset, target=target, progress=display.step)
    for row in files:
        rows[row["model"]]["file"] = {
            "accuracy": row["accuracy"],
            "time": row.get("latency_ratio", 1.0),
            "size_bytes": row["size_bytes"],
        }
    return rows


def _table(folder: Path, model: Any, target: str, decomposition: str) -> WidthTable:
    """The width table of a decomposition, measured if the folder has none."""
    other = "" if decomposition == "separable" else f"_{decomposition}"
    kept = folder / f"widths{other}.json"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        table = measure_widths(model, target=target, precision="int8", decomposition=decomposition)
        table.save(kept)
    return WidthTable.load(kept)


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
        "--ways",
        nargs="*",
        choices=_WAYS,
        help="some of the ways; int8 files of what is cut to ruin are refused",
    )
    chosen = parser.parse_args(arguments)
    place = chosen.target.replace(":", "_").replace("/", "_")
    path = chosen.results / f"{chosen.model.stem}_{place}.json"
    found = dict(read_json(path)) if path.exists() else {}
    # Of a share that is there only ways that are named are missing.
    missing = {
        share: [way for way in chosen.ways or _WAYS if way not in found.get(str(share), {})]
        for share in chosen.time
        if chosen.ways or str(share) not in found
    }
    if any(missing.values()):
        dataset = datasets.load(chosen.data)
        if chosen.mean:
            dataset = dataset.normalized(chosen.mean, chosen.std)
        model = load_model(chosen.model)
        tables = cache(lambda kind: _table(chosen.work / place, model, chosen.target, kind))
        ways = _ways(model, dataset, tables)
        for share, names in missing.items():
            if not names:
                continue
            folder = chosen.work / place / str(share)
            folder.mkdir(parents=True, exist_ok=True)
            rows = _rows(
                folder, model, dataset, {name: ways[name] for name in names}, share, chosen.target
            )
            # The dense file is timed with whatever is new; its row stays the first one.
            found[str(share)] = rows | found.get(str(share), {})
            write_json(path, found)
    print(markdown(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
