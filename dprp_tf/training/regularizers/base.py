"""What every penalty on singular values is."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np

__all__ = ["RankRegularizer", "positive_number", "positive_rank"]


class RankRegularizer(ABC):
    """A penalty on the singular values of one layer; subclass it to add your own.

    Implement `__call__(s)` for s of shape (..., r), one layer per leading index, returning (...),
    and `get_config` if the constructor takes arguments; register the class with
    `keras.saving.register_keras_serializable` so that models using it can be loaded.
    """

    @abstractmethod
    def __call__(self, s: Any) -> Any:
        """Return the penalty of each row of s, shape (..., r) -> (...)."""

    def get_config(self) -> dict[str, Any]:
        """Return the constructor arguments."""
        return {}

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.get_config() == other.get_config()

    def __repr__(self) -> str:
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.get_config().items())
        return f"{type(self).__name__}({arguments})"

    def __hash__(self) -> int:
        return hash(repr(self))

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> RankRegularizer:
        """Make the regularizer from `get_config`'s result."""
        return cls(**config)


def positive_rank(rank: Any) -> int:
    """Return a rank as an int.

    Args:
        rank: An integer of 1 or more.

    Returns:
        The rank.

    Raises:
        ValueError: If it is not a positive integer.

    Example:

    >>> positive_rank(3)
    3
    """
    if isinstance(rank, bool) or not isinstance(rank, (int, np.integer)) or rank < 1:
        raise ValueError(f"`rank` must be an integer of 1 or more. Received: rank={rank!r}")
    return int(rank)


def positive_number(name: str, value: Any) -> float:
    """Return a constructor's argument as a float.

    Args:
        name: The argument's name, for the message.
        value: A number above 0, finite.

    Returns:
        The number.

    Raises:
        ValueError: If it is not positive and finite.

    Example:

    >>> positive_number("gamma", 2)
    2.0
    """
    if not 0 < value < math.inf:
        raise ValueError(f"`{name}` must be positive and finite. Received: {name}={value}")
    return float(value)
