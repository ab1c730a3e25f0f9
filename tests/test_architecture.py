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


def test_imports_run_one_way() -> None:
    """flows build on tasks, tasks on towline; each vendor has its one importer."""
    command = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([command, "--no-cache"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("vendor", ["mlflow", "great_expectations", "skops", "optuna", "matplotlib", "evidently"])
def test_slow_vendors_are_imported_where_they_are_used(vendor: str) -> None:
    """None is imported at the top of a module, so that no command pays for what it does not use."""
    importers = [
        path.name for path in SOURCES if re.search(rf"^(import|from) {vendor}\b", path.read_text(), re.MULTILINE)
    ]
    assert importers == []


def test_help_loads_no_heavy_library() -> None:
    """Help is fast because it imports none of the heavy libraries."""
    script = "import sys, towline.cli; print(*{name.partition('.')[0] for name in sys.modules})"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"pandas", "numpy", "sklearn", "prefect", "mlflow", "sqlalchemy", "pydantic"} & set(
        result.stdout.split()
    )


def test_modules_stay_small_and_have_names() -> None:
    """No module has more than 600 lines, none is called utils."""
    assert {path.name: n for path in SOURCES if (n := len(path.read_text().splitlines())) > 600} == {}
    assert [path.name for path in SOURCES if path.stem in ("utils", "helpers", "base", "manager", "common")] == []


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_lock_files_are_hashed_and_name_no_registry(name: str) -> None:
    """Every requirement is pinned with hashes; no address is written down."""
    text = (REPOSITORY / name).read_text()
    assert re.search(r"https?://|--(extra-)?index-url|--find-links", text) is None
    pins = re.split(r"\n(?=\S)", text.strip())
    assert [pin for pin in pins if "==" not in pin or "--hash=sha256:" not in pin] == []


def test_the_changelog_knows_the_version() -> None:
    """A version is released with what it changes."""
    from towline import __version__

    assert f"## {__version__}" in (REPOSITORY / "CHANGELOG.md").read_text()


def test_what_tests_share_is_in_support() -> None:
    """No test imports a conftest, another test module or a benchmark; benchmarks take from tests only their support."""
    lines = {
        (path.relative_to(REPOSITORY), line)
        for folder in ("tests", "benchmarks")
        for path in (REPOSITORY / folder).rglob("*.py")
        for line in re.findall(r"^\s*(?:from|import) ((?:tests|benchmarks)\.[\w.]+)", path.read_text(), re.MULTILINE)
    }
    assert lines
    allowed = {"tests": ("tests.support.",), "benchmarks": ("tests.support.", "benchmarks.")}
    assert [(str(path), line) for path, line in sorted(lines) if not line.startswith(allowed[path.parts[0]])] == []
