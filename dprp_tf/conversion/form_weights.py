"""The forms a layer has, and the arrays that fill them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops
from numpy.typing import NDArray

from dprp_tf import decomposition
from dprp_tf.costs.form import KINDS, Form
from dprp_tf.costs.layer_forms import obstacle, own_form, same_factors
from dprp_tf.decomposition import Factors, TuckerFactors
from dprp_tf.layers import FactorizedLayer

__all__ = [
    "FormWeights",
    "dense_kernel",
    "form_error",
    "form_weights",
    "layer_forms",
    "random_weights",
]

FormWeights = NDArray[Any] | Factors | TuckerFactors

# Factors are float32: their kernel's smallest singular values are noise of this relative size.
_ROUNDING = 1e-6
_LARGE = 2**24


def layer_forms(layer: FactorizedLayer, tolerance: float | None = 0.0) -> list[Form]:
    """Return the forms that compute a layer, dense first.

    Those of the layer's own matricization always; those of another matricization, and Tucker-2,
    where the kernel happens to have a low rank there too, so that they take fewer weights than
    the dense kernel.

    Args:
        layer: A built SVD or Tucker layer.
        tolerance: Relative Frobenius error of the kernel that a form may have, in [0, 1). 0 means
            exact up to float32 rounding; above 0 the layer's own rank may fall as well. None
            looks at the layer's own matricization alone, which needs no decomposition. Default 0.

    Returns:
        The forms, with their errors.

    Raises:
        ValueError: If `tolerance` is out of range.
    """
    if tolerance is not None and not 0.0 <= tolerance < 1.0:
        raise ValueError(f"`tolerance` must lie in [0, 1). Received: tolerance={tolerance}")
    own = own_form(layer)
    forms = [Form("dense")]
    forms += [form for form in same_factors(own) if obstacle(layer, form.kind) is None]
    if tolerance is None:
        return forms
    kernel = dense_kernel(layer).astype(np.float64)
    scale = float(np.linalg.norm(kernel))
    if scale == 0:
        return forms
    dense = math.prod(layer.kernel_shape)
    allowed = max(tolerance, _ROUNDING)
    spectra: dict[str, NDArray[Any]] = {}
    for kind in KINDS:
        if kind == "dense" or obstacle(layer, kind) is not None:
            continue
        if kind == "tucker":
            ranks: tuple[int, ...] = decomposition.tucker_ranks(kernel, allowed)
            error = 0.0
            if tolerance > 0:
                approximation = decomposition.tucker2(kernel, (ranks[0], ranks[1])).kernel()
                error = float(np.linalg.norm(approximation - kernel)) / scale
        else:
            matricization = str(Form(kind, (1,)).matricization)
            if matricization not in spectra:
                matrix = decomposition.matricize(kernel, matricization)
                spectra[matricization] = np.linalg.svd(matrix, compute_uv=False)
            s = spectra[matricization]
            ranks = (decomposition.energy_rank(s, allowed**2),)
            error = decomposition.truncation_error(s, ranks[0])
        form = Form(kind, ranks, 0.0 if error <= _ROUNDING else error)
        known = any((known.kind, known.ranks) == (kind, ranks) for known in forms)
        if not known and form.parameters(layer.kernel_shape) < dense:
            forms.append(form)
    return forms


def form_weights(layer: FactorizedLayer, form: Form) -> FormWeights:
    """Return the arrays of a form of a layer.

    Args:
        layer: A built SVD or Tucker layer.
        form: One of its forms. Ranks below what the kernel has are truncated to.

    Returns:
        The kernel for dense; `TuckerFactors`; or `Factors` of the form's matricization.

    Raises:
        ValueError: If the layer can't take the form.
    """
    reason = obstacle(layer, form.kind)
    if reason is not None:
        raise ValueError(
            f"`form` must be one that layer {layer.name!r} can take. Received: {form}, but {reason}"
        )
    if form.kind == "dense":
        return dense_kernel(layer)
    own = own_form(layer)
    if form.matricization == own.matricization and form.ranks == own.ranks:
        return layer.factors
    kernel = dense_kernel(layer).astype(np.float64)
    if form.kind == "tucker":
        factors = decomposition.tucker2(kernel, (form.ranks[0], form.ranks[1]))
        return TuckerFactors(*(array.astype(np.float32) for array in factors))
    matrix = decomposition.matricize(kernel, str(form.matricization))
    limit = min(matrix.shape)
    if form.ranks[0] > limit:
        raise ValueError(
            f"`form` must have a rank in 1..{limit} for layer {layer.name!r}. Received: {form}"
        )
    singular = decomposition.decompose(matrix, form.ranks[0])
    return Factors(*(array.astype(np.float32) for array in singular))


def form_error(layer: FactorizedLayer, form: Form) -> float:
    """Return how far the kernel of a form is from the layer's, relative in the Frobenius norm.

    Args:
        layer: A built SVD or Tucker layer.
        form: A form it can take.

    Returns:
        The relative error, 0 where the form is made of the layer's own factors.

    Raises:
        ValueError: If the layer can't take the form.
    """
    own = own_form(layer)
    if form.kind == "dense" or (form.matricization, form.ranks) == (own.matricization, own.ranks):
        return 0.0
    kernel = dense_kernel(layer).astype(np.float64)
    weights = form_weights(layer, form)
    if isinstance(weights, TuckerFactors):
        approximation: NDArray[Any] = weights.kernel()
    else:
        assert isinstance(weights, Factors)
        approximation = decomposition.dematricize(
            weights.matrix(), layer.kernel_shape, str(form.matricization)
        )
    scale = float(np.linalg.norm(kernel))
    return float(np.linalg.norm(approximation - kernel)) / scale if scale > 0 else 0.0


def random_weights(kernel_shape: Sequence[int], form: Form, seed: int = 0) -> FormWeights:
    """Return random arrays of the shapes a form needs, to time it before a layer is trained.

    Args:
        kernel_shape: Keras kernel shape.
        form: The form.
        seed: Seed of the generator. Default 0.

    Returns:
        As `form_weights`; outputs keep about the scale of the inputs.
    """
    generator = np.random.default_rng(seed)
    *spatial, channels, filters = kernel_shape
    fan_in = math.prod(spatial) * channels

    def draw(*shape: int, scale: float) -> NDArray[Any]:
        return generator.normal(scale=scale, size=shape).astype(np.float32)

    if form.kind == "dense":
        return draw(*kernel_shape, scale=fan_in**-0.5)
    if form.kind == "tucker":
        inner, outer = form.ranks
        return TuckerFactors(
            draw(channels, inner, scale=channels**-0.5),
            draw(*spatial, inner, outer, scale=(math.prod(spatial) * inner) ** -0.5),
            draw(filters, outer, scale=outer**-0.5),
        )
    height, width = decomposition.matrix_shape(kernel_shape, str(form.matricization))
    rank = form.ranks[0]
    return Factors(
        draw(height, rank, scale=rank**-0.5),
        np.ones(rank, np.float32),
        draw(width, rank, scale=fan_in**-0.5),
    )


def dense_kernel(layer: FactorizedLayer) -> NDArray[Any]:
    """Return the kernel of the dense layer, its constraint applied.

    Args:
        layer: A built SVD or Tucker layer.

    Returns:
        Array of the kernel's shape; float64 unless a constraint was applied or it has more than
        16 million entries, where the factors' own dtype must do.
    """
    factors = layer.factors
    if math.prod(layer.kernel_shape) <= _LARGE:
        factors = type(factors)(*(array.astype(np.float64) for array in factors))
    if isinstance(factors, TuckerFactors):
        kernel = factors.kernel()
    else:
        matrix = factors.matrix()
        kernel = decomposition.dematricize(matrix, layer.kernel_shape, layer.decomposition)
    if layer.kernel_constraint is not None:
        held = ops.convert_to_tensor(layer.as_held(kernel, np))
        held = np.asarray(ops.convert_to_numpy(layer.kernel_constraint(held)))
        kernel = layer.as_held(held, np)
    return np.asarray(kernel)
