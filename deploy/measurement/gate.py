"""Whether a new file may take an old one's place: not slower and not worse, beyond the noise."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dprp_tf.deploy.measurement.benchmark import compare
from dprp_tf.deploy.running.runtime import evaluate_file, require_model_file
from dprp_tf.deploy.targets import Target, resolve_target
from dprp_tf.files.arguments import check_integer, check_number
from dprp_tf.files.tables import Tabular, lay_out

if TYPE_CHECKING:
    from rich.table import Table

    from dprp_tf.costs.scores import Score

__all__ = ["GateReport", "gate"]

# Runs that must all say that a file is slower, and runs after which what is not clear passes.
_AGREEING, _MOST = 3, 5
_EXACT = 1e-12


@dataclass(frozen=True)
class GateReport(Tabular):
    """What `gate` found.

    Attributes:
        base: The file that is there.
        new: The file that may take its place.
        target: Where both were timed.
        unit: `"ms"`, or `"instructions"`, a proxy for time.
        max_ratio: The largest share of the old file's time that the new one may take.
        max_drop: What may be lost of the score; None if that was not looked at.
        ratios: Of each run the new file's share of the old one's time, with the lower and the upper
            end of its 95 % interval.
        slower: Whether all of the runs that it takes to say so say that it takes longer than that.
        undecided: Whether neither is clear after all runs, which passes.
        scores: Of the old and the new file; None if they were not looked at.
        worse: Whether more was lost of the score than may be.
        sizes: Bytes of both.

    Example:

    >>> report = GateReport(Path("a.tflite"), Path("b.tflite"), "local", "ms", 1.05, None,
    ...                     ((0.9, 0.88, 0.92),), False, False, None, False, (100, 90))
    >>> report.passed
    True
    """

    base: Path
    new: Path
    target: str
    unit: str
    max_ratio: float
    max_drop: float | None
    ratios: tuple[tuple[float, float, float], ...]
    slower: bool
    undecided: bool
    scores: tuple[float, float] | None
    worse: bool
    sizes: tuple[int, int]

    @property
    def passed(self) -> bool:
        """Whether the new file may take the old one's place."""
        return not self.slower and not self.worse

    @property
    def text(self) -> str:
        """What came out, in one sentence."""
        parts = [self._time()]
        if self.scores is not None:
            base, new = self.scores
            parts.append(
                f"its score is {new:.4f} instead of {base:.4f}, {max(0.0, base - new):.4f} lost of "
                f"{self.max_drop:g}"
            )
        return f"{'passed' if self.passed else 'REFUSED'}: {'; '.join(parts)}"

    def _time(self) -> str:
        ratio, low, high = self.ratios[-1]
        what = "time" if self.unit == "ms" else self.unit
        told = f"{self.new.name} takes {ratio:.3f} of the {what} ({low:.3f} to {high:.3f})"
        doubt = ", which is not clear" if self.undecided else ""
        return f"{told} where {self.max_ratio:g} is allowed{doubt}"

    def table(self) -> Table:
        """Lay it out for `rich`: a row for each thing that was looked at."""
        rows = [
            (
                f"run {at + 1}",
                f"{ratio:.3f} ({low:.3f} to {high:.3f})",
                f"at most {self.max_ratio:g}",
            )
            for at, (ratio, low, high) in enumerate(self.ratios)
        ]
        if self.scores is not None:
            base, new = self.scores
            rows.append(("score", f"{new:.4f} after {base:.4f}", f"lost at most {self.max_drop:g}"))
        rows.append(("bytes", f"{self.sizes[1]:,} after {self.sizes[0]:,}", ""))
        return lay_out(
            {"what": "left", "found": "right", "allowed": "right"},
            rows,
            title=f"{self.new.name} in place of {self.base.name} on {self.target}",
            caption=self.text,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        return {
            **asdict(self),
            "base": str(self.base),
            "new": str(self.new),
            "ratios": [list(row) for row in self.ratios],
            "passed": self.passed,
        }


def gate(
    base: str | os.PathLike[str],
    new: str | os.PathLike[str],
    *,
    max_ratio: float = 1.05,
    max_drop: float | None = None,
    data: tuple[Any, Any] | None = None,
    score: Score | None = None,
    target: str | Target = "local",
    threads: int = 1,
    repeats: int = 50,
) -> GateReport:
    """Say whether a new file may take an old one's place, for a build to stop at.

    Times are never held against numbers of another day: both files are timed in turns in one
    process, and the ratio's 95 % interval decides. Three runs, each in a process of its own and
    with the files in the other order, must all lie above `max_ratio` before a file counts as
    slower: of equal files in one process the second may keep a few percent by where its memory
    lies. A run whose interval holds `max_ratio` is repeated with twice the rounds; what is not
    clear after five runs passes, and says so.

    Args:
        base: The `.tflite` or `.onnx` file that is there.
        new: The file that may take its place.
        max_ratio: The largest share of the old file's time that it may take, above 0. Default 1.05.
        max_drop: How much of the score may be lost, 0 or more; 0.005 is half a point of accuracy.
            What is lost is exact on the samples given. Default: the score is not looked at.
        data: Inputs and labels to find both scores with, for `max_drop`.
        score: What is good, as `evaluate_file` takes it. Default: top-1 accuracy.
        target: Where to time them. Default: this machine.
        threads: Threads of the runtime. Default 1.
        repeats: Rounds of a run. Default 50.

    Returns:
        What was found.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If an argument is unusable.
        TargetError: If the target can't be reached or lacks the runtime.

    Source: ours; the interval is that of `compare`.

    Example:

    >>> import tempfile, keras
    >>> from dprp_tf.deploy import export
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> path = Path(tempfile.mkdtemp()) / "dense.tflite"
    >>> _ = export(model, path)
    >>> gate(path, path, max_ratio=3.0, repeats=5).passed
    True
    """
    check_number("max_ratio", max_ratio, above=0)
    check_integer("repeats", repeats)
    if max_drop is not None:
        check_number("max_drop", max_drop, 0)
    if (max_drop is None) != (data is None):
        raise ValueError(
            "`max_drop` and `data` must be given together, for the score is found on the data. "
            f"Received: max_drop={max_drop}, data={'None' if data is None else 'given'}"
        )
    old, other = require_model_file(base, "base"), require_model_file(new, "new")
    place = resolve_target(target)
    inputs = None if data is None else data[0]
    ratios: list[tuple[float, float, float]] = []
    slower = undecided = False
    needed = _AGREEING if place.unit == "ms" else 1
    above = 0
    for run in range(_MOST):
        ratios.append(_ratio(old, other, run % 2 == 1, place, threads, repeats, inputs))
        _, low, high = ratios[-1]
        if high <= max_ratio:
            undecided = False
            break
        undecided = low <= max_ratio
        if undecided:
            repeats *= 2
            above = 0
            continue
        above += 1
        if above == needed:
            slower = True
            break
    scores = None
    if data is not None:
        before, after = (evaluate_file(path, *data, score=score) for path in (old, other))
        scores = before, after
    return GateReport(
        old,
        other,
        place.spec,
        place.unit,
        max_ratio,
        max_drop,
        tuple(ratios),
        slower,
        undecided or (0 < above < needed and not slower),
        scores,
        scores is not None and max_drop is not None and scores[0] - scores[1] > max_drop + _EXACT,
        (old.stat().st_size, other.stat().st_size),
    )


def _ratio(
    base: Path,
    new: Path,
    turned: bool,
    target: Target,
    threads: int,
    repeats: int,
    inputs: Any,
) -> tuple[float, float, float]:
    """The share of the old file's time that the new one takes, with its interval."""
    paths = [new, base] if turned else [base, new]
    found = compare(paths, threads=threads, repeats=repeats, target=target, inputs=inputs)
    ratio = found.ratios[1]
    if turned:
        return 1 / ratio.ratio, 1 / ratio.high, 1 / ratio.low
    return ratio.ratio, ratio.low, ratio.high
