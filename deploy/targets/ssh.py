"""A machine behind ssh as a target: a Raspberry Pi, a board, a server."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import shlex
import subprocess
import tempfile
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Self

from dprp_tf.deploy.targets.edge import RUNNER, EdgeRunnerTarget, Finished
from dprp_tf.deploy.targets.spec import split_spec
from dprp_tf.deploy.targets.target import TargetError
from dprp_tf.files.arguments import check_integer

__all__ = ["SSHTarget"]

_AGENT = Path(__file__).with_name("device_agent.py")
_MARK = b"dprp_tf: "
_MINIMUM_PYTHON = (3, 9)
_ADDRESS = re.compile(r"(?P<user>[^@]*)@(?P<host>\[[^\]]*\]|[^:]*)(:(?P<port>[0-9]+))?")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*(%[A-Za-z0-9_.-]+)?")
_MODULES = {
    ".tflite": (["ai_edge_litert", "tflite_runtime"], "ai-edge-litert"),
    ".onnx": (["onnxruntime"], "onnxruntime"),
}
_KEEP_ALIVE_SECONDS = 10
_KEEP_ALIVE_COUNT = 3
_END_SECONDS = 10


class SSHTarget(EdgeRunnerTarget):
    """A machine behind ssh that runs files with its own Python and runtime.

    One connection carries one measurement: `edge_runner.py`, models and inputs go there if the
    machine has not got them yet (by SHA-256, under `~/.cache/dprp_tf`, where what was unused for
    30 days is removed), run, and the answer comes back. When the connection ends, so does the run.

    Uses OpenSSH's `ssh` with your keys and agent; it never asks for a password. The machine's
    host key must be known already and no setting turns that off. The machine needs a POSIX shell
    for `user`, Python 3.9 or newer, numpy, and the runtime of the files: neither TensorFlow nor
    this library.

    Args:
        user: Name to log in with.
        host: Name or address, or a `Host` of your ssh configuration.
        port: Its port, 1 to 65535. Defaults to 22.
        python: The Python there: a name on its PATH, or a path from its root or from the home
            folder of `user`. Defaults to `"python3"`.
        config_file: ssh configuration file to use in place of the system's and yours. Defaults
            to these.
        connect_timeout: Seconds to wait for a connection, 1 or more. Defaults to 10.
        identity_file: Private key to log in with. Defaults to your agent's and ssh's own.

    Raises:
        ValueError: If an argument is out of range or could be taken for an option of ssh.
        FileNotFoundError: If `config_file` or `identity_file` does not exist.

    Example:

    >>> SSHTarget("pi", "raspberrypi.local", python="venv/bin/python").spec
    'ssh://pi@raspberrypi.local:22?python=venv/bin/python'
    """

    example = "ssh://user@host:22"

    def __init__(
        self,
        user: str,
        host: str,
        port: int = 22,
        python: str = "python3",
        config_file: str | Path | None = None,
        connect_timeout: int = 10,
        identity_file: str | Path | None = None,
    ) -> None:
        if not _USER.fullmatch(user):
            raise ValueError(
                "`user` must be a login name: letters, digits and _.+- and none of +-. first. "
                f"Received: user={user!r}."
            )
        if not _HOST.fullmatch(host):
            raise ValueError(f"`host` must be a host name or address. Received: host={host!r}.")
        check_integer("port", port, 1, 65535)
        if not python or python.startswith("-") or not python.isprintable():
            raise ValueError(
                f"`python` must name the Python of the device. Received: python={python!r}."
            )
        check_integer("connect_timeout", connect_timeout)
        self.user, self.host, self.port = user, host, port
        # No shell there expands ~, since every argument is quoted; it starts at home anyway.
        self.python = "./" + python.removeprefix("~/") if python.startswith("~/") else python
        self.connect_timeout = connect_timeout
        self.config_file = _existing(config_file, "config_file")
        self.identity_file = _existing(identity_file, "identity_file")
        address = f"[{host}]" if ":" in host else host
        self.spec = f"ssh://{user}@{address}:{port}"
        if python != "python3":
            self.spec += f"?python={urllib.parse.quote(python, safe='/~')}"

    @classmethod
    def from_spec(cls, spec: str) -> Self:
        """Make a target of its text.

        Args:
            spec: `ssh://user@host[:port]`, then perhaps `?python=PATH`, `config=FILE` or
                `identity=FILE`, joined by `&`. An IPv6 address stands in brackets.

        Returns:
            The target; nothing is connected yet.

        Raises:
            ValueError: If it is written otherwise, or a part is not allowed.
            FileNotFoundError: If the configuration or identity file does not exist.

        Example:

        >>> SSHTarget.from_spec("ssh://pi@[fe80::1]:2222").port
        2222
        """
        address, options = split_spec(spec, "ssh", ("python", "config", "identity"))
        found = _ADDRESS.fullmatch(address)
        if not found:
            raise ValueError(
                f"`target` must be written ssh://user@host[:port]. Received: target={spec!r}."
            )
        return cls(
            found["user"],
            found["host"].strip("[]"),
            int(found["port"] or 22),
            python=options.get("python", "python3"),
            config_file=options.get("config"),
            identity_file=options.get("identity"),
        )

    def _run(self, arguments: Sequence[str | Path], written: Path | None) -> Finished:
        sources: dict[tuple[str, str], Path] = {}
        numbered: list[str | int] = []
        for argument in (RUNNER, *arguments):
            if isinstance(argument, Path):
                key = _digest(argument), argument.suffix.lower()
                sources.setdefault(key, argument)
                numbered.append(list(sources).index(key))
            else:
                numbered.append(argument)
        suffixes = {suffix for _, suffix in sources} & set(_MODULES)
        modules = [_MODULES[suffix][0] for suffix in sorted(suffixes)]
        request = {
            "python": self.python,
            "files": [{"sha256": digest, "suffix": suffix} for digest, suffix in sources],
            "arguments": numbered,
            "modules": [["numpy"], *modules] if modules else [],
            "outputs": written is not None,
        }
        with self._conversation() as (send, receive):
            send(json.dumps(request).encode("ascii") + b"\n")
            answer = receive()
            self._check(answer)
            contents = list(sources.values())
            for position in answer["missing"]:
                content = contents[position].read_bytes()
                send(b"%d\n" % len(content))
                send(content)
            answer = receive()
        if written is not None and "outputs" in answer:
            written.write_bytes(base64.b64decode(answer["outputs"]))
        complaint = answer["stderr"]
        for remote, path in zip(answer["paths"], contents, strict=True):
            complaint = complaint.replace(remote, str(path))
        return Finished(int(answer["returncode"]), answer["stdout"], complaint)

    @contextlib.contextmanager
    def _conversation(self) -> Iterator[tuple[Any, Any]]:
        with tempfile.TemporaryFile() as errors:
            try:
                process = subprocess.Popen(
                    self._command(),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                )
            except FileNotFoundError as error:
                raise TargetError(
                    f"{self.spec} needs OpenSSH's client, and there is no `ssh` on the PATH of "
                    "this machine. Install it (Debian: apt install openssh-client)."
                ) from error
            assert process.stdin is not None
            assert process.stdout is not None
            to, back = process.stdin, process.stdout

            def ended() -> TargetError:
                _close(to)
                returncode = process.wait()
                errors.seek(0)
                return self._connection_failure(
                    returncode, errors.read().decode("utf-8", "replace")
                )

            def send(content: bytes) -> None:
                try:
                    to.write(content)
                    to.flush()
                except BrokenPipeError as error:
                    raise ended() from error

            def receive() -> dict[str, Any]:
                for line in back:
                    if line.startswith(_MARK):
                        answer = dict(json.loads(line.removeprefix(_MARK)))
                        if "error" in answer:
                            raise TargetError(f"{self.spec}: on the device: {answer['error']}.")
                        return answer
                raise ended()

            try:
                yield send, receive
            finally:
                _close(to)
                back.close()
                try:
                    process.wait(_END_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def _command(self) -> list[str]:
        options = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes",
            "ConnectTimeout": self.connect_timeout,
            "ServerAliveInterval": _KEEP_ALIVE_SECONDS,
            "ServerAliveCountMax": _KEEP_ALIVE_COUNT,
            # A connection shared with others has had its host key checked by other rules.
            "ControlMaster": "no",
            "ControlPath": "none",
            "ClearAllForwardings": "yes",
            "ForwardAgent": "no",
            "ForwardX11": "no",
            "PermitLocalCommand": "no",
            "RemoteCommand": "none",
            "LogLevel": "INFO",
        }
        command = ["ssh", "-T"]
        if self.config_file is not None:
            command += ["-F", str(self.config_file)]
        if self.identity_file is not None:
            command += ["-i", str(self.identity_file)]
            options["IdentitiesOnly"] = "yes"
        for name, value in options.items():
            command += ["-o", f"{name}={value}"]
        remote = [self.python, "-c", _AGENT.read_text(encoding="utf-8")]
        command += ["-p", str(self.port), "-l", self.user, "--", self.host]
        return [*command, " ".join(shlex.quote(word) for word in remote)]

    def _check(self, answer: dict[str, Any]) -> None:
        version = tuple(int(part) for part in answer["python"].split("."))
        if version < _MINIMUM_PYTHON:
            raise TargetError(
                f"{self.spec}: {self.python} there is Python {answer['python']}, and 3.9 or newer "
                "is needed. Name another with ?python=PATH."
            )
        if answer["absent"]:
            packages = {"numpy": "numpy"}
            packages |= {names[0]: package for names, package in _MODULES.values()}
            lacking = [packages[names[0]] for names in answer["absent"]]
            raise TargetError(
                f"{self.spec}: {self.python} there lacks {' and '.join(lacking)}. Install on the "
                f"device: {self.python} -m pip install {' '.join(lacking)}; or name another "
                "Python with ?python=PATH."
            )

    def _connection_failure(self, returncode: int, complaint: str) -> TargetError:
        lines = [line.strip() for line in complaint.splitlines() if line.strip()]
        last = lines[-1] if lines else f"exit code {returncode}"
        login = f"ssh -p {self.port} {self.user}@{self.host}"
        if "IDENTIFICATION HAS CHANGED" in complaint:
            return TargetError(
                f"{self.spec}: its host key is not the one known, so nothing was sent. If the "
                "device was set up anew, remove the old key (ssh-keygen -R) and connect once by "
                f"hand ({login}); if not, someone may stand between."
            )
        if "Host key verification failed" in complaint or "host key is known" in complaint:
            return TargetError(
                f"{self.spec}: its host key is not known, so nothing was sent. Add it: connect "
                f"once by hand ({login}), compare the fingerprint with the device's own "
                "(there: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub), and accept. ssh "
                f"says: {lines[0]}"
            )
        if "Permission denied" in complaint and returncode == 255:
            return TargetError(
                f"{self.spec} refuses the login. Only keys are used: ssh-copy-id -p {self.port} "
                f"{self.user}@{self.host} brings yours there. ssh says: {last}"
            )
        if returncode in (126, 127):
            return TargetError(
                f"{self.spec}: {self.python!r} can't be run there ({last}). Install Python 3.9 or "
                "newer, or name it with ?python=PATH."
            )
        if returncode == 255:
            return TargetError(
                f"{self.spec} can't be reached, or the connection was interrupted: {last}"
            )
        return TargetError(f"{self.spec}: Python failed there: {last}")


def _existing(path: str | Path | None, argument: str) -> Path | None:
    if path is None:
        return None
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"`{argument}` must name an existing file. Received: {argument}={path}."
        )
    return path.absolute()


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _close(stream: IO[bytes]) -> None:
    with contextlib.suppress(BrokenPipeError):
        stream.close()
