"""What of a run the project's commit holds: its code, wherever that is imported from, and its config."""

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
    line = ["git", "-C", project, "-c", "user.name=ann", "-c", "user.email=a@b", *words]
    subprocess.run(line, check=True, capture_output=True)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose model is a module of its own that imports another module and a package."""
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


def test_the_code_of_a_model_is_all_that_it_imports_from_the_project(project: Path) -> None:
    """Flows, tasks, the candidate's module, what that imports; not numpy, not a module that nobody imports."""
    names = {path.relative_to(project).as_posix() for path in project_code(config(project), project)}
    assert names == {
        "flows/training.py", "tasks/data.py", "own_fares_model.py", "own_fares_helpers.py",
        "own_fares_tables/__init__.py", "own_fares_tables/sums.py",
    }  # fmt: skip


def test_a_change_of_any_of_it_is_another_code(project: Path) -> None:
    """Also of what the model's module merely imports: a run after it is another run."""
    before = code_digest(config(project), project)
    (project / "unrelated.py").write_text("changed = 1\n")
    assert code_digest(config(project), project) == before
    (project / "own_fares_helpers.py").write_text("def scale(): return 2\n")
    assert code_digest(config(project), project) != before


def test_a_commit_that_holds_everything_is_clean(project: Path) -> None:
    """Files that have nothing to do with the run may be untracked."""
    (project / "notes.py").write_text("")
    commit = find_commit(config(project), project)
    assert len(commit.commit) == 40
    assert commit.missing == ()


@pytest.mark.parametrize(
    "name", ["own_fares_model.py", "own_fares_helpers.py", "own_fares_tables/sums.py", "flows/training.py"]
)
def test_code_that_git_does_not_know_is_not_in_the_commit(project: Path, name: str) -> None:
    """Untracked, or ignored: the model is not made of what the commit holds, and the file is named."""
    git(project, "rm", "-q", "--cached", name)
    git(project, "commit", "-qm", "without")
    assert find_commit(config(project), project).missing == (name,)
    (project / ".gitignore").write_text(f"{name}\n")
    git(project, "commit", "-qam", "ignored")
    assert find_commit(config(project), project).missing == (name,)


def test_a_config_that_git_does_not_know_is_not_in_the_commit(project: Path) -> None:
    """Nor is one that was changed on the command line; one under another name, but with the same content, is."""
    clean, changed = config(project), config(project, "seed=7")
    assert find_commit(changed, project).missing == ("the config of fares",)
    git(project, "mv", "configs/fares.yaml", "configs/other.yaml")
    git(project, "commit", "-qm", "moved")
    assert find_commit(clean, project).missing == ()
    git(project, "rm", "-q", "--cached", "configs/other.yaml")
    git(project, "commit", "-qm", "without")
    assert find_commit(clean, project).missing == ("the config of fares",)


def test_a_changed_file_is_named(project: Path) -> None:
    """A tracked file that differs from the commit."""
    (project / "own_fares_model.py").write_text("changed = 1\n")
    assert find_commit(config(project), project).missing == ("own_fares_model.py",)


def test_outside_git_there_is_no_commit(tmp_path: Path) -> None:
    """Nothing is said of what it does not hold."""
    assert find_commit(PipelineConfig.model_validate(RAW), tmp_path) == ("", ())
