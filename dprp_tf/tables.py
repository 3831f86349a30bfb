"""Results that are tables: one way to show them in a terminal and as plain text."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table

__all__ = ["Tabular"]

_WIDTH = 140


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
