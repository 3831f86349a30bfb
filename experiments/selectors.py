"""Every selector on one trained network: accuracy by parameters left, before and after tuning."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from dprp_tf import data as datasets
from dprp_tf.conversion.cutting import cut
from dprp_tf.costs.budget import BudgetError
from dprp_tf.costs.rank_plan import RankPlan
from dprp_tf.data import Dataset
from dprp_tf.decomposition import DECOMPOSITIONS
from dprp_tf.files.atomic import atomic_path, read_json, write_json, write_text
from dprp_tf.report.theme import new_figure, theme_named
from dprp_tf.runs.evaluation import accuracy
from dprp_tf.runs.progress import Display
from dprp_tf.selection.methods.beam import BeamSearch
from dprp_tf.selection.selecting import select_ranks
from dprp_tf.selection.selector import Selector
from dprp_tf.training.fine_tuning import FineTuning
from dprp_tf.training.saving import load_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["main", "markdown", "plot", "run_one"]

METHODS = ("uniform", "energy", "energy_product", "vbmf", "activation", "similarity", "mbs", "beam")
SHARES = (0.75, 0.5, 0.25)
_HELD_OUT = 256
_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")


def run_one(
    model: keras.Model,
    dataset: Dataset,
    method: str,
    matricization: str,
    share: float,
    folder: Path,
    *,
    search: tuple[int, int] = (3, 5),
    tuning: FineTuning | None = None,
    training: Dataset | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Choose ranks by one method, cut, measure, and fine-tune if asked; what is done is kept.

    Args:
        model: The trained dense network.
        dataset: Its data; samples for choosing ranks come from the training split.
        method: A name of `METHODS`.
        matricization: One of `decomposition.DECOMPOSITIONS`.
        share: Share of the parameters left.
        folder: Where plans, logs and results lie.
        search: Step and beams of mBS.
        tuning: The short fine-tuning; None for none.
        training: What it trains on. Default: the data.
        seed: Seed of everything random.

    Returns:
        The row: shares, accuracy on the test split after the cut and after the tuning.
    """
    path = folder / f"{matricization}_{method}_{round(100 * share)}.json"
    row = read_json(path) if path.exists() else {}
    chosen: str | Selector = method
    order = np.random.default_rng(seed).permutation(len(dataset.x_train))
    taken = np.sort(order[:_HELD_OUT])
    samples = dataset.x_train[taken].astype("float32"), dataset.y_train[taken]
    if "plan" not in row:
        if method == "mbs":
            chosen = BeamSearch(step=search[0], beams=search[1], samples=_HELD_OUT)
        with Display() as display:
            try:
                plan = select_ranks(
                    model,
                    method=chosen,
                    budget=share,
                    data=samples,
                    decomposition=matricization,
                    # The searches for the three shares look at many ranks in common.
                    log=folder / "logs" / f"{matricization}_{method}.jsonl",
                    progress=display.search(f"{method} {matricization} {share}"),
                    seed=seed,
                )
            except BudgetError as error:
                row = {"failed": str(error)}
                write_json(path, row)
                return row
        small = cut(
            model, plan, calibration_data=samples[0] if plan.truncation == "output" else None
        )
        row = {
            "method": method,
            "matricization": matricization,
            "asked": share,
            "shares": plan.shares,
            "on_held_out": dict(plan.accuracy),
            "cut": accuracy(small, dataset),
            "plan": plan.as_dict(),
        }
        if method == "mbs":
            row["search"] = list(search)
        write_json(path, row)
    if tuning is not None and "tuned" not in row and "failed" not in row:
        plan = RankPlan.from_dict(row["plan"])
        small = cut(
            model, plan, calibration_data=samples[0] if plan.truncation == "output" else None
        )
        training = dataset if training is None else training
        tuning.fit(small, training)
        row["tuned"] = accuracy(small, dataset)
        row["tuning"] = {
            "epochs": tuning.epochs,
            "images": len(training.x_train),
            "learning_rate": tuning.learning_rate,
            "batch_size": tuning.batch_size,
        }
        write_json(path, row)
    return row


def markdown(rows: Sequence[dict[str, Any]], dense: float) -> str:
    """Lay the rows out as a table, best of each column in bold.

    Args:
        rows: What `run_one` returned.
        dense: Accuracy of the dense network.

    Returns:
        Markdown; cells read "after the cut / after the tuning", in percent.

    Example:

    >>> row = {"method": "energy", "matricization": "channel", "asked": 0.5, "cut": 0.7}
    >>> print(markdown([row], 0.9).splitlines()[-1])
    | channel | energy | | **70.0** | |
    """
    found = {(r["matricization"], r["method"], r["asked"]): r for r in rows if "cut" in r}
    heads = " | ".join(f"{1 - share:.0%} fewer" for share in SHARES)
    lines = [
        f"Top-1 in percent after the cut / after the tuning; dense {100 * dense:.2f}.",
        "",
        f"| matricization | method | {heads} |",
        "|---|---|" + "---|" * len(SHARES),
    ]
    for matricization in DECOMPOSITIONS:
        best = {
            (share, key): max(
                found.get((matricization, method, share), {}).get(key) or 0 for method in METHODS
            )
            for share in SHARES
            for key in ("cut", "tuned")
        }
        for method in METHODS:
            cells = []
            for share in SHARES:
                row = found.get((matricization, method, share), {})
                cells.append(
                    " / ".join(
                        f"**{100 * row[key]:.1f}**"
                        if row[key] == best[share, key]
                        else f"{100 * row[key]:.1f}"
                        for key in ("cut", "tuned")
                        if key in row
                    )
                )
            if any(cells):
                row_text = " | ".join(cells).replace("|  |", "| |")
                lines.append(f"| {matricization} | {method} | {row_text} |".replace("  ", " "))
    return "\n".join(lines)


def plot(rows: Sequence[dict[str, Any]], dense: float, theme: str = "light") -> Figure:
    """Draw accuracy by share of parameters left, a column per matricization.

    Args:
        rows: What `run_one` returned.
        dense: Accuracy of the dense network.
        theme: `"light"` or `"dark"`. Defaults to `"light"`.

    Returns:
        A figure; the upper row after the cut, the lower after the tuning where there is one.

    Example:

    >>> row = {"method": "energy", "matricization": "channel", "asked": 0.5, "cut": 0.7,
    ...     "shares": {"parameters": 0.5}}
    >>> len(plot([row], 0.9).axes)
    1
    """
    from dprp_tf.report.axes import percent_ticks, style_axes

    colours = theme_named(theme)
    palette = (
        *(colours.muted, colours.dense, *colours.others[:3]),
        *("#8a63d2", "#d1495b", colours.dprp),
    )
    rows = [row for row in rows if "cut" in row]
    columns = [name for name in DECOMPOSITIONS if any(r["matricization"] == name for r in rows)]
    kinds = [key for key in ("cut", "tuned") if any(key in row for row in rows)]
    figure = new_figure(3.1 * len(columns) + 0.8, 2.9 * len(kinds) + 0.5, colours)
    top = None
    for line, key in enumerate(kinds):
        for column, matricization in enumerate(columns):
            axes = figure.add_subplot(
                len(kinds), len(columns), line * len(columns) + column + 1, sharex=top, sharey=top
            )
            top = top or axes
            after = "after the cut" if key == "cut" else "after the tuning"
            style_axes(
                axes,
                colours,
                f"{matricization}, {after}",
                x="Parameters left, %" if line == len(kinds) - 1 else "",
                y="Test accuracy, %" if column == 0 else "",
                grid="y",
            )
            axes.axhline(dense, color=colours.muted, linewidth=1, linestyle=":")
            for index, method in enumerate(METHODS):
                points = sorted(
                    (r["shares"]["parameters"], r[key])
                    for r in rows
                    if r["matricization"] == matricization and r["method"] == method and key in r
                )
                if points:
                    axes.plot(
                        *zip(*points, strict=True),
                        marker=_MARKERS[index],
                        markersize=4.5,
                        linewidth=1.4,
                        color=palette[index],
                        label=method,
                    )
            percent_ticks(axes.xaxis)
            percent_ticks(axes.yaxis)
    by_label = {}
    for axes in figure.axes:
        by_label.update(dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True)))
    ordered = [name for name in METHODS if name in by_label]
    legend = figure.legend(
        [by_label[name] for name in ordered],
        ordered,
        loc="outside lower center",
        ncols=len(ordered),
        frameon=False,
    )
    for text in legend.get_texts():
        text.set_color(colours.text)
    return figure


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing of the table, and write table and plot of what is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="A trained .keras file.")
    parser.add_argument("--data", required=True, help="Its data, as for `dprp train`.")
    parser.add_argument("--mean", type=float, nargs="+")
    parser.add_argument("--std", type=float, nargs="+")
    parser.add_argument("--results", type=Path, default=Path("results/selectors"))
    parser.add_argument("--work", type=Path, default=Path("runs/selectors"))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument(
        "--decompositions", nargs="+", default=list(DECOMPOSITIONS), choices=DECOMPOSITIONS
    )
    parser.add_argument("--shares", type=float, nargs="+", default=list(SHARES))
    parser.add_argument("--search", type=int, nargs=2, default=(3, 5), help="mBS: step and beams.")
    parser.add_argument("--tuning-epochs", type=int, default=0)
    parser.add_argument("--tuning-images", type=int, default=5_000)
    parser.add_argument("--tuning-rate", type=float, default=0.003, help="Learning rate.")
    parser.add_argument("--table-only", action="store_true", help="Only rewrite table and plot.")
    options = parser.parse_args(arguments)
    if options.table_only:
        _write(options.work, options.results)
        return 0
    dataset = datasets.load(options.data)
    if options.mean is not None:
        dataset = dataset.normalized(options.mean, options.std)
    model = load_model(options.model)
    options.work.mkdir(parents=True, exist_ok=True)
    if not (options.work / "dense.json").exists():
        write_json(options.work / "dense.json", {"accuracy": accuracy(model, dataset)})
    tuning, training = None, dataset
    if options.tuning_epochs:
        tuning = FineTuning(epochs=options.tuning_epochs, learning_rate=options.tuning_rate)
        few = np.sort(
            np.random.default_rng(1).permutation(len(dataset.x_train))[: options.tuning_images]
        )
        training = replace(dataset, x_train=dataset.x_train[few], y_train=dataset.y_train[few])
    for share in options.shares:
        for method in options.methods:
            for matricization in options.matricizations:
                name = f"{matricization}_{method}_{round(100 * share)}.json"
                path = options.work / name
                done = read_json(path) if path.exists() else {}
                if "failed" in done or ("cut" in done and (tuning is None or "tuned" in done)):
                    continue
                if "cut" not in done:
                    run_one(
                        model, dataset, method, matricization, share, options.work,
                        search=tuple(options.search),
                    )  # fmt: skip
                if tuning is not None:
                    run_one(
                        model, dataset, method, matricization, share, options.work,
                        tuning=tuning, training=training,
                    )  # fmt: skip
                row = read_json(path)
                told = {key: row.get(key) for key in ("failed", "cut", "tuned") if key in row}
                print(f"{matricization} {method} {share}: {json.dumps(told)}", flush=True)
                _write(options.work, options.results)
    _write(options.work, options.results)
    return 0


def _write(work: Path, results: Path) -> None:
    dense = float(read_json(work / "dense.json")["accuracy"])
    rows = [read_json(path) for path in sorted(work.glob("*_*_[0-9]*.json"))]
    results.mkdir(parents=True, exist_ok=True)
    write_json(results / "selectors.json", {"dense": dense, "rows": [_brief(r) for r in rows]})
    write_text(results / "selectors.md", markdown(rows, dense) + "\n")
    if any("cut" in row for row in rows):
        with atomic_path(results / "selectors.png") as temporary:
            plot(rows, dense).savefig(temporary, dpi=150, format="png")


def _brief(row: dict[str, Any]) -> dict[str, Any]:
    """A row with the ranks of its plan, without each step of the search."""
    if "plan" not in row:
        return row
    ranks = {layer["name"]: layer["ranks"] for layer in row["plan"]["layers"]}
    return {**{key: value for key, value in row.items() if key != "plan"}, "ranks": ranks}


if __name__ == "__main__":
    raise SystemExit(main())
