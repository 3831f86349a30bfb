"""One process at a time in a folder."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import filelock

from dprp_tf.files.atomic import write_text

__all__ = ["alone_in", "run_lock"]

_LOCK = ".lock"
# A lock's own file is emptied by whoever asks for it, so the holder's name stands beside it.
_HOLDER = ".lock-holder"
# What file systems answer that have no such locks, some network drives among them.
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextlib.contextmanager
def run_lock(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Hold a run folder for this process; the system gives it free when the process ends or dies.

    Where a drive has no such locks, nothing is held.

    Args:
        folder: The run folder; made if missing.

    Yields:
        Nothing.

    Raises:
        OSError: If it can't be made or written.
        RuntimeError: If another process that still runs holds it.

    Example:

    >>> import tempfile
    >>> with run_lock(tempfile.mkdtemp()):
    ...     pass
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(folder, error) from error
    lock, holder = filelock.FileLock(folder / _LOCK), folder / _HOLDER
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout as error:
        named = ""
        with contextlib.suppress(OSError):  # it may end, and its name with it, this very moment
            named = holder.read_text(encoding="utf-8").strip()
        raise RuntimeError(
            f"`folder` must not be in use. Received: {folder}, in which process "
            f"{named or 'unknown'} is at work. Wait for it, stop it, or choose another folder."
        ) from error
    except NotImplementedError:
        pass  # filelock's answer on a drive without locks: the run goes on without one
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise _unusable(folder / _LOCK, error) from error
    try:
        # Renamed there, it replaces a link that would lead elsewhere.
        write_text(holder, str(os.getpid()))
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _unusable(path: Path, error: OSError) -> OSError:
    told = OSError(
        f"`folder` must be a folder that can be made and written. Received: {path} "
        f"({error.strerror or error}). Choose another folder."
    )
    told.errno = error.errno
    return told


@contextlib.contextmanager
def alone_in(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Wait until no other process is in a folder, and keep others waiting meanwhile.

    Args:
        folder: A folder that is there.

    Yields:
        Nothing.

    Example:

    >>> import tempfile
    >>> with alone_in(tempfile.mkdtemp()):
    ...     pass
    """
    with filelock.FileLock(Path(folder) / _LOCK):
        yield
