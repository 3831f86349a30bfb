"""A model that trains its ranks: the losses of DPRP inside Keras' own train step."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import keras
from keras import ops

from dprp_tf import regularizers, resizing
from dprp_tf.layers import SVDLayer, low_rank_layers
from dprp_tf.regularizers import RankRegularizer, TailPenalty
from dprp_tf.retraction import TrainedFactors, retract

__all__ = ["STRUCTURES", "DPRPModel", "DPRPSettings"]

STRUCTURES = ("retraction", "smoothed", "paper")

# What a `DPRPModel` logs beside the compiled metrics; each is better the lower it is.
_FALLING = ("app_loss", "orth_loss", "sort_loss", "comp_loss", "total_rank", "parameters")


@dataclass(frozen=True)
class DPRPSettings:
    """How a `DPRPModel` keeps the SVD structure and presses the ranks down.

    L_total = L_app + structure_weight (orthogonality_weight L_orth + sorting_weight L_sort)
    + compression_weight L_comp, each L a mean over the factorized layers.

    Attributes:
        structure: How U and V are kept orthonormal and s sorted. `"retraction"` re-factorizes the
            factors exactly every `retraction_period` steps, so L_orth and L_sort vanish, and
            balances the gradients of U and V; `"smoothed"` is the paper's penalty with a norm
            rounded at 2 learning_rate orthogonality_weight / (layers r^2), which does not jitter;
            `"paper"` is the penalty as printed, which diverges at the paper's own learning rate
            once a rank gets low.
        compression: The penalty on the singular values, or None for no pressure.
        compression_weight: lambda_comp, 0 or more. Default 0.1.
        threshold: The pruning threshold epsilon, in (0, 1). Default 0.1.
        structure_weight: lambda_str, 0 or more. Default 1.
        orthogonality_weight: mu_orth, 0 or more. Default 1000.
        sorting_weight: mu_sort, 0 or more. Default 1.
        retraction_period: Steps between retractions, 1 or more. Default 1.

    Raises:
        ValueError: If a value is out of range.

    Source: DPRP (arXiv 2401.08014) Eq. 8 to 12, Table I.

    Example:

    >>> DPRPSettings(threshold=0.05).compression_weight
    0.1
    """

    structure: str = "retraction"
    compression: RankRegularizer | None = field(default_factory=TailPenalty)
    compression_weight: float = 0.1
    threshold: float = 0.1
    structure_weight: float = 1.0
    orthogonality_weight: float = 1000.0
    sorting_weight: float = 1.0
    retraction_period: int = 1

    def __post_init__(self) -> None:
        if self.structure not in STRUCTURES:
            raise ValueError(
                f"`structure` must be one of {STRUCTURES}. Received: structure={self.structure!r}"
            )
        if not 0.0 < self.threshold < 1.0:
            raise ValueError(f"`threshold` must lie in (0, 1). Received: {self.threshold}")
        for name in (
            "compression_weight",
            "structure_weight",
            "orthogonality_weight",
            "sorting_weight",
        ):
            value = getattr(self, name)
            if not 0.0 <= value < float("inf"):
                raise ValueError(f"`{name}` must be 0 or more and finite. Received: {value}")
        if not isinstance(self.retraction_period, int) or self.retraction_period < 1:
            raise ValueError(
                f"`retraction_period` must be an integer of 1 or more. "
                f"Received: {self.retraction_period!r}"
            )
        if self.compression is not None and not isinstance(self.compression, RankRegularizer):
            raise ValueError(
                "`compression` must be a RankRegularizer or None; "
                "`dprp_tf.regularizers.get` makes one from a name. "
                f"Received: compression={self.compression!r}"
            )

    def get_config(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        config = {key: value for key, value in asdict(self).items() if key != "compression"}
        config["compression"] = (
            None
            if self.compression is None
            else keras.saving.serialize_keras_object(self.compression)
        )
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> DPRPSettings:
        """Make the settings from `get_config`'s result."""
        compression = config.get("compression")
        if isinstance(compression, dict):
            compression = keras.saving.deserialize_keras_object(compression)
        return cls(**{**config, "compression": compression})


@keras.saving.register_keras_serializable(package="dprp_tf")
class DPRPModel(keras.Model):
    """A functional model that trains the factors of its SVD layers with the losses of DPRP.

    Made by `dprp_tf.factorize`; compiled, trained, saved and loaded as any Keras model. Besides
    the compiled metrics it logs `app_loss` (the compiled loss alone), `orth_loss`, `sort_loss`,
    `comp_loss` (unweighted means over the layers) and, at each epoch's end, `total_rank` and
    `parameters`; `loss` is the weighted total, plus the model's own regularizers. In evaluation
    `loss` leaves the three structural terms out.

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
    """

    def __init__(self, inputs: Any, outputs: Any, name: str | None = None, **kwargs: Any) -> None:
        settings = kwargs.pop("settings", None)
        super().__init__(inputs=inputs, outputs=outputs, name=name, **kwargs)
        self._terms = {
            term: keras.metrics.Mean(name=f"{term}_loss")
            for term in ("app", "orth", "sort", "comp")
        }
        # The smoothed norm follows the learning rate; a train step can't read the optimizer's own
        # variable on every backend, so a callback of fit() copies it here before each epoch.
        self._evaluating = False
        self._learning_rate = keras.Variable(0.0, trainable=False, name="learning_rate_copy")
        self.settings = DPRPSettings() if settings is None else settings

    @property
    def settings(self) -> DPRPSettings:
        """The `DPRPSettings` in force; assign before `compile`."""
        return self._settings

    @settings.setter
    def settings(self, settings: DPRPSettings) -> None:
        if not isinstance(settings, DPRPSettings):
            raise ValueError(f"`settings` must be a DPRPSettings. Received: {settings!r}")
        self._settings = settings
        for layer in low_rank_layers(self):
            layer.balanced_gradients = settings.structure == "retraction"

    @property
    def low_rank_layers(self) -> list[SVDLayer]:
        """The SVD layers in model order."""
        return low_rank_layers(self)

    @property
    def ranks(self) -> dict[str, int]:
        """The rank of each SVD layer by name."""
        return {layer.name: int(layer.rank or 0) for layer in low_rank_layers(self)}

    def rank_logs(self) -> dict[str, int]:
        """Return `total_rank` and `parameters` (trainable weights) as they are now."""
        return {
            "total_rank": sum(int(layer.rank or 0) for layer in low_rank_layers(self)),
            "parameters": sum(math.prod(w.shape) for w in self.trainable_weights),
        }

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Configure the model for training, as `keras.Model.compile`.

        With `structure="retraction"`, U and V are left out of the optimizer's own (decoupled)
        weight decay: the retraction moves their lengths into s, so s would decay three times.
        """
        super().compile(*args, **kwargs)
        if self.settings.structure == "retraction" and self.optimizer is not None:
            resizing.exclude_from_weight_decay(
                self.optimizer,
                [value for layer in low_rank_layers(self) for value in (layer.u, layer.v)],
            )

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile as the model was when it was saved, as `keras.Model.compile_from_config`."""
        self.compile(**keras.saving.deserialize_keras_object(config))
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
        """Train, as `keras.Model.fit`, with `total_rank` and `parameters` in each epoch's logs."""
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            given = list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks]
            callbacks = self.training_callbacks([c for c in given if c is not None])
        return super().fit(
            x=x,
            y=y,
            batch_size=batch_size,
            epochs=epochs,
            verbose=verbose,
            callbacks=callbacks,
            **kwargs,
        )

    def training_callbacks(
        self, callbacks: list[keras.callbacks.Callback]
    ) -> list[keras.callbacks.Callback]:
        """Return the callbacks of a training with the model's own around them.

        Args:
            callbacks: The user's.

        Returns:
            First one that logs the ranks, so that every callback finds them; last one that
            copies the learning rate, when a schedule has set it.
        """
        for callback in callbacks:
            _settle_direction(callback)
        return [_RankLogger(), *callbacks, _LearningRateCopy()]

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Return the total loss and record each term; see the class."""
        total = super().compute_loss(
            x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training
        )
        own = [self._aggregate_additional_loss(loss) for loss in self.losses]
        count = ops.shape(keras.tree.flatten(x)[0])[0]
        app = total - sum(own[1:], own[0]) if own else total
        self._terms["app"].update_state(app * _replicas(), sample_weight=count)
        if not training:
            return total
        terms = self.structural_losses()
        for name, value in terms.items():
            self._terms[name].update_state(ops.stop_gradient(value), sample_weight=count)
        settings = self.settings
        weighted = settings.compression_weight * terms["comp"]
        if settings.structure != "retraction":
            weighted = weighted + settings.structure_weight * (
                settings.orthogonality_weight * terms["orth"]
                + settings.sorting_weight * terms["sort"]
            )
        return total + self._aggregate_additional_loss(weighted)

    def get_metrics_result(self) -> dict[str, Any]:
        """Return the metrics by name; in evaluation without the terms not computed there."""
        result = super().get_metrics_result()
        if self._evaluating:
            for term in ("orth", "sort", "comp"):
                result.pop(f"{term}_loss", None)
        return result

    def structural_losses(self) -> dict[str, Any]:
        """Return the unweighted means over the layers: `orth` (Eq. 10), `sort` (11), `comp` (12).

        Returns:
            Three float32 scalars; zeros if every SVD layer is frozen.
        """
        layers = [layer for layer in low_rank_layers(self) if layer.trainable]
        sums = {term: ops.zeros((), "float32") for term in ("orth", "sort", "comp")}
        if not layers:
            return sums
        settings = self.settings
        by_rank: dict[int, list[SVDLayer]] = {}
        for layer in layers:
            by_rank.setdefault(int(layer.rank or 0), []).append(layer)
        for rank, group in by_rank.items():
            # n layers of equal rank: s (n, r), Gram matrices (2n, r, r)
            s = ops.stack([ops.cast(layer.s, "float32") for layer in group])
            gram = ops.stack(
                [regularizers.gram_matrix(q) for layer in group for q in (layer.u, layer.v)]
            )
            softening: Any = 0.0
            if settings.structure == "smoothed":
                strength = settings.structure_weight * settings.orthogonality_weight
                softening = 2.0 * self._learning_rate * strength / (len(layers) * rank**2)
            sums["orth"] += ops.sum(regularizers.gram_error(gram, softening))
            sums["sort"] += ops.sum(regularizers.sorting(s))
            if settings.compression is not None:
                sums["comp"] += ops.sum(settings.compression(s))
        return {term: value / len(layers) for term, value in sums.items()}

    def test_step(self, *args: Any) -> Any:
        """Run Keras' own test step, whose metrics leave out what is not computed there."""
        # Around the step alone, so that it holds while tracing and never outlives the trace.
        self._evaluating = True
        try:
            return super().test_step(*args)
        finally:
            self._evaluating = False

    def train_step(self, *args: Any) -> Any:
        """Run Keras' own train step, then restore the factors' structure if that is due."""
        result = super().train_step(*args)
        layers = [layer for layer in low_rank_layers(self) if layer.trainable]
        if self.settings.structure != "retraction" or not layers:
            return result
        if keras.backend.backend() == "tensorflow":
            self._retract_in_place(layers)
            return result
        logs, (trainable, non_trainable, optimizer, metrics) = result
        trainable, optimizer = self._retract_state(layers, list(trainable), list(optimizer))
        return logs, (trainable, non_trainable, optimizer, metrics)

    def restore_structure(self) -> None:
        """Re-factorize the SVD layers that train, now: the kernels stay, the structure is exact.

        `RankPruning` calls it before it reads the singular values, which are only those of the
        kernels while U and V are orthonormal. Momentum is carried along.
        """
        resizing.sync(self)
        layers = [layer for layer in low_rank_layers(self) if layer.trainable]
        variables = self._factor_variables(layers)
        _assign(variables, _retracted(_read(variables)))

    def _retract_in_place(self, layers: list[SVDLayer]) -> None:
        variables = self._factor_variables(layers)
        iterations = resizing.inner_optimizer(self.optimizer).iterations
        _assign(variables, self._retracted_if_due(_read(variables), iterations))

    def _retract_state(
        self, layers: list[SVDLayer], trainable: list[Any], optimizer: list[Any]
    ) -> tuple[list[Any], list[Any]]:
        home = {id(v): (trainable, i) for i, v in enumerate(self.trainable_variables)}
        home.update({id(v): (optimizer, i) for i, v in enumerate(self.optimizer.variables)})
        places = [[home[id(v)] for v in group] for group in self._factor_variables(layers)]
        iterations = resizing.inner_optimizer(self.optimizer).iterations
        container, index = home[id(iterations)]
        groups = [[state[i] for state, i in group] for group in places]
        values = self._retracted_if_due(groups, container[index])
        for (state, i), value in zip([p for g in places for p in g], values, strict=True):
            state[i] = value
        return trainable, optimizer

    def _retracted_if_due(self, groups: list[list[Any]], iterations: Any) -> list[Any]:
        """Return the values of all groups in one list, retracted every so many iterations."""
        period = self.settings.retraction_period
        if period == 1:
            return _retracted(groups)
        return ops.cond(
            ops.equal(ops.mod(iterations, period), 0),
            lambda: _retracted(groups),
            lambda: [value for group in groups for value in group],
        )

    def _factor_variables(self, layers: list[SVDLayer]) -> list[list[keras.Variable]]:
        """Return per layer its u, s, v, followed by their momentum slots where there are any."""
        groups = []
        for layer in layers:
            factors = [layer.u, layer.s, layer.v]
            groups.append(factors + resizing.momentum_slots(self.optimizer, factors))
        return groups

    def get_config(self) -> dict[str, Any]:
        """Return the functional model's config and the settings."""
        return {**super().get_config(), "dprp_settings": self.settings.get_config()}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> DPRPModel:
        """Make the model from `get_config`'s result."""
        config = dict(config)
        settings = config.pop("dprp_settings", None)
        model = super().from_config(config, custom_objects=custom_objects)
        if settings is not None:
            model.settings = DPRPSettings.from_config(settings)
        return model


class _RankLogger(keras.callbacks.Callback):
    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if logs is not None:
            logs.update(self.model.rank_logs())


class _LearningRateCopy(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        resizing.sync(self.model)
        rate = resizing.inner_optimizer(self.model.optimizer).learning_rate
        # Through Python: sharing the optimizer's buffer would donate it twice on JAX.
        self.model._learning_rate.assign(float(ops.convert_to_numpy(rate)))


def _settle_direction(callback: Any) -> None:
    """Let mode="auto" work on the terms: Keras asks the compiled metrics alone for a direction."""
    monitored = str(getattr(callback, "monitor", "")).removeprefix("val_")
    if monitored in _FALLING and getattr(callback, "mode", None) == "auto":
        callback.mode = "min"


def _read(groups: list[list[keras.Variable]]) -> list[list[Any]]:
    # A cast to its own dtype turns a variable into a tensor on every backend.
    return [[ops.cast(variable, variable.dtype) for variable in group] for group in groups]


def _assign(groups: list[list[keras.Variable]], values: list[Any]) -> None:
    for variable, value in zip([v for group in groups for v in group], values, strict=True):
        variable.assign(value)


def _retracted(groups: list[list[Any]]) -> list[Any]:
    factors = [TrainedFactors(*group[:3]) for group in groups]
    momenta = [TrainedFactors(*group[3:]) if len(group) > 3 else None for group in groups]
    new, carried = retract(factors, momenta)
    values: list[Any] = []
    for factor, momentum in zip(new, carried, strict=True):
        values.extend(factor)
        values.extend(momentum or ())
    return values


def _replicas() -> int:
    """Return how many replicas share a step: Keras scales each replica's loss by 1 / that."""
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return int(tf.distribute.get_strategy().num_replicas_in_sync)
