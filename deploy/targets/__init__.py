"""Where exported files run: this machine, an emulated one, or one behind ssh or adb.

Importing this package starts nothing and loads no runtime.
"""

from __future__ import annotations

from dprp_tf.deploy.targets.adb import ADBTarget
from dprp_tf.deploy.targets.local import LocalTarget
from dprp_tf.deploy.targets.ssh import SSHTarget
from dprp_tf.deploy.targets.target import Target, TargetError

__all__ = [
    "ADBTarget",
    "LocalTarget",
    "SSHTarget",
    "Target",
    "TargetError",
    "resolve_target",
]


def resolve_target(spec: str | Target) -> Target:
    """Turn what a user writes into a target.

    Args:
        spec: `"local"`, this machine; `"qemu:cortex-a72"` (or a53, a76), an emulated arm64 core;
            `"ssh://user@host[:port][?python=PATH&config=FILE&identity=FILE]"`;
            `"adb://serial[?binary=PATH]"`; or a target, which is given back.

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
    ValueError: `target` must be "local", "qemu:cortex-a72", "ssh://user@host[:port]" or \
"adb://serial". Received: target='raspberrypi'.
    """
    if isinstance(spec, Target):
        return spec
    if spec == "local":
        return LocalTarget()
    if isinstance(spec, str) and spec.startswith("qemu:"):
        from dprp_tf.deploy.targets.qemu import EmulatedTarget

        return EmulatedTarget(spec)
    if isinstance(spec, str) and spec.startswith("ssh://"):
        return SSHTarget.from_spec(spec)
    if isinstance(spec, str) and spec.startswith("adb://"):
        return ADBTarget.from_spec(spec)
    raise ValueError(
        '`target` must be "local", "qemu:cortex-a72", "ssh://user@host[:port]" or '
        f'"adb://serial". Received: target={spec!r}.'
    )
