"""One call for every way to choose the ranks of a trained model."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from dprp_tf.conversion.output_truncations import output_truncations
from dprp_tf.costs.accuracy import top_1_accuracy
from dprp_tf.costs.budget import Budget, BudgetError
from dprp_tf.costs.latency_table import LatencyTable
from dprp_tf.costs.rank_plan import RankPlan
from dprp_tf.costs.rank_space import RankSpace
from dprp_tf.costs.scores import Score, resolve_score
from dprp_tf.data import Dataset
from dprp_tf.data.gathering import is_stream
from dprp_tf.files.arguments import check_choice
from dprp_tf.selection.candidate_log import CandidateLog
from dprp_tf.selection.methods.accuracy_drop import smallest_within_drop
from dprp_tf.selection.methods.activation import ActivationAware
from dprp_tf.selection.methods.beam import BeamSearch, CostBeamSearch
from dprp_tf.selection.methods.energy import Energy, EnergyProduct
from dprp_tf.selection.methods.similarity import FeatureSimilarity
from dprp_tf.selection.methods.uniform import Uniform
from dprp_tf.selection.methods.vbmf import VariationalBayes
from dprp_tf.selection.scoring.samples import samples_of
from dprp_tf.selection.selector import Problem, Selector
from dprp_tf.training.fine_tuning import Labelled, labelled

__all__ = ["SELECTORS", "select_ranks"]

SELECTORS: Mapping[str, type[Selector]] = {
    kind.name: kind
    for kind in (
        Uniform,
        Energy,
        EnergyProduct,
        VariationalBayes,
        ActivationAware,
        BeamSearch,
        CostBeamSearch,
        FeatureSimilarity,
    )
}

_TRUNCATIONS = ("kernel", "output")


def select_ranks(
    model: keras.Model,
    *,
    method: str | Selector = "activation",
    budget: Budget | float | Mapping[str, float] | None = None,
    data: Any = None,
    decomposition: str = "separable",
    layers: Iterable[str] | Callable[[keras.layers.Layer], bool] | None = None,
    truncation: str | None = None,
    training_data: Labelled | None = None,
    latency: LatencyTable | None = None,
    score: Score | None = None,
    log: str | os.PathLike[str] | None = None,
    fresh: bool = False,
    progress: Callable[[float | None, str], None] | None = None,
    seed: int = 0,
) -> RankPlan:
    """Choose the ranks of a trained dense model against a budget.

    | method | looks at | source |
    |---|---|---|
    | `"uniform"` | nothing: one share of the full rank | |
    | `"energy"` | one share of each layer's energy | thesis Eq. 2.1 |
    | `"energy_product"` | the product of energies, exactly | thesis Eq. 2.2, 2.3 |
    | `"vbmf"` | the noise in each kernel | Nakajima et al. 2013 |
    | `"activation"` | the product of the energies of outputs on `data` | arXiv 2511.04494 |
    | `"mbs"` | accuracy, by beam search over all layers | thesis Algorithm 1 |
    | `"beam"` | the same; levels of equal cost | ours |
    | `"similarity"` | each layer's feature map | Kokhazadeh et al. |

    Args:
        model: A built, trained Functional or Sequential model; it stays as it is.
        method: A name of the table, or a `Selector` with settings of its own. Default
            `"activation"`, which needs `data`.
        budget: A `Budget`, its bounds by name, or a share of the parameters alone, such as 0.5.
            None where the method finds ranks by itself.
        data: Labelled inputs `(x, y)`: what accuracies are measured on, and what activations come
            from. x is a list or dict of arrays for several inputs; y for several outputs a list
            of arrays in the model's order, or a dict by output name. Or x alone, where method and
            budget need no labels; the plan then states no accuracy. A few hundred samples do;
            none of the test split.
        decomposition: `"separable"`, `"channel"`, `"spatial"` or `"tucker"` (for convolutions of
            more than one position; the rest is `"channel"`). Default `"separable"`, whose two
            stages are plain convolutions: fast in every runtime and precision.
        layers: Names or paths of the layers that may be cut, or a function that says so for a
            layer. Default: every one that can be.
        truncation: `"kernel"`: cuts are nearest to the kernel. `"output"`: nearest to the layer's
            output on `data`; `factorize` then needs the same data. Default: what the method asks
            for, `"kernel"` but for `"activation"`.
        training_data: What methods that fine-tune train on: `(x, y)` or a `Dataset`.
        latency: A latency table of the model, for budgets of time.
        score: What is called accuracy: a function (y, predictions) -> float, larger is better; a
            name, such as `"mean_iou"`, `"mean_squared_error"` (counted negatively) or `"psnr"`; a
            Keras metric or its name. Default: what the model was compiled for, top-1 accuracy for
            classes; see `dprp_tf.costs.scores.resolve_score`. y is as given, predictions are
            structured as the model's outputs are.
        log: File to write every candidate to; an interrupted search given the same file goes on.
        fresh: Whether to discard what that file holds. Default False.
        progress: Called with the share done, 0 to 1 or None, and a text. Default: nothing shown.
        seed: Seed of everything random.

    Returns:
        The `RankPlan`; `factorize(model, ranks=plan)` applies it.

    Raises:
        BudgetError: If no ranks meet the budget; it names the bound and what can be met.
        ValueError: If an argument is unusable.

    Example:

    >>> inputs = keras.Input((8, 8, 16))
    >>> outputs = keras.layers.Conv2D(16, 3, name="a", use_bias=False)(inputs)
    >>> model = keras.Model(inputs, outputs)
    >>> plan = select_ranks(model, method="energy", budget=Budget(parameters=0.6, tolerance=0.2))
    >>> 0.48 < plan.shares["parameters"] <= 0.6
    True
    """
    selector = _selector(method)
    asked = None if budget is None else Budget.of(budget)
    bounds = None if asked is None else asked.on(latency)
    if truncation is None:
        truncation = "output" if isinstance(selector, ActivationAware) else "kernel"
    check_choice("truncation", truncation, _TRUNCATIONS)
    samples = None if data is None else samples_of(data, model)
    if layers is not None and not callable(layers) and not isinstance(layers, str):
        layers = list(layers)
    truncate = None
    if truncation == "output":
        if samples is None:
            raise ValueError(
                "`data` must be given, (x, y) or x alone, to keep the outputs on it. Received: "
                "data=None"
            )
        truncate = output_truncations(model, layers, samples[0])
    space = RankSpace(
        model,
        decomposition,
        layers,
        truncate=truncate,
        latency=latency,
    )
    if bounds is not None:
        space.bounds(bounds)  # refuses a cost that is not known
    y = None if samples is None else samples[1]
    judge = None if score is None and y is None else resolve_score(score, model, y)
    problem = Problem(
        model=model,
        space=space,
        budget=bounds,
        data=samples,
        training_data=training_data,
        log=CandidateLog(
            None if log is None else Path(log),
            list(space.layers),
            _identity(model, space, truncation, samples, selector, judge, training_data, seed),
            fresh=fresh,
        ),
        progress=progress or (lambda share, text: None),
        # The evaluator's own, which tells ties of the accuracy apart.
        score=None if judge is top_1_accuracy else judge,
        seed=seed,
    )
    by_drop = bounds is not None and bounds.accuracy_drop is not None
    try:
        if by_drop and not selector.heeds_accuracy:
            found = smallest_within_drop(problem, selector)
        else:
            found = selector.select(problem)
    except BudgetError as error:
        if asked is None:
            raise
        raise error.asked_as(asked, latency) from None
    ranks = space.settled(found.ranks, problem.metrics)
    accuracy = {}
    if samples is not None and samples[1] is not None:
        pair = list(problem.evaluator.evaluate([space.dense(), ranks]))
        accuracy = {"dense": pair[0].score, "planned": pair[1].score}
    cost = space.cost(ranks)
    return RankPlan(
        method=selector.name,
        decomposition=decomposition,
        truncation=truncation,
        budget={} if bounds is None else bounds.as_dict(),
        layers=space.planned(ranks),
        cost=cost.values,
        dense=cost.dense,
        accuracy=accuracy,
        history=tuple(found.history),
        unit="ms" if latency is None else latency.unit,
    )


def _selector(method: str | Selector) -> Selector:
    if isinstance(method, Selector):
        return method
    if method not in SELECTORS:
        raise ValueError(
            f"`method` must be one of {sorted(SELECTORS)} or a Selector. "
            f"Received: method={method!r}"
        )
    return SELECTORS[method]()


def _identity(
    model: keras.Model,
    space: RankSpace,
    truncation: str,
    data: tuple[Any, Any] | None,
    selector: Selector,
    score: Any,
    train: Any,
    seed: int,
) -> str:
    """A fingerprint of all that logged results depend on."""
    digest = hashlib.sha256()
    for weight in model.weights:
        digest.update(np.ascontiguousarray(ops.convert_to_numpy(weight)).tobytes())
    for array in keras.tree.flatten([part for part in data or () if part is not None]):
        digest.update(np.ascontiguousarray(array).tobytes())
    name = getattr(score, "__qualname__", repr(score))
    digest.update(repr((space.decomposition, truncation, selector.identity(), name)).encode())
    if selector.draws and (seed or train is not None):
        # Of a stream nothing is known without reading it.
        known = train is not None and not is_stream(train)
        x, y = _split(train) if known else ((), ())
        shapes = [np.shape(array) for array in keras.tree.flatten(x)]
        digest.update(repr((seed, shapes)).encode() + _bytes(y))
    return digest.hexdigest()


def _bytes(y: Any) -> bytes:
    return b"".join(np.ascontiguousarray(array).tobytes() for array in keras.tree.flatten(y))


def _split(train: Any) -> tuple[Any, Any]:
    if isinstance(train, Dataset):
        return train.x_train, train.y_train
    return labelled(train, "training_data")
