"""A second process that imports the slow vendors while the first one works.

Great Expectations and MLflow take some six seconds to import and are needed at opposite ends of a run. Here they load
beside the flow, on another core, and their calls are sent over. There is one for the process; it ends when its standard
input does, so it never outlives the process that started it, however that ends.
"""

import contextlib
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
    """Starts the process, unless there is one; ``output`` is the file that gets whatever the vendors print."""
    global _process  # noqa: PLW0603 - one for the process, as joblib's reusable executor is
    if _process is None:
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("ab") as log:
            _process = subprocess.Popen(
                [sys.executable, "-m", "towline.sidecar"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
            )


def begin(function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    """Has the process, if there is one, run a function; nobody waits for it, and how it ends is not told."""
    if _process is not None:
        _send((function, args, kwargs, False))


def call(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> tuple[T, float]:
    """Runs a function there (here, if none was started); returns its result and its CPU seconds.

    Raises:
        TransientError: the process was killed from outside.
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
    """Ends the process at once, whatever it is at; a later ``start`` starts another."""
    global _process  # noqa: PLW0603 - one for the process, as joblib's reusable executor is
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
    return TransientError("the helper process was killed", remedy="run again; free memory if it was short")


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what vendors print must not stand between the answers
    logging.captureWarnings(True)
    while True:
        try:
            message = pickle.load(sys.stdin.buffer)  # noqa: S301 - our own parent
        except EOFError:
            return
        function, args, kwargs, awaited = message
        before = _cpu()
        result: Any
        try:
            result = function(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - raised where the call was made
            result = error
        if awaited:
            pickle.dump((result, _cpu() - before), answers)
            answers.flush()


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    _serve()
