"""What every SVD layer shares: factors as weights, and the kernel they stand for."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import ops

from dprp_tf import decomposition
from dprp_tf.decomposition import Factors
from dprp_tf.files.arguments import check_choice, check_integer
from dprp_tf.keras_internals.graphs import layer_keys, walk_layers
from dprp_tf.layers.factorized import FactorizedLayer

__all__ = ["SVDLayer", "low_rank_keys", "low_rank_layers", "stored_ranks"]

# Where `load_own_variables` notes the ranks a file holds, instead of loading; None: it loads.
_STORED_RANKS: contextvars.ContextVar[dict[SVDLayer, int] | None] = contextvars.ContextVar(
    "stored_ranks", default=None
)

# Share of the largest singular value below which `balanced_gradients` stops speeding a
# direction up: without it the update of U grows like 1/s as a value dies.
_DAMPING = 0.1


class SVDLayer(FactorizedLayer):
    """Base of the layers whose weights are the SVD factors of a matricized kernel.

    The kernel is matricized to M of shape (h, w) and held as M = U diag(s) V^T with weights
    `u` (h, r), `s` (r,) and `v` (w, r). Every call rebuilds the kernel, which costs h*w*r
    multiplications; see `FactorizedLayer`.

    With `balanced_gradients` the gradients of U and V are divided, column by column, by
    s_j^2 + (0.1 max|s|)^2. A gradient step on a product U diag(s) V^T otherwise moves the kernel
    s_j^2 times as fast through U as the same step on a dense kernel would; balanced, it moves
    about as fast for tall matrices (`spatial`), where V spans everything, and at most twice as
    fast for square ones, so learning rates carry over. The forward pass is unchanged.

    Args:
        rank: Number of singular values, 1 to the full rank. Default: full rank.
        matricization: `"spatial"`, `"channel"` or `"separable"`; see `dprp_tf.decomposition`.
        balanced_gradients: Whether to balance the gradients of U and V. Default False.
        **kwargs: What `FactorizedLayer` takes: `use_bias`, `activation`, initializers,
            regularizers, constraints, `name`, `dtype`, `trainable`.

    Raises:
        ValueError: If `rank` or `matricization` is unusable.

    Source: DPRP (arXiv 2401.08014) III-B.
    """

    u: keras.Variable
    s: keras.Variable
    v: keras.Variable

    def __init__(
        self,
        *,
        rank: int | None = None,
        matricization: str = "spatial",
        balanced_gradients: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_choice("matricization", matricization, decomposition.MATRICIZATIONS)
        self._initial_rank = None if rank is None else check_integer("rank", rank)
        self.matricization = matricization
        self.balanced_gradients = bool(balanced_gradients)
        # Asked in each call: what to call when a gradient reaches the factors, or None.
        self.gradient_watch: Callable[[], Callable[[], None] | None] | None = None

    def start_from(self, factors: Factors) -> None:
        """Use these factors, instead of the initializer's, when the layer is built.

        Args:
            factors: U (h, r), s (r,), V (w, r) of the matricized kernel.

        Raises:
            ValueError: If the layer is built already.
        """
        super().start_from(factors)
        self._initial_rank = factors.rank

    def _start_factors(self) -> Factors:
        limit = self.full_rank
        rank = limit if self._initial_rank is None else self._initial_rank
        if rank > limit:
            raise ValueError(
                f"`rank` of layer {self.name!r} must lie in 1..{limit}, the full rank of a kernel "
                f"of shape {self.kernel_shape} in {self.matricization!r} form. "
                f"Received: rank={rank}"
            )
        factors: Factors | None = self._initial_factors
        if factors is None:
            matrix = decomposition.matricize(self._initial_kernel(), self.matricization)
            factors = decomposition.decompose(matrix, rank)
        height, width = self.matrix_shape
        if factors.u.shape != (height, rank) or factors.v.shape != (width, rank):
            raise ValueError(
                f"The factors of layer {self.name!r} must have shapes u ({height}, {rank}), s "
                f"({rank},), v ({width}, {rank}). Received: u {factors.u.shape}, "
                f"s {factors.s.shape}, v {factors.v.shape}"
            )
        return factors

    @property
    def rank(self) -> int | None:
        """The number of singular values now; None before the layer is built at full rank."""
        return int(self.s.shape[0]) if self.built else self._initial_rank

    @property
    def full_rank(self) -> int:
        """min(h, w), the largest rank this kernel can have."""
        return decomposition.full_rank(self.kernel_shape, self.matricization)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """The shape (h, w) of the matricized kernel."""
        return decomposition.matrix_shape(self.kernel_shape, self.matricization)

    @property
    def decomposition(self) -> str:  # type: ignore[override]
        """The matricization; see `FactorizedLayer`."""
        return self.matricization

    @property
    def ranks(self) -> tuple[int, ...]:
        """`(rank,)`; see `FactorizedLayer`."""
        return (int(self.rank or 0),)

    @property
    def full_ranks(self) -> tuple[int, ...]:
        """`(full_rank,)`; see `FactorizedLayer`."""
        return (self.full_rank,)

    @property
    def factor_variables(self) -> list[keras.Variable]:
        """U (h, r), s (r,), V (w, r)."""
        return [self.u, self.s, self.v]

    @property
    def factors(self) -> Factors:
        """The factors as NumPy arrays in float32 or wider: U (h, r), s (r,), V (w, r)."""
        return Factors(*self._factor_arrays())

    @property
    def rebuild_macs(self) -> int:
        """h w r, the multiply-accumulates of rebuilding the kernel once."""
        height, width = self.matrix_shape
        return height * width * int(self.rank or 0)

    def _rebuilt(self) -> Any:
        # In half precision the balance's 1 / s^2 would overflow.
        u, s, v = self._wide_factors()
        notice = (
            None if self.gradient_watch is None or not self.trainable else self.gradient_watch()
        )
        if notice is not None:
            s = _notice_gradient(s, notice)
        # (h, r), (r,), (w, r) -> (h, w) -> kernel shape
        matrix = _balanced_product(u, s, v) if self.balanced_gradients else _product(u, s, v)
        return decomposition.dematricize(matrix, self.kernel_shape, self.matricization, ops=ops)

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
        of the same name; see `dprp_tf.keras_internals.graphs.layer_keys`.
    """
    return {key: layer for key, layer in layer_keys(model).items() if isinstance(layer, SVDLayer)}


def _product(u: Any, s: Any, v: Any) -> Any:
    """Return U diag(s) V^T, shape (h, w); s goes with the shorter factor."""
    u, v = (u * s, v) if u.shape[0] < v.shape[0] else (u, v * s)
    return ops.matmul(u, ops.transpose(v))


@ops.custom_gradient
def _balanced_product(u: Any, s: Any, v: Any) -> tuple[Any, Any]:
    """The product; the gradients of U and V are divided by s_j^2 + (0.1 max|s|)^2.

    Written out, since a train step is longer by its number of operations: nothing of the taller
    factor's size is multiplied but by the gradient.
    """

    def gradient(*args: Any, upstream: Any = None) -> tuple[Any, Any, Any]:
        # (h, w). TensorFlow and JAX pass it by position, other backends by name.
        arriving = args[0] if upstream is None else upstream
        squared = ops.square(s)
        scaled = s / (squared + (_DAMPING**2 * ops.max(squared) + 1e-6))
        if u.shape[0] < v.shape[0]:
            along = ops.matmul(arriving, v)
            turned = ops.matmul(ops.transpose(arriving), u * scaled)
            return along * scaled, ops.sum(u * along, axis=0), turned
        along = ops.matmul(ops.transpose(arriving), u)
        turned = ops.matmul(arriving, v * scaled)
        return turned, ops.sum(v * along, axis=0), along * scaled

    return _product(u, s, v), gradient


def _notice_gradient(value: Any, notice: Callable[[], None]) -> Any:
    """The value itself; `notice` is called when its gradient is computed, or traced."""

    @ops.custom_gradient
    def noticed(value: Any) -> tuple[Any, Any]:
        def gradient(*args: Any, upstream: Any = None) -> Any:
            notice()
            return args[0] if upstream is None else upstream

        return ops.copy(value), gradient

    return noticed(value)
