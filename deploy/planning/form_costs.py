"""What each form costs at each place, measured once per target and remembered on disk."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dprp_tf.costs.form import Form
from dprp_tf.deploy.exporters.source import Source
from dprp_tf.deploy.measurement.benchmark import measure_files
from dprp_tf.deploy.measurement.conditions import busy_kinds
from dprp_tf.deploy.measurement.intervals import ratio_interval
from dprp_tf.deploy.planning.probes import Geometry, Site, probe
from dprp_tf.deploy.targets import Target, TargetError
from dprp_tf.deploy.targets.answers import check_description
from dprp_tf.files.arguments import check_choice, check_integer
from dprp_tf.files.atomic import read_json, write_json
from dprp_tf.files.cache import cache_folder

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
_VERSION = 2
_CALIBRATION = 4
# Fewer rounds make no interval.
_LEAST_ROUNDS = 3
_MAKERS = ("dprp-tf", "tensorflow", "tf2onnx", "onnxruntime")
# Files measured in turns in one process.
_CHUNK = 48
# An interval wider than this share of its ratio says that the machine was busy.
_WIDE = 0.3
_WIDE_INTERVAL = "Wide interval"
# Where every hour is busy, measuring again comes to an end.
_MOST_TRIES = 3
_DENSE = Form("dense")
_LEAST_COST = 1e-9


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
        check_choice("runtime", self.runtime, RUNTIMES)
        if self.precision not in PRECISIONS[self.runtime]:
            raise ValueError(
                f"`precision` must be one of {list(PRECISIONS[self.runtime])} for "
                f"runtime={self.runtime!r}. Received: precision={self.precision!r}"
            )
        object.__setattr__(self, "threads", check_integer("threads", self.threads))

    @property
    def exact(self) -> bool:
        """Whether costs are counted instead of timed."""
        return self.target.unit != "ms"

    def identity(self) -> dict[str, Any]:
        """Ask the target for its processor and the runtime's version.

        Returns:
            `{"target", "processor", "cpus", "runtime", "runtime_version", "precision",
            "threads", "made_with"}`; the last are the versions that decide what a file holds.

        Raises:
            TargetError: If it can't be reached or lacks the runtime.
        """
        described = check_description(self.target.spec, self.target.describe())
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
            "made_with": {
                name: version
                for name, version in ((n, _installed(n)) for n in _MAKERS)
                if version is not None
            },
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
        from dprp_tf.deploy.exporters.onnx import convert_onnx
        from dprp_tf.deploy.exporters.tflite import convert_tflite

        calibration = None
        if self.precision == "int8":
            # Ranges do not change the time.
            calibration = Source.of(model).random_data(_CALIBRATION)
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

    What was measured in a busy moment is remembered as such: the next two plans that need it
    measure it again, and what is doubtful still is named in `warnings`.

    Args:
        setting: Where and how.
        rounds: Timed rounds per form, 3 or more; a second run with three times as many follows
            where a form and the dense one can't be told apart. Ignored where costs are counted.
        cache: Folder of the memory. Default: the user's cache folder.
        refresh: Whether to measure anew what is remembered. Default False.
        progress: Called with a line for each step.

    Attributes:
        warnings: What made the measurements doubtful, without repetition.

    Raises:
        ValueError: If `rounds` is out of range, or the folder can't be written.
        TargetError: If the target can't be reached or lacks the runtime.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        rounds: int = 30,
        cache: str | os.PathLike[str] | None = None,
        refresh: bool = False,
        progress: Callable[[str], None] = lambda step: None,
    ) -> None:
        check_integer("rounds", rounds, minimum=_LEAST_ROUNDS)
        self.folder = Path(cache) if cache is not None else cache_folder("form_costs")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()
        except OSError as error:
            raise ValueError(
                f"`cache` must be a folder that can be written. Received: {self.folder} ({error}); "
                "give another, or set DPRP_TF_CACHE."
            ) from error
        self.setting = setting
        self.identity = setting.identity()
        self.rounds = rounds
        self.refresh = refresh
        self.progress = progress
        self.warnings: list[str] = []
        # What the yardstick cost in the last run.
        self._yardstick: float | None = None

    def measure_sites(
        self, sites: Sequence[Site], forms: Mapping[str, Sequence[Form]]
    ) -> dict[Geometry, dict[Form, FormCost]]:
        """Return the costs of the forms of a model's layers; see `measure`.

        Args:
            sites: Where the layers stand.
            forms: Forms by layer name.

        Returns:
            Costs by geometry and form.

        Raises:
            TargetError: If the target fails.
        """
        wanted: dict[Geometry, list[Form]] = {}
        for site in sites:
            for geometry in site.geometries:
                wanted.setdefault(geometry, []).extend(forms[site.name])
        return self.measure(wanted)

    def measure(
        self, wanted: Mapping[Geometry, Sequence[Form]]
    ) -> dict[Geometry, dict[Form, FormCost]]:
        """Return the costs of forms at places, measuring those not known yet.

        Ratios are remembered as they are; times by a yardstick, a small network measured in every
        run, so that costs from a faster or slower hour are those of now.

        Args:
            wanted: Forms by geometry; the dense form is added.

        Returns:
            Costs by geometry and form. Forms that differ in `error` alone cost the same.

        Raises:
            TargetError: If the target fails.
        """
        entries: dict[Geometry, _Entry] = {}
        missing: dict[Geometry, list[Form]] = {}
        for geometry, forms in wanted.items():
            known = None if self.refresh else self._read(geometry)
            if known is not None:
                entries[geometry] = known
            held = {} if known is None or known.worth_another_try else known.costs
            needed = [form for form in _exact(forms) if form != _DENSE and form not in held]
            if needed or not held:
                missing[geometry] = [_DENSE, *needed]
        chunks = _chunks(missing)
        for number, chunk in enumerate(chunks, start=1):
            for geometry, entry in self._measure_chunk(chunk, f"{number} of {len(chunks)}").items():
                entries[geometry] = _merged(entries.get(geometry), entry)
                self._write(geometry, entries[geometry])
        self._warn_of_doubts(entries.values())
        if self._yardstick is None:
            self._measure_chunk({}, "the yardstick")
        assert self._yardstick is not None
        found: dict[Geometry, dict[Form, FormCost]] = {}
        for geometry, forms in wanted.items():
            entry = entries[geometry]
            scale = self._yardstick / entry.yardstick
            found[geometry] = {
                form: replace(cost, cost=scale * cost.cost)
                for form in (*forms, _DENSE)
                for cost in (entry.costs[_without_error(form)],)
            }
        return found

    def _warn_of_doubts(self, entries: Iterable[_Entry]) -> None:
        doubtful = [entry.doubts for entry in entries if entry.doubts]
        if doubtful:
            kinds = dict.fromkeys(kind for doubts in doubtful for kind in doubts)
            said = f"{len(doubtful)} place{'s' * (len(doubtful) > 1)} of layers"
            self.warnings.append(
                f"Measured in a busy moment: {said} ({', '.join(kinds).lower()}). Plan again at a "
                "quiet time, with refresh=True or --refresh, before you believe what is close."
            )

    def _measure_chunk(
        self, chunk: Mapping[Geometry, Sequence[Form]], label: str
    ) -> dict[Geometry, _Entry]:
        import keras

        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            inputs = keras.Input((1,))
            empty = keras.Model(inputs, keras.layers.Dense(1)(inputs))
            image = keras.Input((16, 16, 32))
            yardstick = keras.Model(image, keras.layers.Conv2D(32, 3, padding="same")(image))
            common = [
                self.setting.convert(empty, folder / "empty"),
                self.setting.convert(yardstick, folder / "yardstick"),
            ]
            paths: dict[Geometry, list[Path]] = {}
            count, total = 0, sum(map(len, chunk.values()))
            for index, (geometry, forms) in enumerate(chunk.items()):
                paths[geometry] = []
                for position, form in enumerate(forms):
                    count += 1
                    place = _describe(geometry)
                    self.progress(f"building {count} of {total} ({label}): {form} for {place}")
                    network = probe(geometry, form, self._copies())
                    path = self.setting.convert(network, folder / f"{index}_{position}")
                    paths[geometry].append(path)
            self.progress(f"measuring {label} on {self.setting.target.spec}")
            entries = self._run(common, paths, chunk, self.rounds)
            unsure = {
                geometry: files
                for geometry, files in paths.items()
                if not self.setting.exact
                and any(_unsure(cost) for cost in entries[geometry].costs.values())
            }
            if unsure:
                self.progress(f"measuring {len(unsure)} close calls again")
                entries.update(self._run(common, unsure, chunk, 3 * self.rounds))
        return entries

    def _run(
        self,
        common: Sequence[Path],
        paths: Mapping[Geometry, Sequence[Path]],
        chunk: Mapping[Geometry, Sequence[Form]],
        rounds: int,
    ) -> dict[Geometry, _Entry]:
        results = measure_files(
            [*common, *(path for files in paths.values() for path in files)],
            threads=self.setting.threads,
            warmup=3,
            repeats=rounds,
            target=self.setting.target,
            memory=False,
        )
        if not self.setting.exact:
            said = dict.fromkeys(warning for result in results for warning in result.warnings)
            self.warnings += [warning for warning in said if warning not in self.warnings]
        overhead, yardstick = results[0].cost, results[1].cost
        self._yardstick = yardstick
        busy = busy_kinds(warning for result in results[:1] for warning in result.warnings)
        entries = {}
        position = len(common)
        for geometry, files in paths.items():
            rows = results[position : position + len(files)]
            position += len(files)
            dense = [max(sample - overhead, _LEAST_COST) for sample in rows[0].samples]
            costs = {}
            for form, row in zip(chunk[geometry], rows, strict=True):
                samples = [max(sample - overhead, _LEAST_COST) for sample in row.samples]
                cost = max(row.cost - overhead, _LEAST_COST) / self._copies()
                costs[form] = FormCost(cost, *ratio_interval(samples, dense))
            wide = any(_wide(cost) for cost in costs.values())
            doubts = () if self.setting.exact else (*busy, *[_WIDE_INTERVAL] * wide)
            entries[geometry] = _Entry(costs, yardstick, rounds, doubts)
        return entries

    def _copies(self) -> int:
        """Two, so that a form does not find its own weights in the cache; counts need but one."""
        return 1 if self.setting.exact else 2

    def _path(self, geometry: Geometry) -> Path:
        key = json.dumps([_VERSION, self.identity, geometry.key], sort_keys=True)
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"

    def _read(self, geometry: Geometry) -> _Entry | None:
        """What is remembered; None if nothing, something damaged, or fewer rounds than asked."""
        try:
            values = read_json(self._path(geometry))
            entry = _Entry(
                {
                    Form.from_dict(row["form"]): FormCost(
                        float(row["cost"]),
                        float(row["ratio"]),
                        float(row["low"]),
                        float(row["high"]),
                    )
                    for row in values["forms"]
                },
                float(values["yardstick"]),
                int(values["rounds"]),
                tuple(map(str, values.get("doubts", ()))),
                int(values.get("tries", 1)),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
            return None
        figures = [entry.yardstick, *(f for cost in entry.costs.values() for f in astuple(cost))]
        sound = _DENSE in entry.costs and all(0 < figure < math.inf for figure in figures)
        enough = self.setting.exact or entry.rounds >= self.rounds
        return entry if sound and enough else None

    def _write(self, geometry: Geometry, entry: _Entry) -> None:
        write_json(
            self._path(geometry),
            {
                "setting": self.identity,
                "geometry": json.loads(geometry.key),
                "unit": self.setting.target.unit,
                "yardstick": entry.yardstick,
                "rounds": entry.rounds,
                "doubts": list(entry.doubts),
                "tries": entry.tries,
                "forms": [
                    {"form": form.as_dict(), **asdict(cost)} for form, cost in entry.costs.items()
                ],
            },
        )


@dataclass(frozen=True)
class _Entry:
    """The forms of one geometry on the scale of one run, and what casts doubt on that."""

    costs: dict[Form, FormCost]
    yardstick: float
    rounds: int
    doubts: tuple[str, ...] = ()
    tries: int = 1

    @property
    def worth_another_try(self) -> bool:
        return bool(self.doubts) and self.tries < _MOST_TRIES

    @property
    def width(self) -> float:
        """Of the widest interval, as a share of its ratio."""
        return max((cost.high - cost.low) / cost.ratio for cost in self.costs.values())


def _merged(known: _Entry | None, measured: _Entry) -> _Entry:
    """Both, on the scale of the run that is older: its dense cost stands.

    What was worth another try is forgotten, unless this one is doubtful too and was no better.
    """
    if known is None:
        return measured
    if known.worth_another_try:
        tries = known.tries + 1
        worse = bool(measured.doubts) and measured.width > known.width
        whole = measured.costs.keys() <= known.costs.keys()
        return replace(known if worse and whole else measured, tries=tries)
    scale = known.costs[_DENSE].cost / measured.costs[_DENSE].cost
    fresh = {form: replace(cost, cost=scale * cost.cost) for form, cost in measured.costs.items()}
    return _Entry(
        {**fresh, **known.costs},
        known.yardstick,
        min(known.rounds, measured.rounds),
        tuple(dict.fromkeys((*known.doubts, *measured.doubts))),
        known.tries,
    )


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _unsure(cost: FormCost) -> bool:
    """Whether a form and the dense one can't be told apart, or the machine was very noisy."""
    close = 0.85 < cost.ratio < 1.15 and cost.low < 1 < cost.high
    return close or _wide(cost)


def _wide(cost: FormCost) -> bool:
    return cost.high - cost.low > _WIDE * cost.ratio


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
