"""A model with some layers at chosen ranks, of plain layers, ready for fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras

from dprp_tf.conversion.assembly import build_form
from dprp_tf.conversion.factorizing import factorize
from dprp_tf.costs.rank_space import RankSpace
from dprp_tf.keras_internals.graphs import layer_keys, layer_paths, walk_layers
from dprp_tf.keras_internals.rewriting import rewrite
from dprp_tf.layers import FactorizedLayer, factorized_keys, plain_ranks
from dprp_tf.layers.kernels import kernel_of

__all__ = ["TrainableCandidate"]


class TrainableCandidate:
    """A trained model with some layers factorized and folded, to be fine-tuned in place.

    The two or three plain layers in place of each train as any others. Layers keep their names,
    the last of a factorized layer's its own.

    Args:
        model: The trained model, which is left alone.
        space: Its ranks, whose truncations give the kernels.
        ranks: Ranks of the layers that are factorized, at least one.

    Attributes:
        model: The candidate, of plain Keras layers, not compiled.
        replacements: By layer key a callable that computes the factorized layer, with whatever
            weights it has in `model` by then.

    Example:

    >>> import numpy as np
    >>> layer = keras.layers.Dense(4, use_bias=False, name="a")
    >>> model = keras.Sequential([keras.Input((4,)), layer])
    >>> candidate = TrainableCandidate(model, RankSpace(model, "channel"), {"a": (1,)})
    >>> candidate.model.count_params(), len(candidate.replacements["a"](np.ones((2, 4))))
    (8, 2)
    """

    def __init__(
        self, model: keras.Model, space: RankSpace, ranks: Mapping[str, tuple[int, ...]]
    ) -> None:
        # The kernels as the space cuts them, which need not be by their SVD.
        cut = rewrite(model, lambda layer: None)
        layers = layer_keys(cut)
        for name, entry in ranks.items():
            kernel_of(layers[name]).assign(space.layers[name].truncation.kernel(entry))
        lowrank = factorize(
            cut,
            decomposition=space.decomposition,
            ranks={name: plain_ranks(entry) for name, entry in ranks.items()},
            layers=list(ranks),
        )
        keys = {id(layer): key for key, layer in factorized_keys(lowrank).items()}
        taken = {layer.name for layer in walk_layers(lowrank)}
        self.replacements: dict[str, Callable[[Any], Any]] = {}

        def replace(layer: keras.layers.Layer) -> Any:
            if not isinstance(layer, FactorizedLayer):
                return None
            name = keys[id(layer)]
            form = space.layers[name].form(ranks[name])
            self.replacements[name] = build_form(layer, form, taken)
            return self.replacements[name]

        self.model = rewrite(lowrank, replace)
        originals = {id(layer): path for path, layer in layer_paths(model)}
        own = dict(layer_paths(self.model))
        self._copies = {at: own[path] for at, path in originals.items() if path in own}

    def behind(self, operation: Any) -> Any:
        """Return this model's copy of a layer of the trained model."""
        return self._copies.get(id(operation), operation)
