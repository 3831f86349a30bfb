"""What is wished of a file, and what its search may take."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from dprp_tf.files.setting_fields import check_settings, setting

__all__ = ["CompressionSettings"]


@dataclass(frozen=True)
class CompressionSettings:
    """Everything that decides a search for the best file.

    One of three wishes, by what is bounded: with `max_drop` the fastest file that loses no more
    (with `smallest` the smallest one); with `milliseconds` or `kilobytes` alone the most accurate
    one within them. Bounds together are all kept.

    Attributes:
        max_drop: Top-1 accuracy that the file may lose beside the model, as a share: 0.005 is half
            a point. Default 0.005 where nothing else is bounded, else no bound.
        milliseconds: Longest time of one inference on the target, in milliseconds; on an emulated
            target in what it counts. Default: no bound.
        kilobytes: Largest file, in 1,000 bytes. Default: no bound.
        smallest: Whether the smallest file is wished, instead of the fastest one.
        target: Where the file is to run.
        runtime: `"litert"` or `"onnxruntime"`.
        precision: What it computes in, `"float32"` or `"int8"`. Default `"int8"`.
        threads: Threads of the runtime.
        decomposition: `"separable"` or `"channel"`, of layers whose ranks fall.
        multiple: Multiples in which channels stay.
        exclude: Names of layers that stay as they are, with all their filters.
        samples: Training images that cuts are chosen and fitted with, of every class alike.
        distill: Whether training goes towards the model's own outputs too.
        narrow: Whether an evenly narrower network is trained from scratch too, to compare: as
            costly as the best that was found, towards the labels alone.
        sampler: What proposes cuts: `"tpe"`, which learns from those before, in stages; or
            `"random"`, which trains each cut to the end for a sixth of the time, to compare.
        seed: Seed of everything random.

    Raises:
        ValueError: If a value is out of range; the message names it.

    Example:

    >>> CompressionSettings().max_drop, CompressionSettings(milliseconds=12.0).max_drop
    (0.005, None)
    """

    max_drop: float | None = setting(
        None,
        "Accuracy that the file may lose, as a share.",
        minimum=0,
        below=0.5,
        none_means="0.005, unless --milliseconds or --kilobytes is given",
    )
    milliseconds: float | None = setting(None, "Longest time of one inference.", above=0)
    kilobytes: float | None = setting(None, "Largest file, in 1,000 bytes.", above=0)
    smallest: bool = setting(False, "Wish for the smallest file, not the fastest.")
    target: str = setting("local", "local, qemu:cortex-a72, ssh://user@host or adb://serial.")
    runtime: str = setting(
        "litert", "What runs the file: litert or onnxruntime.", choices=("litert", "onnxruntime")
    )
    precision: str = setting(
        "int8", "What it computes in: float32 or int8.", choices=("float32", "int8")
    )
    threads: int = setting(1, "Threads of the runtime.", minimum=1)
    decomposition: str = setting(
        "separable", "separable or channel.", choices=("separable", "channel")
    )
    multiple: int = setting(8, "Multiples in which channels stay.", minimum=1)
    exclude: tuple[str, ...] = setting((), "A layer that stays as it is; repeat for more.")
    samples: int = setting(512, "Training images that cuts are chosen with.", minimum=1)
    distill: bool = setting(True, "Train towards the model's own outputs, too.")
    narrow: bool = setting(False, "Train a narrower network from scratch, too, to compare.")
    sampler: str = setting("tpe", "What proposes cuts: tpe or random.", choices=("tpe", "random"))
    seed: int = setting(0, "Seed of everything random.", minimum=0)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.max_drop is None and self.milliseconds is None and self.kilobytes is None:
            object.__setattr__(self, "max_drop", 0.005)
        if self.narrow and self.sampler == "random":
            raise ValueError(
                "`narrow` needs the search in stages. Received: narrow=True, sampler='random'"
            )
        if self.smallest and self.max_drop is None:
            raise ValueError(
                "`smallest` needs `max_drop`, the accuracy that may be lost for it. Received: "
                f"smallest=True, max_drop=None, milliseconds={self.milliseconds}, "
                f"kilobytes={self.kilobytes}"
            )

    @property
    def metric(self) -> str:
        """What cuts are bounded in: `"milliseconds"`, or `"parameters"` for small files."""
        if self.max_drop is None:
            return "parameters" if self.milliseconds is None else "milliseconds"
        return "parameters" if self.smallest else "milliseconds"

    def as_dict(self) -> dict[str, Any]:
        """Return them as JSON-ready values."""
        return {**asdict(self), "exclude": list(self.exclude)}
