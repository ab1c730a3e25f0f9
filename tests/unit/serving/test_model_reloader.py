import json
import logging
import shutil
import sqlite3
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest

from tests.shelf import MODEL, Shelf
from towline.errors import ConfigError, ReleaseError, TowlineError, TransientError
from towline.manifest import MANIFEST, describe_files, read_manifest
from towline.registry.champion_watcher import RecordedRelease
from towline.serving import model_reloader
from towline.serving.model_reloader import ModelReloader
from towline.serving.options import ServeOptions


def opened(shelf: Shelf, name: str = MODEL) -> ModelReloader:
    served = ModelReloader(ServeOptions(name, shelf.settings))
    served.open()
    return served


def version(served: ModelReloader) -> int:
    assert served.model is not None
    return served.model.version


def spoil(release: Path, file: str = "contract.json") -> None:
    path = release / file
    path.write_bytes(path.read_bytes().replace(b"e", b"f", 1))


def reseal(release: Path) -> Path:
    """Makes the manifest say what the folder holds now, as someone would who may write the store; returns it."""
    old = read_manifest(release)
    (release / MANIFEST).unlink()
    manifest = old.model_copy(update={"files": describe_files(release)})
    (release / MANIFEST).write_text(manifest.text())
    return release.rename(release.with_name(manifest.folder))


def break_ledger(shelf: Shelf) -> None:
    shelf.ledger_file.write_bytes(b"not a database, but long enough to be looked at" * 50)


def test_what_is_missing_is_told_until_it_is_there(shelf: Shelf, tmp_path: Path) -> None:
    """Before a first version, and without a ledger, there is a reason to wait; what served before needs neither."""
    name, settings = "other-model", shelf.settings
    assert ModelReloader(ServeOptions(name, settings)).unavailable_reason() == "it has no champion yet"
    assert ModelReloader(ServeOptions(MODEL, settings)).unavailable_reason() == ""
    away = settings.model_copy(update={"ledger_url": "postgresql+psycopg://nobody@127.0.0.1:9/none"})
    assert "ledger" in ModelReloader(ServeOptions(name, away)).unavailable_reason()
    opened(shelf)
    assert ModelReloader(ServeOptions(MODEL, away)).unavailable_reason() == ""


def test_the_champion_is_opened_and_followed(shelf: Shelf) -> None:
    """A promotion and a rollback are each taken at the next look."""
    served = opened(shelf)
    assert version(served) == 1
    shelf.promote(2)
    served.check_ledger()
    assert version(served) == 2
    shelf.rollback()
    served.check_ledger()
    assert version(served) == 1
    assert served.rejections == 0


def test_following_needs_no_call(shelf: Shelf) -> None:
    """The thread looks by itself, and is gone when it is closed."""
    served = opened(shelf)
    assert (served.ready, served.reason) == (False, "starting")
    served.follow()
    try:
        assert (served.ready, served.reason) == (True, "")
        shelf.promote(2)
        deadline = time.monotonic() + 20
        while version(served) != 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert version(served) == 2
        served.drain()
        assert (served.ready, served.reason) == (False, "draining")
    finally:
        served.close()
    shelf.rollback()
    time.sleep(1)
    assert version(served) == 2


def test_an_unchanged_ledger_is_not_read_again(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking twice a second at a long history costs nothing while nothing is written."""
    served = opened(shelf)
    reads: list[Path] = []
    read = served._watch._read_sqlite
    monkeypatch.setattr(served._watch, "_read_sqlite", lambda file: reads.append(file) or read(file))
    for _ in range(50):
        served.check_ledger()
    assert reads == []
    shelf.promote(2)
    for _ in range(50):
        served.check_ledger()
    assert len(reads) == 1


def test_a_request_keeps_the_model_it_began_with(shelf: Shelf) -> None:
    """Who has taken the reference is answered by that version to the end; afterwards the old model is gone."""
    served = opened(shelf)
    taken = served.model
    assert taken is not None
    rows = json.loads((taken.directory / "probe.json").read_bytes())["rows"][:3]
    before = taken.predict_rows(rows).predictions
    shelf.promote(2)
    served.check_ledger()
    assert taken.predict_rows(rows).predictions == before
    assert served.model is not None
    assert all(now > then + 500 for now, then in zip(served.model.predict_rows(rows).predictions, before, strict=True))
    reference = weakref.ref(taken)
    del taken
    assert reference() is None  # at once: nothing in it refers back, so it needs no collector


def test_a_version_and_a_folder_stay_what_they_are(shelf: Shelf) -> None:
    """NAME@2 and a path are opened whoever is champion, not followed, and not noted as what serves."""
    for name in (f"{MODEL}@2", str(shelf.release(2))):
        served = opened(shelf, name)
        assert (version(served), served.follows) == (2, False)
        served.follow()
        assert served.ready
        served.close()
    assert not shelf.state_file.exists()


@pytest.mark.parametrize("file", ["contract.json", "plan.npz", "model.skops", MANIFEST])
def test_a_damaged_release_is_refused_once(shelf: Shelf, file: str, caplog: pytest.LogCaptureFixture) -> None:
    """The old one goes on serving; the log says so once; a promotion of a good one is taken as ever."""
    served = opened(shelf)
    release = shelf.release(2)
    content = (release / file).read_bytes()
    spoil(release, file)
    shelf.promote(2)
    with caplog.at_level(logging.ERROR, "towline.serving"):
        for _ in range(5):
            served.check_ledger()
    assert (version(served), served.rejections, len(caplog.records)) == (1, 1, 1)
    assert "version 2 is rejected" in caplog.text
    shelf.rollback()
    served.check_ledger()
    (release / file).write_bytes(content)
    shelf.promote(2)
    served.check_ledger()
    assert (version(served), served.rejections) == (2, 1)


def test_a_restored_release_is_taken(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused release is looked at again after a while: its files may have been put back."""
    served = opened(shelf)
    content = (shelf.release(2) / "contract.json").read_bytes()
    spoil(shelf.release(2))
    shelf.promote(2)
    served.check_ledger()
    (shelf.release(2) / "contract.json").write_bytes(content)
    served.check_ledger()
    assert version(served) == 1
    monkeypatch.setattr(model_reloader, "_RETRY_INTERVAL_S", 0)
    served._retry_at = 0.0
    served.check_ledger()
    assert version(served) == 2


def test_a_release_that_is_not_the_ledgers_is_refused(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose files and manifest were exchanged together is whole by itself, but not what was registered."""
    served = opened(shelf)
    wanted = f"releases/{MODEL}/{shelf.release(2).name}"
    for named in (
        RecordedRelease(2, wanted, "0" * 64),
        RecordedRelease(3, wanted, ""),
        RecordedRelease(2, f"releases/{MODEL}/{shelf.release(1).name}", ""),
        RecordedRelease(2, f"releases/{MODEL}/v2-000000000000", ""),
    ):
        monkeypatch.setattr(served._watch, "champion", lambda named=named: named)
        served._current = None
        served.check_ledger()
    assert (version(served), served.rejections) == (1, 3)  # the first two share a folder: told once


def test_a_release_that_answers_otherwise_than_it_did_is_refused(shelf: Shelf) -> None:
    """Each release brings rows and the answers it gave when it was made; here the answers are others'."""
    directory = shelf.release(2)
    probe = json.loads((directory / "probe.json").read_bytes())
    probe["labels"][7] += 0.001
    (directory / "probe.json").write_text(json.dumps(probe))
    path = reseal(directory)
    with pytest.raises(ReleaseError, match="probe row 7"):
        opened(shelf, str(path))


@pytest.mark.parametrize("outage", ["gone", "damaged", "locked", "empty"])
def test_without_the_ledger_the_last_release_serves(
    shelf: Shelf, outage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It goes on answering and so does a service that starts then; told once, and the ledger counts again after it."""
    shelf.promote(2)
    running = opened(shelf)
    kept = shelf.ledger_file.read_bytes()
    holder = None
    if outage == "locked":
        holder = sqlite3.connect(shelf.ledger_file, isolation_level=None)
        holder.execute("BEGIN EXCLUSIVE")
        running._watch._last_stamp = None  # an unchanged file is not even opened
    elif outage == "damaged":
        break_ledger(shelf)
    elif outage == "gone":
        shelf.ledger_file.unlink()
    else:
        shelf.ledger_file.write_bytes(b"")
    caplog.set_level(logging.INFO, "towline.serving")
    for _ in range(3):
        running.check_ledger()
    assert version(running) == 2
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    restarted = opened(shelf)
    assert version(restarted) == 2
    if holder is not None:
        holder.close()
    else:
        shelf.ledger_file.write_bytes(kept)
    shelf.rollback()
    for served in (running, restarted):
        served.check_ledger()
        assert version(served) == 1
    assert "available again" in caplog.text


def test_without_ledger_and_note_there_is_nothing_to_serve(shelf: Shelf) -> None:
    """A first start with a damaged ledger says that it is damaged; a start on a release that is gone names it."""
    kept = shelf.ledger_file.read_bytes()
    break_ledger(shelf)
    with pytest.raises(TransientError, match="not a database"):
        opened(shelf)
    opened(shelf, f"{MODEL}@2")  # a version is found by its folder
    shelf.ledger_file.write_bytes(kept)
    shutil.rmtree(shelf.release(1))
    with pytest.raises(ReleaseError, match="no release here"):
        opened(shelf)


def test_a_start_with_a_damaged_champion_serves_the_one_before(shelf: Shelf) -> None:
    """What was served last is opened instead, and the refusal is counted once."""
    opened(shelf)
    shelf.promote(2)
    spoil(shelf.release(2))
    served = opened(shelf)
    served.check_ledger()
    assert (version(served), served.rejections) == (1, 1)
    spoil(shelf.release(1))
    with pytest.raises(ReleaseError):
        opened(shelf)


def test_what_serves_is_noted(shelf: Shelf) -> None:
    """Name, version, release and digest, in one whole file at each change."""
    served = opened(shelf)
    shelf.promote(2)
    served.check_ledger()
    release = shelf.release(2)
    assert json.loads(shelf.state_file.read_text()) == {
        "name": MODEL,
        "version": 2,
        "release": f"releases/{MODEL}/{release.name}",
        "digest": read_manifest(release).digest,
    }


def test_a_store_that_cannot_be_written_is_no_reason_not_to_serve(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The note is missing then, which the log says."""

    def full(*_: object) -> None:
        raise TransientError("cannot write: No space left on device")

    monkeypatch.setattr(model_reloader.files, "write", full)
    served = opened(shelf)
    assert version(served) == 1
    assert "No space left" in caplog.text


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("house-valu", "did you mean house-value?"),
        ("bikes", "models: house-value"),
        (f"{MODEL}@9", "house-value@1, house-value@2"),
        (f"{MODEL}@x", "NAME@3"),
        ("../house-value", "no release"),
        ("HOUSE", "NAME@3"),
        ("", "NAME@3"),
    ],
)
def test_a_model_that_is_not_there_is_named(shelf: Shelf, name: str, told: str) -> None:
    """With what there is, or how it is written."""
    with pytest.raises(TowlineError) as caught:
        opened(shelf, name)
    assert told in str(caught.value)


def test_an_empty_store_is_told_from_an_outage(tmp_path: Path) -> None:
    """Before the first run there is no ledger, and none is made."""
    from tests.shelf import settings

    with pytest.raises(ConfigError, match="towline run CONFIG"):
        opened(Shelf(settings(tmp_path)))
    assert list(tmp_path.iterdir()) == []


def test_serving_a_compiled_model_imports_no_heavy_library(shelf: Shelf) -> None:
    """Start and memory of a service rest on it."""
    code = (
        "import sys;"
        "from towline.serving.model_reloader import ModelReloader; from towline.serving.options import ServeOptions;"
        "from towline.config import Settings;"
        "served = ModelReloader(ServeOptions(sys.argv[1], Settings.from_environment()));"
        "served.open(); served.check_ledger();"
        "print(served.model.compiled, *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, MODEL],
        env={"TOWLINE_STORE": str(shelf.settings.store)},
        capture_output=True,
        text=True,
        check=True,
    )
    compiled, *modules = done.stdout.split()
    assert compiled == "True"
    assert not {"pandas", "sklearn", "scipy", "sqlalchemy", "pyarrow", "mlflow", "skops"} & set(modules)
