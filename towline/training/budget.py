"""The time budget of training: which candidates are left out of it, and how many rows the others are fitted on.

On a large table each candidate is fitted on small samples first (*pilot fits*). The seconds of a fit are estimated as a
power law of its rows. One half of the budget is for cross-validation, with an equal share for each candidate; the other
half is for the fits of the selected candidate on all rows. Small tables need no pilot fits, so their results never
depend on the speed of the machine.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import joblib
import numpy as np
from threadpoolctl import ThreadpoolController

from towline.config import Candidate, Frozen, TrainingConfig, format_duration
from towline.data.schema.contract import Contract
from towline.data.splits import Fold, make_folds
from towline.data.workspace import Subset, Workspace
from towline.errors import TowlineError
from towline.training.estimators import build_model, pipeline_of
from towline.training.evaluation.metrics import predict

PILOT_CELLS = 1_000_000  # smaller tables need no pilot fits
PILOT_ROWS = (500, 2_000, 8_000)
MIN_ROWS = 1_000  # a fold is fitted on so many rows at least
_SLOW_ROWS = 10_000  # from here on, a user's estimator may be slow even if the table has few columns
_TEXT_CELLS = 50  # a text takes about as long as so many numbers
_PILOT_SHARE = 0.1  # of a candidate's share: the next pilot fit must not be longer
_EXPONENTS = (1.0, 3.0)  # of the seconds of a fit by its rows
_UNKNOWN_EXPONENT = 1.5  # after a single pilot fit
_THREAD_EFFICIENCY = 0.8
_SINGLE_THREADED = ("baseline", "linear")  # most of their time is preparation, which holds the interpreter's lock
# base classes of scikit-learn whose time grows faster than small samples show
_KNOWN_EXPONENTS = {
    "BaseLibSVM": 2.0, "BaseLabelPropagation": 2.0, "GaussianProcessClassifier": 3.0, "GaussianProcessRegressor": 3.0,
    "KernelRidge": 3.0,
}  # fmt: skip


class CandidateLimits(Frozen):
    """How the budget limits one candidate.

    Attributes:
        candidate: its name.
        fit_seconds: estimated seconds of the fits on all rows.
        fold_rows: a fold is fitted on at most so many rows; None: only ``cross_validation.max_rows`` limits them.
        fit_rows: the final model is fitted on a sample of so many rows; None: on all.
        search_seconds: limit of a hyperparameter search.
        left_out: why the candidate is not fitted, in one line; else empty.
    """

    candidate: str
    fit_seconds: float | None = None
    fold_rows: int | None = None
    fit_rows: int | None = None
    search_seconds: float | None = None
    left_out: str = ""


class FitPlan(Frozen):
    """How the budget limits each candidate whose pilot fits were measured."""

    limits: tuple[CandidateLimits, ...] = ()

    def limits_of(self, candidate: Candidate) -> CandidateLimits:
        """The limits of a candidate; none if it had no pilot fits."""
        named = (limits for limits in self.limits if limits.candidate == candidate.name)
        return next(named, CandidateLimits(candidate=candidate.name))

    def describe(self) -> str:
        """The estimates and the limits, in one line."""
        parts = []
        for limits in self.limits:
            text = "no estimate" if limits.fit_seconds is None else f"about {format_seconds(limits.fit_seconds)}"
            text += f", folds of {limits.fold_rows:,} rows" if limits.fold_rows else ""
            text += f", final fit on {limits.fit_rows:,} rows" if limits.fit_rows else ""
            parts.append(f"{limits.candidate} {text}{', left out' if limits.left_out else ''}")
        return "fits on all rows: " + "; ".join(parts)


@dataclass
class FitCost:
    """The seconds of a fit and of a prediction by the number of rows, estimated from pilot fits.

    Attributes:
        exponents: smallest and largest exponent of the power law.
        rows, fit_seconds, row_seconds: of each pilot fit: its rows, its seconds, and the seconds to predict one row.
    """

    exponents: tuple[float, float] = _EXPONENTS
    rows: list[int] = field(default_factory=list)
    fit_seconds: list[float] = field(default_factory=list)
    row_seconds: list[float] = field(default_factory=list)

    def add(self, rows: int, fit_seconds: float, row_seconds: float) -> None:
        """Adds a pilot fit that is larger than the ones before."""
        self.rows.append(rows)
        self.fit_seconds.append(fit_seconds)
        self.row_seconds.append(row_seconds)

    def fit(self, rows: int) -> float:
        """Seconds of a fit on so many rows."""
        return self._extrapolate(self.fit_seconds, rows, self.exponents, _UNKNOWN_EXPONENT)

    def predict(self, rows: int, fitted_rows: int) -> float:
        """Seconds to predict rows by a model that was fitted on ``fitted_rows``."""
        return rows * self._extrapolate(self.row_seconds, fitted_rows, (0.0, 1.0), 0.5)

    def _extrapolate(self, seconds: list[float], rows: int, bounds: tuple[float, float], default: float) -> float:
        exponent = default
        if len(seconds) > 1:
            last, before = max(seconds[-1], 1e-6), max(seconds[-2], 1e-6)
            exponent = math.log(last / before) / math.log(self.rows[-1] / self.rows[-2])
        exponent = min(max(exponent, bounds[0]), bounds[1])
        return float(seconds[-1] * (rows / self.rows[-1]) ** exponent)


@dataclass(frozen=True)
class _Estimates:
    """Estimated seconds of one candidate, by the largest number of rows that a model is fitted on."""

    candidate: Candidate
    cost: FitCost
    folds: list[Fold]
    fitted_rows: tuple[int, ...]  # of each final fit
    holdout: int

    def cross_validation(self, limit: int) -> float:
        runs = self.candidate.search.trials + 1 if self.candidate.search else 1
        seconds = 0.0
        for train, test in self.folds:
            rows = min(len(train), limit)
            seconds += self.cost.fit(rows) + self.cost.predict(len(test), rows)
        workers = count_workers(self.candidate, len(self.folds))
        return runs * seconds / (workers * _THREAD_EFFICIENCY if workers > 1 else 1)

    def final_fits(self, limit: int | None = None) -> float:
        sizes = [rows if limit is None else min(rows, limit) for rows in self.fitted_rows]
        return sum(self.cost.fit(rows) + self.cost.predict(self.holdout, rows) for rows in sizes)


def count_workers(candidate: Candidate, folds: int) -> int:
    """The number of folds that are fitted at the same time, in threads."""
    return 1 if candidate.estimator in _SINGLE_THREADED else min(folds, joblib.cpu_count())


def needs_pilot(work: Workspace, config: TrainingConfig) -> bool:
    """Whether any candidate needs pilot fits: the table is large, or an estimator may be slow."""
    return bool(_slow_candidates(work, config))


def plan_fits(work: Workspace, config: TrainingConfig, clock: Callable[[], float] = time.perf_counter) -> FitPlan:
    """Measures pilot fits, and limits the candidates so that training takes no longer than the budget.

    A candidate is left out if its fits on all rows would take more than half of the budget. If this applies to every
    candidate, the fastest one remains, and its final model is fitted on a sample of the rows.

    Args:
        work: the run's workspace, with a split table.
        config: of the training.
        clock: seconds; for tests.

    Raises:
        DataValidationError: the rows cannot be split into the folds.
    """
    slow = _slow_candidates(work, config)
    if config.budget is None or not slow:
        return FitPlan()
    contract, train = work.contract(), work.subset("train")
    folds, positions = make_folds(train.rows, train.labels, config), work.split_positions()
    holdout = len(positions["holdout"])
    fitted_rows = (len(train.labels), *([len(train.labels) + holdout] if config.refits else []))
    share = config.budget.total_seconds() / 2 / len(config.single_candidates)
    limits = []
    for candidate in slow:
        cost = measure_cost(candidate, contract, config, train, _PILOT_SHARE * share, clock)
        if cost is None:
            limits.append(CandidateLimits(candidate=candidate.name))
            continue
        estimates = _Estimates(candidate, cost, folds, fitted_rows, holdout)
        limits.append(_limit_candidate(estimates, config, config.budget, share))
    single = _keep_one_candidate(limits, config)
    return FitPlan(limits=(*single, *_limit_ensembles(single, config, config.budget, fitted_rows)))


def measure_cost(
    candidate: Candidate,
    contract: Contract,
    config: TrainingConfig,
    train: Subset,
    longest: float,
    clock: Callable[[], float],
) -> FitCost | None:
    """The cost of a candidate, from pilot fits on samples of the train part; None if none of them succeeded.

    Args:
        candidate: to fit.
        contract: of the rows.
        config: of the training.
        train: the train part.
        longest: a pilot fit is left out if it would take more than so many seconds.
        clock: seconds.
    """
    cost, pools = FitCost(_exponents_of(candidate, contract, config)), ThreadpoolController()
    order = np.random.default_rng(config.seed).permutation(len(train.labels))
    for rows in PILOT_ROWS:
        if rows > len(order) / 2 or (cost.rows and cost.fit(rows) + cost.predict(rows, rows) > longest):
            break
        sample = np.sort(_add_classes(order[:rows], train.labels))
        test = train.features.iloc[np.sort(order[rows : 2 * rows])]
        try:
            with pools.limit(limits=1), warnings.catch_warnings(action="ignore"):
                model = build_model(candidate, contract, config.seed, trusted=config.package.trusted)
                started = clock()
                model.fit(train.features.iloc[sample], train.labels[sample])
                fitted = clock()
                predict(model, test, contract)
                cost.add(rows, fitted - started, (clock() - fitted) / rows)
        except TowlineError:
            raise
        except Exception:  # noqa: BLE001, S112 - an estimator may raise anything; cross-validation reports it
            continue
    return cost if cost.rows else None


def format_seconds(seconds: float) -> str:
    """A duration to read: 40 s, 25 min, 3 h."""
    for unit, size in (("s", 1), ("min", 60), ("h", 3600)):
        if seconds < 100 * size:
            return f"{max(1, round(seconds / size))} {unit}"
    return f"{round(seconds / 86400):,} days"


def _slow_candidates(work: Workspace, config: TrainingConfig) -> list[Candidate]:
    """The candidates whose fits may take long, by the size of the table."""
    if config.budget is None:
        return []
    rows, columns = work.dataset.rows, work.contract().feature_columns
    cells = rows * sum(_TEXT_CELLS if column.kind == "text" else 1 for column in columns)
    return [
        candidate
        for candidate in config.single_candidates
        if cells * (candidate.search.trials if candidate.search else 1) > PILOT_CELLS
        or ("." in candidate.estimator and rows > _SLOW_ROWS)
    ]


def _limit_candidate(estimates: _Estimates, config: TrainingConfig, budget: timedelta, share: float) -> CandidateLimits:
    candidate, half = estimates.candidate, budget.total_seconds() / 2
    largest = min(config.cross_validation.max_rows, max(len(train) for train, _ in estimates.folds))
    fold_rows = None
    if estimates.cross_validation(largest) > share:
        fold_rows = _largest(_row_counts(largest), lambda rows: estimates.cross_validation(rows) <= share)
    seconds, left_out, fit_rows = estimates.final_fits(), "", None
    if seconds > half:
        fit_rows = _largest(_row_counts(max(estimates.fitted_rows)), lambda rows: estimates.final_fits(rows) <= half)
        left_out = _explain_left_out(estimates.fitted_rows, seconds, budget)
    return CandidateLimits(
        candidate=candidate.name,
        fit_seconds=round(seconds, 3),
        fold_rows=fold_rows,
        fit_rows=fit_rows,
        search_seconds=share if candidate.search else None,
        left_out=left_out,
    )


def _limit_ensembles(
    limits: Sequence[CandidateLimits], config: TrainingConfig, budget: timedelta, fitted_rows: Sequence[int]
) -> Iterator[CandidateLimits]:
    """An ensemble is left out if the fits of its parts together would take more than half of the budget."""
    seconds_by_name = {each.candidate: each.fit_seconds or 0.0 for each in limits if not each.left_out}
    for ensemble in config.ensembles:
        seconds = sum(seconds_by_name.get(part.name, 0.0) for part in config.parts_of(ensemble))
        is_slow = seconds > budget.total_seconds() / 2
        left_out = _explain_left_out(fitted_rows, seconds, budget) if is_slow else ""
        yield CandidateLimits(candidate=ensemble.name, fit_seconds=round(seconds, 3), left_out=left_out)


def _explain_left_out(fitted_rows: Sequence[int], seconds: float, budget: timedelta) -> str:
    fits = (
        f"a fit on {max(fitted_rows):,} rows"
        if len(fitted_rows) == 1
        else (f"the fits on {' and '.join(f'{rows:,}' for rows in fitted_rows)} rows")
    )
    enough = timedelta(minutes=math.ceil(1.3 * 2 * seconds / 60))
    if enough > timedelta(hours=2):
        enough = timedelta(hours=math.ceil(enough / timedelta(hours=1)))
    remedy = f"set budget: {format_duration(enough)}, or remove it from candidates"
    if enough > timedelta(days=2):
        remedy = "remove it from candidates"
    return (
        f"left out: {fits} would take about {format_seconds(seconds)}, more than half of the budget "
        f"({format_duration(budget)}); {remedy}"
    )


def _keep_one_candidate(limits: Sequence[CandidateLimits], config: TrainingConfig) -> tuple[CandidateLimits, ...]:
    """If every candidate would be left out, the fastest one remains; only it is fitted on a sample at the end."""
    left_out = [each for each in limits if each.left_out]
    fastest = None
    if len(left_out) == len(config.single_candidates):
        fastest = min(left_out, key=lambda each: each.fit_seconds or math.inf)
    return tuple(each.model_copy(update={"left_out": ""} if each is fastest else {"fit_rows": None}) for each in limits)


def _row_counts(largest: int) -> Iterator[int]:
    """Row counts with two digits, from the largest down to ``MIN_ROWS``; noise of the clock seldom changes them."""
    digits = 10 ** max(0, len(str(largest)) - 2)
    rows = largest // digits * digits
    while rows > MIN_ROWS:
        yield rows
        digits = 10 ** (len(str(rows - 1)) - 2)
        rows = (rows - 1) // digits * digits
    yield min(MIN_ROWS, largest)


def _largest(row_counts: Iterator[int], is_fast: Callable[[int], bool]) -> int:
    rows = 0
    for rows in row_counts:
        if is_fast(rows):
            break
    return rows


def _exponents_of(candidate: Candidate, contract: Contract, config: TrainingConfig) -> tuple[float, float]:
    model = build_model(candidate, contract, config.seed, trusted=config.package.trusted)
    bases = type(pipeline_of(model).named_steps["estimate"]).__mro__
    return max([_EXPONENTS[0], *(_KNOWN_EXPONENTS.get(base.__name__, 0.0) for base in bases)]), _EXPONENTS[1]


def _add_classes(sample: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The sample, and for classification two rows of each class that it lacks."""
    if labels.dtype != object:
        return sample
    missing = set(labels) - set(labels[sample])
    rows = [np.flatnonzero(labels == label)[:2] for label in sorted(missing, key=str)]
    return np.concatenate([sample, *rows])
