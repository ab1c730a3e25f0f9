"""The shadow log of a rollout: answers of the version that did not answer the client, for the same rows.

It holds no input: request id and row number join it with the prediction log, which has the input and the version that
answered. It is read with ``parquet_store.read_predictions``.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from towline.prediction_log.segments import SegmentWriter
from towline.prediction_log.writer import prediction_type

if TYPE_CHECKING:
    from towline.inference.predictor import Model
    from towline.inference.scorer import RowPredictions

_SEGMENT_BYTES = 64_000_000
_SEGMENT_SECONDS = 3600.0
_MAX_PENDING_BYTES = 2_000_000  # while the disk fails
_logger = logging.getLogger(__name__)


class ShadowLog:
    """Appends answers; for one thread.

    Args:
        folder: of the rollout's shadow log; made when the first answer is written.
        worker: names this process among those that write.

    Attributes:
        lost: number of rows that were not logged, because the disk failed for long.
    """

    def __init__(self, folder: Path, worker: str) -> None:
        self._segments = SegmentWriter(folder, worker, _SEGMENT_BYTES, _SEGMENT_SECONDS)
        self._warned = False
        self.lost = 0

    def add(self, request_id: str, at: float, model: "Model", first: int, answer: "RowPredictions") -> None:
        """Adds the answers for consecutive rows of a request.

        Args:
            request_id: of the request.
            at: seconds since 1970.
            model: that answered.
            first: number of the first row in the request.
            answer: its predictions.
        """
        if self._segments.failure and self._segments.bytes >= _MAX_PENDING_BYTES:
            self.lost += len(answer.predictions)
            return
        kind = prediction_type(model.contract.classes)
        head = {"version": model.version, "model": model.name, "prediction": kind, "fields": []}
        line = {
            "of": model.version,
            "id": request_id,
            "at": round(at * 1e6),
            "first": first,
            "rows": [[] for _ in answer.predictions],
            "predictions": answer.predictions,
            "probabilities": answer.probabilities,
        }
        head_line, answer_line = (orjson.dumps(part, option=orjson.OPT_APPEND_NEWLINE) for part in (head, line))
        self._segments.add(model.version, head_line, answer_line, len(answer.predictions))

    def flush(self) -> None:
        """Writes the added rows. If the disk fails, about 2 MB stay in memory; each outage is logged once."""
        self._segments.flush()
        failure = self._segments.failure
        if failure and not self._warned:
            _logger.warning("the shadow log cannot be written: %s", failure)
        elif self._warned and not failure:
            _logger.warning("the shadow log is written again; rows lost so far: %d", self.lost)
        self._warned = failure is not None
        if self._segments.is_due():
            self._segments.roll()

    def close(self) -> None:
        """Writes the added rows, and closes the segment."""
        self.flush()
        self._segments.roll()
