"""The application that commands register with: how a command fails, and how it is helped with."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from typer.core import TyperGroup

from dprp_tf.cli.console import print_error, told_warnings
from dprp_tf.cli.stopping import STOPPED, exit_code, stop_behind
from dprp_tf.cli.wording import in_options, speak_of

__all__ = ["app", "command"]


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
_state = {"debug": False}


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
        speak_of(flags)
        try:
            with told_warnings():
                function(*args, **kwargs)
        except typer.Exit:
            raise
        except (Exception, KeyboardInterrupt) as error:
            stop = stop_behind(error)
            if stop is not None:
                print_error(STOPPED)
                raise typer.Exit(exit_code(stop)) from None
            if _state["debug"] or not _is_expected(error):
                raise
            print_error(f"error: {in_options(_said(error))}")
            raise typer.Exit(getattr(error, "exit_code", 2)) from error

    app.command(epilog=_example(function))(guarded)
    return guarded


def _is_expected(error: BaseException) -> bool:
    """Whether what went wrong lies outside this code, as far as its type tells."""
    kinds = (ValueError, OSError, RuntimeError, ImportError, MemoryError)
    # TensorFlow's, which is none of these.
    return isinstance(error, kinds) or type(error).__name__ == "ResourceExhaustedError"


def _said(error: BaseException) -> str:
    said = str(error).strip() or type(error).__name__
    if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":
        return f"there is not enough memory ({said}). Give fewer or smaller images or models."
    return said


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
