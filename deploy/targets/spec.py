"""Take the text that names a remote target apart."""

from __future__ import annotations

import urllib.parse
from collections.abc import Collection

__all__ = ["split_spec"]


def split_spec(spec: str, scheme: str, allowed: Collection[str]) -> tuple[str, dict[str, str]]:
    """Split `scheme://address?name=value&...` into address and options.

    Args:
        spec: The text.
        scheme: What it must begin with, without `://`.
        allowed: Names of the options it may hold.

    Returns:
        The address, and option name to value, percent-decoded.

    Raises:
        ValueError: If the scheme differs, or an option is unknown, empty or given twice.

    Example:

    >>> split_spec("adb://emulator-5554?binary=/data/local/tmp/b", "adb", ["binary"])
    ('emulator-5554', {'binary': '/data/local/tmp/b'})
    """
    start = f"{scheme}://"
    if not spec.startswith(start):
        raise ValueError(f"`target` must begin with {start}. Received: target={spec!r}.")
    address, _, query = spec.removeprefix(start).partition("?")
    options: dict[str, str] = {}
    for part in query.split("&") if query else []:
        name, _, value = part.partition("=")
        if name not in allowed or name in options or not value:
            raise ValueError(
                f"`target` may end with ?name=value, each of {sorted(allowed)} once. Received: "
                f"target={spec!r} with {part!r}."
            )
        options[name] = urllib.parse.unquote(value)
    return address, options
