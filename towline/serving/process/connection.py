"""One HTTP connection: uvicorn's, with bounds on what a request may bring beside its body and how long it may take.

uvicorn's parser takes headers without end and waits for the rest of a request for ever. It parses whatever one read of
the socket brings, up to 256 KB, in one go, and resets a connection whose sender is not done when it is refused.
"""

import asyncio
import http
import json
import time
import weakref
from collections import deque
from typing import Any
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

MAX_HEADER_BYTES = 65_536  # bytes of a request that are not its body: line, headers, the framing of chunks
MAX_FRAMING_RATIO = 4  # bytes of a body for each further byte of framing
REQUEST_TIMEOUT_S = 60.0  # seconds in which a request must have come whole
MAX_BUFFERED_BODY = 262_144  # bytes of a body that wait for the application
PARSE_SLICE = 2_048  # bytes that are parsed at once
CONNECTION_TURN_S = 0.0001  # seconds that one connection parses what is large before the next one has its turn
PARSE_TURN_S, PARSE_PAUSE_S = (
    0.0003,
    0.001,
)  # seconds that all of them together parse at once, and how long they pause then
DISCARD_BUFFER = 65_536  # bytes that are discarded at once, before the next pause
LINGER_BYTES = 64_000_000  # read and discarded from the sender of a refused request, at most
LINGER_SECONDS, LINGER_IDLE = 30.0, 5.0  # how long it is read from, at most: in all, and without a byte
LINGER_LOOK = 1.0  # seconds between two looks at that


class CoalescingTransport:
    """A transport; what is written in one turn of the event loop leaves in one call to the system."""

    def __init__(self, transport: asyncio.Transport, connection: "HttpConnection") -> None:
        self.raw, self._connection = transport, connection
        self._call_soon = connection.loop.call_soon
        self._held: list[bytes] = []
        self.lingering = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)

    def write(self, data: bytes) -> None:
        if not self._held:
            self._call_soon(self.flush)
        self._held.append(data)

    def is_closing(self) -> bool:
        return self.lingering or self.raw.is_closing()

    def close(self) -> None:
        """Closes behind what was written; if the other end is not done sending, only when it is."""
        self.flush()
        if self._connection.expects_more and not self.is_closing():
            self._connection.linger()
        elif not self.lingering:
            self.raw.close()

    def flush(self) -> None:
        if self._held and not self.raw.is_closing():
            held, self._held = self._held, []
            self.raw.writelines(held)


class BodyFlowControl(FlowControl):
    """Whether the connection is parsed. ``asked``: whether the application wants the body of its request."""

    def __init__(self, transport: asyncio.Transport, connection: "HttpConnection") -> None:
        super().__init__(transport)
        self._connection = connection
        self.asked = False

    def pause_reading(self) -> None:
        if not self.read_paused:
            self.read_paused = True
            self._connection.pause()

    def resume_reading(self) -> None:
        self.asked = True
        if self.read_paused and not self._connection.pipeline:  # one request is parsed ahead, at most a slice of them
            self.read_paused = False
            self._connection.resume()


class RequestCycle(RequestResponseCycle):
    """uvicorn's request and its answer. Where the answer comes before the whole body, the connection ends with it."""

    @property
    def keep_alive(self) -> bool:
        return self._keep_alive and not self.more_body

    @keep_alive.setter
    def keep_alive(self, value: bool) -> None:
        self._keep_alive = value


class ParseScheduler:
    """Parses large reads slice by slice, those of all connections in turn, so that small requests come in between."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[HttpConnection] = deque()

    def add(self, connection: "HttpConnection") -> None:
        if not self._waiting:
            self._loop.call_soon(self._turn)
        self._waiting.append(connection)

    def _turn(self) -> None:
        end = time.perf_counter() + PARSE_TURN_S
        while self._waiting:
            connection = self._waiting[0]
            if connection.parse_waiting():
                self._waiting.rotate(-1)
            else:
                self._waiting.popleft()
            if time.perf_counter() >= end:
                break
        if self._waiting:
            self._loop.call_later(PARSE_PAUSE_S, self._turn)  # a small request takes several turns of the loop


_DISCARDED = bytearray(DISCARD_BUFFER)  # what any of them reads
_PACES: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, ParseScheduler]" = weakref.WeakKeyDictionary()


class HttpConnection(HttpToolsProtocol):
    """Answers 431 to headers that do not end, 400 to a body in tiny chunks and 408 to what does not come whole."""

    flow: BodyFlowControl

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._beside = 0  # bytes of the present request, without its body
        self._body = 0
        self._length: int | None = None  # as the present request has it, once looked up; 0 for chunks
        self._began = self.loop.time()  # when the present request did; 0 while none has
        self._unparsed: deque[memoryview] = deque()
        self._queued = False  # whether Pace has it
        self._pace = _PACES.get(self.loop) or _PACES.setdefault(self.loop, ParseScheduler(self.loop))

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport: CoalescingTransport = CoalescingTransport(transport, self)  # type: ignore[assignment]
        self.flow = BodyFlowControl(transport, self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._unparsed.clear()
        super().connection_lost(exc)

    @property
    def expects_more(self) -> bool:
        """Whether a request is under way of which bytes have yet to come or to be parsed."""
        return bool(self._unparsed or self.pipeline or (self.cycle is not None and self.cycle.more_body))

    def data_received(self, data: bytes) -> None:
        if not self._began:
            self._began = self.loop.time()
        if len(data) > PARSE_SLICE or self.flow.read_paused or self._unparsed:
            self._unparsed.append(memoryview(data))
            self.transport.raw.pause_reading()
            self._queue()
        else:
            self._parse(data)

    def parse_waiting(self) -> bool:
        """Parses what waits for it, for a short time; whether there is more that may be parsed."""
        end = time.perf_counter() + CONNECTION_TURN_S
        while self._unparsed and not self.flow.read_paused:
            first = self._unparsed.popleft()
            size = max(PARSE_SLICE, self._announced())
            if len(first) > size:
                self._unparsed.appendleft(first[size:])
            self._parse(first[:size])
            if time.perf_counter() >= end:
                break
        self._queued = bool(self._unparsed) and not self.flow.read_paused
        if not self._unparsed and not self.flow.read_paused and not self.transport.is_closing():
            self.transport.raw.resume_reading()
        return self._queued

    def _announced(self) -> int:
        """How many of the next bytes are one piece for the parser: the rest of a body of which the length is known."""
        if self.cycle is None or not self.cycle.more_body:
            return 0
        if self._length is None:
            # the parser has seen to it that this is a number, and the only one
            self._length = int(dict(self.headers).get(b"content-length", b"0"))
        return self._length - self._body

    def pause(self) -> None:
        """Called by the flow: the application has enough for now."""
        self.transport.raw.pause_reading()

    def resume(self) -> None:
        """Called by the flow: the application takes more."""
        if self._unparsed:
            self._queue()
        elif not self.transport.is_closing():
            self.transport.raw.resume_reading()

    def linger(self) -> None:
        """Goes on reading, and discards what comes, so that the sender gets to read its answer."""
        transport = self.transport.raw
        self.transport.flush()
        self.transport.lingering = True
        self._unset_keepalive_if_required()
        self.pipeline.clear()
        self.connection_lost(ConnectionAbortedError())  # for this protocol it ends here
        transport.pause_reading()  # so that the next read is into the other protocol's buffer
        transport.set_protocol(LingeringClose(transport, self.loop, self.connections))
        transport.resume_reading()

    def on_headers_complete(self) -> None:
        """uvicorn's, with a cycle of ours, and nothing of what this service does not use."""
        scope, version = self.scope, self.parser.get_http_version()
        if version != "1.1":
            scope["http_version"] = version
        scope["method"] = self.parser.get_method().decode("ascii")
        url = httptools.parse_url(self.url)
        path = url.path.decode("ascii")
        scope["path"] = unquote(path) if "%" in path else path
        scope["raw_path"] = url.path
        scope["query_string"] = url.query or b""
        before = self.cycle
        self.cycle = RequestCycle(
            scope=scope,
            transport=self.transport,  # type: ignore[arg-type]
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self.flow.asked = False
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        size, cycle = len(body), self.cycle
        self._body += size
        self._beside -= size
        cycle.body += body
        if len(cycle.body) > MAX_BUFFERED_BODY:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        cycle = self.cycle
        cycle.more_body = False
        cycle.message_event.set()
        self._beside = self._body = 0
        self._length = None
        self._began = 0.0

    def end_if_stale(self, now: float) -> None:
        """Answers 408 to a request that began too long ago to be still coming."""
        if self._began and now - self._began > REQUEST_TIMEOUT_S and not self.transport.is_closing():
            self.send_400_response(f"The request did not come whole within {REQUEST_TIMEOUT_S:g} seconds.", 408)

    def send_400_response(self, msg: str, status: int = 400) -> None:
        """Ends the connection with a problem, as the application's own errors are told."""
        title = http.HTTPStatus(status).phrase
        body = json.dumps({"type": "about:blank", "title": title, "status": status, "detail": msg}).encode()
        headers = b"content-type: application/problem+json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(
            body
        )
        self.transport.write(STATUS_LINE[status] + headers + body)
        self.linger()

    def _queue(self) -> None:
        if not self._queued and not self.flow.read_paused:
            self._queued = True
            self._pace.add(self)

    def _parse(self, data: bytes | memoryview) -> None:
        self._beside += len(data)
        super().data_received(data)  # type: ignore[arg-type]
        # small chunks have more framing than content: what may come beside a body grows with it
        if self._beside > MAX_HEADER_BYTES + self._body // MAX_FRAMING_RATIO:
            if self.transport.is_closing():
                return
            if self._body:
                self.send_400_response("The body comes in very small chunks: send larger ones, or a Content-Length.")
            else:
                self.send_400_response("The request's headers are too large.", 431)
        elif (
            self.cycle is not None and self.cycle.more_body and not self.flow.asked and not self.transport.is_closing()
        ):
            self.flow.pause_reading()  # until the application knows who asks


class LingeringClose(asyncio.BufferedProtocol):
    """The end of a connection whose sender was refused and is not done: what it sends is discarded.

    If it were closed at once, the system would answer the next bytes with a reset, and the sender would not see why it
    was refused.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, connections: set[Any]) -> None:
        self._transport, self._loop, self._connections = transport, loop, connections
        self._left = LINGER_BYTES
        self._last = loop.time()
        self._until = self._last + LINGER_SECONDS
        connections.add(self)  # the server waits for it when it ends
        self._timer = loop.call_later(LINGER_LOOK, self._look)
        if transport.can_write_eof():
            transport.write_eof()  # behind the answer: who has read it closes

    def get_buffer(self, sizehint: int) -> bytearray:
        del sizehint
        return _DISCARDED

    def buffer_updated(self, nbytes: int) -> None:
        self._last = self._loop.time()
        self._left -= nbytes
        if self._left < 0:
            self._transport.abort()
        elif nbytes == DISCARD_BUFFER:  # as fast as it can be sent it would take a core
            self._transport.pause_reading()
            self._loop.call_later(PARSE_PAUSE_S, self._resume)

    def _resume(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._timer.cancel()
        self._connections.discard(self)

    def shutdown(self) -> None:
        """Called when the server ends; the bounds hold."""

    def _look(self) -> None:
        now = self._loop.time()
        if now > self._until or now > self._last + LINGER_IDLE:
            self._transport.abort()
        else:
            self._timer = self._loop.call_later(LINGER_LOOK, self._look)
