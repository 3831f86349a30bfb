"""Einsum layers written as a dense layer between changes of shape."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

__all__ = ["EinsumForm", "WrittenEinsum", "einsum_form"]


@dataclass(frozen=True)
class EinsumForm:
    """How an equation is computed by one matrix product over the last axis.

    Attributes:
        before: Order in which the input's axes come first, the contracted ones last.
        kept: Sizes of the axes that stay, batch first; None where unknown.
        contracted: Sizes of those that are summed over.
        made: Sizes of those that the kernel makes.
        after: Order in which the axes that stayed and those made become the output's.
        kernel: Order in which the kernel's axes become (contracted..., made...).
        bias: The output's axes that are made, in the order of `made`.
    """

    before: tuple[int, ...]
    kept: tuple[int | None, ...]
    contracted: tuple[int, ...]
    made: tuple[int, ...]
    after: tuple[int, ...]
    kernel: tuple[int, ...]
    bias: tuple[int, ...]


def einsum_form(
    layer: keras.layers.EinsumDense, input_shape: tuple[int | None, ...]
) -> EinsumForm | str:
    """Say how an einsum layer is computed by a dense one.

    With an input x of axes (kept..., contracted...), in any order, a kernel W of the axes
    contracted and made, and an output of the axes kept and made, in any order,

        y[kept, made] = sum over contracted of x[kept, contracted] W[contracted, made],

    which is a product of the matrices (kept, contracted) and (contracted, made).

    Args:
        layer: The layer, built.
        input_shape: Shape of its input, batch included.

    Returns:
        The form; or why there is none, as a text: an axis that input, kernel and output share has a
        matrix for each of its places.

    Example:

    >>> layer = keras.layers.EinsumDense("abc,cde->abde", output_shape=(None, 2, 3))
    >>> layer.build((None, 5, 8))
    >>> form = einsum_form(layer, (None, 5, 8))
    >>> form.kept, form.contracted, form.made
    ((None, 5), (8,), (2, 3))
    """
    left, _, out = layer.equation.replace(" ", "").partition("->")
    inputs, _, kernel = left.partition(",")
    rank = len(input_shape)
    if "..." in inputs + out:
        if "..." not in inputs or "..." not in out:
            return "its equation has an ellipsis on one side alone"
        extra = rank - len(inputs.replace("...", ""))
        free = [letter for letter in map(chr, range(65, 91)) if letter not in layer.equation]
        filled = "".join(free[:extra])
        inputs, out = (text.replace("...", filled) for text in (inputs, out))
    shared = set(inputs) & set(kernel) & set(out)
    if shared:
        return f"its kernel has a matrix for each place of an axis that stays ({min(shared)!r})"
    repeated = any(len(set(text)) != len(text) for text in (inputs, kernel, out))
    if repeated or set(inputs) - set(kernel) - set(out) or not set(inputs) & set(kernel):
        return "its equation is no product of two matrices"
    sizes = {
        **dict(zip(inputs, input_shape, strict=True)),
        **dict(zip(kernel, tuple(layer.kernel.shape), strict=True)),
    }
    kept = [letter for letter in inputs if letter in out]
    contracted = [letter for letter in inputs if letter in kernel]
    made = [letter for letter in out if letter in kernel]
    if inputs[0] not in kept or out[0] != inputs[0] or set(kernel) != {*contracted, *made}:
        return "its equation is no product of two matrices"
    if not made:
        return "it makes no axis of outputs"
    if layer.bias is not None and set(layer.bias_axes or "") != set(made):
        return "its bias has other axes than those that its kernel makes"
    moved = kept != list(inputs[: len(kept)]) or [*kept, *made] != list(out)
    shaped = moved or len(contracted) > 1 or len(made) > 1
    if shaped and sum(sizes[letter] is None for letter in kept[1:]) > 1:
        return "two of the axes that stay are of unknown length"
    return EinsumForm(
        tuple(inputs.index(letter) for letter in (*kept, *contracted)),
        tuple(sizes[letter] for letter in kept),
        tuple(sizes[letter] for letter in contracted),
        tuple(sizes[letter] for letter in made),
        tuple([*kept, *made].index(letter) for letter in out),
        tuple(kernel.index(letter) for letter in (*contracted, *made)),
        tuple(out.index(letter) for letter in made),
    )


class WrittenEinsum:
    """An einsum layer as plain ones, called as the layer is; a second call shares the weights.

    Args:
        layer: The layer, built.
        form: Its form.
        name: What the dense layer is called. Default: as the layer.

    Example:

    >>> layer = keras.layers.EinsumDense("abc,cde->abde", output_shape=(None, 2, 3))
    >>> layer.build((None, 5, 8))
    >>> WrittenEinsum(layer, einsum_form(layer, (None, 5, 8)))(keras.Input((5, 8))).shape
    (None, 5, 2, 3)
    """

    def __init__(
        self,
        layer: keras.layers.EinsumDense,
        form: EinsumForm,
        name: str | None = None,
    ) -> None:
        own = name or layer.name
        policy: Any = {"dtype": layer.dtype_policy}
        self._steps: list[Any] = []
        count, rank = len(form.kept), len(form.before)
        shape = [-1 if size is None else size for size in form.kept[1:]]
        if form.before != tuple(range(rank)):
            self._steps.append(
                keras.layers.Permute(form.before[1:], name=f"{own}_contracted_last", **policy)
            )
        if len(form.contracted) > 1:
            self._steps.append(
                keras.layers.Reshape(
                    (*shape, math.prod(form.contracted)), name=f"{own}_joined", **policy
                )
            )
        in_place = len(form.made) == 1 and form.after == tuple(range(count + 1))
        linear = layer.activation is keras.activations.linear
        self._dense = keras.layers.Dense(
            math.prod(form.made),
            activation=layer.activation if in_place else None,
            use_bias=layer.bias is not None,
            kernel_initializer=layer.kernel_initializer,
            bias_initializer=layer.bias_initializer,
            kernel_regularizer=layer.kernel_regularizer,
            bias_regularizer=layer.bias_regularizer,
            name=own,
            trainable=layer.trainable,
            **policy,
        )
        self._steps.append(self._dense)
        if len(form.made) > 1:
            self._steps.append(
                keras.layers.Reshape((*shape, *form.made), name=f"{own}_parted", **policy)
            )
        if form.after != tuple(range(len(form.after))):
            self._steps.append(
                keras.layers.Permute(form.after[1:], name=f"{own}_in_order", **policy)
            )
        if not in_place and not linear:
            self._steps.append(
                keras.layers.Activation(layer.activation, name=f"{own}_activation", **policy)
            )
        self._weights = _weights(layer, form)

    def __call__(self, x: Any) -> Any:
        """Apply it.

        Args:
            x: A symbolic tensor.

        Returns:
            The output.
        """
        for step in self._steps:
            x = step(x)
            if step is self._dense and self._weights:
                step.set_weights(self._weights)
                self._weights = []
        return x


def _weights(layer: keras.layers.EinsumDense, form: EinsumForm) -> list[np.ndarray]:
    """Kernel (contracted, made) and bias (made,), each axis flattened."""
    kernel = keras.ops.convert_to_numpy(layer.kernel).transpose(form.kernel)
    found = [kernel.reshape(math.prod(form.contracted), math.prod(form.made))]
    if layer.bias is not None:
        bias = keras.ops.convert_to_numpy(layer.bias)
        # Beside the output, from its end: 1 along what stays.
        padded = bias.reshape((1,) * (len(form.after) - bias.ndim) + bias.shape)
        stays = (axis for axis in range(padded.ndim) if axis not in form.bias)
        found.append(padded.transpose(*form.bias, *stays).reshape(-1))
    return found
