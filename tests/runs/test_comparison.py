"""Models held against the dense one: each judged by the format that it was made for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras
import pytest
from made_plans import fold_plan

from dprp_tf.costs.form import Form
from dprp_tf.data import load
from dprp_tf.runs.comparison import Contender, _dense_notes, compare_models
from dprp_tf.runs.headline import headline

JUDGED = {"dprp": ("DPRP", "TFLite float32"), "cut": ("Cut", "TFLite int8")}


def _files(**changed: Any) -> list[dict[str, Any]]:
    """Made up: DPRP wins in float32 and is the dense one in int8, where the cut one wins."""
    rows = [
        ("dense", "TFLite float32", 4000, 0.99, None, None),
        ("dprp", "TFLite float32", 2000, 0.985, 0.8, [0.7, 0.9]),
        ("cut", "TFLite float32", 1000, 0.99, 0.6, [0.5, 0.7]),
        ("dense", "TFLite int8", 1000, 0.99, None, None),
        ("dprp", "TFLite int8", 1000, 0.985, 1.0, [0.98, 1.02]),
        ("cut", "TFLite int8", 300, 0.988, 0.5, [0.4, 0.6]),
    ]
    keys = (
        *("model", "format", "size_bytes", "accuracy"),
        *("latency_ratio", "latency_ratio_interval"),
    )
    found = [dict(zip(keys, row, strict=True)) for row in rows]
    found[-1].update(changed)
    return found


def test_each_model_is_judged_by_its_own_format() -> None:
    found = headline(_files(), JUDGED, 0.01)
    assert found["achieved"]
    assert found["text"] == (
        "DPRP: the TFLite float32 file is 50% smaller and 20% faster than the dense one, at 98.5% "
        "accuracy (99.0% dense). Cut: the TFLite int8 file is 70% smaller and 50% faster than the "
        "dense one, at 98.8% accuracy (99.0% dense)."
    )
    assert [check["name"] for check in found["checks"]][2:4] == [
        "DPRP, TFLite float32: as accurate",
        "Cut, TFLite int8: smaller",
    ]
    assert found["outcomes"][1] == {"model": "cut", "format": "TFLite int8"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"size_bytes": 1000}, "is not smaller"),
        # The interval decides, not its middle.
        ({"latency_ratio_interval": [0.4, 1.0]}, "is not faster"),
        ({"accuracy": 0.979}, "is not as accurate"),
        ({"size_bytes": 2000, "accuracy": 0.5}, "is not smaller and not as accurate"),
    ],
)
def test_one_failed_check_of_one_model_is_enough(changed: dict[str, Any], said: str) -> None:
    found = headline(_files(**changed), JUDGED, 0.01)
    assert not found["achieved"]
    assert f"Cut: the TFLite int8 file {said}: see the checks." in found["text"]
    assert "DPRP: the TFLite float32 file is 50% smaller" in found["text"]
    assert all(check["passed"] for check in found["checks"][:3])


def test_one_model_alone_has_plain_checks() -> None:
    found = headline(_files(), {"cut": JUDGED["cut"]}, 0.01)
    assert [check["name"] for check in found["checks"]] == ["smaller", "faster", "as accurate"]


def test_a_file_that_stays_dense_is_told_with_the_reason() -> None:
    won = fold_plan(Form("channel", (2,)))
    key = ("litert", "int8")
    assert _dense_notes("DPRP", {key: won}) == []
    (row,) = won.layers
    slow = replace(row.candidates[1], ratio=1.2, low=1.1, high=1.3)
    for other, why in ((slow, "takes 1.20 x its time"), (row.candidates[1], "for certain")):
        kept = replace(row, form=Form("dense"), candidates=(row.dense, other))
        (note,) = _dense_notes("DPRP", {key: replace(won, layers=(kept,))})
        assert note.startswith("DPRP, TFLite int8: every layer stays dense, as ")
        assert why in note


def test_contenders_are_refused_before_anything_is_measured() -> None:
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
    options: dict[str, Any] = {"title": "", "command": "", "settings": {}}
    digits = load("digits", image_size=8)
    with pytest.raises(ValueError, match="none of them called 'dense'"):
        compare_models("x", model, {"dense": Contender("A", model, "")}, digits, **options)
    with pytest.raises(ValueError, match=r"`judged_by` must be one of .*'TFLite int4'"):
        compare_models("x", model, {"a": Contender("A", model, "TFLite int4")}, digits, **options)
