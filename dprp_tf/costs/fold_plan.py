"""A fold plan: which form each layer gets, what was measured, and why."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from dprp_tf.costs.form import Form
from dprp_tf.files.shown import shown
from dprp_tf.files.tables import StoredTable, lay_out

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Candidate", "FoldPlan", "PlannedLayer"]

_VERSION = 1


@dataclass(frozen=True)
class Candidate:
    """A form of a layer and what it costs.

    Attributes:
        form: The form.
        cost: Measured cost of the layer in this form, in the plan's unit.
        ratio: Cost relative to the dense form; below 1 is cheaper.
        low: Lower end of the ratio's 95 % interval.
        high: Upper end.
        parameters: Kernel weights it stores.
        macs: Multiply-accumulates of one sample.
    """

    form: Form
    cost: float
    ratio: float
    low: float
    high: float
    parameters: int
    macs: int

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        return {
            "form": self.form.kind,
            "ranks": list(self.form.ranks),
            "error": self.form.error,
            "cost": self.cost,
            "ratio": self.ratio,
            "low": self.low,
            "high": self.high,
            "parameters": self.parameters,
            "macs": self.macs,
        }


@dataclass(frozen=True)
class PlannedLayer:
    """The form chosen for one layer, beside the candidates it was chosen from.

    Attributes:
        name: The layer's name.
        kernel_shape: Its kernel's shape.
        decomposition: How its kernel was unfolded.
        rank: Its rank when it was planned for; a pair of ranks for a Tucker layer.
        form: Its form.
        reason: Why.
        candidates: Every form measured, dense first.
    """

    name: str
    kernel_shape: tuple[int, ...]
    decomposition: str
    rank: int | tuple[int, ...]
    form: Form
    reason: str
    candidates: tuple[Candidate, ...]

    @property
    def chosen(self) -> Candidate:
        """The candidate that was chosen."""
        return next(c for c in self.candidates if c.form == self.form)

    @property
    def dense(self) -> Candidate:
        """The dense candidate."""
        return self.candidates[0]

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        return {
            "name": self.name,
            "kernel_shape": list(self.kernel_shape),
            "decomposition": self.decomposition,
            "rank": list(self.rank) if isinstance(self.rank, tuple) else self.rank,
            "form": self.form.kind,
            "ranks": list(self.form.ranks),
            "error": self.form.error,
            "dense_cost": self.dense.cost,
            "cost": self.chosen.cost,
            "reason": self.reason,
            "candidates": [candidate.as_dict() for candidate in self.candidates],
        }


@dataclass(frozen=True)
class FoldPlan(StoredTable):
    """Which form each SVD or Tucker layer of a model gets on a target, from measurements.

    Attributes:
        layers: One `PlannedLayer` per such layer, in model order.
        target: Where it was measured, such as `"local"`.
        runtime: `"litert"` or `"onnxruntime"`.
        precision: `"float32"`, `"float16"` or `"int8"`.
        threads: Threads of the runtime.
        unit: `"ms"`, or `"instructions"` of an emulated processor, a proxy for time.
        processor: Name of the processor.
        runtime_version: Version of the runtime.
        dense_cost: Cost of the whole model with every layer dense, measured.
        predicted_cost: The same with this plan, as the layers' costs sum up to.
        planned_cost: The same with this plan, measured.
        ratio: planned_cost / dense_cost, from one interleaved run.
        low: Lower end of the ratio's 95 % interval.
        high: Upper end.
        dense_macs: MACs of the whole model with every layer dense.
        planned_macs: The same with this plan.
        notes: What a reader should know, such as a plan given up because it lost.
    """

    kind: ClassVar[str] = "fold plan"
    layers: tuple[PlannedLayer, ...]
    target: str
    runtime: str
    precision: str
    threads: int
    unit: str
    processor: str
    runtime_version: str
    dense_cost: float
    predicted_cost: float
    planned_cost: float
    ratio: float
    low: float
    high: float
    dense_macs: int
    planned_macs: int
    notes: tuple[str, ...] = ()

    @property
    def forms(self) -> dict[str, Form]:
        """Layer name to form."""
        return {layer.name: layer.form for layer in self.layers}

    @property
    def prediction_error(self) -> float:
        """predicted_cost / planned_cost - 1."""
        return self.predicted_cost / self.planned_cost - 1.0

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        return {
            "version": _VERSION,
            "target": self.target,
            "runtime": self.runtime,
            "precision": self.precision,
            "threads": self.threads,
            "unit": self.unit,
            "processor": self.processor,
            "runtime_version": self.runtime_version,
            "dense_cost": self.dense_cost,
            "planned_cost_predicted": self.predicted_cost,
            "planned_cost_measured": self.planned_cost,
            "ratio": {"ratio": self.ratio, "low": self.low, "high": self.high},
            "dense_macs": self.dense_macs,
            "planned_macs": self.planned_macs,
            "notes": list(self.notes),
            "layers": [layer.as_dict() for layer in self.layers],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FoldPlan:
        """Return the plan that `as_dict` described.

        Args:
            values: What `as_dict` returned.

        Returns:
            The plan.

        Raises:
            ValueError: If it is of another version, or a value is missing or unusable.
        """
        if values.get("version") != _VERSION:
            raise ValueError(
                f"A fold plan must have version {_VERSION}. Received: "
                f"version={values.get('version')!r}; make it anew with dprp_tf.deploy.plan_fold."
            )
        try:
            return cls(
                layers=tuple(_layer(entry) for entry in values["layers"]),
                target=str(values["target"]),
                runtime=str(values["runtime"]),
                precision=str(values["precision"]),
                threads=int(values["threads"]),
                unit=str(values["unit"]),
                processor=str(values["processor"]),
                runtime_version=str(values["runtime_version"]),
                dense_cost=_positive(values, "dense_cost"),
                predicted_cost=_positive(values, "planned_cost_predicted"),
                planned_cost=_positive(values, "planned_cost_measured"),
                ratio=_positive(values["ratio"], "ratio"),
                low=_positive(values["ratio"], "low"),
                high=_positive(values["ratio"], "high"),
                dense_macs=int(_positive(values, "dense_macs")),
                planned_macs=int(_positive(values, "planned_macs")),
                notes=tuple(map(str, values["notes"])),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(
                f"A fold plan must be what FoldPlan.save wrote. Received one without: {error}"
            ) from error

    def table(self) -> Table:
        """Lay the plan out for `rich`."""
        unit = "ms" if self.unit == "ms" else "instructions (proxy)"
        rows = (
            (
                layer.name,
                layer.form,
                f"{layer.dense.cost:.4g}",
                f"{layer.chosen.cost:.4g}",
                f"{layer.chosen.ratio:.3f} ({layer.chosen.low:.3f}..{layer.chosen.high:.3f})",
                layer.reason,
            )
            for layer in self.layers
        )
        return lay_out(
            {
                "layer": "fold",
                "form": "left",
                f"dense {unit}": "right",
                f"chosen {unit}": "right",
                "ratio (95 % interval)": "right",
                "why": "fold",
            },
            rows,
            title=f"{self.target}, {self.runtime} {self.runtime_version}, {self.precision}, "
            f"{self.threads} thread{'s' if self.threads > 1 else ''}: {self.ratio:.3f} "
            f"({self.low:.3f}..{self.high:.3f}) x the dense model in {unit}, "
            f"{self.planned_macs / self.dense_macs:.3f} x its MACs",
            caption="\n".join(map(shown, self.notes)),
        )


def _positive(values: Mapping[str, Any], key: str) -> float:
    value = float(values[key])
    if not 0.0 < value < math.inf:
        raise ValueError(f"a `{key}` that is finite and above 0: {value}")
    return value


def _layer(entry: Mapping[str, Any]) -> PlannedLayer:
    candidates = tuple(
        Candidate(
            form=_form(candidate),
            cost=_positive(candidate, "cost"),
            ratio=_positive(candidate, "ratio"),
            low=_positive(candidate, "low"),
            high=_positive(candidate, "high"),
            parameters=int(candidate["parameters"]),
            macs=int(candidate["macs"]),
        )
        for candidate in entry["candidates"]
    )
    form = _form(entry)
    if all(candidate.form != form for candidate in candidates):
        raise ValueError(f"a candidate for the form {form} of {entry['name']}")
    if candidates[0].form.kind != "dense":
        raise ValueError(f"the dense form as first candidate of {entry['name']}")
    return PlannedLayer(
        name=str(entry["name"]),
        kernel_shape=tuple(map(int, entry["kernel_shape"])),
        decomposition=str(entry["decomposition"]),
        rank=_rank(entry["rank"]),
        form=form,
        reason=str(entry["reason"]),
        candidates=candidates,
    )


def _rank(value: Any) -> int | tuple[int, ...]:
    return tuple(map(int, value)) if isinstance(value, list) else int(value)


def _form(values: Mapping[str, Any]) -> Form:
    return Form.from_dict(
        {"kind": values["form"], "ranks": values["ranks"], "error": values["error"]}
    )
