"""What a machine was doing while it measured, and what that means for the figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["busy_kinds", "condition_warnings"]

# Work of others that a run on otherwise idle CPUs doesn't feel, in CPUs.
_QUIET = 0.1
_OCCUPIED = 0.75
# The kernel counts CPU time in hundredths of a second: shorter runs go by the load average.
_LEAST_SECONDS = 1.0
_STOLEN = 0.02
_SLOW_CLOCK = 0.9
_HOT_CELSIUS = 80.0
_DRIFT = 0.05
_SPREAD = 0.10
# What another hour would not have: a governor or too few CPUs stay, and ratios suffer less of heat.
_BUSY_KINDS = ("Busy machine", "Shared host")
# Thirds of fewer samples than this say more about chance than about heat.
_LEAST_SAMPLES = 9


def condition_warnings(answer: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
    """Say what makes the timing of each file doubtful, what was seen and what to do.

    These things are looked for: other work (the CPUs that other processes kept busy during the
    timing; for less than a second, the one-minute load average before it), frequency scaling or
    a lowered clock, a hot CPU, a drift above 5 % from the first to the last third of a file's
    samples, samples whose interquartile range exceeds 10 % of their median, more threads than
    CPUs, and instructions counted of several threads.

    Args:
        answer: What `Target.measure` gives. Read are `machine` (`cpus`), `conditions`
            (`before` and `after`, each with `clock_s`, `load_average`, `process_cpu_s`,
            `machine_cpu_s`, `stolen_cpu_s`, `cpu_frequencies` and `temperatures_celsius`; and
            `drift`, one per file) and, of each of `models`, `threads`, `repeats`, `spread` and
            `instructions`. A part that is absent or `None` is unknown, and nothing warns of it.

    Returns:
        For each of `models` its warnings, those of the machine first; the machine's are the same
        for every file. Empty where nothing was seen.

    Example:

    >>> before = {"clock_s": 0.0, "process_cpu_s": 0.0, "machine_cpu_s": 50.0}
    >>> after = {"clock_s": 4.0, "process_cpu_s": 4.0, "machine_cpu_s": 57.6}
    >>> condition_warnings({
    ...     "machine": {"cpus": 2},
    ...     "conditions": {"before": before, "after": after, "drift": [1.0]},
    ...     "models": [{"threads": 1, "repeats": 50, "spread": 0.01}],
    ... })[0][0]
    'Busy machine: other work kept 0.9 of 2 CPUs busy during a run of 1 thread. Stop what else \
runs there and measure again; ratios suffer less than times.'
    """
    seen = _part(answer, "conditions")
    models = answer.get("models") or []
    before, after = _part(seen, "before"), _part(seen, "after")
    cpus = _number(_part(answer, "machine").get("cpus"))
    drifts = seen.get("drift") or [None] * len(models)
    found = []
    for model, drift in zip(models, drifts, strict=True):
        threads = _number(model.get("threads"))
        said = (
            _counted_waiting(model, threads),
            _too_many_threads(cpus, threads),
            _busy(before, after, cpus, threads),
            _stolen(before, after),
            _frequency(after),
            _heat(after),
            _drift(drift, model, before, after),
            _spread(model),
        )
        found.append(tuple(warning for warning in said if warning))
    return tuple(found)


def busy_kinds(warnings: Iterable[str]) -> tuple[str, ...]:
    """Pick the kinds of warnings that speak of a busy moment, after which it is worth trying again.

    Args:
        warnings: What `condition_warnings` said.

    Returns:
        What stands before the colons, without repetition.

    Example:

    >>> busy_kinds(["Busy machine: other work.", "Frequency scaling: powersave."])
    ('Busy machine',)
    """
    kinds = dict.fromkeys(warning.partition(":")[0] for warning in warnings)
    return tuple(kind for kind in kinds if kind in _BUSY_KINDS)


def _counted_waiting(model: Mapping[str, Any], threads: float) -> str:
    if model.get("instructions") is None or not threads > 1:
        return ""
    return (
        f"Waiting counted: instructions of {threads:.0f} threads include those of threads that "
        "wait for others. Count with 1 thread."
    )


def _too_many_threads(cpus: float, threads: float) -> str:
    if not threads > cpus:
        return ""
    return (
        f"More threads than CPUs: {threads:.0f} threads on {_cpus(cpus)}. They wait for one "
        f"another; measure with at most {cpus:.0f}."
    )


def _busy(before: Mapping[str, Any], after: Mapping[str, Any], cpus: float, threads: float) -> str:
    seconds = _elapsed(before, after, "clock_s")
    others = _elapsed(before, after, "machine_cpu_s") - _elapsed(before, after, "process_cpu_s")
    if seconds >= _LEAST_SECONDS and not math.isnan(others):
        others /= seconds
        said = f"other work kept {others:.1f} of {_cpus(cpus)} busy during"
    else:
        load = before.get("load_average")
        others = _number(load[0]) if isinstance(load, list) and load else math.nan
        said = f"the load average on {_cpus(cpus)} was {others:.1f} before"
    # NaN compares as false: nothing is said of what isn't known.
    if not (others > _QUIET and others + min(threads, cpus) > _OCCUPIED * cpus):
        return ""
    own = f"a run of {threads:.0f} thread{'s' * (threads != 1)}"
    return (
        f"Busy machine: {said} {own}. Stop what else runs there and measure again; ratios suffer "
        "less than times."
    )


def _stolen(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    seconds = _elapsed(before, after, "clock_s")
    stolen = _elapsed(before, after, "stolen_cpu_s")
    if not (seconds >= _LEAST_SECONDS and stolen > _STOLEN * seconds):
        return ""
    return (
        f"Shared host: this virtual machine waited {100 * stolen / seconds:.0f} % of the time for "
        "a CPU of its host. Measure on hardware of your own, or repeat at a quieter time."
    )


def _frequency(after: Mapping[str, Any]) -> str:
    cpus = [entry for entry in after.get("cpu_frequencies") or [] if isinstance(entry, Mapping)]
    governors = sorted({str(e["governor"]) for e in cpus if e.get("governor")} - {"performance"})
    shares = [
        _number(entry.get("current_khz")) / _number(entry.get("maximum_khz"))
        for entry in cpus
        if _number(entry.get("maximum_khz")) > 0
    ]
    limits = [
        (_number(entry.get("limit_khz")) / 1000, _number(entry.get("maximum_khz")) / 1000)
        for entry in cpus
        if _number(entry.get("limit_khz")) < _SLOW_CLOCK * _number(entry.get("maximum_khz"))
    ]
    if limits:
        limit, maximum = min(limits)
        return (
            f"Limited clock: a CPU is held to {limit:,.0f} of {maximum:,.0f} MHz. Raise the limit "
            "(cpupower frequency-set -u), or say so beside the figures."
        )
    if governors:
        return (
            f"Frequency scaling: the governor is {' and '.join(governors)}, so the clock follows "
            'the load. Set it to performance ("cpupower frequency-set -g performance"), or '
            "compare ratios only."
        )
    # Under a scaling governor an idle CPU is slow; without one, a slow CPU is held back.
    if any(share < _SLOW_CLOCK for share in shares):
        return (
            f"Slow clock: a CPU ran at {100 * min(shares):.0f} % of its largest frequency. Look "
            "for heat, a weak power supply or a power limit, and measure again."
        )
    return ""


def _heat(after: Mapping[str, Any]) -> str:
    hottest = max(_temperatures(after).values(), default=math.nan)
    if not hottest >= _HOT_CELSIUS:
        return ""
    return (
        f"Hot: {hottest:.0f} °C after the run. Many boards slow down from {_HOT_CELSIUS:.0f} °C "
        "on; cool it, or wait between runs."
    )


def _drift(
    drift: Any, model: Mapping[str, Any], before: Mapping[str, Any], after: Mapping[str, Any]
) -> str:
    change, spread = _number(drift) - 1, _number(model.get("spread"))
    if not _number(model.get("repeats")) >= _LEAST_SAMPLES or not abs(change) > _DRIFT:
        return ""
    # Thirds of samples that scatter so far differ by chance.
    if abs(change) < spread and spread > _SPREAD:
        return ""
    if change < 0:
        return (
            f"Drift: the last third of the samples took {-100 * change:.0f} % less time than the "
            "first. The clock was still rising or other work ended; warm up longer, and measure "
            "again."
        )
    earlier, later = _temperatures(before), _temperatures(after)
    rises = [(later[name] - earlier[name], name) for name in later if name in earlier]
    rise, zone = max(rises, default=(0.0, ""))
    if rise < 1:
        return (
            f"Drift: the last third of the samples took {100 * change:.0f} % longer than the "
            "first. The machine heats up or other work began; let it cool and stop what else runs "
            "there; ratios of files timed in turns stay fair."
        )
    return (
        f"Thermal drift: the last third of the samples took {100 * change:.0f} % longer than the "
        f"first, while {zone} went from {earlier[zone]:.0f} to {later[zone]:.0f} °C. Let the "
        "machine cool, or cool it better; ratios of files timed in turns stay fair."
    )


def _spread(model: Mapping[str, Any]) -> str:
    spread = _number(model.get("spread"))
    if not _number(model.get("repeats")) >= _LEAST_SAMPLES or not spread > _SPREAD:
        return ""
    return (
        f"Wide spread: the middle half of the samples scatters over {100 * spread:.0f} % of the "
        "median. Other work interferes or the clock changes; take more samples, and go by the "
        "interval of the ratio."
    )


def _temperatures(seen: Mapping[str, Any]) -> dict[str, float]:
    found = {name: _number(value) for name, value in _part(seen, "temperatures_celsius").items()}
    return {name: value for name, value in found.items() if not math.isnan(value)}


def _elapsed(before: Mapping[str, Any], after: Mapping[str, Any], key: str) -> float:
    return _number(after.get(key)) - _number(before.get(key))


def _part(source: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = source.get(key)
    return value if isinstance(value, Mapping) else {}


def _cpus(count: float) -> str:
    return f"{count:.0f} CPU{'s' * (count != 1)}"


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    return float(value)
