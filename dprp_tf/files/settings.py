"""The settings a folder was begun with: written once, and compared when it is gone on with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dprp_tf.files.atomic import read_json, write_json
from dprp_tf.files.json_text import from_json, to_json

__all__ = ["read_settings", "require_same_settings"]


def read_settings(path: Path, what: str) -> dict[str, Any]:
    """Read the settings that a folder was begun with.

    Args:
        path: The file in the folder.
        what: What the folder holds, such as "a selection".

    Returns:
        The values by name.

    Raises:
        ValueError: If the file holds no settings.

    Example:

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "config.json"
    >>> write_json(path, {"seed": 0})
    >>> read_settings(path, "a selection")
    {'seed': 0}
    """
    try:
        found = read_json(path)
        reason = f"a {type(found).__name__}"
    except ValueError as error:
        found, reason = None, str(error)
    if not isinstance(found, dict):
        raise ValueError(
            f"`folder` must hold the settings of {what} in JSON. Received: {path} ({reason}). Use "
            "another folder, or remove it."
        )
    return found


def require_same_settings(path: Path, settings: Mapping[str, Any], what: str) -> None:
    """Write the settings of a folder, or refuse those that differ from what it was begun with.

    Args:
        path: The file in the folder.
        settings: JSON-ready values by name.
        what: What the folder holds, such as "a selection".

    Raises:
        ValueError: If the file holds other settings; it names those that differ. If it is no JSON.

    Example:

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "config.json"
    >>> require_same_settings(path, {"seed": 0}, "a selection")
    >>> read_json(path)
    {'seed': 0}
    """
    # As a file gives them back, tuples as lists.
    wanted = from_json(to_json(settings))
    found = read_settings(path, what) if path.exists() else wanted
    differing = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
    if differing:
        raise ValueError(
            f"`folder` must hold {what} with the same settings. Received: {path.parent}, which "
            f"differs in {differing}; use another folder, or start afresh."
        )
    write_json(path, wanted)
