"""Quality: the metric of the config on predictions whose labels have come, against what the model reached before."""

import datetime as dt
import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa

from towline.config import GREATER_IS_BETTER, PRIMARY, Metric, PipelineConfig
from towline.data.contract import Contract
from towline.monitoring import outcomes
from towline.monitoring.evidence import Measured, Quality, QualityState
from towline.monitoring.outcomes import Outcomes
from towline.release.manifest import verify
from towline.training.bootstrap import interval, resample, weights
from towline.training.evaluation import SLICE_RESAMPLES, cuts
from towline.training.interval import Interval
from towline.training.metrics import scores

_DAY = dt.timedelta(days=1)


def measure(
    table: pa.Table,
    release: Path,
    config: PipelineConfig,
    *,
    start: dt.datetime,
    end: dt.datetime,
    now: dt.datetime,
) -> Quality:
    """Measures the predictions of a window on the labels that are there.

    It is bad when even the better end of the interval is beyond the bound, good when even the worse end is within, else
    unknown. The bound is ``slo.metric``, or the holdout's value worsened by ``quality.tolerance`` of itself.

    Args:
        table: of ``labels.read``; other versions' predictions are left out.
        release: of the version that is measured.
        config: its metric, bounds and slices.
        start: of the window.
        end: of the window, not included.
        now: labels of predictions older than ``quality.delay`` by then are due.
    """
    manifest = verify(release)
    contract = Contract.model_validate_json((release / "contract.json").read_bytes())
    metric = config.evaluation.metric or PRIMARY[contract.task]
    known = json.loads((release / "metrics.json").read_bytes())["evaluation"]["metrics"].get(metric) or {}
    holdout = known.get("value")
    bound = bound_of(metric, holdout, config)
    found = outcomes.read(table, contract, manifest.version)
    first, last = (np.datetime64(moment.astimezone(dt.UTC).replace(tzinfo=None), "us") for moment in (start, end))
    found = found.take((found.times >= first) & (found.times < last))
    limit = np.datetime64((now - config.quality.delay).astimezone(dt.UTC).replace(tzinfo=None), "us")
    labelled = found.take(found.labelled)
    facts = {
        "version": manifest.version, "metric": metric, "holdout": holdout, "bound": bound, "start": start, "end": end,
        "rows": len(found.truth), "labelled": len(labelled.truth), "due": int((found.times <= limit).sum()),
    }  # fmt: skip
    told = _coverage(found, config)
    if len(labelled.truth) < config.quality.min_labels:
        reason = f"{len(labelled.truth):,} labels, {config.quality.min_labels:,} are needed{told}"
        return Quality(state="unknown", value=Interval(value=None), reason=reason, **facts)
    value = _value(labelled, contract, metric, config.evaluation.resamples, config.seed)
    state, why = _state(value, bound, metric)
    slices = _slices(labelled, contract, metric, config)
    reason = f"{metric} {_shown(value)}, {why} {bound:.4g}{told}"
    return Quality(state=state, value=value, slices=slices, reason=reason, **facts)


def bound_of(metric: Metric, holdout: float | None, config: PipelineConfig) -> float:
    """The value of the metric that is still accepted; beyond every value where the holdout had none."""
    if config.slo.metric is not None:
        return config.slo.metric
    sign = -1.0 if GREATER_IS_BETTER[metric] else 1.0
    if holdout is None:
        return sign * math.inf
    return holdout + sign * config.quality.tolerance * abs(holdout)


def blocks(count: int) -> np.ndarray:
    """(n,) which rows are resampled together: neighbours in time err alike."""
    return np.arange(count) // max(1, math.isqrt(count))


def _value(found: Outcomes, contract: Contract, metric: Metric, resamples: int, seed: int) -> Interval:
    point = scores(found.truth, found.predictions, contract).get(metric, math.nan)
    count = len(found.truth)
    drawn = weights(count, resamples, seed, blocks(count))
    return interval(point, resample(found.truth, found.predictions, contract, metric, drawn))


def _state(value: Interval, bound: float, metric: Metric) -> tuple[QualityState, str]:
    if value.value is None:
        return "unknown", "undefined on these labels (one class, or no probabilities); the bound is"
    low, high = value.low, value.high
    if low is None or high is None:
        return "unknown", "too few rows for an interval; the bound is"
    sign = 1.0 if GREATER_IS_BETTER[metric] else -1.0
    within = [sign * end >= sign * bound for end in (low, high)]
    if all(within):
        return "good", "within the bound"
    return ("unknown", "the interval holds the bound") if any(within) else ("bad", "beyond the bound")


def _slices(found: Outcomes, contract: Contract, metric: Metric, config: PipelineConfig) -> tuple[Measured, ...]:
    """By the columns of the config, or those of few values, as far as they were logged as they are."""
    asked = config.evaluation.slices
    if asked is not None:
        kept = tuple(name for name in asked if name in found.inputs.columns)
        config = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"slices": kept})})
    columns = tuple(column for column in contract.columns if column.name in found.inputs.columns)
    places, _ = cuts(found.inputs, contract.model_copy(update={"columns": columns}), config)
    return tuple(
        Measured(
            column=cut.column,
            value=cut.value,
            rows=len(cut.rows),
            metric=_value(found.take(cut.rows), contract, metric, SLICE_RESAMPLES, config.seed),
        )
        for cut in places
    )


def _coverage(found: Outcomes, config: PipelineConfig) -> str:
    """What is to be known of the labels."""
    rows, labelled = len(found.truth), int(found.labelled.sum())
    told = f"; {labelled:,} of {rows:,} predictions have a label" if rows else ""
    if found.strange:
        told += f"; classes that the model does not know: {', '.join(found.strange)}"
    if labelled and labelled < rows / 2:
        told += f", after {config.quality.delay / _DAY:g} days: these may not be like the rest"
    return told


def _shown(value: Interval) -> str:
    if value.value is None:
        return "–"
    return f"{value.value:.4g}" + (f" ({value.low:.4g} … {value.high:.4g})" if value.low is not None else "")
