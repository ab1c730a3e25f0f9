"""Tables that a command is given as files."""

import difflib
from pathlib import Path

from towline.errors import DataError

_KINDS = (".csv", ".csv.gz", ".parquet", ".pq")


def given_file(file: Path, where: str) -> None:
    """Checks that a table is there; ``where`` is the argument or option that names it.

    Raises:
        DataError: it is not; names files with nearly the same name.
    """
    path = file.absolute()
    if path.is_file():
        return
    if path.is_dir():
        raise DataError(f"{where} is a folder", where=str(path), remedy="give its files one after the other")
    names = [child.name for child in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, [name for name in names if name.lower().endswith(_KINDS)], 3, 0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "paths start at the folder you stand in"
    raise DataError("no such file" if path.parent.is_dir() else "no such folder", where=str(path), remedy=hint)
