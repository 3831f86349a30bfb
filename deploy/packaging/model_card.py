"""The page that goes with a model: what it is, what it takes and gives, what was measured."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dprp_tf.deploy.packaging.description import shape_text
from dprp_tf.files.arguments import is_finite_number
from dprp_tf.files.shown import shown

__all__ = ["Figure", "check_figures", "model_card"]

Figure = str | int | float | bool | None
"""A figure that was measured, or a word about how."""

_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|&~$!])")
_AT_START = re.compile(r"^(\d*)([-+=.)])(?=\s|[-=]|$)")
_LABELS_SHOWN = 20
_RUN = {
    "tflite": ("ai-edge-litert numpy", "LiteRT's C library (`tensorflowlite_c`)", "LiteRT"),
    "onnx": ("onnxruntime numpy", "ONNX Runtime's C++ library", "ONNX Runtime"),
}
_NAMES = {
    "accuracy": "top-1 accuracy",
    "validation_accuracy": "top-1 accuracy on the samples that decided",
    "top1_agreement": "same class as the Keras model",
    "median_ms": "time of one sample, median",
    "p10_ms": "time of one sample, 10th percentile",
    "p90_ms": "time of one sample, 90th percentile",
    "time_ratio": "share of the dense file's time",
    "size_ratio": "share of the dense file's bytes",
    "data": "measured on",
}
_SHARES = frozenset({"accuracy", "validation_accuracy", "top1_agreement"})


def check_figures(figures: Mapping[str, Figure] | None) -> dict[str, Figure]:
    """Refuse figures that a table of two columns can't show.

    Args:
        figures: Name to a number, a text, true, false or None; None for none.

    Returns:
        The figures.

    Raises:
        ValueError: If a name is no text, or a figure is something else.

    Example:

    >>> check_figures({"accuracy": 0.9712})
    {'accuracy': 0.9712}
    """
    if figures is None:
        return {}
    if not isinstance(figures, Mapping):
        raise ValueError(
            "`figures` must be a mapping of names to figures. Received: "
            f"{type(figures).__name__}. Give a dict, such as {{'accuracy': 0.97}}."
        )
    for name, value in figures.items():
        fits = value is None or isinstance(value, (str, bool)) or is_finite_number(value)
        if not isinstance(name, str) or not name.strip() or not fits:
            raise ValueError(
                "`figures` must hold numbers, texts, truth values or None by their names. "
                f"Received: {value!r:.80} for {name!r:.80}. Give single figures."
            )
    # NumPy's numbers have no form in JSON.
    return {
        name: value if value is None or isinstance(value, (str, bool, int)) else float(value)
        for name, value in figures.items()
    }


def model_card(description: Mapping[str, Any], labels: Sequence[str] | None) -> str:
    """Write the model card, in Markdown that shows names as they are.

    Args:
        description: What `model.json` holds.
        labels: Names of the classes; None for none.

    Returns:
        The text.

    Example:

    >>> model_card.__name__
    'model_card'
    """
    kind = description["format"]
    install, _, runtime = _RUN[kind]
    parts = [f"# {_plain(description['name'])}"]
    parts += [_plain(text) for text in re.split(r"\n\s*\n", description["description"]) if text]
    parts += [
        "## The file",
        _table(
            ("", ""),
            [
                ("file", f"`{description['file']}`, {description['size_bytes']:,} bytes"),
                ("runtime", runtime),
                ("SHA-256", f"`{description['sha256']}`"),
            ],
        ),
        "## What goes in",
        _tensors(description["inputs"]),
        "## What comes out",
        _tensors(description["outputs"]),
    ]
    if labels is not None:
        shown_labels = ", ".join(_plain(label) for label in labels[:_LABELS_SHOWN])
        rest = len(labels) - _LABELS_SHOWN
        more = f" and {rest:,} more" if rest > 0 else ""
        parts.append(
            f"{len(labels):,} labels in `labels.txt`, in this order: {shown_labels}{more}."
        )
    parts += ["## What was measured", _figures(description["figures"])]
    check = description["verification"]
    parts += [
        "## What was verified",
        "When it was packaged, the file computed the same, bit for bit, as the file that it was "
        f"made from (SHA-256 `{description['source_sha256']}`), on {check['samples']} seeded "
        "random samples.",
        "## How to run it",
        _how_to_run(kind, install, description["inputs"]),
        "## License",
        _plain(description["license"]) if description["license"] else "Not stated.",
    ]
    return "\n\n".join(parts) + "\n"


def _plain(text: str) -> str:
    """Text of anyone as Markdown that shows it: no markup, no HTML, one paragraph."""
    flat = shown(" ".join(str(text).split()))
    return _AT_START.sub(r"\1\\\2", _MARKUP.sub(r"\\\1", flat))


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _tensors(entries: Sequence[Mapping[str, Any]]) -> str:
    return _table(
        ("name", "shape", "type", "values"),
        [
            (
                _plain(entry["name"]),
                shape_text(entry["shape"]),
                entry["dtype"],
                _plain(entry["values"]) + (f" ({entry['layout']})" if entry.get("layout") else ""),
            )
            for entry in entries
        ],
    )


def _figures(figures: Mapping[str, Figure]) -> str:
    if not figures:
        return "Nothing was measured when this was packaged."
    return _table(
        ("figure", "value"),
        [
            (_plain(_NAMES.get(name, name.replace("_", " "))), _plain(_value(name, value)))
            for name, value in figures.items()
        ],
    )


def _value(name: str, value: Figure) -> str:
    if value is None:
        return "not measured"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if name in _SHARES:
        return f"{value:.2%}"
    text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    return f"{text} ms" if name.endswith("_ms") else text


def _how_to_run(kind: str, install: str, inputs: Sequence[Mapping[str, Any]]) -> str:
    _, library, runtime = _RUN[kind]
    files = " ".join("image.ppm" if e["kind"] == "image" else "values.npy" for e in inputs)
    return (
        f"On the device, `pip install {install}`, then\n\n"
        f"```sh\npython run.py {files}\n```\n\n"
        f"`run.py` reads `model.json` and needs nothing else. `sample.cpp` does the same with "
        f"{library}, `Sample.kt` on Android with {runtime}; what goes in is written at their "
        "beginning."
    )
