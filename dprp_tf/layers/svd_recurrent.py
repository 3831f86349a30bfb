"""Recurrent layers whose input kernel is held as SVD factors."""

from __future__ import annotations

from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from dprp_tf.files.arguments import check_integer
from dprp_tf.keras_internals.given_kernels import (
    copy_unnamed_settings,
    kernel_given,
    without_kernel,
)
from dprp_tf.layers.factorized import OBJECT_ARGUMENTS
from dprp_tf.layers.registry import low_rank_layer
from dprp_tf.layers.svd_layer import SVDLayer

__all__ = ["SVDGRU", "SVDLSTM", "SVDRecurrent", "SVDSimpleRNN"]

# What Keras' recurrent layers take beside what every factorized layer takes.
_SETTINGS = (
    "recurrent_initializer",
    "recurrent_regularizer",
    "recurrent_constraint",
    "dropout",
    "recurrent_dropout",
    "seed",
    "return_sequences",
    "return_state",
    "go_backwards",
    "unroll",
    "zero_output_for_mask",
)


class SVDRecurrent(SVDLayer):
    """What recurrent layers share whose input kernel is held as SVD factors.

    The input kernel W^T of shape (gates * units, D) is held as U diag(s) V^T with weights U
    (gates * units, r), s (r,) and V (D, r). The recurrent kernel, which multiplies the state step
    after step, and the bias stay as they are. It folds into a dense layer (D, r), which sees all
    steps at once, and the recurrent layer on r features. `stateful` layers have no such form.

    Args:
        units: Number of outputs.
        activation: Of the candidate state. Default `"tanh"`.
        recurrent_initializer: Initializer of the recurrent kernel.
        recurrent_regularizer: Regularizer of the recurrent kernel.
        recurrent_constraint: Constraint of the recurrent kernel.
        dropout: Share of the inputs that training leaves out, in [0, 1). Default 0.
        recurrent_dropout: Likewise of the state. Default 0.
        seed: Seed of both. Default: none.
        return_sequences: Whether to return the outputs of all steps. Default False.
        return_state: Whether to return the last state as well. Default False.
        go_backwards: Whether to go from the last step to the first. Default False.
        unroll: Whether the steps stand one after another in the graph. Default False.
        zero_output_for_mask: Whether outputs of masked steps are 0. Default False.
        **kwargs: What `SVDLayer` takes, and what the kind of layer takes besides.

    Raises:
        ValueError: If an argument is unusable.
    """

    gates: ClassVar[int]
    object_arguments: ClassVar[tuple[str, ...]] = (
        *OBJECT_ARGUMENTS,
        "recurrent_initializer",
        "recurrent_regularizer",
        "recurrent_constraint",
    )
    # Settings of one kind of layer alone.
    own: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        units: int,
        *,
        activation: Any = "tanh",
        recurrent_initializer: Any = "orthogonal",
        recurrent_regularizer: Any = None,
        recurrent_constraint: Any = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        seed: int | None = None,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        unroll: bool = False,
        zero_output_for_mask: bool = False,
        **kwargs: Any,
    ) -> None:
        own = {name: kwargs.pop(name) for name in self.own if name in kwargs}
        if kwargs.pop("stateful", False):
            raise ValueError(
                "`stateful` must be False: a low-rank recurrent layer keeps no state from batch to "
                "batch. Received: stateful=True"
            )
        super().__init__(activation=activation, **kwargs)
        self.units = check_integer("units", units)
        self.supports_masking = True
        self.recurrent = without_kernel(
            self.stands_for(
                self.units,
                activation=self.activation,
                use_bias=self.use_bias,
                bias_initializer=self.bias_initializer,
                bias_regularizer=self.bias_regularizer,
                bias_constraint=self.bias_constraint,
                recurrent_initializer=recurrent_initializer,
                recurrent_regularizer=recurrent_regularizer,
                recurrent_constraint=recurrent_constraint,
                dropout=dropout,
                recurrent_dropout=recurrent_dropout,
                seed=seed,
                return_sequences=return_sequences,
                return_state=return_state,
                go_backwards=go_backwards,
                unroll=unroll,
                zero_output_for_mask=zero_output_for_mask,
                dtype=self.dtype_policy,
                trainable=self.trainable,
                name="recurrent",
                **own,
            )
        )

    @property
    def bias(self) -> keras.Variable | None:  # type: ignore[override]
        """The bias of the gates, or None."""
        return getattr(self.recurrent.cell, "bias", None)

    @property
    def recurrent_kernel(self) -> keras.Variable:
        """What multiplies the state, (units, gates * units)."""
        return self.recurrent.cell.recurrent_kernel

    @property
    def recurrent_initializer(self) -> Any:
        """Initializer of the recurrent kernel."""
        return self.recurrent.recurrent_initializer

    @property
    def recurrent_regularizer(self) -> Any:
        """Regularizer of the recurrent kernel."""
        return self.recurrent.recurrent_regularizer

    @property
    def recurrent_constraint(self) -> Any:
        """Constraint of the recurrent kernel."""
        return self.recurrent.recurrent_constraint

    @property
    def recurrent_activation(self) -> Any:
        """Activation of the gates, where there are such."""
        return self.recurrent.recurrent_activation

    def build(self, sequences_shape: Any, initial_state_shape: Any = None) -> None:
        features = sequences_shape[-1]
        if features is None:
            raise ValueError(
                f"The last axis of the input to {self.name!r} must be defined. "
                f"Received: sequences_shape={sequences_shape}"
            )
        self._build_factors((features, self.gates * self.units))
        self.recurrent.build(sequences_shape)

    def call(
        self,
        sequences: Any,
        initial_state: Any = None,
        mask: Any = None,
        training: bool = False,
    ) -> Any:
        with kernel_given(self.recurrent, ops.cast(self.kernel, self.compute_dtype)):
            return self.recurrent(
                sequences, initial_state=initial_state, mask=mask, training=training
            )

    def compute_mask(self, sequences: Any, previous_mask: Any = None) -> Any:
        """Return the mask of the outputs, as the dense layer would."""
        return self.recurrent.compute_mask(sequences, previous_mask)

    def compute_output_shape(self, sequences_shape: Any, initial_state_shape: Any = None) -> Any:
        """Return the shape of the output for this input shape, as the dense layer would."""
        return self.recurrent.compute_output_shape(sequences_shape)

    def take_other_weights(self, dense: keras.layers.Layer) -> None:
        """Take the recurrent kernel and the bias of a dense layer.

        Args:
            dense: A built layer of the kind that this one stands for.
        """
        copy_unnamed_settings(dense, self.recurrent)
        self.recurrent_kernel.assign(np.array(ops.convert_to_numpy(dense.cell.recurrent_kernel)))
        if self.bias is not None:
            self.bias.assign(np.array(ops.convert_to_numpy(dense.cell.bias)))

    def other_weights(self) -> list[NDArray[Any]]:
        """Return the recurrent kernel and the bias, if any."""
        held = [self.recurrent_kernel, *([] if self.bias is None else [self.bias])]
        return [ops.convert_to_numpy(weight) for weight in held]

    def get_config(self) -> dict[str, Any]:
        config = self.recurrent.get_config()
        # Keras 3.15's SimpleRNN leaves the seed out.
        config["seed"] = self.recurrent.cell.seed
        settings = {name: config[name] for name in (*_SETTINGS, *self.own)}
        return {**super().get_config(), "units": self.units, **settings}


_DOC = """

    The input kernel (D, {gates} * units) is held as U diag(s) V^T; see `SVDRecurrent`. Use it
    through `dprp_tf.factorize`, or in a new network in the place of the Keras layer, whose
    arguments it takes.

    Args:
        units: Number of outputs.
        {own}**kwargs: What `SVDRecurrent` takes.

    Input shape:
        `(batch, steps, D)`.

    Output shape:
        `(batch, units)`, or `(batch, steps, units)` with `return_sequences`; the states behind it
        with `return_state`.

    Raises:
        ValueError: If an argument is unusable.

    Source: DPRP (arXiv 2401.08014) Eq. 5 for the input kernel.

    Example:

    >>> layer = {name}(4, rank=2)
    >>> layer(keras.ops.zeros((3, 5, 6))).shape, layer.rank
    (TensorShape([3, 4]), 2)
    """


@low_rank_layer(keras.layers.SimpleRNN)
class SVDSimpleRNN(SVDRecurrent):
    __doc__ = (
        "A fully-connected recurrent layer that trains the SVD factors of its input kernel."
        + (_DOC.format(gates=1, own="", name="SVDSimpleRNN"))
    )
    gates = 1


@low_rank_layer(keras.layers.GRU)
class SVDGRU(SVDRecurrent):
    __doc__ = "A gated recurrent unit that trains the SVD factors of its input kernel." + (
        _DOC.format(
            gates=3,
            own='recurrent_activation: Of the gates. Default `"sigmoid"`.\n'
            "        reset_after: Whether the reset gate comes behind the product. Default True.\n"
            "        ",
            name="SVDGRU",
        )
    )
    gates = 3
    own = ("recurrent_activation", "reset_after")
    object_arguments = (*SVDRecurrent.object_arguments, "recurrent_activation")

    def __init__(
        self,
        units: int,
        *,
        recurrent_activation: Any = "sigmoid",
        reset_after: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            units, recurrent_activation=recurrent_activation, reset_after=reset_after, **kwargs
        )


@low_rank_layer(keras.layers.LSTM)
class SVDLSTM(SVDRecurrent):
    __doc__ = "A long short-term memory that trains the SVD factors of its input kernel." + (
        _DOC.format(
            gates=4,
            own='recurrent_activation: Of the gates. Default `"sigmoid"`.\n'
            "        unit_forget_bias: Whether the forget gate's bias starts at 1. Default True.\n"
            "        ",
            name="SVDLSTM",
        )
    )
    gates = 4
    own = ("recurrent_activation", "unit_forget_bias")
    object_arguments = (*SVDRecurrent.object_arguments, "recurrent_activation")

    def __init__(
        self,
        units: int,
        *,
        recurrent_activation: Any = "sigmoid",
        unit_forget_bias: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            units,
            recurrent_activation=recurrent_activation,
            unit_forget_bias=unit_forget_bias,
            **kwargs,
        )
