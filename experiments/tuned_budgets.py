"""What short training brings a cut network, beside the dense one tuned alike and a narrow one.

It goes on with the cut models that `time_budgets` left in its work folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import keras

from dprp_tf import data as datasets
from dprp_tf.costs.width_table import WidthTable
from dprp_tf.data import Dataset
from dprp_tf.experiments.narrow_networks import Told, narrow_widths, trained_narrow
from dprp_tf.files.atomic import read_json, write_json
from dprp_tf.keras_internals.precision import in_bfloat16, in_float32
from dprp_tf.runs.evaluation import accuracy
from dprp_tf.runs.files import timed_files
from dprp_tf.runs.progress import Display
from dprp_tf.training.fine_tuning import FineTuning, classification_loss
from dprp_tf.training.saving import load_model, save_model

__all__ = ["main"]


def _tuned(folder: Path, model: keras.Model, dataset: Dataset, settings: FineTuning) -> keras.Model:
    """A model tuned to the end, gone on with or read again."""
    path = folder / "model.keras"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        quick = in_bfloat16(model)
        settings.fit(quick, dataset, callbacks=[Told(folder.name)], folder=folder)
        save_model(in_float32(quick), path)
    return load_model(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Tune what one share of the time left, and what it is compared with; then time all files.

    Args:
        arguments: Of the command line. Default: `sys.argv`.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="the trained .keras file")
    parser.add_argument("--trained", type=int, required=True, help="epochs it was trained for")
    parser.add_argument("--data", required=True, help="its data")
    parser.add_argument("--mean", type=float, nargs="*")
    parser.add_argument("--std", type=float, nargs="*")
    parser.add_argument("--time", type=float, required=True, help="the share")
    parser.add_argument("--ways", nargs="*", default=["both"], help="what to tune, as cut there")
    parser.add_argument(
        "--only", nargs="*", help="rows to tune now: dense, narrow, a way, or one as 'both, taught'"
    )
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", default="local")
    parser.add_argument("--work", type=Path, required=True, help="that of time_budgets")
    parser.add_argument("--results", type=Path, default=Path("results/time_budgets"))
    chosen = parser.parse_args(arguments)
    dataset = datasets.load(chosen.data)
    if chosen.mean:
        dataset = dataset.normalized(chosen.mean, chosen.std)
    dense = load_model(chosen.model)
    target = chosen.target.replace(":", "_").replace("/", "_")
    place = chosen.work / target
    share = place / str(chosen.time)
    own = f"tuned_{chosen.epochs}_{chosen.seed}"
    plain = FineTuning(
        epochs=chosen.epochs,
        learning_rate=chosen.learning_rate,
        batch_size=128,
        weight_decay=5e-4,
        loss=classification_loss(dense, dataset.y_train),
        seed=chosen.seed,
    )
    taught = replace(plain, teacher=in_bfloat16(dense))

    def wanted(row: str) -> bool:
        return chosen.only is None or row in chosen.only

    models = {}
    for way in chosen.ways:
        if wanted(f"{way}, taught"):
            small = load_model(share / f"{way}.keras")
            models[f"{way}, taught"] = _tuned(share / own / f"{way} taught", small, dataset, taught)
    # What the dense network is tuned to serves all shares, and all files are compared with its own.
    models = {"dense": _tuned(chosen.work / own / "dense", dense, dataset, plain), **models}
    for way in filter(wanted, chosen.ways):
        small = load_model(share / f"{way}.keras")
        models[way] = _tuned(share / own / way, small, dataset, plain)
    if wanted("narrow"):
        widths = narrow_widths(WidthTable.load(place / "widths.json"), chosen.time)
        epochs = chosen.trained + chosen.epochs
        name = "_".join(map(str, widths))
        models[f"narrow {name}"] = trained_narrow(
            chosen.work / f"narrow_{name}_{epochs}_{chosen.seed}",
            dataset,
            widths,
            epochs,
            chosen.seed,
        )
    folder = share / own
    with Display(quiet=True) as display:
        files = timed_files(
            folder, "TFLite int8", models, dataset, target=chosen.target, progress=display.step
        )
    rows = {
        row["model"]: {
            "accuracy": accuracy(models[row["model"]], dataset),
            "file": {
                "accuracy": row["accuracy"],
                "time": row.get("latency_ratio", 1.0),
                "size_bytes": row["size_bytes"],
            },
        }
        for row in files
    }
    path = chosen.results / f"{chosen.model.stem}_{target}_tuned.json"
    known = dict(read_json(path)) if path.exists() else {}
    told = f"{chosen.epochs} epochs, seed {chosen.seed}"
    known.setdefault(str(chosen.time), {}).setdefault(told, {}).update(rows)
    write_json(path, known)
    for row, values in rows.items():
        print(f"{chosen.time} {row}: {values}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
