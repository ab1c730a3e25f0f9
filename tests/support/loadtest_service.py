"""A fake service with towline's routes that can delay, refuse or change responses."""

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

ROW = {"size": 12, "town": "Ulm", "at": "2026-01-01T00:00:00"}
FIELDS = [
    {"name": "size", "kind": "numeric", "min": 1.0, "max": 40.0, "categories": None, "nulls_in_training": False},
    {"name": "town", "kind": "category", "min": None, "max": None, "categories": ["Ulm", "Köln"],
     "nulls_in_training": True},
    {"name": "at", "kind": "datetime", "min": None, "max": None, "categories": None, "nulls_in_training": False},
]  # fmt: skip
METRICS = """# TYPE towline_process_cpu_seconds counter
towline_process_cpu_seconds_total{worker="1"} %f
towline_process_cpu_seconds_total{worker="2"} 1.0
towline_process_resident_memory_bytes{worker="1"} 3e7
towline_process_resident_memory_bytes{worker="2"} 4e+07
"""


@dataclass
class FakeService:
    """Requests ``hold_from`` to ``hold_to`` - 1 are held until request ``hold_to`` arrives, or for a second."""

    key: str = ""
    hold_from: int = 0
    hold_to: int = 0
    refuse_every: int = 0
    invalid_every: int = 0
    is_another_server: bool = False
    delay: float = 0.0
    requests: list[dict[str, Any]] = field(default_factory=list)
    held_requests: int = 0
    max_concurrent: int = 0
    port: int = 0
    _concurrent: int = 0
    _gate: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        status, document = await self._answer(scope["path"], dict(scope["headers"]), body)
        content = document if isinstance(document, bytes) else json.dumps(document).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def _answer(self, path: str, headers: dict[bytes, bytes], body: bytes) -> tuple[int, Any]:
        if self.is_another_server:
            return 200, {"hello": "world"}
        if self.key and headers.get(b"authorization") != f"Bearer {self.key}".encode():
            return 401, {"title": "A key is needed", "status": 401}
        if path == "/predict":
            return await self._predict(json.loads(body))
        request_body = {"content": {"application/json": {"example": {"rows": [ROW]}}}}
        return 200, {
            "/openapi.json": {"paths": {"/predict": {"post": {"requestBody": request_body}}}},
            "/metadata": {"fields": FIELDS},
            "/metrics": (METRICS % (len(self.requests) / 1000)).encode(),
        }[path]

    async def _predict(self, document: dict[str, Any]) -> tuple[int, Any]:
        self.requests.append(document["rows"][0])
        number = len(self.requests)
        self._concurrent += 1
        self.max_concurrent = max(self.max_concurrent, self._concurrent)
        try:
            if self.hold_from <= number < self.hold_to:
                self.held_requests += 1
                try:
                    await asyncio.wait_for(self._gate.wait(), 1.0)
                except TimeoutError:
                    self.hold_to = number
            elif number == self.hold_to:
                self._gate.set()
            await asyncio.sleep(self.delay)
        finally:
            self._concurrent -= 1
        if self.refuse_every and number % self.refuse_every == 0:
            return 429, {"title": "Too many requests with this key", "status": 429}
        if self.invalid_every and number % self.invalid_every == 0:
            return 200, {"predictions": []}
        return 200, {"predictions": [1.0], "model": {"name": "demo", "version": 3}, "request_id": "r"}
