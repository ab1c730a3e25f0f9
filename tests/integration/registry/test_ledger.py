import datetime as dt
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.sql import execute_sql
from towline.errors import ConfigError, PromotionRejectedError, ReleaseError, TowlineError, TransientError
from towline.registry import hash_chain
from towline.registry.ledger import Entry, JudgedVersion, Ledger, champion_of

PASS = {"verdict": "pass"}


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Ledger:
    """An empty ledger; each test runs on SQLite and on PostgreSQL."""
    on_file = f"sqlite:///{tmp_path}/store/ledger.db"
    return Ledger(on_file if request.param == "sqlite" else request.getfixturevalue("postgres"))


def register(ledger: Ledger, last: int) -> Entry:
    """Registers versions 1 to ``last`` for the runs key1, key2 …; existing versions are not changed."""
    return [ledger.register("bikes", "ann", "", {}, f"key{version}") for version in range(1, last + 1)][-1]


def promote(ledger: Ledger, version: int, expected: int | None, evidence: dict[str, Any] | None = None) -> Entry:
    recorded = PASS if evidence is None else evidence
    if ledger.entry("bikes", version) is None:
        register(ledger, version)
    return ledger.promote(
        "bikes", JudgedVersion(version, f"key{version}", f"releases/v{version}", recorded), expected, "ann", "better"
    )


def run_in_threads(work: Callable[[int], Any], count: int = 20) -> list[Any]:
    """Calls ``work`` with each number from 1 to ``count`` in parallel threads; returns the results and errors."""

    def call(number: int) -> Any:
        try:
            return work(number)
        except TowlineError as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(call, range(1, count + 1)))


def test_a_history_keeps_the_order_of_rows_if_the_clock_was_set_back(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are ordered by their number, not by their time, so that the history gives the right champion."""
    promote(ledger, 1, None)
    promote(ledger, 2, 1)

    class EarlierClock(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> "EarlierClock":
            return cls(2020, 1, 1, tzinfo=tz)

    monkeypatch.setattr(hash_chain.dt, "datetime", EarlierClock)
    last = ledger.rollback("bikes", "ann", "worse")
    monkeypatch.undo()
    ledger.register("cars", "ann", "", {}, "key1")
    history = ledger.history()
    assert (history[0].model, history[1]) == ("cars", last)
    assert ledger.history("bikes") == ledger.rows("bikes")[::-1]
    assert champion_of(ledger.history("bikes")[::-1]) == ledger.champion("bikes")


def test_a_promotion_records_all_fields(ledger: Ledger) -> None:
    """Champion, previous champion, actor, reason, evidence and release can be read back."""
    promote(ledger, 1, None)
    row = promote(ledger, 2, 1, {"verdict": "pass", "mae": 41.5, "p": float("nan")})
    assert ledger.champion("bikes") == row
    assert (row.seq, row.version, row.previous, row.actor, row.release) == (4, 2, 1, "ann", "releases/v2")
    assert row.evidence == {"verdict": "pass", "mae": 41.5, "p": None}
    assert [(entry.event, entry.version) for entry in ledger.history("bikes")] == [
        ("promoted", 2), ("registered", 2), ("promoted", 1), ("registered", 1),
    ]  # fmt: skip
    assert ledger.history(limit=1) == [row]
    assert ledger.models() == ["bikes"]
    ledger.verify()


def test_one_of_twenty_concurrent_promotions_succeeds(ledger: Ledger) -> None:
    """Twenty threads expect that there is no champion: one row is written, nineteen callers get an error."""
    register(ledger, 20)
    outcomes = run_in_threads(lambda version: promote(Ledger(ledger._chain._url), version, None))
    winners = [outcome for outcome in outcomes if isinstance(outcome, Entry)]
    losers = [outcome for outcome in outcomes if isinstance(outcome, PromotionRejectedError)]
    assert (len(winners), len(losers)) == (1, 19), outcomes
    assert all("the champion has changed meanwhile" in str(loser) for loser in losers)
    assert [row for row in ledger.history() if row.event == "promoted"] == winners
    ledger.verify()


@pytest.mark.slow
def test_one_of_eight_promoting_processes_succeeds(ledger: Ledger) -> None:
    """The processes also create the table at the same time; each registers a different version number."""
    code = (
        "import sys; from towline.registry.ledger import JudgedVersion, Ledger;\n"
        "ledger = Ledger(sys.argv[1]); key = sys.argv[2];"
        "number = ledger.register('bikes', 'ann', '', {}, key).version;"
        "ledger.promote('bikes', JudgedVersion(number, key, '', {'verdict': 'pass'}), None, 'ann', '')"
    )
    arguments = [[sys.executable, "-c", code, ledger._chain._url, str(version)] for version in range(1, 9)]
    processes = [subprocess.Popen(line, stderr=subprocess.PIPE, text=True) for line in arguments]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes].count(0) == 1, errors
    assert sum("the champion has changed meanwhile" in text for text in errors) == 7
    rows = ledger.history()
    assert sorted(row.version for row in rows if row.event == "registered") == list(range(1, 9))
    assert [row.event for row in rows].count("promoted") == 1


def test_concurrent_registrations_get_different_numbers(ledger: Ledger) -> None:
    """Concurrent registrations wait for each other; a repeated registration returns the same row."""
    outcomes = run_in_threads(lambda run: ledger.register("bikes", "ann", "", {}, f"key{run}"))
    assert sorted(outcome.version for outcome in outcomes) == list(range(1, 21))
    again = run_in_threads(lambda run: ledger.register("bikes", "ann", "", {}, f"key{run}"))
    assert again == outcomes
    ledger.verify()


def test_a_version_number_is_at_least_the_given_one(ledger: Ledger) -> None:
    """The numbers of releases that a lost ledger has registered are not given again."""
    assert ledger.register("bikes", "ann", "", {}, "key1", least=7).version == 7
    assert ledger.register("bikes", "ann", "", {}, "key2", least=3).version == 8
    assert ledger.register("bikes", "ann", "", {}, "key1", least=20).version == 7


def test_a_verdict_applies_only_to_its_own_run(ledger: Ledger) -> None:
    """A run cannot promote or refuse the version of another run; a version without a verdict cannot be promoted."""
    register(ledger, 2)
    of_another_run = JudgedVersion(1, "key2", "releases/v1-other", PASS)
    with pytest.raises(PromotionRejectedError, match="not the number of this run"):
        ledger.promote("bikes", of_another_run, None, "ann", "")
    with pytest.raises(PromotionRejectedError, match="not the number of this run"):
        ledger.refuse("bikes", of_another_run, "ann", "")
    with pytest.raises(PromotionRejectedError, match="its run has not ended") as caught:
        ledger.promote_again("bikes", 1, None, "ann", "please")
    assert "resumes from the last completed step" in caught.value.remedy
    with pytest.raises(PromotionRejectedError, match="not the number of this run"):
        ledger.promote("bikes", JudgedVersion(3, "key3", "releases/v3", PASS), None, "ann", "")
    assert ledger.champion("bikes") is None


def test_concurrent_rollbacks_skip_no_champion(ledger: Ledger) -> None:
    """Each of two rollbacks at the same moment goes back by one champion."""
    for version in range(1, 5):
        promote(ledger, version, version - 1 or None)
    run_in_threads(lambda _: ledger.rollback("bikes", "ann", ""), 2)
    steps = [row for row in ledger.history() if row.event == "rolled_back"]
    assert all(row.previous == row.version + 1 for row in steps)
    ledger.verify()


def test_repeated_registrations_and_promotions_add_no_row(ledger: Ledger) -> None:
    """A run that was killed after its row was written repeats its steps without a second row."""
    first = register(ledger, 1)
    assert register(ledger, 1) == first
    assert ledger.finished("bikes", "key1") is None
    row = promote(ledger, 1, None)
    assert promote(ledger, 1, None) == row
    assert ledger.finished("bikes", "key1") == row
    assert len(ledger.history()) == 2


@pytest.mark.parametrize("verdict", ["fail", "inconclusive", None])
def test_only_a_passing_verdict_is_promoted(ledger: Ledger, verdict: str | None) -> None:
    """A refused version, or one without a verdict, cannot be made champion by hand."""
    evidence = {"verdict": verdict} if verdict else {}
    register(ledger, 1)
    ledger.refuse("bikes", JudgedVersion(1, "key1", "releases/v1", evidence), "gate", "worse")
    with pytest.raises(PromotionRejectedError, match="has not passed"):
        promote(ledger, 1, None, {})
    assert ledger.champion("bikes") is None
    finished = ledger.finished("bikes", "key1")
    assert finished is not None
    assert finished.event == "refused"


def test_a_version_that_passed_can_be_promoted_again(ledger: Ledger) -> None:
    """The recorded verdict counts, and is copied into the new row."""
    promote(ledger, 1, None)
    promote(ledger, 2, 1)
    row = ledger.promote_again("bikes", 1, 2, "ann", "steadier")
    assert row.evidence == PASS
    assert ledger.rollback("bikes", "ann", "").version == 2


def test_repeated_rollbacks_never_return_to_a_rolled_back_version(ledger: Ledger) -> None:
    """Rollbacks go from 3 to 2 and from 2 to 1, then are refused until a later promotion."""
    for version in (1, 2, 3):
        promote(ledger, version, version - 1 or None)
    back = ledger.rollback("bikes", "ann", "3 is bad")
    assert (back.event, back.version, back.previous, back.release) == ("rolled_back", 2, 3, "releases/v2")
    assert ledger.aliases("bikes") == {"champion": 2, "challenger": None, "previous": 1}
    assert (ledger.state("bikes", 3), ledger.rollback_target("bikes").version) == ("rolled back", 1)
    assert ledger.rollback("bikes", "ann", "2 as well").version == 1
    with pytest.raises(PromotionRejectedError, match="no earlier champion"):
        ledger.rollback("bikes", "ann", "1 as well")
    register(ledger, 4)
    assert ledger.aliases("bikes") == {"champion": 1, "challenger": 4, "previous": None}
    promote(ledger, 4, 1)
    assert ledger.aliases("bikes") == {"champion": 4, "challenger": None, "previous": 1}
    assert ledger.rollback("bikes", "ann", "4 is bad").version == 1


def test_promoting_a_version_again_uses_its_recorded_verdict(ledger: Ledger) -> None:
    """Verdict, run and release are the recorded ones; an unknown or refused version is rejected."""
    promote(ledger, 1, None)
    promote(ledger, 2, 1)
    register(ledger, 3)
    ledger.refuse("bikes", JudgedVersion(3, "key3", "releases/v3", {"verdict": "fail"}), "gate", "worse")
    row = ledger.promote_again("bikes", 1, 2, "ann", "steadier")
    assert (row.version, row.previous, row.release, row.evidence) == (1, 2, "releases/v1", PASS)
    assert [ledger.state("bikes", version) for version in (1, 2, 3, 4)] == [
        "champion",
        "previous",
        "refused",
        "unknown",
    ]
    for version in (3, 4):
        with pytest.raises(PromotionRejectedError):
            ledger.promote_again("bikes", version, 1, "ann", "please")


def test_versions_are_listed_with_their_newest_row(ledger: Ledger) -> None:
    """The list has one row for each version, the newest one."""
    promote(ledger, 1, None)
    register(ledger, 2)
    assert [(row.version, row.event) for row in ledger.versions("bikes")] == [(1, "promoted"), (2, "registered")]
    assert ledger.entry("bikes", 3) is None


CHANGES = [
    "UPDATE ledger SET version = 9 WHERE seq = 2",
    "UPDATE ledger SET reason = 'because' WHERE seq = 2",
    'UPDATE ledger SET evidence = \'{"verdict": "pass", "mae": 1}\' WHERE seq = 2',
    "UPDATE ledger SET evidence = 'no json' WHERE seq = 2",
    "UPDATE ledger SET event = 'crowned' WHERE seq = 2",
    "UPDATE ledger SET prev_hash = '' WHERE seq = 2",
    "UPDATE ledger SET hash = prev_hash WHERE seq = 2",
]


@pytest.mark.parametrize(
    ("ledger", "statement"),
    [
        *(("sqlite", change) for change in CHANGES),
        ("postgresql", CHANGES[2]),
    ],
    indirect=["ledger"],
)
def test_every_query_reports_a_changed_row(ledger: Ledger, statement: str) -> None:
    """Whatever field of a row is changed: every query raises an error that names the row, and no row is added.

    Rows that the same process has read before make no difference.
    """
    for version in (1, 2, 3):
        promote(ledger, version, version - 1 or None)
    execute_sql(ledger, statement)
    for query in (
        ledger.verify, ledger.history, lambda: ledger.rows("bikes"), lambda: ledger.champion("bikes"),
        lambda: ledger.versions("bikes"), lambda: ledger.aliases("bikes"), lambda: ledger.state("bikes", 3),
        lambda: ledger.entry("bikes", 3), lambda: ledger.finished("bikes", "key3"), lambda: ledger.ended("bikes"),
        lambda: ledger.decisions("bikes"), lambda: ledger.rollback_target("bikes"),
        lambda: ledger.rollback("bikes", "ann", ""), lambda: ledger.register("bikes", "ann", "", {}, "key4"),
        lambda: ledger.promote("bikes", JudgedVersion(3, "key3", "releases/v3", PASS), 3, "ann", ""),
    ):  # fmt: skip
        with pytest.raises(ReleaseError, match="ledger row 2 of bikes"):
            query()
    assert ledger.register("cars", "ann", "", {}, "key1").version == 1  # rows of other models are not affected


def test_a_removed_row_is_reported(ledger: Ledger) -> None:
    """Without a row in the middle, the chain of digests is broken at the next row."""
    for version in (1, 2, 3):
        promote(ledger, version, version - 1 or None)
    execute_sql(ledger, "DELETE FROM ledger WHERE seq = 2")
    for query in (ledger.verify, lambda: ledger.champion("bikes")):
        with pytest.raises(ReleaseError, match="ledger row 3 of bikes"):
            query()


def test_reading_a_ledger_that_does_not_exist_creates_nothing(tmp_path: Path) -> None:
    """`towline models` in a fresh project leaves no file behind."""
    ledger = Ledger(f"sqlite:///{tmp_path}/store/ledger.db")
    assert (ledger.models(), ledger.history(), ledger.champion("bikes")) == ([], [], None)
    assert list(tmp_path.iterdir()) == []


def test_a_locked_ledger_is_unavailable(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that waits too long for the lock of another process is an error that names the lock."""
    from sqlalchemy import create_engine

    monkeypatch.setattr(hash_chain, "_BUSY_SECONDS", 1)
    promote(ledger, 1, None)
    engine = create_engine(ledger._chain._url)
    with engine.connect() as holder:
        holder.exec_driver_sql("BEGIN EXCLUSIVE" if engine.dialect.name == "sqlite" else "LOCK TABLE ledger")
        with pytest.raises(TransientError, match="lock") as caught:
            promote(ledger, 2, 1)
    engine.dispose()
    assert "another process locks the ledger" in caught.value.remedy
    assert promote(ledger, 2, 1).version == 2


def test_a_file_that_is_no_database_is_unavailable(tmp_path: Path) -> None:
    """The error names the damaged file and a remedy; the file is not changed."""
    file = tmp_path / "ledger.db"
    file.write_bytes(b"not a database, but long enough to be looked at" * 50)
    before = file.read_bytes()
    for access in (Ledger(f"sqlite:///{file}").models, lambda: promote(Ledger(f"sqlite:///{file}"), 1, None)):
        with pytest.raises(TransientError, match="not a database") as caught:
            access()
        assert caught.value.where == f"sqlite:///{file}"
        assert "backup" in caught.value.remedy
    assert file.read_bytes() == before


def test_a_damaged_page_is_unavailable(tmp_path: Path) -> None:
    """A file with a valid header and damaged content is an error, too."""
    file = tmp_path / "ledger.db"
    promote(Ledger(f"sqlite:///{file}"), 1, None)
    file.write_bytes(file.read_bytes()[:100] + b"\xff" * 9000)
    with pytest.raises(TransientError, match="backup"):
        Ledger(f"sqlite:///{file}").models()


def test_a_ledger_that_cannot_be_written_is_unavailable(tmp_path: Path) -> None:
    """A read-only file, a file in place of the folder, a folder in which no file can be created."""
    promote(Ledger(f"sqlite:///{tmp_path}/ledger.db"), 1, None)
    (tmp_path / "file").touch()
    for url in (
        f"sqlite:///file:{tmp_path}/ledger.db?mode=ro&uri=true",
        f"sqlite:///{tmp_path}/file/ledger.db",
        "sqlite:////proc/ledger.db",
    ):
        with pytest.raises(TransientError, match="remedy"):
            promote(Ledger(url), 2, 1)


def test_an_unreachable_database_is_reported_without_its_password() -> None:
    """The error has the address without the password."""
    with pytest.raises(TransientError, match="TOWLINE_LEDGER_URL") as caught:
        Ledger("postgresql+psycopg://ann:s3cret@127.0.0.1:1/towline").models()
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("url", ["nonsense", "nosuch://host/db"])
def test_a_bad_url_is_a_config_error(url: str) -> None:
    """An invalid URL is a different error than a database that is down."""
    with pytest.raises(ConfigError, match="TOWLINE_LEDGER_URL"):
        Ledger(url).models()


def test_a_decision_is_recorded_once_for_its_cause_and_changes_no_version(ledger: Ledger) -> None:
    """Twenty flows with the same decision write one row; champion and versions do not change."""
    with pytest.raises(PromotionRejectedError):
        ledger.decide("bikes", "watch", "warn: too few", {}, "a")
    promote(ledger, 1, None)
    before = (ledger.champion("bikes"), ledger.versions("bikes"), ledger.aliases("bikes"), ledger.state("bikes", 1))
    decision = {"action": "retrain", "at": "2026-03-01T02:00:00+00:00"}
    rows = run_in_threads(
        lambda _: Ledger(ledger._chain._url).decide("bikes", "watch", "retrain: drift", decision, "a")
    )
    assert len({row.seq for row in rows}) == 1
    ledger.decide("bikes", "watch", "nothing: all is quiet", {"action": "nothing"}, "b")
    assert [row.evidence["action"] for row in ledger.decisions("bikes")] == ["retrain", "nothing"]
    after = (ledger.champion("bikes"), ledger.versions("bikes"), ledger.aliases("bikes"), ledger.state("bikes", 1))
    assert after == before
    ledger.verify()


def test_recording_an_image_changes_no_version(ledger: Ledger) -> None:
    """The history has one row for each image; champion, aliases, states and rollback do not change."""
    for version, expected in ((1, None), (2, 1)):
        promote(ledger, version, expected)
    before = (ledger.champion("bikes"), ledger.aliases("bikes"), ledger.versions("bikes"), ledger.state("bikes", 1))
    image = {"image": "bikes:v1-0123456789ab", "image_id": "sha256:00"}
    row = ledger.packaged("bikes", 1, "bob", "image", image, "releases/v1")
    assert (row.event, row.version, row.release, row.evidence["image_id"]) == (
        "packaged",
        1,
        "releases/v1",
        "sha256:00",
    )
    assert ledger.packaged("bikes", 1, "bob", "image", image, "releases/v1") == row
    assert (
        ledger.packaged("bikes", 1, "bob", "image", {**image, "image_id": "sha256:11"}, "releases/v1").seq
        == row.seq + 1
    )
    assert before == (
        ledger.champion("bikes"), ledger.aliases("bikes"), ledger.versions("bikes"), ledger.state("bikes", 1)
    )  # fmt: skip
    assert ledger.rollback("bikes", "ann", "worse").version == 1
    ledger.verify()
    with pytest.raises(PromotionRejectedError, match="no version 7"):
        ledger.packaged("bikes", 7, "bob", "image", image, "releases/v1")
