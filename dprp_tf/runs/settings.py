"""Everything that decides a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["TrainSettings"]

_SCHEDULES = ("constant", "cosine", "plateau")


@dataclass(frozen=True)
class TrainSettings:
    """Everything that decides a training run; written to the run folder and compared on resuming.

    Attributes:
        model: A network of the zoo, or a path to a `.keras` file whose weights are the start.
        method: `"dense"` or `"dprp"`. Default `"dprp"`.
        epochs: Epochs in all, 1 or more.
        batch_size: Images per step.
        learning_rate: Peak learning rate of SGD.
        momentum: Momentum of SGD, Nesterov's if `nesterov`.
        schedule: `"constant"`, `"cosine"` to zero, or `"plateau"`: a tenth after
            `patience` epochs without a lower application loss.
        warmup_epochs: Epochs of linear growth to the peak. Default 0.
        weight_decay: Coupled weight decay, an L2 penalty of half of it on every kernel; for a
            network of the zoo only.
        shortcut: `"A"` or `"B"`; for a ResNet of the zoo only.
        augment: Whether to augment, in the data set's own way.
        padding: Largest shift in pixels; None for the data set's.
        flip: Whether to mirror; None for the data set's.
        seed: Seed of weights, order and augmentation.
        steps_per_execution: Steps per dispatch.
        on_device: Whether the data lie on the device and are augmented there; for accelerators.
        exclude: Names of layers that stay dense, such as a small classifier.
        decomposition, structure, compression, compression_weight, threshold,
            retraction_period: As `dprp_tf.factorize`.
        discarded_energy, start_epoch, stop_epoch, frequency, minimum_rank,
            minimum_removed: As `dprp_tf.RankPruning`.
        latency_table: A file that `LatencyTable.save` wrote; the run folder keeps a copy.
        budget: With it, the time the folded model may take; see `dprp_tf.BudgetPruning`.

    Raises:
        ValueError: If a value is out of range; the messages name it.

    Example:

    >>> TrainSettings(model="resnet20", epochs=2).method
    'dprp'
    """

    model: str = "resnet20"
    method: str = "dprp"
    epochs: int = 20
    batch_size: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    schedule: str = "cosine"
    patience: int = 10
    warmup_epochs: int = 0
    weight_decay: float = 1e-4
    shortcut: str = "A"
    augment: bool = True
    padding: int | None = None
    flip: bool | None = None
    seed: int = 0
    steps_per_execution: int = 1
    on_device: bool = False
    exclude: tuple[str, ...] = ()
    decomposition: str = "spatial"
    structure: str = "retraction"
    compression: str | None = "tail"
    compression_weight: float = 0.1
    threshold: float = 0.1
    retraction_period: int | None = None
    discarded_energy: float = 0.0
    start_epoch: int = 0
    stop_epoch: int | None = None
    frequency: int = 1
    minimum_rank: int = 1
    minimum_removed: int = 1
    latency_table: str | None = None
    budget: float | None = None

    def __post_init__(self) -> None:
        if self.method not in ("dense", "dprp"):
            raise ValueError(f"`method` must be 'dense' or 'dprp'. Received: {self.method!r}")
        if self.schedule not in _SCHEDULES:
            raise ValueError(f"`schedule` must be one of {_SCHEDULES}. Received: {self.schedule!r}")
        for name in ("epochs", "batch_size", "steps_per_execution", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be 1 or more. Received: {getattr(self, name)}")
        for name in ("learning_rate", "momentum", "weight_decay", "compression_weight"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"`{name}` must be 0 or more and finite. Received: {value}")
        if (self.latency_table is None) != (self.budget is None):
            raise ValueError(
                "`latency_table` and `budget` must be given together. Received: "
                f"latency_table={self.latency_table}, budget={self.budget}"
            )
        if self.latency_table is not None and self.method != "dprp":
            raise ValueError(
                "`latency_table` needs method='dprp', whose ranks fall. Received: "
                f"method={self.method!r}"
            )
        if not 0 < self.threshold < 1:
            raise ValueError(f"`threshold` must lie in (0, 1). Received: {self.threshold}")
        if self.method == "dprp" and self.decomposition == "tucker":
            raise ValueError(
                "`decomposition` must be 'spatial', 'channel' or 'separable', whose ranks fall in "
                "training. Received: decomposition='tucker'; select its ranks with "
                "dprp_tf.select_ranks and train the result of dprp_tf.factorize(model, ranks=plan)."
            )
