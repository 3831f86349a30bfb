"""Tables of records from which any one part is missing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from made_runs import (
    make_bench,
    make_plan,
    make_quantization,
)

from dprp_tf.report.bench_warnings import bench_warnings
from dprp_tf.report.tables import (
    bench_table,
    measured_forms_table,
    plan_table,
    quantization_table,
)
from dprp_tf.report.tables.fold_plan import plan_figures, plan_notes


@pytest.mark.parametrize("null", [True, False])
def test_parts_that_are_absent_or_null_do_not_fail(null: bool) -> None:
    parts: dict[str, Any] = {
        "bench": make_bench(),
        "plan": make_plan(),
        "quantization": make_quantization(),
    }
    for name, whole_part in parts.items():
        for way in _ways(whole_part):
            part = copy.deepcopy(whole_part)
            place = part
            for step in way[:-1]:
                place = place[step]
            if null:
                place[way[-1]] = None
            else:
                del place[way[-1]]
            if name == "bench":
                bench_table(part)
                bench_warnings(part)
            elif name == "plan":
                measured_forms_table(part)
                plan_table(part)
                plan_figures(part)
                plan_notes(part)
            else:
                quantization_table(part)


def _ways(value: Any) -> list[tuple[Any, ...]]:
    """Where each kind of key stands: of a list's entries, in the last one only."""
    found: list[tuple[Any, ...]] = []
    if isinstance(value, dict):
        for key, item in value.items():
            found.append((key,))
            found += [(key, *way) for way in _ways(item)]
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        found += [(len(value) - 1, *way) for way in _ways(value[-1])]
    return found
