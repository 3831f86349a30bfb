"""One process at a time in a run folder."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["run_lock"]

# What file systems answer that have no such locks, some network drives among them.
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextlib.contextmanager
def run_lock(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Hold a run folder for this process; the system gives it free when the process ends or dies.

    Where there are no such locks (Windows, some network drives) nothing is held.

    Args:
        folder: The run folder; made if missing.

    Yields:
        Nothing.

    Raises:
        RuntimeError: If another process that still runs holds it.

    Example:

    >>> import tempfile
    >>> with run_lock(tempfile.mkdtemp()):
    ...     pass
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        yield
        return
    with (folder / ".lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise RuntimeError(
                f"`folder` must not be in use. Received: {folder}, in which process {holder} is "
                "training. Wait for it, stop it, or choose another folder."
            ) from error
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
