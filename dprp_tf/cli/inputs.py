"""What commands read: data sets by name, and the suffixes of files to write."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dprp_tf.cli.console import print_error
from dprp_tf.files.atomic import require_writable

if TYPE_CHECKING:
    from collections.abc import Sequence

    import keras
    import numpy as np

    from dprp_tf.data import Dataset

__all__ = ["load_data", "load_test_samples", "require_low_rank", "require_suffix"]


def load_data(
    source: str,
    image_size: int | None,
    mean: list[float] | None,
    std: list[float] | None,
    model: keras.Model | Path | None = None,
) -> Dataset:
    """Load the data that `--data` names, resized and normalized as asked.

    Args:
        source: A name, a `.npz` or a folder; see `dprp_tf.data.load`.
        image_size: Height and width of the images; None for what the model takes, which a line
            says where images have another size, and theirs without a model.
        mean: Means per channel, with `std`; None for data as they are.
        std: Standard deviations per channel.
        model: The model that they are for, or its exported file; None for one yet to be built.

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
    taken = None
    if model is not None and image_size is None:
        from dprp_tf.runs.first_look import input_size

        taken = input_size(model)
    if taken is None or source.startswith("modelnet:"):
        dataset = data.load(source, image_size=image_size)
    else:
        dataset, found = _of_size(source, taken)
        if found:
            print_error(
                f"images of {found} pixels are resized to {taken[0]}x{taken[1]}, which the model "
                "takes; --image-size gives another size"
            )
    return dataset if mean is None or std is None else dataset.normalized(mean, std)


def load_test_samples(
    source: str,
    image_size: int | None,
    mean: list[float] | None,
    std: list[float] | None,
    *,
    samples: int | None,
    score: str | None,
    files: Sequence[Path] = (),
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
        files: Exported files that they are for: images take the first one's size, and classes
            are looked at together with what each file computes. Default: none.

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
    dataset = load_data(source, image_size, mean, std, files[0] if files else None)
    if dataset.streamed and samples is None:
        raise ValueError(
            "`samples` must be given for images that stay on disk. Received: samples=None "
            f"for {source}. Give a number of test images, such as --samples 1000."
        )
    from dprp_tf.runs.first_look import first_looks

    count = len(dataset.y_test) if samples is None else samples
    return dataset.sample("test", count), first_looks(files, dataset)


def _of_size(source: str, size: tuple[int, int]) -> tuple[Dataset, str]:
    """The data at a size, and the sizes that they had if it is another, in words."""
    import numpy as np

    from dprp_tf import data
    from dprp_tf.data.images import resize

    if source.endswith(".npz") and not Path(source).is_dir():
        # Read once: only what was read tells the size.
        dataset = data.load(source)
        height, width = dataset.image_shape[:2]
        if (height, width) == size:
            return dataset, ""
        train, test = (resize(np.asarray(x), size) for x in (dataset.x_train, dataset.x_test))
        return replace(dataset, x_train=train, x_test=test), f"{height}x{width}"
    dataset = data.load(source, image_size=size)
    if not Path(source).is_dir():
        return dataset, ""  # a named set, and a layout, have a size by default alone
    found = sorted(data.image_sizes(Path(source)) - {size})
    first, *_, last = ["x".join(map(str, size)) for size in (found[:1] + found[-1:])] or ["", ""]
    return dataset, first if len(found) < 2 else f"{first} to {last}"


def require_low_rank(model: keras.Model, path: Path) -> keras.Model:
    """Refuse a model without low-rank layers, and say what can be done with it.

    Args:
        model: What was loaded.
        path: Its file.

    Returns:
        The model.

    Raises:
        ValueError: If its layers are plain.

    Example:

    >>> require_low_rank.__name__
    'require_low_rank'
    """
    from dprp_tf.layers import factorized_layers

    if factorized_layers(model):
        return model
    file = path.with_suffix(".tflite")
    raise ValueError(
        f"`model` must have low-rank layers, as `dprp train` makes them. Received: {path}, whose "
        "layers are plain: there is nothing to plan or to fold. Next: "
        f"{shlex.join(['dprp', 'export', str(path), str(file)])}, then "
        f"{shlex.join(['dprp', 'bench', str(file)])}"
    )


def require_suffix(output: Path, *suffixes: str) -> None:
    """Refuse a file to write before anything is computed: of another format, or where none can be.

    Args:
        output: The file.
        *suffixes: What its name may end in.

    Raises:
        OSError: If it can't be written there.
        ValueError: If it ends in none of them.

    Example:

    >>> require_suffix(Path("plan.json"), ".json")
    """
    if output.suffix not in suffixes:
        raise ValueError(f"`output` must end in {' or '.join(suffixes)}. Received: {output}")
    require_writable(output)
