"""Measure the forms of a model's layers on a target, and pick per layer."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import keras

from dprp_tf.conversion.folding import fold
from dprp_tf.conversion.form_weights import layer_forms
from dprp_tf.costs.fold_plan import Candidate, FoldPlan, PlannedLayer
from dprp_tf.costs.form import Form
from dprp_tf.costs.models import model_cost
from dprp_tf.deploy.measurement.benchmark import measure_files
from dprp_tf.deploy.measurement.intervals import ratio_interval
from dprp_tf.deploy.planning.form_costs import FormCost, FormCosts, Setting
from dprp_tf.deploy.planning.probes import Geometry, Site, layer_sites
from dprp_tf.deploy.targets import Target, resolve_target
from dprp_tf.layers import plain_ranks

__all__ = ["plan_fold"]

_DENSE = Form("dense")
# A cautious plan keeps the gains that are no close call.
_CLEAR_GAIN = 0.85
# Instruction counts repeat within this share.
_COUNTING_NOISE = 0.01


def plan_fold(
    model: keras.Model,
    *,
    target: str | Target = "local",
    runtime: str = "litert",
    precision: str = "float32",
    threads: int = 1,
    tolerance: float = 0.0,
    rounds: int = 30,
    cache: str | os.PathLike[str] | None = None,
    refresh: bool = False,
    progress: Callable[[str], None] = lambda step: None,
) -> FoldPlan:
    """Find by measurement which form of each low-rank layer is fastest on a target.

    Each distinct form at each distinct place is timed once, as a small network with the
    normalization and ReLU that follow it, in the real runtime; all of them in turns, so that a
    slow moment hits all. Forms with more MACs than the dense one are not tried. A layer leaves
    its dense form only where the 95 % interval of the ratio lies below 1. The whole model folded
    so is then timed against its dense fold; if it does not win beyond the noise, only the clear
    gains are kept, and if those do not win either, the dense layers: a plan never costs more than
    the dense model it was measured against.

    Results are remembered per processor, runtime version, precision and number of threads.

    Args:
        model: A model with SVD or Tucker layers and inputs of fixed shape.
        target: `"local"`, `"qemu:cortex-a72"` (also a53, a76; counts instructions, a proxy),
            `"ssh://user@host"`, `"adb://serial"`, or a `Target`. Defaults to `"local"`.
        runtime: `"litert"` or `"onnxruntime"`. Defaults to `"litert"`.
        precision: `"float32"`, `"float16"` (LiteRT) or `"int8"`. Defaults to `"float32"`.
        threads: Threads of the runtime, 1 or more. Defaults to 1.
        tolerance: Relative error of a layer's kernel that a form may have; 0 means exact forms
            alone. Defaults to 0.
        rounds: Timed rounds per form, 3 or more. Defaults to 30.
        cache: Folder that remembers measured costs. Defaults to the user's cache folder.
        refresh: Whether to measure anew what is remembered. Defaults to false.
        progress: Called with a line for each step, such as `print`. Defaults to silence.

    Returns:
        The plan, for `dprp_tf.fold(model, plan=...)`.

    Raises:
        ValueError: If the model has no graph, no low-rank layer, NaN factors or inputs
            of open shape, or an argument is unknown.
        TargetError: If the target can't be reached or lacks the runtime.

    Example:

    >>> import keras, tempfile, dprp_tf as dprp
    >>> inputs = keras.Input((16, 16, 32))
    >>> outputs = keras.layers.Conv2D(32, 3, padding="same", name="a")(inputs)
    >>> lowrank = dprp.factorize(keras.Model(inputs, outputs), decomposition="channel", ranks=4)
    >>> found = plan_fold(lowrank, rounds=3, cache=tempfile.mkdtemp())
    >>> [candidate.form.kind for candidate in found.layers[0].candidates][:2], found.ratio <= 1
    (['dense', 'channel'], True)
    """
    setting = Setting(resolve_target(target), runtime, precision, threads)
    sites = layer_sites(model)
    forms = {site.name: site.worth_trying(layer_forms(site.layer, tolerance)) for site in sites}
    costs = FormCosts(setting, rounds=rounds, cache=cache, refresh=refresh, progress=progress)
    with tempfile.TemporaryDirectory() as name:
        progress("building the whole model")
        dense_forms = {site.name: _DENSE for site in sites}
        dense = fold(model, forms=dense_forms, model_class=keras.Model)
        # First of all: a model that can't be converted is refused before anything is measured.
        path = setting.convert(dense, Path(name) / "dense", integer_io=False)
        measured = costs.measure_sites(sites, forms)
        noise = _COUNTING_NOISE if setting.exact else 0.0
        layers = [_choose(site, forms[site.name], measured, noise) for site in sites]
        return _prove(model, costs, layers, int(model_cost(dense).macs or 0), path, progress)


def _choose(
    site: Site,
    forms: Sequence[Form],
    measured: Mapping[Geometry, Mapping[Form, FormCost]],
    noise: float = 0.0,
) -> PlannedLayer:
    """Pick the form of one layer; for a shared layer, the costs of its calls add up."""
    tables = [measured[geometry] for geometry in site.geometries]
    dense = sum(table[_DENSE].cost for table in tables)
    candidates = []
    for form in forms:
        rows = [table[form] for table in tables]
        weights = [table[_DENSE].cost / dense for table in tables]
        ratio, low, high = (
            sum(w * getattr(row, name) for w, row in zip(weights, rows, strict=True))
            for name in ("ratio", "low", "high")
        )
        candidates.append(
            Candidate(
                form=form,
                cost=ratio * dense,
                ratio=ratio,
                low=low,
                high=high,
                parameters=form.parameters(site.layer.kernel_shape),
                macs=sum(geometry.macs(form) for geometry in site.geometries),
            )
        )
    faster = [c for c in candidates[1:] if c.high < 1 - noise]
    if faster:
        quickest = min(faster, key=lambda c: c.ratio)
        # Noise does not decide between forms that it can't tell apart: the smaller one does.
        near = [c for c in faster if c.low <= quickest.high]
        chosen = min(near, key=lambda c: (c.parameters, c.ratio))
        form, reason = chosen.form, f"{chosen.ratio:.2f} x the dense form"
    else:
        form, reason = _DENSE, "no form has fewer MACs"
        if candidates[1:]:
            reason = _no_gain(min(candidates[1:], key=lambda c: c.ratio), noise)
    return PlannedLayer(
        name=site.name,
        kernel_shape=tuple(site.layer.kernel_shape),
        decomposition=site.layer.decomposition,
        rank=plain_ranks(site.layer.ranks),
        form=form,
        reason=reason,
        candidates=tuple(candidates),
    )


def _no_gain(best: Candidate, noise: float) -> str:
    """Say why the best of the other forms was not chosen."""
    told = f"{best.form} takes {best.ratio:.2f} x"
    if best.ratio >= 1:
        return told
    if noise:
        return f"{best.form} takes {best.ratio:.3f} x, and counts repeat within {noise:.0%} only"
    return (
        f"{told}, which is not certain: the interval {best.low:.2f}..{best.high:.2f} reaches 1; "
        "more rounds would tell"
    )


def _kept_dense(layer: PlannedLayer, why: str) -> PlannedLayer:
    if layer.form == _DENSE:
        return layer
    return replace(
        layer, form=_DENSE, reason=f"{layer.form} takes {layer.chosen.ratio:.2f} x, but {why}"
    )


def _scaled(layers: Sequence[PlannedLayer], whole: float) -> list[PlannedLayer]:
    """The same costs, shrunk if noise lets the layers sum up to more than the whole model."""
    total = sum(layer.dense.cost for layer in layers)
    scale = min(1.0, whole / total)
    return [
        replace(
            layer,
            candidates=tuple(replace(c, cost=scale * c.cost) for c in layer.candidates),
        )
        for layer in layers
    ]


def _prove(
    model: keras.Model,
    costs: FormCosts,
    layers: Sequence[PlannedLayer],
    dense_macs: int,
    dense_path: Path,
    progress: Callable[[str], None],
) -> FoldPlan:
    """Time the whole model as planned against its dense fold, and step back if it loses."""
    setting, identity, rounds = costs.setting, costs.identity, costs.rounds
    plans = []
    if any(layer.form != _DENSE for layer in layers):
        plans.append(("the plan", list(layers)))
    cautious = [
        layer
        if layer.chosen.ratio < _CLEAR_GAIN
        else _kept_dense(layer, "that is no clear gain and the model without it was faster")
        for layer in layers
    ]
    if cautious != list(layers) and any(layer.form != _DENSE for layer in cautious):
        plans.append((f"the plan of gains below {_CLEAR_GAIN} x alone", cautious))
    notes: list[str] = []
    folder = dense_path.parent
    paths, models = [dense_path], []
    for position, (_, choice) in enumerate(plans):
        forms = {layer.name: layer.form for layer in choice}
        folded = fold(model, forms=forms, model_class=keras.Model)
        models.append(folded)
        paths.append(setting.convert(folded, folder / f"plan{position}", integer_io=False))
    for repeats in (2 * rounds, 6 * rounds):
        progress(f"measuring the whole model on {setting.target.spec}")
        results = measure_files(
            paths,
            threads=setting.threads,
            warmup=5,
            repeats=repeats,
            target=setting.target,
            memory=False,
        )
        dense = results[0]
        ratios = [ratio_interval(result.samples, dense.samples) for result in results[1:]]
        if not any(low < 1 < high for _, low, high in ratios):
            break
    measured = []
    for (label, choice), folded, result, interval in zip(
        plans, models, results[1:], ratios, strict=True
    ):
        ratio, low, high = interval
        noise = _COUNTING_NOISE if setting.exact else 0.0
        if high <= 1 - noise:
            macs = int(model_cost(folded).macs or 0)
            measured.append((ratio, low, high, choice, result.cost, macs))
        else:
            notes.append(
                f"{label} was given up: measured whole, it takes {ratio:.3f} "
                f"({low:.3f}..{high:.3f}) x the dense model"
            )
    if measured:
        ratio, low, high, choice, cost, macs = min(measured, key=lambda entry: entry[0])
    else:
        why = "the model gained nothing"
        # Of noise alone: the median is a gain, and the interval reaches above 1.
        unsure = [interval for interval in ratios if interval[0] < 1 and not setting.exact]
        if unsure:
            ratio, low, high = min(unsure)
            why = (
                f"the whole model takes {ratio:.2f} x ({low:.2f}..{high:.2f}), which is not "
                "certainly less; more rounds would tell"
            )
        ratio = low = high = 1.0
        choice, cost, macs = [_kept_dense(layer, why) for layer in layers], dense.cost, dense_macs
        certain = " for certain" * bool(unsure)
        notes.append(f"the dense layers are kept: no other form made the model faster{certain}")
    if not setting.exact:
        said = [warning for result in results for warning in result.warnings]
        # One of each kind: a kind is what stands before the colon.
        notes += {warning.split(":")[0]: warning for warning in [*costs.warnings, *said]}.values()
    else:
        notes.append("instructions of an emulated processor are a proxy for time")
    choice = _scaled(choice, dense.cost)
    saved = sum(layer.chosen.cost - layer.dense.cost for layer in choice)
    return FoldPlan(
        layers=tuple(choice),
        target=setting.target.spec,
        runtime=setting.runtime,
        precision=setting.precision,
        threads=setting.threads,
        unit=setting.target.unit,
        processor=str(identity["processor"]),
        runtime_version=str(identity["runtime_version"]),
        dense_cost=dense.cost,
        predicted_cost=dense.cost + saved,
        planned_cost=cost,
        ratio=ratio,
        low=low,
        high=high,
        dense_macs=dense_macs,
        planned_macs=macs,
        notes=tuple(notes),
    )
