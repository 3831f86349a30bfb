"""What each form costs at each place, measured once per target and remembered on disk."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dprp_tf.atomic import write_json
from dprp_tf.deploy.benchmark import measure_files
from dprp_tf.deploy.cache import cache_folder
from dprp_tf.deploy.intervals import ratio_interval
from dprp_tf.deploy.probes import Geometry, calibration_inputs, probe
from dprp_tf.deploy.targets import Target, TargetError
from dprp_tf.folding import Form

if TYPE_CHECKING:
    import keras

__all__ = ["PRECISIONS", "RUNTIMES", "FormCost", "FormCosts", "Setting"]

# name -> (suffix of its files, what targets call it)
RUNTIMES: Mapping[str, tuple[str, str]] = {
    "litert": (".tflite", "LiteRT"),
    "onnxruntime": (".onnx", "ONNX Runtime"),
}
PRECISIONS: Mapping[str, tuple[str, ...]] = {
    "litert": ("float32", "float16", "int8"),
    "onnxruntime": ("float32", "int8"),
}
_VERSION = 1
# Files measured in turns in one process.
_CHUNK = 48
# An interval wider than this share of its ratio says that the machine was busy.
_WIDE = 0.3
_DENSE = Form("dense")


@dataclass(frozen=True)
class FormCost:
    """The cost of a form at a place.

    Attributes:
        cost: In the target's unit.
        ratio: Relative to the dense form at the same place, from one interleaved run.
        low: Lower end of the ratio's 95 % interval.
        high: Upper end.
    """

    cost: float
    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class Setting:
    """Where and how files run: the things a measured cost holds for.

    Args:
        target: A resolved target.
        runtime: `"litert"` or `"onnxruntime"`.
        precision: One of `PRECISIONS[runtime]`.
        threads: Threads of the runtime, 1 or more.

    Raises:
        ValueError: If an argument is unknown.
    """

    target: Target
    runtime: str
    precision: str
    threads: int = 1

    def __post_init__(self) -> None:
        if self.runtime not in RUNTIMES:
            raise ValueError(
                f"`runtime` must be one of {list(RUNTIMES)}. Received: runtime={self.runtime!r}"
            )
        if self.precision not in PRECISIONS[self.runtime]:
            raise ValueError(
                f"`precision` must be one of {list(PRECISIONS[self.runtime])} for "
                f"runtime={self.runtime!r}. Received: precision={self.precision!r}"
            )

    def identity(self) -> dict[str, Any]:
        """Ask the target for its processor and the runtime's version.

        Returns:
            `{"target", "processor", "cpus", "runtime", "runtime_version", "precision",
            "threads"}`.

        Raises:
            TargetError: If it can't be reached or lacks the runtime.
        """
        described = self.target.describe()
        name = RUNTIMES[self.runtime][1]
        version = described["runtimes"].get(name)
        if version is None:
            raise TargetError(f"{self.target.spec} has no {name}; install it there.")
        machine = described["machine"]
        return {
            "target": self.target.spec,
            "processor": str(machine.get("processor") or machine.get("architecture")),
            "cpus": machine.get("cpus"),
            "runtime": self.runtime,
            "runtime_version": str(version),
            "precision": self.precision,
            "threads": self.threads,
        }

    def convert(self, model: keras.Model, path: Path, integer_io: bool = True) -> Path:
        """Write a plain model as the runtime takes it, unverified: for timing alone.

        Args:
            model: A plain Keras model.
            path: The file to write, without suffix.
            integer_io: Whether a LiteRT int8 file takes and gives int8.

        Returns:
            The file.
        """
        from dprp_tf.deploy.onnx import convert_onnx
        from dprp_tf.deploy.tflite import convert_tflite

        calibration = calibration_inputs(model) if self.precision == "int8" else None
        path = path.with_name(path.name + RUNTIMES[self.runtime][0])
        quantization: Any = None if self.precision == "float32" else self.precision
        if self.runtime == "litert":
            content = convert_tflite(
                model,
                quantization=quantization,
                calibration_data=calibration,
                integer_io=integer_io and self.precision == "int8",
            )
        else:
            content = convert_onnx(model, quantization=quantization, calibration_data=calibration)
        path.write_bytes(content)
        return path


class FormCosts:
    """Measures forms at places on one target, each once, and remembers them.

    Args:
        setting: Where and how.
        rounds: Timed rounds per form; a second run with three times as many follows where a form
            and the dense one can't be told apart. Ignored where the unit is exact.
        cache: Folder of the memory. Default: the user's cache folder.
        progress: Called with a line for each step.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        rounds: int = 30,
        cache: str | os.PathLike[str] | None = None,
        progress: Callable[[str], None] = lambda step: None,
    ) -> None:
        self.setting = setting
        self.identity = setting.identity()
        self.rounds = rounds
        self.folder = Path(cache) if cache is not None else cache_folder("form_costs")
        self.progress = progress

    def measure(
        self, wanted: Mapping[Geometry, Iterable[Form]]
    ) -> dict[Geometry, dict[Form, FormCost]]:
        """Return the costs of forms at places, measuring those not known yet.

        Args:
            wanted: Forms by geometry; the dense form is added.

        Returns:
            Costs by geometry and form. Forms that differ in `error` alone cost the same.

        Raises:
            TargetError: If the target fails.
        """
        missing: dict[Geometry, list[Form]] = {}
        for geometry, forms in wanted.items():
            known = self._read(geometry)
            needed = [form for form in _exact(forms) if form != _DENSE and form not in known]
            if needed or _DENSE not in known:
                missing[geometry] = [_DENSE, *needed]
        for chunk in _chunks(missing):
            self._measure_chunk(chunk)
        return {
            geometry: {
                form: self._read(geometry)[_without_error(form)] for form in {*forms, _DENSE}
            }
            for geometry, forms in ((g, list(f)) for g, f in wanted.items())
        }

    def _measure_chunk(self, chunk: Mapping[Geometry, Sequence[Form]]) -> None:
        import keras

        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            inputs = keras.Input((1,))
            empty = keras.Model(inputs, keras.layers.Dense(1)(inputs))
            paths = [self.setting.convert(empty, folder / "empty")]
            for index, (geometry, forms) in enumerate(chunk.items()):
                for position, form in enumerate(forms):
                    self.progress(f"building {form} for {_describe(geometry)}")
                    network = probe(geometry, form, self._copies())
                    paths.append(self.setting.convert(network, folder / f"{index}_{position}"))
            self.progress(f"measuring {len(paths) - 1} forms on {self.setting.target.spec}")
            costs = self._run(paths, chunk, self.rounds)
            unsure = {
                geometry: forms
                for geometry, forms in chunk.items()
                if self.setting.target.unit == "ms"
                and any(_unsure(cost) for cost in costs[geometry][1:])
            }
            if unsure:
                self.progress(f"measuring {len(unsure)} close calls again")
                again = [paths[0]]
                for index, (geometry, forms) in enumerate(chunk.items()):
                    if geometry in unsure:
                        again += [
                            next(p for p in paths if p.stem == f"{index}_{position}")
                            for position in range(len(forms))
                        ]
                costs.update(self._run(again, unsure, 3 * self.rounds))
        for geometry, forms in chunk.items():
            self._write(geometry, dict(zip(forms, costs[geometry], strict=True)))

    def _run(
        self,
        paths: Sequence[Path],
        chunk: Mapping[Geometry, Sequence[Form]],
        rounds: int,
    ) -> dict[Geometry, list[FormCost]]:
        results = measure_files(
            paths,
            threads=self.setting.threads,
            warmup=3,
            repeats=rounds,
            target=self.setting.target,
            memory=False,
        )
        overhead = results[0].cost
        costs: dict[Geometry, list[FormCost]] = {}
        position = 1
        for geometry, forms in chunk.items():
            rows = results[position : position + len(forms)]
            position += len(forms)
            dense = [max(sample - overhead, 1e-9) for sample in rows[0].samples]
            costs[geometry] = []
            for row in rows:
                samples = [max(sample - overhead, 1e-9) for sample in row.samples]
                ratio, low, high = ratio_interval(samples, dense)
                cost = max(row.cost - overhead, 1e-9) / self._copies()
                costs[geometry].append(FormCost(cost, ratio, low, high))
        return costs

    def _copies(self) -> int:
        """Two, so that a form does not find its own weights in the cache; counts need but one."""
        return 2 if self.setting.target.unit == "ms" else 1

    def _path(self, geometry: Geometry) -> Path:
        key = json.dumps([_VERSION, self.identity, geometry.key], sort_keys=True)
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"

    def _read(self, geometry: Geometry) -> dict[Form, FormCost]:
        try:
            entry = json.loads(self._path(geometry).read_text(encoding="utf-8"))
            return {
                Form.from_dict(row["form"]): FormCost(
                    float(row["cost"]), float(row["ratio"]), float(row["low"]), float(row["high"])
                )
                for row in entry["forms"]
            }
        except (OSError, ValueError, KeyError, TypeError):
            return {}  # unknown, or damaged: measured anew

    def _write(self, geometry: Geometry, costs: dict[Form, FormCost]) -> None:
        known = self._read(geometry)
        if _DENSE in known:
            # Ratios travel between runs, times do not: the first run's dense cost is the scale.
            scale = known[_DENSE].cost / costs[_DENSE].cost
            costs = {
                form: FormCost(cost.cost * scale, cost.ratio, cost.low, cost.high)
                for form, cost in costs.items()
            }
        merged = {**costs, **known}
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(
            self._path(geometry),
            {
                "setting": self.identity,
                "geometry": json.loads(geometry.key),
                "unit": self.setting.target.unit,
                "forms": [
                    {
                        "form": form.as_dict(),
                        "cost": cost.cost,
                        "ratio": cost.ratio,
                        "low": cost.low,
                        "high": cost.high,
                    }
                    for form, cost in merged.items()
                ],
            },
        )


def _unsure(cost: FormCost) -> bool:
    """Whether a form and the dense one can't be told apart, or the machine was very noisy."""
    close = 0.85 < cost.ratio < 1.15 and cost.low < 1 < cost.high
    return close or cost.high - cost.low > _WIDE * cost.ratio


def _exact(forms: Iterable[Form]) -> list[Form]:
    return list(dict.fromkeys(_without_error(form) for form in forms))


def _without_error(form: Form) -> Form:
    return Form(form.kind, form.ranks)


def _chunks(missing: Mapping[Geometry, list[Form]]) -> list[dict[Geometry, list[Form]]]:
    chunks: list[dict[Geometry, list[Form]]] = []
    count = _CHUNK
    for geometry, forms in missing.items():
        if count + len(forms) > _CHUNK:
            chunks.append({})
            count = 0
        chunks[-1][geometry] = forms
        count += len(forms)
    return chunks


def _describe(geometry: Geometry) -> str:
    window = "x".join(map(str, geometry.kernel_shape))
    return f"a {window} kernel on {'x'.join(map(str, geometry.input_shape))}"
