"""Provenance of a run: the user, the time and the trigger, and its code and config."""

import ast
import functools
import hashlib
import platform
import socket
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

from towline import package_origin
from towline.config import Frozen, PipelineConfig, TrainingConfig, read_config
from towline.errors import TowlineError
from towline.extras import BOOSTING_LIBRARIES
from towline.formatting import shorten_list

_PACKAGE = Path(__file__).parent
_MAX_LISTED = 10


class Commit(NamedTuple):
    """A Git commit; ``missing`` names the run's files that it does not contain. Empty outside a repository."""

    commit: str
    missing: tuple[str, ...]


class Provenance(Frozen):
    """The origin of a run; a tag of everything that it registers.

    Attributes:
        run_key: identifies the run.
        created: when the run began (UTC, ISO 8601).
        actor, host: the user and the machine.
        trigger: why the run was started: manual, schedule, gain, drift, quality or slo.
        as_of: the run ignored later rows (ISO 8601); empty: it used all rows.
        git_commit: commit of the project; empty outside a repository.
        git_dirty: "true" if the commit does not contain all code and the config of the run; empty without a commit.
        git_missing: the files of the run that the commit does not contain.
        code: digest of the code that made the model.
        config: digest of the config.
        towline, python: versions.
    """

    run_key: str
    created: str
    actor: str
    host: str = ""
    trigger: str
    as_of: str = ""
    git_commit: str = ""
    git_dirty: Literal["", "true", "false"] = ""
    git_missing: str = ""
    code: str = ""
    config: str = ""
    towline: str = metadata.version("towline")
    python: str = platform.python_version()

    @property
    def commit_label(self) -> str:
        """The commit, with the suffix ``-dirty`` if it does not contain everything."""
        return self.git_commit + ("-dirty" if self.git_dirty == "true" else "")


def collect_provenance(
    config: PipelineConfig, project: Path, run_key: str, *, actor: str, trigger: str, as_of: datetime | None
) -> Provenance:
    """Determines the origin of a run that begins now.

    Args:
        config: of the run.
        project: the folder of the flows.
        run_key: identifies the run.
        actor: the user.
        trigger: why the run was started.
        as_of: the run ignores later rows.
    """
    commit, missing = find_commit(config, project)
    return Provenance(
        run_key=run_key,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        actor=actor,
        host=socket.gethostname(),
        trigger=trigger,
        as_of=as_of.isoformat() if as_of else "",
        git_commit=commit,
        git_dirty=("true" if missing else "false") if commit else "",
        git_missing=shorten_list(missing, _MAX_LISTED),
        code=code_digest(config, project),
        config=config.digest,
    )


def code_digest(config: TrainingConfig, project: Path) -> str:
    """SHA-256 of the code that makes a model: towline, the project's own code, versions of the libraries."""
    digest = hashlib.sha256()
    for source in sorted({*_PACKAGE.rglob("*.py"), *project_code(config, project)}):
        if "cli" not in source.parts:
            digest.update(f"{source.name}\0".encode() + source.read_bytes())
    libraries = {name: metadata.version(name) for name in ("numpy", "pandas", "scikit-learn")}
    for name, version in sorted((libraries | package_origin.installed_versions(_candidate_packages(config))).items()):
        digest.update(f"{name}=={version}".encode())
    return digest.hexdigest()


def project_code(config: TrainingConfig, project: Path) -> set[Path]:
    """Files of the flows, the tasks and the candidates' modules, and of modules that they import from the project."""
    files = {*(project / "flows").glob("*.py"), *(project / "tasks").glob("*.py")}
    packages, visited, pending = _candidate_packages(config), {"flows", "tasks", "towline"}, [*files]
    while pending or packages:
        for source in pending:
            packages |= _imported_names(source)
        pending = []
        for package in sorted(packages - visited - sys.stdlib_module_names):
            pending += [source for source in package_origin.source_files(package) if source not in files]
        files.update(pending)
        visited |= packages
        packages = set()
    return files


def _candidate_packages(config: TrainingConfig) -> set[str]:
    estimators = [candidate.estimator.partition(".") for candidate in config.candidates]
    functions = [metric.function for metric in config.evaluation.custom]
    functions += [config.prepare.transformer] if config.prepare else []
    if isinstance(config, PipelineConfig):
        functions += [check.function for check in config.gate.custom]
    libraries = {package for package, dot, _ in estimators if dot or package in BOOSTING_LIBRARIES}
    return libraries | {function.partition(".")[0] for function in functions}


def find_commit(config: PipelineConfig, project: Path) -> Commit:
    """The commit of the project, and which code or config of the run it does not contain."""
    commit, top = _git(project, "rev-parse", "HEAD"), _git(project, "rev-parse", "--show-toplevel")
    if not (commit and top):
        return Commit("", ())
    root = Path(top[0])
    changed = [line[3:] for line in _git(root, "status", "--porcelain", "--untracked-files=no") or ()]
    listed = _git(root, "ls-files", "-z", "--", "*.py", "*.yaml", "*.yml") or [""]
    tracked = {root / name for name in listed[0].split("\0") if name}
    untracked = sorted(source.resolve() for source in project_code(config, project) if source.resolve() not in tracked)
    missing = [*changed, *(str(path.relative_to(root) if path.is_relative_to(root) else path) for path in untracked)]
    if not any(_holds_config(path, config) for path in sorted(tracked) if path.suffix in (".yaml", ".yml")):
        missing.append(f"the config of {config.name}")
    return Commit(commit[0], tuple(dict.fromkeys(missing)))


def _holds_config(path: Path, config: PipelineConfig) -> bool:
    """Whether a file contains exactly this config, without overrides."""
    try:
        return config.name in path.read_text(encoding="utf-8") and read_config(path).digest == config.digest
    except (OSError, UnicodeDecodeError, TowlineError):
        return False


def _git(folder: Path, *arguments: str) -> Sequence[str] | None:
    """The output lines of a git command; None if it fails."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        completed = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    return completed.stdout.splitlines() if completed.returncode == 0 else None


def _imported_names(source: Path) -> frozenset[str]:
    """Names of the top-level modules that a file imports; none if it is not readable Python."""
    try:
        status = source.stat()
        return _parse_imports(source, status.st_mtime_ns, status.st_size)
    except (OSError, SyntaxError, ValueError):
        return frozenset()


@functools.lru_cache(maxsize=4096)
def _parse_imports(source: Path, _modified_ns: int, _size: int) -> frozenset[str]:
    """As above. A run asks for the same files several times, and parsing them takes half a second."""
    names = set()
    for node in ast.walk(ast.parse(source.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return frozenset(names)
