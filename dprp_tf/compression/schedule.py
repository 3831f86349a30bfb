"""What a search does next, by what it knows and the time that is left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import NamedTuple

import numpy as np

from dprp_tf.compression.forecast import Forecast, planned_cost
from dprp_tf.compression.goal import Goal, front
from dprp_tf.compression.outcome import FILES, Candidate, Outcome

__all__ = [
    "LEAST_EPOCHS",
    "MOST_CUTS",
    "RECIPES",
    "SHARES",
    "Recipe",
    "Schedule",
    "Step",
    "whole_or_part",
]

# The parts of the whole time at whose ends no more cuts are proposed, and none is tuned a little.
_CUTTING, _TUNING = 0.25, 0.5
_FIRST_CUTS, _MOST_TUNED, _FINISHED = 24, 6, 3
MOST_CUTS = 48
# Most epochs of a little tuning, and of one to the end.
_LITTLE, _WHOLE = 8.0, 120.0
# A part of an epoch below which nothing is learned, and the part of another training's epochs below
# which the two can't be compared.
LEAST_EPOCHS, _LESS = 0.1, 0.3
# The part of the time below which no more cuts are made, what must be expected to be saved of the
# cost, and how many times as much a new cut must promise.
_LATE, _WORTH, _CLEARLY = 0.1, 0.003, 1.25
# Accuracy lost with the rounding from which training with it is worth its time; what a step of that
# takes beside a plain one, its most epochs, and the part of the training before that it may take.
_ROUNDED, _AS_ROUNDED, _MOST_ROUNDED, _AS_FINISHED = 0.003, 4.0, 8.0, 0.5
# Accuracy that more training may win beyond what was predicted.
_HOPE = 0.02
# Shares that begin the search, of the cost that is wished small.
_LADDER = (0.65, 0.5, 0.8, 0.35)
# Candidates nearer to each other than this are not told apart.
_NEAR = 0.02
# The least and the largest share that a cut is asked for.
SHARES = (0.08, 0.95)


class Recipe(NamedTuple):
    """How a candidate is trained: `"sgd"` or `"adam"`, and the rate at the start."""

    optimizer: str
    learning_rate: float


# Which of them trains best differs between models, by more than many a cut costs.
RECIPES = (Recipe("sgd", 0.05), Recipe("adam", 0.003), Recipe("sgd", 0.01))


@dataclass(frozen=True)
class Step:
    """One thing to do.

    Attributes:
        stage: One of `outcome.STAGES`.
        candidate: What it is done to; None for a cut that the sampler is to propose.
        of: The number of the cut that is trained, also of what was finished of it and is trained
            with rounding; None for a cut and for a narrower network.
        epochs: Epochs of the training; a part of one is trained on a part of the data.
        optimizer: Its optimizer, `"sgd"` or `"adam"`.
        learning_rate: Its rate at the start.
        goes_on: Whether it goes on from what was finished before.
    """

    stage: str
    candidate: Candidate | None = None
    of: int | None = None
    epochs: float = 0.0
    optimizer: str = RECIPES[0].optimizer
    learning_rate: float = RECIPES[0].learning_rate
    goes_on: bool = False


class Schedule:
    """Decides what is done next: first cuts, then a little training, then training to the end.

    Cuts need no training: a ladder of them comes first, then what the sampler proposes, for a
    quarter of the time. Of those that none beats in score, time and size, a few are trained a
    little, the one first that tells most about where the wish's bound lies; that one by every
    recipe, and the best recipe is that of all others. Then those are trained to the end that are
    predicted to be best, one after the other: each result moves what is predicted of the others.
    What would be better but for its rounding to int8 is trained on with that inside. Where it is
    wished, an evenly narrower network is trained from scratch beside them, as costly as the best
    that was found.

    Args:
        goal: The wish.
        seconds: Those of the search, without its preparations.
        file_seconds: What it takes to write, verify and time one file.

    Example:

    >>> from dprp_tf.compression.outcome import Dense
    >>> from dprp_tf.compression.settings import CompressionSettings
    >>> goal = Goal(CompressionSettings(max_drop=0.01), Dense(0.9, 2.0, 1000.0, 10.0, 500))
    >>> step = Schedule(goal, seconds=600, file_seconds=5).next([], left=600)
    >>> step.stage, step.candidate
    ('cut', Candidate(cut='both', share=0.65))
    """

    def __init__(self, goal: Goal, seconds: float, file_seconds: float) -> None:
        self._goal, self._whole, self._file = goal, max(seconds, 1.0), file_seconds

    def next(self, outcomes: Sequence[Outcome], left: float) -> Step | None:
        """Return what is to be done now.

        Args:
            outcomes: All steps so far, those that are running too.
            left: Seconds that are left.

        Returns:
            A step; None when nothing more can be won in what is left.
        """
        known = [one for one in outcomes if one.state != "failed"]
        cuts = [one for one in known if one.stage == "cut"]
        used = 1 - left / self._whole
        enough = self._may_cut(cuts, left)
        for candidate in self._ladder() if enough else ():
            if not any(cut.candidate == candidate for cut in cuts):
                # Of little time the ladder's first steps are enough.
                if used < _CUTTING or not any(cut.done for cut in cuts):
                    return Step("cut", candidate)
                break
        if enough and used < _CUTTING and len(cuts) < _FIRST_CUTS:
            return Step("cut")
        done = [cut for cut in cuts if cut.done]
        if not done:
            return None
        tuned = [one for one in known if one.stage == "tuned"]
        if used < _TUNING and len(tuned) < _MOST_TUNED:
            step = self._tuning(done, tuned)
            if step is not None:
                return step
        step = self._quantizing(known, left) or self._finishing(done, known, left)
        if self._goal.settings.narrow:
            ended = sum(one.stage == "finished" for one in known)
            if step is None or ended >= _FINISHED - 1:
                step = self._narrow(known, left) or step
        if step is None and enough and left > 4 * self._file and len(cuts) < MOST_CUTS:
            # Nothing that is known promises more, and there is time to look further.
            return Step("cut")
        return step

    def _may_cut(self, cuts: Sequence[Outcome], left: float) -> bool:
        """Whether there is time for another cut and its file; else what is known must do."""
        cutting = [float(cut.values["seconds"]) for cut in cuts if "seconds" in cut.values]
        return left > self._file + max(cutting, default=0.0)

    def _ladder(self) -> list[Candidate]:
        goal = self._goal
        if goal.by_score:
            bounds = [bound for bound in (goal.most_time, goal.most_size) if bound is not None]
            # Predicted times may be told too small by as much.
            shares = [round(min(SHARES[1], max(SHARES[0], f * min(bounds))), 3) for f in (1, 0.9)]
            return [Candidate(cut, share) for share in shares for cut in ("both", "channels")]
        return [
            *(Candidate("both", share) for share in _LADDER),
            Candidate("channels", 0.5),
            Candidate("ranks", 0.65),
        ]

    def _able(self, cuts: Sequence[Outcome]) -> list[Outcome]:
        """The cuts worth training: not beaten, each once, within the bounds or nearly so."""
        kept: list[Outcome] = []
        for cut in front(cuts):
            slack = 1.1
            if not self._goal.allows(cut.time / slack, cut.size / slack):
                continue
            cost = self._goal.cost(cut.time, cut.size)
            near = [one for one in kept if abs(planned_cost(self._goal, one) - cost) < _NEAR]
            if not near or cut.score > max(one.score for one in near) + 0.01:
                kept.append(cut)
        return kept or list(front(cuts))

    def _tuning(self, cuts: Sequence[Outcome], tuned: Sequence[Outcome]) -> Step | None:
        seconds = self._whole * (_TUNING - _CUTTING) / _MOST_TUNED
        if tuned:
            # The same by another recipe.
            first = tuned[0]
            tried = {_recipe_of(one) for one in tuned}
            recipe = next((one for one in RECIPES if one not in tried), None)
            if recipe is not None:
                epochs = float(first.values.get("epochs", 1.0))
                return Step("tuned", first.candidate, first.of, epochs, *recipe)
        origins = {one.of for one in tuned}
        able = [cut for cut in self._able(cuts) if cut.number not in origins]
        if not able:
            return None
        forecast = Forecast(self._goal, cuts, tuned, ())
        if self._goal.by_score:
            chosen = min(able, key=forecast.lost)
        else:
            # It tells most where it may come out either way.
            chosen = min(able, key=lambda cut: abs(forecast.chance(forecast.lost(cut)) - 0.5))
        epochs = whole_or_part(min(_LITTLE, seconds / self._epoch_seconds(chosen)))
        if epochs < LEAST_EPOCHS:
            return None
        return Step("tuned", chosen.candidate, chosen.origin, epochs, *_best_recipe(tuned))

    def _finishing(
        self, cuts: Sequence[Outcome], known: Sequence[Outcome], left: float
    ) -> Step | None:
        goal = self._goal
        tuned = [one for one in known if one.stage == "tuned"]
        finished = [one for one in known if one.stage == "finished"]
        done = self._ends(known)
        recipe = _best_recipe(known)
        seconds = self._seconds(known, left)
        if seconds <= 0:
            return None
        # What diverged may be trained by another recipe.
        origins = {one.of for one in finished if one.state != "missed" or _recipe_of(one) == recipe}
        best = [one for one in _files(known) if goal.meets(one.score, one.time, one.size)]
        least = min((planned_cost(goal, one) for one in best), default=1.0)
        able = [cut for cut in self._able(cuts) if cut.number not in origins]
        if not goal.by_score:
            # Only what is cheaper than the best can be better.
            able = [cut for cut in able if goal.cost(cut.time, cut.size) < least - _NEAR / 2]
        forecast = Forecast(goal, cuts, tuned, done)

        def gain(cost: float, lost: float) -> float:
            """What may be saved beside the best so far, times how likely that is."""
            return (least - cost) * forecast.chance(lost)

        chosen: Outcome | None = None
        if goal.by_score:
            chosen = min(able, key=forecast.lost, default=None)
        else:
            gains = {
                cut.number: gain(goal.cost(cut.time, cut.size), forecast.lost(cut)) for cut in able
            }
            chosen = max(able, key=lambda cut: gains[cut.number], default=None)
            most = 0.0 if chosen is None else gains[chosen.number]
            asked = [one for one in known if one.stage == "cut"]
            if left > _LATE * self._whole and len(asked) < MOST_CUTS:
                share = self._between(asked, cuts, forecast, gain, least, max(most, _WORTH))
                if share is not None:
                    return Step("cut", Candidate("both", share))
            if most < _WORTH and best:
                chosen = None
        if chosen is not None:
            epochs = min(_WHOLE, seconds / self._epoch_seconds(chosen, tuned))
            epochs = whole_or_part(epochs)
            # What is trained far less than the others were shows nothing.
            if done and epochs < max(LEAST_EPOCHS, _LESS * _epochs(done)):
                return None
            return Step("finished", chosen.candidate, chosen.number, epochs, *recipe)
        return self._again(finished, done, least, left - self._file)

    def _seconds(self, known: Sequence[Outcome], left: float) -> float:
        """What the next training to the end may take of what is left."""
        files = [one for one in known if one.stage in FILES and one.stage != "quantized"]
        slots = _FINISHED + self._goal.settings.narrow - len(files)
        return left / max(1, slots) - self._file

    def _ends(self, known: Sequence[Outcome]) -> list[Outcome]:
        """What was trained to the end, with the scores that files of it have or may still have."""
        ends = []
        for one in known:
            if one.stage != "finished" or not one.done:
                continue
            rounded = [o for o in known if o.stage == "quantized" and o.of == one.of]
            score = max([one.score, *(other.score for other in rounded if other.done)])
            if not rounded and self._may_round(one):
                score = max(score, float(one.values["model_score"]))
            ends.append(replace(one, score=score))
        return ends

    def _may_round(self, one: Outcome) -> bool:
        """Whether training with rounding may win what rounding cost."""
        settings, whole = self._goal.settings, one.values.get("model_score", one.score)
        if (settings.runtime, settings.precision) != ("litert", "int8"):
            return False
        return not one.values.get("elsewhere") and (
            not one.verified or float(whole) - one.score >= _ROUNDED
        )

    def _quantizing(self, known: Sequence[Outcome], left: float) -> Step | None:
        """Training with rounding for what would be the best if rounding cost nothing."""
        goal, files = self._goal, _files(known)
        tried = {one.of for one in known if one.stage == "quantized"}
        best = max((goal.rank(one.score, one.time, one.size) for one in files), default=())
        for one in known:
            finished = one.stage == "finished" and one.done
            if not finished or one.of in tried or not self._may_round(one):
                continue
            whole = float(one.values.get("model_score", one.score))
            seconds = min(left / 2, _AS_FINISHED * float(one.values.get("seconds", left)))
            each = _AS_ROUNDED * self._epoch_seconds(one)
            epochs = whole_or_part(min(_MOST_ROUNDED, (seconds - self._file) / each))
            if goal.rank(whole, one.time, one.size) > best and epochs >= LEAST_EPOCHS / 2:
                return Step("quantized", one.candidate, one.of, epochs, "adam", 1e-4)
        return None

    def _narrow(self, known: Sequence[Outcome], left: float) -> Step | None:
        """A narrower network beside the best file so far, if there is none yet."""
        goal = self._goal
        done = [one for one in _files(known) if one.stage == "finished"]
        seconds = self._seconds(known, left)
        if any(one.stage == "narrow" for one in known) or not done or seconds <= 0:
            return None
        best = max(done, key=lambda one: goal.rank(one.score, one.time, one.size))
        # By what was predicted of it, as that of the narrower one will be.
        share = best.values.get("planned_size" if goal.by_size else "planned_time", best.time)
        epochs = whole_or_part(min(_WHOLE, seconds / self._epoch_seconds(best)))
        if epochs < LEAST_EPOCHS:
            return None
        candidate = Candidate("channels", round(min(SHARES[1], max(SHARES[0], float(share))), 3))
        return Step("narrow", candidate, None, epochs, *_best_recipe(known))

    def _between(
        self,
        asked: Sequence[Outcome],
        cuts: Sequence[Outcome],
        forecast: Forecast,
        gain: Callable[[float, float], float],
        least: float,
        most: float,
    ) -> float | None:
        """A share that nobody asked for yet, and that promises clearly more than any cut does."""
        shares = np.round(np.arange(SHARES[0], min(least, SHARES[1]), _NEAR / 2), 3).tolist()
        known = [one.candidate.share for one in asked if one.candidate.cut == "both"]
        new = [share for share in shares if all(abs(share - one) >= _NEAR for one in known)]
        kept = list(front(cuts))
        gains = {share: gain(share, forecast.lost_at(share, kept)) for share in new}
        best = max(gains, key=gains.__getitem__, default=None)
        return None if best is None or gains[best] < _CLEARLY * most else float(best)

    def _again(
        self, finished: Sequence[Outcome], done: Sequence[Outcome], least: float, seconds: float
    ) -> Step | None:
        """Going on with what nearly does, or where the score is wished with the best."""
        goal = self._goal
        again = {one.of for one in finished if one.values.get("goes_on")}
        able = [
            one
            for one in done
            if one.of not in again and one.values.get("epochs") and not one.values.get("elsewhere")
        ]
        if not goal.by_score:
            assert goal.least_score is not None
            able = [
                one
                for one in able
                if one.score < goal.least_score
                and one.score >= goal.least_score - _HOPE
                and goal.cost(one.time, one.size) < least
            ]
        if not able:
            return None
        chosen = max(able, key=lambda one: one.score)
        epochs = whole_or_part(min(_WHOLE, seconds / self._epoch_seconds(chosen)))
        if epochs < max(LEAST_EPOCHS, _LESS * float(chosen.values["epochs"])):
            return None
        optimizer, rate = _recipe_of(chosen)
        return Step(
            "finished", chosen.candidate, chosen.origin, epochs, optimizer, 0.5 * rate, True
        )

    def _epoch_seconds(self, one: Outcome, tuned: Sequence[Outcome] = ()) -> float:
        """What an epoch takes: as measured with it, else by the dense model's."""
        for other in (one, *tuned):
            if other.origin == one.origin and other.values.get("epoch_seconds"):
                return float(other.values["epoch_seconds"])
        return self._goal.dense.epoch_seconds


def _files(known: Sequence[Outcome]) -> list[Outcome]:
    """What may be shipped."""
    return [one for one in known if one.is_file and one.verified]


def _recipe_of(one: Outcome) -> Recipe:
    """How something was trained."""
    optimizer, rate = RECIPES[0]
    values = one.values
    return Recipe(str(values.get("optimizer", optimizer)), float(values.get("learning_rate", rate)))


def _best_recipe(known: Sequence[Outcome]) -> Recipe:
    """The recipe that was best where all were tried, of those that never diverged if there are."""
    trained = [one for one in known if one.stage in ("tuned", "finished")]
    diverged = {_recipe_of(one) for one in trained if one.state == "missed"}
    tuned = [one for one in trained if one.stage == "tuned" and one.done]
    first = [one for one in tuned if one.of == tuned[0].of]
    best = sorted(first, key=lambda one: one.score, reverse=True)
    recipes = [*(_recipe_of(one) for one in best), *RECIPES]
    # The last is the most careful one.
    return next((one for one in recipes if one not in diverged), RECIPES[-1])


def _epochs(done: Sequence[Outcome]) -> float:
    return median(float(one.values.get("epochs", 0.0)) for one in done)


def whole_or_part(epochs: float) -> float:
    """Return whole epochs, or the part of one in hundredths.

    Args:
        epochs: What there is time for.

    Example:

    >>> whole_or_part(3.7), whole_or_part(0.268)
    (3.0, 0.26)
    """
    return float(int(epochs)) if epochs >= 1 else int(100 * epochs) / 100
