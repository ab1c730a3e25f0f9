"""A service in this process: the real application with a fake model."""

import asyncio
import datetime as dt
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx

from towline.config import RolloutConfig
from towline.data.schema.contract import Column, Contract
from towline.data.schema.rows import RowReader
from towline.inference.scorer import RowPredictions
from towline.manifest import Manifest
from towline.registry.rollouts import Rollout
from towline.serving.app import ServingApp, create_app
from towline.serving.rollout_arms import ActiveRollout

COLUMNS = (
    ("size", "numeric", {"min": 0.0, "max": 100.0}),
    ("kind", "category", {"categories": ("house", "flat & <b>garden</b>"), "levels": 2}),
    ("sunny", "boolean", {"min": 0.0, "max": 1.0}),
    ("at", "datetime", {"derive": ("hour",)}),
)
ROW = {"size": 20.5, "kind": "house", "sunny": True, "at": "2026-03-01T12:00:00"}
CLASSES = ("no", "yes")


def column(name: str, kind: str, role: str = "feature", **more: Any) -> Column:
    facts = {"nullable": True, "min": None, "max": None, "categories": None, "levels": 9} | more
    return Column(name=name, kind=kind, role=role, **facts)


def make_contract(
    classes: tuple[Any, ...] = (), columns: Sequence[tuple[str, str, dict[str, Any]]] = COLUMNS
) -> Contract:
    features = tuple(column(name, kind, **more) for name, kind, more in columns)
    target = column("price", "category" if classes else "numeric", "target", min=0.0, max=200.0)
    task = "multiclass" if len(classes) > 2 else "binary" if classes else "regression"
    return Contract(target="price", task=task, columns=(*features, target), classes=classes)


@dataclass
class FakeModel:
    """Predicts twice the first column plus ``offset``; the label is the last class if this value is above 50."""

    contract: Contract
    directory: Path
    compiled: bool = True
    version: int = 3
    offset: float = 0.0
    name: str = "house-price"
    calls: list[int] = field(default_factory=list)
    reader: Any = None

    def __post_init__(self) -> None:
        self.reader = self.reader or RowReader(self.contract)
        self.metadata = Manifest(
            name=self.name, version=self.version, run_key="k", created="2026-03-01T12:00:00+00:00",
            task=self.contract.task, target="price", classes=self.contract.classes, positive=None, threshold=None,
            dataset={}, estimator="linear", params={}, metrics={}, primary="mae", commit="c", towline="0", python="3",
            libraries={}, seeds={},
        )  # fmt: skip
        row = {name: ROW.get(name, 1.5) for name in self.reader.fields}
        (self.directory / "probe.json").write_text(json.dumps({"rows": [row]}))

    def predict_rows(self, rows: Sequence[dict[str, Any]]) -> RowPredictions:
        return self.predict_canonical(self.reader.read(rows))

    def predict_canonical(self, canonical: Sequence[Sequence[Any]]) -> RowPredictions:
        self.calls.append(len(canonical))
        values = [(0.0 if row[0] != row[0] else row[0] * 2) + self.offset for row in canonical]
        classes = self.contract.classes
        if not classes:
            return RowPredictions(values, None)
        sure = [
            [0.0] * (len(classes) - 1) + [1.0] if value > 50 else [1.0] + [0.0] * (len(classes) - 1) for value in values
        ]
        return RowPredictions([classes[share.index(1.0)] for share in sure], sure)


@dataclass
class FakeKeys:
    """API keys with their scopes."""

    granted: dict[str, frozenset[str]] = field(default_factory=dict)

    @property
    def required(self) -> bool:
        return bool(self.granted)

    def scopes(self, presented: str) -> frozenset[str] | None:
        return self.granted.get(presented)

    def identity(self, presented: str) -> str:
        return presented[:4]


@dataclass
class FakeLog:
    """A prediction log that keeps its records in memory."""

    records: list[tuple[Any, ...]] = field(default_factory=list)
    trace_ids: list[str] = field(default_factory=list)
    depth: int = 0
    drops: int = 0

    def write(self, *record: Any, trace_id: str = "") -> None:
        self.records.append(record)
        self.trace_ids.append(trace_id)


class ServiceClient:
    """httpx in its own event loop, which runs only during requests."""

    def __init__(self, app: ServingApp, base_url: str) -> None:
        self._runner = asyncio.Runner()
        self._http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=base_url)

    def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        return self._runner.run(self._http.request(method, path, **more))

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self.request("GET", path, headers=_headers(headers))

    def post(self, path: str, document: Any, **headers: str) -> httpx.Response:
        return self.send(json.dumps(document).encode(), path, **headers)

    async def post_async(self, path: str, document: Any) -> httpx.Response:
        return await self._http.post(path, json=document)

    def send(self, body: bytes, path: str = "/predict", **headers: str) -> httpx.Response:
        all_headers = {"content-type": "application/json"} | _headers(headers)
        return self.request("POST", path, content=body, headers=all_headers)

    def run(self, work: Any) -> Any:
        return self._runner.run(work)

    def close(self) -> None:
        self._runner.run(self._http.aclose())
        self._runner.close()


@dataclass
class RunningService:
    client: ServiceClient
    reloader: SimpleNamespace
    log: FakeLog
    app: ServingApp


def make_options(**changes: Any) -> Any:
    """Options of ``towline serve``, without a store."""
    settings = {
        "rate": None,
        "allowed_hosts": (),
        "cors_origins": (),
        "max_body": 5_000_000,
        "max_rows": 10_000,
        "certificate": None,
        "host": "127.0.0.1",
        "port": 8080,
        "metrics": None,
        "metrics_interval": 60.0,
    }
    return SimpleNamespace(**(settings | changes))


def create_application(
    model: FakeModel | None, keys: dict[str, frozenset[str]] | None = None, **changes: Any
) -> tuple[ServingApp, SimpleNamespace, FakeLog]:
    reloader = SimpleNamespace(
        model=model, ready=model is not None, reason="" if model else "starting", rejections=0, rollout=None
    )
    log = FakeLog()
    app = create_app(make_options(**changes), reloader, FakeKeys(keys or {}), log)
    return app, reloader, log


@contextmanager
def run_service(
    model: FakeModel | None, keys: dict[str, frozenset[str]] | None = None, **changes: Any
) -> Iterator[RunningService]:
    """Runs a service; yields it with its client, model and log."""
    app, reloader, log = create_application(model, keys, **changes)
    client = ServiceClient(app, "http://127.0.0.1:8080")
    try:
        yield RunningService(client, reloader, log, app)
    finally:
        client.close()


def _headers(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


def make_rollout(folder: Path, challenger: Any, champion: int = 3, **config: Any) -> ActiveRollout:
    """A rollout that has just started; a service follows it if it is its ``reloader.rollout``."""
    now = dt.datetime.now(dt.UTC)
    rollout = Rollout(
        id="0123456789abcdef", model="house-price", champion=champion, challenger=champion + 1, release="r",
        digest="d", config=RolloutConfig(**config), started=now, since=now,
    )  # fmt: skip
    return ActiveRollout(rollout, challenger, folder / "rollout")


async def send_asgi(
    app: ServingApp,
    body: Sequence[bytes | None] = (b"",),
    path: str = "/predict",
    method: str = "POST",
    client: str = "127.0.0.1",
    **headers: str,
) -> tuple[int, dict[str, str], bytes]:
    """Sends one request as raw ASGI; each part of the body is one message, None is a disconnected client."""
    messages = [
        {"type": "http.disconnect"}
        if part is None
        else {"type": "http.request", "body": part, "more_body": index < len(body) - 1}
        for index, part in enumerate(body)
    ]
    responses: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return messages.pop(0) if messages else await asyncio.sleep(3600, {})

    async def send(message: Any) -> None:
        responses.append(message)

    all_headers = {"content_type": "application/json"} | headers
    scope = {
        "type": "http", "method": method, "path": path, "query_string": b"", "client": (client, 1),
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in all_headers.items()],
    }  # fmt: skip
    await app(scope, receive, send)
    if not responses:
        return 0, {}, b""
    headers = {name.decode(): value.decode() for name, value in responses[0]["headers"]}
    return responses[0]["status"], headers, b"".join(message["body"] for message in responses[1:])
