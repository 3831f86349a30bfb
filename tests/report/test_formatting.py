"""Numbers and names as people write them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from dprp_tf.report.formatting import (
    change_text,
    clean_name,
    count_text,
    duration_text,
    error_text,
    milliseconds_text,
    number,
    percent_text,
    points_text,
    ratio_text,
    short_count_text,
    size_text,
)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (count_text(272_474), "272,474"),
        (count_text(-5), "\u22125"),
        (count_text(math.nan), "\u2013"),
        (count_text(True), "\u2013"),
        (short_count_text(999), "999"),
        (short_count_text(999_600), "1.00 M"),
        (short_count_text(0), "0"),
        (size_text(411_964), "412 kB"),
        (size_text(318), "318 B"),
        (percent_text(1.0), "100.00 %"),
        (change_text(59, 100), "\u221241 %"),
        (change_text(100.67, 100), "+0.67 %"),
        (change_text(99.96, 100), "\u22120.040 %"),
        (change_text(5, 5), "±0 %"),
        (change_text(5, 0), ""),
        (change_text(None, 5), ""),
        (points_text(0.98, 0.983), "\u22120.30 pt"),
        (points_text(0.98, 0.98), "±0.00 pt"),
        (ratio_text(0.631, [0.6, 0.66]), "0.63\u00d7 [0.60, 0.66]"),
        (ratio_text(0.631, [0.6]), "0.63\u00d7"),
        (ratio_text(0.0312), "0.031\u00d7"),
        (milliseconds_text(9.996), "10.0 ms"),
        (milliseconds_text(1234.5), "1,234 ms"),
        (duration_text(59.97), "1 min 0 s"),
        (duration_text(7_199), "2 h 0 min"),
        (error_text(3.14e-7), "3.1e\u221207"),
        (clean_name("a\nb\x00\tc"), "a b c"),
    ],
)
def test_numbers_read_as_people_write_them(said: str, expected: str) -> None:
    assert said == expected


def test_names_are_shortened_in_the_middle() -> None:
    short = clean_name("block_" + "x" * 80 + "_conv", limit=26)
    assert len(short) == 26
    assert short.startswith("block_")
    assert short.endswith("_conv")


@pytest.mark.parametrize("value", [None, "12", math.inf, math.nan, [], True, 10**400])
def test_what_is_not_a_finite_number_is_nan(value: Any) -> None:
    assert math.isnan(number(value))
