"""The files that commands leave in the folder they start in."""

import os
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from towline.cli import main

CONFIG = {"name": "taxis", "data": {"source": "taxis.csv", "target": "fare"}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is no project, with a table and a config; commands run in it."""
    for name in [name for name in os.environ if name.startswith(("TOWLINE_", "PREFECT_"))]:
        monkeypatch.delenv(name)
    (tmp_path / "strange").mkdir()
    monkeypatch.chdir(tmp_path / "strange")
    Path("taxis.csv").write_text("miles,fare\n1,2\n")
    Path("taxis.yaml").write_text(yaml.safe_dump(CONFIG))
    return tmp_path / "strange"


@pytest.mark.parametrize(
    "words",
    [
        "models", "history", "status", "show taxis", "keys list", "log show taxis", "slo taxis.yaml", "config schema",
        "ui --stop", "run taxis.yaml", "quality taxis.yaml", "drift taxis.yaml --current taxis.csv",
        "labels add taxis taxis.csv", "score taxis.csv scored.csv", "rollback taxis", "run taxis.csv",
        "replay taxis.yaml --from 2026-01-01 --to 2026-02-01",
    ],
)  # fmt: skip
def test_a_folder_without_a_project_is_not_changed(words: str, folder: Path) -> None:
    """Commands that only read, or that end with an error, create no store there."""
    result = CliRunner().invoke(main, words.split(), prog_name="towline")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert sorted(path.name for path in folder.iterdir()) == ["taxis.csv", "taxis.yaml"], result.stderr
