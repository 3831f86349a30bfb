"""A table of a model's layers: rank, full rank, what they cost, and what was left dense and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import keras

from dprp_tf.costs.models import ModelCost, model_cost
from dprp_tf.files.shown import shown
from dprp_tf.files.tables import Tabular, lay_out
from dprp_tf.keras_internals.graphs import layer_keys
from dprp_tf.layers import FactorizedLayer, plain_ranks
from dprp_tf.layers.factorizable import holds_matrix, skip_reason

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Summary", "SummaryRow", "summarize"]


@dataclass(frozen=True)
class SummaryRow:
    """One layer that holds a kernel, or another weight of two axes or more.

    Attributes:
        name: The layer's name; its path, such as "backbone/conv", where nested models have layers
            of the same name.
        type: Its class.
        decomposition: How its kernel is unfolded, `"tucker"` for a Tucker layer; None for a layer
            with its kernel as it is.
        rank: Singular values kept, of a Tucker layer the pair of ranks; None likewise.
        full_rank: Largest rank it could have, or pair of ranks; None likewise.
        parameters: Its weights now, bias included.
        dense_parameters: The weights of its dense layer.
        macs: Multiply-accumulates for one sample, rebuilding the kernel included; None where
            they are not known, see `model_cost`.
        dense_macs: Those of its dense layer.
        skipped: Why it is not factorized: what it is, or "kept dense" beside layers that are.
            None for an SVD or Tucker layer, and in a dense model for a layer that can be one.
    """

    name: str
    type: str
    decomposition: str | None
    rank: int | tuple[int, ...] | None
    full_rank: int | tuple[int, ...] | None
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
        """The layers that hold their kernel as it is, for a reason."""
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
        rows = (
            (
                row.name,
                row.type,
                "" if row.rank is None else f"{_text(row.rank)} of {_text(row.full_rank)}",
                f"{row.parameters:,}",
                f"{row.dense_parameters:,}",
                row.skipped or row.decomposition or "can be factorized",
            )
            for row in self.rows
        )
        return lay_out(
            {
                "layer": "left",
                "type": "left",
                "rank": "left",
                "parameters": "right",
                "dense": "right",
                "note": "left",
            },
            rows,
            caption=f"{cost.parameters:,} trainable parameters, dense {cost.dense_parameters:,} "
            f"({cost.compression:+.2%} compression)\n{_macs_text(cost)}",
        )


def summarize(model: keras.Model, *, input_shape: Any = None) -> Summary:
    """List a model's layers that hold kernels, with ranks and costs, and why some stay dense.

    Of a dense model it says which layers can be factorized, and why the others can't.

    Args:
        model: A built Functional or Sequential model, factorized or not.
        input_shape: Sizes of one sample, without the batch axis, at which MACs are counted if the
            model declares open ones: (224, 224, 3); for several inputs a list of shapes, or a
            dict by input name. Default: the sizes that the model declares.

    Returns:
        A `Summary`; `print` draws it as a table.

    Raises:
        ValueError: If the model's graph is not known, or `input_shape` does not fit its inputs.

    Example:

    >>> import dprp_tf as dprp
    >>> inputs = keras.Input((8, 8, 3))
    >>> x = keras.layers.DepthwiseConv2D(3, name="shift")(inputs)
    >>> model = keras.Model(inputs, keras.layers.Conv2D(4, 3, name="mix")(x))
    >>> [(row.name, row.rank) for row in summarize(dprp.factorize(model)).rows]
    [('shift', None), ('mix', 9)]
    """
    cost = model_cost(model, input_shape=input_shape)
    by_name = {row.name: row for row in cost.layers}
    layers = layer_keys(model)
    # In a dense model nothing was chosen to be kept so.
    factorized = any(isinstance(layer, FactorizedLayer) for layer in layers.values())
    otherwise = "kept dense" if factorized else None
    rows = []
    for key, layer in layers.items():
        if not isinstance(layer, FactorizedLayer) and not holds_matrix(layer):
            continue
        low_rank = layer if isinstance(layer, FactorizedLayer) else None
        found = by_name[key]
        rows.append(
            SummaryRow(
                key,
                type(layer).__name__,
                low_rank.decomposition if low_rank else None,
                plain_ranks(low_rank.ranks) if low_rank else None,
                plain_ranks(low_rank.full_ranks) if low_rank else None,
                found.parameters,
                found.dense_parameters,
                found.macs,
                found.dense_macs,
                None if low_rank else skip_reason(layer) or otherwise,
            )
        )
    return Summary(tuple(rows), cost)


def _macs_text(cost: ModelCost) -> str:
    if cost.macs is not None:
        return f"{cost.macs:,} MACs for one sample"
    unknown = [row.name for row in cost.layers if row.macs is None]
    more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
    return f"MACs not known: those of {', '.join(map(shown, unknown[:3]))}{more} can't be counted"


def _text(rank: int | tuple[int, ...] | None) -> str:
    return ", ".join(map(str, rank)) if isinstance(rank, tuple) else str(rank)
