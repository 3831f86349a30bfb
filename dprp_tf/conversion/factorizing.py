"""Turn a dense Keras model into one that trains the factors of its kernels."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from dprp_tf.conversion.calibration import input_moments
from dprp_tf.conversion.model_class import lowrank_class
from dprp_tf.costs.rank_plan import RankPlan
from dprp_tf.decomposition import (
    DECOMPOSITIONS,
    OutputTruncation,
    decompose,
    full_rank,
    full_tucker_ranks,
    matricize,
    tucker2,
)
from dprp_tf.files.arguments import check_choice, is_integer
from dprp_tf.keras_internals.graphs import layer_keys
from dprp_tf.keras_internals.rewriting import require_graph, rewrite
from dprp_tf.layers import FactorizedLayer
from dprp_tf.layers.factorizable import factorizable, holds_matrix
from dprp_tf.layers.kernels import kernel_of
from dprp_tf.layers.layer_decomposition import layer_decomposition, suited_decomposition
from dprp_tf.layers.registry import layer_class
from dprp_tf.training.model import DPRPModel
from dprp_tf.training.settings import DPRPSettings

__all__ = ["factorize"]

_Rank = int | tuple[int, ...]
# From a layer and its full ranks to the ranks it gets.
_RankRule = Callable[[keras.layers.Layer, tuple[int, ...]], tuple[int, ...]]


_LEFT_OUT = ("groups", "lora_rank", "lora_alpha", "quantization_config")


def factorize(
    model: keras.Model,
    *,
    decomposition: str | None = None,
    ranks: _Rank | Mapping[str, _Rank] | RankPlan | None = None,
    layers: Iterable[str] | Callable[[keras.layers.Layer], bool] | None = None,
    calibration_data: Any = None,
    settings: DPRPSettings | None = None,
    model_class: Any = None,
) -> DPRPModel:
    """Return a model that computes what `model` computes and trains the factors of its kernels.

    Every convolution, transposed or not, every dense layer and every LSTM, GRU and SimpleRNN is
    replaced by its SVD layer, started from the SVD of its (input) kernel, so a trained model keeps
    its function and a fresh one its initialization. Layers keep their names and every argument;
    `model` itself is untouched.

    With `"tucker"` convolutions of more than one position become Tucker layers, started from the
    Tucker-2 decomposition of their kernels, and the others and dense layers SVD layers in
    `"channel"` form. Tucker layers train as plain weights: what presses and cuts ranks, the
    losses of DPRP and `RankPruning`, works on SVD layers alone.

    Args:
        model: A built Functional or Sequential model; nested models and shared layers are fine.
        decomposition: `"spatial"` (filters x channels against positions, the paper's),
            `"channel"`, `"separable"` or `"tucker"`. Asked for `"spatial"`, layers that no
            depthwise convolution can stand for, transposed and three-dimensional ones, take
            `"channel"`. Default `"spatial"`, or the plan's.
        ranks: Rank to start from: one for all (cut to each layer's full rank), or by layer name;
            by path, such as "backbone/conv", where layers of nested models share a name. A
            Tucker layer takes a pair (r_in, r_out), or one number for both; a pair for all gives
            the others its smaller number. Or a `RankPlan`, which says the decomposition and the
            layers as well. Default: full rank, where the function is unchanged.
        layers: Names or paths of the layers to factorize, or a function that says so for a
            layer. Default: every one that can be, or those the plan does not leave dense.
        calibration_data: Typical inputs of the model, on which layers below full rank are cut so
            that their outputs, not their kernels, change least; see
            `dprp_tf.decomposition.OutputTruncation`. A plan with `truncation="output"` counts on
            them. Default: none.
        settings: How training keeps the structure of the factors and presses the ranks down.
            Default: `DPRPSettings()`.
        model_class: Class of the model returned, derived from `DPRPModel` and made of inputs,
            outputs and name (or a `functools.partial` of one): where a model's class has a
            `train_step`, a `compute_loss` or another method of its own, write them in such a
            class, and `super()` does the rest. Default: `DPRPModel`.

    Returns:
        The factorized model, not compiled; `dprp_tf.summarize` lists what was left and why.

    Raises:
        ValueError: If the model has no graph, nothing to factorize, weights that are not finite,
            an argument is unusable or names a layer that is not there, or a plan was made for
            another decomposition or model; if the model's class has methods of its own that the
            result would not have, and no `model_class` was given.

    Source: DPRP (arXiv 2401.08014) III-B; BSR/LeSS thesis 4.7.4 for `"tucker"`.

    Example:

    >>> inputs = keras.Input((8, 8, 3))
    >>> x = keras.layers.Conv2D(4, 3, name="first")(inputs)
    >>> lowrank = factorize(keras.Model(inputs, x), settings=DPRPSettings(threshold=0.05))
    >>> lowrank.ranks
    {'first': 9}
    """
    require_graph(model)
    result_class = lowrank_class(model, model_class)
    if isinstance(ranks, RankPlan):
        plan = ranks
        _require_fitting_plan(model, plan, decomposition, layers)
        if plan.truncation == "output" and calibration_data is None:
            warnings.warn(
                "`calibration_data` should be given for a plan whose cuts keep the outputs: "
                "without, they keep the kernels, and the accuracy is not what the plan says.",
                stacklevel=2,
            )
        known = layer_keys(model)
        planned = {id(known[key]) for key in plan.ranks}
        decomposition, ranks = plan.decomposition, plan.ranks

        # By key: a name may also be that of a layer of a nested model, which stays dense.
        def layers(layer: keras.layers.Layer) -> bool:
            return id(layer) in planned

    decomposition = decomposition or "spatial"
    check_choice("decomposition", decomposition, DECOMPOSITIONS)
    candidates, _ = factorizable(model, layers)
    rule = _rank_rule(ranks, candidates, decomposition)
    chosen = {
        id(layer): rule(layer, _full_ranks(layer, decomposition)) for layer in candidates.values()
    }
    kernels = _calibrated(model, candidates, chosen, decomposition, calibration_data)

    # By pair and not by name: nested models may each have a layer of the same name.
    replaced: list[tuple[keras.layers.Layer, FactorizedLayer]] = []

    def replace(layer: keras.layers.Layer) -> FactorizedLayer | None:
        if id(layer) not in chosen:
            return None
        kernel = kernels.get(id(layer))
        kernel = _kernel(layer) if kernel is None else kernel
        low_rank = _factorized_layer(layer, kernel, decomposition, chosen[id(layer)])
        replaced.append((layer, low_rank))
        return low_rank

    result = rewrite(model, replace, result_class)
    result.settings = settings or DPRPSettings()
    # By it Keras decides on loss scaling, which a model made under another policy would lose.
    result.dtype_policy = model.dtype_policy
    for layer, low_rank in replaced:
        low_rank.take_other_weights(layer)
    return result


def _require_fitting_plan(
    model: keras.Model, plan: RankPlan, decomposition: str | None, layers: Any
) -> None:
    if decomposition not in (None, plan.decomposition):
        raise ValueError(
            f"`decomposition` must be left out, or be that of the plan, {plan.decomposition!r}. "
            f"Received: decomposition={decomposition!r}; select ranks for that one instead."
        )
    if layers is not None:
        raise ValueError(
            "`layers` must be left out where `ranks` is a plan, which names the layers. "
            f"Received: layers={layers!r}; give the ranks of some layers as ranks={{name: ...}}."
        )
    known = layer_keys(model)
    unknown = [name for name in plan.ranks if name not in known]
    if unknown:
        raise ValueError(
            f"`ranks` must be a plan made for this model, whose layers with kernels are "
            f"{[name for name, layer in known.items() if holds_matrix(layer)]}. Received: a plan "
            f"that has ranks for {unknown}"
        )
    if not plan.ranks:
        raise ValueError(
            "`ranks` must be a plan that gives some layer a rank. Received: one that leaves every "
            "layer dense; use the model as it is."
        )


def _rank_rule(
    ranks: _Rank | Mapping[str, _Rank] | None,
    layers: Mapping[str, keras.layers.Layer],
    decomposition: str,
) -> _RankRule:
    if ranks is None:
        return lambda layer, full: full
    pairs = ", or pairs (r_in, r_out) of them" if decomposition == "tucker" else ""
    if not isinstance(ranks, Mapping):
        if not _are_ranks(ranks, decomposition):
            raise ValueError(
                f"`ranks` must be an integer of 1 or more{pairs}, or a dict. Received: {ranks!r}"
            )
        return _cut_to(ranks)
    # By path, or by a name that layers of several nested models bear.
    unknown = sorted(set(ranks) - set(layers) - {layer.name for layer in layers.values()})
    if unknown:
        raise ValueError(
            f"`ranks` must name layers that are factorized: {sorted(layers)}. Received: {unknown}"
        )
    bad = {n: r for n, r in ranks.items() if not _are_ranks(r, decomposition)}
    if bad:
        raise ValueError(f"`ranks` must hold integers of 1 or more{pairs}. Received: {bad}")
    paths = {id(layer): key for key, layer in layers.items()}

    def rule(layer: keras.layers.Layer, full: tuple[int, ...]) -> tuple[int, ...]:
        asked = ranks.get(paths[id(layer)], ranks.get(layer.name))
        if asked is None:
            return full
        given = tuple(map(int, asked)) if isinstance(asked, Sequence) else (int(asked),) * len(full)
        if len(given) != len(full) or any(r > limit for r, limit in zip(given, full, strict=True)):
            limits = ", ".join(f"1..{limit}" for limit in full)
            raise ValueError(
                f"`ranks` of layer {layer.name!r} must lie in {limits}. Received: {asked}"
            )
        return given

    return rule


def _cut_to(ranks: _Rank) -> _RankRule:
    """Give every layer the same ranks, cut to its full ranks."""

    def rule(layer: keras.layers.Layer, full: tuple[int, ...]) -> tuple[int, ...]:
        given = tuple(ranks) if isinstance(ranks, Sequence) else (ranks,) * len(full)
        if len(given) > len(full):
            # A matrix between r_in and r_out channels has the rank of the smaller number.
            given = (min(given),)
        return tuple(min(int(r), limit) for r, limit in zip(given, full, strict=True))

    return rule


def _are_ranks(value: object, decomposition: str) -> bool:
    if decomposition == "tucker" and isinstance(value, (tuple, list)):
        return len(value) == 2 and all(map(is_integer, value))
    return is_integer(value)


def _full_ranks(layer: keras.layers.Layer, decomposition: str) -> tuple[int, ...]:
    shape = kernel_of(layer).shape
    kind = layer_decomposition(layer, decomposition)
    if kind == "tucker":
        return full_tucker_ranks(shape)
    return (full_rank(shape, kind),)


def _kernel(layer: keras.layers.Layer) -> NDArray[Any]:
    kernel = kernel_of(layer).array
    if kernel.dtype != np.float64:
        kernel = kernel.astype(np.float32, copy=False)
    if not np.all(np.isfinite(kernel)):
        raise ValueError(
            f"`model` must have finite weights. Received: NaN or infinite entries in the kernel of "
            f"layer {layer.name!r}; load a sound checkpoint."
        )
    return kernel


def _calibrated(
    model: keras.Model,
    layers: Mapping[str, keras.layers.Layer],
    ranks: Mapping[int, tuple[int, ...]],
    decomposition: str,
    data: Any,
) -> dict[int, NDArray[Any]]:
    """Return kernels, by layer, already cut to their ranks by what they make of the data."""
    cut = {
        key: layer
        for key, layer in layers.items()
        if ranks[id(layer)] != _full_ranks(layer, decomposition)
    }
    if data is None or not cut:
        return {}
    kernels = {key: _kernel(layer) for key, layer in cut.items()}
    moments = input_moments(model, cut, data)
    return {
        id(layer): OutputTruncation(
            kernels[key], layer_decomposition(layer, decomposition), moments.pop(key)
        ).kernel(ranks[id(layer)])
        for key, layer in cut.items()
    }


def _factorized_layer(
    layer: keras.layers.Layer, kernel: NDArray[Any], decomposition: str, ranks: tuple[int, ...]
) -> FactorizedLayer:
    config = {key: value for key, value in layer.get_config().items() if key not in _LEFT_OUT}
    # The objects themselves, which may be functions that their names alone don't find.
    kind = layer_class(type(layer), "tucker" if len(ranks) == 2 else "svd")
    config |= {name: getattr(layer, name) for name in kind.object_arguments}
    if len(ranks) == 2:
        tucker = kind.from_config({**config, "ranks": ranks})
        tucker.start_from(tucker2(kernel, (ranks[0], ranks[1])))
        return tucker
    decomposition = suited_decomposition(layer, decomposition)
    decomposition = "channel" if decomposition == "tucker" else decomposition
    svd = kind.from_config({**config, "matricization": decomposition, "rank": ranks[0]})
    matrix = matricize(kernel, decomposition)
    svd.start_from(decompose(matrix, ranks[0]))
    return svd
