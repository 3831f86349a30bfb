"""What every registered kind of target must do; a new one is tested by being registered."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from dprp_tf.deploy.targets import TARGETS, Target, TargetError, resolve_target

EVERY = pytest.mark.parametrize("scheme", TARGETS)
# What is appended to an example, or stands in its place after the scheme.
ADDED = ("?unknown=x", "?unknown=", "\n", " two words", ";touch X", "$(touch X)", "`touch X`", "\0")
INSTEAD = ("", "-v", "//", "//-oProxyCommand=touch X", "//a b", "//$(touch X)", "//;touch X")


@EVERY
def test_its_spec_makes_it_again(scheme: str) -> None:
    kind = TARGETS[scheme]
    target = resolve_target(kind.example)
    assert type(target) is kind
    assert target.spec == kind.example
    assert type(resolve_target(target.spec)) is kind
    assert resolve_target(target) is target
    assert target.spec.partition(":")[0] == scheme
    assert repr(target) == f"{kind.__name__}({target.spec!r})"


@EVERY
def test_a_spec_that_names_nothing_is_refused_in_one_line_that_names_it(scheme: str) -> None:
    example = TARGETS[scheme].example
    bad = [example + text for text in ADDED]
    bad += [f"{scheme}:{text}" for text in INSTEAD]
    for spec in [*bad, f" {example}", scheme.upper() + example.removeprefix(scheme)]:
        with pytest.raises(ValueError, match=re.escape(repr(spec))) as told:
            resolve_target(spec)
        assert "\n" not in str(told.value)
        assert "must" in str(told.value) or "may" in str(told.value)


def test_what_is_no_spec_is_told_every_kind() -> None:
    for spec in ("", "raspberrypi", "raspberrypi:22", None, 3, Path("local")):
        with pytest.raises(ValueError, match=re.escape(repr(spec))) as told:
            resolve_target(spec)  # type: ignore[arg-type]
        assert all(f'"{kind.example}"' in str(told.value) for kind in TARGETS.values())


@EVERY
def test_it_says_what_its_costs_count_and_takes_what_every_target_takes(scheme: str) -> None:
    kind = TARGETS[scheme]
    assert kind.unit
    assert " " not in kind.unit
    assert kind.__doc__ != Target.__doc__
    for method in ("describe", "measure", "outputs"):
        wanted = inspect.signature(getattr(Target, method)).parameters
        assert inspect.signature(getattr(kind, method)).parameters == wanted, method


@EVERY
def test_no_shell_of_this_machine_sees_what_a_user_wrote(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []

    class Process:
        def __init__(self, command: Any, *_: Any, **options: Any) -> None:
            started.append(command)
            assert not options.get("shell"), command
            raise FileNotFoundError(2, "no such program", str(command[0]))

    monkeypatch.setattr(subprocess, "Popen", Process)
    path = tmp_path / "$(touch X); `touch Y`.tflite"
    path.write_bytes(b"some")
    target = resolve_target(TARGETS[scheme].example)
    for ask in (target.describe, lambda: target.measure([path])):
        with pytest.raises((TargetError, OSError)):
            ask()
    # An emulator may refuse before: it looks for its tools first.
    assert started or target.unit != "ms"
    assert all(isinstance(command, (list, tuple)) for command in started)


def test_the_modules_of_targets_know_no_call_that_is_a_shell() -> None:
    folder = Path(inspect.getfile(Target)).parent
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                called = ast.unparse(node)
                assert called not in {"os.system", "os.popen", "subprocess.getoutput"}, path
                assert called != "subprocess.getstatusoutput", path
