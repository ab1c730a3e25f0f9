"""A prediction log and files of labels for it."""

import datetime as dt
from pathlib import Path
from typing import Any

from tests.support.prediction_log import ROW, FakeRelease, make_fake_release
from towline.inference.scorer import RowPredictions
from towline.prediction_log import labels, parquet_store
from towline.prediction_log.labels import AddedLabels, LabelFile, LoggedModel
from towline.prediction_log.privacy import HashKeys, read_privacy_filter
from towline.prediction_log.writer import PredictionLog

AT = dt.datetime(2026, 10, 5, tzinfo=dt.UTC)
NOW = dt.datetime(2026, 11, 20, tzinfo=dt.UTC)
PRIVACY = {"join_on": ["customer", "order"], "columns": {"order": "keep", "age": "bucket"}, "pii": ["street"]}
CLASSES = ("no", "yes")


class LabelledLog:
    """A model's log, and files of labels for it."""

    def __init__(self, folder: Path, classes: tuple[Any, ...]) -> None:
        self.folder, self.count = folder, 0
        self.release: FakeRelease = make_fake_release(folder / "release", PRIVACY, classes)
        self.log = LoggedModel(folder / "predictions", folder / "labels", ())
        keys = HashKeys(folder / "predictions" / "hash-keys")
        self.log = self.log._replace(
            fields=read_privacy_filter(self.release.directory, self.release.contract, keys).fields
        )

    def predict(self, *ids: str, rows: int = 1, at: dt.datetime = AT, **row: Any) -> None:
        log = PredictionLog(self.log.predictions, "w0", convert=False)
        answer = self.release.contract.classes[0] if self.release.contract.classes else 1.0
        for number, request in enumerate(ids):
            log.write(
                request, at.timestamp() + number, self.release, [{**ROW, "order": f"A-{request}", **row}] * rows,
                RowPredictions([answer] * rows, None),
            )  # fmt: skip
        log.close()
        assert log.written == len(ids) * rows

    def file(self, text: str) -> Path:
        self.count += 1
        path = self.folder / f"{self.count}.csv"
        path.write_text(text)
        return path

    def add(self, text: str | Path, **how: Any) -> AddedLabels:
        path = text if isinstance(text, Path) else self.file(text)
        replace, now = how.pop("replace", False), how.pop("now", NOW)
        return labels.add_labels(self.log, self.release.contract, LabelFile(path, **how), now, replace=replace)

    def read(self, **how: Any) -> dict[str, Any]:
        table = labels.read(self.log, **how)
        assert len(table) == len(parquet_store.read_predictions(self.log.predictions))
        names = (
            f"{i}.{r}" if r else i for i, r in zip(*(table[n].to_pylist() for n in ("request_id", "row")), strict=True)
        )
        return dict(zip(names, table["label"].to_pylist(), strict=True))

    def content(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in self.log.labels.rglob("*") if path.is_file()}
