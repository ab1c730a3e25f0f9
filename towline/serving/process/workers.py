"""Several processes on the same sockets: forked from one that has everything open, replaced when they die."""

import contextlib
import gc
import logging
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from towline import files
from towline.errors import TowlineError
from towline.serving.process import sockets as listening
from towline.serving.process.server import Service, Started, answer

_LOG = logging.getLogger("towline.serving")
_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGCHLD})
_TICK = 0.25  # seconds between two looks around
_BACKOFF = (0.0, 0.0, 1.0, 2.0, 5.0, 10.0, 30.0)  # seconds before a worker is replaced, by deaths without an answer
_FOLDER, _LOCK = "towline-metrics-", "lock"
_NEW = 60.0  # seconds in which another's folder may not be locked yet
_MARGIN = 4.0  # seconds beyond the drain until a worker that still runs is killed


@dataclass
class _Worker:
    pid: int
    ready: bool = False


def supervise(service: Service, started: Callable[[Started], None]) -> None:
    """Keeps as many workers as asked for until SIGTERM or SIGINT, then has them end in order.

    Workers are forked, so that they share the memory of what was imported and opened, and a replacement answers at
    once. Nothing here starts a thread: a fork would not take it along.

    Raises:
        TowlineError: no worker came up at the start.
    """
    _sweep()
    folder = Path(tempfile.mkdtemp(prefix=_FOLDER))
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)  # before prometheus_client is imported
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        with files.exclusive_lock(folder / _LOCK):  # workers hold it too
            _warm()
            _Supervisor(service, started, folder).run()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        shutil.rmtree(folder, ignore_errors=True)


def _sweep() -> None:
    """Removes the metrics of supervisors that were killed, which no process holds any more."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*"):
        with contextlib.suppress(OSError, TowlineError):
            status = folder.lstat()
            if status.st_uid != os.geteuid() or time.time() - status.st_mtime < _NEW:
                continue
            with files.exclusive_lock(folder / _LOCK, wait=False) as ours:
                if ours:
                    shutil.rmtree(folder)


def _warm() -> None:
    """Imports once what every worker needs, and keeps the collector from touching, and so copying, shared memory."""
    import uvloop  # noqa: F401

    from towline.serving.process import draining  # noqa: F401

    gc.collect()
    gc.freeze()


class _Supervisor:
    def __init__(self, service: Service, started: Callable[[Started], None], folder: Path) -> None:
        self._service, self._started, self._folder = service, started, folder
        self._workers: dict[int, _Worker] = {}
        self._alive, self._held = os.pipe()  # its end tells the workers that this process is gone
        self._news, self._tell = os.pipe()  # workers write their pid when they answer
        self._told = False
        self._deaths = 0
        self._after = 0.0

    def run(self) -> None:
        while True:
            self._fill()
            caught = signal.sigtimedwait(_SIGNALS, _TICK if self._told else 0.02)
            self._hear()
            self._bury()
            self._service.keys.refresh()  # a worker forked while the file is damaged has the last good keys
            if caught and caught.si_signo in (signal.SIGTERM, signal.SIGINT):
                break
            if not self._workers and not self._told:
                raise TowlineError("no worker came up", where="towline serve", remedy="read the lines above")
        self._end()

    def _fill(self) -> None:
        while len(self._workers) < self._service.options.workers and time.monotonic() >= self._after:
            if not self._told and self._deaths:
                return
            pid = os.fork()
            if pid == 0:
                self._work()
            self._workers[pid] = _Worker(pid)

    def _work(self) -> None:
        """The life of a worker; never returns."""
        code = 1
        try:
            os.close(self._held)
            os.close(self._news)
            for name in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
                signal.signal(name, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            if self._told and self._service.live.follows:
                self._service.live.look()  # the champion may have changed since this process's parent opened it
            answer(self._service, lambda: _say(self._tell, os.getpid()), self._alive)
            code = 0
        except KeyboardInterrupt:
            code = 0
        except BaseException:  # noqa: BLE001 - the last stop of this process
            _LOG.exception("a worker failed")
        finally:
            os._exit(code)

    def _hear(self) -> None:
        while select.select([self._news], [], [], 0)[0]:
            for pid in os.read(self._news, 4096).split():
                if worker := self._workers.get(int(pid)):
                    worker.ready, self._deaths = True, 0
        if not self._told and 0 < len(self._workers) == sum(worker.ready for worker in self._workers.values()):
            self._told = True
            self._started(self._service.started())

    def _bury(self) -> None:
        from prometheus_client.multiprocess import mark_process_dead

        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            worker = self._workers.pop(pid, None)
            mark_process_dead(pid, str(self._folder))  # type: ignore[no-untyped-call]
            if worker is None:
                continue
            self._deaths += not worker.ready
            self._after = time.monotonic() + _BACKOFF[min(self._deaths, len(_BACKOFF) - 1)]
            _LOG.error("worker %d ended (%s) and is replaced", pid, _cause(status))

    def _end(self) -> None:
        from towline.serving.process.draining import SETTLE

        options = self._service.options
        self._signal(signal.SIGTERM)
        closing = time.monotonic() + max(options.grace - SETTLE, 0.001)
        latest = time.monotonic() + options.drain + _MARGIN
        while self._workers and time.monotonic() < latest:
            if closing and time.monotonic() >= closing:
                listening.refuse_new(self._service.sockets)
                closing = 0.0
            signal.sigtimedwait({signal.SIGCHLD}, 0.05)
            self._reap()
        self._signal(signal.SIGKILL)

    def _reap(self) -> None:
        for pid in list(self._workers):
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0]:
                    del self._workers[pid]

    def _signal(self, number: signal.Signals) -> None:
        for pid in self._workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def _say(pipe: int, pid: int) -> None:
    os.write(pipe, b"%d " % pid)


def _cause(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return signal.Signals(-code).name if code < 0 else f"exit {code}"
