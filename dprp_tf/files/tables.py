"""Results that are tables: one way to show them in a terminal, as plain text, and in files."""

from __future__ import annotations

import contextlib
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from dprp_tf.files.atomic import read_json, write_json
from dprp_tf.files.shown import shown

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table

__all__ = ["StoredTable", "Tabular", "lay_out"]

_WIDTH = 140


def lay_out(
    columns: Mapping[str, str],
    rows: Iterable[Iterable[Any]],
    *,
    title: str = "",
    caption: str = "",
) -> Table:
    """Lay out values for `rich` as what they are: nothing in them is markup, or obeyed.

    Args:
        columns: Heading to `"left"`, `"right"`, or `"fold"` for names, which break where they are
            too long.
        rows: Values for each row, in the order of the columns.
        title: A line above. Defaults to none.
        caption: Lines below. Defaults to none.

    Returns:
        The table.

    Example:

    >>> table = lay_out({"layer": "fold", "rank": "right"}, [("[red]conv[/]", 3)])
    >>> table.row_count
    1
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(shown(title), style="table.title") if title else None,
        caption=Text(shown(caption, lines=True), style="table.caption") if caption else None,
        caption_justify="left",
    )
    for heading, kind in columns.items():
        table.add_column(
            Text(shown(heading)),
            justify="right" if kind == "right" else "left",
            overflow="fold" if kind == "fold" else "ellipsis",
        )
    for row in rows:
        table.add_row(*(Text(shown(value)) for value in row))
    return table


class Tabular:
    """Base of results that lay themselves out with `table()`: they print as it.

    Example:

    >>> class Two(Tabular):
    ...     def table(self):
    ...         from rich.table import Table
    ...         return Table("two")
    >>> "two" in str(Two())
    True
    """

    def table(self) -> Table:
        """Lay the result out for `rich`.

        Returns:
            The table.
        """
        raise NotImplementedError

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.table()

    def __str__(self) -> str:
        from rich.console import Console

        buffer = io.StringIO()
        Console(file=buffer, width=_WIDTH, color_system=None).print(self.table())
        return buffer.getvalue().rstrip()


class StoredTable(Tabular, ABC):
    """Base of tables that are kept as JSON; they say how in `as_dict` and `from_dict`.

    Attributes:
        kind: What an error calls them.
    """

    kind: ClassVar[str]

    @abstractmethod
    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""

    @classmethod
    @abstractmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return what `as_dict` described.

        Args:
            values: What `as_dict` returned, perhaps by way of JSON.

        Returns:
            The table.

        Raises:
            ValueError: If a value is missing or unusable.
        """

    @classmethod
    @contextlib.contextmanager
    def _reading(cls, values: Mapping[str, Any], version: int) -> Iterator[None]:
        """Within it, what is missing or unusable is said to be so of the whole table."""
        try:
            if values["version"] != version:
                raise ValueError(f"version {values['version']}")
            yield
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(
                f"It must be a {cls.kind} of version {version}, as {cls.__name__}.save writes it. "
                f"Received one without: {error}"
            ) from error

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it as JSON, whole or not at all.

        Args:
            path: The file, such as `plan.json`.

        Returns:
            The path.
        """
        write_json(path, self.as_dict())
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Args:
            path: The file.

        Returns:
            The table.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it holds something else.
        """
        try:
            values = read_json(path)
        except ValueError as error:
            raise ValueError(f"{path} must hold a {cls.kind} in JSON. Received: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path} must hold a {cls.kind}. Received: a {type(values).__name__}")
        try:
            return cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"{path} holds no usable {cls.kind}. {error}") from error
