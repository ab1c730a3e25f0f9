"""Checks the files of tables that a command gets as arguments."""

import difflib
from pathlib import Path

from towline.errors import DataError

_KINDS = (".csv", ".csv.gz", ".parquet", ".pq")


def check_file(file: Path, where: str) -> None:
    """Checks that a file exists; ``where`` is the argument or option that names it.

    Raises:
        DataError: it does not exist; suggests files with similar names.
    """
    path = file.absolute()
    if path.is_file():
        return
    if path.is_dir():
        raise DataError(f"{where} is a folder", where=str(path), remedy="run the command for each of its files")
    names = [child.name for child in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, [name for name in names if name.lower().endswith(_KINDS)], 3, 0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "a relative path starts at the current folder"
    raise DataError("no such file" if path.parent.is_dir() else "no such folder", where=str(path), remedy=hint)
