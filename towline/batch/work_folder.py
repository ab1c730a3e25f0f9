"""The work folder of a job: the pieces and the results of its finished shards, so that an interrupted job resumes."""

import datetime as dt
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from towline import files
from towline.config import Frozen
from towline.errors import ConfigError

_MARK = ".towline-batch-"


class ShardResult(Frozen):
    """The counts of a scored shard.

    Attributes:
        rows: rows of the input.
        scored: rows of the output.
        quarantined: rows in the quarantine.
        end: place after its text in the output, if it was appended there; None: its text is a piece.
        counts: values of the columns on the grid of the release's profile, for the drift.
        left_out: columns of JSON lines that are not copied, since the first rows do not have them; at most 100.
    """

    rows: int
    scored: int
    quarantined: int
    end: int | None = None
    counts: dict[str, Any] | None = None
    left_out: tuple[str, ...] = ()


class WorkFolder(Frozen):
    """A folder next to the output, named after the digest of the job."""

    path: Path

    @classmethod
    def of(cls, output: Path, job: str) -> "WorkFolder":
        """The folder of a job; ``job`` is the digest of its input, version and options."""
        return cls(path=output.parent / f".{output.name}{_MARK}{job[:16]}")

    def piece(self, shard: int) -> Path:
        """The output of a shard."""
        return self.path / f"{shard:06d}.piece"

    def quarantine(self, shard: int) -> Path:
        """The bad rows of a shard as JSON lines."""
        return self.path / f"{shard:06d}.quarantine"

    def log_part(self, shard: int) -> Path:
        """The predictions of a shard for the prediction log."""
        return self.path / f"{shard:06d}.log"

    def start(self) -> dt.datetime:
        """The time at which the job was started first."""
        file = self.path / "started"
        if not file.exists():
            files.write(file, dt.datetime.now(dt.UTC).isoformat())
        return dt.datetime.fromisoformat(file.read_text())

    def is_finished(self, shard: int) -> bool:
        return self._result_file(shard).exists()

    def result(self, shard: int) -> ShardResult | None:
        """The result of a finished shard."""
        file = self._result_file(shard)
        return ShardResult.model_validate_json(file.read_bytes()) if file.exists() else None

    def _result_file(self, shard: int) -> Path:
        return self.path / f"{shard:06d}.json"

    def finish(self, shard: int, result: ShardResult) -> None:
        """Records that a shard is finished; its piece and its quarantine are complete."""
        files.write(self._result_file(shard), result.model_dump_json())

    def forget(self, shard: int) -> None:
        """Makes a finished shard unfinished."""
        self._result_file(shard).unlink()

    @property
    def places(self) -> Path:
        """The file with the lengths of the shards' texts, from which their places in the output follow."""
        return self.path / "places"

    @property
    def assembled(self) -> Path:
        """The complete output before it gets its name."""
        return self.path / "output"

    @property
    def outcome(self) -> dict[str, Any] | None:
        """The record that was written before the output got its name."""
        file = self.path / "outcome.json"
        return dict(json.loads(file.read_bytes())) if file.exists() else None

    def record_outcome(self, outcome: dict[str, Any]) -> None:
        """Records the summary before the output gets its name."""
        files.write(self.path / "outcome.json", json.dumps(outcome))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder and holds its lock, so that one process at a time works on the job.

        Raises:
            ConfigError: another process works on it.
        """
        with files.exclusive_lock(self.path / "lock", wait=False) as acquired:
            if not acquired:
                raise ConfigError(
                    "another process scores the same input to the same output",
                    where=str(self.path),
                    remedy="wait until it has ended, then run the same command again",
                )
            yield

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def remove_other_folders(output: Path, current: WorkFolder) -> None:
    """Removes the unlocked work folders of earlier jobs with the same output."""
    for folder in output.parent.glob(f".{output.name}{_MARK}*"):
        if folder != current.path:
            with files.exclusive_lock(folder / "lock", wait=False) as acquired:
                if acquired:
                    shutil.rmtree(folder, ignore_errors=True)
