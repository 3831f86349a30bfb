"""What is installed to work on this repository is pinned and has hashes, and nothing else is."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
# Keras versions that fix what was published about loading files.
_FIXED = ("3.13.2", "3.14.0")


def _locked(
    path: Path = ROOT / "requirements.lock",
) -> dict[str, list[tuple[Requirement, int]]]:
    """Requirements of a lock by name, each with the number of its hashes."""
    text = path.read_text().replace("\\\n", " ")
    found: dict[str, list[tuple[Requirement, int]]] = {}
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        requirement = Requirement(line.split(" --hash")[0])
        hashes = re.findall(r"--hash=sha256:[0-9a-f]{64}(?![0-9a-f])", line)
        found.setdefault(canonicalize_name(requirement.name), []).append((requirement, len(hashes)))
    return found


def _wanted() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    wanted = [Requirement(entry) for entries in lists for entry in entries]
    return [requirement for requirement in wanted if requirement.name != project["name"]]


def test_the_lock_pins_each_package_and_has_its_hashes() -> None:
    locked = [entry for entries in _locked().values() for entry in entries]
    assert len(locked) > 80
    for requirement, hashes in locked:
        (pin,) = requirement.specifier
        assert pin.operator == "==", requirement
        assert hashes >= 1, requirement


def test_the_lock_is_one_of_the_project() -> None:
    locked = _locked()
    for wanted in _wanted():
        versions = [
            next(iter(requirement.specifier)).version
            for requirement, _ in locked[canonicalize_name(wanted.name)]
        ]
        assert all(wanted.specifier.contains(version) for version in versions), wanted


def test_what_builds_the_project_is_in_the_lock() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    locked = _locked()
    for entry in map(Requirement, build):
        ((requirement, _),) = locked[canonicalize_name(entry.name)]
        assert entry.specifier.contains(next(iter(requirement.specifier)).version)


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_the_emulators_wheels_are_those_of_the_lock(python: str) -> None:
    path = ROOT / "deploy" / "targets" / "arm64_wheels" / f"python{python}.lock"
    found, locked = _locked(path), _locked()
    assert {"ai-edge-litert", "numpy", "onnxruntime"} <= set(found)
    machine = {"python_full_version": f"{python}.0", "python_version": python}
    machine |= {"platform_machine": "aarch64", "sys_platform": "linux"}
    for name, [(requirement, hashes)] in found.items():
        (pinned,) = (
            other
            for other, _ in locked[name]
            if other.marker is None or other.marker.evaluate(machine)
        )
        assert requirement.marker is None
        assert requirement.specifier == pinned.specifier, name
        assert hashes >= 1, name


def test_make_installs_from_the_lock_alone() -> None:
    recipes = [
        line for line in (ROOT / "Makefile").read_text().splitlines() if "pip install" in line
    ]
    assert len(recipes) == 2
    assert "--require-hashes --only-binary :all: -r requirements.lock" in recipes[0]
    assert "--no-deps --no-build-isolation --editable ." in recipes[1]
    assert "pip install" not in (ROOT / ".ci" / "run").read_text()


def test_keras_is_none_with_a_published_flaw() -> None:
    (keras,) = [wanted for wanted in _wanted() if wanted.name == "keras"]
    least = min(Version(s.version) for s in keras.specifier if s.operator == ">=")
    assert least >= max(map(Version, _FIXED))
