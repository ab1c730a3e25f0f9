"""One HTTP connection: uvicorn's, with bounds on what may come before a request and how long it may take.

uvicorn's parser takes headers without end, and waits for the rest of a request for ever.
"""

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

HEADERS = 65_536  # bytes of a request that are not its body: line, headers, the framing of chunks
PATIENCE = 60.0  # seconds in which a request must have come whole


class Joined:
    """A transport; what is written in one turn of the event loop leaves in one call to the system."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._call_soon = transport, loop.call_soon
        self._held: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._held:
            self._call_soon(self._flush)
        self._held.append(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._held:
            held, self._held = self._held, []
            self._transport.writelines(held)


class Connection(HttpToolsProtocol):
    """Answers 431 to headers that do not end; ``stale`` says whether a request is overdue."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._beside = 0  # bytes of the present request, without its body
        self._body = 0
        self._began = self.loop.time()  # when the present request did; 0 while none has

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = Joined(transport, self.loop)  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if not self._began:
            self._began = self.loop.time()
        self._beside += len(data)
        super().data_received(data)
        # small chunks have more framing than content: what may come beside a body grows with it
        if self._beside > HEADERS + 8 * self._body and not self.transport.is_closing():
            self.send_400_response("The request's headers are too large.", 431)

    def on_body(self, body: bytes) -> None:
        self._body += len(body)
        self._beside -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._beside = self._body = 0
        self._began = 0.0

    def stale(self, now: float) -> bool:
        """Whether a request began too long ago to be still coming."""
        return bool(self._began) and now - self._began > PATIENCE

    def send_400_response(self, msg: str, status: int = 400) -> None:
        """Ends the connection with a problem, as the application's own errors are told."""
        title = {400: "Bad Request", 431: "Request Header Fields Too Large"}[status]
        body = json.dumps({"type": "about:blank", "title": title, "status": status, "detail": msg}).encode()
        headers = b"content-type: application/problem+json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(
            body
        )
        self.transport.write(STATUS_LINE[status] + headers + body)
        self.transport.close()
