"""Measure what each layer of a model costs at each rank, before any training."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import keras

from dprp_tf.conversion.folding import fold
from dprp_tf.costs.form import OWN_KIND, Form
from dprp_tf.costs.latency_row import LayerLatency
from dprp_tf.costs.latency_table import LatencyTable
from dprp_tf.costs.layer_forms import obstacle
from dprp_tf.decomposition import resolve
from dprp_tf.deploy.measurement.benchmark import measure_files
from dprp_tf.deploy.planning.form_costs import FormCosts, Setting
from dprp_tf.deploy.planning.probes import Site, layer_sites
from dprp_tf.deploy.targets import Target, resolve_target
from dprp_tf.files.arguments import is_integer
from dprp_tf.layers import SVDLayer

__all__ = ["measure_latency"]

_DENSE = Form("dense")
_SHARES = (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4)
_FEW = 9


def measure_latency(
    model: keras.Model,
    *,
    target: str | Target = "local",
    runtime: str = "litert",
    precision: str = "float32",
    threads: int = 1,
    ranks: Sequence[int] | None = None,
    rounds: int = 30,
    cache: str | os.PathLike[str] | None = None,
    refresh: bool = False,
    progress: Callable[[str], None] = lambda step: None,
) -> LatencyTable:
    """Measure the time of every layer of a factorized model at several ranks on a target.

    Forms are timed as `plan` times them, with random weights: the model need not be trained, and
    its ranks of now do not matter. Tucker layers are left as they are. The table answers what ranks
    a time allows, and drives `BudgetPruning(budget, latency=table)`.

    Args:
        model: A model with SVD layers, such as `factorize` gives it, and inputs of fixed shape.
        target: As for `plan`. Defaults to `"local"`.
        runtime: `"litert"` or `"onnxruntime"`. Defaults to `"litert"`.
        precision: `"float32"`, `"float16"` (LiteRT) or `"int8"`. Defaults to `"float32"`.
        threads: Threads of the runtime, 1 or more. Defaults to 1.
        ranks: Ranks to measure, where a layer has them and they take no more MACs than the dense
            form. Defaults to every rank of full ranks up to 9, else to six between a sixteenth
            and three quarters of the full rank.
        rounds: Timed rounds per form, 3 or more. Defaults to 30.
        cache: Folder that remembers measured costs. Defaults to the user's cache folder.
        refresh: Whether to measure anew what is remembered. Defaults to false.
        progress: Called with a line for each step, such as `print`. Defaults to silence.

    Returns:
        The table.

    Raises:
        ValueError: If the model has no SVD layer or inputs of open shape, or an argument is
            unknown.
        TargetError: If the target can't be reached or lacks the runtime.

    Example:

    >>> import keras, tempfile, dprp_tf as dprp
    >>> inputs = keras.Input((16, 16, 32))
    >>> outputs = keras.layers.Conv2D(32, 3, padding="same", name="a")(inputs)
    >>> lowrank = dprp.factorize(keras.Model(inputs, outputs), decomposition="channel")
    >>> table = measure_latency(lowrank, ranks=(4, 8), rounds=3, cache=tempfile.mkdtemp())
    >>> table.layer("a").ranks
    (4, 8)
    """
    setting = Setting(resolve_target(target), runtime, precision, threads)
    sites = [site for site in layer_sites(model) if isinstance(site.layer, SVDLayer)]
    if not sites:
        raise ValueError(
            "`model` must have SVD layers to measure at several ranks. Received: "
            f"{model.name!r}, which has Tucker layers alone; `plan` measures those at their ranks."
        )
    if ranks is not None:
        several = isinstance(ranks, Sequence) and len(ranks) > 0
        if not several or not all(map(is_integer, ranks)):
            raise ValueError(
                f"`ranks` must be a sequence of integers of 1 or more. Received: ranks={ranks!r}"
            )
    forms = {site.name: _forms(site, ranks) for site in sites}
    costs = FormCosts(setting, rounds=rounds, cache=cache, refresh=refresh, progress=progress)
    measured = costs.measure_sites(sites, forms)
    for warning in costs.warnings:
        progress(f"warning: {warning}")

    def total(site: Site, form: Form) -> float:
        return sum(measured[geometry][form].cost for geometry in site.geometries)

    progress("measuring the dense model")
    with tempfile.TemporaryDirectory() as name:
        # To be timed alone: a class of the user's own does not matter.
        dense = fold(model, forms={site.name: _DENSE for site in sites}, model_class=keras.Model)
        path = setting.convert(dense, Path(name) / "dense", integer_io=False)
        whole = measure_files(
            [path],
            threads=threads,
            warmup=5,
            repeats=2 * rounds,
            target=setting.target,
            memory=False,
        )[0].cost
    # Noise may let the layers sum up to more than the whole model.
    scale = min(1.0, whole / sum(total(site, _DENSE) for site in sites))
    rows = []
    for site in sites:
        quickest: dict[int, tuple[float, str]] = {}
        for form in forms[site.name]:
            offer = (scale * total(site, form), form.kind)
            quickest[form.ranks[0]] = min(offer, quickest.get(form.ranks[0], offer))
        known = tuple(sorted(quickest))
        rows.append(
            LayerLatency(
                name=site.name,
                decomposition=site.layer.decomposition,
                full_rank=site.layer.full_ranks[0],
                dense=scale * total(site, _DENSE),
                ranks=known,
                costs=tuple(quickest[rank][0] for rank in known),
                forms=tuple(quickest[rank][1] for rank in known),
            )
        )
    return LatencyTable(
        layers=tuple(rows),
        dense=whole,
        target=setting.target.spec,
        runtime=runtime,
        precision=precision,
        threads=threads,
        unit=setting.target.unit,
        processor=str(costs.identity["processor"]),
        runtime_version=str(costs.identity["runtime_version"]),
    )


def _forms(site: Site, ranks: Sequence[int] | None) -> list[Form]:
    layer = site.layer
    kind = OWN_KIND[resolve(layer.kernel_shape, layer.decomposition)]
    full = layer.full_ranks[0]
    if ranks is not None:
        chosen = sorted({rank for rank in ranks if rank <= full}) or [full]
    elif full <= _FEW:
        chosen = list(range(1, full + 1))
    else:
        chosen = sorted({max(1, round(full * share)) for share in _SHARES})
    kinds = [kind, "pointwise_first"] if kind == "concatenated" else [kind]
    kinds = [name for name in kinds if obstacle(layer, name) is None]
    forms = [Form(name, (rank,)) for rank in chosen for name in kinds]
    # The table says dense where no form is measured; it needs one rank at least.
    return site.worth_trying(forms) or forms[:1]
