"""The time budget of training: which fits are reduced if training would take longer than the budget.

Each candidate is fitted on small samples first (*pilot fits*), and the seconds of larger fits are estimated as a power
law of the rows. They are seconds of the processor, so other programs on the machine change them little. Two fifths of
the budget are for the cross-validation of all candidates, two fifths for the fits of the selected one on all rows; the
rest is for the other steps. Nothing is reduced if the estimates are within the budget. If cross-validation would take
longer, its slowest candidates get fewer trials of their search, then fewer rows in each fold. A candidate whose fits on
all rows would take longer is fitted on a sample of the rows, or left out if the sample would be less than a quarter.

A table that is small for the budget has no pilot fits, so its results never depend on the speed of the machine.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import joblib
import numpy as np

from towline.config import Candidate, Frozen, TrainingConfig, format_duration
from towline.data.schema.contract import Contract
from towline.data.splits import Fold, make_folds, sample_positions
from towline.data.workspace import Subset, Workspace
from towline.errors import TowlineError
from towline.processes import thread_pools
from towline.training.boosting.histogram import EarlyStoppingBoosting
from towline.training.boosting.libraries import Booster
from towline.training.estimators import VARIANT_ROWS, build_model, create_transformer, list_variants, pipeline_of
from towline.training.evaluation.metrics import predict
from towline.training.pipeline_components import Classifier, Model

CELLS_A_SECOND = 1_700  # a table with fewer cells for each second of the budget has no pilot fits
MIN_FOLD_ROWS = 1_000  # minimum rows that a fold is fitted on
MIN_TRIALS = 10  # trials of a search that remain at least
_SHARE = 0.4  # of the budget, for cross-validation, and again for the fits on all rows
_MIN_SAMPLE = 0.25  # of the rows; a candidate whose final sample would be smaller is left out
_ROWS_A_SECOND = 17  # with more rows, an estimator given by its path may be slow even if there are few columns
_TEXT_CELLS = 50  # a text takes about as long as this many numbers
_WARM_UP_ROWS = 100  # the first fit is not measured: it imports modules
_PILOT_ROWS = (500, 2_000, 8_000)
_PILOT_SHARE = 0.1  # of a candidate's share of cross-validation; a pilot fit that would take longer is not made
_EXPONENTS = (1.0, 3.0)  # bounds of the exponent that is estimated from two pilot fits
_DEFAULT_EXPONENT = 1.5  # after a single pilot fit
_THREAD_EFFICIENCY = 0.8
_SINGLE_THREADED = ("baseline", "linear")  # most of their time is preparation, which holds the interpreter's lock
# base classes of scikit-learn whose time grows faster than small samples show
_MIN_EXPONENTS = {
    "BaseLibSVM": 2.0, "BaseLabelPropagation": 2.0, "GaussianProcessClassifier": 3.0, "GaussianProcessRegressor": 3.0,
    "KernelRidge": 3.0,
}  # fmt: skip
# the time of an iteration grows linearly, and early stopping limits their number, which small samples do not reach
_MAX_EXPONENTS = {"BaseHistGradientBoosting": 1.2, "Booster": 1.2}


class CandidateLimits(Frozen):
    """How the budget limits one candidate; None means that it does not.

    Attributes:
        candidate: its name.
        seconds: estimate of the fits on all rows; None without pilot fits.
        fold_rows: maximum rows that a fold is fitted on.
        trials: of its hyperparameter search.
        final_rows: size of the sample that the final model is fitted on.
        left_out: why the candidate is not fitted, in one line; else empty.
    """

    candidate: str
    seconds: float | None = None
    fold_rows: int | None = None
    trials: int | None = None
    final_rows: int | None = None
    left_out: str = ""

    def __str__(self) -> str:
        parts = [
            "no estimate" if self.seconds is None else format_seconds(self.seconds),
            *(["left out"] if self.left_out else []),
            *([f"folds of {self.fold_rows:,} rows"] if self.fold_rows else []),
            *([f"{self.trials} trials"] if self.trials else []),
            *([f"fitted on {self.final_rows:,} rows"] if self.final_rows else []),
        ]
        return f"{self.candidate}: {', '.join(parts)}"


class BudgetLimits(Frozen):
    """How the time budget limits each candidate; without pilot fits there are no limits."""

    candidates: tuple[CandidateLimits, ...] = ()

    def __str__(self) -> str:
        return "estimates of the fits on all rows: " + "; ".join(map(str, self.candidates))

    def limits_of(self, candidate: Candidate) -> CandidateLimits:
        """The limits of a candidate."""
        named = (limits for limits in self.candidates if limits.candidate == candidate.name)
        return next(named, CandidateLimits(candidate=candidate.name))


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
        """Seconds of a fit on ``rows`` rows."""
        return self._extrapolate(self.fit_seconds, rows, self.exponents, _DEFAULT_EXPONENT)

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


@dataclass(frozen=True, eq=False)
class _Estimates:
    """Estimated seconds of one candidate.

    Attributes:
        folds: of cross-validation.
        variants: number of ``list_variants``, which are compared on at most ``VARIANT_ROWS`` rows.
        max_rows: rows that the largest fold is fitted on without a budget.
        final_fits: rows of each fit of the selected candidate.
        holdout: rows that are predicted after each of them.
    """

    candidate: Candidate
    cost: FitCost
    folds: list[Fold]
    variants: int
    max_rows: int
    final_fits: tuple[int, ...]
    holdout: int

    @property
    def trials(self) -> int:
        """Trials of the search; 0 without a search."""
        return self.candidate.search.trials if self.candidate.search else 0

    def cross_validation(self, max_rows: int | None = None, trials: int | None = None) -> float:
        """Seconds of cross-validation with at most ``max_rows`` rows in a fold, and ``trials`` trials of a search."""
        trials, rows = self.trials if trials is None else trials, max_rows or self.max_rows
        comparisons = self.variants + 1 if self.variants and rows > VARIANT_ROWS else self.variants
        seconds = (trials + 1) * self._fold_seconds(rows) + comparisons * self._fold_seconds(min(rows, VARIANT_ROWS))
        workers = count_workers(self.candidate, len(self.folds))
        return seconds / (workers * _THREAD_EFFICIENCY if workers > 1 else 1)

    def _fold_seconds(self, max_rows: int) -> float:
        """Seconds of the processor that the folds need once."""
        sizes = ((min(len(train), max_rows), len(test)) for train, test in self.folds)
        return sum(self.cost.fit(rows) + self.cost.predict(tested, rows) for rows, tested in sizes)

    def all_rows(self, max_rows: float = math.inf) -> float:
        """Seconds of the fits of the selected candidate on all rows, or on a sample of ``max_rows``."""
        sizes = [int(min(rows, max_rows)) for rows in self.final_fits]
        return sum(self.cost.fit(rows) + self.cost.predict(self.holdout, rows) for rows in sizes)

    def final_rows(self, seconds: float) -> int:
        """The largest number of rows whose fits take at most ``seconds`` s."""
        return _largest_rows(max(self.final_fits), lambda rows: self.all_rows(rows) <= seconds)


def count_workers(candidate: Candidate, folds: int) -> int:
    """The number of folds that are fitted at the same time, in threads."""
    return 1 if candidate.estimator in _SINGLE_THREADED else min(folds, joblib.cpu_count())


def find_slow_candidates(work: Workspace, config: TrainingConfig) -> list[Candidate]:
    """The candidates that need pilot fits: the table is large for the budget, or their estimator may be slow."""
    if config.budget is None:
        return []
    contract, seconds = work.contract(), config.budget.total_seconds()
    columns = sum(_TEXT_CELLS if column.kind == "text" else 1 for column in contract.feature_columns)
    classes = len(contract.classes) if len(contract.classes) > 2 else 1
    cells = work.dataset.rows * columns * classes
    return [
        candidate
        for candidate in config.single_candidates
        if cells * (candidate.search.trials if candidate.search else 1) > CELLS_A_SECOND * seconds
        or ("." in candidate.estimator and work.dataset.rows > _ROWS_A_SECOND * seconds)
    ]


def plan_fits(work: Workspace, config: TrainingConfig, clock: Callable[[], float] = time.process_time) -> BudgetLimits:
    """Measures pilot fits, and limits the slowest candidates if training would take longer than the budget.

    If every candidate would be left out, the fastest one remains, and its final model is fitted on a smaller sample.

    Args:
        work: the run's workspace, with a split table.
        config: of the training.
        clock: seconds of the processor; for tests.

    Raises:
        DataValidationError: the rows cannot be split into the folds.
    """
    slow = find_slow_candidates(work, config)
    if config.budget is None or not slow:
        return BudgetLimits()
    contract, train, seconds = work.contract(), work.subset("train"), _SHARE * config.budget.total_seconds()
    folds, holdout = make_folds(train.rows, train.labels, config), len(work.split_positions()["holdout"])
    longest = _PILOT_SHARE * seconds / len(config.single_candidates)
    max_rows = min(config.cross_validation.max_rows, max(len(rows) for rows, _ in folds))
    final_fits = _final_fits(len(train.labels), holdout, config)
    estimates = []
    for candidate in slow:
        cost = measure_cost(candidate, contract, config, train, longest, clock)
        if cost:
            listed = list_variants(candidate, contract, config, rows=len(train.labels), is_small=False)
            variants = sum(map(len, listed))
            estimates.append(_Estimates(candidate, cost, folds, variants, max_rows, final_fits, holdout))
    failed = {candidate.name for candidate in slow} - {each.candidate.name for each in estimates}
    smallest = max(MIN_FOLD_ROWS, _MIN_SAMPLE * max(final_fits))
    too_slow = [each for each in estimates if each.all_rows(smallest) > seconds]
    if too_slow and len(too_slow) + len(failed) == len(config.single_candidates):
        too_slow.remove(min(too_slow, key=_Estimates.all_rows))
    remaining = [each for each in estimates if each not in too_slow]
    share = _fair_share([each.cross_validation() for each in remaining], seconds)
    limits = [
        _leave_out(each, config.budget) if each in too_slow else _limit_candidate(each, share, seconds)
        for each in estimates
    ]
    limits += [CandidateLimits(candidate=name) for name in sorted(failed)]
    return BudgetLimits(candidates=(*limits, *_limit_ensembles(remaining, config, config.budget)))


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
        longest: seconds; a larger pilot fit is not made if it would take longer.
        clock: seconds of the processor.
    """
    cost, pools = FitCost(_exponents_of(candidate, contract, config)), thread_pools()
    positions = np.arange(len(train.labels))
    oldest = np.argsort(train.rows[config.data.time].to_numpy(), kind="stable") if config.by_time else None
    for rows in (_WARM_UP_ROWS, *_PILOT_ROWS):
        if rows > len(positions) / 2 or (cost.rows and cost.fit(rows) + cost.predict(rows, rows) > longest):
            break
        # as in the folds: the oldest rows keep near-duplicates together, and boosting then stops later
        sample = sample_positions(positions, rows, config.seed, train.labels) if oldest is None else oldest[:rows]
        test = train.features.iloc[sample_positions(positions, rows, config.seed + 1)]
        try:
            with pools.limit(limits=1), warnings.catch_warnings(action="ignore"):
                trusted, transformer = config.package.trusted, create_transformer(config)
                model = build_model(candidate, contract, config.seed, None, trusted, transformer)
                started = clock()
                model.fit(train.features.iloc[sample], train.labels[sample])
                fitted = clock()
                predict(model, test, contract)
                if rows != _WARM_UP_ROWS:
                    trees = _missing_trees(model, contract)
                    cost.add(rows, trees * (fitted - started), trees * (clock() - fitted) / rows)
        except TowlineError:
            raise
        except Exception:  # noqa: BLE001, S112 - an estimator may raise anything; cross-validation reports it
            continue
    return cost if cost.rows else None


def _missing_trees(model: Model, contract: Contract) -> float:
    """How many times more trees boosting fits in the table: one for each class, and a sample may lack classes."""
    estimate = pipeline_of(model).named_steps["estimate"]
    if not (isinstance(model, Classifier) and isinstance(estimate, EarlyStoppingBoosting | Booster)):
        return 1.0
    table, sample = (count if count > 2 else 1 for count in (len(contract.classes), len(model.positions_)))
    return table / sample


def format_seconds(seconds: float) -> str:
    """A duration to read: 40 s, 25 min, 3 h."""
    for unit, size in (("s", 1), ("min", 60), ("h", 3600)):
        if seconds < 100 * size:
            return f"{max(1, round(seconds / size))} {unit}"
    return f"{round(seconds / 86400):,} days"


def _final_fits(train: int, holdout: int, config: TrainingConfig) -> tuple[int, ...]:
    """The rows of each fit of the selected candidate; several histories are compared by a fit of each."""
    histories = len(config.data.histories)
    fits = histories + 1 if histories > 1 else 1
    return (*([train] * fits), *([train + holdout] * fits if config.refits else []))


def _fair_share(seconds: Sequence[float], total: float) -> float:
    """The limit for each of these durations with which they sum to the total; infinite if they sum to less.

    Example:
        >>> _fair_share([1, 10, 20], 15)
        7.0
        >>> _fair_share([1, 2], 15)
        inf
    """
    rest = float(total)
    for number, shortest in enumerate(sorted(seconds)):
        share = rest / (len(seconds) - number)
        if shortest > share:
            return share
        rest -= shortest
    return math.inf


def _limit_candidate(estimates: _Estimates, share: float, seconds: float) -> CandidateLimits:
    """Limits cross-validation to its share, first the trials of a search, then rows; and the final fits to seconds."""
    trials: int | None = None
    fold_rows, final_rows = estimates.max_rows, estimates.final_rows(seconds)
    if estimates.cross_validation() > share:
        if estimates.trials > MIN_TRIALS:
            trials = max(MIN_TRIALS, int(share / estimates.cross_validation(trials=0)) - 1)
        fold_rows = _largest_rows(fold_rows, lambda rows: estimates.cross_validation(rows, trials) <= share)
    return CandidateLimits(
        candidate=estimates.candidate.name,
        seconds=round(estimates.all_rows(), 3),
        fold_rows=fold_rows if fold_rows < estimates.max_rows else None,
        trials=trials,
        final_rows=final_rows if final_rows < max(estimates.final_fits) else None,
    )


def _leave_out(estimates: _Estimates, budget: timedelta) -> CandidateLimits:
    """Leaves a candidate out, with the budget that would be enough for it."""
    seconds = estimates.all_rows()
    left_out = _explain_left_out(seconds, max(estimates.final_fits), budget)
    return CandidateLimits(candidate=estimates.candidate.name, seconds=round(seconds, 3), left_out=left_out)


def _limit_ensembles(
    estimates: Sequence[_Estimates], config: TrainingConfig, budget: timedelta
) -> Iterator[CandidateLimits]:
    """Leaves an ensemble out if the fits of all its parts together would take too long."""
    for ensemble in config.ensembles:
        names = {part.name for part in config.parts_of(ensemble)}
        parts = [each for each in estimates if each.candidate.name in names]
        seconds, left_out = sum(part.all_rows() for part in parts), ""
        if seconds > _SHARE * budget.total_seconds():
            left_out = _explain_left_out(seconds, max(parts[0].final_fits), budget)
        if parts:
            yield CandidateLimits(candidate=ensemble.name, seconds=round(seconds, 3), left_out=left_out)


def _explain_left_out(seconds: float, rows: int, budget: timedelta) -> str:
    enough = timedelta(minutes=math.ceil(1.3 * seconds / _SHARE / 60))
    if enough > timedelta(hours=2):
        enough = timedelta(hours=math.ceil(enough / timedelta(hours=1)))
    return (
        f"its fits on all {rows:,} rows would take about {format_seconds(seconds)}, more than {_SHARE:.0%} of the "
        f"budget ({format_duration(budget)}); set budget: {format_duration(enough)}, or remove it from candidates"
    )


def _largest_rows(most: int, is_fast: Callable[[int], bool]) -> int:
    """The largest number of rows that is fast; ``MIN_FOLD_ROWS`` if none is."""
    rows = most
    for rows in _row_counts(most, MIN_FOLD_ROWS):
        if is_fast(rows):
            break
    return rows


def _row_counts(most: int, least: int) -> Iterator[int]:
    """Row counts with two digits below ``most``: small differences of the clock seldom change the choice."""
    yield most
    rows = most
    while rows > least:
        digits = 10 ** max(0, len(str(rows - 1)) - 2)
        rows = max(least, (rows - 1) // digits * digits)
        yield rows


def _exponents_of(candidate: Candidate, contract: Contract, config: TrainingConfig) -> tuple[float, float]:
    model = build_model(candidate, contract, config.seed, trusted=config.package.trusted)
    bases = [base.__name__ for base in type(pipeline_of(model).named_steps["estimate"]).__mro__]
    least, most = _EXPONENTS
    return max(least, *(_MIN_EXPONENTS.get(base, 0.0) for base in bases)), min(
        most, *(_MAX_EXPONENTS.get(base, most) for base in bases)
    )
