"""Relocation changes the artifact paths in MLflow's SQLite database after its store has moved."""

import contextlib
import sqlite3
from pathlib import Path

from towline.errors import TransientError

# the columns that hold artifact paths in MLflow 3
_PATH_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
)


def relocate(database: Path, old: str, new: str) -> int:
    """Replaces the folder ``old`` by ``new`` in all artifact paths; returns the number of changes.

    Raises:
        TransientError: the database cannot be written.
    """
    count = 0
    try:
        with contextlib.closing(sqlite3.connect(database)) as connection, connection:
            for table, column in _PATH_COLUMNS:
                columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
                for prefix in ("", "file://") if column in columns else ():
                    before, after = f"{prefix}{old.rstrip('/')}", f"{prefix}{new.rstrip('/')}"
                    statement = (
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?)"  # noqa: S608 - the names above
                        f" WHERE {column} = ? OR substr({column}, 1, ?) = ?"
                    )
                    values = (after, len(before) + 1, before, len(before) + 1, f"{before}/")
                    count += connection.execute(statement, values).rowcount
    except sqlite3.Error as error:
        raise TransientError(
            f"MLflow's database cannot be written: {error}", where=str(database), remedy="free some disk space"
        ) from None
    return count
