"""The device's half of a conversation over ssh; its text is sent there, `python3 -c TEXT`.

It speaks lines of JSON, its own marked as the request says, so that neither a chatty login shell
nor an echo can be mistaken for it:

1. It reads a request: the mark, the Python to use, modules needed, files by SHA-256 and suffix,
   arguments, and how much may be said.
2. It tells its Python, which modules are absent, and which files it has not got.
3. It reads each missing file, its size on a line before, checks it and renames it into place.
4. It runs `edge_runner.py` and tells how that ended; the file of outputs, if there is one, follows
   that line as it is. If the connection ends before, or too much is said, it ends that.

Plain Python 3.7 in syntax, so that an old one can say that it is too old; no backslashes, which
some login shells would take for their own.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

__all__ = ["main"]

_KEPT_SECONDS = 30 * 24 * 3600
_BLOCK = 1 << 20


def main() -> int:
    """Answer the commands of one connection on standard input and output.

    Returns:
        Exit code: 0, or 1 if the other side went away.
    """
    request = json.loads(sys.stdin.buffer.readline() or b"{}")
    if not request:
        return 1
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    answer: Any = {"python": version, "absent": [], "missing": []}
    answer["absent"] = [
        names for names in request["modules"] if not any(map(importlib.util.find_spec, names))
    ]
    mark = request["mark"]
    if sys.version_info < (3, 9) or answer["absent"]:
        _tell(mark, answer)
        return 0
    try:
        folder = _folder()
        paths = [os.path.join(folder, name) for name in map(_file_name, request["files"])]
        answer["missing"] = [
            position
            for position, path in enumerate(paths)
            if _digest(path) != request["files"][position]["sha256"]
        ]
        _tell(mark, answer)
        for position in answer["missing"]:
            if not _receive(paths[position], request["files"][position]["sha256"]):
                return 1
        for path in paths:
            os.utime(path)
    except OSError as error:
        _tell(mark, {"error": str(error)})
        return 0
    return _run(request, paths)


def _run(request: Any, paths: Any) -> int:
    with tempfile.TemporaryDirectory() as folder:
        written = os.path.join(folder, "outputs.npz")
        # As the user named it: a wrapper may set what its interpreter needs.
        command = [request["python"]]
        command += [
            argument if isinstance(argument, str) else paths[argument]
            for argument in request["arguments"]
        ]
        if request["outputs"]:
            command += ["--outputs", written]
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as complaints:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=complaints,
                start_new_session=True,
            )
            while child.poll() is None:
                # The other side sends no more: what can be read now is the end of the stream.
                left = select.select([0], [], [], 0.1)[0] and not os.read(0, 1)
                if left or _too_much(request, out, complaints):
                    os.killpg(child.pid, signal.SIGKILL)
                    child.wait()
                    if left:
                        return 1
            if _too_much(request, out, complaints):
                said = "edge_runner.py said more than {:,} bytes".format(request["most"])
                _tell(request["mark"], {"error": said})
                return 0
            answer = {
                "returncode": child.returncode,
                "stdout": _text(out),
                "stderr": _text(complaints),
                "paths": paths,
            }
        if not request["outputs"] or not os.path.exists(written):
            _tell(request["mark"], answer)
            return 0
        with open(written, "rb") as stream:
            answer["outputs"] = os.fstat(stream.fileno()).st_size
            _tell(request["mark"], answer)
            for block in iter(lambda: stream.read(_BLOCK), b""):
                sys.stdout.buffer.write(block)
            sys.stdout.buffer.flush()
    return 0


def _too_much(request: Any, *streams: Any) -> bool:
    return any(os.fstat(stream.fileno()).st_size > request["most"] for stream in streams)


def _text(stream: Any) -> str:
    stream.seek(0)
    return stream.read().decode("utf-8", "replace")


def _folder() -> str:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = os.path.join(cache, "dprp_tf", "device")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        try:
            if time.time() - os.stat(path).st_mtime > _KEPT_SECONDS:
                os.unlink(path)
        except OSError:
            pass  # another conversation was quicker
    return folder


def _file_name(entry: Any) -> str:
    return entry["sha256"] + entry["suffix"]


def _digest(path: str) -> str:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as stream:
            for block in iter(lambda: stream.read(_BLOCK), b""):
                digest.update(block)
    except OSError:
        return ""
    return digest.hexdigest()


def _receive(path: str, expected: str) -> bool:
    left = int(sys.stdin.buffer.readline() or b"-1")
    beside = f"{path}.{os.getpid()}.part"
    try:
        with open(beside, "wb") as stream:
            while left > 0:
                block = sys.stdin.buffer.read(min(left, _BLOCK))
                if not block:
                    return False
                stream.write(block)
                left -= len(block)
        if left < 0:
            return False
        if _digest(beside) != expected:
            raise OSError("a file changed while it was sent")
        os.replace(beside, path)
    finally:
        if os.path.exists(beside):
            os.unlink(beside)
    return True


def _tell(mark: str, answer: Any) -> None:
    text = mark + json.dumps(answer) + os.linesep
    sys.stdout.buffer.write(text.encode("ascii"))
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main())
