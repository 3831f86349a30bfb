"""The arm64 cores that are emulated, and the files by which runtimes recognise them.

Runtimes choose their kernels by what /proc/cpuinfo and /sys say of the processor. The emulator
passes a guest's look at those files on to the host, so the guest's root holds files that describe
the core that is emulated.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["CORES", "Core", "write_core_files"]

_IMPLEMENTER = "0x41"


@dataclass(frozen=True)
class Core:
    """One kind of arm64 core, as boards with four of them report it.

    Args:
        name: Name of the core, as the emulator spells it.
        part: Part number in /proc/cpuinfo.
        variant: Variant there.
        revision: Revision there.
        features: Instruction-set features there.
        maximum_khz: Highest clock, in kHz.
        caches_kib: Size of the first level's data and instruction cache and of the shared second
            level, in KiB.
        cores: How many of them.
    """

    name: str
    part: int
    variant: int
    revision: int
    features: str
    maximum_khz: int
    caches_kib: tuple[int, int, int]
    cores: int = 4


_V8 = "fp asimd evtstrm crc32 cpuid"
_V82 = (
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop "
    "asimddp"
)

# What Raspberry Pi 3, 4 and 5 report.
CORES = {
    core.name: core
    for core in (
        Core("cortex-a53", 0xD03, 0, 4, _V8, 1_200_000, (32, 32, 512)),
        Core("cortex-a72", 0xD08, 0, 3, _V8, 1_500_000, (32, 48, 1024)),
        Core("cortex-a76", 0xD0B, 4, 1, _V82, 2_400_000, (64, 64, 512)),
    )
}


def write_core_files(core: Core, root: Path) -> None:
    """Write the files that describe a processor of `core.cores` cores.

    Args:
        core: The core.
        root: Folder that stands for `/`; `proc/cpuinfo` and `sys/devices/system/cpu` are written
            in it.

    Raises:
        OSError: If they can't be written.

    Example:

    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> write_core_files(CORES["cortex-a72"], root)
    >>> (root / "proc/cpuinfo").read_text().count("0xd08")
    4
    """
    everyone = f"0-{core.cores - 1}"
    files = {
        "possible": everyone,
        "present": everyone,
        "online": everyone,
        "kernel_max": str(core.cores - 1),
    }
    entries = []
    for number in range(core.cores):
        entries.append(
            f"processor\t: {number}\n"
            "BogoMIPS\t: 108.00\n"
            f"Features\t: {core.features}\n"
            f"CPU implementer\t: {_IMPLEMENTER}\n"
            "CPU architecture: 8\n"
            f"CPU variant\t: {core.variant:#x}\n"
            f"CPU part\t: {core.part:#x}\n"
            f"CPU revision\t: {core.revision}\n"
        )
        own = f"cpu{number}"
        files[f"{own}/cpufreq/cpuinfo_max_freq"] = str(core.maximum_khz)
        files[f"{own}/cpufreq/cpuinfo_min_freq"] = "600000"
        files[f"{own}/topology/core_id"] = str(number)
        files[f"{own}/topology/physical_package_id"] = "0"
        for siblings in ("core_siblings_list", "package_cpus_list", "cluster_cpus_list"):
            files[f"{own}/topology/{siblings}"] = everyone
        data, instruction, shared = core.caches_kib
        for index, (level, kind, size, cpus) in enumerate(
            (
                (1, "Data", data, str(number)),
                (1, "Instruction", instruction, str(number)),
                (2, "Unified", shared, everyone),
            )
        ):
            cache = f"{own}/cache/index{index}"
            files[f"{cache}/level"] = str(level)
            files[f"{cache}/type"] = kind
            files[f"{cache}/size"] = f"{size}K"
            files[f"{cache}/shared_cpu_list"] = cpus
    (root / "proc").mkdir(parents=True, exist_ok=True)
    (root / "proc" / "cpuinfo").write_text("\n".join(entries) + "\n", encoding="utf-8")
    for name, content in files.items():
        path = root / "sys" / "devices" / "system" / "cpu" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n", encoding="utf-8")
