"""A guard: a unit test that starts a process or a server fails."""

import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

FORBIDDEN = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn"}
ALLOWED_PROGRAMS = {"lscpu"}  # joblib counts the cores with it
_state = {"active": False, "installed": False}


def _refuse_processes(event: str, arguments: tuple[Any, ...]) -> None:
    if not _state["active"]:
        return
    if event in FORBIDDEN and str(arguments[0] if arguments else "") not in ALLOWED_PROGRAMS:
        raise AssertionError(f"a unit test starts a process ({event} {arguments}): move it to tests/integration")
    if event == "socket.bind" and isinstance(arguments[1], tuple):
        raise AssertionError(f"a unit test opens a port ({arguments[1]}): move it to tests/integration")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    if not _state["installed"]:  # an audit hook cannot be removed
        sys.addaudithook(_refuse_processes)
        _state["installed"] = True
    _state["active"] = Path(__file__).parent in item.path.parents  # the hook is called for tests of all folders
    try:
        return (yield)
    finally:
        _state["active"] = False
