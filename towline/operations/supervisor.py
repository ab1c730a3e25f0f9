"""The supervisor behind ``towline up``: starts servers, scheduler and services of a store, and restarts those that end.

The servers (``servers.py``) run on their own and may be shared with other commands. The scheduler and the services are
child processes: they end with the supervisor, however it ends. One that fails is restarted after 1, 2, 4 … seconds.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import NoReturn, get_args

from towline.config import PipelineConfig, Settings, read_config
from towline.errors import ConfigError, TowlineError
from towline.monitoring import integrity_check, service_check
from towline.operations import servers, up_state
from towline.operations.process_record import ProcessRecord
from towline.operations.up_state import SupervisedProcess, UpState
from towline.processes import process_start_time

SCHEDULES = "schedules"
_POLL_S = 0.5
_STABLE_AFTER_S = 60.0  # after this many seconds the failures of a process are reset
_MAX_BACKOFF_S = 60.0
_SERVER_ATTEMPTS = 3
_MLFLOW_CHECK_S = 20.0  # two checks in a row show a difference within a minute
_MLFLOW_REPAIR_S = 300.0  # between two repairs of the same differences, and between checks that must import MLflow
_STOP_TIMEOUT_S = 40.0


class _StopRequested(Exception):
    """SIGTERM or SIGINT has arrived."""


@dataclass
class ManagedProcess:
    """A child process that is restarted when it ends.

    Attributes:
        name: as ``towline up`` and ``towline status`` show it.
        command: a module and its arguments.
        log: the file that gets its output.
        url: its address, if it has one.
        enabled: whether it should run; a service waits for the first version of its model.
        process: the running process; None while it does not run.
        started: when it was last started, or has last ended, on the monotonic clock.
        failures: how often in a row it has ended.
        error: the last line that it logged when it ended.
    """

    name: str
    command: Sequence[str]
    log: Path
    url: str = ""
    enabled: bool = True
    process: "subprocess.Popen[bytes] | None" = None
    started: float = 0.0
    failures: int = 0
    error: str = ""
    _log_offset: int = field(default=0, repr=False)

    def is_due(self) -> bool:
        backoff = min(_MAX_BACKOFF_S, 2.0 ** (self.failures - 1)) if self.failures else 0.0
        return self.enabled and self.process is None and time.monotonic() >= self.started + backoff

    def start(self, settings: Settings, environment: dict[str, str]) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._log_offset = self.log.stat().st_size if self.log.exists() else 0
        self.process = _start_child(self.command, self.log, settings, environment)
        self.started = time.monotonic()

    def poll(self) -> int | None:
        """The exit code, once, if the process has ended; resets the failures of one that runs stably."""
        if self.process is None or (code := self.process.poll()) is None:
            if self.failures and self.process and time.monotonic() - self.started > _STABLE_AFTER_S:
                self.failures, self.error = 0, ""
            return None
        self.process, self.failures, self.started = None, self.failures + 1, time.monotonic()
        self.error = self._last_line() if code > 0 else ""  # a killed process logs no reason
        return code

    def _last_line(self) -> str:
        try:
            with self.log.open("rb") as log:
                log.seek(self._log_offset)
                lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        except OSError:
            return ""
        return ([line for line in lines if line.startswith("error ")] or lines or [""])[-1][:300]

    def record(self) -> SupervisedProcess:
        pid = self.process.pid if self.process else 0
        status: up_state.ProcessStatus = "runs" if pid else "restarts" if self.enabled else "waits"
        return SupervisedProcess(
            name=self.name,
            status=status,
            pid=pid,
            start_time=process_start_time(pid) if pid else "",
            url=self.url,
            failures=self.failures,
            error=self.error,
        )


class Supervisor:
    """Runs everything of a store until a stop signal.

    Args:
        settings: where the store and the project are.
        paths: of the configs.
        configs: their current content.
        ports: of each model's service; empty for none.
        notify: receives each line for the user.
    """

    def __init__(
        self,
        settings: Settings,
        paths: Sequence[Path],
        configs: Sequence[PipelineConfig],
        ports: Sequence[int],
        notify: Callable[[str], None],
    ) -> None:
        self._settings, self._paths, self._notify = settings, paths, notify
        self._configs = {config.name: config for config in configs}
        config_files = tuple(str(path.resolve()) for path in paths)
        layout = settings.layout
        self._scheduler = ManagedProcess(SCHEDULES, ["flows.deployments", *config_files], layout.log(SCHEDULES))
        self._services = {
            config.name: ManagedProcess(
                f"service of {config.name}",
                ["towline.cli", "serve", config.name, "--port", str(port)],
                layout.log(f"serve-{config.name}"),
                f"http://127.0.0.1:{port}",
                enabled=False,
            )
            for config, port in zip(configs, ports, strict=False)
        }
        self._state = UpState(
            pid=os.getpid(),
            start_time=process_start_time(os.getpid()),
            since=datetime.now(UTC).replace(microsecond=0),
            configs=config_files,
            models=tuple(self._configs),
        )
        self._external_api = os.environ.get("PREFECT_API_URL", "")
        self._next_server_check = 0.0
        self._slo_checks = {name: _PeriodicCheck(service_check.INTERVAL) for name in self._services}
        self._rollout_checks = {name: _PeriodicCheck(service_check.INTERVAL) for name in self._configs}
        self._integrity_checks = {name: _PeriodicCheck(integrity_check.INTERVAL) for name in self._configs}
        self._release_checks = {name: _PeriodicCheck(integrity_check.RELEASE_INTERVAL) for name in self._configs}
        self._mlflow_checks = {name: _MlflowCheck() for name in self._configs}
        self._config_stamps = self._read_config_stamps()

    def run(self, ready: Callable[[UpState], None]) -> None:
        """Starts everything, calls ``ready`` once the servers answer, and returns when all has ended after a signal.

        Raises:
            ConfigError: a port of a service is taken.
            TransientError: a server does not start; the store cannot be written.
        """
        handlers = {name: signal.signal(name, _request_stop) for name in (signal.SIGTERM, signal.SIGINT)}
        try:
            self._take_over()
            self._keep_servers(first=True)
            self._keep_processes()
            ready(self._state)
            while True:
                time.sleep(_POLL_S)
                self._keep_servers()
                self._keep_processes()
                self._check_slos()
                self._start_due_rollouts()
                self._check_integrity()
                self._check_mlflow()
                self._reload_configs()
        except _StopRequested:
            self._notify("ending …")
        finally:
            for name in handlers:
                signal.signal(name, signal.SIG_IGN)  # it is ending already
            self._stop()
            for name, handler in handlers.items():
                signal.signal(name, handler)

    def _save(self, **changes: object) -> None:
        self._state = self._state.model_copy(update=changes)
        up_state.write(self._settings, self._state)

    def _take_over(self) -> None:
        """Ends the processes of a ``towline up`` that was killed, and takes over the servers that it started."""
        previous = up_state.read(self._settings)
        if previous is not None:
            _wait_for_end(previous.processes)
        self._save(owned=previous.owned if previous else {})
        for service in self._services.values():
            _check_port_is_free(int(service.url.rpartition(":")[2]))

    def _keep_servers(self, *, first: bool = False) -> None:
        """Starts the servers that do not run; servers that another process has started are used."""
        kinds = self._server_kinds()
        missing = [kind for kind in kinds if servers.find_server(self._settings, kind) is None]
        if not first and (not missing or time.monotonic() < self._next_server_check):
            return
        for kind in missing:
            if kind in self._state.pages:
                self._notify(f"{kind}: ended; it is started again")
        for attempts_left in reversed(range(_SERVER_ATTEMPTS)):
            started = [servers.start(self._settings, kind) for kind in kinds]
            owned: dict[str, int] = {server.kind: server.pid for server in started if server.kind in missing}
            self._save(owned={**self._state.owned, **owned})
            try:
                for server in started:
                    servers.wait(self._settings, server, 180 if first else 30)
                break
            except TowlineError as error:  # another program may have taken the port in the meantime
                if attempts_left:
                    stopped = {kind for kind in kinds if servers.find_server(self._settings, kind) is None}
                    missing = [kind for kind in kinds if kind in stopped or kind in missing]
                elif first:
                    raise
                else:
                    self._notify(str(error))
                    self._next_server_check = time.monotonic() + _MAX_BACKOFF_S
        pages: dict[str, str] = {server.kind: server.url for server in started}
        named = {kind: servers.find_named_server(self._settings, kind) for kind in get_args(servers.Kind)}
        pages |= {kind: url for kind, url in named.items() if url}
        api = self._external_api or f"{pages['prefect']}/api"
        if self._state.api not in ("", api):
            self._stop_scheduler()
        self._save(pages=pages, api=api)

    def _server_kinds(self) -> list[servers.Kind]:
        """Without servers that are elsewhere; without Evidently until there is a drift check to show."""
        shows_drift = self._settings.layout.evidently.is_dir()
        return [kind for kind in servers.list_own_servers(self._settings) if kind != "evidently" or shows_drift]

    def _keep_processes(self) -> None:
        """Reports processes that ended and starts those that are due."""
        from towline.registry.champion_watcher import ChampionWatcher

        for name, service in self._services.items():
            if not service.enabled:
                with contextlib.suppress(TowlineError):
                    service.enabled = ChampionWatcher(self._settings.ledger_url, name).champion() is not None
        for process in (self._scheduler, *self._services.values()):
            code = process.poll()
            if code is not None:
                reason = f": {process.error}" if process.error else ""
                count = f"exit code {code}, {process.failures} in a row"
                self._notify(f"{process.name}: ended ({count}){reason}; see {process.log}")
            if process.is_due():
                process.start(self._settings, self._child_environment())
                self._notify(f"{process.name}: {process.url or 'started'}")
        processes = tuple(process.record() for process in (self._scheduler, *self._services.values()))
        if processes != self._state.processes:
            self._save(processes=processes)

    def _check_slos(self) -> None:
        """Checks the SLOs of each service once a minute, and reports changes."""
        for name, check in self._slo_checks.items():
            if not self._services[name].enabled or not check.is_due():
                continue
            try:
                url = self._services[name].url
                report = service_check.check_service_slo(self._settings, self._configs[name], url, self._state.api)
            except TowlineError as error:
                report = f"SLOs not checked: {error}"
            if report != check.report:
                self._notify(f"{name}: {report or 'the SLOs are met'}")
            check.report = report

    def _start_due_rollouts(self) -> None:
        """Evaluates the rollout of each model when it is due, wherever its service runs."""
        for name, check in self._rollout_checks.items():
            if check.is_due():
                with contextlib.suppress(TowlineError):  # tried again a minute later
                    now = datetime.now(UTC)
                    service_check.start_due_rollout(self._settings, self._configs[name], self._state.api, now)

    def _check_integrity(self) -> None:
        """Verifies the ledger of each model at intervals, and reports changes; the releases' files less often."""
        for name, check in self._integrity_checks.items():
            if not check.is_due():
                continue
            releases = self._release_checks[name].is_due()
            try:
                faults = integrity_check.check_integrity(self._settings, self._configs[name], releases=releases)
                if changes := integrity_check.check_approvals(self._settings, self._configs[name]):
                    self._notify(f"{name}: {changes}")
            except TowlineError as error:
                faults = f"the ledger is not verified: {error}"
            if faults != check.report:
                self._notify(f"{name}: {faults or 'the ledger is intact'}")
            check.report = faults

    def _check_mlflow(self) -> None:
        """Compares MLflow with the ledger at intervals; a child process adds missing versions to MLflow."""
        from towline.registry.mlflow.mirror import is_quick_to_read
        from towline.registry.mlflow.synchronization import find_differences

        quick = is_quick_to_read(self._settings)
        interval = _MLFLOW_CHECK_S if quick else _MLFLOW_REPAIR_S
        for name, check in self._mlflow_checks.items():
            if not check.is_due(interval):
                continue
            if quick:
                differences: tuple[str, ...] = ()
                with contextlib.suppress(TowlineError):  # other commands report it
                    differences = find_differences(self._settings, name)
                confirmed = check.confirms(differences)
                if confirmed or (check.has_alert and not differences):
                    with contextlib.suppress(TowlineError):  # a store that cannot be written is reported elsewhere
                        integrity_check.notify_mlflow(self._settings, self._configs[name], differences)
                        check.has_alert = confirmed
                if not confirmed or not check.needs_repair():
                    continue
                self._notify(f"{name}: MLflow was changed, and is repaired: {'; '.join(differences)}")
            command = ["towline.registry.mlflow.synchronization", name]
            log = self._settings.layout.log("mirror")
            check.process = _start_child(command, log, self._settings, self._child_environment())

    def _child_environment(self) -> dict[str, str]:
        path = os.pathsep.join(filter(None, (str(self._settings.project), os.environ.get("PYTHONPATH", ""))))
        prefect = servers.TELEMETRY_OFF if self._external_api else servers.prefect_environment(self._settings)
        changes = {"PYTHONPATH": path, "PREFECT_API_URL": self._state.api, **self._settings.environment()}
        return {**os.environ, **prefect, **changes}

    def _reload_configs(self) -> None:
        """Applies edited configs, if they are valid."""
        if (stamps := self._read_config_stamps()) == self._config_stamps:
            return
        self._config_stamps = stamps
        try:
            configs = {config.name: config for config in map(read_config, self._paths)}
        except ConfigError as error:
            self._notify(f"the edited configs are not used: {error}")
            return
        if list(configs) != list(self._configs):
            self._notify("the edited configs are not used: a model was renamed; restart `towline up` to apply that")
            return
        self._configs = configs
        if self._scheduler.process is not None:
            self._scheduler.process.send_signal(signal.SIGHUP)
        self._notify("the configs have changed; new runs use them")

    def _read_config_stamps(self) -> list[tuple[int, int]]:
        stamps = []
        for path in self._paths:
            with contextlib.suppress(OSError):
                status = path.stat()
                stamps.append((status.st_mtime_ns, status.st_size))
        return stamps

    def _stop_scheduler(self) -> None:
        if self._scheduler.process is not None:
            self._scheduler.process.terminate()
            self._scheduler.process.wait()
            self._scheduler.process = None

    def _stop(self) -> None:
        """Stops services and scheduler at the same time, and the servers after them, since runs report to Prefect."""
        running = [managed.process for managed in (self._scheduler, *self._services.values()) if managed.process]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        for process in running:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        running_servers = ((kind, servers.find_server(self._settings, kind)) for kind in self._server_kinds())
        pids = {kind: server.pid for kind, server in running_servers if server}
        servers.stop(self._settings, [kind for kind in pids if self._state.owned.get(kind) == pids[kind]])
        up_state.path(self._settings).unlink(missing_ok=True)


@dataclass
class _PeriodicCheck:
    """When a check of a model is made next, and its last report; the first one is made after an interval."""

    interval: float
    report: str = ""
    next_time: float = 0.0

    def __post_init__(self) -> None:
        self.next_time = time.monotonic() + self.interval

    def is_due(self) -> bool:
        if time.monotonic() < self.next_time:
            return False
        self.next_time = time.monotonic() + self.interval
        return True


@dataclass
class _MlflowCheck:
    """When a model's versions in MLflow are checked next, the last differences, and the process that removes them."""

    next_time: float = 0.0
    differences: tuple[str, ...] = ()
    process: "subprocess.Popen[bytes] | None" = None
    has_alert: bool = True  # an earlier `towline up` may have left one open
    repaired: tuple[str, ...] = ()
    next_repair: float = 0.0

    def is_due(self, interval: float) -> bool:
        now = time.monotonic()
        if now < self.next_time or (self.process and self.process.poll() is None):
            return False
        self.next_time = now + interval
        return True

    def confirms(self, differences: tuple[str, ...]) -> bool:
        """Whether the same differences were there at the last check: a run that is ending updates MLflow itself."""
        previous, self.differences = self.differences, differences
        return bool(differences) and differences == previous

    def needs_repair(self) -> bool:
        """Whether the differences have not been repaired lately: a repair that fails is not tried all the time."""
        now = time.monotonic()
        if self.differences == self.repaired and now < self.next_repair:
            return False
        self.repaired, self.next_repair = self.differences, now + _MLFLOW_REPAIR_S
        return True


def _start_child(
    command: Sequence[str], log: Path, settings: Settings, environment: dict[str, str]
) -> "subprocess.Popen[bytes]":
    """Starts a module as a process that ends with this one."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "towline.processes", str(os.getpid()), *command],
            env=environment,
            cwd=settings.project,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )


def _request_stop(_number: int, _frame: FrameType | None) -> NoReturn:
    raise _StopRequested


def _wait_for_end(processes: Sequence[ProcessRecord]) -> None:
    """Waits for processes whose parent has ended, which end on their own; kills those that do not end in time."""
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    for process in processes:
        while process.is_running and time.monotonic() < deadline:
            time.sleep(0.1)
        if process.is_running:
            os.kill(process.pid, signal.SIGKILL)


def _check_port_is_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError(
                f"port {port} is taken: {error.strerror}", where="--port", remedy="choose another, or use --no-service"
            ) from None
