"""A store in one file, and back: the same predictions, the same ledger, or nothing at all."""

import errno
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from tests.support.commands import CommandResult
from tests.support.paths import REPOSITORY
from tests.support.sample_store import MODEL, SampleStore
from towline import load
from towline.errors import ReleaseError
from towline.inference.predictor import open_release
from towline.operations import servers
from towline.operations.backup import placement
from towline.prediction_log import parquet_store
from towline.prediction_log.writer import PredictionLog
from towline.processes import process_start_time
from towline.registry.ledger import Ledger
from towline.serving.auth import create_key

Command = Callable[..., CommandResult]


@pytest.fixture
def home(sample_store: SampleStore, command: Command, monkeypatch: pytest.MonkeyPatch) -> SampleStore:
    """The sample store for commands to work on, with a log, a key, a database like MLflow's, and leftovers."""
    store = sample_store.settings.store
    monkeypatch.setenv("TOWLINE_STORE", str(store))
    create_key(store, "shop", ["predict"], None)
    answer(sample_store, range(20))
    with parquet_store.lock_store(store / "predictions" / MODEL):
        parquet_store.convert_segments(store / "predictions" / MODEL)
    artifacts = store / "artifacts" / "run" / "artifacts"
    artifacts.mkdir(parents=True)
    (artifacts / "model.bin").write_bytes(os.urandom(100_000))
    (store / "servers").mkdir()
    (store / "servers" / "prefect.json").write_text('{"pid": 1, "start_time": "never"}')
    (store / "work" / "run").mkdir(parents=True)
    (store / "work" / "run" / "half.parquet").write_bytes(b"half")
    with sqlite3.connect(store / "mlflow.db") as database:
        database.execute("CREATE TABLE runs (artifact_uri TEXT)")
        database.execute("INSERT INTO runs VALUES (?)", (str(artifacts),))
    database.close()
    return sample_store


def answer(sample_store: SampleStore, ids: range, log: PredictionLog | None = None) -> None:
    model = open_release(sample_store.release(1))
    row = sample(sample_store)
    own = log or PredictionLog(sample_store.settings.store / "predictions" / MODEL, "w0", convert=False)
    for number in ids:
        own.write(f"r{number}", 1_700_000_000 + number, model, [row], model.predict_rows([row]))
    if log is None:
        own.close()


def sample(sample_store: SampleStore) -> dict[str, object]:
    (row, *_) = json.loads((sample_store.release(1) / "probe.json").read_bytes())["rows"]
    return dict(row)


def logged(store: Path) -> list[str]:
    return sorted(parquet_store.read_predictions(store / "predictions" / MODEL)["request_id"].to_pylist())


def tree(store: Path) -> dict[str, bytes]:
    return {
        path.relative_to(store).as_posix(): path.read_bytes()
        for path in store.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(store).parts)
    }


def members(archive: Path) -> dict[str, bytes]:
    with pa.input_stream(str(archive), compression="zstd") as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        return {info.name: found.read() for info in tar if (found := tar.extractfile(info))}


def rewrite(archive: Path, change: Callable[[tarfile.TarInfo, bytes], Iterator[tuple[tarfile.TarInfo, bytes]]]) -> Path:
    """The archive with other members, as somebody with a hex editor and some patience would leave it."""
    target = archive.with_name("changed.tar.zst")
    with (
        pa.input_stream(str(archive), compression="zstd") as source,
        tarfile.open(fileobj=source, mode="r|") as old,
        pa.CompressedOutputStream(str(target), "zstd") as sink,
        tarfile.open(fileobj=sink, mode="w|") as new,
    ):
        for info in old:
            found = old.extractfile(info)
            for one, content in change(info, found.read() if found else b""):
                one.size = len(content)
                new.addfile(one, io.BytesIO(content))
    return target


def test_a_store_comes_back_as_it_was_though_predictions_are_logged_meanwhile(
    home: SampleStore, command: Command, tmp_path: Path
) -> None:
    """The same predictions, the same ledger, keys and log: what was written before the backup began is all there."""
    store, archive = home.settings.store, tmp_path / "backups" / "towline.tar.zst"
    row, ledger = sample(home), home.ledger.history()
    before = load(home.release(1)).predict([row])
    ended = threading.Event()
    log = PredictionLog(store / "predictions" / MODEL, "w1", convert=False, segment_seconds=0.05)

    def serve() -> None:
        number = 1000
        while not ended.is_set():
            answer(home, range(number, number + 20), log)
            number += 20
            time.sleep(0.005)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        done = command("backup", archive, "--json")
    finally:
        ended.set()
        thread.join()
        log.close()
    assert done.code == 0, done.err
    assert done.json["models"][MODEL]["version"] == 1
    assert archive.stat().st_mode & 0o077 == 0
    for path in list(store.iterdir()):
        subprocess.run(["rm", "-r", path], check=True)

    back = command("restore", archive, "--json")
    assert back.code == 0, back.err
    assert back.json["models"][MODEL]["rows"] > 0
    assert home.ledger.history() == ledger
    assert load(home.release(1)).predict([row]) == before
    assert {f"r{number}" for number in range(20)} <= set(logged(store))
    assert len(logged(store)) == len(set(logged(store)))
    assert [key["name"] for key in command("keys", "list", "--json").json] == ["shop"]
    assert not (store / "servers").exists()
    assert not (store / "work").exists()
    assert (store / "predictions" / MODEL).stat().st_mode & 0o077 == 0


def test_another_folder_is_a_store_of_its_own(home: SampleStore, command: Command, tmp_path: Path) -> None:
    """A rehearsal beside the store: MLflow's database then names the artifacts there; the store is not touched."""
    archive, other, before = tmp_path / "a.tar.gz", tmp_path / "deep" / "rehearsal", tree(home.settings.store)
    assert command("backup", archive).code == 0
    assert command("restore", archive, "--into", other).code == 0
    with sqlite3.connect(other / "mlflow.db") as database:
        ((place,),) = database.execute("SELECT artifact_uri FROM runs").fetchall()
    database.close()
    assert Path(place) == other / "artifacts" / "run" / "artifacts"
    assert (Path(place) / "model.bin").read_bytes() == before["artifacts/run/artifacts/model.bin"]
    assert tree(home.settings.store) == before
    assert [one["model"] for one in command("models", "--json").json] == [MODEL]


def test_standard_tools_open_it(home: SampleStore, command: Command, tmp_path: Path) -> None:
    """tar and zstd are all that somebody needs who has lost towline."""
    archive = tmp_path / "a.tar.gz"
    assert command("backup", archive).code == 0
    told = subprocess.run(["tar", "tzf", archive], capture_output=True, text=True, check=True).stdout.splitlines()
    assert told[-1] == "MANIFEST.json"
    assert f"store/releases/{MODEL}/{home.release(1).name}/manifest.json" in told
    rooms = {name.split("/")[1] for name in told if name.startswith("store/")}
    assert rooms == {"artifacts", "predictions", "releases", "serving"}


def test_a_changed_member_is_named_and_nothing_is_written(home: SampleStore, command: Command, tmp_path: Path) -> None:
    """One byte of a release, and the restore names the file and leaves the place as it was."""
    archive, other = tmp_path / "a.tar.zst", tmp_path / "other"
    assert command("backup", archive).code == 0
    name = f"store/releases/{MODEL}/{home.release(1).name}/contract.json"
    changed = rewrite(
        archive, lambda info, content: iter([(info, content.replace(b"r", b"R", 1) if info.name == name else content)])
    )
    for words in (("--into", other), ("--verify-only",)):
        done = command("restore", changed, *words)
        assert done.code == 6
        assert name in done.err
        assert "sha256" in done.err
    assert not other.exists()
    assert command("restore", archive, "--verify-only").code == 0


def test_a_cut_archive_is_refused(home: SampleStore, command: Command, tmp_path: Path) -> None:
    """A copy that stopped half way is no backup."""
    archive = tmp_path / "a.tar.zst"
    assert command("backup", archive).code == 0
    content = archive.read_bytes()
    for size in (10, len(content) // 2, len(content) - 30):
        (tmp_path / "cut.tar.zst").write_bytes(content[:size])
        assert command("restore", tmp_path / "cut.tar.zst", "--into", tmp_path / "other").code == 6
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("kind", ["absolute", "dots", "link", "hard link", "device", "extra", "twice"])
def test_members_that_lead_out_are_refused(kind: str, home: SampleStore, command: Command, tmp_path: Path) -> None:
    """Nothing an archive holds is written beside the folder it is unpacked to, or stands in for another file."""
    archive = tmp_path / "a.tar.zst"
    assert command("backup", archive).code == 0
    names = {"absolute": f"{tmp_path}/evil", "dots": "store/../../../evil"}

    def change(info: tarfile.TarInfo, content: bytes) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
        if info.name == "MANIFEST.json":
            evil = tarfile.TarInfo(names.get(kind, "store/evil"))
            types = {"link": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE, "device": tarfile.CHRTYPE}
            evil.type, evil.linkname = types.get(kind, tarfile.REGTYPE), "/etc/passwd" if "link" in kind else ""
            if kind == "twice":
                evil.name = "databases/ledger.sqlite"
            yield evil, b"" if kind in types else b"evil"
        yield info, content

    done = command("restore", rewrite(archive, change), "--into", tmp_path / "in" / "other")
    assert done.code == 6, done.err
    assert not list(tmp_path.rglob("evil"))
    assert not (tmp_path / "in").exists()


@pytest.mark.parametrize("suffix", [".tar.zst", ".tar.gz"])
@pytest.mark.parametrize("appended", ["the same backup", "another tar", "text", "zeros"])
def test_an_archive_with_something_appended_is_refused(
    suffix: str, appended: str, home: SampleStore, command: Command, tmp_path: Path
) -> None:
    """A tar ends at its first empty block: what stands after it is no part of the backup, and it is damaged."""
    archive = tmp_path / f"a{suffix}"
    assert command("backup", archive).code == 0
    assert command("restore", archive, "--verify-only").code == 0
    if appended == "another tar":
        other = tmp_path / f"other{suffix}"
        with (
            pa.CompressedOutputStream(str(other), "zstd" if suffix == ".tar.zst" else "gzip") as sink,
            tarfile.open(fileobj=sink, mode="w|") as tar,
        ):
            tar.addfile(tarfile.TarInfo("store/evil"))
        tail = other.read_bytes()
    else:
        tail = {"the same backup": archive.read_bytes(), "text": b"appended\n" * 200, "zeros": bytes(4096)}[appended]
    with archive.open("ab") as file:
        file.write(tail)
    for words in (("--verify-only",), ("--into", tmp_path / "other")):
        done = command("restore", archive, *words)
        assert done.code == 6, done.err
    assert not (tmp_path / "other").exists()


def test_a_store_that_holds_something_is_kept(home: SampleStore, command: Command, tmp_path: Path) -> None:
    """Without --force the restore says what is there; with it, that lies aside, whole."""
    store, archive = home.settings.store, tmp_path / "a.tar.zst"
    assert command("backup", archive).code == 0
    home.promote(2)
    answer(home, range(30, 40))
    before = tree(store)
    done = command("restore", archive)
    assert done.code == 2
    assert all(word in done.err for word in ("ledger.db", "releases", "--force"))
    assert tree(store) == before

    forced = command("restore", archive, "--force", "--json")
    assert forced.code == 0, forced.err
    champion = home.ledger.champion(MODEL)
    assert champion is not None
    assert champion.version == 1
    assert len(logged(store)) == 20
    (aside,) = forced.json["aside"]
    newer = Ledger(f"sqlite:///{aside}/ledger.db").champion(MODEL)
    assert newer is not None
    assert newer.version == 2
    assert len(logged(Path(aside))) == 30


def test_rooms_that_are_mounted_are_filled_where_they_are(
    home: SampleStore, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A volume takes no renames from elsewhere: it stays, what was in it lies aside within, what comes is copied."""
    store, archive = home.settings.store, tmp_path / "a.tar.zst"
    assert command("backup", archive).code == 0
    answer(home, range(30, 40))
    rooms = (store / "releases", store / "predictions")
    numbers = [room.stat().st_ino for room in rooms]
    rename = Path.rename

    def within(old: Path, new: Path) -> Path:
        if old in rooms or [room in old.parents for room in rooms] != [room in Path(new).parents for room in rooms]:
            raise OSError(errno.EXDEV, "another disk")
        return rename(old, new)

    monkeypatch.setattr(placement, "is_mount", lambda path: path in rooms)
    monkeypatch.setattr(Path, "rename", within)
    forced = command("restore", archive, "--force", "--json")
    assert forced.code == 0, forced.err
    assert [room.stat().st_ino for room in rooms] == numbers
    assert len(logged(store)) == 20
    assert home.ledger.champion(MODEL) is not None
    kept = [Path(aside) for aside in forced.json["aside"] if Path(aside).parent == rooms[1]]
    assert len(kept) == 1
    assert not list(store.rglob(".restore-*"))


KILLED = """
import os, signal, sys
from towline.operations.backup import create, restore
def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
module, name = sys.argv[1].split(".")
setattr({"create": create, "restore": restore}[module], name, die)
from towline.cli import main
main(sys.argv[2:])
"""


def killed(at: str, *words: object) -> None:
    line = [sys.executable, "-c", KILLED, at, *map(str, words)]
    assert subprocess.run(line, cwd=REPOSITORY, check=False, timeout=60).returncode == -signal.SIGKILL


def test_a_kill_leaves_the_old_store_and_the_old_backup(home: SampleStore, command: Command, tmp_path: Path) -> None:
    """A restore that is killed after it has unpacked has changed nothing; a backup, nothing of the one before."""
    store, archive = home.settings.store, tmp_path / "a.tar.zst"
    assert command("backup", archive).code == 0
    kept, before = archive.read_bytes(), tree(store)
    killed("create.is_sqlite", "backup", archive)
    assert archive.read_bytes() == kept
    killed("restore.check_probe_rows", "restore", archive, "--force")
    assert tree(store) == before
    other = tmp_path / "other"
    killed("restore.check_probe_rows", "restore", archive, "--into", other)
    assert tree(other) == {}
    assert list(other.glob(".restore-*"))
    assert command("restore", archive, "--into", other).code == 0
    assert not list(other.glob(".restore*"))
    assert logged(other) == logged(store)


@pytest.mark.parametrize("mounts", [(), ("releases", "serving")])
def test_an_error_while_files_are_moved_restores_the_previous_content(
    mounts: tuple[str, ...], home: SampleStore, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk error after the first renames: the store is as before, in mounted folders too, without drafts."""
    store, archive = home.settings.store, tmp_path / "a.tar.zst"
    assert command("backup", archive).code == 0
    home.promote(2)
    before, moved = tree(store), []

    def fails(folder: Path) -> None:
        moved.append(sorted(path.name for path in store.glob("[!.]*")))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(placement, "is_mount", lambda path: path in [store / name for name in mounts])
    monkeypatch.setattr(placement.files, "sync", fails)
    done = command("restore", archive, "--force")
    assert done.code == 5
    assert "No space left on device" in done.err
    assert "releases" in moved[0]
    assert tree(store) == before
    assert not list(store.rglob(".restore-*"))


def test_what_works_on_the_store_ends_first(home: SampleStore, command: Command, tmp_path: Path) -> None:
    """A restore under a service that writes its log would take the log from under it."""
    archive = tmp_path / "a.tar.zst"
    assert command("backup", archive).code == 0
    log = PredictionLog(home.settings.store / "predictions" / MODEL, "w1", convert=False)
    answer(home, range(1), log)
    try:
        deadline = time.monotonic() + 20
        while not log.written and time.monotonic() < deadline:
            time.sleep(0.01)
        done = command("restore", archive, "--force")
    finally:
        log.close()
    assert done.code == 2
    assert f"a service of {MODEL} uses this store" in done.err


def test_a_damaged_champion_is_reported_and_the_rest_is_backed_up(
    home: SampleStore, command: Command, tmp_path: Path
) -> None:
    """A nightly backup ends in an error when what serves is spoilt, and still holds everything else."""
    (home.release(1) / "contract.json").write_text("{}")
    archive = tmp_path / "a.tar.zst"
    done = command("backup", archive)
    assert done.code == 6
    assert f"version 1 of {MODEL}" in done.err
    back = command("restore", archive, "--into", tmp_path / "other", "--json")
    assert back.code == 0, back.err
    assert "was not whole" in back.json["notes"][0]
    assert len(logged(tmp_path / "other")) == 20


def test_a_backup_without_the_ledger_is_told(home: SampleStore, command: Command, tmp_path: Path) -> None:
    """Releases that no row names: the files are backed up, and the command does not end as if all was well."""
    home.ledger_file.unlink()
    archive = tmp_path / "a.tar.zst"
    done = command("backup", archive)
    assert done.code == 6
    assert "the ledger was lost" in done.err
    assert command("restore", archive, "--verify-only").code == 0


def test_a_version_under_way_is_no_release_that_is_missing(home: SampleStore, command: Command, tmp_path: Path) -> None:
    """It has a number and no release yet: the backup has nothing to say of it, and it is restored."""
    home.ledger.register(MODEL, "ann", "trained", {}, "key3")
    done = command("backup", tmp_path / "a.tar.zst", "--json")
    assert done.code == 0, done.err
    assert not [note for note in done.json["notes"] if "version 3" in note]
    assert command("restore", tmp_path / "a.tar.zst", "--into", tmp_path / "other").code == 0
    assert Ledger(f"sqlite:///{tmp_path}/other/ledger.db").state(MODEL, 3) == "registered"


def test_a_release_that_answers_otherwise_is_not_put_in_place(
    home: SampleStore, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right digests are not enough: on a machine where the model computes something else, nothing is restored."""
    from towline.operations.backup import restore

    archive = tmp_path / "a.tar.zst"
    assert command("backup", archive).code == 0

    def other(model: object) -> int:
        raise ReleaseError("the release answers row 0 of its own probe with 1, it was 2", where="here")

    monkeypatch.setattr(restore, "check_probe_rows", other)
    assert command("restore", archive, "--into", tmp_path / "other").code == 6
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("backup", "{store}/inside.tar.zst"), "would be written into the data it backs up"),
        (("backup", "{tmp}/a.zip"), "let it end in"),
        (("backup", "{tmp}/a.tar.zst", "--database", "x=mysql://h/d"), "is neither"),
        (("backup", "{tmp}/a.tar.zst", "--database", "x=postgresql://u:pw@h/d"), "can be read by everybody"),
        (("backup", "{tmp}/a.tar.zst", "--folder", "x=/nowhere/at/all"), "there is no folder x"),
        (("restore", "{tmp}/none.tar.zst"), "does not exist"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    words: tuple[str, ...], told: str, home: SampleStore, command: Command, tmp_path: Path
) -> None:
    """Each with what, where and a remedy, before anything is written."""
    done = command(*(word.format(store=home.settings.store, tmp=tmp_path) for word in words))
    assert done.code == 2
    assert told in done.err
    assert not list(tmp_path.glob("*.zst"))


def test_a_ledger_that_was_changed_is_not_backed_up(home: SampleStore, command: Command, tmp_path: Path) -> None:
    """A chain that does not hold is told on the first night, not on the day it is needed."""
    with sqlite3.connect(home.ledger_file) as database:
        database.execute("UPDATE ledger SET actor = 'eve' WHERE seq = 2")
    database.close()
    done = command("backup", tmp_path / "a.tar.zst")
    assert done.code == 6
    assert f"row 2 of {MODEL}" in done.err
    assert not (tmp_path / "a.tar.zst").exists()


def test_hash_keys_can_stay_at_home(home: SampleStore, command: Command, tmp_path: Path) -> None:
    """Without them, what the log holds of hashed values can never be matched from the backup."""
    keys = home.settings.store / "predictions" / MODEL / "hash-keys"
    keys.mkdir(exist_ok=True)
    (keys / "2026-11").write_bytes(b"secret")
    assert command("backup", tmp_path / "a.tar.zst").code == 0
    assert command("backup", tmp_path / "b.tar.zst", "--no-hash-keys").code == 0
    held = [[name for name in members(tmp_path / f"{one}.tar.zst") if "hash-keys/" in name] for one in "ab"]
    assert [len(names) for names in held] == [1, 0]


def test_further_folders_come_back_to_their_places(home: SampleStore, command: Command, tmp_path: Path) -> None:
    """Artifacts that an MLflow server keeps elsewhere; a restore without a place for them is refused."""
    elsewhere, archive = tmp_path / "volume", tmp_path / "a.tar.zst"
    (elsewhere / "1" / ".hidden").mkdir(parents=True)
    (elsewhere / "1" / "model.lock").write_text("content")
    assert command("backup", archive, "--folder", f"artifacts={elsewhere}").code == 0
    done = command("restore", archive, "--into", tmp_path / "other")
    assert (done.code, "--folder artifacts=PATH" in done.err) == (2, True)
    new = tmp_path / "new"
    done = command("restore", archive, "--into", tmp_path / "other", "--folder", f"artifacts={new}")
    assert done.code == 0, done.err
    assert (new / "1" / "model.lock").read_text() == "content"
    assert (new / "1" / ".hidden").is_dir()
    assert not list(new.glob(".restore*"))


def test_a_server_of_the_store_must_be_stopped_before_a_restore(
    home: SampleStore, command: Command, tmp_path: Path
) -> None:
    """Its record is enough to tell: a restore would replace the database under it."""
    archive = tmp_path / "a.tar.zst"
    assert command("backup", archive).code == 0
    server = servers.Server(
        kind="mlflow", pid=os.getpid(), start_time=process_start_time(os.getpid()), url="http://127.0.0.1:1"
    )
    (home.settings.store / "servers" / "mlflow.json").write_text(server.model_dump_json())
    done = command("restore", archive, "--force")
    assert done.code == 2
    assert f"process {os.getpid()} (mlflow) uses this store" in done.err
