"""A model that trains its ranks: the losses of DPRP inside Keras' own train step."""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import keras
from keras import ops

from dprp_tf.files.arguments import check_number
from dprp_tf.keras_internals.call_losses import added_in_calls
from dprp_tf.keras_internals.compiled import sync
from dprp_tf.keras_internals.optimizers import exclude_from_weight_decay, inner_optimizer
from dprp_tf.layers import SVDLayer, low_rank_layers
from dprp_tf.training.added_loss import added_losses, note_structure
from dprp_tf.training.averaged_factors import averages_turning_factors, require_no_average
from dprp_tf.training.divergence import DivergenceError
from dprp_tf.training.failure_record import (
    Block,
    FailureRecord,
    all_finite,
    gather_evidence,
    gather_terms,
    record_size,
)
from dprp_tf.training.fit_callbacks import with_own_callbacks
from dprp_tf.training.log_names import LOG_PREFIX, beside_the_users
from dprp_tf.training.loss_terms import TERM_LOGS, LossTerms
from dprp_tf.training.losses import layer_losses, mean_losses, weighted_loss
from dprp_tf.training.ranked_model import RankedModel
from dprp_tf.training.replicas import replica_count
from dprp_tf.training.settings import DPRPSettings
from dprp_tf.training.step_retraction import retract_after_step, retract_now

__all__ = ["DPRPModel"]


@keras.saving.register_keras_serializable(package="dprp_tf")
class DPRPModel(RankedModel):
    """A functional model that trains the factors of its SVD layers with the losses of DPRP.

    Made by `dprp_tf.factorize`; compiled, trained, saved and loaded as any Keras model. Besides
    the compiled metrics it logs `app_loss` (the application's: the compiled loss and what layers
    add by `add_loss` or an activity regularizer), `orth_loss`, `sort_loss`, `comp_loss`
    (unweighted means over the layers) and, at each epoch's end, `total_rank` and `parameters`;
    `loss` is the weighted total, plus the regularizers of weights. In evaluation `loss` leaves
    the three structural terms out. Where the model has a log of one of these names already, as an
    output called "sort" has, that one stays, and the model's own is called `dprp_sort_loss`.

    Derive from it to train in a way of your own, as from `keras.Model`: methods such as
    `train_step`, `compute_loss` and `predict_step` call `super()`, which keeps the losses of DPRP
    and the retraction, and `factorize(model, model_class=...)` makes the model. What they add to
    `super().compute_loss()` is part of `app_loss`. A constructor takes `inputs`, `outputs` and
    `name`; one with more arguments needs `get_config` and `from_config`, as in any Keras class.

    Args:
        inputs: As `keras.Model`.
        outputs: As `keras.Model`.
        name: As `keras.Model`.
        **kwargs: As `keras.Model`.

    Source: DPRP (arXiv 2401.08014) III-C.

    Example:

    >>> inputs = keras.Input((6, 6, 3))
    >>> from dprp_tf.layers import SVDConv2D
    >>> model = DPRPModel(inputs, SVDConv2D(4, 3, name="first")(inputs))
    >>> model.ranks
    {'first': 9}
    >>> class Offset(DPRPModel):
    ...     def compute_loss(self, *args, **kwargs):
    ...         return 10.0 + super().compute_loss(*args, **kwargs)
    >>> type(Offset(model.inputs, model.outputs)).__name__
    'Offset'
    """

    def __init__(self, inputs: Any, outputs: Any, name: str | None = None, **kwargs: Any) -> None:
        settings = kwargs.pop("settings", None)
        super().__init__(inputs=inputs, outputs=outputs, name=name, **kwargs)
        # What a derived class adds to the loss is the application's as well, and only known from
        # the mean that Keras keeps of the whole.
        self._loss_terms = LossTerms(extended=type(self).compute_loss is not DPRPModel.compute_loss)
        # The smoothed norm follows the learning rate; a train step can't read the optimizer's own
        # variable on every backend, so a callback of fit() copies it here before each epoch.
        self._pressure = 1.0
        self._trains_itself = False
        # What makes a trainer's step anew whose loss has this model's terms; see InnerTraining.
        self._outer: Any = None
        self._structural_loss_taken = self._warned = False
        self._learning_rate = keras.Variable(0.0, trainable=False, name="learning_rate_copy")
        self._failures = FailureRecord(record_size(self))
        self.settings = DPRPSettings() if settings is None else settings

    @property
    def failure_record(self) -> FailureRecord:
        """What the train step notes the first time in an epoch that its loss is not finite."""
        return self._failures

    @property
    def settings(self) -> DPRPSettings:
        """The `DPRPSettings` in force; assign before `compile`."""
        return self._settings

    @settings.setter
    def settings(self, settings: DPRPSettings) -> None:
        if not isinstance(settings, DPRPSettings):
            raise ValueError(f"`settings` must be a DPRPSettings. Received: {settings!r}")
        layers = low_rank_layers(self)
        if settings.retraction_period is None:
            # The matrices of the spatial form have few columns: their retraction costs nothing.
            narrow = all(layer.matricization == "spatial" for layer in layers)
            settings = replace(settings, retraction_period=1 if narrow else 10)
        self._settings = settings
        for layer in layers:
            layer.balanced_gradients = settings.structure == "retraction"
            layer.gradient_watch = _Watch(weakref.ref(self))

    @property
    def pressure(self) -> float:
        """Factor on the settings' compression weight, 0 or more; each `fit` begins and ends with 1.

        `RankPruning` sets 0 when ranks no longer fall.
        """
        return self._pressure

    @pressure.setter
    def pressure(self, pressure: float) -> None:
        pressure = check_number("pressure", pressure, minimum=0)
        changed, self._pressure = pressure != self._pressure, pressure
        # Only the train step has the pressure in it.
        if changed and getattr(self, "train_function", None) is not None:
            self.make_train_function(force=True)
        if changed and self._outer is not None:
            self._outer.renew()

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Configure the model for training, as `keras.Model.compile`.

        With `structure="retraction"`, U and V are left out of the optimizer's own (decoupled)
        weight decay: the retraction moves their lengths into s, so s would decay three times.

        Raises:
            ValueError: If the optimizer averages weights (`use_ema=True`) that a retraction turns.
        """
        super().compile(*args, **kwargs)
        try:
            require_no_average(self, self.settings, self.optimizer)
        except ValueError:
            self.compiled = False
            raise
        if self.settings.structure == "retraction" and self.optimizer is not None:
            exclude_from_weight_decay(
                self.optimizer,
                [value for layer in low_rank_layers(self) for value in (layer.u, layer.v)],
            )

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile as the model was when it was saved, as `keras.Model.compile_from_config`."""
        arguments = keras.saving.deserialize_keras_object(config)
        if averages_turning_factors(self, self.settings, arguments.get("optimizer")):
            warnings.warn(
                "the model was saved with an optimizer that averages weights (use_ema=True), which "
                "is no longer done to factors that a retraction turns: it is loaded without its "
                "optimizer. Compile it anew to train it.",
                stacklevel=2,
            )
            arguments["optimizer"] = None
        self.compile(**arguments)
        if self.optimizer is not None and self.built:
            self.optimizer.build(self.trainable_variables)

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Train, as `keras.Model.fit`, with `total_rank` and `parameters` in each epoch's logs.

        Raises:
            DivergenceError: If a step's loss or a weight after an epoch is not finite. With a
                `keras.callbacks.TerminateOnNaN` among the callbacks, that one ends the training
                and a warning says what the error would.
        """
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            given = list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks]
            callbacks = self.training_callbacks([c for c in given if c is not None])
        try:
            with self._training_itself():
                return super().fit(
                    x=x,
                    y=y,
                    batch_size=batch_size,
                    epochs=epochs,
                    verbose=verbose,
                    callbacks=callbacks,
                    **kwargs,
                )
        except DivergenceError as error:
            # Raised where the record could not be read: beside a step that may be running.
            raise error.completed() from error.__cause__
        finally:
            self.pressure = 1.0

    def training_callbacks(
        self, callbacks: list[keras.callbacks.Callback]
    ) -> list[keras.callbacks.Callback]:
        """Return the callbacks of a training with the model's own around them.

        Args:
            callbacks: The user's.

        Returns:
            All of them, in the order in which they must be called.
        """
        return with_own_callbacks(callbacks)

    def _warn_of_a_foreign_training(self) -> None:
        # A loop of the user's own that takes the losses has been told of them.
        if self._structural_loss_taken or self._warned:
            return
        self._warned = True
        warnings.warn(
            f"the DPRPModel {self.name!r} is trained outside of its own fit, without the losses "
            "that lower its ranks and keep its factors. Give callbacks=[dprp_tf.InnerTraining()] "
            "or dprp_tf.RankPruning() to the fit of the model that holds it; in a loop of your own "
            "add structural_loss() to the loss and call restore_structure() after the steps.",
            stacklevel=2,
        )

    @contextlib.contextmanager
    def _training_itself(self) -> Iterator[None]:
        before, self._trains_itself = self._trains_itself, True
        try:
            yield
        finally:
            self._trains_itself = before

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Train on one batch, as `keras.Model.train_on_batch`."""
        with self._training_itself():
            return super().train_on_batch(*args, **kwargs)

    def copy_learning_rate(self, optimizer: Any = None) -> None:
        """Take over the optimizer's learning rate, which the smoothed norm follows.

        Args:
            optimizer: The optimizer that trains the model. Default: its own.
        """
        sync(self)
        rate = inner_optimizer(self.optimizer if optimizer is None else optimizer).learning_rate
        # Through Python: sharing the optimizer's buffer would donate it twice on JAX.
        self._learning_rate.assign(float(ops.convert_to_numpy(rate)))

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Return the total loss and record each term; see the class."""
        # Keras leaves `training` out where a derived class' version does not take it.
        training = training and not self._loss_terms.evaluating
        total = super().compute_loss(
            x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training
        )
        losses = self.losses
        own = [self._aggregate_additional_loss(loss) for loss in losses]
        count = ops.shape(next(part for part in keras.tree.flatten(x) if part is not None))[0]
        # The application's is all but the weights' regularizers, which tell how heavy the factors
        # are and not how well they do.
        added = added_in_calls(self, losses)
        weights = [loss for loss, is_added in zip(own, added, strict=True) if not is_added]
        app = total - sum(weights[1:], weights[0]) if weights else total
        layers, by_layer = self._layer_losses() if training else ([], {})
        terms = mean_losses(by_layer)
        if training:
            weighted = self._aggregate_additional_loss(
                weighted_loss(terms, self.settings, self.pressure)
            )
            total = total + weighted
            note_structure([*weights, weighted])
        # Each replica's loss is scaled by 1 / their number; unscaled, the mean is that of all.
        replicas = replica_count()
        extended = total * replicas if self._loss_terms.extended else 0.0
        self._loss_terms.update_state(app * replicas, terms, count, extended)
        if not training:
            return total

        def gather() -> list[Block]:
            found = gather_terms(self, app, own, layers, by_layer)
            batch = {"inputs": x, "labels": y, "predictions": y_pred}
            return found + gather_evidence(self, **batch, sample_weight=sample_weight)

        # The factors show in the terms; biases and normalizations are one vector.
        vectors = [ops.cast(w, "float32") for w in self.trainable_variables if len(w.shape) == 1]
        vectors = [ops.concatenate(vectors)] if vectors else []
        self._failures.observe(all_finite([total, list(terms.values()), vectors]), gather, x)
        return total

    def get_metrics_result(self) -> dict[str, Any]:
        """Return the metrics by name; in evaluation without the terms not computed there."""
        result = super().get_metrics_result()
        result.pop(self._failures.name, None)
        app = LOG_PREFIX + TERM_LOGS[0]
        if self._loss_terms.extended and app in result:
            means = [m for m in self.metrics if m.name == "loss" and hasattr(m, "count")]
            for mean in means[:1]:
                result[app] += self._loss_terms.beyond(mean.result(), mean.count)
                # What callbacks add to the loss is no more the application's than the pressure is.
                result[app] -= sum(term.mean_shift() for term in added_losses(self))
        return beside_the_users(result, TERM_LOGS)

    def structural_losses(self) -> dict[str, Any]:
        """Return the unweighted means over the layers: `orth` (Eq. 10), `sort` (11), `comp` (12).

        Returns:
            Three float32 scalars; zeros if every SVD layer is frozen.
        """
        self._structural_loss_taken = True
        return mean_losses(self._layer_losses()[1])

    def structural_loss(self) -> Any:
        """Return what the structure and the pressure add to a loss, for a training of your own.

        The weighted sum of `structural_losses`, as `fit` adds it. A `train_step` of a model that
        holds this one adds it to its loss where that does not come from `compute_loss`, to which
        `InnerTraining` adds it.

        Returns:
            A scalar.
        """
        return weighted_loss(self.structural_losses(), self.settings, self.pressure)

    def _layer_losses(self) -> tuple[list[SVDLayer], dict[str, Any]]:
        return layer_losses(low_rank_layers(self), self.settings, self._learning_rate)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate, as `keras.Model.evaluate`."""
        # Keras takes the figures of all replicas if these have the names of the last step's.
        with self._evaluation():
            return super().evaluate(*args, **kwargs)

    @contextlib.contextmanager
    def _evaluation(self) -> Iterator[None]:
        terms = self._loss_terms
        before, terms.evaluating = terms.evaluating, True
        try:
            yield
        finally:
            terms.evaluating = before

    def test_step(self, *args: Any) -> Any:
        """Run Keras' own test step, whose metrics leave out what is not computed there."""
        # Around the step, so that it holds while tracing, whoever calls it.
        with self._evaluation():
            return super().test_step(*args)

    def train_step(self, *args: Any) -> Any:
        """Run Keras' own train step, then restore the factors' structure if that is due."""
        with self._training_itself():
            result = super().train_step(*args)
        return (
            retract_after_step(self, result) if self.settings.structure == "retraction" else result
        )

    def restore_structure(self) -> None:
        """Re-factorize the SVD layers that train, now: the kernels stay, the structure is exact.

        `RankPruning` calls it before it reads the singular values, which are only those of the
        kernels while U and V are orthonormal. Momentum is carried along.
        """
        retract_now(self)

    def get_config(self) -> dict[str, Any]:
        """Return the functional model's config and the settings."""
        policy = keras.saving.serialize_keras_object(self.dtype_policy)
        settings = self.settings.get_config()
        return {**super().get_config(), "dprp_settings": settings, "dprp_dtype": policy}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> DPRPModel:
        """Make the model from `get_config`'s result."""
        config = dict(config)
        settings, policy = config.pop("dprp_settings", None), config.pop("dprp_dtype", None)
        model = super().from_config(config, custom_objects=custom_objects)
        if policy is not None:
            model.dtype_policy = keras.saving.deserialize_keras_object(policy)
        if settings is not None:
            model.settings = DPRPSettings.from_config(settings)
        return model


class _Watch:
    """Lets SVD layers say when gradients reach them that are not of their model's own training."""

    def __init__(self, model: weakref.ref[DPRPModel]) -> None:
        self._model = model

    def __call__(self) -> Callable[[], None] | None:
        model = self._model()
        if model is None or model._trains_itself or model._outer is not None:
            return None
        return model._warn_of_a_foreign_training
