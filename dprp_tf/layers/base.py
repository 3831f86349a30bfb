"""What every SVD layer shares: factors as weights, and the kernel they stand for."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from dprp_tf import factorization
from dprp_tf.factorization import Factors
from dprp_tf.graphs import layer_keys, walk_layers

__all__ = [
    "OBJECT_ARGUMENTS",
    "SVDLayer",
    "low_rank_keys",
    "low_rank_layers",
    "stored_ranks",
]

# Where `load_own_variables` notes the ranks a file holds, instead of loading; None: it loads.
_STORED_RANKS: contextvars.ContextVar[dict[SVDLayer, int] | None] = contextvars.ContextVar(
    "stored_ranks", default=None
)

# What an SVD layer and the dense one it stands for take as objects.
OBJECT_ARGUMENTS = (
    "activation",
    "kernel_regularizer",
    "bias_regularizer",
    "activity_regularizer",
    "kernel_constraint",
    "bias_constraint",
)

# Share of the largest singular value below which `balanced_gradients` stops speeding a
# direction up: without it the update of U grows like 1/s as a value dies.
_DAMPING = 0.1


class SVDLayer(keras.layers.Layer):
    """Base of the layers whose weights are the factors of a kernel.

    The kernel is matricized to M of shape (h, w) and held as M = U diag(s) V^T with weights
    `u` (h, r), `s` (r,) and `v` (w, r). Every call rebuilds the kernel, which costs h*w*r
    multiplications in float32, and then computes what the dense layer would, in the layer's compute
    dtype.

    With `balanced_gradients` the gradients of U and V are divided, column by column, by
    s_j^2 + (0.1 max|s|)^2. A gradient step on a product U diag(s) V^T otherwise moves the kernel
    s_j^2 times as fast through U as the same step on a dense kernel would; balanced, it moves
    about as fast for tall matrices (`spatial`), where V spans everything, and at most twice as
    fast for square ones, so learning rates carry over. The forward pass is unchanged.

    Args:
        rank: Number of singular values, 1 to the full rank. Default: full rank.
        matricization: `"spatial"`, `"channel"` or `"separable"`; see `dprp_tf.factorization`.
        balanced_gradients: Whether to balance the gradients of U and V. Default False.
        use_bias: Whether to add a bias. Default True.
        activation: Keras activation or None.
        kernel_initializer: Initializer of the dense kernel, whose SVD gives the factors.
        bias_initializer: Initializer of the bias.
        kernel_regularizer: Regularizer of the rebuilt kernel.
        bias_regularizer: Regularizer of the bias.
        activity_regularizer: Regularizer of the output.
        kernel_constraint: Constraint applied to the rebuilt kernel at every call.
        bias_constraint: Constraint of the bias.
        **kwargs: `name`, `dtype`, `trainable`.

    Raises:
        ValueError: If `rank` or `matricization` is unusable.

    Source: DPRP (arXiv 2401.08014) III-B.
    """

    def __init__(
        self,
        *,
        rank: int | None = None,
        matricization: str = "spatial",
        balanced_gradients: bool = False,
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
        if matricization not in factorization.MATRICIZATIONS:
            raise ValueError(
                f"`matricization` must be one of {factorization.MATRICIZATIONS}. "
                f"Received: matricization={matricization!r}"
            )
        if rank is not None and (not isinstance(rank, (int, np.integer)) or rank < 1):
            raise ValueError(f"`rank` must be None or an integer of 1 or more. Received: {rank!r}")
        self._initial_rank = None if rank is None else int(rank)
        self._initial_factors: Factors | None = None
        self.matricization = matricization
        self.balanced_gradients = bool(balanced_gradients)
        self.use_bias = bool(use_bias)
        self.activation = keras.activations.get(activation)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)
        self.bias_constraint = keras.constraints.get(bias_constraint)

    def start_from(self, factors: Factors) -> None:
        """Use these factors, instead of the initializer's, when the layer is built.

        Args:
            factors: U (h, r), s (r,), V (w, r) of the matricized kernel.

        Raises:
            ValueError: If the layer is built already.
        """
        if self.built:
            raise ValueError(
                f"`start_from` must come before the layer is built. Received it on the built "
                f"layer {self.name!r}; assign to its weights `u`, `s` and `v` instead."
            )
        self._initial_rank = factors.rank
        self._initial_factors = factors

    def _build_factors(self, kernel_shape: Sequence[int], bias_size: int) -> None:
        self.kernel_shape = tuple(int(size) for size in kernel_shape)
        limit = self.full_rank
        rank = limit if self._initial_rank is None else self._initial_rank
        if rank > limit:
            raise ValueError(
                f"`rank` of layer {self.name!r} must lie in 1..{limit}, the full rank of a kernel "
                f"of shape {self.kernel_shape} in {self.matricization!r} form. "
                f"Received: rank={rank}"
            )
        factors = self._initial_factors
        if factors is None:
            with _outside_graph():
                kernel = np.asarray(
                    ops.convert_to_numpy(
                        self.kernel_initializer(self.kernel_shape, dtype=self.variable_dtype)
                    ),
                    dtype=np.float32,
                )
            matrix = factorization.matricize(kernel, self.matricization)
            factors = factorization.decompose(matrix, rank)
        height, width = factorization.matrix_shape(self.kernel_shape, self.matricization)
        if factors.u.shape != (height, rank) or factors.v.shape != (width, rank):
            raise ValueError(
                f"The factors of layer {self.name!r} must have shapes u ({height}, {rank}), s "
                f"({rank},), v ({width}, {rank}). Received: u {factors.u.shape}, "
                f"s {factors.s.shape}, v {factors.v.shape}"
            )
        shapes = {"u": (height, rank), "s": (rank,), "v": (width, rank)}
        self.u, self.s, self.v = (
            # Not cast to half precision by itself: the kernel is rebuilt before that.
            self.add_weight(
                name=name,
                shape=shapes[name],
                initializer=_constant(values),
                trainable=True,
                autocast=False,
            )
            for name, values in factors._asdict().items()
        )
        self.bias = (
            self.add_weight(
                name="bias",
                shape=(bias_size,),
                initializer=self.bias_initializer,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
                trainable=True,
            )
            if self.use_bias
            else None
        )
        self._initial_factors = None

    @property
    def rank(self) -> int | None:
        """The number of singular values now; None before the layer is built at full rank."""
        return int(self.s.shape[0]) if self.built else self._initial_rank

    @property
    def full_rank(self) -> int:
        """min(h, w), the largest rank this kernel can have."""
        return factorization.full_rank(self.kernel_shape, self.matricization)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """The shape (h, w) of the matricized kernel."""
        return factorization.matrix_shape(self.kernel_shape, self.matricization)

    @property
    def factors(self) -> Factors:
        """The factors as NumPy arrays in float32 or wider: U (h, r), s (r,), V (w, r)."""
        values = (ops.convert_to_numpy(value) for value in (self.u, self.s, self.v))
        return Factors(*(v if v.dtype == np.float64 else v.astype(np.float32) for v in values))

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

        Half precision would round three factors and their products instead of the kernel once,
        and the balance's 1 / s^2 would overflow; a call casts the result to its compute dtype.
        """
        u, s, v = (_wide(value) for value in (self.u, self.s, self.v))
        if self.balanced_gradients:
            scale = _balance(s)
            u, v = _scale_gradient(u, scale), _scale_gradient(v, scale)
        # (h, r) * (r,) @ (r, w) -> (h, w) -> kernel shape
        matrix = ops.matmul(u * s, ops.transpose(v))
        kernel = factorization.dematricize(matrix, self.kernel_shape, self.matricization, ops=ops)
        return kernel if self.kernel_constraint is None else self.kernel_constraint(kernel)

    def _get_own_losses(self) -> list[Any]:
        # Keras asks each layer for its losses here; a dense layer's kernel regularizer counts
        # once per step however often the layer is called, so add_loss in call() would not do.
        losses = super()._get_own_losses()
        if self.kernel_regularizer is not None and self.built and self.trainable:
            losses.append(self.kernel_regularizer(self.kernel))
        return losses

    def load_own_variables(self, store: Any) -> None:
        """Load the weights a file holds; see `stored_ranks`."""
        noted = _STORED_RANKS.get()
        if noted is None:
            super().load_own_variables(store)
            return
        # u (h, r), s (r,) and v (w, r) are the first three weights; what fits at no rank is left
        # for the loading itself to refuse.
        shapes = [tuple(store[key].shape) for key in "012" if key in store.keys()]  # noqa: SIM118
        rank = shapes[1][0] if len(shapes) == 3 and len(shapes[1]) == 1 else 0
        height, width = self.matrix_shape
        if 1 <= rank <= self.full_rank and shapes == [(height, rank), (rank,), (width, rank)]:
            noted[self] = rank

    def get_config(self) -> dict[str, Any]:
        """Return the constructor arguments, with the rank of now."""
        return {
            **super().get_config(),
            "rank": self.rank,
            "matricization": self.matricization,
            "balanced_gradients": self.balanced_gradients,
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


@contextlib.contextmanager
def stored_ranks() -> Iterator[dict[SVDLayer, int]]:
    """Within it, loading a file notes the rank it holds for each SVD layer and loads none of them.

    Yields:
        The ranks by layer, filled while a file is loaded.

    Example:

    >>> with stored_ranks() as ranks:
    ...     pass  # model.load_weights(path)
    >>> ranks
    {}
    """
    noted: dict[SVDLayer, int] = {}
    token = _STORED_RANKS.set(noted)
    try:
        yield noted
    finally:
        _STORED_RANKS.reset(token)


def low_rank_layers(model: keras.Model) -> list[SVDLayer]:
    """Return the SVD layers of a model, nested models included, in model order.

    Args:
        model: A Keras model.

    Returns:
        The layers; empty for a model without any.
    """
    return [layer for layer in walk_layers(model) if isinstance(layer, SVDLayer)]


def low_rank_keys(model: keras.Model) -> dict[str, SVDLayer]:
    """Return the SVD layers of a model by a name that no other layer has, in model order.

    Args:
        model: A Keras model.

    Returns:
        The layers by name, or by path such as "backbone/conv" where nested models have layers
        of the same name; see `dprp_tf.graphs.layer_keys`.
    """
    return {key: layer for key, layer in layer_keys(model).items() if isinstance(layer, SVDLayer)}


def _wide(value: Any) -> Any:
    """Return a variable's value as a tensor of float32 or wider."""
    dtype = keras.backend.standardize_dtype(value.dtype)
    return ops.cast(value, dtype if dtype == "float64" else "float32")


def _balance(s: Any) -> Any:
    """Return 1 / (s_j^2 + (0.1 max|s|)^2), shape (r,), without gradient."""
    s = ops.stop_gradient(s)
    floor = _DAMPING * ops.max(ops.abs(s))
    return 1.0 / (ops.square(s) + ops.square(floor) + 1e-6)


def _scale_gradient(value: Any, scale: Any) -> Any:
    # The forward value is value + scale * 0: exactly `value`.
    constant = ops.stop_gradient(value)
    return constant + scale * (value - constant)


def _constant(array: np.ndarray) -> Any:
    def initializer(shape: Any, dtype: Any = None) -> Any:
        return ops.convert_to_tensor(array, dtype=dtype)

    return initializer


@contextlib.contextmanager
def _outside_graph() -> Iterator[None]:
    """Compute eagerly even while TensorFlow traces: the SVD of an initial kernel needs values."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.init_scope():
            yield
    else:
        yield
