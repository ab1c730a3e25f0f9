"""A release as the log knows it: a name, a version, a contract, and a folder with config and profile."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from towline.data.schema.contract import Column, Contract
from towline.inference.scorer import RowPredictions
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


@dataclass(frozen=True)
class Release:
    directory: Path
    contract: Contract
    name: str = "demo"
    version: int = 1


def make_release(folder: Path, privacy: dict[str, Any], classes: tuple[Any, ...] = (), version: int = 1) -> Release:
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
    return Release(folder, contract, version=version)


def answer(count: int = 1, first: int = 0) -> RowPredictions:
    return RowPredictions([float(first + n) for n in range(count)], None)


def wait(until: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def lines(folder: Path) -> list[dict[str, Any]]:
    """The records in the segments, in the order they were written; each line must be whole."""
    paths = sorted((folder / "segments").glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    found = [json.loads(line) for path in paths for line in path.read_bytes().splitlines()]
    return [line for line in found if "fields" not in line]


def visible(folder: Path) -> bytes:
    """Everything the files of a folder tell: their bytes and names, and what is compressed in Parquet."""
    found = b""
    for path in folder.rglob("*"):
        if path.is_file():
            found += str(path.relative_to(folder)).encode() + path.read_bytes()
        if path.suffix == ".parquet":
            file = pq.ParquetFile(path)
            found += f"{file.read().to_pydict()} {file.metadata.to_dict()}".encode()
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "predictions" / "demo"


@pytest.fixture
def log(folder: Path) -> Iterator[PredictionLog]:
    log = PredictionLog(folder, "w0", convert=False)
    yield log
    log.close()


@pytest.fixture
def release(tmp_path: Path) -> Release:
    return make_release(tmp_path / "release", PRIVACY)


@pytest.fixture
def releases(tmp_path: Path) -> Callable[..., Release]:
    def make(privacy: dict[str, Any] | None = None, classes: tuple[Any, ...] = (), version: int = 1) -> Release:
        return make_release(tmp_path / f"release-{version}", privacy or {}, classes, version)

    return make
