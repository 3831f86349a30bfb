"""A target whose costs are counted and not timed: what tables predict can be held to a digit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dprp_tf.deploy.targets import Target, resolve_target

_COUNTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")


class CountingTarget(Target):
    """A target with exact costs: MACs of a file's kernels, weighted by kind."""

    spec = "counting"
    unit = "instructions"

    def __init__(self, depthwise: float = 1.0, fixed: float = 100.0) -> None:
        self.depthwise, self.fixed = depthwise, fixed
        self.calls: list[int] = []

    def describe(self) -> dict[str, Any]:
        return {
            "machine": {"processor": "abacus", "architecture": "wood", "cpus": 1},
            "runtimes": {"LiteRT": "1.0", "ONNX Runtime": None},
        }

    def measure(
        self,
        paths: Sequence[Path],
        *,
        threads: int = 1,
        warmup: int = 10,
        repeats: int = 50,
        inputs: Path | None = None,
        memory: bool = True,
    ) -> dict[str, Any]:
        self.calls.append(len(paths))
        local = resolve_target("local").measure(paths, warmup=0, repeats=1, memory=False)
        for path, entry in zip(paths, local["models"], strict=True):
            for key in [key for key in entry if key.endswith("_ms")]:
                del entry[key]
            entry["instructions"] = self.fixed + self._count(path)
        return local

    def outputs(
        self, path: Path, inputs: Mapping[str, np.ndarray] | np.ndarray
    ) -> dict[str, np.ndarray]:
        return resolve_target("local").outputs(path, inputs)

    def _count(self, path: Path) -> float:
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_path=str(path))
        tensors = {entry["index"]: entry for entry in interpreter.get_tensor_details()}
        total = 0.0
        for operator in interpreter._get_ops_details():
            if operator["op_name"] not in _COUNTED:
                continue
            weights = tensors[operator["inputs"][1]]["shape"]
            # A transposed window meets each place of the input once.
            transposed = operator["op_name"] == "TRANSPOSE_CONV"
            at = operator["inputs"][2] if transposed else operator["outputs"][0]
            cost = math.prod(weights) * math.prod(tensors[at]["shape"][1:-1])
            total += cost * (self.depthwise if "DEPTHWISE" in operator["op_name"] else 1.0)
        return total
