"""A command that is told to stop tidies up, says so in one line, and has the signal's exit code."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import keras
import pytest
from typer.testing import CliRunner

from dprp_tf.cli.main import app
from dprp_tf.cli.stopping import STOPPED, StoppedError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

_BEGIN = """\
import contextlib, os, signal, sys, tempfile, time
from dprp_tf.cli import stopping
# What these tests were started to ignore, as in the background, is not what they are about.
signal.signal(signal.SIGINT, signal.default_int_handler)
for ignored in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(ignored, signal.SIG_DFL)
def ask(name=sys.argv[2]):
    os.kill(os.getpid(), getattr(signal, name))
    time.sleep(0.01)
"""


def _ended(script: str, folder: Path, name: str) -> tuple[int, str]:
    command = [sys.executable, "-c", _BEGIN + script, str(folder), name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_it_tidies_up_even_if_it_is_told_twice(tmp_path: Path, name: str) -> None:
    script = """
with stopping.told_to_stop(), tempfile.TemporaryDirectory(dir=sys.argv[1]) as folder:
    try:
        ask()
    finally:
        ask()
"""
    assert _ended(script, tmp_path, name) == (128 + getattr(signal, name), f"{STOPPED}\n")
    assert not list(tmp_path.iterdir())


def test_what_swallowed_the_first_request_gets_another(tmp_path: Path) -> None:
    script = """
stopping._TWICE_S = 0
with stopping.told_to_stop():
    with contextlib.suppress(KeyboardInterrupt):
        ask()
    ask()
"""
    assert _ended(script, tmp_path, "SIGTERM") == (143, f"{STOPPED}\n")


def test_a_request_that_python_drops_is_made_again(tmp_path: Path) -> None:
    script = """
class Collected:
    def __del__(self):
        ask()
with stopping.told_to_stop():
    Collected()
    time.sleep(30)
"""
    assert _ended(script, tmp_path, "SIGINT") == (130, f"{STOPPED}\n")


def test_a_signal_while_python_ends_leaves_no_traceback(tmp_path: Path) -> None:
    script = """
import atexit
atexit.register(ask)
stopping._TWICE_S = 0
with stopping.told_to_stop():
    ask()
"""
    assert _ended(script, tmp_path, "SIGTERM") == (-signal.SIGTERM, f"{STOPPED}\n")


def test_what_it_was_started_to_ignore_stays_ignored(tmp_path: Path) -> None:
    script = """
signal.signal(signal.SIGHUP, signal.SIG_IGN)
with stopping.told_to_stop():
    ask()
"""
    assert _ended(script, tmp_path, "SIGHUP") == (0, "")


def test_while_it_loads_nothing_is_in_the_way_of_the_end(tmp_path: Path) -> None:
    script = """
with stopping.told_to_stop(), stopping.loading():
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    with contextlib.suppress(BaseException):
        ask()
    print("still there")
"""
    assert _ended(script, tmp_path, "SIGTERM") == (143, f"{STOPPED}\n")


def test_a_request_inside_another_exception_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrapped(*_: object) -> None:
        raise RuntimeError("error while a class is made") from StoppedError(signal.SIGTERM)

    model = tmp_path / "model.keras"
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save(model)
    monkeypatch.setattr("dprp_tf.conversion.summaries.summarize", wrapped)
    said = CliRunner().invoke(app, ["inspect", str(model)])
    assert (said.exit_code, said.stderr) == (143, f"{STOPPED}\n")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_picture_that_is_being_written_leaves_nothing(tmp_path: Path, name: str) -> None:
    # The signal comes from inside what draws, where the temporary file is there already.
    script = """
from pathlib import Path
from matplotlib.figure import Figure
from dprp_tf.report.pictures import save_picture
class Asking(Figure):
    def savefig(self, target, **options):
        super().savefig(target, **options)
        assert len(list(Path(sys.argv[1], "plots").iterdir())) == 1
        ask()
with stopping.told_to_stop():
    save_picture(Asking(), Path(sys.argv[1]) / "plots" / "a.png")
"""
    assert _ended(script, tmp_path, name) == (128 + getattr(signal, name), f"{STOPPED}\n")
    assert list((tmp_path / "plots").iterdir()) == []
