"""Named variants of a builder, which take its arguments and show them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["variant_of"]

_Builder = TypeVar("_Builder", bound=Callable[..., Any])


def variant_of(base: Callable[..., Any], *fixed: str) -> Callable[[_Builder], _Builder]:
    """Give a function of `**arguments` the signature of the builder it hands them to.

    `inspect.signature`, `help` and completion then show the arguments, and `dprp_tf.zoo.accepts`
    finds them.

    Args:
        base: The builder.
        *fixed: Names of its parameters that the variant sets itself.

    Returns:
        The decorator.

    Example:

    >>> def vgg(depth: int, classes: int = 10) -> str:
    ...     return f"vgg{depth}, {classes} classes"
    >>> @variant_of(vgg, "depth")
    ... def vgg11(**arguments):
    ...     return vgg(11, **arguments)
    >>> list(inspect.signature(vgg11).parameters), vgg11(classes=3)
    (['classes'], 'vgg11, 3 classes')
    """
    taken = inspect.signature(base)
    shown = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in taken.parameters.items()
        if name not in fixed
    ]

    def decorate(builder: _Builder) -> _Builder:
        builder.__signature__ = taken.replace(parameters=shown)  # type: ignore[attr-defined]
        return builder

    return decorate
