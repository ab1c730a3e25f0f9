"""The HTTP/1.1 connection of the service: that of uvicorn, with limits on headers, chunk framing and time per request.

uvicorn accepts headers of any size and waits for the rest of a request without a timeout. It parses everything that one
read of the socket returns, up to 256 KB, in one step. When it refuses a request that is still being sent, it resets the
connection, so that the client does not see the response.
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

MAX_HEADER_BYTES = 65_536  # maximum bytes of a request besides its body: request line, headers, framing of chunks
MAX_FRAMING_RATIO = 4  # bytes of a body that allow one further byte of framing
REQUEST_TIMEOUT_S = 60.0  # seconds until a request must be complete
MAX_BUFFERED_BODY = 262_144  # maximum bytes of a body that wait for the application
PARSE_SLICE = 2_048  # bytes that are parsed in one step
CONNECTION_TURN_S = 0.0001  # seconds that one connection parses a large read before the next connection
PARSE_TURN_S, PARSE_PAUSE_S = 0.0003, 0.001  # seconds that all connections parse large reads, and pause afterwards
DISCARD_BUFFER = 65_536  # bytes that are discarded before a pause
LINGER_BYTES = 64_000_000  # maximum bytes that are discarded of a refused request
LINGER_TOTAL_S, LINGER_IDLE_S = 30.0, 5.0  # maximum seconds until the connection is closed: in total, without data
LINGER_CHECK_S = 1.0  # seconds between two checks of these limits
_KEEP_ALIVE = (b"connection", b"keep-alive")


class CoalescingTransport:
    """A transport that sends everything written in one iteration of the event loop with one system call."""

    def __init__(self, transport: asyncio.Transport, connection: "HttpConnection") -> None:
        self.raw, self._connection = transport, connection
        self._call_soon = connection.loop.call_soon
        self._pending: list[bytes] = []
        self.lingering = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)

    def write(self, data: bytes) -> None:
        if not self._pending:
            self._call_soon(self.flush)
        self._pending.append(data)

    def is_closing(self) -> bool:
        return self.lingering or self.raw.is_closing()

    def close(self) -> None:
        """Closes after the pending data is sent; if the client is still sending, only when it has finished."""
        self.flush()
        if self._connection.expects_more and not self.is_closing():
            self._connection.linger()
        elif not self.lingering:
            self.raw.close()

    def flush(self) -> None:
        if self._pending and not self.raw.is_closing():
            pending, self._pending = self._pending, []
            self.raw.writelines(pending)


class BodyFlowControl(FlowControl):
    """Pauses and resumes parsing; ``body_requested``: whether the application has started to read the body."""

    def __init__(self, transport: asyncio.Transport, connection: "HttpConnection") -> None:
        super().__init__(transport)
        self._connection = connection
        self.body_requested = False

    def pause_reading(self) -> None:
        if not self.read_paused:
            self.read_paused = True
            self._connection.pause()

    def resume_reading(self) -> None:
        self.body_requested = True
        if (
            self.read_paused and not self._connection.pipeline
        ):  # at most one slice of pipelined requests is parsed ahead
            self.read_paused = False
            self._connection.resume()


class RequestCycle(RequestResponseCycle):
    """uvicorn's request and response. A response before the end of the body closes the connection."""

    @property
    def keep_alive(self) -> bool:
        return self._keep_alive and not self.more_body

    @keep_alive.setter
    def keep_alive(self, value: bool) -> None:
        self._keep_alive = value


class Http10Cycle(RequestCycle):
    """A request of HTTP/1.0, whose connection stays open only if both sides say so."""

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start" and self.keep_alive:
            headers = [*message.get("headers", ()), _KEEP_ALIVE]
            if not any(name == b"connection" for name, _ in (*self.default_headers, *headers[:-1])):
                message = {**message, "headers": headers}
        await super().send(message)


class ParseScheduler:
    """Parses large reads in slices, alternately for all connections, so that small requests are answered in between."""

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
            self._loop.call_later(PARSE_PAUSE_S, self._turn)  # a small request needs several iterations of the loop


_DISCARDED = bytearray(DISCARD_BUFFER)  # shared buffer: its content is never read
_SCHEDULERS: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, ParseScheduler]" = weakref.WeakKeyDictionary()


class HttpConnection(HttpToolsProtocol):
    """Answers 431 to too large headers, 400 to a body in tiny chunks, and 408 to a request that takes too long."""

    flow: BodyFlowControl

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._overhead = 0  # bytes of the current request besides its body
        self._body = 0
        self._length: int | None = None  # Content-Length of the current request, once it was read; 0 for chunks
        self._began = self.loop.time()  # when the current request began; 0 between requests
        self._unparsed: deque[memoryview] = deque()
        self._queued = False  # whether the scheduler has this connection
        self._scheduler = _SCHEDULERS.get(self.loop) or _SCHEDULERS.setdefault(self.loop, ParseScheduler(self.loop))

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport: CoalescingTransport = CoalescingTransport(transport, self)  # type: ignore[assignment]
        self.flow = BodyFlowControl(transport, self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._unparsed.clear()
        super().connection_lost(exc)

    @property
    def expects_more(self) -> bool:
        """Whether a request has bytes that were not received or parsed yet."""
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
        """Parses waiting bytes for a short time; returns whether more can be parsed."""
        end = time.perf_counter() + CONNECTION_TURN_S
        while self._unparsed and not self.flow.read_paused:
            first = self._unparsed.popleft()
            size = max(PARSE_SLICE, self._count_body_bytes())
            if len(first) > size:
                self._unparsed.appendleft(first[size:])
            self._parse(first[:size])
            if time.perf_counter() >= end:
                break
        self._queued = bool(self._unparsed) and not self.flow.read_paused
        if not self._unparsed and not self.flow.read_paused and not self.transport.is_closing():
            self.transport.raw.resume_reading()
        return self._queued

    def _count_body_bytes(self) -> int:
        """How many of the next bytes can be parsed in one step: the rest of a body with a known length."""
        if self.cycle is None or not self.cycle.more_body:
            return 0
        if self._length is None:
            # the parser has checked that the header occurs once and is a number
            self._length = int(dict(self.headers).get(b"content-length", b"0"))
        return self._length - self._body

    def pause(self) -> None:
        """Called by the flow control: the application cannot take more data now."""
        self.transport.raw.pause_reading()

    def resume(self) -> None:
        """Called by the flow control: the application can take more data."""
        if self._unparsed:
            self._queue()
        elif not self.transport.is_closing():
            self.transport.raw.resume_reading()

    def linger(self) -> None:
        """Continues to read and discards the data, so that the client can read its response."""
        transport = self.transport.raw
        self.transport.flush()
        self.transport.lingering = True
        self._unset_keepalive_if_required()
        self.pipeline.clear()
        self.connection_lost(ConnectionAbortedError())  # for this protocol the connection ends here
        transport.pause_reading()  # so that the next read uses the buffer of the new protocol
        transport.set_protocol(LingeringClose(transport, self.loop, self.connections))
        transport.resume_reading()

    def on_headers_complete(self) -> None:
        """As in uvicorn, with ``RequestCycle`` and without the features that this service does not use."""
        if self.parser.should_upgrade():
            return  # ``_parse_without_upgrade`` parses the headers again
        scope, version = self.scope, self.parser.get_http_version()
        if version != "1.1":
            scope["http_version"] = version
        scope["method"] = self.parser.get_method().decode("ascii")
        url = httptools.parse_url(self.url)
        raw_path = url.path or b"/"  # http://host without a path
        path = raw_path.decode("ascii")
        scope["path"] = unquote(path) if "%" in path else path
        scope["raw_path"] = raw_path
        scope["query_string"] = url.query or b""
        before = self.cycle
        self.cycle = (Http10Cycle if version == "1.0" else RequestCycle)(
            scope=scope,
            transport=self.transport,  # type: ignore[arg-type]
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self.flow.body_requested = False
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        size, cycle = len(body), self.cycle
        self._body += size
        self._overhead -= size
        cycle.body += body
        if len(cycle.body) > MAX_BUFFERED_BODY:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        cycle = self.cycle
        cycle.more_body = False
        cycle.message_event.set()
        self._overhead = self._body = 0
        self._length = None
        self._began = 0.0

    def end_if_stale(self, now: float) -> None:
        """Answers 408 to a request that is not complete after ``REQUEST_TIMEOUT_S``."""
        if self._began and now - self._began > REQUEST_TIMEOUT_S and not self.transport.is_closing():
            self.send_400_response(f"The request was not complete within {REQUEST_TIMEOUT_S:g} seconds.", 408)

    def send_400_response(self, msg: str, status: int = 400) -> None:
        """Sends a problem document, as the application does for its errors, and closes the connection."""
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
            self._scheduler.add(self)

    def _parse(self, data: bytes | memoryview) -> None:
        self._overhead += len(data)
        self._feed(data)
        # chunked bodies need framing: the limit grows with the size of the body
        if self._overhead > MAX_HEADER_BYTES + self._body // MAX_FRAMING_RATIO:
            if self.transport.is_closing():
                return
            if self._body:
                self.send_400_response("The chunks of the body are very small: send larger ones, or a Content-Length.")
            else:
                self.send_400_response("The request's headers are too large.", 431)
        elif (
            self.cycle is not None
            and self.cycle.more_body
            and not self.flow.body_requested
            and not self.transport.is_closing()
        ):
            self.flow.pause_reading()  # until the application has checked the key and reads the body

    def _feed(self, data: bytes | memoryview) -> None:
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._parse_without_upgrade(bytes(data[upgrade.args[0] :]))
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")

    def _parse_without_upgrade(self, rest: bytes) -> None:
        """Parses a request for another protocol as one without: Java's client requests h2c by default.

        The parser would read the bytes after such headers as the other protocol, and ignore the body.
        """
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":
            self.send_400_response("Invalid HTTP request received.")
            return
        headers = [b"%b: %b" % (name, value) for name, value in self.headers if name != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self._feed(b"\r\n".join([b"%b %b HTTP/%b" % (method, self.url, version), *headers, b"", rest]))


class LingeringClose(asyncio.BufferedProtocol):
    """Closes a connection whose request was refused while the client is still sending; discards the received data.

    If the socket were closed immediately, the system would answer further data with a reset, and the client would not
    get the response.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, connections: set[Any]) -> None:
        self._transport, self._loop, self._connections = transport, loop, connections
        self._left = LINGER_BYTES
        self._last = loop.time()
        self._until = self._last + LINGER_TOTAL_S
        connections.add(self)  # the server waits for it on shutdown
        self._timer = loop.call_later(LINGER_CHECK_S, self._check_limits)
        if transport.can_write_eof():
            transport.write_eof()  # after the response: the client closes when it has read it

    def get_buffer(self, sizehint: int) -> bytearray:
        del sizehint
        return _DISCARDED

    def buffer_updated(self, nbytes: int) -> None:
        self._last = self._loop.time()
        self._left -= nbytes
        if self._left < 0:
            self._transport.abort()
        elif nbytes == DISCARD_BUFFER:  # at full speed, discarding would use a whole core
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
        """Called when the server shuts down; the limits above still apply."""

    def _check_limits(self) -> None:
        now = self._loop.time()
        if now > self._until or now > self._last + LINGER_IDLE_S:
            self._transport.abort()
        else:
            self._timer = self._loop.call_later(LINGER_CHECK_S, self._check_limits)
