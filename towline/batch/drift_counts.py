"""Counts of a batch for its drift against the release's profile: made for each shard, then merged in their order."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from towline.batch.row_scoring import input_batch, output_batch
from towline.config import DriftConfig
from towline.data.coded_column import CanonicalColumn
from towline.inference.predictor import Model
from towline.monitoring.drift.detector import WindowCounts, judge
from towline.monitoring.drift.histograms import ColumnStats
from towline.monitoring.results import DriftResult
from towline.release.reference import PREDICTION, PROBABILITY, PROFILE
from towline.training.evaluation.predictions import Predictions


class DriftCounts:
    """The counts of some rows and of their predictions.

    Args:
        release: folder of the release.
        model: of the release.
    """

    def __init__(self, release: Path, model: Model) -> None:
        self._window, self._contract = WindowCounts(release), model.contract

    @classmethod
    def of(cls, model: Model) -> "DriftCounts | None":
        """The counts for a model; None if its release has no profile."""
        return cls(model.directory, model) if (model.directory / PROFILE).exists() else None

    def add(self, inputs: Sequence[CanonicalColumn], predictions: Predictions) -> None:
        """Counts rows by their canonical inputs and predictions."""
        self._window.inputs.add(input_batch(self._contract, inputs))
        self._window.outputs.add(output_batch(self._contract, predictions, PREDICTION, PROBABILITY))

    def document(self) -> dict[str, Any]:
        """The counts as JSON."""
        return {"inputs": self._window.inputs.document(), "outputs": self._window.outputs.document()}


class BatchDrift:
    """The counts of all shards, added in their order.

    Args:
        release: folder of the release.
    """

    def __init__(self, release: Path) -> None:
        self._release = release
        self._window: WindowCounts | None = None

    def add(self, document: Mapping[str, Any]) -> None:
        """Adds the counts of a shard, as ``DriftCounts.document`` gives them."""
        self._window = self._window or WindowCounts(self._release)
        self._window.inputs.merge(document["inputs"])
        self._window.outputs.merge(document["outputs"])

    def judge(self, config: DriftConfig) -> DriftResult | None:
        """The drift of all rows; None if nothing was counted."""
        if self._window is None:
            return None
        self._window.present = {*self._window.inputs.columns, *self._window.outputs.columns}
        return judge(self._window, config)

    @property
    def columns(self) -> Mapping[str, ColumnStats]:
        """The statistics of each input column."""
        return self._window.inputs.columns if self._window else {}
