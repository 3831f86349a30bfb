"""The folder where what is costly to make is kept between runs."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder(*parts: str) -> Path:
    """Return a folder of the user's cache; it need not exist yet.

    Args:
        *parts: Names of subfolders.

    Returns:
        Below the folder that the environment variable `DPRP_TF_CACHE` names, else below
        `~/.cache/dprp_tf`.

    Example:

    >>> cache_folder("form_costs").is_absolute(), cache_folder("form_costs").name
    (True, 'form_costs')
    """
    named = os.environ.get("DPRP_TF_CACHE")
    home = Path(named).absolute() if named else Path.home() / ".cache" / "dprp_tf"
    return home.joinpath(*parts)
