"""Backup of a store into one file, and its restore: the same predictions and the same ledger, or no change."""

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
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pytest

from tests.support.commands import CommandResult
from tests.support.paths import REPOSITORY
from tests.support.sample_store import MODEL, SampleStore
from towline import load
from towline.api_keys import create_key
from towline.errors import ReleaseError
from towline.inference.predictor import open_release
from towline.operations import servers
from towline.operations.backup import placement
from towline.prediction_log import parquet_store
from towline.prediction_log.writer import PredictionLog
from towline.processes import process_start_time
from towline.registry.ledger import Ledger

Command = Callable[..., CommandResult]


@pytest.fixture
def home(sample_store: SampleStore, command: Command, monkeypatch: pytest.MonkeyPatch) -> SampleStore:
    """The sample store, with a log, a key, a database like MLflow's, and leftovers."""
    store = sample_store.settings.store
    monkeypatch.setenv("TOWLINE_STORE", str(store))
    create_key(store, "shop", ["predict"], None)
    log_predictions(sample_store, range(20))
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


def log_predictions(sample_store: SampleStore, ids: range, log: PredictionLog | None = None) -> None:
    model = open_release(sample_store.release(1))
    row = sample_row(sample_store)
    writer = log or PredictionLog(sample_store.settings.store / "predictions" / MODEL, "w0", convert=False)
    for number in ids:
        writer.write(f"r{number}", 1_700_000_000 + number, model, [row], model.predict_rows([row]))
    if log is None:
        writer.close()


def sample_row(sample_store: SampleStore) -> dict[str, object]:
    (row, *_) = json.loads((sample_store.release(1) / "probe.json").read_bytes())["rows"]
    return dict(row)


def read_logged_ids(store: Path) -> list[str]:
    return sorted(parquet_store.read_predictions(store / "predictions" / MODEL)["request_id"].to_pylist())


def read_files(store: Path) -> dict[str, bytes]:
    return {
        path.relative_to(store).as_posix(): path.read_bytes()
        for path in store.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(store).parts)
    }


def read_members(archive: Path) -> dict[str, bytes]:
    with pa.input_stream(str(archive), compression="zstd") as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        return {info.name: file.read() for info in tar if (file := tar.extractfile(info))}


def rewrite(archive: Path, change: Callable[[tarfile.TarInfo, bytes], Iterator[tuple[tarfile.TarInfo, bytes]]]) -> Path:
    """Writes the archive again with other members."""
    target = archive.with_name("changed.tar.zst")
    with (
        pa.input_stream(str(archive), compression="zstd") as source,
        tarfile.open(fileobj=source, mode="r|") as old,
        pa.CompressedOutputStream(str(target), "zstd") as sink,
        tarfile.open(fileobj=sink, mode="w|") as new,
    ):
        for info in old:
            file = old.extractfile(info)
            for entry, content in change(info, file.read() if file else b""):
                entry.size = len(content)
                new.addfile(entry, io.BytesIO(content))
    return target


@pytest.mark.slow
def test_restored_store_is_the_same_although_predictions_were_logged_during_the_backup(
    home: SampleStore, command: Command, tmp_path: Path
) -> None:
    """Same predictions, ledger, keys and log: everything that was written before the backup started."""
    store, archive = home.settings.store, tmp_path / "backups" / "towline.tar.zst"
    row, ledger = sample_row(home), home.ledger.history()
    before = load(home.release(1)).predict([row])
    ended = threading.Event()
    log = PredictionLog(store / "predictions" / MODEL, "w1", convert=False, segment_seconds=0.05)

    def serve() -> None:
        number = 1000
        while not ended.is_set():
            log_predictions(home, range(number, number + 20), log)
            number += 20
            time.sleep(0.005)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        result = command("backup", archive, "--json")
    finally:
        ended.set()
        thread.join()
        log.close()
    assert result.code == 0, result.err
    assert result.json["models"][MODEL]["version"] == 1
    assert archive.stat().st_mode & 0o077 == 0
    for path in list(store.iterdir()):
        subprocess.run(["rm", "-r", path], check=True)

    restored = command("restore", archive, "--json")
    assert restored.code == 0, restored.err
    assert restored.json["models"][MODEL]["rows"] > 0
    assert home.ledger.history() == ledger
    assert load(home.release(1)).predict([row]) == before
    assert {f"r{number}" for number in range(20)} <= set(read_logged_ids(store))
    assert len(read_logged_ids(store)) == len(set(read_logged_ids(store)))
    assert [key["name"] for key in command("keys", "list", "--json").json] == ["shop"]
    assert not (store / "servers").exists()
    assert not (store / "work").exists()
    assert (store / "predictions" / MODEL).stat().st_mode & 0o077 == 0


def test_restore_into_another_folder(home: SampleStore, command: Command, tmp_path: Path) -> None:
    """MLflow's database names the artifacts in the new folder; the original store is unchanged."""
    archive, target, before = tmp_path / "a.tar.gz", tmp_path / "deep" / "rehearsal", read_files(home.settings.store)
    assert command("backup", archive).code == 0
    assert command("restore", archive, "--into", target).code == 0
    with sqlite3.connect(target / "mlflow.db") as database:
        ((artifacts_path,),) = database.execute("SELECT artifact_uri FROM runs").fetchall()
    database.close()
    assert Path(artifacts_path) == target / "artifacts" / "run" / "artifacts"
    assert (Path(artifacts_path) / "model.bin").read_bytes() == before["artifacts/run/artifacts/model.bin"]
    assert read_files(home.settings.store) == before
    assert [entry["model"] for entry in command("models", "--json").json] == [MODEL]


def test_tar_opens_a_backup(home: SampleStore, command: Command, tmp_path: Path) -> None:
    """tar and zstd can read a backup without towline."""
    archive = tmp_path / "a.tar.gz"
    assert command("backup", archive).code == 0
    names = subprocess.run(["tar", "tzf", archive], capture_output=True, text=True, check=True).stdout.splitlines()
    assert names[-1] == "MANIFEST.json"
    assert f"store/releases/{MODEL}/{home.release(1).name}/manifest.json" in names
    folders = {name.split("/")[1] for name in names if name.startswith("store/")}
    assert folders == {"artifacts", "predictions", "releases", "serving"}


def test_changed_member_is_refused(home: SampleStore, command: Command, tmp_path: Path) -> None:
    """One byte of a release differs: the error names the file, and nothing is written."""
    archive, target = tmp_path / "a.tar.zst", tmp_path / "other"
    assert command("backup", archive).code == 0
    name = f"store/releases/{MODEL}/{home.release(1).name}/contract.json"
    changed = rewrite(
        archive, lambda info, content: iter([(info, content.replace(b"r", b"R", 1) if info.name == name else content)])
    )
    for arguments in (("--into", target), ("--verify-only",)):
        result = command("restore", changed, *arguments)
        assert result.code == 6
        assert name in result.err
        assert "sha256" in result.err
    assert not target.exists()
    assert command("restore", archive, "--verify-only").code == 0


def test_truncated_archive_is_refused(home: SampleStore, command: Command, tmp_path: Path) -> None:
    """An incomplete copy is refused."""
    archive = tmp_path / "a.tar.zst"
    assert command("backup", archive).code == 0
    content = archive.read_bytes()
    for size in (10, len(content) // 2, len(content) - 30):
        (tmp_path / "cut.tar.zst").write_bytes(content[:size])
        assert command("restore", tmp_path / "cut.tar.zst", "--into", tmp_path / "other").code == 6
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("kind", ["absolute", "dots", "link", "hard link", "device", "extra", "twice"])
def test_members_outside_the_target_are_refused(kind: str, home: SampleStore, command: Command, tmp_path: Path) -> None:
    """Nothing is written outside the target folder, and no member replaces another one."""
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

    result = command("restore", rewrite(archive, change), "--into", tmp_path / "in" / "other")
    assert result.code == 6, result.err
    assert not list(tmp_path.rglob("evil"))
    assert not (tmp_path / "in").exists()


@pytest.mark.parametrize("suffix", [".tar.zst", ".tar.gz"])
@pytest.mark.parametrize("appended", ["the same backup", "another tar", "text", "zeros"])
def test_archive_with_appended_bytes_is_refused(
    suffix: str, appended: str, home: SampleStore, command: Command, tmp_path: Path
) -> None:
    """A tar ends at its first empty block: content after it means that the archive is damaged."""
    archive = tmp_path / f"a{suffix}"
    assert command("backup", archive).code == 0
    assert command("restore", archive, "--verify-only").code == 0
    if appended == "another tar":
        other_archive = tmp_path / f"other{suffix}"
        with (
            pa.CompressedOutputStream(str(other_archive), "zstd" if suffix == ".tar.zst" else "gzip") as sink,
            tarfile.open(fileobj=sink, mode="w|") as tar,
        ):
            tar.addfile(tarfile.TarInfo("store/evil"))
        tail = other_archive.read_bytes()
    else:
        tail = {"the same backup": archive.read_bytes(), "text": b"appended\n" * 200, "zeros": bytes(4096)}[appended]
    with archive.open("ab") as file:
        file.write(tail)
    for arguments in (("--verify-only",), ("--into", tmp_path / "other")):
        result = command("restore", archive, *arguments)
        assert result.code == 6, result.err
    assert not (tmp_path / "other").exists()


def test_store_that_is_not_empty_needs_force(home: SampleStore, command: Command, tmp_path: Path) -> None:
    """Without --force the error lists the content; with --force that is moved aside completely."""
    store, archive = home.settings.store, tmp_path / "a.tar.zst"
    assert command("backup", archive).code == 0
    home.promote(2)
    log_predictions(home, range(30, 40))
    before = read_files(store)
    result = command("restore", archive)
    assert result.code == 2
    assert all(word in result.err for word in ("ledger.db", "releases", "--force"))
    assert read_files(store) == before

    forced = command("restore", archive, "--force", "--json")
    assert forced.code == 0, forced.err
    champion = home.ledger.champion(MODEL)
    assert champion is not None
    assert champion.version == 1
    assert len(read_logged_ids(store)) == 20
    (aside,) = forced.json["aside"]
    newer = Ledger(f"sqlite:///{aside}/ledger.db").champion(MODEL)
    assert newer is not None
    assert newer.version == 2
    assert len(read_logged_ids(Path(aside))) == 30


def test_restore_into_mounted_folders(
    home: SampleStore, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Renames across mounts fail: previous content is moved aside within the mount, new content is copied."""
    store, archive = home.settings.store, tmp_path / "a.tar.zst"
    assert command("backup", archive).code == 0
    log_predictions(home, range(30, 40))
    folders = (store / "releases", store / "predictions")
    numbers = [folder.stat().st_ino for folder in folders]
    rename = os.rename

    def rename_within_mounts(old: Path, new: Path) -> None:
        mounts = [[folder in Path(path).parents for folder in folders] for path in (old, new)]
        if Path(old) in folders or mounts[0] != mounts[1]:
            raise OSError(errno.EXDEV, "another disk")
        rename(old, new)

    monkeypatch.setattr(placement, "is_mount", lambda path: path in folders)
    monkeypatch.setattr(os, "rename", rename_within_mounts)
    forced = command("restore", archive, "--force", "--json")
    assert forced.code == 0, forced.err
    assert [folder.stat().st_ino for folder in folders] == numbers
    assert len(read_logged_ids(store)) == 20
    assert home.ledger.champion(MODEL) is not None
    aside_folders = [Path(aside) for aside in forced.json["aside"] if Path(aside).parent == folders[1]]
    assert len(aside_folders) == 1
    assert not list(store.rglob(".restore-*"))


@pytest.mark.parametrize("fails", [False, True])
def test_content_moves_to_another_disk_and_back(fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without renames, content is copied; if the block fails, both folders are as before."""
    source, root = tmp_path / "source", tmp_path / "root"
    for file in (source / "releases" / "a" / "file", source / "ledger.db"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("new")
    (root / "releases" / "b").mkdir(parents=True)
    (root / "ledger.db").write_text("old")
    before = read_files(tmp_path)

    def refuse(old: Path, new: Path) -> None:
        raise OSError(errno.EXDEV, "another disk")

    monkeypatch.setattr(os, "rename", refuse)
    with ExitStack() as undo:
        placement.Placement(undo).replace_content(source, root, set())
        assert read_files(root) == {"releases/a/file": b"new", "ledger.db": b"new"}
        assert read_files(source) == {}
        if not fails:
            undo.pop_all()
    assert (read_files(tmp_path) == before) is fails
    assert (root / "releases" / "b").is_dir() is fails


KILL_SCRIPT = """
import os, signal, sys
from towline.operations.backup import create, restore
def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
module, name = sys.argv[1].split(".")
setattr({"create": create, "restore": restore}[module], name, die)
from towline.cli import main
main(sys.argv[2:])
"""


def run_killed(at: str, *arguments: object) -> None:
    line = [sys.executable, "-c", KILL_SCRIPT, at, *map(str, arguments)]
    assert subprocess.run(line, cwd=REPOSITORY, check=False, timeout=60).returncode == -signal.SIGKILL


@pytest.mark.slow
def test_kill_changes_neither_the_store_nor_the_previous_backup(
    home: SampleStore, command: Command, tmp_path: Path
) -> None:
    """A restore killed after unpacking has changed nothing; a killed backup leaves the previous file."""
    store, archive = home.settings.store, tmp_path / "a.tar.zst"
    assert command("backup", archive).code == 0
    previous, before = archive.read_bytes(), read_files(store)
    run_killed("create.is_sqlite", "backup", archive)
    assert archive.read_bytes() == previous
    run_killed("restore.check_probe_rows", "restore", archive, "--force")
    assert read_files(store) == before
    target = tmp_path / "other"
    run_killed("restore.check_probe_rows", "restore", archive, "--into", target)
    assert read_files(target) == {}
    assert list(target.glob(".restore-*"))
    assert command("restore", archive, "--into", target).code == 0
    assert not list(target.glob(".restore*"))
    assert read_logged_ids(target) == read_logged_ids(store)


@pytest.mark.parametrize("mounts", [(), ("releases", "serving")])
def test_an_error_while_files_are_moved_restores_the_previous_content(
    mounts: tuple[str, ...], home: SampleStore, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a disk error between renames the store is as before, also in mounted folders, without temporary files."""
    store, archive = home.settings.store, tmp_path / "a.tar.zst"
    assert command("backup", archive).code == 0
    home.promote(2)
    before, moved = read_files(store), []

    def fail(folder: Path) -> None:
        moved.append(sorted(path.name for path in store.glob("[!.]*")))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(placement, "is_mount", lambda path: path in [store / name for name in mounts])
    monkeypatch.setattr(placement.files, "sync", fail)
    result = command("restore", archive, "--force")
    assert result.code == 5
    assert "No space left on device" in result.err
    assert "releases" in moved[0]
    assert read_files(store) == before
    assert not list(store.rglob(".restore-*"))


def test_restore_is_refused_while_a_service_writes_its_log(home: SampleStore, command: Command, tmp_path: Path) -> None:
    """A restore would replace the log of the running service."""
    archive = tmp_path / "a.tar.zst"
    assert command("backup", archive).code == 0
    log = PredictionLog(home.settings.store / "predictions" / MODEL, "w1", convert=False)
    log_predictions(home, range(1), log)
    try:
        deadline = time.monotonic() + 20
        while not log.written and time.monotonic() < deadline:
            time.sleep(0.01)
        result = command("restore", archive, "--force")
    finally:
        log.close()
    assert result.code == 2
    assert f"a service of {MODEL} uses this store" in result.err


def test_a_damaged_champion_is_reported_and_the_rest_is_backed_up(
    home: SampleStore, command: Command, tmp_path: Path
) -> None:
    """The backup of a store with a damaged champion ends with an error, but has everything else."""
    (home.release(1) / "contract.json").write_text("{}")
    archive = tmp_path / "a.tar.zst"
    result = command("backup", archive)
    assert result.code == 6
    assert f"version 1 of {MODEL}" in result.err
    restored = command("restore", archive, "--into", tmp_path / "other", "--json")
    assert restored.code == 0, restored.err
    assert "was not whole" in restored.json["notes"][0]
    assert len(read_logged_ids(tmp_path / "other")) == 20


def test_backup_without_the_ledger_ends_with_an_error(home: SampleStore, command: Command, tmp_path: Path) -> None:
    """The ledger was lost: the files are backed up, and the exit code reports the loss."""
    home.ledger_file.unlink()
    archive = tmp_path / "a.tar.zst"
    result = command("backup", archive)
    assert result.code == 6
    assert "the ledger was lost" in result.err
    assert command("restore", archive, "--verify-only").code == 0


def test_version_without_a_release_is_not_reported_as_missing(
    home: SampleStore, command: Command, tmp_path: Path
) -> None:
    """A registered version that has no release yet is restored, without a note."""
    home.ledger.register(MODEL, "ann", "trained", {}, "key3")
    result = command("backup", tmp_path / "a.tar.zst", "--json")
    assert result.code == 0, result.err
    assert not [note for note in result.json["notes"] if "version 3" in note]
    assert command("restore", tmp_path / "a.tar.zst", "--into", tmp_path / "other").code == 0
    assert Ledger(f"sqlite:///{tmp_path}/other/ledger.db").state(MODEL, 3) == "registered"


def test_release_with_different_predictions_is_not_restored(
    home: SampleStore, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Digests match, but the model predicts other values on this machine: nothing is restored."""
    from towline.operations.backup import restore

    archive = tmp_path / "a.tar.zst"
    assert command("backup", archive).code == 0

    def fail(model: object) -> int:
        raise ReleaseError("the release answers row 0 of its own probe with 1, it was 2", where="here")

    monkeypatch.setattr(restore, "check_probe_rows", fail)
    assert command("restore", archive, "--into", tmp_path / "other").code == 6
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("backup", "{store}/inside.tar.zst"), "would be written into the data it backs up"),
        (("backup", "{tmp}/a.zip"), "let it end in"),
        (("backup", "{tmp}/a.tar.zst", "--database", "x=mysql://h/d"), "is neither"),
        (("backup", "{tmp}/a.tar.zst", "--database", "x=postgresql://u:pw@h/d"), "can be read by everybody"),
        (("backup", "{tmp}/a.tar.zst", "--folder", "x=/nowhere/at/all"), "there is no folder x"),
        (("restore", "{tmp}/none.tar.zst"), "does not exist"),
    ],
)
def test_invalid_arguments_are_refused(
    arguments: tuple[str, ...], message: str, home: SampleStore, command: Command, tmp_path: Path
) -> None:
    """The error names the problem, and nothing is written."""
    result = command(*(word.format(store=home.settings.store, tmp=tmp_path) for word in arguments))
    assert result.code == 2
    assert message in result.err
    assert not list(tmp_path.glob("*.zst"))


def test_a_store_that_does_not_exist_is_not_backed_up(
    home: SampleStore, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scheduled backup in a wrong folder fails, instead of replacing good backups by an empty one."""
    monkeypatch.setenv("TOWLINE_STORE", str(tmp_path / "elsewhere"))
    result = command("backup", tmp_path / "a.tar.zst")
    assert (result.code, "there is no store" in result.err) == (2, True)
    assert not (tmp_path / "a.tar.zst").exists()


def test_changed_ledger_is_not_backed_up(home: SampleStore, command: Command, tmp_path: Path) -> None:
    """A broken hash chain is reported at the first backup."""
    with sqlite3.connect(home.ledger_file) as database:
        database.execute("UPDATE ledger SET actor = 'eve' WHERE seq = 2")
    database.close()
    result = command("backup", tmp_path / "a.tar.zst")
    assert result.code == 6
    assert f"row 2 of {MODEL}" in result.err
    assert not (tmp_path / "a.tar.zst").exists()


def test_a_backup_with_a_damaged_key_is_not_restored(home: SampleStore, command: Command, tmp_path: Path) -> None:
    """The key is checked before any file is restored."""
    home.settings.layout.ledger_key.write_text("no key")
    assert command("backup", tmp_path / "a.tar.zst").code == 0
    result = command("restore", tmp_path / "a.tar.zst", "--into", tmp_path / "other")
    assert (result.code, "the ledger's key does not hold a key" in result.err) == (6, True)
    assert not (tmp_path / "other").exists()


def test_no_hash_keys_leaves_the_keys_out(home: SampleStore, command: Command, tmp_path: Path) -> None:
    """Without the keys, hashed values in the backup cannot be identified."""
    keys = home.settings.store / "predictions" / MODEL / "hash-keys"
    keys.mkdir(exist_ok=True)
    (keys / "2026-11").write_bytes(b"secret")
    assert command("backup", tmp_path / "a.tar.zst").code == 0
    assert command("backup", tmp_path / "b.tar.zst", "--no-hash-keys").code == 0
    key_files = [
        [name for name in read_members(tmp_path / f"{archive}.tar.zst") if "hash-keys/" in name] for archive in "ab"
    ]
    assert [len(names) for names in key_files] == [1, 0]


def test_additional_folders_are_restored(home: SampleStore, command: Command, tmp_path: Path) -> None:
    """An MLflow server may store artifacts elsewhere; a restore without a target for them is refused."""
    elsewhere, archive = tmp_path / "volume", tmp_path / "a.tar.zst"
    (elsewhere / "1" / ".hidden").mkdir(parents=True)
    (elsewhere / "1" / "model.lock").write_text("content")
    assert command("backup", archive, "--folder", f"artifacts={elsewhere}").code == 0
    result = command("restore", archive, "--into", tmp_path / "other")
    assert (result.code, "--folder artifacts=PATH" in result.err) == (2, True)
    new = tmp_path / "new"
    result = command("restore", archive, "--into", tmp_path / "other", "--folder", f"artifacts={new}")
    assert result.code == 0, result.err
    assert (new / "1" / "model.lock").read_text() == "content"
    assert (new / "1" / ".hidden").is_dir()
    assert not list(new.glob(".restore*"))


def test_restore_is_refused_while_a_server_of_the_store_runs(
    home: SampleStore, command: Command, tmp_path: Path
) -> None:
    """A restore would replace the database of a running server."""
    archive = tmp_path / "a.tar.zst"
    assert command("backup", archive).code == 0
    server = servers.Server(
        kind="mlflow", pid=os.getpid(), start_time=process_start_time(os.getpid()), url="http://127.0.0.1:1"
    )
    (home.settings.store / "servers" / "mlflow.json").write_text(server.model_dump_json())
    result = command("restore", archive, "--force")
    assert result.code == 2
    assert f"process {os.getpid()} (mlflow) uses this store" in result.err
