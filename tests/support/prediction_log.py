"""A release for tests of the prediction log: name, version, contract, and a folder with config and profile."""

import datetime as dt
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from towline.data.schema.contract import Column, Contract
from towline.inference.scorer import RowPredictions
from towline.prediction_log import parquet_store
from towline.prediction_log.writer import PredictionLog

PRIVACY = {
    "pii": ["street", "mail"],
    "columns": {"zip": "hash", "age": "bucket", "town": "bucket", "born": "bucket"},
    "join_on": ["customer", "order"],
}
KINDS = {
    "size": "numeric", "age": "numeric", "zip": "category", "town": "category", "street": "category",
    "member": "boolean", "at": "datetime", "born": "datetime",
}  # fmt: skip
ROW = {
    "size": 12.5, "age": 41, "zip": "803317715", "town": "Ulm", "street": "Gasse 7", "member": True,
    "at": "2026-10-05T08:00:00", "born": "1985-02-11", "customer": 4711508, "order": "A-100-Z7",
    "mail": "eva@example.org",
}  # fmt: skip


FIRST_TIME = dt.datetime(2026, 9, 30, 23, tzinfo=dt.UTC)
HOUR = 3600.0


@dataclass(frozen=True)
class FakeRelease:
    directory: Path
    contract: Contract
    name: str = "demo"
    version: int = 1


def make_fake_release(
    folder: Path, privacy: dict[str, Any], classes: tuple[Any, ...] = (), version: int = 1
) -> FakeRelease:
    folder.mkdir(parents=True, exist_ok=True)
    columns = tuple(
        Column(
            name=name, kind=kind, role="feature", nullable=True, min=0.0, max=100.0, categories=None, levels=9,
            derive=("hour",) if kind == "datetime" else (),
        )
        for name, kind in KINDS.items()
    )  # fmt: skip
    task = "binary" if classes else "regression"
    contract = Contract(target="y", task=task, columns=columns, classes=classes)
    raw = {"name": "demo", "data": {"source": "t", "target": "y"}, "privacy": privacy}
    (folder / "config.yaml").write_text(yaml.safe_dump(raw))
    towns = ["Ulm", *(f"town {n}" for n in range(20))]
    profile = {
        "size": {"quantiles": None},
        "age": {"quantiles": [float(age) for age in range(101)]},
        "town": {"counts": {town: 100 - n for n, town in enumerate(towns)}},
    }
    (folder / "profile.json").write_text(json.dumps({"rows": 100, "columns": profile}))
    return FakeRelease(folder, contract, version=version)


def make_predictions(count: int = 1, first: int = 0) -> RowPredictions:
    return RowPredictions([float(first + n) for n in range(count)], None)


def fill_log(
    folder: Path, release: FakeRelease, ids: range, step: float = HOUR, rows: int = 1, start: dt.datetime = FIRST_TIME
) -> None:
    """Writes one segment: a record every ``step`` seconds, each with its number as size and customer."""
    log = PredictionLog(folder, "w0", convert=False)
    for number in ids:
        sent = [ROW | {"size": number + place / 10, "customer": number} for place in range(rows)]
        log.write(
            f"r{number}", start.timestamp() + number % 100_000 * step, release, sent, make_predictions(rows, number)
        )
    log.close()
    assert log.written == len(ids) * rows


def logged_ids(folder: Path) -> list[str]:
    """The request ids of all logged rows, sorted."""
    return sorted(parquet_store.read_predictions(folder).column("request_id").to_pylist())


def read_segment_lines(folder: Path) -> list[dict[str, Any]]:
    """The records in the segments, in the order in which they were written; each line must be complete."""
    paths = sorted((folder / "segments").glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    lines = [json.loads(line) for path in paths for line in path.read_bytes().splitlines()]
    return [line for line in lines if "fields" not in line]


def read_all_bytes(folder: Path) -> bytes:
    """The bytes and names of all files of a folder, and the decompressed content of Parquet files."""
    content = b""
    for path in folder.rglob("*"):
        if path.is_file():
            content += str(path.relative_to(folder)).encode() + path.read_bytes()
        if path.suffix == ".parquet":
            file = pq.ParquetFile(path)
            content += f"{file.read().to_pydict()} {file.metadata.to_dict()}".encode()
    return content
