"""Every network of keras.applications, factorized and folded: errors, layers, time and memory.

`python benchmarks/architectures.py --out results/benchmarks/architectures.json`. One row per
network, each in a process of its own, so that peak memory is of that network alone; rows already in
the file are kept unless `--again`. Weights are random. Normalization layers get statistics of a
batch, so that outputs neither vanish nor explode and errors, relative to the largest output, mean
something. The linear algebra runs on one thread (`--threads`); the table's seconds are processor
time, which other work on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from dprp_tf.files.atomic import write_json
from dprp_tf.keras_internals.graphs import graph_of

__all__ = ["LEFT_OUT", "build", "images", "main", "measure", "settle", "sizes"]

# What does not fit into the memory this benchmark allows itself, about 6 GB.
LEFT_OUT = {
    "ConvNeXtXLarge": "350 million weights: the model, its factors and the folded one need 6 GB",
}
_SMALL = 64
_OTHER_INPUT = {
    "InceptionV3": 75,
    "InceptionResNetV2": 75,
    "Xception": 71,
    "NASNetMobile": 224,
    "NASNetLarge": 331,
    # Of the size they are known for: most of their weights are in a layer that grows with it.
    "VGG16": 224,
    "VGG19": 224,
}
_REDUCED = 0.5
_COLUMNS = {
    "input": ("input", "{}"),
    "parameters": ("parameters", "{:,}"),
    "factorized": ("factorized", "{}"),
    "skipped": ("skipped", "{}"),
    "full_rank_error": ("factorized - original", "{:.1e}"),
    "full_rank_fold_error": ("folded - factorized", "{:.1e}"),
    "reduced_difference": ("half the ranks - original", "{:.2f}"),
    "reduced_fold_error": ("its fold - itself", "{:.1e}"),
    "build_processor_seconds": ("build, s", "{:.1f}"),
    "factorize_processor_seconds": ("factorize, s", "{:.1f}"),
    "peak_bytes": ("peak memory, bytes", "{:.2e}"),
    "peak_ratio": ("peak / model", "{:.1f}"),
}


def sizes(name: str) -> int:
    """Return the side of the square input a network is measured with.

    Args:
        name: Its name in keras.applications.

    Returns:
        The number of pixels.
    """
    return _OTHER_INPUT.get(name, _SMALL)


def build(name: str) -> Any:
    """Return a network of keras.applications with random weights.

    Args:
        name: Its name in keras.applications.

    Returns:
        The Keras model, with 1000 classes and their logits for outputs.
    """
    import keras

    side = sizes(name)
    return getattr(keras.applications, name)(
        weights=None, input_shape=(side, side, 3), classifier_activation=None
    )


def images(count: int, side: int) -> Any:
    """Return random images that differ in colour and coarse pattern, as photographs do.

    Args:
        count: How many.
        side: Pixels along an edge.

    Returns:
        Array of shape (count, side, side, 3), float32 in 0 to 255.
    """
    import numpy as np

    generator = np.random.default_rng(1)
    coarse = generator.uniform(0, 255, (count, 4, 4, 3))
    colour = generator.uniform(0, 255, (count, 1, 1, 3))
    at = np.arange(side) * 4 // side
    pattern = (coarse + colour)[:, at][:, :, at] / 2
    return np.clip(pattern + generator.normal(0, 20, pattern.shape), 0, 255).astype("float32")


def settle(model: Any, x: Any) -> None:
    """Give each BatchNormalization the scale of its own inputs, so that outputs mean something.

    One scale for all channels and a mean of 0: statistics of each channel over a few samples would
    blow up what hardly differs between them, layer after layer, until the outputs are rounding.

    Args:
        model: A Keras model without nested ones.
        x: A batch of inputs.
    """
    import keras
    import numpy as np

    graph = graph_of(model)
    generator = np.random.default_rng(2)
    depths = sorted(graph._nodes_by_depth, reverse=True)
    nodes = [node for depth in depths for node in graph._nodes_by_depth[depth]]
    last_use = {id(tensor): node for node in nodes for tensor in node.input_tensors}
    values = {id(graph.inputs[0]): keras.ops.convert_to_tensor(x)}
    for node in nodes:
        if node.is_input:
            continue
        layer = node.operation
        args, kwargs = node.arguments.fill_in(values)
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_mean.assign(keras.ops.zeros_like(layer.moving_mean))
            variance = keras.ops.mean(keras.ops.square(args[0]))
            layer.moving_variance.assign(keras.ops.full_like(layer.moving_variance, variance))
        if getattr(layer, "bias", None) is not None:
            layer.bias.assign(generator.normal(0, 0.1, layer.bias.shape))
        outputs = keras.tree.flatten(layer(*args, **kwargs))
        values.update((id(old), new) for old, new in zip(node.outputs, outputs, strict=True))
        for tensor in node.input_tensors:
            if last_use[id(tensor)] is node:
                values.pop(id(tensor), None)


def measure(name: str) -> dict[str, Any]:
    """Build, factorize and fold one network and compare the outputs.

    Args:
        name: Its name in keras.applications.

    Returns:
        The row.
    """
    import keras
    import numpy as np

    import dprp_tf as dprp

    keras.utils.set_random_seed(0)
    # What importing and the first operation cost is no part of a network's time and memory.
    warm = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 3)])
    dprp.fold(dprp.factorize(warm))
    began, began_processor = time.perf_counter(), time.process_time()
    model = build(name)
    built = time.perf_counter() - began
    built_processor = time.process_time() - began_processor
    gc.collect()
    # Before anything else is computed: memory that was freed would hide what is taken anew.
    with _PeakMemory() as memory:
        began, began_processor = time.perf_counter(), time.process_time()
        full = dprp.factorize(model)
        factorized = time.perf_counter() - began
        factorized_processor = time.process_time() - began_processor
    table = dprp.summarize(full)
    same_names = [layer.name for layer in full.layers] == [layer.name for layer in model.layers]
    same_flags = [at.trainable for at in full.layers] == [at.trainable for at in model.layers]
    x = images(4, sizes(name))
    settle(model, x)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            full.get_layer(layer.name).set_weights(layer.get_weights())
        elif getattr(layer, "bias", None) is not None:
            full.get_layer(layer.name).bias.assign(layer.bias)

    def outputs(of: Any) -> Any:
        return keras.ops.convert_to_numpy(of(x, training=False))

    original = outputs(model)
    weights = model.get_weights()
    at_full_rank = outputs(full)
    ranks = {
        key: max(1, int(rank * _REDUCED))
        for key, rank in full.ranks.items()
        if isinstance(rank, int)
    }
    folded_full = outputs(dprp.fold(full))
    del full
    low = dprp.factorize(model, ranks=ranks)
    # With a part of each kernel gone the signal would fade, and only the biases be compared.
    settle(low, x)
    reduced = outputs(low)
    folded = dprp.fold(low)
    folded_names = {layer.name for layer in folded.layers}
    size = 4 * model.count_params()
    return {
        "name": name,
        "input": sizes(name),
        "parameters": model.count_params(),
        "largest_output": float(np.abs(original).max()),
        # Outputs that did not depend on the sample would make any comparison empty.
        "spread_between_samples": _error(original[:1], original[1:2]),
        "reduced_spread_between_samples": _error(reduced[:1], reduced[1:2]),
        "full_rank_error": _error(at_full_rank, original),
        "full_rank_fold_error": _error(folded_full, at_full_rank),
        "reduced_difference": _error(reduced, original),
        "reduced_fold_error": _error(outputs(folded), reduced),
        "factorized": len(table.rows) - len(table.skipped),
        "skipped": len(table.skipped),
        "reasons": dict(Counter(str(row.skipped) for row in table.skipped)),
        "same_names_and_flags": same_names and same_flags,
        "names_in_the_folded_model": all(layer.name in folded_names for layer in model.layers),
        "original_untouched": all(
            np.array_equal(a, b) for a, b in zip(weights, model.get_weights(), strict=True)
        ),
        "build_seconds": built,
        "build_processor_seconds": built_processor,
        "factorize_seconds": factorized,
        "factorize_processor_seconds": factorized_processor,
        "model_bytes": size,
        "peak_bytes": memory.peak,
        "peak_ratio": memory.peak / size,
    }


def _error(outputs: Any, expected: Any) -> float:
    """Largest difference relative to the largest expected value."""
    return float(abs(outputs - expected).max() / abs(expected).max())


class _PeakMemory:
    """How far the resident memory of this process rises above what it was, polled."""

    def __enter__(self) -> _PeakMemory:
        self._before = _resident()
        self._highest = self._before
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self._highest = max(self._highest, _resident())

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()
        self.peak = max(self._highest, _resident()) - self._before


def _resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _names() -> list[str]:
    import keras

    return [
        name
        for name, value in vars(keras.applications).items()
        if name[:1].isupper() and callable(value)
    ]


def _in_a_process(name: str, threads: int) -> dict[str, Any]:
    environment = {
        **os.environ,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "OPENBLAS_NUM_THREADS": str(threads),
        "OMP_NUM_THREADS": str(threads),
    }
    command = [sys.executable, str(Path(__file__).resolve()), "--only", name, "--row"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        reason = lines[-1] if lines else f"exit code {done.returncode}"
        return {"name": name, "failed": reason}
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def _markdown(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| network | " + " | ".join(title for title, _ in _COLUMNS.values()) + " |",
        "|---" * (len(_COLUMNS) + 1) + "|",
    ]
    for row in rows:
        if "failed" in row:
            lines.append(
                f"| {row['name']} | failed: {row['failed']} |" + " |" * (len(_COLUMNS) - 1)
            )
            continue
        cells = [_COLUMNS[key][1].format(row[key]) for key in _COLUMNS]
        lines.append(f"| {row['name']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Measure what is not in the file yet, and print a Markdown table.

    Returns:
        0 if every network held, 1 if one failed.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", help="names in keras.applications; default all")
    parser.add_argument("--threads", type=int, default=1, help="threads of the linear algebra")
    parser.add_argument("--again", action="store_true", help="measure rows the file has, too")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--row", action="store_true", help="one network, here, as a line of JSON")
    chosen = parser.parse_args()
    if chosen.row:
        if not chosen.only or len(chosen.only) != 1:
            parser.error("--row needs exactly one name in --only")
        print(json.dumps(measure(chosen.only[0])))
        return 0
    names = chosen.only or _names()
    unknown = sorted(set(names) - set(_names()))
    if unknown:
        parser.error(f"--only must name networks of keras.applications. Received: {unknown}")
    known: dict[str, dict[str, Any]] = {}
    if chosen.out and chosen.out.exists():
        known = {row["name"]: row for row in json.loads(chosen.out.read_text("utf-8"))["networks"]}
    for name in names:
        if name in LEFT_OUT or (name in known and "failed" not in known[name] and not chosen.again):
            continue
        known[name] = _in_a_process(name, chosen.threads)
        print(json.dumps(known[name]), file=sys.stderr, flush=True)
        if chosen.out:
            write_json(
                chosen.out,
                {
                    "threads": chosen.threads,
                    "reduced_ranks": _REDUCED,
                    "left_out": LEFT_OUT,
                    "networks": [known[at] for at in _names() if at in known],
                },
            )
    rows = [known[name] for name in names if name in known]
    print(_markdown(rows))
    return 1 if any("failed" in row for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
