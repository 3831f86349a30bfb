"""The application that commands register with: how a command fails, and how it is helped with."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import Annotated, Any, get_args

import typer

from dprp_tf.cli.console import print_error

__all__ = ["app", "command"]

app = typer.Typer(
    name="dprp",
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
        try:
            function(*args, **kwargs)
        except typer.Exit:
            raise
        except KeyboardInterrupt:
            print_error("stopped; what is finished is kept: the same command goes on")
            raise typer.Exit(130) from None
        except Exception as error:
            if _state["debug"] or not _is_expected(error):
                raise
            message = re.sub(r"`(\w+)`", lambda found: flags.get(found[1], found[0]), _said(error))
            print_error(f"error: {message}")
            raise typer.Exit(getattr(error, "exit_code", 2)) from error

    app.command(epilog=_example(function))(guarded)
    return guarded


def _is_expected(error: Exception) -> bool:
    """Whether what went wrong lies outside this code, as far as its type tells."""
    kinds = (ValueError, OSError, RuntimeError, ImportError, MemoryError)
    # TensorFlow's, which is none of these.
    return isinstance(error, kinds) or type(error).__name__ == "ResourceExhaustedError"


def _said(error: Exception) -> str:
    said = str(error).strip() or type(error).__name__
    if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":
        return f"there is not enough memory ({said}). Give fewer or smaller images or models."
    return said


def _flags(function: Callable[..., None]) -> dict[str, str]:
    """The option of each parameter, as messages quote it."""
    flags = {}
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        for known in get_args(parameter.annotation)[1:]:
            if isinstance(known, typer.models.OptionInfo):
                named = (known.default, *(known.param_decls or ()))
                own = [name for name in named if isinstance(name, str) and name.startswith("--")]
                flag = own[0].split("/")[0] if own else "--" + parameter.name.replace("_", "-")
                flags[parameter.name] = f"`{flag}`"
    return flags


def _example(function: Callable[..., None]) -> str | None:
    lines = (function.__doc__ or "").splitlines()
    found = [line.strip() for line in lines if line.strip().startswith("Example:")]
    return found[0] if found else None
