"""A real PostgreSQL server of the tests' own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


def _programs() -> Path | None:
    """Where initdb and postgres are; Debian keeps them off the path."""
    found = shutil.which("postgres")
    if found:
        return Path(found).resolve().parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return folders[-1] if folders else None


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The address of a database on a server that ends with the tests."""
    programs = _programs()
    if programs is None:
        pytest.skip("no PostgreSQL here: install Debian's package postgresql")
    # The server refuses to run as root.
    user = "postgres" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        if user is not None:
            shutil.chown(folder, user)
        place = Path(folder) / "data"
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        subprocess.run(
            [programs / "initdb", "-D", place, "-U", "dprp", "-A", "trust", "--no-sync"],
            check=True,
            capture_output=True,
            user=user,
            cwd=folder,
        )
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "unix_socket_directories": folder,
            "fsync": "off",
        }
        given = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        process = subprocess.Popen(
            [programs / "postgres", "-D", place, *given],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=user,
            cwd=folder,
        )
        try:
            address = f"postgresql://dprp@127.0.0.1:{port}/postgres"
            _wait(address)
            yield address
        finally:
            # At once, whoever is still connected.
            process.send_signal(signal.SIGINT)
            process.wait(30)


def _wait(address: str) -> None:
    psycopg = pytest.importorskip("psycopg")
    for _ in range(100):
        try:
            psycopg.connect(address, connect_timeout=2).close()
        except psycopg.OperationalError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError("the server did not begin")


@pytest.fixture
def database(server: str, request: pytest.FixtureRequest) -> str:
    """The address of a new database."""
    import psycopg

    name = f"d{abs(hash(request.node.nodeid)):x}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return server.rpartition("/")[0] + f"/{name}"
