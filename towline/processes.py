"""Which process is meant, and whether it lives: a pid alone may be another's by now.

``python -m towline.processes PARENT MODULE …`` becomes ``python -m MODULE …``, tied to its parent.
"""

import ctypes
import os
import runpy
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def born(pid: int) -> str:
    """When a living process was started, in clock ticks since boot; empty when there is none, or only its zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in ("Z", "X") else fields[19]


def lives(pid: int, birth: str) -> bool:
    """Whether the process that was ``pid`` at its ``birth`` still runs."""
    return bool(birth) and born(pid) == birth


def tie(parent: int, sent: signal.Signals = signal.SIGTERM) -> None:
    """From now on this process is sent a signal when its parent ends, however that ends; at once if it has."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, sent)
    if os.getppid() != parent:
        os.kill(os.getpid(), sent)


def children(pid: int) -> list[int]:
    """The processes that a process started and that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid and fields[0] not in ("Z", "X"):
                found.append(int(entry.name))
    return found


@contextmanager
def private() -> Iterator[None]:
    """Whatever this process, and those that it starts, write belongs to its user alone: files 0600, folders 0700.

    The libraries that write into the store ask for no mode of their own, so it is the process's umask that decides.
    """
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


if __name__ == "__main__":
    tie(int(sys.argv[1]))
    del sys.argv[:2]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
