"""Everything that decides a run in a folder: a training, or a selection of ranks or channels.

The fields say their meaning and their range; the command line makes its options from them.
Nothing here imports Keras, so that `dprp --help` does not wait for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dprp_tf.costs.budget import Budget
from dprp_tf.costs.latency_table import LatencyTable
from dprp_tf.decomposition.matricization import MATRICIZATIONS
from dprp_tf.decomposition.truncation import DECOMPOSITIONS
from dprp_tf.files.setting_fields import check_settings, setting

if TYPE_CHECKING:
    from dprp_tf.training.fine_tuning import FineTuning

__all__ = ["FROM_SCRATCH", "TRAINED", "SelectionSettings", "TrainSettings", "stop_by_default"]

# What a setting of None stands for, by what is trained. The paper's 0.1 would wreck trained
# weights within an epoch; its pressure needs tens of thousands of steps to cut anything, so a
# short training of such a model is cut by energy besides, a little every second epoch, in a form
# whose two stages pay at every rank.
FROM_SCRATCH: Mapping[str, Any] = {
    "epochs": 20,
    "learning_rate": 0.1,
    "compression_weight": 0.1,
    "threshold": 0.1,
    "discarded_energy": 0.0,
    "frequency": 1,
    "decomposition": "spatial",
}
TRAINED: Mapping[str, Any] = {
    "epochs": 12,
    "learning_rate": 0.01,
    "compression_weight": 5.0,
    "threshold": 0.1,
    "discarded_energy": 0.05,
    "frequency": 2,
    "decomposition": "separable",
}

# What channels are chosen by, and together with ranks: bounds, and what width tables know.
_CHANNEL_METHODS = ("outputs", "activation", "l1", "l2", "geometric_median", "random")
_BOUNDED = ("parameters", "macs", "time", "milliseconds")
_STAGED = ("separable", "channel")
# What is learned of channels and ranks, and the settings of that alone.
_LEARNED = "less"
_LEARNABLE = ("channel", "tucker")
_OF_LEARNING = ("steps", "most_steps", "adam_rate", "data_share")


def _by_model(name: str, help: str, **limits: Any) -> Any:
    """Declare a field whose default is looked up by what is trained, and say both in the help."""
    scratch, trained = (
        value if isinstance(value, str) else f"{value:g}"
        for value in (FROM_SCRATCH[name], TRAINED[name])
    )
    means = f"{scratch}; from a trained .keras {trained}"
    return setting(None, help, none_means=means, **limits)


@dataclass(frozen=True)
class TrainSettings:
    """Everything that decides a training run; written to the run folder and compared on resuming.

    Attributes:
        model: A network of the zoo, or a path to a `.keras` file whose weights are the start.
        method: `"dense"` or `"dprp"`. Default `"dprp"`.
        epochs: Epochs in all, 1 or more. Default 20; 12 from a trained `.keras`.
        batch_size: Images per step.
        learning_rate: Peak learning rate of SGD. Default 0.1; 0.01 from a trained `.keras`.
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
        decomposition: As `dprp_tf.factorize`. Default: that of the latency table if there is one;
            else `"spatial"`, the paper's, or `"separable"` from a trained `.keras`.
        structure, compression, retraction_period: As `dprp_tf.factorize`.
        compression_weight, threshold: As `dprp_tf.factorize`. Default 0.1 and 0.1; from a trained
            `.keras` 5 and 0.1.
        discarded_energy: As `dprp_tf.RankPruning`. Default 0; from a trained `.keras` 0.05, but 0
            with `milliseconds`, which says itself how much is cut.
        stop_epoch: As `dprp_tf.RankPruning`. Default: none; from a trained `.keras` two thirds of
            the epochs, so that the rest recovers what the cuts cost.
        frequency: As `dprp_tf.RankPruning`. Default 1; from a trained `.keras` 2.
        start_epoch, minimum_rank, minimum_removed: As `dprp_tf.RankPruning`.
        distill: Whether the model trains towards the outputs of the trained `.keras` it starts
            from, as `dprp_tf.Distillation` says; the run folder keeps a copy. Default False.
        latency_table: A file that `LatencyTable.save` wrote; the run folder keeps a copy.
        milliseconds: With it, the time the folded model may take, in the table's unit; see
            `dprp_tf.BudgetPruning`.

    A setting of None that has a default by what is trained gets it when the settings are made.

    Raises:
        ValueError: If a value is out of range; the messages name it.

    Example:

    >>> TrainSettings(model="resnet20").learning_rate, TrainSettings(model="a.keras").learning_rate
    (0.1, 0.01)
    """

    model: str = setting("resnet20", "A network of the zoo, or a .keras file.")
    method: str = setting("dprp", "dprp or dense.", choices=("dprp", "dense"))
    epochs: int = _by_model("epochs", "Epochs in all.", minimum=1)
    batch_size: int = setting(128, "Images per step.", minimum=1)
    learning_rate: float = _by_model("learning_rate", "Peak learning rate of SGD.", minimum=0)
    momentum: float = setting(0.9, "Momentum of SGD.", minimum=0)
    nesterov: bool = setting(False, "Whether the momentum is Nesterov's.")
    schedule: str = setting(
        "cosine", "cosine, constant or plateau.", choices=("constant", "cosine", "plateau")
    )
    patience: int = setting(10, "plateau: epochs without a lower loss before a tenth.", minimum=1)
    warmup_epochs: int = setting(0, "Epochs of linear growth to the peak rate.", minimum=0)
    weight_decay: float = setting(1e-4, "Coupled; for a network of the zoo.", minimum=0)
    shortcut: str = setting("A", "A or B, for the zoo's ResNets.")
    augment: bool = setting(True, "Change training images at random, as suits the data.")
    padding: int | None = setting(
        None, "Largest shift in pixels.", minimum=0, none_means="the data's"
    )
    flip: bool | None = setting(None, "Mirror half of the images.", none_means="the data's")
    seed: int = setting(0, "Seed of everything random.", minimum=0)
    steps_per_execution: int = setting(1, "Steps per dispatch.", minimum=1)
    on_device: bool = setting(False, "Keep the data on the accelerator and augment them there.")
    exclude: tuple[str, ...] = setting((), "A layer that stays dense; repeat for more.")
    decomposition: str | None = _by_model("decomposition", "spatial, channel or separable.")
    structure: str = setting("retraction", "retraction, smoothed or paper.")
    compression: str | None = setting(
        "tail",
        "Pressure on the singular values: tail, l1, l2, funnel, nuclear_norm, elastic_net, "
        "schatten_norm, logarithm, log_nuclear_norm, geman, laplace or none.",
    )
    compression_weight: float = _by_model("compression_weight", "lambda of Eq. 12.", minimum=0)
    threshold: float = _by_model("threshold", "epsilon, between 0 and 1.", above=0, below=1)
    retraction_period: int | None = setting(
        None, "Steps between retractions.", minimum=1, none_means="1; for wide layers 10"
    )
    discarded_energy: float = _by_model(
        "discarded_energy", "Share of a layer's energy that a shrink cuts besides.", minimum=0
    )
    start_epoch: int = setting(0, "First epoch that may shrink.", minimum=0)
    stop_epoch: int | None = setting(
        None,
        "First epoch that no longer shrinks.",
        minimum=1,
        none_means="none; from a trained .keras two thirds of the epochs",
    )
    frequency: int = _by_model("frequency", "Epochs between shrinks.", minimum=1)
    minimum_rank: int = setting(1, "Rank no layer falls below.", minimum=1)
    minimum_removed: int = setting(1, "Values that justify a shrink.", minimum=1)
    distill: bool = setting(False, "Train towards the outputs of the trained .keras, too.")
    latency_table: str | None = setting(None, "What `dprp latency` wrote; with --milliseconds.")
    milliseconds: float | None = setting(
        None, "What the folded model may take, in the unit of --latency-table.", above=0
    )

    @property
    def starts_trained(self) -> bool:
        """Whether the weights of a `.keras` file are the start."""
        return self.model.endswith(".keras")

    def __post_init__(self) -> None:
        if self.decomposition is None and self.latency_table is not None:
            object.__setattr__(self, "decomposition", _decomposition_of(self.latency_table))
        for name, value in (TRAINED if self.starts_trained else FROM_SCRATCH).items():
            if name == "discarded_energy" and self.milliseconds is not None:
                value = 0.0
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        check_settings(self)
        if self.stop_epoch is None and self.starts_trained:
            object.__setattr__(self, "stop_epoch", stop_by_default(self.epochs, self.start_epoch))
        if (self.latency_table is None) != (self.milliseconds is None):
            raise ValueError(
                "`latency_table` and `milliseconds` must be given together. Received: "
                f"latency_table={self.latency_table}, milliseconds={self.milliseconds}"
            )
        if self.latency_table is not None and self.method != "dprp":
            raise ValueError(
                "`latency_table` needs `method='dprp'`, whose ranks fall. Received: "
                f"method={self.method!r}"
            )
        if self.distill and not (self.starts_trained and self.method == "dprp"):
            raise ValueError(
                "`distill` needs a trained .keras as `model`, which teaches, and `method='dprp'`. "
                f"Received: model={self.model!r}, method={self.method!r}"
            )
        if self.method == "dprp" and self.decomposition not in MATRICIZATIONS:
            raise ValueError(
                f"`decomposition` must be one of {MATRICIZATIONS}, whose ranks fall in training. "
                f"Received: decomposition={self.decomposition!r}; choose Tucker's ranks for a "
                "trained model, with dprp_tf.select_ranks."
            )


def _decomposition_of(latency_table: str) -> str | None:
    """Return the decomposition whose ranks a latency table knows.

    Args:
        latency_table: The file.

    Returns:
        The decomposition; None where there is no file, or one that only a training refuses.
    """
    try:
        rows = LatencyTable.load(latency_table).layers
    except (OSError, ValueError):
        return None
    # Layers of one position are in channel form whatever was asked for.
    kinds = sorted({row.decomposition for row in rows}, key=lambda kind: kind == "channel")
    return kinds[0] if kinds else None


def stop_by_default(epochs: int, start_epoch: int) -> int:
    """Return the epoch in which a trained model's ranks no longer fall, where none is given.

    Args:
        epochs: Epochs in all.
        start_epoch: First epoch that may shrink.

    Returns:
        Two thirds of the way from `start_epoch` to `epochs`, rounded up; above `start_epoch`.

    Example:

    >>> stop_by_default(12, 0), stop_by_default(1, 0)
    (8, 1)
    """
    return start_epoch + max(1, math.ceil((epochs - start_epoch) * 2 / 3))


@dataclass(frozen=True)
class SelectionSettings:
    """Everything that decides a selection of ranks, of channels or of both; kept in its folder.

    Attributes:
        budget: The bounds; where channels go, of parameters, MACs, time or (channels alone, and
            `"less"`) activations.
        cut: `"ranks"`, `"channels"`, or `"both"`: channels that go and the ranks of what is left.
            Default `"ranks"`.
        method: A name of `selection.SELECTORS`, or `"bsr"`; for channels one of
            `select_channels`, for both `"outputs"`; for any of them `"less"`, which learns from the
            training images that are not held out. Default `"activation"` for ranks, else
            `"outputs"`.
        multiple: Multiples in which channels stay. Default 8, which int8 kernels are made for.
        searches: Pairs (step, beams) of `"mbs"`; empty for its own.
        decomposition: The decomposition; `"separable"` or `"channel"` for both, and `"channel"` or
            `"tucker"`, which knows no times, for `"less"`. Default `"separable"`; for `"less"`
            `"channel"`.
        target: Where the files are to run, such as `"local"`.
        runtime: `"litert"` or `"onnxruntime"`.
        precision: What the files compute in, `"float32"`, `"float16"` (LiteRT) or `"int8"`; None
            for no files, and no time that is known. Default `"int8"`.
        threads: Threads of the runtime.
        truncation: `"kernel"`, `"output"`, or None for the method's own.
        samples: Labelled samples held out of the training split for the selection, as many of every
            class; `"less"` only scores its plan on them. Default 256.
        exclude: Names of layers that stay dense, with all their filters.
        distill: Whether that fine-tuning goes towards the dense model's outputs too, as
            `dprp_tf.Distillation` says. Default False.
        tuning: Fine-tuning after the cut, and within methods that fine-tune; None for none.
        regularized_epochs: Epochs of BSR's training before the cut.
        strength: lambda_0 of that training.
        steps, most_steps, data_share: As `dprp_tf.LeSS`, for `"less"` alone; the share is of the
            training images that are not held out.
        adam_rate: Its `learning_rate`.
        seed: Seed of everything random.

    Raises:
        ValueError: If a value is out of range, or does not go with `cut`; the messages name it.

    Example:

    >>> SelectionSettings(method="energy", budget=Budget.of(0.5)).samples
    256
    """

    budget: Budget
    cut: str = setting(
        "ranks", "What is cut: ranks, channels, or both.", choices=("ranks", "channels", "both")
    )
    method: str = setting(
        None,
        "uniform, energy, energy_product, vbmf, activation, mbs, beam, similarity or bsr; for "
        "channels outputs, activation, l1, l2, geometric_median or random; for both outputs; for "
        "any less, which learns.",
        none_means="activation; where channels go outputs",
    )
    multiple: int = setting(8, "channels, both: multiples in which channels stay.", minimum=1)
    searches: tuple[tuple[int, int], ...] = ()
    decomposition: str = setting(
        None,
        "separable, channel, spatial or tucker; for both separable or channel, for less channel "
        "or tucker.",
        choices=DECOMPOSITIONS,
        none_means="separable; less: channel",
    )
    target: str = setting("local", "local, qemu:cortex-a72, ssh://user@host or adb://serial.")
    runtime: str = setting(
        "litert", "What runs the files: litert or onnxruntime.", choices=("litert", "onnxruntime")
    )
    precision: str | None = setting(
        "int8",
        "What the files compute in: float32, float16 (litert), int8, or none for no files.",
        choices=("float32", "float16", "int8"),
    )
    threads: int = setting(1, "Threads of the runtime.", minimum=1)
    truncation: str | None = setting(
        None, "kernel or output.", choices=("kernel", "output"), none_means="the method's"
    )
    samples: int = setting(256, "Training images held out to choose with.", minimum=1)
    exclude: tuple[str, ...] = setting((), "A layer that stays dense; repeat for more.")
    distill: bool = setting(False, "Fine-tune towards the dense model's outputs, too.")
    tuning: FineTuning | None = None
    regularized_epochs: int = setting(60, "bsr: epochs of training before the cut.", minimum=0)
    strength: float = setting(0.02, "bsr: lambda of that training.", minimum=0)
    steps: int = setting(300, "less: steps of a round, whose end may meet the budget.", minimum=1)
    most_steps: int = setting(900, "less: most steps in all.", minimum=1)
    adam_rate: float = setting(0.01, "less: Adam's rate for masks and thresholds.", above=0)
    data_share: float = setting(
        1.0, "less: share of the other training images to learn from.", above=0, maximum=1
    )
    seed: int = setting(0, "Seed of everything random.", minimum=0)

    def __post_init__(self) -> None:
        if self.method is None:
            own = "activation" if self.cut == "ranks" else "outputs"
            object.__setattr__(self, "method", own)
        if self.decomposition is None:
            own = "channel" if self.learned else "separable"
            object.__setattr__(self, "decomposition", own)
        check_settings(self)
        if self.runtime == "onnxruntime" and self.precision == "float16":
            raise ValueError(
                "`precision` must be 'float32' or 'int8' for runtime='onnxruntime'. Received: "
                "precision='float16'"
            )
        if self.distill and self.method != "bsr" and not (self.tuning and self.tuning.epochs):
            raise ValueError(
                "`distill` needs a fine-tuning, of one of the `epochs` or more. Received: "
                f"tuning={self.tuning}"
            )
        self._check_cut()
        self._check_learning()

    def _check_cut(self) -> None:
        """Refuse what does not go with what is cut, before minutes are spent on measuring."""
        if self.cut == "ranks":
            if self.method in set(_CHANNEL_METHODS) - {"activation"}:
                raise ValueError(
                    "`method` must be one for ranks, or cut='channels' given. Received: "
                    f"method={self.method!r}, cut='ranks'"
                )
            return
        methods = _CHANNEL_METHODS if self.cut == "channels" else ("outputs",)
        methods = (*methods, _LEARNED)
        if self.method not in methods:
            raise ValueError(
                f"`method` must be {' or '.join(methods)} where channels go. Received: "
                f"method={self.method!r}, cut={self.cut!r}"
            )
        if not self.learned:
            more = ("activations",) if self.cut == "channels" else ()
            self._require_bounds((*_BOUNDED, *more), f"cut={self.cut!r}")
        if self.cut == "both" and not self.learned and self.decomposition not in _STAGED:
            raise ValueError(
                f"`decomposition` must be {' or '.join(_STAGED)} for cut='both'. Received: "
                f"decomposition={self.decomposition!r}"
            )
        if self.truncation is not None:
            raise ValueError(
                "`truncation` is for cut='ranks'; where channels go it is the method's own. "
                f"Received: truncation={self.truncation!r}, cut={self.cut!r}"
            )

    def _check_learning(self) -> None:
        """Refuse what does not go with what is learned, and settings of it for another method."""
        if not self.learned:
            given = [
                name for name in _OF_LEARNING if getattr(self, name) != getattr(type(self), name)
            ]
            if given:
                received = ", ".join(f"{name}={getattr(self, name)}" for name in given)
                raise ValueError(
                    f"`{given[0]}` is for method='less', which learns. Received: {received}, "
                    f"method={self.method!r}"
                )
            return
        self._require_bounds((*_BOUNDED, "activations"), "method='less'")
        if self.cut == "channels":
            return
        if self.decomposition not in _LEARNABLE:
            raise ValueError(
                f"`decomposition` must be {' or '.join(_LEARNABLE)}, whose ranks method='less' "
                f"learns; leave it out. Received: decomposition={self.decomposition!r}"
            )
        if self.decomposition == "tucker" and self.budget.of_time:
            raise ValueError(
                "`decomposition` must be channel for a budget of `time` or `milliseconds`: no "
                "table knows the times of Tucker-2's three stages. Received: "
                "decomposition='tucker'; leave it out, or bound `parameters` or `macs`."
            )

    def _require_bounds(self, metrics: tuple[str, ...], chosen: str) -> None:
        others = set(self.budget.as_dict()) - {*metrics, "tolerance"}
        if others:
            received = ", ".join(f"{one}={getattr(self.budget, one)}" for one in sorted(others))
            raise ValueError(
                f"A budget must bound {', '.join(f'`{name}`' for name in metrics)} alone for "
                f"{chosen}. Received: {received}"
            )

    @property
    def learned(self) -> bool:
        """Whether what is cut is learned, by LeSS."""
        return self.method == _LEARNED

    @property
    def by_width(self) -> bool:
        """Whether its times are those of a width table, not of one by rank alone."""
        return self.cut != "ranks" or self.learned

    @property
    def for_time(self) -> bool:
        """Whether the cut is chosen by time, as far as a table of times can be measured for it."""
        if self.precision is None:
            return False
        if self.by_width:
            return self.budget.of_time
        by_time = self.budget.of_time or not self.budget.bounds
        return by_time and self.decomposition != "tucker"

    def as_dict(self) -> dict[str, Any]:
        """Return them as JSON-ready values."""
        values = dict(vars(self))
        if not self.distill:
            # As folders hold it that were begun before there was any.
            del values["distill"]
        if self.cut == "ranks":
            # Likewise; multiples are those of channels.
            del values["cut"], values["multiple"]
        if not self.learned:
            for name in _OF_LEARNING:
                del values[name]
        return {
            **values,
            "searches": [list(pair) for pair in self.searches],
            "budget": self.budget.as_dict(),
            "exclude": list(self.exclude),
            "tuning": None if self.tuning is None else self.tuning.identity,
        }
