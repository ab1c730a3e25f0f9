"""Parsing and timeouts of a connection, with a fake transport."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from towline.serving.process import connection
from towline.serving.process.connection import HttpConnection

CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
App = Callable[[Any, Any, Any], Awaitable[None]]


class FakeTransport(asyncio.Transport):
    """A transport that records the written bytes, and whether it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        pass

    def can_write_eof(self) -> bool:
        return False

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


async def send_response(send: Any, body: bytes = b"{}") -> None:
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": body})


async def echo(_: Any, receive: Any, send: Any) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message["more_body"]
    await send_response(send, body)


def connect(app: App) -> tuple[HttpConnection, FakeTransport]:
    config = Config(app, ws="none", interface="asgi3", log_config=None, access_log=False, proxy_headers=False)  # type: ignore[arg-type]
    config.load()
    http_connection, transport = HttpConnection(config, ServerState(), {}), FakeTransport()
    http_connection.connection_made(transport)
    return http_connection, transport


async def count_turns_until(holds: Callable[[], bool]) -> int:
    """The number of turns of the event loop that other tasks get until a condition holds."""
    turns = 0
    while not holds():
        assert turns < 100_000, "the condition was not met"
        turns += 1
        await asyncio.sleep(0)
    return turns


@pytest.fixture(autouse=True)
def slice_by_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn ends after one slice, as on a very slow machine."""
    for name in ("CONNECTION_TURN_S", "PARSE_TURN_S", "PARSE_PAUSE_S"):
        monkeypatch.setattr(connection, name, 0.0)


def test_a_large_read_does_not_block_the_event_loop() -> None:
    """10,000 chunks in one read are parsed in slices; the body is complete at the end."""

    async def send() -> None:
        http_connection, transport = connect(echo)
        http_connection.data_received(CHUNKED + b"1\r\nx\r\n" * 10_000 + b"0\r\n\r\n")
        assert await count_turns_until(lambda: bool(transport.written)) > 10
        assert transport.written.endswith(b"\r\n\r\n" + b"x" * 10_000)

    asyncio.run(send())


def test_a_body_with_a_content_length_is_parsed_in_one_step() -> None:

    async def send() -> None:
        http_connection, transport = connect(echo)
        body = bytes(range(256)) * 4_000
        sent = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        for at in range(0, len(sent), 200_000):
            http_connection.data_received(sent[at : at + 200_000])
        await count_turns_until(lambda: transport.written.endswith(body))
        assert not transport.closed

    asyncio.run(send())


def test_pipelined_requests_are_not_all_parsed_at_once() -> None:
    """Only a few are parsed before the first is answered; all are answered in order."""
    may_answer: asyncio.Event
    count = 0

    async def slow(_: Any, receive: Any, send: Any) -> None:
        nonlocal count
        count += 1
        await receive()
        await may_answer.wait()
        await send_response(send, b"<%d>" % count)

    async def send() -> None:
        nonlocal may_answer
        may_answer = asyncio.Event()
        http_connection, transport = connect(slow)
        http_connection.data_received(GET * 5_000)
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(http_connection.pipeline) <= connection.PARSE_SLICE / len(GET)
        may_answer.set()
        await count_turns_until(lambda: transport.written.count(b"HTTP/1.1 200") == 5_000)
        assert transport.written.index(b"<4999>") < transport.written.index(b"<5000>")
        http_connection.timeout_keep_alive_handler()

    asyncio.run(send())


def test_a_body_is_parsed_only_when_the_application_reads_it() -> None:
    """A response that does not need the body costs only the parsing of the headers."""

    async def refuse(_: Any, __: Any, send: Any) -> None:
        await send_response(send, b"no")

    async def send() -> None:
        http_connection, transport = connect(refuse)
        http_connection.data_received(CHUNKED)
        http_connection.data_received(b"no chunk")
        http_connection.data_received(b"no chunk" * 1_000)
        await count_turns_until(lambda: bool(transport.written))
        assert transport.written.startswith(b"HTTP/1.1 200 ")
        assert b"connection: close" in transport.written

    asyncio.run(send())


@pytest.mark.parametrize("sent", [b"", b"GET / HT", CHUNKED, CHUNKED + b"1\r\n"])
def test_an_incomplete_request_gets_408_after_the_timeout(sent: bytes) -> None:

    async def send() -> None:
        http_connection, transport = connect(echo)
        http_connection.data_received(sent)
        await asyncio.sleep(0)
        now = http_connection.loop.time()
        http_connection.end_if_stale(now + connection.REQUEST_TIMEOUT_S - 1)
        assert not transport.written
        http_connection.end_if_stale(now + connection.REQUEST_TIMEOUT_S + 1)
        await asyncio.sleep(0)
        assert transport.written.startswith(b"HTTP/1.1 408 ")
        assert b"application/problem+json" in transport.written
        http_connection.end_if_stale(now + connection.REQUEST_TIMEOUT_S + 1)
        assert transport.written.count(b"HTTP/1.1") == 1

    asyncio.run(send())


@pytest.mark.parametrize("step", [1, 7, 10_000])
@pytest.mark.parametrize(
    "framed", [b"Content-Length: 4\r\n\r\nbody", b"Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"]
)
def test_an_upgrade_request_is_answered_over_http_1_1(framed: bytes, step: int) -> None:
    """Java's client requests an upgrade to HTTP/2 by default. The next request on the connection is answered, too."""
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n"
    request = b"POST / HTTP/1.1\r\nHost: x\r\n" + upgrade + framed

    async def send() -> None:
        http_connection, transport = connect(echo)
        sent = request + GET + request
        for start in range(0, len(sent), step):
            http_connection.data_received(sent[start : start + step])
        await count_turns_until(lambda: transport.written.count(b"HTTP/1.1 200 ") == 3)
        await count_turns_until(lambda: transport.written.count(b"\r\n\r\nbody") == 2)
        assert not transport.closed
        http_connection.timeout_keep_alive_handler()

    asyncio.run(send())


@pytest.mark.parametrize("target", [b"http://x", b"http://x/", b"http://x:80/?a=1", b"/"])
def test_an_absolute_address_is_a_path(target: bytes) -> None:
    """RFC 9112, section 3.2.2: a server accepts the absolute form, whose path may be empty."""
    paths: list[str] = []

    async def app(scope: Any, _: Any, send: Any) -> None:
        paths.append(scope["path"])
        await send_response(send)

    async def send() -> None:
        http_connection, transport = connect(app)
        http_connection.data_received(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        await count_turns_until(lambda: b"HTTP/1.1 200 " in transport.written)

    asyncio.run(send())
    assert paths == ["/"]


@pytest.mark.parametrize("target", [b"/", b"x:80"])
def test_a_tunnel_is_refused(target: bytes) -> None:

    async def send() -> None:
        http_connection, transport = connect(echo)
        http_connection.data_received(b"CONNECT " + target + b" HTTP/1.1\r\nHost: x\r\n\r\nrest")
        await count_turns_until(lambda: b"HTTP/1.1 400 " in transport.written)

    asyncio.run(send())


def test_an_idle_connection_is_not_stale() -> None:
    """Between two requests a connection may be idle for longer than the timeout."""

    async def send() -> None:
        http_connection, transport = connect(echo)
        http_connection.data_received(GET)
        await count_turns_until(lambda: bool(transport.written))
        written = transport.written
        http_connection.end_if_stale(http_connection.loop.time() + 1e6)
        assert transport.written == written
        http_connection.timeout_keep_alive_handler()

    asyncio.run(send())


@pytest.mark.parametrize(
    ("request_head", "keeps"),
    [
        (b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", True),
        (b"GET / HTTP/1.0\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\nConnection: close\r\n\r\n", False),
    ],
)
def test_a_connection_of_http_1_0_stays_open_only_on_request(request_head: bytes, keeps: bool) -> None:
    """The response says whether the connection stays open; a second request on it is answered."""

    async def send() -> None:
        http_connection, transport = connect(echo)
        http_connection.data_received(request_head)
        await count_turns_until(lambda: b"\r\n\r\n" in transport.written and transport.closed != keeps)
        assert (b"connection: keep-alive\r\n" in transport.written) == keeps
        assert (b"connection: close\r\n" in transport.written) != keeps
        assert transport.closed != keeps
        if keeps:
            http_connection.data_received(request_head)
            await count_turns_until(lambda: transport.written.count(b"connection: keep-alive\r\n") == 2)
            http_connection.timeout_keep_alive_handler()

    asyncio.run(send())


def test_a_connection_of_http_1_0_closes_when_the_service_shuts_down() -> None:
    """The shutdown's default header ``connection: close`` is the only connection header."""

    async def send() -> None:
        http_connection, transport = connect(echo)
        http_connection.server_state.default_headers = [(b"connection", b"close")]
        http_connection.data_received(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        await count_turns_until(lambda: transport.closed)
        assert transport.written.count(b"connection: ") == 1

    asyncio.run(send())
