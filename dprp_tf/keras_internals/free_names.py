"""Names for new layers that no layer of a model has."""

from __future__ import annotations

from collections.abc import Collection

__all__ = ["free_name"]


def free_name(name: str, taken: Collection[str]) -> str:
    """Return a name, with a number behind it where it is taken.

    Args:
        name: The name wished for.
        taken: Names that are there.

    Returns:
        The name, or the first of name_1, name_2, ... that is free.

    Example:

    >>> free_name("a", {"a", "a_1"}), free_name("b", {"a"})
    ('a_2', 'b')
    """
    if name not in taken:
        return name
    count = 1
    while f"{name}_{count}" in taken:
        count += 1
    return f"{name}_{count}"
