"""What a run recorded epoch by epoch, in order and each epoch once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dprp_tf.report.errors import NothingToPlotError
from dprp_tf.report.formatting import number
from dprp_tf.report.loading import records

__all__ = ["epochs_of_ranks", "epochs_of_run", "last_known", "layer_names"]

Epochs = list[tuple[int, dict[str, Any]]]


def epochs_of_ranks(ranks: Mapping[str, Any]) -> Epochs:
    """Return epoch and entry of `ranks.json`, from the epoch 0 before training.

    Raises:
        NothingToPlotError: If there are none.

    Example:

    >>> [epoch for epoch, _ in epochs_of_ranks({"epochs": [{"epoch": 1}, {"epoch": 0}]})]
    [0, 1]
    """
    entries = _by_epoch(records(ranks, "epochs"), first=0)
    if not entries:
        raise NothingToPlotError("`ranks` holds no epochs.")
    return entries


def epochs_of_run(runs: Mapping[str, Any], name: str) -> Epochs:
    """Return epoch and entry of one run of `history.json`, from epoch 1.

    Example:

    >>> epochs_of_run({"dense": [{"loss": 0.5}]}, "dense")
    [(1, {'loss': 0.5})]
    """
    return _by_epoch(records(runs, name), first=1)


def layer_names(ranks: Mapping[str, Any], fallback: Mapping[str, Any]) -> list[str]:
    """Return the layers that `ranks.json` lists, else the keys of `fallback`."""
    layers = ranks.get("layers")
    return [str(name) for name in (layers if isinstance(layers, list) else fallback)]


def last_known(values: Sequence[float]) -> float:
    """Return the last value that is not NaN, else NaN.

    Example:

    >>> last_known([3.0, 2.0, float("nan")])
    2.0
    """
    return next((value for value in reversed(values) if not math.isnan(value)), math.nan)


def _by_epoch(entries: Sequence[dict[str, Any]], first: int) -> Epochs:
    # The latest entry stands where a resumed run repeats an epoch.
    found = {}
    for place, entry in enumerate(entries):
        epoch = number(entry.get("epoch"))
        found[first + place if math.isnan(epoch) else int(epoch)] = entry
    return sorted(found.items(), key=lambda item: item[0])
