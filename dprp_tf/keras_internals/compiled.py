"""A model's compiled functions and the state that they train."""

from __future__ import annotations

import keras

__all__ = ["renew_functions", "sync"]


def sync(model: keras.Model) -> None:
    """Bring a model's variables up to date with the train step's state, on any backend.

    Args:
        model: A model, inside or outside `fit`.
    """
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()


def renew_functions(model: keras.Model) -> None:
    """Compile those of a model's train, test and predict functions anew that were compiled before.

    Args:
        model: A model whose variables or settings have changed.
    """
    # Kept compiled functions would go on training and evaluating the old payloads.
    for kind in ("train", "test", "predict"):
        if getattr(model, f"{kind}_function", None) is not None:
            getattr(model, f"make_{kind}_function")(force=True)
