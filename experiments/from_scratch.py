"""ResNet-20 on CIFAR-10 from scratch: dense and DPRP at equal budget, then folded and timed.

Run `python -m dprp_tf.experiments.from_scratch --data cifar10.npz`; it goes on where it stopped.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path

from dprp_tf import data
from dprp_tf.files.atomic import read_json, write_json
from dprp_tf.report import save_plots
from dprp_tf.runs.comparison import Contender, compare_models
from dprp_tf.runs.settings import TrainSettings
from dprp_tf.runs.training import train

__all__ = ["DENSE", "LOWRANK", "main"]

# Short runs: a cosine schedule to zero instead of the paper's plateau, and the weight decay that
# suits it. The pressure is proposed 1's, the threshold proposed 2's.
DENSE = TrainSettings(
    model="resnet20",
    method="dense",
    epochs=12,
    batch_size=128,
    learning_rate=0.1,
    schedule="cosine",
    weight_decay=5e-4,
    shortcut="A",
)
LOWRANK = replace(DENSE, method="dprp", compression_weight=0.5, threshold=0.1, minimum_removed=3)


def main(arguments: list[str] | None = None) -> int:
    """Train both models as far as they are not trained yet, and compare them.

    Args:
        arguments: Command-line arguments. Default: those of the process.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="CIFAR-10: its name or a .npz")
    parser.add_argument("--epochs", type=int, default=DENSE.epochs)
    parser.add_argument("--work", type=Path, default=Path("runs/from_scratch"))
    parser.add_argument("--out", type=Path, default=Path("results/from_scratch"))
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    dataset = data.load(chosen.data)
    models, histories = {}, {}
    for name, base in (("dense", DENSE), ("dprp", LOWRANK)):
        settings = replace(base, epochs=chosen.epochs, seed=chosen.seed)
        models[name] = train(chosen.work / name, settings, dataset, verbose=2)
        histories[name] = read_json(chosen.work / name / "history.json")["runs"][name]
    results = compare_models(
        chosen.work,
        models["dense"],
        {"dprp": Contender("DPRP, folded", models["dprp"], "TFLite float32")},
        dataset,
        title="ResNet-20 on CIFAR-10, from scratch, equal budget",
        command="python -m dprp_tf.experiments.from_scratch",
        settings={**asdict(LOWRANK), "epochs": chosen.epochs, "seed": chosen.seed},
        timing={
            f"training {name}": sum(entry["seconds"] for entry in history)
            for name, history in histories.items()
        },
        repeats=150,
    )
    ranks = read_json(chosen.work / "dprp" / "ranks.json")
    write_json(chosen.out / "ranks.json", ranks)
    write_json(chosen.out / "history.json", {"runs": histories})
    write_json(chosen.out / "results.json", results)
    plan = read_json(chosen.work / "plan.json")
    write_json(chosen.out / "plan.json", plan)
    save_plots(chosen.out)
    print(results["headline"]["text"])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
