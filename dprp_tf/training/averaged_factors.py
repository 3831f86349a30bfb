"""Averages of weights over a training: why factors that are retracted can't have them."""

from __future__ import annotations

from typing import Any

from dprp_tf.keras_internals.optimizers import averages_weights
from dprp_tf.layers import low_rank_layers
from dprp_tf.training.settings import DPRPSettings

__all__ = ["averages_turning_factors", "require_no_average"]


def averages_turning_factors(network: Any, settings: DPRPSettings, optimizer: Any) -> bool:
    """Return whether an optimizer averages factors that a retraction turns between its steps.

    Args:
        network: The model whose SVD layers train.
        settings: How it keeps their structure.
        optimizer: The optimizer, or None.

    Returns:
        Whether it would.
    """
    turns = settings.structure == "retraction"
    return (
        turns
        and averages_weights(optimizer)
        and any(layer.trainable for layer in low_rank_layers(network))
    )


def require_no_average(network: Any, settings: DPRPSettings, optimizer: Any) -> None:
    """Refuse an optimizer whose averages of the factors would not be those of the kernels.

    A retraction gives U, s and V new bases: the factors of two steps are of one kernel and of
    unlike frames, and their averages, multiplied, are neither's. The average of the kernels
    themselves has a higher rank than any of them, so no factors of this rank hold it.

    Args:
        network: The model whose SVD layers train.
        settings: How it keeps their structure.
        optimizer: The optimizer that will train them, or None.

    Raises:
        ValueError: If it was made with `use_ema=True`, the structure is kept by retraction, and a
            layer trains.
    """
    if averages_turning_factors(network, settings, optimizer):
        raise ValueError(
            '`optimizer` must not average the weights of SVD layers whose structure "retraction" '
            f"keeps. Received: {type(optimizer).__name__} with use_ema=True; the retraction turns "
            "U and V between steps, so the average of the factors is not that of the kernels. Use "
            "the optimizer without use_ema (and without SwapEMAWeights) and let the learning rate "
            'fall instead, or train with DPRPSettings(structure="smoothed"), which turns nothing, '
            "or average while fine-tuning the folded model."
        )
