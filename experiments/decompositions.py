"""Which decomposition a default should be: one network cut alike by each, as files on targets."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dprp_tf import data as datasets
from dprp_tf import deploy
from dprp_tf.conversion.cutting import cut
from dprp_tf.data import Dataset
from dprp_tf.decomposition import DECOMPOSITIONS
from dprp_tf.files.atomic import read_json, write_json
from dprp_tf.runs.evaluation import accuracy
from dprp_tf.runs.files import FORMATS, timed_files
from dprp_tf.runs.progress import Display
from dprp_tf.selection.selecting import select_ranks
from dprp_tf.training.saving import load_model

__all__ = ["main", "markdown"]

_KINDS = ("TFLite float32", "TFLite int8")
_SAMPLES = 256


def _rows(
    folder: Path, model: Any, dataset: Dataset, share: float, targets: Sequence[str]
) -> dict[str, Any]:
    """Cut by every decomposition to one share of the weights, without training, and time all."""
    samples = dataset.sample("train", _SAMPLES)
    models = {"dense": model}
    rows: dict[str, Any] = {"dense": {"accuracy": accuracy(model, dataset)}}
    for decomposition in DECOMPOSITIONS:
        plan = select_ranks(model, budget=share, data=samples, decomposition=decomposition)
        small = cut(model, plan, calibration_data=samples[0])
        models[decomposition] = small
        rows[decomposition] = {**plan.shares, "accuracy": accuracy(small, dataset)}
    with Display(quiet=True) as display:
        for label in _KINDS:
            files = timed_files(folder, label, models, dataset, progress=display.step)
            for row in files:
                times = {"local": row.get("latency_ratio", 1.0)}
                rows[row["model"]][label] = {"accuracy": row["accuracy"], "time": times}
            paths = [folder / f"{name}_{FORMATS[label].suffix}" for name in models]
            for target in targets:
                timed = deploy.compare(paths, target=target, repeats=1, warmup=1)
                for name, ratio in zip(models, timed.ratios, strict=True):
                    rows[name][label]["time"][target] = ratio.ratio
    return rows


def markdown(rows: dict[str, Any]) -> str:
    """Lay the rows out as a table.

    Args:
        rows: What the experiment wrote for one network, by decomposition.

    Returns:
        A table in Markdown, times relative to the dense file of the same format.

    Example:

    >>> row = {"accuracy": 0.9, "TFLite int8": {"accuracy": 0.8, "time": {"local": 0.5}}}
    >>> print(markdown({"separable": row}))
    | | top-1 | TFLite int8: top-1 | local |
    |---|---|---|---|
    | separable | 90.0 | 80.0 | 0.50 |
    """
    first = next(iter(rows.values()))
    labels = [label for label in _KINDS if label in first]
    titles, lines = ["", "top-1"], []
    for label in labels:
        titles += [f"{label}: top-1", *first[label]["time"]]
    for name, row in rows.items():
        cells = [name, f"{100 * row['accuracy']:.1f}"]
        for label in labels:
            cells.append(f"{100 * row[label]['accuracy']:.1f}")
            cells += [f"{ratio:.2f}" for ratio in row[label]["time"].values()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([f"|{' | '.join(titles)} |", "|---" * len(titles) + "|", *lines])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment on one network, or print what it wrote.

    Args:
        arguments: Of the command line. Default: `sys.argv`.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a trained .keras file")
    parser.add_argument("--data", required=True, help="its data, as `dprp select` takes them")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--share", type=float, default=0.5, help="of the weights that stay")
    parser.add_argument("--target", nargs="*", default=["qemu:cortex-a72", "qemu:cortex-a76"])
    parser.add_argument("--work", type=Path, required=True, help="folder for the files")
    parser.add_argument("--results", type=Path, default=Path("results/decompositions"))
    chosen = parser.parse_args(arguments)
    path = chosen.results / f"{chosen.model.stem}_{round(100 * chosen.share)}.json"
    if not path.exists():
        chosen.work.mkdir(parents=True, exist_ok=True)
        dataset = datasets.load(chosen.data, image_size=chosen.image_size)
        model = load_model(chosen.model)
        write_json(path, _rows(chosen.work, model, dataset, chosen.share, chosen.target))
    print(markdown(dict(read_json(path))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
