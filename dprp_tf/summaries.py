"""A table of a model's layers: rank, full rank, what they cost, and what was left dense and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import keras
from rich.table import Table

from dprp_tf.costs import ModelCost, model_cost
from dprp_tf.factorizing import holds_matrix, skip_reason
from dprp_tf.graphs import layer_keys
from dprp_tf.layers import SVDLayer
from dprp_tf.tables import Tabular

__all__ = ["Summary", "SummaryRow", "summary"]


@dataclass(frozen=True)
class SummaryRow:
    """One layer that holds a kernel, or another weight of two axes or more.

    Attributes:
        name: The layer's name; its path, such as "backbone/conv", where nested models have layers
            of the same name.
        type: Its class.
        matricization: How its kernel is unfolded; None for a layer with its kernel as it is.
        rank: Singular values kept; None likewise.
        full_rank: Largest rank it could have; None likewise.
        parameters: Its weights now, bias included.
        dense_parameters: The weights of its dense layer.
        macs: Multiply-accumulates for one sample, rebuilding the kernel included.
        dense_macs: Those of its dense layer.
        skipped: Why it is not factorized; None for an SVD layer.
    """

    name: str
    type: str
    matricization: str | None
    rank: int | None
    full_rank: int | None
    parameters: int
    dense_parameters: int
    macs: int | None
    dense_macs: int | None
    skipped: str | None


@dataclass(frozen=True)
class Summary(Tabular):
    """What `summary` returns: rows and totals; printing it draws a table.

    Attributes:
        rows: One per layer with a kernel, in model order.
        cost: The model's totals.
    """

    rows: tuple[SummaryRow, ...]
    cost: ModelCost

    @property
    def skipped(self) -> tuple[SummaryRow, ...]:
        """The layers that hold their kernel as it is."""
        return tuple(row for row in self.rows if row.skipped is not None)

    def as_dict(self) -> dict[str, Any]:
        """Return rows and totals as plain values."""
        return {
            "layers": [asdict(row) for row in self.rows],
            "parameters": self.cost.parameters,
            "dense_parameters": self.cost.dense_parameters,
            "compression": self.cost.compression,
            "macs": self.cost.macs,
            "dense_macs": self.cost.dense_macs,
        }

    def table(self) -> Table:
        """Return the rows as a table for `rich`."""
        cost = self.cost
        table = Table(
            caption=f"{cost.parameters:,} trainable parameters, dense {cost.dense_parameters:,} "
            f"({cost.compression:+.2%} compression)",
            caption_justify="left",
        )
        for name in ("layer", "type", "rank", "parameters", "dense", "note"):
            table.add_column(name, justify="right" if name in ("parameters", "dense") else "left")
        for row in self.rows:
            table.add_row(
                row.name,
                row.type,
                "" if row.rank is None else f"{row.rank} of {row.full_rank}",
                f"{row.parameters:,}",
                f"{row.dense_parameters:,}",
                row.skipped or row.matricization or "",
            )
        return table


def summary(model: keras.Model) -> Summary:
    """List a model's layers that hold kernels, with ranks and costs, and why some stay dense.

    Args:
        model: A built Functional or Sequential model, factorized or not.

    Returns:
        A `Summary`; `print` draws it as a table.

    Raises:
        ValueError: If the model's graph is not known.

    Example:

    >>> import dprp_tf as dprp
    >>> inputs = keras.Input((8, 8, 3))
    >>> x = keras.layers.DepthwiseConv2D(3, name="shift")(inputs)
    >>> model = keras.Model(inputs, keras.layers.Conv2D(4, 3, name="mix")(x))
    >>> [(row.name, row.rank) for row in summary(dprp.factorize(model)).rows]
    [('shift', None), ('mix', 9)]
    """
    cost = model_cost(model)
    by_name = {row.name: row for row in cost.layers}
    rows = []
    for key, layer in layer_keys(model).items():
        low_rank = isinstance(layer, SVDLayer)
        if not low_rank and not holds_matrix(layer):
            continue
        found = by_name[key]
        rows.append(
            SummaryRow(
                key,
                type(layer).__name__,
                layer.matricization if low_rank else None,
                layer.rank if low_rank else None,
                layer.full_rank if low_rank else None,
                found.parameters,
                found.dense_parameters,
                found.macs,
                found.dense_macs,
                None if low_rank else skip_reason(layer) or "kept dense",
            )
        )
    return Summary(tuple(rows), cost)
