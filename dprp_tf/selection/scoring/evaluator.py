"""Score rank candidates by swapping truncated kernels into one compiled model."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from dprp_tf.costs.accuracy import class_labels, only_output, top_1_accuracy
from dprp_tf.costs.rank_space import Ranks, RankSpace
from dprp_tf.keras_internals.graphs import graph_of, output_structure
from dprp_tf.selection.scoring.samples import label_lengths
from dprp_tf.selection.scoring.stages import StagedModel

__all__ = ["CandidateEvaluator", "Evaluation"]

_MEMORY = 2**30
_BATCH = 512


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

    The model is compiled once, in stages that take their kernels as arguments; a candidate costs
    the stages behind the first layer that it cuts otherwise than its parent. The tensors alive
    at each stage's start are kept, up to `memory` bytes. The model itself is never written to.

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
        memory: int = _MEMORY,
    ) -> None:
        self._space = space
        self._structure = output_structure(graph_of(model))
        self._staged = StagedModel(model, {key: at.layer for key, at in space.layers.items()})
        inputs = self._staged.inputs(x)
        samples = len(inputs[0])
        self._y = np.asarray(y) if score is None else y
        lengths = label_lengths(self._y)
        # A list of arrays may also be one of each sample's own.
        whole = isinstance(self._y, (list, tuple)) and len(self._y) == samples
        if samples == 0 or (set(lengths) - {samples} and not whole):
            raise ValueError(
                "`x` and `y` must hold the same number of samples, one or more. Received: "
                f"{samples} samples and {', '.join(map(str, lengths))} labels"
            )
        self._score = score
        per_sample = max(self._staged.bytes_per_sample, 1)
        size = batch_size or max(1, min(_BATCH, samples, memory // (2 * per_sample)))
        parts = math.ceil(samples / size)
        cut = [np.array_split(array, parts) for array in inputs]
        batches = [[ops.convert_to_tensor(part) for part in row] for row in zip(*cut, strict=True)]
        self._prefixes = _Prefixes(memory)
        self._kernels = _Kernels(space, memory // 4)
        # The first stage has no kernels of candidates: computed once.
        self._starts = [self._staged.stages[0](batch, ()) for batch in batches]
        self._stages = self._staged.stages[1:]
        # What the first stages depend on: the layers first used in them.
        self._order = tuple(key for stage in self._stages for key in stage.first)
        ends = np.cumsum([len(stage.first) for stage in self._stages]).tolist()
        self._known = (0, *(int(end) for end in ends))

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
        """Yield what the model predicts with the candidates' kernels.

        Args:
            candidates: Ranks by layer; a layer left out is dense.
            parent: Ranks that the candidates differ little from.

        Yields:
            Per candidate an array of all samples; for several outputs arrays in the lists and
            dicts in which the model gives them.
        """
        rows = [self._row(candidate) for candidate in candidates]
        groups = [[row] for row in rows] if len(self._starts) == 1 else [rows]
        for group in groups:
            parts: list[list[list[NDArray[Any]]]] = [[] for _ in group]
            for batch in range(len(self._starts)):
                if parent is not None and group:
                    shared = self._row(parent)
                    self._keep(batch, shared, max(self._shared(row, shared) for row in group))
                for row, part in zip(group, parts, strict=True):
                    part.append(
                        [np.asarray(ops.convert_to_numpy(t)) for t in self._run(batch, row)]
                    )
            for part in parts:
                joined = [np.concatenate(pieces) for pieces in zip(*part, strict=True)]
                if self._structure is not None:
                    yield keras.tree.pack_sequence_as(self._structure, joined)
                else:
                    yield joined[0] if len(joined) == 1 else joined

    def _row(self, candidate: Mapping[str, Ranks]) -> tuple[Ranks, ...]:
        unknown = sorted(set(candidate) - set(self._space.layers))
        if unknown:
            raise ValueError(
                f"`candidates` must name layers of the space: {list(self._space.layers)}. "
                f"Received: {unknown}"
            )
        return tuple(candidate.get(key) for key in self._order)

    def _shared(self, row: Sequence[Ranks], other: Sequence[Ranks]) -> int:
        """How many stages have the same kernels in both."""
        for stage in range(len(self._stages)):
            at = slice(self._known[stage], self._known[stage + 1])
            if row[at] != other[at]:
                return stage
        return len(self._stages)

    def _begin(self, batch: int, row: tuple[Ranks, ...], limit: int) -> tuple[int, list[Any]]:
        """The last stage whose start is known for this row, and the tensors alive there."""
        for stage in range(limit, 0, -1):
            found = self._prefixes.get((batch, stage, row[: self._known[stage]]))
            if found is not None:
                return stage, found
        return 0, self._starts[batch]

    def _keep(self, batch: int, row: tuple[Ranks, ...], upto: int) -> None:
        begin, tensors = self._begin(batch, row, min(upto, len(self._stages) - 1))
        for stage in range(begin, min(upto, len(self._stages) - 1)):
            tensors = self._step(stage, row, tensors)
            self._prefixes.put((batch, stage + 1, row[: self._known[stage + 1]]), tensors)

    def _run(self, batch: int, row: tuple[Ranks, ...]) -> list[Any]:
        begin, tensors = self._begin(batch, row, len(self._stages) - 1)
        for stage in range(begin, len(self._stages)):
            tensors = self._step(stage, row, tensors)
        return tensors

    def _step(self, stage: int, row: tuple[Ranks, ...], tensors: list[Any]) -> list[Any]:
        ranks = dict(zip(self._order, row, strict=True))
        keys = self._stages[stage].layers
        return self._stages[stage](tensors, [self._kernels.get(key, ranks[key]) for key in keys])


class _Prefixes:
    """Tensors alive at cuts, the least recently used of them dropped beyond a number of bytes."""

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._held: OrderedDict[Any, tuple[list[Any], int]] = OrderedDict()
        self._bytes = 0

    def get(self, key: Any) -> list[Any] | None:
        if key not in self._held:
            return None
        self._held.move_to_end(key)
        return self._held[key][0]

    def put(self, key: Any, tensors: list[Any]) -> None:
        if key in self._held:
            return
        size = sum(_bytes(tensor) for tensor in tensors)
        self._held[key] = (tensors, size)
        self._bytes += size
        while self._bytes > self._memory and len(self._held) > 1:
            _, (_, freed) = self._held.popitem(last=False)
            self._bytes -= freed


class _Kernels:
    """Truncated kernels on the device, the least recently used dropped."""

    def __init__(self, space: RankSpace, memory: int) -> None:
        self._space = space
        self._prefixes = _Prefixes(memory)

    def get(self, key: str, ranks: Ranks) -> Any:
        found = self._prefixes.get((key, ranks))
        if found is None:
            choices = self._space.layers[key]
            own = choices.layer.kernel
            # By way of NumPy: a variable would be traced apart from a tensor.
            kernel = (
                ops.convert_to_numpy(own) if ranks is None else choices.truncation.kernel(ranks)
            )
            found = [ops.convert_to_tensor(kernel, dtype=own.dtype)]
            self._prefixes.put((key, ranks), found)
        return found[0]


def _bytes(tensor: Any) -> int:
    width = 8 if "64" in str(tensor.dtype) else 4
    return math.prod(int(size) for size in tensor.shape) * width


def _cross_entropy(y: NDArray[Any], predictions: NDArray[Any]) -> float:
    """Mean of -log p of the labels; what is no distribution yet is taken for logits."""
    labels = class_labels(y, predictions)
    scores = predictions.astype(np.float64)
    sums = scores.sum(axis=-1)
    if scores.min() >= 0 and np.allclose(sums, 1.0, atol=1e-3):
        logs = np.log(np.maximum(scores, 1e-12))
    else:
        top = scores.max(axis=-1, keepdims=True)
        logs = scores - top - np.log(np.exp(scores - top).sum(axis=-1, keepdims=True))
    return float(-np.mean(np.take_along_axis(logs, labels[..., None], axis=-1)))
