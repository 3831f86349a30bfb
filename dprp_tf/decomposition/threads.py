"""Small matrices are decomposed on one thread: more of them only wait for each other."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import cache
from typing import Any

from threadpoolctl import ThreadpoolController

__all__ = ["threads_for"]

# From this h w min(h, w) on, about 100 million steps, a second thread is worth its while.
_LARGE = 1e8


def threads_for(shape: Sequence[int]) -> contextlib.AbstractContextManager[Any]:
    """Return the context in which to decompose a matrix: one BLAS thread unless it is large.

    Where other work keeps the cores busy, the SVD of a matrix of some ten thousand entries takes
    20 times as long on two threads as on one.

    Args:
        shape: (h, w).

    Returns:
        A context manager.

    Example:

    >>> import numpy as np
    >>> with threads_for((64, 576)):
    ...     values = np.linalg.svd(np.ones((64, 576)), compute_uv=False)
    >>> float(values[0].round(3))
    192.0
    """
    height, width = shape
    if height * width * min(height, width) >= _LARGE:
        return contextlib.nullcontext()
    return _controller().limit(limits=1, user_api="blas")


@cache
def _controller() -> Any:
    # Finding the loaded libraries takes longer than a small decomposition.
    return ThreadpoolController()
