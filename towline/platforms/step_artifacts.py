"""The exchange of files between the steps of a pipeline on another platform: a folder for each step, its *artifact*.

An artifact holds the result of its step as JSON, and the files that the step added to the store: those of the
workspace, the snapshot of the dataset, and the release. A later step runs on another machine. It copies the artifacts
that it needs into its store, which restores the workspace of the earlier steps.
"""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from towline.data.workspace import Workspace

RESULT = "result.json"
_STORE = "store"
_LOCKS = {"lock", "register.lock"}

Record = TypeVar("Record", bound=BaseModel)
#: path within the store → time of the last change (ns) and size
Listing = Mapping[Path, tuple[int, int]]


def read_result(artifact: Path, kind: type[Record]) -> Record:
    """The result of a step."""
    return kind.model_validate_json((artifact / RESULT).read_bytes())


def write_result(artifact: Path, result: BaseModel) -> None:
    artifact.mkdir(parents=True, exist_ok=True)
    (artifact / RESULT).write_text(result.model_dump_json(indent=1), encoding="utf-8")


def restore_files(artifact: Path, store: Path) -> None:
    """Copies the files of an artifact into a store. Snapshots and releases never change: they are not replaced."""
    source = artifact / _STORE
    for path in _files(source):
        target = store / path
        if path.parts[0] == "work" or not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.restored")
            shutil.copy2(source / path, temporary)
            temporary.replace(target)


def list_files(work: Workspace) -> Listing:
    """The files of a workspace, to find those that a step adds."""
    folder = work.path.relative_to(work.store)
    return {folder / path: _state(work.path / path) for path in _files(work.path)}


def save_files(artifact: Path, work: Workspace, before: Listing, *further: str) -> None:
    """Copies the files that a step has added or changed in the workspace into an artifact.

    Args:
        artifact: of the step.
        work: the workspace.
        before: its files when the step began.
        further: files or folders of the store that the step has written, as paths within it.
    """
    paths = [path for path, state in list_files(work).items() if before.get(path) != state]
    for name in further:
        path = work.store / name
        paths += [Path(name) / inner for inner in _files(path)] if path.is_dir() else [Path(name)]
    for path in paths:
        target = artifact / _STORE / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(work.store / path, target)


def _files(folder: Path) -> Iterator[Path]:
    """The files below a folder, relative to it; no locks, which belong to processes."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in _LOCKS:
            yield path.relative_to(folder)


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size
