"""Convolutions whose kernels are held as Tucker-2 factors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from dprp_tf.decomposition import TuckerFactors, full_tucker_ranks, tucker2
from dprp_tf.files.arguments import is_integer
from dprp_tf.layers.convolution import FactorizedConvolution
from dprp_tf.layers.registry import low_rank_layer
from dprp_tf.layers.transposed import FactorizedTransposedConvolution

__all__ = [
    "TuckerConv1D",
    "TuckerConv1DTranspose",
    "TuckerConv2D",
    "TuckerConv2DTranspose",
    "TuckerConv3D",
    "TuckerConv3DTranspose",
    "TuckerConvolution",
]


class TuckerConvolution(FactorizedConvolution):
    """A convolution of one, two or three spatial axes, its kernel held as Tucker-2 factors.

    The kernel W (*L, C, S) is held as W[l, c, s] = sum_{i,o} A[c, i] G[l, i, o] B[s, o] with
    weights `first` A (C, r_in), `core` G (*L, r_in, r_out) and `last` B (S, r_out).

    Each call rebuilds the kernel instead of running three convolutions. Then the layer computes
    exactly what the dense one does for every padding, dilation and data format, keeps the
    regularizer, the constraint and the initializer of the kernel, which three small kernels have
    not, and rounds once in half precision. It costs a training step the MACs of the dense layer
    and, once per step and not per sample, `rebuild_macs`; the three cheap convolutions are what
    `dprp_tf.fold` makes of it. The factors train as plain weights: no loss presses their ranks,
    which stay as they are.

    Args:
        filters: Number of output channels S.
        kernel_size: Size of the window, one integer or one per spatial axis.
        ranks: `(r_in, r_out)`, each from 1 to its full rank. Default: the full ranks.
        **kwargs: What `FactorizedConvolution` and `FactorizedLayer` take.

    Raises:
        ValueError: If an argument is unusable, or the input is smaller than the window.

    Source: Kim et al. 2016 (arXiv 1511.06530) for Tucker-2 of kernels.
    """

    first: keras.Variable
    core: keras.Variable
    last: keras.Variable
    decomposition = "tucker"

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, ...],
        *,
        ranks: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(filters, kernel_size, **kwargs)
        pair = tuple(ranks) if isinstance(ranks, Sequence) else None
        bad = pair is None or len(pair) != 2 or not all(map(is_integer, pair))
        if ranks is not None and bad:
            raise ValueError(
                "`ranks` must be None or (r_in, r_out), two integers of 1 or more. "
                f"Received: ranks={ranks!r}"
            )
        self._initial_ranks = None if pair is None else (int(pair[0]), int(pair[1]))

    def start_from(self, factors: TuckerFactors) -> None:
        """Use these factors, instead of the initializer's, when the layer is built.

        Args:
            factors: A (C, r_in), G (*L, r_in, r_out), B (S, r_out).

        Raises:
            ValueError: If the layer is built already.
        """
        super().start_from(factors)
        self._initial_ranks = factors.ranks

    def _start_factors(self) -> TuckerFactors:
        limits = self.full_ranks
        inner, outer = ranks = self._initial_ranks or limits
        if inner > limits[0] or outer > limits[1]:
            raise ValueError(
                f"`ranks` of layer {self.name!r} must lie in (1..{limits[0]}, 1..{limits[1]}), "
                f"those of a kernel of shape {self.kernel_shape}. Received: ranks={ranks}"
            )
        factors: TuckerFactors | None = self._initial_factors
        if factors is None:
            # Without iterations: nothing is to be preserved of a random kernel.
            factors = tucker2(self._initial_kernel(), ranks, iterations=0)
        *spatial, channels, filters = self.kernel_shape
        expected = {
            "first": (channels, inner),
            "core": (*spatial, inner, outer),
            "last": (filters, outer),
        }
        found = {name: np.shape(values) for name, values in factors._asdict().items()}
        if found != expected:
            raise ValueError(
                f"The factors of layer {self.name!r} must have the shapes {expected}. "
                f"Received: {found}"
            )
        return factors

    @property
    def ranks(self) -> tuple[int, ...]:
        """(r_in, r_out); those asked for, or `()`, before the layer is built."""
        if not self.built:
            return self._initial_ranks or ()
        return int(self.first.shape[1]), int(self.last.shape[1])

    @property
    def full_ranks(self) -> tuple[int, int]:
        """(min(C, L S), min(S, L C)), the largest ranks of the two unfoldings."""
        return full_tucker_ranks(self.kernel_shape)

    @property
    def factor_variables(self) -> list[keras.Variable]:
        """A (C, r_in), G (*L, r_in, r_out), B (S, r_out)."""
        return [self.first, self.core, self.last]

    @property
    def factors(self) -> TuckerFactors:
        """The factors as NumPy arrays in float32 or wider."""
        return TuckerFactors(*self._factor_arrays())

    @property
    def rebuild_macs(self) -> int:
        """The multiply-accumulates of rebuilding the kernel once, in the cheaper order."""
        return min(self._orders())

    def _orders(self) -> tuple[int, int]:
        """MACs of rebuilding with the last factor first, and with the first one first."""
        *spatial, channels, filters = self.kernel_shape
        inner, outer = self.ranks
        positions = math.prod(spatial)
        return (
            positions * inner * filters * (outer + channels),
            positions * channels * outer * (inner + filters),
        )

    def _rebuilt(self) -> Any:
        first, core, last = self._wide_factors()
        inner, outer = self.ranks
        # (*L, r_in, r_out) -> (L, r_in, r_out)
        core = ops.reshape(core, (-1, inner, outer))
        last_first, first_first = self._orders()
        if last_first <= first_first:
            # (C, r_in) @ [(L, r_in, r_out) @ (r_out, S)] -> (L, C, S)
            kernel = ops.matmul(first, ops.matmul(core, ops.transpose(last)))
        else:
            # [(C, r_in) @ (L, r_in, r_out)] @ (r_out, S) -> (L, C, S)
            kernel = ops.matmul(ops.matmul(first, core), ops.transpose(last))
        return ops.reshape(kernel, self.kernel_shape)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor arguments, with the ranks of now."""
        return {**super().get_config(), "ranks": self.ranks or None}


_SHARED = """

    The kernel W (*kernel_size, C, filters) is A (C, r_in), G (*kernel_size, r_in, r_out) and
    B (filters, r_out), W[l, c, s] = sum A[c, i] G[l, i, o] B[s, o]. Use it through
    `dprp_tf.factorize` with that decomposition, or in a new network in place of the Keras layer,
    whose arguments it takes. See `TuckerConvolution` on how it computes.

    Args:
        filters: Number of output channels S.
        kernel_size: Size of the window, one integer or one per spatial axis.
        ranks: `(r_in, r_out)`, each from 1 to its full rank. Default: the full ranks.
        **kwargs: What the Keras layer takes: `strides`, `padding` ({padding}), `data_format`,
            `dilation_rate`, `activation`, `use_bias`, initializers, regularizers, constraints,
            `name`, `dtype`.

    Input shape:
        `(batch, *spatial, C)`, or `(batch, C, *spatial)` for `"channels_first"`.

    Output shape:
        `(batch, *new spatial, filters)`, or `(batch, filters, *new spatial)`.

    Raises:
        ValueError: If an argument is unusable, or the input is smaller than the window.

    Source: Kim et al. 2016 (arXiv 1511.06530); BSR/LeSS thesis 4.7.4.

    Example:

    >>> layer = {example}
    >>> layer(keras.ops.zeros({shape})).shape, layer.ranks
    {result}
    """


@low_rank_layer(keras.layers.Conv1D, factorization="tucker")
class TuckerConv1D(TuckerConvolution):
    __doc__ = "A one-dimensional convolution that trains the Tucker-2 factors of its kernel." + (
        _SHARED.format(
            padding='`"valid"`, `"same"` or `"causal"`',
            example='TuckerConv1D(8, 5, ranks=(2, 3), padding="causal")',
            shape="(1, 12, 3)",
            result="(TensorShape([1, 12, 8]), (2, 3))",
        )
    )
    ndim = 1


@low_rank_layer(keras.layers.Conv2D, factorization="tucker")
class TuckerConv2D(TuckerConvolution):
    __doc__ = "A two-dimensional convolution that trains the Tucker-2 factors of its kernel." + (
        _SHARED.format(
            padding='`"valid"` or `"same"`',
            example='TuckerConv2D(8, 3, ranks=(2, 3), padding="same")',
            shape="(1, 6, 6, 3)",
            result="(TensorShape([1, 6, 6, 8]), (2, 3))",
        )
    )
    ndim = 2


@low_rank_layer(keras.layers.Conv3D, factorization="tucker")
class TuckerConv3D(TuckerConvolution):
    __doc__ = "A three-dimensional convolution that trains the Tucker-2 factors of its kernel." + (
        _SHARED.format(
            padding='`"valid"` or `"same"`',
            example="TuckerConv3D(8, 3, ranks=(2, 3))",
            shape="(1, 5, 5, 5, 3)",
            result="(TensorShape([1, 3, 3, 3, 8]), (2, 3))",
        )
    )
    ndim = 3


class _TuckerConvTranspose(FactorizedTransposedConvolution, TuckerConvolution):
    """A transposed convolution, its kernel held as Tucker-2 factors."""


@low_rank_layer(keras.layers.Conv1DTranspose, factorization="tucker")
class TuckerConv1DTranspose(_TuckerConvTranspose):
    __doc__ = (
        "A one-dimensional transposed convolution that trains the Tucker-2 factors of its kernel."
        + _SHARED.format(
            padding='`"valid"` or `"same"`',
            example="TuckerConv1DTranspose(8, 2, strides=2, ranks=(2, 3))",
            shape="(1, 6, 3)",
            result="(TensorShape([1, 12, 8]), (2, 3))",
        )
    )
    ndim = 1


@low_rank_layer(keras.layers.Conv2DTranspose, factorization="tucker")
class TuckerConv2DTranspose(_TuckerConvTranspose):
    __doc__ = (
        "A two-dimensional transposed convolution that trains the Tucker-2 factors of its kernel."
        + _SHARED.format(
            padding='`"valid"` or `"same"`',
            example="TuckerConv2DTranspose(8, 2, strides=2, ranks=(2, 3))",
            shape="(1, 6, 6, 3)",
            result="(TensorShape([1, 12, 12, 8]), (2, 3))",
        )
    )
    ndim = 2


@low_rank_layer(keras.layers.Conv3DTranspose, factorization="tucker")
class TuckerConv3DTranspose(_TuckerConvTranspose):
    __doc__ = (
        "A three-dimensional transposed convolution that trains the Tucker-2 factors of its kernel."
        + _SHARED.format(
            padding='`"valid"` or `"same"`',
            example="TuckerConv3DTranspose(8, 2, strides=2, ranks=(2, 3))",
            shape="(1, 3, 3, 3, 3)",
            result="(TensorShape([1, 6, 6, 6, 8]), (2, 3))",
        )
    )
    ndim = 3
