import json
import logging
import shutil
import sqlite3
import time
import weakref
from pathlib import Path

import pytest

from tests.support.sample_store import MODEL, SampleStore
from towline.config import RolloutConfig
from towline.errors import ConfigError, ReleaseError, TowlineError, TransientError
from towline.manifest import MANIFEST, describe_files, read_manifest
from towline.registry.champion_watcher import RecordedRelease
from towline.registry.rollouts import Rollout, active_rollout, change_rollout, end_rollout, start_rollout
from towline.rollout.service_counts import stop_reason
from towline.serving import model_reloader
from towline.serving.model_reloader import ModelReloader
from towline.serving.options import ServeOptions


def opened(sample_store: SampleStore, name: str = MODEL) -> ModelReloader:
    served = ModelReloader(ServeOptions(name, sample_store.settings))
    served.open()
    return served


def version(served: ModelReloader) -> int:
    assert served.model is not None
    return served.model.version


def spoil(release: Path, file: str = "contract.json") -> None:
    path = release / file
    path.write_bytes(path.read_bytes().replace(b"e", b"f", 1))


def reseal(release: Path) -> Path:
    """Writes a new manifest for the changed files, as someone with write access to the store could; returns it."""
    old = read_manifest(release)
    (release / MANIFEST).unlink()
    manifest = old.model_copy(update={"files": describe_files(release)})
    (release / MANIFEST).write_text(manifest.text())
    return release.rename(release.with_name(manifest.folder))


def break_ledger(sample_store: SampleStore) -> None:
    sample_store.ledger_file.write_bytes(b"not a database, but long enough to be looked at" * 50)


def test_a_service_waits_for_a_first_version_or_the_ledger(sample_store: SampleStore, tmp_path: Path) -> None:
    """It waits with a reason, unless it has served a release before."""
    name, settings = "other-model", sample_store.settings
    assert ModelReloader(ServeOptions(name, settings)).unavailable_reason() == "it has no champion yet"
    assert ModelReloader(ServeOptions(MODEL, settings)).unavailable_reason() == ""
    unreachable = settings.model_copy(update={"ledger_url": "postgresql+psycopg://nobody@127.0.0.1:9/none"})
    assert "ledger" in ModelReloader(ServeOptions(name, unreachable)).unavailable_reason()
    opened(sample_store)
    assert ModelReloader(ServeOptions(MODEL, unreachable)).unavailable_reason() == ""


def test_the_champion_is_opened_and_followed(sample_store: SampleStore) -> None:
    """Each promotion or rollback replaces the model with the next poll."""
    served = opened(sample_store)
    assert version(served) == 1
    sample_store.promote(2)
    served.check_ledger()
    assert version(served) == 2
    sample_store.rollback()
    served.check_ledger()
    assert version(served) == 1
    assert served.rejections == 0


def test_a_thread_polls_the_ledger(sample_store: SampleStore) -> None:
    """The thread replaces the model, and ends when the reloader is closed."""
    served = opened(sample_store)
    assert (served.ready, served.reason) == (False, "starting")
    served.follow()
    try:
        assert (served.ready, served.reason) == (True, "")
        sample_store.promote(2)
        deadline = time.monotonic() + 20
        while version(served) != 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert version(served) == 2
        served.drain()
        assert (served.ready, served.reason) == (False, "draining")
    finally:
        served.close()
    assert served._thread is not None
    assert not served._thread.is_alive()


def test_an_unchanged_ledger_is_not_read_again(sample_store: SampleStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Polls of an unchanged ledger do not read its rows."""
    served = opened(sample_store)
    reads: list[Path] = []
    read = served._watch._read_sqlite
    monkeypatch.setattr(served._watch, "_read_sqlite", lambda file: reads.append(file) or read(file))
    for _ in range(50):
        served.check_ledger()
    assert reads == []
    sample_store.promote(2)
    for _ in range(50):
        served.check_ledger()
    assert len(reads) == 1


def test_a_request_keeps_its_model_during_a_promotion(sample_store: SampleStore) -> None:
    """A reference to the old model remains valid; afterwards the old model is freed."""
    served = opened(sample_store)
    taken = served.model
    assert taken is not None
    rows = json.loads((taken.directory / "probe.json").read_bytes())["rows"][:3]
    before = taken.predict_rows(rows).predictions
    sample_store.promote(2)
    served.check_ledger()
    assert taken.predict_rows(rows).predictions == before
    assert served.model is not None
    assert all(now > then + 500 for now, then in zip(served.model.predict_rows(rows).predictions, before, strict=True))
    reference = weakref.ref(taken)
    del taken
    assert reference() is None  # immediately: it has no reference cycles


def test_a_fixed_version_or_folder_does_not_follow_the_champion(sample_store: SampleStore) -> None:
    """``NAME@2`` and a path are opened whichever version is champion, and are not stored as last known good."""
    for name in (f"{MODEL}@2", str(sample_store.release(2))):
        served = opened(sample_store, name)
        assert (version(served), served.follows) == (2, False)
        served.follow()
        assert served.ready
        served.close()
    assert not sample_store.state_file.exists()


@pytest.mark.parametrize("file", ["contract.json", "plan.npz", "model.skops", MANIFEST])
def test_a_damaged_release_is_rejected_once(
    sample_store: SampleStore, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The current model still serves, the log has one error, and a later promotion of a valid release works."""
    served = opened(sample_store)
    release = sample_store.release(2)
    content = (release / file).read_bytes()
    spoil(release, file)
    sample_store.promote(2)
    with caplog.at_level(logging.ERROR, "towline.serving"):
        for _ in range(5):
            served.check_ledger()
    assert (version(served), served.rejections, len(caplog.records)) == (1, 1, 1)
    assert "version 2 is rejected" in caplog.text
    sample_store.rollback()
    served.check_ledger()
    (release / file).write_bytes(content)
    sample_store.promote(2)
    served.check_ledger()
    assert (version(served), served.rejections) == (2, 1)


def test_a_restored_release_is_opened(sample_store: SampleStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rejected release is tried again after the retry interval."""
    served = opened(sample_store)
    content = (sample_store.release(2) / "contract.json").read_bytes()
    spoil(sample_store.release(2))
    sample_store.promote(2)
    served.check_ledger()
    (sample_store.release(2) / "contract.json").write_bytes(content)
    served.check_ledger()
    assert version(served) == 1
    monkeypatch.setattr(model_reloader, "_RETRY_INTERVAL_S", 0)
    served._retry_at = 0.0
    served.check_ledger()
    assert version(served) == 2


def test_a_release_with_another_digest_than_in_the_ledger_is_rejected(
    sample_store: SampleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files and manifest were both replaced, so they agree with each other but not with the ledger."""
    served = opened(sample_store)
    release = f"releases/{MODEL}/{sample_store.release(2).name}"
    for named in (
        RecordedRelease(2, release, "0" * 64),
        RecordedRelease(3, release, ""),
        RecordedRelease(2, f"releases/{MODEL}/{sample_store.release(1).name}", ""),
        RecordedRelease(2, f"releases/{MODEL}/v2-000000000000", ""),
    ):
        monkeypatch.setattr(served._watch, "champion", lambda named=named: named)
        served._current = None
        served.check_ledger()
    assert (version(served), served.rejections) == (1, 3)  # the first two have one folder and are reported once


def test_a_release_with_other_labels_for_its_probe_rows_is_rejected(sample_store: SampleStore) -> None:
    """The labels in probe.json differ from the predictions of the model."""
    directory = sample_store.release(2)
    probe = json.loads((directory / "probe.json").read_bytes())
    probe["labels"][7] += 0.001
    (directory / "probe.json").write_text(json.dumps(probe))
    path = reseal(directory)
    with pytest.raises(ReleaseError, match="probe row 7"):
        opened(sample_store, str(path))


@pytest.mark.parametrize("outage", ["gone", "damaged", "locked", "empty"])
def test_without_the_ledger_the_last_known_good_release_serves(
    sample_store: SampleStore, outage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A running and a restarted service both answer; the outage is logged once."""
    sample_store.promote(2)
    running = opened(sample_store)
    ledger_bytes = sample_store.ledger_file.read_bytes()
    holder = None
    if outage == "locked":
        holder = sqlite3.connect(sample_store.ledger_file, isolation_level=None)
        holder.execute("BEGIN EXCLUSIVE")
        running._watch._last_stamp = None  # an unchanged file is not opened
    elif outage == "damaged":
        break_ledger(sample_store)
    elif outage == "gone":
        sample_store.ledger_file.unlink()
    else:
        sample_store.ledger_file.write_bytes(b"")
    caplog.set_level(logging.INFO, "towline.serving")
    for _ in range(3):
        running.check_ledger()
    assert version(running) == 2
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    restarted = opened(sample_store)
    assert version(restarted) == 2
    if holder is not None:
        holder.close()
    else:
        sample_store.ledger_file.write_bytes(ledger_bytes)
    sample_store.rollback()
    for served in (running, restarted):
        served.check_ledger()
        assert version(served) == 1
    assert "available again" in caplog.text


@pytest.mark.parametrize("outage", [True, False])
def test_a_replaced_worker_serves_the_champion_of_the_other_workers(sample_store: SampleStore, outage: bool) -> None:
    """It starts with the model of the service's start; a later champion is served, also while the ledger is down."""
    forked, running = opened(sample_store), opened(sample_store)
    sample_store.promote(2)
    running.check_ledger()
    if outage:
        break_ledger(sample_store)
    forked.catch_up()
    assert version(forked) == version(running) == 2


def test_a_replaced_worker_without_a_later_release_keeps_its_model(sample_store: SampleStore) -> None:
    forked = opened(sample_store)
    break_ledger(sample_store)
    forked.catch_up()
    assert version(forked) == 1
    sample_store.state_file.unlink()
    forked.catch_up()
    assert version(forked) == 1


def test_without_ledger_and_last_known_good_release_the_start_fails(sample_store: SampleStore) -> None:
    """The error names the damaged ledger, or the missing release."""
    ledger_bytes = sample_store.ledger_file.read_bytes()
    break_ledger(sample_store)
    with pytest.raises(TransientError, match="not a database"):
        opened(sample_store)
    opened(sample_store, f"{MODEL}@2")  # a version can be opened by its folder
    sample_store.ledger_file.write_bytes(ledger_bytes)
    shutil.rmtree(sample_store.release(1))
    with pytest.raises(ReleaseError, match="no release here"):
        opened(sample_store)


def test_a_start_with_a_damaged_champion_serves_the_last_known_good_release(sample_store: SampleStore) -> None:
    """The rejection is counted once."""
    opened(sample_store)
    sample_store.promote(2)
    spoil(sample_store.release(2))
    served = opened(sample_store)
    served.check_ledger()
    assert (version(served), served.rejections) == (1, 1)
    spoil(sample_store.release(1))
    with pytest.raises(ReleaseError):
        opened(sample_store)


def test_the_last_known_good_release_is_stored(sample_store: SampleStore) -> None:
    """Name, version, release and digest are written atomically at each change."""
    served = opened(sample_store)
    sample_store.promote(2)
    served.check_ledger()
    release = sample_store.release(2)
    assert json.loads(sample_store.state_file.read_text()) == {
        "name": MODEL,
        "version": 2,
        "release": f"releases/{MODEL}/{release.name}",
        "digest": read_manifest(release).digest,
    }


def test_a_service_starts_although_its_store_cannot_be_written(
    sample_store: SampleStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log reports that the last known good release is not stored."""

    def full(*_: object) -> None:
        raise TransientError("cannot write: No space left on device")

    monkeypatch.setattr(model_reloader.files, "write", full)
    served = opened(sample_store)
    assert version(served) == 1
    assert "No space left" in caplog.text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("house-valu", "did you mean house-value?"),
        ("bikes", "name one of: house-value"),
        (f"{MODEL}@9", "name one of its versions: house-value@1 (champion), house-value@2 ("),
        (f"{MODEL}@x", "NAME@3"),
        ("../house-value", "no release"),
        ("HOUSE", "NAME@3"),
        ("", "NAME@3"),
    ],
)
def test_the_error_for_a_missing_model_lists_models_and_versions(
    sample_store: SampleStore, name: str, text: str
) -> None:
    """If the name is invalid, the error shows the correct form."""
    with pytest.raises(TowlineError) as error:
        opened(sample_store, name)
    assert text in str(error.value)


def test_an_empty_store_is_no_outage(tmp_path: Path) -> None:
    """Before the first run there is no ledger, and none is created."""
    from tests.support.sample_store import store_settings

    with pytest.raises(ConfigError, match="towline run CONFIG"):
        opened(SampleStore(store_settings(tmp_path)))
    assert list(tmp_path.iterdir()) == []


def start_sample_rollout(sample_store: SampleStore, *, weight: float = 0.0) -> Rollout:
    """Starts a rollout of version 2, which has passed its gate; version 1 is champion."""
    config = RolloutConfig(steps=tuple(dict.fromkeys((weight, 100.0))))
    start_rollout(sample_store.ledger, MODEL, 2, config, "ann", "passed")
    rollout = active_rollout(sample_store.ledger.rows(MODEL))
    assert rollout is not None
    return rollout


def test_a_rollout_is_followed_from_start_to_end(sample_store: SampleStore) -> None:
    served = opened(sample_store)
    assert served.rollout is None
    rollout = start_sample_rollout(sample_store)
    served.check_ledger()
    assert served.rollout is not None
    assert (version(served), served.rollout.challenger.version, served.rollout.rollout.weight) == (1, 2, 0.0)
    challenger = served.rollout.challenger
    change_rollout(sample_store.ledger, rollout, "ann", "no error", step=1)
    served.check_ledger()
    assert served.rollout.rollout.weight == 1.0
    assert served.rollout.challenger is challenger
    end_rollout(sample_store.ledger, served.rollout.rollout, "aborted", "ann", "worse", {})
    served.check_ledger()
    assert served.rollout is None
    assert version(served) == 1


@pytest.mark.parametrize("outage", [True, False])
def test_a_replaced_worker_carries_out_the_rollout_of_the_others(sample_store: SampleStore, outage: bool) -> None:
    """A rollout that started after the service."""
    forked, running = opened(sample_store), opened(sample_store)
    rollout = start_sample_rollout(sample_store)
    running.check_ledger()
    if outage:
        break_ledger(sample_store)
    forked.catch_up()
    assert forked.rollout is not None
    assert forked.rollout.rollout == rollout


def test_a_promoted_challenger_serves_alone(sample_store: SampleStore) -> None:
    served = opened(sample_store)
    rollout = start_sample_rollout(sample_store)
    served.check_ledger()
    end_rollout(sample_store.ledger, rollout, "promoted", "ann", "better", {})
    served.check_ledger()
    assert (version(served), served.rollout) == (2, None)


def test_a_restarted_service_resumes_the_rollout_also_without_the_ledger(sample_store: SampleStore) -> None:
    rollout = start_sample_rollout(sample_store)
    served = opened(sample_store)
    assert served.rollout is not None
    assert served.rollout.rollout == rollout
    break_ledger(sample_store)
    restarted = opened(sample_store)
    assert restarted.rollout is not None
    assert restarted.rollout.rollout == rollout


def test_a_challenger_that_cannot_be_opened_is_stopped_and_the_champion_serves(sample_store: SampleStore) -> None:
    spoil(sample_store.release(2))
    rollout = start_sample_rollout(sample_store)
    served = opened(sample_store)
    assert (version(served), served.rollout) == (1, None)
    folder = sample_store.settings.layout.rollout(MODEL, rollout.id)
    assert "cannot be opened" in stop_reason(folder)
