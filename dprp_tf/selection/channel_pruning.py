"""A controller: channels that go inside `fit` until the model costs no more than a budget."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import keras

from dprp_tf.channels import follow, groups_of
from dprp_tf.conversion.measured_channels import measured_channels
from dprp_tf.conversion.removing_in_place import require_removable
from dprp_tf.conversion.shape_history import ShapeHistory
from dprp_tf.costs.budget import Budget, BudgetError, metric_name
from dprp_tf.costs.width_table import WidthTable
from dprp_tf.files.arguments import check_choice, check_integer
from dprp_tf.files.shown import shown
from dprp_tf.keras_internals.graphs import walk_layers
from dprp_tf.keras_internals.optimizers import build_optimizers
from dprp_tf.layers import FactorizedLayer
from dprp_tf.selection.channel_choice import CHANNEL_METHODS, METHODS_BY_DATA, ChannelChoice
from dprp_tf.selection.chosen_widths import chosen_widths
from dprp_tf.selection.solving.width_costs import WidthCosts
from dprp_tf.training.guarded_callback import GuardedCallback
from dprp_tf.training.log_names import free_name
from dprp_tf.training.replicas import from_chief

__all__ = ["ChannelPruning"]

# Sums of the same costs in another order differ by this share.
_ROUNDING = 1e-9


class ChannelPruning(GuardedCallback):
    """Remove a plain model's channels step by step inside one `fit`, until it meets a budget.

    With b the budget as a share of the whole model's cost and n the epochs from `start_epoch` to
    `stop_epoch`, the model may cost 1 + (k / n) (b - 1) of the whole one at the end of the k-th of
    them; of several bounds each falls by its own line. What goes is chosen anew each time, for the
    weights of that moment, as `select_channels` chooses it, and is removed before the epoch's
    validation. The model, its layers and its variables stay the objects that they are: the
    variables, the optimizer's slots, the layers' settings and the compiled functions really become
    smaller, and the model is saved, exported and converted as any other. A removal costs a retrace,
    and with `method="activation"` a run of the data and the sums over it that `select_channels`
    takes.

    The logs get `parameters` (trainable weights) and, with a table, `predicted_cost` in its unit.
    Weights that callbacks such as `EarlyStopping(restore_best_weights=True)` and
    `BackupAndRestore` kept of an epoch come back with the channels of that epoch; the slots of
    weights that `EarlyStopping` brings back in another shape begin anew. With `Distillation`, its
    `features` must be of layers whose channels stay. A model of low-rank layers has `RankPruning`.

    Args:
        budget: A `Budget` of parameters, MACs, activations or time, its bounds by name, or a share
            of the parameters alone.
        method: How channels are chosen, as `select_channels` takes it. Default `"activation"`,
            which needs `data`; `"outputs"` does too, and takes longer each time.
        data: Calibration inputs, a few hundred, as the model takes them, or `(x, y)`. Default:
            none.
        groups: Names of the groups that may lose channels; see `channel_groups`. Default: all.
        multiple: Multiples in which places of a group stay; groups of no more stay whole. 1 or
            more. Default 8, which int8 kernels are made for.
        latency: A width table of the model, as `deploy.measure_widths` makes it, for budgets of
            time. Default: none.
        start_epoch: First epoch, counted from 0, at whose end channels may go; below the epochs of
            `fit`. Default 0.
        stop_epoch: First epoch in which channels no longer go, when the budget is met, so that the
            rest of the training recovers what that cost; above `start_epoch`. Default: the budget
            is met at the end of the last epoch of `fit`.
        frequency: Epochs between removals, 1 or more. Default 1.
        refit: Whether, with a method that looks at `data`, what is left is fitted on it to give
            what the model gave before, as `cut` does. Default True.
        seed: Seed of chance. Default 0.
        verbose: 1 to print a line per removal. Default 0.

    Attributes:
        shrinks: One entry per removal: its `epoch`, what was `removed` (filters by layer, in their
            numbers before it), and the `cost` left by metric.

    Raises:
        ValueError: At construction if an argument is out of range; when a training begins, before
            its first step, if the model has no graph, holds low-rank layers or has no channels that
            may go, if `data`, `groups` or the table do not fit it, or if no widths meet the
            budget (`BudgetError`).
        DivergenceError: In training, if the loss, a weight or the optimizer is no longer finite.

    Source: Li et al. 2017 (prune and retrain in turns); the falling line and the rest are ours.

    Example:

    >>> import numpy as np
    >>> inputs = keras.Input((8, 8, 3))
    >>> x = keras.layers.Conv2D(32, 3, name="a")(inputs)
    >>> x = keras.layers.GlobalAveragePooling2D()(x)
    >>> model = keras.Model(inputs, keras.layers.Dense(4)(x))
    >>> model.compile("sgd", "mse")
    >>> pruning = ChannelPruning(0.6, method="l1", stop_epoch=2)
    >>> history = model.fit(np.ones((8, 8, 8, 3)), np.ones((8, 4)), epochs=3, verbose=0,
    ...                     callbacks=[pruning])
    >>> history.history["parameters"], model.get_layer("a").filters
    ([772, 516, 516], 16)
    """

    def __init__(
        self,
        budget: Budget | float | Mapping[str, float],
        *,
        method: str = "activation",
        data: Any = None,
        groups: Iterable[str] | None = None,
        multiple: int = 8,
        latency: WidthTable | None = None,
        start_epoch: int = 0,
        stop_epoch: int | None = None,
        frequency: int = 1,
        refit: bool = True,
        seed: int = 0,
        verbose: int = 0,
    ) -> None:
        super().__init__()
        self.budget = Budget.of(budget)
        check_choice("method", method, CHANNEL_METHODS)
        self.method = method
        if method in METHODS_BY_DATA and data is None:
            raise ValueError(
                f"`data` must be given for method={method!r}: (x, y) or x alone, a few hundred "
                "samples. Received: data=None. method='l1' needs none."
            )
        if latency is not None and not isinstance(latency, WidthTable):
            raise ValueError(
                "`latency` must be a WidthTable: what deploy.measure_widths returns, or "
                f"WidthTable.load(path). Received: {latency!r}"
            )
        self.data = data
        self.groups = None if groups is None else _names(groups)
        self.multiple = check_integer("multiple", multiple)
        self.latency = latency
        self.start_epoch = check_integer("start_epoch", start_epoch, 0)
        if stop_epoch is not None and not stop_epoch > start_epoch:
            raise ValueError(
                f"`stop_epoch` must be above start_epoch={start_epoch}, or None. "
                f"Received: stop_epoch={stop_epoch}"
            )
        self.stop_epoch = stop_epoch
        self.frequency = check_integer("frequency", frequency)
        self.refit = bool(refit)
        self.seed = check_integer("seed", seed, 0)
        self.verbose = verbose
        self.shrinks: list[dict[str, Any]] = []
        self._history: ShapeHistory | None = None
        self._samples: tuple[Any, Any] | None = None
        self._whole: dict[str, float] = {}
        self._bounds: dict[str, float] = {}
        self._able: frozenset[str] = frozenset()
        self._epoch: int | None = None
        self._done = False

    def get_config(self) -> dict[str, Any]:
        """Return every argument of the constructor; budget and table as JSON has them."""
        return {
            "budget": self.budget.as_dict(),
            "method": self.method,
            "data": self.data,
            "groups": None if self.groups is None else list(self.groups),
            "multiple": self.multiple,
            "latency": None if self.latency is None else self.latency.as_dict(),
            "start_epoch": self.start_epoch,
            "stop_epoch": self.stop_epoch,
            "frequency": self.frequency,
            "refit": self.refit,
            "seed": self.seed,
            "verbose": self.verbose,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ChannelPruning:
        """Return the callback that `get_config` described.

        Args:
            config: What `get_config` returned, perhaps by way of JSON.

        Returns:
            The callback, in no training.
        """
        latency = config.get("latency")
        table = None if latency is None else WidthTable.from_dict(latency)
        return cls(**{**config, "latency": table})

    @property
    def removed(self) -> list[dict[str, list[int]]]:
        """What has gone out of the model since the training began with the whole one.

        Step by step, each in the numbers of filters before that step: removing them one after the
        other with `remove_channels` gives networks of the same shapes.
        """
        return [] if self._history is None else list(self._history.removed)

    def set_model(self, model: keras.Model) -> None:
        """Take the model that trains, as Keras calls it before a training; refuse what won't do."""
        super().set_model(model)
        # Here and not when the training begins: another callback may restore weights then.
        self._require_plain(model)
        self._samples = None
        choice = self._choice(model, self.groups, self.latency).without_data()
        # Once: a stream may give its samples a single time.
        self._samples = choice.samples
        if choice.calibration is not None:
            _require_inputs(model, choice.calibration)
        self._bounds = choice.shares_allowed(self.budget)
        try:
            choice.widths(self._bounds)
        except BudgetError as error:
            raise choice.in_units(error, self.budget) from None
        self._whole = dict(choice.dense)
        allowed = groups_of(model, follow(model)).able(self.groups)
        self._able = frozenset(layer for group in allowed for layer in group.layers)
        self._history = ShapeHistory(model)
        self._history.attach()

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        super().on_train_begin(logs)
        self.shrinks = []
        self._epoch, self._done = None, False
        epochs = self.params.get("epochs")
        if epochs is not None and self.start_epoch >= epochs:
            raise ValueError(
                f"`start_epoch` must be below epochs={epochs} to reach a budget. "
                f"Received: start_epoch={self.start_epoch}"
            )
        if self._history is None or not self._history.attached:
            raise ValueError(
                "`callbacks` must hold one `ChannelPruning` at most. Received: several; give one "
                "the bounds of all, such as {'macs': 0.5, 'parameters': 0.4}."
            )
        names = self._names()
        if names:
            # What an optimizer or a layer can't follow is known before the first step.
            build_optimizers(self.model)
            trial = self._choice(self.model, names, None).without_data()
            require_removable(self.model, trial.plan(trial.least, {}).removed)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        cost = self._present()
        over = [name for name in self._bounds if self._exceeds(cost, name, self._bounds[name])]
        for name in over:
            told = metric_name(name, "ms" if self.latency is None else self.latency.unit)
            warnings.warn(
                f"the model has {cost[name] / self._whole[name]:.4g} of the whole model's {told}, "
                f"above its budget of {self._bounds[name]:.4g}: training ended before it was "
                "reached. Train on, or give an earlier `stop_epoch`.",
                stacklevel=2,
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_epoch_begin(epoch, logs)
        self._epoch, self._done = epoch, False

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        super().on_test_begin(logs)
        # fit() validates after an epoch's last step: removing first lets the validation figures
        # be those of the model that goes on.
        if self._epoch is not None:
            self._prune_once()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_epoch_end(epoch, logs)
        self._prune_once()
        self._epoch = None
        if logs is not None:
            weights = self.model.trainable_weights
            logs[free_name("parameters", logs)] = sum(math.prod(w.shape) for w in weights)
            if self.latency is not None:
                logs[free_name("predicted_cost", logs)] = self._present()["milliseconds"]

    def pending_channels(self) -> dict[str, list[int]]:
        """Return the filters that would be removed now.

        Returns:
            Filters by layer, as `remove_channels` takes them: what the model has above what it may
            cost at this epoch's end, or outside `fit` in all. Empty if it has nothing above that.
        """
        return self._pending()[0]

    def _pending(self) -> tuple[dict[str, list[int]], dict[str, Any]]:
        """What would be removed now, and what is known of the readers' inputs."""
        cost, allowed = self._present(), self._allowed()
        if not any(self._exceeds(cost, name, share) for name, share in allowed.items()):
            return {}, {}
        names = self._names()
        if not names:
            return {}, {}
        choice = self._choice(self.model, names, self._table(cost))
        shares = {
            name: min(1.0, share * self._whole[name] / cost[name])
            for name, share in allowed.items()
        }
        try:
            widths = chosen_widths(self.model, choice, shares)
        except BudgetError:
            # What went before was chosen for other weights; what is left can't reach it.
            widths = choice.least
        removed = choice.plan(widths, {}).removed
        return {name: sorted(at) for name, at in removed.items()}, choice.moments

    def _choice(
        self,
        model: keras.Model,
        groups: Iterable[str] | None,
        latency: WidthTable | None,
    ) -> ChannelChoice:
        return ChannelChoice(
            model,
            method=self.method,
            data=self.data if self._samples is None else self._samples,
            groups=groups,
            multiple=self.multiple,
            latency=latency,
            progress=None,
            seed=self.seed,
        )

    def _names(self) -> list[str]:
        """The groups of the model as it is now that may lose channels."""
        return [
            group.name
            for group in groups_of(self.model, follow(self.model)).values()
            if group.prunable and self._able.intersection(group.layers)
        ]

    def _require_plain(self, model: keras.Model) -> None:
        factorized = [la.name for la in walk_layers(model) if isinstance(la, FactorizedLayer)]
        if factorized:
            raise ValueError(
                "`ChannelPruning` works on a model of plain layers. Received: low-rank layers "
                f"{factorized}; remove channels before dprp_tf.factorize(model), or lower their "
                "ranks with RankPruning."
            )

    def _table(self, cost: Mapping[str, float]) -> WidthTable | None:
        """The table of the model as it is now."""
        if self.latency is None:
            return None
        whole = self._whole.get("activations")
        maps = 1.0 if whole is None else cost["activations"] / whole
        return self.latency.narrowed(measured_channels(self.model, self.latency), maps=maps)

    def _present(self) -> dict[str, float]:
        """What the model costs now, by metric."""
        cost = WidthCosts(self.model, follow(self.model), []).dense
        table = self._table(cost)
        return cost if table is None else {**cost, "milliseconds": table.dense}

    def _exceeds(self, cost: Mapping[str, float], name: str, share: float) -> bool:
        return cost[name] > share * self._whole[name] * (1 + _ROUNDING)

    def _allowed(self) -> dict[str, float]:
        """What the model may cost after this epoch, as shares of the whole one's."""
        if self._epoch is None:
            return dict(self._bounds)
        stop = self.stop_epoch or int(self.params.get("epochs") or self._epoch + 1)
        share = (self._epoch + 1 - self.start_epoch) / max(stop - self.start_epoch, 1)
        # Rounding must not lower the end of the line below the budget.
        return {
            name: max(1.0 + min(1.0, share) * (bound - 1.0), bound)
            for name, bound in self._bounds.items()
        }

    def _prune_once(self) -> None:
        if self._done or self._epoch is None or self._history is None:
            return
        self._done = True
        epoch = self._epoch
        last = epoch + 1 in (self.params.get("epochs"), self.stop_epoch)
        due = (epoch - self.start_epoch) % self.frequency == 0
        stopped = self.stop_epoch is not None and epoch >= self.stop_epoch
        if epoch < self.start_epoch or stopped or not (due or last):
            return
        pending, moments = self._pending()
        removed = from_chief(self.model, pending)
        if not removed:
            return
        fitted = self.refit and self.method in METHODS_BY_DATA
        calibration = self._samples[0] if fitted and self._samples is not None else None
        self._history.remove(removed, calibration_data=calibration, moments=moments)
        self.shrinks.append({"epoch": epoch, "removed": removed, "cost": self._present()})
        if self.verbose:
            gone = ", ".join(f"{shown(name)} -{len(filters)}" for name, filters in removed.items())
            print(f"\nepoch {epoch + 1}: removed channels ({gone})")


def _require_inputs(model: keras.Model, x: Any) -> None:
    """Refuse calibration inputs of other shapes than the model's."""
    if isinstance(x, Mapping):
        return  # by name, which the model itself looks up
    taken = [tuple(tensor.shape) for tensor in model.inputs]
    given = [tuple(array.shape) for array in keras.tree.flatten(x)]
    fits = len(taken) == len(given) and all(
        len(one) == len(other)
        and all(a is None or a == b for a, b in zip(one[1:], other[1:], strict=True))
        for one, other in zip(taken, given, strict=True)
    )
    if not fits:
        raise ValueError(
            f"`data` must hold inputs as the model takes them, of shapes {taken}. Received: {given}"
        )


def _names(groups: Iterable[str]) -> tuple[str, ...]:
    return (groups,) if isinstance(groups, str) else tuple(groups)
