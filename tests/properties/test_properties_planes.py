"""Random networks on images: original = factorized, and factorized = folded in every format."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from random_networks import Program, Tally, programs, searching

TALLY = Tally("random networks, 2 axes")


@pytest.mark.slow
@searching(15)
@given(program=programs(2))
def test_random_networks_on_images(program: Program) -> None:
    TALLY.check(program)


@pytest.mark.slow
@searching(85)
@given(program=programs(2))
def test_more_random_networks_on_images(program: Program) -> None:
    TALLY.check(program)


def test_the_cases_were_of_use(
    record_error: Callable[[str, str, float], None], count_case: Callable[[str, str, int], None]
) -> None:
    if TALLY.empty:
        pytest.skip("needs the cases of the test above: run the whole file")
    TALLY.report(record_error, count_case)


@pytest.mark.slow
def test_more_cases_were_of_use(
    record_error: Callable[[str, str, float], None], count_case: Callable[[str, str, int], None]
) -> None:
    test_the_cases_were_of_use(record_error, count_case)
