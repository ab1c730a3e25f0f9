"""Processes of this machine: identity, parent and child, file permissions, threads of libraries.

A process is identified by its pid and its start time, because pids are used again. Both are read from ``/proc``, which
needs fewer lines than psutil; psutil has no parent-death signal.

``python -m towline.processes PARENT MODULE …`` runs ``python -m MODULE …`` as a process that ends with its parent.
"""

import ctypes
import os
import runpy
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

PRIVATE_UMASK = 0o077
_PR_SET_PDEATHSIG = 1


def thread_pools() -> "ThreadpoolController":
    """The thread pools of BLAS and of scikit-learn's OpenMP, whose sizes can be limited.

    A controller knows only libraries that are loaded, so OpenMP is loaded first. On busy cores, a fit of small trees
    with several threads takes fifty times as long as with one, because the threads wait for each other in each node.

    Example:
        >>> with thread_pools().limit(limits=1, user_api="openmp"):
        ...     {pool["num_threads"] for pool in thread_pools().info() if pool["user_api"] == "openmp"}
        {1}
    """
    import sklearn.utils._openmp_helpers  # noqa: F401
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def process_start_time(pid: int) -> str:
    """The start time of a running process in clock ticks since boot; empty if it has ended or is a zombie."""
    fields = _stat(pid)
    return "" if fields is None else fields[19]


def is_running(pid: int, start_time: str) -> bool:
    """Whether the process with this pid and this start time runs."""
    return bool(start_time) and process_start_time(pid) == start_time


def set_parent_death_signal(parent: int, sent: signal.Signals = signal.SIGTERM) -> None:
    """Makes Linux send this process a signal when its parent ends; immediately if the parent has already ended."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, sent)
    if os.getppid() != parent:
        os.kill(os.getpid(), sent)


def child_pids(pid: int) -> list[int]:
    """The running processes that a process has started."""
    running = {int(entry.name): _stat(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    return [number for number, fields in running.items() if fields is not None and int(fields[1]) == pid]


def _stat(pid: int) -> list[str] | None:
    """The fields of ``/proc/<pid>/stat`` after the command; None if the process has ended or is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else fields


@contextmanager
def private_files() -> Iterator[None]:
    """Sets the umask so that only its user can read what this process and its children write (0600, folders 0700).

    The libraries that write into the store do not set a mode.
    """
    umask = os.umask(PRIVATE_UMASK)
    try:
        yield
    finally:
        os.umask(umask)


if __name__ == "__main__":
    set_parent_death_signal(int(sys.argv[1]))
    del sys.argv[:2]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
