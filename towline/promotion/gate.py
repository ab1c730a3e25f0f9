"""Whether a model may serve: every reason with its numbers.

Models are compared on the holdout by a paired bootstrap: each resample scores both, and the standard deviation of the
difference is its standard error (Efron & Tibshirani, 1993). Limits use Student's t with the number of units drawn
(rows, groups or blocks of time, see ``bootstrap``) less one degrees of freedom.

Against the champion this is a test of non-inferiority (Blackwelder, 1982) at one-sided 5 %. The excess is how much
worse the challenger is, less the accepted margin: fail when even its lower limit is above 0, pass when its upper limit
is at most 0 or the challenger scores no worse at all, else inconclusive. Only rows the champion was not trained on
count; where they are too few, all do, and a challenger that looks worse is inconclusive rather than failed.

So one exactly at the margin fails with 5 % probability and one that equals the champion with far less; one beyond the
margin passes with at most 5 %, plus the chance that it scores no worse by luck, which is small once the margin is some
standard errors wide. A margin narrower than two standard errors of the difference leaves an equal challenger
inconclusive up to half of the time: the holdout is then too small for the margin.

Against the baseline it must be shown to be better. It need not where the champion scores worse than the baseline, and
worse than the challenger: a refusal would leave the worst of the three serving.

Slices are held to the same test against the baseline (no margin; not where the champion is worse than both already) and
the champion (``slice_margin``), each at 5 % divided by the number of tests (Bonferroni): a sound model fails any
slice with at most 5 % probability.
"""

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import t as student

from towline.config import GREATER_IS_BETTER, METRICS, Frozen, PipelineConfig
from towline.data.schema.contract import Contract
from towline.notebook import render_table
from towline.release.smoke_test import SmokeTestResult
from towline.training.evaluation.bootstrap import draw_weights, resample_metric, resampling_units
from towline.training.evaluation.holdout import MIN_ROWS, Evaluation, find_slices
from towline.training.evaluation.predictions import Predictions

Outcome = Literal["pass", "fail", "inconclusive"]
Champion = tuple[int, Predictions, np.ndarray]
LEVEL = 0.05
MIN_UNSEEN = 50
_KEYS = {
    "metric": "evaluation.metric",
    "baseline": "gate.baseline_margin",
    "champion": "gate.champion_margin",
    "slices": "gate.slice_margin",
    "latency": "gate.latency_ms",
    "image": "package.image",
}
MIN_UNITS = 10  # fewer units in a slice give no standard error worth the name


class Check(Frozen):
    """One condition, what was measured and what it was held to."""

    name: str
    outcome: Outcome
    detail: str
    value: float | None = None
    bound: float | None = None

    @property
    def key(self) -> str:
        """The key of the config that the condition follows; empty where it follows none."""
        kind, _, metric = self.name.partition(" ")
        return f"gate.{kind}.{metric}" if metric and kind in ("max", "min") else _KEYS.get(self.name, "")


class Verdict(Frozen):
    """Every check; the outcome is the worst of theirs. ``champion`` is the version compared against."""

    outcome: Outcome
    checks: tuple[Check, ...]
    primary: str
    champion: int | None = None

    def _repr_html_(self) -> str:
        rows = [(check.outcome, check.name, check.detail) for check in self.checks]
        return render_table(("", "check", "detail"), rows, caption=f"gate: {self.outcome}")


class _Excess(NamedTuple):
    """How much worse than a reference a model is beyond what is accepted; positive is bad."""

    model: float
    reference: float
    value: float
    error: float
    units: int

    def limit(self, level: float) -> float:
        """Half the width of its one-sided interval."""
        return self.error * float(student.ppf(1 - level, self.units - 1)) if self.units > 1 else math.inf


class _Comparison(NamedTuple):
    """What all comparisons share: the primary metric, and one set of resamples for them to be paired."""

    truth: np.ndarray
    contract: Contract
    metric: str
    units: np.ndarray
    draws: np.ndarray

    def excess(
        self, model: Predictions, reference: Predictions, margin: float, rows: np.ndarray | None = None
    ) -> _Excess | None:
        """Excess loss of ``model`` over ``reference`` plus ``margin`` x |reference|; None where undefined."""
        places = np.arange(len(self.truth)) if rows is None else rows
        scored, against, point = self._losses(model, reference, margin, places, np.ones((1, len(places))))
        drawn = self._losses(model, reference, margin, places, self.draws[:, places])[2]
        drawn = drawn[np.isfinite(drawn)]
        if not np.isfinite(point[0]) or len(drawn) < len(self.draws) / 2:
            return None
        return _Excess(
            model=float(scored[0]),
            reference=float(against[0]),
            value=float(point[0]),
            error=float(drawn.std(ddof=1)),
            units=len(np.unique(self.units[places])),
        )

    def worse(self, model: Predictions, reference: Predictions, margin: float, rows: np.ndarray) -> bool:
        """Whether there is an excess at all: what no resample is needed for."""
        return bool(self._losses(model, reference, margin, rows, np.ones((1, len(rows))))[2][0] > 0)

    def _losses(
        self, model: Predictions, reference: Predictions, margin: float, rows: np.ndarray, draws: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        scored, against = (
            resample_metric(self.truth[rows], part.take(rows), self.contract, self.metric, draws)
            for part in (model, reference)
        )
        sign = 1 if GREATER_IS_BETTER[self.metric] else -1
        return scored, against, sign * (against - scored) - margin * np.abs(against)


def apply_gate(
    config: PipelineConfig,
    contract: Contract,
    evaluation: Evaluation,
    smoke: SmokeTestResult,
    truth: np.ndarray,
    challenger: Predictions,
    baseline: Predictions,
    champion: Champion | None,
    rows: pd.DataFrame,
) -> Verdict:
    """Holds a model to its bounds, the baseline, the champion, every slice, its release and its latency.

    Args:
        config: holds the bounds and margins; its seed draws the resamples.
        contract: task and classes of the truth.
        evaluation: of the challenger, on the same rows.
        smoke: what its release did in a process of its own.
        truth: (n,) of the holdout.
        challenger: its predictions on the holdout.
        baseline: the dummy's predictions there.
        champion: version, its predictions on the holdout in the order of ``contract.classes``, and (n,) bool: the
            rows that it has not seen.
        rows: the holdout as read, for slices, groups and time.
    """
    drawn = resampling_units(rows, config)
    draws = draw_weights(len(rows), config.evaluation.resamples, config.seed, drawn)
    comparison = _Comparison(truth, contract, evaluation.primary, drawn, draws)
    checks = [
        *_check_bounds(config, evaluation),
        _check_baseline(comparison, challenger, baseline, config.gate.baseline_margin, champion),
        *([_check_champion(comparison, challenger, champion, config.gate.champion_margin)] if champion else []),
        _check_slices(comparison, config, challenger, baseline, champion, rows),
        _check_smoke_test(smoke),
        _check_latency(smoke.latency_ms, config.gate.latency_ms),
    ]
    outcomes = {check.outcome for check in checks}
    outcome: Outcome = "fail" if "fail" in outcomes else "inconclusive" if "inconclusive" in outcomes else "pass"
    version = champion[0] if champion else None
    return Verdict(outcome=outcome, checks=tuple(checks), primary=evaluation.primary, champion=version)


def _check_bounds(config: PipelineConfig, evaluation: Evaluation) -> Iterator[Check]:
    def measured(name: str) -> float | None:
        value = evaluation.metrics[name].value if name in evaluation.metrics else None
        return value if value is not None and math.isfinite(value) else None

    value = measured(evaluation.primary)
    if value is None:
        detail = f"{evaluation.primary} is undefined on the {evaluation.rows:,} rows of the holdout"
        yield Check(name="metric", outcome="fail", detail=detail)
    for most, bounds in ((True, config.gate.max), (False, config.gate.min)):
        for name, bound in bounds.items():
            label = f"{'max' if most else 'min'} {name}"
            value = measured(name)
            if value is None:
                known = name in METRICS[evaluation.task]
                detail = f"{name} is undefined on the holdout" if known else f"{name} is no metric of {evaluation.task}"
                yield Check(name=label, outcome="fail", detail=detail, bound=bound)
            elif most:
                yield _check_maximum(label, value, bound, f"{name} {value:.4g}")
            else:
                outcome: Outcome = "pass" if value >= bound else "fail"
                detail = f"{name} {value:.4g}, at least {bound:.4g}"
                yield Check(name=label, outcome=outcome, detail=detail, value=value, bound=bound)


def _check_maximum(name: str, value: float, bound: float, detail: str) -> Check:
    outcome: Outcome = "pass" if value <= bound else "fail"
    return Check(name=name, outcome=outcome, detail=f"{detail}, at most {bound:.4g}", value=value, bound=bound)


def _check_baseline(
    comparison: _Comparison, challenger: Predictions, baseline: Predictions, margin: float, champion: Champion | None
) -> Check:
    metric = comparison.metric
    found = comparison.excess(challenger, baseline, -margin)
    if found is None:
        return Check(name="baseline", outcome="fail", detail=f"{metric} cannot be compared with the baseline's")
    upper = found.value + found.limit(LEVEL)
    outcome: Outcome = "fail" if found.value >= 0 else "pass" if upper < 0 else "inconclusive"
    detail = f"{metric} {found.model:.4g} against {found.reference:.4g}, {_describe_difference(found, -margin)}"
    if outcome != "pass" and champion:
        version, answers, unseen = champion
        rows = np.flatnonzero(unseen)
        if len(rows) >= MIN_UNSEEN and _champion_is_worse(comparison, challenger, baseline, margin, answers, rows):
            outcome, detail = "pass", f"{detail}; but version {version}, which serves, does worse than either"
    return Check(
        name="baseline",
        outcome=outcome,
        detail=detail,
        value=-found.value + margin * abs(found.reference),
        bound=margin * abs(found.reference),
    )


def _check_champion(comparison: _Comparison, challenger: Predictions, champion: Champion, margin: float) -> Check:
    version, answers, unseen = champion
    metric, name = comparison.metric, "champion"
    enough = int(unseen.sum()) >= MIN_UNSEEN
    found = comparison.excess(challenger, answers, margin, np.flatnonzero(unseen) if enough else None)
    if found is None:
        return Check(name=name, outcome="inconclusive", detail=f"{metric} cannot be compared with version {version}'s")
    width = found.limit(LEVEL)
    worse = found.value + margin * abs(found.reference)
    outcome: Outcome = "inconclusive"
    if found.value - width > 0:
        outcome = "fail" if enough else "inconclusive"  # it may be ahead only for having seen the answers
    elif found.value + width <= 0 or worse <= 0:
        outcome = "pass"
    where = f"on {int(unseen.sum()):,} rows new to it" if enough else "on the whole holdout, most of which it has seen"
    return Check(
        name=name,
        outcome=outcome,
        detail=f"{metric} {found.model:.4g} against {found.reference:.4g} of version {version} {where}, "
        + _describe_difference(found, margin),
        value=-worse,
        bound=-margin * abs(found.reference),
    )


def _describe_difference(found: _Excess, margin: float) -> str:
    """The difference in the metric's own unit with its 90 % interval, positive in favour of the model."""
    gain, width = -found.value - margin * abs(found.reference), found.limit(LEVEL)
    word = "better" if gain >= 0 else "worse"
    return f"{word} by {abs(gain):.4g} (90 % interval {gain - width:+.4g} to {gain + width:+.4g}, + is better)"


def _check_slices(
    comparison: _Comparison,
    config: PipelineConfig,
    challenger: Predictions,
    baseline: Predictions,
    champion: Champion | None,
    rows: pd.DataFrame,
) -> Check:
    places = [
        cut for cut in find_slices(rows, comparison.contract, config)[0] if _has_enough_rows(comparison, cut.rows)
    ]
    if not places:
        return Check(name="slices", outcome="pass", detail="no slice has rows enough to be judged")
    tests = [
        (cut, cut.rows, baseline, 0.0, "the baseline")
        for cut in places
        if not _champion_is_worse_in_slice(comparison, challenger, baseline, champion, cut.rows)
    ]
    if champion:
        version, answers, unseen = champion
        for cut in places:
            new = cut.rows[unseen[cut.rows]]
            if _has_enough_rows(comparison, new):
                tests.append((cut, new, answers, config.gate.slice_margin, f"version {version}"))
    collapsed = []
    for cut, where, reference, margin, name in tests:
        if not comparison.worse(challenger, reference, margin, where):
            continue
        found = comparison.excess(challenger, reference, margin, where)
        if found is not None and found.value > found.limit(LEVEL / len(tests)):
            numbers = f"{comparison.metric} {found.model:.4g} against {found.reference:.4g} of {name}"
            collapsed.append(f"{cut.column} = {cut.value}: {numbers} on {len(where):,} rows")
    if collapsed:
        more = f" and {len(collapsed) - 5} more" if len(collapsed) > 5 else ""
        detail = f"{len(collapsed)} of {len(places)} slices collapse: {'; '.join(collapsed[:5])}{more}"
        return Check(name="slices", outcome="fail", detail=detail, value=float(len(collapsed)), bound=0.0)
    detail = f"none of {len(places)} slices collapses ({len(tests)} tests at {LEVEL:.0%} in all)"
    return Check(name="slices", outcome="pass", detail=detail, value=0.0, bound=0.0)


def _champion_is_worse(
    comparison: _Comparison,
    challenger: Predictions,
    baseline: Predictions,
    margin: float,
    champion: Predictions,
    rows: np.ndarray,
) -> bool:
    """Whether a refusal for the baseline's sake would keep a model that fails it too, and by more."""
    return comparison.worse(champion, baseline, -margin, rows) and comparison.worse(champion, challenger, 0.0, rows)


def _champion_is_worse_in_slice(
    comparison: _Comparison, challenger: Predictions, baseline: Predictions, champion: Champion | None, rows: np.ndarray
) -> bool:
    """The same of a slice, on those of its rows that are new to the champion."""
    if champion is None:
        return False
    _, answers, unseen = champion
    new = rows[unseen[rows]]
    return _has_enough_rows(comparison, new) and _champion_is_worse(comparison, challenger, baseline, 0.0, answers, new)


def _has_enough_rows(comparison: _Comparison, rows: np.ndarray) -> bool:
    return len(rows) >= MIN_ROWS and len(np.unique(comparison.units[rows])) >= MIN_UNITS


def _check_latency(measured: float, bound: float) -> Check:
    if measured > 0 and math.isfinite(measured):
        return _check_maximum("latency", measured, bound, f"one row takes {measured:.3g} ms")
    return Check(name="latency", outcome="fail", detail="the time of one row was not measured", bound=bound)


def _check_smoke_test(smoke: SmokeTestResult) -> Check:
    faults = [] if smoke.identical else ["its answers differ from the fitted model's"]
    if smoke.modules:
        faults.append(f"it imported {', '.join(smoke.modules)}")
    good = f"the release answers {smoke.rows:,} rows identically in a process of its own, in {smoke.seconds:.3g} s"
    detail = " and ".join(faults) + (f": {smoke.detail}" if smoke.detail else "") if faults else good
    return Check(name="smoke", outcome="fail" if faults else "pass", detail=detail)
