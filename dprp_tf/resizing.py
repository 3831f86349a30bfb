"""The one module that knows Keras' internals: make variables and optimizer slots smaller in fit.

A `keras.Variable` is kept and given a new payload and shape, so that order, names and tracking
stay as they are; the compiled functions are then made anew. Everything here relies on attributes
Keras does not promise, hence one module and a test per backend.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from dprp_tf import factorization
from dprp_tf.layers import SVDLayer

__all__ = [
    "exclude_from_weight_decay",
    "inner_optimizer",
    "momentum_slots",
    "optimizer_slots",
    "renew_functions",
    "resize",
    "set_ranks",
    "start_averages",
    "sync",
]

# Slots that follow a variable linearly change sign with it; the others hold squares or sizes.
_SIGNED = (
    "momentums",
    "_momentums",
    "_m",
    "_average_gradients",
    "_linears",
    "_accumulated_gradients",
    "_model_variables_moving_average",
)


# Slots that hold values of their variable: a zero in them is a wrong value, no fresh start.
_AVERAGES = ("_model_variables_moving_average",)


def sync(model: keras.Model) -> None:
    """Bring a model's variables up to date with the train step's state, on any backend.

    Args:
        model: A model, inside or outside `fit`.
    """
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()


def inner_optimizer(optimizer: Any) -> Any:
    """Return the optimizer that holds the slots, inside a loss-scaling wrapper or not.

    Args:
        optimizer: A Keras optimizer.

    Returns:
        The inner optimizer, or `optimizer` itself.
    """
    return getattr(optimizer, "inner_optimizer", optimizer)


def optimizer_slots(optimizer: Any, variable: keras.Variable) -> dict[str, keras.Variable]:
    """Return the optimizer's slots of one variable, by the attribute that holds them.

    Args:
        optimizer: A built Keras optimizer, or one not built yet (no slots).
        variable: A trainable variable of the model.

    Returns:
        Slots by attribute name, such as `{"momentums": ...}`; empty for plain SGD.
    """
    inner = inner_optimizer(optimizer)
    if inner is None or not inner.built:
        return {}
    index = next(
        (i for i, known in enumerate(inner._trainable_variables) if known is variable), None
    )
    if index is None:
        return {}
    count = len(inner._trainable_variables)
    return {
        name: slots[index]
        for name, slots in vars(inner).items()
        if name != "_trainable_variables"
        and isinstance(slots, (list, tuple))
        and len(slots) == count
        and isinstance(slots[index], keras.Variable)
    }


def momentum_slots(optimizer: Any, variables: Sequence[keras.Variable]) -> list[keras.Variable]:
    """Return the first-moment slots of these variables, in their order.

    Args:
        optimizer: A Keras optimizer.
        variables: Trainable variables.

    Returns:
        One slot per variable, or an empty list if the optimizer keeps no momentum.
    """
    found = []
    for variable in variables:
        slots = optimizer_slots(optimizer, variable)
        slot = next((slots[n] for n in ("momentums", "_momentums", "_m") if n in slots), None)
        if slot is None:
            return []
        found.append(slot)
    return found


def exclude_from_weight_decay(optimizer: Any, variables: Sequence[keras.Variable]) -> None:
    """Leave variables out of the optimizer's decoupled weight decay, beside those left out before.

    Args:
        optimizer: A Keras optimizer.
        variables: Variables to leave out.
    """
    inner = inner_optimizer(optimizer)
    if not getattr(inner, "weight_decay", None):
        return
    known: set[Any] = getattr(inner, "_exclude_from_weight_decay", set())
    inner._exclude_from_weight_decay = set(known) | {inner._var_key(v) for v in variables}
    if not hasattr(inner, "_exclude_from_weight_decay_pattern"):
        inner._exclude_from_weight_decay_pattern = None
    inner._exclude_from_weight_decay_cache = {}


def resize(model: keras.Model, ranks: dict[SVDLayer, int]) -> None:
    """Bring layers into canonical order and cut them to new ranks, optimizer slots included.

    Column j of a layer's new factors is old column order[j], with the sign of its value moved
    into U, for the j < rank largest |s|; the slots of u, s and v are permuted, signed and cut the
    same way. The compiled train, test and predict functions are made anew, and other layers, the
    iteration count, the learning rate and metrics stay as they are.

    Args:
        model: The model, compiled or not, inside `fit` or not.
        ranks: The new rank of each layer to change, 1 to its present rank.

    Raises:
        ValueError: If a rank is out of range, if a factor is not finite, or if the optimizer
            keeps slots whose shape does not follow the variable's.
    """
    sync(model)
    optimizer = getattr(model, "optimizer", None)
    plans = []
    for layer, rank in ranks.items():
        factors = layer.factors
        if layer.broken_factor is not None:
            raise ValueError(
                "The ranks of a model can't be cut while its factors are not finite. Received "
                f"NaN or infinite entries in `{layer.broken_factor}` of layer {layer.name!r}; "
                "lower the learning rate or restore an earlier checkpoint."
            )
        if not 1 <= rank <= factors.rank:
            raise ValueError(
                f"`ranks` must lie between 1 and the present rank. Received: {rank} for layer "
                f"{layer.name!r} of rank {factors.rank}"
            )
        order, signs = factorization.canonical_order(factors.s)
        plans.append((layer, order[:rank], signs[:rank]))
        _require_slots_like_variables(optimizer, layer)
    with _swapping(model):
        for layer, order, signs in plans:
            for slot, variable, name in _slots(optimizer, layer):
                flips = signs if name in _SIGNED and variable is not layer.v else None
                _swap(slot, _cut(ops.convert_to_numpy(slot), order, flips))
            for variable in (layer.u, layer.s, layer.v):
                flips = None if variable is layer.v else signs
                _swap(variable, _cut(ops.convert_to_numpy(variable), order, flips))


def set_ranks(model: keras.Model, ranks: dict[SVDLayer, int]) -> list[SVDLayer]:
    """Give layers room for factors of other ranks, lower or higher, which are then to be assigned.

    The factors of a layer whose rank changes hold zeros afterwards, as do the optimizer's slots of
    them: a momentum belongs to the factors it was made with. All else stays as it is.

    Args:
        model: The model, compiled or not, inside `fit` or not.
        ranks: The new rank of each layer, 1 to its full rank.

    Returns:
        The layers whose rank changed.

    Raises:
        ValueError: If a rank is out of range, or if the optimizer keeps slots whose shape does
            not follow the variable's.
    """
    sync(model)
    for layer, rank in ranks.items():
        if not 1 <= rank <= layer.full_rank:
            raise ValueError(
                f"`ranks` must lie between 1 and the full rank. Received: {rank} for layer "
                f"{layer.name!r} of full rank {layer.full_rank}"
            )
    changed = {layer: rank for layer, rank in ranks.items() if rank != layer.rank}
    if not changed:
        return []
    optimizer = getattr(model, "optimizer", None)
    for layer in changed:
        _require_slots_like_variables(optimizer, layer)
    with _swapping(model):
        for layer, rank in changed.items():
            slots = [slot for slot, _, _ in _slots(optimizer, layer)]
            for held in [*slots, layer.u, layer.s, layer.v]:
                _swap(held, np.zeros((*held.shape[:-1], rank), dtype=np.float32))
    return list(changed)


def start_averages(model: keras.Model, layers: Iterable[SVDLayer]) -> None:
    """Let averages of factors that `set_ranks` emptied and nothing has filled begin at the factors.

    Args:
        model: The model, its new factors assigned.
        layers: Those whose rank changed.
    """
    optimizer = getattr(model, "optimizer", None)
    for layer in layers:
        for slot, variable, name in _slots(optimizer, layer):
            if name in _AVERAGES and not np.any(ops.convert_to_numpy(slot)):
                # Through NumPy: a buffer that two variables share would be donated twice on JAX.
                slot.assign(ops.convert_to_numpy(variable))


@contextlib.contextmanager
def _swapping(model: keras.Model) -> Iterator[None]:
    """Give variables new payloads inside; the optimizer and the compiled functions follow."""
    optimizer = getattr(model, "optimizer", None)
    variables = list(model.trainable_variables)
    old_keys = _keys(optimizer, variables)
    with _strategy_scope(model):
        yield
    _rekey(optimizer, variables, old_keys)
    renew_functions(model)


def _cut(
    values: NDArray[Any], order: NDArray[np.intp], signs: NDArray[np.floating] | None
) -> NDArray[Any]:
    """Take the last axis' entries in this order, (..., r) -> (..., len(order)), and sign them."""
    taken = values[..., order]
    return taken if signs is None else (taken * signs).astype(values.dtype)


def _require_slots_like_variables(optimizer: Any, layer: SVDLayer) -> None:
    for slot, variable, name in _slots(optimizer, layer):
        if tuple(slot.shape) != tuple(variable.shape):
            raise ValueError(
                f"Rank pruning needs an optimizer whose slots have their variable's shape. "
                f"Received: {type(inner_optimizer(optimizer)).__name__}, whose {name!r} has "
                f"shape {tuple(slot.shape)} for a variable of shape {tuple(variable.shape)}. "
                "Use SGD, Adam, AdamW or RMSprop; or compile the model anew before loading."
            )


def _slots(optimizer: Any, layer: SVDLayer) -> Iterator[tuple[keras.Variable, keras.Variable, str]]:
    for variable in (layer.u, layer.s, layer.v):
        for name, slot in optimizer_slots(optimizer, variable).items():
            yield slot, variable, name


def _swap(variable: keras.Variable, values: NDArray[Any]) -> None:
    variable._shape = tuple(values.shape)
    variable._initialize(ops.convert_to_tensor(values, dtype=variable.dtype))


def _keys(optimizer: Any, variables: Sequence[keras.Variable]) -> list[Any]:
    inner = inner_optimizer(optimizer) if optimizer is not None else None
    return [] if inner is None else [inner._var_key(variable) for variable in variables]


def _rekey(optimizer: Any, variables: Sequence[keras.Variable], old_keys: list[Any]) -> None:
    """Let the optimizer find its variables again: TensorFlow keys them by their payload."""
    if not old_keys:
        return
    inner = inner_optimizer(optimizer)
    if inner.built:
        inner._trainable_variables_indices = {
            inner._var_key(known): i for i, known in enumerate(inner._trainable_variables)
        }
    excluded = getattr(inner, "_exclude_from_weight_decay", None)
    if excluded:
        renamed = dict(zip(old_keys, _keys(optimizer, variables), strict=True))
        inner._exclude_from_weight_decay = {renamed.get(key, key) for key in excluded}
    inner._exclude_from_weight_decay_cache = {}


def renew_functions(model: keras.Model) -> None:
    """Make a model's compiled train, test and predict functions anew, those it has.

    Args:
        model: A model whose variables or settings have changed.
    """
    # Kept compiled functions would go on training and evaluating the old payloads.
    for kind in ("train", "test", "predict"):
        if getattr(model, f"{kind}_function", None) is not None:
            getattr(model, f"make_{kind}_function")(force=True)


def _strategy_scope(model: keras.Model) -> contextlib.AbstractContextManager[Any]:
    strategy = getattr(model, "_distribute_strategy", None)
    return strategy.scope() if strategy is not None else contextlib.nullcontext()
