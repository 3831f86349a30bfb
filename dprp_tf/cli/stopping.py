"""How a command ends when it is told to: what it began is tidied up, and one line says so."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

__all__ = ["STOPPED", "StoppedError", "exit_code", "loading", "stop_behind", "told_to_stop"]

STOPPED = "stopped; what is finished is kept: the same command goes on"
# Ctrl-C, `kill` and what ends a service or a job, and a terminal that is closed.
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
_TWICE_S = 1.0
# Python drops what is raised while an object is collected, and TensorFlow's are at every moment.
_AGAIN_S = 0.05
# Where standard error is, of each `loading` that is entered.
_loading: list[int] = []


class StoppedError(KeyboardInterrupt):
    """A signal asked this process to end; it leaves every context like Ctrl-C.

    Args:
        number: The signal's number.

    Example:

    >>> exit_code(StoppedError(15))
    143
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def exit_code(stop: KeyboardInterrupt) -> int:
    """Return what a shell sees of a program that the signal ended.

    Args:
        stop: What was raised; Ctrl-C unless it says otherwise.

    Returns:
        128 and the signal's number, such as 130 for Ctrl-C.

    Example:

    >>> exit_code(KeyboardInterrupt())
    130
    """
    return 128 + (stop.number if isinstance(stop, StoppedError) else 2)


def stop_behind(error: BaseException) -> KeyboardInterrupt | None:
    """Return the request to stop that an exception came of.

    Python wraps what is raised while it makes a class, and tidying up after a request may fail.

    Args:
        error: What was raised.

    Returns:
        The request; None if there was none.

    Example:

    >>> stop_behind(ValueError("of another cause")) is None
    True
    """
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, KeyboardInterrupt):
        seen = seen.__cause__ or seen.__context__
    return seen


@contextlib.contextmanager
def told_to_stop() -> Iterator[None]:
    """Within it, signals that ask for an end raise `StoppedError`, which ends it in one line.

    Children are ended and temporary files removed on the way out, which a key that is pressed
    twice does not disturb; a signal after that ends the process at once. What the process was
    started to ignore, as `nohup` does with the closed terminal, stays ignored.

    Yields:
        Nothing.

    Raises:
        SystemExit: If it was stopped, with the exit code of the signal.

    Example:

    >>> with told_to_stop():
    ...     pass
    """
    known = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
    last = -math.inf

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal last
        now, before = time.monotonic(), last
        if _loading:
            _tell()
            os._exit(128 + number)
        last = now
        if now - before > _TWICE_S:
            raise StoppedError(number)

    def ask_again(lost: sys.UnraisableHookArgs) -> None:
        nonlocal last
        if not isinstance(lost.exc_value, StoppedError):
            reported(lost)
            return
        last = -math.inf
        again = threading.Timer(_AGAIN_S, os.kill, (os.getpid(), lost.exc_value.number))
        again.daemon = True
        again.start()

    reported, sys.unraisablehook = sys.unraisablehook, ask_again
    caught = [n for n in known if signal.getsignal(n) not in (signal.SIG_IGN, None)]
    for number in caught:
        signal.signal(number, stop)
    try:
        yield
    except KeyboardInterrupt as error:
        _tell()
        raise SystemExit(exit_code(error)) from None
    finally:
        # TensorFlow takes a while to leave, and nobody is there who could tell of a signal.
        for number in caught:
            signal.signal(number, signal.SIG_DFL)
        sys.unraisablehook = reported


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Within it nothing is begun that must be tidied up: told to stop, the process ends at once.

    An exception in the middle of TensorFlow's import would take the process down, or get lost.

    Yields:
        Nothing.

    Example:

    >>> with loading():
    ...     import json
    """
    with contextlib.ExitStack() as stack:
        # What silences the import silences descriptor 2.
        with contextlib.suppress(OSError):
            _loading.append(os.dup(2))
            stack.callback(lambda: os.close(_loading.pop()))
        yield


def _tell() -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone
        os.write(_loading[0] if _loading else 2, f"{STOPPED}\n".encode())
