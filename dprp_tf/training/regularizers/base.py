"""What every penalty on singular values is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

__all__ = ["RankRegularizer"]


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
