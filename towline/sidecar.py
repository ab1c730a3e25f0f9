"""The sidecar is a second process that imports Great Expectations and MLflow while the flow runs, and calls them.

The imports take six seconds; in the sidecar they run on another core. A process has one sidecar. It ends when its
standard input is closed, so it never outlives its parent.
"""

import contextlib
import gc
import logging
import os
import pickle
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar, cast

from towline.errors import TransientError

P = ParamSpec("P")
T = TypeVar("T")

_process: "subprocess.Popen[bytes] | None" = None


def start(output: Path) -> None:
    """Starts the sidecar, unless it runs; ``output`` is the file for everything that the libraries print."""
    global _process  # noqa: PLW0603 - one a process, as joblib's reusable executor
    if _process is None:
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("ab") as log:
            _process = subprocess.Popen(
                [sys.executable, "-m", "towline.sidecar"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
            )


def begin(function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    """Has the sidecar, if it runs, execute a function; its result and its errors are ignored."""
    if _process is not None:
        _send((function, args, kwargs, False))


def call(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> tuple[T, float]:
    """Executes a function in the sidecar, or here if none was started; returns its result and its CPU seconds.

    Raises:
        TransientError: the sidecar was killed.
    """
    if _process is None:
        return function(*args, **kwargs), 0.0
    _send((function, args, kwargs, True))
    try:
        result, seconds = pickle.load(cast("IO[bytes]", _process.stdout))  # noqa: S301 - our own child
    except EOFError as error:
        raise _killed() from error
    if isinstance(result, BaseException):
        raise result
    return result, seconds


def stop() -> None:
    """Kills the sidecar; a later ``start`` starts a new one."""
    global _process  # noqa: PLW0603 - one a process, as joblib's reusable executor
    if _process is not None:
        _process.kill()
        with contextlib.suppress(BrokenPipeError):
            _process.__exit__(None, None, None)
        _process = None


def _send(message: object) -> None:
    pipe = cast("IO[bytes]", cast("subprocess.Popen[bytes]", _process).stdin)
    try:
        pickle.dump(message, pipe)
        pipe.flush()
    except BrokenPipeError as error:
        raise _killed() from error


def _killed() -> TransientError:
    stop()
    return TransientError("the helper process was killed", remedy="free some memory, then run the same command again")


def _serve() -> None:
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not get between the replies
    logging.captureWarnings(True)
    gc.set_threshold(50_000, 20, 20)  # else the imports spend a fifth of their time on collections that free nothing
    while True:
        try:
            message = pickle.load(sys.stdin.buffer)  # noqa: S301 - our own parent
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
    _serve()
