"""The journal of monitoring results."""

import datetime as dt
from pathlib import Path

from towline.monitoring.journal import MAX_PASSED_CHECKS, Journal
from towline.monitoring.results import DriftCheckResult, DriftResult

FIRST = dt.datetime(2026, 3, 1, 2, tzinfo=dt.UTC)


def window(number: int, version: int = 1, **changes: object) -> DriftResult:
    fields = {"state": "ok", "version": version, "rows": number, "budget": 4, "reason": "", **changes}
    return DriftResult.model_validate({"end": FIRST + dt.timedelta(days=number), **fields})


def test_windows_are_sorted_and_the_last_result_counts(tmp_path: Path) -> None:
    """A repeated window replaces its earlier result; results can be selected by version and time."""
    journal = Journal(tmp_path)
    for result in (window(2), window(1), window(3, version=2), window(2, state="drift")):
        journal.add(result, FIRST)
    assert [(result.rows, result.state) for result in journal.drift()] == [(1, "ok"), (2, "drift"), (3, "ok")]
    assert [result.rows for result in journal.drift(version=1)] == [1, 2]
    assert [result.rows for result in journal.drift(before=FIRST + dt.timedelta(days=2))] == [1]
    assert journal.quality() == []


def test_a_partial_line_is_skipped(tmp_path: Path) -> None:
    """If a write is interrupted, only that line is lost."""
    journal = Journal(tmp_path)
    journal.add(window(1), FIRST)
    with (tmp_path / "drift.jsonl").open("ab") as file:
        file.write(b'{"at": "2026-03-0')
    journal.add(window(2), FIRST)
    assert [result.rows for result in journal.drift()] == [1, 2]


def test_all_alarms_and_some_passed_checks_are_stored(tmp_path: Path) -> None:
    """A thousand columns per window do not fill the disk."""
    checks = [
        DriftCheckResult(column=f"c{at}", name="distribution", value=0.1, threshold=0.2, alarm=at % 2 == 0)
        for at in range(1000)
    ]
    Journal(tmp_path).add(window(1, checks=checks), FIRST)
    (stored,) = Journal(tmp_path).drift()
    assert sum(check.alarm for check in stored.checks) == 500
    assert len(stored.checks) == 500 + MAX_PASSED_CHECKS


def test_results_of_another_version_are_skipped(tmp_path: Path) -> None:
    """After an upgrade, windows in a former format are skipped and the others are read."""
    journal = Journal(tmp_path)
    (tmp_path / "drift.jsonl").write_text('{"at": "2026-01-01T00:00:00+00:00", "record": {"state": "quiet"}}\n')
    assert journal.drift() == []
    assert journal.last_run("drift") is not None
