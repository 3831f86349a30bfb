"""What every layer shares that trains factors of a kernel and rebuilds it in each call."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from dprp_tf.keras_internals.graphs import layer_keys, walk_layers

__all__ = [
    "OBJECT_ARGUMENTS",
    "FactorizedLayer",
    "factorized_keys",
    "factorized_layers",
    "plain_ranks",
]

# What a factorized layer and the dense one it stands for take as objects.
OBJECT_ARGUMENTS = (
    "activation",
    "kernel_regularizer",
    "bias_regularizer",
    "activity_regularizer",
    "kernel_constraint",
    "bias_constraint",
)


class FactorizedLayer(keras.layers.Layer):
    """Base of the layers whose weights are factors of a kernel, whatever the factorization.

    `stands_for` is the Keras layer in whose place it stands; `layers.registry` sets it.
    `kernel_shape` has the channels read before those made, `kernel` the order of the dense layer,
    which in a transposed convolution is the other.

    Every call rebuilds the kernel in float32 or wider and then computes what the dense layer
    would, in the layer's compute dtype: strides, dilation, padding and data format, and the
    kernel's regularizer and constraint, mean what they mean there.

    Args:
        use_bias: Whether to add a bias. Default True.
        activation: Keras activation or None.
        kernel_initializer: Initializer of the dense kernel, whose decomposition gives the factors.
        bias_initializer: Initializer of the bias.
        kernel_regularizer: Regularizer of the rebuilt kernel.
        bias_regularizer: Regularizer of the bias.
        activity_regularizer: Regularizer of the output.
        kernel_constraint: Constraint applied to the rebuilt kernel at every call.
        bias_constraint: Constraint of the bias.
        **kwargs: `name`, `dtype`, `trainable`.
    """

    stands_for: ClassVar[type[keras.layers.Layer]]
    object_arguments: ClassVar[tuple[str, ...]] = OBJECT_ARGUMENTS
    kernel_shape: tuple[int, ...]
    decomposition: str
    bias: keras.Variable | None

    def __init__(
        self,
        *,
        use_bias: bool = True,
        activation: Any = None,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(activity_regularizer=activity_regularizer, **kwargs)
        self.use_bias = bool(use_bias)
        self.activation = keras.activations.get(activation)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)
        self.bias_constraint = keras.constraints.get(bias_constraint)
        self._initial_factors: Any = None

    @property
    @abstractmethod
    def ranks(self) -> tuple[int, ...]:
        """The ranks of the built layer: `(r,)`, or `(r_in, r_out)` of Tucker-2."""

    @property
    @abstractmethod
    def full_ranks(self) -> tuple[int, ...]:
        """The largest ranks this kernel can have."""

    @property
    @abstractmethod
    def factor_variables(self) -> list[keras.Variable]:
        """The variables that hold the factors, in the order they are made."""

    @property
    @abstractmethod
    def factors(self) -> Any:
        """The factors as a named tuple of NumPy arrays in float32 or wider."""

    @property
    @abstractmethod
    def rebuild_macs(self) -> int:
        """Multiply-accumulates of rebuilding the kernel once."""

    @abstractmethod
    def _rebuilt(self) -> Any:
        """Return the kernel the factors stand for, in float32 or wider."""

    @abstractmethod
    def _start_factors(self) -> Any:
        """Return the factors to build with: those given, or of the initializer's kernel."""

    def start_from(self, factors: Any) -> None:
        """Use these factors, instead of the initializer's, when the layer is built.

        Args:
            factors: What `factors` of a layer of this kernel's shape would return.

        Raises:
            ValueError: If the layer is built already.
        """
        if self.built:
            names = ", ".join(f"`{name}`" for name in factors._fields)
            raise ValueError(
                f"`start_from` must come before the layer is built. Received it on the built "
                f"layer {self.name!r}; assign to its weights {names} instead."
            )
        self._initial_factors = factors

    def prepare_copy(self, copy: FactorizedLayer) -> None:
        """Let a copy of this layer start from its factors instead of decomposing a kernel anew.

        Args:
            copy: The copy, not built yet; graphs are rewritten with it.
        """
        copy.start_from(self.factors)

    @property
    def broken_factor(self) -> str | None:
        """The name of a factor that holds NaN or infinite values; None if all are finite."""
        for name, values in self.factors._asdict().items():
            if not np.all(np.isfinite(values)):
                return str(name)
        return None

    @property
    def kernel(self) -> Any:
        """The kernel the factors stand for, in the dense layer's shape, in float32 or wider.

        Half precision would round every factor and their products instead of the kernel once; a
        call casts the result to its compute dtype.
        """
        kernel = self.as_held(self._rebuilt())
        return kernel if self.kernel_constraint is None else self.kernel_constraint(kernel)

    def take_other_weights(self, dense: keras.layers.Layer) -> None:
        """Take what a dense layer has beside its kernel: the bias.

        Args:
            dense: A built layer of the kind that this one stands for.
        """
        if self.bias is not None:
            # A copy: sharing the buffer would let JAX donate it from under the other model.
            self.bias.assign(np.array(ops.convert_to_numpy(dense.bias)))

    def other_weights(self) -> list[NDArray[Any]]:
        """Return what the dense layer holds behind its kernel, in its order: the bias, if any."""
        return [] if self.bias is None else [ops.convert_to_numpy(self.bias)]

    def _build_weights(self, kernel_shape: Sequence[int]) -> None:
        """Add the factors of a kernel of this shape, then the bias of its last axis' size."""
        self._build_factors(kernel_shape)
        self.bias = (
            self.add_weight(
                name="bias",
                shape=(self.kernel_shape[-1],),
                initializer=self.bias_initializer,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
                trainable=True,
            )
            if self.use_bias
            else None
        )

    def _build_factors(self, kernel_shape: Sequence[int]) -> None:
        """Add the factors of a kernel of this shape, (*spatial, C, S) or (D_in, D_out)."""
        self.kernel_shape = tuple(int(size) for size in kernel_shape)
        for name, values in self._start_factors()._asdict().items():
            # Not cast to half precision by itself: the kernel is rebuilt before that.
            variable = self.add_weight(
                name=name,
                shape=values.shape,
                initializer=_constant(values),
                trainable=True,
                autocast=False,
            )
            setattr(self, name, variable)
        self._initial_factors = None

    def _initial_kernel(self) -> NDArray[np.float32]:
        """Draw a kernel from the initializer."""
        with _outside_graph():
            held = self.as_held(np.empty(self.kernel_shape, np.bool_), np).shape
            drawn = self.kernel_initializer(held, dtype=self.variable_dtype)
            kernel = np.asarray(ops.convert_to_numpy(drawn), dtype=np.float32)
        return self.as_held(kernel, np)

    def as_held(self, kernel: Any, backend: Any = ops) -> Any:
        """Turn a kernel of `kernel_shape` into the dense layer's own shape, or back.

        Args:
            kernel: A tensor, or an array.
            backend: What turns it: `keras.ops`, or NumPy. Default `keras.ops`.

        Returns:
            The kernel, with its two last axes swapped in transposed convolutions.
        """
        return kernel

    def _wide_factors(self) -> list[Any]:
        """Return the factors as tensors of float32 or wider."""
        return [ops.cast(value, _wide(value.dtype)) for value in self.factor_variables]

    def _factor_arrays(self) -> list[NDArray[Any]]:
        """Return the factors as arrays of float32 or wider."""
        return [
            np.asarray(ops.convert_to_numpy(value)).astype(_wide(value.dtype))
            for value in self.factor_variables
        ]

    def _get_own_losses(self) -> list[Any]:
        # Keras asks each layer for its losses here; a dense layer's kernel regularizer counts
        # once per step however often the layer is called, so add_loss in call() would not do.
        losses = super()._get_own_losses()
        if self.kernel_regularizer is not None and self.built and self.trainable:
            losses.append(self.kernel_regularizer(self.kernel))
        return losses

    def get_config(self) -> dict[str, Any]:
        """Return the constructor arguments."""
        return {
            **super().get_config(),
            "use_bias": self.use_bias,
            "activation": keras.activations.serialize(self.activation),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "bias_regularizer": keras.regularizers.serialize(self.bias_regularizer),
            "activity_regularizer": keras.regularizers.serialize(self.activity_regularizer),
            "kernel_constraint": keras.constraints.serialize(self.kernel_constraint),
            "bias_constraint": keras.constraints.serialize(self.bias_constraint),
        }


def factorized_layers(model: keras.Model) -> list[FactorizedLayer]:
    """Return the SVD and Tucker layers of a model, nested models included, in model order.

    Args:
        model: A Keras model.

    Returns:
        The layers; empty for a model without any.
    """
    return [layer for layer in walk_layers(model) if isinstance(layer, FactorizedLayer)]


def factorized_keys(model: keras.Model) -> dict[str, FactorizedLayer]:
    """Return the SVD and Tucker layers of a model by a name that no other layer has.

    Args:
        model: A Keras model.

    Returns:
        The layers in model order, by name, or by path such as "backbone/conv" where nested models
        have layers of the same name; see `dprp_tf.keras_internals.graphs.layer_keys`.
    """
    keys = layer_keys(model).items()
    return {key: layer for key, layer in keys if isinstance(layer, FactorizedLayer)}


def plain_ranks(ranks: tuple[int, ...]) -> int | tuple[int, ...]:
    """Return ranks as tables and files hold them: a single one as an integer.

    Args:
        ranks: `(r,)` or `(r_in, r_out)`.

    Returns:
        r, or the pair.

    Example:

    >>> plain_ranks((4,)), plain_ranks((4, 8))
    (4, (4, 8))
    """
    return ranks[0] if len(ranks) == 1 else ranks


def _wide(dtype: Any) -> str:
    standard = keras.backend.standardize_dtype(dtype)
    return standard if standard == "float64" else "float32"


def _constant(array: NDArray[Any]) -> Any:
    def initializer(shape: Any, dtype: Any = None) -> Any:
        return ops.convert_to_tensor(array, dtype=dtype)

    return initializer


@contextlib.contextmanager
def _outside_graph() -> Iterator[None]:
    """Compute eagerly even while TensorFlow traces: decomposing an initial kernel needs values."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.init_scope():
            yield
    else:
        yield
