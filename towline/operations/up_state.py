"""Whether ``towline up`` runs on a store, and what it keeps going."""

import datetime as dt
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from towline import files
from towline.config import Frozen, Settings
from towline.processes import lives

TAG = "towline"  # of every deployment of ours in Prefect

State = Literal["runs", "waits", "restarts"]


class Part(Frozen):
    """One process that ``towline up`` keeps going.

    Attributes:
        name: ``schedules``, or ``service of <model>``.
        state: runs; waits for a first version; restarts after it ended unasked.
        pid, born: of the process; 0 and empty where there is none.
        url: where it answers, if it does.
        failures: how many times it has ended unasked since it last ran well.
        why: what it said last when it ended.
    """

    name: str
    state: State
    pid: int = 0
    born: str = ""
    url: str = ""
    failures: int = 0
    why: str = ""


class Up(Frozen):
    """``watch/up.json``: a ``towline up``.

    Attributes:
        pid, born: of its process.
        since: when it was started.
        configs: the files it was given.
        models: their names, in the same order.
        api: of the Prefect server it works with.
        pages: where the web interfaces are, by kind.
        owned: servers that it started, and ends: their process by kind.
        parts: its processes.
    """

    pid: int
    born: str
    since: dt.datetime
    configs: tuple[str, ...]
    models: tuple[str, ...]
    api: str = ""
    pages: Mapping[str, str] = {}
    owned: Mapping[str, int] = {}
    parts: tuple[Part, ...] = ()


def left(settings: Settings) -> Up | None:
    """What the last ``towline up`` wrote down, whether or not it still runs."""
    try:
        return Up.model_validate_json(path(settings).read_bytes())
    except (OSError, ValueError):
        return None


def find(settings: Settings) -> Up | None:
    """The ``towline up`` of this store, if it runs."""
    up = left(settings)
    return up if up is not None and lives(up.pid, up.born) else None


def write(settings: Settings, up: Up) -> None:
    """Writes it down.

    Raises:
        TransientError: the store cannot be written.
    """
    files.write(path(settings), up.model_dump_json(indent=1))


def path(settings: Settings) -> Path:
    return settings.layout.up_state
