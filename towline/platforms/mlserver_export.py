"""A model folder for MLServer: a release, unchanged, and the ``model-settings.json`` that names its runtime."""

import json
import shutil
import tempfile
from pathlib import Path

from towline.config import Frozen
from towline.errors import ConfigError
from towline.manifest import ReleaseLocation, verify_release

SETTINGS_FILE = "model-settings.json"
RUNTIME = "towline.platforms.mlserver_runtime.TowlineRuntime"


class ModelFolder(Frozen):
    """A folder that MLServer can serve.

    Attributes:
        folder: its path.
        model, version: of the release.
        release: name of the release's folder in it.
        digest: of the release's manifest.
    """

    folder: Path
    model: str
    version: int
    release: str
    digest: str


def export_release(release: ReleaseLocation, folder: Path, *, max_rows: int | None = None) -> ModelFolder:
    """Writes a new folder with a copy of a release and its ``model-settings.json``.

    Args:
        release: the release, and its digest in the ledger.
        folder: where to; it must not exist, or be empty. It appears with all files or not at all.
        max_rows: maximum rows of a request; None: the runtime's default.

    Raises:
        ConfigError: the folder exists and is not empty, or cannot be written.
        ReleaseError: the release differs from its manifest or from the ledger.
    """
    manifest = verify_release(release.directory, release.digest)
    folder = folder.absolute()
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ConfigError(
            "the folder exists and is not empty", where=str(folder), remedy="name a new folder, or remove this one"
        )
    limit = {} if max_rows is None else {"max_rows": max_rows}
    settings = {
        "name": manifest.name,
        "implementation": RUNTIME,
        "platform": "towline",
        "versions": [str(manifest.version)],
        "parameters": {
            "version": str(manifest.version),
            "uri": f"./{manifest.folder}",
            "extra": {"digest": manifest.digest, **limit},
        },
    }
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
            new = Path(temporary) / "new"
            # not the store's modes: MLServer may run as another user
            shutil.copytree(release.directory, new / manifest.folder, copy_function=shutil.copyfile)
            verify_release(new / manifest.folder)
            (new / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
            new.rename(folder)
    except OSError as error:
        raise ConfigError(
            f"cannot write: {error.strerror or error}",
            where=str(folder),
            remedy="name a folder on a disk with space that you may write to",
        ) from error
    return ModelFolder(
        folder=folder,
        model=manifest.name,
        version=manifest.version,
        release=manifest.folder,
        digest=manifest.digest,
    )
