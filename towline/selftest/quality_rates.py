"""The quality verdict on many windows of labels: with the labels of the table, and with labels that are degraded.

A window has rows of the holdout, drawn with replacement, so its labels are those for which the bound was set.
"""

import datetime as dt
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import yaml

from towline import files
from towline.config import PipelineConfig
from towline.manifest import MANIFEST, Manifest
from towline.monitoring.performance.quality import measure_quality
from towline.monitoring.results import QualityState
from towline.prediction_log.label_store import REQUEST, TIME
from towline.prediction_log.parquet_store import INPUT_PREFIX
from towline.promotion.gate import Holdout
from towline.selftest.rates import MeasuredRate, measure_rate, smallest_detected
from towline.training.evaluation.bootstrap import resample_metric, resampling_units, rows_by_unit
from towline.training.evaluation.definitions import primary_metric
from towline.training.evaluation.holdout import Evaluation

WINDOW_LABELS = 500
GOOD_TRIALS, DEGRADED_TRIALS = 60, 20
SHARES = (0.1, 0.25, 0.5, 1.0)  # of rows that get the label of another row
MAX_RESAMPLES = 200
_START = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)


def measure_quality_verdict(
    config: PipelineConfig, evaluation: Evaluation, holdout: Holdout, folder: Path
) -> tuple[list[MeasuredRate], list[str]]:
    """Measures how often quality counts as degraded: with good labels, and with labels of other rows.

    Args:
        config: for metric, bound and the minimum number of labels; slices are not measured.
        evaluation: of the champion on the holdout, which sets the bound.
        holdout: rows and truth; its challenger is the champion.
        folder: for the files of a release that the verdict reads.

    Returns:
        The rates, and the smallest detected share as a note.
    """
    config, size = _without_slices(config), max(WINDOW_LABELS, config.quality.min_labels)
    _write_release(config, evaluation, holdout, folder)
    rng, metric = np.random.default_rng(config.seed), primary_metric(config, holdout.contract.task)
    members = rows_by_unit(resampling_units(holdout.rows, config))

    def state(truth: np.ndarray) -> QualityState:
        rows, drawn_units = _draw_window(members, size, rng)
        table = _log(config, holdout, truth, rows, drawn_units)
        end = _START + dt.timedelta(days=1)
        return measure_quality(table, folder, config, start=_START, end=end, now=end + config.quality.delay).state

    good = [state(holdout.truth) == "degraded" for _ in range(GOOD_TRIALS)]
    rates = [measure_rate("quality", "labels of the holdout", "is degraded", good, expected="at most 5 %")]
    detected = []
    for share in SHARES:
        truth = _exchange_labels(holdout.truth, share, rng)
        value = float(resample_metric(truth, holdout.challenger, holdout.contract, metric, np.ones((1, len(truth))))[0])
        outcomes = [state(truth) == "degraded" for _ in range(DEGRADED_TRIALS)]
        case = f"{share:.0%} of labels are of other rows, {metric} {value:.4g}"
        detected.append(measure_rate("quality", case, "is degraded", outcomes, effect=share))
    smallest = smallest_detected(detected)
    finding = f"detected from {smallest:.0%} of labels on" if smallest else "not detected"
    return [*rates, *detected], [f"quality: labels of other rows: {finding}, in windows of {size:,} labels"]


def _without_slices(config: PipelineConfig) -> PipelineConfig:
    resamples = min(MAX_RESAMPLES, config.evaluation.resamples)
    evaluation = config.evaluation.model_copy(update={"resamples": resamples, "slices": ()})
    return config.model_copy(update={"evaluation": evaluation})


def _write_release(config: PipelineConfig, evaluation: Evaluation, holdout: Holdout, folder: Path) -> None:
    """The files of a release that the verdict reads."""
    contract = holdout.contract
    manifest = Manifest(
        name=config.name, version=1, run_key="", created="", task=contract.task, target=contract.target,
        classes=contract.classes, positive=contract.positive, threshold=None, dataset={}, estimator="", params={},
        metrics={}, primary=evaluation.primary, commit="", towline="", python="", libraries={}, seeds={},
    )  # fmt: skip
    metrics = {"evaluation": evaluation.model_dump(mode="json")}
    contents = {
        MANIFEST: manifest.text(),
        contract.FILE: contract.model_dump_json(),
        "metrics.json": json.dumps(metrics),
        "config.yaml": yaml.safe_dump(config.model_dump(mode="json")),
    }
    for name, content in contents.items():
        files.write(folder / name, content)


def _draw_window(members: list[np.ndarray], size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the holdout by units that are drawn with replacement, and the number of the draw of each row."""
    drawn: list[np.ndarray] = []
    while sum(map(len, drawn)) < size:
        drawn.append(members[int(rng.integers(len(members)))])
    rows = np.concatenate(drawn)[:size]
    numbers = np.repeat(np.arange(len(drawn)), [len(part) for part in drawn])[:size]
    return rows, numbers


def _log(
    config: PipelineConfig, holdout: Holdout, truth: np.ndarray, rows: np.ndarray, drawn_units: np.ndarray
) -> pa.Table:
    """The champion's predictions of rows with labels, as ``labels.read`` returns them."""
    predictions, count = holdout.challenger.take(rows), len(rows)
    times = [_START + number * dt.timedelta(minutes=1) for number in range(count)]
    probabilities = [None] * count if predictions.probabilities is None else predictions.probabilities.tolist()
    columns = {
        REQUEST: list(map(str, range(count))),
        "row": pa.array([0] * count, pa.int32()),
        "time": pa.array(times, TIME),
        "version": pa.array([1] * count, pa.int32()),
        "prediction": predictions.labels.tolist(),
        "probabilities": pa.array(probabilities, pa.list_(pa.float64())),
        "label": truth[rows].tolist(),
        "labelled_at": pa.array(times, TIME),
    }
    if config.data.group:  # a group that is drawn twice counts as two
        columns[INPUT_PREFIX + config.data.group] = drawn_units
    return pa.table(columns)


def _exchange_labels(truth: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """The labels, of which a share is exchanged among its rows."""
    changed = truth.copy()
    chosen = rng.permutation(len(truth))[: round(share * len(truth))]
    changed[chosen] = truth[rng.permutation(chosen)]
    return changed
