"""JSON that any program reads: NaN is written as missing, and refused when read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dprp_tf.costs.fold_plan import FoldPlan
from dprp_tf.files.atomic import read_json, write_json
from dprp_tf.files.json_text import from_json, to_json
from dprp_tf.files.settings import require_same_settings
from dprp_tf.report.loading import load_run


def _no_constant(name: str) -> Any:
    raise AssertionError(f"{name} is no JSON")


def test_what_json_has_no_form_for_is_written_as_missing(tmp_path: Path) -> None:
    value = {
        "val_loss": math.nan,
        "rows": [(math.inf, 1.5), [-math.inf, np.float64("nan")], {"deep": [math.nan]}],
        "true": True,
        "none": None,
        "text": "NaN",
        "large": 10**400,
    }
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=_no_constant) == {
        "val_loss": None,
        "rows": [[None, 1.5], [None, None], {"deep": [None]}],
        "true": True,
        "none": None,
        "text": "NaN",
        "large": 10**400,
    }
    assert read_json(tmp_path / "a.json") == json.loads(text)
    with pytest.raises(TypeError):
        to_json({"set": {1}, "nan": math.nan})


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "1e999", "-1e400", "[" * 10**5])
def test_what_is_no_json_is_refused(word: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"it holds|it is nested"):
        from_json(f'{{"a": [{word}]}}')
    path = tmp_path / "plan.json"
    path.write_text(f'{{"dense_cost": {word}}}', encoding="utf-8")
    for read in (FoldPlan.load, load_run, lambda p: require_same_settings(p, {}, "a selection")):
        with pytest.raises(
            ValueError,
            match=r"must hold .*plan\.json.*(it holds|it is nested)|plan\.json must hold .*it",
        ):
            read(path.parent if read is load_run else path)


def test_numbers_come_back_as_they_were() -> None:
    generator = np.random.default_rng(3)
    values = (generator.random(200) * 10.0 ** generator.integers(-300, 300, 200)).tolist()
    assert from_json(to_json(values)) == values
    assert from_json("1e-999") == 0
