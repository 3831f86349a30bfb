"""Options that several commands share, and options made from the fields of a settings class."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer

from dprp_tf.files.setting_fields import Setting, settings_of

__all__ = [
    "Exclude",
    "Fresh",
    "ImageSize",
    "Json",
    "Mean",
    "Precision",
    "Refresh",
    "Runtime",
    "Std",
    "TargetName",
    "Threads",
    "TimedRounds",
    "with_settings",
]

Json = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")]
Mean = Annotated[
    list[float] | None, typer.Option(help="Per channel; for a model that expects normalized input.")
]
Std = Annotated[list[float] | None, typer.Option(help="Per channel, with --mean.")]
ImageSize = Annotated[
    int | None, typer.Option(min=1, help="Resize images to this; voxel grids get empty margins.")
]
TargetName = Annotated[
    str, typer.Option(help="local, qemu:cortex-a72, ssh://user@host or adb://serial.")
]
Runtime = Annotated[str, typer.Option(help="litert or onnxruntime.")]
Precision = Annotated[str, typer.Option(help="float32, float16 (litert) or int8.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of the runtime.")]
TimedRounds = Annotated[int, typer.Option(min=3, help="Timed rounds per form.")]
Refresh = Annotated[bool, typer.Option(help="Measure anew what is remembered.")]
Fresh = Annotated[bool, typer.Option(help="Discard what the run folder holds.")]
Exclude = Annotated[
    list[str] | None, typer.Option(help="A layer that stays dense; repeat for more.")
]

_S = TypeVar("_S")


def with_settings(
    parameter: str,
    cls: type[_S],
    *,
    without: tuple[str, ...] = (),
    required: tuple[str, ...] = (),
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each field of a settings class.

    Args:
        parameter: The parameter of the command that receives the given values, a dictionary by
            field.
        cls: A dataclass whose fields `files.setting_fields.setting` declared: it states each
            default, each range and each help once.
        without: Fields that get no option, since the command has its own.
        required: Fields that must be given on the command line, though the class has a default.

    Returns:
        A decorator of commands.

    Example:

    >>> from dataclasses import dataclass
    >>> from dprp_tf.files.setting_fields import setting
    >>> @dataclass(frozen=True)
    ... class Sampling:
    ...     samples: int = setting(256, "How many are drawn.", minimum=1)
    >>> @with_settings("values", Sampling)
    ... def draw(values: dict[str, Any]) -> None:
    ...     print(values)
    >>> draw(samples=3)
    {'samples': 3}
    """
    declared = {
        name: (default, known) for name, default, known in settings_of(cls) if name not in without
    }

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def expanded(**given: Any) -> None:
            values = {
                name: _value(given.pop(name), known)
                for name, (_, known) in declared.items()
                if name in given
            }
            function(**given, **{parameter: values})

        signature = inspect.signature(function, eval_str=True)
        own = [one for name, one in signature.parameters.items() if name != parameter]
        made = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if name in required else _default(default, known),
                annotation=_annotation(name, known),
            )
            for name, (default, known) in declared.items()
        ]
        # The command's own required ones first, its flags such as --json last.
        last = [one for one in own if one.default is not inspect.Parameter.empty]
        first = [one for one in own if one not in last]
        ordered = [
            one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in (*first, *made, *last)
        ]
        expanded.__signature__ = signature.replace(parameters=ordered)  # type: ignore[attr-defined]
        expanded.__annotations__ = {one.name: one.annotation for one in ordered}
        return expanded

    return decorate


def _annotation(name: str, known: Setting) -> Any:
    least = known.minimum if known.kind in (int, float) else None
    flag = "--" + name.replace("_", "-")
    flags = (f"{flag}/--no-{flag[2:]}",) if known.kind is bool else ()
    kind: Any = list[str] if known.kind is tuple else known.kind
    if known.optional or known.kind is tuple:
        kind = kind | None
    return Annotated[
        kind,
        typer.Option(*flags, help=known.help, min=least, show_default=known.none_means or True),
    ]


def _default(default: Any, known: Setting) -> Any:
    return None if known.kind is tuple else default


def _value(given: Any, known: Setting) -> Any:
    if known.kind is tuple:
        return tuple(given or ())
    # A word for None, where the default is something.
    return None if known.optional and given == "none" else given
