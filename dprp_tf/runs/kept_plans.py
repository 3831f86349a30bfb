"""The plan that a selection keeps in its folder, by what it cuts, and what it was chosen for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np

from dprp_tf.channels import channel_groups
from dprp_tf.costs.channel_plan import ChannelPlan
from dprp_tf.costs.joint_plan import JointPlan
from dprp_tf.costs.rank_plan import RankPlan
from dprp_tf.files.digests import digest_of
from dprp_tf.selection.candidate_log import CandidateLog

__all__ = ["CANDIDATES", "KeptPlan", "kept_plan", "load_plan", "plan_path", "require_same_choice"]

CANDIDATES = "candidates.jsonl"

KeptPlan = RankPlan | ChannelPlan | JointPlan

_PLANS: Mapping[str, tuple[str, type[KeptPlan]]] = {
    "ranks": ("rank_plan.json", RankPlan),
    "channels": ("channel_plan.json", ChannelPlan),
    "both": ("joint_plan.json", JointPlan),
}


def plan_path(folder: str | os.PathLike[str], cut: str) -> Path:
    """Return where a selection keeps its plan.

    Args:
        folder: Its folder.
        cut: What it cuts: `"ranks"`, `"channels"` or `"both"`.

    Returns:
        The path of the file, which may not be there yet.

    Example:

    >>> plan_path("runs/mine", "both").name
    'joint_plan.json'
    """
    return Path(folder) / _PLANS[cut][0]


def load_plan(folder: str | os.PathLike[str], cut: str) -> KeptPlan:
    """Read the plan that a selection left in its folder.

    Args:
        folder: The folder.
        cut: What it cut: `"ranks"`, `"channels"` or `"both"`.

    Returns:
        The plan.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If the file holds something else.

    Example:

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = ChannelPlan("l1", 8, {}, (), {}, {}).save(folder / "channel_plan.json")
    >>> load_plan(folder, "channels").method
    'l1'
    """
    return _PLANS[cut][1].load(plan_path(folder, cut))


def kept_plan(folder: Path, cut: str) -> KeptPlan | None:
    """Return the plan of a folder; None if none is there yet.

    Args:
        folder: The folder.
        cut: What is cut: `"ranks"`, `"channels"` or `"both"`.

    Returns:
        The plan.

    Raises:
        ValueError: If the file holds something else.

    Example:

    >>> import tempfile
    >>> kept_plan(Path(tempfile.mkdtemp()), "ranks") is None
    True
    """
    return load_plan(folder, cut) if plan_path(folder, cut).exists() else None


def require_same_choice(
    folder: Path, model: keras.Model, held_out: tuple[np.ndarray, np.ndarray]
) -> None:
    """Refuse a folder whose plan is, or was to be, of other weights or chosen with other samples.

    Args:
        folder: The folder, which remembers them if it is new.
        model: The dense model.
        held_out: Labelled samples to choose with.

    Raises:
        ValueError: If they are others.
    """
    identity = digest_of((*model.get_weights(), *held_out))
    CandidateLog(folder / CANDIDATES, list(channel_groups(model)), identity)
