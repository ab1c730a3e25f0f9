"""An endpoint: access control, response headers and error responses of one route, as a raw ASGI application."""

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
from towline.serving.protocols.body import ClientDisconnected, Receive
from towline.serving.rate_limit import RateLimiter

if TYPE_CHECKING:
    from towline.serving.auth import ApiKeys

Access = Literal["public", "predict", "admin"]
Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

JSON = b"application/json"
PROBLEM = b"application/problem+json"
MAX_BAD_KEY_RATE = 100.0  # requests/s without a valid key from one address; further ones are delayed
REFUSAL_DELAY_S = 1.0
MAX_DELAYED = 1_000  # requests that are delayed at a time; further ones are answered immediately
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
    """A request while it is handled.

    ``version`` of the model is a label of its metrics; ``trace_id`` is empty unless traces are exported.
    """

    __slots__ = ("has_header_id", "headers", "is_admin", "receive", "request_id", "scope", "trace_id", "version")

    def __init__(self, scope: Scope, receive: Receive, new_id: Callable[[], str]) -> None:
        self.scope, self.receive = scope, receive
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.version = self.trace_id = ""
        self.is_admin = False  # whether the caller's key has the scope admin, or no key is needed
        header_id = self.headers.get(b"x-request-id")
        if header_id is not None and _VALID_ID.fullmatch(header_id):
            self.has_header_id, self.request_id = True, header_id.decode("ascii")
        else:
            self.has_header_id, self.request_id = False, new_id()

    def __str__(self) -> str:
        return f"{self.request_id} (trace {self.trace_id})" if self.trace_id else self.request_id

    def adopt_id(self, body_id: str) -> None:
        """Uses the id in the body if the headers had none."""
        if not self.has_header_id and _VALID_ID.fullmatch(body_id.encode()):
            self.request_id = body_id


Handler = Callable[[RequestContext], Awaitable[Response]]


class AccessControl:
    """Access control, shared by all routes.

    Args:
        keys: the API keys and their scopes.
        rate: the limit of requests per caller.
        metrics: counts requests and errors.
        hosts: allowed Host headers; None for any.
        open_hosts: allowed Host headers while no key is required.
        origins: sites whose pages may send requests (CORS); None for none.
        tls: whether this process terminates TLS.
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
        self._bad_key_limiter = RateLimiter(
            MAX_BAD_KEY_RATE, what="requests without a valid key", delay=REFUSAL_DELAY_S
        )
        self._delayed = 0
        self.headers = [*_SECURITY_HEADERS, _HSTS] if tls else _SECURITY_HEADERS
        self._id_prefix = secrets.token_hex(8)
        self._count = itertools.count()

    def new_request_id(self) -> str:
        """A request id that is unique over all processes; all ids have one length, so answers of equal rows do too."""
        return f"{self._id_prefix}-{next(self._count):010x}"

    def admit(self, context: RequestContext, access: Access, challenge: bytes) -> None:
        """Raises Problem unless the caller may use a route of this access."""
        if access == "public":
            return
        if self._hosts is not None:
            self._hosts.check(context.headers)
        if not self.keys.required:
            if self._open_hosts is not None:
                self._open_hosts.check(context.headers)
            self.rate.take(_address(context))
            context.is_admin = True
            return
        key = _presented_key(context.headers)
        scopes = None if key is None else self.keys.scopes(key)
        if key is None or scopes is None:
            self._bad_key_limiter.take(_address(context))
            raise Problem(
                "no-key",
                "the request has no key" if key is None else "the key is unknown, expired or revoked",
                headers=((b"www-authenticate", challenge),),
            )
        if self.rate.rate is not None:
            self.rate.take(self.keys.identity(key))
        context.is_admin = "admin" in scopes
        if access not in scopes:
            raise Problem("missing-scope", f"the key has no scope {access!r}")

    async def delay(self, seconds: float) -> None:
        """Delays the response to a caller over its limit, at most ``MAX_DELAYED`` of them at a time."""
        if self._delayed < MAX_DELAYED:
            self._delayed += 1
            try:
                await asyncio.sleep(seconds)
            finally:
                self._delayed -= 1


class Endpoint:
    """An ASGI application for one path.

    Args:
        path: of the route; also a label of its metrics.
        access: ``public``, or the scope that a key needs.
        handler: returns the response, or raises Problem or another error of towline.
        control: access control of all routes.
        method: the allowed method; GET allows HEAD too, "*" any.
        browser: whether people open it, so that the browser prompts for the key.
    """

    def __init__(
        self,
        path: str,
        access: Access,
        handler: Handler,
        control: AccessControl,
        method: str = "GET",
        *,
        browser: bool = False,
    ) -> None:
        self.path, self.access, self.method = path, access, method
        self._handler, self._control, self._metrics = handler, control, control.metrics
        self._methods = (method, "HEAD") if method == "GET" else (method,)
        self._challenge = b'Basic realm="towline", charset="UTF-8"' if browser else b'Bearer realm="towline"'
        self._error_member = path.startswith("/v2")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        self._metrics.in_flight += 1
        context = RequestContext(scope, receive, self._control.new_request_id)
        try:
            content, content_type, status, extra_headers = await self._respond(context)
            headers = [
                (b"content-type", content_type),
                (b"content-length", b"%d" % len(content)),
                (b"x-request-id", context.request_id.encode("ascii")),
                *self._control.headers,
                *extra_headers,
            ]
            if self._control.origins is not None:
                headers += self._control.origins.headers(context.headers)
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else content})
        except ClientDisconnected:
            return
        finally:
            self._metrics.in_flight -= 1
        self._metrics.count_request(self.path, status, context.version, time.perf_counter() - started)

    async def _respond(self, context: RequestContext) -> Response:
        try:
            if self._control.origins is not None and context.scope["method"] == "OPTIONS":
                return Response(b"", b"text/plain", headers=self._control.origins.preflight(self._methods))
            self._check_method(context.scope["method"])
            self._control.admit(context, self.access, self._challenge)
            return await self._handler(context)
        except Problem as problem:
            if problem.delay:
                await self._control.delay(problem.delay)
            return self._refusal(problem, context)
        except TowlineError as error:
            translated = problems.problem_from_error(error)
            if translated.type.status >= 500:
                _LOG.error("request %s to %s: %s", context, self.path, error)
            return self._refusal(translated, context)
        except ClientDisconnected:
            raise
        except Exception:  # noqa: BLE001 - whatever the error is, the client gets a response
            _LOG.exception("request %s to %s failed", context, self.path)
            return self._refusal(Problem(problems.INTERNAL_ERROR, "the service failed; see its log"), context)

    def _check_method(self, method: str) -> None:
        if method not in self._methods and self.method != "*":
            allowed = ", ".join(self._methods)
            raise Problem("method-not-allowed", f"this path allows {allowed}", headers=((b"allow", allowed.encode()),))

    def _refusal(self, problem: Problem, context: RequestContext) -> Response:
        self._metrics.count_error(problem.code)
        body = problem.body(context.request_id, error_member=self._error_member)
        return Response(body, PROBLEM, problem.type.status, problem.headers)


def _address(context: RequestContext) -> str:
    client = context.scope.get("client")
    return client[0] if client else ""


def _presented_key(headers: dict[bytes, bytes]) -> str | None:
    """The key of a request: X-API-Key, a bearer token, or the password of HTTP basic authentication."""
    if (key := headers.get(b"x-api-key")) is not None:
        return key.decode("latin-1")
    scheme, _, credentials = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer":
        return credentials.strip().decode("latin-1")
    if scheme.lower() == b"basic":
        try:
            return base64.b64decode(credentials, validate=True).partition(b":")[2].decode("latin-1")
        except binascii.Error:
            return None
    return None
