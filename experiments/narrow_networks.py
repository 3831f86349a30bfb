"""What a user would do instead of cutting: narrower ResNets trained from scratch for as long."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import keras

from dprp_tf.costs.width_table import WidthTable
from dprp_tf.data import Dataset
from dprp_tf.keras_internals.precision import in_float32
from dprp_tf.training.fine_tuning import FineTuning, classification_loss
from dprp_tf.training.saving import load_model, save_model
from dprp_tf.zoo.residual import residual_network

__all__ = ["Told", "narrow_widths", "trained_narrow"]

Widths = tuple[int, int, int]


def narrow_widths(
    table: WidthTable, share: float, widths: Widths = (16, 32, 64), multiple: int = 4
) -> Widths:
    """Return the widths of the largest network of the same kind within a share of the time.

    Of all widths in multiples that grow at least by half from stage to stage, as people draw such
    networks, those of the most multiplications whose predicted time fits.

    Args:
        table: Times of the whole network by width.
        share: Of its time, above 0 and below 1.
        widths: Those of the whole network's stages.
        multiple: Multiples in which widths come.

    Returns:
        A width for each stage.

    Raises:
        ValueError: If none fits.

    Example:

    >>> from dprp_tf.costs.width_latency import CostGrid, WidthLatency
    >>> grid = CostGrid((8, 16), (8, 16), ((1.0, 2.0), (2.0, 4.0)))
    >>> row = WidthLatency("a", (3, 3), grid)
    >>> table = WidthTable((row,), 4.0, 0.0, "local", "litert", "int8", 1, "ms", "some", "2.3")
    >>> narrow_widths(table, 0.3, (16, 32, 64), 8)
    (8, 32, 64)
    """
    found: dict[Widths, int] = {}
    first, second, third = (range(multiple, width + 1, multiple) for width in widths)
    for narrow in product(first, second, third):
        if any(2 * after < 3 * before for before, after in pairwise(narrow)):
            continue
        at = dict(zip(widths, narrow, strict=True))
        channels = {
            row.name: (
                at.get(row.dense.reads[-1], row.dense.reads[-1]),
                at.get(row.dense.makes[-1], row.dense.makes[-1]),
            )
            for row in table.layers
        }
        maps = sum(narrow) / sum(widths)
        if table.model_cost(channels, maps=maps) <= share * table.dense:
            # Stages of one depth and half the resolution each multiply alike.
            found[narrow] = sum(
                width * width * (max(widths) // whole) ** 2 for whole, width in at.items()
            )
    if not found:
        raise ValueError(f"`share` must be one that some widths meet. Received: {share}")
    return max(found, key=found.__getitem__)


def trained_narrow(
    folder: Path, dataset: Dataset, widths: Widths, epochs: int, seed: int = 0
) -> keras.Model:
    """Train a ResNet-20 of other widths from scratch, or go on, or load what was trained.

    The recipe is that of the trained network: Nesterov's momentum, a cosine from 0.2, decoupled
    weight decay of 5e-3; in bfloat16 where the processor has it.

    Args:
        folder: Where the training and the model are kept.
        dataset: What to train on.
        widths: Those of the stages.
        epochs: Epochs in all.
        seed: Of the weights and the order.

    Returns:
        The trained network, in float32.

    Example:

    >>> trained_narrow.__name__
    'trained_narrow'
    """
    path = folder / "model.keras"
    if path.exists():
        return load_model(path)
    keras.utils.set_random_seed(seed)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        height, width, channels = dataset.image_shape
        model = residual_network((height, width, channels), len(dataset.classes), widths, 3, "B")
    finally:
        keras.config.set_dtype_policy(before)
    tuning = FineTuning(
        epochs=epochs,
        learning_rate=0.2,
        weight_decay=5e-3,
        batch_size=128,
        loss=classification_loss(model, dataset.y_train),
        seed=seed,
    )
    folder.mkdir(parents=True, exist_ok=True)
    tuning.fit(model, dataset, callbacks=[Told(folder.name)], folder=folder)
    whole = in_float32(model)
    save_model(whole, path)
    return whole


class Told(keras.callbacks.Callback):
    """A line for each epoch of a training.

    Args:
        name: What it is called there.

    Example:

    >>> Told("narrow").on_epoch_end(0, {"loss": 0.5})
    narrow, epoch 1: {'loss': 0.5}
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        shown = {key: round(float(value), 4) for key, value in (logs or {}).items()}
        print(f"{self._name}, epoch {epoch + 1}: {shown}", flush=True)
