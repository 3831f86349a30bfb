"""The plots and the page of a run, which a run without the extra that draws them goes without."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

from dprp_tf.report import save_plots, write_report

__all__ = ["report_run", "where_drawn"]


def report_run(folder: Path) -> None:
    """Write the plots and the page of a finished run, or warn that the extra `report` is absent.

    Args:
        folder: The run folder.
    """
    with where_drawn(folder):
        save_plots(folder)
        write_report(folder)


@contextlib.contextmanager
def where_drawn(folder: Path) -> Iterator[None]:
    """Turn the absence of what draws into a warning: hours of training don't end with an error.

    Args:
        folder: The folder whose pictures are drawn inside.

    Yields:
        Nothing.

    Example:

    >>> with where_drawn(Path("run")):
    ...     pass
    """
    try:
        yield
    except ImportError as error:
        if "dprp-tf[report]" not in str(error):
            raise
        warnings.warn(
            f"{folder} is whole but for its pictures. {error}, and then: dprp report {folder}",
            stacklevel=3,
        )
