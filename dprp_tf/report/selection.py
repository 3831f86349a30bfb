"""A selection in the form of a run's results, so that the same page shows both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dprp_tf.report.formatting import clean_name
from dprp_tf.report.loading import mapping, records

__all__ = ["selection_results"]

_LABELS = {"dense": "Dense", "cut": "Cut, not fine-tuned", "tuned": "Cut and fine-tuned"}
_CHOSEN = {"channels": "channels", "both": "channels and ranks"}


def selection_results(selection: Mapping[str, Any], plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a selection found as the content of a `results.json`.

    Args:
        selection: Content of `selection.json`.
        plan: Content of its plan, such as `rank_plan.json`; empty where there is none.

    Returns:
        A model for each accuracy, with the plan's costs; data, settings, and files where there
        are some.

    Raises:
        ValueError: If a part isn't of its kind.

    Example:

    >>> found = selection_results({"accuracy": {"dense": 0.9, "cut": 0.8}},
    ...     {"dense": {"parameters": 100.0}, "cost": {"parameters": 40.0}})
    >>> cut = found["models"][1]
    >>> cut["label"], cut["accuracy"], cut["parameters"]
    ('Cut, not fine-tuned', 0.8, 40.0)
    """
    data = mapping(selection, "data")
    named = clean_name(data.get("name") or "")
    # Selections of ranks don't say that they are.
    chosen = _CHOSEN.get(str(mapping(selection, "settings").get("cut")), "ranks")
    models = []
    for name, accuracy in mapping(selection, "accuracy").items():
        cost = mapping(plan, "dense" if name == "dense" else "cost")
        models.append(
            {
                "name": name,
                "label": _LABELS.get(name, name),
                "accuracy": accuracy,
                "parameters": cost.get("parameters"),
                "macs": cost.get("macs"),
            }
        )
    return {
        "title": f"Selected {chosen}" + (f" on {named}" if named else ""),
        "command": "dprp select",
        "settings": mapping(selection, "settings"),
        "data": data,
        "models": models,
        "files": records(selection, "files"),
    }
