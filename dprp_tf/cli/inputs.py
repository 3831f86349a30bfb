"""What commands read: data sets by name, and the suffixes of files to write."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dprp_tf.data import Dataset

__all__ = ["load_data", "require_suffix"]


def load_data(
    source: str, image_size: int | None, mean: list[float] | None, std: list[float] | None
) -> Dataset:
    """Load the data that `--data` names, resized and normalized as asked.

    Args:
        source: A name, a `.npz` or a folder; see `dprp_tf.data.load`.
        image_size: Height and width of the images; None for theirs.
        mean: Means per channel, with `std`; None for data as they are.
        std: Standard deviations per channel.

    Returns:
        The data set.

    Raises:
        ValueError: If `mean` is given without `std`, or the data can't be read.

    Example:

    >>> load_data("digits", 8, None, None).image_shape
    (8, 8, 1)
    """
    from dprp_tf import data

    if (mean is None) != (std is None):
        raise ValueError(
            f"`mean` and `std` must be given together. Received: mean={mean}, std={std}"
        )
    dataset = data.load(source, image_size=image_size)
    return dataset if mean is None or std is None else dataset.normalized(mean, std)


def require_suffix(output: Path, *suffixes: str) -> None:
    """Refuse a file to write whose name says another format, before anything is computed.

    Args:
        output: The file.
        *suffixes: What its name may end in.

    Raises:
        ValueError: If it ends in none of them.

    Example:

    >>> require_suffix(Path("plan.json"), ".json")
    """
    if output.suffix not in suffixes:
        raise ValueError(f"`output` must end in {' or '.join(suffixes)}. Received: {output}")
