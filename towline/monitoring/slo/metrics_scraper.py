"""Scrapes a running service: reads the counters of its ``/metrics``, or notes that it is down."""

import datetime as dt
import math
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from towline.config import Frozen
from towline.errors import ConfigError
from towline.http_request import HttpRequestError, HttpResponse, send_request

if TYPE_CHECKING:
    from prometheus_client.samples import Sample

TIMEOUT = 5.0  # seconds until a service counts as down
PREDICTION_ROUTES = ("/predict", "/invocations", "/infer")  # ends of the routes that SLOs cover
_KEY_REMEDY = "set TOWLINE_API_KEY to a key of `towline keys create NAME --scope admin`"


class RequestCounters(Frozen):
    """Counters of a service; they only grow while it runs.

    Attributes:
        requests: number of prediction requests with any response.
        errors: number of these with a 5xx response.
        edges: upper bounds, in seconds, of the latency histogram's buckets; the last is infinite, None here.
        within: number of requests within each bound.
        dropped: number of predictions lost because the log's queue was full.
    """

    requests: float = 0.0
    errors: float = 0.0
    edges: tuple[float | None, ...] = ()
    within: tuple[float, ...] = ()
    dropped: float = 0.0


class ServiceSample(Frozen):
    """One scrape of one service.

    Attributes:
        at: time of the scrape.
        service: address of the service.
        up: whether it answered without a 5xx.
        why: why there are no counters.
        started: its start time, in seconds since 1970; None if unknown.
        model, version: the served version; of several workers, the most frequent one.
        counters: since its start; None if it is down, or answered without its metrics.
    """

    at: dt.datetime
    service: str
    up: bool
    why: str = ""
    started: float | None = None
    model: str = ""
    version: int | None = None
    counters: RequestCounters | None = None


def scrape_metrics(url: str, key: str | None = None, *, now: dt.datetime | None = None) -> ServiceSample:
    """Scrapes the metrics of a service of ``towline serve``; a service that is down gives a sample, too.

    Behind a load balancer, give the addresses of the instances: else each scrape would reach another one.

    Args:
        url: address of the service, such as http://127.0.0.1:8080.
        key: API key with the scope admin, if the service has keys.
        now: time of the scrape; default: the current time.

    Raises:
        ConfigError: the address or the key is wrong, or the address is not that of a towline service.
    """
    at = now or dt.datetime.now(dt.UTC)
    service = _check_address(url)
    headers = {"Accept": "text/plain", "User-Agent": "towline-monitoring"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    try:
        response = send_request(f"{service}/metrics", TIMEOUT, headers=headers)
    except HttpRequestError as error:
        return ServiceSample(at=at, service=service, up=False, why=str(error))
    if response.status >= 500 or response.status in (408, 429):
        why = f"/metrics returns {response.status}"
        return ServiceSample(at=at, service=service, up=response.status < 500, why=why)
    return parse_metrics(_check_response(response, service), service, at)


def parse_metrics(text: str, service: str, at: dt.datetime) -> ServiceSample:
    """A sample from the text of ``/metrics``.

    Raises:
        ConfigError: the text is not that of a towline service.
    """
    from prometheus_client.parser import text_string_to_metric_families

    try:
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    except (ValueError, KeyError, IndexError):
        raise _unknown_service(service) from None
    if not any(sample.name == "towline_in_flight" for sample in samples):
        raise _unknown_service(service)
    versions = Counter(
        (sample.labels.get("name", ""), int(sample.value)) for sample in _select(samples, "model_version")
    )
    model, version = max(versions, key=lambda each: (versions[each], each[1])) if versions else ("", None)
    predictions = [sample for sample in samples if sample.labels.get("route", "").endswith(PREDICTION_ROUTES)]
    requests = _select(predictions, "requests_total")
    edges, within = _read_histogram(_select(predictions, "request_seconds_bucket"))
    counters = RequestCounters(
        requests=_sum(requests),
        errors=_sum(sample for sample in requests if sample.labels.get("status", "").startswith("5")),
        edges=edges,
        within=within,
        dropped=_sum(_select(samples, "log_dropped_total")),
    )
    started = next((sample.value for sample in _select(samples, "start_time_seconds")), None)
    return ServiceSample(
        at=at, service=service, up=True, started=started, model=model, version=version, counters=counters
    )


def _select(samples: Iterable["Sample"], name: str) -> list["Sample"]:
    return [sample for sample in samples if sample.name == f"towline_{name}"]


def _sum(samples: Iterable["Sample"]) -> float:
    return math.fsum(sample.value for sample in samples if math.isfinite(sample.value))


def _read_histogram(samples: Iterable["Sample"]) -> tuple[tuple[float | None, ...], tuple[float, ...]]:
    """Bounds and counts, summed over all routes and versions."""
    counts: dict[float, float] = {}
    for sample in samples:
        edge = float(sample.labels["le"])
        counts[edge] = counts.get(edge, 0.0) + sample.value
    edges = sorted(counts)
    return tuple(edge if math.isfinite(edge) else None for edge in edges), tuple(counts[edge] for edge in edges)


def _check_address(url: str) -> str:
    try:
        parts = urlsplit(url.rstrip("/"))
        valid = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
        valid = valid and not ("@" in parts.netloc or parts.path or parts.query or parts.fragment)
    except ValueError:
        valid = False
    if not valid:
        what = "not the address of a service"
        raise ConfigError(what, where="--service", remedy="write e.g. http://127.0.0.1:8080")
    return f"{parts.scheme}://{parts.netloc.lower()}"


def _check_response(response: HttpResponse, service: str) -> str:
    if response.status in (401, 403):
        problem = "needs a key" if response.status == 401 else "refuses the key: it does not have the scope admin"
        raise ConfigError(f"/metrics {problem}", where=service, remedy=_KEY_REMEDY)
    try:
        text = response.body.decode()
    except UnicodeDecodeError:
        raise _unknown_service(service) from None
    if response.status != 200:
        raise _unknown_service(service)
    return text


def _unknown_service(service: str) -> ConfigError:
    remedy = "give the address of a service of `towline serve`"
    return ConfigError("the address is not that of a towline service", where=service, remedy=remedy)
