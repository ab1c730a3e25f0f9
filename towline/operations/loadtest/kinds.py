"""What kind of error a request met: few enough kinds to count them."""

import json
from typing import Any

from towline.operations.loadtest.target import WAIT, answered


def of_answer(status: int, body: bytes) -> str:
    """Empty for a right answer; else e.g. ``429 Too many requests with this key``, or what is wrong with it."""
    try:
        document: Any = json.loads(body)
    except ValueError:
        document = None
    if status == 200:
        return "" if answered(document) else "an answer without predictions"
    title = document.get("title") if isinstance(document, dict) else None
    return f"{status} {title}" if title else str(status)


def of_exception(error: BaseException) -> str:
    name = type(error).__name__
    if isinstance(error, TimeoutError):
        return f"no answer in {WAIT:g} s"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, ConnectionError | BrokenPipeError) or name in ("HTTPConnectionClosed", "RemoteDisconnected"):
        return "connection closed"
    return f"{name}: {error}"[:80]
