"""Random networks on sequences and volumes: the same properties as on images."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from random_networks import Program, Tally, programs, searching

LINES = Tally("random networks, 1 axis")
VOLUMES = Tally("random networks, 3 axes")


@pytest.mark.slow
@searching(32)
@given(program=programs(1))
def test_random_networks_on_sequences(program: Program) -> None:
    LINES.check(program)


@pytest.mark.slow
@searching(33)
@given(program=programs(1))
def test_more_random_networks_on_sequences(program: Program) -> None:
    LINES.check(program)


@pytest.mark.slow
@searching(10)
@given(program=programs(3))
def test_random_networks_on_volumes(program: Program) -> None:
    VOLUMES.check(program)


@pytest.mark.slow
@searching(28)
@given(program=programs(3))
def test_more_random_networks_on_volumes(program: Program) -> None:
    VOLUMES.check(program)


@pytest.mark.parametrize("tally", [LINES, VOLUMES], ids=["lines", "volumes"])
def test_the_cases_were_of_use(
    tally: Tally,
    record_error: Callable[[str, str, float], None],
    count_case: Callable[[str, str, int], None],
) -> None:
    if tally.empty:
        pytest.skip("needs the cases of the test above: run the whole file")
    tally.report(record_error, count_case)


@pytest.mark.slow
@pytest.mark.parametrize("tally", [LINES, VOLUMES], ids=["lines", "volumes"])
def test_more_cases_were_of_use(
    tally: Tally,
    record_error: Callable[[str, str, float], None],
    count_case: Callable[[str, str, int], None],
) -> None:
    test_the_cases_were_of_use(tally, record_error, count_case)
