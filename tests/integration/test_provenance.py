"""Provenance: which code and config of a run are in the project's git commit."""

import subprocess
from pathlib import Path

import pytest
import yaml

from towline.config import PipelineConfig, read_config
from towline.provenance import code_digest, find_commit, project_code

RAW = {
    "name": "fares",
    "data": {"source": "fares.csv", "target": "fare"},
    "candidates": [{"estimator": "own_fares_model.Mean"}],
}


def git(project: Path, *words: str) -> None:
    command = ["git", "-C", project, "-c", "user.name=ann", "-c", "user.email=a@b", *words]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose candidate is a module of the project, which imports another module and a package."""
    contents = {
        "flows/training.py": "import tasks.data\n",
        "tasks/data.py": "import json\n",
        "own_fares_model.py": "import numpy\nfrom own_fares_helpers import scale\nimport own_fares_tables.sums\n",
        "own_fares_helpers.py": "def scale(): ...\n",
        "own_fares_tables/__init__.py": "",
        "own_fares_tables/sums.py": "",
        "unrelated.py": "",
        "configs/fares.yaml": yaml.safe_dump(RAW),
        ".gitignore": "ignored/\n",
    }
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "all")
    return tmp_path


def config(project: Path, *overrides: str) -> PipelineConfig:
    return read_config(project / "configs" / "fares.yaml", overrides)


def test_the_code_of_a_run_is_its_imports_from_the_project(project: Path) -> None:
    """Flows, tasks, the candidate's module and its imports; neither numpy nor a module that is not imported."""
    names = {path.relative_to(project).as_posix() for path in project_code(config(project), project)}
    assert names == {
        "flows/training.py", "tasks/data.py", "own_fares_model.py", "own_fares_helpers.py",
        "own_fares_tables/__init__.py", "own_fares_tables/sums.py",
    }  # fmt: skip


def test_a_changed_module_changes_the_code_digest(project: Path) -> None:
    """A change of a module that the candidate's module imports also changes the digest and the run key."""
    before = code_digest(config(project), project)
    (project / "unrelated.py").write_text("changed = 1\n")
    assert code_digest(config(project), project) == before
    (project / "own_fares_helpers.py").write_text("def scale(): return 2\n")
    assert code_digest(config(project), project) != before


def test_a_commit_with_all_files_of_the_run_is_complete(project: Path) -> None:
    """Files that the run does not use may be untracked."""
    (project / "notes.py").write_text("")
    commit = find_commit(config(project), project)
    assert len(commit.commit) == 40
    assert commit.missing == ()


@pytest.mark.parametrize(
    "name", ["own_fares_model.py", "own_fares_helpers.py", "own_fares_tables/sums.py", "flows/training.py"]
)
def test_code_that_is_not_committed_is_named(project: Path, name: str) -> None:
    """An untracked or ignored file of the model is named."""
    git(project, "rm", "-q", "--cached", name)
    git(project, "commit", "-qm", "without")
    assert find_commit(config(project), project).missing == (name,)
    (project / ".gitignore").write_text(f"{name}\n")
    git(project, "commit", "-qam", "ignored")
    assert find_commit(config(project), project).missing == (name,)


def test_a_config_that_is_not_committed_is_named(project: Path) -> None:
    """A config with --set is not in the commit; a file with another name and the same content is."""
    clean, changed = config(project), config(project, "seed=7")
    assert find_commit(changed, project).missing == ("the config of fares",)
    git(project, "mv", "configs/fares.yaml", "configs/other.yaml")
    git(project, "commit", "-qm", "moved")
    assert find_commit(clean, project).missing == ()
    git(project, "rm", "-q", "--cached", "configs/other.yaml")
    git(project, "commit", "-qm", "without")
    assert find_commit(clean, project).missing == ("the config of fares",)


def test_a_changed_file_is_named(project: Path) -> None:
    """A tracked file with uncommitted changes."""
    (project / "own_fares_model.py").write_text("changed = 1\n")
    assert find_commit(config(project), project).missing == ("own_fares_model.py",)


def test_outside_git_there_is_no_commit(tmp_path: Path) -> None:
    """The commit is empty, and no file is named as missing."""
    assert find_commit(PipelineConfig.model_validate(RAW), tmp_path) == ("", ())
