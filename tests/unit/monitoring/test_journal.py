"""What the rounds of the watch leave behind."""

import datetime as dt
from pathlib import Path

from towline.monitoring.journal import MAX_PASSED_CHECKS, Journal
from towline.monitoring.results import DriftCheckResult, DriftResult

FIRST = dt.datetime(2026, 3, 1, 2, tzinfo=dt.UTC)


def night(number: int, version: int = 1, **given: object) -> DriftResult:
    facts = {"state": "ok", "version": version, "rows": number, "budget": 4, "reason": "", **given}
    return DriftResult.model_validate({"end": FIRST + dt.timedelta(days=number), **facts})


def test_windows_come_back_in_order_and_the_last_look_counts(tmp_path: Path) -> None:
    """Looking at a night again replaces what was found before; versions and moments are told apart."""
    journal = Journal(tmp_path)
    for one in (night(2), night(1), night(3, version=2), night(2, state="drift")):
        journal.add(one, FIRST)
    assert [(one.rows, one.state) for one in journal.drift()] == [(1, "ok"), (2, "drift"), (3, "ok")]
    assert [one.rows for one in journal.drift(version=1)] == [1, 2]
    assert [one.rows for one in journal.drift(before=FIRST + dt.timedelta(days=2))] == [1]
    assert journal.quality() == []


def test_half_a_line_is_no_record_and_spoils_none(tmp_path: Path) -> None:
    """A writer that is killed amid a line costs that line alone."""
    journal = Journal(tmp_path)
    journal.add(night(1), FIRST)
    with (tmp_path / "drift.jsonl").open("ab") as file:
        file.write(b'{"at": "2026-03-0')
    journal.add(night(2), FIRST)
    assert [one.rows for one in journal.drift()] == [1, 2]


def test_a_wide_table_keeps_every_alarm_and_the_nearest_of_the_rest(tmp_path: Path) -> None:
    """A thousand columns a night do not fill the disk."""
    found = [
        DriftCheckResult(column=f"c{at}", name="distribution", value=0.1, threshold=0.2, alarm=at % 2 == 0)
        for at in range(1000)
    ]
    Journal(tmp_path).add(night(1, checks=found), FIRST)
    (kept,) = Journal(tmp_path).drift()
    assert sum(check.alarm for check in kept.checks) == 500
    assert len(kept.checks) == 500 + MAX_PASSED_CHECKS
