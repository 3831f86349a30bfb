"""Benchmarks in the terminal; inputs are synthetic."""

from __future__ import annotations

from typing import Any

import pytest
from made_runs import (
    make_bench,
)
from rich.console import Console

from dprp_tf.report import (
    bench_report,
)


def printed(bench: dict[str, Any], width: int) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(bench_report(bench))
    return capture.get()


@pytest.mark.parametrize("width", [80, 100, 140])
def test_the_terminal_shows_a_table_for_each_run_at_any_width(width: int) -> None:
    text = printed(make_bench(), width)
    assert max(map(len, text.splitlines())) <= width
    for said in ("local, 2 threads (Example 3000", "0.64\u00d7", "9.41 M", "98.06 %", "185 kB"):
        assert said in text
    assert ("Left out at this width: runtime, Cold start" in text) == (width == 80)
    flat = " ".join(text.split())
    assert "Busy machine: Stop what else runs there" in flat
    assert "(local, 1 thread; local, 2 threads)" in flat
