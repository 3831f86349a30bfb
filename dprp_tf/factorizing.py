"""Turn a dense Keras model into one that trains the factors of its kernels."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, cast

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from dprp_tf import factorization, regularizers
from dprp_tf.calibration import input_moments
from dprp_tf.graphs import layer_keys
from dprp_tf.layers import (
    OBJECT_ARGUMENTS,
    FactorizedLayer,
    SVDConv1D,
    SVDConv2D,
    SVDConv3D,
    SVDDense,
    SVDLayer,
    TuckerConv1D,
    TuckerConv2D,
    TuckerConv3D,
    TuckerConvolution,
)
from dprp_tf.surgery import require_graph, rewrite
from dprp_tf.training import DPRPModel, DPRPSettings

__all__ = ["factorizable", "factorize", "holds_matrix", "skip_reason"]

_REPLACEMENTS: dict[type, type[SVDLayer]] = {
    keras.layers.Conv1D: SVDConv1D,
    keras.layers.Conv2D: SVDConv2D,
    keras.layers.Conv3D: SVDConv3D,
    keras.layers.Dense: SVDDense,
}
_TUCKER: dict[type, type[TuckerConvolution]] = {
    keras.layers.Conv1D: TuckerConv1D,
    keras.layers.Conv2D: TuckerConv2D,
    keras.layers.Conv3D: TuckerConv3D,
}

_KNOWN_REASONS = {
    "Depthwise": "depthwise: each channel has its own small kernel, there is no rank to share",
    "Separable": "separable convolution: its kernel is factorized already",
    "Embedding": "an embedding table is looked up, not multiplied",
    "RNN": "recurrent: its kernels are those of a cell that runs along the sequence",
    "LSTM": "recurrent: its kernels are those of a cell that runs along the sequence",
    "GRU": "recurrent: its kernels are those of a cell that runs along the sequence",
    "Bidirectional": "recurrent: its kernels are those of a cell that runs along the sequence",
    "Attention": "attention: its projections are layers of its own inside it, out of reach of the "
    "graph",
    "EinsumDense": "its equation may give the kernel any number of axes; of one input and one "
    "output axis, a Dense layer computes the same and can be factorized",
}

_Rank = int | tuple[int, ...]
# From a layer and its full ranks to the ranks it gets.
_RankRule = Callable[[keras.layers.Layer, tuple[int, ...]], tuple[int, ...]]


class _Plan(Protocol):
    """What `factorize` needs of a `selection.RankPlan`, which is made of models factorized here."""

    @property
    def matricization(self) -> str: ...

    @property
    def ranks(self) -> Mapping[str, _Rank]: ...


_LEFT_OUT = ("groups", "lora_rank", "lora_alpha", "quantization_config")


def skip_reason(layer: keras.layers.Layer) -> str | None:
    """Say why a layer with a kernel is left as it is; None if it can be factorized.

    Args:
        layer: Any Keras layer.

    Returns:
        A short reason, or None for a layer that can be factorized.

    Example:

    >>> skip_reason(keras.layers.DepthwiseConv2D(3))
    'depthwise: each channel has its own small kernel, there is no rank to share'
    """
    kind = type(layer).__name__
    if type(layer) not in _REPLACEMENTS:
        for part, reason in _KNOWN_REASONS.items():
            if part in kind:
                return reason
        if isinstance(layer, keras.layers.Wrapper):
            return f"inside a {kind} wrapper, which keeps its layer to itself"
        if isinstance(layer, keras.Model):
            return f"inside the subclassed model {kind}, whose call() can't be rewritten"
        return f"no SVD layer stands for {kind}"
    activation = layer.activation
    if isinstance(activation, keras.layers.Layer) and (activation.weights or not activation.built):
        return f"its activation is a {type(activation).__name__} layer with weights of its own"
    if getattr(layer, "groups", 1) != 1:
        return f"grouped convolution (groups={layer.groups})"
    if getattr(layer, "lora_enabled", False):
        return "LoRA is enabled on it"
    if getattr(layer, "quantization_mode", None) is not None:
        return f"quantized ({layer.quantization_mode})"
    return None


def factorize(
    model: keras.Model,
    matricization: str | None = None,
    *,
    ranks: _Rank | Mapping[str, _Rank] | _Plan | None = None,
    layers: Iterable[str] | Callable[[keras.layers.Layer], bool] | None = None,
    calibration_data: Any = None,
    structure: str = "retraction",
    compression: Any = "tail",
    compression_weight: float = 0.1,
    threshold: float = 0.1,
    structure_weight: float = 1.0,
    orthogonality_weight: float = 1000.0,
    sorting_weight: float = 1.0,
    retraction_period: int | None = None,
) -> DPRPModel:
    """Return a model that computes what `model` computes and trains the factors of its kernels.

    Every convolution and dense layer is replaced by its SVD layer, started from the SVD of its
    weights, so a trained model keeps its function and a fresh one its initialization. Layers
    keep their names and every argument; `model` itself is untouched.

    With `"tucker"` convolutions of more than one position become Tucker layers, started from the
    Tucker-2 decomposition of their kernels, and the others and dense layers SVD layers in
    `"channel"` form. Tucker layers train as plain weights: what presses and cuts ranks, the
    losses of DPRP and `RankPruning`, works on SVD layers alone.

    Args:
        model: A built Functional or Sequential model; nested models and shared layers are fine.
        matricization: `"spatial"` (filters x channels against positions, the paper's),
            `"channel"`, `"separable"` or `"tucker"`. Default `"spatial"`, or the plan's.
        ranks: Rank to start from: one for all (cut to each layer's full rank), or by layer name;
            by path, such as "backbone/conv", where layers of nested models share a name. A
            Tucker layer takes a pair (r_in, r_out), or one number for both; a pair for all gives
            the others its smaller number. Or a `RankPlan`, which says the matricization and the
            layers as well. Default: full rank, where the function is unchanged.
        layers: Names or paths of the layers to factorize, or a function that says so for a
            layer. Default: every one that can be, or those the plan does not leave dense.
        calibration_data: Typical inputs of the model, on which layers below full rank are cut so
            that their outputs, not their kernels, change least; see
            `factorization.OutputTruncation`. What a plan with `truncation="output"` counts on.
            Default: none.
        structure: `"retraction"`, `"smoothed"` or `"paper"`; see `DPRPSettings`.
        compression: `"tail"` (Eq. 12), `"l1"`, `"l2"`, `"funnel"`, another of `regularizers.NAMES`
            that takes no rank, None, or a `RankRegularizer`.
        compression_weight: lambda_comp, 0 or more. Default 0.1.
        threshold: Pruning threshold epsilon, in (0, 1). Default 0.1.
        structure_weight: lambda_str, 0 or more. Default 1.
        orthogonality_weight: mu_orth, 0 or more. Default 1000.
        sorting_weight: mu_sort, 0 or more. Default 1.
        retraction_period: Steps between retractions. Default: 1 for `"spatial"`, whose matrices
            have few columns, and 10 for the wide ones.

    Returns:
        The factorized model, not compiled; `dprp_tf.summary` lists what was left and why.

    Raises:
        ValueError: If the model has no graph, nothing to factorize, weights that are not finite,
            an argument is unusable or names a layer that is not there, or a plan was made for
            another matricization or model.

    Source: DPRP (arXiv 2401.08014) III-B; BSR/LeSS thesis 4.7.4 for `"tucker"`.

    Example:

    >>> inputs = keras.Input((8, 8, 3))
    >>> x = keras.layers.Conv2D(4, 3, name="first")(inputs)
    >>> lowrank = factorize(keras.Model(inputs, x), threshold=0.05)
    >>> lowrank.ranks
    {'first': 9}
    """
    require_graph(model)
    if ranks is not None and hasattr(ranks, "matricization"):
        plan = cast("_Plan", ranks)
        _require_fitting_plan(model, plan, matricization, layers)
        if getattr(plan, "truncation", "kernel") == "output" and calibration_data is None:
            warnings.warn(
                "`calibration_data` should be given for a plan whose cuts keep the outputs: "
                "without, they keep the kernels, and the accuracy is not what the plan says.",
                stacklevel=2,
            )
        known = layer_keys(model)
        planned = {id(known[key]) for key in plan.ranks}
        matricization, ranks = plan.matricization, plan.ranks

        # By key: a name may also be that of a layer of a nested model, which stays dense.
        def layers(layer: keras.layers.Layer) -> bool:
            return id(layer) in planned

    if matricization is None:
        matricization = "spatial"
    if matricization not in factorization.DECOMPOSITIONS:
        raise ValueError(
            f"`matricization` must be one of {factorization.DECOMPOSITIONS}. "
            f"Received: matricization={matricization!r}"
        )
    if retraction_period is None:
        retraction_period = 1 if matricization == "spatial" else 10
    settings = DPRPSettings(
        structure=structure,
        compression=regularizers.get(compression, threshold),
        compression_weight=compression_weight,
        threshold=threshold,
        structure_weight=structure_weight,
        orthogonality_weight=orthogonality_weight,
        sorting_weight=sorting_weight,
        retraction_period=retraction_period,
    )
    candidates, _ = factorizable(model, layers)
    rule = _rank_rule(ranks, candidates, matricization)
    chosen = {
        id(layer): rule(layer, _full_ranks(layer, matricization)) for layer in candidates.values()
    }
    kernels = _calibrated(model, candidates, chosen, matricization, calibration_data)

    # By pair and not by name: nested models may each have a layer of the same name.
    replaced: list[tuple[keras.layers.Layer, FactorizedLayer]] = []

    def replace(layer: keras.layers.Layer) -> FactorizedLayer | None:
        if id(layer) not in chosen:
            return None
        kernel = kernels.get(id(layer))
        kernel = _kernel(layer) if kernel is None else kernel
        low_rank = _factorized_layer(layer, kernel, matricization, chosen[id(layer)])
        replaced.append((layer, low_rank))
        return low_rank

    result = rewrite(model, replace, DPRPModel, settings=settings)
    # By it Keras decides on loss scaling, which a model made under another policy would lose.
    result.dtype_policy = model.dtype_policy
    for layer, low_rank in replaced:
        if low_rank.bias is not None:
            # A copy: sharing the buffer would let JAX donate it from under the other model.
            low_rank.bias.assign(np.array(ops.convert_to_numpy(layer.bias)))
    return result


def factorizable(
    model: keras.Model,
    layers: Iterable[str] | Callable[[keras.layers.Layer], bool] | None = None,
) -> tuple[dict[str, keras.layers.Layer], list[str]]:
    """List the layers of a model that can be factorized, and why the others can't.

    Args:
        model: A built Functional or Sequential model.
        layers: As `factorize` takes them.

    Returns:
        Layers by their keys in model order, and "key: reason" of each other layer that holds a
        matrix.

    Raises:
        ValueError: If the model has no graph or nothing to factorize, or `layers` names a layer
            that is not there or can't be factorized.

    Example:

    >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, name="a")])
    >>> list(factorizable(model)[0])
    ['a']
    """
    require_graph(model)
    wanted = _selection(model, layers)
    found, skipped = {}, []
    for key, layer in layer_keys(model).items():
        if not holds_matrix(layer):
            continue
        reason = "not among `layers`" if not wanted(layer) else skip_reason(layer)
        if reason is None:
            found[key] = layer
        else:
            skipped.append(f"{key}: {reason}")
    if not found:
        listed = "; ".join(skipped) or "no layer has a kernel"
        raise ValueError(
            "`model` must have at least one Conv1D, Conv2D, Conv3D or Dense layer to factorize. "
            f"Received: {model.name!r} with nothing to factorize ({listed})"
        )
    return found, skipped


def holds_matrix(layer: keras.layers.Layer) -> bool:
    """Say whether a layer has a kernel or another weight of two axes or more.

    Args:
        layer: A built Keras layer.

    Returns:
        True if it has one, so that it is factorized or skipped with a reason.

    Example:

    >>> layer = keras.layers.Embedding(9, 4)
    >>> layer.build((1,))
    >>> holds_matrix(layer), holds_matrix(keras.layers.ReLU())
    (True, False)
    """
    return any(
        str(weight.name).endswith("kernel") or len(weight.shape) > 1 for weight in layer.weights
    )


def _selection(
    model: keras.Model, layers: Iterable[str] | Callable[[keras.layers.Layer], bool] | None
) -> Callable[[keras.layers.Layer], bool]:
    if layers is None:
        return lambda layer: True
    if callable(layers):
        return layers
    names = [layers] if isinstance(layers, str) else list(layers)
    known = layer_keys(model)
    chosen: set[int] = set()
    for name in names:
        # A name that layers of several nested models bear means them all; a path just one.
        found = [at for key, at in known.items() if name in (key, at.name)]
        if not found:
            raise ValueError(
                f"`layers` must name layers of the model. Received: {name!r}; "
                f"the layers with kernels are {[n for n, at in known.items() if holds_matrix(at)]}"
            )
        for layer in found:
            reason = skip_reason(layer) if holds_matrix(layer) else "it has no kernel"
            if reason is not None:
                raise ValueError(
                    f"`layers` must name layers that can be factorized. Received: {name!r}, which "
                    f"can't be: {reason}"
                )
            chosen.add(id(layer))
    return lambda layer: id(layer) in chosen


def _require_fitting_plan(
    model: keras.Model, plan: _Plan, matricization: str | None, layers: Any
) -> None:
    if matricization not in (None, plan.matricization):
        raise ValueError(
            f"`matricization` must be left out, or be that of the plan, {plan.matricization!r}. "
            f"Received: matricization={matricization!r}; select ranks for that one instead."
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
    matricization: str,
) -> _RankRule:
    if ranks is None:
        return lambda layer, full: full
    pairs = ", or pairs (r_in, r_out) of them" if matricization == "tucker" else ""
    if not isinstance(ranks, Mapping):
        if not _are_ranks(ranks, matricization):
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
    bad = {n: r for n, r in ranks.items() if not _are_ranks(r, matricization)}
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


def _are_ranks(value: object, matricization: str) -> bool:
    if matricization == "tucker" and isinstance(value, (tuple, list)):
        return len(value) == 2 and all(map(_is_rank, value))
    return _is_rank(value)


def _is_rank(value: object) -> bool:
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return whole and int(value) >= 1  # type: ignore[call-overload]


def _full_ranks(layer: keras.layers.Layer, matricization: str) -> tuple[int, ...]:
    shape = tuple(layer.kernel.shape)
    kind = factorization.resolve_decomposition(shape, matricization)
    if kind == "tucker":
        return factorization.full_tucker_ranks(shape)
    return (factorization.full_rank(shape, kind),)


def _kernel(layer: keras.layers.Layer) -> NDArray[Any]:
    kernel = np.asarray(ops.convert_to_numpy(layer.kernel))
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
    matricization: str,
    data: Any,
) -> dict[int, NDArray[Any]]:
    """Return kernels, by layer, already cut to their ranks by what they make of the data."""
    cut = {
        key: layer
        for key, layer in layers.items()
        if ranks[id(layer)] != _full_ranks(layer, matricization)
    }
    if data is None or not cut:
        return {}
    kernels = {key: _kernel(layer) for key, layer in cut.items()}
    moments = input_moments(model, cut, data)
    return {
        id(layer): factorization.OutputTruncation(
            kernels[key], matricization, moments.pop(key)
        ).kernel(ranks[id(layer)])
        for key, layer in cut.items()
    }


def _factorized_layer(
    layer: keras.layers.Layer, kernel: NDArray[Any], matricization: str, ranks: tuple[int, ...]
) -> FactorizedLayer:
    config = {key: value for key, value in layer.get_config().items() if key not in _LEFT_OUT}
    # The objects themselves, which may be functions that their names alone don't find.
    config |= {name: getattr(layer, name) for name in OBJECT_ARGUMENTS}
    if len(ranks) == 2:
        tucker = _TUCKER[type(layer)].from_config({**config, "ranks": ranks})
        tucker.start_from(factorization.tucker2(kernel, (ranks[0], ranks[1])))
        return tucker
    matricization = "channel" if matricization == "tucker" else matricization
    svd = _REPLACEMENTS[type(layer)].from_config(
        {**config, "matricization": matricization, "rank": ranks[0]}
    )
    matrix = factorization.matricize(kernel, matricization)
    svd.start_from(factorization.decompose(matrix, ranks[0]))
    return svd
