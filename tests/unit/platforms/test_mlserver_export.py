"""`towline export mlserver`: the folder has the unchanged release and settings that name it, or does not exist."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.commands import CommandResult
from tests.support.releases import train_binary
from towline.errors import ConfigError, ReleaseError
from towline.manifest import ReleaseLocation, verify_release
from towline.platforms.mlserver_export import RUNTIME, export_release


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = train_binary(tmp_path_factory.mktemp("binary"))
    return run.settings.store / run.package().path


def test_the_command_writes_the_release_and_its_settings(
    release: Path, tmp_path: Path, command: Callable[..., CommandResult]
) -> None:
    """MLServer gets the exact files of the release, its name, version and digest, and a limit of rows."""
    result = command("export", "mlserver", release, tmp_path / "models" / "house", "--max-rows", "50", "--json")
    assert result.code == 0, result.err
    folder = tmp_path / "models" / "house"
    assert sorted(path.name for path in folder.iterdir()) == ["model-settings.json", release.name]
    manifest = verify_release(folder / release.name)
    assert manifest == verify_release(release)
    assert json.loads((folder / "model-settings.json").read_text()) == {
        "name": "house-value",
        "implementation": RUNTIME,
        "platform": "towline",
        "versions": ["3"],
        "parameters": {
            "version": "3",
            "uri": f"./{release.name}",
            "extra": {"digest": manifest.digest, "max_rows": 50},
        },
    }
    assert result.json["folder"] == str(folder)
    assert list(folder.parent.iterdir()) == [folder]  # no temporary folder


def test_other_users_can_read_the_folder(release: Path, tmp_path: Path) -> None:
    """MLServer's container runs as another user."""
    export_release(ReleaseLocation(release), tmp_path / "folder")
    files = [path for path in (tmp_path / "folder").rglob("*") if path.is_file()]
    assert len(files) > 5
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in files)


def test_a_folder_with_files_is_refused(release: Path, tmp_path: Path) -> None:
    """An export is never mixed with other files; an empty folder is used."""
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path, tmp_path / "file"):
        with pytest.raises(ConfigError, match="exists and is not empty"):
            export_release(ReleaseLocation(release), folder)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    (tmp_path / "empty").mkdir()
    assert export_release(ReleaseLocation(release), tmp_path / "empty").version == 3


def test_a_release_that_is_not_the_ledgers_is_refused(release: Path, tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="the ledger says"):
        export_release(ReleaseLocation(release, "0" * 64), tmp_path / "folder")
    assert not list(tmp_path.iterdir())


def test_an_unknown_model_is_named(tmp_path: Path, command: Callable[..., CommandResult]) -> None:
    result = command("export", "mlserver", "nothing", tmp_path / "folder", "--json")
    assert (result.code, result.json["error"]) == (2, "ConfigError")
    assert not (tmp_path / "folder").exists()
