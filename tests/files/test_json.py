"""What is written as JSON is JSON: numbers that are not finite have no form there."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dprp_tf.files.atomic import json_text, read_json, write_json

INFINITE = [math.nan, math.inf, -math.inf, np.float64("nan")]


def _strict(text: str) -> Any:
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"holds {name}"))


@pytest.mark.parametrize("value", INFINITE)
def test_what_is_not_finite_is_null_at_any_depth(value: float, tmp_path: Path) -> None:
    content = {"a": value, "b": [1.5, (value, {"c": value})], "d": "NaN", "e": 3}
    wanted = {"a": None, "b": [1.5, [None, {"c": None}]], "d": "NaN", "e": 3}
    assert _strict(json_text(content)) == wanted
    write_json(tmp_path / "a.json", content)
    assert _strict((tmp_path / "a.json").read_text()) == wanted
    assert read_json(tmp_path / "a.json") == wanted


def test_what_is_finite_stays_as_it_is() -> None:
    content = {"tiny": 5e-324, "large": 1.7976931348623157e308, "whole": 10**30, "none": None}
    assert _strict(json_text(content)) == content
    assert json_text([1, 2], indent=2) == "[\n  1,\n  2\n]"


def test_what_json_has_no_form_for_is_refused() -> None:
    with pytest.raises(TypeError):
        json_text({"a": {1, 2}})
