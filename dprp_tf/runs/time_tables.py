"""The table of times that a selection goes by: given, or measured once for its folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import keras

import dprp_tf.deploy as deploy
from dprp_tf.conversion.factorizing import factorize
from dprp_tf.costs.latency_table import LatencyTable
from dprp_tf.costs.width_table import WidthTable
from dprp_tf.runs.choosing_channels import groups_left
from dprp_tf.runs.settings import SelectionSettings
from dprp_tf.training.model import DPRPModel

__all__ = ["LATENCY", "WIDTHS", "load_table", "require_table_for", "times_for"]

LATENCY = "latency.json"
WIDTHS = "widths.json"


def load_table(
    path: str | os.PathLike[str], settings: SelectionSettings
) -> LatencyTable | WidthTable:
    """Read a table of times of the kind that goes with a selection.

    Args:
        path: The file: what `dprp latency` wrote, with `--widths` or without.
        settings: The selection's settings.

    Returns:
        A latency table for ranks that are not learned, else a width table.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds something else; of the other table that is said.

    Example:

    >>> import tempfile
    >>> from dprp_tf.costs.budget import Budget
    >>> table = WidthTable((), 2.0, 1.0, "local", "litert", "int8", 1, "ms", "some", "2.3")
    >>> path = table.save(Path(tempfile.mkdtemp()) / "widths.json")
    >>> load_table(path, SelectionSettings(Budget(time=0.5), cut="channels")) == table
    True
    """
    kinds = (WidthTable, LatencyTable) if settings.by_width else (LatencyTable, WidthTable)
    try:
        return kinds[0].load(path)
    except ValueError:
        try:
            other = kinds[1].load(path)
        except ValueError:
            other = None
        if other is not None:
            require_table_for(other, settings)
        raise


def require_table_for(table: LatencyTable | WidthTable, settings: SelectionSettings) -> None:
    """Refuse a table of the kind that does not go with a selection.

    Args:
        table: The table.
        settings: The selection's settings.

    Raises:
        ValueError: If it is of the other kind.
    """
    by_rank = isinstance(table, LatencyTable)
    if by_rank != settings.by_width:
        return
    chosen = f"method={settings.method!r}" if settings.learned else f"cut={settings.cut!r}"
    needed, advice = "a latency table, of times by rank", "deploy.measure_latency(...)"
    if by_rank:
        needed, advice = "a width table, of times by channels", "deploy.measure_widths(model, ...)"
    raise ValueError(
        f"`latency` must be {needed}, for {chosen}. Received: a {table.kind}; leave it out to "
        f"measure one, or make one with {advice}."
    )


def times_for(
    place: Path,
    model: keras.Model,
    settings: SelectionSettings,
    given: LatencyTable | WidthTable | None,
    layers: Callable[[keras.layers.Layer], bool] | None,
    tell: Callable[[str], None],
) -> LatencyTable | WidthTable | None:
    """Return the times that a selection goes by, kept in its folder.

    Args:
        place: The folder.
        model: The dense model.
        settings: The selection's settings.
        given: A table that was given; None for none.
        layers: Says which layers may be cut; None for all.
        tell: Called with a line for each step of measuring.

    Returns:
        The table that was given, or that of the folder, measured if it is not there; None where no
        time is bounded.

    Raises:
        ValueError: If times are needed that can't be measured.
        TargetError: If the target can't be reached or lacks the runtime.
    """
    path = place / (WIDTHS if settings.by_width else LATENCY)
    if given is not None:
        given.save(path)
        return given
    if not settings.for_time:
        if settings.by_width and settings.budget.of_time:
            raise ValueError(
                "A budget of `time` or `milliseconds` must come with a `precision` to measure in, "
                "or with `latency`, a width table. Received: precision=None"
            )
        return None
    if path.exists():
        return load_table(path, settings)
    assert settings.precision is not None
    setting = {
        "target": settings.target,
        "runtime": settings.runtime,
        "precision": settings.precision,
        "threads": settings.threads,
    }
    table: LatencyTable | WidthTable
    if not settings.by_width:
        lowrank = factorize(
            model, decomposition=settings.decomposition, layers=layers, model_class=DPRPModel
        )
        table = deploy.measure_latency(lowrank, **setting, progress=tell)
    else:
        table = deploy.measure_widths(
            model,
            **setting,
            decomposition=None if settings.cut == "channels" else settings.decomposition,
            groups=() if settings.cut == "ranks" else groups_left(model, layers),
            multiple=settings.multiple,
            progress=tell,
        )
    table.save(path)
    return table
