"""The tables of a run in Markdown; inputs are synthetic."""

from __future__ import annotations

from made_runs import (
    make_results,
)

from dprp_tf.report import (
    results_markdown,
)


def test_markdown_has_the_same_figures() -> None:
    text = results_markdown(make_results(achieved=False))
    lines = text.splitlines()
    assert lines[0] == "# DPRP on handwritten digits"
    assert lines[2].startswith("**Not achieved.** The DPRP file is smaller")
    assert "- **failed**: Faster: ratio 0.63, at most 0.66" in lines
    assert (
        "| DPRP | 98.33 % (\u22120.28 pt) | 160,760 (\u221241 %) | 23,900,000 (\u221241 %) "
        "| 171,020 |" in lines
    )
    tables = [line for line in lines if line.startswith("|")]
    assert len(tables) == (2 + 2) + (2 + 10)
    assert {line.count(" | ") for line in tables[:4]} == {4}
    assert {line.count(" | ") for line in tables[4:]} == {8}
    assert tables[1] == "| --- | ---: | ---: | ---: | ---: |"
    assert text.endswith("|\n")


def test_markdown_escapes_what_would_break_a_table() -> None:
    results = make_results()
    results["models"][0]["label"] = "a|b\n<script>*x*"
    row = next(line for line in results_markdown(results).splitlines() if "script" in line)
    assert row.startswith("| a\\|b &lt;script&gt;\\*x\\* | 98.61 % |")


def test_markdown_shows_notes_last() -> None:
    text = results_markdown({**make_results(), "notes": ["Nothing was *cut*."]})
    assert text.endswith("|\n\nNothing was \\*cut\\*.\n")
