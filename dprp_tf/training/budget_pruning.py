"""A controller: ranks that fall inside `fit` until the model takes no more than a given time."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from dprp_tf.costs.allocation import allocate_ranks
from dprp_tf.costs.budget import Budget, BudgetError
from dprp_tf.costs.latency_table import LatencyTable
from dprp_tf.layers import SVDLayer, low_rank_keys
from dprp_tf.training.log_names import free_name
from dprp_tf.training.model import DPRPModel
from dprp_tf.training.rank_pruning import RankPruning

__all__ = ["BudgetPruning"]

# Sums of the same costs in another order differ by this share.
_ROUNDING = 1e-9


class BudgetPruning(RankPruning):
    """Cut the ranks of a `DPRPModel` step by step to a time measured on a target.

    With T the time of the dense model, B the budget and n the epochs from `start_epoch` to
    `stop_epoch`, the model may take T + (k / n) (B - T) at the end of the k-th of them, as the
    table predicts it for the model folded by `deploy.plan_fold` or `latency.forms(model.ranks)`.
    What the threshold of `RankPruning` does not cut is cut where the time saved costs the least
    sum of s^2. The model's `pressure` is 0 while it is within the budget. The logs get
    `predicted_cost`, in the table's unit.

    Args:
        budget: `Budget(milliseconds=...)`, or that as a mapping: the time the model may take,
            between 0 and the dense model's, in the table's unit; such as 0.5 * latency.dense.
        latency: Time per layer and rank on the target, as `dprp_tf.deploy.measure_latency`
            measures it for this model.
        start_epoch: First epoch, counted from 0, at whose end ranks may fall; below the epochs of
            `fit`. Default 0.
        stop_epoch: First epoch in which ranks no longer fall, when the budget is met; above
            `start_epoch`. Default: the budget is met at the end of the last epoch of `fit`.
        threshold: As `RankPruning`.
        discarded_energy: As `RankPruning`.
        frequency: As `RankPruning`.
        layers: As `RankPruning`.
        minimum_rank: As `RankPruning`.
        minimum_removed: As `RankPruning`.
        verbose: As `RankPruning`.
        network: As `RankPruning`.

    Raises:
        ValueError: As `RankPruning`; also if the budget bounds anything but milliseconds, if the
            table is of another model, or if no ranks meet the budget (`BudgetError`, before the
            first epoch).

    Source: BSR/LeSS thesis Eq. 2.2 and 2.3 for the ranks within a budget; the falling line is ours.

    Example:

    >>> from dprp_tf.costs.latency_row import LayerLatency
    >>> row = LayerLatency("a", "spatial", 9, 1.0, (1, 3), (0.2, 0.6), ("summed",) * 2)
    >>> table = LatencyTable((row,), 5.0, "local", "litert", "float32", 1, "ms", "some", "2.3")
    >>> BudgetPruning(Budget(milliseconds=4.5), latency=table, stop_epoch=8).budget.bounds
    {'milliseconds': 4.5}
    """

    def __init__(
        self,
        budget: Budget | Mapping[str, float],
        *,
        latency: LatencyTable,
        start_epoch: int = 0,
        stop_epoch: int | None = None,
        threshold: float | None = None,
        discarded_energy: float = 0.0,
        frequency: int = 1,
        layers: Iterable[str] | None = None,
        minimum_rank: int = 1,
        minimum_removed: int = 1,
        verbose: int = 0,
        network: DPRPModel | None = None,
    ) -> None:
        super().__init__(
            threshold,
            discarded_energy=discarded_energy,
            start_epoch=start_epoch,
            stop_epoch=stop_epoch,
            frequency=frequency,
            layers=layers,
            minimum_rank=minimum_rank,
            minimum_removed=minimum_removed,
            verbose=verbose,
            network=network,
        )
        if not isinstance(latency, LatencyTable):
            raise ValueError(
                "`latency` must be a LatencyTable: what deploy.measure_latency returns, or "
                f"LatencyTable.load(path). Received: {latency!r}"
            )
        if not isinstance(budget, (Budget, Mapping)):
            raise ValueError(
                "`budget` must be a Budget(milliseconds=...), or a mapping such as "
                f"{{'milliseconds': 30.0}}. Received: budget={budget!r}"
            )
        budget = Budget.of(budget)
        if (
            budget.milliseconds is None
            or len(budget.bounds) > 1
            or budget.accuracy_drop is not None
        ):
            raise ValueError(
                "`budget` must bound the time alone, which is all that a latency table knows. "
                f"Received: budget={budget}. Give Budget(milliseconds=...); for other bounds cut "
                "the trained model to the ranks that dprp_tf.select_ranks chooses."
            )
        if not budget.milliseconds < latency.dense:
            raise ValueError(
                f"`milliseconds` must lie between 0 and {latency.dense:.6g} {latency.unit}, what "
                f"the dense model takes on {latency.target}. Received: "
                f"milliseconds={budget.milliseconds}"
            )
        self.budget = budget
        self.latency = latency
        self._limit = float(budget.milliseconds)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        super().on_train_begin(logs)
        self._require_fitting_table()
        epochs = self.params.get("epochs")
        if epochs is not None and self.start_epoch >= epochs:
            raise ValueError(
                f"`start_epoch` must be below epochs={epochs} to reach a budget. "
                f"Received: start_epoch={self.start_epoch}"
            )
        least = self._predicted(dict.fromkeys(self.layers_by_key().values(), self.minimum_rank))
        if _exceeds(least, self._limit):
            raise BudgetError(self._limit, least, metric="milliseconds", unit=self.latency.unit)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        super().on_train_end(logs)
        reached = self._predicted({})
        if _exceeds(reached, self._limit):
            warnings.warn(
                f"the model takes {reached:.6g} of a budget of {self._limit:.6g} "
                f"{self.latency.unit}: training ended before it was reached. Train on, or give an "
                "earlier `stop_epoch`.",
                stacklevel=2,
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_epoch_begin(epoch, logs)
        self._end_pressure_within_budget()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_epoch_end(epoch, logs)
        self._end_pressure_within_budget()
        if logs is not None:
            logs[free_name("predicted_cost", logs)] = self._predicted({})

    def pending_ranks(self) -> dict[SVDLayer, int]:
        """Return the layers that would be cut now and the rank each would get.

        Returns:
            New ranks by layer, for the layers that would change: what the threshold leaves, lowered
            to what the model may take at this epoch's end, or outside `fit` in all.

        Raises:
            ValueError: If a layer's values are not finite.
        """
        pending, allowance = super().pending_ranks(), self._allowance()
        if not _exceeds(self._predicted(pending), allowance):
            return pending
        layers = self.layers_by_key()
        spectra = {}
        for name, layer in layers.items():
            ordered = np.sort(np.abs(layer.factors.s))[::-1]
            spectra[name] = ordered[: pending.get(layer, len(ordered))]
        rows = {name: self.latency.layer(name) for name in layers}
        spent = sum(rows[name].cost(int(layer.rank or 1)) for name, layer in layers.items())
        found = allocate_ranks(
            spectra,
            lambda name, rank: rows[name].cost(rank),
            allowance,
            fixed_cost=self._predicted({}) - spent,
            minimum_rank=self.minimum_rank,
        )
        return {
            layer: found.ranks[name]
            for name, layer in layers.items()
            if found.ranks[name] < int(layer.rank or 1)
        }

    def _require_fitting_table(self) -> None:
        ours = {
            key: (layer.decomposition, layer.full_rank)
            for key, layer in low_rank_keys(self.network).items()
        }
        theirs = {row.name: (row.decomposition, row.full_rank) for row in self.latency.layers}
        if ours != theirs:
            differing = sorted(
                name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)
            )
            raise ValueError(
                "`latency` must have been measured for this model: the same SVD layers, "
                "decomposition and full ranks. Received: a table that differs in "
                f"{differing}; make it anew with dprp_tf.deploy.measure_latency."
            )

    def _predicted(self, changes: Mapping[SVDLayer, int]) -> float:
        """The model's cost with some ranks changed."""
        ranks = {}
        for key, layer in low_rank_keys(self.network).items():
            rank = int(layer.rank or 1)
            ranks[key] = min(changes.get(layer, rank), rank)
        return self.latency.model_cost(ranks)

    def _allowance(self) -> float:
        """What the model may take after this epoch."""
        if self._epoch is None:
            return self._limit
        stop = self.stop_epoch or int(self.params.get("epochs") or self._epoch + 1)
        share = (self._epoch + 1 - self.start_epoch) / max(stop - self.start_epoch, 1)
        dense = self.latency.dense
        # Rounding must not lower the end of the line below the budget.
        return max(dense + min(1.0, share) * (self._limit - dense), self._limit)

    def _end_pressure_within_budget(self) -> None:
        if not _exceeds(self._predicted({}), self._limit):
            self.network.pressure = 0.0


def _exceeds(cost: float, limit: float) -> bool:
    return cost > limit * (1 + _ROUNDING)
