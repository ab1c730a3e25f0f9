"""Requests from browsers: the allowed Host headers, and the allowed origins of pages (CORS)."""

import re
from collections.abc import Mapping, Sequence

from towline.config.monitoring import is_loopback
from towline.errors import ConfigError
from towline.serving.problems import Header, Problem

_HOST = re.compile(r"(?:\*|(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*\.?|\[[0-9a-f:.]+\])", re.IGNORECASE)
_ORIGIN = re.compile(r"https?://(?:[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(?::\d{1,5})?", re.IGNORECASE)
_BROWSER_HEADERS = (b"origin", b"referer", b"sec-fetch-site", b"cookie")  # a page's request has at least one
_REQUEST_HEADERS = (
    b"authorization, content-encoding, content-type, inference-header-content-length, x-api-key, x-request-id, "
    b"x-towline-version"
)
_RESPONSE_HEADERS = b"retry-after, x-request-id, x-towline-version"
_VARY = (b"vary", b"Origin")


class AllowedHosts:
    """The host names that requests may address: protection against DNS rebinding.

    A page can point its own host name to 127.0.0.1; its browser then treats a service there as a part of that site. The
    Host header still holds the page's host name.

    Args:
        allowed: names without port; ``*.example.com`` matches all subdomains, ``*`` any name.
        address: the address that the service listens on.
    """

    def __init__(self, allowed: Sequence[str], address: str) -> None:
        names = [name.lower() for name in allowed]
        self._any = "*" in names
        self._exact = {address.lower().strip("[]"), *(name.strip("[]").rstrip(".") for name in names)}
        self._below = tuple(name[1:] for name in names if name.startswith("*."))

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        """Checks the Host header; a request without one passes, as browsers always send it.

        Raises:
            Problem: the host is not allowed.
        """
        host = headers.get(b"host")
        if host is None or self._any:
            return
        name = _without_port(host.decode("latin-1").lower()).rstrip(".")
        if name not in self._exact and not name.endswith(self._below) and not is_loopback(name):
            raise Problem("foreign-host", "the Host header names a host that is not allowed")


class CorsOrigins:
    """The sites whose pages may send requests from a browser (CORS).

    Args:
        allowed: e.g. ``https://app.example.com``; ``*`` allows any.
    """

    def __init__(self, allowed: Sequence[str]) -> None:
        self._any = "*" in allowed
        self._allowed = frozenset(origin.lower().encode() for origin in allowed)

    def headers(self, request_headers: Mapping[bytes, bytes]) -> tuple[Header, ...]:
        """The CORS headers of a response."""
        origin = request_headers.get(b"origin")
        if origin is None or not (self._any or origin.lower() in self._allowed):
            return (_VARY,)
        allowed_origin = b"*" if self._any else origin
        return (
            _VARY,
            (b"access-control-allow-origin", allowed_origin),
            (b"access-control-expose-headers", _RESPONSE_HEADERS),
        )

    def preflight(self, methods: Sequence[str]) -> tuple[Header, ...]:
        """The headers of the response to a preflight request."""
        return (
            (b"access-control-allow-methods", ", ".join(methods).encode()),
            (b"access-control-allow-headers", _REQUEST_HEADERS),
            (b"access-control-max-age", b"600"),
        )


def is_from_browser(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a page in a browser may have sent this request."""
    return any(name in headers for name in _BROWSER_HEADERS)


def check_hosts(names: Sequence[str]) -> None:
    """Raises ConfigError if a name is not a host name that ``AllowedHosts`` supports."""
    _check(names, _HOST, "--allowed-hosts", "a host name", "give names without scheme and port: api.example.com")


def check_origins(origins: Sequence[str]) -> None:
    """Raises ConfigError if a text is not an origin that ``CorsOrigins`` supports."""
    remedy = "give scheme, host and optionally port, without a path: https://app.example.com"
    _check([origin for origin in origins if origin != "*"], _ORIGIN, "--cors-origins", "an origin", remedy)


def _check(values: Sequence[str], pattern: re.Pattern[str], option: str, what: str, remedy: str) -> None:
    for value in values:
        if not pattern.fullmatch(value):
            raise ConfigError(f"{value!r} is not {what}", where=option, remedy=remedy)


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if ":" in host else host
