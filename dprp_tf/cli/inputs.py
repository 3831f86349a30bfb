"""What commands read: data sets by name, and the suffixes of files to write."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from dprp_tf.data import Dataset

__all__ = ["load_data", "load_test_samples", "require_suffix"]


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


def load_test_samples(
    source: str,
    image_size: int | None,
    mean: list[float] | None,
    std: list[float] | None,
    *,
    samples: int | None,
    score: str | None,
) -> tuple[tuple[np.ndarray, np.ndarray], dict[str, Any]]:
    """Load test samples to hold files against, with labels of any kind where a score is named.

    Args:
        source: As for `load_data`. Where a score is named, an .npz file may hold `x_test` and
            `y_test` alone, labels that are no classes, such as maps, values or images.
        image_size: As for `load_data`; for images with classes.
        mean: Likewise.
        std: Likewise.
        samples: How many, of every class alike; None for all.
        score: The score's name; None for top-1 accuracy.

    Returns:
        Inputs and labels, and what the data are, as plain values.

    Raises:
        ValueError: If the data can't be read, do not fit what is asked, or need `samples`.

    Example:

    >>> (x, y), said = load_test_samples("digits", 8, None, None, samples=20, score=None)
    >>> x.shape, len(y), said["name"]
    ((20, 8, 8, 1), 20, 'digits')
    """
    if score is not None and Path(source).suffix.lower() == ".npz":
        import numpy as np

        from dprp_tf.data.labelled_samples import are_class_labels, load_test_arrays
        from dprp_tf.data.sampling import balanced_sample

        x, y = load_test_arrays(Path(source))
        if not are_class_labels(y):
            if not image_size is mean is std is None:
                raise ValueError(
                    "`image_size`, `mean` and `std` must be left out for labels that are not "
                    f"classes. Received: image_size={image_size}, mean={mean}, std={std}. Save "
                    "x_test as the model takes it."
                )
            # As if all were of one class.
            rows = balanced_sample(np.zeros(len(y)), len(y) if samples is None else samples)
            said = {"name": Path(source).stem, "test": len(y), "image_shape": list(x.shape[1:])}
            return (x[rows], y[rows]), said
    dataset = load_data(source, image_size, mean, std)
    if dataset.streamed and samples is None:
        raise ValueError(
            "`samples` must be given for images that stay on disk. Received: samples=None "
            f"for {source}. Give a number of test images, such as --samples 1000."
        )
    count = len(dataset.y_test) if samples is None else samples
    return dataset.sample("test", count), dataset.description


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
