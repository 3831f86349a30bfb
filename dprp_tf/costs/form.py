"""What a form is: a kind of plain layers, its ranks, and how far its kernel is from the layer's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dprp_tf.costs.kernels import two_stage_kernels
from dprp_tf.files.arguments import check_choice, is_integer

__all__ = ["KINDS", "OWN_KIND", "Form"]

KINDS = (
    "dense",
    "concatenated",
    "summed",
    "pointwise_first",
    "channel",
    "separable",
    "tucker",
)
# The two-stage kind that a matricization's factors are by themselves.
OWN_KIND: Mapping[str, str] = {
    "spatial": "concatenated",
    "channel": "channel",
    "separable": "separable",
}
_SPATIAL = ("concatenated", "summed", "pointwise_first")


@dataclass(frozen=True)
class Form:
    """One way to compute a layer with plain Keras layers.

    With C channels, S filters and L window positions:

    - `dense`: the layer that was factorized.
    - `concatenated`: r depthwise convolutions side by side, concatenated, one pointwise
      (C*r, S). A BatchNorm behind it folds into the pointwise convolution.
    - `summed`: r times depthwise, then pointwise (C, S); added up.
    - `pointwise_first`: r times pointwise (C, S), then depthwise on the S outputs; added up.
    - `channel`: a full-size convolution C -> r, then pointwise r -> S. Of a dense or pointwise
      kernel: (C, r), then (r, S).
    - `separable`: all spatial axes but the last, C -> r; then the last, r -> S.
    - `tucker`: pointwise C -> r_in, full-size r_in -> r_out, pointwise r_out -> S.

    Attributes:
        kind: One of `KINDS`.
        ranks: `()` for dense, `(r_in, r_out)` for Tucker, else `(r,)`.
        error: Relative Frobenius error of the kernel this form computes; 0 for an exact form.

    Raises:
        ValueError: If `kind` is unknown or the number of ranks does not fit it.

    Example:

    >>> print(Form("tucker", (8, 16)))
    tucker 8, 16
    """

    kind: str
    ranks: tuple[int, ...] = ()
    error: float = 0.0

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, KINDS)
        expected = {"dense": 0, "tucker": 2}.get(self.kind, 1)
        whole = isinstance(self.ranks, Sequence) and all(map(is_integer, self.ranks))
        if not whole or len(self.ranks) != expected:
            raise ValueError(
                f"`ranks` of a {self.kind!r} form must be {expected} positive integers. "
                f"Received: ranks={self.ranks!r}"
            )
        # Lists and NumPy's integers come from JSON and from arithmetic.
        object.__setattr__(self, "ranks", tuple(int(rank) for rank in self.ranks))

    @property
    def matricization(self) -> str | None:
        """The matricization whose factors it is made of; None for dense and Tucker."""
        if self.kind in _SPATIAL:
            return "spatial"
        return self.kind if self.kind in ("channel", "separable") else None

    def kernels(self, kernel_shape: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the shapes of the kernels it stores, in the order they are applied.

        Args:
            kernel_shape: Shape of the layer's kernel, (*spatial, C, S) or (D_in, D_out); of a
                transposed convolution too.

        Returns:
            One shape per stage; the branches of a stage count as one kernel.

        Example:

        >>> Form("pointwise_first", (2,)).kernels((3, 3, 16, 8))
        [(1, 1, 16, 16), (3, 3, 16)]
        """
        *spatial, channels, filters = (int(size) for size in kernel_shape)
        ones = (1,) * len(spatial)
        if self.kind == "dense":
            return [(*spatial, channels, filters)]
        if self.kind == "tucker":
            inner, outer = self.ranks
            return [
                (*ones, channels, inner),
                (*spatial, inner, outer),
                (*ones, outer, filters),
            ]
        rank = self.ranks[0]
        if self.kind == "pointwise_first":
            return [(*ones, channels, rank * filters), (*spatial, rank * filters)]
        return list(two_stage_kernels(kernel_shape, str(self.matricization), rank))

    def parameters(self, kernel_shape: Sequence[int]) -> int:
        """Return how many weights it stores, without bias.

        Args:
            kernel_shape: Keras kernel shape of the layer.

        Returns:
            The number of weights.

        Example:

        >>> Form("dense").parameters((3, 3, 16, 8)), Form("channel", (4,)).parameters((3, 3, 16, 8))
        (1152, 608)
        """
        return sum(math.prod(shape) for shape in self.kernels(kernel_shape))

    def macs(
        self,
        kernel_shape: Sequence[int],
        input_positions: Sequence[int],
        output_positions: Sequence[int],
        transposed: bool = False,
    ) -> int:
        """Return its multiply-accumulates for one sample.

        Work on the padding of a causal `pointwise_first` layer is left out; see `MapSizes`.

        Args:
            kernel_shape: Keras kernel shape of the layer.
            input_positions: Spatial sizes of the input.
            output_positions: Spatial sizes of the output.
            transposed: Whether windows are those of a transposed convolution, which meet each
                input once. Default False.

        Returns:
            The number of MACs.

        Example:

        >>> Form("channel", (4,)).macs((3, 3, 16, 8), (8, 8), (4, 4))  # strides of 2
        9728
        """
        sizes = [math.prod(shape) for shape in self.kernels(kernel_shape)]
        before, after = math.prod(input_positions), math.prod(output_positions)
        if transposed:
            if self.kind == "separable":
                # The first stage makes all axes longer but the last.
                between = math.prod(output_positions[:-1]) * input_positions[-1]
                return sizes[0] * before + sizes[1] * between
            # Pointwise stages that come last see the longer map.
            last = sizes[-1] * (after if len(sizes) > 1 else before)
            return sum(sizes[:-1]) * before + last
        if self.kind in ("pointwise_first", "tucker"):
            return sizes[0] * before + sum(sizes[1:]) * after
        if self.kind == "separable":
            # The first stage strides along all axes but the last.
            between = math.prod(output_positions[:-1]) * input_positions[-1]
            return sizes[0] * between + sizes[1] * after
        return sum(sizes) * after

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        return {"kind": self.kind, "ranks": list(self.ranks), "error": self.error}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Form:
        """Return the form that `as_dict` described.

        Args:
            values: What `as_dict` returned.

        Returns:
            The form.

        Raises:
            ValueError: If a value is missing or unusable.

        Example:

        >>> Form.from_dict({"kind": "channel", "ranks": [4], "error": 0.0})
        Form(kind='channel', ranks=(4,), error=0.0)
        """
        try:
            ranks = tuple(int(rank) for rank in values["ranks"])
            return cls(str(values["kind"]), ranks, float(values["error"]))
        except (KeyError, TypeError, OverflowError) as error:
            raise ValueError(
                f"A form must be a dict with `kind`, `ranks` and `error`. Received: {values!r}"
            ) from error

    def __str__(self) -> str:
        return f"{self.kind} {', '.join(map(str, self.ranks))}".strip()
