"""The verdict on models whose files were timed beside the dense one's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["headline"]


def headline(
    files: Sequence[Mapping[str, Any]],
    judged: Mapping[str, tuple[str, str]],
    tolerated_loss: float,
) -> dict[str, Any]:
    """Judge each model by its files of one format: smaller, faster beyond the noise, accurate.

    Args:
        files: The rows of `timed_files`, those of `"dense"` among them.
        judged: What a reader calls a model, and the format that it is judged by, by its name.
        tolerated_loss: Accuracy that a file may lose against the dense one, as a share.

    Returns:
        JSON-ready values: whether all checks passed, a sentence for each model, the checks, and
        which file stands for each model.

    Example:

    >>> dense = {"model": "dense", "format": "A", "size_bytes": 2000, "accuracy": 0.9}
    >>> small = {"model": "cut", "format": "A", "size_bytes": 500, "accuracy": 0.895,
    ...          "latency_ratio": 0.6, "latency_ratio_interval": [0.55, 0.65]}
    >>> headline([dense, small], {"cut": ("Cut", "A")}, 0.01)["text"]
    'Cut: the A file is 75% smaller and 40% faster than the dense one, at 89.5% accuracy (90.0% \
dense).'
    """
    by_place = {(row["model"], row["format"]): row for row in files}
    checks: list[dict[str, Any]] = []
    sentences = []
    for name, (label, form) in judged.items():
        dense, small = by_place["dense", form], by_place[name, form]
        found = _checks(dense, small, tolerated_loss)
        sentences.append(_sentence(f"{label}: the {form} file", dense, small, found))
        several = len(judged) > 1
        checks += [
            {**check, "name": f"{label}, {form}: {check['name']}" if several else check["name"]}
            for check in found
        ]
    return {
        "achieved": all(check["passed"] for check in checks),
        "text": " ".join(sentences),
        "checks": checks,
        "outcomes": [{"model": name, "format": form} for name, (_, form) in judged.items()],
    }


def _checks(
    dense: Mapping[str, Any], small: Mapping[str, Any], tolerated_loss: float
) -> list[dict[str, Any]]:
    size = small["size_bytes"] / dense["size_bytes"]
    low, high = small["latency_ratio_interval"]
    points = 100 * tolerated_loss
    return [
        {
            "name": "smaller",
            "passed": size < 1,
            "detail": f"file {size:.2f} x the dense one "
            f"({small['size_bytes'] / 1000:,.0f} kB, {dense['size_bytes'] / 1000:,.0f} kB)",
        },
        {
            "name": "faster",
            "passed": high < 1,
            "detail": f"latency {small['latency_ratio']:.2f} x the dense one "
            f"(95 % interval {low:.2f} to {high:.2f})",
        },
        {
            "name": "as accurate",
            "passed": dense["accuracy"] - small["accuracy"] <= tolerated_loss,
            "detail": f"{small['accuracy']:.2%} instead of {dense['accuracy']:.2%} "
            f"(tolerated loss {points:g} point{'s' * (points != 1)})",
        },
    ]


def _sentence(
    subject: str,
    dense: Mapping[str, Any],
    small: Mapping[str, Any],
    checks: Sequence[Mapping[str, Any]],
) -> str:
    failed = [check["name"] for check in checks if not check["passed"]]
    if failed:
        return f"{subject} is not {' and not '.join(failed)}: see the checks."
    smaller, faster = 1 - small["size_bytes"] / dense["size_bytes"], 1 - small["latency_ratio"]
    return (
        f"{subject} is {smaller:.0%} smaller and {faster:.0%} faster than the dense one, at "
        f"{small['accuracy']:.1%} accuracy ({dense['accuracy']:.1%} dense)."
    )
