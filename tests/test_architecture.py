"""The structure that ARCHITECTURE.md describes."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY

SOURCES = [path for room in ("towline", "tasks", "flows") for path in (REPOSITORY / room).rglob("*.py")]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def test_import_contracts_hold() -> None:
    """Flows import tasks, tasks import towline; each external library is imported by one package only."""
    command = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([command, "--no-cache"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("vendor", ["mlflow", "great_expectations", "skops", "optuna", "matplotlib", "evidently"])
def test_slow_libraries_are_imported_only_where_they_are_used(vendor: str) -> None:
    """No module imports them at the top, so that no command loads a library that it does not use."""
    importers = [
        path.name for path in SOURCES if re.search(rf"^(import|from) {vendor}\b", path.read_text(), re.MULTILINE)
    ]
    assert importers == []


def test_help_loads_no_heavy_library() -> None:
    """Help is fast because it imports none of them."""
    script = "import sys, towline.cli; print(*{name.partition('.')[0] for name in sys.modules})"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"pandas", "numpy", "sklearn", "prefect", "mlflow", "sqlalchemy", "pydantic"} & set(
        result.stdout.split()
    )


def test_modules_are_small_and_not_called_utils() -> None:
    """No module has more than 600 lines, and none is called utils."""
    assert {path.name: n for path in SOURCES if (n := len(path.read_text().splitlines())) > 600} == {}
    assert [path.name for path in SOURCES if path.stem in ("utils", "helpers", "base", "manager", "common")] == []


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_lock_files_are_hashed_and_name_no_registry(name: str) -> None:
    """Every requirement is pinned with hashes, and no address is in a lock file."""
    text = (REPOSITORY / name).read_text()
    assert re.search(r"https?://|--(extra-)?index-url|--find-links", text) is None
    pins = re.split(r"\n(?=\S)", text.strip())
    assert [pin for pin in pins if "==" not in pin or "--hash=sha256:" not in pin] == []


def test_the_changelog_has_the_current_version() -> None:
    """The changes of the current version are in the changelog."""
    from towline import __version__

    assert f"## {__version__}" in (REPOSITORY / "CHANGELOG.md").read_text()


def test_shared_code_of_tests_is_in_support() -> None:
    """No test imports a conftest, another test module or a benchmark; benchmarks import only tests/support."""
    lines = {
        (path.relative_to(REPOSITORY), line)
        for folder in ("tests", "benchmarks")
        for path in (REPOSITORY / folder).rglob("*.py")
        for line in re.findall(r"^\s*(?:from|import) ((?:tests|benchmarks)\.[\w.]+)", path.read_text(), re.MULTILINE)
    }
    assert lines
    allowed = {"tests": ("tests.support.",), "benchmarks": ("tests.support.", "benchmarks.")}
    assert [(str(path), line) for path, line in sorted(lines) if not line.startswith(allowed[path.parts[0]])] == []
