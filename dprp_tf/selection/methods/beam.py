"""Beam search over rank vectors, scored by the model's own accuracy: phase 1 of BSR."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import keras
import numpy as np

from dprp_tf.costs.budget import Budget
from dprp_tf.costs.rank_space import Ranks, RankSpace
from dprp_tf.files.arguments import check_integer, check_number
from dprp_tf.selection.scoring.evaluator import CandidateEvaluator, Evaluation
from dprp_tf.selection.scoring.samples import picked
from dprp_tf.selection.selector import Problem, Selection, Selector
from dprp_tf.selection.solving.filling import fill, require_feasible

__all__ = ["BeamSearch", "CostBeamSearch"]

_ROUNDING = 1e-9
_Vector = tuple[Ranks, ...]


@dataclass(frozen=True)
class BeamSearch(Selector):
    """Find the rank vector with the best accuracy on a few samples, by modified beam search.

    From all layers dense, each level lowers one rank of one layer by the step, scores the
    children on the samples and keeps the best `beams` of them (ties: the cheaper, then drawn).
    A child below the budget's band [bound (1 - tolerance), bound] is dropped; when none is left,
    the step is halved and the search goes on from the last beams. It ends when the best element
    lies inside the band and returns the most accurate one seen there.

    - A layer's first step leads from dense to its break-even rank + 1 - step, at least 1: no rank
      above costs less. For Tucker-2 each of the two ranks is lowered by itself, from the pair
      cheaper than dense that keeps most energy.
    - Of several bounds the one nearest to being exceeded counts.
    - With `Budget.accuracy_drop`, children that lose more are dropped too; without another bound
      the cheapest one left at the end is returned.
    - If no step of 1 lands inside the band (few layers, coarse ranks), the best vector below it
      is filled up as the other methods do.

    Args:
        step: s, ranks per level, 1 or more. Default 3.
        beams: K, 1 or more. Default 5.
        samples: Labelled samples that accuracy is measured on, drawn from the data, the same ones
            in every search. Default 256.
        level: Share of the bound that each level saves, in (0, 1), in place of `step` ranks: a
            child lowers one rank by as many steps as that takes, so that the children of a level,
            which accuracy compares, cost about the same, and of equal accuracies the smaller
            cross-entropy wins. Halved when no child is left. Ours: by ranks alone the search
            first wears down the layers whose ranks are cheap. Default None: as the thesis has it;
            `CostBeamSearch` is this search with 0.03.
        searches: Pairs (s, K) to search with one after the other, of which the best result is
            taken; the thesis uses ((3, 5), (5, 5), (10, 5)). They share what was scored.
            Default: `step` and `beams` alone.

    Raises:
        ValueError: If an argument is no whole number of 1 or more.

    Source: BSR thesis 3.5.2, Eq. 3.1 and 3.2, Algorithm 1. Its printed loop condition is inverted;
    `budget` bounds the cost from above, so its C_d is 1 - bound (1 - tolerance).

    Example:

    >>> BeamSearch(searches=((3, 5), (5, 5), (10, 5))).settings
    ((3, 5), (5, 5), (10, 5))
    """

    name: ClassVar[str] = "mbs"
    heeds_accuracy: ClassVar[bool] = True
    step: int = 3
    beams: int = 5
    samples: int = 256
    level: float | None = None
    searches: tuple[tuple[int, int], ...] | None = None

    def __post_init__(self) -> None:
        if self.searches is not None:
            pairs = tuple(tuple(pair) for pair in self.searches)
            object.__setattr__(self, "searches", pairs)
            if not pairs or any(len(pair) != 2 for pair in pairs):
                raise ValueError(
                    "`searches` must be pairs (step, beams), one or more. "
                    f"Received: searches={self.searches}"
                )
        if self.level is not None:
            check_number("level", self.level, above=0, below=1)
        for i, pair in enumerate(self.searches or ()):
            check_integer(f"searches[{i}]", min(pair))
        for name in ("step", "beams", "samples"):
            object.__setattr__(self, name, check_integer(name, getattr(self, name)))

    @property
    def settings(self) -> tuple[tuple[int, int], ...]:
        """The pairs (s, K) to search with."""
        return self.searches or ((self.step, self.beams),)

    def identity(self) -> str:
        """Return what a score depends on: not the step, so searches may share a log."""
        return f"{type(self).__name__}(samples={self.samples})"

    def select(self, problem: Problem) -> Selection:
        """Choose ranks; see the class.

        Args:
            problem: With a budget and labelled data.

        Returns:
            The ranks, and one entry per level.

        Raises:
            BudgetError: If no ranks meet the bounds.
            ValueError: If there are no data or no budget, or no ranks meet the bounds within the
                accuracy drop.
        """
        if problem.budget is None:
            raise ValueError(f"`budget` must be given for {self.name!r}. Received: budget=None")
        if problem.budget.bounds:
            require_feasible(problem.space, problem.budget)
        scores = _Scores(problem, self.samples)
        history: list[dict[str, Any]] = []
        best: _Element | None = None
        for number, (step, beams) in enumerate(self.settings):
            span = (number / len(self.settings), 1 / len(self.settings))
            search = _Search(problem, scores, step, beams, span, self.level)
            found = search.run()
            history += search.history
            if found is not None and (best is None or found.key > best.key):
                best = found
        if best is None:
            raise ValueError(_unreached(problem, scores))
        return Selection(dict(zip(problem.space.layers, best.ranks, strict=True)), history)


@dataclass(frozen=True)
class CostBeamSearch(BeamSearch):
    """Beam search whose levels save cost instead of ranks: `BeamSearch(level=0.03)`.

    Args:
        level: Share of the bound that each level saves. Default 0.03.
        step: Ranks per level once the levels are finer than the band. Default 3.
        beams: K. Default 5.
        samples: Labelled samples. Default 256.
        searches: Pairs (s, K); see `BeamSearch`.

    Source: thesis Algorithm 1 with levels of ours.

    Example:

    >>> CostBeamSearch().level
    0.03
    """

    name: ClassVar[str] = "beam"
    level: float | None = 0.03


@dataclass(frozen=True)
class _Element:
    """A rank vector with its score, what it costs, and a number that decides ties."""

    ranks: _Vector
    score: float
    excess: float
    share: float
    draw: float
    key: tuple[float, ...] = ()


class _Scores:
    """Scores by rank vector: each computed once, or read from the log of an earlier run."""

    def __init__(self, problem: Problem, samples: int) -> None:
        self._problem = problem
        self._layers = tuple(problem.space.layers)
        self._samples = samples
        self._evaluator: CandidateEvaluator | None = None
        self._found: dict[_Vector, float] = {}
        self._losses: dict[_Vector, float] = {}
        self._computed = 0
        self._seconds = 0.0

    @property
    def evaluated(self) -> int:
        """Rank vectors that were scored, now or before an interruption."""
        return len(self._found)

    @property
    def speed(self) -> float:
        """Rank vectors scored in a second."""
        return self._computed / max(self._seconds, 1e-9)

    def __getitem__(self, ranks: _Vector) -> float:
        return self._found[ranks]

    def loss(self, ranks: _Vector) -> float:
        """Cross-entropy; 0 where a score function of the user's decides alone."""
        return self._losses.get(ranks, 0.0)

    def known(self, ranks: _Vector) -> bool:
        if ranks not in self._found:
            logged = self._problem.log.known(self._named(ranks))
            if logged is None:
                return False
            # What no number told stays the worst.
            accuracy, loss = (float(logged.get(k) or 0.0) for k in ("accuracy", "cross_entropy"))
            self._found[ranks] = -math.inf if math.isnan(accuracy) else accuracy
            self._losses[ranks] = math.inf if math.isnan(loss) else loss
        return True

    def compute(self, children: list[_Vector], parent: _Vector) -> Iterator[None]:
        """Score new rank vectors that share much with their parent."""
        began = time.perf_counter()
        evaluations = self._ready().evaluate(map(self._named, children), self._named(parent))
        for ranks, evaluation in zip(children, evaluations, strict=True):
            self._note(ranks, evaluation)
            self._seconds += time.perf_counter() - began
            yield
            began = time.perf_counter()

    def _note(self, ranks: _Vector, evaluation: Evaluation) -> None:
        named = self._named(ranks)
        shares = self._problem.space.cost(named).shares
        values: dict[str, Any] = {
            f"share_{name}": round(value, 6) for name, value in shares.items()
        }
        if evaluation.cross_entropy is not None:
            values["cross_entropy"] = evaluation.cross_entropy
        self._problem.log.candidate(named, accuracy=evaluation.score, **values)
        self._found[ranks] = evaluation.score
        self._losses[ranks] = evaluation.cross_entropy or 0.0
        self._computed += 1

    def _named(self, ranks: _Vector) -> dict[str, Ranks]:
        return dict(zip(self._layers, ranks, strict=True))

    def _ready(self) -> CandidateEvaluator:
        if self._evaluator is None:
            x, y = self._problem.require_data("mbs")
            count = len(keras.tree.flatten(x)[0])
            # Not by the problem's seed, which decides ties: logged scores don't depend on it.
            rows = np.sort(np.random.default_rng(0).permutation(count)[: self._samples])
            self._evaluator = CandidateEvaluator(
                self._problem.model,
                self._problem.space,
                picked(x, rows),
                picked(y, rows),
                score=self._problem.score,
            )
        return self._evaluator


class _Costs:
    """Excess over the budget and share of the parameters of rank vectors, layer by layer."""

    def __init__(self, space: RankSpace, budget: Budget) -> None:
        self._space = space
        self._budget = budget
        self._layers = tuple(space.layers)
        self._dense = space.cost(space.dense())
        self._metrics = tuple(dict.fromkeys((*budget.bounds, "parameters")))
        for metric in self._metrics:
            self._dense.share(metric)
        self._savings: dict[tuple[str, Ranks], tuple[float, ...]] = {}

    def of(self, ranks: _Vector) -> tuple[float, float]:
        """The excess over the nearest bound, then the share of the parameters."""
        saved = [0.0] * len(self._metrics)
        for name, entry in zip(self._layers, ranks, strict=True):
            if entry is not None:
                for place, value in enumerate(self._saving(name, entry)):
                    saved[place] += value
        shares = {
            metric: self._dense.shares[metric]
            * (1.0 - saved[place] / max(self._dense.dense[metric], 1e-30))
            for place, metric in enumerate(self._metrics)
        }
        return self._budget.excess(shares), shares["parameters"]

    def _saving(self, name: str, ranks: Ranks) -> tuple[float, ...]:
        key = (name, ranks)
        if key not in self._savings:
            self._savings[key] = tuple(
                self._space.layer_cost(name, None, metric)
                - self._space.layer_cost(name, ranks, metric)
                for metric in self._metrics
            )
        return self._savings[key]


class _Search:
    """One search with one pair (s, K)."""

    def __init__(
        self,
        problem: Problem,
        scores: _Scores,
        step: int,
        beams: int,
        span: tuple[float, float],
        level: float | None = None,
    ) -> None:
        assert problem.budget is not None
        self._problem, self._scores = problem, scores
        self._budget = problem.budget
        self._costs = _Costs(problem.space, problem.budget)
        self._first_step, self._beams, self._span = step, beams, span
        self._level = level
        self._entries = _entries(problem.space, problem.metrics)
        self._random = np.random.default_rng([problem.seed, step, beams])
        self._elements: dict[_Vector, _Element] = {}
        self.history: list[dict[str, Any]] = []

    def run(self) -> _Element | None:
        """Run the search; the result is None if no candidate keeps the bounds and the accuracy."""
        dense: _Vector = (None,) * len(self._entries)
        if not self._scores.known(dense):
            for _ in self._scores.compute([dense], dense):
                pass
        beam = [self._element(dense)]
        drop = self._budget.accuracy_drop
        floor = -math.inf if drop is None else beam[0].score - drop - _ROUNDING
        start = beam[0]
        step, level = self._first_step, self._level
        seen = list(beam)
        while not (self._budget.bounds and self._inside(beam[0])):
            children, below = self._children(beam, step, level)
            self._score(children, beam, start)
            ordered = sorted(
                (e for e in map(self._element, children) if e.score >= floor),
                key=lambda element: element.key,
                reverse=True,
            )
            if ordered:
                beam = ordered[: self._beams]
                seen += ordered
                self._tell(beam, step, len(children), start)
            elif level is not None:
                # Below half of the band single ranks are fine enough.
                level, step = (level / 2, step) if level > self._budget.tolerance / 2 else (None, 1)
            elif step > 1:
                step = (step + 1) // 2
            elif self._budget.bounds:
                return self._landed(seen, below, floor)
            else:
                break
        inside = [e for e in seen if not self._budget.bounds or self._inside(e)]
        if not self._budget.bounds:
            return self._cheapest(inside)
        return max(inside, key=lambda element: element.key)

    def _cheapest(self, elements: list[_Element]) -> _Element:
        """Under an accuracy drop alone the cost decides, also between several searches."""
        best = min(elements, key=lambda e: (e.share, -e.score, e.draw))
        return replace(best, key=(-best.share, best.score, best.draw))

    def _inside(self, element: _Element) -> bool:
        return -self._budget.tolerance - _ROUNDING <= element.excess <= _ROUNDING

    def _children(
        self, beam: list[_Element], step: int, level: float | None
    ) -> tuple[dict[_Vector, _Vector], list[tuple[_Vector, _Vector]]]:
        """Children inside or above the band with the parent to compute each from; those below."""
        places = {element.ranks: place for place, element in enumerate(beam)}
        found: dict[_Vector, tuple[int, _Vector]] = {}
        below = []
        for parent in places:
            for layer, entry in enumerate(parent):
                moves = (
                    self._lowered(layer, entry, step)
                    if level is None
                    else self._lowered_by_cost(parent, layer, level)
                )
                for lowered in moves:
                    child = (*parent[:layer], lowered, *parent[layer + 1 :])
                    excess, _ = self._costs.of(child)
                    if self._budget.bounds and excess < -self._budget.tolerance - _ROUNDING:
                        below.append((child, parent))
                    # Of several parents the one that differs last has most in common with it.
                    elif child not in found or layer > found[child][0]:
                        found[child] = (layer, parent)
        ordered = sorted(found.items(), key=lambda item: (places[item[1][1]], item[1][0]))
        return {child: parent for child, (_, parent) in ordered}, below

    def _lowered(self, layer: int, entry: Ranks, step: int) -> Iterator[tuple[int, ...]]:
        highest = self._entries[layer]
        if highest is None:
            return
        for axis in range(len(highest)):
            if entry is None:
                rank = max(1, highest[axis] + 1 - step)
                yield (*highest[:axis], rank, *highest[axis + 1 :])
            elif entry[axis] > step:
                yield (*entry[:axis], entry[axis] - step, *entry[axis + 1 :])

    def _lowered_by_cost(
        self, parent: _Vector, layer: int, level: float
    ) -> Iterator[tuple[int, ...]]:
        """The largest ranks that bring the cost a level nearer, one per axis that can."""
        highest = self._entries[layer]
        if highest is None:
            return
        entry = parent[layer] or highest
        goal = self._measure(parent) - level
        for axis, rank in enumerate(entry):
            low, high = 0, rank if parent[layer] is None else rank - 1
            while low < high:  # the cost falls with the rank
                middle = (low + high + 1) // 2
                child = (*entry[:axis], middle, *entry[axis + 1 :])
                reached = self._measure((*parent[:layer], child, *parent[layer + 1 :])) <= goal
                low, high = (middle, high) if reached else (low, middle - 1)
            if low > 0:
                yield (*entry[:axis], low, *entry[axis + 1 :])

    def _measure(self, ranks: _Vector) -> float:
        """The cost relative to its bound; the share of the parameters where none is bounded."""
        excess, share = self._costs.of(ranks)
        return excess if self._budget.bounds else share

    def _score(
        self, children: Mapping[_Vector, _Vector], beam: list[_Element], start: _Element
    ) -> None:
        new: dict[_Vector, list[_Vector]] = {}
        for child, parent in children.items():
            if not self._scores.known(child):
                new.setdefault(parent, []).append(child)
        for parent, group in new.items():
            for _ in self._scores.compute(group, parent):
                self._report(beam, start)

    def _element(self, ranks: _Vector) -> _Element:
        if ranks not in self._elements:
            score = self._scores[ranks]
            excess, share = self._costs.of(ranks)
            draw = float(self._random.random())
            cost = excess if self._budget.bounds else share
            # Ties: the larger compression, then drawn. Rounded: sums differ in the last digit.
            key: tuple[float, ...] = (score, -round(cost, 9), -round(share, 9), draw)
            if self._level is not None:
                key = (score, -self._scores.loss(ranks), *key[1:])
            self._elements[ranks] = _Element(ranks, score, excess, share, draw, key)
        return self._elements[ranks]

    def _landed(
        self, seen: list[_Element], below: list[tuple[_Vector, _Vector]], floor: float
    ) -> _Element | None:
        """What to return where no step of 1 leads from the last beams into the band."""
        inside = [element for element in seen if self._inside(element)]
        if inside:
            return max(inside, key=lambda element: element.key)
        children = dict(below)
        self._score(children, seen[-1:], seen[0])
        under = [e for e in map(self._element, children) if e.score >= floor]
        layers = tuple(self._problem.space.layers)
        for element in sorted(under, key=lambda e: e.key, reverse=True):
            named = dict(zip(layers, element.ranks, strict=True))
            filled = fill(self._problem.space, named, self._budget)
            ranks = tuple(filled[name] for name in layers)
            self._score({ranks: element.ranks}, [element], seen[0])
            landed = self._element(ranks)
            if landed.score >= floor:
                return landed
        return None

    def _share_done(self, beam: list[_Element], start: _Element) -> float | None:
        if not self._budget.bounds:
            return None
        # Half of the band is where a search ends on average.
        goal = -self._budget.tolerance / 2
        done = (start.excess - beam[0].excess) / max(start.excess - goal, _ROUNDING)
        return self._span[0] + self._span[1] * min(max(done, 0.0), 1.0)

    def _report(self, beam: list[_Element], start: _Element) -> None:
        self._problem.progress(
            self._share_done(beam, start),
            f"{self._scores.evaluated} candidates, {self._scores.speed:.1f}/s, "
            f"best at {100 * beam[0].share:.1f} % of the parameters: {beam[0].score:.4f}",
        )

    def _tell(self, beam: list[_Element], step: int, children: int, start: _Element) -> None:
        self._report(beam, start)
        self.history.append(
            {
                "search": [self._first_step, self._beams],
                "step": step,
                "children": children,
                "evaluated": self._scores.evaluated,
                "accuracy": beam[0].score,
                "share_parameters": beam[0].share,
                "excess": beam[0].excess if self._budget.bounds else None,
                "ranks": [None if entry is None else list(entry) for entry in beam[0].ranks],
            }
        )


def _entries(space: RankSpace, metrics: tuple[str, ...]) -> list[tuple[int, ...] | None]:
    """Per layer the largest ranks worth having, None where none are."""
    found: list[tuple[int, ...] | None] = []
    for name, layer in space.layers.items():
        options = [option for option in layer.options() if option is not None]
        if layer.decomposition != "tucker":
            options = [(rank,) for rank in range(1, layer.break_even[0] + 1)]
        cheaper = [ranks for ranks in options if space.settled({name: ranks}, metrics)[name]]
        found.append(cheaper[-1] if cheaper else None)
    return found


def _unreached(problem: Problem, scores: _Scores) -> str:
    assert problem.budget is not None
    dense: _Vector = (None,) * len(problem.space.layers)
    return (
        "`budget` must leave some ranks inside all of its bounds. Received: "
        f"{problem.budget.as_dict()}, but every vector found within the costs loses more than "
        f"accuracy_drop={problem.budget.accuracy_drop} of the dense model's {scores[dense]:.4f} "
        f"on the samples ({scores.evaluated} candidates). Raise accuracy_drop or a bound."
    )
