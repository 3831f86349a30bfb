"""What every way to choose ranks is: a problem in, ranks out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import keras

from dprp_tf.costs.budget import Budget
from dprp_tf.costs.rank_space import Ranks, RankSpace
from dprp_tf.selection.candidate_log import CandidateLog
from dprp_tf.selection.scoring.evaluator import CandidateEvaluator

__all__ = ["Problem", "Selection", "Selector"]


def _silent(share: float | None, text: str) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class Problem:
    """What a selector is given.

    Attributes:
        model: The dense, trained model.
        space: The ranks its layers could have.
        budget: The bounds; None for a method that finds ranks by itself.
        data: Inputs and labels `(x, y)` that the accuracy is measured on, or None; lists or dicts
            of arrays for several inputs or outputs; y is None for inputs alone.
        training_data: Training data for methods that fine-tune: `(x, y)` or a `Dataset`; else None.
        log: Candidates evaluated so far.
        progress: Called with the share done, 0 to 1 or None where it isn't known, and a text.
        score: Accuracy from labels and predictions, in their structures, larger is better; None
            for top-1.
        seed: Seed of everything random.
    """

    model: keras.Model
    space: RankSpace
    budget: Budget | None
    data: tuple[Any, Any] | None
    training_data: Any
    log: CandidateLog
    progress: Callable[[float | None, str], None] = _silent
    score: Callable[[Any, Any], float] | None = None
    seed: int = 0

    @property
    def metrics(self) -> tuple[str, ...]:
        """The costs that the budget bounds; where it bounds none, the space's own."""
        bounded = tuple(self.budget.bounds) if self.budget else ()
        return bounded or (self.space.metric,)

    @cached_property
    def evaluator(self) -> CandidateEvaluator:
        """Scores of candidates on the whole of the data, compiled once.

        Raises:
            ValueError: If there are no data.
        """
        x, y = self.require_data("accuracy")
        return CandidateEvaluator(self.model, self.space, x, y, score=self.score)

    def require_data(self, method: str) -> tuple[Any, Any]:
        """Return the labelled inputs.

        Args:
            method: Who asks, for the message.

        Returns:
            `(x, y)`.

        Raises:
            ValueError: If there are none, or inputs alone.
        """
        if self.data is None or self.data[1] is None:
            received = "data=None" if self.data is None else "inputs without labels"
            raise ValueError(
                f"`data` must be given, (x, y), for the method {method!r}. Received: {received}"
            )
        return self.data

    def require_inputs(self, method: str) -> Any:
        """Return the inputs, labelled or not.

        Args:
            method: Who asks, for the message.

        Returns:
            An array, or a list or dict of arrays for several inputs.

        Raises:
            ValueError: If there are none.
        """
        if self.data is None:
            raise ValueError(
                f"`data` must be given, (x, y) or x alone, for the method {method!r}. Received: "
                "data=None"
            )
        return self.data[0]


@dataclass(frozen=True)
class Selection:
    """What a selector found.

    Attributes:
        ranks: Ranks by layer; None for a layer that stays dense.
        history: What it did, step by step, JSON-ready.
    """

    ranks: dict[str, Ranks]
    history: list[dict[str, Any]] = field(default_factory=list)


class Selector(ABC):
    """Base of the ways to choose ranks; subclass it to add your own.

    Attributes:
        name: How `select_ranks` calls it.
        heeds_accuracy: Whether it keeps `Budget.accuracy_drop` by itself. Where not,
            `select_ranks` looks for the smallest share of the cost that does.
        draws: Whether logged results depend on the seed and on the training data.
    """

    name: ClassVar[str]
    heeds_accuracy: ClassVar[bool] = False
    draws: ClassVar[bool] = False

    @abstractmethod
    def select(self, problem: Problem) -> Selection:
        """Choose ranks that keep every bound of the problem's budget.

        Args:
            problem: Model, space, budget and data.

        Returns:
            The ranks and what was done to find them.

        Raises:
            BudgetError: If no ranks meet the budget.
        """

    def identity(self) -> str:
        """Return what logged results of this selector depend on besides model and data."""
        return repr(self)
