"""Models and files beside the dense ones; inputs are synthetic."""

from __future__ import annotations

import pytest
from made_runs import (
    make_results,
)

from dprp_tf.report.tables import (
    files_table,
    models_table,
)
from dprp_tf.report.verdict import verdict


def test_models_stand_beside_the_dense_one_wherever_it_is_listed() -> None:
    results = make_results()
    results["models"].reverse()
    table = models_table(results)
    assert [row[0].text for row in table.rows] == ["Dense", "DPRP"]
    parameters = table.rows[1][2]
    assert (parameters.text, parameters.note, parameters.tone) == (
        "160,760",
        "\u221241 %",
        "better",
    )
    accuracy = table.rows[1][1]
    assert (accuracy.text, accuracy.note, accuracy.tone) == ("98.33 %", "\u22120.28 pt", "worse")


def test_columns_without_a_figure_are_left_out() -> None:
    files = [{"model": "dense", "format": "ONNX", "size_bytes": 10}]
    assert [column.title for column in files_table({"files": files}).columns] == [
        "Format",
        "Model",
        "Size",
    ]


@pytest.mark.parametrize(
    ("ratio", "interval", "tone"),
    [
        (0.63, [0.6, 0.66], "better"),
        (0.98, [0.94, 1.03], ""),
        (1.12, [1.08, 1.15], "worse"),
        (1.12, None, "worse"),
    ],
)
def test_a_latency_counts_only_when_its_interval_excludes_one(
    ratio: float, interval: list[float] | None, tone: str
) -> None:
    file = {"model": "dprp", "latency_ratio": ratio, "latency_ratio_interval": interval}
    table = files_table({"files": [file]})
    column = [column.title for column in table.columns].index("Latency ratio")
    assert table.rows[0][column].tone == tone


def test_an_unverified_file_stands_out() -> None:
    results = make_results()
    results["files"][3]["verified"] = False
    table = files_table(results)
    column = [column.title for column in table.columns].index("Max. error")
    assert [row[column].note for row in table.rows].count("NOT VERIFIED") == 1
    assert table.rows[3][column].tone == "worse"


def test_lists_of_the_wrong_kind_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="`models` must be a list of objects"):
        models_table({"models": {"dense": 1}})
    with pytest.raises(ValueError, match="`headline` must be an object"):
        verdict({"headline": "achieved"})
