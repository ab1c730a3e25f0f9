"""The ASGI application of the service: the table of routes, with the access and the function of each.

Routes with the access ``public`` are health checks; they reveal nothing about the data. Routes that use or describe the
model need an API key with the scope ``predict``; ``/metrics`` describes the callers and needs ``admin``. While no key
exists all routes are open: ``towline serve`` then listens on loopback only and checks the Host header.
"""

import asyncio
import contextlib
import os
import re
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import orjson
from starlette.applications import Starlette
from starlette.routing import Route

from towline import __version__
from towline.data.example_row import example_row
from towline.data.schema.rows import InputAnomaly, Row
from towline.html import content_security_policy
from towline.inference.scorer import slice_predictions
from towline.serving import browser_access, metrics
from towline.serving.batching import MicroBatcher, ThreadBatcher
from towline.serving.browser_access import AllowedHosts, CorsOrigins
from towline.serving.docs import html_page, openapi
from towline.serving.endpoint import Access, AccessControl, Endpoint, Handler, RequestContext, Response, Scope, Send
from towline.serving.metrics import Metrics
from towline.serving.problems import Problem, check_finite
from towline.serving.protocols import json_rows, open_inference
from towline.serving.protocols.body import Receive, decompress, is_compressed, read_body
from towline.serving.protocols.json_rows import PredictionRequest, WireProtocol
from towline.serving.protocols.strict_json import LARGE_BODY, MAX_KEYS, parse_json
from towline.serving.rate_limit import RateLimiter
from towline.serving.rollout_arms import ActiveRollout, RolloutArms, RolloutRouter
from towline.serving.rollout_fields import FieldsOfBoth
from towline.serving.telemetry.exports import Telemetry

if TYPE_CHECKING:
    from towline.inference.predictor import Model
    from towline.inference.scorer import RowPredictions
    from towline.prediction_log.writer import PredictionLog
    from towline.serving.auth import ApiKeys
    from towline.serving.model_reloader import ModelReloader
    from towline.serving.options import ServeOptions

MAX_INLINE_ROWS = 64  # rows that a compiled model scores on the event loop
MAX_PENDING_READS = 16  # large bodies that may wait for the parsing thread
_JSON_TYPES = (b"application/json", b"application/json; charset=utf-8", b"application/json;charset=utf-8")
_RETRY = ((b"retry-after", b"1"),)
_CHARSETS = ("charset=utf-8", 'charset="utf-8"', "charset=utf8")
_HOST = re.compile(r"[A-Za-z0-9.\-]{1,253}(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?")
_Result = TypeVar("_Result")
_MODEL = "/v2/models/{name}"
_VERSION = "/v2/models/{name}/versions/{version}"
_SERVER = {"name": "towline", "version": __version__, "extensions": ["binary_tensor_data"]}
_NO_ANOMALIES: Mapping[InputAnomaly, int] = {}


class ServingApp(Starlette):
    """Starlette with a dictionary lookup for routes without path parameters."""

    def __init__(self, endpoints: list[Endpoint], unknown: Endpoint, lifespan: Any) -> None:
        super().__init__(routes=[Route(endpoint.path, endpoint) for endpoint in endpoints], lifespan=lifespan)
        self.router.default = self._not_found
        self._unknown = unknown
        self.router.redirect_slashes = False
        self.endpoints = endpoints
        self._exact: Mapping[str, Endpoint] = {
            endpoint.path: endpoint for endpoint in endpoints if "{" not in endpoint.path
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (endpoint := self._exact.get(scope["path"])) is not None:
            await endpoint(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    async def _not_found(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self._unknown if scope["type"] == "http" else self.router.not_found)(scope, receive, send)


def create_app(
    options: "ServeOptions",
    reloader: "ModelReloader",
    keys: "ApiKeys",
    log: "PredictionLog | None",
    *,
    loopback: bool = True,
) -> ServingApp:
    """Builds the application of one worker.

    Args:
        options: limits, and the address it listens on.
        reloader: holds the model; each request reads it once.
        keys: the API keys and their scopes.
        log: stores each prediction; None disables logging.
        loopback: whether the service listens on loopback only.
    """
    handlers = RouteHandlers(options, reloader, log)
    control = AccessControl(
        keys,
        RateLimiter(options.rate),
        handlers.metrics,
        hosts=AllowedHosts(options.allowed_hosts, options.host) if options.allowed_hosts else None,
        open_hosts=AllowedHosts((), options.host) if loopback and not options.allowed_hosts else None,
        origins=CorsOrigins(options.cors_origins) if options.cors_origins else None,
        tls=options.certificate is not None,
    )

    tracing = handlers.telemetry.tracing
    make_endpoint = Endpoint if tracing is None else tracing.endpoint

    def get(path: str, access: Access, handler: Handler, *, browser: bool = False) -> Endpoint:
        return make_endpoint(path, access, handler, control, browser=browser)

    def post(path: str, protocol: WireProtocol) -> Endpoint:
        return make_endpoint(path, "predict", handlers.predict(protocol), control, "POST")

    live = constant(Response(b'{"live":true}'))
    endpoints = [
        post("/predict", json_rows.ROWS),
        get("/livez", "public", live),
        get("/readyz", "public", handlers.ready),
        get("/metrics", "admin", handlers.exposition),
        get("/metadata", "predict", handlers.metadata),
        get("/openapi.json", "predict", handlers.openapi, browser=True),
        get("/docs", "predict", handlers.docs, browser=True),
        get("/", "public", constant(Response(b"", b"text/plain", 303, ((b"location", b"docs"),)))),
        # MLflow's scoring protocol, and the path of its deployments client
        post("/invocations", json_rows.INVOCATIONS),
        post("/endpoints/{name}/invocations", json_rows.INVOCATIONS),
        get("/ping", "public", handlers.ping),
        get("/health", "public", handlers.ping),
        get("/version", "public", constant(Response(__version__.encode(), b"text/plain; charset=utf-8"))),
        # Open Inference Protocol v2
        get("/v2", "predict", constant(Response(orjson.dumps(_SERVER)))),
        get("/v2/health/live", "public", live),
        get("/v2/health/ready", "public", handlers.ready),
        *(
            endpoint
            for model in (_MODEL, _VERSION)
            for endpoint in (
                get(model, "predict", handlers.tensors),
                get(f"{model}/ready", "public", handlers.model_ready),
                post(f"{model}/infer", open_inference.TENSORS),
            )
        ),
    ]
    return ServingApp(endpoints, Endpoint("unknown", "public", unknown_path, control, method="*"), handlers.lifespan)


class _ParsedRequest(NamedTuple):
    request: PredictionRequest
    canonical: list[Row]
    anomalies: Mapping[InputAnomaly, int]


class RouteHandlers:
    """The handlers of the routes that need the model, the log or the metrics."""

    def __init__(self, options: "ServeOptions", reloader: "ModelReloader", log: "PredictionLog | None") -> None:
        self._options, self._reloader, self._log = options, reloader, log
        self._thread_batcher = ThreadBatcher()
        self._micro_batcher = MicroBatcher()
        self._challenger_batcher = ThreadBatcher()
        worker = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._rollouts = RolloutRouter(self._score, self._score_challenger, worker, lambda: reloader.rollout)
        self.metrics = Metrics(
            log,
            lambda: self._thread_batcher.depth,
            lambda: reloader.model,
            lambda: reloader.rejections,
            self._rollouts.count_rows,
        )
        self.telemetry = Telemetry(options, self.metrics, "" if reloader.model is None else reloader.model.name)
        self._parser = ThreadPoolExecutor(1, thread_name_prefix="towline-parse")
        self._pending_reads = 0
        self._openapi_cache: tuple[Model, dict[str, Any]] | None = None

    @contextlib.asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        flushing = asyncio.create_task(self.metrics.flush_periodically())
        rollouts = asyncio.create_task(self._rollouts.run_periodically())
        exporting = [asyncio.create_task(export.run_periodically()) for export in self.telemetry.exports]
        yield
        for task in (flushing, rollouts, *exporting):
            task.cancel()
        self._rollouts.close()
        self._thread_batcher.close()
        self._challenger_batcher.close()
        self._parser.shutdown(wait=False)
        self.metrics.flush()
        self.telemetry.close()

    def predict(self, protocol: WireProtocol) -> Handler:
        """The handler of prediction requests in one protocol."""

        async def handle(context: RequestContext) -> Response:
            model, headers = self._model(context), context.headers
            compressed = b"content-encoding" in headers and is_compressed(headers)
            if headers.get(b"content-type", b"") not in _JSON_TYPES:
                _check_content_type(headers, protocol)
            body = await read_body(context.receive, headers, self._options.max_body)
            if compressed:
                body = await self._decompress(body)
            arms = self._rollouts.arms(model.version)
            pin = self._requested_version(context, model, arms)
            fields = None if arms is None else arms.fields_of_both(model)
            parse = partial(_parse_request, protocol, body, headers, model, self._options.max_rows, fields)
            parsed = parse() if len(body) < LARGE_BODY else await self._run_on_parser_thread(parse)
            request, canonical, anomalies = parsed
            if request.id is not None:
                context.adopt_id(request.id)
            if arms is not None and not (arms.is_shadow_only and pin in (0, model.version)):
                return await self._answer_in_rollout(protocol, context, arms, model, parsed, pin)
            try:
                predictions = await self._score(model, canonical)
            except Exception:
                if arms is not None:
                    arms.count_champion_error()
                raise
            check_finite(predictions)
            body = protocol.write(predictions, model, request, context.request_id)
            self.metrics.count_predictions(model, context.version, predictions, anomalies)
            now = time.time()
            if self._log is not None:
                trace_id = context.trace_id
                self._log.write(context.request_id, now, model, request.rows, predictions, trace_id=trace_id)
            if arms is None:
                return Response(body)
            arms.queue_for_challenger(context.request_id, now, request.rows, predictions)
            return Response(body, headers=arms.champion_header)

        return handle

    async def _answer_in_rollout(
        self,
        protocol: WireProtocol,
        context: RequestContext,
        arms: RolloutArms,
        champion: "Model",
        parsed: _ParsedRequest,
        pin: int,
    ) -> Response:
        """The predictions of the requested version (``pin``), or of the versions to which the rows are assigned."""
        request, canonical, anomalies = parsed
        answer = await arms.answer(champion, request.rows, canonical, context.request_id, pin)
        predictions, parts, versions = answer.predictions, answer.parts, answer.versions
        check_finite(predictions)
        model = champion
        if len(parts) == 1:
            model = parts[0].model
        else:
            request = request._replace(versions=versions)
        context.version = str(model.version)
        body = protocol.write(predictions, model, request, context.request_id)
        now = time.time()
        for first, end, part_model in parts:
            part = predictions if len(parts) == 1 else slice_predictions(predictions, first, end)
            self.metrics.count_predictions(
                part_model, str(part_model.version), part, _NO_ANOMALIES if first else anomalies
            )
            if self._log is not None:
                rows, trace_id = request.rows[first:end], context.trace_id
                self._log.write(context.request_id, now, part_model, rows, part, first, trace_id=trace_id)
        header = (b"x-towline-version", ",".join(map(str, versions)).encode())
        return Response(body, headers=(header,))

    async def ready(self, context: RequestContext) -> Response:
        """Whether load balancers should send requests here; not while the process starts or shuts down."""
        del context
        model = self._reloader.model
        if not self._reloader.ready or model is None:
            raise self._not_ready()
        return Response(orjson.dumps({"ready": True, "model": {"name": model.name, "version": model.version}}))

    async def ping(self, context: RequestContext) -> Response:
        """MLflow's health check, but with 503 where MLflow answers 404."""
        await self.ready(context)
        return Response(b"\n")

    async def model_ready(self, context: RequestContext) -> Response:
        model = self._model(context, restricted=False)
        if not self._reloader.ready:
            raise self._not_ready()
        return Response(orjson.dumps({"name": model.name, "ready": True}))

    async def tensors(self, context: RequestContext) -> Response:
        model = self._model(context)
        document = open_inference.describe_model(self._description_model(model))
        if active := self._reloader.rollout:
            document["versions"] = [str(model.version), str(active.rollout.challenger)]
        return Response(orjson.dumps(document))

    async def metadata(self, context: RequestContext) -> Response:
        """The manifest of the release without its list of files, and the fields of a row."""
        model = self._model(context)
        document = model.metadata.model_dump(mode="json", exclude={"files"})
        document |= {
            "compiled": model.compiled,
            "fields": openapi.describe_fields(self._description_model(model).contract),
        }
        return Response(orjson.dumps(document))

    async def exposition(self, context: RequestContext) -> Response:
        del context
        return Response(self.metrics.render(), metrics.CONTENT_TYPE)

    async def openapi(self, context: RequestContext) -> Response:
        return Response(orjson.dumps(self._openapi_document(self._model(context))))

    async def docs(self, context: RequestContext) -> Response:
        model = self._model(context)
        described = self._description_model(model)
        row = example_row(described.contract)
        answer = json_rows.write_rows(model.predict_rows([row]), model, PredictionRequest([row]), "7f3a9c-1")
        page = html_page.render(described, self._openapi_document(model), _address(context, self._options), answer)
        policy = (b"content-security-policy", content_security_policy().encode())
        return Response(page.encode(), b"text/html; charset=utf-8", headers=(policy,))

    def _openapi_document(self, model: "Model") -> dict[str, Any]:
        described = self._description_model(model)
        if self._openapi_cache is None or self._openapi_cache[0] is not described:
            self._openapi_cache = described, openapi.openapi_document(described, self._options.max_rows)
        return self._openapi_cache[1]

    def _description_model(self, model: "Model") -> "Model":
        """The model with the fields that requests must have; during a rollout these may be the fields of both."""
        arms = self._rollouts.arms(model.version)
        fields = None if arms is None else arms.fields_of_both(model)
        return model if fields is None else fields.description

    def _not_ready(self) -> Problem:
        return Problem("not-ready", self._reloader.reason or "no model is loaded", headers=_RETRY)

    def _model(self, context: RequestContext, *, restricted: bool = True) -> "Model":
        """The model of this request. The request uses this reference until its end, also after a promotion.

        ``restricted``: whether a path with the version of a challenger needs a key with the scope ``admin``.
        """
        model = self._reloader.model
        if model is None:
            raise self._not_ready()
        context.version = str(model.version)
        if parameters := context.scope.get("path_params"):
            if parameters.get("name") != model.name:
                raise Problem("not-found", f"this service has no such model: it serves {model.name!r}")
            if (version := parameters.get("version", context.version)) != context.version:
                self._select_challenger(version, context, self._reloader.rollout, restricted=restricted)
        return model

    def _select_challenger(
        self, version: str, context: RequestContext, active: ActiveRollout | None, *, restricted: bool = True
    ) -> None:
        """Makes the challenger of a rollout the version of a request; refuses any other version."""
        if active is None or str(active.rollout.challenger) != version:
            raise Problem("not-found", f"this service has no such version: it serves {context.version}")
        if restricted and not context.is_admin:
            raise Problem("missing-scope", "a request for the challenger of a rollout needs a key with scope 'admin'")
        context.version = version

    def _requested_version(self, context: RequestContext, champion: "Model", arms: RolloutArms | None) -> int:
        """The version that the request names in its path or in a header; 0: none."""
        version: str | None = (context.scope.get("path_params") or {}).get("version")
        if version is None:
            if (header := context.headers.get(b"x-towline-version")) is None:
                return 0
            version = header.decode("latin-1")
        context.version = str(champion.version)
        if version != context.version:
            self._select_challenger(version, context, None if arms is None else arms.active)
        return int(version)

    async def _decompress(self, body: bytes) -> bytes:
        max_body = self._options.max_body
        content = decompress(body, min(LARGE_BODY, max_body))
        if content is None and max_body > LARGE_BODY:
            content = await self._run_on_parser_thread(partial(decompress, body, max_body))
        if content is None:
            raise Problem("too-large", f"the decompressed body has more than {max_body:,} bytes")
        return content

    async def _run_on_parser_thread(self, function: Callable[[], _Result]) -> _Result:
        """Runs a function on the parsing thread, so that small requests are answered in the meantime."""
        if self._pending_reads >= MAX_PENDING_READS:
            raise Problem("busy", f"{self._pending_reads} large requests wait to be parsed", headers=_RETRY)
        self._pending_reads += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._parser, function)
        finally:
            self._pending_reads -= 1

    async def _score(self, model: "Model", canonical: list[Row]) -> "RowPredictions":
        return await self._score_on(self._thread_batcher, model, canonical)

    async def _score_challenger(self, model: "Model", canonical: list[Row]) -> "RowPredictions":
        """On a separate thread: a slow challenger must not delay the champion."""
        return await self._score_on(self._challenger_batcher, model, canonical)

    async def _score_on(self, batcher: ThreadBatcher, model: "Model", canonical: list[Row]) -> "RowPredictions":
        try:
            if not canonical or (model.compiled and len(canonical) <= MAX_INLINE_ROWS):
                return await self._micro_batcher.score(model, canonical)
            return await batcher.score(model, canonical)
        except ArithmeticError as error:
            raise Problem("unanswerable", f"the model cannot score these rows: {type(error).__name__}") from None


def constant(response: Response) -> Handler:
    """A handler that always returns the same response."""

    async def handle(context: RequestContext) -> Response:
        del context
        return response

    return handle


async def unknown_path(context: RequestContext) -> Response:
    del context
    raise Problem("not-found", "no such path")


def _parse_request(
    protocol: WireProtocol,
    body: bytes,
    headers: Mapping[bytes, bytes],
    model: "Model",
    max_rows: int,
    fields: FieldsOfBoth | None = None,
) -> _ParsedRequest:
    """The rows of a body in canonical form, and its input anomalies. Binary tensors may follow the JSON document."""
    described = model if fields is None else fields.description
    max_keys = max(MAX_KEYS, 2 * len(described.reader.fields))
    if open_inference.BINARY_HEADER in headers:
        end = open_inference.json_length(headers, len(body))
        document = parse_json(body[:end], max_rows, max_keys=max_keys, nan=protocol.nan)
        open_inference.attach_binary_data(document, body[end:])
    else:
        document = parse_json(body, max_rows, max_keys=max_keys, nan=protocol.nan)
    request = protocol.read(document, described, max_rows)
    anomalies: list[InputAnomaly] = []
    canonical = (model.reader if fields is None else fields).read(request.rows, anomalies)
    return _ParsedRequest(request, canonical, Counter(anomalies) if anomalies else _NO_ANOMALIES)


def _check_content_type(headers: Mapping[bytes, bytes], protocol: WireProtocol) -> None:
    media_type, _, parameters = headers.get(b"content-type", b"").decode("latin-1").lower().partition(";")
    # a page of another site can send neither the binary header nor JSON without a CORS preflight
    if protocol.bare and (
        open_inference.BINARY_HEADER in headers or (not media_type and not browser_access.is_from_browser(headers))
    ):
        return
    charsets = [part.strip() for part in parameters.split(";") if part.strip()]
    if media_type.strip() != "application/json" or any(charset not in _CHARSETS for charset in charsets):
        raise Problem("not-json", "the body is not declared as application/json in UTF-8")


def _address(context: RequestContext, options: "ServeOptions") -> str:
    """The service's address as in the Host header, if that is valid."""
    host = context.headers.get(b"host", b"").decode("latin-1")
    scheme = "https" if options.certificate is not None else "http"
    return f"{scheme}://{host if _HOST.fullmatch(host) else f'{options.host}:{options.port}'}"
