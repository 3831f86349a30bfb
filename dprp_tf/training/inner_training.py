"""The losses and the retraction of low-rank networks inside a model that trains in its own way."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import keras

from dprp_tf.keras_internals.added_metrics import added_metrics
from dprp_tf.keras_internals.compiled import sync
from dprp_tf.keras_internals.optimizers import exclude_from_weight_decay, model_optimizers
from dprp_tf.training.added_loss import LossOfStep, WeightLoss
from dprp_tf.training.averaged_factors import require_no_average
from dprp_tf.training.guarded_callback import GuardedCallback
from dprp_tf.training.held_networks import held_networks, trained_network
from dprp_tf.training.model import DPRPModel
from dprp_tf.training.refused_step import keep_state_of_a_refused_step
from dprp_tf.training.step_retraction import retract_after_step

__all__ = ["InnerTraining"]


class InnerTraining(GuardedCallback):
    """Train the `DPRPModel`s that a model holds as their own `fit` would train them.

    For trainers: a distiller, a siamese or contrastive model, any `keras.Model` whose `call` or
    `train_step` uses a factorized network. For the time of a `fit` the trainer's loss gets each
    network's weighted structural terms, and each of its steps ends with the retraction that is
    due, momentum carried along; the logs get `structural_loss`, or `<network>_structural_loss`
    where there are several. A training that has diverged is stopped, as a `DPRPModel`'s is.
    `RankPruning` and `BudgetPruning` do all this by themselves; use it to train at constant ranks.

    The terms join what the trainer's `compute_loss` returns. A `train_step` that computes its
    loss elsewhere adds `network.structural_loss()` to it; one that does neither is refused before
    it has changed a weight.

    Args:
        network: The network to train, of a trainer that holds several. Default: all whose SVD
            layers train.

    Raises:
        ValueError: In training, if the model holds no such network, its step leaves the terms out
            or trains with an optimizer that it does not hold, or that one averages weights.
        DivergenceError: In training, if the loss, a weight or the optimizer is no longer finite.

    Example:

    >>> InnerTraining().network is None
    True
    """

    def __init__(self, network: DPRPModel | None = None) -> None:
        super().__init__()
        self.network = network
        self._terms: list[_StructuralTerm] = []

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        super().on_train_begin(logs)
        self._terms = []
        if isinstance(self.model, DPRPModel):
            trained_network(self.model, type(self).__name__, self.network)
            return  # its own fit does it all
        networks = held_networks(self.model)
        if self.network is not None or not networks:
            networks = [trained_network(self.model, type(self).__name__, self.network)]
        several = len(held_networks(self.model)) > 1
        for network in networks:
            if network._outer is not None:
                if network._outer.trainer() is self.model:
                    continue  # another callback's
                network._outer.term.detach()  # left by a training that ended by an exception
            name = f"{network.name}_structural_loss" if several else "structural_loss"
            term = _StructuralTerm(name, network)
            self._terms.append(term)
            term.attach(self.model)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_epoch_begin(epoch, logs)
        if self._terms and self.model.optimizer is not None:
            sync(self.model)
            for term in self._terms:
                term.network.copy_learning_rate(self.model.optimizer)

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        super().on_test_begin(logs)
        for term in self._terms:
            term.evaluating = True

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        for term in self._terms:
            term.evaluating = False

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        for term in self._terms:
            term.detach()
        self._terms = []


@dataclass(frozen=True)
class _Outer:
    """What a network knows of the trainer that it is trained by; nothing that Keras tracks."""

    trainer: weakref.ref[keras.Model]
    term: Any

    def renew(self) -> None:
        """Let the trainer's step be compiled anew, with the network's pressure as it is now."""
        trainer = self.trainer()
        if trainer is not None:
            _renew_step(trainer)


class _Held:
    """A network in a metric's attributes, where Keras would take its variables for the metric's."""

    def __init__(self, network: DPRPModel) -> None:
        self.network = network


class _StructuralTerm(WeightLoss):
    """A network's weighted structural terms in a trainer's loss, and the retraction after it."""

    def __init__(self, name: str, network: DPRPModel) -> None:
        super().__init__(name)
        self._held = _Held(network)
        self._logged = False
        self._stepping = self._joined = False

    @property
    def network(self) -> DPRPModel:
        return self._held.network

    def value(self) -> Any:
        return self.network.structural_loss()

    def attach(self, model: keras.Model) -> None:
        network = self.network
        factors = [value for layer in network.low_rank_layers for value in (layer.u, layer.v)]
        own = getattr(network, "optimizer", None)
        for optimizer in model_optimizers(model):
            if optimizer is not own:
                require_no_average(network, network.settings, optimizer)
                if network.settings.structure == "retraction":
                    exclude_from_weight_decay(optimizer, factors)
        network.pressure = 1.0
        network.name_rank_logs_anew()
        self.strength.assign(1.0)
        network._outer = _Outer(weakref.ref(model), self)
        super().attach(model)
        _renew_step(model)
        keep_state_of_a_refused_step(model)

    def detach(self) -> None:
        model = self._model
        if model is None or not self.attached:
            return
        self.network._outer = None
        self.network.pressure = 1.0
        super().detach()
        _renew_step(model)

    def joined(self, total: Any, step: LossOfStep, training: bool) -> Any:
        # A step may compute several losses; its first gets the terms, and validation's none.
        if not self._stepping or self._joined:
            return total
        self._joined = True
        return super().joined(total, step, True)

    def begin_step(self) -> None:
        """Let the step that follows take the terms."""
        self._stepping, self._joined = True, False
        self.network._structural_loss_taken = False

    def end_step(self) -> None:
        """Let what is not a step leave the terms alone."""
        self._stepping = False

    def restored(self, model: keras.Model, result: Any) -> Any:
        """Return what a step returned with the network's structure restored, if that is due."""
        network = self.network
        if not network._structural_loss_taken and _adds_to_a_loss(network):
            raise ValueError(
                f"`train_step` of {type(model).__name__} must train the DPRPModel {network.name!r} "
                "with its structural terms. Received: a step that neither calls compute_loss, to "
                f"which they are added, nor adds {network.name}.structural_loss() to its loss; let "
                "it do one of them."
            )
        if network.settings.structure == "retraction":
            return retract_after_step(model, result, network)
        return result


def _renew_step(model: keras.Model) -> None:
    """Let a model's step end with its networks' retractions, and be its own again without any."""
    wrapped = vars(model).get("train_step")
    if hasattr(wrapped, "replaced"):
        del model.train_step
        if wrapped.replaced is not None:
            model.train_step = wrapped.replaced
    if _structural_terms(model):
        _wrap_step(model)
    model.make_train_function(force=True)


def _wrap_step(model: keras.Model) -> None:
    own, step = vars(model).get("train_step"), model.train_step

    # A function of its own each time: JAX would take what it compiled of the same one before.
    def with_structure(*args: Any) -> Any:
        terms = _structural_terms(model)
        for term in terms:
            term.begin_step()
        try:
            result = step(*args)
        finally:
            for term in terms:
                term.end_step()
        for term in terms:
            result = term.restored(model, result)
        return result

    marked: Any = with_structure
    marked.replaced = own
    model.train_step = with_structure


def _structural_terms(model: keras.Model) -> list[_StructuralTerm]:
    return [metric for metric in added_metrics(model) if isinstance(metric, _StructuralTerm)]


def _adds_to_a_loss(network: DPRPModel) -> bool:
    settings = network.settings
    pressed = settings.compression is not None and settings.compression_weight > 0
    return pressed or (settings.structure != "retraction" and settings.structure_weight > 0)
