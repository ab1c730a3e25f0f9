"""towline verify: each manipulation of the ledger, its key, its anchor or a release is named with a working remedy."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import towline
from tests.support.commands import CommandResult
from tests.support.sample_store import MODEL, SampleStore
from towline.config import Settings
from towline.errors import ConfigError, ReleaseError, TransientError
from towline.registry import verification
from towline.registry.hash_chain import Entry
from towline.registry.ledger import JudgedVersion, Ledger, open_ledger
from towline.registry.seals import LedgerKey, SealedRow, Seals, open_seals
from towline.registry.verification import IntegrityCheck

Command = Callable[..., CommandResult]


@pytest.fixture
def sealed(sample_store: SampleStore, monkeypatch: pytest.MonkeyPatch) -> SampleStore:
    """The sample store, whose older rows have no seals, with two sealed promotions; version 2 is champion."""
    monkeypatch.setenv("TOWLINE_PROJECT", str(sample_store.settings.store))
    monkeypatch.setenv("TOWLINE_STORE", str(sample_store.settings.store))
    monkeypatch.setenv("TOWLINE_TRACKING_URI", "")
    ledger = open_ledger(sample_store.settings)
    ledger.promote_again(MODEL, 2, 1, "ann", "better")
    ledger.rollback(MODEL, "ann", "worse")
    ledger.promote_again(MODEL, 2, 1, "ann", "better after all")
    return sample_store


@pytest.fixture
def empty(store: Path) -> Settings:
    """A store without a ledger."""
    return Settings.from_environment()


def faults(settings: Settings) -> list[IntegrityCheck]:
    return [check for check in verification.verify_models(settings) if check.state in ("fault", "unknown")]


def execute(store: SampleStore, statement: str, *values: Any) -> None:
    with closing(sqlite3.connect(store.ledger_file)) as connection, connection:
        connection.execute(statement, values)


def forge(store: SampleStore, row: Entry) -> None:
    """Writes a row and its successors with correct digests, as an attacker with access to the database only could."""
    rows = store.ledger.rows(MODEL)[: row.seq - 1]
    later = store.ledger.rows(MODEL)[row.seq :]
    before = rows[-1].hash
    execute(store, "DELETE FROM ledger WHERE seq >= ?", row.seq)
    for entry in (row, *later):
        changed = entry.model_copy(update={"prev_hash": before})
        changed = changed.model_copy(update={"hash": changed.digest()})
        before = changed.hash
        values = changed.model_dump() | {"evidence": json.dumps(changed.evidence)}
        columns = ", ".join(values)
        execute(store, f"INSERT INTO ledger ({columns}) VALUES ({', '.join('?' * len(values))})", *values.values())


def test_an_intact_store_has_no_fault(sealed: SampleStore, command: Command) -> None:
    """Rows older than the key are covered by the first seal; only the user can read the key."""
    result = command("verify")
    assert (result.code, result.err) == (0, ""), result.out
    assert "no fault" in result.out
    checks = {check["name"]: check for check in command("verify", MODEL, "--json").json}
    assert {name: check["state"] for name, check in checks.items()} == {
        "key": "ok", "chain": "ok", "anchor": "ok", "seals": "ok", "champion": "ok", "previous": "ok",
        "releases": "ok", "mlflow": "note",
    }  # fmt: skip
    assert "3 rows are signed by" in checks["seals"]["what"]
    assert sealed.settings.layout.ledger_key.stat().st_mode & 0o777 == 0o600
    assert [check.state for check in towline.verify(MODEL)] == [check["state"] for check in checks.values()]


@pytest.mark.parametrize("removed", [1, 2, 3, 5])
def test_rows_removed_from_the_end_are_named(removed: int, sealed: SampleStore) -> None:
    """Rows and their seals are removed from the end: the anchor shows how many; no row can be added."""
    length = len(sealed.ledger.rows(MODEL))
    for table in ("ledger", "ledger_seals"):
        execute(sealed, f"DELETE FROM {table} WHERE seq > ?", length - removed)
    (fault,) = faults(sealed.settings)
    assert (fault.name, fault.where) == ("anchor", f"{MODEL}, row {length}")
    assert f"the last {removed} rows were removed" in fault.what
    assert "restore the ledger from a backup" in fault.remedy
    with pytest.raises(ReleaseError, match="rows were removed"):
        open_ledger(sealed.settings).register(MODEL, "ann", "trained", {}, "key3")


def test_a_replaced_last_row_is_named(sealed: SampleStore) -> None:
    """Another row in the position of the last one, with correct digests, is a fault."""
    last = sealed.ledger.rows(MODEL)[-1]
    forge(sealed, last.model_copy(update={"actor": "mallory"}))
    assert any(f"row {last.seq} is another one than was written" in fault.what for fault in faults(sealed.settings))


def test_an_edited_row_is_named(sealed: SampleStore) -> None:
    """An edited row breaks the chain; with all digests computed again, it breaks anchor and seals."""
    row = sealed.ledger.rows(MODEL)[-2]
    execute(sealed, "UPDATE ledger SET reason = 'nothing to see' WHERE seq = ?", row.seq)
    (fault,) = faults(sealed.settings)
    assert (fault.name, fault.where) == ("chain", f"{MODEL}, row {row.seq}")
    execute(sealed, "UPDATE ledger SET reason = ? WHERE seq = ?", row.reason, row.seq)
    assert faults(sealed.settings) == []
    forge(sealed, row.model_copy(update={"reason": "nothing to see"}))
    assert {fault.name for fault in faults(sealed.settings)} == {"anchor", "seals"}


def test_an_added_row_is_named(sealed: SampleStore) -> None:
    """A promotion added to the database with correct digests has no valid seal, also if a seal is copied to it."""
    last = sealed.ledger.rows(MODEL)[-1]
    first = next(row for row in sealed.ledger.rows(MODEL) if row.event == "promoted")
    added = first.model_copy(update={"seq": last.seq + 1, "previous": 2, "actor": "mallory"})
    forge(sealed, added)
    (fault,) = faults(sealed.settings)
    assert f"row {added.seq} of {MODEL} (promoted, version 1) has no seal" in fault.what
    execute(
        sealed,
        "INSERT INTO ledger_seals SELECT model, ?, key_id, mac FROM ledger_seals WHERE seq = ?", added.seq, last.seq,
    )  # fmt: skip
    (fault,) = faults(sealed.settings)
    assert "has a seal of another key or row" in fault.what
    open_ledger(sealed.settings).register(MODEL, "ann", "trained", {}, "key3")
    (fault,) = faults(sealed.settings)
    assert fault.where == f"{MODEL}, row {added.seq}", "a later row does not hide it"


def test_removed_seals_are_named(sealed: SampleStore) -> None:
    """If all seals are removed, the anchor shows since when the ledger has seals."""
    execute(sealed, "DELETE FROM ledger_seals")
    (fault,) = faults(sealed.settings)
    assert "has no seal" in fault.what


def test_a_missing_key_and_a_missing_anchor_are_named(sealed: SampleStore, command: Command) -> None:
    """Neither is created again silently; --accept is the remedy, and it works."""
    key = sealed.settings.layout.ledger_key
    text = key.read_text()
    key.unlink()
    (fault,) = faults(sealed.settings)
    assert (fault.name, "the key is missing" in fault.what) == ("seals", True)
    with pytest.raises(ConfigError, match="there is no key here"):
        open_ledger(sealed.settings).rollback(MODEL, "ann", "worse")
    assert not key.exists()
    key.write_text(text)
    key.chmod(0o644)
    (fault,) = faults(sealed.settings)
    assert (fault.name, fault.remedy) == ("key", f"chmod 600 {key}")
    key.chmod(0o600)
    (sealed.settings.layout.ledger_anchors / f"{MODEL}.json").unlink()
    open_ledger(sealed.settings).rollback(MODEL, "ann", "worse")
    assert "no anchor" in faults(sealed.settings)[0].what
    key.unlink()
    result = command("verify", MODEL, "--accept", "--reason", "the key was lost")
    assert result.code == 0, result.out
    row = sealed.ledger.rows(MODEL)[-1]
    assert (row.event, row.reason, len(row.evidence["faults"])) == ("accepted", "the key was lost", 2)
    assert faults(sealed.settings) == []


def test_accepting_never_accepts_a_wrong_digest(sealed: SampleStore, command: Command) -> None:
    """A truncated ledger may be a restored backup, which a person can accept; a changed row is never accepted."""
    execute(sealed, "DELETE FROM ledger WHERE seq = (SELECT max(seq) FROM ledger)")
    assert command("verify").code == 6
    assert command("verify", "--accept", "--reason", "restored the backup of Monday").code == 0
    execute(sealed, "UPDATE ledger SET actor = 'bob' WHERE seq = 2")
    result = command("verify", "--accept", "--reason", "please")
    assert (result.code, "row 2" in result.err) == (6, True)
    assert command("verify", "--accept").code == 2


def test_a_damaged_release_is_named(sealed: SampleStore) -> None:
    """One changed byte in a file of the champion, or of the target of a rollback."""
    for version, name in ((2, "champion"), (1, "previous")):
        file = sealed.release(version) / "profile.json"
        content = file.read_bytes()
        file.write_bytes(content[:-1] + b"!")
        (fault,) = faults(sealed.settings)
        assert (fault.name, fault.where) == (name, str(file))
        file.write_bytes(content)
    assert faults(sealed.settings) == []


def test_decisions_of_monitoring_are_no_fault(sealed: SampleStore) -> None:
    """A version with decisions of monitoring is still valid after another one has replaced it."""
    ledger = open_ledger(sealed.settings)
    ledger.decide(MODEL, "ann", "drift", {"action": "retrain"}, "cause2")
    assert faults(sealed.settings) == []
    ledger.promote_again(MODEL, 1, 2, "ann", "trained again")
    assert faults(sealed.settings) == []


def test_a_store_that_cannot_be_written_is_verified(sealed: SampleStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person with read access only can verify it; the anchor is not changed."""
    anchor = sealed.settings.layout.ledger_anchors / f"{MODEL}.json"
    before = anchor.read_bytes()
    open_ledger(sealed.settings).rollback(MODEL, "ann", "worse")
    anchor.write_bytes(before)

    def refuse(*_: object, **__: object) -> None:
        raise TransientError("cannot write: Permission denied")

    monkeypatch.setattr(Seals, "advance", refuse)
    assert {check.state for check in verification.verify_models(sealed.settings)} == {"ok", "note"}
    assert anchor.read_bytes() == before


def test_a_model_that_was_added_to_the_database_is_named(sealed: SampleStore) -> None:
    """None of its rows has a seal, although the ledger has a key."""
    Ledger(sealed.settings.ledger_url).register("added", "mallory", "trained", {}, "key1")
    (seals,) = [check for check in verification.verify_models(sealed.settings, ["added"]) if check.name == "seals"]
    assert (seals.state, "no row of added is signed" in seals.what) == ("note", True)
    verification.accept(sealed.settings, "added", "ann", "it is ours")
    states = {check.name: check.state for check in verification.verify_models(sealed.settings, ["added"], quick=True)}
    assert states == {"key": "ok", "chain": "ok", "anchor": "ok", "seals": "ok"}


def test_a_lost_ledger_is_named(sealed: SampleStore, command: Command) -> None:
    """The releases and the anchor show that the model had rows."""
    sealed.ledger_file.unlink()
    (fault,) = faults(sealed.settings)
    assert "the ledger has no row of" in fault.what
    assert command("verify", MODEL).code == 6


@pytest.mark.parametrize("earlier", [0, 2])
@pytest.mark.parametrize("place", ["before the row", "after the row"])
def test_a_process_that_ends_at_the_first_signed_row_leaves_no_fault(
    place: str, earlier: int, empty: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The anchor is there before the row is, and moves forward with the next row or check."""
    for number in range(earlier):  # rows of a ledger without a key
        Ledger(empty.ledger_url).register(MODEL, "ann", "trained", {}, f"key{number}")
    advance = Seals.advance

    def end(seals: Seals, row: SealedRow, key: LedgerKey, *, since: int) -> None:
        if place == "before the row":
            advance(seals, row, key, since=since)
        if place == "before the row" or row.seq > earlier:
            raise SystemExit
        advance(seals, row, key, since=since)

    monkeypatch.setattr(Seals, "advance", end)
    with pytest.raises(SystemExit):
        open_ledger(empty).register(MODEL, "ann", "trained", {}, "last")
    monkeypatch.setattr(Seals, "advance", advance)
    count = earlier + (place == "after the row")
    assert len(Ledger(empty.ledger_url).rows(MODEL)) == count
    assert faults(empty) == []
    open_ledger(empty).register(MODEL, "ann", "trained", {}, "next")
    assert faults(empty) == []
    anchor = open_seals(empty).anchor(MODEL)
    assert anchor is not None
    assert (anchor.seq, anchor.since) == (count + 1, earlier + 1)


def test_two_machines_need_the_same_key(empty: Settings, tmp_path: Path) -> None:
    """A ledger with the seals of one store accepts no row of a store with another key, or without a key."""
    other = empty.model_copy(update={"store": tmp_path / "other"})
    open_ledger(empty).register("houses", "ann", "trained", {}, "key1")
    with pytest.raises(ConfigError, match="there is no key here") as caught:
        open_ledger(other).register("houses", "bob", "trained", {}, "key2")
    assert "TOWLINE_LEDGER_KEY" in caught.value.remedy
    shared = other.model_copy(update={"ledger_key": empty.layout.ledger_key})
    row = open_ledger(shared).register("houses", "bob", "trained", {}, "key2")
    assert faults(empty) == []
    assert open_ledger(empty).rows("houses")[-1] == row


def test_a_ledger_without_a_key_is_a_note(empty: Settings) -> None:
    """Rows older than the key are no fault, and the next row is sealed."""
    ledger = Ledger(empty.ledger_url)
    ledger.register("houses", "ann", "trained", {}, "key1")
    checks = {check.name: check.state for check in verification.verify_models(empty, quick=True)}
    assert checks == {"key": "note", "chain": "ok"}
    version = JudgedVersion(1, "key1", "", {"verdict": "pass"})
    open_ledger(empty).promote("houses", version, None, "ann", "first")
    checks = {check.name: check.state for check in verification.verify_models(empty, quick=True)}
    assert checks == {"key": "ok", "chain": "ok", "anchor": "ok", "seals": "ok"}


def test_the_first_key_of_an_empty_ledger(empty: Settings, command: Command) -> None:
    """On a server it is created before the first row and copied to all stores. The remedy of the note creates it."""
    (note,) = verification.verify_models(empty)
    assert "towline verify --accept --reason 'first key'" in note.remedy
    result = command("verify", "--accept", "--reason", "first key", "--json")
    assert (result.code, [check["state"] for check in result.json]) == (0, ["ok"])
    key = empty.layout.ledger_key.read_text()
    open_ledger(empty).register("houses", "ann", "trained", {}, "key1")
    assert (empty.layout.ledger_key.read_text(), faults(empty)) == (key, [])


def test_a_restored_backup_is_anchored(sealed: SampleStore, command: Command, tmp_path: Path) -> None:
    """A restore replaces later rows intentionally: nothing has to be accepted, and the key comes from the backup."""
    archive = tmp_path / "backup.tar.gz"
    assert command("backup", archive).code == 0
    open_ledger(sealed.settings).rollback(MODEL, "ann", "worse")
    result = command("restore", archive, "--force")
    assert result.code == 0, result.err
    assert faults(sealed.settings) == []
    assert command("restore", archive, "--into", tmp_path / "other").code == 0
    other = sealed.settings.model_copy(
        update={"store": tmp_path / "other", "ledger_url": f"sqlite:///{tmp_path}/other/ledger.db"}
    )
    assert faults(other) == []
    execute(sealed, "DELETE FROM ledger WHERE seq = (SELECT max(seq) FROM ledger)")
    assert [fault.name for fault in faults(sealed.settings)] == ["anchor"]
