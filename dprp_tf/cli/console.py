"""What commands print, and Keras imported without the lines that TensorFlow prints.

Names come from files that may be anyone's: nothing that is printed here is markup, and no control
character of it reaches the terminal. JSON escapes them, and keeps the names as they are.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import typer

from dprp_tf.cli.stopping import loading
from dprp_tf.cli.wording import in_options
from dprp_tf.files.json_text import to_json
from dprp_tf.files.shown import shown

__all__ = [
    "load_keras",
    "print_error",
    "print_json",
    "print_table",
    "print_text",
    "status",
    "told_warnings",
]

# What a shell sees of a program that SIGPIPE ended.
_PIPE_CLOSED = 141
_LONGEST_ERROR = 2000


def load_keras() -> None:
    """Import TensorFlow without the lines it prints about processors it did not find."""
    from dprp_tf.deploy.running.quiet import quiet

    with loading(), quiet():
        import keras  # noqa: F401


@contextlib.contextmanager
def status() -> Iterator[Callable[[str], None]]:
    """Yield what shows the step at work on standard error, without importing Keras."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True)

    def tell(step: str) -> None:
        text = Text(shown(step))
        if console.is_terminal:
            spinner.update(text)
        else:
            console.print(text)

    with console.status("measuring") as spinner:
        yield tell


def print_text(text: Any) -> None:
    """Print lines on standard output."""
    _write(shown(text, lines=True) + "\n")


def print_json(value: Any) -> None:
    """Print a value as JSON on standard output, its warnings in the command's words."""
    data = value.get("data") if isinstance(value, dict) else None
    if isinstance(data, dict) and "warnings" in data:
        value = {**value, "data": {**data, "warnings": [in_options(t) for t in data["warnings"]]}}
    _write(to_json(value, indent=2) + "\n")


def print_table(value: Any) -> None:
    """Print what rich can draw, such as a table or a plan, on standard output."""
    from rich.console import Console

    console = Console(markup=False, emoji=False)
    with console.capture() as captured:
        console.print(value)
    _write(captured.get())


def print_error(text: Any) -> None:
    """Print one line on standard error, if anyone is there to read it."""
    line = shown(" ".join(str(text).split()))
    if len(line) > _LONGEST_ERROR:
        line = f"{line[:_LONGEST_ERROR]}..."
    with contextlib.suppress(OSError):  # a closed terminal, a reader that is gone
        typer.echo(line, err=True)


@contextlib.contextmanager
def told_warnings() -> Iterator[None]:
    """Within it, warnings of Python are printed as lines of ours, in the command's words."""

    def show(message: Any, *place: Any, **more: Any) -> None:
        print_error(f"warning: {in_options(str(message))}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _write(text: str) -> None:
    try:
        typer.echo(text, nl=False)
    except BrokenPipeError:
        # Whoever read it has enough; what is still to be flushed must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(_PIPE_CLOSED) from None
