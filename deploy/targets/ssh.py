"""A machine behind ssh as a target: a Raspberry Pi, a board, a server."""

from __future__ import annotations

import hashlib
import re
import secrets
import shlex
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from dprp_tf.deploy.targets.answers import AnswerCheck, plain_text
from dprp_tf.deploy.targets.child import Child, Ended, LimitError
from dprp_tf.deploy.targets.edge import RUNNER, EdgeRunnerTarget
from dprp_tf.deploy.targets.limits import Limits, check_timeout
from dprp_tf.deploy.targets.spec import split_spec
from dprp_tf.deploy.targets.target import TargetError
from dprp_tf.files.arguments import check_integer
from dprp_tf.files.json_text import from_json, to_json

__all__ = ["SSHTarget"]

_AGENT = Path(__file__).with_name("device_agent.py")
_MINIMUM_PYTHON = (3, 9)
_PYTHON_VERSION = re.compile(r"([0-9]{1,3})\.([0-9]{1,3})")
_ADDRESS = re.compile(r"(?P<user>[^@]*)@(?P<host>\[[^\]]*\]|[^:]*)(:(?P<port>[0-9]+))?")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*(%[A-Za-z0-9_.-]+)?")
_MODULES = {
    ".tflite": (["ai_edge_litert", "tflite_runtime"], "ai-edge-litert"),
    ".onnx": (["onnxruntime"], "onnxruntime"),
}
_KEEP_ALIVE_SECONDS = 10
_KEEP_ALIVE_COUNT = 3
_END_SECONDS = 10.0
# Of the connection besides the answer: a greeting, and what JSON escapes.
_TALK_BYTES = 4 << 20
_ESCAPED = 6


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
        timeout_s: Seconds after which a run is given up, above 0. Defaults to five minutes, one
            for each file, 10 s for each megabyte of it, and 5 s for each inference.

    Raises:
        ValueError: If an argument is out of range or could be taken for an option of ssh.
        FileNotFoundError: If `config_file` or `identity_file` does not exist.

    Example:

    >>> SSHTarget("pi", "raspberrypi.local", python="venv/bin/python").spec
    'ssh://pi@raspberrypi.local:22?python=venv/bin/python'
    """

    example = "ssh://user@host:22"
    more_time = ", or with ?timeout=SECONDS"

    def __init__(
        self,
        user: str,
        host: str,
        port: int = 22,
        python: str = "python3",
        config_file: str | Path | None = None,
        connect_timeout: int = 10,
        identity_file: str | Path | None = None,
        timeout_s: float | None = None,
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
        self.timeout_s = check_timeout(timeout_s)
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
        address, options = split_spec(spec, "ssh", ("python", "config", "identity", "timeout"))
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
            timeout_s=check_timeout(options.get("timeout")),
        )

    def _run(self, arguments: Sequence[str | Path], written: Path | None, limits: Limits) -> Ended:
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
        # Nobody else says this: neither a greeting, nor what answered another time.
        mark = f"dprp_tf {secrets.token_hex(8)}: "
        request = {
            "mark": mark,
            "most": limits.answer_bytes,
            "python": self.python,
            "files": [{"sha256": digest, "suffix": suffix} for digest, suffix in sources],
            "arguments": numbered,
            "modules": [["numpy"], *modules] if modules else [],
            "outputs": written is not None,
        }
        most = _TALK_BYTES + _ESCAPED * limits.answer_bytes
        most += limits.output_bytes if written is not None else 0
        contents = list(sources.values())
        try:
            with Child(self._command(), seconds=limits.seconds, most_bytes=most, talks=True) as ssh:
                try:
                    ssh.send(to_json(request).encode("ascii") + b"\n")
                    first = self._receive(ssh, mark)
                    missing = self._missing(first, request["modules"], len(contents))
                    for position in missing:
                        content = contents[position].read_bytes()
                        ssh.send(b"%d\n" % len(content))
                        ssh.send(content)
                    answer = self._receive(ssh, mark)
                    finished, size = self._finished(answer, sources, limits)
                    if written is not None and size is not None and not ssh.copy(size, written):
                        raise self._ended(ssh)
                except BrokenPipeError as error:
                    raise self._ended(ssh) from error
        except FileNotFoundError as error:
            raise TargetError(
                f"{self.spec} needs OpenSSH's client, and there is no `ssh` on the PATH of "
                "this machine. Install it (Debian: apt install openssh-client)."
            ) from error
        except LimitError as error:
            raise self._overrun(error) from error
        return finished

    def _receive(self, ssh: Child, mark: str) -> Any:
        """Read the device's next answer, past whatever else is printed."""
        while (line := ssh.line()) is not None:
            if not line.startswith(mark.encode("ascii")):
                continue
            text = line[len(mark) :]
            check = AnswerCheck(self.spec)
            try:
                answer = from_json(text.decode("utf-8"))
            except ValueError as error:
                told = f"its words must be JSON ({plain_text(str(error))})"
                raise check.error(told, text[:200].decode("utf-8", "replace")) from error
            if "error" in check.mapping("answer", answer):
                said = check.text("error", answer["error"])
                raise TargetError(f"{self.spec}: on the device: {said}.")
            return answer
        raise self._ended(ssh)

    def _ended(self, ssh: Child) -> TargetError:
        """Say why the connection ended before the answer."""
        ended = ssh.finish(_END_SECONDS)
        return self._connection_failure(ended.returncode, ended.stderr)

    def _missing(self, answer: Any, modules: Sequence[Sequence[str]], files: int) -> list[int]:
        """Take what the device says of itself, and the positions of the files it has not got."""
        check = AnswerCheck(self.spec)
        python = check.text("python", answer.get("python"))
        version = _PYTHON_VERSION.fullmatch(python)
        if version is None:
            raise check.error("`python` must be a version", python)
        if (int(version[1]), int(version[2])) < _MINIMUM_PYTHON:
            raise TargetError(
                f"{self.spec}: {self.python} there is Python {python}, and 3.9 or newer "
                "is needed. Name another with ?python=PATH."
            )
        absent = check.list("absent", answer.get("absent"))
        if not all(names in modules for names in absent):
            raise check.error("`absent` must hold modules that were asked for", absent)
        if absent:
            packages = {"numpy": "numpy"}
            packages |= {names[0]: package for names, package in _MODULES.values()}
            lacking = [packages[names[0]] for names in absent]
            raise TargetError(
                f"{self.spec}: {self.python} there lacks {' and '.join(lacking)}. Install on the "
                f"device: {self.python} -m pip install {' '.join(lacking)}; or name another "
                "Python with ?python=PATH."
            )
        missing = check.list("missing", answer.get("missing"))
        positions = [check.integer("missing", place, 0, files - 1) for place in missing]
        if len(set(positions)) < len(positions):
            raise check.error("`missing` must name each file once", missing)
        return positions

    def _finished(
        self, answer: Any, sources: Mapping[tuple[str, str], Path], limits: Limits
    ) -> tuple[Ended, int | None]:
        """Take how the run ended, and the size of the outputs that follow."""
        check = AnswerCheck(self.spec)
        code = check.integer("returncode", answer.get("returncode"), -255, 255)
        words = {name: answer.get(name) for name in ("stdout", "stderr")}
        for name, value in words.items():
            if not isinstance(value, str):
                raise check.error(f"`{name}` must be text", value)
        complaint = words["stderr"]
        paths = check.list("paths", answer.get("paths"), len(sources))
        for remote, ((digest, suffix), path) in zip(paths, sources.items(), strict=True):
            if not isinstance(remote, str) or not remote.endswith(digest + suffix):
                raise check.error("`paths` must be those of the files", remote)
            complaint = complaint.replace(remote, str(path))
        size = answer.get("outputs")
        if size is not None:
            check.integer("outputs", size, 0, limits.output_bytes)
        return Ended(code, words["stdout"], complaint), size

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

    def _connection_failure(self, returncode: int, complaint: str) -> TargetError:
        lines = [plain_text(line.strip()) for line in complaint.splitlines() if line.strip()]
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
