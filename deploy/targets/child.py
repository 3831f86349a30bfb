"""A program of this machine whose time and words are limited, ended with all it started."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

__all__ = ["Child", "Ended", "LimitError", "run_limited"]

_BLOCK = 1 << 16
# Blocks that wait to be read; a program that goes on is stopped by its pipe.
_WAITING = 64
_MOST_COMPLAINTS = 1 << 20
_END_SECONDS = 10.0


class LimitError(Exception):
    """A program took too long or said too much; the message goes on after its name."""


@dataclass(frozen=True)
class Ended:
    """How a program ended.

    Args:
        returncode: Exit code; the negative number of the signal that ended it, if one did.
        stdout: What it printed.
        stderr: What it complained of.
    """

    returncode: int
    stdout: str
    stderr: str


class Child:
    """A program that runs while its context lasts.

    Nothing here waits beyond the time given, whatever the program does with its pipes. When the
    context is left, by an exception too, the program is ended if it has not, and with it all
    that it started.

    Args:
        command: The program and its arguments.
        seconds: How long all of it may take, above 0.
        most_bytes: How much it may print.
        talks: Whether it is sent something. Default False: it finds its input empty.
        environment: Its environment. Defaults to this process's.
        folder: Where it runs. Defaults to here.

    Raises:
        OSError: If it can't be started.

    Example:

    >>> import sys
    >>> with Child([sys.executable, "-c", "print(input())"], seconds=60, talks=True) as child:
    ...     child.send(b"one\\n")
    ...     child.line()
    b'one'
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        seconds: float,
        most_bytes: int = _MOST_COMPLAINTS,
        talks: bool = False,
        environment: Mapping[str, str] | None = None,
        folder: str | Path | None = None,
    ) -> None:
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._most = {"stdout": most_bytes, "stderr": _MOST_COMPLAINTS}
        self._said = {"stdout": bytearray(), "stderr": bytearray()}
        self._closed: set[str] = set()
        self._searched = 0
        self._over = threading.Event()
        self._blocks: queue.Queue[tuple[str, bytes | None]] = queue.Queue(_WAITING)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            cwd=folder,
            env=environment,
            # A group of its own, to be ended as a whole.
            start_new_session=True,
        )
        self._pumps: list[threading.Thread] = []
        try:
            for name in self._said:
                stream = getattr(self._process, name)
                pump = threading.Thread(target=self._pump, args=(name, stream), daemon=True)
                pump.start()
                self._pumps.append(pump)
        except BaseException:
            # Nobody has its context yet to leave.
            self.__exit__()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        self._close_input()
        if self._process.returncode is None:
            # Not waited for yet, so that its number is still its own.
            self._end_group()
            self._process.wait()
        until = time.monotonic() + 1
        while any(pump.is_alive() for pump in self._pumps) and time.monotonic() < until:
            with contextlib.suppress(queue.Empty):
                self._blocks.get(timeout=0.01)
        # Who left the group may hold a pipe open: then its reader goes with this process.
        for pump, name in zip(self._pumps, self._said, strict=False):
            if not pump.is_alive():
                getattr(self._process, name).close()

    def send(self, content: bytes) -> None:
        """Write to the program.

        Args:
            content: The bytes.

        Raises:
            LimitError: If it does not take them in time.
            BrokenPipeError: If it reads no more.
        """
        stream = self._process.stdin
        assert stream is not None
        failures: list[OSError] = []

        def write() -> None:
            rest = memoryview(content)
            try:
                while rest:
                    rest = rest[os.write(stream.fileno(), rest[: 1 << 20]) :]
            except (OSError, ValueError) as error:  # ValueError: it was closed meanwhile
                failures.append(BrokenPipeError(str(error)))

        writer = threading.Thread(target=write, daemon=True)
        writer.start()
        writer.join(max(0.0, self._deadline - time.monotonic()))
        if writer.is_alive():
            raise self._too_long()
        if failures:
            raise failures[0]

    def line(self) -> bytes | None:
        """Read the next line that it prints.

        Returns:
            The line without its newline; None at the end, also of a line that was broken off.

        Raises:
            LimitError: If it takes too long or prints too much.
        """
        said = self._said["stdout"]
        while (end := said.find(b"\n", self._searched)) < 0:
            self._searched = len(said)
            if "stdout" in self._closed:
                return None
            self._more()
        line = bytes(said[:end])
        del said[: end + 1]
        self._searched = 0
        return line

    def copy(self, size: int, path: Path) -> bool:
        """Write what it prints next into a file.

        Args:
            size: Bytes, 0 or more.
            path: The file.

        Returns:
            Whether as much came before its end.

        Raises:
            LimitError: If it takes too long or prints too much.
            OSError: If the file can't be written.
        """
        said, left = self._said["stdout"], size
        self._searched = 0
        with path.open("wb") as stream:
            while left:
                if not said:
                    if "stdout" in self._closed:
                        return False
                    self._more()
                    continue
                part = bytes(said[:left])
                stream.write(part)
                del said[: len(part)]
                left -= len(part)
        return True

    def finish(self, seconds: float | None = None) -> Ended:
        """Close its input and wait for its end.

        Args:
            seconds: How long from now on at most. Defaults to the time that is left.

        Returns:
            How it ended, with what it printed and nobody read.

        Raises:
            LimitError: If it takes too long or prints too much.
        """
        self._close_input()
        if seconds is not None:
            self._deadline = min(self._deadline, time.monotonic() + seconds)
            self._seconds = min(self._seconds, seconds)
        while len(self._closed) < len(self._said):
            self._more()
        try:
            self._process.wait(max(0.0, self._deadline - time.monotonic()))
        except subprocess.TimeoutExpired as error:
            raise self._too_long() from error
        return Ended(
            self._process.returncode,
            *(bytes(said).decode("utf-8", "replace") for said in self._said.values()),
        )

    def _more(self) -> None:
        """Take the next block of either stream, or note that it is closed."""
        try:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise self._too_long()
            name, block = self._blocks.get(timeout=left)
        except queue.Empty:
            raise self._too_long() from None
        if block is None:
            raise LimitError(f"said more than {self._most[name]:,} bytes")
        if block:
            self._said[name] += block
        else:
            self._closed.add(name)

    def _pump(self, name: str, stream: IO[bytes]) -> None:
        total = 0
        block: bytes | None = b" "
        while block:
            try:
                block = stream.read(_BLOCK)
            except (OSError, ValueError):
                block = b""
            total += len(block or b"")
            if total > self._most[name]:
                block = None
            while not self._over.is_set():
                try:
                    self._blocks.put((name, block), timeout=0.1)
                    break
                except queue.Full:
                    continue
            if self._over.is_set():
                return

    def _too_long(self) -> LimitError:
        return LimitError(f"came to no end in {self._seconds:,.3g} s")

    def _close_input(self) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def _end_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()


def run_limited(
    command: Sequence[str],
    *,
    seconds: float,
    most_bytes: int = _MOST_COMPLAINTS,
    environment: Mapping[str, str] | None = None,
    folder: str | Path | None = None,
) -> Ended:
    """Run a program to its end within limits, its input empty.

    Args:
        command: The program and its arguments.
        seconds: How long it may take, above 0.
        most_bytes: How much it may print. Defaults to a million.
        environment: Its environment. Defaults to this process's.
        folder: Where it runs. Defaults to here.

    Returns:
        How it ended.

    Raises:
        LimitError: If it takes too long or prints too much; it is ended then.
        OSError: If it can't be started.

    Example:

    >>> import sys
    >>> run_limited([sys.executable, "-c", "print(1)"], seconds=60).returncode
    0
    """
    with Child(
        command, seconds=seconds, most_bytes=most_bytes, environment=environment, folder=folder
    ) as child:
        return child.finish()
