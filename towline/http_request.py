"""An HTTP client for single requests, with limits on total time and size.

It follows no redirects and uses no proxies. It is used instead of httpx because importing httpx takes 0.2 s (this
module: 0.06 s), httpx limits only each read rather than the whole request, and it is not part of the base installation.
"""

import http.client
import json
import queue
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

MAX_BYTES = 16_000_000  # of a response


class HttpResponse(NamedTuple):
    status: int
    body: bytes


class HttpRequestError(Exception):
    """There was no complete response in time. The text never contains any part of the address."""


def send_request(
    url: str, timeout: float, *, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> HttpResponse:
    """Sends a GET, or a POST if there is a body.

    Args:
        url: http or https, checked by the caller.
        timeout: seconds for the whole request, including name resolution and TLS.
        body: content of a POST.
        headers: request headers.

    Raises:
        HttpRequestError: no connection, no complete response in time, or a response that is too large.
    """
    outcome: queue.SimpleQueue[HttpResponse | HttpRequestError] = queue.SimpleQueue()

    def work() -> None:
        try:
            outcome.put(_send(urlsplit(url), timeout, body, headers or {}))
        except HttpRequestError as error:
            outcome.put(error)
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: the URL or host is invalid
            outcome.put(HttpRequestError(_describe(error)))

    # name resolution, a TLS handshake or slow bytes have no separate timeout: the thread is abandoned
    threading.Thread(target=work, daemon=True, name="towline-http-request").start()
    try:
        response = outcome.get(timeout=timeout)
    except queue.Empty:
        raise HttpRequestError(f"no response within {timeout:g} s") from None
    if isinstance(response, HttpRequestError):
        raise response
    return response


def request_json(url: str, timeout: float, document: object = None) -> Any:
    """The JSON document at a URL; with a ``document``, that is posted.

    Raises:
        HttpRequestError: no response in time, a status other than 2xx, or no JSON.
    """
    body = None if document is None else json.dumps(document).encode()
    response = send_request(url, timeout, body=body, headers={"Content-Type": "application/json"})
    if not 200 <= response.status < 300:
        raise HttpRequestError(f"HTTP status {response.status}")
    try:
        return json.loads(response.body)
    except ValueError:
        raise HttpRequestError("the response is not JSON") from None


def _send(parts: SplitResult, timeout: float, body: bytes | None, headers: Mapping[str, str]) -> HttpResponse:
    connection_type = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = connection_type(parts.hostname or "", parts.port, timeout=timeout)
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET" if body is None else "POST", target, body, dict(headers))
        response = connection.getresponse()
        content = response.read(MAX_BYTES + 1)
    finally:
        connection.close()
    if len(content) > MAX_BYTES:
        raise HttpRequestError("the response is too large")
    return HttpResponse(response.status, content)


def _describe(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no response in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, ConnectionError):
        return "the connection was closed before a response"
    if isinstance(error, http.client.HTTPException):
        return f"the response is not HTTP ({type(error).__name__})"
    return type(error).__name__
