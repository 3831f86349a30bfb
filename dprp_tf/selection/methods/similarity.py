"""Ranks by how much of each layer's feature map is left, with fine-tuning or without."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import keras
import numpy as np

from dprp_tf.costs.accuracy import only_output, top_1_accuracy
from dprp_tf.costs.budget import Budget, BudgetError
from dprp_tf.costs.rank_space import Ranks, RankSpace
from dprp_tf.files.arguments import check_choice, check_integer, check_number
from dprp_tf.selection.scoring.feature_maps import FeatureMaps
from dprp_tf.selection.scoring.trainable_candidate import TrainableCandidate
from dprp_tf.selection.selector import Problem, Selection, Selector
from dprp_tf.selection.solving.filling import fill, require_feasible
from dprp_tf.selection.solving.levels import Levels, RankCurve
from dprp_tf.selection.solving.ratios import PAIRS, ladder, ranks_at_ratio, ratio_of
from dprp_tf.training.fine_tuning import FineTuning, labels_of
from dprp_tf.training.saving import save_model

__all__ = ["FeatureSimilarity", "largest_layers"]

_TUNED = "fine_tuned.keras"


def largest_layers(sizes: Mapping[str, float], share: float) -> list[str]:
    """Return the fewest layers that hold a share of the parameters, in their own order.

    Args:
        sizes: Parameters, or another cost, by layer.
        share: The share, in (0, 1].

    Returns:
        The names.

    Example:

    >>> largest_layers({"a": 5, "b": 60, "c": 35}, 0.9)
    ['b', 'c']
    """
    wanted = share * sum(sizes.values())
    chosen: set[str] = set()
    held = 0.0
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        if held >= wanted * (1 - 1e-9):
            break
        chosen.add(name)
        held += sizes[name]
    return [name for name in sizes if name in chosen]


@dataclass(frozen=True)
class FeatureSimilarity(Selector):
    """Give each layer the rank at which its feature map stays similar to the trained model's.

    Similarity is the mean cosine of `FeatureMaps`: the factorized layer gets the input that the
    trained model's layer gets, and both outputs are compared behind the normalization, activation
    and pooling that follow. Layers in a non-sequential block, which some path from input to
    output leads around, are held to `block_threshold`, the others to `threshold`.

    Under `Budget.accuracy_drop`, the paper's search: the layers that hold `share` of the
    parameters start at rank 1; the factorized model is fine-tuned once; if it misses the
    accuracy, layers at or over their threshold keep their ranks for good, the others lose `step`
    of compression ratio (dense at 0), and it starts again from the trained weights. Where the
    paper is silent: a step that changes no rank is not trained but taken again; when every layer
    has passed its threshold and the accuracy is still missed, all of them lose a step; bounds on
    costs that the budget has as well end the search when they are exceeded, for ranks only grow.
    Without `tuning` the candidates are evaluated as they are.

    Under bounds on costs alone, a variant of ours without fine-tuning: the similarity of a layer
    then depends on its own rank only, so the largest common threshold is found by bisection at
    which every layer at its smallest rank that reaches it keeps the budget; what is left is spent
    by `filling.fill`. `threshold` and `block_threshold` keep their proportion: a block's layers may
    be (1 - block_threshold) / (1 - threshold) times as far from 1. The layers cut are then those
    that hold `share` of each cost that is bounded, and more of the largest where these alone can't
    keep the bounds. Without a budget `threshold` is the level.

    Args:
        share: Share of the parameters of the layers that can be factorized, in (0, 1]; the
            fewest layers that hold it are cut. Default 0.9.
        threshold: Similarity at which a layer keeps its rank, in (0, 1). Default 0.92.
        block_threshold: The same inside non-sequential blocks. Default 0.96.
        step: Compression ratio lost per iteration, in (0, 1). Default 0.05.
        samples: Training samples for the similarity (samples of the data if there are no
            training samples), drawn at random. Default 1000.
        pairs: Which pair of ranks Tucker-2 takes at a ratio, `"equal"`, `"most_macs"` or
            `"fewest_macs"`; see `ranks_at_ratio`. Default `"equal"`.
        tuning: How a candidate is fine-tuned; needs training data. Default: not at all.
        folder: Where `tuning` keeps checkpoints, so that an interrupted one goes on, and the
            search the fine-tuned model of its last iteration, `fine_tuned.keras`, none if that is
            the trained model itself. Default: neither.
        batch_size: Samples of feature maps computed at once. Default 100.
        memory: Bytes of feature maps that are kept. Default 256 MiB. Where the maps of all
            samples take more, the search with fine-tuning computes them again each time, and the
            one without takes fewer samples.

    Raises:
        ValueError: If an argument is out of range.

    Source: Kokhazadeh et al., A CNN Compression Methodology for Layer-Wise Rank Selection
    Considering Inter-Layer Interactions, section III.

    Example:

    >>> FeatureSimilarity(threshold=0.9).block_threshold
    0.96
    """

    name: ClassVar[str] = "similarity"
    heeds_accuracy: ClassVar[bool] = True
    draws: ClassVar[bool] = True
    share: float = 0.9
    threshold: float = 0.92
    block_threshold: float = 0.96
    step: float = 0.05
    samples: int = 1000
    pairs: str = "equal"
    tuning: FineTuning | None = None
    # It changes no result, so it is no part of what identifies a search.
    folder: str | os.PathLike[str] | None = field(default=None, repr=False)
    batch_size: int = 100
    memory: int = 2**28

    def __post_init__(self) -> None:
        for name in ("threshold", "block_threshold", "step"):
            check_number(name, getattr(self, name), above=0, below=1)
        check_number("share", self.share, above=0, maximum=1)
        for name in ("samples", "batch_size", "memory"):
            object.__setattr__(self, name, check_integer(name, getattr(self, name)))
        check_choice("pairs", self.pairs, PAIRS)

    @property
    def tuned_path(self) -> Path | None:
        """Where the search leaves the fine-tuned model of its last iteration; None for nowhere."""
        return None if self.folder is None else Path(self.folder) / _TUNED

    def select(self, problem: Problem) -> Selection:
        """Choose ranks; see the class."""
        if problem.budget is not None and problem.budget.accuracy_drop is not None:
            return _Search(self, problem).run()
        return self._by_cost(problem)

    def targets(self, space: RankSpace, budget: Budget | None = None) -> list[str]:
        """Return the layers that are cut.

        Args:
            space: The ranks they could have.
            budget: Bounds on costs that they must be able to keep. Default: none.

        Returns:
            The fewest layers that hold the share, of the parameters or of each cost that is
            bounded, and those that it takes to keep the bounds; less those that rank 1 would not
            make smaller.
        """
        smallest = space.smallest()
        metrics = tuple(budget.bounds) if budget is not None and budget.bounds else ("parameters",)
        chosen: set[str] = set()
        for metric in metrics:
            sizes = {name: space.layer_cost(name, None, metric) for name in space.layers}
            chosen |= set(largest_layers(sizes, self.share))
            for name in sorted(sizes, key=lambda name: -sizes[name]):
                ranks = {name: smallest[name] for name in chosen}
                if budget is None or budget.kept(space.cost(ranks).shares):
                    break
                chosen.add(name)
        return [name for name in space.layers if name in chosen and smallest[name] is not None]

    def threshold_of(self, maps: FeatureMaps, name: str) -> float:
        """Return the similarity at which a layer keeps its rank.

        Args:
            maps: Feature maps of the model.
            name: The layer.

        Returns:
            `block_threshold` inside a non-sequential block, else `threshold`.
        """
        return self.block_threshold if maps.in_block(name) else self.threshold

    def _by_cost(self, problem: Problem) -> Selection:
        if self.tuning is not None:
            raise ValueError(
                "`tuning` needs a budget with `accuracy_drop`, which it is there to reach. "
                f"Received: budget={problem.budget}; leave `tuning` out, or add "
                "accuracy_drop=0.015."
            )
        space, budget = problem.space, problem.budget
        if budget is not None:
            require_feasible(space, budget)
        names = self.targets(space, budget)
        maps = FeatureMaps(
            problem.model,
            names,
            _samples(problem, self.samples, self.name),
            batch_size=self.batch_size,
            memory=self.memory,
            fewer=True,
        )
        levels = Levels(
            space,
            {
                name: RankCurve(
                    ladder(space.layers[name], self.pairs),
                    _similarity_at(problem, maps, name),
                    (1.0 - self.threshold_of(maps, name)) / (1.0 - self.threshold),
                )
                for name in names
            },
        )
        if budget is None or not budget.bounds:
            level = self.threshold
            ranks = space.settled(levels.ranks(level), problem.metrics)
        else:
            level = levels.largest(budget, problem.progress, "similarity")
            ranks = space.settled(levels.ranks(level), problem.metrics)
            if not budget.kept(space.cost(ranks).shares):
                # Costs that are lower without factors, or that do not grow with the rank.
                ranks = space.smallest(problem.metrics)
            ranks = fill(space, ranks, budget)
        row = {
            "similarity": level,
            "samples": maps.samples,
            "similarities": {
                name: _similarity_at(problem, maps, name)(entry)
                for name, entry in ranks.items()
                if name in names and entry is not None
            },
        }
        return Selection(ranks, [row])


class _Search:
    """The search under an accuracy drop: ranks rise until the fine-tuned model is good enough."""

    def __init__(self, method: FeatureSimilarity, problem: Problem) -> None:
        assert problem.budget is not None
        assert problem.budget.accuracy_drop is not None
        self._method, self._problem, self._budget = method, problem, problem.budget
        self._drop = problem.budget.accuracy_drop
        if method.tuning is not None and problem.training_data is None:
            raise ValueError(
                "`training_data` must be given, (x, y) or a Dataset, for fine-tuning. Received: "
                "training_data=None; give it, or leave out `tuning`."
            )
        space = problem.space
        names = method.targets(space)
        self._ranks: dict[str, Ranks] = space.dense() | {
            name: (1,) * len(space.layers[name].full_ranks) for name in names
        }
        self._ratios = {name: ratio_of(space.layers[name], self._ranks[name]) for name in names}
        self._settled: set[str] = set()
        self._maps: FeatureMaps | None = None
        self._iteration = 0

    def run(self) -> Selection:
        problem, space = self._problem, self._problem.space
        dense = self._accuracy(space.dense(), "dense", lambda: problem.model)
        needed = dense - self._drop
        history: list[dict[str, Any]] = []
        while True:
            self._iteration = len(history) + 1
            ranks = dict(self._ranks)
            cut = {name: entry for name, entry in ranks.items() if entry is not None}
            row: dict[str, Any] = {"accuracy": dense, "similarity": {}}
            if cut:
                row = self._evaluated(ranks, cut)
            accuracy, similarity = float(row["accuracy"]), row["similarity"]
            shares = space.cost(ranks).shares
            history.append(
                {
                    "iteration": self._iteration,
                    "accuracy": accuracy,
                    "needed": needed,
                    **shares,
                    "ranks": {name: list(entry) for name, entry in cut.items()},
                    "ratio": {name: ratio for name, ratio in self._ratios.items() if name in cut},
                    "similarity": similarity,
                }
            )
            problem.progress(
                None,
                f"iteration {self._iteration}: accuracy {accuracy:.4f}, {needed:.4f} needed, "
                f"{shares['parameters']:.1%} of the parameters",
            )
            if not self._budget.kept(shares):
                self._refuse(shares)
            if accuracy >= needed - 1e-12:
                if not cut and self._method.tuned_path is not None:
                    # Of the iteration before, which was not good enough.
                    self._method.tuned_path.unlink(missing_ok=True)
                return Selection(ranks, history)
            history[-1]["raised"] = self._raise(cut, similarity)

    def _raise(self, cut: Mapping[str, Any], similarity: Mapping[str, float]) -> list[str]:
        """Lower the compression ratio of the layers that need it, until some rank changes."""
        method, layers = self._method, self._problem.space.layers
        for name in cut:
            if similarity[name] >= method.threshold_of(self._feature_maps(), name):
                self._settled.add(name)
        lowered = [name for name in cut if name not in self._settled] or list(cut)
        before = dict(self._ranks)
        while self._ranks == before:
            for name in lowered:
                self._ratios[name] -= method.step
                self._ranks[name] = ranks_at_ratio(layers[name], self._ratios[name], method.pairs)
        return lowered

    def _evaluated(self, ranks: dict[str, Ranks], cut: Mapping[str, Any]) -> dict[str, Any]:
        problem, tuning = self._problem, self._method.tuning
        space = problem.space
        kind = "similarity search"
        known = problem.log.known(ranks, kind)
        if known is None:
            candidate = TrainableCandidate(problem.model, space, cut)
            if tuning is not None:
                self._tune(tuning, candidate.model, ranks)
            maps = self._feature_maps()
            known = {
                "accuracy": self._score(candidate.model),
                "similarity": maps.similarity(candidate.replacements, candidate.behind),
                **space.cost(ranks).shares,
            }
            problem.log.candidate(ranks, kind, **known)
        return known

    def _tune(self, tuning: FineTuning, model: keras.Model, ranks: dict[str, Ranks]) -> None:
        # A candidate is not compiled: it learns what the model was compiled to do.
        tuning = tuning.for_model(self._problem.model, labels_of(self._problem.training_data))
        path = self._method.tuned_path
        if path is None:
            tuning.fit(model, self._problem.training_data, callbacks=[self._bar()])
            return
        # By its ranks: a search of other settings may have left its own there.
        named = hashlib.sha256(repr(sorted(ranks.items())).encode()).hexdigest()[:16]
        checkpoints = path.with_name(f"tuning-{named}")
        tuning.fit(model, self._problem.training_data, callbacks=[self._bar()], folder=checkpoints)
        save_model(model, path)
        shutil.rmtree(checkpoints, ignore_errors=True)

    def _bar(self) -> keras.callbacks.Callback:
        text, progress = f"iteration {self._iteration}: epoch", self._problem.progress
        return keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, logs: progress(None, f"{text} {epoch + 1}")
        )

    def _accuracy(
        self, ranks: dict[str, Ranks], kind: str, model: Callable[[], keras.Model]
    ) -> float:
        known = self._problem.log.known(ranks, kind)
        if known is None:
            known = {"accuracy": self._score(model())}
            self._problem.log.candidate(ranks, kind, **known)
        return float(known["accuracy"])

    def _score(self, model: keras.Model) -> float:
        x, y = self._problem.require_data(self._method.name)
        outputs = model.predict(x, batch_size=256, verbose=0)
        if self._problem.score is not None:
            return float(self._problem.score(y, outputs))
        return top_1_accuracy(y, only_output(outputs))

    def _feature_maps(self) -> FeatureMaps:
        if self._maps is None:
            method = self._method
            self._maps = FeatureMaps(
                self._problem.model,
                list(self._ratios),
                _samples(self._problem, method.samples, method.name),
                batch_size=method.batch_size,
                memory=method.memory,
            )
        return self._maps

    def _refuse(self, shares: Mapping[str, float]) -> None:
        bounds = self._budget.bounds
        tight = max(bounds, key=lambda metric: shares[metric] / bounds[metric])
        nearest = (None, shares[tight])  # not the least there is: ranks have grown
        raise BudgetError(
            bounds[tight],
            shares[tight],
            metric=tight,
            nearest=nearest,
            unit=self._problem.space.unit,
        )


def _similarity_at(
    problem: Problem, maps: FeatureMaps, name: str
) -> Callable[[tuple[int, ...]], float]:
    """Return the function from a layer's ranks to its similarity, which asks the log first."""

    def at(ranks: tuple[int, ...]) -> float:
        known = problem.log.known({name: ranks}, "similarity")
        if known is None:
            kernel = problem.space.layers[name].truncation.kernel(ranks)
            known = {"similarity": maps.with_kernels({name: kernel})[name]}
            problem.log.candidate({name: ranks}, "similarity", **known)
        return float(known["similarity"])

    return at


def _samples(problem: Problem, count: int, method: str) -> Any:
    """Draw inputs for the feature maps: of the training data, else of the data."""
    if problem.training_data is None:
        x: Any = problem.require_inputs(method)
    else:
        x = (
            problem.training_data[0]
            if isinstance(problem.training_data, tuple)
            else problem.training_data.x_train
        )
    arrays = keras.tree.flatten(x)
    total = len(arrays[0])
    chosen = np.sort(np.random.default_rng(problem.seed).permutation(total)[:count])
    picked = [array[chosen] for array in arrays]
    return picked if len(picked) > 1 else picked[0]
