"""Choose a form for each low-rank layer and rewrite the model with plain Keras layers."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras

from dprp_tf.conversion.assembly import build_form
from dprp_tf.conversion.chosen_forms import ChosenForms, remember_choice
from dprp_tf.conversion.compilation import compiled_like
from dprp_tf.conversion.form_weights import form_error
from dprp_tf.conversion.model_class import plain_class
from dprp_tf.costs.fold_plan import FoldPlan
from dprp_tf.costs.form import KINDS, Form
from dprp_tf.costs.kernels import two_stage_effort
from dprp_tf.costs.layer_forms import obstacle, own_form, same_factors, smallest_form
from dprp_tf.files.arguments import check_choice
from dprp_tf.keras_internals.graphs import walk_layers
from dprp_tf.keras_internals.rewriting import require_graph, rewrite
from dprp_tf.layers import FactorizedLayer, factorized_keys, factorized_layers, plain_ranks

__all__ = ["FoldedLayer", "choose_forms", "fold", "require_finite_factors"]

_CHOICES = ("smallest", "fast", "dense", "two_stage")
_WORTH_TWO_STAGES = 0.75
# Weights may have been saved and loaded in between.
_PLAN_ROUNDING = 1e-5


@dataclass(frozen=True)
class FoldedLayer:
    """The form chosen for one layer, and why.

    Attributes:
        name: The layer's name; its path where nested models have layers of the same name.
        type: The low-rank layer's class.
        decomposition: How its kernel is decomposed: a matricization, or `"tucker"`.
        full_rank: Largest rank it could have; a pair for a Tucker layer.
        rank: Its rank; likewise.
        form: The kind of form, one of `KINDS`.
        reason: Why this form.
        dense_parameters: Kernel weights of the dense form.
        folded_parameters: Kernel weights of the form chosen, as stored.
    """

    name: str
    type: str
    decomposition: str
    full_rank: int | tuple[int, ...]
    rank: int | tuple[int, ...]
    form: str
    reason: str
    dense_parameters: int
    folded_parameters: int


def choose_forms(
    model: keras.Model,
    *,
    form: str = "smallest",
    forms: Mapping[str, str | Form] | None = None,
    plan: FoldPlan | str | os.PathLike[str] | None = None,
) -> list[FoldedLayer]:
    """Say which form `fold` would give each SVD or Tucker layer, and why.

    Args:
        model: A model with SVD or Tucker layers.
        form: `"smallest"` (whatever stores fewer weights), `"fast"` (two stages only where
            `costs.two_stage_effort` is at most 0.75, a rule of thumb and no measurement),
            `"dense"`, or `"two_stage"` (three, of Tucker) for every layer that has one. Default
            `"smallest"`.
        forms: Forms of single layers by name or path: a `Form`, one of `KINDS` with the layer's own
            rank, or `"two_stage"`. They win over `form` and `plan`.
        plan: What `dprp_tf.deploy.plan_fold` measured for this model, or the file it was saved to;
            wins over `form`.

    Returns:
        One `FoldedLayer` per SVD or Tucker layer, in model order.

    Raises:
        ValueError: If a form or a layer name is unknown, a layer has not the form asked by name,
            or the plan was made for other layers or ranks.

    Example:

    >>> import dprp_tf as dprp
    >>> inputs = keras.Input((8, 8, 16))
    >>> outputs = keras.layers.Conv2D(16, 3, name="a")(inputs)
    >>> lowrank = dprp.factorize(keras.Model(inputs, outputs), ranks=2)
    >>> choose_forms(lowrank)[0].form
    'concatenated'
    """
    return [row for row, _ in _choices(model, form, forms, plan)]


def _choices(
    model: keras.Model,
    form: str,
    forms: Mapping[str, str | Form] | None,
    plan: FoldPlan | str | os.PathLike[str] | None,
) -> list[tuple[FoldedLayer, Form]]:
    if isinstance(form, FoldPlan):
        raise ValueError("`form` must be a text; give a plan as fold(model, plan=plan).")
    check_choice("form", form, _CHOICES)
    if isinstance(plan, (str, os.PathLike)):
        plan = FoldPlan.load(plan)
    layers = factorized_keys(model)
    named = dict(forms or {})
    unknown = sorted(set(named) - set(layers) - {layer.name for layer in layers.values()})
    if unknown:
        raise ValueError(
            f"`forms` must name SVD layers of the model: {list(layers)}. Received: {unknown}"
        )
    planned = {} if plan is None else _planned(layers, plan)
    rows = []
    for key, layer in layers.items():
        asked = named.get(key, named.get(layer.name))
        if asked is not None:
            chosen, reason = _by_name(layer, asked), "asked for by name"
        elif plan is not None:
            chosen, reason = _by_plan(layer, planned[key]), "measured"
        else:
            chosen, reason = _by_rule(layer, form)
        rows.append((_row(key, layer, chosen, reason), chosen))
    return rows


def fold(
    model: keras.Model,
    *,
    form: str = "smallest",
    forms: Mapping[str, str | Form] | None = None,
    plan: FoldPlan | str | os.PathLike[str] | None = None,
    model_class: Any = None,
) -> keras.Model:
    """Return a model of plain Keras layers that computes what `model` computes.

    Every SVD and Tucker layer becomes one of its exact forms (see `Form`); everything else is
    copied. The result loads without this library: it is a Functional model, or one of the user's
    own class.

    Args:
        model: A model with SVD or Tucker layers, such as a trained `DPRPModel`.
        form: `"smallest"`, `"fast"`, `"dense"` or `"two_stage"`; see `choose_forms`. Default
            `"smallest"`.
        forms: Forms of single layers by name; they win over `form` and `plan`.
        plan: What `dprp_tf.deploy.plan_fold` measured to be fastest on a target, or the file it was
            saved to; wins over `form`.
        model_class: Class of the model returned, made of inputs, outputs and name: `keras.Model`,
            one derived from it or a `functools.partial` of one. Default: the model's own where it
            does something of its own and is no `DPRPModel`; else `keras.Model`.

    Returns:
        The folded model; if the model was compiled with a loss of Keras, compiled with that, the
        metrics of Keras and plain SGD, to be evaluated and exported. Compile it anew to train it.

    Raises:
        ValueError: If the model has no graph or no low-rank layer, factors that are not finite, a
            form that does not exist, or a plan made for other layers, ranks or weights; if the
            model's class has methods of its own that the result would not have, and no
            `model_class` was given.

    Source: DPRP (arXiv 2401.08014) Eq. 2; the forms are in `dprp_tf.costs.form`.

    Example:

    >>> import dprp_tf as dprp
    >>> inputs = keras.Input((8, 8, 16))
    >>> outputs = keras.layers.Conv2D(16, 3, name="a", use_bias=False)(inputs)
    >>> lowrank = dprp.factorize(keras.Model(inputs, outputs), ranks=2)
    >>> fold(lowrank).count_params()  # 2 filters of 9 for 16 channels, then (32, 16)
    800
    """
    require_graph(model)
    require_finite_factors(model)
    result_class = plain_class(model, model_class)
    if isinstance(plan, (str, os.PathLike)):
        plan = FoldPlan.load(plan)
    rows = _choices(model, form, forms, plan)
    if not rows:
        raise ValueError(
            "`model` must have SVD layers to fold. Received: "
            f"{model.name!r}, which has none; make one with dprp_tf.factorize(model)."
        )
    layers = factorized_layers(model)
    # By identity and not by name: nested models may each have a layer of the same name.
    choices = {id(layer): chosen for layer, (_, chosen) in zip(layers, rows, strict=True)}
    names = {layer.name for layer in walk_layers(model)}
    result = rewrite(
        model,
        lambda layer: (
            build_form(layer, choices[id(layer)], names)
            if isinstance(layer, FactorizedLayer)
            else None
        ),
        result_class,
    )
    if not forms and any(chosen.kind != "dense" for _, chosen in rows):
        remember_choice(result, ChosenForms.by(plan))
    return compiled_like(result, model)


def require_finite_factors(model: keras.Model) -> None:
    """Refuse a model whose factors hold NaN or infinite values.

    Args:
        model: A model with SVD or Tucker layers.

    Raises:
        ValueError: If a factor is not finite; the message names it.
    """
    for layer in factorized_layers(model):
        if layer.broken_factor is not None:
            raise ValueError(
                "`model` must have finite factors. Received: NaN or infinite entries in "
                f"`{layer.broken_factor}` of layer {layer.name!r}; load a sound checkpoint."
            )


def _row(key: str, layer: FactorizedLayer, chosen: Form, reason: str) -> FoldedLayer:
    return FoldedLayer(
        key,
        type(layer).__name__,
        layer.decomposition,
        plain_ranks(layer.full_ranks),
        plain_ranks(layer.ranks),
        chosen.kind,
        reason,
        math.prod(layer.kernel_shape),
        chosen.parameters(layer.kernel_shape),
    )


def _by_name(layer: FactorizedLayer, asked: str | Form) -> Form:
    own = own_form(layer)
    if isinstance(asked, Form):
        chosen = asked
    elif asked == "two_stage":
        chosen = own
    elif asked == "dense":
        chosen = Form("dense")
    elif asked in [same.kind for same in same_factors(own)]:
        chosen = Form(asked, own.ranks)
    else:
        raise ValueError(
            "`forms` must give 'dense', 'two_stage', a Form, or a kind made of the layer's own "
            f"factors. Received: {asked!r} for {layer.name!r}, whose factors are "
            f"{layer.decomposition!r}; the kinds are {KINDS}, and others need a Form with ranks."
        )
    reason = obstacle(layer, chosen.kind)
    if reason is not None:
        raise ValueError(
            f"`forms` must give a form the layer has. Received: {str(asked)!r} for "
            f"{layer.name!r}, but {reason}"
        )
    return chosen


def _planned(layers: Mapping[str, FactorizedLayer], plan: FoldPlan) -> dict[str, Form]:
    """The plan's forms, if it was made for layers like these."""
    ours = {
        key: (tuple(layer.kernel_shape), layer.decomposition, plain_ranks(layer.ranks))
        for key, layer in layers.items()
    }
    theirs = {row.name: (row.kernel_shape, row.decomposition, row.rank) for row in plan.layers}
    if ours != theirs:
        differing = sorted(
            name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)
        )
        raise ValueError(
            "`plan` must have been made for the SVD layers of this model at their ranks. Received: "
            f"a plan that differs in {differing}; make it anew with dprp_tf.deploy.plan_fold."
        )
    return plan.forms


def _by_plan(layer: FactorizedLayer, planned: Form) -> Form:
    error = form_error(layer, planned)
    if error <= 1.01 * planned.error + _PLAN_ROUNDING:
        return planned
    raise ValueError(
        f"`plan` must have been made for the weights of this model. Received: {planned} for "
        f"{layer.name!r}, whose kernel is {error:.2g} away from that form; make the plan anew "
        "with dprp_tf.deploy.plan_fold."
    )


def _by_rule(layer: FactorizedLayer, form: str) -> tuple[Form, str]:
    dense, own = Form("dense"), own_form(layer)
    reason = obstacle(layer, own.kind)
    weights = math.prod(layer.kernel_shape)
    stages = "three" if own.kind == "tucker" else "two"
    if form == "dense":
        return dense, "asked for"
    if reason is not None:
        return dense, reason
    if form == "two_stage":
        return own, "asked for"
    if form == "fast":
        effort = _effort(layer, own)
        chosen = own if effort <= _WORTH_TWO_STAGES else dense
        return chosen, f"{stages} stages would take about {effort:.2f} of the time"
    least, chosen = own.parameters(layer.kernel_shape), smallest_form(layer)
    if chosen == own:
        return own, f"{least} weights instead of {weights}"
    return dense, f"{stages} stages would store {least} weights instead of {weights}"


def _effort(layer: FactorizedLayer, own: Form) -> float:
    """Estimate the time of a layer's own form relative to the dense one; see `two_stage_effort`."""
    if own.kind != "tucker":
        return two_stage_effort(layer.kernel_shape, layer.decomposition, own.ranks[0])
    # The first stage runs before the strides.
    before = math.prod(getattr(layer, "strides", ()))
    return own.macs(layer.kernel_shape, (before,), (1,)) / math.prod(layer.kernel_shape)
