"""Build the arm64 sandbox: Python and the runtimes of a Raspberry Pi, run by QEMU, without root."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import uuid
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dprp_tf.deploy.targets.answers import check_description, plain_text
from dprp_tf.deploy.targets.child import LimitError, run_limited
from dprp_tf.deploy.targets.cores import CORES, write_core_files
from dprp_tf.deploy.targets.edge import RUNNER
from dprp_tf.deploy.targets.edge_runner import MARKER_SYSCALL
from dprp_tf.deploy.targets.target import TargetError
from dprp_tf.files.atomic import read_json, write_json
from dprp_tf.files.cache import cache_folder
from dprp_tf.files.json_text import from_json
from dprp_tf.files.lock import alone_in

__all__ = ["Sandbox", "build_sandbox", "missing_tools"]

# Raise it whenever what is built changes: the sandbox is then built anew, beside the old one.
_REVISION = 2
_PLUGIN_SOURCE = Path(__file__).with_name("instruction_count.c")
_TOOLS = ("apt-get", "apt-cache", "dpkg-deb", "cc")
# Per version of the arm64 Python every wheel with its hashes.
_LOCKS = Path(__file__).with_name("arm64_wheels")
_WHEEL_PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
_TIMEOUT_S = 900
_MOST_BYTES = 64 << 20
_USELESS = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/perl5", "var")


@dataclass(frozen=True)
class Sandbox:
    """A folder with an emulator, an arm64 Python and arm64 runtimes.

    Args:
        folder: Where it lies.
        python: Version of the arm64 Python: `"3.11"`.
        emulator: Version of QEMU: `"7.2.22"`.
    """

    folder: Path
    python: str
    emulator: str

    def command(
        self, core: str, arguments: Sequence[str | Path], counts: Path | None = None
    ) -> list[str]:
        """Give the command that runs the arm64 Python.

        Args:
            core: Which core to emulate, one of `CORES`.
            arguments: Arguments of Python.
            counts: File for the instruction counts at the markers. Defaults to not counting,
                which is faster.

        Returns:
            The command, to be run with `environment()` and nothing else in the environment.
        """
        root = self.folder / "cores" / core
        command = [*_fixed_addresses(), str(self.folder / "host" / "usr/bin/qemu-aarch64")]
        command += ["-U", "LD_LIBRARY_PATH", "-cpu", core, "-seed", "1", "-L", str(root)]
        if counts is not None:
            plugin = str(self.folder / "instruction_count.so").replace(",", ",,")
            command += ["-plugin", plugin, "-d", "plugin", "-D", str(counts)]
        command.append(str(root / f"usr/bin/python{self.python}"))
        # Neither this machine's site packages nor this user's: PYTHONPATH alone.
        return [*command, "-S", "-s", *(str(argument) for argument in arguments)]

    def environment(self) -> dict[str, str]:
        """Give the whole environment to run in: the same wherever and whoever runs it.

        Returns:
            Variable name to value.
        """
        libraries = sorted(self.folder.glob("host/usr/lib/*-linux-gnu*"))
        libraries += sorted(self.folder.glob("host/lib/*-linux-gnu*"))
        return {
            "LD_LIBRARY_PATH": ":".join(str(folder) for folder in libraries),
            "LC_ALL": "C.UTF-8",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONHASHSEED": "0",
            "PYTHONPATH": str(self.folder / "site"),
        }


def missing_tools() -> list[str]:
    """Name what building a sandbox needs and this machine lacks.

    Returns:
        Names of programs and Python modules; empty if nothing is missing.

    Example:

    >>> set(missing_tools()) <= {"linux", "apt-get", "apt-cache", "dpkg-deb", "cc", "pip"}
    True
    """
    missing = [] if sys.platform == "linux" else ["linux"]
    missing += [tool for tool in _TOOLS if shutil.which(tool) is None]
    if importlib.util.find_spec("pip") is None:
        missing.append("pip")
    return missing


def build_sandbox(
    folder: str | Path | None = None, progress: Callable[[str], None] | None = None
) -> Sandbox:
    """Build the arm64 sandbox, or find the one built before.

    It takes Python and QEMU from the package sources of this Debian or Ubuntu machine and the
    runtimes as wheels, whose versions and hashes come with this package: one that differs is
    refused. It changes nothing outside its folder and needs no root. About 30 s, 90 MB to download,
    350 MB on disk. The packages that a broken-off attempt has downloaded are used by the next one.

    Args:
        folder: Where sandboxes lie. Defaults to `cache_folder()`.
        progress: Told in a few words what is being done. Defaults to silence.

    Returns:
        The sandbox.

    Raises:
        TargetError: If this machine lacks a tool (the message names it), its package sources or
            the network do not give what is needed, a wheel has another hash, or what was built
            does not run.
        OSError: If the folder can't be written.

    Example:

    >>> build_sandbox("/tmp/sandboxes", progress=print).python  # doctest: +SKIP
    '3.11'
    """
    cache = cache_folder() if folder is None else Path(folder).absolute()
    destination = cache / _name()
    if (destination / "sandbox.json").is_file():
        return _open(destination)
    missing = missing_tools()
    if missing:
        raise TargetError(
            f"`target` needs {', '.join(missing)} to build the arm64 sandbox, which this machine "
            "lacks. On Debian or Ubuntu install apt, dpkg and gcc, and pip into this Python."
        )
    tell = progress or (lambda what: None)
    cache.mkdir(parents=True, exist_ok=True)
    with alone_in(cache):
        if (destination / "sandbox.json").is_file():
            return _open(destination)
        downloads = cache / f".downloads-{destination.name}"
        beside = cache / f".{destination.name}.{uuid.uuid4().hex[:8]}"
        # What a killed build left, which `downloads` outlives on purpose.
        for stale in cache.glob(f".{destination.name}.*"):
            shutil.rmtree(stale)
        beside.mkdir()
        try:
            _fill(beside, downloads, tell)
            _prove(_open(beside), tell)
            if destination.exists():
                shutil.rmtree(destination)
            os.replace(beside, destination)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(downloads, ignore_errors=True)
    return _open(destination)


def _name() -> str:
    release = platform.freedesktop_os_release() if sys.platform == "linux" else {}
    named = release.get("VERSION_CODENAME") or release.get("ID", "unknown")
    wheels = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(_LOCKS.glob("*.lock"))))
    return "-".join(["arm64", named, wheels.hexdigest()[:16], f"r{_REVISION}"])


def _open(folder: Path) -> Sandbox:
    path = folder / "sandbox.json"
    try:
        told = read_json(path)
        return Sandbox(folder, str(told["python"]), str(told["emulator"]))
    except (ValueError, KeyError, TypeError) as error:
        raise TargetError(
            f"{path} must say what the arm64 sandbox holds. Received: {error}. Delete {folder}; "
            "it is built anew."
        ) from error


def _fill(folder: Path, downloads: Path, tell: Callable[[str], None]) -> None:
    tell("reading the package sources")
    guest = _Apt(downloads / "guest", "arm64")
    guest.update()
    python = guest.python_version()
    tell(f"downloading arm64 Python {python}")
    for package in guest.download(
        f"python{python}-minimal", f"libpython{python}-stdlib", "libstdc++6"
    ):
        _unpack(package, folder / "root")
    tell("downloading QEMU")
    native = _Apt(downloads / "host", None)
    native.update()
    for package in native.download("qemu-user"):
        _unpack(package, folder / "host")
    # Newer releases ship everything in usr and leave the link to the base files.
    if not (folder / "root" / "lib").exists():
        (folder / "root" / "lib").symlink_to("usr/lib")
    for core in CORES.values():
        root = folder / "cores" / core.name
        write_core_files(core, root)
        for entry in sorted((folder / "root").iterdir()):
            (root / entry.name).symlink_to(Path("../../root") / entry.name)
    tell("downloading arm64 LiteRT and ONNX Runtime")
    for wheel in _wheels(downloads / "wheels", python):
        _unpack_wheel(wheel, folder / "site")
    tell("compiling the counting plugin")
    emulator = _emulator_version(folder)
    _compile_plugin(folder, emulator)
    write_json(
        folder / "sandbox.json",
        {"python": python, "emulator": emulator, "revision": _REVISION},
    )


class _Apt:
    """apt-get with a state of its own beside the machine's sources."""

    def __init__(self, folder: Path, architecture: str | None) -> None:
        self._archives = folder / "cache" / "archives"
        for needed in (folder / "state" / "lists" / "partial", self._archives / "partial"):
            needed.mkdir(parents=True, exist_ok=True)
        status = folder / "dpkg" / "status"
        status.parent.mkdir(exist_ok=True)
        if architecture is None:
            # Only what this machine lacks is downloaded.
            shutil.copyfile("/var/lib/dpkg/status", status)
        else:
            status.touch()
        settings = {
            "Dir::State": folder / "state",
            "Dir::State::status": status,
            "Dir::Cache": folder / "cache",
            # Root's apt would hand downloads to a user who can't write here.
            "APT::Sandbox::User": "root",
            "APT::Install-Recommends": "false",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
        }
        if architecture is not None:
            settings["APT::Architecture"] = settings["APT::Architectures"] = architecture
        self._options = ["-q", *(f"-o{name}={value}" for name, value in settings.items())]

    def update(self) -> None:
        _tool(["apt-get", *self._options, "update"], "Reading the package sources")

    def python_version(self) -> str:
        shown = _tool(
            ["apt-cache", *self._options, "show", "--no-all-versions", "python3-minimal"],
            "Looking for an arm64 Python in this machine's package sources",
        )
        found = re.search(r"^Version: (3\.\d+)\.", shown, re.MULTILINE)
        if found is None:
            raise TargetError(
                "The arm64 sandbox needs package sources that offer python3-minimal for arm64. "
                f"Received: {shown[-200:]!r}. On Ubuntu add ports.ubuntu.com for arm64."
            )
        return found[1]

    def download(self, *packages: str) -> list[Path]:
        command = ["apt-get", *self._options, "install", "--yes", "--download-only"]
        _tool([*command, "--reinstall", *packages], f"Downloading {', '.join(packages)}")
        return sorted(self._archives.glob("*.deb"))


def _unpack(package: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    _tool(["dpkg-deb", "-x", str(package), str(folder)], f"Unpacking {package.name}")
    for useless in _USELESS:
        shutil.rmtree(folder / useless, ignore_errors=True)


def _wheels(folder: Path, python: str, locks: Path = _LOCKS) -> list[Path]:
    lock = locks / f"python{python}.lock"
    if not lock.is_file():
        known = ", ".join(sorted(path.stem.removeprefix("python") for path in locks.glob("*.lock")))
        raise TargetError(
            f"The arm64 sandbox needs package sources with an arm64 Python of {known}, for which "
            f"the wheels' hashes are known. Received: Python {python}."
        )
    # What lies there from a broken-off attempt would be taken as it is.
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(folder)]
    # The lock has what they depend on; pip would judge that by this machine's Python.
    command += ["--require-hashes", "--no-deps", "--requirement", str(lock)]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    for interface in (f"cp{python.replace('.', '')}", "abi3", "none"):
        command += ["--abi", interface]
    for name in _WHEEL_PLATFORMS:
        command += ["--platform", f"{name}_aarch64"]
    # pip needs the user's settings, proxies and certificates.
    _tool(
        command, f"Downloading arm64 wheels of the runtimes for Python {python}", dict(os.environ)
    )
    return sorted(folder.glob("*.whl"))


def _unpack_wheel(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    for library in [*folder.glob("*.data/purelib"), *folder.glob("*.data/platlib")]:
        shutil.copytree(library, folder, dirs_exist_ok=True)
    for data in folder.glob("*.data"):
        shutil.rmtree(data)


def _emulator_version(folder: Path) -> str:
    sandbox = Sandbox(folder, "", "")
    told = _tool(
        [str(folder / "host" / "usr/bin/qemu-aarch64"), "--version"],
        "Starting QEMU",
        sandbox.environment(),
    )
    found = re.search(r"version (\d+\.\d+(\.\d+)?)", told)
    if found is None:
        raise TargetError(f"QEMU does not tell its version. Received: {told[:200]!r}.")
    return found[1]


def _compile_plugin(folder: Path, emulator: str) -> None:
    # From 9.0 on QEMU refuses plugins for the first version of its interface.
    interface = 1 if int(emulator.split(".")[0]) < 9 else 2
    command = ["cc", "-O2", "-Wall", "-shared", "-fPIC", "-fvisibility=hidden"]
    command += [f"-DMARKER_SYSCALL={MARKER_SYSCALL}", f"-DPLUGIN_INTERFACE={interface}"]
    command += ["-o", str(folder / "instruction_count.so"), str(_PLUGIN_SOURCE)]
    _tool(command, "Compiling the counting plugin", dict(os.environ))


def _prove(sandbox: Sandbox, tell: Callable[[str], None]) -> None:
    # This run also leaves the compiled modules that later runs load.
    tell("starting the arm64 runtimes once")
    environment = sandbox.environment()
    del environment["PYTHONDONTWRITEBYTECODE"]
    runner = sandbox.folder / "edge_runner.py"
    shutil.copyfile(RUNNER, runner)
    try:
        told = _tool(
            sandbox.command("cortex-a72", [runner, "--describe"]),
            "Starting the arm64 runtimes",
            environment,
        )
    finally:
        runner.unlink()
    try:
        answer = from_json(told.splitlines()[-1])
    except (IndexError, ValueError) as error:
        raise TargetError(
            f"The arm64 sandbox was built, but answers nothing: {plain_text(told[-200:])!r}."
        ) from error
    runtimes = check_description("The arm64 sandbox", answer)["runtimes"]
    if None in runtimes.values():
        raise TargetError(f"The arm64 sandbox was built, but a runtime fails: {runtimes}.")


@functools.cache
def _fixed_addresses() -> tuple[str, ...]:
    # Some containers forbid it. Counts then repeat less exactly; nothing else changes.
    setarch = shutil.which("setarch")
    if setarch is None:
        return ()
    done = subprocess.run([setarch, "-R", "true"], capture_output=True, check=False)
    return (setarch, "-R") if done.returncode == 0 else ()


def _tool(command: Sequence[str], what: str, environment: dict[str, str] | None = None) -> str:
    if environment is None:
        environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = run_limited(
            command, seconds=_TIMEOUT_S, most_bytes=_MOST_BYTES, environment=environment
        )
    except LimitError as error:
        raise TargetError(f"{what} (needed for the arm64 sandbox) {error}.") from error
    if done.returncode != 0:
        complaints = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in complaints if re.match(r"E:|ERROR|.*\berror\b", line)]
        reason = " ".join((errors or complaints or [f"exit code {done.returncode}"])[-2:])
        raise TargetError(f"{what} failed (needed for the arm64 sandbox): {reason[:500]}")
    return done.stdout
