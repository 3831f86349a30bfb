"""Programs that run one model: in Python, C++ and Kotlin, made from templates.

Names in a model are anyone's. Into a program they come as text of ASCII alone, in which whatever is
not a letter, a digit or a blank is escaped; labels are read from their file when the program runs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np

__all__ = ["cpp_text", "kotlin_text", "samples"]

_PLACE = re.compile(r"@@(\w+)@@")
_RUNTIMES = {"tflite": "litert", "onnx": "onnxruntime"}
# What stands for an axis of any length but the batch; the samples say so.
_OPEN_EDGE = 224


def samples(description: Mapping[str, Any]) -> dict[str, str]:
    """Make the sample programs of a model.

    Args:
        description: What `model.json` holds.

    Returns:
        File name to text.

    Example:

    >>> samples.__name__
    'samples'
    """
    runtime = _RUNTIMES[description["format"]]
    inputs, outputs = description["inputs"], description["outputs"]
    values = {
        "NAME": _comment(description["name"]),
        "FILE": description["file"],
        "OPEN": _open_note([*inputs, *outputs]),
    }
    cpp = {
        **values,
        "INPUTS": ",\n".join(_cpp_tensor(entry) for entry in inputs),
        "OUTPUTS": ",\n".join(_cpp_tensor(entry) for entry in outputs),
        "INCLUDES": _template(f"{runtime}_includes.cpp").strip(),
        "RUNTIME": _template(f"{runtime}.cpp"),
    }
    kotlin = {
        **values,
        "INPUTS": ",\n".join(_kotlin_tensor(entry) for entry in inputs),
        "OUTPUTS": ",\n".join(_kotlin_tensor(entry) for entry in outputs),
        "IMPORTS": _template(f"{runtime}_imports.kt").strip(),
        "RUNTIME": _template(f"{runtime}.kt").rstrip(),
    }
    return {
        "run.py": _template("run.py"),
        "sample.cpp": _filled("sample.cpp", cpp),
        "Sample.kt": _filled("Sample.kt", kotlin),
    }


def cpp_text(text: str) -> str:
    r"""Write any text as a string literal of C++.

    Args:
        text: The text.

    Returns:
        The literal with its quotes, in ASCII.

    Example:

    >>> print(cpp_text('a"; system("x'))
    "a\042\073 system\050\042x"
    """
    # Three digits always: what follows can't become part of the number.
    pieces = (
        chr(byte) if (chr(byte).isalnum() and byte < 128) or byte in b" _" else f"\\{byte:03o}"
        for byte in text.encode("utf-8", "replace")
    )
    return f'"{"".join(pieces)}"'


def kotlin_text(text: str) -> str:
    r"""Write any text as a string literal of Kotlin.

    Args:
        text: The text.

    Returns:
        The literal with its quotes, in ASCII.

    Example:

    >>> print(kotlin_text("$x {"))
    "\u0024x \u007b"
    """
    units = np.frombuffer(text.encode("utf-16-le", "replace"), "<u2").tolist()
    pieces = (
        chr(unit) if unit < 128 and (chr(unit).isalnum() or chr(unit) in " _") else f"\\u{unit:04x}"
        for unit in units
    )
    return f'"{"".join(pieces)}"'


def _template(name: str) -> str:
    place = files("dprp_tf.deploy.packaging").joinpath("templates", f"{name}.template")
    return place.read_text(encoding="utf-8")


def _filled(name: str, values: Mapping[str, str]) -> str:
    # In one pass: what is filled in is never looked through for further places.
    return _PLACE.sub(lambda match: values[match[1]], _template(name))


def _comment(text: str) -> str:
    """Text for the end of a comment line, which nothing in it can leave."""
    kept = (letter if letter.isalnum() or letter in " _.,()+-" else "_" for letter in text)
    return " ".join("".join(kept).split())


def _open_note(entries: Sequence[Mapping[str, Any]]) -> str:
    if all(edge is not None for entry in entries for edge in entry["shape"][1:]):
        return ""
    return (
        f"// The model takes axes of any length, written here as {_OPEN_EDGE}: set them to what "
        "you feed.\n"
    )


def _shape(entry: Mapping[str, Any]) -> list[int]:
    shape = entry["shape"]
    return [edge or (1 if axis == 0 else _OPEN_EDGE) for axis, edge in enumerate(shape)]


def _floats(values: Sequence[float]) -> str:
    # NumPy writes as few digits as tell a float32 from its neighbours, always with "." or "e".
    return ", ".join(f"{np.float32(value)!s}f" for value in values)


def _facts(entry: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Mean, deviation, scale and zero point as both languages write them."""
    normalization = entry.get("normalization") or {"mean": [0.0], "std": [1.0]}
    quantization = entry["quantization"] or {"scale": 0.0, "zero_point": 0}
    return (
        _floats(normalization["mean"]),
        _floats(normalization["std"]),
        _floats([quantization["scale"]]),
        str(int(quantization["zero_point"])),
    )


def _layout(entry: Mapping[str, Any]) -> str:
    return entry.get("layout") or "VALUES"


def _cpp_tensor(entry: Mapping[str, Any]) -> str:
    mean, std, scale, zero_point = _facts(entry)
    shape = ", ".join(map(str, _shape(entry)))
    scores = "true" if entry.get("labels") else "false"
    return (
        f"    {{{cpp_text(entry['name'])}, Type::{entry['dtype']}_, {{{shape}}}, "
        f"Layout::{_layout(entry)},\n"
        f"     {{{mean}}}, {{{std}}}, {scale}, {zero_point}, {scores}}}"
    )


def _kotlin_tensor(entry: Mapping[str, Any]) -> str:
    mean, std, scale, zero_point = _facts(entry)
    shape = ", ".join(map(str, _shape(entry)))
    scores = "true" if entry.get("labels") else "false"
    return (
        f"    Tensor({kotlin_text(entry['name'])}, Type.{entry['dtype'].upper()}, "
        f"intArrayOf({shape}), Layout.{_layout(entry)},\n"
        f"        floatArrayOf({mean}), floatArrayOf({std}), {scale}, {zero_point}, {scores})"
    )
