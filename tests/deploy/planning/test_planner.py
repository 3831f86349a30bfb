"""The planner: measured per layer, proven whole, remembered, and honest when it loses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from counting_target import CountingTarget
from keras import layers

import dprp_tf as dprp
from dprp_tf import deploy
from dprp_tf.costs.form import Form
from dprp_tf.costs.models import model_cost
from dprp_tf.deploy.measurement.intervals import ratio_interval
from dprp_tf.deploy.planning.form_costs import FormCost, FormCosts, Setting
from dprp_tf.deploy.planning.planner import _choose
from dprp_tf.deploy.planning.probes import Geometry, layer_sites, probe
from dprp_tf.deploy.targets import Target, TargetError, resolve_target


def _block(x: Any, filters: int, name: str, **options: Any) -> Any:
    x = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=name, **options)(x)
    return layers.ReLU()(layers.BatchNormalization()(x))


def _network(size: int = 12, filters: int = 32) -> keras.Model:
    inputs = keras.Input((size, size, 8))
    x = _block(inputs, filters, "first")
    x = _block(x, filters, "second")
    x = _block(x, filters, "third")
    x = _block(x, filters, "down", strides=2)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(4, name="head")(x))


@pytest.fixture(scope="module")
def lowrank() -> keras.Model:
    keras.utils.set_random_seed(0)
    return dprp.factorize(
        _network(), decomposition="separable", ranks=3, layers=["first", "second", "third"]
    )


def test_equal_places_are_one_geometry_and_know_what_follows(lowrank: keras.Model) -> None:
    sites = {site.layer.name: site.geometries for site in layer_sites(lowrank)}
    assert sites["second"] == sites["third"]
    assert sites["first"] != sites["second"]
    (place,) = sites["second"]
    assert (place.normalized, place.rectified) == (True, True)
    assert place.input_shape == (12, 12, 32)
    assert place.kernel_shape == (3, 3, 32, 32)
    # A key is the same in every process, so it may name a file.
    assert json.loads(place.key)[2] == [12, 12, 32]


def test_a_shared_layer_has_a_geometry_per_call_and_a_lone_one_no_follower() -> None:
    shared = layers.Conv2D(4, 3, padding="same", name="shared")
    inputs = keras.Input((8, 8, 4))
    x = layers.MaxPooling2D()(shared(inputs))
    model = dprp.factorize(keras.Model(inputs, shared(x)), ranks=2)
    (site,) = layer_sites(model)
    assert [place.input_shape for place in site.geometries] == [(8, 8, 4), (4, 4, 4)]
    assert not any(place.normalized or place.rectified for place in site.geometries)
    open_shape = keras.Input((None, None, 4))
    model = keras.Model(open_shape, layers.Conv2D(4, 3, name="it")(open_shape))
    with pytest.raises(ValueError, match=r"fixed shape.*'it'"):
        layer_sites(dprp.factorize(model, ranks=2))


@pytest.mark.parametrize(
    "form",
    [Form("dense"), Form("summed", (2,)), Form("separable", (3,)), Form("tucker", (4, 5))],
    ids=str,
)
def test_a_probe_has_the_macs_of_its_copies(lowrank: keras.Model, form: Form) -> None:
    place = layer_sites(lowrank)[1].geometries[0]
    assert model_cost(probe(place, form, copies=3)).macs == 3 * place.macs(form)
    kinds = {type(layer).__name__ for layer in probe(place, form).layers}
    assert {"BatchNormalization", "ReLU"} <= kinds


def test_exact_counts_choose_what_counts_least(lowrank: keras.Model, tmp_path: Path) -> None:
    target = CountingTarget()
    plan = deploy.plan_fold(lowrank, target=target, cache=tmp_path)
    assert plan.unit == "instructions"
    assert plan.processor == "abacus"
    by_name = {layer.name: layer for layer in plan.layers}
    for name in ("first", "second", "third"):
        planned = by_name[name]
        assert planned.form == Form("separable", (3,))
        # The exact counts are MACs, less one invocation's fixed cost.
        assert planned.chosen.cost == pytest.approx(planned.chosen.macs, abs=2)
        assert planned.dense.cost == pytest.approx(planned.dense.macs, abs=2)
    folded = dprp.fold(lowrank, plan=plan)
    assert model_cost(folded).macs == plan.planned_macs
    assert plan.predicted_cost == pytest.approx(plan.planned_cost, rel=1e-3)
    assert plan.ratio == pytest.approx(plan.planned_cost / plan.dense_cost)
    assert plan.ratio < 0.5
    x = np.random.default_rng(0).standard_normal((3, 12, 12, 8)).astype("float32")
    expected = np.asarray(lowrank(x))
    np.testing.assert_allclose(np.asarray(folded(x)), expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("decomposition", ["channel", "separable"])
def test_transposed_convolutions_are_planned_by_what_their_stages_count(
    decomposition: str, tmp_path: Path
) -> None:
    inputs = keras.Input((6, 5, 24))
    x = layers.Conv2DTranspose(32, 3, strides=2, padding="same", name="up")(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Conv2DTranspose(16, (4, 2), strides=(2, 1), name="on")(x)
    model = keras.Model(inputs, layers.Conv2D(4, 1, name="out")(x))
    low = dprp.factorize(model, decomposition=decomposition, ranks=3, layers=["up", "on"])
    plan = deploy.plan_fold(low, target=CountingTarget(), cache=tmp_path)
    for planned in plan.layers:
        assert planned.form != Form("dense")
        assert planned.chosen.cost == pytest.approx(planned.chosen.macs, abs=2)
        assert planned.dense.cost == pytest.approx(planned.dense.macs, abs=2)
    folded = dprp.fold(low, plan=plan)
    assert model_cost(folded).macs == plan.planned_macs
    x = np.random.default_rng(0).standard_normal((3, 6, 5, 24)).astype("float32")
    expected = np.asarray(low(x))
    np.testing.assert_allclose(np.asarray(folded(x)), expected, atol=2e-5 * np.abs(expected).max())
    # The same of the table by widths, whose stages are measured one by one.
    table = deploy.measure_widths(
        model, target=CountingTarget(), decomposition=decomposition, groups=[], multiple=1
    )
    told = table.by_rank({})
    assert {row.name for row in told.layers} == {"up", "on", "out"}
    assert table.dense == pytest.approx(100 + model_cost(model).macs, abs=5)
    ranks = {row.name: row.ranks[0] for row in told.layers if row.name != "out"}
    low = dprp.factorize(model, decomposition=decomposition, ranks=ranks, layers=list(ranks))
    stages = model_cost(dprp.fold(low, form="two_stage")).macs
    saved = sum(row.dense - row.cost(ranks[row.name]) for row in told.layers if row.name in ranks)
    assert saved == pytest.approx(model_cost(model).macs - stages, rel=1e-3)


@pytest.mark.slow
def test_a_recurrent_layer_is_measured_with_what_stands_before_it(tmp_path: Path) -> None:
    inputs = keras.Input((4, 24))
    x = layers.LSTM(8, return_sequences=True, name="each")(inputs)
    x = layers.GRU(6, name="last")(x)
    model = keras.Model(inputs, layers.Dense(3, name="out")(x))
    low = dprp.factorize(model, ranks=2, layers=["each", "last"])
    each, last = (site.geometries[0] for site in layer_sites(low))
    assert each.kernel_shape == (24, 32)
    assert last.macs(Form("dense")) == 4 * 8 * 18
    assert last.macs(Form("channel", (2,))) == 4 * (8 * 2 + 2 * 18)
    for geometry, form in ((each, Form("channel", (2,))), (last, Form("dense"))):
        assert [type(at).__name__ for at in probe(geometry, form).layers][-1] in ("LSTM", "GRU")
    plan = deploy.plan_fold(low, target="local", cache=tmp_path, rounds=3)
    folded = dprp.fold(low, plan=plan)
    given = np.random.default_rng(0).standard_normal((3, 4, 24)).astype("float32")
    np.testing.assert_allclose(np.asarray(folded(given)), np.asarray(low(given)), atol=1e-5)


def test_what_is_known_is_not_measured_again(lowrank: keras.Model, tmp_path: Path) -> None:
    first, second = CountingTarget(), CountingTarget()
    before = deploy.plan_fold(lowrank, target=first, cache=tmp_path)
    places = [site.geometries[0] for site in layer_sites(lowrank)]
    costs = FormCosts(Setting(first, "litert", "float32"), cache=tmp_path)
    assert all(costs._read(place) is not None for place in places)
    after = deploy.plan_fold(lowrank, target=second, cache=tmp_path)
    assert first.calls[0] > 3, "forms, then the whole model"
    assert len(first.calls) == 2
    assert second.calls == [2, 2], "the yardstick, then the whole model"
    assert after == before
    # A damaged memory is measured anew, and so is one that is asked to be.
    damages: tuple[Callable[[dict[str, Any]], Any], ...] = (
        lambda values: values.update(yardstick=0),
        lambda values: values["forms"][0].update(cost=float("nan")),
        lambda values: values["forms"].pop(0),
        lambda values: values.clear(),
    )
    for damage in damages:
        for path in tmp_path.glob("*.json"):
            values = json.loads(path.read_text(encoding="utf-8"))
            damage(values)
            path.write_text(json.dumps(values), encoding="utf-8")
        assert all(costs._read(place) is None for place in places)
    third = CountingTarget()
    assert deploy.plan_fold(lowrank, target=third, cache=tmp_path) == before
    assert third.calls == first.calls
    fourth = CountingTarget()
    assert deploy.plan_fold(lowrank, target=fourth, cache=tmp_path, refresh=True) == before
    assert fourth.calls == first.calls


class _HalfLying(CountingTarget):
    """Everything is sound but one figure of the last file."""

    def measure(self, paths: Sequence[Path], **options: Any) -> dict[str, Any]:
        answer = super().measure(paths, **options)
        answer["models"][-1]["instructions"] = -1.0
        return answer


def test_an_answer_of_which_half_can_be_is_not_remembered(
    lowrank: keras.Model, tmp_path: Path
) -> None:
    with pytest.raises(TargetError, match=r"counting gave .*`instructions` must be .*-1\.0"):
        deploy.plan_fold(lowrank, target=_HalfLying(), cache=tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(TargetError, match="`instructions` must be"):
        deploy.measure_latency(lowrank, target=_HalfLying(), cache=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_target_where_depthwise_is_dear_keeps_dense(tmp_path: Path) -> None:
    low = dprp.factorize(_network(), decomposition="spatial", ranks=3, layers=["second", "third"])
    cheap = deploy.plan_fold(low, target=CountingTarget(depthwise=1.0), cache=tmp_path / "cheap")
    dear = deploy.plan_fold(low, target=CountingTarget(depthwise=500.0), cache=tmp_path / "dear")
    assert {layer.form.matricization for layer in cheap.layers} == {"spatial"}
    assert cheap.ratio < 1
    assert all(layer.form == Form("dense") for layer in dear.layers)
    assert (dear.ratio, dear.planned_cost) == (1.0, dear.dense_cost)
    assert any("dense layers are kept" in note for note in dear.notes)
    assert all("takes" in layer.reason for layer in dear.layers)


class _Lying(CountingTarget):
    """Single layers look cheaper in two stages, the whole model is not."""

    def _count(self, path: Path) -> float:
        count = super()._count(path)
        return 3.0 * count + 1e7 if path.stem.startswith("plan") else count


def test_a_plan_that_loses_whole_is_given_up_and_says_so(
    lowrank: keras.Model, tmp_path: Path
) -> None:
    plan = deploy.plan_fold(lowrank, target=_Lying(), cache=tmp_path)
    assert all(layer.form == Form("dense") for layer in plan.layers)
    assert plan.ratio == 1.0
    assert any("was given up" in note for note in plan.notes), plan.notes
    # What was measured stays to be read.
    assert min(c.ratio for layer in plan.layers for c in layer.candidates) < 0.5


def _site_and_costs(
    costs: Mapping[str, tuple[float, float, float]],
) -> tuple[Any, list[Form], dict[Geometry, dict[Form, FormCost]]]:
    low = dprp.factorize(_network(), decomposition="spatial", ranks=3, layers=["second"])
    (site,) = layer_sites(low)
    forms = [Form("dense"), *(Form(kind, (3,)) for kind in costs)]
    table = {Form("dense"): FormCost(10.0, 1.0, 1.0, 1.0)}
    for kind, (ratio, lower, upper) in costs.items():
        table[Form(kind, (3,))] = FormCost(10.0 * ratio, ratio, lower, upper)
    return site, forms, {site.geometries[0]: table}


@pytest.mark.parametrize(
    ("costs", "chosen"),
    [
        # Faster by the median, but the noise spans 1: dense stays.
        ({"concatenated": (0.9, 0.7, 1.1)}, "dense"),
        ({"concatenated": (0.9, 0.85, 0.95)}, "concatenated"),
        # The quicker one can't be told from the other, which is the first with as many weights.
        ({"concatenated": (0.52, 0.4, 0.6), "summed": (0.5, 0.4, 0.6)}, "summed"),
        ({"concatenated": (0.8, 0.75, 0.85), "summed": (0.5, 0.4, 0.6)}, "summed"),
        ({"concatenated": (1.4, 1.3, 1.5), "summed": (2.0, 1.9, 2.1)}, "dense"),
    ],
    ids=str,
)
def test_noise_does_not_decide(
    costs: Mapping[str, tuple[float, float, float]], chosen: str
) -> None:
    site, forms, measured = _site_and_costs(costs)
    assert _choose(site, forms, measured).form.kind == chosen


def test_of_forms_within_noise_the_smaller_wins() -> None:
    site, _, measured = _site_and_costs({"concatenated": (0.5, 0.4, 0.6)})
    place = site.geometries[0]
    smaller = Form("separable", (2,))
    measured[place][smaller] = FormCost(5.2, 0.52, 0.42, 0.62)
    forms = [Form("dense"), Form("concatenated", (3,)), smaller]
    kernel = site.layer.kernel_shape
    assert smaller.parameters(kernel) < forms[1].parameters(kernel)
    assert _choose(site, forms, measured).form == smaller


@pytest.mark.long
def test_real_measurements_make_a_plan_that_holds(lowrank: keras.Model, tmp_path: Path) -> None:
    for runtime, precision in (("litert", "float32"), ("onnxruntime", "float32")):
        plan = deploy.plan_fold(
            lowrank, runtime=runtime, precision=precision, rounds=5, cache=tmp_path
        )
        assert plan.unit == "ms"
        assert plan.dense_cost > 0
        assert plan.high <= 1.0, "a plan never costs more than the dense model"
        assert len(plan.layers) == 3
        assert dprp.FoldPlan.load(plan.save(tmp_path / "plan.json")) == plan
        folded = dprp.fold(lowrank, plan=plan)
        suffix = ".tflite" if runtime == "litert" else ".onnx"
        x = np.random.default_rng(0).standard_normal((2, 12, 12, 8)).astype("float32")
        path = tmp_path / f"planned{suffix}"
        assert deploy.export(folded, path, verification_data=x).passed


def test_a_table_of_costs_by_rank_counts_the_right_thing(
    lowrank: keras.Model, tmp_path: Path
) -> None:
    table = deploy.measure_latency(
        lowrank, target=CountingTarget(), ranks=(3, 6, 12), cache=tmp_path
    )
    assert (table.unit, table.processor) == ("instructions", "abacus")
    place = {site.layer.name: site.geometries[0] for site in layer_sites(lowrank)}
    for row in table.layers:
        assert row.ranks == (3, 6, 12)
        for rank, cost in zip(row.ranks, row.costs, strict=True):
            assert cost == pytest.approx(place[row.name].macs(Form("separable", (rank,))), abs=2)
    dense = dprp.fold(lowrank, form="dense")
    assert table.dense == pytest.approx(100 + model_cost(dense).macs, abs=5)
    ranks = {"first": 3, "second": 12, "third": 6}
    low = dprp.factorize(_network(), decomposition="separable", ranks=ranks, layers=list(ranks))
    assert table.model_cost(ranks) == pytest.approx(
        100 + model_cost(dprp.fold(low, form="two_stage")).macs, abs=20
    )
    with pytest.raises(ValueError, match=r"`ranks`.*\(0,\)"):
        deploy.measure_latency(lowrank, target=CountingTarget(), ranks=(0,), cache=tmp_path)


def test_a_spatial_table_knows_every_rank_and_its_quickest_form(tmp_path: Path) -> None:
    low = dprp.factorize(_network(), decomposition="spatial", layers=["second"])
    table = deploy.measure_latency(low, target=CountingTarget(depthwise=4.0), cache=tmp_path)
    (row,) = table.layers
    # 8 ranks would take 8 * (9 * 32 + 32 * 32) MACs per position, the dense form 9 * 32 * 32.
    assert row.ranks == tuple(range(1, 8))
    place = layer_sites(low)[0].geometries[0]
    positions = 12 * 12
    for rank in row.ranks:
        expected = positions * rank * (32 * 32 + 4 * 9 * 32)
        assert row.cost(rank) == pytest.approx(min(expected, place.macs(Form("dense"))), rel=1e-5)


def test_bad_arguments_are_named(lowrank: keras.Model, tmp_path: Path) -> None:
    for arguments, message in (
        ({"runtime": "tensorrt"}, r"`runtime`.*'tensorrt'"),
        ({"precision": "int4"}, r"`precision`.*'int4'"),
        ({"runtime": "onnxruntime", "precision": "float16"}, r"`precision`.*'float16'"),
        ({"target": "nowhere"}, "nowhere"),
        ({"tolerance": 1.5}, r"`tolerance`.*1\.5"),
        ({"rounds": 2}, r"`rounds`.*3 or more.*2"),
        ({"threads": 0}, r"`threads`.*0"),
    ):
        with pytest.raises(ValueError, match=message):
            deploy.plan_fold(lowrank, cache=tmp_path, **arguments)
    with pytest.raises(ValueError, match="must have SVD layers"):
        deploy.plan_fold(_network(), cache=tmp_path)
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match=r"`cache`.*file"):
        deploy.plan_fold(lowrank, cache=tmp_path / "file")
    for ranks in (4, (), (2.5,)):
        with pytest.raises(ValueError, match="`ranks`"):
            deploy.measure_latency(lowrank, ranks=ranks, cache=tmp_path)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="ONNX Runtime"):
        deploy.plan_fold(lowrank, target=CountingTarget(), runtime="onnxruntime", cache=tmp_path)


def test_layers_of_equal_name_in_nested_models_are_planned_by_their_paths(tmp_path: Path) -> None:
    twins = [
        keras.Sequential([keras.Input((8, 8, 4)), layers.Conv2D(4, 3, name="it")], name=name)
        for name in ("one", "two")
    ]
    inputs = keras.Input((8, 8, 4))
    both = layers.Add()([twin(inputs) for twin in twins])
    lowrank = dprp.factorize(keras.Model(inputs, both), ranks={"one/it": 1, "two/it": 3})
    plan = deploy.plan_fold(lowrank, target=CountingTarget(), cache=tmp_path)
    assert [(row.name, row.rank) for row in plan.layers] == [("one/it", 1), ("two/it", 3)]
    assert [row.reason for row in dprp.choose_forms(lowrank, plan=plan)] == ["measured"] * 2
    x = np.random.default_rng(0).standard_normal((2, 8, 8, 4)).astype("float32")
    folded = dprp.fold(lowrank, plan=plan)
    np.testing.assert_allclose(folded(x), lowrank(x), atol=1e-5)
    table = deploy.measure_latency(lowrank, target=CountingTarget(), ranks=(1, 3), cache=tmp_path)
    assert [row.name for row in table.layers] == ["one/it", "two/it"]
    assert table.model_cost(lowrank.ranks) > 0


def test_intervals_are_paired() -> None:
    rng = np.random.default_rng(0)
    # A machine whose speed drifts threefold: the rounds share it, so the ratio stays sharp.
    drift = np.linspace(1, 3, 60)
    reference = drift * rng.normal(1, 0.01, 60)
    ratio, low, high = ratio_interval(0.8 * drift * rng.normal(1, 0.01, 60), reference)
    assert ratio == pytest.approx(0.8, rel=0.03)
    assert 0.7 < low <= ratio <= high < 0.9
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        ratio_interval([1, 2], [1, 2, 3])


def test_an_activation_inside_the_next_layer_does_not_count_as_following() -> None:
    inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(4, 3, name="a")(inputs)
    x = layers.Conv2D(4, 3, activation="relu", name="b")(x)
    x = layers.Activation("relu")(layers.Conv2D(4, 3, name="c")(x))
    model = dprp.factorize(keras.Model(inputs, x), ranks=2)
    rectified = {site.layer.name: site.geometries[0].rectified for site in layer_sites(model)}
    assert rectified == {"a": False, "b": False, "c": True}


def test_int8_is_planned_for_models_of_integer_inputs(tmp_path: Path) -> None:
    tokens = keras.Input((12,), dtype="int32")
    x = layers.Embedding(20, 16)(tokens)
    x = layers.Conv1D(16, 3, padding="same", name="it")(x)
    model = keras.Model(tokens, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))
    low = dprp.factorize(model, decomposition="channel", ranks=2, layers=["it"])
    plan = deploy.plan_fold(low, precision="int8", rounds=3, cache=tmp_path)
    assert plan.high <= 1


def test_a_memory_of_fewer_rounds_does_not_count(lowrank: keras.Model, tmp_path: Path) -> None:
    place = layer_sites(lowrank)[1].geometries[0]
    setting = Setting(resolve_target("local"), "litert", "float32")
    form = Form("separable", (3,))
    first = FormCosts(setting, rounds=3, cache=tmp_path)
    first.measure({place: [form]})
    more = FormCosts(setting, rounds=60, cache=tmp_path)
    assert first._read(place) is not None
    assert more._read(place) is None


class _Hour(CountingTarget):
    """A target that times, in an hour that may be busy: other work takes CPUs, rounds scatter."""

    spec = "hour"
    unit = "ms"

    def __init__(self, others: float = 0.0, scatter: float = 0.0) -> None:
        super().__init__()
        self.others, self.scatter = others, scatter

    def measure(self, paths: Sequence[Path], **options: Any) -> dict[str, Any]:
        self.calls.append(len(paths))
        repeats, draws = options["repeats"], np.random.default_rng(len(self.calls))
        models = [
            {
                "runtime": "LiteRT",
                "runtime_version": "1.0",
                "threads": 1,
                "warmup": 3,
                "repeats": repeats,
                "invocations_per_sample": 1,
                "samples_ms": [
                    1e-5 * (1000 + self._count(path)) * (1 + self.scatter * draw)
                    for draw in draws.random(repeats)
                ],
            }
            for path in paths
        ]
        before = {"clock_s": 0.0, "process_cpu_s": 0.0, "machine_cpu_s": 0.0}
        after = {"clock_s": 5.0, "process_cpu_s": 5.0, "machine_cpu_s": 5.0 + 5.0 * self.others}
        machine = {**self.describe()["machine"], "cpus": 2}
        conditions = {"before": before, "after": after}
        return {"machine": machine, "conditions": conditions, "models": models}


def _costs_at(target: Target, place: Geometry, cache: Path) -> FormCosts:
    costs = FormCosts(Setting(target, "litert", "float32"), cache=cache)
    costs.measure({place: [Form("separable", (3,))]})
    return costs


@pytest.mark.parametrize("busy", [{"others": 0.9}, {"scatter": 9.0}], ids=["load", "spread"])
def test_a_busy_hour_does_not_rule_the_plans_after_it(
    busy: dict[str, float], lowrank: keras.Model, tmp_path: Path
) -> None:
    place = layer_sites(lowrank)[1].geometries[0]
    first, quiet, later = _Hour(**busy), _Hour(), _Hour()
    said = [w for w in _costs_at(first, place, tmp_path).warnings if "busy moment" in w]
    assert len(said) == 1
    assert "1 place of layers" in said[0]
    assert "--refresh" in said[0]
    assert not any("busy moment" in w for w in _costs_at(quiet, place, tmp_path).warnings)
    assert quiet.calls[0] == 4, "an empty model, the yardstick and two forms: measured again"
    assert not _costs_at(later, place, tmp_path).warnings
    assert later.calls == [2], "the yardstick: what a quiet hour gave is known"


def test_where_every_hour_is_busy_measuring_again_comes_to_an_end(
    lowrank: keras.Model, tmp_path: Path
) -> None:
    place = layer_sites(lowrank)[1].geometries[0]
    widths = []
    for scatter in (9.0, 3.0, 30.0):
        hour = _Hour(scatter=scatter)
        costs = _costs_at(hour, place, tmp_path)
        assert hour.calls[0] == 4
        entry = costs._read(place)
        assert entry is not None
        widths.append(entry.width)
    assert widths[1] < widths[0]
    assert widths[2] == widths[1], "of two doubtful ones the narrower is kept"
    last = _Hour(scatter=3.0)
    assert any("busy moment" in w for w in _costs_at(last, place, tmp_path).warnings)
    assert last.calls == [2]


@pytest.mark.slow
def test_a_busy_hour_is_told_with_the_plan_and_the_table(
    lowrank: keras.Model, tmp_path: Path
) -> None:
    plan = deploy.plan_fold(lowrank, target=_Hour(others=0.9), rounds=3, cache=tmp_path / "plan")
    assert sum("busy moment" in note for note in plan.notes) == 1
    told: list[str] = []
    deploy.measure_latency(
        lowrank, target=_Hour(others=0.9), rounds=3, cache=tmp_path / "table", progress=told.append
    )
    assert sum("busy moment" in line for line in told) == 1


@pytest.mark.parametrize(
    ("cost", "noise", "reason"),
    [
        (
            (0.42, 0.3, 1.2),
            0.0,
            r"takes 0\.42 x, .*0\.30\.\.1\.20 reaches 1; more rounds would tell",
        ),
        ((1.3, 0.9, 1.5), 0.0, r"takes 1\.30 x$"),
        ((0.995, 0.995, 0.995), 0.01, r"takes 0\.995 x, and counts repeat within 1% only"),
    ],
    ids=str,
)
def test_a_layer_kept_dense_says_what_spoke_against_the_other_form(
    cost: tuple[float, float, float], noise: float, reason: str
) -> None:
    site, forms, measured = _site_and_costs({"concatenated": cost})
    layer = _choose(site, forms, measured, noise)
    assert layer.form == Form("dense")
    assert re.search(reason, layer.reason), layer.reason


class _Wavering(_Hour):
    """Single layers gain for certain; the whole model by the median alone."""

    def measure(self, paths: Sequence[Path], **options: Any) -> dict[str, Any]:
        answer = super().measure(paths, **options)
        if paths[0].stem == "dense":
            for entry, path in zip(answer["models"], paths, strict=True):
                planned = path.stem.startswith("plan")
                slow = 2.0 if planned else 1.0
                count = len(entry["samples_ms"])
                fast = 0.9 if planned else 1.0
                entry["samples_ms"] = [slow if n % 20 < 9 else fast for n in range(count)]
        return answer


def test_a_model_whose_gain_is_not_certain_is_not_said_to_gain_nothing(
    lowrank: keras.Model, tmp_path: Path
) -> None:
    plan = deploy.plan_fold(lowrank, target=_Wavering(), rounds=10, cache=tmp_path)
    assert all(layer.form == Form("dense") for layer in plan.layers)
    given_up = [layer for layer in plan.layers if "but" in layer.reason]
    assert given_up
    for layer in given_up:
        assert re.search(r"takes 0\.\d\d x, but the whole model takes 0\.90 x", layer.reason)
        assert "more rounds would tell" in layer.reason
    assert any(note.endswith("made the model faster for certain") for note in plan.notes)


def test_times_of_a_slower_hour_are_brought_to_now(lowrank: keras.Model, tmp_path: Path) -> None:
    slow, quick = CountingTarget(fixed=0.0), CountingTarget(fixed=0.0)
    slow._count = lambda path: 3.0 * CountingTarget._count(slow, path)  # type: ignore[method-assign]
    deploy.plan_fold(lowrank, target=slow, cache=tmp_path)
    plan = deploy.plan_fold(lowrank, target=quick, cache=tmp_path)
    assert quick.calls[0] == 2, "remembered"
    assert plan.predicted_cost == pytest.approx(plan.planned_cost, rel=1e-3)
    table = deploy.measure_latency(lowrank, target=quick, ranks=(3,), cache=tmp_path)
    assert table.model_cost({}) == table.dense
    for layer in plan.layers:
        assert layer.dense.cost == pytest.approx(layer.dense.macs, rel=1e-4)


def test_ratios_travel_between_runs_and_times_do_not(lowrank: keras.Model, tmp_path: Path) -> None:
    place = layer_sites(lowrank)[1].geometries[0]
    one, two = Form("separable", (3,)), Form("channel", (2,))
    setting = Setting(CountingTarget(fixed=0.0), "litert", "float32")
    first = FormCosts(setting, cache=tmp_path).measure({place: [one]})[place]
    doubled = CountingTarget(fixed=0.0)
    doubled._count = lambda path: 2.0 * CountingTarget._count(doubled, path)  # type: ignore[method-assign]
    setting = Setting(doubled, "litert", "float32")
    second = FormCosts(setting, cache=tmp_path).measure({place: [one, two]})[place]
    assert second[one].ratio == first[one].ratio
    assert second[one].cost == pytest.approx(2 * place.macs(one), rel=1e-3), "as costs are now"
    assert second[two].cost == pytest.approx(2 * place.macs(two), rel=1e-3)
    assert second[two].ratio == pytest.approx(place.macs(two) / place.macs(Form("dense")), rel=1e-4)
