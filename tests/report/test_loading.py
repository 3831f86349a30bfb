"""How the files of a run folder are read."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_runs import (
    make_ranks,
    write_run,
)

from dprp_tf.report.loading import load_run


def test_a_missing_folder_is_named_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere.*dprp demo"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds none of them"):
        load_run(tmp_path)
    (tmp_path / "a_file").write_text("")
    with pytest.raises(FileNotFoundError, match="which is a file"):
        load_run(tmp_path / "a_file")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"epochs": [', r"ranks\.json must hold valid JSON.*Repeat the run"),
        (b"\xff\xfe\x00", r"ranks\.json must hold valid JSON"),
        (b"[1, 2]", r"ranks\.json must hold a JSON object.*list"),
    ],
)
def test_a_broken_file_is_named_with_the_way_out(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "ranks.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_run(tmp_path)


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    ranks = make_ranks(3, epochs=2)
    run = load_run(write_run(tmp_path / "run", ranks=ranks))
    assert run.ranks == ranks
    assert run.history is None
    assert run.results is None
