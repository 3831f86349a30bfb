"""What makes figures doubtful: of a benchmark once with every place, of data as it was seen."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dprp_tf.report.formatting import clean_name
from dprp_tf.report.loading import mapping, records, texts
from dprp_tf.report.tables.benchmarks import file_name, file_of_result, run_label

__all__ = ["BenchWarning", "bench_warnings", "data_warnings"]

_FIGURE = re.compile(r"\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True)
class BenchWarning:
    """Something that casts doubt on figures, on which, and what to do about it.

    Args:
        kind: What it is in two or three words, such as `"Busy machine"`.
        advice: What to do; empty where nothing is known.
        seen: What was seen, and the runs and files it concerns, such as `"local, 1 thread"`.

    Example:

    >>> BenchWarning("Busy machine", "Stop it.", (("a load of 4", ("local, 1 thread",)),)).kind
    'Busy machine'
    """

    kind: str
    advice: str
    seen: tuple[tuple[str, tuple[str, ...]], ...]


def bench_warnings(bench: Mapping[str, Any]) -> list[BenchWarning]:
    """Collect what makes figures doubtful, each once with all the places it concerns.

    Args:
        bench: Content of `bench.json`.

    Returns:
        Targets that failed first, then warnings in order of appearance. Those of one kind and
        with one advice stand together, a figure that differs among them as a range.

    Raises:
        ValueError: If `bench` isn't of the form that `dprp bench --output` writes.

    Example:

    >>> bench_warnings({"failures": [{"target": "ssh://pi@host:22", "threads": 1,
    ...                               "message": "can't be reached"}]})[0].kind
    'Not measured'
    """
    files = records(bench, "files")
    found: dict[tuple[str, str], _Sightings] = {}
    for failure in records(bench, "failures"):
        message = clean_name(failure.get("message", "unknown cause"))
        sightings = found.setdefault(("Not measured", ""), _Sightings())
        sightings.add(message, run_label(failure), files=0, file="")
    for run in records(bench, "runs"):
        results = records(run, "results")
        for index, result in enumerate(results):
            for text in texts(result, "warnings"):
                kind, seen, advice = _split(clean_name(text))
                sightings = found.setdefault((kind, advice), _Sightings())
                name = file_name(file_of_result(files, index, result))
                sightings.add(seen, run_label(run), files=len(results), file=name)
    return [
        BenchWarning(kind, advice, sightings.told()) for (kind, advice), sightings in found.items()
    ]


def data_warnings(part: Mapping[str, Any]) -> list[BenchWarning]:
    """Collect what a first look at a model and its data found.

    Args:
        part: Content of `results.json` or `bench.json`, whose `data` may hold `warnings`.

    Returns:
        The warnings in their order.

    Raises:
        ValueError: If `data` isn't an object.

    Example:

    >>> said = "Test split: drawn at random. Give test/<class>/."
    >>> data_warnings({"data": {"warnings": [said]}})[0].advice
    'Give test/<class>/.'
    """
    found = []
    for text in mapping(part, "data").get("warnings") or []:
        kind, seen, advice = _split(clean_name(text))
        found.append(BenchWarning(kind, advice, ((seen, ()),)))
    return found


class _Sightings:
    """What was seen where; sentences that differ in one figure become one with a range."""

    def __init__(self) -> None:
        # sentence without its figures -> figures -> run -> (files in it, names of those concerned)
        self._seen: dict[str, dict[tuple[str, ...], dict[str, tuple[int, list[str]]]]] = {}

    def add(self, text: str, run: str, files: int, file: str) -> None:
        figures = tuple(_FIGURE.findall(text))
        runs = self._seen.setdefault(_FIGURE.sub("{}", text.replace("{", "").replace("}", "")), {})
        _, names = runs.setdefault(figures, {}).setdefault(run, (files, []))
        names.append(file)

    def told(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        told = []
        for sentence, by_figures in self._seen.items():
            columns = list(zip(*by_figures, strict=True))
            varying = [place for place, column in enumerate(columns) if len(set(column)) > 1]
            if len(varying) > 1:
                told += [
                    (sentence.format(*figures), _places([runs]))
                    for figures, runs in by_figures.items()
                ]
                continue
            whole = [column[0] for column in columns]
            for place in varying:
                low, *_, high = sorted(columns[place], key=lambda figure: _amount(figure))
                whole[place] = f"{low} to {high}"
            told.append((sentence.format(*whole), _places(list(by_figures.values()))))
        return tuple(told)


def _amount(figure: str) -> float:
    return float(figure.replace(",", ""))


def _places(sightings: Sequence[Mapping[str, tuple[int, list[str]]]]) -> tuple[str, ...]:
    """Name a run alone where every file of it is concerned, else the files too."""
    concerned: dict[str, tuple[int, list[str]]] = {}
    for runs in sightings:
        for run, (files, names) in runs.items():
            concerned.setdefault(run, (files, []))[1].extend(names)
    return tuple(
        run if len(names) >= files else f"{', '.join(names)} on {run}"
        for run, (files, names) in concerned.items()
    )


def _split(text: str) -> tuple[str, str, str]:
    """Split "Kind: what was seen. What to do." into its parts; other texts are all seen."""
    kind, colon, rest = text.partition(": ")
    if not colon or len(kind) > 32:
        return "Warning", text, ""
    seen, _, advice = rest.partition(". ")
    return kind, seen.removesuffix("."), advice
