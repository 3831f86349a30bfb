"""The study that a search is kept in: what was done, what is running, what is done next."""

from __future__ import annotations

import contextlib
import hashlib
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dprp_tf.compression.outcome import CUTS, STAGES, Candidate, Outcome
from dprp_tf.compression.schedule import SHARES, Step
from dprp_tf.files.extras import require
from dprp_tf.files.json_text import from_json, to_json

if TYPE_CHECKING:
    import optuna

__all__ = ["CompressionStudy", "MissedError", "Result", "StepCallback", "Task"]

StepCallback = Callable[["optuna.Study", "optuna.trial.FrozenTrial"], None]
"""What Optuna calls after every step, with its study and the trial of the step."""

_NAME = "compression"
_IDENTITY = "identity"
# Seconds between signs of life of a worker, and without one until its work is given back.
_HEARTBEAT, _GRACE = 10, 40
# What a training is given; kept with a trial from its beginning.
_OF_STEP = ("of", "epochs", "optimizer", "learning_rate", "goes_on")
_VALUES = "values"


@dataclass(frozen=True)
class Task:
    """A step that was begun.

    Attributes:
        number: Its number in the study.
        candidate: What it is done to.
        step: The step.
    """

    number: int
    candidate: Candidate
    step: Step


@dataclass(frozen=True)
class Result:
    """What came of a step.

    Attributes:
        score: Accuracy on the validation samples.
        time: Share of the dense file's time.
        size: Share of its bytes.
        values: What else is to be kept, JSON-ready.
    """

    score: float
    time: float
    size: float
    values: Mapping[str, Any] = field(default_factory=dict)


class MissedError(ValueError):
    """A step that comes to nothing: there is no such cut, or its training diverges."""


class CompressionStudy:
    """An Optuna study of steps, on SQLite in a folder or on a server that workers share.

    Args:
        folder: Where the study lies, unless it lies on a server.
        identity: What all results depend on, JSON-ready values by name.
        storage: Address of the server, such as `"postgresql://user@host/name"`; None for SQLite.
        sampler: `"tpe"` or `"random"`.
        seed: Seed of the sampler.
        callbacks: Called with Optuna's study and its trial after every step.

    Raises:
        ValueError: If the study is of something else, or the server can't be reached.
        ImportError: If Optuna is absent.

    Example:

    >>> import tempfile
    >>> study = CompressionStudy(Path(tempfile.mkdtemp()), {"model": "a"})
    >>> study.run(Step("cut", Candidate("both", 0.5)), lambda task: Result(0.8, 0.5, 0.6))
    >>> [(one.number, one.candidate.share, one.score) for one in study.outcomes()]
    [(0, 0.5, 0.8)]
    """

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, Any],
        *,
        storage: str | None = None,
        sampler: str = "tpe",
        seed: int = 0,
        callbacks: Sequence[StepCallback] = (),
    ) -> None:
        self._optuna = require("optuna", extra="search", feature="A search for the best file")
        self._optuna.logging.set_verbosity(self._optuna.logging.ERROR)
        self._alone, self._callbacks = storage is None, list(callbacks)
        place = hashlib.sha256(f"{platform.node()} {folder.resolve()}".encode())
        # A folder of its own may be moved.
        self._worker = "" if storage is None else place.hexdigest()[:12]
        self._storage = self._open(folder, storage)
        with _unexperimental(self._optuna):
            self._study: optuna.Study = self._optuna.create_study(
                study_name=_NAME,
                storage=self._storage,
                directions=["maximize", "minimize", "minimize"],
                load_if_exists=True,
            )
        self._require_same(identity, folder if storage is None else storage)
        # Gone on with, the same seed would draw the same again.
        drawn = seed + 7919 * len(self._study.get_trials(deepcopy=False))
        if not self._alone:
            # So would workers that begin together.
            drawn += int.from_bytes(hashlib.sha256(str(folder.resolve()).encode()).digest()[:2])
        samplers = self._optuna.samplers
        kind = {"tpe": samplers.TPESampler, "random": samplers.RandomSampler}[sampler]
        self._study.sampler = kind(seed=drawn % 2**31)
        if self._alone:
            self._give_back()

    def _open(self, folder: Path, storage: str | None) -> Any:
        storages = self._optuna.storages
        if storage is None:
            folder.mkdir(parents=True, exist_ok=True)
            return storages.RDBStorage(
                f"sqlite:///{folder.resolve() / 'study.sqlite3'}",
                engine_kwargs={"connect_args": {"timeout": 60}},
            )
        with _unexperimental(self._optuna):
            try:
                return storages.RDBStorage(
                    # The driver that comes with the extra.
                    storage.replace("postgresql://", "postgresql+psycopg://", 1),
                    heartbeat_interval=_HEARTBEAT,
                    grace_period=_GRACE,
                    heartbeat_stale_trial_callback=storages.RetryHeartbeatStaleTrialCallback(),
                )
            except Exception as error:  # each driver has errors of its own
                reason = str(error).strip().splitlines() or [type(error).__name__]
                raise ValueError(
                    "`storage` must be the address of a database that can be reached, such as "
                    f"postgresql://user@host/name. Received: {_without_password(storage)} "
                    f"({reason[0]})"
                ) from error

    def _require_same(self, identity: Mapping[str, Any], place: Any) -> None:
        wanted = from_json(to_json(identity))
        found = self._study.user_attrs.get(_IDENTITY)
        if found is None:
            self._study.set_user_attr(_IDENTITY, wanted)
            return
        differing = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
        if differing:
            raise ValueError(
                "A study must be of the same model, data and settings. Received: that in "
                f"{_without_password(str(place))}, which differs in {differing}; use another "
                "folder or database."
            )

    def _give_back(self) -> None:
        """What an interrupted process had begun is done again, first of all."""
        state = self._optuna.trial.TrialState
        for trial in self._study.get_trials(deepcopy=False, states=(state.RUNNING,)):
            self._study.tell(trial.number, state=state.FAIL)
            self._again(trial)

    def _again(self, trial: Any) -> None:
        """Put a step at the head of what is to be done, just as it was: its training goes on."""
        self._study.enqueue_trial({**_fixed(trial), **trial.params}, user_attrs=_given(trial))

    def attribute(self, name: str) -> Any:
        """Return what `keep` kept; None if nothing was."""
        return self._study.user_attrs.get(name)

    def keep(self, name: str, value: Any) -> None:
        """Keep a JSON-ready value that all workers share."""
        self._study.set_user_attr(name, value)

    def outcomes(self) -> list[Outcome]:
        """Return all steps in their order, those that are waiting and running too.

        Those that another worker did, whose files lie there, have the value `elsewhere`.
        """
        found = []
        for trial in self._study.get_trials(deepcopy=False):
            parameters = {**_fixed(trial), **trial.params}
            if not {"cut", "share", "stage"} <= set(parameters):
                continue
            known = {**_given(trial), **trial.user_attrs.get(_VALUES, {})}
            if known.pop("worker", self._worker) != self._worker:
                known["elsewhere"] = True
            values = dict(zip(("score", "time", "size"), trial.values or (), strict=False))
            state = trial.state.name.lower()
            if state == "fail":
                state = "missed" if "missed" in known else "failed"
            found.append(
                Outcome(
                    trial.number,
                    parameters["stage"],
                    Candidate(parameters["cut"], round(parameters["share"], 3)),
                    state,
                    **values,
                    of=trial.user_attrs.get("of"),
                    values=known,
                )
            )
        return found

    def give_back_stale(self) -> None:
        """Let what a worker had begun that gives no more signs of life be done again."""
        if not self._alone:
            with _unexperimental(self._optuna):
                self._optuna.storages.fail_stale_trials(self._study)

    @property
    def waiting(self) -> bool:
        """Whether something was begun by a worker that is gone, and waits to be done again."""
        state = self._optuna.trial.TrialState.WAITING
        return bool(self._study.get_trials(deepcopy=False, states=(state,)))

    def run(self, step: Step | None, work: Callable[[Task], Result]) -> None:
        """Do a step, or first what waits to be done again.

        Args:
            step: What is to be done; None for what waits.
            work: Does it. Another error than `MissedError` ends the search, and the step counts as
                not done; one that Ctrl-C ends is done again first of all. What another worker took
                in the meantime is not done.
        """
        if step is not None and not self.waiting:
            fixed: dict[str, Any] = {"stage": step.stage}
            if step.candidate is not None:
                fixed |= {"cut": step.candidate.cut, "share": step.candidate.share}
            given = {name: getattr(step, name) for name in _OF_STEP} if step.stage != "cut" else {}
            self._study.enqueue_trial(fixed, user_attrs=given)

        begun: list[int] = []

        def objective(trial: optuna.Trial) -> tuple[float, float, float]:
            begun.append(trial.number)
            (own,) = (
                one for one in self._study.get_trials(deepcopy=False) if one.number == trial.number
            )
            if "stage" not in _fixed(own):
                raise MissedError("another worker took it, and chance alone decides no step")
            stage = trial.suggest_categorical("stage", STAGES)
            cut = trial.suggest_categorical("cut", CUTS)
            candidate = Candidate(cut, round(trial.suggest_float("share", *SHARES), 3))
            began = time.monotonic()

            def kept(**values: Any) -> dict[str, Any]:
                seconds = round(time.monotonic() - began, 1)
                return {**values, "seconds": seconds, "worker": self._worker}

            try:
                result = work(
                    Task(trial.number, candidate, Step(stage, candidate, **_given(trial)))
                )
            except MissedError as error:
                # Optuna's own state for this, pruned, is taken by its sampler for one with values.
                trial.set_user_attr(_VALUES, kept(missed=str(error)))
                raise
            trial.set_user_attr(_VALUES, from_json(to_json(kept(**result.values))))
            return result.score, result.time, result.size

        try:
            self._study.optimize(
                objective, n_trials=1, callbacks=self._callbacks, catch=(MissedError,)
            )
        except KeyboardInterrupt:
            for trial in self._study.get_trials(deepcopy=False):
                failed = trial.state == self._optuna.trial.TrialState.FAIL
                if (
                    failed
                    and "missed" not in trial.user_attrs.get(_VALUES, {})
                    and trial.number in begun
                    and "stage" in trial.params
                ):
                    self._again(trial)
            raise

    @contextlib.contextmanager
    def one_at_a_time(self, what: str) -> Iterator[None]:
        """Hold something that one worker uses at a time, such as a device.

        Args:
            what: Its name.

        Yields:
            Nothing.
        """
        if self._alone or not str(self._storage.engine.url).startswith("postgresql"):
            yield
            return
        import sqlalchemy

        key = int.from_bytes(hashlib.sha256(what.encode()).digest()[:4])
        # The server gives it free when the connection ends, however it ends.
        with self._storage.engine.connect() as connection:
            connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:key)"), {"key": key})
            try:
                yield
            finally:
                connection.execute(sqlalchemy.text("SELECT pg_advisory_unlock(:key)"), {"key": key})


def _fixed(trial: Any) -> dict[str, Any]:
    """The parameters that a step was given, of what has not begun."""
    return dict(trial.system_attrs.get("fixed_params", {}))


def _given(trial: Any) -> dict[str, Any]:
    """What a training was given."""
    return {name: trial.user_attrs[name] for name in _OF_STEP if name in trial.user_attrs}


def _without_password(address: str) -> str:
    head, separator, tail = address.rpartition("@")
    if not separator:
        return address
    scheme, _, user = head.partition("://")
    return f"{scheme}://{user.partition(':')[0]}@{tail}"


@contextlib.contextmanager
def _unexperimental(module: Any) -> Iterator[None]:
    """Without the warning that giving work back is new in Optuna."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", module.exceptions.ExperimentalWarning)
        yield
