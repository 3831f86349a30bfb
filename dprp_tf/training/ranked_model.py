"""A model that takes over the ranks of the weights it is given, whoever gives them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from dprp_tf.keras_internals.seeds import seed_states, set_seed_states
from dprp_tf.layers import SVDLayer, factorized_keys, low_rank_layers, plain_ranks, stored_ranks
from dprp_tf.training.log_names import free_name
from dprp_tf.training.model_archives import check_weights
from dprp_tf.training.resizing import ranks_of_weights, set_ranks, start_averages

__all__ = ["RankedModel"]

# Key, before its number, of a random state in the model's files.
_SEED_STATE = "seed_state_"


class RankedModel(keras.Model):
    """A functional model whose low-rank layers follow the ranks of weights set or loaded.

    The part of `DPRPModel` that knows nothing of losses: which ranks there are, and how weights of
    other ranks, optimizer slots and random states come back from a list or a file.
    """

    # Names of `rank_logs` that logs of the user's have; None until a training's first epoch ends.
    _users_rank_logs: frozenset[str] | None = None

    @property
    def low_rank_layers(self) -> list[SVDLayer]:
        """The SVD layers in model order."""
        return low_rank_layers(self)

    @property
    def ranks(self) -> dict[str, int | tuple[int, ...]]:
        """The rank of each SVD layer, and the pair of each Tucker layer, by name.

        By path where layers share a name. `total_rank` in the logs counts SVD layers alone, whose
        ranks training can change.
        """
        return {key: plain_ranks(layer.ranks) for key, layer in factorized_keys(self).items()}

    def rank_logs(self) -> dict[str, int]:
        """Return `total_rank` and `parameters` (trainable weights) as they are now."""
        return {
            "total_rank": sum(int(layer.rank or 0) for layer in low_rank_layers(self)),
            "parameters": sum(math.prod(w.shape) for w in self.trainable_weights),
        }

    def log_ranks(self, logs: dict[str, Any]) -> None:
        """Add `rank_logs` to the logs of an epoch, under names that replace none of the user's.

        Args:
            logs: The logs. What stands there under one of the names when a training first asks
                is the user's, and stays.
        """
        ranks = self.rank_logs()
        if self._users_rank_logs is None:
            self._users_rank_logs = frozenset(ranks) & frozenset(logs)
        taken = self._users_rank_logs
        logs.update({free_name(name, taken): value for name, value in ranks.items()})

    def name_rank_logs_anew(self) -> None:
        """Forget which names `log_ranks` found taken, as at the beginning of a training."""
        self._users_rank_logs = None

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Set all weights, as `keras.Model.set_weights`, taking over the ranks they have.

        So `EarlyStopping(restore_best_weights=True)` gives back the ranks of the best epoch. The
        optimizer's slots of a layer whose rank changes begin anew, at zero.

        Args:
            weights: What `get_weights` gave, at these ranks or at others.

        Raises:
            ValueError: If the number or a shape does not fit this model at any rank.
        """
        changed = set_ranks(self, ranks_of_weights(self, weights))
        super().set_weights(weights)
        start_averages(self, changed)

    def save_own_variables(self, store: Any) -> None:
        """Save what is the model's own, and the random states of its layers beside it."""
        super().save_own_variables(store)
        for index, state in enumerate(seed_states(self)):
            store[f"{_SEED_STATE}{index}"] = np.asarray(state, dtype=np.int64)

    def load_own_variables(self, store: Any) -> None:
        """Load what `save_own_variables` saved; a file without random states keeps the model's."""
        # Keras' own stores have keys() and no iteration.
        found = {key: store[key] for key in store.keys()}  # noqa: SIM118
        super().load_own_variables(
            {key: value for key, value in found.items() if not key.startswith(_SEED_STATE)}
        )
        states = [found[key] for key in sorted(found, key=_place) if key.startswith(_SEED_STATE)]
        # Of another dropout rate, say: states of other layers are of no use, the weights are.
        if len(states) == len(seed_states(self)):
            set_seed_states(self, [np.asarray(state).tolist() for state in states])

    def load_weights(self, filepath: Any, skip_mismatch: bool = False, **kwargs: Any) -> None:
        """Load weights, as `keras.Model.load_weights`, taking over the ranks the file holds.

        So what `ModelCheckpoint` and `BackupAndRestore` saved after the ranks fell goes back into
        the model as it was built, optimizer slots included.

        Args:
            filepath: A `.weights.h5`, `.weights.json` or `.keras` file of this model.
            skip_mismatch: As `keras.Model.load_weights`. Default False.
            **kwargs: As `keras.Model.load_weights`.

        Raises:
            ValueError: If the file does not fit this model at any rank, or claims more than it
                holds.
        """
        check_weights(Path(filepath))
        with stored_ranks() as ranks, warnings.catch_warnings():
            # What does not fit, such as slots of other ranks, is the second reading's to report.
            warnings.simplefilter("ignore")
            super().load_weights(filepath, skip_mismatch=True, **kwargs)
        changed = set_ranks(self, ranks)
        try:
            super().load_weights(filepath, skip_mismatch, **kwargs)
        finally:
            start_averages(self, changed)


def _place(key: str) -> int:
    """The number at the end of a key: keys come in the order of texts, 10 before 2."""
    return int(key.rpartition("_")[2])
