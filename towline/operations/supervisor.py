"""Keeps the processes behind ``towline up`` going: servers, scheduler, one service a model."""

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
from towline.monitoring import service_check
from towline.operations import servers, up_state
from towline.operations.up_state import Part, Up
from towline.processes import born, lives

SCHEDULES = "schedules"
_LOOK = 0.5  # seconds between two looks at everything
_WELL = 60.0  # seconds after which a process has started well
_LONGEST = 60.0  # seconds until one that ended is started again, at most
_TRIES = 3  # for a server to start
_MIRROR = 30.0  # seconds between two looks at MLflow
_DRAIN = 40.0  # seconds that processes get to end


class _Told(Exception):
    """It is to end."""


@dataclass
class _Child:
    """One process and its history; ``command`` is a module and its arguments."""

    name: str
    command: Sequence[str]
    log: Path
    url: str = ""
    process: "subprocess.Popen[bytes] | None" = None
    started: float = 0.0
    failures: int = 0
    why: str = ""
    wanted: bool = True
    offset: int = field(default=0, repr=False)

    def due(self) -> bool:
        wait = min(_LONGEST, 2.0 ** (self.failures - 1)) if self.failures else 0.0
        return self.wanted and self.process is None and time.monotonic() >= self.started + wait

    def start(self, settings: Settings, environment: dict[str, str]) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            self.offset = output.tell()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "towline.processes", str(os.getpid()), *self.command],
                env=environment,
                cwd=settings.project,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self.started = time.monotonic()

    def ended(self) -> int | None:
        """Its exit code, once, if it has ended by itself; where it had run well, its failures are forgotten."""
        if self.process is None or (code := self.process.poll()) is None:
            if self.failures and self.process and time.monotonic() - self.started > _WELL:
                self.failures, self.why = 0, ""
            return None
        self.process, self.failures, self.started = None, self.failures + 1, time.monotonic()
        self.why = self._last_words() if code > 0 else ""  # one that was killed says nothing of it
        return code

    def _last_words(self) -> str:
        try:
            with self.log.open("rb") as log:
                log.seek(self.offset)
                lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        except OSError:
            return ""
        return ([line for line in lines if line.startswith("error ")] or lines or [""])[-1][:300]

    def part(self) -> Part:
        pid = self.process.pid if self.process else 0
        state: up_state.State = "runs" if pid else "restarts" if self.wanted else "waits"
        return Part(
            name=self.name,
            state=state,
            pid=pid,
            born=born(pid) if pid else "",
            url=self.url,
            failures=self.failures,
            why=self.why,
        )


class Supervisor:
    """Everything that ``towline up`` runs on one store, until it is told to end.

    Args:
        settings: where the store and the project are.
        paths: of the configs.
        configs: what they say now.
        ports: of each model's service; empty for none.
        tell: is given each line that people are to read.
    """

    def __init__(
        self,
        settings: Settings,
        paths: Sequence[Path],
        configs: Sequence[PipelineConfig],
        ports: Sequence[int],
        tell: Callable[[str], None],
    ) -> None:
        self._settings, self._paths, self._tell = settings, paths, tell
        self._configs = {config.name: config for config in configs}
        self._looked: dict[str, float] = {}
        self._said: dict[str, str] = {}
        self._mirrored: dict[str, float] = {}
        self._lacking: dict[str, tuple[str, ...]] = {}
        self._mending: dict[str, subprocess.Popen[bytes]] = {}
        self._foreign = os.environ.get("PREFECT_API_URL", "")
        self._patience = 0.0
        logs = settings.layout.logs
        self._scheduler = _Child(
            SCHEDULES, ["flows.deployments", *(str(path.resolve()) for path in paths)], logs / "schedules.log"
        )
        self._services = {
            config.name: _Child(
                f"service of {config.name}",
                ["towline.cli", "serve", config.name, "--port", str(port)],
                logs / f"serve-{config.name}.log",
                f"http://127.0.0.1:{port}",
                wanted=False,
            )
            for config, port in zip(configs, ports, strict=False)
        }
        self._up = Up(
            pid=os.getpid(),
            born=born(os.getpid()),
            since=datetime.now(UTC).replace(microsecond=0),
            configs=tuple(str(path.resolve()) for path in paths),
            models=tuple(self._configs),
        )
        self._stamps = self._stamp()

    def run(self, ready: Callable[[Up], None]) -> None:
        """Starts everything, tells ``ready`` once the servers answer, and returns when all has ended on a signal.

        Raises:
            ConfigError: a port of a service is taken.
            TransientError: a server does not start; the store cannot be written.
        """
        before = {name: signal.signal(name, _end) for name in (signal.SIGTERM, signal.SIGINT)}
        try:
            self._clear()
            self._serve_pages(first=True)
            self._look()
            ready(self._up)
            while True:
                time.sleep(_LOOK)
                self._serve_pages()
                self._look()
                self._pulse()
                self._mirror()
                self._read_again()
        except _Told:
            self._tell("ending …")
        finally:
            for name in before:
                signal.signal(name, signal.SIG_IGN)  # it ends already
            self._stop()
            for name, handler in before.items():
                signal.signal(name, handler)

    def _clear(self) -> None:
        """Ends what a ``towline up`` that was killed has left, and takes over the servers that it started."""
        before = up_state.left(self._settings)
        if before is not None:
            self._up = self._up.model_copy(update={"owned": before.owned})
            _await_end([(part.pid, part.born) for part in before.parts])
        up_state.write(self._settings, self._up)
        for child in self._services.values():
            _free(int(child.url.rpartition(":")[2]))

    def _serve_pages(self, *, first: bool = False) -> None:
        """Starts the servers that do not run; those that did before are left to whoever started them."""
        kinds = self._kinds()
        missing = [kind for kind in kinds if servers.find(self._settings, kind) is None]
        if not first and (not missing or time.monotonic() < self._patience):
            return
        for kind in missing:
            if kind in self._up.pages:
                self._tell(f"{kind}: ended; it is started again")
        for left in reversed(range(_TRIES)):
            started = [servers.start(self._settings, kind) for kind in kinds]
            mine: dict[str, int] = {server.kind: server.pid for server in started if server.kind in missing}
            self._up = self._up.model_copy(update={"owned": {**self._up.owned, **mine}})
            up_state.write(self._settings, self._up)
            try:
                for server in started:
                    servers.wait(self._settings, server, 180 if first else 30)
                break
            except TowlineError as error:  # another program may have taken its port meanwhile
                if left:
                    missing = [kind for kind in kinds if servers.find(self._settings, kind) is None or kind in missing]
                elif first:
                    raise
                else:
                    self._tell(str(error))
                    self._patience = time.monotonic() + _LONGEST
        pages = {server.kind: server.url for server in started}
        api = self._foreign or f"{pages['prefect']}/api"
        if self._up.api not in ("", api):
            self._restart_scheduler()
        self._up = self._up.model_copy(update={"pages": pages, "api": api})
        up_state.write(self._settings, self._up)

    def _kinds(self) -> list[servers.Kind]:
        """Evidently's page begins with the first night it can show; a Prefect server elsewhere is not ours to start."""
        without = {"prefect"} if self._foreign else set()
        without |= set() if self._settings.layout.evidently.is_dir() else {"evidently"}
        return [kind for kind in get_args(servers.Kind) if kind not in without]

    def _look(self) -> None:
        """Starts what is due, and tells what ended."""
        from towline.registry.champion_watcher import Watch

        for name, child in self._services.items():
            if not child.wanted:
                with contextlib.suppress(TowlineError):
                    child.wanted = Watch(self._settings.ledger_url, name).champion() is not None
        for child in (self._scheduler, *self._services.values()):
            code = child.ended()
            if code is not None:
                told = f": {child.why}" if child.why else ""
                self._tell(f"{child.name}: ended (exit code {code}, {child.failures} in a row){told}; see {child.log}")
            if child.due():
                child.start(self._settings, self._environment())
                self._tell(f"{child.name}: {child.url or 'started'}")
        parts = tuple(child.part() for child in (self._scheduler, *self._services.values()))
        if parts != self._up.parts:
            self._up = self._up.model_copy(update={"parts": parts})
            up_state.write(self._settings, self._up)

    def _pulse(self) -> None:
        """Once a minute looks whether each service that has begun keeps what is promised."""
        for name, child in self._services.items():
            now = time.monotonic()
            if not child.wanted or now < self._looked.setdefault(name, now) + service_check.EVERY:
                continue
            self._looked[name] = now
            try:
                said = service_check.look(self._settings, self._configs[name], child.url, self._up.api)
            except TowlineError as error:
                said = f"not looked at: {error}"
            if said != self._said.get(name, ""):
                self._tell(f"{name}: {said or 'what is promised is kept'}")
            self._said[name] = said

    def _mirror(self) -> None:
        """Looks now and then whether MLflow shows what the ledger says; what it lacks, another process puts back.

        It must be lacking in two looks: a run that ends just now tells MLflow itself.
        """
        from towline.registry.mlflow.mirror import quick
        from towline.registry.mlflow.synchronization import missing

        every = _MIRROR if quick(self._settings) else 10 * _MIRROR
        for name in self._configs:
            now = time.monotonic()
            mending = self._mending.get(name)
            if now < self._mirrored.get(name, 0.0) + every or (mending and mending.poll() is None):
                continue
            self._mirrored[name] = now
            if quick(self._settings):
                lacking: tuple[str, ...] = ()
                with contextlib.suppress(TowlineError):  # away, or not to be believed: others tell
                    lacking = missing(self._settings, name)
                before, self._lacking[name] = self._lacking.get(name), lacking
                if not lacking or before != lacking:
                    continue
                self._tell(f"{name}: put back into MLflow: {'; '.join(lacking)}")
                self._mirrored[name] = now + 9 * every  # what cannot be put back is not tried all the time
            with (self._settings.layout.log("mirror")).open("ab") as log:
                self._mending[name] = subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        "towline.processes",
                        str(os.getpid()),
                        "towline.registry.mlflow.synchronization",
                        name,
                    ],
                    env=self._environment(),
                    cwd=self._settings.project,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )

    def _environment(self) -> dict[str, str]:
        path = os.pathsep.join(filter(None, (str(self._settings.project), os.environ.get("PYTHONPATH", ""))))
        mine = {"PYTHONPATH": path, "PREFECT_API_URL": self._up.api, **self._settings.environment()}
        prefect = servers.QUIET if self._foreign else servers.prefect_environment(self._settings)
        return {**os.environ, **prefect, **mine}

    def _read_again(self) -> None:
        """A config that was edited is taken over, unless it is none any more."""
        if (stamps := self._stamp()) == self._stamps:
            return
        self._stamps = stamps
        try:
            configs = {config.name: config for config in map(read_config, self._paths)}
        except ConfigError as error:
            self._tell(f"the configs go on as they were: {error}")
            return
        if list(configs) != list(self._configs):
            self._tell("the configs go on as they were: a model has another name; start `towline up` again for that")
            return
        self._configs = configs
        if self._scheduler.process is not None:
            self._scheduler.process.send_signal(signal.SIGHUP)
        self._tell("the configs have changed; runs from now on go by them")

    def _restart_scheduler(self) -> None:
        if self._scheduler.process is not None:
            self._scheduler.process.terminate()
            self._scheduler.process.wait()
            self._scheduler.process = None

    def _stamp(self) -> list[tuple[int, int]]:
        found = []
        for path in self._paths:
            with contextlib.suppress(OSError):
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size))
        return found

    def _stop(self) -> None:
        """Services drain and runs are ended at the same time; the servers last, since runs tell them how they ended."""
        going = [child.process for child in (self._scheduler, *self._services.values()) if child.process]
        for process in going:
            process.terminate()
        deadline = time.monotonic() + _DRAIN
        for process in going:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        there = {kind: server.pid for kind in self._kinds() if (server := servers.find(self._settings, kind))}
        servers.stop(self._settings, [kind for kind in there if self._up.owned.get(kind) == there[kind]])
        up_state.path(self._settings).unlink(missing_ok=True)


def _end(_number: int, _frame: FrameType | None) -> NoReturn:
    raise _Told


def _await_end(left: Sequence[tuple[int, str]]) -> None:
    """They were tied to a process that is gone, and end; one that does not in time is killed."""
    deadline = time.monotonic() + _DRAIN
    for pid, birth in left:
        while lives(pid, birth) and time.monotonic() < deadline:
            time.sleep(0.1)
        if lives(pid, birth):
            os.kill(pid, signal.SIGKILL)


def _free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError(
                f"port {port} is taken: {error.strerror}", where="--port", remedy="give another, or --no-service"
            ) from None
