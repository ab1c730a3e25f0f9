"""Simulated monitoring: the functions of the monitoring runs, applied to tables that look like the prediction log."""

import datetime as dt
from dataclasses import dataclass

import pandas as pd
import pyarrow as pa

from towline.backtesting.results import to_aware
from towline.backtesting.trainer import TrainedModel
from towline.config import PipelineConfig
from towline.data.schema.contract import Contract
from towline.manifest import ReleaseLocation
from towline.monitoring.results import ChampionComparison, DriftResult, GainResult, QualityResult
from towline.prediction_log.parquet_store import INPUT_PREFIX
from towline.release.reference import PREDICTION, PROBABILITY
from towline.training.evaluation.predictions import Predictions


@dataclass(frozen=True)
class PredictedRows:
    """Rows of the history with one version's predictions; n of each.

    Attributes:
        rows: (n, columns) raw rows.
        times: (n,) their times.
        truth: (n,) their labels.
        predictions: of n rows.
    """

    rows: pd.DataFrame
    times: pd.Series
    truth: pd.Series
    predictions: Predictions

    def between(self, start: pd.Timestamp, end: pd.Timestamp) -> "PredictedRows":
        inside = ((self.times >= start) & (self.times < end)).to_numpy()
        return PredictedRows(self.rows[inside], self.times[inside], self.truth[inside], self.predictions.take(inside))

    def features(self, contract: Contract) -> pa.Table:
        names = [column.name for column in contract.input_columns]
        return pa.Table.from_pandas(self.rows[names], preserve_index=False)

    def drift_table(self, contract: Contract) -> pa.Table:
        """Features, prediction, and the probability of a binary model's positive class."""
        table, probabilities = self.features(contract), self.predictions.probabilities
        if PREDICTION not in table.column_names:
            table = table.append_column(PREDICTION, pa.array(self.predictions.labels.tolist()))
        if contract.positive is not None and probabilities is not None and PROBABILITY not in table.column_names:
            positive = probabilities[:, contract.classes.index(contract.positive)]
            table = table.append_column(PROBABILITY, pa.array(positive))
        return table

    def labelled_log(self, contract: Contract, version: int, delay: dt.timedelta) -> pa.Table:
        """A table as ``labels.read`` returns it, in which every label is known ``delay`` after its prediction."""
        count, features, probabilities = len(self.rows), self.features(contract), self.predictions.probabilities
        columns: dict[str, pa.Array | pa.ChunkedArray] = {
            "request_id": pa.array([str(number) for number in range(count)], pa.string()),
            "row": pa.array([0] * count, pa.int32()),
            "time": _to_utc_array(self.times),
            "version": pa.array([version] * count, pa.int32()),
            "model": pa.array(["backtest"] * count, pa.string()),
            **{INPUT_PREFIX + name: features[name] for name in features.column_names},
            "prediction": pa.array(self.predictions.labels.tolist(), None if contract.classes else pa.float64()),
        }
        if probabilities is not None:
            columns["probabilities"] = pa.array(probabilities.tolist(), pa.list_(pa.float64()))
        labels = [None if pd.isna(value) else value for value in self.truth.tolist()]
        columns["label"] = pa.array(labels, columns["prediction"].type)
        columns["labelled_at"] = _to_utc_array(self.times + delay)
        return pa.table(columns)


class SimulatedMonitoring:
    """Monitoring of predicted rows. Each window of a version is computed once for all policies.

    Args:
        config: config with the thresholds.
        delay: time until a label is known.
    """

    def __init__(self, config: PipelineConfig, delay: dt.timedelta) -> None:
        self._config, self._delay = config, delay
        self._drift: dict[tuple[int, pd.Timestamp, pd.Timestamp], DriftResult] = {}
        self._quality: dict[tuple[int, pd.Timestamp, pd.Timestamp], QualityResult] = {}
        self._gain: dict[tuple[int, pd.Timestamp, pd.Timestamp], GainResult] = {}

    def detect_drift(
        self, trained: TrainedModel, predicted: PredictedRows, start: pd.Timestamp, end: pd.Timestamp
    ) -> DriftResult:
        """Compares the rows from ``start`` until ``end`` with the version's training rows."""
        from towline.monitoring.drift.detector import detect

        key = trained.version, start, end
        if key not in self._drift:
            batches = predicted.between(start, end).drift_table(trained.model.contract).to_batches()
            self._drift[key] = detect(
                trained.release, batches, self._config.drift, start=to_aware(start), end=to_aware(end)
            )
        return self._drift[key]

    def measure_quality(
        self, trained: TrainedModel, predicted: PredictedRows, start: pd.Timestamp, now: pd.Timestamp
    ) -> QualityResult:
        """Measures the predictions since ``start`` whose labels are due."""
        from towline.monitoring.performance.quality import measure_quality

        key = trained.version, start, now
        if key not in self._quality:
            rows = self._labelled_log(trained, predicted.between(start, now))
            end = to_aware(now - self._delay)
            self._quality[key] = measure_quality(
                rows, trained.release, self._config, start=to_aware(start), end=end, now=to_aware(now)
            )
        return self._quality[key]

    def measure_gain(
        self,
        trained: TrainedModel,
        predicted: PredictedRows,
        history: pd.DataFrame,
        start: pd.Timestamp,
        now: pd.Timestamp,
    ) -> GainResult:
        """Compares a version with refits of its recipe on the rows since ``start`` whose labels are due.

        The refits use rows of ``history``: those whose labels are known ``now``.
        """
        from towline.monitoring.performance.retraining_gain import measure_gain

        key = trained.version, start, now
        if key not in self._gain:
            rows, end = self._labelled_log(trained, predicted.between(start, now)), to_aware(now - self._delay)
            self._gain[key] = measure_gain(
                rows, trained.release, self._config, history, start=to_aware(start), end=end, now=to_aware(now)
            )
        return self._gain[key]

    def compare_champions(
        self,
        trained: TrainedModel,
        previous: ReleaseLocation | None,
        predicted: PredictedRows,
        window: QualityResult,
        drift: DriftResult | None,
    ) -> ChampionComparison | None:
        """Compares a version with the version before it on the labelled rows of a window."""
        from towline.monitoring.performance.champion_comparison import compare_champions_on_rows

        if window.start is None or window.end is None:
            return None
        start, end = (pd.Timestamp(moment).tz_localize(None) for moment in (window.start, window.end))
        rows = self._labelled_log(trained, predicted.between(start, end))
        return compare_champions_on_rows(rows, trained.location, previous, self._config, drift)

    def _labelled_log(self, trained: TrainedModel, predicted: PredictedRows) -> pa.Table:
        return predicted.labelled_log(trained.model.contract, trained.version, self._delay)


def _to_utc_array(times: pd.Series) -> pa.Array:
    return pa.array(times.dt.tz_localize("UTC").array, pa.timestamp("us", "UTC"))
