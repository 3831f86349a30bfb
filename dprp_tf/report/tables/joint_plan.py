"""How channels and ranks were chosen together, and what they cost beside the whole model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dprp_tf.costs.budget import bounds_text
from dprp_tf.costs.joint_plan import JointPlan
from dprp_tf.report.formatting import clean_name, count_text, number
from dprp_tf.report.tables.cells import Cell
from dprp_tf.report.tables.plan_costs import plan_cost_figures

__all__ = ["joint_plan_about", "joint_plan_figures", "joint_plan_notes"]


def joint_plan_about(plan: Mapping[str, Any]) -> str:
    """Say how channels and ranks were chosen, and what was asked for.

    Args:
        plan: Content of `joint_plan.json`.

    Raises:
        ValueError: If `plan` isn't a joint plan.
    """
    found = JointPlan.from_dict(plan)
    asked = bounds_text(found.budget, found.ranks.unit)
    said = (
        found.method,
        f"channels in multiples of {found.channels.multiple}",
        f"{found.ranks.decomposition} ranks",
        f"asked: {asked}",
    )
    return " · ".join(map(clean_name, said))


def joint_plan_figures(plan: Mapping[str, Any]) -> list[tuple[str, Cell]]:
    """Name what the model cut by both is predicted to cost, each with the change from dense.

    Args:
        plan: Content of `joint_plan.json`.

    Returns:
        Heading and cell of each cost that the plan holds.

    Raises:
        ValueError: If `plan` isn't a joint plan.
    """
    found = JointPlan.from_dict(plan)
    return plan_cost_figures(found.cost, found.dense)


def joint_plan_notes(plan: Mapping[str, Any]) -> list[str]:
    """Say in sentences how it was learned, if it was, and where one kind alone is cut.

    Args:
        plan: Content of `joint_plan.json`.

    Returns:
        The sentences; none where both were cut and nothing was learned.

    Raises:
        ValueError: If `plan` isn't a joint plan.
    """
    found = JointPlan.from_dict(plan)
    notes, why = [], "alone change the outputs least"
    if found.method == "less":
        why = "alone are what was learned"
        last = found.ranks.history[-1] if found.ranks.history else {}
        if {"steps", "spent"} <= set(last):
            notes.append(
                f"Learned in {count_text(last['steps'])} steps, at whose end the cost was "
                f"{number(last['spent']):.2f} of the budget; then rounded."
            )
    if not found.channels.removed:
        notes.append(f"Every channel stays: ranks {why}.")
    if not found.ranks.ranks:
        notes.append(f"Every layer stays dense: channels {why}.")
    return notes
