"""The HTTP server of one process: its listening sockets, and uvicorn with a graceful shutdown.

Shutdown has three steps. During the grace period the process still accepts connections but reports "not ready". Then
the kernel filters out new connections while the accept queue is emptied. At the end the sockets are closed and every
accepted request is answered.
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

SETTLE_S = 0.2  # seconds to empty the accept queue after new connections are filtered out
LINGER_S = 0.5  # seconds for a further request on an idle connection
FIRST_REQUEST_S = 5.0  # seconds for the first request on a new connection: its client may be waiting for a processor
_LOG = logging.getLogger("towline.serving")
_CLOSE = (b"connection", b"close")
_ATTACH_FILTER = 26  # SO_ATTACH_FILTER; the socket module does not define it
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
        self._filtering = False

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
        if now > self._close_at - SETTLE_S and not self._filtering and self._lifecycle.supervisor_pipe is None:
            self._filtering = True
            filter_new_connections(self._listeners)
        return self.force_exit or now > self._close_at

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
