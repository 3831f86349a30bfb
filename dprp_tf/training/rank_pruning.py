"""The paper's rule: ranks that fall inside `fit` where singular values drop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from dprp_tf import decomposition
from dprp_tf.files.arguments import check_integer, check_number
from dprp_tf.files.shown import shown
from dprp_tf.keras_internals.compiled import sync
from dprp_tf.layers import SVDLayer, low_rank_keys
from dprp_tf.training.divergence import diagnose
from dprp_tf.training.guarded_callback import GuardedCallback
from dprp_tf.training.held_networks import trained_network
from dprp_tf.training.inner_training import InnerTraining
from dprp_tf.training.model import DPRPModel
from dprp_tf.training.replicas import from_chief
from dprp_tf.training.resizing import resize
from dprp_tf.training.step_retraction import retract_now

__all__ = ["RankPruning"]


class RankPruning(GuardedCallback):
    """Cut the ranks of a `DPRPModel` to what the threshold leaves, at the end of epochs.

    In the `fit` of a model that holds the `DPRPModel`, as a distiller holds its student, it also
    trains that network with its losses and retraction, as `InnerTraining` does.

    At the end of an epoch, before its validation, each layer's values are put in order and cut
    at the first relative drop below the threshold. The variables, the optimizer's slots and the
    compiled functions really become smaller; when nothing is to be cut, nothing is touched and
    nothing is traced anew. A shrink costs a retrace, so small ones can be made to wait.

    Args:
        threshold: Pruning threshold epsilon, in (0, 1). Default: the model's own.
        discarded_energy: Share of a layer's sum of s^2 that may be cut besides, in [0, 1). The
            spectra of wide (`channel`, `separable`) matrices fade without a drop, and only this
            cuts them. Default 0: the paper's rule alone.
        start_epoch: First epoch, counted from 0, at whose end ranks may fall. Default 0.
        stop_epoch: First epoch in which ranks no longer fall and the model's `pressure` is 0, so
            that the rest of the training recovers what the cuts cost; above `start_epoch`. The
            next `fit` presses anew. Default: never.
        frequency: Epochs between prunings, 1 or more. Default 1.
        layers: Names of the layers to prune. Default: every SVD layer that trains.
        minimum_rank: Rank no layer falls below, 1 or more. Default 1.
        minimum_removed: Singular values, over all layers, that must be pending before a
            shrink is made; the last epoch of a run cuts whatever is pending. Default 1.
        verbose: 1 to print a line per shrink. Default 0.
        network: The `DPRPModel` to prune, where the model in training holds several that train.
            Default: that model itself, or the only one it holds.

    Raises:
        ValueError: At construction if an argument is out of range; in training if the model is
            not a `DPRPModel` and holds none, or a layer name is unknown.
        DivergenceError: In training, if the loss, a weight or the optimizer is no longer finite.

    Source: DPRP (arXiv 2401.08014) III-D.

    Example:

    >>> RankPruning(start_epoch=2, frequency=5).frequency
    5
    """

    def __init__(
        self,
        threshold: float | None = None,
        *,
        discarded_energy: float = 0.0,
        start_epoch: int = 0,
        stop_epoch: int | None = None,
        frequency: int = 1,
        layers: Iterable[str] | None = None,
        minimum_rank: int = 1,
        minimum_removed: int = 1,
        verbose: int = 0,
        network: DPRPModel | None = None,
    ) -> None:
        super().__init__()
        if threshold is not None:
            check_number("threshold", threshold, above=0, below=1)
        if stop_epoch is not None and not stop_epoch > start_epoch:
            raise ValueError(
                f"`stop_epoch` must be above start_epoch={start_epoch}, or None. "
                f"Received: stop_epoch={stop_epoch}"
            )
        self.threshold = threshold
        self.discarded_energy = check_number(
            "discarded_energy", discarded_energy, minimum=0, below=1
        )
        self.start_epoch = check_integer("start_epoch", start_epoch, 0)
        self.stop_epoch = stop_epoch
        self.frequency = check_integer("frequency", frequency)
        self.layer_names = None if layers is None else tuple(layers)
        self.minimum_rank = check_integer("minimum_rank", minimum_rank)
        self.minimum_removed = check_integer("minimum_removed", minimum_removed)
        self.verbose = verbose
        self.shrinks: list[dict[str, Any]] = []
        self._network = network
        self._inner: InnerTraining | None = None
        self._epoch: int | None = None
        self._done = False

    @property
    def network(self) -> DPRPModel:
        """The network whose ranks fall: the model in training, or one that it holds."""
        return trained_network(self.model, type(self).__name__, self._network)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        super().on_train_begin(logs)
        self.shrinks = []
        self._epoch, self._done = None, False
        network = self.network
        if network is not self.model:
            self._inner = InnerTraining(network)
            self._inner.set_model(self.model)
            self._inner.on_train_begin()
        if self.layer_names is not None:
            keys = low_rank_keys(self.network)
            known = {*keys, *(layer.name for layer in keys.values())}
            unknown = [name for name in self.layer_names if name not in known]
            if unknown:
                raise ValueError(
                    f"`layers` must name SVD layers of the model: {list(keys)}. Received: {unknown}"
                )

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self._inner is not None:
            self._inner.on_train_end()
            self._inner = None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_epoch_begin(epoch, logs)
        if self._inner is not None:
            self._inner.on_epoch_begin(epoch)
        self._epoch, self._done = epoch, False
        # A model that goes on from saved weights begins behind the end of the pressure.
        if self.stop_epoch is not None and epoch >= self.stop_epoch:
            self.network.pressure = 0.0

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        super().on_test_begin(logs)
        # fit() validates after an epoch's last step: cutting first lets the validation figures
        # be those of the model that goes on.
        if self._epoch is not None:
            self._prune_once()
        if self._inner is not None:
            self._inner.on_test_begin()

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        if self._inner is not None:
            self._inner.on_test_end()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_epoch_end(epoch, logs)
        self._prune_once()
        self._epoch = None
        if logs is not None:
            self.network.log_ranks(logs)

    def pending_ranks(self) -> dict[SVDLayer, int]:
        """Return the layers that would be cut now and the rank each would get.

        Returns:
            New ranks by layer, for the layers that would change.

        Raises:
            ValueError: If a layer's values are not finite.
        """
        self._require_finite()
        threshold = self.threshold or self.network.settings.threshold
        pending = {}
        for layer in self.layers_by_key().values():
            ordered = np.sort(np.abs(layer.factors.s))[::-1]
            rank = min(
                decomposition.retained_rank(ordered, threshold, self.minimum_rank),
                decomposition.energy_rank(ordered, self.discarded_energy, self.minimum_rank),
            )
            if rank < len(ordered):
                pending[layer] = rank
        return pending

    def layers_by_key(self) -> dict[str, SVDLayer]:
        """Return the layers that are pruned, by name, or by path where layers share a name."""
        names = self.layer_names
        return {
            key: layer
            for key, layer in low_rank_keys(self.network).items()
            if layer.trainable and (names is None or key in names or layer.name in names)
        }

    def _as_the_chief(self, pending: dict[SVDLayer, int]) -> dict[SVDLayer, int]:
        """What the chief of several workers decided, where rounding may decide."""
        layers = self.layers_by_key()
        decided = {key: pending[layer] for key, layer in layers.items() if layer in pending}
        ranks = from_chief(self.model, decided)
        return {layers[name]: rank for name, rank in ranks.items()}

    def _require_finite(self) -> None:
        if self._is_broken():
            error = diagnose(self.network, self._epoch or 0)
            assert error is not None
            raise error

    def _is_broken(self) -> bool:
        sync(self.model)
        return any(layer.broken_factor is not None for layer in self.layers_by_key().values())

    def _restore_structure(self) -> None:
        network = self.network
        if network is self.model:
            network.restore_structure()
        else:
            retract_now(self.model, network)

    def _prune_once(self) -> None:
        if self._done or self._epoch is None:
            return
        self._done = True
        if self.model.stop_training and self._is_broken():
            return  # keras.callbacks.TerminateOnNaN ends the training already
        epoch = self._epoch
        last = epoch + 1 == self.params.get("epochs")
        due = (epoch - self.start_epoch) % self.frequency == 0
        if self.stop_epoch is not None and epoch + 1 >= self.stop_epoch:
            self.network.pressure = 0.0
        stopped = self.stop_epoch is not None and epoch >= self.stop_epoch
        # What is pending when the pressure ends is cut then, as in a run's last epoch.
        last = last or epoch + 1 == self.stop_epoch
        if epoch < self.start_epoch or stopped or not (due or last):
            return
        settings = self.network.settings
        if settings.structure == "retraction" and (settings.retraction_period or 1) > 1:
            self._require_finite()
            self._restore_structure()
        pending = self._as_the_chief(self.pending_ranks())
        if not pending:
            return
        layers = {key: layer for key, layer in self.layers_by_key().items() if layer in pending}
        after = {key: pending[layer] for key, layer in layers.items()}
        before = {key: int(layer.rank or 0) for key, layer in layers.items()}
        removed = sum(before.values()) - sum(after.values())
        if removed < self.minimum_removed and not last:
            return
        resize(self.model, pending)
        self.shrinks.append({"epoch": epoch, "before": before, "after": after})
        if self.verbose:
            changes = ", ".join(f"{shown(n)} {before[n]}->{after[n]}" for n in after)
            print(f"\nepoch {epoch + 1}: removed {removed} singular values ({changes})")
