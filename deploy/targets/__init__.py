"""Where exported files run: this machine, an emulated one, or one behind ssh or adb.

Importing this package starts nothing and loads no runtime.
"""

from __future__ import annotations

from collections.abc import Mapping

from dprp_tf.deploy.targets.adb import ADBTarget
from dprp_tf.deploy.targets.local import LocalTarget
from dprp_tf.deploy.targets.qemu import EmulatedTarget
from dprp_tf.deploy.targets.ssh import SSHTarget
from dprp_tf.deploy.targets.target import Target, TargetError

__all__ = [
    "TARGETS",
    "ADBTarget",
    "EmulatedTarget",
    "LocalTarget",
    "SSHTarget",
    "Target",
    "TargetError",
    "resolve_target",
]

# By what precedes the colon of a spec.
TARGETS: Mapping[str, type[Target]] = {
    "local": LocalTarget,
    "qemu": EmulatedTarget,
    "ssh": SSHTarget,
    "adb": ADBTarget,
}


def resolve_target(spec: str | Target) -> Target:
    """Turn what a user writes into a target.

    Args:
        spec: `"local"`, this machine; `"qemu:cortex-a72"` (or a53, a76), an emulated arm64 core;
            `"ssh://user@host[:port][?python=PATH&config=FILE&identity=FILE&timeout=SECONDS]"`;
            `"adb://serial[?binary=PATH&timeout=SECONDS]"`; or a target, which is given back.

    Returns:
        The target. Nothing is run or connected yet.

    Raises:
        ValueError: If the spec is none of these, or one of its parts is not allowed.

    Example:

    >>> resolve_target("ssh://pi@raspberrypi.local").spec
    'ssh://pi@raspberrypi.local:22'
    >>> resolve_target("raspberrypi")
    Traceback (most recent call last):
      ...
    ValueError: `target` must be like "local", "qemu:cortex-a72", "ssh://user@host:22" or \
"adb://serial". Received: target='raspberrypi'.
    """
    if isinstance(spec, Target):
        return spec
    kind = TARGETS.get(spec.partition(":")[0]) if isinstance(spec, str) else None
    if kind is None:
        *others, last = (f'"{each.example}"' for each in TARGETS.values())
        raise ValueError(
            f"`target` must be like {', '.join(others)} or {last}. Received: target={spec!r}."
        )
    try:
        return kind.from_spec(spec)
    except ValueError as error:
        if repr(spec) in str(error):
            raise
        raise ValueError(f"{error} It is part of target={spec!r}.") from error
