"""Whose folder it is: no command writes over what another one, or a person, has put there."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from dprp_tf.files.atomic import read_json

__all__ = [
    "COMPRESSION",
    "DEMO",
    "REPRODUCTION",
    "SELECTION",
    "TRAINING",
    "Owner",
    "owner_of",
    "require_own",
]


@dataclass(frozen=True)
class Owner:
    """What a command keeps in its folder.

    Attributes:
        what: What the folder holds then, such as "a training run".
        mark: The file that says so, written before any other.
        keys: Entries of that file which no other owner's has.
        writes: What the command writes over or removes there, as patterns.
    """

    what: str
    mark: str
    keys: tuple[str, ...]
    writes: tuple[str, ...]

    def owns(self, folder: Path) -> bool:
        """Say whether the folder has the mark."""
        try:
            found = read_json(folder / self.mark)
        except (OSError, ValueError):
            return False
        return isinstance(found, dict) and set(self.keys) <= set(found)

    def held(self, folder: Path) -> list[str]:
        """Return what the folder holds of what the owner writes, the mark's file among it."""
        found = (path for entry in (self.mark, *self.writes) for path in folder.glob(entry))
        return sorted({path.relative_to(folder).as_posix() for path in found})

    def discard(self, folder: Path) -> None:
        """Remove what the owner writes there.

        The mark goes last: what is left by an interruption still says whose it is.
        """
        for name in self.held(folder):
            if (folder / name).is_dir():
                shutil.rmtree(folder / name, ignore_errors=True)
            elif name != self.mark:
                (folder / name).unlink()
        (folder / self.mark).unlink(missing_ok=True)


_REPORT = ("report.html", "plots/*.png")
_FILES = ("tflite", "onnx")
_CHECKPOINTS = "checkpoint-[0-9][0-9][0-9][0-9]*.keras"

TRAINING = Owner(
    "a training run",
    "config.json",
    ("settings", "data"),
    (
        *("state.json", "history.json", "ranks.json", "results.json", "run_latency.json"),
        *("first_look.json",),
        *("model.keras", "folded.keras", "teacher.keras", _CHECKPOINTS, *_REPORT),
    ),
)
SELECTION = Owner(
    "a selection",
    "config.json",
    ("budget", "decomposition"),
    (
        *("candidates.jsonl", "bsr.json", "rank_plan.json", "rank_plan.png", "selection.json"),
        *("channel_plan.json", "channel_plan.png", "joint_plan.json", "latency.json"),
        *("widths.json", "cut.keras", "model.keras", "regularized", "tuned", "similarity", "less"),
        *(f"{model}_*.{kind}" for model in ("dense", "cut", "tuned") for kind in _FILES),
        *_REPORT,
    ),
)
DEMO = Owner(
    "a demo",
    "config.json",
    ("demo",),
    (
        *("history.json", "ranks.json", "results.json", "plan.json", "plans/*.json"),
        *("widths.json", "joint_plan.json"),
        *(f"{model}_*.{kind}" for model in ("dense", "dprp", "cut") for kind in _FILES),
        *_REPORT,
    ),
)
REPRODUCTION = Owner(
    "results of a row",
    "result.json",
    ("row", "paper"),
    ("history.json", "ranks.json", "plots/*.png"),
)
COMPRESSION = Owner(
    "a search for the best file",
    "config.json",
    ("compression",),
    (
        *("clock.json", "dense.json", "widths.json", "study.sqlite3", "results.json"),
        "joint_plan.json",
        *("candidates", "files", "best.keras", "best.tflite", "best.onnx", *_REPORT),
    ),
)
_OWNERS = (TRAINING, SELECTION, DEMO, REPRODUCTION, COMPRESSION)


def owner_of(folder: str | os.PathLike[str]) -> Owner | None:
    """Return whose a folder is, by the mark in it.

    Args:
        folder: The folder; it may be missing.

    Returns:
        The owner; None for a folder without a mark.

    Example:

    >>> import tempfile
    >>> place = Path(tempfile.mkdtemp())
    >>> _ = (place / "config.json").write_text('{"settings": {}, "data": "digits"}')
    >>> owner_of(place) is TRAINING
    True
    """
    return next((owner for owner in _OWNERS if owner.owns(Path(folder))), None)


def require_own(folder: str | os.PathLike[str], owner: Owner) -> None:
    """Refuse a folder in which a command would write over what is not its own.

    Args:
        folder: The folder; it may be missing.
        owner: Who is to write there.

    Raises:
        ValueError: If the folder lacks the owner's mark, and holds the mark's file or one that
            the owner would write; the message names them, and whose they are.

    Example:

    >>> import tempfile
    >>> place = Path(tempfile.mkdtemp())
    >>> require_own(place, TRAINING)
    >>> _ = (place / "model.keras").write_bytes(b"someone's")
    >>> try:
    ...     require_own(place, TRAINING)
    ... except ValueError as error:
    ...     print(str(error).replace(str(place), "runs/mine"))
    `folder` must be new or hold a training run. Received: runs/mine, which holds files of \
another origin: model.keras; give another folder, or move them away.
    """
    place = Path(folder)
    if owner.owns(place):
        return
    held = owner.held(place)
    if not held:
        return
    others = [other.what for other in _OWNERS if other.owns(place)]
    raise ValueError(
        f"`folder` must be new or hold {owner.what}. Received: {place}, which holds "
        f"{others[0] if others else 'files of another origin'}: {', '.join(held)}; give another "
        "folder, or move them away."
    )
