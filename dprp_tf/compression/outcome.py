"""Candidates, the stages they go through, and what came of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["CUTS", "FILES", "STAGES", "Candidate", "Dense", "Outcome"]

CUTS = ("both", "channels", "ranks")
STAGES = ("cut", "tuned", "finished", "narrow", "quantized")
# Those whose outcomes are measured as files.
FILES = ("finished", "narrow", "quantized")


@dataclass(frozen=True)
class Candidate:
    """A way to make the model smaller.

    Attributes:
        cut: What goes: `"channels"`, `"ranks"` or `"both"`.
        share: The largest share of the dense file's cost that the cut leaves, above 0 and below 1.

    Example:

    >>> Candidate("both", 0.5).label
    'channels and ranks, 0.50'
    """

    cut: str
    share: float

    @property
    def label(self) -> str:
        """What a reader sees."""
        return f"{'channels and ranks' if self.cut == 'both' else self.cut}, {self.share:.2f}"


@dataclass(frozen=True)
class Dense:
    """The model as it was given.

    Attributes:
        score: Its accuracy on the validation samples.
        milliseconds: Time of its file in the precision that is wished, in the target's unit.
        size_bytes: Bytes of that file.
        epoch_seconds: What an epoch of training would take.
        samples: How many validation samples there are.
    """

    score: float
    milliseconds: float
    size_bytes: float
    epoch_seconds: float
    samples: int


@dataclass(frozen=True)
class Outcome:
    """What is known of one step of the search.

    Attributes:
        number: Its number in the study.
        stage: One of `STAGES`: a cut without training, trained a little, trained to the end and
            written as a file, an evenly narrower network trained from scratch and written, or what
            was finished trained on with int8 rounding inside and written anew.
        candidate: The candidate.
        state: `"waiting"`, `"running"`, `"complete"`, `"missed"` (it comes to nothing, as
            `values["missed"]` says: no such cut, a training that diverged) or `"failed"`.
        score: Accuracy on the validation samples: of the model, of what is finished that of its
            file.
        time: Share of the dense file's time: predicted, of what is finished measured.
        size: Share of its bytes, likewise.
        of: The number of the cut that was trained; of a cut itself None.
        values: What else is known, JSON-ready, such as `epochs` and `epoch_seconds`, and
            `elsewhere` of what another worker has the files of.

    Example:

    >>> cut = Outcome(3, "cut", Candidate("both", 0.5), "complete", 0.8, 0.5, 0.6)
    >>> cut.origin, cut.done
    (3, True)
    """

    number: int
    stage: str
    candidate: Candidate
    state: str
    score: float = 0.0
    time: float = 1.0
    size: float = 1.0
    of: int | None = None
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def origin(self) -> int:
        """The number of the cut that it is or began from."""
        return self.number if self.of is None else self.of

    @property
    def done(self) -> bool:
        """Whether it came to its end."""
        return self.state == "complete"

    @property
    def is_file(self) -> bool:
        """Whether it is measured as a file."""
        return self.done and self.stage in FILES

    @property
    def verified(self) -> bool:
        """Whether its file computes what its model does; of what is no file too."""
        return bool(self.values.get("file", {}).get("verified", True))

    @property
    def label(self) -> str:
        """What a reader sees."""
        if self.stage == "narrow":
            return f"narrower, from scratch, {self.candidate.share:.2f}"
        if self.stage == "quantized":
            return f"{self.candidate.label}, trained as int8"
        return self.candidate.label
