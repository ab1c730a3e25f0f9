"""The night watch on rows of a replay: the same functions as in production, on tables as its log would hold them."""

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import pyarrow as pa

from towline.backtesting.results import aware
from towline.backtesting.trainer import TrainedModel
from towline.config import PipelineConfig
from towline.data.schema.contract import Contract
from towline.manifest import ReleaseLocation
from towline.monitoring.results import ChampionComparison, DriftResult, QualityResult
from towline.prediction_log.parquet_store import INPUT
from towline.release.reference import PREDICTION, PROBABILITY
from towline.training.evaluation.predictions import Predictions


@dataclass(frozen=True)
class Answered:
    """Rows and what a model said of them; positions agree."""

    rows: pd.DataFrame
    times: pd.Series
    truth: pd.Series
    found: Predictions

    def between(self, start: pd.Timestamp, end: pd.Timestamp) -> "Answered":
        kept = ((self.times >= start) & (self.times < end)).to_numpy()
        return Answered(self.rows[kept], self.times[kept], self.truth[kept], self.found.take(kept))

    def inputs(self, contract: Contract) -> pa.Table:
        """The features as they came."""
        names = [column.name for column in contract.feature_columns]
        return pa.Table.from_pandas(self.rows[names], preserve_index=False)

    def seen(self, contract: Contract) -> pa.Table:
        """The features, the prediction, and of a binary model the probability of the positive class."""
        table = self.inputs(contract)
        if PREDICTION not in table.column_names:
            table = table.append_column(PREDICTION, pa.array(self.found.labels.tolist()))
        if contract.positive is not None and self.found.probabilities is not None:
            chance = self.found.probabilities[:, contract.classes.index(contract.positive)]
            if PROBABILITY not in table.column_names:
                table = table.append_column(PROBABILITY, pa.array(chance))
        return table

    def log(self, contract: Contract, version: int, delay: dt.timedelta) -> pa.Table:
        """As ``labels.read`` gives the log: every label is known ``delay`` after its prediction."""
        count = len(self.rows)
        when = pa.array(self.times.dt.tz_localize("UTC").array, pa.timestamp("us", "UTC"))
        columns: dict[str, pa.Array | pa.ChunkedArray] = {
            "request_id": pa.array([str(at) for at in range(count)], pa.string()),
            "row": pa.array([0] * count, pa.int32()),
            "time": when,
            "version": pa.array([version] * count, pa.int32()),
            "model": pa.array(["replay"] * count, pa.string()),
        }
        features = self.inputs(contract)
        columns |= {INPUT + name: features[name] for name in features.column_names}
        kind = None if contract.classes else pa.float64()
        columns["prediction"] = pa.array(self.found.labels.tolist(), kind)
        if self.found.probabilities is not None:
            columns["probabilities"] = pa.array(self.found.probabilities.tolist(), pa.list_(pa.float64()))
        known = [None if pd.isna(value) else value for value in self.truth.tolist()]
        columns["label"] = pa.array(known, columns["prediction"].type)
        columns["labelled_at"] = pa.array((self.times + delay).dt.tz_localize("UTC").array, pa.timestamp("us", "UTC"))
        return pa.table(columns)


class Watch:
    """Rounds on answered rows; each is done once for a version and its window, whichever policy asks.

    Args:
        config: with the thresholds.
        delay: after it a label is known.
        detect, measure, compare: the watch's own functions, unless a test gives others.
    """

    def __init__(
        self,
        config: PipelineConfig,
        delay: dt.timedelta,
        *,
        detect: Callable[..., DriftResult] | None = None,
        measure: Callable[..., QualityResult] | None = None,
        compare: Callable[..., ChampionComparison | None] | None = None,
    ) -> None:
        self._config, self._delay = config, delay
        self._detect, self._measure, self._compare = detect, measure, compare
        self._drift: dict[tuple[int, pd.Timestamp, pd.Timestamp], DriftResult] = {}
        self._quality: dict[tuple[int, pd.Timestamp, pd.Timestamp], QualityResult] = {}

    def drift(self, trained: TrainedModel, answered: Answered, start: pd.Timestamp, end: pd.Timestamp) -> DriftResult:
        """What was asked from ``start`` up to ``end`` against what the version was trained on."""
        key = trained.version, start, end
        if key not in self._drift:
            if self._detect is None:
                from towline.monitoring.drift.detector import detect

                self._detect = detect
            rows = answered.between(start, end).seen(trained.model.contract)
            self._drift[key] = self._detect(
                trained.release, rows.to_batches(), self._config.drift, start=aware(start), end=aware(end)
            )
        return self._drift[key]

    def quality(
        self, trained: TrainedModel, answered: Answered, start: pd.Timestamp, now: pd.Timestamp
    ) -> QualityResult:
        """The predictions since ``start`` whose labels are due."""
        key = trained.version, start, now
        if key not in self._quality:
            if self._measure is None:
                from towline.monitoring.performance.quality import measure

                self._measure = measure
            due = now - self._delay
            table = answered.between(start, now).log(trained.model.contract, trained.version, self._delay)
            self._quality[key] = self._measure(
                table, trained.release, self._config, start=aware(start), end=aware(due), now=aware(now)
            )
        return self._quality[key]

    def triage(
        self,
        trained: TrainedModel,
        previous: ReleaseLocation | None,
        answered: Answered,
        window: QualityResult,
        drift: DriftResult | None,
    ) -> ChampionComparison | None:
        """The version and the one before it on the labelled rows of a bad window."""
        if self._compare is None:
            from towline.monitoring.performance.champion_comparison import triage

            self._compare = triage
        if window.start is None or window.end is None:
            return None
        start, end = (pd.Timestamp(at).tz_localize(None) for at in (window.start, window.end))
        table = answered.between(start, end).log(trained.model.contract, trained.version, self._delay)
        return self._compare(table, trained.recorded, previous, self._config, drift)
