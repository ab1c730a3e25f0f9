"""What a process queries of its listening sockets when it shuts down."""

import socket
import sys
from collections.abc import Iterator

import pytest

from towline.serving.process.http_server import are_filtered, filter_new_connections, is_connection_waiting

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux answers")


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener


def test_a_connection_waits_until_it_is_accepted(listener: socket.socket) -> None:
    """If the socket were closed before, the connection would be reset."""
    assert not is_connection_waiting([listener])
    with socket.create_connection(listener.getsockname()):
        assert is_connection_waiting([listener])
        listener.accept()[0].close()
        assert not is_connection_waiting([listener])


def test_a_filter_of_another_process_is_detected(listener: socket.socket) -> None:
    """Workers share the sockets with their supervisor, which attaches the filter."""
    with listener.dup() as shared:
        assert not are_filtered([shared])
        filter_new_connections([listener])
        assert are_filtered([shared])
