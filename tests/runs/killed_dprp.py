"""Run `dprp` and kill the process at a moment of its file writing, as `kill -9` would.

python killed_dprp.py FOLDER MOMENT COMMAND...: MOMENT is `none`, `rename:N` (before the N-th file
is renamed to its name in FOLDER, counted from 1) or `rename:NAME:N` (the N-th of that name).
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any


def _kill_at(folder: Path, name: str | None, count: int) -> None:
    left = count

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event != "os.rename":
            return
        destination = Path(os.fsdecode(arguments[1]))
        if destination.parent == folder and name in (None, destination.name):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def main() -> None:
    """Arm the moment and run the command line."""
    folder, moment, *command = sys.argv[1:]
    if moment != "none":
        *name, count = moment.split(":")[1:]
        _kill_at(Path(folder), name[0] if name else None, int(count))
    sys.argv = ["dprp", *command]
    from dprp_tf.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
