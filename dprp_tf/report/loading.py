"""Read what a run left in its folder, with one clear error for anything missing or broken."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dprp_tf.files.atomic import read_json

__all__ = ["RunData", "load_run", "mapping", "records", "texts"]


@dataclass(frozen=True)
class RunData:
    """What one run folder holds; a part that the run did not write is `None`.

    Args:
        folder: The run folder.
        ranks: Content of `ranks.json`, or `None`.
        history: Content of `history.json`, or `None`.
        results: Content of `results.json`, or `None`.
        bench: Content of `bench.json`, which `dprp bench --output` writes, or `None`.
        plan: Content of `plan.json`, a fold plan, or `None`.
        quantization: Content of `quantization.json`, a list of rows, or `None`.
        selection: Content of `selection.json`, which `dprp select` writes, or `None`.
        rank_plan: Content of `rank_plan.json`, the ranks it chose, or `None`.
        channel_plan: Content of `channel_plan.json`, the channels it chose, or `None`.
        joint_plan: Content of `joint_plan.json`, channels and ranks together, or `None`.
        candidates: How many candidates its log holds; `None` without one.

    Example:

    >>> RunData(Path("run"), ranks=None, history=None, results={"title": "A"}).results["title"]
    'A'
    """

    folder: Path
    ranks: dict[str, Any] | None = None
    history: dict[str, Any] | None = None
    results: dict[str, Any] | None = None
    bench: dict[str, Any] | None = None
    plan: dict[str, Any] | None = None
    quantization: list[dict[str, Any]] | None = None
    selection: dict[str, Any] | None = None
    rank_plan: dict[str, Any] | None = None
    channel_plan: dict[str, Any] | None = None
    joint_plan: dict[str, Any] | None = None
    candidates: int | None = None

    @property
    def plan_of_selection(self) -> dict[str, Any]:
        """What a selection chose, of whichever kind; empty where there is nothing."""
        return self.joint_plan or self.channel_plan or self.rank_plan or {}

    @property
    def chosen_channels(self) -> dict[str, Any] | None:
        """The plan of channels, that of a joint plan among them; `None` without one."""
        return self.channel_plan if not self.joint_plan else mapping(self.joint_plan, "channels")

    @property
    def chosen_ranks(self) -> dict[str, Any] | None:
        """The plan of ranks, that of a joint plan among them; `None` without one."""
        return self.rank_plan if not self.joint_plan else mapping(self.joint_plan, "ranks")


def load_run(run_folder: str | os.PathLike[str]) -> RunData:
    """Read every JSON file of a run folder that a report can show.

    Args:
        run_folder: Folder that a training run, a selection, the demo or a benchmark wrote.

    Returns:
        The contents; `None` for each file that is not there.

    Raises:
        FileNotFoundError: If the folder doesn't exist, or holds none of the files.
        ValueError: If a file isn't valid JSON, or isn't a JSON object (`quantization.json`: a
            list of objects).

    Example:

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "results.json").write_text('{"title": "Digits"}')
    >>> load_run(folder).results
    {'title': 'Digits'}
    """
    folder = Path(run_folder)
    if not folder.is_dir():
        what = "which is a file" if folder.exists() else "which does not exist"
        raise FileNotFoundError(
            f"`run_folder` must be a folder that a run wrote. Received: run_folder={folder}, "
            f"{what}. Run `dprp demo` or `dprp train` first, or give the folder it named."
        )
    plans = ("rank_plan", "channel_plan", "joint_plan")
    names = ("ranks", "history", "results", "bench", "plan", "selection", *plans)
    parts = {name: _read_object(folder / f"{name}.json") for name in names}
    quantization = _read_rows(folder / "quantization.json")
    if quantization is None and all(part is None for part in parts.values()):
        raise FileNotFoundError(
            "`run_folder` must hold ranks.json, history.json, results.json or selection.json, or "
            "at least bench.json, plan.json, rank_plan.json, channel_plan.json, joint_plan.json or "
            f"quantization.json. Received: run_folder={folder}, which holds none of them. Give the "
            "folder that `dprp demo`, `dprp train` or `dprp select` wrote, or the one given to "
            "`dprp bench --output`."
        )
    log = folder / "candidates.jsonl"
    # The first line is a heading, and one torn by a crash has no end.
    candidates = None
    with contextlib.suppress(FileNotFoundError):
        candidates = max(0, log.read_bytes().count(b"\n") - 1)
    return RunData(folder, **parts, quantization=quantization, candidates=candidates)


def _read_object(path: Path) -> dict[str, Any] | None:
    value = _read(path)
    if value is not None and not isinstance(value, dict):
        raise ValueError(
            f"{path} must hold a JSON object. Received: {type(value).__name__}. "
            "Repeat the run, or delete the file to report without it."
        )
    return value


def _read_rows(path: Path) -> list[dict[str, Any]] | None:
    value = _read(path)
    return None if value is None else records({path.name: value}, path.name)


def _read(path: Path) -> Any:
    try:
        return read_json(path)
    except FileNotFoundError:  # asked for at once: a run may remove it meanwhile
        return None
    except ValueError as error:
        raise ValueError(
            f"{path} must hold valid JSON. Received: a file that can't be read as JSON ({error}). "
            "Repeat the run, or delete the file to report without it."
        ) from error


def records(source: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """Return `source[key]` as a list of objects, empty where the key is absent."""
    value = source.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError(
            f"`{key}` must be a list of objects. Received: {key}={_short(value)}. "
            "Repeat the run that wrote it."
        )
    return value


def mapping(source: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return `source[key]` as an object, empty where the key is absent."""
    value = source.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(
            f"`{key}` must be an object. Received: {key}={_short(value)}. "
            "Repeat the run that wrote it."
        )
    return value


def texts(source: Mapping[str, Any], key: str) -> list[str]:
    """Return `source[key]` as a list of texts, empty where the key is absent.

    One text counts as a list of it.

    Example:

    >>> texts({"notes": "measured on noise"}, "notes"), texts({}, "notes")
    (['measured on noise'], [])
    """
    value = source.get(key)
    if isinstance(value, str):
        return [value]
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(
            f"`{key}` must be a list of texts. Received: {key}={_short(value)}. "
            "Repeat the run that wrote it."
        )
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
