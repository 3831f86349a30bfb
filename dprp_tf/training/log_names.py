"""Names of the library's own logs that never take the place of a log of the user's."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

__all__ = ["LOG_PREFIX", "beside_the_users", "free_name", "name_in_logs"]

# What stands before the name of an own log where the user's model has one of that name.
LOG_PREFIX = "dprp_"


def free_name(name: str, taken: Collection[str]) -> str:
    """Return the name that an own log gets beside logs that are there already.

    Args:
        name: The name it has if no other has it, such as `"app_loss"`.
        taken: The names of the user's logs.

    Returns:
        The name itself, or the name with `LOG_PREFIX` before it.

    Example:

    >>> free_name("sort_loss", {"loss"}), free_name("sort_loss", {"loss", "sort_loss"})
    ('sort_loss', 'dprp_sort_loss')
    """
    return LOG_PREFIX + name if name in taken else name


def beside_the_users(logs: Mapping[str, Any], own: Iterable[str]) -> dict[str, Any]:
    """Return logs in which own ones, that came with `LOG_PREFIX`, lose it where that is free.

    Keras joins the results of all metrics by name, the later over the earlier: an own metric
    gives its results prefixed, and here they get their names.

    Args:
        logs: What Keras' `get_metrics_result` returned.
        own: The names of the own logs, without the prefix.

    Returns:
        The logs in their order.

    Example:

    >>> logs = {"loss": 1.0, "app_loss": 2.0, "dprp_app_loss": 3.0, "dprp_comp_loss": 4.0}
    >>> beside_the_users(logs, ["app_loss", "comp_loss"])
    {'loss': 1.0, 'app_loss': 2.0, 'dprp_app_loss': 3.0, 'comp_loss': 4.0}
    """
    renamed = {LOG_PREFIX + name: free_name(name, logs) for name in own}
    return {renamed.get(name, name): value for name, value in logs.items()}


def name_in_logs(name: str, logs: Collection[str], before: str = "") -> str:
    """Return the name of an own log: with `LOG_PREFIX` where the plain name is a user's.

    Args:
        name: The name it has if no other has it, such as `"app_loss"`.
        logs: The names of all logs.
        before: What Keras puts before the names, such as `"val_"`. Default: nothing.

    Returns:
        The name; the plain one where there is none with the prefix.

    Example:

    >>> name_in_logs("app_loss", {"val_app_loss", "val_dprp_app_loss"}, "val_")
    'val_dprp_app_loss'
    """
    prefixed = f"{before}{LOG_PREFIX}{name}"
    return prefixed if prefixed in logs else before + name
