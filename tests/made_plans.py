"""A fold plan written by hand, as `dprp_tf.deploy.plan_fold` would measure one."""

from __future__ import annotations

from dprp_tf.costs.fold_plan import Candidate, FoldPlan, PlannedLayer
from dprp_tf.costs.form import Form


def fold_plan(form: Form, rank: int = 2, kernel: tuple[int, ...] = (3, 3, 4, 6)) -> FoldPlan:
    dense = Candidate(Form("dense"), 2.0, 1.0, 1.0, 1.0, 216, 1000)
    other = Candidate(form, 1.0, 0.5, 0.4, 0.6, 100, 500)
    return FoldPlan(
        layers=(PlannedLayer("it", kernel, "spatial", rank, form, "fastest", (dense, other)),),
        target="local",
        runtime="litert",
        precision="float32",
        threads=1,
        unit="ms",
        processor="some",
        runtime_version="1",
        dense_cost=3.0,
        predicted_cost=2.0,
        planned_cost=2.1,
        ratio=0.7,
        low=0.6,
        high=0.8,
        dense_macs=1000,
        planned_macs=500,
        notes=("measured on noise",),
    )
