"""Widths and ranks chosen by what the model's outputs really lose, for any budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from dprp_tf.channels import place_labels
from dprp_tf.conversion.calibration import has_moments, input_moments
from dprp_tf.costs.accuracy import top_1_accuracy
from dprp_tf.costs.budget import BudgetError
from dprp_tf.costs.compiled_loss import compiled_loss, is_categorical
from dprp_tf.costs.scores import resolve_score
from dprp_tf.decomposition import OutputTruncation
from dprp_tf.keras_internals.graphs import layer_keys
from dprp_tf.keras_internals.output_activations import output_activation
from dprp_tf.layers.kernels import kernel_of
from dprp_tf.layers.layer_decomposition import layer_decomposition
from dprp_tf.selection.channel_choice import ChannelChoice
from dprp_tf.selection.scoring.cut_kernels import CutKernel
from dprp_tf.selection.scoring.kernel_swaps import KernelSwaps
from dprp_tf.selection.scoring.output_change import OutputChange
from dprp_tf.selection.solving.cut_levels import Levels, descend, exchange, penalty
from dprp_tf.selection.solving.joint_costs import JointCosts

__all__ = ["MeasuredCuts", "gives_classes"]

_Side = dict[str, list[NDArray[np.intp]]]

# How the names of the parts begin that may be cut.
_PARTS = {"both": "", "channels": "group", "ranks": "layer"}

# So that of cuts that change no output the one goes first that changes least inside.
_INSIDE = 1e-3


class MeasuredCuts:
    """Chooses how far groups are narrowed and layers cut, measuring the outputs of candidates.

    A candidate is the whole model with kernels that compute what the smaller one would (see
    `CutKernel`), so that hundreds of them are tried. First each cut is measured alone; `descend` by
    those changes, and by what is lost inside, gives starts, of channels alone and ranks alone too;
    the best of them is improved by `exchange`.

    Args:
        model: The whole model.
        choice: Its channels, ordered by what readers lose.
        costs: What it costs by widths and ranks.
        classes: Whether the outputs are scores of classes.
        told: Called with the share done and a text.

    Source: ours; NetAdapt (Yang et al. 2018) measures candidates of one layer at a time likewise.

    Example:

    >>> MeasuredCuts.__name__
    'MeasuredCuts'
    """

    def __init__(
        self,
        model: keras.Model,
        choice: ChannelChoice,
        costs: JointCosts,
        *,
        classes: bool,
        told: Callable[[float | None, str], None],
    ) -> None:
        assert choice.samples is not None
        self._costs, self._told = costs, told
        # Without ranks none is used.
        decomposition = costs.decomposition or "channel"
        self._x, self._multiple = choice.samples[0], choice.multiple
        groups = {group.name: group for group in choice.groups}
        self._sizes = {name: group.size for name, group in groups.items()}
        # Levels of a part, as widths of a group or ranks of a layer.
        self._widths = {name: group.widths(choice.multiple) for name, group in groups.items()}
        self._ranks = {name: [None, *costs.ranks[name]] for name in costs.ranks}
        keys = layer_keys(model)
        readers = {name for group in groups.values() for name in group.readers}
        names = [
            name for name in keys if name in {*readers, *self._ranks} and has_moments(keys[name])
        ]
        self._ranks = {name: row for name, row in self._ranks.items() if name in names}
        told(None, "running the data")
        # Those of readers are known from the orders.
        missing = [name for name in names if name not in choice.moments]
        moments = {**choice.moments}
        if missing:
            moments |= input_moments(model, missing, self._x)
        self._kernels = {
            name: CutKernel(
                keys[name],
                moments[name],
                _sides(choice, keys, groups.values(), name),
                decomposition,
            )
            for name in names
        }
        # Inside: what is lost of the outputs of what is cut.
        self._inside = {
            **{
                _of_group(name): [
                    penalty(float(choice.order(name)[1][self._sizes[name] - width]))
                    for width in row
                ]
                for name, row in self._widths.items()
            },
            **{
                _of_layer(name): _losses(keys[name], decomposition, moments[name], row)
                for name, row in self._ranks.items()
            },
        }
        self._counts = {part: len(row) for part, row in self._inside.items()}
        # A group is only seen where something that reads it has a kernel to swap.
        self._unseen = [
            _of_group(name)
            for name, group in groups.items()
            if not set(group.readers) <= set(self._kernels)
        ]
        self._weight = 0.0
        self._swaps = KernelSwaps(
            model,
            {name: keys[name] for name in names},
            lambda name, at: self._kernels[name].at(at[0], at[2], at[1]),
            self._x,
        )
        (whole,) = self._swaps.predictions([{}])
        self._change = OutputChange(whole, classes=classes)
        self._known: dict[tuple[int, ...], float] = {}

    def choose(
        self, shares: Mapping[str, float], cut: str = "both"
    ) -> tuple[dict[str, int], dict[str, int]]:
        """Return the widths and ranks found for some bounds.

        What each cut changes by itself is measured the first time, and known after that.

        Args:
            shares: The largest shares of the whole model's costs, by metric.
            cut: `"both"`, or `"channels"` or `"ranks"` alone. Default `"both"`.

        Returns:
            Widths by group and ranks by layer, those of layers that are cut.

        Raises:
            BudgetError: If no widths and ranks meet the bounds; in shares.
        """

        def cost(levels: Levels) -> Mapping[str, float]:
            return self._costs.shares(*self._meant(levels))

        prefix = _PARTS[cut]
        # What must not be cut has one level, whole.
        counts = {
            part: count if part.startswith(prefix) else 1 for part, count in self._counts.items()
        }
        starts = []
        for penalties in (self._alone, self._inside):
            for kept in dict.fromkeys((prefix, *(_PARTS.values() if cut == "both" else ()))):
                chosen = {part: row for part, row in penalties.items() if part.startswith(kept)}
                found = descend(chosen, cost, shares) if chosen else None
                if found is not None:
                    starts.append({**dict.fromkeys(self._counts, 0), **found})
        if not starts:
            least = cost({part: count - 1 for part, count in counts.items()})
            metric = max(shares, key=lambda name: least[name] / shares[name])
            raise BudgetError(
                shares[metric],
                least[metric],
                metric=metric,
                smallest=f"at the least {self._least(cut)}",
                remedy="Raise it, or let more layers be cut. Channels stay in multiples of "
                f"{self._multiple}.",
            )
        whole = dict.fromkeys(self._counts, 0)
        changes = self._changes(starts, whole)
        best = exchange(
            starts[int(np.argmin(changes))],
            counts,
            cost,
            shares,
            self._changes,
            told=lambda done, value: self._told(
                0.5 + done / 16, f"exchanging cuts, outputs changed by {value:.3g}"
            ),
        )
        widths, ranks = self._meant(best)
        channels = self._costs.channels(widths)
        paying = {
            name: rank
            for name, rank in ranks.items()
            if self._costs.pays(name, rank, channels.get(name), shares)
        }
        return widths, paying

    def _least(self, cut: str) -> str:
        """What is least where all is cut as far as can be, in words."""
        found = {"widths": cut != "ranks", "ranks": bool(self._ranks) and cut != "channels"}
        return " and ".join(name for name, cuts in found.items() if cuts)

    @cached_property
    def _alone(self) -> dict[str, list[float]]:
        """By part what each of its levels changes by itself, never less than the one before."""
        whole = dict.fromkeys(self._counts, 0)
        found: dict[str, list[float]] = {}
        for at, (part, count) in enumerate(self._counts.items()):
            self._told(0.5 * at / len(self._counts), f"measuring cuts of {part.split(' ', 1)[1]}")
            rows = [{**whole, part: level} for level in range(1, count)]
            found[part] = [0.0, *self._changes(rows, whole)]
        seen = [
            (found[part][-1], self._inside[part][-1]) for part in found if part not in self._unseen
        ]
        inside = sum(lost for _, lost in seen)
        self._weight = sum(value for value, _ in seen) / inside if inside else 1.0
        self._known.clear()
        return {
            part: np.maximum.accumulate(
                np.add(
                    np.multiply(self._weight, self._inside[part]) if part in self._unseen else row,
                    np.multiply(_INSIDE, self._inside[part]),
                )
            ).tolist()
            for part, row in found.items()
        }

    def _changes(self, rows: Sequence[Levels], near: Levels) -> list[float]:
        """What the outputs change at some levels that differ little from others."""
        keys = [tuple(row.values()) for row in rows]
        missing = [row for key, row in zip(keys, rows, strict=True) if key not in self._known]
        outputs = self._swaps.predictions(map(self._choices, missing), self._choices(near))
        for row, found in zip(missing, outputs, strict=True):
            unseen = sum(self._inside[part][row[part]] for part in self._unseen)
            self._known[tuple(row.values())] = self._change(found) + self._weight * unseen
        return [self._known[key] for key in keys]

    def _choices(self, levels: Levels) -> dict[str, Any]:
        widths, ranks = self._meant(levels)
        gone = {name: self._sizes[name] - width for name, width in widths.items()}
        return {
            name: kernel.choice(gone, ranks.get(name)) for name, kernel in self._kernels.items()
        }

    def _meant(self, levels: Levels) -> tuple[dict[str, int], dict[str, int]]:
        """Widths by group and ranks by layer at some levels."""
        widths = {name: row[levels.get(_of_group(name), 0)] for name, row in self._widths.items()}
        ranks = {name: row[levels.get(_of_layer(name), 0)] for name, row in self._ranks.items()}
        return widths, {name: rank for name, rank in ranks.items() if rank is not None}


def gives_classes(model: keras.Model, y: Any = None) -> bool:
    """Say whether a model's outputs are scores of classes.

    Args:
        model: The model.
        y: Labels; None if there are none.

    Returns:
        Whether it was compiled with a categorical loss; if it was not compiled, whether the labels
        are classes, or without labels whether it ends in a softmax.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, activation="softmax")])
    >>> gives_classes(model)
    True
    """
    loss = compiled_loss(model)
    if loss is not None:
        return is_categorical(loss)
    outputs = keras.tree.flatten(model.outputs)
    if y is not None and len(outputs) == 1:
        return resolve_score(None, model, y) is top_1_accuracy
    return all(output_activation(output) == "softmax" for output in outputs)


def _of_group(name: str) -> str:
    return f"group {name}"


def _of_layer(name: str) -> str:
    return f"layer {name}"


def _losses(
    layer: Any, decomposition: str, moments: NDArray[np.float64], ranks: Sequence[int | None]
) -> list[float]:
    kernel = kernel_of(layer).array
    truncation = OutputTruncation(kernel, layer_decomposition(layer, decomposition), moments)
    return [0.0 if rank is None else penalty(truncation.lost((rank,))) for rank in ranks]


def _sides(
    choice: ChannelChoice, keys: Mapping[str, Any], groups: Any, name: str
) -> tuple[_Side, _Side]:
    """By group the channels that a layer reads, and those it makes, in the order of their going."""
    record = choice.followed.layers[id(keys[name])]
    found: list[_Side] = []
    for side in (record.reads, record.makes):
        labels = choice.followed.labels.find(side)
        into: _Side = {}
        for group in groups:
            places = place_labels(choice.followed, keys, group)[list(choice.order(group.name)[0])]
            channels = [np.flatnonzero(labels == label) for label in places]
            if any(len(some) for some in channels):
                into[group.name] = channels
        found.append(into)
    return found[0], found[1]
