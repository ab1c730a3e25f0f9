"""The ASGI application of ``towline serve``: every route and who may ask it.

``public`` are the probes of orchestrators and load balancers, which tell nothing of the data. Everything that shows or
uses the model takes a key with the scope ``predict``; ``/metrics`` shows what others ask, and takes ``admin``. While no
key was ever made all routes are open; ``towline serve`` then keeps to loopback, and to requests that name it.
"""

import asyncio
import contextlib
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import orjson
from starlette.applications import Starlette
from starlette.routing import Route

from towline import __version__
from towline.data.schema.example import example_row
from towline.data.schema.rows import InputAnomaly, Row
from towline.errors import Fault
from towline.serving import browser_access, metrics
from towline.serving.batching import Batcher, Turn
from towline.serving.browser_access import Hosts, Origins
from towline.serving.docs import html_page, openapi
from towline.serving.endpoint import Access, Answers, Call, Endpoint, Guard, Reply, Scope, Send
from towline.serving.metrics import Metrics
from towline.serving.problems import Problem
from towline.serving.protocols import binary_tensors, compression, json_rows, open_inference
from towline.serving.protocols.json_rows import Asked, Protocol
from towline.serving.protocols.strict_json import KEYS, LARGE, loads
from towline.serving.rate_limit import Rate, Receive, read_body

if TYPE_CHECKING:
    from towline.inference.predictor import Model
    from towline.inference.scorer import Answer
    from towline.prediction_log.writer import PredictionLog
    from towline.serving.auth import Keys
    from towline.serving.model_reloader import Live
    from towline.serving.options import Options

AT_ONCE = 64  # rows that a compiled model answers before anything else is done
READING = 16  # large bodies that may wait to be read
_JSON_TYPES = (b"application/json", b"application/json; charset=utf-8", b"application/json;charset=utf-8")
_RETRY = ((b"retry-after", b"1"),)
_CHARSETS = ("charset=utf-8", 'charset="utf-8"', "charset=utf8")
_HOST = re.compile(r"[A-Za-z0-9.\-]{1,253}(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?")
_Made = TypeVar("_Made")
_MODEL = "/v2/models/{name}"
_VERSION = "/v2/models/{name}/versions/{version}"


class Service(Starlette):
    """Starlette, with a short cut to routes whose path has no parts to match."""

    def __init__(self, endpoints: list[Endpoint], unknown: Endpoint, lifespan: Any) -> None:
        super().__init__(routes=[Route(endpoint.path, endpoint) for endpoint in endpoints], lifespan=lifespan)
        self.router.default = self._none
        self._unknown = unknown
        self.router.redirect_slashes = False
        self.endpoints = endpoints
        self._direct: Mapping[str, Endpoint] = {
            endpoint.path: endpoint for endpoint in endpoints if "{" not in endpoint.path
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (endpoint := self._direct.get(scope["path"])) is not None:
            await endpoint(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    async def _none(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self._unknown if scope["type"] == "http" else self.router.not_found)(scope, receive, send)


def create(
    options: "Options", live: "Live", keys: "Keys", log: "PredictionLog | None", *, loopback: bool = True
) -> Service:
    """The application of one worker.

    Args:
        options: limits, and where it listens.
        live: the model that answers; looked at once in each request.
        keys: who may ask what.
        log: takes each prediction; None for no log.
        loopback: whether it listens on loopback alone.
    """
    desk = Desk(options, live, log)
    guard = Guard(
        keys,
        Rate(options.rate),
        desk.metrics,
        hosts=Hosts(options.allowed_hosts, options.host) if options.allowed_hosts else None,
        open_hosts=Hosts((), options.host) if loopback and not options.allowed_hosts else None,
        origins=Origins(options.cors_origins) if options.cors_origins else None,
        tls=options.certificate is not None,
    )

    def get(path: str, access: Access, answer: Answers, *, browser: bool = False) -> Endpoint:
        return Endpoint(path, access, answer, guard, browser=browser)

    def post(path: str, how: Protocol) -> Endpoint:
        return Endpoint(path, "predict", desk.predicts(how), guard, "POST")

    endpoints = [
        post("/predict", json_rows.ROWS),
        get("/livez", "public", desk.alive),
        get("/readyz", "public", desk.ready),
        get("/metrics", "admin", desk.exposition),
        get("/metadata", "predict", desk.metadata),
        get("/openapi.json", "predict", desk.openapi, browser=True),
        get("/docs", "predict", desk.docs, browser=True),
        get("/", "public", to_docs),
        # MLflow's scoring protocol, and the path of its deployments client
        post("/invocations", json_rows.INVOCATIONS),
        post("/endpoints/{name}/invocations", json_rows.INVOCATIONS),
        get("/ping", "public", desk.ping),
        get("/health", "public", desk.ping),
        get("/version", "public", version),
        # Open Inference Protocol v2
        get("/v2", "predict", server),
        get("/v2/health/live", "public", desk.alive),
        get("/v2/health/ready", "public", desk.ready),
        *(
            endpoint
            for model in (_MODEL, _VERSION)
            for endpoint in (
                get(model, "predict", desk.tensors),
                get(f"{model}/ready", "public", desk.model_ready),
                post(f"{model}/infer", open_inference.TENSORS),
            )
        ),
    ]
    return Service(endpoints, Endpoint("unknown", "public", unknown, guard, method="*"), desk.lifespan)


class Desk:
    """What the routes do."""

    def __init__(self, options: "Options", live: "Live", log: "PredictionLog | None") -> None:
        self._options, self._live, self._log = options, live, log
        self._batcher = Batcher()
        self._turn = Turn()
        self.metrics = Metrics(log, lambda: self._batcher.depth, lambda: live.model, lambda: live.refused)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="towline-read")
        self._reading = 0
        self._told: tuple[Model, dict[str, Any]] | None = None

    @contextlib.asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        counting = asyncio.create_task(self.metrics.keep())
        yield
        counting.cancel()
        self._batcher.close()
        self._reader.shutdown(wait=False)
        self.metrics.flush()

    def predicts(self, how: Protocol) -> Answers:
        """The answer to requests for predictions, asked in this way."""

        async def answer(call: Call) -> Reply:
            model = self._model(call)
            packed = b"content-encoding" in call.headers and compression.is_compressed(call.headers)
            if call.headers.get(b"content-type", b"") not in _JSON_TYPES:
                _check_type(call.headers, how)
            body = await read_body(call.receive, call.headers, self._options.max_body)
            if packed:
                body = await self._unpack(body)
            end = binary_tensors.cut(call.headers, len(body)) if binary_tensors.HEADER in call.headers else None
            if len(body) < LARGE:
                asked, canonical, odd = _read(how, body, end, model, self._options.max_rows)
            else:
                asked, canonical, odd = await self._aside(partial(_read, how, body, end, model, self._options.max_rows))
            found = await self._score(model, canonical)
            _check_finite(found)
            if asked.id is not None:
                call.take(asked.id)
            reply = Reply(how.write(found, model, asked, call.request_id))
            self.metrics.predicted(model, call.version, found, odd)
            if self._log is not None:
                self._log.write(call.request_id, time.time(), model, asked.rows, found)
            return reply

        return answer

    async def alive(self, call: Call) -> Reply:
        del call
        return Reply(b'{"live":true}')

    async def ready(self, call: Call) -> Reply:
        """Whether new requests should be sent here; no longer once the process is to end."""
        del call
        model = self._live.model
        if not self._live.ready or model is None:
            raise Problem("not-ready", self._live.reason or "no model is loaded", headers=_RETRY)
        return Reply(orjson.dumps({"ready": True, "model": {"name": model.name, "version": model.version}}))

    async def ping(self, call: Call) -> Reply:
        """As MLflow answers, but 503 where it has 404."""
        await self.ready(call)
        return Reply(b"\n")

    async def model_ready(self, call: Call) -> Reply:
        model = self._model(call)
        if not self._live.ready:
            raise Problem("not-ready", self._live.reason, headers=_RETRY)
        return Reply(orjson.dumps({"name": model.name, "ready": True}))

    async def tensors(self, call: Call) -> Reply:
        return Reply(orjson.dumps(open_inference.describe(self._model(call))))

    async def metadata(self, call: Call) -> Reply:
        """What the release is: the manifest without its list of files, and the fields it takes."""
        model = self._model(call)
        told = model.metadata.model_dump(mode="json", exclude={"files"})
        told |= {"compiled": model.compiled, "fields": openapi.fields(model.contract)}
        return Reply(orjson.dumps(told))

    async def exposition(self, call: Call) -> Reply:
        del call
        return Reply(self.metrics.render(), metrics.CONTENT_TYPE)

    async def openapi(self, call: Call) -> Reply:
        return Reply(orjson.dumps(self._document(self._model(call))))

    async def docs(self, call: Call) -> Reply:
        model = self._model(call)
        row = example_row(model.contract)
        answer = json_rows.write_rows(model.answer([row]), model, Asked([row]), "7f3a9c-1")
        text = html_page.render(model, self._document(model), _address(call, self._options), answer)
        return Reply(
            text.encode(), b"text/html; charset=utf-8", headers=((b"content-security-policy", html_page.POLICY),)
        )

    def _document(self, model: "Model") -> dict[str, Any]:
        if self._told is None or self._told[0] is not model:
            self._told = model, openapi.document(model, self._options.max_rows)
        return self._told[1]

    def _model(self, call: Call) -> "Model":
        """The model of this request: the one reference it uses from here to its end."""
        model = self._live.model
        if model is None:
            raise Problem("not-ready", self._live.reason or "no model is loaded", headers=_RETRY)
        call.version = str(model.version)
        if parts := call.scope.get("path_params"):
            if parts.get("name") != model.name:
                raise Problem("not-found", f"this service has no such model: it serves {model.name!r}")
            if parts.get("version", call.version) != call.version:
                raise Problem("not-found", f"this service has no such version: it serves {call.version}")
        return model

    async def _unpack(self, body: bytes) -> bytes:
        most = self._options.max_body
        content = compression.unpack(body, min(LARGE, most))
        if content is None and most > LARGE:
            content = await self._aside(partial(compression.unpack, body, most))
        if content is None:
            raise Problem("too-large", f"the body unpacks to more than {most:,} bytes")
        return content

    async def _aside(self, work: Callable[[], _Made]) -> _Made:
        """On a thread: small requests are answered meanwhile."""
        if self._reading >= READING:
            raise Problem("busy", f"{self._reading} large requests wait to be read", headers=_RETRY)
        self._reading += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._reader, work)
        finally:
            self._reading -= 1

    async def _score(self, model: "Model", canonical: list[list[Any]]) -> "Answer":
        try:
            if not canonical or (model.compiled and len(canonical) <= AT_ONCE):
                return await self._turn.score(model, canonical)
            return await self._batcher.score(model, canonical)
        except ArithmeticError as error:
            raise Problem("unanswerable", f"the model cannot answer these rows: {type(error).__name__}") from None


_Rows = tuple[Asked, list[Row], Mapping[InputAnomaly, int]]
_NOTHING: Mapping[InputAnomaly, int] = {}


async def to_docs(call: Call) -> Reply:
    del call
    return Reply(b"", b"text/plain", 303, ((b"location", b"docs"),))


async def version(call: Call) -> Reply:
    del call
    return Reply(__version__.encode(), b"text/plain; charset=utf-8")


async def server(call: Call) -> Reply:
    del call
    return Reply(orjson.dumps({"name": "towline", "version": __version__, "extensions": ["binary_tensor_data"]}))


async def unknown(call: Call) -> Reply:
    del call
    raise Problem("not-found", "no such path")


def _read(how: Protocol, body: bytes, end: int | None, model: "Model", most: int) -> _Rows:
    """What is asked, as the model takes it, and what is odd about it; tensors may stand behind the document's end."""
    widest = max(KEYS, 2 * len(model.reader.fields))
    if end is None:
        document = loads(body, most, widest=widest, nan=how.nan)
    else:
        document = loads(body[:end], most, widest=widest, nan=how.nan)
        binary_tensors.attach(document, body[end:])
    asked = how.read(document, model, most)
    odd: list[InputAnomaly] = []
    canonical = model.reader.read(asked.rows, odd)
    return asked, canonical, Counter(odd) if odd else _NOTHING  # counted here: of many rows, on the thread


def _check_type(headers: Mapping[bytes, bytes], how: Protocol) -> None:
    kind, _, parameters = headers.get(b"content-type", b"").decode("latin-1").lower().partition(";")
    # a page can send neither of them on a foreign site without being asked for it first: not the header, nor JSON
    if how.bare and (binary_tensors.HEADER in headers or (not kind and not browser_access.from_page(headers))):
        return
    given = [part.strip() for part in parameters.split(";") if part.strip()]
    if kind.strip() != "application/json" or any(part not in _CHARSETS for part in given):
        raise Problem("not-json", "the body is not declared as application/json in UTF-8")


def _check_finite(answer: "Answer") -> None:
    """JSON has no word for NaN and the infinities."""
    sums = answer.predictions if answer.probabilities is None else map(sum, answer.probabilities)
    faults = [
        Fault(row, "", "the prediction is not finite")
        for row, value in enumerate(sums)
        if value.__class__ is float and value - value != 0.0  # true of these alone
    ]
    if faults:
        raise Problem("unanswerable", "a prediction is not a finite number", faults=tuple(faults))


def _address(call: Call, options: "Options") -> str:
    """As the caller wrote it, if that is an address."""
    host = call.headers.get(b"host", b"").decode("latin-1")
    scheme = "https" if options.certificate is not None else "http"
    return f"{scheme}://{host if _HOST.fullmatch(host) else f'{options.host}:{options.port}'}"
