"""Which code and which config make a model, and whether the project's commit holds them."""

import ast
import hashlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from towline import origins
from towline.config import PipelineConfig, read_config
from towline.errors import TowlineError

_OURS = Path(__file__).parent
_INSTALLED = {"site-packages", "dist-packages"}


class Commit(NamedTuple):
    """A commit, empty outside git; and what it does not hold of a run: changed or untracked files, the config."""

    commit: str
    missing: tuple[str, ...]


def code_digest(config: PipelineConfig, project: Path) -> str:
    """Digest of the code that makes the model: towline, the project's own code, the libraries."""
    digest = hashlib.sha256()
    for source in sorted({*_OURS.rglob("*.py"), *project_code(config, project)}):
        if "cli" not in source.parts:
            digest.update(f"{source.name}\0".encode() + source.read_bytes())
    packages = {one.estimator.partition(".")[0] for one in config.candidates if "." in one.estimator}
    libraries = {name: metadata.version(name) for name in ("numpy", "pandas", "scikit-learn")}
    for name, version in sorted((libraries | origins.installed_versions(packages)).items()):
        digest.update(f"{name}=={version}".encode())
    return digest.hexdigest()


def project_code(config: PipelineConfig, project: Path) -> set[Path]:
    """Files of the flows, the tasks, the candidates' modules, and of what these import that is not installed."""
    files = {*(project / "flows").glob("*.py"), *(project / "tasks").glob("*.py")}
    names = {one.estimator.partition(".")[0] for one in config.candidates if "." in one.estimator}
    pending, seen = [*files], {"flows", "tasks", "towline"}
    while pending or names:
        for source in pending:
            names |= set(_imported_names(source))
        pending = []
        for name in sorted(names - seen - sys.stdlib_module_names):
            pending += [source for source in _module_files(name) if source not in files]
        files.update(pending)
        seen |= names
        names = set()
    return files


def find_commit(config: PipelineConfig, project: Path) -> Commit:
    """The commit of the project, and what of this run's code and config is not in it."""
    head, top = _git(project, "rev-parse", "HEAD"), _git(project, "rev-parse", "--show-toplevel")
    if not (head and top):
        return Commit("", ())
    root = Path(top[0])
    changed = [line[3:] for line in _git(root, "status", "--porcelain", "--untracked-files=no") or ()]
    listed = _git(root, "ls-files", "-z", "--", "*.py", "*.yaml", "*.yml") or [""]
    tracked = {root / name for name in listed[0].split("\0") if name}
    untracked = sorted(source.resolve() for source in project_code(config, project) if source.resolve() not in tracked)
    missing = [*changed, *(str(one.relative_to(root) if one.is_relative_to(root) else one) for one in untracked)]
    if not any(_holds_config(path, config) for path in sorted(tracked) if path.suffix in (".yaml", ".yml")):
        missing.append(f"the config of {config.name}")
    return Commit(head[0], tuple(dict.fromkeys(missing)))


def _holds_config(path: Path, config: PipelineConfig) -> bool:
    """Whether a file is this very config, without overrides."""
    try:
        return config.name in path.read_text(encoding="utf-8") and read_config(path).digest == config.digest
    except (OSError, UnicodeDecodeError, TowlineError):
        return False


def _git(folder: Path, *words: str) -> Sequence[str] | None:
    """Lines of git's answer; None where it has none."""
    line = ["git", "-C", str(folder), *words]
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    return done.stdout.splitlines() if done.returncode == 0 else None


def _imported_names(source: Path) -> Iterator[str]:
    """Names of the top-level modules that a file imports."""
    try:
        tree = ast.parse(source.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def _module_files(name: str) -> list[Path]:
    """The files of a module or a package, none where it is installed or cannot be found."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    if spec.submodule_search_locations is not None:
        folders = [Path(folder) for folder in spec.submodule_search_locations]
        return [path for folder in folders if not _INSTALLED & {*folder.parts} for path in folder.rglob("*.py")]
    origin = Path(spec.origin or "")
    return [origin] if origin.suffix == ".py" and not _INSTALLED & {*origin.parts} else []
