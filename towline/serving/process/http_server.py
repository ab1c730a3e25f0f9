"""The HTTP server of one process: its listening sockets, and uvicorn with a graceful shutdown.

Shutdown has three steps. During the grace period the process still accepts connections but reports "not ready". Then
the kernel filters out new connections while the accept queue is emptied. When it is empty, the sockets are closed, and
every accepted request is answered.
"""

import asyncio
import contextlib
import ctypes
import errno
import ipaddress
import logging
import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from uvicorn.config import Config
from uvicorn.server import Server

from towline.errors import ConfigError
from towline.serving.process.connection import HttpConnection

SETTLE_S = 0.2  # seconds to empty the accept queue after new connections are filtered out, at least
LINGER_S = 0.5  # seconds for a further request on an idle connection
FIRST_REQUEST_S = 5.0  # seconds for the first request on a new connection: its client may be waiting for a processor
QUEUE_S = 5.0  # further seconds to empty it, at most: a busy machine may not have accepted all connections
FILTER_S = 1.0  # seconds to wait for the filter of a busy supervisor; a worker that ends alone gets none
_TCP_INFO_UNACKED = (
    24  # place in struct tcp_info; of a listening socket, Linux puts the length of the accept queue there
)
_LOG = logging.getLogger("towline.serving")
_CLOSE = (b"connection", b"close")
_ATTACH_FILTER = 26  # SO_ATTACH_FILTER, SO_GET_FILTER to read it; the socket module does not define them
# classic BPF on the TCP header: drop packets with SYN and without ACK, accept all others
_DROP_SYN = ((0x30, 0, 0, 13), (0x54, 0, 0, 0x12), (0x15, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))


def bind_sockets(host: str, port: int) -> list[socket.socket]:
    """Binds one listening socket for each address of a host.

    Args:
        host: an address of this machine, or a name for it.
        port: 0 picks a free port, the same for all addresses.

    Raises:
        ConfigError: the host is not an address of this machine, or the port is in use or not permitted.
    """
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(f"no such host: {error.strerror}", where=host, remedy="give an address to --host") from None
    sockets: list[socket.socket] = []
    for family, address in dict.fromkeys((entry[0], entry[4]) for entry in addresses):
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound_port = sockets[0].getsockname()[1] if sockets else port
        try:
            listener.bind((address[0], bound_port, *address[2:]))
            listener.listen()  # a port that another process has bound fails only here
        except OSError as error:
            listener.close()
            if error.errno == errno.EADDRNOTAVAIL and sockets:
                continue  # a name may resolve to an address family that this machine does not have
            for other in sockets:
                other.close()
            raise _bind_error(error, host, port) from None
        listener.setblocking(False)
        sockets.append(listener)
    return sockets


def is_reachable(sockets: Sequence[socket.socket]) -> bool:
    """Whether other machines can reach one of the sockets."""
    return not all(
        ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback for listener in sockets
    )


def filter_new_connections(sockets: Sequence[socket.socket]) -> None:
    """Drops new connections before they enter the accept queue, so that it can be emptied and closed.

    A client that connects meanwhile gets no reply, retries after a second, and is then refused or served by another
    process. On a system without socket filters this does nothing.
    """
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in _DROP_SYN))
    program = struct.pack("HL", len(_DROP_SYN), ctypes.addressof(code))
    for listener in sockets:
        with contextlib.suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, program)


def are_filtered(sockets: Sequence[socket.socket]) -> bool:
    """Whether new connections are dropped, by any process that shares the sockets; True if the system does not tell."""
    for listener in sockets:
        with contextlib.suppress(OSError):  # EINVAL: the filter has more instructions than the four that fit in an int
            listener.getsockopt(socket.SOL_SOCKET, _ATTACH_FILTER)
            return False
    return True


def is_connection_waiting(sockets: Sequence[socket.socket]) -> bool:
    """Whether a connection waits to be accepted. It would be reset when the last process closes the socket."""
    lengths = list[int]()
    for listener in sockets:
        with contextlib.suppress(OSError, AttributeError, struct.error):  # a system without TCP_INFO
            info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_UNACKED + 4)
            lengths += struct.unpack_from("I", info, _TCP_INFO_UNACKED)
    return any(lengths)


class Lifecycle(NamedTuple):
    """When a server shuts down, and whom it notifies.

    Attributes:
        grace: seconds to accept requests after SIGTERM, so that load balancers notice.
        drain: seconds from SIGTERM to the end, at most.
        on_started: called when requests are answered.
        on_draining: called when the shutdown begins.
        supervisor_pipe: file descriptor that closes when the supervisor ends; this process then ends too. The
            supervisor shares the sockets with all workers, so it filters new connections itself.
    """

    grace: float
    drain: float
    on_started: Callable[[], None]
    on_draining: Callable[[], None]
    supervisor_pipe: int | None = None


class DrainingServer(Server):
    """uvicorn's server with a graceful shutdown on SIGTERM and SIGINT. A second SIGINT ends it immediately."""

    def __init__(self, config: Config, lifecycle: Lifecycle) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle
        self._listeners: list[socket.socket] = []
        self._close_at: float | None = None  # when the sockets are closed
        self._deadline = 0.0
        self._filtered_at: float | None = None  # when new connections were seen to be filtered out

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._listeners = sockets or []
        await super().startup(sockets)
        if self.started:
            self._lifecycle.on_started()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._begin_shutdown, number)
        if self._lifecycle.supervisor_pipe is not None:
            loop.add_reader(self._lifecycle.supervisor_pipe, self._begin_shutdown, None)
        yield

    async def on_tick(self, counter: int) -> bool:
        await super().on_tick(counter)
        state, now = self.server_state, time.monotonic()
        if counter % 10 == 0:
            loop_time = asyncio.get_running_loop().time()
            for connection in list(state.connections):
                if isinstance(connection, HttpConnection):
                    connection.end_if_stale(loop_time)
        if self._close_at is None:
            return False
        if _CLOSE not in state.default_headers:
            state.default_headers = [*state.default_headers, _CLOSE]
        if now > self._close_at - SETTLE_S and self._filtered_at is None:
            if self._lifecycle.supervisor_pipe is None:
                filter_new_connections(self._listeners)
            self._filtered_at = now if are_filtered(self._listeners) else None
        return self.force_exit or (now > self._close_at and self._may_close(now))

    def _may_close(self, now: float) -> bool:
        """Whether no connection would be reset: new ones are filtered out, and all earlier ones are accepted."""
        assert self._close_at is not None  # noqa: S101
        if self._filtered_at is None:
            return now > self._close_at + FILTER_S
        last = min(self._close_at + QUEUE_S, self._deadline - FIRST_REQUEST_S)
        is_empty = now > self._filtered_at + SETTLE_S and not is_connection_waiting(self._listeners)
        return is_empty or now > last

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        # connections that were just accepted, or idle ones that just sent a request, must still be read
        closed = time.monotonic()
        while self.server_state.connections and not self.force_exit:
            wait = FIRST_REQUEST_S if self._awaits_first_request() else LINGER_S
            if time.monotonic() > min(closed + wait, self._deadline):
                break
            await asyncio.sleep(0.02)
        self.config.timeout_graceful_shutdown = max(1, int(self.seconds_left()))
        await super().shutdown(sockets)

    def _awaits_first_request(self) -> bool:
        connections = (item for item in self.server_state.connections if isinstance(item, HttpConnection))
        return any(connection.cycle is None for connection in connections)

    def seconds_left(self) -> float:
        """Seconds until the drain period is over."""
        return self._deadline - time.monotonic()

    def _begin_shutdown(self, number: signal.Signals | None) -> None:
        if self._close_at is not None:
            self.force_exit |= number == signal.SIGINT
            return
        _LOG.info("shutting down: %s", number.name if number else "the supervisor has ended")
        if self._lifecycle.supervisor_pipe is not None:
            asyncio.get_running_loop().remove_reader(self._lifecycle.supervisor_pipe)
        self._lifecycle.on_draining()
        self._close_at = time.monotonic() + self._lifecycle.grace
        self._deadline = time.monotonic() + self._lifecycle.drain


def _bind_error(error: OSError, host: str, port: int) -> ConfigError:
    remedies = {
        errno.EADDRINUSE: "stop the process that uses it, or give another --port (0 picks a free one)",
        errno.EACCES: "give a --port above 1023",
        errno.EADDRNOTAVAIL: "give an address of this machine to --host",
    }
    return ConfigError(
        f"cannot listen: {os.strerror(error.errno or 0)}",
        where=f"{host}:{port}",
        remedy=remedies.get(error.errno or 0, "give another --host or --port"),
    )
