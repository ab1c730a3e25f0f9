"""One HTTP request that cannot hold anybody up: no redirects, no proxies, an end to its time and its size."""

import http.client
import queue
import threading
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

LARGEST = 16_000_000  # bytes of an answer that are read


class HttpResponse(NamedTuple):
    status: int
    body: bytes


class HttpRequestError(Exception):
    """Nothing came back in time. Its text never holds any part of the address."""


def send_request(
    url: str, seconds: float, *, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> HttpResponse:
    """A GET, or a POST where there is a body.

    Args:
        url: http or https, checked by the caller.
        seconds: until nothing is waited for any more, names and TLS included.
        body: what is posted.
        headers: sent with it.

    Raises:
        HttpRequestError: no connection, no whole answer in time, or one beyond ``LARGEST``.
    """
    outcome: queue.SimpleQueue[HttpResponse | HttpRequestError] = queue.SimpleQueue()

    def work() -> None:
        try:
            outcome.put(_ask(urlsplit(url), seconds, body, headers or {}))
        except HttpRequestError as error:
            outcome.put(error)
        except (OSError, http.client.HTTPException, ValueError) as error:  # the last for what is no URL or host
            outcome.put(HttpRequestError(_reason(error)))

    # a name server, a handshake or a drip of bytes has no timeout of its own: the thread is left behind
    threading.Thread(target=work, daemon=True, name="towline-call").start()
    try:
        found = outcome.get(timeout=seconds)
    except queue.Empty:
        raise HttpRequestError(f"no answer within {seconds:g} s") from None
    if isinstance(found, HttpRequestError):
        raise found
    return found


def _ask(parts: SplitResult, seconds: float, body: bytes | None, headers: Mapping[str, str]) -> HttpResponse:
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=seconds)
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET" if body is None else "POST", target, body, dict(headers))
        answer = connection.getresponse()
        content = answer.read(LARGEST + 1)
    finally:
        connection.close()
    if len(content) > LARGEST:
        raise HttpRequestError("the answer is too large")
    return HttpResponse(answer.status, content)


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, ConnectionError):
        return "the connection was closed before an answer"
    if isinstance(error, http.client.HTTPException):
        return f"what answers does not speak HTTP ({type(error).__name__})"
    return type(error).__name__
