"""The supervisor of several workers on the same sockets: forks them, replaces those that die, and ends them."""

import contextlib
import gc
import importlib
import logging
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from towline import files
from towline.errors import TowlineError
from towline.serving.process.http_server import SETTLE_S, filter_new_connections
from towline.serving.process.worker import ServiceInfo, ServiceResources, serve_requests

_LOG = logging.getLogger("towline.serving")
_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGCHLD})
_TICK_S = 0.25  # seconds between two checks of the workers
_BACKOFF_S = (0.0, 0.0, 1.0, 2.0, 5.0, 10.0, 30.0)  # delay of a replacement, by deaths before the first answer
_FOLDER_PREFIX, _LOCK = "towline-metrics-", "lock"
_MIN_STALE_AGE_S = 60.0  # a younger folder may not be locked yet
_KILL_MARGIN_S = 4.0  # seconds after the drain period until a worker is killed


def supervise(resources: ServiceResources, on_started: Callable[[ServiceInfo], None]) -> None:
    """Keeps ``options.workers`` workers running until SIGTERM or SIGINT, then ends them gracefully.

    Workers are forked: they share the memory of imported modules and of the model, and a replacement starts at once.
    The supervisor starts no thread, because a fork does not copy threads.

    Raises:
        TowlineError: no worker started.
    """
    _remove_stale_metrics()
    folder = Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX))
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)  # before prometheus_client is imported
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        with files.exclusive_lock(folder / _LOCK):  # the workers inherit the lock
            # imported once for all workers; a replacement must not read code that an upgrade has changed since
            for name in (
                "uvloop",
                "towline.serving.app",
                "towline.serving.process.connection",
                "towline.prediction_log.writer",
            ):
                importlib.import_module(name)
            gc.collect()
            gc.freeze()  # so that the collector of a worker does not copy shared memory pages
            _Supervisor(resources, on_started, folder).run()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        shutil.rmtree(folder, ignore_errors=True)


def _remove_stale_metrics() -> None:
    """Removes the metrics folders of supervisors that were killed: no process holds their lock."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER_PREFIX}*"):
        with contextlib.suppress(OSError, TowlineError):
            status = folder.lstat()
            if status.st_uid != os.geteuid() or time.time() - status.st_mtime < _MIN_STALE_AGE_S:
                continue
            with files.exclusive_lock(folder / _LOCK, wait=False) as acquired:
                if acquired:
                    shutil.rmtree(folder)


class _Supervisor:
    def __init__(
        self, resources: ServiceResources, on_started: Callable[[ServiceInfo], None], metrics_folder: Path
    ) -> None:
        self._resources, self._on_started, self._metrics_folder = resources, on_started, metrics_folder
        self._workers: dict[int, bool] = {}  # pid → whether it answers requests
        self._alive_read, self._alive_write = os.pipe()  # closes when this process ends, which ends the workers
        self._ready_read, self._ready_write = os.pipe()  # workers write their pid when they answer requests
        self._started = False
        self._early_deaths = 0
        self._next_fork = 0.0

    def run(self) -> None:
        while True:
            self._start_workers()
            received = signal.sigtimedwait(_SIGNALS, _TICK_S if self._started else 0.02)
            self._read_ready_pipe()
            self._reap_workers()
            self._resources.keys.refresh()  # a worker forked while the file is damaged gets the last valid keys
            if received and received.si_signo in (signal.SIGTERM, signal.SIGINT):
                break
            if not self._workers and not self._started:
                raise TowlineError("no worker started", where="towline serve", remedy="see the error in the log above")
        self._stop_workers()

    def _start_workers(self) -> None:
        while len(self._workers) < self._resources.options.workers and time.monotonic() >= self._next_fork:
            if not self._started and self._early_deaths:
                return
            pid = os.fork()
            if pid == 0:
                self._run_worker()
            self._workers[pid] = False

    def _run_worker(self) -> None:
        """Runs a worker in the forked process; never returns."""
        code = 1
        try:
            os.close(self._alive_write)
            os.close(self._ready_read)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            if self._started and self._resources.reloader.follows:
                self._resources.reloader.catch_up()  # the champion may have changed since the supervisor opened it
            serve_requests(self._resources, self._report_ready, self._alive_read)
            code = 0
        except KeyboardInterrupt:
            code = 0
        except BaseException:  # noqa: BLE001 - the outermost frame of this process
            _LOG.exception("a worker failed")
        finally:
            os._exit(code)

    def _report_ready(self) -> None:
        os.write(self._ready_write, b"%d " % os.getpid())

    def _read_ready_pipe(self) -> None:
        while select.select([self._ready_read], [], [], 0)[0]:
            for pid in os.read(self._ready_read, 4096).split():
                if int(pid) in self._workers:
                    self._workers[int(pid)], self._early_deaths = True, 0
        if not self._started and self._workers and all(self._workers.values()):
            self._started = True
            self._on_started(self._resources.info())

    def _reap_workers(self) -> None:
        from prometheus_client.multiprocess import mark_process_dead

        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            was_ready = self._workers.pop(pid, None)
            mark_process_dead(pid, str(self._metrics_folder))  # type: ignore[no-untyped-call]
            if was_ready is None:
                continue
            self._early_deaths += not was_ready
            self._next_fork = time.monotonic() + _BACKOFF_S[min(self._early_deaths, len(_BACKOFF_S) - 1)]
            code = os.waitstatus_to_exitcode(status)
            cause = signal.Signals(-code).name if code < 0 else f"exit {code}"
            _LOG.error("worker %d ended (%s) and is replaced", pid, cause)

    def _stop_workers(self) -> None:
        options = self._resources.options
        self._signal_workers(signal.SIGTERM)
        filter_at = time.monotonic() + max(options.grace - SETTLE_S, 0.001)
        deadline = time.monotonic() + options.drain + _KILL_MARGIN_S
        while self._workers and time.monotonic() < deadline:
            if filter_at and time.monotonic() >= filter_at:
                filter_new_connections(self._resources.sockets)
                filter_at = 0.0
            signal.sigtimedwait({signal.SIGCHLD}, 0.05)
            for pid in list(self._workers):
                with contextlib.suppress(ChildProcessError):
                    if os.waitpid(pid, os.WNOHANG)[0]:
                        del self._workers[pid]
        self._signal_workers(signal.SIGKILL)

    def _signal_workers(self, number: signal.Signals) -> None:
        for pid in self._workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
