"""The journal of a model: the results of all its monitoring runs, as JSON lines in the store."""

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

import orjson
from pydantic import ValidationError

from towline import files
from towline.config import Settings
from towline.monitoring.results import CLOCK, DriftCheckResult, DriftResult, GainResult, QualityResult

Kind = Literal["drift", "quality", "gain"]
Result = TypeVar("Result", DriftResult, QualityResult, GainResult)

_KINDS: dict[type, Kind] = {DriftResult: "drift", QualityResult: "quality", GainResult: "gain"}
MAX_PASSED_CHECKS = 100  # stored per window besides those with alarms: a table may have a thousand columns


class Journal:
    """``drift.jsonl``, ``quality.jsonl`` and ``gain.jsonl`` in the model's monitoring folder.

    A line is ``{"at": …, "record": …}``.

    If a window was checked several times, the last result counts.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of(cls, settings: Settings, model: str) -> "Journal":
        return cls(settings.layout.monitoring(model))

    def add(self, result: DriftResult | QualityResult | GainResult, at: dt.datetime) -> None:
        """Appends a result; an interrupted write leaves no partial record behind.

        Raises:
            TransientError: the store cannot be written.
        """
        if isinstance(result, DriftResult):
            important = [check for check in result.checks if _is_important(check)]
            passed = [check for check in result.checks if not _is_important(check)]
            result = result.model_copy(update={"checks": (*important, *passed[:MAX_PASSED_CHECKS])})
        path = self._path(_KINDS[type(result)])
        line = orjson.dumps({"at": at, "record": result.model_dump(mode="json")}, option=orjson.OPT_APPEND_NEWLINE)
        with files.exclusive_lock(path.with_suffix(".lock")):
            files.append(path, line)

    def drift(self, version: int | None = None, before: dt.datetime | None = None) -> list[DriftResult]:
        """Drift results, oldest first; only of one version, and only of windows that ended before a time, if given."""
        return self._read("drift", DriftResult, version, before)

    def quality(self, version: int | None = None, before: dt.datetime | None = None) -> list[QualityResult]:
        """Quality results, selected like ``drift``."""
        return self._read("quality", QualityResult, version, before)

    def gain(self, version: int | None = None, before: dt.datetime | None = None) -> list[GainResult]:
        """Windows of the gain of a training, selected like ``drift``."""
        return self._read("gain", GainResult, version, before)

    def last_run(self, kind: Kind) -> dt.datetime | None:
        """The time of the last monitoring run, whatever its result; None if there was none."""
        return max((dt.datetime.fromisoformat(line["at"]) for line in self._lines(kind)), default=None)

    def _read(self, kind: Kind, record: type[Result], version: int | None, before: dt.datetime | None) -> list[Result]:
        results: dict[tuple[int, dt.datetime | None], Result] = {}
        for line in self._lines(kind):
            try:
                result = record.model_validate(line["record"])
            except ValidationError:  # written by another version of towline: docs/upgrading.md
                continue
            if version in (None, result.version) and (before is None or (result.end and result.end < before)):
                results[result.version, result.end] = result
        return sorted(results.values(), key=lambda result: result.end or dt.datetime.min.replace(tzinfo=dt.UTC))

    def _lines(self, kind: Kind) -> Iterator[dict[str, Any]]:
        path = self._path(kind)
        if not path.exists():
            return
        for line in path.read_bytes().splitlines():
            try:
                yield orjson.loads(line)
            except orjson.JSONDecodeError:  # an interrupted write
                continue

    def _path(self, kind: Kind) -> Path:
        return self.folder / f"{kind}.jsonl"


def _is_important(check: DriftCheckResult) -> bool:
    return check.alarm or check.invalid or check.name == CLOCK
