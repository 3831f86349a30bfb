"""BSR: ranks by beam search, training that prepares the kernels for them, truncation, tuning."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from dprp_tf.conversion.cutting import cut
from dprp_tf.conversion.model_class import plain_class
from dprp_tf.costs.budget import Budget
from dprp_tf.costs.rank_plan import RankPlan
from dprp_tf.files.settings import require_same_settings
from dprp_tf.keras_internals.rewriting import rewrite
from dprp_tf.selection.scoring.samples import samples_of
from dprp_tf.selection.selecting import select_ranks
from dprp_tf.selection.selector import Selector
from dprp_tf.training.fine_tuning import FineTuning, Labelled, labels_of
from dprp_tf.training.rank_regularization import RankRegularization

__all__ = ["Compressed", "bsr"]


@dataclass(frozen=True, eq=False)
class Compressed:
    """What `bsr` returns.

    Attributes:
        model: The compressed model, of plain Keras layers.
        plan: The ranks, and what they cost.
        regularized: Logs of the epochs that prepared the kernels.
        tuned: Logs of the epochs after the cut.
    """

    model: keras.Model
    plan: RankPlan
    regularized: list[dict[str, float]]
    tuned: list[dict[str, float]]


def bsr(
    model: keras.Model,
    *,
    budget: Budget | float | Mapping[str, float],
    data: Any,
    training_data: Labelled,
    decomposition: str = "channel",
    search: Selector | str = "mbs",
    strength: float = 0.02,
    growth: float = 1.5,
    growth_epochs: int = 15,
    regularized: FineTuning | None = None,
    tuning: FineTuning | None = None,
    folder: str | os.PathLike[str] | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    progress: Callable[[float | None, str], None] | None = None,
    seed: int = 0,
    **options: Any,
) -> Compressed:
    """Compress a trained model by beam search, rank-regularized training, cut and fine-tuning.

    1. `select_ranks(model, "mbs", budget, data)` finds the ranks, once.
    2. A copy of the model trains with `RankRegularization`: L + lambda sum_l mSR(W_l, r_l),
       lambda growing by `growth` every `growth_epochs` epochs.
    3. Its kernels are cut to the ranks, the layers become two plain ones each, and the result is
       fine-tuned.

    Args:
        model: A built, trained dense model; it stays as it is.
        budget: As `select_ranks` takes it.
        data: Labelled samples that the search measures accuracy on, about one batch; as
            `select_ranks` takes them.
        training_data: What both trainings see: `(x, y)` or a `Dataset`.
        decomposition: `"channel"` (the thesis'), `"separable"`, `"spatial"` or `"tucker"`.
        search: The selector of step 1. Default: `"mbs"` with its default settings.
        strength: lambda_0. Default 0.02.
        growth: Factor b. Default 1.5.
        growth_epochs: Epochs between growths. Default 15.
        regularized: Settings of step 2. Default: 60 epochs from a learning rate of 0.01. Both
            trainings have the loss that the model was compiled with, unless they are given one.
        tuning: Settings of step 3. Default: 30 epochs from a learning rate of 0.01.
        folder: Where to keep the search's log and checkpoints; the same call goes on from them.
        callbacks: Keras callbacks of both trainings.
        progress: As `select_ranks` takes it.
        seed: Seed of the search.
        **options: More arguments of `select_ranks`, such as `layers` or `score`.

    Returns:
        The compressed model with its plan and logs.

    Raises:
        BudgetError: If no ranks meet the budget.
        ValueError: If an argument is unusable, or the folder is of another run; if the model's
            class has methods of its own and can't be kept, as `cut` says.

    Source: BSR/LeSS thesis 3.5.

    Example:

    >>> import numpy as np
    >>> inputs = keras.Input((8,))
    >>> hidden = keras.layers.Dense(16, "relu", name="hidden")(inputs)
    >>> model = keras.Model(inputs, keras.layers.Dense(2, name="last")(hidden))
    >>> x, y = np.random.default_rng(0).normal(size=(32, 8)), np.arange(32) % 2
    >>> short = FineTuning(epochs=1)
    >>> found = bsr(model, budget=Budget(parameters=0.7, tolerance=0.2), data=(x, y),
    ...     training_data=(x, y), regularized=short, tuning=short)
    >>> found.model.count_params() < model.count_params()
    True
    """
    result_class = plain_class(model)
    place = None if folder is None else Path(folder)
    plan = _plan(place, model, search, budget, data, decomposition, progress, seed, options)
    if place is not None:
        growing = {"strength": strength, "growth": growth, "growth_epochs": growth_epochs}
        require_same_settings(place / "bsr.json", {"ranks": plan.ranks, **growing}, "a run")
    dense = rewrite(model, lambda layer: None, result_class)
    press = RankRegularization(
        ranks=plan, strength=strength, growth=growth, growth_epochs=growth_epochs
    )
    # The copies that train are not compiled: they learn what the model was compiled to do.
    y = labels_of(training_data)
    first = (regularized or FineTuning(epochs=60)).for_model(model, y)
    last = (tuning or FineTuning(epochs=30)).for_model(model, y)
    kept = None if place is None else place / "regularized"
    if plan.ranks:
        prepared = first.fit(dense, training_data, callbacks=[press, *callbacks], folder=kept)
    else:  # nothing to cut, nothing to press
        prepared = first.fit(dense, training_data, callbacks=callbacks, folder=kept)
    x = samples_of(data, model)[0]
    small = cut(
        dense,
        plan,
        calibration_data=x if plan.truncation == "output" else None,
        latency=options.get("latency"),
    )
    kept = None if place is None else place / "tuned"
    tuned = last.fit(small, training_data, callbacks=callbacks, folder=kept)
    return Compressed(small, plan, prepared, tuned)


def _plan(
    folder: Path | None,
    model: keras.Model,
    search: Selector | str,
    budget: Any,
    data: Any,
    decomposition: str,
    progress: Any,
    seed: int,
    options: dict[str, Any],
) -> RankPlan:
    # Always through the search: what its log knows costs nothing, and a log of another is refused.
    plan = select_ranks(
        model,
        method=search,
        budget=budget,
        data=data,
        decomposition=decomposition,
        log=None if folder is None else folder / "candidates.jsonl",
        progress=progress,
        seed=seed,
        **options,
    )
    if folder is not None:
        plan.save(folder / "rank_plan.json")
    return plan
