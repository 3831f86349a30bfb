"""What targets answer, held against what it can be before anybody believes it.

A device may be broken, or be another than it says; its words are data. What passes here is finite,
of the number asked for and of the types that are written down; text is without control characters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dprp_tf.deploy.targets.edge_runner import drift, summarize
from dprp_tf.deploy.targets.target import TargetError
from dprp_tf.files.arguments import check_integer, check_number

__all__ = ["AnswerCheck", "check_description", "check_measurement", "plain_text"]

_DAY_MS = 86_400_000.0
# A nanosecond: no clock of these machines tells less.
_LEAST_MS = 1e-6
_MOST_BYTES = 2**50
_MOST_COUNT = 2**53
_MOST_LETTERS = 200
_MOST_ENTRIES = 4096
_RUNTIMES = {".tflite": "LiteRT", ".onnx": "ONNX Runtime"}
_MACHINE_TEXTS = ("architecture", "processor", "system", "python")
_CONDITIONS = ("clock_s", "process_cpu_s", "machine_cpu_s", "stolen_cpu_s")
_FREQUENCIES = ("current_khz", "limit_khz", "maximum_khz")


def plain_text(value: Any, limit: int = _MOST_LETTERS) -> str:
    """Make foreign words fit to be shown: one line, no control characters, shortened.

    Args:
        value: Text, or anything whose `repr` is shown.
        limit: Most characters, 2 or more. Defaults to 200.

    Returns:
        The text; of a long one the beginning and an ellipsis.

    Example:

    >>> plain_text("\\x1b[31mred\\x07\\nline")
    ' [31mred  line'
    >>> plain_text("a" * 300, limit=5)
    'aaaa…'
    """
    if isinstance(value, str):
        text = value
    elif isinstance(value, (list, tuple, dict)):
        text = f"a {type(value).__name__} of {len(value)}"
    elif isinstance(value, int) and abs(value) > _MOST_COUNT:
        text = f"an integer of {value.bit_length()} bits"
    else:
        text = repr(value)
    shown = "".join(c if c.isprintable() else " " for c in text[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


class AnswerCheck:
    """Checks of single values, each of which gives the value back or refuses it by name.

    Args:
        spec: How the target is named.
    """

    def __init__(self, spec: str) -> None:
        self.spec = spec

    def error(self, told: str, received: Any) -> TargetError:
        """Make the error for an answer that can't be.

        Args:
            told: What it must be: "`x` must be a list".
            received: What came.

        Returns:
            The error, which names the target.
        """
        return TargetError(
            f"{self.spec} gave an answer that can't be: {told}. Received: {plain_text(received)}. "
            "Look at what runs there, and measure again."
        )

    def number(
        self,
        name: str,
        value: Any,
        *,
        above: float | None = None,
        minimum: float | None = None,
        maximum: float | None = None,
    ) -> float:
        """Take a finite number of a range."""
        if isinstance(value, (int, float)) or hasattr(value, "dtype"):
            try:
                return check_number(name, value, minimum, maximum, above=above)
            except ValueError:
                pass
        words = {"above": above, "at least": minimum, "at most": maximum}
        extent = " and ".join(f"{w} {edge:,.6g}" for w, edge in words.items() if edge is not None)
        raise self.error(f"`{name}` must be a finite number {extent}".rstrip(), value)

    def integer(self, name: str, value: Any, minimum: int = 0, maximum: int = _MOST_COUNT) -> int:
        """Take an integer of a range."""
        try:
            return check_integer(name, value, minimum, maximum)
        except ValueError:
            told = f"`{name}` must be an integer of {minimum} to {maximum}"
            raise self.error(told, value) from None

    def text(self, name: str, value: Any, limit: int = _MOST_LETTERS) -> str:
        """Take text, cleaned."""
        if not isinstance(value, str):
            raise self.error(f"`{name}` must be text", value)
        return plain_text(value, limit)

    def mapping(self, name: str, value: Any) -> Mapping[str, Any]:
        """Take a mapping of names."""
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise self.error(f"`{name}` must be a mapping of names", value)
        return value

    def list(self, name: str, value: Any, length: int | None = None) -> Sequence[Any]:
        """Take a list, of a certain length where one is given."""
        known = isinstance(value, (list, tuple))
        if not known or (len(value) != length if length is not None else len(value) > 10**7):
            told = "a list" if length is None else f"a list of {length}"
            raise self.error(f"`{name}` must be {told}", value)
        return list(value)


def check_description(spec: str, answer: Any) -> dict[str, Any]:
    """Take what a target says of itself.

    Args:
        spec: How the target is named.
        answer: What it said.

    Returns:
        `"machine"` and `"runtimes"`, as `Target.describe` says, and nothing else.

    Raises:
        TargetError: If a part is absent or of another kind.

    Example:

    >>> told = {"machine": {"cpus": 4}, "runtimes": {"LiteRT": "2.1.6", "ONNX Runtime": None}}
    >>> check_description("local", told)["machine"]["cpus"]
    4
    >>> check_description("local", {"machine": {"cpus": True}, "runtimes": {}})
    Traceback (most recent call last):
      ...
    dprp_tf.deploy.targets.target.TargetError: local gave an answer that can't be: `cpus` must be \
an integer of 1 to 65536. Received: True. Look at what runs there, and measure again.
    """
    check = AnswerCheck(spec)
    whole = check.mapping("answer", answer)
    runtimes = check.mapping("runtimes", whole.get("runtimes"))
    return {
        "machine": _machine(check, whole.get("machine")),
        "runtimes": {
            name: None if runtimes.get(name) is None else check.text(name, runtimes[name])
            for name in _RUNTIMES.values()
        },
    }


def check_measurement(
    spec: str,
    answer: Any,
    paths: Sequence[Path],
    *,
    unit: str,
    threads: int,
    repeats: int | None = None,
    elapsed_s: float | None = None,
) -> dict[str, Any]:
    """Take what a target measured.

    Statistics of samples are computed here and not believed.

    Args:
        spec: How the target is named.
        answer: What it said.
        paths: The files that it was given.
        unit: What it counts, `Target.unit`.
        threads: How many threads it was told to use.
        repeats: How many samples it was asked for. Defaults to what it says, the same for all.
        elapsed_s: How long it took, as seen from here: no sample can be longer. Defaults to not
            known.

    Returns:
        `"machine"`, `"models"` and perhaps `"conditions"`, as `Target.measure` says.

    Raises:
        TargetError: If a part is absent, of another kind or number, or can't be.
    """
    check = AnswerCheck(spec)
    whole = check.mapping("answer", answer)
    entries = check.list("models", whole.get("models"), len(paths))
    models = [
        _model(check, check.mapping("models", entry), path, unit, threads, repeats, elapsed_s)
        for entry, path in zip(entries, paths, strict=True)
    ]
    if len({model["repeats"] for model in models}) > 1:
        numbers = ", ".join(str(model["repeats"]) for model in models)
        raise check.error("`repeats` must be the same for all files", numbers)
    checked: dict[str, Any] = {
        "machine": _machine(check, whole.get("machine")),
        "models": models,
    }
    if whole.get("conditions") is not None:
        checked["conditions"] = {
            **_conditions(check, whole["conditions"]),
            "drift": [drift(model.get("samples_ms") or []) for model in models],
        }
    return checked


def _machine(check: AnswerCheck, value: Any) -> dict[str, Any]:
    told = check.mapping("machine", value)
    names = [*_MACHINE_TEXTS, *(["device"] if "device" in told else [])]
    found: dict[str, Any] = {
        name: None if told.get(name) is None else check.text(name, told[name]) for name in names
    }
    cpus = told.get("cpus")
    found["cpus"] = None if cpus is None else check.integer("cpus", cpus, 1, 1 << 16)
    return found


def _model(
    check: AnswerCheck,
    entry: Mapping[str, Any],
    path: Path,
    unit: str,
    threads: int,
    repeats: int | None,
    elapsed_s: float | None,
) -> dict[str, Any]:
    runtime = _RUNTIMES.get(path.suffix.lower())
    for name, wanted in (
        ("runtime", runtime),
        ("threads", threads),
        ("repeats", repeats),
    ):
        given = entry.get(name)
        if wanted is not None and (given != wanted or isinstance(given, bool)):
            raise check.error(f"`{name}` of {path.name} must be {wanted!r}", given)
    count = check.integer("repeats", entry.get("repeats"), 1)
    invocations = check.integer("invocations_per_sample", entry.get("invocations_per_sample"), 1)
    found: dict[str, Any] = {
        "path": str(path),
        "runtime": check.text("runtime", entry.get("runtime")),
        "runtime_version": check.text("runtime_version", entry.get("runtime_version")),
        "threads": threads,
        "warmup": check.integer("warmup", entry.get("warmup")),
        "repeats": count,
        "invocations_per_sample": invocations,
        "size_bytes": path.stat().st_size,
    }
    if unit == "ms":
        longest = _DAY_MS
        if elapsed_s is not None:
            # Clocks of two machines differ a little, and a device may be asleep in between.
            longest = min(longest, (2000 * elapsed_s + 1000) / invocations)
        samples = [
            check.number("samples_ms", sample, minimum=_LEAST_MS, maximum=longest)
            for sample in check.list("samples_ms", entry.get("samples_ms"), count)
        ]
        found |= {**summarize(samples), "samples_ms": samples}
    else:
        counted = entry.get(unit)
        found[unit] = check.number(unit, counted, above=0, maximum=_MOST_COUNT)
    for name in ("peak_memory_bytes", "model_memory_bytes"):
        value = entry.get(name)
        found[name] = None if value is None else check.integer(name, value, 0, _MOST_BYTES)
    for name in ("load_ms", "first_inference_ms"):
        value = entry.get(name)
        found[name] = (
            None if value is None else check.number(name, value, minimum=0, maximum=_DAY_MS)
        )
    return found


def _conditions(check: AnswerCheck, value: Any) -> dict[str, Any]:
    told = check.mapping("conditions", value)
    found = {
        when: _moment(check, check.mapping(when, told.get(when) or {}))
        for when in ("before", "after")
    }
    for name in _CONDITIONS:
        earlier, later = found["before"][name], found["after"][name]
        if earlier is not None and later is not None and later < earlier:
            raise check.error(f"`{name}` must not go back", f"{earlier!r}, then {later!r}")
    return found


def _moment(check: AnswerCheck, told: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in _CONDITIONS:
        value = told.get(name)
        found[name] = None if value is None else check.number(name, value, minimum=0)
    load = told.get("load_average")
    found["load_average"] = (
        None
        if load is None
        else [check.number("load_average", v, minimum=0) for v in check.list("load_average", load)]
    )
    cpus = check.list("cpu_frequencies", told.get("cpu_frequencies") or [])[:_MOST_ENTRIES]
    found["cpu_frequencies"] = [
        _frequency(check, check.mapping("cpu_frequencies", entry)) for entry in cpus
    ]
    name = "temperatures_celsius"
    temperatures = check.mapping(name, told.get(name) or {})
    found[name] = {
        plain_text(zone): check.number(name, celsius, minimum=-300)
        for zone, celsius in list(temperatures.items())[:_MOST_ENTRIES]
    }
    return found


def _frequency(check: AnswerCheck, entry: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {
        name: None if entry.get(name) is None else check.text(name, entry[name])
        for name in ("cpu", "governor")
    }
    for name in _FREQUENCIES:
        value = entry.get(name)
        found[name] = None if value is None else check.number(name, value, minimum=0)
    return found
