"""A study of Optuna in a database, with trials that several processes evaluate.

One process, which runs the training, decides which trials there are. It adds each with the number and the parameters
that it has drawn. Every process claims waiting trials; Optuna's database transactions give a trial to one of them. A
process that evaluates a trial renews its heartbeat. A trial without one is marked as failed, and added again.
"""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from towline.config.passwords import mask_passwords
from towline.errors import ConfigError, TransientError

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

HEARTBEAT_S = 5  # seconds between two heartbeats of a process
GRACE_S = 30  # seconds without a heartbeat after which a trial is given to another process
_NUMBER, _DRAWN, _RESULT = "number", "drawn", "result"  # attributes of a trial
_SEARCH, _CLOSED = "search", "closed"  # attributes of a study
_ATTEMPTS = 20  # to create the tables, which another process may create at the same time


class TrialResult(NamedTuple):
    """A complete trial.

    Attributes:
        drawn: drawn values by parameter; of a choice, its position.
        score: None: the trial failed.
        seconds: wall time.
        error: why it failed.
    """

    drawn: dict[str, Any]
    score: float | None
    seconds: float
    error: str = ""


Evaluate = Callable[[dict[str, Any]], TrialResult]


class SharedStudy:
    """The trials of one search."""

    def __init__(self, study: "Study") -> None:
        self._study = study

    @property
    def attributes(self) -> dict[str, Any]:
        """The description of the search for workers."""
        attributes: dict[str, Any] = self._study.user_attrs[_SEARCH]
        return attributes

    @property
    def name(self) -> str:
        return str(self._study.study_name)

    @property
    def is_open(self) -> bool:
        """Whether processes may claim trials."""
        return self._study.user_attrs.get(_CLOSED) is False

    def results(self) -> dict[int, TrialResult]:
        """The complete trials by number."""
        complete = [(number, trial.user_attrs.get(_RESULT)) for number, trial in self._trials("COMPLETE", "PRUNED")]
        return {number: TrialResult(**result) for number, result in complete if result is not None}

    def open_numbers(self) -> set[int]:
        """Numbers of the trials that wait or are evaluated; those of lost processes are marked as failed before."""
        from optuna.storages import fail_stale_trials

        with _no_experimental_warning():
            fail_stale_trials(self._study)
        return {number for number, _ in self._trials("WAITING", "RUNNING")}

    def has_running_trial(self) -> bool:
        return any(True for _ in self._trials("RUNNING"))

    def add(self, number: int, drawn: Mapping[str, Any]) -> None:
        """Adds a trial, which waits for a process."""
        self._study.enqueue_trial({}, user_attrs={_NUMBER: number, _DRAWN: dict(drawn)})

    def add_result(self, number: int, result: TrialResult) -> None:
        """Adds a trial that is complete."""
        from optuna.trial import TrialState, create_trial

        attributes = {_NUMBER: number, _DRAWN: result.drawn, _RESULT: result._asdict()}
        self._study.add_trial(create_trial(state=TrialState.PRUNED, user_attrs=attributes))

    def evaluate_waiting_trial(self, evaluate: Evaluate) -> tuple[int, TrialResult] | None:
        """Claims and evaluates a trial; None if none waits, or if another process has taken it over.

        An error of ``evaluate``, or an interrupt, gives the trial back.
        """
        from optuna import TrialPruned

        if next(self._trials("WAITING"), None) is None:
            return None
        complete: list[tuple[int, TrialResult]] = []
        lost: list[int] = []

        def objective(trial: "Trial") -> float:
            if (number := trial.user_attrs.get(_NUMBER)) is None:
                raise TrialPruned  # another process was faster; Optuna has made a trial without a number
            result = evaluate(trial.user_attrs[_DRAWN])
            if self._is_lost(trial.number):
                lost.append(number)
                raise TrialPruned
            trial.set_user_attr(_RESULT, result._asdict())
            complete.append((number, result))
            if result.score is None:
                raise TrialPruned
            return result.score

        try:
            self._study.optimize(objective, n_trials=1)  # an error or an interrupt marks the trial as failed
        except (KeyError, UnboundLocalError, ValueError):  # Optuna's, for a trial or a study that has ended
            if not lost:
                raise
        return complete[0] if complete else None

    def _is_lost(self, place: int) -> bool:
        """Whether a trial that this process evaluates was marked as failed, or its study was removed."""
        from optuna.trial import TrialState

        try:
            return bool(self._study.get_trials(deepcopy=False)[place].state != TrialState.RUNNING)
        except (IndexError, KeyError):
            return True

    def close(self) -> None:
        """Ends the search: no process claims a trial of it any more."""
        self._study.set_user_attr(_CLOSED, True)

    def _trials(self, *states: str) -> "Iterator[tuple[int, FrozenTrial]]":
        from optuna.trial import TrialState

        for trial in self._study.get_trials(deepcopy=False, states=tuple(TrialState[state] for state in states)):
            if _NUMBER in trial.user_attrs:
                yield trial.user_attrs[_NUMBER], trial


@contextmanager
def create_study(url: str, name: str, attributes: Mapping[str, Any], *, maximize: bool) -> Iterator[SharedStudy]:
    """A study, which is created or continued; it is removed at the end of the block unless that raises an error.

    Args:
        url: of the database.
        name: of the study.
        attributes: the description of the search for workers.
        maximize: whether a greater score is better.

    Raises:
        ConfigError: the address is not one of a database.
        TransientError: the database cannot be used.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with _database_errors(url):
        storage, direction = _open(url), "maximize" if maximize else "minimize"
        study = optuna.create_study(storage=storage, study_name=name, direction=direction, load_if_exists=True)
        study.set_user_attr(_SEARCH, dict(attributes))
        study.set_user_attr(_CLOSED, False)
        yield SharedStudy(study)
        study.set_user_attr(_CLOSED, True)
        optuna.delete_study(study_name=name, storage=storage)


def open_studies(url: str) -> list[SharedStudy]:
    """The studies that are not closed.

    Raises:
        ConfigError: the address is not one of a database.
        TransientError: the database cannot be reached.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    studies = []
    with _database_errors(url):
        storage = _open(url)
        for name in optuna.get_all_study_names(storage):
            try:
                study = SharedStudy(optuna.load_study(study_name=name, storage=storage))
                if study.is_open:
                    studies.append(study)
            except KeyError:  # another process has removed it
                continue
    return studies


def _open(url: str) -> "RDBStorage":
    import sqlalchemy as sa
    from optuna.storages import RDBStorage

    try:
        parsed = sa.make_url(url)
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        is_sqlite = parsed.get_backend_name() == "sqlite"
        parsed.get_dialect().import_dbapi()
    except (sa.exc.ArgumentError, ImportError) as error:
        remedy = "write sqlite:////path/search.db or postgresql://user@host/database"
        raise ConfigError(str(error), where="TOWLINE_SEARCH_URL", remedy=remedy) from None
    options = {"connect_args": {"timeout": 60}} if is_sqlite else {"pool_pre_ping": True}
    for attempt in range(_ATTEMPTS):
        try:
            with _no_experimental_warning():
                text = parsed.render_as_string(hide_password=False)
                return RDBStorage(text, options, heartbeat_interval=HEARTBEAT_S, grace_period=GRACE_S)
        except (sa.exc.IntegrityError, sa.exc.OperationalError, sa.exc.ProgrammingError) as error:
            if attempt == _ATTEMPTS - 1 or "already exists" not in str(error).lower():
                raise
            time.sleep(0.2)
    raise AssertionError


@contextmanager
def _database_errors(url: str) -> Iterator[None]:
    import sqlalchemy as sa

    try:
        yield
    except sa.exc.DBAPIError as error:
        raise TransientError(
            f"the database of the search cannot be used: {str(error.orig).splitlines()[0]}",
            where=mask_passwords(url),
            remedy="check that it runs and that TOWLINE_SEARCH_URL names it, then run the same command again",
        ) from error


@contextmanager
def _no_experimental_warning() -> Iterator[None]:
    """Optuna calls its heartbeats experimental since version 2.9."""
    from optuna.exceptions import ExperimentalWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
