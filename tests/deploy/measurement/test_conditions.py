"""Warnings about a machine that was busy, hot or held back, from what edge_runner records."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from dprp_tf.deploy.measurement.conditions import condition_warnings


def make_answer(files: int = 1, threads: int = 1) -> dict[str, Any]:
    """Make what a quiet four-core board answers, in the shape edge_runner writes."""
    frequency = {
        "cpu": "cpu0",
        "governor": "performance",
        "current_khz": 1_800_000,
        "limit_khz": 1_800_000,
        "maximum_khz": 1_800_000,
    }
    before = {
        "clock_s": 100.0,
        "load_average": [0.05, 0.1, 0.1],
        "process_cpu_s": 2.0,
        "machine_cpu_s": 500.0,
        "stolen_cpu_s": 0.0,
        "cpu_frequencies": [frequency],
        "temperatures_celsius": {"thermal_zone0 cpu-thermal": 45.0},
    }
    after = {
        **copy.deepcopy(before),
        "clock_s": 110.0,
        "process_cpu_s": 2.0 + 10 * threads,
        "machine_cpu_s": 500.3 + 10 * threads,
        "temperatures_celsius": {"thermal_zone0 cpu-thermal": 52.0},
    }
    model = {"threads": threads, "repeats": 50, "spread": 0.01}
    return {
        "machine": {"cpus": 4},
        "conditions": {"before": before, "after": after, "drift": [1.01] * files},
        "models": [copy.deepcopy(model) for _ in range(files)],
    }


def warnings_after(**changes: Any) -> tuple[str, ...]:
    """Change parts of the quiet answer (dots name the way) and give the first file's warnings."""
    answer = make_answer(threads=changes.pop("threads", 1))
    for way, value in changes.items():
        *parts, last = way.split("__")
        place: Any = answer
        for part in parts:
            place = place[int(part) if part.isdigit() else part]
        place[int(last) if last.isdigit() else last] = value
    return condition_warnings(answer)[0]


def test_a_quiet_machine_is_not_warned_of() -> None:
    assert condition_warnings(make_answer(files=3)) == ((), (), ())
    assert warnings_after(threads=4) == ()


def test_what_is_unknown_is_not_warned_of() -> None:
    nothing: dict[str, Any] = {"machine": {}, "models": [{}, {"threads": 4}]}
    assert condition_warnings(nothing) == ((), ())
    blank = make_answer()
    for moment in ("before", "after"):
        blank["conditions"][moment] = dict.fromkeys(blank["conditions"][moment])
    blank["conditions"]["drift"] = [None]
    assert condition_warnings(blank) == ((),)
    # The shape a counting, emulated target answers in.
    assert condition_warnings({"machine": {"cpus": 1}, "models": [{"threads": 1}]}) == ((),)


def test_other_work_is_what_the_machine_spent_beyond_this_process() -> None:
    # 10 s: 10 s of CPU for the run, 34 s in all, so others kept 2.4 CPUs busy.
    (said,) = warnings_after(conditions__after__machine_cpu_s=534.0)
    assert said.startswith(
        "Busy machine: other work kept 2.4 of 4 CPUs busy during a run of 1 thread."
    )
    assert "measure again" in said
    # Two CPUs of others leave one for the single thread.
    assert warnings_after(conditions__after__machine_cpu_s=530.0) == ()
    # Four threads leave no room for half a CPU of others.
    (said,) = warnings_after(threads=4, conditions__after__machine_cpu_s=545.0)
    assert "0.5 of 4 CPUs busy during a run of 4 threads" in said


def test_a_short_run_goes_by_the_load_average_before_it() -> None:
    short = {"conditions__after__clock_s": 100.2, "conditions__after__machine_cpu_s": 534.0}
    assert warnings_after(**short) == ()
    (said,) = warnings_after(**short, conditions__before__load_average=[3.2, 1, 1])
    assert "the load average on 4 CPUs was 3.2 before a run of 1 thread" in said
    # With CPU time known, the load average of the minute before counts for nothing.
    assert warnings_after(conditions__before__load_average=[3.2, 1, 1]) == ()


def test_a_host_that_takes_cpu_time_is_named() -> None:
    (said,) = warnings_after(conditions__after__stolen_cpu_s=0.9)
    assert said.startswith("Shared host: this virtual machine waited 9 % of the time")
    assert warnings_after(conditions__after__stolen_cpu_s=0.1) == ()


@pytest.mark.parametrize("governor", ["powersave", "ondemand", "schedutil"])
def test_a_scaling_governor_is_named(governor: str) -> None:
    (said,) = warnings_after(conditions__after__cpu_frequencies__0__governor=governor)
    assert said.startswith(f"Frequency scaling: the governor is {governor},")
    assert "cpupower frequency-set -g performance" in said


def test_an_idle_clock_counts_only_without_scaling() -> None:
    way = "conditions__after__cpu_frequencies__0__"
    (said,) = warnings_after(**{f"{way}current_khz": 1_200_000})
    assert said.startswith("Slow clock: a CPU ran at 67 % of its largest frequency.")
    (said,) = warnings_after(**{f"{way}current_khz": 600_000, f"{way}governor": "ondemand"})
    assert said.startswith("Frequency scaling")


def test_a_lowered_limit_is_named_before_the_governor() -> None:
    way = "conditions__after__cpu_frequencies__0__"
    (said,) = warnings_after(**{f"{way}limit_khz": 600_000, f"{way}governor": "ondemand"})
    assert said.startswith("Limited clock: a CPU is held to 600 of 1,800 MHz.")


def test_a_drift_is_explained_by_the_zone_that_warmed_most() -> None:
    (said,) = warnings_after(conditions__drift__0=1.12)
    assert said.startswith(
        "Thermal drift: the last third of the samples took 12 % longer than the first, while "
        "thermal_zone0 cpu-thermal went from 45 to 52 °C."
    )
    (said,) = warnings_after(
        conditions__drift__0=1.12, conditions__after__temperatures_celsius={"other": 90.0}
    )[1:]
    assert said.startswith("Drift: the last third of the samples took 12 % longer than the first.")
    same = {"thermal_zone0 cpu-thermal": 45.0}
    (said,) = warnings_after(
        conditions__drift__0=1.12, conditions__after__temperatures_celsius=same
    )
    assert said.startswith("Drift: the last third of the samples took 12 % longer than the first.")
    (said,) = warnings_after(conditions__drift__0=0.8)
    assert said.startswith("Drift: the last third of the samples took 20 % less time")
    assert warnings_after(conditions__drift__0=1.04) == ()


def test_heat_alone_is_named() -> None:
    (said,) = warnings_after(conditions__after__temperatures_celsius={"zone": 83.4})
    assert said.startswith("Hot: 83 °C after the run.")


def test_a_wide_spread_is_named() -> None:
    (said,) = warnings_after(models__0__spread=0.18)
    assert said.startswith("Wide spread: the middle half of the samples scatters over 18 %")


def test_a_drift_within_a_wide_spread_is_chance() -> None:
    (said,) = warnings_after(conditions__drift__0=1.3, models__0__spread=0.4)
    assert said.startswith("Wide spread")
    both = warnings_after(conditions__drift__0=1.3, models__0__spread=0.2)
    assert [said.split(":")[0] for said in both] == ["Thermal drift", "Wide spread"]


def test_few_samples_say_nothing_of_drift_or_spread() -> None:
    assert (
        warnings_after(models__0__spread=0.5, models__0__repeats=8, conditions__drift__0=1.5) == ()
    )


def test_more_threads_than_cpus_are_named() -> None:
    (said,) = warnings_after(threads=8, machine__cpus=4, conditions__after__machine_cpu_s=580.0)
    assert said.startswith("More threads than CPUs: 8 threads on 4 CPUs.")


def test_instructions_of_several_threads_count_waiting() -> None:
    answer: dict[str, Any] = {"machine": {"cpus": 4}, "models": []}
    for threads in (1, 2):
        answer["models"].append({"threads": threads, "repeats": 1, "instructions": 4_000_000})
    one, two = condition_warnings(answer)
    assert one == ()
    assert [said.split(":")[0] for said in two] == ["Waiting counted"]


def test_each_file_has_its_own_warnings_beside_those_of_the_machine() -> None:
    answer = make_answer(files=2)
    answer["conditions"]["after"]["machine_cpu_s"] = 540.0
    answer["conditions"]["drift"] = [1.0, 1.3]
    first, second = condition_warnings(answer)
    assert [said.split(":")[0] for said in first] == ["Busy machine"]
    assert [said.split(":")[0] for said in second] == ["Busy machine", "Thermal drift"]
    assert first[0] == second[0]
