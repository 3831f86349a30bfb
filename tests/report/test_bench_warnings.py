"""What makes the figures of a benchmark doubtful."""

from __future__ import annotations

import pytest
from made_runs import (
    DRIFT,
    make_bench,
)

from dprp_tf.report.bench_warnings import bench_warnings, data_warnings
from dprp_tf.report.tables.fold_plan import plan_notes


def test_a_warning_stands_once_with_every_place_it_concerns() -> None:
    failed, busy, drift = bench_warnings(make_bench())
    assert (failed.kind, failed.seen) == (
        "Not measured",
        (("adb://serial: no such device.", ("adb://serial, 1 thread",)),),
    )
    assert busy.kind == "Busy machine"
    assert busy.advice.startswith("Stop what else runs there")
    assert busy.seen == (
        (
            "other work kept 1.6 of 4 CPUs busy during a run of 1 thread",
            ("local, 1 thread", "local, 2 threads"),
        ),
    )
    # Only one of four files drifted: it is named.
    assert drift.seen[0][1] == ("dprp_int8.tflite on ssh://pi@raspberrypi.local:22, 1 thread",)


def test_warnings_of_one_kind_stand_together_with_their_range() -> None:
    bench = make_bench()
    for run in bench["runs"]:
        for result in run["results"]:
            result["warnings"] = []
    for position, share in enumerate((12, 8, 103, 9)):
        bench["runs"][1]["results"][position]["warnings"] = [DRIFT.replace("12 %", f"{share} %")]
    bench["runs"][2]["results"][3]["warnings"] = [DRIFT]
    bench["runs"][0]["results"][0]["warnings"] = ["no colon {here} 3"]
    failed, other, drift = bench_warnings(bench)
    assert failed.kind == "Not measured"
    assert (other.kind, other.seen) == (
        "Warning",
        (("no colon here 3", ("dense_float32.tflite on local, 1 thread",)),),
    )
    assert drift.seen == (
        (
            "the last third of the samples took 8 to 103 % longer than the first",
            (
                # Every file of this run, one file of that.
                "local, 2 threads",
                "dprp_int8.tflite on ssh://pi@raspberrypi.local:22, 1 thread",
            ),
        ),
    )


def test_sentences_that_differ_in_two_figures_stay_apart() -> None:
    bench = make_bench()
    for run, (limit, maximum) in zip(bench["runs"], ((600, "1,800"), (700, "1,500")), strict=False):
        for result in run["results"]:
            result["warnings"] = [f"Limited clock: held to {limit} of {maximum} MHz. Raise it."]
    (clock,) = (warning for warning in bench_warnings(bench) if warning.kind == "Limited clock")
    assert clock.seen == (
        ("held to 600 of 1,800 MHz", ("local, 1 thread",)),
        ("held to 700 of 1,500 MHz", ("local, 2 threads",)),
    )


def test_what_was_said_of_the_data_keeps_its_kind_and_advice() -> None:
    said = [
        "Test split: photos has no test/ folder. A model may know them. Use <test>.",
        "Guessing: 10% are right",
    ]
    split, guessing = data_warnings({"data": {"warnings": said}})
    assert (split.kind, split.advice) == ("Test split", "A model may know them. Use <test>.")
    assert split.seen == (("photos has no test/ folder", ()),)
    assert (guessing.kind, guessing.advice) == ("Guessing", "")
    assert data_warnings({"data": {"name": "photos"}}) == data_warnings({}) == []


@pytest.mark.parametrize("junk", [3, True, 1.5, {"a": 1}])
def test_warnings_that_are_no_texts_are_one_clear_error(junk: object) -> None:
    bench = make_bench()
    bench["runs"][0]["results"][0]["warnings"] = junk
    with pytest.raises(ValueError, match="`warnings` must be a list of texts"):
        bench_warnings(bench)
    with pytest.raises(ValueError, match="`notes` must be a list of texts"):
        plan_notes({"notes": junk})


def test_one_text_is_a_list_of_it() -> None:
    bench = make_bench()
    for run in bench["runs"]:
        for result in run["results"]:
            result["warnings"] = "Noise: much. Wait."
    assert [warning.kind for warning in bench_warnings(bench)] == ["Not measured", "Noise"]
    assert plan_notes({"notes": "much"}) == ["much"]
