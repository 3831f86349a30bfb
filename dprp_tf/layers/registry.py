"""Which low-rank layer stands for which Keras layer: each type says so once, where it is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import keras

from dprp_tf.files.arguments import check_choice
from dprp_tf.layers.factorized import FactorizedLayer

__all__ = [
    "FACTORIZATIONS",
    "is_registered",
    "layer_class",
    "layer_named",
    "low_rank_layer",
    "registered_layers",
]

FACTORIZATIONS = ("svd", "tucker")

_Class = TypeVar("_Class", bound=type[FactorizedLayer])
_BY_DENSE: dict[tuple[type[keras.layers.Layer], str], type[FactorizedLayer]] = {}
_BY_NAME: dict[str, type[FactorizedLayer]] = {}


def low_rank_layer(
    stands_for: type[keras.layers.Layer], *, factorization: str = "svd"
) -> Callable[[_Class], _Class]:
    """Register a layer class as the one that stands for a Keras layer; use it as a decorator.

    Everything that must know layer types asks for what is registered here: `factorize` replaces
    `stands_for` by the class, `fold` builds `stands_for` again, the planner measures the class,
    files find it by its name.

    Args:
        stands_for: The Keras layer. The class takes its arguments, and those of the factors.
        factorization: `"svd"`, or `"tucker"` for Tucker-2. Default `"svd"`.

    Returns:
        A decorator that returns the class itself.

    Raises:
        ValueError: If `factorization` is unknown, or another class stands for the layer already.

    Example:

    >>> from dprp_tf.layers import SVDDense
    >>> SVDDense.stands_for.__name__, layer_class(keras.layers.Dense).__name__
    ('Dense', 'SVDDense')
    """
    check_choice("factorization", factorization, FACTORIZATIONS)

    def register(kind: _Class) -> _Class:
        known = _BY_DENSE.get((stands_for, factorization))
        if known is not None and known.__qualname__ != kind.__qualname__:
            raise ValueError(
                f"`stands_for` must be a layer that no {factorization} layer stands for yet. "
                f"Received: {stands_for.__name__}, for which {known.__name__} does."
            )
        kind.stands_for = stands_for
        _BY_DENSE[stands_for, factorization] = kind
        _BY_NAME[kind.__name__] = kind
        return keras.saving.register_keras_serializable(package="dprp_tf")(kind)

    return register


def layer_class(
    stands_for: type[keras.layers.Layer], factorization: str = "svd"
) -> type[FactorizedLayer]:
    """Return the layer class that stands for a Keras layer.

    Args:
        stands_for: The Keras layer's class itself, not a subclass of it.
        factorization: `"svd"` or `"tucker"`. Default `"svd"`.

    Returns:
        The class.

    Raises:
        ValueError: If none is registered; see `is_registered`.

    Example:

    >>> layer_class(keras.layers.Conv2D, "tucker").__name__
    'TuckerConv2D'
    """
    if (stands_for, factorization) not in _BY_DENSE:
        known = sorted(dense.__name__ for dense, of in _BY_DENSE if of == factorization)
        raise ValueError(
            f"`stands_for` must be one of {known}, for which a {factorization} layer is "
            f"registered. Received: {stands_for.__name__}"
        )
    return _BY_DENSE[stands_for, factorization]


def is_registered(stands_for: type[keras.layers.Layer], factorization: str = "svd") -> bool:
    """Say whether a layer class stands for a Keras layer.

    Args:
        stands_for: The Keras layer's class.
        factorization: `"svd"` or `"tucker"`. Default `"svd"`.

    Returns:
        True if `layer_class` has one.

    Example:

    >>> is_registered(keras.layers.Dense), is_registered(keras.layers.Dense, "tucker")
    (True, False)
    """
    return (stands_for, factorization) in _BY_DENSE


def registered_layers(factorization: str = "svd") -> list[type[FactorizedLayer]]:
    """Return the layer classes of a factorization, in the order of their registration.

    Args:
        factorization: `"svd"` or `"tucker"`. Default `"svd"`.

    Returns:
        The classes; each says in `stands_for` which Keras layer it stands for.

    Example:

    >>> [kind.__name__ for kind in registered_layers("tucker")][:3]
    ['TuckerConv1D', 'TuckerConv2D', 'TuckerConv3D']
    """
    return [kind for (_, of), kind in _BY_DENSE.items() if of == factorization]


def layer_named(name: str) -> type[FactorizedLayer]:
    """Return the registered layer class of a name, as plans and tables hold it.

    Args:
        name: Name of the class, such as `"SVDConv2D"`.

    Returns:
        The class.

    Raises:
        ValueError: If none of this name is registered.

    Example:

    >>> layer_named("SVDConv1D").stands_for.__name__
    'Conv1D'
    """
    if name not in _BY_NAME:
        raise ValueError(
            f"`name` must be that of a registered layer: {sorted(_BY_NAME)}. Received: {name!r}"
        )
    return _BY_NAME[name]
