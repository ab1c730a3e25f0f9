"""Waiting for a condition, and free ports."""

import socket
import time
from collections.abc import Callable
from typing import Any


def wait_until(
    condition: Callable[[], Any], description: str = "", *, seconds: float = 120, pause: float = 0.02
) -> Any:
    """Waits until a function returns a true value, and returns the value.

    Args:
        condition: the function.
        description: of the condition, for the message if it is not met.
        seconds: until the test fails.
        pause: seconds between two calls.
    """
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {description or condition}"
        time.sleep(pause)
    return value


def free_port() -> int:
    """A free TCP port on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
