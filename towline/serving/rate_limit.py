"""How much a request may bring, and how often one may ask."""

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from towline.serving.problems import Problem

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
MAX_CALLERS = 10_000  # callers remembered


class ClientDisconnected(Exception):
    """The client has left: nobody waits for an answer."""


async def read_body(receive: Receive, headers: Mapping[bytes, bytes], most: int) -> bytes:
    """The whole body of a request, also one sent in chunks.

    Raises:
        Problem: it is longer than ``most`` bytes, or its length is no number.
        Gone: the client left before it was complete.
    """
    length = headers.get(b"content-length")
    if length is not None:
        if not length.isdigit():
            raise Problem("bad-request", "Content-Length is not a number", headers=((b"connection", b"close"),))
        if len(length) > 18 or int(length) > most:
            raise body_too_large(most)
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnected
    body: bytes = message.get("body", b"")
    if not message.get("more_body"):
        if len(body) > most:
            raise body_too_large(most)
        return body
    return await _read_chunks(receive, body, most)


async def _read_chunks(receive: Receive, first: bytes, most: int) -> bytes:
    body = bytearray(first)  # a list of parts would take forty bytes for each of one
    more = True
    while len(body) <= most:
        if not more:
            return bytes(body)
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        body += message.get("body", b"")
        more = message.get("more_body", False)
    raise body_too_large(most)


def body_too_large(most: int) -> Problem:
    """The refusal of a longer body."""
    # what is still under way is discarded: the connection ends with the answer
    return Problem("too-large", f"the body has more than {most:,} bytes", headers=((b"connection", b"close"),))


class RateLimiter:
    """So many requests a second for each caller, with room for a burst of one second.

    Args:
        rate: requests per second; None lets everything pass.
        clock: seconds, only ever going on.
        what: is counted.
        delay: seconds until a refusal is answered.
    """

    def __init__(
        self,
        rate: float | None,
        clock: Callable[[], float] = time.monotonic,
        what: str = "requests",
        delay: float = 0.0,
    ) -> None:
        self.rate = rate
        self._what, self._delay = what, delay
        self._burst = max(1.0, rate or 0.0)
        self._clock = clock
        self._full_at: OrderedDict[str, float] = OrderedDict()  # when a caller's bucket is full again

    def take(self, caller: str) -> None:
        """Counts one request.

        Raises:
            Problem: this caller has none left.
        """
        if self.rate is None:
            return
        now = self._clock()
        full_at = max(self._full_at.get(caller, now), now) + 1.0 / self.rate
        wait = full_at - now - self._burst / self.rate
        if wait > 1e-9:
            raise Problem(
                "too-many-requests",
                f"more than {self.rate:g} {self._what} a second",
                headers=((b"retry-after", b"%d" % max(1, -int(-wait // 1))),),
                delay=self._delay,
            )
        self._full_at[caller] = full_at
        self._full_at.move_to_end(caller)
        if len(self._full_at) > MAX_CALLERS:
            self._full_at.popitem(last=False)
