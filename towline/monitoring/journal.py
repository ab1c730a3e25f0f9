"""What each round of the watch found, kept as lines of JSON beside the store's models."""

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

import orjson

from towline import files
from towline.config import Settings
from towline.monitoring.results import DriftCheckResult, DriftResult, QualityResult

Kind = Literal["drift", "quality"]
Record = TypeVar("Record", DriftResult, QualityResult)

MAX_PASSED_CHECKS = 100  # of a night that are kept beside those that alarm: a table may have a thousand columns


class Journal:
    """``watch/<name>`` of the store: ``drift.jsonl`` and ``quality.jsonl``, ``{"at": …, "record": …}`` a line.

    A window that was looked at twice stands there twice; the last time counts.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of(cls, settings: Settings, model: str) -> "Journal":
        return cls(settings.layout.monitoring(model))

    def add(self, record: DriftResult | QualityResult, at: dt.datetime) -> None:
        """One more line, whole or not at all.

        Raises:
            TransientError: the store cannot be written.
        """
        if isinstance(record, DriftResult):
            alarms = [check for check in record.checks if _kept(check)]
            calm = [check for check in record.checks if not _kept(check)]
            record = record.model_copy(update={"checks": (*alarms, *calm[:MAX_PASSED_CHECKS])})
        path = self._path("drift" if isinstance(record, DriftResult) else "quality")
        line = orjson.dumps({"at": at, "record": record.model_dump(mode="json")}, option=orjson.OPT_APPEND_NEWLINE)
        with files.locked(path.with_suffix(".lock")):
            files.append(path, line)

    def drift(self, version: int | None = None, before: dt.datetime | None = None) -> list[DriftResult]:
        """Windows, oldest first: of one version, and that ended before a moment, where these are given."""
        return self._records("drift", DriftResult, version, before)

    def quality(self, version: int | None = None, before: dt.datetime | None = None) -> list[QualityResult]:
        """The same of quality."""
        return self._records("quality", QualityResult, version, before)

    def last(self, kind: Kind) -> dt.datetime | None:
        """The time of the newest round, whatever it found; None where there was none."""
        return max((dt.datetime.fromisoformat(raw["at"]) for raw in self._lines(kind)), default=None)

    def _records(
        self, kind: Kind, record: type[Record], version: int | None, before: dt.datetime | None
    ) -> list[Record]:
        found: dict[tuple[int, dt.datetime | None], Record] = {}
        for raw in self._lines(kind):
            one = record.model_validate(raw["record"])
            if version in (None, one.version) and (before is None or (one.end and one.end < before)):
                found[one.version, one.end] = one
        return sorted(found.values(), key=lambda one: one.end or dt.datetime.min.replace(tzinfo=dt.UTC))

    def _lines(self, kind: Kind) -> Iterator[dict[str, Any]]:
        path = self._path(kind)
        if not path.exists():
            return
        for line in path.read_bytes().splitlines():
            try:
                yield orjson.loads(line)
            except orjson.JSONDecodeError:
                continue

    def _path(self, kind: Kind) -> Path:
        return self.folder / f"{kind}.jsonl"


def _kept(check: DriftCheckResult) -> bool:
    return check.alarm or check.invalid or check.name == "clock"
