"""Parts of the prediction log from batch scoring: written next to a batch's output, then moved into the log."""

import datetime as dt
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from towline import files
from towline.prediction_log.parquet_store import LogRows, lock_store, part_path
from towline.prediction_log.privacy import HASH_KEYS, HashKeys, read_privacy_filter
from towline.prediction_log.writer import prediction_type

if TYPE_CHECKING:
    from towline.inference.predictor import Model
    from towline.inference.scorer import RowPredictions


class BatchPart:
    """The predictions of some rows of a batch in the form of the log; ``close`` completes the file.

    Args:
        path: of the file.
        folder: ``predictions/<name>`` of the store, which has the keys of hashed columns.
        model: that made the predictions.
        request_id: of the rows.
        at: time of the predictions.
    """

    def __init__(self, path: Path, folder: Path, model: "Model", request_id: str, at: dt.datetime) -> None:
        self._policy = read_privacy_filter(model.directory, model.contract, HashKeys(folder / HASH_KEYS))
        head = {
            "model": model.name,
            "version": model.version,
            "prediction": prediction_type(model.contract.classes),
            "fields": [list(field) for field in self._policy.fields],
        }
        self._rows, self._request_id, self._at, self._path = LogRows(head), request_id, at, path
        self._writer: pq.ParquetWriter | None = None
        self._count = 0

    def add(self, rows: Sequence[Mapping[str, Any]], predictions: "RowPredictions") -> None:
        """Adds rows, as a request would have them."""
        if not rows:
            return
        at = self._at.timestamp()
        self._rows.add(
            {
                "id": self._request_id,
                "at": round(at * 1e6),
                "first": self._count,
                "rows": self._policy.filter_rows(rows, at),
                "predictions": predictions.predictions,
                "probabilities": predictions.probabilities,
            }
        )
        self._count += len(rows)
        table = self._rows.table()
        self._writer = self._writer or pq.ParquetWriter(self._path, table.schema, compression="zstd")
        self._writer.write_table(table)

    def close(self) -> None:
        """Completes the file; without rows no file is written."""
        if self._writer:
            self._writer.close()


def publish_parts(folder: Path, parts: Sequence[Path], source: str, version: int, at: dt.datetime) -> None:
    """Moves files of ``BatchPart`` into the log; those that an interrupted call has moved are left out.

    Args:
        folder: ``predictions/<name>`` of the store.
        parts: the files, some of which may not exist any more.
        source: names the batch.
        version: that made the predictions.
        at: time of the predictions.

    Raises:
        TransientError: the disk is full or the folder cannot be written.
    """
    with lock_store(folder), files.disk(folder):
        for number, path in enumerate(parts):
            if path.exists():
                target = part_path(folder, at.date(), f"{source}.{number:06d}", version)
                with files.replacing(target) as copy, path.open("rb") as part:
                    shutil.copyfileobj(part, copy)
                path.unlink()
