"""Score rank candidates by swapping truncated kernels into one compiled model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
from numpy.typing import NDArray

from dprp_tf.costs.accuracy import class_labels, only_output, top_1_accuracy
from dprp_tf.costs.rank_space import Ranks, RankSpace
from dprp_tf.selection.scoring.kernel_swaps import KernelSwaps
from dprp_tf.selection.scoring.log_probabilities import are_probabilities, log_probabilities
from dprp_tf.selection.scoring.samples import label_lengths

__all__ = ["CandidateEvaluator", "Evaluation"]


class Evaluation(NamedTuple):
    """What a candidate scored.

    Attributes:
        score: Top-1 accuracy, 0 to 1, or what the user's function returned; larger is better.
        cross_entropy: Mean over the samples, in nats; None with a score function of the user's.
    """

    score: float
    cross_entropy: float | None = None


class CandidateEvaluator:
    """Scores of a model with truncated kernels on a fixed set of samples, many a second.

    See `KernelSwaps` for what makes them quick. The model itself is never written to.

    Args:
        model: The dense model that `space` was made for.
        space: Its ranks.
        x: Samples: an array, or a list or dict of arrays for several inputs.
        y: Labels: whole numbers or one-hot rows; for several outputs a list or dict of arrays,
            and anything else that a `score` of yours understands.
        score: Function (y, predictions) -> float, larger is better, NaN worst; predictions are
            structured as the model's outputs are. Default: top-1 accuracy of one output.
        batch_size: Samples computed at once. Default: as many as `memory` allows, 512 at most.
        memory: Bytes that kept tensors may take. Default 2**30.

    Raises:
        ValueError: If samples and labels do not fit the model or each other.

    Source: BSR thesis, Algorithm 1, which needs thousands of such scores.

    Example:

    >>> inputs = keras.Input((2,))
    >>> outputs = keras.layers.Dense(2, name="a", use_bias=False)(inputs)
    >>> model = keras.Model(inputs, outputs)
    >>> model.set_weights([np.diag([1.0, 0.5])])
    >>> evaluator = CandidateEvaluator(model, RankSpace(model, "channel"), np.eye(2), [0, 1])
    >>> [found.score for found in evaluator.evaluate([{"a": None}, {"a": (1,)}])]
    [1.0, 0.5]
    """

    def __init__(
        self,
        model: keras.Model,
        space: RankSpace,
        x: Any,
        y: Any,
        *,
        score: Callable[[Any, Any], float] | None = None,
        batch_size: int | None = None,
        memory: int = 2**30,
    ) -> None:
        self._swaps = KernelSwaps(
            model,
            {key: at.layer for key, at in space.layers.items()},
            lambda key, ranks: space.layers[key].truncation.kernel(ranks),
            x,
            batch_size=batch_size,
            memory=memory,
        )
        samples = self._swaps.samples
        self._y = np.asarray(y) if score is None else y
        lengths = label_lengths(self._y)
        # A list of arrays may also be one of each sample's own.
        whole = isinstance(self._y, (list, tuple)) and len(self._y) == samples
        if set(lengths) - {samples} and not whole:
            raise ValueError(
                "`x` and `y` must hold the same number of samples, one or more. Received: "
                f"{samples} samples and {', '.join(map(str, lengths))} labels"
            )
        self._score = score

    def evaluate(
        self,
        candidates: Iterable[Mapping[str, Ranks]],
        parent: Mapping[str, Ranks] | None = None,
    ) -> Iterator[Evaluation]:
        """Score candidates, each as it is asked for where all samples fit in one batch.

        Args:
            candidates: Ranks by layer; a layer left out is dense.
            parent: Ranks that the candidates differ little from: what they share with it is
                computed once. Default: nothing is kept beyond what was.

        Yields:
            One `Evaluation` per candidate, in their order.

        Raises:
            ValueError: If ranks are out of range or the labels do not fit the predictions.
        """
        for found in self.predictions(candidates, parent):
            if self._score is not None:
                value = float(self._score(self._y, found))
                yield Evaluation(-math.inf if math.isnan(value) else value)
            else:
                one = only_output(found)
                accuracy = top_1_accuracy(self._y, one)
                yield Evaluation(accuracy, _cross_entropy(self._y, one))

    def predictions(
        self,
        candidates: Iterable[Mapping[str, Ranks]],
        parent: Mapping[str, Ranks] | None = None,
    ) -> Iterator[Any]:
        """Yield what the model predicts with the candidates' kernels, as `KernelSwaps` does.

        Args:
            candidates: Ranks by layer; a layer left out is dense.
            parent: Ranks that the candidates differ little from.

        Yields:
            Per candidate what `model.predict` would return.
        """
        yield from self._swaps.predictions(candidates, parent)


def _cross_entropy(y: NDArray[Any], predictions: NDArray[Any]) -> float:
    """Mean of -log p of the labels; what is no distribution yet is taken for logits."""
    labels = class_labels(y, predictions)
    scores = predictions.astype(np.float64)
    logs = log_probabilities(scores, probabilities=are_probabilities(scores))
    return float(-np.mean(np.take_along_axis(logs, labels[..., None], axis=-1)))
