"""served-at: the version that served at a time or answered a request, from the ledger and the prediction log."""

import datetime as dt
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import towline
from tests.support.commands import CommandResult
from towline.config import RolloutConfig, Settings
from towline.errors import ConfigError, DataError
from towline.prediction_log.attribution import Attribution, attribute_request, attribute_time
from towline.prediction_log.parquet_store import part_path
from towline.registry.ledger import Entry, JudgedVersion, Ledger
from towline.registry.rollouts import start_rollout

Command = Callable[..., CommandResult]
UTC = pa.timestamp("us", "UTC")


@pytest.fixture
def settings(store: Path) -> Settings:
    return Settings.from_environment()


@pytest.fixture
def ledger(settings: Settings) -> Ledger:
    """An empty ledger."""
    return Ledger(settings.ledger_url)


def judge(ledger: Ledger, version: int) -> JudgedVersion:
    run_key, origin = f"run{version}", {"dataset": f"data{version}", "config": f"config{version}", "code": "c0de"}
    ledger.register("houses", f"ann{version}", "trained", origin, run_key)
    evidence = {"verdict": "pass", "checks": [], "release": f"digest{version}"}
    return JudgedVersion(version, run_key, f"releases/houses/v{version}", evidence)


def promote(ledger: Ledger, version: int) -> Entry:
    champion = ledger.champion("houses")
    before = champion.version if champion else None
    return ledger.promote("houses", judge(ledger, version), before, "bob", f"reason {version}")


def log_request(settings: Settings, request_id: str, version: int, time: dt.datetime, rows: int = 2) -> None:
    path = part_path(settings.layout.predictions("houses"), time.date(), f"{request_id}-{time:%H%M%S%f}", version)
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        "request_id": [request_id] * rows, "row": pa.array(range(rows), pa.int32()),
        "time": pa.array([time] * rows, UTC), "version": pa.array([version] * rows, pa.int32()),
        "model": ["houses"] * rows, "prediction": [1.0] * rows,
    }  # fmt: skip
    pq.write_table(pa.table(columns), path)


def at(row: Entry, microseconds: int = 0) -> dt.datetime:
    return dt.datetime.fromisoformat(row.time) + dt.timedelta(microseconds=microseconds)


def test_the_champion_at_each_time(settings: Settings, ledger: Ledger) -> None:
    """Two promotions and a rollback: each time has its version, with its data, config, approver and reason."""
    first, second = promote(ledger, 1), promote(ledger, 2)
    back = ledger.rollback("houses", "eva", "errors")

    def named(time: dt.datetime) -> Attribution:
        return attribute_time(settings, ledger, "houses", time)

    assert [named(time).version for time in (at(first), at(second, -1), at(second), at(back, -1), at(back))] == [
        1, 1, 2, 2, 1,
    ]  # fmt: skip
    result = named(at(second))
    assert (result.arm, result.dataset, result.config, result.release_digest) == (
        "champion", "data2", "config2", "digest2",
    )  # fmt: skip
    assert (result.trained_by, result.promoted_by, result.reason) == ("ann2", "bob", "reason 2")
    assert (result.since, result.until, result.row) == (second.time, back.time, second.seq)
    assert (named(at(back)).promoted_by, named(at(back)).reason, named(at(back)).until) == ("eva", "errors", "")
    assert named(at(first)).verdict == "pass: reason 1"


def test_a_time_without_a_champion_is_an_error(settings: Settings, ledger: Ledger) -> None:
    """Before the first promotion, in the future, and of a model that does not exist: each error has a remedy."""
    row = promote(ledger, 1)
    with pytest.raises(ConfigError, match="had no champion at") as early:
        attribute_time(settings, ledger, "houses", at(row, -1))
    assert row.time in early.value.remedy
    with pytest.raises(ConfigError, match="is in the future") as late:
        attribute_time(settings, ledger, "houses", dt.datetime.now(dt.UTC) + dt.timedelta(hours=1))
    assert "UTC" in late.value.remedy
    with pytest.raises(ConfigError, match="no model called 'house'") as unknown:
        attribute_time(settings, ledger, "house", at(row))
    assert unknown.value.remedy == "did you mean houses?"


def test_a_request_names_the_version_that_answered_it(settings: Settings, ledger: Ledger) -> None:
    """The log decides, not the time: the challenger of a rollout and a fixed version are named with their arm."""
    for version in (1, 2, 3):
        promotion = promote(ledger, version)
    judged = judge(ledger, 4)
    ledger.mark_passed("houses", judged, "ann4", "passed 5 checks")
    started = start_rollout(ledger, "houses", 4, RolloutConfig(), "eva", "rollout of 4")
    for request, version in (("r3", 3), ("r4", 4), ("r1", 1)):
        log_request(settings, request, version, at(started, 10))
    log_request(settings, "r3", 2, at(promotion, -1), rows=5)
    log_request(settings, "other", 3, at(started, 10))

    answers = {request: attribute_request(settings, ledger, "houses", request) for request in ("r1", "r3", "r4")}
    assert [(name, result.version, result.arm) for name, result in answers.items()] == [
        ("r1", 1, "fixed"), ("r3", 3, "champion"), ("r4", 4, "challenger"),
    ]  # fmt: skip
    assert (answers["r4"].promoted_by, answers["r4"].dataset) == ("eva", "data4")
    assert "version 4 instead of 3: canary" in answers["r4"].rollout
    newest = answers["r3"].answer
    assert newest is not None
    assert (newest.rows, newest.time) == (2, at(started, 10))
    assert [(other.version, other.rows) for other in answers["r3"].other_answers] == [(2, 5)]


def test_a_request_that_the_log_does_not_hold(settings: Settings, ledger: Ledger) -> None:
    """Unknown, or deleted: the error describes the log, and how to query by time."""
    row = promote(ledger, 1)
    log_request(settings, "r1", 1, at(row))
    with pytest.raises(ConfigError, match=f"hold predictions from {at(row).date()}") as unknown:
        attribute_request(settings, ledger, "houses", "r2")
    assert "towline served-at houses TIME" in unknown.value.remedy
    shutil.rmtree(settings.layout.predictions("houses"))
    with pytest.raises(ConfigError, match="holds no Parquet files"):
        attribute_request(settings, ledger, "houses", "r1")


def test_a_version_that_the_ledger_does_not_have(settings: Settings, ledger: Ledger) -> None:
    """If the ledger lost the rows of a logged version, the error says so instead of naming another version."""
    row = promote(ledger, 1)
    log_request(settings, "r9", 9, at(row))
    with pytest.raises(DataError, match="names version 9 of houses, and the ledger has no such version"):
        attribute_request(settings, ledger, "houses", "r9")


def test_the_command_and_the_api_take_a_time_or_a_request(settings: Settings, ledger: Ledger, command: Command) -> None:
    """A text that can be a time is read as a time, unless --request is given; the time is printed with its zone."""
    row = promote(ledger, 1)
    log_request(settings, "2026-01-01", 1, at(row))
    shown = command("served-at", "houses", row.time)
    assert (shown.code, shown.err) == (0, "")
    assert "houses@1, the champion" in shown.out
    assert f"{row.time[:19].replace('T', ' ')} UTC" in shown.out
    shifted = at(row, 1).astimezone(dt.timezone(dt.timedelta(hours=2))).isoformat()
    assert command("served-at", "houses", shifted, "--json").json["version"] == 1
    early = command("served-at", "houses", "2026-01-01")
    assert (early.code, "had no champion at 2026-01-01 00:00:00 UTC" in early.err) == (2, True)
    answered = command("served-at", "houses", "2026-01-01", "--request", "--json").json
    assert (answered["version"], answered["answer"]["rows"]) == (1, 2)
    assert towline.served_at("houses", at(row)).version == towline.served_at("houses", row.time).version == 1
    assert command("served-at", "houses", "r2").code == 2
