"""Every benchmarked file on every target; inputs are synthetic."""

from __future__ import annotations

import pytest
from made_runs import (
    make_bench,
)

from dprp_tf.report.tables import (
    bench_table,
)


def test_the_table_has_every_file_on_every_target_beside_the_first() -> None:
    table = bench_table(make_bench())
    assert [column.title for column in table.columns] == [
        "Target",
        "File",
        "Latency",
        "Instructions (proxy)",
        "Ratio",
        "Size",
        "Accuracy",
        "Peak memory",
        "Cold start",
    ]
    assert table.starts == (0, 4, 8, 12)
    assert len(table.rows) == 16
    first, second = ([(cell.text, cell.note) for cell in row] for row in table.rows[:2])
    assert first[:5] == [
        ("local, 1 thread", "Example 3000 @ 2.10GHz, 4 CPUs"),
        ("dense_float32.tflite", "LiteRT 2.3.0"),
        ("0.412 ms", "0.400 to 0.445 ms"),
        ("\u2013", ""),
        ("1\u00d7", ""),
    ]
    assert second[5:7] == [("652 kB", "\u221241 %"), ("98.33 %", "\u22120.28 pt")]
    assert table.rows[1][4].tone == "better"
    emulated = table.rows[12]
    assert (emulated[2].text, emulated[3].text) == ("\u2013", "9.41 M")
    # Counts have no interval.
    assert table.rows[13][4].note == ""
    assert table.rows[13][4].text.endswith("\u00d7")


@pytest.mark.parametrize(
    ("score", "values", "title", "cells"),
    [
        (
            {"name": "psnr", "unit": "dB", "less_is_better": False},
            (32.0, 31.25),
            "PSNR",
            [("32 dB", "", ""), ("31.25 dB", "\u22120.75 dB", "worse")],
        ),
        (
            {"name": "mean_squared_error", "unit": "", "less_is_better": True},
            (0.02, 0.03),
            "Mean squared error",
            [("0.02", "", ""), ("0.03", "+50 %", "worse")],
        ),
        (
            {"name": "mean_iou", "unit": "share", "less_is_better": False},
            (0.5, 0.625),
            "Mean IoU",
            [("50.00 %", "", ""), ("62.50 %", "+12.50 pt", "better")],
        ),
    ],
)
def test_the_column_of_a_score_bears_its_name_and_knows_what_is_better(
    score: dict[str, object], values: tuple[float, float], title: str, cells: list[tuple[str, ...]]
) -> None:
    bench = {**make_bench(with_accuracy=False), "score": score}
    for file, value in zip(bench["files"], values, strict=False):
        file[score["name"]] = value
    table = bench_table(bench)
    titles = [column.title for column in table.columns]
    assert "Accuracy" not in titles
    column = titles.index(title)
    found = [(row[column].text, row[column].note, row[column].tone) for row in table.rows[:2]]
    assert found == cells
    assert ("less is better" in table.note) == score["less_is_better"]


def test_columns_that_nothing_fills_are_left_out() -> None:
    bench = make_bench(with_accuracy=False)
    bench["runs"] = bench["runs"][3:]
    titles = [column.title for column in bench_table(bench).columns]
    assert titles == ["Target", "File", "Instructions (proxy)", "Ratio", "Size"]
    alone = make_bench()
    for run in alone["runs"]:
        run["results"], run["ratios"] = run["results"][:1], run["ratios"][:1]
    assert "Ratio" not in [column.title for column in bench_table(alone).columns]


def test_a_path_given_twice_has_two_rows() -> None:
    bench = make_bench()
    bench["files"][1] = dict(bench["files"][0])
    for run in bench["runs"]:
        run["results"][1]["path"] = run["results"][0]["path"]
    rows = bench_table(bench).rows
    assert rows[0][1] == rows[1][1]
    assert rows[0][2] != rows[1][2]
