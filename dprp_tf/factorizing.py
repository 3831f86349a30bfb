"""Turn a dense Keras model into one that trains the factors of its kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from dprp_tf import factorization, regularizers
from dprp_tf.graphs import layer_keys
from dprp_tf.layers import (
    OBJECT_ARGUMENTS,
    SVDConv1D,
    SVDConv2D,
    SVDConv3D,
    SVDDense,
    SVDLayer,
)
from dprp_tf.surgery import require_graph, rewrite
from dprp_tf.training import DPRPModel, DPRPSettings

__all__ = ["factorize", "holds_matrix", "skip_reason"]

_REPLACEMENTS: dict[type, type[SVDLayer]] = {
    keras.layers.Conv1D: SVDConv1D,
    keras.layers.Conv2D: SVDConv2D,
    keras.layers.Conv3D: SVDConv3D,
    keras.layers.Dense: SVDDense,
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
    matricization: str = "spatial",
    *,
    ranks: int | Mapping[str, int] | None = None,
    layers: Iterable[str] | Callable[[keras.layers.Layer], bool] | None = None,
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

    Args:
        model: A built Functional or Sequential model; nested models and shared layers are fine.
        matricization: `"spatial"` (filters x channels against positions, the paper's),
            `"channel"` or `"separable"`. Default `"spatial"`.
        ranks: Rank to start from: one for all (cut to each layer's full rank), or by layer name;
            by path, such as "backbone/conv", where layers of nested models share a name.
            Default: full rank, where the function is unchanged.
        layers: Names or paths of the layers to factorize, or a function that says so for a
            layer. Default: every one that can be.
        structure: `"retraction"`, `"smoothed"` or `"paper"`; see `DPRPSettings`.
        compression: `"tail"` (Eq. 12), `"l1"`, `"l2"`, `"funnel"`, None, or a `RankRegularizer`.
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
            or an argument is unusable or names a layer that is not there.

    Source: DPRP (arXiv 2401.08014) III-B.

    Example:

    >>> inputs = keras.Input((8, 8, 3))
    >>> x = keras.layers.Conv2D(4, 3, name="first")(inputs)
    >>> lowrank = factorize(keras.Model(inputs, x), threshold=0.05)
    >>> lowrank.ranks
    {'first': 9}
    """
    require_graph(model)
    if matricization not in factorization.MATRICIZATIONS:
        raise ValueError(
            f"`matricization` must be one of {factorization.MATRICIZATIONS}. "
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
    wanted = _selection(model, layers)
    keys = layer_keys(model)
    candidates = {key: layer for key, layer in keys.items() if holds_matrix(layer)}
    skipped = []
    chosen: set[int] = set()
    for key, layer in candidates.items():
        reason = "not among `layers`" if not wanted(layer) else skip_reason(layer)
        if reason is None:
            chosen.add(id(layer))
        else:
            skipped.append(f"{key}: {reason}")
    if not chosen:
        listed = "; ".join(skipped) or "no layer has a kernel"
        raise ValueError(
            "`model` must have at least one Conv1D, Conv2D, Conv3D or Dense layer to factorize. "
            f"Received: {model.name!r} with nothing to factorize ({listed})"
        )
    chosen_ranks = _ranks(ranks, {k: at for k, at in candidates.items() if id(at) in chosen})

    # By pair and not by name: nested models may each have a layer of the same name.
    replaced: list[tuple[keras.layers.Layer, SVDLayer]] = []

    def replace(layer: keras.layers.Layer) -> SVDLayer | None:
        if id(layer) not in chosen:
            return None
        replaced.append((layer, _svd_layer(layer, matricization, chosen_ranks(layer))))
        return replaced[-1][1]

    result = rewrite(model, replace, DPRPModel, settings=settings)
    # By it Keras decides on loss scaling, which a model made under another policy would lose.
    result.dtype_policy = model.dtype_policy
    for layer, low_rank in replaced:
        if low_rank.bias is not None:
            # A copy: sharing the buffer would let JAX donate it from under the other model.
            low_rank.bias.assign(np.array(ops.convert_to_numpy(layer.bias)))
    return result


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


def _ranks(
    ranks: int | Mapping[str, int] | None, layers: Mapping[str, keras.layers.Layer]
) -> Callable[[keras.layers.Layer], int | None]:
    if ranks is None:
        return lambda layer: None
    if isinstance(ranks, Mapping):
        # By path, or by a name that layers of several nested models bear.
        unknown = sorted(set(ranks) - set(layers) - {layer.name for layer in layers.values()})
        if unknown:
            raise ValueError(
                f"`ranks` must name layers that are factorized: {sorted(layers)}. "
                f"Received: {unknown}"
            )
        bad = {n: r for n, r in ranks.items() if not _is_rank(r)}
        if bad:
            raise ValueError(f"`ranks` must hold integers of 1 or more. Received: {bad}")
        paths = {id(layer): key for key, layer in layers.items()}
        return lambda layer: ranks.get(paths[id(layer)], ranks.get(layer.name))
    if not _is_rank(ranks):
        raise ValueError(f"`ranks` must be an integer of 1 or more, or a dict. Received: {ranks!r}")
    uniform = int(ranks)
    return lambda layer: -uniform


def _is_rank(value: object) -> bool:
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return whole and int(value) >= 1  # type: ignore[call-overload]


def _svd_layer(layer: keras.layers.Layer, matricization: str, rank: int | None) -> SVDLayer:
    kernel = np.asarray(ops.convert_to_numpy(layer.kernel))
    if kernel.dtype != np.float64:
        kernel = kernel.astype(np.float32, copy=False)
    if not np.all(np.isfinite(kernel)):
        raise ValueError(
            f"`model` must have finite weights. Received: NaN or infinite entries in the kernel of "
            f"layer {layer.name!r}; load a sound checkpoint."
        )
    limit = factorization.full_rank(kernel.shape, matricization)
    # A uniform rank comes negated: it is cut to the full rank, one given by name is not.
    rank = min(-rank, limit) if rank is not None and rank < 0 else rank
    if rank is not None and not 1 <= rank <= limit:
        raise ValueError(
            f"`ranks` of layer {layer.name!r} must lie in 1..{limit}. Received: {rank}"
        )
    config = {key: value for key, value in layer.get_config().items() if key not in _LEFT_OUT}
    # The objects themselves, which may be functions that their names alone don't find.
    config |= {name: getattr(layer, name) for name in OBJECT_ARGUMENTS}
    replacement = _REPLACEMENTS[type(layer)].from_config(
        {**config, "matricization": matricization, "rank": rank}
    )
    matrix = factorization.matricize(kernel, matricization)
    replacement.start_from(factorization.decompose(matrix, rank))
    return replacement
