"""Quantized files beside the float one; inputs are synthetic."""

from __future__ import annotations

from made_runs import (
    make_quantization,
)

from dprp_tf.report.tables import (
    quantization_table,
)


def test_quantization_is_told_beside_the_first_row() -> None:
    table = quantization_table(make_quantization())
    assert [column.title for column in table.columns] == [
        "Quantization",
        "Size",
        "Compressed",
        "Accuracy",
        "Same top-1",
    ]
    assert [(cell.text, cell.note) for cell in table.rows[2]] == [
        ("int8, post-training", ""),
        ("185 kB", "\u221272 %"),
        ("151 kB", "\u221275 %"),
        ("98.06 %", "\u22120.27 pt"),
        ("99.44 %", ""),
    ]
    assert table.rows[3][3].tone == "better"
