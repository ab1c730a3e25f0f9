"""The state of ``towline up`` on a store: its process, the processes that it supervises, and the pages they serve."""

import datetime as dt
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from towline import files
from towline.config import Settings
from towline.operations.process_record import ProcessRecord

ProcessStatus = Literal["runs", "waits", "restarts"]


class SupervisedProcess(ProcessRecord):
    """One process that ``towline up`` keeps running; ``pid`` is 0 while it does not run.

    Attributes:
        name: ``schedules``, or ``service of <model>``.
        status: runs; waits for the first version; restarts after it ended unexpectedly.
        url: its address, if it has one.
        failures: how often in a row it has ended unexpectedly.
        error: the last line that it logged when it ended.
    """

    name: str
    status: ProcessStatus
    url: str = ""
    failures: int = 0
    error: str = ""


class UpState(ProcessRecord):
    """The process of a ``towline up``, as ``StoreLayout.up_state`` holds it.

    Attributes:
        since: when it was started.
        configs: their files.
        models: their names, in the same order.
        api: URL of the API of its Prefect server.
        pages: URLs of the web interfaces, by kind.
        owned: pids, by kind, of the servers that it started and will stop.
        processes: that it supervises.
    """

    since: dt.datetime
    configs: tuple[str, ...]
    models: tuple[str, ...]
    api: str = ""
    pages: Mapping[str, str] = {}
    owned: Mapping[str, int] = {}
    processes: tuple[SupervisedProcess, ...] = ()


def read(settings: Settings) -> UpState | None:
    """The state written by the last ``towline up``, even if it no longer runs."""
    try:
        return UpState.model_validate_json(path(settings).read_bytes())
    except (OSError, ValueError):
        return None


def find_running(settings: Settings) -> UpState | None:
    """The ``towline up`` of this store, if it runs."""
    state = read(settings)
    return state if state is not None and state.is_running else None


def write(settings: Settings, state: UpState) -> None:
    """Writes the state.

    Raises:
        TransientError: the store cannot be written.
    """
    files.write(path(settings), state.model_dump_json(indent=1))


def path(settings: Settings) -> Path:
    return settings.layout.up_state
