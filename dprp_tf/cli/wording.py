"""Messages of the library in the words of the command that runs: options in place of arguments."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["in_options", "speak_of"]

# What functions call a thing for which commands have an option of another name.
_OTHER_NAMES = {
    "source": ("data", "things"),
    "dataset": ("data", "things"),
    "data": ("data", "things"),
    "calibration_data": ("data",),
    "training_data": ("data",),
    "verification_data": ("data",),
    "targets": ("target",),
    "run_folder": ("run",),
    "path": ("model", "file", "files", "things"),
    "paths": ("files",),
    "name": ("model",),
    "normalization": ("mean",),
    "model": ("model", "file", "things"),
    "latency": ("latency_table",),
}
# Which command does what a message advises a function for.
_COMMANDS = {
    "export": "export",
    "factorize": "train",
    "fold": "fold",
    "measure_latency": "latency",
    "measure_widths": "latency --widths",
    "plan_fold": "plan",
    "select_ranks": "select",
    "summarize": "inspect",
}
_CALL = re.compile(r"`?\b(?:dprp_tf\.deploy|dprp_tf|dprp|deploy)\.(\w+)(?:\([^()]*\))?`?")
_VALUE = re.compile(r"\b(\w+)=('[^']*'|\"[^\"]*\"|True\b|False\b|\d[\d.]*\b)")
_QUOTED = re.compile(r"(?<=[(, ])`(--[^`]+)`")
# What was received keeps the form of its values.
_NAMED = re.compile(r"\b(\w+)=")
_RECEIVED = re.compile(r"(Received: .*?(?:[.;] |$))")
_spoken_of: dict[str, str] = {}


def speak_of(flags: Mapping[str, str]) -> None:
    """Say which options and arguments the command that runs has.

    Args:
        flags: What a user writes on the command line, by the name of the parameter.

    Example:

    >>> speak_of({"mean": "--mean"})
    >>> in_options("`mean` must be a number.")
    '`--mean` must be a number.'
    """
    _spoken_of.clear()
    _spoken_of.update(flags)


def in_options(message: str) -> str:
    """Say a message of the library in the words of the command that runs, in one line.

    Args:
        message: A message that names arguments as `name`, `name=value` or `call(name=value)`, and
            functions as dprp_tf.function.

    Returns:
        The message with the options and arguments of the command.

    Example:

    >>> speak_of({"mean": "--mean", "std": "--std"})
    >>> in_options("`mean` must go with `dataset.normalized(mean=[0, 1], std=[255])`.")
    '`--mean` must go with `--mean 0 --mean 1 --std 255`.'
    >>> in_options("Received: std=1; give std=2 or use dprp_tf.fold(model).")
    'Received: --std 1; give `--std 2` or use `dprp fold`.'
    """
    flags = _spoken_of

    def said(found: re.Match[str]) -> str:
        quoted = found[1]
        return f"`{_flag(quoted, flags) or _given(quoted, flags) or quoted}`"

    def called(found: re.Match[str]) -> str:
        if found[1] not in _COMMANDS:
            return found[0]
        options = _QUOTED.findall(found[0])  # its values, where the command has options for them
        return f"`{' '.join(['dprp', _COMMANDS[found[1]], *options])}`"

    def valued(found: re.Match[str]) -> str:
        value = ast.literal_eval(found[2])
        return f"`{_option(flags[found[1]], value)}`" if found[1] in flags else found[0]

    def named(found: re.Match[str]) -> str:
        flag = _flag(found[1], flags)
        return found[0] if flag is None else f"{flag} "

    text = re.sub(r"`([^`]+)`", said, " ".join(message.split()))
    parts = _RECEIVED.split(text)  # every other part is what was received
    parts[::2] = [_CALL.sub(called, _VALUE.sub(valued, part)) for part in parts[::2]]
    parts[1::2] = [_NAMED.sub(named, part) for part in parts[1::2]]
    return "".join(parts)


def _flag(name: str, flags: dict[str, str]) -> str | None:
    """How the command line calls a parameter, perhaps by another name; None for none of its own."""
    names = (name, *_OTHER_NAMES.get(name, ()))
    return next((flags[known] for known in names if known in flags), None)


def _given(quoted: str, flags: dict[str, str]) -> str | None:
    """Options with their values for `name=value, ...`, in a call or not; None for anything else."""
    for text in (quoted, f"call({quoted})"):
        try:
            call = ast.parse(text, mode="eval").body
            if not isinstance(call, ast.Call) or call.args or not call.keywords:
                continue
            values = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
        except (SyntaxError, ValueError):
            continue
        if set(values) <= set(flags):
            return " ".join(_option(flags[name], value) for name, value in values.items())
    return None


def _option(flag: str, value: Any) -> str:
    if isinstance(value, bool):
        return flag if value else flag.replace("--", "--no-", 1)
    return " ".join(
        f"{flag} {entry:g}" if isinstance(entry, float) else f"{flag} {entry}"
        for entry in (value if isinstance(value, (list, tuple)) else [value])
    )
