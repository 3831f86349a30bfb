"""Beam search for ranks on a trained network, beside building a model per candidate.

    python benchmarks/beam_search.py --model resnet20_cifar10.keras --data cifar10.npz \\
        --out results/benchmarks/beam_search.json

Modified beam search at half of the parameters on images of the training split. Every so many
candidates the same candidate is also scored by building its model (truncate, factorize, fold,
predict the same images), in turns with the search, so that both see the same load; that time is
taken off the search's. Both scores must agree. Ratios travel to other machines, times do not.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import dprp_tf as dprp
from dprp_tf import data
from dprp_tf.costs.accuracy import top_1_accuracy
from dprp_tf.costs.budget import Budget
from dprp_tf.costs.rank_space import Ranks, RankSpace
from dprp_tf.files.atomic import read_json, write_json
from dprp_tf.selection.candidate_log import CandidateLog
from dprp_tf.selection.methods.beam import BeamSearch
from dprp_tf.selection.selector import Problem

__all__ = ["main"]


class _ComparingLog(CandidateLog):
    """A log that builds the model of every so many candidates, and times it."""

    def __init__(
        self, model: keras.Model, space: RankSpace, x: np.ndarray, y: np.ndarray, every: int
    ) -> None:
        super().__init__(None, list(space.layers), "")
        self._model, self._space, self._x, self._y, self._every = model, space, x, y, every
        self.built: list[dict[str, float]] = []
        self.seconds = 0.0
        self.processor_seconds = 0.0

    def candidate(self, ranks: Mapping[str, Ranks], kind: str = "candidate", **values: Any) -> None:
        super().candidate(ranks, kind, **values)
        if (len(self) - 1) % self._every != 1:
            return
        began, processor = time.perf_counter(), time.process_time()
        accuracy = self._build(ranks)
        seconds, used = time.perf_counter() - began, time.process_time() - processor
        self.seconds += seconds
        self.processor_seconds += used
        self.built.append(
            {"seconds": seconds, "processor": used, "difference": accuracy - values["accuracy"]}
        )

    def _build(self, ranks: Mapping[str, Ranks]) -> float:
        cut = {name: entry[0] for name, entry in ranks.items() if entry is not None}
        low = dprp.factorize(
            self._model,
            decomposition=self._space.decomposition,
            ranks=cut,
            layers=list(cut) or None,
        )
        folded = dprp.fold(low, forms=dict.fromkeys(cut, "dense"))
        predictions = folded.predict(self._x, batch_size=len(self._x), verbose=0)
        return top_1_accuracy(self._y, predictions)


def measure(
    model: keras.Model, x: np.ndarray, y: np.ndarray, matricization: str, chosen: argparse.Namespace
) -> dict[str, Any]:
    """Search once, building a model now and then in between."""
    space = RankSpace(model, matricization)
    log = _ComparingLog(model, space, x, y, chosen.every)
    search = BeamSearch(chosen.step, chosen.beams, len(x))
    told = 0.0

    def progress(share: float | None, text: str) -> None:
        nonlocal told
        if time.perf_counter() - told > 20:
            told = time.perf_counter()
            print(f"  {100 * (share or 0):.0f} %: {text}", flush=True)

    budget = Budget(parameters=chosen.share)
    began, processor = time.perf_counter(), time.process_time()
    found = search.select(
        Problem(model, space, budget, (x, y), None, log, progress, seed=chosen.seed)
    )
    seconds = time.perf_counter() - began - log.seconds
    used = time.process_time() - processor - log.processor_seconds
    # The first build pays for the process's own first steps.
    built = log.built[1:] or log.built
    per_model = statistics.median(entry["seconds"] for entry in built)
    per_model_used = statistics.median(entry["processor"] for entry in built)
    candidates = len(log)
    dense = log.known(space.dense())
    best = log.known(found.ranks)
    assert dense is not None
    assert best is not None
    return {
        "candidates": candidates,
        "levels": len(found.history),
        "minutes": seconds / 60,
        "processor_minutes": used / 60,
        "candidates_per_second": candidates / seconds,
        "candidates_per_processor_second": candidates / used,
        "models_built": len(built),
        "model_median_seconds": per_model,
        "model_median_processor_seconds": per_model_used,
        "speed_ratio": per_model * candidates / seconds,
        "processor_ratio": per_model_used * candidates / used,
        "largest_accuracy_difference": max(abs(entry["difference"]) for entry in log.built),
        "dense_accuracy": dense["accuracy"],
        "accuracy": best["accuracy"],
        "share_parameters": space.cost(found.ranks).share("parameters"),
        "share_macs": space.cost(found.ranks).share("macs"),
        "ranks": {name: entry and list(entry) for name, entry in found.ranks.items()},
    }


def main() -> int:
    """Search with every matricization, keep the figures and print them.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="trained dense Keras model")
    parser.add_argument("--data", type=Path, required=True, help="what `dprp_tf.data.load` reads")
    parser.add_argument("--mean", type=float, nargs="+", default=[125.3, 123.0, 113.9])
    parser.add_argument("--std", type=float, nargs="+", default=[63.0, 62.1, 66.7])
    parser.add_argument("--decompositions", nargs="+", default=["spatial", "channel"])
    parser.add_argument("--share", type=float, default=0.5, help="of the dense parameters")
    parser.add_argument("--step", type=int, default=3)
    parser.add_argument("--beams", type=int, default=5)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--every", type=int, default=100, help="candidates between built models")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON that grows with each run")
    chosen = parser.parse_args()
    model = keras.models.load_model(chosen.model)
    source = data.load(str(chosen.data)).normalized(chosen.mean, chosen.std)
    rows = np.random.default_rng(chosen.seed).permutation(len(source.y_train))[: chosen.samples]
    x, y = np.asarray(source.x_train)[np.sort(rows)], source.y_train[np.sort(rows)]
    results = read_json(chosen.out) if chosen.out and chosen.out.exists() else {}
    for matricization in chosen.matricizations:
        row = measure(model, x, y, matricization, chosen)
        key = f"{chosen.model.stem} {matricization} {chosen.share} ({chosen.step}, {chosen.beams})"
        results[key] = {"backend": keras.backend.backend(), "samples": len(x), **row}
        if chosen.out:
            write_json(chosen.out, results)
        print(
            f"{key}: {row['minutes']:.1f} minutes ({row['processor_minutes']:.1f} of a processor), "
            f"{row['candidates']} candidates, {row['candidates_per_second']:.1f}/s; "
            f"{row['speed_ratio']:.0f}x a model per candidate "
            f"({row['processor_ratio']:.0f}x in processor time); accuracy {row['accuracy']:.4f}, "
            f"dense {row['dense_accuracy']:.4f}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
