"""What commands print, and Keras imported without the lines that TensorFlow prints."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import typer

from dprp_tf.cli.app import in_options

__all__ = ["load_keras", "print_json", "print_table", "status"]


def load_keras() -> None:
    """Import TensorFlow without the lines it prints about processors it did not find."""
    from dprp_tf.deploy.running.quiet import quiet

    with quiet():
        import keras  # noqa: F401


@contextlib.contextmanager
def status() -> Iterator[Callable[[str], None]]:
    """Yield what shows the step at work on standard error, without importing Keras."""
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("measuring") as shown:
        yield (
            lambda step: (
                shown.update(step) if console.is_terminal else console.print(step, highlight=False)
            )
        )


def print_json(value: Any) -> None:
    """Print a value as JSON on standard output, its warnings in the command's words."""
    data = value.get("data") if isinstance(value, dict) else None
    if isinstance(data, dict) and "warnings" in data:
        value = {**value, "data": {**data, "warnings": [in_options(t) for t in data["warnings"]]}}
    typer.echo(json.dumps(value, indent=2))


def print_table(value: Any) -> None:
    """Print what rich can draw, such as a table or a plan, on standard output."""
    from rich.console import Console

    Console().print(value)
