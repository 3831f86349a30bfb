"""One process of a training, for tests/test_workers.py: `dprp train` with an eye on each replica.

Run as `python training_process.py request.json`. After each epoch a line with the ranks and a
digest of every replica's weights and optimizer slots is added to the request's `record`.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from dprp_tf import data
from dprp_tf.keras_internals.compiled import sync
from dprp_tf.runs.settings import TrainSettings
from dprp_tf.runs.training import train
from dprp_tf.training.distribution import Distribution, WorkerLostError, distribution
from dprp_tf.training.replicas import chief_arrays, from_chief, from_first_replica, worker_values


class Record(keras.callbacks.Callback):
    """Write what each replica of this process holds, and die where the request says."""

    def __init__(self, place: Distribution, path: Path, dies: tuple[int, int] | None) -> None:
        super().__init__()
        self.place, self.path, self.dies = place, path, dies
        self.epoch = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self.dies is not None and (self.epoch, batch) == self.dies:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        sync(self.model)
        line = {
            "epoch": epoch + 1,
            "ranks": self.model.ranks,
            "digests": [digest.hexdigest() for digest in self._digests()],
            "loss": float((logs or {})["loss"]),
            "val_accuracy": float((logs or {})["val_accuracy"]),
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Let the replicas and the workers exchange what differs between them."""
        worker = self.place.worker
        arrays = [np.full((3, 2), 1 / 3 + worker), np.arange(5, dtype=np.int8) * (worker + 1)]
        agreed = {
            "chief": from_chief(self.model, {"worker": worker, "text": "\u00e4"}),
            "arrays": [array.tolist() for array in chief_arrays(self.model, arrays)],
            "values": worker_values(self.model, [worker, 0.5]).tolist(),
            "first": self._first() if keras.backend.backend() == "tensorflow" else [],
        }
        path = self.path.with_suffix(".agreed.json")
        path.write_text(json.dumps(agreed), encoding="utf-8")

    def _first(self) -> list[float]:
        import tensorflow as tf

        def step() -> Any:
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            own = tf.cast(replica, "float32") + 7.25
            # The others' NaN must not reach the first's value either.
            lost = tf.where(replica == 0, own, np.nan)
            return from_first_replica([own, lost])[1]

        strategy = self.place.strategy
        parts = strategy.experimental_local_results(tf.function(lambda: strategy.run(step))())
        return [float(part) for part in parts]

    def _digests(self) -> list[Any]:
        digests: list[Any] = []
        for variable in [*self.model.weights, *self.model.optimizer.variables]:
            for index, values in enumerate(self._replicas(variable)):
                if index == len(digests):
                    digests.append(hashlib.sha256())
                digests[index].update(values.tobytes())
        return digests

    def _replicas(self, variable: keras.Variable) -> list[np.ndarray]:
        if keras.backend.backend() == "jax":
            return [np.asarray(part.data) for part in variable.value.addressable_shards]
        parts = self.place.strategy.experimental_local_results(variable.value)
        return [np.asarray(part.numpy()) for part in parts]


def main(request: dict[str, Any]) -> int:
    place = distribution(**request["distribution"])
    dies = None if request.get("dies") is None else tuple(request["dies"])
    try:
        train(
            request["folder"],
            TrainSettings(**request["settings"]),
            data.load("digits", image_size=8),
            callbacks=[Record(place, Path(request["record"]), dies)],
            distribution=place,
        )
    except WorkerLostError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
