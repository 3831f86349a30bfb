"""The study of a search: kept, given back, shared by workers on a real PostgreSQL server."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from postgresql_server import database, server

from dprp_tf.compression import study as studies
from dprp_tf.compression.outcome import CUTS, STAGES, Candidate, Outcome
from dprp_tf.compression.schedule import Step
from dprp_tf.compression.study import CompressionStudy, MissedError, Result, Task

# Fixtures that tests ask for by name.
__all__ = ["database", "server"]

IDENTITY = {"model": "a", "data": "b", "max_drop": 0.005}
CUT = Step("cut", Candidate("both", 0.5))


def _done(task: Task) -> Result:
    return Result(0.8, 0.5, 0.6, {"plan": {"a": [1, 2]}})


def test_steps_are_kept_with_all_that_came_of_them(tmp_path: Path) -> None:
    study = CompressionStudy(tmp_path, IDENTITY)
    study.run(CUT, _done)
    training = Step("tuned", Candidate("both", 0.5), 0, 2.0, "adam", 0.01)
    study.run(training, lambda task: Result(0.85, 0.5, 0.6, {"epoch_seconds": 3.0}))
    cut, tuned = CompressionStudy(tmp_path, IDENTITY).outcomes()
    assert (cut.stage, cut.candidate, cut.of) == ("cut", Candidate("both", 0.5), None)
    assert (cut.score, cut.time, cut.size, cut.state) == (0.8, 0.5, 0.6, "complete")
    assert cut.values["plan"] == {"a": [1, 2]}
    assert (tuned.stage, tuned.of, tuned.score) == ("tuned", 0, 0.85)
    told = {"epochs": 2.0, "optimizer": "adam", "learning_rate": 0.01, "epoch_seconds": 3.0}
    assert {name: tuned.values[name] for name in told} == told


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_cut_without_a_candidate_is_proposed(tmp_path: Path, sampler: str) -> None:
    study = CompressionStudy(tmp_path, IDENTITY, sampler=sampler)
    for _ in range(4):
        study.run(Step("cut"), _done)
    found = study.outcomes()
    assert {one.stage for one in found} == {"cut"}
    assert all(0.08 <= one.candidate.share <= 0.95 for one in found)
    assert len({one.candidate for one in found}) == 4
    # Gone on with, the same is not proposed again.
    study = CompressionStudy(tmp_path, IDENTITY, sampler=sampler)
    study.run(Step("cut"), _done)
    assert len({one.candidate for one in study.outcomes()}) == 5


def test_a_cut_that_there_is_not_is_missed_and_says_why(tmp_path: Path) -> None:
    def missed(task: Task) -> Result:
        raise MissedError("at least 0.6")

    study = CompressionStudy(tmp_path, IDENTITY)
    study.run(CUT, missed)
    (one,) = study.outcomes()
    assert (one.state, one.values["missed"], one.done) == ("missed", "at least 0.6", False)


def _wrong(error: type[BaseException]) -> Callable[[Task], Result]:
    def work(task: Task) -> Result:
        raise error

    return work


def test_what_goes_wrong_ends_the_search_and_counts_as_not_done(tmp_path: Path) -> None:
    study = CompressionStudy(tmp_path, IDENTITY)
    with pytest.raises(ZeroDivisionError):
        study.run(CUT, _wrong(ZeroDivisionError))
    assert [one.state for one in study.outcomes()] == ["failed"]
    assert not study.waiting


def test_what_another_worker_took_in_the_meantime_is_not_made_up(tmp_path: Path) -> None:
    study = CompressionStudy(tmp_path, IDENTITY)
    done: list[Task] = []

    def work(task: Task) -> Result:
        done.append(task)
        return _done(task)

    # As for one that saw something wait, which then was gone.
    study.run(None, work)
    assert (done, study.outcomes()) == ([], [])
    study.run(CUT, work)
    assert [one.state for one in study.outcomes()] == ["complete"]


def test_what_ctrl_c_ends_after_its_step_is_not_done_again(tmp_path: Path) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    study = CompressionStudy(tmp_path, IDENTITY, callbacks=[interrupted])
    with pytest.raises(KeyboardInterrupt):
        study.run(CUT, _done)
    assert [one.state for one in study.outcomes()] == ["complete"]


def test_callbacks_see_every_step_as_optuna_shows_it(tmp_path: Path) -> None:
    seen: list[tuple[int, str, list[float]]] = []

    def note(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        assert [direction.name for direction in study.directions] == [
            "MAXIMIZE",
            "MINIMIZE",
            "MINIMIZE",
        ]
        seen.append((trial.number, trial.params["stage"], trial.values))

    study = CompressionStudy(tmp_path, IDENTITY, callbacks=[note])
    study.run(CUT, _done)
    study.run(Step("tuned", Candidate("both", 0.5), 0, 2.0), _done)
    assert seen == [(0, "cut", [0.8, 0.5, 0.6]), (1, "tuned", [0.8, 0.5, 0.6])]


def test_what_is_stopped_is_done_again_first_just_as_it_was(tmp_path: Path) -> None:
    study = CompressionStudy(tmp_path, IDENTITY)
    study.run(CUT, _done)
    training = Step("tuned", Candidate("both", 0.5), 0, 3.0, "adam", 0.01)
    with pytest.raises(KeyboardInterrupt):
        study.run(training, _wrong(KeyboardInterrupt))
    again = CompressionStudy(tmp_path, IDENTITY)
    assert [one.state for one in again.outcomes()] == ["complete", "failed", "waiting"]
    seen: list[Step] = []

    def work(task: Task) -> Result:
        seen.append(task.step)
        return _done(task)

    again.run(None, work)
    assert seen == [training]


def test_what_a_killed_process_had_begun_is_done_again_first(tmp_path: Path) -> None:
    study = CompressionStudy(tmp_path, IDENTITY)
    study.run(CUT, _done)
    training = Step("finished", Candidate("both", 0.5), 0, 7.0, "adam", 0.01)
    # What a killed process leaves: a trial that runs, and nobody who runs it.
    fixed = {"stage": "finished", "cut": "both", "share": 0.5}
    given = {
        "of": 0,
        "epochs": 7.0,
        "optimizer": "adam",
        "learning_rate": 0.01,
        "goes_on": False,
    }
    study._study.enqueue_trial(fixed, user_attrs=given)
    trial = study._study.ask()
    trial.suggest_categorical("stage", STAGES)
    trial.suggest_categorical("cut", CUTS)
    trial.suggest_float("share", 0.08, 0.95)

    again = CompressionStudy(tmp_path, IDENTITY)
    assert [one.state for one in again.outcomes()] == ["complete", "failed", "waiting"]
    assert again.waiting
    seen: list[Task] = []

    def work(task: Task) -> Result:
        seen.append(task)
        return _done(task)

    again.run(Step("cut", Candidate("ranks", 0.3)), work)
    assert [task.step for task in seen] == [training]
    assert not again.waiting


@pytest.mark.parametrize("changed", list(IDENTITY))
def test_a_study_of_something_else_is_refused(tmp_path: Path, changed: str) -> None:
    CompressionStudy(tmp_path, IDENTITY).run(CUT, _done)
    with pytest.raises(ValueError, match=rf"which differs in \['{changed}'\]"):
        CompressionStudy(tmp_path, {**IDENTITY, changed: "other"})


def test_a_server_that_is_not_there_is_one_clear_line_without_the_password(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`storage` must be the address") as caught:
        CompressionStudy(
            tmp_path, IDENTITY, storage="postgresql://someone:secret@127.0.0.1:9/nothing"
        )
    assert "secret" not in str(caught.value)
    assert "someone@127.0.0.1:9/nothing" in str(caught.value)


def _worker(database: str, folder: Path, steps: int, seconds: float) -> subprocess.Popen[str]:
    script = Path(__file__).with_name("study_worker.py")
    words = [sys.executable, script, database, folder, steps, seconds]
    return subprocess.Popen(
        list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_workers_share_a_study_and_one_that_is_killed_gives_its_work_back(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    # The first sleeps in its step for ever; it is killed in it.
    dying = _worker(database, first, 1, 600)
    assert dying.stdout is not None
    begun = dying.stdout.readline()
    other = _worker(database, second, 3, 1.5)
    dying.send_signal(signal.SIGKILL)
    dying.wait()
    _, said = other.communicate(timeout=120)
    assert other.returncode == 0, said
    monkeypatch.setattr(studies, "_HEARTBEAT", 1)
    monkeypatch.setattr(studies, "_GRACE", 3)
    study = CompressionStudy(tmp_path / "third", {"model": "a"}, storage=database)
    share = float(begun.split()[1])

    def lost() -> list[Outcome]:
        return [one for one in study.outcomes() if one.candidate.share == share]

    # Whoever works next finds it, if the second did not yet.
    while not any(one.done for one in lost()):
        time.sleep(1)
        study.run(Step("cut", Candidate("ranks", 0.9)), lambda task: Result(0.5, 0.5, 0.5))
        assert len(study.outcomes()) < 30
    assert "failed" in {one.state for one in lost()}
    finished = [one.candidate.share for one in study.outcomes() if one.values.get("by")]
    assert len(finished) == len(set(finished)) == 3


def test_a_device_is_measured_by_one_worker_at_a_time(database: str, tmp_path: Path) -> None:
    studies_of_both = [
        CompressionStudy(tmp_path / name, IDENTITY, storage=database) for name in ("a", "b")
    ]
    inside, most = 0, 0
    guard = threading.Lock()

    def measure(study: CompressionStudy) -> None:
        nonlocal inside, most
        for _ in range(5):
            with study.one_at_a_time("target ssh://pi"):
                with guard:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0.02)
                with guard:
                    inside -= 1

    threads = [threading.Thread(target=measure, args=(study,)) for study in studies_of_both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == 1


def test_another_study_in_the_same_database_is_refused(database: str, tmp_path: Path) -> None:
    CompressionStudy(tmp_path / "a", IDENTITY, storage=database)
    with pytest.raises(ValueError, match=r"which differs in \['data'\]"):
        CompressionStudy(tmp_path / "b", {**IDENTITY, "data": "c"}, storage=database)


def test_chance_goes_on_drawing_where_most_cuts_do_not_exist(tmp_path: Path) -> None:
    study = CompressionStudy(tmp_path, IDENTITY)

    def few(task: Task) -> Result:
        if task.number:
            raise MissedError("there is no such cut")
        return _done(task)

    for _ in range(24):
        study.run(Step("cut"), few)
    states = [one.state for one in study.outcomes()]
    assert states == ["complete", *["missed"] * 23]
