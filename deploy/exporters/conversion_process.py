"""The process that TensorFlow Lite's converter runs in: where it crashes, the user's goes on."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from dprp_tf.deploy.exporters.conversion_worker import convert_saved, failure
from dprp_tf.deploy.running.quiet import quiet

__all__ = ["CONVERTER", "ConversionError", "ConversionProcess", "ConverterDiedError"]

_WORKER = Path(__file__).with_name("conversion_worker.py")
# Seconds: for the import of TensorFlow from a slow disk, and until an unused process ends.
_START = 300
_IDLE = 600
# Whether a process can be told by the system that another has ended.
_HAS_LIFELINES = hasattr(signal, "SIGIO") and hasattr(os, "O_ASYNC")
# Lines of C++ logs that only inform.
_CHATTER = re.compile(r"[IW]\d{4} |WARNING: All log messages")


class ConversionError(Exception):
    """The converter refused a graph; the message is the converter's."""


class ConverterDiedError(Exception):
    """The converter's process ended in the middle of a conversion.

    Args:
        code: Its exit code; the negative number of the signal that ended it, if one did.
        said: The end of what it wrote to stderr.

    Example:

    >>> ConverterDiedError(134, "Check failed")
    ConverterDiedError('exit code 134: Check failed')
    """

    def __init__(self, code: int, said: str = "") -> None:
        self.code = code
        cause = f"exit code {code}"
        if code < 0:
            cause = f"signal {-code}"
            with contextlib.suppress(ValueError):  # real-time signals have no names
                cause = signal.Signals(-code).name
        super().__init__(f"{cause}: {said}" if said else cause)

    @property
    def from_outside(self) -> bool:
        """Whether something else ended it: no fault of its own ends a process in this way."""
        return self.code == -getattr(signal, "SIGKILL", 0)


class ConversionProcess:
    """One process that converts saved graphs, started when first needed and again after a crash.

    It ends with this process, however that ends, or after ten minutes without work; a fork of this
    process starts one of its own. Threads take turns. Where no process can be started, conversions
    run in this one.

    Args:
        command: What to start; it must talk as `conversion_worker.py` does. Where the system has
            such things, it gets one more argument, the descriptor of a pipe that is open for as
            long as this process lives.

    Example:

    >>> process = ConversionProcess([sys.executable, "-P", str(_WORKER), "600"])
    >>> process.start()
    >>> process.stop()
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.command = list(command)
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._complaints: IO[bytes] | None = None
        self._lifeline: IO[bytes] | None = None
        self._ready = False
        self._impossible = not sys.executable or getattr(sys, "frozen", False)
        self._crashed = False

    def start(self) -> None:
        """Start the process in the background, if none runs, so that it is ready when needed."""
        if self._lock.acquire(blocking=False):
            try:
                self._start()
            finally:
                self._lock.release()

    def convert(self, request: Mapping[str, Any]) -> None:
        """Have a request carried out; see `convert_saved`.

        Args:
            request: What `convert_saved` takes.

        Raises:
            ConversionError: If the converter refuses the graph.
            ConverterDiedError: If its process ends.
        """
        with self._lock:
            self._start()
            try:
                answer = self._ask(request)
            except BaseException:  # Ctrl-C too: it must not go on for nobody
                self._stop()
                raise
        if answer is None:
            _convert_here(request)
        elif answer["error"] is not None:
            raise ConversionError(answer["error"])

    def stop(self) -> None:
        """End the process, whatever it is doing; the next conversion starts another."""
        self._stop()

    def forget(self) -> None:
        """Leave the process to the one that this process was forked from."""
        if self._process is not None:
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            if self._lifeline is not None:
                self._lifeline.close()
            self._process.returncode = 0  # no child of this process, so nothing to wait for
        self._reset()

    def _start(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            self._stop()  # it was idle for long
        if self._process is not None or self._impossible:
            return
        # Without buffers: a fork would copy their locks, held by whichever thread converts.
        self._complaints = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        handed: list[int] = []
        if _HAS_LIFELINES:
            end, own = os.pipe()
            handed, self._lifeline = [end], os.fdopen(own, "wb", buffering=0)
        try:
            self._process = subprocess.Popen(
                [*self.command, *map(str, handed)],
                pass_fds=handed,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._complaints,
                bufsize=0,
                env=_environment(),
                # Ctrl-C is for this process, which then ends that one.
                start_new_session=True,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        except OSError:
            self._give_up()
        finally:
            for end in handed:
                os.close(end)

    def _ask(self, request: Mapping[str, Any]) -> Any:
        """Return the process's answer; None if there is no process to be had."""
        process = self._process
        if process is not None and not self._ready:
            # Whatever was started, it may never answer.
            alarm = threading.Timer(_START, process.kill)
            alarm.daemon = True
            alarm.start()
            self._ready = _answer(process) == "ready"
            alarm.cancel()
            if not self._ready:
                self._give_up()
        if process is None or not self._ready:
            return None
        assert process.stdin is not None
        with contextlib.suppress(OSError):  # it died meanwhile: then there is no answer
            process.stdin.write(json.dumps(request).encode() + b"\n")
        answer = _answer(process)
        if answer is None:
            self._crashed = True
            raise ConverterDiedError(process.wait(), self._said())
        return answer

    def _give_up(self) -> None:
        said = self._said()
        self._stop()
        if self._crashed:  # and so would this process
            raise OSError(
                "The converter's process must start again after a crash. Received: no answer from "
                f"it ({said or 'it said nothing'}). Free memory, and start Python anew."
            )
        self._impossible = True

    def _said(self) -> str:
        if self._complaints is None:
            return ""
        self._complaints.seek(max(0, self._complaints.seek(0, os.SEEK_END) - 4096))
        lines = self._complaints.read().decode(errors="replace").splitlines()
        told = [line.strip() for line in lines if line.strip() and not _CHATTER.match(line)]
        return " ".join(told[-3:])[-300:]

    def _stop(self) -> None:
        process, kept = self._process, (self._complaints, self._lifeline)
        self._process, self._complaints, self._lifeline, self._ready = None, None, None, False
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):  # what was not sent is not needed
                        pipe.close()
        for file in kept:
            if file is not None:
                file.close()


def _answer(process: subprocess.Popen[bytes]) -> Any:
    """Read a line of JSON; None if the process ended, or says something else."""
    assert process.stdout is not None
    line = b""
    while not line.endswith(b"\n"):
        part = process.stdout.read(65536)
        if not part:
            return None
        line += part
    try:
        return json.loads(line)
    except ValueError:
        return None


def _environment() -> dict[str, str]:
    """The variables with which another Python finds what this one does, and leaves GPUs alone."""
    return {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "-1",
        "PYTHONPATH": os.pathsep.join(str(folder) for folder in sys.path if folder),
    }


def _convert_here(request: Mapping[str, Any]) -> None:
    with quiet():
        try:
            convert_saved(request)
        except Exception as error:  # the converter's exceptions share no public base class
            raise ConversionError(failure(error)) from error


# Not as a module: the folder that this file lies in holds an `onnx.py`.
CONVERTER = ConversionProcess([sys.executable, "-W", "ignore", "-P", str(_WORKER), str(_IDLE)])
atexit.register(CONVERTER.stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=CONVERTER.forget)
