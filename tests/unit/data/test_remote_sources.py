"""``data.source`` may be a URL."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pytest

from towline.config import DataConfig, build_config
from towline.data import snapshot
from towline.data.source import formats
from towline.data.source.sources import load_dataset, read_snapshot
from towline.errors import ConfigError, DataError

TABLE = pd.DataFrame({"size": range(60), "price": [size * 2.5 for size in range(60)]})


@pytest.fixture
def bucket() -> Iterator[Any]:
    """The file system of memory:// URLs, with three files."""
    memory = fsspec.filesystem("memory")
    for part in range(3):
        memory.pipe(f"/bucket/prices/part-{part}.csv", TABLE[part * 20 : part * 20 + 20].to_csv(index=False).encode())
    memory.pipe("/bucket/prices.parquet", TABLE.to_parquet())
    yield memory
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


@pytest.mark.parametrize("cells", [snapshot.MAX_CELLS, 10], ids=["in memory", "column by column"])
@pytest.mark.parametrize(
    "source",
    [
        "memory://bucket/prices.parquet",
        "memory://bucket/prices",
        "memory://bucket/prices/part-*.csv",
        ["memory://bucket/prices/part-0.csv", "memory://bucket/prices/part-1.csv", "rest.csv"],
        "file://${FOLDER}/all.csv",
    ],
)
def test_a_url_gives_the_dataset_of_files(
    tmp_path: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch, source: str | list[str], cells: int
) -> None:
    """The digest is that of local files, and no copy remains."""
    monkeypatch.setattr(snapshot, "MAX_CELLS", cells)
    TABLE[40:].to_csv(tmp_path / "rest.csv", index=False)
    TABLE.to_csv(tmp_path / "all.csv", index=False)
    if isinstance(source, str):
        source = source.replace("${FOLDER}", str(tmp_path))
    local = load_dataset(DataConfig(source="all.csv", target="price"), tmp_path, tmp_path / "local", None)
    dataset = load_dataset(DataConfig(source=source, target="price"), tmp_path, tmp_path / "store", None)
    assert dataset.digest == local.digest
    assert dataset.source == (source if isinstance(source, str) else ", ".join(source))
    assert len(read_snapshot(dataset, tmp_path / "store")) == 60
    assert len([path for path in (tmp_path / "store").rglob("*") if path.is_file()]) == 1


def test_faults_name_the_remote_file(tmp_path: Path, bucket: Any) -> None:
    """The error has the line in the file behind the URL; its temporary copy is not named."""
    bucket.pipe("/bucket/faulty.csv", b"size,price\n1,2\n1,2,3\n")
    with pytest.raises(DataError) as caught:
        load_dataset(DataConfig(source="memory://bucket/faulty.csv", target="price"), tmp_path, tmp_path, None)
    assert caught.value.where == "faulty.csv:3"
    with pytest.raises(DataError, match="no such file"):
        load_dataset(DataConfig(source="memory://bucket/none.csv", target="price"), tmp_path, tmp_path, None)


def test_urls_of_a_list_with_other_secrets_differ() -> None:
    """Each has its own secret, and none is in shown or stored texts."""
    urls = ["https://host/rows.csv?part=s3cret-1", "https://host/rows.csv?part=s3cret-2", "data/rows.csv"]
    config = build_config({"name": "t", "data": {"source": urls, "target": "y"}}, "")
    for shown in (config.model_dump_json(), config.masked().model_dump_json(), repr(config)):
        assert "s3cret" not in shown
    hidden = config.data.source_files
    assert hidden[0] != hidden[1]
    assert hidden[2] == "data/rows.csv"


def test_other_tables_are_files_of_this_machine(tmp_path: Path) -> None:
    """A URL is refused where only a file can be read, without its secrets."""
    with pytest.raises(ConfigError, match=r"lookups.shops.table: https://host/a.csv\?sig=\*\*\*"):
        formats.list_files("https://host/a.csv?sig=s3cret", tmp_path, "lookups.shops.table")
