"""One training step of each kind of low-rank layer beside the layer it stands for, interleaved.

`python benchmarks/step_of_layers.py --out results/benchmarks/step_of_layers.json`; ratios of
medians are what counts. At full rank, where rebuilding a kernel costs most.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from interleaved import compiled, time_steps
from keras import layers

import dprp_tf as dprp
from dprp_tf.conversion.writing_out import reachable
from dprp_tf.files.atomic import write_json

__all__ = ["main"]

_Layers = Callable[[Any], Any]


def _stack(make: Callable[[], Any], count: int = 4) -> _Layers:
    def apply(x: Any) -> Any:
        for _ in range(count):
            x = make()(x)
        return x

    return apply


def _attention(x: Any) -> Any:
    for _ in range(2):
        x = layers.MultiHeadAttention(4, 32)(x, x)
    return x


# Each with the input that it is called on.
_CASES: dict[str, tuple[tuple[int, ...], _Layers]] = {
    "Conv2D": ((16, 16, 64), _stack(lambda: layers.Conv2D(64, 3, padding="same"))),
    "Conv2DTranspose": (
        (16, 16, 64),
        _stack(lambda: layers.Conv2DTranspose(64, 3, padding="same")),
    ),
    "Conv2DTranspose, strides of 2": (
        (8, 8, 64),
        _stack(lambda: layers.Conv2DTranspose(64, 2, strides=2), 2),
    ),
    "Dense": ((64, 128), _stack(lambda: layers.Dense(128))),
    "MultiHeadAttention, written out": ((64, 128), _attention),
    "LSTM": ((32, 128), _stack(lambda: layers.LSTM(128, return_sequences=True), 2)),
    "GRU": ((32, 128), _stack(lambda: layers.GRU(128, return_sequences=True), 2)),
    "SimpleRNN": ((32, 128), _stack(lambda: layers.SimpleRNN(128, return_sequences=True), 2)),
}


def _network(shape: tuple[int, ...], build: _Layers) -> keras.Model:
    inputs = keras.Input(shape)
    x = build(inputs)
    pool = layers.GlobalAveragePooling2D if len(x.shape) == 4 else layers.GlobalAveragePooling1D
    return reachable(keras.Model(inputs, layers.Dense(10)(pool()(x))))


def main() -> int:
    """Measure and print the ratios.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=4, help="steps of each model per round")
    parser.add_argument("--decomposition", default="channel")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    rng = np.random.default_rng(0)
    found: dict[str, Any] = {"backend": keras.backend.backend(), **vars(chosen), "ratios": {}}
    del found["out"]
    for name, (shape, build) in _CASES.items():
        keras.utils.set_random_seed(0)
        plain = _network(shape, build)
        lowrank = dprp.factorize(plain, decomposition=chosen.decomposition)
        models = {"plain": compiled(plain), name: compiled(lowrank)}
        x = rng.standard_normal((chosen.batch_size, *shape)).astype("float32")
        y = rng.integers(0, 10, chosen.batch_size)
        for model in models.values():
            model.train_on_batch(x, y)
        times = time_steps(models, x, y, rounds=chosen.rounds, steps=chosen.steps)
        ratios = found["ratios"][name] = times.ratios(name)
        low, high = ratios["processor_quartiles"]
        print(
            f"{name:32} processor {ratios['processor']:.3f} ({low:.3f} to {high:.3f})  "
            f"wall {ratios['wall']:.3f}",
            flush=True,
        )
    if chosen.out:
        write_json(chosen.out, found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
