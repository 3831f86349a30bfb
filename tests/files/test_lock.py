"""Links in a folder that is locked: nothing outside is written."""

from __future__ import annotations

from pathlib import Path

import filelock
import pytest

from dprp_tf.files.lock import run_lock


@pytest.mark.parametrize("name", [".lock", ".lock-holder"])
def test_links_to_files_elsewhere_are_not_followed(tmp_path: Path, name: str) -> None:
    victim, folder = tmp_path / "victim", tmp_path / "run"
    victim.write_text("precious", encoding="utf-8")
    folder.mkdir()
    (folder / name).symlink_to(victim)
    try:
        with run_lock(folder):
            assert victim.read_text(encoding="utf-8") == "precious"
    except OSError as error:
        assert name in str(error)  # noqa: PT017 - either is right
    assert victim.read_text(encoding="utf-8") == "precious"


def test_the_holder_is_named_and_gone_afterwards(tmp_path: Path) -> None:
    with run_lock(tmp_path):
        assert (tmp_path / ".lock-holder").read_text(encoding="utf-8").isdigit()
    assert not (tmp_path / ".lock-holder").exists()


def test_a_folder_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious", encoding="utf-8")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for place in ("file", "file/run", "link"):
        said = rf"`folder` must be a folder.*Received: {tmp_path / place} \("
        with pytest.raises(OSError, match=said), run_lock(tmp_path / place):
            pass


def test_a_holder_that_ends_this_moment_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def held(*_: object, **__: object) -> None:
        raise filelock.Timeout(str(tmp_path / ".lock"))

    monkeypatch.setattr("filelock.FileLock.acquire", held)
    with pytest.raises(RuntimeError, match="in which process unknown"), run_lock(tmp_path):
        pass
