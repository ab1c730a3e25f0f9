"""A guard: a unit test, or its fixture, that starts a process or a server fails."""

import sys
from collections.abc import Generator
from typing import Any

import pytest

FORBIDDEN = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn"}
ALLOWED_PROGRAMS = {"lscpu", "uname", "fc-list"}  # programs that joblib, platform and Matplotlib start
_state = {"active": False, "installed": False}


def _refuse_processes(event: str, arguments: tuple[Any, ...]) -> None:
    if not _state["active"]:
        return
    if event in FORBIDDEN and str(arguments[0] if arguments else "") not in ALLOWED_PROGRAMS:
        raise AssertionError(f"a unit test starts a process ({event} {arguments}): move it to tests/integration")
    if event == "socket.bind" and isinstance(arguments[1], tuple):
        raise AssertionError(f"a unit test opens a port ({arguments[1]}): move it to tests/integration")


def _guard_processes() -> Generator[None, object, object]:
    if not _state["installed"]:  # an audit hook cannot be removed
        sys.addaudithook(_refuse_processes)
        _state["installed"] = True
    _state["active"] = True
    try:
        return (yield)
    finally:
        _state["active"] = False


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, object, object]:
    return (yield from _guard_processes())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    return (yield from _guard_processes())
