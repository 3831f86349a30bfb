"""Choose a form for each SVD layer and rewrite the model with plain Keras layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import keras

from dprp_tf.costs import two_stage_effort, two_stage_parameters
from dprp_tf.folding.forms import FORMS, build_form, two_stage_obstacle
from dprp_tf.layers import SVDLayer, low_rank_layers
from dprp_tf.surgery import require_graph, rewrite

__all__ = ["FoldedLayer", "choose_forms", "fold"]

CHOICES = ("smallest", "fast", *FORMS)
_WORTH_TWO_STAGES = 0.75


@dataclass(frozen=True)
class FoldedLayer:
    """The form chosen for one layer, and why.

    Attributes:
        name: The layer's name.
        type: The SVD layer's class.
        matricization: How its kernel is unfolded.
        full_rank: Largest rank it could have.
        rank: Its rank.
        form: `"dense"` or `"two_stage"`.
        reason: Why this form.
        dense_parameters: Kernel weights of the dense form.
        folded_parameters: Kernel weights of the form chosen, as stored.
    """

    name: str
    type: str
    matricization: str
    full_rank: int
    rank: int
    form: str
    reason: str
    dense_parameters: int
    folded_parameters: int


def choose_forms(
    model: keras.Model, form: str = "smallest", forms: Mapping[str, str] | None = None
) -> list[FoldedLayer]:
    """Say which form `fold` would give each SVD layer, and why.

    Args:
        model: A model with SVD layers.
        form: `"smallest"` (whatever stores fewer weights), `"fast"` (two stages only where
            `costs.two_stage_effort` is at most 0.75, a rule of thumb and no measurement),
            `"dense"`, or `"two_stage"` for every layer that has one. Default `"smallest"`.
        forms: Forms of single layers by name; they win over `form`.

    Returns:
        One `FoldedLayer` per SVD layer, in model order.

    Raises:
        ValueError: If a form or a layer name is unknown, or a layer has not the form asked by name.

    Example:

    >>> import dprp_tf as dprp
    >>> inputs = keras.Input((8, 8, 16))
    >>> outputs = keras.layers.Conv2D(16, 3, name="a")(inputs)
    >>> lowrank = dprp.factorize(keras.Model(inputs, outputs), ranks=2)
    >>> choose_forms(lowrank)[0].form
    'two_stage'
    """
    if form not in CHOICES:
        raise ValueError(f"`form` must be one of {CHOICES}. Received: form={form!r}")
    layers = low_rank_layers(model)
    named = dict(forms or {})
    unknown = sorted(set(named) - {layer.name for layer in layers})
    if unknown:
        raise ValueError(
            f"`forms` must name SVD layers of the model: {[layer.name for layer in layers]}. "
            f"Received: {unknown}"
        )
    return [_choose(layer, named.get(layer.name), form) for layer in layers]


def fold(
    model: keras.Model, form: str = "smallest", *, forms: Mapping[str, str] | None = None
) -> keras.Model:
    """Return a model of plain Keras layers that computes what `model` computes.

    Every SVD layer becomes its dense layer or an exact two-stage form; everything else is copied.
    The result is a Functional model that loads without this library.

    Args:
        model: A model with SVD layers, such as a trained `DPRPModel`.
        form: `"smallest"`, `"fast"`, `"dense"` or `"two_stage"`; see `choose_forms`. Default
            `"smallest"`.
        forms: Forms of single layers by name; they win over `form`.

    Returns:
        The folded model, not compiled.

    Raises:
        ValueError: If the model has no graph or no SVD layer, factors that are not finite, or a
            form that does not exist.

    Source: DPRP (arXiv 2401.08014) Eq. 2; the forms are in `dprp_tf.folding.forms`.

    Example:

    >>> import dprp_tf as dprp
    >>> inputs = keras.Input((8, 8, 16))
    >>> outputs = keras.layers.Conv2D(16, 3, name="a", use_bias=False)(inputs)
    >>> lowrank = dprp.factorize(keras.Model(inputs, outputs), ranks=2)
    >>> fold(lowrank).count_params()  # 2 filters of 9 for 16 channels, then (32, 16)
    800
    """
    require_graph(model)
    rows = choose_forms(model, form, forms)
    if not rows:
        raise ValueError(
            "`model` must have SVD layers to fold. Received: "
            f"{model.name!r}, which has none; make one with dprp_tf.factorize(model)."
        )
    layers = low_rank_layers(model)
    # By identity and not by name: nested models may each have a layer of the same name.
    choices = {id(layer): row.form for layer, row in zip(layers, rows, strict=True)}
    for layer in layers:
        if layer.broken_factor is not None:
            raise ValueError(
                "`model` must have finite factors. Received: NaN or infinite entries in "
                f"`{layer.broken_factor}` of layer {layer.name!r}; load a sound checkpoint."
            )
    return rewrite(
        model,
        lambda layer: (
            build_form(layer, choices[id(layer)]) if isinstance(layer, SVDLayer) else None
        ),
    )


def _choose(layer: SVDLayer, asked: str | None, form: str) -> FoldedLayer:
    dense = math.prod(layer.kernel_shape)
    rank = int(layer.rank or 0)
    two_stage = two_stage_parameters(layer.kernel_shape, layer.matricization, rank)
    obstacle = two_stage_obstacle(layer)
    if asked is not None:
        if asked not in FORMS:
            raise ValueError(
                f"`forms` must give one of {FORMS}. Received: {asked!r} for {layer.name!r}"
            )
        if asked == "two_stage" and obstacle is not None:
            raise ValueError(
                f"`forms` must give a form the layer has. Received: 'two_stage' for "
                f"{layer.name!r}, but {obstacle}"
            )
        chosen, reason = asked, "asked for by name"
    elif form == "dense":
        chosen, reason = "dense", "asked for"
    elif obstacle is not None:
        chosen, reason = "dense", obstacle
    elif form == "two_stage":
        chosen, reason = "two_stage", "asked for"
    elif form == "fast":
        effort = two_stage_effort(layer.kernel_shape, layer.matricization, rank)
        chosen = "two_stage" if effort <= _WORTH_TWO_STAGES else "dense"
        reason = f"two stages would take about {effort:.2f} of the time"
    elif two_stage < dense:
        chosen, reason = "two_stage", f"{two_stage} weights instead of {dense}"
    else:
        chosen, reason = "dense", f"two stages would store {two_stage} weights instead of {dense}"
    return FoldedLayer(
        layer.name,
        type(layer).__name__,
        layer.matricization,
        layer.full_rank,
        rank,
        chosen,
        reason,
        dense,
        dense if chosen == "dense" else two_stage,
    )
