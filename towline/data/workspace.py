"""The folder in which one run keeps what its steps hand each other."""

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

import numpy as np
import pandas as pd
from pydantic import BaseModel

from towline import files
from towline.config import Frozen, PipelineConfig
from towline.data.schema.contract import Contract
from towline.data.sources import Dataset, read_snapshot
from towline.errors import TransientError
from towline.provenance import code_digest
from towline.store import StoreLayout

ABANDONED = timedelta(days=30)
SNAPSHOT = "snapshot.parquet"  # of a run whose snapshot is not to outlive it


class Workspace(Frozen):
    """A small reference to that folder; steps are handed this, never a frame.

    ``token`` is drawn when the folder is made: remembered results of steps hold only while their files do.
    """

    store: Path
    key: str
    token: str
    dataset: Dataset

    @property
    def path(self) -> Path:
        return StoreLayout(self.store).workspace(self.key)

    @contextmanager
    def exclusive_lock(self) -> Iterator[None]:
        """Keeps another process from doing the same run at the same time; at its end, a snapshot of its own is removed.

        Raises:
            TransientError: one is at it, or has ended it since this workspace was opened.
        """
        with files.exclusive_lock(self.file("lock"), wait=False) as mine:
            if not mine:
                raise TransientError(
                    "this very run is under way in another process", where=str(self.path), remedy="wait for it to end"
                )
            if not self._stands():
                self.remove()
                raise TransientError(
                    "this very run was in another process's hands",
                    where=str(self.path),
                    remedy="run the same command again: it tells what came of it, or goes on",
                )
            try:
                yield
            finally:
                self.file(SNAPSHOT).unlink(missing_ok=True)

    def _stands(self) -> bool:
        token = self.file("token")
        return token.exists() and token.read_text() == self.token

    @property
    def judged(self) -> bool:
        """Whether a run has come as far as its verdict here: what it decided may not be mirrored everywhere yet."""
        return self.file("verdict.json").exists()

    def remove(self) -> None:
        """Takes the folder away in one move and then deletes it, with what a kill kept from being deleted.

        Folders of other runs go too where nothing was written for 30 days, no process is at it, and no verdict waits
        to be carried out: their configs have changed, or they were given up.
        """
        _move_aside(self.path)
        for other in self.path.parent.glob("[!.]*"):
            if files.age(other) > ABANDONED and not (other / "verdict.json").exists():
                # of another user's folder this one may not be able to dispose
                with (
                    contextlib.suppress(OSError, TransientError),
                    files.exclusive_lock(other / "lock", wait=False) as ours,
                ):
                    if ours:
                        _move_aside(other)
        for gone in self.path.parent.glob(".gone-*"):
            shutil.rmtree(gone, ignore_errors=True)

    def file(self, name: str) -> Path:
        return self.path / name

    def save(self, name: str, record: BaseModel) -> Path:
        return files.write(self.file(name), record.model_dump_json(indent=1))

    def save_json(self, name: str, content: object) -> Path:
        return files.write(self.file(name), json.dumps(content, indent=1, ensure_ascii=False, default=str))

    def contract(self) -> Contract:
        return Contract.read(self.path)

    def table(self) -> pd.DataFrame:
        """The snapshot as read; shared between steps, not to be changed."""
        return _table(self.store, self.dataset)

    def parts(self) -> dict[str, np.ndarray]:
        """Positions in the table: ``train`` (time-ordered where there is a time) and ``holdout``."""
        with np.load(self.file("split.npz"), allow_pickle=False) as saved:
            return {name: saved[name] for name in saved.files}

    def part(self, name: str) -> tuple[pd.DataFrame, np.ndarray, pd.DataFrame]:
        """Features ready for an estimator, target values, and the raw rows of one part (``train`` or ``holdout``)."""
        rows = self.table().iloc[self.parts()[name]].reset_index(drop=True)
        contract = self.contract()
        return contract.features(rows), contract.labels(rows), rows


def _move_aside(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        folder.rename(folder.with_name(f".gone-{secrets.token_hex(8)}"))


@functools.lru_cache(maxsize=1)
def _table(store: Path, dataset: Dataset) -> pd.DataFrame:
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
    """The workspace of the run that this config, data, code and ``as_of`` make; what a killed run left is kept.

    Args:
        config: what the run does.
        dataset: what it does it on.
        project: where the flows stand; they are part of the code.
        store: where workspaces are made.
        as_of: as the run was given it.
        ended: keys of runs that are not to be found done, but done anew under a key of their own.

    Raises:
        TransientError: the store cannot be written.
    """
    parts = (config.digest, dataset.digest, code_digest(config, project), as_of.isoformat() if as_of else "")
    for again in itertools.count():
        key = hashlib.sha256("\n".join((*parts, str(again or ""))).encode()).hexdigest()
        work = Workspace(store=store, key=key, token="", dataset=dataset)
        if key not in ended or work.judged:
            break
    token = work.file("token")
    if not token.exists():
        files.write(token, secrets.token_hex(8))
    if not config.data.keep_snapshot:
        own = work.file(SNAPSHOT)
        StoreLayout(store).dataset(dataset.path).replace(own)
        dataset = dataset.model_copy(update={"path": own.relative_to(store).as_posix()})
    return work.model_copy(update={"token": token.read_text(), "dataset": dataset})
