"""The template of a project: the flows, tasks and deployment files of this repository, which the wheel holds too.

``write_project`` copies them into a folder, with the model's name instead of the sample's, and records their digests.
``compare_project`` and ``update_project`` use this record to distinguish an edited file from one that is older
than the installed library.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import towline
from towline import files
from towline.config import Frozen
from towline.errors import ConfigError

RECORD = ".towline-project.json"
_MODE = 0o644  # these files are for version control
#: paths in the repository; in the wheel they are below ``towline/project/template``, as pyproject.toml says
PATHS = (
    "flows",
    "tasks",
    "deployments/ci",
    "deployments/kubernetes/base",
    "deployments/kubernetes/overlays/production",
    "deployments/kubernetes/overlays/staging",
    "deployments/prefect.yaml",
    ".gitignore",
)

_README = """# {name}

A project of towline, made by `towline init`.

| | |
|---|---|
| `configs/` | what each pipeline does: one YAML file a pipeline |
| `flows/` | the order of the steps: training, drift, quality, scoring |
| `tasks/` | the steps, each with one call into towline |
| `deployments/` | a Prefect deployment, CI workflows to copy, and the Kustomize files that they apply |
| `mlruns/` | the store: runs, releases, predictions; not in git |

```
pip install -r requirements.txt
towline doctor  # check the installation and this project
towline validate configs/{config}  # check the config and the table
towline run configs/{config}  # train, evaluate, promote
towline serve {name}  # predict over HTTP
towline up configs/{config}  # serve and monitor
```

The files of `flows/` and `tasks/` are yours to edit. After an upgrade of towline, `towline init --update` replaces
those that you have not edited.
"""
# the sample's name and the commands of the repository's Makefile, and their replacements in a project
_INSTALL = "python3 -m venv .venv && .venv/bin/pip install -r requirements.txt"
_REPLACED = {
    "make check": _INSTALL,
    "make env": _INSTALL,
    ".venv/bin/pytest tests/unit": ".venv/bin/towline doctor",
    ", source: data/bike_hourly.parquet": "",  # a run names the rows that it scores
}


class ProjectRecord(Frozen):
    """What ``towline init`` wrote: the library's version, the names that were put in, and the digest of each file."""

    version: str
    name: str
    config: str
    files: dict[str, str]


class ProjectFile(NamedTuple):
    """A file of a project compared with the template of the installed library."""

    path: str
    state: Literal["current", "outdated", "edited", "missing"]


def template_folder() -> Path:
    """The folder of the template: in an installed wheel a part of the package, in a checkout the repository."""
    packaged = Path(__file__).parent / "template"
    return packaged if packaged.is_dir() else Path(towline.__file__).parents[1]


def read_template(name: str, config: str) -> Iterator[tuple[str, str]]:
    """Each file of a project as (path, text).

    Args:
        name: of the model.
        config: file name of its config in ``configs/``.

    Raises:
        ConfigError: the installation has no template.
    """
    root = template_folder()
    replaced = {"bike-demand": name, "bike_demand.yaml": config, **_REPLACED}
    for part in PATHS:
        top = root / part
        if not top.exists():
            raise ConfigError(
                "the installed towline has no project template", where=str(top), remedy="install towline from its wheel"
            )
        paths = sorted(top.rglob("*")) if top.is_dir() else [top]
        for path in paths:
            if not path.is_file() or "__pycache__" in path.parts:
                continue
            text = path.read_text(encoding="utf-8")
            if part.startswith("deployments"):
                for old, new in replaced.items():
                    text = text.replace(old, new)
            yield path.relative_to(root).as_posix(), text
    yield "README.md", _README.format(name=name, config=config)
    yield "requirements.txt", f"towline[all]=={towline.__version__}\n"


def has_project(folder: Path) -> bool:
    """Whether a folder is a project."""
    return (folder / "flows" / "training.py").is_file()


def write_project(folder: Path, name: str, config: str) -> tuple[list[str], list[str]]:
    """Writes the files of a project; files that exist are not changed.

    Returns:
        The paths that were written, and those that existed.

    Raises:
        TransientError: the folder cannot be written.
    """
    written, existing, digests = [], [], {}
    for path, text in read_template(name, config):
        target = folder / path
        if target.exists():
            existing.append(path)
            continue
        files.write(target, text, 0o755 if path.endswith(".sh") else _MODE)
        written.append(path)
        digests[path] = _digest(text)
    record = ProjectRecord(version=towline.__version__, name=name, config=config, files=digests)
    files.write(folder / RECORD, json.dumps(record.model_dump(), indent=1) + "\n", _MODE)
    return written, existing


def read_record(folder: Path) -> ProjectRecord | None:
    """The record of a project; None if ``towline init`` did not make it."""
    try:
        return ProjectRecord.model_validate_json((folder / RECORD).read_bytes())
    except (OSError, ValueError):
        return None


def compare_project(folder: Path, record: ProjectRecord) -> list[ProjectFile]:
    """Compares the flows and tasks of a project with the installed template."""
    compared = []
    for path, text in read_template(record.name, record.config):
        if not path.startswith(("flows/", "tasks/")):
            continue
        current = folder / path
        if not current.is_file():
            compared.append(ProjectFile(path, "missing"))
            continue
        digest = _digest(current.read_text(encoding="utf-8"))
        if digest == _digest(text):
            state: Literal["current", "outdated", "edited"] = "current"
        else:
            state = "outdated" if digest == record.files.get(path) else "edited"
        compared.append(ProjectFile(path, state))
    return compared


def update_project(folder: Path) -> tuple[list[str], list[str]]:
    """Replaces unedited flows and tasks by those of the installed library.

    Edited files are not changed; the library's file is written next to them as ``NAME.new``.

    Returns:
        The paths that were replaced or added, and those that were edited.

    Raises:
        ConfigError: ``towline init`` did not make this project.
    """
    record = read_record(folder)
    if record is None:
        raise ConfigError(
            "this is not a project that `towline init` made",
            where=str(folder),
            remedy=f"restore {RECORD} from version control, or copy flows/ and tasks/ from a new project",
        )
    states = {item.path: item.state for item in compare_project(folder, record)}
    template, digests = dict(read_template(record.name, record.config)), dict(record.files)
    replaced = [path for path, state in states.items() if state in ("outdated", "missing")]
    edited = [
        path for path, state in states.items() if state == "edited" and _digest(template[path]) != digests.get(path)
    ]
    for path in replaced:
        files.write(folder / path, template[path], _MODE)
        digests[path] = _digest(template[path])
    for path in edited:
        files.write(folder / f"{path}.new", template[path], _MODE)
        digests[path] = _digest(template[path])
    updated = record.model_copy(update={"version": towline.__version__, "files": digests})
    files.write(folder / RECORD, json.dumps(updated.model_dump(), indent=1) + "\n", _MODE)
    return replaced, edited


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
