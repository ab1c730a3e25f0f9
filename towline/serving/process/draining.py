"""uvicorn's server, with an end that load balancers see coming and that no request is lost by."""

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator

from uvicorn.config import Config
from uvicorn.server import Server

from towline.serving.process.connection import HttpConnection
from towline.serving.process.sockets import refuse_new

SETTLE_S = 0.2  # seconds to empty the queue of connections once it takes no more
LINGER_S = 0.5  # seconds for requests on connections that were taken last

_LOG = logging.getLogger("towline.serving")
_CLOSE = (b"connection", b"close")


class DrainingServer(Server):
    """Ends on SIGTERM and SIGINT in three steps.

    For ``grace`` seconds it goes on as before, but for its readiness and for closing each connection behind its
    answer. Then new connections are kept out of the queue, the queue is emptied, and the sockets are closed. What was
    taken until then is answered.

    Args:
        config: uvicorn's.
        grace: seconds.
        drain: seconds after which nothing is waited for any more; ``left`` tells how many of them remain.
        started: called once requests are answered.
        draining: called when the end begins.
        orphaned: a file descriptor that ends when the supervisor does: this process ends then too. The supervisor
            shares the sockets with other processes, so it is the one to keep new connections out.
    """

    def __init__(
        self,
        config: Config,
        grace: float,
        drain: float,
        started: Callable[[], None],
        draining: Callable[[], None],
        orphaned: int | None = None,
    ) -> None:
        super().__init__(config)
        self._grace, self._drain = grace, drain
        self._started, self._draining, self._orphaned = started, draining, orphaned
        self._listeners: list[socket.socket] = []
        self._until: float | None = None  # when the sockets are closed
        self._latest = 0.0
        self._settling = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._listeners = sockets or []
        await super().startup(sockets)
        if self.started:
            self._started()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, self._end, name)
        if self._orphaned is not None:
            loop.add_reader(self._orphaned, self._end, None)
        yield

    async def on_tick(self, counter: int) -> bool:
        await super().on_tick(counter)
        state, now = self.server_state, time.monotonic()
        if counter % 10 == 0:
            self._end_stale()
        if self._until is None:
            return False
        if _CLOSE not in state.default_headers:
            state.default_headers = [*state.default_headers, _CLOSE]
        if now > self._until - SETTLE_S and not self._settling and self._orphaned is None:
            self._settling = True
            refuse_new(self._listeners)
        return self.force_exit or now > self._until

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        # what has only just been taken, or has only just been asked on an idle connection, is still to be read
        until = time.monotonic() + LINGER_S
        while self.server_state.connections and time.monotonic() < until and not self.force_exit:
            await asyncio.sleep(0.02)
        self.config.timeout_graceful_shutdown = max(1, int(self.left()))
        await super().shutdown(sockets)

    def _end(self, name: signal.Signals | None) -> None:
        if self._until is not None:
            self.force_exit |= name == signal.SIGINT  # a second interrupt waits for nobody
            return
        _LOG.info("ending: %s", name.name if name else "the supervisor is gone")
        if self._orphaned is not None:
            asyncio.get_running_loop().remove_reader(self._orphaned)
        self._draining()
        self._until = time.monotonic() + self._grace
        self._latest = time.monotonic() + self._drain

    def left(self) -> float:
        """Seconds until the end is due."""
        return self._latest - time.monotonic()

    def _end_stale(self) -> None:
        now = asyncio.get_running_loop().time()
        for connection in list(self.server_state.connections):
            if isinstance(connection, HttpConnection):
                connection.end_if_stale(now)
