"""The service under load: its address, its model and rows to send. The service itself describes its rows."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import OK, responses
from typing import Any
from urllib.parse import urlsplit

from towline.errors import ConfigError, TowlineError, TransientError
from towline.http_request import HttpRequestError, send_request

KEY = "TOWLINE_API_KEY"
PATH = "/predict"
ROWS = 100  # different rows that are sent
TIMEOUT_S = 10.0
_REMEDY = "give the address of a service that `towline serve` has started"


@dataclass(frozen=True)
class ServiceUnderTest:
    """A service: ``model`` is name@version; ``bodies`` are requests of one row each."""

    url: str
    model: str
    bodies: tuple[bytes, ...]


def query_service(url: str, key: str | None) -> ServiceUnderTest:
    """Requests the model and the fields of a service, and sends one prediction request.

    Raises:
        ConfigError: the address or the key is wrong, or the server is not a service of towline.
        TransientError: the service does not answer, or is not ready.
    """
    url = url.rstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path:
        raise ConfigError(f"not the address of a service: {url}", where="URL", remedy="write http://127.0.0.1:8080")
    try:
        post = _request(url, "/openapi.json", key)["paths"][PATH]["post"]
        (example,) = post["requestBody"]["content"]["application/json"]["example"]["rows"]
        fields = _request(url, "/metadata", key).get("fields") or []
        bodies = tuple(json.dumps({"rows": [row]}).encode() for row in vary_rows(example, fields))
    except (KeyError, TypeError, AttributeError, ValueError):
        raise _not_towline(url) from None
    answer = _request(url, PATH, key, bodies[0])
    if not has_prediction(answer):
        raise _not_towline(url)
    model = answer.get("model") or {}
    return ServiceUnderTest(url, f"{model.get('name', '?')}@{model.get('version', '?')}", bodies)


def request_headers(key: str | None) -> dict[str, str]:
    headers = {"Content-Type": "application/json", "User-Agent": "towline-loadtest"}
    return headers | ({"Authorization": f"Bearer {key}"} if key else {})


def has_prediction(document: object) -> bool:
    """Whether a document is the answer to a request of one row."""
    predictions = document.get("predictions") if isinstance(document, dict) else None
    return isinstance(predictions, list) and len(predictions) == 1


def vary_rows(example: Mapping[str, Any], fields: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The example row, and rows that differ from it within the ranges of the training table; always the same rows.

    Args:
        example: one complete row.
        fields: as in ``/metadata``: name, kind, min, max, categories, nulls_in_training.
    """
    draw = random.Random(1)  # noqa: S311 - not for cryptography
    rows = [dict(example) for _ in range(ROWS)]
    for row in rows[1:]:
        for field in fields:
            name, low, high = field["name"], field.get("min"), field.get("max")
            if name not in example or draw.random() < 0.3:
                continue
            if field.get("nulls_in_training") and draw.random() < 0.2:
                row[name] = None
            elif field.get("categories"):
                row[name] = draw.choice(field["categories"])
            elif field["kind"] == "numeric" and low is not None and high is not None:
                integer = isinstance(example[name], int)
                row[name] = draw.randint(int(low), int(high)) if integer else draw.uniform(low, high)
    return rows


class ResourceMeter:
    """Reads CPU seconds and resident bytes of a service, summed over its workers, from its ``/metrics``."""

    def __init__(self, url: str, key: str | None) -> None:
        self._url, self._headers = f"{url}/metrics", request_headers(key)
        self._error = "the test was too short"
        self.measurements: list[tuple[float, float]] = []

    def measure(self) -> None:
        try:
            response = send_request(self._url, 2, headers=self._headers)
        except HttpRequestError as error:
            self._error = f"/metrics: {error}"
            return
        lines = response.body.decode(errors="replace").splitlines() if response.status == OK else []
        cpu, memory = (_sum_metric(lines, f"process_{name}") for name in ("cpu_seconds_total", "resident_memory_bytes"))
        if cpu and memory:
            self.measurements.append((cpu, memory))
        else:
            self._error = f"/metrics, HTTP status {response.status}, has neither CPU nor memory"

    def usage(self, seconds: float) -> dict[str, float | str]:
        """Cores used over a test of ``seconds`` s, and memory in MB before, at most and after."""
        if len(self.measurements) < 2:
            return {"unknown": self._error}
        cpu, memory = zip(*self.measurements, strict=True)
        sizes = {"before": memory[0], "max": max(memory), "after": memory[-1]}
        return {"cores": round((cpu[-1] - cpu[0]) / seconds, 3)} | {
            f"memory_{name}_mb": round(size / 1e6, 1) for name, size in sizes.items()
        }


def _sum_metric(lines: list[str], suffix: str) -> float:
    """The sum of a metric over its labels, with any prefix of its name; 0 without it."""
    samples = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
    return sum(float(value) for name, value in samples if name.partition("{")[0].endswith(suffix))


def _request(url: str, path: str, key: str | None, body: bytes | None = None) -> Any:
    """The JSON document that the service returns; None if the response is not JSON."""
    try:
        response = send_request(url + path, TIMEOUT_S, body=body, headers=request_headers(key))
    except HttpRequestError as error:
        remedy = "start the service: towline serve NAME; or correct the address"
        raise TransientError(f"the service does not answer: {error}", where=url, remedy=remedy) from None
    try:
        document = json.loads(response.body)
    except ValueError:
        document = None
    if response.status != OK:
        raise _refusal(response.status, document if isinstance(document, dict) else {}, url + path)
    return document


def _refusal(status: int, document: Mapping[str, Any], where: str) -> TowlineError:
    problem = f"{status} {document.get('title') or responses.get(status, '')}"
    detail = str(document.get("detail") or "")
    if status in (401, 403):
        return ConfigError(problem, where=where, remedy=f"set {KEY} to a key created with `towline keys create`")
    if status in (429, 503):
        return TransientError(problem, where=where, remedy=detail or "try again when /readyz answers 200")
    return ConfigError(problem, where=where, remedy=detail or _REMEDY)


def _not_towline(url: str) -> ConfigError:
    return ConfigError("the server is not a service of towline", where=url, remedy=_REMEDY)
