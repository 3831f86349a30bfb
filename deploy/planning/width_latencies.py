"""Measure what each layer of a model costs at each width, and in two stages at each rank."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import numpy as np
from numpy.typing import NDArray

from dprp_tf.channels import Followed, LayerChannels, follow, groups_of, place_labels
from dprp_tf.costs.form import Form
from dprp_tf.costs.width_latency import CostGrid, WidthLatency
from dprp_tf.costs.width_table import WidthTable
from dprp_tf.decomposition import full_rank, resolve
from dprp_tf.deploy.measurement.benchmark import measure_files
from dprp_tf.deploy.planning.form_costs import FormCosts, Setting
from dprp_tf.deploy.planning.probes import Geometry, at_width, plain_geometry
from dprp_tf.deploy.targets import Target, resolve_target
from dprp_tf.files.arguments import check_choice, check_integer
from dprp_tf.keras_internals.graphs import layer_keys
from dprp_tf.keras_internals.layer_calls import layer_calls
from dprp_tf.keras_internals.layer_kinds import CONVOLUTIONS, TRANSPOSED

__all__ = ["measure_widths"]

_DENSE = Form("dense")
_DECOMPOSITIONS = ("separable", "channel")
_RANK_SHARES = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4)


def measure_widths(
    model: keras.Model,
    *,
    target: str | Target = "local",
    runtime: str = "litert",
    precision: str = "float32",
    threads: int = 1,
    decomposition: str | None = None,
    groups: Iterable[str] | None = None,
    multiple: int = 8,
    points: int = 5,
    rounds: int = 30,
    cache: str | os.PathLike[str] | None = None,
    refresh: bool = False,
    progress: Callable[[str], None] = lambda step: None,
) -> WidthTable:
    """Measure the time of every layer of a model at several numbers of channels on a target.

    Each distinct place of a layer is built alone with random weights, with the normalization and
    the activation behind it, on a grid of channels read and made, and timed there; the model need
    not be trained. With a decomposition the two stages of its ranks are measured likewise, each a
    plain layer, so that the table knows every width at every rank.

    Args:
        model: A built Functional or Sequential model with inputs of fixed shape.
        target: As for `plan_fold`. Defaults to `"local"`.
        runtime: `"litert"` or `"onnxruntime"`. Defaults to `"litert"`.
        precision: `"float32"`, `"float16"` (LiteRT) or `"int8"`. Defaults to `"float32"`.
        threads: Threads of the runtime, 1 or more. Defaults to 1.
        decomposition: `"separable"` or `"channel"` to measure ranks too; None for widths alone,
            which takes a third of the files. Defaults to None.
        groups: Names of the groups that may lose channels; see `channel_groups`. With a
            decomposition none, `()`, is ranks alone, of whole layers. Defaults to all.
        multiple: Multiples in which channels stay, as for `select_channels`. Defaults to 8.
        points: Most numbers of channels on an axis, 2 or more, and of ranks, five at most; costs
            between them follow straight lines. Defaults to 5.
        rounds: Timed rounds per layer, 3 or more. Defaults to 30.
        cache: Folder that remembers measured costs. Defaults to the user's cache folder.
        refresh: Whether to measure anew what is remembered. Defaults to false.
        progress: Called with a line for each step, such as `print`. Defaults to silence.

    Returns:
        The table, for `select_channels(model, budget=Budget(time=0.5), latency=table)`.

    Raises:
        ValueError: If no channel of the model may go, its inputs have open sizes, or an argument is
            unknown.
        TargetError: If the target can't be reached or lacks the runtime.

    Example:

    >>> import keras, tempfile
    >>> inputs = keras.Input((8, 8, 16))
    >>> x = keras.layers.Conv2D(16, 3, padding="same", name="a")(inputs)
    >>> model = keras.Model(inputs, keras.layers.Conv2D(4, 1, name="b")(x))
    >>> table = measure_widths(model, rounds=3, cache=tempfile.mkdtemp())
    >>> table.by_name["a"].dense.reads, table.by_name["a"].dense.makes
    ((16,), (8, 16))
    """
    setting = Setting(resolve_target(target), runtime, precision, threads)
    if decomposition is not None:
        check_choice("decomposition", decomposition, _DECOMPOSITIONS)
    check_integer("multiple", multiple)
    check_integer("points", points, minimum=2)
    places = _places(model, decomposition, groups, multiple, points)
    costs = FormCosts(setting, rounds=rounds, cache=cache, refresh=refresh, progress=progress)
    wanted = dict.fromkeys(geometry for place in places for geometry in place.geometries())
    measured = costs.measure({geometry: [_DENSE] for geometry in wanted})
    for warning in costs.warnings:
        progress(f"warning: {warning}")
    progress("measuring the whole model")
    dense, fixed = _whole(model, setting, rounds)
    found = {geometry: entry[_DENSE].cost for geometry, entry in measured.items()}
    rows = [place.row(found, 1.0) for place in places]
    # Noise may let the layers sum up to more than the whole model.
    scale = min(1.0, max(dense - fixed, 0.0) / sum(row.whole for row in rows))
    return WidthTable(
        layers=tuple(place.row(found, scale) for place in places),
        dense=dense,
        fixed=min(fixed, dense),
        target=setting.target.spec,
        runtime=runtime,
        precision=precision,
        threads=threads,
        unit=setting.target.unit,
        processor=str(costs.identity["processor"]),
        runtime_version=str(costs.identity["runtime_version"]),
    )


@dataclass(frozen=True)
class _Place:
    """A layer, its calls, and the numbers of channels at which each is measured."""

    name: str
    window: tuple[int, ...]
    calls: tuple[Geometry, ...]
    reads: tuple[int, ...]
    makes: tuple[int, ...]
    decomposition: str | None
    ranks: tuple[int, ...]

    def geometries(self) -> list[Geometry]:
        """Everything that is to be measured."""
        found = [
            at_width(call, reads, makes)
            for call in self.calls
            for reads in self.reads
            for makes in self.makes
        ]
        for call in self.calls if self.decomposition else ():
            for rank in self.ranks:
                found += [self._first(call, reads, rank) for reads in self.reads]
                found += [self._second(call, rank, makes) for makes in self.makes]
        return found

    def row(self, costs: Mapping[Geometry, float], scale: float) -> WidthLatency:
        """The layer's row, of costs by geometry."""

        def grid(
            rows: tuple[int, ...],
            columns: tuple[int, ...],
            at: Callable[[Geometry, int, int], Geometry],
        ) -> CostGrid:
            values = tuple(
                tuple(scale * sum(costs[at(call, r, c)] for call in self.calls) for c in columns)
                for r in rows
            )
            return CostGrid(rows, columns, values)

        dense = grid(self.reads, self.makes, at_width)
        if self.decomposition is None:
            return WidthLatency(self.name, self.window, dense)
        return WidthLatency(
            self.name,
            self.window,
            dense,
            self.decomposition,
            grid(self.reads, self.ranks, self._first),
            grid(self.ranks, self.makes, self._second),
        )

    def _first(self, call: Geometry, reads: int, rank: int) -> Geometry:
        """The stage from channels to rank: without bias, and nothing behind it."""
        config = json.loads(call.config) | {"use_bias": False, "activation": "linear"}
        if self.separable:
            config["kernel_size"] = [*self.window[:-1], 1]
            config["strides"] = [*config["strides"][:-1], 1]
            config["dilation_rate"] = [*config["dilation_rate"][:-1], 1]
            if config.get("output_padding"):
                config["output_padding"] = [*config["output_padding"][:-1], 0]
        stage = replace(
            call, config=json.dumps(config, sort_keys=True), normalized=False, rectified=False
        )
        return at_width(stage, reads, rank)

    def _second(self, call: Geometry, rank: int, makes: int) -> Geometry:
        """The stage from rank to channels, on the maps that the first one makes."""
        config = json.loads(call.config)
        shape, kind = call.input_shape, call.type
        if self.window:
            first = self._first(call, self.reads[-1], rank)
            output = first.plain_layer().compute_output_shape((None, *first.input_shape))
            shape = tuple(int(size) for size in output[1:])
            ones = [1] * len(self.window)
            config["kernel_size"] = [*ones[:-1], self.window[-1]] if self.separable else ones
            config["strides"] = [*ones[:-1], config["strides"][-1]] if self.separable else ones
            last = config["dilation_rate"][-1]
            config["dilation_rate"] = [*ones[:-1], last] if self.separable else ones
            added = config.pop("output_padding", None)
            if not self.separable:
                # What follows a transposed window is pointwise, and the same either way.
                kind = kind.removesuffix("Transpose")
            elif kind.endswith("Transpose"):
                config["output_padding"] = added and [*(0 for _ in ones[:-1]), added[-1]]
        stage = replace(
            call, type=kind, config=json.dumps(config, sort_keys=True), input_shape=shape
        )
        return at_width(stage, rank, makes)

    @property
    def separable(self) -> bool:
        """Whether the window is split between the stages."""
        if not self.window or self.decomposition is None:
            return False
        return resolve((*self.window, 1, 1), self.decomposition) == "separable"


def _places(
    model: keras.Model,
    decomposition: str | None,
    groups: Iterable[str] | None,
    multiple: int,
    points: int,
) -> list[_Place]:
    followed = follow(model)
    names = None if groups is None or isinstance(groups, str) else list(groups)
    alone = names == [] and decomposition is not None
    loose = [] if alone else groups_of(model, followed).able(groups if names is None else names)
    calls = list(layer_calls(model))
    layers = layer_keys(model)
    owned = [
        (place_labels(followed, layers, group), 1 - group.widths(multiple)[-1] / group.size)
        for group in loose
    ]
    found = []
    for key, layer in layers.items():
        record = followed.layers.get(id(layer))
        own = [call for call in calls if call.layer is layer]
        if record is None or not own or not hasattr(layer, "get_config"):
            continue
        least = [_least(followed, owned, labels) for labels in _sides(record)]
        stages = decomposition if _has_stages(layer, decomposition) else None
        if stages is None and least == [record.reads.size, record.makes.size]:
            continue  # nothing of it may go
        geometries = [plain_geometry(call, calls) for call in own]
        known = [geometry for geometry in geometries if geometry is not None]
        if len(known) < len(own) or not layer.weights or type(layer).__name__ in _FUSED:
            continue  # counted with the rest
        known = [g for g, call in zip(known, own, strict=True) for _ in range(call.repeats or 1)]
        step = int(np.lcm(multiple, getattr(layer, "groups", 1) or 1))
        reads, makes = (
            _axis(low, labels.size, step, points)
            for low, labels in zip(least, _sides(record), strict=True)
        )
        window = tuple(getattr(layer, "kernel_size", ()))
        ranks: tuple[int, ...] = ()
        if stages is not None:
            full = full_rank((*window, record.reads.size, record.makes.size), stages)
            shares = _rank_shares(points)
            ranks = tuple(
                sorted({max(multiple, round(full * s / multiple) * multiple) for s in shares})
            )
            ranks = tuple(rank for rank in ranks if rank <= full) or (full,)
        if not record.produces:
            makes = makes[-1:]  # follow from what it reads
        found.append(_Place(key, window, tuple(known), reads, makes, stages, ranks))
    if not found:
        raise ValueError(
            "`model` must have layers of Keras' own, on inputs of fixed shape, whose channels may "
            f"go. Received: {model.name!r} with none; "
            "print(dprp_tf.channel_groups(model)) says why."
        )
    return found


# What converters take into the layer before them.
_FUSED = ("BatchNormalization",)


def _has_stages(layer: keras.layers.Layer, decomposition: str | None) -> bool:
    plain = (*CONVOLUTIONS, *TRANSPOSED, keras.layers.Dense)
    if decomposition is None or type(layer) not in plain or getattr(layer, "groups", 1) != 1:
        return False
    return getattr(layer, "padding", "same") in ("same", "valid")


def _sides(record: LayerChannels) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    return record.reads, record.makes


def _least(
    followed: Followed, owned: list[tuple[NDArray[np.intp], float]], labels: NDArray[np.intp]
) -> int:
    """How many of some channels are left when each group has lost the largest share it may."""
    roots = followed.labels.find(labels)
    gone = sum(share * float(np.isin(roots, group).sum()) for group, share in owned)
    return max(round(labels.size - gone), 1)


def _rank_shares(points: int) -> list[float]:
    """The shares of a full rank at which stages are measured, the first and the last among them."""
    last = len(_RANK_SHARES) - 1
    return [_RANK_SHARES[round(at)] for at in np.linspace(0, last, min(points, last + 1))]


def _axis(least: int, most: int, step: int, points: int) -> tuple[int, ...]:
    """The numbers at which an axis is measured, the least and the most among them.

    None is below one step: there is next to nothing to gain there, and XNNPACK does not run int8
    convolutions that make two channels of one.
    """
    least = max(least, min(step, most))
    between = np.linspace(least, most, points)[1:-1]
    rounded = {round(float(count) / step) * step for count in between}
    return tuple(sorted({least, most, *(count for count in rounded if least < count < most)}))


def _whole(model: keras.Model, setting: Setting, rounds: int) -> tuple[float, float]:
    """What the model costs, and what one that computes next to nothing does."""
    inputs = keras.Input((1,))
    empty = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    with tempfile.TemporaryDirectory() as name:
        paths = [
            setting.convert(network, Path(name) / told, integer_io=False)
            for told, network in (("whole", model), ("empty", empty))
        ]
        results = measure_files(
            paths,
            threads=setting.threads,
            warmup=5,
            repeats=2 * rounds,
            target=setting.target,
            memory=False,
        )
    return results[0].cost, results[1].cost
