"""The helper process is a second process that imports Great Expectations and MLflow while the flow runs.

The imports take seconds; in the helper process they run on another core. Where that is safe, it is forked from this
process after the packages that both need are imported, which halves the work of its imports. A process has one helper
process. It ends when its standard input is closed, so it never outlives its parent.
"""

import contextlib
import gc
import importlib
import logging
import multiprocessing
import os
import pickle
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple, ParamSpec, Protocol, TypeVar, cast

from towline.errors import TransientError

P = ParamSpec("P")
T = TypeVar("T")

_SHARED_PACKAGES = ("pandas", "scipy.stats", "sklearn.base", "sqlalchemy")  # every flow imports them


class _Process(Protocol):
    def kill(self) -> None: ...


class _HelperProcess(NamedTuple):
    process: _Process
    wait: Callable[[], object]  # returns when the process has ended
    requests: IO[bytes]
    replies: IO[bytes]


_helper: _HelperProcess | None = None


def start(output: Path) -> None:
    """Starts the helper process, unless it runs; ``output`` is the file for everything that the libraries print."""
    global _helper  # noqa: PLW0603 - one a process, as joblib's reusable executor
    if _helper is None:
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("ab") as log:
            # a forked process may wait for ever for a lock of another thread
            can_fork = sys.platform == "linux" and threading.active_count() == 1
            _helper = _fork(log) if can_fork else _spawn(log)


def _fork(log: IO[bytes]) -> _HelperProcess:
    for package in _SHARED_PACKAGES:
        importlib.import_module(package)
    requests, replies = os.pipe(), os.pipe()

    def run() -> None:
        for descriptor, standard in ((requests[0], 0), (replies[1], 1), (log.fileno(), 2)):
            os.dup2(descriptor, standard)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # locks of this process, and its own end of the pipe
        _serve(os.fdopen(0, "rb", closefd=False))

    process = multiprocessing.get_context("fork").Process(target=run, daemon=True)
    process.start()
    os.close(requests[0])
    os.close(replies[1])
    return _HelperProcess(process, process.join, os.fdopen(requests[1], "wb"), os.fdopen(replies[0], "rb"))


def _spawn(log: IO[bytes]) -> _HelperProcess:
    command = [sys.executable, "-m", "towline.helper_process"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
    return _HelperProcess(process, process.wait, cast("IO[bytes]", process.stdin), cast("IO[bytes]", process.stdout))


def submit(function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    """Has the helper process, if it runs, execute a function; its result and its errors are ignored."""
    if _helper is not None:
        _send(_helper, (function, args, kwargs, False))


def call_in_helper(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> tuple[T, float]:
    """Executes a function in the helper process, or here if none was started; returns its result and its CPU seconds.

    Raises:
        TransientError: the helper process was killed.
    """
    if _helper is None:
        return function(*args, **kwargs), 0.0
    _send(_helper, (function, args, kwargs, True))
    try:
        result, seconds = pickle.load(_helper.replies)  # noqa: S301 - our own child
    except EOFError as error:
        raise _killed_error() from error
    if isinstance(result, BaseException):
        raise result
    return result, seconds


def stop() -> None:
    """Kills the helper process; a later ``start`` starts a new one."""
    global _helper  # noqa: PLW0603 - one a process, as joblib's reusable executor
    if _helper is not None:
        _helper.process.kill()
        with contextlib.suppress(BrokenPipeError):
            _helper.requests.close()
        _helper.replies.close()
        _helper.wait()
        _helper = None


def _send(helper: _HelperProcess, message: object) -> None:
    try:
        pickle.dump(message, helper.requests)
        helper.requests.flush()
    except BrokenPipeError as error:
        raise _killed_error() from error


def _killed_error() -> TransientError:
    stop()
    return TransientError(
        "the helper process of the run was killed",
        remedy="free some memory, then run the same command again",
    )


def _serve(requests: IO[bytes]) -> None:
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not get between the replies
    logging.captureWarnings(True)
    gc.set_threshold(
        50_000, 20, 20
    )  # else garbage collections that free no object take a fifth of the time of the imports
    while True:
        try:
            message = pickle.load(requests)  # noqa: S301 - our own parent
        except EOFError:
            return
        function, args, kwargs, wants_reply = message
        cpu_before = _cpu_seconds()
        result: Any
        try:
            result = function(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - raised by the caller
            result = error
        if wants_reply:
            pickle.dump((result, _cpu_seconds() - cpu_before), replies)
            replies.flush()


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    _serve(sys.stdin.buffer)
