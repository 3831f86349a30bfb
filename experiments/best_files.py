"""What equal minutes bring: the staged search beside random search, and two workers beside one."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dprp_tf.files.atomic import read_json, write_json

__all__ = ["hypervolume", "main"]

# Accuracy below the model's own at which a file is worth nothing.
_WORTHLESS = 0.1


def hypervolume(front: Sequence[Mapping[str, Any]], dense: float) -> float:
    """Return the share of the plane of time and accuracy that files dominate.

    The plane goes from no time to the dense file's, and from 10 points below the model's accuracy
    up to that; more accuracy counts on, so that the share may exceed 1.

    Args:
        front: Files with `time`, as a share of the dense file's, and `accuracy`.
        dense: The model's accuracy.

    Returns:
        The area, of which 1 is a file of no time with the model's accuracy.

    Example:

    >>> front = [{"time": 0.5, "accuracy": 0.9}, {"time": 0.25, "accuracy": 0.85}]
    >>> round(hypervolume(front, 0.9), 3), round(hypervolume(front[:1], 0.9), 3)
    (0.625, 0.5)
    """
    area, reached = 0.0, 0.0
    for row in sorted(front, key=lambda row: (-row["accuracy"], row["time"])):
        height = (row["accuracy"] - dense + _WORTHLESS) / _WORTHLESS
        width = 1 - row["time"]
        # The most accurate come first: each adds what is left of it, below those before.
        if width > reached and height > 0:
            area += (width - reached) * height
            reached = width
    return area


def _searches(
    options: argparse.Namespace, folders: Mapping[str, Sequence[str]], cores: Sequence[set[int]]
) -> float:
    """Run `dprp compress` in several folders at once, each on cores of its own; return seconds."""
    began, running = time.monotonic(), []
    for (folder, words), own in zip(folders.items(), cores, strict=True):
        command = [sys.executable, "-m", "dprp_tf.cli", "compress", str(options.model)]
        command += ["--data", options.data, "--folder", folder, *words]
        command += ["--minutes", str(options.minutes), *options.options]
        Path(folder).mkdir(parents=True, exist_ok=True)
        with (Path(folder) / "log.txt").open("a", encoding="utf-8") as log:
            running.append(
                subprocess.Popen(
                    command,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    preexec_fn=partial(os.sched_setaffinity, 0, own),
                )
            )
    codes = [process.wait() for process in running]
    if any(codes):
        raise SystemExit(f"searches ended with {codes}; see log.txt in {list(folders)}")
    return time.monotonic() - began


def _samplers(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Both searches at once, on cores of their own, seed after seed."""
    cores, rows = sorted(os.sched_getaffinity(0)), []
    half = len(cores) // 2
    if not half:
        raise SystemExit("two searches at once need two cores")
    halves = [set(cores[:half]), set(cores[half:])]
    for seed in options.seeds:
        places = {name: options.work / f"{name}_{seed}" for name in ("tpe", "random")}
        if not all((place / "results.json").exists() for place in places.values()):
            words = {
                str(place): ["--sampler", name, "--seed", str(seed)]
                for name, place in places.items()
            }
            # Neither has the better cores in every seed.
            _searches(options, words, halves if seed % 2 == 0 else halves[::-1])
        for name, place in places.items():
            results = read_json(place / "results.json")
            (model,) = (row for row in results["models"] if row["name"] == "dense")
            verified = [row for row in results["front"] if row["verified"]]
            (best,) = (row for row in results["front"] if row["best"])
            rows.append(
                {
                    "sampler": name,
                    "seed": seed,
                    "hypervolume": hypervolume(verified, model["accuracy"]),
                    "best": {key: best[key] for key in ("label", "accuracy", "time", "meets")},
                    "files": sum(not row["dense"] for row in verified),
                    "steps": dict(Counter(step["stage"] for step in results["search"])),
                    "minutes": results["minutes"],
                }
            )
            print(rows[-1], flush=True)
    return rows


def _workers(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One worker on a core, then two on one each, that share a study on a server."""
    cores, rows = [{core} for core in sorted(os.sched_getaffinity(0))], []
    if len(cores) < 2 or "{workers}" not in options.storage or options.work.exists():
        raise SystemExit("workers need two cores, a --work that is new, and {workers} in --storage")
    for count in (1, 2):
        storage = options.storage.format(workers=count)
        folders = {
            str(options.work / f"{count}_workers_{at}"): ["--storage", storage]
            for at in range(count)
        }
        seconds = _searches(options, folders, cores[:count])
        # Whoever ended last tells of all steps.
        told = [read_json(Path(folder) / "results.json") for folder in folders]
        results = max(told, key=lambda one: sum(s["state"] == "complete" for s in one["search"]))
        steps = [step for step in results["search"] if step["state"] == "complete"]
        done = Counter(step["stage"] for step in steps)
        rows.append(
            {
                "workers": count,
                "minutes": seconds / 60,
                "steps": dict(done),
                "candidates_per_hour": 3600 * done.total() / seconds,
                "trained_per_hour": 3600 * (done["tuned"] + done["finished"]) / seconds,
                "epochs_per_hour": 3600
                * sum(float(step.get("epochs", 0)) for step in steps)
                / seconds,
            }
        )
        print(rows[-1], flush=True)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare samplers or numbers of workers and write what was found.

    Args:
        arguments: Of the command line. Default: `sys.argv`.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("compare", choices=("samplers", "workers"))
    parser.add_argument("--model", type=Path, required=True, help="the trained .keras file")
    parser.add_argument("--data", required=True, help="its data, as for `dprp train`")
    parser.add_argument("--minutes", type=float, default=10, help="of each search")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--storage", help="of workers: postgresql://user@host/name_{workers}")
    parser.add_argument("--work", type=Path, required=True, help="folder of the searches")
    parser.add_argument("--results", type=Path, default=Path("results/best_files"))
    parser.add_argument(
        "--options", nargs=argparse.REMAINDER, default=[], help="last: further ones of the search"
    )
    options = parser.parse_args(arguments)
    if options.compare == "workers" and not options.storage:
        parser.error("workers need --storage")
    rows = _samplers(options) if options.compare == "samplers" else _workers(options)
    options.results.mkdir(parents=True, exist_ok=True)
    write_json(options.results / f"{options.compare}_{options.model.stem}.json", {"rows": rows})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
