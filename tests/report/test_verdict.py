"""The headline of a run."""

from __future__ import annotations

from made_runs import (
    make_results,
)

from dprp_tf.report.verdict import verdict


def test_one_failed_check_withholds_the_verdict() -> None:
    results = make_results()
    results["headline"]["checks"][0]["passed"] = False
    outcome = verdict(results)
    assert outcome.achieved is False
    assert outcome.text.startswith("1 of 3 checks failed")
