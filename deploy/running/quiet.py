"""Silence for converters and runtimes, whose progress chatter hides our own messages."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator

__all__ = ["quiet"]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Swallow Python and C++ chatter (stdout, stderr, logging, warnings) inside the block.

    Exceptions pass through untouched, so a failure still says what it has to say. The
    redirection of stderr holds for the whole process while the block runs.

    Yields:
        Nothing.

    Example:

    >>> with quiet():
    ...     print("not seen")
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            _silent_descriptor(2),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@contextlib.contextmanager
def _silent_descriptor(descriptor: int) -> Iterator[None]:
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
    try:
        saved = os.dup(descriptor)
    except OSError:  # the process was started without this stream
        yield
        return
    try:
        with open(os.devnull, "wb") as sink:
            os.dup2(sink.fileno(), descriptor)
        yield
    finally:
        os.dup2(saved, descriptor)
        os.close(saved)
