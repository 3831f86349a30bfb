"""What a search does next, on made-up models whose every score is known beforehand."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dprp_tf.compression.goal import Goal, front
from dprp_tf.compression.outcome import FILES, Candidate, Dense, Outcome
from dprp_tf.compression.random_schedule import RandomSchedule
from dprp_tf.compression.schedule import SHARES, Schedule, Step
from dprp_tf.compression.settings import CompressionSettings

DENSE = Dense(score=0.87, milliseconds=2.0, size_bytes=300_000, epoch_seconds=40.0, samples=5000)


@dataclass
class World:
    """A model whose cuts, trained long enough, lose `scale` times the square of what is cut.

    Cut alone it loses eight times that; training closes the gap by a half every three epochs, and
    wins `gain` besides. Ranks alone lose twice as much. Cuts below `least` do not exist. Files lose
    `rounding` besides, a tenth of it when trained with it. Trainings by what is in `diverging`
    come to nothing, but for the smallest rate.
    """

    scale: float = 0.05
    least: float = 0.2
    cutting: float = 15.0
    file: float = 20.0
    gain: float = 0.0
    rounding: float = 0.0
    diverging: tuple[str, ...] = ()
    whole: dict[int | None, float] = field(default_factory=dict)

    def score(self, candidate: Candidate, epochs: float) -> float:
        last = self.scale * (1 - candidate.share) ** 2 * (2 if candidate.cut == "ranks" else 1)
        learned = 1 - 0.5 ** (epochs / 3)
        return DENSE.score + self.gain * learned - last * (8 - 7 * learned)

    def run(
        self,
        goal: Goal,
        seconds: float,
        seed: int = 0,
        most: int = 500,
        kind: type[Schedule] | type[RandomSchedule] = Schedule,
    ) -> tuple[list[Outcome], float]:
        """Do what the schedule says until it ends; return all steps, and the seconds left."""
        random = np.random.default_rng(seed)
        schedule, left, done = kind(goal, seconds, self.file), seconds, []
        for number in range(most):
            step = schedule.next(done, left)
            if step is None:
                return done, left
            outcome, took = self.do(number, step, random)
            done.append(outcome)
            left -= took
        raise AssertionError("the search has no end")

    def do(self, number: int, step: Step, random: np.random.Generator) -> tuple[Outcome, float]:
        candidate = step.candidate
        if candidate is None:
            cut = ("both", "channels", "ranks")[random.integers(3)]
            candidate = Candidate(cut, round(float(random.uniform(*SHARES)), 3))
        share = candidate.share
        if step.stage == "cut":
            if share < self.least:
                values = {"seconds": self.cutting}
                return Outcome(number, "cut", candidate, "missed", values=values), self.cutting
            score, values = self.score(candidate, 0), {"seconds": self.cutting}
            found = Outcome(
                number, "cut", candidate, "complete", score, share, share, values=values
            )
            return found, self.cutting
        each = DENSE.epoch_seconds * share
        values = {
            "epochs": step.epochs,
            "optimizer": step.optimizer,
            "learning_rate": step.learning_rate,
            "goes_on": step.goes_on,
            "epoch_seconds": each,
        }
        if step.optimizer in self.diverging and step.learning_rate != 0.01:
            values["missed"] = "Training diverged"
            return Outcome(
                number, step.stage, candidate, "missed", of=step.of, values=values
            ), 0.2 * each
        # Two of the three recipes are a little worse here.
        lost = 0.0 if step.learning_rate > 0.02 else 0.002
        if step.stage == "narrow":
            lost += 0.02
        score = self.score(candidate, step.epochs) - lost
        if step.stage == "quantized":
            score = self.whole[step.of]
        elif step.stage == "finished":
            self.whole[step.of] = score
        if step.stage in FILES:
            values["model_score"] = score
            score -= self.rounding * (0.1 if step.stage == "quantized" else 1)
        outcome = Outcome(
            number, step.stage, candidate, "complete", score, share, share, step.of, values
        )
        return outcome, step.epochs * each + (0.0 if step.stage == "tuned" else self.file)

    def fastest(self, drop: float) -> float:
        """The least share that loses no more, trained for long."""
        shares = np.linspace(self.least, 1, 1000)
        able = [s for s in shares if DENSE.score - self.score(Candidate("both", s), 60) <= drop]
        return float(min(able))


def _best(outcomes: list[Outcome], goal: Goal) -> Outcome:
    finished = [one for one in outcomes if one.is_file]
    return max(finished, key=lambda one: goal.rank(one.score, one.time, one.size))


@pytest.mark.parametrize("gain", [0.0, 0.006])
@pytest.mark.parametrize("scale", [0.01, 0.03, 0.06, 0.12])
def test_it_ends_near_the_fastest_that_will_do(scale: float, gain: float) -> None:
    goal, world = Goal(CompressionSettings(max_drop=0.005), DENSE), World(scale, gain=gain)
    outcomes, _ = world.run(goal, 3600)
    best = _best(outcomes, goal)
    assert goal.meets(best.score, best.time, best.size)
    assert best.time <= world.fastest(0.005) + 0.12


@settings(max_examples=40, deadline=None)
@given(
    scale=st.floats(0.002, 0.3),
    least=st.floats(0.08, 0.7),
    cutting=st.floats(1, 120),
    file=st.floats(2, 60),
    seconds=st.floats(120, 7200),
    seed=st.integers(0, 3),
)
def test_whatever_the_model_it_keeps_the_time_and_finishes_something(
    scale: float, least: float, cutting: float, file: float, seconds: float, seed: int
) -> None:
    goal, world = Goal(CompressionSettings(), DENSE), World(scale, least, cutting, file)
    outcomes, left = world.run(goal, seconds, seed)
    # The last step may be a cut, whose length nobody knows beforehand.
    assert left > -(cutting + 0.05 * seconds + 1)
    if any(one.stage == "cut" and one.done for one in outcomes) and seconds > 6 * (cutting + file):
        assert any(one.stage == "finished" for one in outcomes)


def test_cuts_come_first_then_a_little_training_then_training_to_the_end() -> None:
    goal = Goal(CompressionSettings(max_drop=0.01), DENSE)
    outcomes, _ = World().run(goal, 3600)
    stages = [one.stage for one in outcomes]
    assert stages[: stages.index("tuned")].count("cut") == stages.index("tuned") >= 6
    assert stages.index("tuned") < stages.index("finished")
    assert [one.candidate for one in outcomes[:2]] == [Candidate("both", s) for s in (0.65, 0.5)]


def test_the_first_that_is_tuned_is_tuned_by_every_recipe_and_the_best_one_stays() -> None:
    outcomes, _ = World().run(Goal(CompressionSettings(max_drop=0.01), DENSE), 3600)
    tuned = [one for one in outcomes if one.stage == "tuned"]
    recipes = [(one.values["optimizer"], one.values["learning_rate"]) for one in tuned]
    assert len({one.of for one in tuned[:3]}) == 1
    assert recipes[:3] == [("sgd", 0.05), ("adam", 0.003), ("sgd", 0.01)]
    finished = [one for one in outcomes if one.stage == "finished"]
    later = [(one.values["optimizer"], one.values["learning_rate"]) for one in finished]
    assert set(recipes[3:] + later) == {("sgd", 0.05)}


@pytest.mark.parametrize("diverging", [("sgd",), ("adam",), ("sgd", "adam")])
def test_recipes_that_diverge_are_left_to_those_that_do_not(diverging: tuple[str, ...]) -> None:
    goal = Goal(CompressionSettings(max_drop=0.01), DENSE)
    outcomes, _ = World(diverging=diverging).run(goal, 3600)
    finished = [one for one in outcomes if one.stage == "finished"]
    assert finished
    assert all(one.done for one in finished)
    best = _best(outcomes, goal)
    assert goal.meets(best.score, best.time, best.size)


@pytest.mark.parametrize("drop", [0.005, 0.05])
def test_one_narrower_network_is_trained_beside_the_best_where_it_is_wished(drop: float) -> None:
    wish = CompressionSettings(max_drop=drop, narrow=True)
    outcomes, left = World().run(Goal(wish, DENSE), 3600)
    files = [one for one in outcomes if one.stage in ("finished", "narrow")]
    (narrow,) = (one for one in files if one.stage == "narrow")
    before = files[: files.index(narrow)]
    best = _best([one for one in before if one.stage == "finished"], Goal(wish, DENSE))
    assert narrow.candidate == Candidate("channels", best.candidate.share)
    # It is trained about as long as the others.
    assert narrow.values["epochs"] >= 0.5 * best.values["epochs"]
    assert left > -200
    plain, _ = World().run(Goal(CompressionSettings(max_drop=drop), DENSE), 3600)
    assert "narrow" not in {one.stage for one in plain}


def test_what_rounding_alone_keeps_from_being_the_best_is_trained_with_it() -> None:
    goal = Goal(CompressionSettings(max_drop=0.005), DENSE)
    outcomes, left = World(rounding=0.006).run(goal, 3600)
    trained = [one for one in outcomes if one.stage == "quantized"]
    assert trained
    for one in trained:
        (before,) = (o for o in outcomes if o.stage == "finished" and o.of == one.of)
        assert one.score > before.score
    best = _best(outcomes, goal)
    assert best.stage == "quantized"
    assert goal.meets(best.score, best.time, best.size)
    assert left > -200
    for other in (
        World().run(goal, 3600)[0],
        World(rounding=0.006).run(
            Goal(CompressionSettings(max_drop=0.005, precision="float32"), DENSE), 3600
        )[0],
    ):
        assert "quantized" not in {one.stage for one in other}


@pytest.mark.parametrize("verified", [True, False])
def test_a_file_that_is_not_verified_ends_no_search(verified: bool) -> None:
    goal = Goal(CompressionSettings(max_drop=0.01, precision="float32"), DENSE)
    outcomes, _ = World().run(goal, 3600)
    at = next(k for k, one in enumerate(outcomes) if one.stage == "finished")
    first = outcomes[at]
    values = {**first.values, "file": {"verified": verified}}
    # It seems to be the fastest that could be, and to lose nothing.
    seeming = replace(first, score=DENSE.score, time=SHARES[0], values=values)
    step = Schedule(goal, 3600, 20).next([*outcomes[:at], seeming], 1500)
    assert (step is not None and step.stage == "finished") != verified


def test_what_another_worker_has_the_files_of_is_left_to_it() -> None:
    goal = Goal(CompressionSettings(max_drop=0.005), DENSE)
    outcomes, _ = World(rounding=0.006).run(goal, 3600)
    at = next(k for k, one in enumerate(outcomes) if one.stage == "quantized")
    mine = outcomes[:at]
    theirs = [
        replace(one, values={**one.values, "elsewhere": True}) if one.stage == "finished" else one
        for one in mine
    ]
    schedule = Schedule(goal, 3600, 20)
    (own, other) = (schedule.next(known, 1500) for known in (mine, theirs))
    assert own is not None
    assert own.stage == "quantized"
    assert other is None or other.stage != "quantized"


def test_a_training_to_the_end_that_diverges_is_done_by_another_recipe() -> None:
    goal = Goal(CompressionSettings(max_drop=0.01), DENSE)
    outcomes, _ = World().run(goal, 3600)
    at = next(k for k, one in enumerate(outcomes) if one.stage == "finished")
    diverged = replace(outcomes[at], state="missed", score=0.0)
    step = Schedule(goal, 3600, 20).next([*outcomes[:at], diverged], 1500)
    assert step is not None
    assert (step.stage, step.of) == ("finished", diverged.of)
    assert (step.optimizer, step.learning_rate) != (
        diverged.values["optimizer"],
        diverged.values["learning_rate"],
    )


def test_what_beats_nothing_is_not_trained() -> None:
    outcomes, _ = World().run(Goal(CompressionSettings(max_drop=0.01), DENSE), 3600)
    cuts = {one.number: one for one in outcomes if one.stage == "cut" and one.done}
    trained = {one.of for one in outcomes if one.stage != "cut"}
    # Ranks alone lose twice as much in this world, so another cut of the same share beats them.
    beaten = {number for number in cuts if number not in {o.number for o in front(cuts.values())}}
    assert beaten
    assert not trained & beaten


def test_nothing_slower_than_what_will_do_is_trained_to_the_end() -> None:
    goal = Goal(CompressionSettings(max_drop=0.01), DENSE)
    outcomes, _ = World().run(goal, 7200)
    least = 1.0
    for one in outcomes:
        if one.stage != "finished":
            continue
        assert one.time < least
        if goal.meets(one.score, one.time, one.size):
            least = one.time


@pytest.mark.parametrize(("bound", "of"), [(1.2, "time"), (0.8, "time"), (180, "size")])
def test_with_a_bound_of_time_or_size_the_most_accurate_within_it_comes_out(
    bound: float, of: str
) -> None:
    wish = {"milliseconds": bound} if of == "time" else {"kilobytes": bound}
    goal, world = Goal(CompressionSettings(**wish), DENSE), World()
    outcomes, _ = world.run(goal, 3600)
    best = _best(outcomes, goal)
    share = bound / 2 if of == "time" else bound / 300
    assert getattr(best, of) <= share
    # As accurate as a cut that uses nearly all of the bound, trained for long.
    assert best.score >= world.score(Candidate("both", share - 0.08), 12)


def test_what_failed_is_forgotten_and_what_is_missed_is_not_tried_again() -> None:
    goal = Goal(CompressionSettings(), DENSE)
    schedule = Schedule(goal, 3600, 20)
    failed = Outcome(0, "cut", Candidate("both", 0.65), "failed")
    missed = Outcome(0, "cut", Candidate("both", 0.65), "missed")
    again, other = (schedule.next([one], 3600) for one in (failed, missed))
    assert again is not None
    assert other is not None
    assert (again.candidate, other.candidate) == (Candidate("both", 0.65), Candidate("both", 0.5))


def test_what_another_worker_is_at_is_left_to_it() -> None:
    goal = Goal(CompressionSettings(max_drop=0.01), DENSE)
    outcomes, _ = World().run(goal, 3600)
    at = next(k for k, one in enumerate(outcomes) if one.stage == "finished")
    schedule, left = Schedule(goal, 3600, 20), 1700.0
    mine = schedule.next(outcomes[:at], left)
    assert mine is not None
    assert mine.stage == "finished"
    theirs = Outcome(at, "finished", outcomes[at].candidate, "running", of=mine.of)
    other = schedule.next([*outcomes[:at], theirs], left)
    assert other is None or (other.stage, other.of) != ("finished", mine.of)


def test_a_training_is_told_as_a_part_of_an_epoch_where_a_whole_one_takes_too_long() -> None:
    slow = Dense(0.87, 2.0, 300_000, epoch_seconds=1000.0, samples=5000)
    goal, world = Goal(CompressionSettings(max_drop=0.01), slow), World()
    schedule = Schedule(goal, 3600, 20)
    cuts = [
        world.do(number, Step("cut", Candidate("both", share)), np.random.default_rng(0))[0]
        for number, share in enumerate((0.65, 0.5, 0.8, 0.35))
    ]
    step = schedule.next(cuts, 2600)
    assert step is not None
    assert step.stage == "tuned"
    # A sixth of a quarter of the time.
    assert step.epochs == pytest.approx(0.15)


@pytest.mark.parametrize("seed", range(3))
def test_the_same_steps_lead_to_the_same_next_one(seed: int) -> None:
    goal, world = Goal(CompressionSettings(), DENSE), World()
    first, second = (world.run(goal, 1800, seed)[0] for _ in range(2))
    assert first == second


@pytest.mark.parametrize("seed", range(3))
def test_random_search_trains_what_it_draws_for_equal_parts_of_the_time(seed: int) -> None:
    goal, world = Goal(CompressionSettings(max_drop=0.01, sampler="random"), DENSE), World()
    outcomes, left = world.run(goal, 3600, seed, kind=RandomSchedule)
    assert {one.stage for one in outcomes} == {"cut", "finished"}
    finished = [one for one in outcomes if one.stage == "finished"]
    # Those that are small train faster than was reckoned with, so there are more than six.
    assert len(finished) >= 6
    assert len({one.values["epochs"] for one in finished[:6]}) == 1
    drawn = [one.candidate for one in outcomes if one.stage == "cut" and one.done]
    assert [one.candidate for one in finished] == drawn[: len(finished)]
    assert -60 < left < 600
    # The staged search ends with something faster that keeps the accuracy, whatever is drawn.
    staged = _best(world.run(goal, 3600, seed)[0], goal)
    found = _best(outcomes, goal)
    assert goal.rank(staged.score, staged.time, 0) > goal.rank(found.score, found.time, 0)
