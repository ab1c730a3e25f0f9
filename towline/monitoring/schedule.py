"""Whether ``towline up`` runs on a store, what it keeps going, and what it starts next."""

import datetime as dt
import json
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from towline import files
from towline.config import Frozen, Settings
from towline.errors import Unavailable
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
        owned: kinds of servers that it started, and ends.
        parts: its processes.
    """

    pid: int
    born: str
    since: dt.datetime
    configs: tuple[str, ...]
    models: tuple[str, ...]
    api: str = ""
    pages: Mapping[str, str] = {}
    owned: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()


class Run(NamedTuple):
    """A deployment's neighbouring runs: ``flow`` is training, drift, quality or reaction; None where there is none."""

    flow: str
    model: str
    at: dt.datetime | None
    last: dt.datetime | None
    ended: str


def left(settings: Settings) -> Up | None:
    """What the last ``towline up`` wrote down, whether or not it still runs."""
    try:
        return Up.model_validate_json(path(settings).read_bytes())
    except (OSError, ValueError):
        return None


def running(settings: Settings) -> Up | None:
    """The ``towline up`` of this store, if it runs."""
    up = left(settings)
    return up if up is not None and lives(up.pid, up.born) else None


def write(settings: Settings, up: Up) -> None:
    """Writes it down.

    Raises:
        Unavailable: the store cannot be written.
    """
    files.write(path(settings), up.model_dump_json(indent=1))


def path(settings: Settings) -> Path:
    return settings.store / "watch" / "up.json"


def next_runs(settings: Settings) -> list[Run]:
    """For each flow of each model the next run (``at``), and when and how the last one began and ended.

    Empty when ``towline up`` does not run: then nothing is started.

    Raises:
        Unavailable: the Prefect server does not answer.
    """
    up = running(settings)
    if up is None or not up.api:
        return []
    found = []
    tagged = {"deployments": {"tags": {"all_": [TAG]}, "name": {"any_": list(up.models)}}, "limit": 200}
    flows = {flow["id"]: flow["name"] for flow in _ask(up.api, "flows/filter", tagged)}
    for deployment in _ask(up.api, "deployments/filter", tagged):
        mine = {"deployments": {"id": {"any_": [deployment["id"]]}}, "limit": 1}
        waiting = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}, "sort": "EXPECTED_START_TIME_ASC"}
        begun = {"flow_runs": {"state": {"type": {"not_any_": ["SCHEDULED"]}}}, "sort": "EXPECTED_START_TIME_DESC"}
        coming = _ask(up.api, "flow_runs/filter", mine | waiting)
        last = _ask(up.api, "flow_runs/filter", mine | begun)
        found.append(
            Run(
                flow=flows.get(deployment["flow_id"], ""),
                model=deployment["name"],
                at=_time(coming[0]["expected_start_time"]) if coming else None,
                last=_time(last[0]["start_time"] or last[0]["expected_start_time"]) if last else None,
                ended=last[0]["state_name"] if last else "",
            )
        )
    return sorted(found)


def _ask(api: str, what: str, query: dict[str, Any]) -> list[dict[str, Any]]:
    request = urllib.request.Request(  # noqa: S310 - the address is our own server's
        f"{api}/{what}", json.dumps(query).encode(), {"Content-Type": "application/json"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=20) as answer:
            found: list[dict[str, Any]] = json.load(answer)
    except (OSError, ValueError) as error:
        raise Unavailable(
            f"the Prefect server does not answer: {error}", where=api, remedy="read logs/prefect.log in the store"
        ) from error
    return found


def _time(text: str | None) -> dt.datetime | None:
    return dt.datetime.fromisoformat(text) if text else None
