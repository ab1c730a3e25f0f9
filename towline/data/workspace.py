"""The workspace of a run: the folder in which its steps exchange files.

The name of a workspace is a digest of everything that its files depend on: the training part of the config, the
dataset, the code and ``as_of``. Runs that differ in the gate or in validation rules only have one workspace in common,
so the later one reuses the fits of the earlier one; their *run keys* differ. A workspace is used by one process at a
time. It is removed at the end of a run that was promoted, and kept after a rejection.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import secrets
import shutil
from collections.abc import Container, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from towline import files
from towline.config import Frozen, PipelineConfig, TrainingConfig
from towline.data import snapshot
from towline.data.schema.contract import Contract
from towline.data.schema.lookup_tables import LookupSource
from towline.data.snapshot import SnapshotColumns, Table, iterate_rows, take_rows
from towline.data.source.sources import Dataset, check_snapshot, convert_lookup_table, read_lookup_source, read_snapshot
from towline.errors import TransientError
from towline.provenance import code_digest
from towline.store import StoreLayout

ABANDONED_AFTER = timedelta(days=30)
SNAPSHOT = "snapshot.parquet"  # of a run whose snapshot is removed with it (data.keep_snapshot: false)
_DIGEST = b"digest"  # key of the metadata of a lookup table
SMOKE_TEST_ROWS = "smoke-test-rows.parquet"
HOLDOUT_ALL = "holdout_all"


class Subset(NamedTuple):
    """One side of the split, n rows.

    Attributes:
        features: the canonical frame for an estimator.
        labels: (n,) target values; object for classification.
        rows: the raw rows.
    """

    features: pd.DataFrame
    labels: np.ndarray
    rows: pd.DataFrame


class Workspace(Frozen):
    """A reference to a workspace. Tasks exchange this record, never frames.

    Attributes:
        store: the store's folder.
        key: names the folder.
        token: drawn when the folder is created: results of tasks that are cached for it are valid as long as it exists.
        dataset: the rows of the run.
    """

    store: Path
    key: str
    token: str
    dataset: Dataset

    @property
    def path(self) -> Path:
        return StoreLayout(self.store).workspace(self.key)

    def run_key(self, config: PipelineConfig) -> str:
        """The identity of a run of this config in this workspace; a tag of everything that the run registers."""
        return hashlib.sha256(f"{self.key}\n{config.digest}".encode()).hexdigest()

    @contextmanager
    def exclusive_lock(self) -> Iterator[None]:
        """Locks the workspace for this process; at the end removes its snapshot and the rows of parts.

        Raises:
            TransientError: another process uses the workspace, or has removed it since it was opened.
        """
        with files.exclusive_lock(self.file("lock"), wait=False) as acquired:
            if not acquired:
                raise TransientError(
                    "the same run is under way in another process", where=str(self.path), remedy="wait for it to end"
                )
            token = self.file("token")
            if not token.exists() or token.read_text() != self.token:
                self.remove()
                raise TransientError(
                    "another process has finished the same run",
                    where=str(self.path),
                    remedy="run the same command again: it shows the result, or continues the run",
                )
            try:
                yield
            finally:
                for file in (self.file(SNAPSHOT), self.file(SMOKE_TEST_ROWS), *self.path.glob(_part_file("*"))):
                    file.unlink(missing_ok=True)

    def verdict_file(self, run_key: str) -> Path:
        """The verdict of a run that has not ended: if it exists, the run is continued after the gate."""
        return self.file(f"verdict-{run_key[:16]}.json")

    def has_verdict(self, run_key: str) -> bool:
        return self.verdict_file(run_key).exists()

    def origin_file(self, run_key: str) -> Path:
        """The context that a run determined at its start; a resumed run reads it."""
        return self.file(f"origin-{run_key[:16]}.json")

    def end_run(self, run_key: str, *, keep_fits: bool) -> None:
        """Ends a run: removes its files, or all of the workspace unless runs with another gate may reuse its fits."""
        if keep_fits:
            self.origin_file(run_key).unlink(missing_ok=True)
            self.verdict_file(run_key).unlink(missing_ok=True)
            self._remove_abandoned()
        else:
            self.remove()

    def remove(self) -> None:
        """Removes the folder: a rename, then the deletion."""
        _move_aside(self.path)
        self._remove_abandoned()

    def _remove_abandoned(self) -> None:
        """Deletes the rest of interrupted deletions, and abandoned workspaces.

        Workspaces of other runs are removed too if nothing was written to them for 30 days, no process uses them and
        they have no verdict that is not yet carried out.
        """
        for other in self.path.parent.glob("[!.]*"):
            if files.age(other) > ABANDONED_AFTER and not any(other.glob("verdict-*.json")):
                # the folder may belong to another user
                with (
                    contextlib.suppress(OSError, TransientError),
                    files.exclusive_lock(other / "lock", wait=False) as acquired,
                ):
                    if acquired:
                        _move_aside(other)
        for removed in self.path.parent.glob(".gone-*"):
            shutil.rmtree(removed, ignore_errors=True)

    def file(self, name: str) -> Path:
        return self.path / name

    def save(self, name: str, record: BaseModel) -> Path:
        return files.write(self.file(name), record.model_dump_json(indent=1))

    def save_json(self, name: str, content: object) -> Path:
        return files.write(self.file(name), json.dumps(content, indent=1, ensure_ascii=False, default=str))

    def contract(self) -> Contract:
        return Contract.read(self.path)

    def table(self) -> pd.DataFrame:
        """The rows of the snapshot; shared between steps, do not change them."""
        return _read_table(self.store, self.dataset)

    def columns(self) -> Table:
        """The rows of the snapshot; of a table that is too large to be held, its columns are read one by one."""
        if self.dataset.rows * len(self.dataset.columns) <= snapshot.MAX_CELLS:
            return self.table()
        return SnapshotColumns(check_snapshot(self.dataset, self.store))

    def lookups(self, config: TrainingConfig) -> dict[str, LookupSource]:
        """The lookup tables as they were when the workspace was opened."""
        sources = {}
        for name, lookup in config.lookups.items():
            table = pq.read_table(self.file(_lookup_file(name)))
            digest = (table.schema.metadata or {})[_DIGEST].decode()
            plain = table.replace_schema_metadata(None)
            convert = functools.partial(convert_lookup_table, table=plain, lookup=lookup, config=config.data)
            sources[name] = LookupSource(convert, digest)
        return sources

    def split_positions(self) -> dict[str, np.ndarray]:
        """Positions in the table: ``train`` and ``holdout``, ordered by time if there is one.

        Of a large table they are samples. Then ``holdout_all`` are the rows of the whole holdout, and ``all`` those
        that a model is fitted on after the evaluation.
        """
        return files.read_arrays(self.file("split.npz"))

    def subset(self, name: str) -> Subset:
        """The rows of ``train``, ``holdout`` or ``all``."""
        file, contract = self.file(_part_file(name)), self.contract()
        if file.exists():
            rows = snapshot.snapshot_to_frame(pq.read_table(file))
        else:
            rows = take_rows(self.columns(), self.split_positions()[name])
        return Subset(contract.features(rows), contract.labels(rows), rows)

    def save_parts(self) -> None:
        """Saves the rows of each part of a large table, so that a step need not read the snapshot."""
        table = self.columns()
        if not isinstance(table, SnapshotColumns):
            return
        for name, positions in self.split_positions().items():
            if name != HOLDOUT_ALL:
                rows = pa.Table.from_pandas(table.take(positions), preserve_index=False)
                with files.replacing(self.file(_part_file(name))) as file:
                    pq.write_table(rows.replace_schema_metadata(None), file, compression="zstd")

    def holdout_batches(self) -> Iterator[Subset]:
        """All rows of the holdout in the order of the table, a batch at a time."""
        positions, contract = self.split_positions(), self.contract()
        for rows in iterate_rows(self.columns(), np.sort(positions.get(HOLDOUT_ALL, positions["holdout"]))):
            yield Subset(contract.features(rows), contract.labels(rows), rows)


def _part_file(name: str) -> str:
    return f"rows-{name}.parquet"


def _lookup_file(name: str) -> str:
    return f"lookup-{name}.parquet"


def _move_aside(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        folder.rename(folder.with_name(f".gone-{secrets.token_hex(8)}"))


@functools.lru_cache(maxsize=1)
def _read_table(store: Path, dataset: Dataset) -> pd.DataFrame:
    return read_snapshot(dataset, store)


def open_workspace(
    config: PipelineConfig,
    dataset: Dataset,
    project: Path,
    store: Path,
    as_of: datetime | None,
    *,
    ended: Container[str] = (),
) -> Workspace:
    """Opens the workspace of a run, or creates it. Files of an interrupted run are kept.

    Args:
        config: of the run.
        dataset: its rows.
        project: the folder of the flows, which are part of the code.
        store: where workspaces are created.
        as_of: of the run.
        ended: run keys that are not used again: a forced run gets the next key that has not ended.

    Raises:
        TransientError: the store cannot be written.
    """
    time = as_of.isoformat() if as_of else ""
    lookups = {name: read_lookup_source(lookup, name, project) for name, lookup in config.lookups.items()}
    digests = tuple(f"{name} {digest}" for name, (_, digest) in lookups.items())
    parts = (config.training.digest, dataset.digest, code_digest(config, project), time, *digests)
    for attempt in itertools.count():
        key = hashlib.sha256("\n".join((*parts, str(attempt or ""))).encode()).hexdigest()
        work = Workspace(store=store, key=key, token="", dataset=dataset)
        run_key = work.run_key(config)
        if run_key not in ended or work.has_verdict(run_key):
            break
    token = work.file("token")
    if not token.exists():
        for name, (table, digest) in lookups.items():
            with files.replacing(work.file(_lookup_file(name))) as file:
                pq.write_table(table.replace_schema_metadata({_DIGEST: digest}), file)
        files.write(token, secrets.token_hex(8))
    if not config.data.keep_snapshot:
        moved = work.file(SNAPSHOT)
        (store / dataset.path).replace(moved)
        dataset = dataset.model_copy(update={"path": moved.relative_to(store).as_posix()})
    return work.model_copy(update={"token": token.read_text(), "dataset": dataset})
