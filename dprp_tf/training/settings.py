"""How a model keeps the structure of its factors and presses their ranks down."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import keras

from dprp_tf.files.setting_fields import check_settings, setting
from dprp_tf.training import regularizers

__all__ = ["STRUCTURES", "DPRPSettings"]

STRUCTURES = ("retraction", "smoothed", "paper")


@dataclass(frozen=True)
class DPRPSettings:
    """How a `DPRPModel` keeps the SVD structure and presses the ranks down.

    L_total = L_app + structure_weight (orthogonality_weight L_orth + sorting_weight L_sort)
    + compression_weight L_comp, each L a mean over the factorized layers.

    Attributes:
        structure: How U and V are kept orthonormal and s sorted. `"retraction"` re-factorizes the
            factors exactly every `retraction_period` steps, so L_orth and L_sort vanish, and
            balances the gradients of U and V; `"smoothed"` is the paper's penalty with a norm
            rounded at 2 learning_rate orthogonality_weight / (layers r^2), which does not jitter;
            `"paper"` is the penalty as printed, which diverges at the paper's own learning rate
            once a rank gets low.
        compression: The penalty on the singular values: `"tail"` (Eq. 12), `"l1"`, `"l2"`,
            `"funnel"`, another of `regularizers.NAMES` that takes no rank, a `RankRegularizer`,
            or None for no pressure. Default `"tail"`.
        compression_weight: lambda_comp, 0 or more. Default 0.1.
        threshold: The pruning threshold epsilon, in (0, 1). Default 0.1.
        structure_weight: lambda_str, 0 or more. Default 1.
        orthogonality_weight: mu_orth, 0 or more. Default 1000.
        sorting_weight: mu_sort, 0 or more. Default 1.
        retraction_period: Steps between retractions, 1 or more. Default: 1 for a model whose
            layers are all in `"spatial"` form, with few columns, and 10 for the wide ones.

    Raises:
        ValueError: If a value is out of range.

    Source: DPRP (arXiv 2401.08014) Eq. 8 to 12, Table I.

    Example:

    >>> DPRPSettings(threshold=0.05).compression_weight
    0.1
    """

    structure: str = setting("retraction", "How U and V stay orthonormal.", choices=STRUCTURES)
    compression: Any = "tail"
    compression_weight: float = setting(0.1, "lambda_comp.", minimum=0)
    threshold: float = setting(0.1, "The pruning threshold epsilon.", above=0, below=1)
    structure_weight: float = setting(1.0, "lambda_str.", minimum=0)
    orthogonality_weight: float = setting(1000.0, "mu_orth.", minimum=0)
    sorting_weight: float = setting(1.0, "mu_sort.", minimum=0)
    retraction_period: int | None = setting(None, "Steps between retractions.", minimum=1)

    def __post_init__(self) -> None:
        check_settings(self)
        compression = regularizers.get(self.compression, self.threshold)
        object.__setattr__(self, "compression", compression)

    def get_config(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        config = {key: value for key, value in asdict(self).items() if key != "compression"}
        config["compression"] = (
            None
            if self.compression is None
            else keras.saving.serialize_keras_object(self.compression)
        )
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> DPRPSettings:
        """Make the settings from `get_config`'s result."""
        compression = config.get("compression")
        if isinstance(compression, dict):
            compression = keras.saving.deserialize_keras_object(compression)
        return cls(**{**config, "compression": compression})
