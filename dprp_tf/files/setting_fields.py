"""Fields of settings that say what they are: their meaning, their range, and their choices.

A settings class states each default and each range once. Its own check and the command line's
options are both made from that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

from dprp_tf.files.arguments import check_choice, check_integer, check_number

__all__ = ["Setting", "check_settings", "setting", "settings_of"]

_KEY = "setting"
_KINDS: dict[str, type] = {kind.__name__: kind for kind in (int, float, bool, str, tuple)}


@dataclass(frozen=True)
class Setting:
    """What is known of a field besides its default.

    Attributes:
        help: What it means, in one sentence without the default.
        kind: `int`, `float`, `bool`, `str`, or `tuple` for several strings.
        optional: Whether it may be None: by its type, or since None is its default.
        minimum: The least that a number may be; None for no limit.
        maximum: The most that a number may be; None for no limit.
        above: What a number must exceed; None for no limit.
        below: What a number must stay below; None for no limit.
        choices: The only values of a string; None for any.
        none_means: What a value of None stands for, told in the help as the default; None if the
            help tells no default.
    """

    help: str
    kind: type = str
    optional: bool = False
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] | None = None
    none_means: str | None = None


def setting(default: Any, help: str, **limits: Any) -> Any:
    """Declare a field of a settings class.

    Args:
        default: Its default.
        help: What it means, in one sentence without the default.
        **limits: `minimum`, `maximum`, `above`, `below`, `choices` and `none_means` of a `Setting`.

    Returns:
        What `dataclasses.field` returns.

    Example:

    >>> @dataclass(frozen=True)
    ... class Sampling:
    ...     samples: int = setting(256, "How many are drawn.", minimum=1)
    >>> Sampling().samples
    256
    """
    return field(default=default, metadata={_KEY: Setting(help, **limits)})


def settings_of(cls: type) -> Iterator[tuple[str, Any, Setting]]:
    """Yield name, default and `Setting` of each field that `setting` declared.

    Args:
        cls: A dataclass.

    Example:

    >>> @dataclass(frozen=True)
    ... class Sampling:
    ...     samples: int | None = setting(None, "How many are drawn.", minimum=1)
    >>> [(name, found.kind, found.optional) for name, _, found in settings_of(Sampling)]
    [('samples', <class 'int'>, True)]
    """
    for entry in fields(cls):
        declared = entry.metadata.get(_KEY)
        if declared is not None:
            # A string such as "int | None", since modules here postpone their annotations.
            kind, *others = str(entry.type).split(" | ")
            kind = kind.partition("[")[0]
            yield (
                entry.name,
                entry.default,
                replace(
                    declared,
                    kind=_KINDS[kind],
                    optional="None" in others or entry.default is None,
                ),
            )


def check_settings(settings: Any) -> None:
    """Refuse settings with a value out of its range.

    Args:
        settings: An instance of a dataclass with fields that `setting` declared.

    Raises:
        ValueError: If a value does not fit; the message names the field, the range and the value.

    Example:

    >>> @dataclass(frozen=True)
    ... class Sampling:
    ...     samples: int = setting(256, "How many are drawn.", minimum=1)
    ...
    ...     def __post_init__(self) -> None:
    ...         check_settings(self)
    >>> Sampling(samples=0)
    Traceback (most recent call last):
      ...
    ValueError: `samples` must be an integer of 1 or more. Received: samples=0
    """
    for name, _, known in settings_of(type(settings)):
        value = getattr(settings, name)
        if value is None and known.optional:
            continue
        if known.kind is int:
            check_integer(name, value, 0 if known.minimum is None else int(known.minimum))
        elif known.kind is float:
            check_number(
                name, value, known.minimum, known.maximum, above=known.above, below=known.below
            )
        elif known.kind is bool:
            check_choice(name, value, (True, False))
        elif known.choices is not None:
            check_choice(name, value, known.choices)
