"""MLflow's database after its store has moved: where experiments, runs and models say that their files are."""

import contextlib
import sqlite3
from pathlib import Path

from towline.errors import TransientError

# the columns in which MLflow 3 writes down where files lie
_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
)


def relocate(database: Path, old: str, new: str) -> int:
    """Has an SQLite database of MLflow's name ``new`` where it named ``old`` or a folder in it; returns how often.

    Raises:
        TransientError: it cannot be written.
    """
    count = 0
    try:
        with contextlib.closing(sqlite3.connect(database)) as connection, connection:
            for table, column in _PLACES:
                columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
                for prefix in ("", "file://") if column in columns else ():
                    was, now = f"{prefix}{old.rstrip('/')}", f"{prefix}{new.rstrip('/')}"
                    statement = (
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?)"  # noqa: S608 - the names above
                        f" WHERE {column} = ? OR substr({column}, 1, ?) = ?"
                    )
                    given = (now, len(was) + 1, was, len(was) + 1, f"{was}/")
                    count += connection.execute(statement, given).rowcount
    except sqlite3.Error as error:
        raise TransientError(
            f"MLflow's database cannot be written: {error}", where=str(database), remedy="free some disk space"
        ) from None
    return count
