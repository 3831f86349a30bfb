"""The application that commands register with: how a command fails, and how it is helped with."""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from typer.core import TyperGroup

__all__ = ["app", "command", "in_options"]


class _Group(TyperGroup):
    """The commands; a path in their place is looked at."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if self.get_command(ctx, args[0]) is None and _is_path(args[0]):
            args = ["look", *args]
        return super().resolve_command(ctx, args)


def _is_path(word: str) -> bool:
    return Path(word).exists() or Path(word).suffix in (".keras", ".tflite", ".onnx")


app = typer.Typer(
    name="dprp",
    cls=_Group,
    help="Low-rank CNNs for Keras: ranks that fall while training, folded into fast plain layers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_state: dict[str, Any] = {"debug": False, "flags": {}}
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
    "model": ("model", "file", "things"),
    "latency": ("latency_table",),
}
# Which command does what a message advises a function for.
_COMMANDS = {
    "export": "export",
    "factorize": "train",
    "fold": "fold",
    "measure_latency": "latency",
    "plan_fold": "plan",
    "select_ranks": "select",
    "summarize": "inspect",
}
_CALL = re.compile(r"`?\b(?:dprp_tf\.deploy|dprp_tf|dprp|deploy)\.(\w+)(?:\([^()]*\))?`?")
_VALUE = re.compile(r"\b(\w+)=('[^']*'|\"[^\"]*\"|True\b|False\b|\d[\d.]*\b)")
# What was received keeps the form of its values.
_NAMED = re.compile(r"\b(\w+)=")
_RECEIVED = re.compile(r"(Received: .*?(?:[.;] |$))")


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False,
) -> None:
    _state["debug"] = debug


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Register a command that turns an expected error into one line and exit code 2.

    Messages of the library name its arguments; the line names the options they came from.

    Args:
        function: The command. Its name is the command's, its docstring the help, and a line of
            that which begins with "Example:" stands below the options.

    Returns:
        What is registered, callable like the function.

    Example:

    >>> command.__name__
    'command'
    """
    flags = _flags(function)

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> None:
        _state["flags"] = flags
        try:
            with _told_warnings():
                function(*args, **kwargs)
        except (ValueError, OSError, RuntimeError, ImportError) as error:
            if _state["debug"]:
                raise
            typer.echo(f"error: {in_options(str(error))}", err=True)
            raise typer.Exit(getattr(error, "exit_code", 2)) from error
        except KeyboardInterrupt:
            typer.echo("stopped; what is finished is kept: the same command goes on", err=True)
            raise typer.Exit(130) from None

    app.command(epilog=_example(function))(guarded)
    return guarded


def in_options(message: str) -> str:
    """Say a message of the library in the words of the command that runs, in one line.

    Args:
        message: A message that names arguments as `name`, `name=value` or `call(name=value)`, and
            functions as dprp_tf.function.

    Returns:
        The message with the options and arguments of the command.

    Example:

    >>> _state["flags"] = {"mean": "--mean", "std": "--std"}
    >>> in_options("`mean` must go with `dataset.normalized(mean=[0, 1], std=[255])`.")
    '`--mean` must go with `--mean 0 --mean 1 --std 255`.'
    >>> in_options("Received: std=1; give std=2 or use dprp_tf.fold(model).")
    'Received: --std 1; give `--std 2` or use `dprp fold`.'
    """
    flags = _state["flags"]

    def said(found: re.Match[str]) -> str:
        quoted = found[1]
        return f"`{_flag(quoted, flags) or _given(quoted, flags) or quoted}`"

    def called(found: re.Match[str]) -> str:
        return f"`dprp {_COMMANDS[found[1]]}`" if found[1] in _COMMANDS else found[0]

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


@contextlib.contextmanager
def _told_warnings() -> Iterator[None]:
    """Show warnings of the library's own kinds as lines, like errors, and others as Python does."""
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
            if category.__module__.startswith("dprp_tf."):
                typer.echo(f"warning: {in_options(str(message))}", err=True)
            else:
                others(message, category, *place, **more)

        warnings.showwarning = show
        yield


def _flags(function: Callable[..., None]) -> dict[str, str]:
    """How the command line calls each parameter: by its option, or as in the line of its usage."""
    flags = {}
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        for known in get_args(parameter.annotation)[1:]:
            if isinstance(known, typer.models.OptionInfo):
                named = (known.default, *(known.param_decls or ()))
                own = [name for name in named if isinstance(name, str) and name.startswith("--")]
                flag = own[0].split("/")[0] if own else "--" + parameter.name.replace("_", "-")
                flags[parameter.name] = flag
            elif isinstance(known, typer.models.ArgumentInfo):
                flags[parameter.name] = parameter.name.upper()
    return flags


def _example(function: Callable[..., None]) -> str | None:
    lines = (function.__doc__ or "").splitlines()
    found = [line.strip() for line in lines if line.strip().startswith("Example:")]
    return found[0] if found else None
