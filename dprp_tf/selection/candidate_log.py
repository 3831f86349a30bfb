"""Every candidate a search looked at, on disk, so that an interrupted search goes on."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dprp_tf.costs.rank_space import Ranks
from dprp_tf.files.atomic import naming_failures, write_text
from dprp_tf.files.json_text import from_json, to_json

__all__ = ["CandidateLog"]

_VERSION = 1


class CandidateLog:
    """A file of JSON lines: a heading, then one line per candidate, written as it is evaluated.

    A search asks `known` before it evaluates a rank vector, so one that was interrupted replays
    what it did without computing it again. A line torn by a crash is dropped. Without a path the
    log lives in memory alone.

    Args:
        path: The file, such as `candidates.jsonl`; None for memory.
        layers: Layer names, in the order in which a line lists their ranks.
        identity: What the results depend on: weights, data, settings. A file of another identity
            is refused.
        fresh: Whether to discard what the file holds. Default False.

    Raises:
        ValueError: If the file is of another search, or no log at all.

    Example:

    >>> log = CandidateLog(None, ["a", "b"], "some model")
    >>> log.candidate({"a": (2,), "b": None}, accuracy=0.5)
    >>> log.known({"a": (2,), "b": None})
    {'accuracy': 0.5}
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        layers: Sequence[str],
        identity: str,
        *,
        fresh: bool = False,
    ) -> None:
        self._layers = tuple(layers)
        self._known: dict[str, dict[str, Any]] = {}
        self._path = None if path is None else Path(path)
        heading = {"version": _VERSION, "identity": identity, "layers": list(self._layers)}
        if self._path is None:
            return
        if fresh or not self._path.exists():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._path, json.dumps(heading) + "\n")
            return
        self._read(heading)

    def __len__(self) -> int:
        """The number of candidates."""
        return len(self._known)

    def known(self, ranks: Mapping[str, Ranks], kind: str = "candidate") -> dict[str, Any] | None:
        """Return what was found for a rank vector; None if it is new.

        Args:
            ranks: Ranks by layer; a layer left out is dense.
            kind: What was done with it, where a search does several things.

        Returns:
            The values given to `candidate`.
        """
        return self._known.get(self._key(ranks, kind))

    def candidate(self, ranks: Mapping[str, Ranks], kind: str = "candidate", **values: Any) -> None:
        """Add what was found for a rank vector to the log.

        Args:
            ranks: Ranks by layer; a layer left out is dense.
            kind: What was done with it.
            **values: What was found, JSON-ready; NaN and infinities are read again as NaN.
        """
        key = self._key(ranks, kind)
        self._known[key] = dict(values)
        if self._path is not None:
            line = {"kind": kind, "ranks": self._vector(ranks), **values}
            with naming_failures(self._path), self._path.open("a", encoding="utf-8") as file:
                file.write(to_json(line) + "\n")

    def _vector(self, ranks: Mapping[str, Ranks]) -> list[list[int] | None]:
        found = (ranks.get(name) for name in self._layers)
        return [None if entry is None else [int(rank) for rank in entry] for entry in found]

    def _key(self, ranks: Mapping[str, Ranks], kind: str) -> str:
        return f"{kind} {json.dumps(self._vector(ranks))}"

    def _read(self, heading: dict[str, Any]) -> None:
        assert self._path is not None
        lines = self._path.read_bytes().split(b"\n")
        try:
            found = from_json(lines[0].decode("utf-8"))
            same = isinstance(found, dict) and found == heading
        except (ValueError, RecursionError):
            same = False
        if not same:
            raise ValueError(
                f"{self._path} must be the log of this search: the same weights, data and "
                "settings. Received another; use another folder, or start afresh."
            )
        whole = len(lines[0]) + 1
        for line in lines[1:-1]:  # what follows the last newline is torn, or empty
            try:
                values = from_json(line.decode("utf-8"))
                kind, vector = str(values.pop("kind")), values.pop("ranks")
                if len(vector) != len(self._layers):
                    raise ValueError("ranks of other layers")
                if not _are_figures(kind, values):
                    raise ValueError("no figures of a candidate")
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                break
            # A figure that no JSON holds was written as missing; such an accuracy is the worst.
            gaps = {"accuracy": -math.inf}
            values = {
                name: gaps.get(name, math.nan) if value is None else value
                for name, value in values.items()
            }
            self._known[f"{kind} {json.dumps(vector)}"] = values
            whole += len(line) + 1
        if whole < self._path.stat().st_size:
            with self._path.open("r+b") as file:
                file.truncate(whole)


def _are_figures(kind: str, values: Mapping[str, Any]) -> bool:
    """Whether a line holds what searches take from it: numbers, or None for those it has not.

    A search by similarity has one number for each layer.
    """
    needed = {"similarity": ["similarity"], "similarity search": ["similarity", "accuracy"]}
    present = all(name in values for name in needed.get(kind, ["accuracy"]))
    by_layer = values.get("similarity") if kind == "similarity search" else {}
    if not isinstance(by_layer, dict):
        return False
    numbers = [*by_layer.values(), *(values[name] for name in values.keys() - {"similarity"})]
    if kind == "similarity":
        numbers.append(values.get("similarity"))
    return present and all(value is None or type(value) in (int, float) for value in numbers)
