"""Let the workers of a training find each other before TensorFlow waits for them without end."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["meet"]

_PAUSE = 0.2
_LARGEST = 1 << 20


def meet(
    addresses: Sequence[str],
    index: int,
    terms: Mapping[str, Any],
    *,
    timeout: float,
) -> None:
    """Wait until every worker has connected, and refuse workers with other settings.

    Worker 0 listens at its own address, the others call; nothing stays open afterwards, so the
    address is free for what is to serve there.

    Args:
        addresses: `host:port` of every worker.
        index: Which of them this is.
        terms: What must be equal on all workers, JSON values by name.
        timeout: Seconds to wait for the others, above 0.

    Raises:
        ValueError: If workers were started with different terms; the message names them.
        TimeoutError: If a worker does not come in time.
        OSError: If worker 0's address can't be listened at.

    Example:

    >>> meet(["localhost:0"], 0, {}, timeout=1.0)
    """
    if len(addresses) == 1:
        return
    deadline = time.monotonic() + timeout
    own = {"index": index, "workers": list(addresses), **json.loads(json.dumps(terms))}
    complaint = (
        _listen(addresses, own, deadline, timeout)
        if index == 0
        else _call(addresses, own, deadline, timeout)
    )
    if complaint:
        raise ValueError(complaint)


def _listen(
    addresses: Sequence[str], own: Mapping[str, Any], deadline: float, timeout: float
) -> str:
    host, port = _split(addresses[0])
    callers: dict[int, socket.socket] = {}
    complaint = ""
    try:
        with _server(host, port) as server:
            while not complaint and len(callers) < len(addresses) - 1:
                server.settimeout(max(deadline - time.monotonic(), 0.001))
                try:
                    caller, _ = server.accept()
                    caller.settimeout(max(deadline - time.monotonic(), 0.001))
                    theirs = _read(caller)
                except TimeoutError:
                    missing = [i for i in range(1, len(addresses)) if i not in callers]
                    names = ", ".join(f"{i} ({addresses[i]})" for i in missing)
                    raise TimeoutError(
                        f"{len(addresses)} workers must come. Within {timeout:g} seconds worker "
                        f"{names} did not. Start it with the same command and its own index."
                    ) from None
                except (OSError, ValueError):
                    continue  # not a worker, or one that has gone again
                place = theirs.get("index")
                if place in callers or place == 0:
                    complaint = f"Each worker must have its own index. Received twice: {place}"
                complaint = complaint or _difference(own, theirs)
                if isinstance(place, int):
                    callers[place] = caller
        for caller in callers.values():
            caller.sendall(json.dumps({"complaint": complaint}).encode() + b"\n")
        for caller in callers.values():
            # They hang up first: the waiting that ends a connection is then not at our address.
            caller.settimeout(_PAUSE * 10)
            with contextlib.suppress(OSError):
                caller.recv(1)
    finally:
        for caller in callers.values():
            caller.close()
    return complaint


def _call(addresses: Sequence[str], own: Mapping[str, Any], deadline: float, timeout: float) -> str:
    host, port = _split(addresses[0])
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(
                f"Worker 0 must listen at {addresses[0]}. Within {timeout:g} seconds it did not "
                "let all workers begin. Start every worker, and look at worker 0's messages."
            )
        try:
            with socket.create_connection((host, port), timeout=left) as connection:
                connection.settimeout(left)
                connection.sendall(json.dumps(own).encode() + b"\n")
                return str(_read(connection).get("complaint", ""))
        except (OSError, ValueError):
            time.sleep(min(_PAUSE, max(left, 0.0)))


def _difference(own: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    names = sorted(
        name
        for name in own.keys() | theirs.keys()
        if name != "index" and own.get(name) != theirs.get(name)
    )
    if not names:
        return ""
    details = "; ".join(f"{name}: {own.get(name)!r} and {theirs.get(name)!r}" for name in names)
    return (
        "All workers must be started alike. Received different values on worker 0 and worker "
        f"{theirs.get('index')}: {details}"
    )


def _server(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port))
    except OSError:
        # A public address need not be one of the machine's own, as behind a forwarded port.
        return socket.create_server(("", port))


def _read(connection: socket.socket) -> dict[str, Any]:
    line = b""
    while not line.endswith(b"\n"):
        part = connection.recv(65536)
        line += part
        if not part or len(line) > _LARGEST:
            raise ValueError("no whole line came")
    value = json.loads(line)
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)
