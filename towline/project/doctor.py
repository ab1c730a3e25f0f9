"""Checks of a setup: the installation, the project, the stores, ports, disk and clocks; each result has its remedy."""

import datetime as dt
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal

import towline
from towline import extras
from towline.config import Frozen, Settings
from towline.config.passwords import mask_passwords
from towline.errors import TowlineError
from towline.http_request import HttpRequestError, send_request
from towline.operations import servers
from towline.project import template
from towline.times import to_utc

MIN_FREE_GB, WARNED_FREE_GB = 1.0, 5.0
MAX_CLOCK_DIFFERENCE_S = 2.0
TIMEOUT_S = 5.0
SERVICE_PORT = 8080  # of `towline serve`

State = Literal["ok", "warning", "error"]


class SetupCheck(Frozen):
    """The result of one check; ``remedy`` is empty if no action is needed."""

    name: str
    state: State
    detail: str
    remedy: str = ""


def check_setup(settings: Settings) -> list[SetupCheck]:
    """Runs all checks; a check that fails unexpectedly is reported as an error."""
    checks: tuple[Callable[[Settings], Iterator[SetupCheck]], ...] = (
        _check_python, _check_packages, _check_project, _check_disk, _check_ledger, _check_servers, _check_ports,
        _check_clock,
    )  # fmt: skip
    results = []
    for check in checks:
        name = check.__name__.removeprefix("_check_")
        try:
            results += list(check(settings))
        except TowlineError as error:
            results.append(SetupCheck(name=name, state="error", detail=error.what, remedy=error.remedy))
        except OSError as error:
            results.append(SetupCheck(name=name, state="error", detail=str(error), remedy="check the file or folder"))
    return results


def _check_python(_settings: Settings) -> Iterator[SetupCheck]:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    detail = f"Python {version}, towline {towline.__version__} in {Path(towline.__file__).parent}"
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        yield SetupCheck(name="python", state="ok", detail=detail)
    else:
        remedy = "make a virtual environment with Python 3.11, 3.12 or 3.13"
        yield SetupCheck(name="python", state="error", detail=detail, remedy=remedy)


def _check_packages(_settings: Settings) -> Iterator[SetupCheck]:
    for extra, modules in extras.EXTRAS.items():
        missing = [module for module in modules if not extras.is_installed(module)]
        detail = f"missing: {', '.join(missing)}" if missing else f"{len(modules)} packages"
        is_needed = bool(missing) and extra in extras.COMMON
        remedy = f"pip install 'towline[{extra}]'" if is_needed else ""
        yield SetupCheck(name=f"extra {extra}", state="warning" if is_needed else "ok", detail=detail, remedy=remedy)
    wrong = sorted(_wrong_versions())
    if wrong:
        remedy = "pip install --upgrade 'towline[all]'"
        yield SetupCheck(name="versions", state="error", detail="; ".join(wrong), remedy=remedy)
    else:
        yield SetupCheck(name="versions", state="ok", detail="all installed packages have a supported version")


def _wrong_versions() -> Iterator[str]:
    """Installed packages outside the bounds of towline and of its installed extras."""
    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(line) for line in metadata.requires("towline") or ()]
    except metadata.PackageNotFoundError:
        return
    installed = [extra for extra, modules in extras.EXTRAS.items() if all(map(extras.is_installed, modules))]
    environments = [{"extra": extra} for extra in ("", *extras.COMMON, *installed, *extras.BOOSTING_LIBRARIES)]
    for requirement in requirements:
        if requirement.name == "towline":
            continue
        if requirement.marker and not any(requirement.marker.evaluate(names) for names in environments):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            continue  # reported with its extra
        if not requirement.specifier.contains(version, prereleases=True):
            yield f"{requirement.name} {version} is not {requirement.specifier}"


def _check_project(settings: Settings) -> Iterator[SetupCheck]:
    name, project = "project", settings.project
    if not template.has_project(project):
        remedy = "towline init DATA --target COLUMN creates one here; or run the command in a project"
        yield SetupCheck(name=name, state="warning", detail=f"{project} has no flows", remedy=remedy)
        return
    record = template.read_record(project)
    if record is None:
        yield SetupCheck(name=name, state="ok", detail=f"{project}, not made by towline init")
        return
    states: dict[str, list[str]] = {}
    for item in template.compare_project(project, record):
        states.setdefault(item.state, []).append(item.path)
    made = f"{project}, made by towline {record.version}"
    if older := [*states.get("outdated", ()), *states.get("missing", ())]:
        detail = f"{made}; older than the library or missing: {', '.join(older[:5])}"
        yield SetupCheck(name=name, state="warning", detail=detail, remedy="towline init --update")
    elif (edited := states.get("edited")) and record.version != towline.__version__:
        detail = f"{made}; edited by you, and perhaps older than the library: {', '.join(edited[:5])}"
        remedy = "towline init --update writes the library's files next to them"
        yield SetupCheck(name=name, state="warning", detail=detail, remedy=remedy)
    else:
        yield SetupCheck(name=name, state="ok", detail=made)


def _check_disk(settings: Settings) -> Iterator[SetupCheck]:
    folder = next(path for path in (settings.store, *settings.store.parents) if path.is_dir())
    if not os.access(folder, os.W_OK):
        remedy = "give this user write access, or set TOWLINE_STORE to another folder"
        yield SetupCheck(name="store", state="error", detail=f"{folder} cannot be written", remedy=remedy)
        return
    free = shutil.disk_usage(folder).free / 2**30
    detail = f"{settings.store}, {free:,.1f} GB free"
    if free < WARNED_FREE_GB:
        state: State = "error" if free < MIN_FREE_GB else "warning"
        remedy = "free disk space, or set TOWLINE_STORE to a folder on another disk"
        yield SetupCheck(name="store", state=state, detail=detail, remedy=remedy)
    else:
        yield SetupCheck(name="store", state="ok", detail=detail)


def _check_ledger(settings: Settings) -> Iterator[SetupCheck]:
    from towline.registry.ledger import open_ledger

    if (
        settings.ledger_url.startswith("sqlite:///")
        and not Path(settings.ledger_url.removeprefix("sqlite:///")).exists()
    ):
        yield SetupCheck(name="ledger", state="ok", detail="does not exist yet; the first run creates it")
        return
    ledger = open_ledger(settings)
    ledger.verify()
    models = ", ".join(ledger.models()) or "none"
    yield SetupCheck(name="ledger", state="ok", detail=f"its hash chain is intact; models: {models}")


def _check_servers(settings: Settings) -> Iterator[SetupCheck]:
    """The servers that settings name; those of this machine start when they are needed."""
    remote = {
        "prefect": ("PREFECT_API_URL", os.environ.get("PREFECT_API_URL", "")),
        "mlflow": ("TOWLINE_TRACKING_URI", settings.tracking_uri),
    }
    for name, (variable, url) in remote.items():
        if not url.startswith(("http://", "https://")):
            continue
        try:
            status = send_request(url.rstrip("/") + "/health", TIMEOUT_S).status
        except HttpRequestError as error:
            remedy = f"start the server, or correct {variable}"
            detail = f"{mask_passwords(url)} does not answer: {error}"
            yield SetupCheck(name=name, state="error", detail=detail, remedy=remedy)
            continue
        detail = f"{mask_passwords(url)} answers with {status}"
        yield SetupCheck(name=name, state="ok" if status < 500 else "warning", detail=detail)


def _check_ports(settings: Settings) -> Iterator[SetupCheck]:
    running = {kind: server.url for kind in servers.PORTS if (server := servers.find_server(settings, kind))}
    busy = [f"{kind} {port}" for kind, port in servers.PORTS.items() if kind not in running and not _is_free(port)]
    if busy:
        detail = f"used by another program: {', '.join(busy)}; these servers will take another port"
    else:
        detail = ", ".join(f"{kind}: {url}" for kind, url in running.items()) or "free"
    yield SetupCheck(name="ports", state="ok", detail=detail)
    if not _is_free(SERVICE_PORT):
        remedy = "if it is not your service: towline serve NAME --port 0"
        detail = f"port {SERVICE_PORT} of `towline serve` is used"
        yield SetupCheck(name="service port", state="warning", detail=detail, remedy=remedy)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _check_clock(settings: Settings) -> Iterator[SetupCheck]:
    """Compares the clock of this machine with that of the store's disk, and with the newest row of the ledger."""
    folder = next(path for path in (settings.store, *settings.store.parents) if path.is_dir())
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".towline-clock-") as file:
        file.write(b"1")
        file.flush()
        difference = Path(file.name).stat().st_mtime - time.time()
    remedy = "synchronize the clocks, e.g. with chrony"
    if abs(difference) > MAX_CLOCK_DIFFERENCE_S:
        detail = f"the store's disk is {difference:+.0f} s from this machine"
        yield SetupCheck(name="clock", state="error", detail=detail, remedy=remedy)
        return
    newest = _newest_ledger_row(settings)
    now = dt.datetime.now(dt.UTC)
    if newest is not None and newest - now > dt.timedelta(seconds=MAX_CLOCK_DIFFERENCE_S):
        detail = f"it is {now:%Y-%m-%d %H:%M:%S} UTC here; the newest row of the ledger: {newest:%Y-%m-%d %H:%M:%S}"
        yield SetupCheck(name="clock", state="error", detail=detail, remedy=remedy)
    else:
        yield SetupCheck(name="clock", state="ok", detail=f"{now:%Y-%m-%d %H:%M:%S} UTC, equal to that of the disk")


def _newest_ledger_row(settings: Settings) -> dt.datetime | None:
    from towline.registry.ledger import open_ledger

    if (
        settings.ledger_url.startswith("sqlite:///")
        and not Path(settings.ledger_url.removeprefix("sqlite:///")).exists()
    ):
        return None
    times = [dt.datetime.fromisoformat(row.time) for row in open_ledger(settings).history()]
    return to_utc(max(times, default=None))
