"""Cold start and peak memory of edge_runner.py in a fresh process: here, and in emulated arm64.

`python benchmarks/cold_start.py --out results/benchmarks/cold_start.json`. Here they are
milliseconds and the peak of resident memory, medians over fresh processes in turns; in emulated
arm64 instructions, and the memory resident in the emulated process after the inference. The latter
two are proxies; times of this machine mean little on another.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from dprp_tf import zoo
from dprp_tf.deploy.exporters.onnx import export_onnx
from dprp_tf.deploy.exporters.tflite import export_tflite
from dprp_tf.deploy.targets import LocalTarget
from dprp_tf.deploy.targets.qemu import EmulatedTarget
from dprp_tf.files.atomic import write_json

__all__ = ["main"]

_MEASURED_HERE = ("load_ms", "first_inference_ms", "peak_memory_bytes", "model_memory_bytes")


def _export(network: str, folder: Path) -> dict[str, Path]:
    model = zoo.build(network)
    samples = np.random.default_rng(0).random((32, *model.input_shape[1:]), dtype=np.float32)
    paths = {
        "LiteRT float32": folder / "float32.tflite",
        "LiteRT int8": folder / "int8.tflite",
        "ONNX Runtime float32": folder / "float32.onnx",
    }
    export_tflite(model, paths["LiteRT float32"])
    export_tflite(
        model,
        paths["LiteRT int8"],
        quantization="int8",
        calibration_data=samples,
        minimum_agreement=0,
    )
    export_onnx(model, paths["ONNX Runtime float32"])
    return paths


def _here(paths: dict[str, Path], rounds: int) -> tuple[dict[str, dict[str, Any]], list[float]]:
    measured: dict[str, dict[str, list[float]]] = {
        name: {key: [] for key in (*_MEASURED_HERE, "cold_start_ms")} for name in paths
    }
    # The first round reads the runtimes from the disk.
    for round_number in range(rounds + 1):
        answer = LocalTarget().measure(list(paths.values()), warmup=0, repeats=1)
        if round_number == 0:
            continue
        for name, entry in zip(paths, answer["models"], strict=True):
            for key in _MEASURED_HERE:
                measured[name][key].append(entry[key])
            measured[name]["cold_start_ms"].append(entry["load_ms"] + entry["first_inference_ms"])
    result: dict[str, dict[str, Any]] = {}
    for name, values in measured.items():
        low, _, high = statistics.quantiles(values["cold_start_ms"], n=4)
        result[name] = {key: statistics.median(numbers) for key, numbers in values.items()}
        result[name]["cold_start_ms_quartiles"] = [low, high]
    return result, list(os.getloadavg())


def main() -> int:
    """Measure, print a line per file and target, and write the figures.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--network", default="resnet20", choices=sorted(zoo.ZOO))
    parser.add_argument("--rounds", type=int, default=11, help="fresh processes per file here")
    parser.add_argument("--core", default="qemu:cortex-a72", help="emulated target")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    if chosen.rounds < 2:
        parser.error("--rounds must be 2 or more")
    emulated = EmulatedTarget(chosen.core)
    with tempfile.TemporaryDirectory() as folder:
        paths = _export(chosen.network, Path(folder))
        sizes = {name: path.stat().st_size for name, path in paths.items()}
        here, load = _here(paths, chosen.rounds)
        there = {name: emulated.cold_start(path) for name, path in paths.items()}
        counts = emulated.measure(list(paths.values()))["models"]
    for (name, figures), entry in zip(there.items(), counts, strict=True):
        figures["later_inference_instructions"] = int(entry["instructions"])
        local = here[name]
        print(
            f"{name:22} here       cold start {local['cold_start_ms']:7.1f} ms "
            f"(load {local['load_ms']:.1f}, first inference {local['first_inference_ms']:.2f}), "
            f"peak {local['peak_memory_bytes'] / 1e6:.1f} MB, "
            f"model {local['model_memory_bytes'] / 1e6:.1f} MB"
        )
        print(
            f"{'':22} {emulated.spec} cold start "
            f"{figures['cold_start_instructions'] / 1e6:.0f} million instructions "
            f"(first inference {figures['first_inference_instructions'] / 1e6:.1f}, later "
            f"{figures['later_inference_instructions'] / 1e6:.1f}), "
            f"resident {figures['resident_memory_bytes'] / 1e6:.1f} MB, "
            f"model {figures['model_memory_bytes'] / 1e6:.1f} MB"
        )
    if chosen.out:
        result = {
            "network": chosen.network,
            "rounds": chosen.rounds,
            "size_bytes": sizes,
            "local": {**LocalTarget().describe(), "load_average": load, "files": here},
            chosen.core: {**emulated.describe(), "proxy": True, "files": there},
        }
        write_json(chosen.out, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
