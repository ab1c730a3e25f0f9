"""The promotion gate: statistical checks that decide whether a challenger may replace the champion.

The gate compares models on the holdout by a paired bootstrap. Each resample scores both models, and the standard
deviation of the difference is its standard error (Efron & Tibshirani, 1993). Limits use Student's t distribution; its
degrees of freedom are the number of resampling units (rows, groups or blocks of time, see ``bootstrap``) minus one.

Checks:

* **bounds**: each metric in ``gate.max`` and ``gate.min`` is within its bound.
* **baseline**: the challenger must be better than the baseline, with 95 % confidence. The check also passes if the
  champion is worse than the baseline and worse than the challenger: a rejection would keep the worst model in service.
  If no version serves and the holdout is too small to decide, the out-of-fold rows of cross-validation count too. This
  second test is made at 2.5 %, divided by the number of candidates: cross-validation has chosen the best of them.
* **champion**: a test of non-inferiority (Blackwelder, 1982), one-sided, at 5 %. The excess is the loss of the
  challenger against the champion minus the accepted margin. The check fails if the lower limit of the excess is above
  0. It passes if the upper limit is at most 0, or if the challenger scores no worse than the champion. Else it is
  inconclusive. Only rows that the champion was not trained on count. If there are too few of them, all rows count, and
  a challenger that looks worse is inconclusive instead of failed.
* **slices**: the same tests for each slice, against the baseline (without a margin) and against the champion
  (``slice_margin``). A slice that is worse than the baseline counts only if the challenger is also worse there than on
  the whole holdout: in a slice in which nearly all targets are equal, the baseline can be exact. Holm's procedure
  over all tests: a sound model fails the check with a probability of at most 5 %.
* **custom**: functions of the user, in ``gate.custom``, get the holdout and return a reason to reject, or nothing.
* **behaviour**: the tests of the prediction function in ``behaviour``, which run after the fit.
* **smoke** and **latency**: the packaged release answers correctly, and fast enough, in a separate process.

Error rates of the champion check: a challenger exactly at the margin fails with a probability of 5 %, one equal to the
champion with far less. A challenger beyond the margin passes with a probability of at most 5 %, plus the probability
that it scores no worse by chance; this is small if the margin is several standard errors wide. If the margin is
narrower than two standard errors of the difference, an equal challenger is inconclusive in up to half of the cases: the
holdout is too small for that margin.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import t as student

from towline.config import METRICS, CustomCheck, Frozen, GateConfig, PipelineConfig
from towline.data.schema.contract import Contract
from towline.errors import FitError
from towline.formatting import shorten_list
from towline.html.notebook import render_table
from towline.release.smoke_test import SmokeTestResult
from towline.training.behaviour.results import BehaviourCheck
from towline.training.evaluation.bootstrap import draw_weights, resample_metric, resampling_units
from towline.training.evaluation.definitions import Metric, primary_metric
from towline.training.evaluation.holdout import MIN_ROWS, Evaluation, SliceRows, find_slices
from towline.training.evaluation.multiple_tests import reject_by_holm
from towline.training.evaluation.predictions import Predictions, decode_labels
from towline.training.user_code import describe_error, import_function

VerdictOutcome = Literal["pass", "fail", "inconclusive"]
SIGNIFICANCE = 0.05
RANDOM_DRAWS = 21  # draws of random labels
MIN_UNSEEN_ROWS = 50
MAX_OUT_OF_FOLD_ROWS = 20_000  # with more, the holdout is large enough to decide
MIN_UNITS = 10  # with fewer resampling units, the standard error of a slice is unreliable
_CONFIG_KEYS = {
    "metric": "evaluation.metric",
    "baseline": "gate.baseline_margin",
    "champion": "gate.champion_margin",
    "slices": "evaluation.slices",  # the margin does not hold against the baseline
    "latency": "gate.latency_ms",
    "self-test": "gate.min",
    "image": "package.image",
}
_BEHAVIOUR_KEYS = {
    "known": "behaviour.known_cases",
    **{
        kind: f"behaviour.{kind}"
        for kind in ("expect", "invariance", "directional", "robustness", "calibration", "fairness")
    },
}


class GateCheck(Frozen):
    """The result of one condition.

    Attributes:
        name: of the condition, e.g. ``champion`` or ``max mae``.
        outcome: pass, fail or inconclusive.
        detail: one sentence with the numbers.
        value: the measured value, if it is a single number.
        bound: the limit for ``value``.
    """

    name: str
    outcome: VerdictOutcome
    detail: str
    value: float | None = None
    bound: float | None = None

    @property
    def key(self) -> str:
        """The config key that sets the condition; empty if no key does."""
        kind, _, metric = self.name.partition(" ")
        if kind in _BEHAVIOUR_KEYS:
            return _BEHAVIOUR_KEYS[kind]
        keyed = metric and kind in ("max", "min", "custom")
        return f"gate.{kind}.{metric}" if keyed else _CONFIG_KEYS.get(self.name, "")


class Verdict(Frozen):
    """The gate's decision on one challenger.

    Attributes:
        outcome: the worst outcome of all checks; with ``gate.inconclusive: promote``, one that is inconclusive counts
            as passed.
        checks: every check.
        primary: the metric that decides.
        champion: version that the challenger was compared with; None if no version serves.
    """

    outcome: VerdictOutcome
    checks: tuple[GateCheck, ...]
    primary: str
    champion: int | None = None

    def with_check(self, check: GateCheck) -> "Verdict":
        """The verdict with one more check, which may worsen the outcome.

        Example:
            >>> passed = Verdict(outcome="pass", checks=(), primary="mae")
            >>> passed.with_check(GateCheck(name="image", outcome="fail", detail="no answer")).outcome
            'fail'
        """
        checks = (*self.checks, check)
        return self.model_copy(update={"checks": checks, "outcome": _worst(self.outcome, check.outcome)})

    def _repr_html_(self) -> str:
        rows = [(check.outcome, check.name, check.detail) for check in self.checks]
        return render_table(("", "check", "detail"), rows, caption=f"gate: {self.outcome}")


class ChampionPredictions(NamedTuple):
    """The champion's predictions for the challenger's holdout rows.

    Attributes:
        version: the champion's number.
        predictions: for the n holdout rows; probabilities in the order of the challenger's classes.
        unseen: (n,) bool: rows that the champion was not trained on.
    """

    version: int
    predictions: Predictions
    unseen: np.ndarray


class ComparedRows(NamedTuple):
    """Rows and the predictions of challenger and baseline, neither of which was fitted on these rows."""

    rows: pd.DataFrame
    truth: np.ndarray
    challenger: Predictions
    baseline: Predictions


class Holdout(NamedTuple):
    """The n holdout rows and the predictions of all models that are compared on them; custom checks get it too.

    Attributes:
        contract: task and classes.
        rows: the raw rows, for slices, groups and time.
        truth: (n,) true values or labels.
        challenger: predictions of the new model.
        baseline: predictions of the baseline.
        champion: predictions of the serving version; None if no version serves or it cannot predict these rows.
        out_of_fold: rows of the train part, if no version serves.
    """

    contract: Contract
    rows: pd.DataFrame
    truth: np.ndarray
    challenger: Predictions
    baseline: Predictions
    champion: ChampionPredictions | None = None
    out_of_fold: ComparedRows | None = None

    def with_out_of_fold(self, more: ComparedRows) -> "Holdout":
        """The holdout and the out-of-fold rows together."""
        return Holdout(
            self.contract,
            pd.concat([more.rows, self.rows], ignore_index=True),
            np.concatenate([more.truth, self.truth]),
            Predictions.concatenate([more.challenger, self.challenger]),
            Predictions.concatenate([more.baseline, self.baseline]),
        )


class _Excess(NamedTuple):
    """The loss of a model against a reference beyond the margin; positive is worse."""

    model: float
    reference: float
    value: float
    error: float
    units: int

    def limit(self, significance: float) -> float:
        """Half the width of the one-sided interval."""
        return self.error * float(student.ppf(1 - significance, self.units - 1)) if self.units > 1 else math.inf

    @property
    def p_value(self) -> float:
        """One-sided, of the hypothesis that there is no excess."""
        if self.units < 2:
            return 1.0
        return float(student.sf(self.value / self.error, self.units - 1)) if self.error else float(self.value <= 0)


class _Comparison(NamedTuple):
    """All comparisons share the primary metric and one set of resamples, so that they are paired."""

    holdout: Holdout
    metric: Metric
    units: np.ndarray
    draws: np.ndarray

    @classmethod
    def of(cls, config: PipelineConfig, holdout: Holdout, metric: Metric) -> "_Comparison":
        units = resampling_units(holdout.rows, config)
        draws = draw_weights(len(holdout.rows), config.evaluation.resamples, config.seed, units)
        return cls(holdout, metric, units, draws)

    def excess(
        self, model: Predictions, reference: Predictions, margin: float, rows: np.ndarray | None = None
    ) -> _Excess | None:
        """Excess loss of ``model`` over ``reference`` + ``margin`` x |reference|; None if it is undefined."""
        positions = np.arange(len(self.holdout.truth)) if rows is None else rows
        scored, against, point = self._losses(model, reference, margin, positions, np.ones((1, len(positions))))
        resampled = self._losses(model, reference, margin, positions, self.draws[:, positions])[2]
        resampled = resampled[np.isfinite(resampled)]
        if not np.isfinite(point[0]) or len(resampled) < len(self.draws) / 2:
            return None
        return _Excess(
            model=float(scored[0]),
            reference=float(against[0]),
            value=float(point[0]),
            error=float(resampled.std(ddof=1)),
            units=len(np.unique(self.units[positions])),
        )

    def is_worse(self, model: Predictions, reference: Predictions, margin: float, rows: np.ndarray) -> bool:
        """Whether the point estimate has an excess; needs no resamples."""
        return bool(self._losses(model, reference, margin, rows, np.ones((1, len(rows))))[2][0] > 0)

    def is_worse_than_overall(self, score: float) -> bool:
        """Whether ``score``, the challenger's metric on some rows, is worse than its metric on the whole holdout."""
        holdout, weights = self.holdout, np.ones((1, len(self.holdout.truth)))
        overall = resample_metric(holdout.truth, holdout.challenger, holdout.contract, self.metric, weights)[0]
        return bool(score < overall if self.metric.greater_is_better else score > overall)

    def champion_is_worst(self, margin: float, rows: np.ndarray) -> bool:
        """Whether the champion is worse than the baseline and the challenger on the ``rows`` that it has not seen."""
        challenger, baseline, champion = self.holdout.challenger, self.holdout.baseline, self.holdout.champion
        return (
            champion is not None
            and self.is_worse(champion.predictions, baseline, -margin, rows)
            and self.is_worse(champion.predictions, challenger, 0.0, rows)
        )

    def has_enough_rows(self, rows: np.ndarray) -> bool:
        return len(rows) >= MIN_ROWS and len(np.unique(self.units[rows])) >= MIN_UNITS

    def _losses(
        self, model: Predictions, reference: Predictions, margin: float, rows: np.ndarray, draws: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        scored, against = (
            resample_metric(self.holdout.truth[rows], part.take(rows), self.holdout.contract, self.metric, draws)
            for part in (model, reference)
        )
        sign = 1 if self.metric.greater_is_better else -1
        return scored, against, sign * (against - scored) - margin * np.abs(against)


def apply_gate(
    config: PipelineConfig,
    evaluation: Evaluation,
    smoke: SmokeTestResult,
    holdout: Holdout,
    behaviour: Sequence[BehaviourCheck] = (),
) -> Verdict:
    """Runs all checks.

    Args:
        config: ``gate`` sets bounds and margins, ``seed`` and ``evaluation.resamples`` the resamples.
        evaluation: of the challenger, on the same rows.
        smoke: result of the smoke test of the challenger's release.
        holdout: rows, truth and predictions.
        behaviour: results of the behaviour tests.
    """
    comparison = _Comparison.of(config, holdout, primary_metric(config, holdout.contract.task))
    slices = find_slices(holdout.rows, holdout.contract, config)[0]
    checks = [
        *_judge_predictions(config, evaluation, comparison),
        _check_slices(comparison, slices, config.gate.slice_margin),
        *(_check_custom(check, config.package.trusted, holdout) for check in config.gate.custom),
        *(GateCheck(**check.model_dump()) for check in behaviour),
        _check_smoke_test(smoke),
        _check_latency(smoke.latency_ms, config.gate.latency_ms),
    ]
    return Verdict(
        outcome=decide(checks, config.gate),
        checks=tuple(checks),
        primary=evaluation.primary,
        champion=holdout.champion.version if holdout.champion else None,
    )


def decide(checks: Sequence[GateCheck], gate: GateConfig) -> VerdictOutcome:
    """The worst outcome; with ``gate.inconclusive: promote``, an inconclusive check counts as passed."""
    accepted = ("pass", "inconclusive") if gate.inconclusive == "promote" else ("pass",)
    return _worst(*("pass" if check.outcome in accepted else check.outcome for check in checks))


def judge_predictions(config: PipelineConfig, evaluation: Evaluation, holdout: Holdout) -> list[GateCheck]:
    """The checks of bounds, the baseline and the champion, which need the predictions only."""
    metric = primary_metric(config, holdout.contract.task)
    return _judge_predictions(config, evaluation, _Comparison.of(config, holdout, metric))


def _judge_predictions(config: PipelineConfig, evaluation: Evaluation, comparison: "_Comparison") -> list[GateCheck]:
    checks = [*_check_bounds(config.gate, evaluation), _check_baseline(config, comparison)]
    if champion := comparison.holdout.champion:
        checks.append(_check_champion(comparison, champion, config.gate.champion_margin))
    return checks


def _worst(*outcomes: VerdictOutcome) -> VerdictOutcome:
    return "fail" if "fail" in outcomes else "inconclusive" if "inconclusive" in outcomes else "pass"


def _check_bounds(gate: GateConfig, evaluation: Evaluation) -> Iterator[GateCheck]:
    def finite_value(name: str) -> float | None:
        value = evaluation.metrics[name].value if name in evaluation.metrics else None
        return value if value is not None and math.isfinite(value) else None

    if finite_value(evaluation.primary) is None:
        detail = f"{evaluation.primary} is undefined on the {evaluation.rows:,} rows of the holdout"
        yield GateCheck(name="metric", outcome="fail", detail=detail)
    for side, bounds in (("max", gate.max), ("min", gate.min)):
        for name, bound in bounds.items():
            label, value = f"{side} {name}", finite_value(name)
            if value is None:
                known = name in evaluation.metrics or name in METRICS[evaluation.task]
                reason = "undefined on the holdout" if known else f"not a metric of the task {evaluation.task}"
                yield GateCheck(name=label, outcome="fail", detail=f"{name} is {reason}", bound=bound)
            else:
                yield _check_bound(label, value, bound, f"{name} {value:.4g}", is_maximum=side == "max")


def _check_bound(name: str, value: float, bound: float, detail: str, *, is_maximum: bool) -> GateCheck:
    passed = value <= bound if is_maximum else value >= bound
    detail = f"{detail}, at {'most' if is_maximum else 'least'} {bound:.4g}"
    return GateCheck(name=name, outcome="pass" if passed else "fail", detail=detail, value=value, bound=bound)


def _use_no_information_baseline(holdout: Holdout, metric: Metric, seed: int) -> Holdout:
    """The holdout, whose baseline predicts the best labels without information, if the fitted baseline is worse.

    Metrics of labels depend on the class that the baseline predicts: F1 is 0 if it is the negative one, and then every
    model would be better. Labels without information are a constant class, or drawn with the shares of the classes in
    training: by mean F1 over several classes, these are better than each constant. Of several draws, the one with the
    median score is used. Recall is not meant, because the constant positive class has the best possible value.
    """
    classes, more, count = holdout.contract.classes, holdout.out_of_fold, len(holdout.truth)
    if not classes or metric.needs_probabilities or metric == "recall":
        return holdout

    def score(predictions: Predictions) -> float:
        weights = np.ones((1, count))
        value = resample_metric(holdout.truth, predictions, holdout.contract, metric, weights)[0]
        return -math.inf if not math.isfinite(value) else float(value) * (1 if metric.greater_is_better else -1)

    def predict_labels(positions: np.ndarray, baseline: Predictions) -> Predictions:
        return Predictions(decode_labels(positions, classes), baseline.probabilities)

    def score_labels(positions: np.ndarray) -> float:
        return score(predict_labels(positions[:count], holdout.baseline))

    rows = count + (len(more.truth) if more else 0)
    constant = max((np.full(rows, position) for position in range(len(classes))), key=score_labels)
    shares = holdout.baseline.probabilities
    assert shares is not None  # noqa: S101 - the fitted baseline of classes has probabilities
    draws = np.random.default_rng(seed).choice(len(classes), (RANDOM_DRAWS, rows), p=shares[0] / shares[0].sum())
    median = sorted(draws, key=score_labels)[RANDOM_DRAWS // 2]
    best = max(constant, median, key=score_labels)
    if not score_labels(best) > score(holdout.baseline):
        return holdout
    return holdout._replace(
        baseline=predict_labels(best[:count], holdout.baseline),
        out_of_fold=more._replace(baseline=predict_labels(best[count:], more.baseline)) if more else None,
    )


def _check_baseline(config: PipelineConfig, comparison: _Comparison) -> GateCheck:
    fitted = comparison.holdout.baseline
    comparison = comparison._replace(
        holdout=_use_no_information_baseline(comparison.holdout, comparison.metric, config.seed)
    )
    reference = "" if comparison.holdout.baseline is fitted else " of the no-information baseline"
    metric, champion, margin = comparison.metric, comparison.holdout.champion, config.gate.baseline_margin
    excess = comparison.excess(comparison.holdout.challenger, comparison.holdout.baseline, -margin)
    if excess is None:
        return GateCheck(name="baseline", outcome="fail", detail=f"{metric} cannot be compared with the baseline's")
    upper = excess.value + excess.limit(SIGNIFICANCE)
    outcome: VerdictOutcome = "fail" if excess.value >= 0 else "pass" if upper < 0 else "inconclusive"
    difference = _describe_difference(excess, -margin)
    detail = f"{metric} {excess.model:.4g} against {excess.reference:.4g}{reference}, {difference}"
    if outcome != "pass" and champion:
        rows = np.flatnonzero(champion.unseen)
        if len(rows) >= MIN_UNSEEN_ROWS and comparison.champion_is_worst(margin, rows):
            outcome = "pass"
            detail = f"{detail}; but version {champion.version}, which serves, is worse than both"
    if outcome == "inconclusive" and (more := comparison.holdout.out_of_fold):
        together = _Comparison.of(config, comparison.holdout.with_out_of_fold(more), metric)
        combined = together.excess(together.holdout.challenger, together.holdout.baseline, -margin)
        trials = sum(candidate.search.trials if candidate.search else 1 for candidate in config.candidates)
        if combined and combined.value + combined.limit(SIGNIFICANCE / 2 / trials) < 0:
            outcome = "pass"
            detail = f"{detail}; better with the {len(more.truth):,} out-of-fold rows, and no version serves"
    if outcome == "inconclusive":
        detail = f"{detail}; {len(comparison.holdout.truth):,} holdout rows are too few to tell it from chance"
    return GateCheck(
        name="baseline",
        outcome=outcome,
        detail=detail,
        value=-excess.value + margin * abs(excess.reference),
        bound=margin * abs(excess.reference),
    )


def _check_champion(comparison: _Comparison, champion: ChampionPredictions, margin: float) -> GateCheck:
    version, predictions, unseen = champion
    metric, name = comparison.metric, "champion"
    enough = int(unseen.sum()) >= MIN_UNSEEN_ROWS
    rows = np.flatnonzero(unseen) if enough else None
    excess = comparison.excess(comparison.holdout.challenger, predictions, margin, rows)
    if excess is None and enough:  # for example no positive row among those that are new to the champion
        enough, excess = False, comparison.excess(comparison.holdout.challenger, predictions, margin)
    if excess is None:
        broken = comparison.holdout.challenger.are_finite and not predictions.are_finite
        detail = f"{metric} cannot be compared with version {version}'s"
        detail += ", whose predictions are not all finite" if broken else ""
        return GateCheck(name=name, outcome="pass" if broken else "inconclusive", detail=detail)
    width = excess.limit(SIGNIFICANCE)
    loss = excess.value + margin * abs(excess.reference)
    outcome: VerdictOutcome = "inconclusive"
    if excess.value - width > 0:
        outcome = "fail" if enough else "inconclusive"  # the champion may be better only because it has seen the rows
    elif excess.value + width <= 0 or loss <= 0:
        outcome = "pass"
    basis = f"on {int(unseen.sum()):,} rows new to it" if enough else "on the whole holdout, most of which it has seen"
    return GateCheck(
        name=name,
        outcome=outcome,
        detail=f"{metric} {excess.model:.4g} against {excess.reference:.4g} of version {version} {basis}, "
        + _describe_difference(excess, margin),
        value=-loss,
        bound=-margin * abs(excess.reference),
    )


def _describe_difference(excess: _Excess, margin: float) -> str:
    """The difference in the metric's own unit with its 90 % interval; positive if the model is better."""
    gain, width = -excess.value - margin * abs(excess.reference), excess.limit(SIGNIFICANCE)
    word = "better" if gain >= 0 else "worse"
    return f"{word} by {abs(gain):.4g} (90 % interval {gain - width:+.4g} to {gain + width:+.4g}, + is better)"


class _SliceTest(NamedTuple):
    part: SliceRows
    rows: np.ndarray
    reference: Predictions
    margin: float
    reference_name: str


def _check_slices(comparison: _Comparison, slices: tuple[SliceRows, ...], margin: float) -> GateCheck:
    slices = tuple(part for part in slices if comparison.has_enough_rows(part.rows))
    if not slices:
        return GateCheck(name="slices", outcome="pass", detail="no slice has enough rows for a test")
    tests = list(_slice_tests(comparison, slices, margin))
    excesses = [_slice_excess(comparison, test) for test in tests]
    p_values = np.array([1.0 if excess is None else excess.p_value for excess in excesses])
    failures = []
    for position in np.flatnonzero(reject_by_holm(p_values, SIGNIFICANCE)):
        test, excess = tests[position], excesses[position]
        if excess is not None:
            numbers = f"{excess.model:.4g} against {excess.reference:.4g} of {test.reference_name}"
            where = f"{test.part.column} = {test.part.value}"
            failures.append(f"{where}: {comparison.metric} {numbers} on {len(test.rows):,} rows")
    if failures:
        detail = f"{len(failures)} of {len(slices)} slices are significantly worse: {shorten_list(failures, 5, '; ')}"
        return GateCheck(name="slices", outcome="fail", detail=detail, value=float(len(failures)), bound=0.0)
    detail = f"none of {len(slices)} slices is significantly worse ({len(tests)} tests at {SIGNIFICANCE:.0%} in all)"
    return GateCheck(name="slices", outcome="pass", detail=detail, value=0.0, bound=0.0)


def _slice_excess(comparison: _Comparison, test: _SliceTest) -> _Excess | None:
    """The excess of a slice that can fail; None for one that is not worse, so that its resamples are not computed."""
    challenger = comparison.holdout.challenger
    if not comparison.is_worse(challenger, test.reference, test.margin, test.rows):
        return None
    excess = comparison.excess(challenger, test.reference, test.margin, test.rows)
    against_baseline = test.reference is comparison.holdout.baseline
    if excess is None or (against_baseline and not comparison.is_worse_than_overall(excess.model)):
        return None
    return excess


def _slice_tests(comparison: _Comparison, slices: tuple[SliceRows, ...], margin: float) -> Iterator[_SliceTest]:
    """Each slice against the baseline, unless the champion is worse there; and against the champion on unseen rows."""
    champion = comparison.holdout.champion
    against_champion = []
    for part in slices:
        unseen = part.rows[champion.unseen[part.rows]] if champion else part.rows[:0]
        enough = comparison.has_enough_rows(unseen)
        if not (enough and comparison.champion_is_worst(0.0, unseen)):
            yield _SliceTest(part, part.rows, comparison.holdout.baseline, 0.0, "the baseline")
        if champion and enough:
            name = f"version {champion.version}"
            against_champion.append(_SliceTest(part, unseen, champion.predictions, margin, name))
    yield from against_champion


def _check_custom(check: CustomCheck, trusted: Sequence[str], holdout: Holdout) -> GateCheck:
    where = f"gate.custom.{check.name}"
    function = import_function(check.function, where, trusted)
    try:
        reason = function(holdout, **check.params)
    except Exception as error:
        what = f"the check {check.name} failed: {describe_error(error)}"
        remedy = f"correct {check.function}: it gets the holdout and the params, and returns a text or None"
        raise FitError(what, where=where, remedy=remedy) from error
    if not isinstance(reason, str | None):
        what = f"the check {check.name} returned {type(reason).__name__}"
        raise FitError(what, where=where, remedy="return the reason for a rejection as a text, or None")
    outcome: VerdictOutcome = "fail" if reason else "pass"
    return GateCheck(
        name=f"custom {check.name}", outcome=outcome, detail=reason or f"{check.function} gives no reason to reject"
    )


def _check_latency(latency_ms: float, bound: float) -> GateCheck:
    if latency_ms > 0 and math.isfinite(latency_ms):
        return _check_bound("latency", latency_ms, bound, f"one row takes {latency_ms:.3g} ms", is_maximum=True)
    return GateCheck(name="latency", outcome="fail", detail="the latency of one row was not measured", bound=bound)


def _check_smoke_test(smoke: SmokeTestResult) -> GateCheck:
    faults = [] if smoke.identical else ["its predictions differ from the fitted model's"]
    if smoke.modules:
        faults.append(f"it imported {', '.join(smoke.modules)}")
    passed = f"the release predicts {smoke.rows:,} rows identically in a new process, in {smoke.seconds:.3g} s"
    detail = " and ".join(faults) + (f": {smoke.detail}" if smoke.detail else "") if faults else passed
    return GateCheck(name="smoke", outcome="fail" if faults else "pass", detail=detail)
