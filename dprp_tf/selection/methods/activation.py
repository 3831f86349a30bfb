"""Ranks by the energy that the outputs keep on calibration data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dprp_tf.selection.methods.energy import EnergyProduct
from dprp_tf.selection.selector import Problem, Selection, Selector

__all__ = ["ActivationAware"]


@dataclass(frozen=True)
class ActivationAware(Selector):
    """Keep the largest product of the energies of the layers' outputs under the bounds.

    What `EnergyProduct` is for kernels, with E_l the share of ||W * x||^2 kept over calibration
    inputs x: a direction of the kernel that the inputs never excite costs nothing to cut. The
    space must have been made with `OutputTruncation`, as `select_ranks` makes it for this method.

    Source: arXiv 2511.04494; BSR/LeSS thesis Eq. 2.2 for the product.

    Example:

    >>> ActivationAware().name
    'activation'
    """

    name: ClassVar[str] = "activation"

    def select(self, problem: Problem) -> Selection:
        """Choose ranks; see the class."""
        return EnergyProduct().select(problem)
