"""One route: who may ask, how the answer leaves, what is told when it fails. Raw ASGI, for it is on the hot path."""

import asyncio
import base64
import binascii
import itertools
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from towline.errors import TowlineError
from towline.serving import problems
from towline.serving.browser_access import AllowedHosts, CorsOrigins
from towline.serving.metrics import Metrics
from towline.serving.problems import Header, Problem
from towline.serving.rate_limit import ClientDisconnected, RateLimiter, Receive

if TYPE_CHECKING:
    from towline.serving.auth import ApiKeys

Access = Literal["public", "predict", "admin"]
Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

JSON = b"application/json"
PROBLEM = b"application/problem+json"
MAX_BAD_KEY_RATE = (
    100.0  # requests a second from one address that show no valid key, before they are answered late and shortly
)
REFUSAL_DELAY_S = 1.0  # seconds
MAX_DELAYED = 1_000  # requests that wait for such an answer; more are answered at once
_VALID_ID = re.compile(rb"[\w.:/+=@-]{1,128}")
_LOG = logging.getLogger("towline.serving")
_SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"x-frame-options", b"DENY"),
]
_HSTS = (b"strict-transport-security", b"max-age=31536000")


class Response(NamedTuple):
    body: bytes
    content_type: bytes = JSON
    status: int = 200
    headers: tuple[Header, ...] = ()


class RequestContext:
    """A request on its way: ``version`` is of the model that answers it, for the metrics."""

    __slots__ = ("headers", "named", "receive", "request_id", "scope", "version")

    def __init__(self, scope: Scope, receive: Receive, draw: Callable[[], str]) -> None:
        self.scope, self.receive = scope, receive
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.version = ""
        given = self.headers.get(b"x-request-id")
        if given is not None and _VALID_ID.fullmatch(given):
            self.named, self.request_id = True, given.decode("ascii")
        else:
            self.named, self.request_id = False, draw()

    def take(self, given: str) -> None:
        """Takes the id that stands in the body, where no header gave one."""
        if not self.named and _VALID_ID.fullmatch(given.encode()):
            self.request_id = given


Handler = Callable[[RequestContext], Awaitable[Response]]


class AccessControl:
    """What all routes share.

    Args:
        keys: who may ask what.
        rate: how often.
        metrics: what is counted.
        hosts: the names a request may be addressed to; None for any.
        open_hosts: the same while no key is required.
        origins: the sites whose pages may ask; None for none.
        tls: whether this process itself speaks TLS.
    """

    def __init__(
        self,
        keys: "ApiKeys",
        rate: RateLimiter,
        metrics: Metrics,
        *,
        hosts: AllowedHosts | None = None,
        open_hosts: AllowedHosts | None = None,
        origins: CorsOrigins | None = None,
        tls: bool,
    ) -> None:
        self.keys, self.rate, self.metrics, self.origins = keys, rate, metrics, origins
        self._hosts, self._open_hosts = hosts, open_hosts
        self._strangers = RateLimiter(MAX_BAD_KEY_RATE, what="requests without a valid key", delay=REFUSAL_DELAY_S)
        self._late = 0
        self.headers = [*_SECURITY_HEADERS, _HSTS] if tls else _SECURITY_HEADERS
        self._drawn = secrets.token_hex(8)
        self._count = itertools.count()

    def draw(self) -> str:
        """A request id that no other process and no other request has."""
        return f"{self._drawn}-{next(self._count):x}"

    def admit(self, call: RequestContext, access: Access, challenge: bytes) -> None:
        """Lets a request in, or raises Problem."""
        if access == "public":
            return
        if self._hosts is not None:
            self._hosts.check(call.headers)
        if not self.keys.required:
            if self._open_hosts is not None:
                self._open_hosts.check(call.headers)
            self.rate.take(_address(call))
            return
        key = _presented_key(call.headers)
        scopes = None if key is None else self.keys.scopes(key)
        if key is None or scopes is None:
            self._strangers.take(_address(call))
            raise Problem(
                "no-key",
                "no key came with the request" if key is None else "the key is unknown, expired or revoked",
                headers=((b"www-authenticate", challenge),),
            )
        if self.rate.rate is not None:
            self.rate.take(self.keys.identity(key))
        if access not in scopes:
            raise Problem("missing-scope", f"the key has no scope {access!r}")

    async def wait(self, seconds: float) -> None:
        """Holds up who asks too often, without a cost to others; not more of them than there is room for."""
        if self._late < MAX_DELAYED:
            self._late += 1
            try:
                await asyncio.sleep(seconds)
            finally:
                self._late -= 1


class Endpoint:
    """An ASGI application for one path.

    Args:
        path: as in the table of routes; also the label of its metrics.
        access: ``public``, or the scope a key must have.
        answer: makes the reply, or raises Problem or another error of towline.
        guard: what it shares with the others.
        method: the one it takes; GET takes HEAD too, "*" takes all.
        browser: whether people open it: then a browser asks for the key.
    """

    def __init__(
        self,
        path: str,
        access: Access,
        answer: Handler,
        guard: AccessControl,
        method: str = "GET",
        *,
        browser: bool = False,
    ) -> None:
        self.path, self.access, self.method = path, access, method
        self._answer, self._guard, self._metrics = answer, guard, guard.metrics
        self._methods = (method, "HEAD") if method == "GET" else (method,)
        self._challenge = b'Basic realm="towline", charset="UTF-8"' if browser else b'Bearer realm="towline"'
        self._error_member = path.startswith("/v2")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        self._metrics.in_flight += 1
        call = RequestContext(scope, receive, self._guard.draw)
        try:
            reply = await self._reply(call)
            content, content_type, status, more = reply
            headers = [
                (b"content-type", content_type),
                (b"content-length", b"%d" % len(content)),
                (b"x-request-id", call.request_id.encode("ascii")),
                *self._guard.headers,
                *more,
            ]
            if self._guard.origins is not None:
                headers += self._guard.origins.headers(call.headers)
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else content})
        except ClientDisconnected:
            return
        finally:
            self._metrics.in_flight -= 1
        self._metrics.finished(self.path, status, call.version, time.perf_counter() - began)

    async def _reply(self, call: RequestContext) -> Response:
        try:
            if self._guard.origins is not None and call.scope["method"] == "OPTIONS":
                return Response(b"", b"text/plain", headers=self._guard.origins.preflight(self._methods))
            self._check_method(call.scope["method"])
            self._guard.admit(call, self.access, self._challenge)
            return await self._answer(call)
        except Problem as problem:
            if problem.delay:
                await self._guard.wait(problem.delay)
            return self._refusal(problem, call)
        except TowlineError as error:
            told = problems.problem_from_error(error)
            if told.kind.status >= 500:
                _LOG.error("request %s to %s: %s", call.request_id, self.path, error)
            return self._refusal(told, call)
        except ClientDisconnected:
            raise
        except Exception:  # noqa: BLE001 - the last stop: whatever it is, the client gets an answer
            _LOG.exception("request %s to %s failed", call.request_id, self.path)
            return self._refusal(Problem(problems.INTERNAL_ERROR, "the service failed; its log tells why"), call)

    def _check_method(self, method: str) -> None:
        if method not in self._methods and self.method != "*":
            allowed = ", ".join(self._methods)
            raise Problem("method-not-allowed", f"this path takes {allowed}", headers=((b"allow", allowed.encode()),))

    def _refusal(self, problem: Problem, call: RequestContext) -> Response:
        self._metrics.refused(problem.code)
        body = problem.body(call.request_id, error_member=self._error_member)
        return Response(body, PROBLEM, problem.kind.status, problem.headers)


def _address(call: RequestContext) -> str:
    client = call.scope.get("client")
    return client[0] if client else ""


def _presented_key(headers: dict[bytes, bytes]) -> str | None:
    """The key of a request: X-API-Key, a bearer's, or the password of a browser."""
    if (key := headers.get(b"x-api-key")) is not None:
        return key.decode("latin-1")
    scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer":
        return given.strip().decode("latin-1")
    if scheme.lower() == b"basic":
        try:
            return base64.b64decode(given, validate=True).partition(b":")[2].decode("latin-1")
        except binascii.Error:
            return None
    return None
