"""Looks at a running service: what its ``/metrics`` counts, or that it is away."""

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
    from prometheus_client.samples import Sample as Line

WAIT = 5.0  # seconds until a service counts as away
PREDICTING = ("/predict", "/invocations", "/infer")  # how routes end that predict: no others are promised anything
_KEY_REMEDY = "set TOWLINE_API_KEY to a key of `towline keys create NAME --scope admin`"


class RequestCounters(Frozen):
    """What only ever grows while a service lives.

    Attributes:
        requests: for predictions, answered in whatever way. errors: of these, with a status of 5xx.
        edges: upper ends, in seconds, of the histogram of how long requests took that reached a model; the last is
            infinite, None here.
        within: how many requests took no longer than each edge.
        dropped: predictions that the log had no room for.
    """

    requests: float = 0.0
    errors: float = 0.0
    edges: tuple[float | None, ...] = ()
    within: tuple[float, ...] = ()
    dropped: float = 0.0


class ServiceSample(Frozen):
    """One look at one service.

    Attributes:
        at: when. service: its address. up: whether it told its metrics; ``why`` not, in words.
        started: when it did, in seconds since 1970; None where it does not say.
        model, version: what it serves; the version that most of its workers have.
        counts: since it started; None where it is away.
    """

    at: dt.datetime
    service: str
    up: bool
    why: str = ""
    started: float | None = None
    model: str = ""
    version: int | None = None
    counts: RequestCounters | None = None


def scrape(url: str, key: str | None = None, *, now: dt.datetime | None = None) -> ServiceSample:
    """Reads the metrics of a service of ``towline serve``. One that is away is a sample too.

    Behind a load balancer each look would meet another instance: give the instances' own addresses.

    Args:
        url: its address, such as http://127.0.0.1:8080.
        key: with the scope admin, where the service has keys.
        now: the time of the look; None takes the clock's.

    Raises:
        ConfigError: the address or the key is wrong, or what answers is no service of ours.
    """
    at = now or dt.datetime.now(dt.UTC)
    service = _address(url)
    headers = {"Accept": "text/plain", "User-Agent": "towline-watch"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    try:
        answer = send_request(f"{service}/metrics", WAIT, headers=headers)
    except HttpRequestError as error:
        return ServiceSample(at=at, service=service, up=False, why=str(error))
    if answer.status >= 500 or answer.status in (408, 429):
        return ServiceSample(at=at, service=service, up=False, why=f"/metrics answers {answer.status}")
    return read(_text(answer, service), service, at)


def read(text: str, service: str, at: dt.datetime) -> ServiceSample:
    """A sample from the text of ``/metrics``.

    Raises:
        ConfigError: it is not what a service of ours tells.
    """
    from prometheus_client.parser import text_string_to_metric_families

    try:
        lines = [line for family in text_string_to_metric_families(text) for line in family.samples]
    except (ValueError, KeyError, IndexError):
        raise _stranger(service) from None
    if not any(line.name == "towline_in_flight" for line in lines):
        raise _stranger(service)
    models = Counter((line.labels.get("name", ""), int(line.value)) for line in _named(lines, "model_version"))
    model, version = max(models, key=lambda one: (models[one], one[1])) if models else ("", None)
    predicting = [line for line in lines if line.labels.get("route", "").endswith(PREDICTING)]
    requests = _named(predicting, "requests_total")
    edges, within = _histogram(_named(predicting, "request_seconds_bucket"))
    started = [line.value for line in _named(lines, "start_time_seconds")]
    return ServiceSample(
        at=at,
        service=service,
        up=True,
        started=started[0] if started else None,
        model=model,
        version=version,
        counts=RequestCounters(
            requests=_sum(requests),
            errors=_sum(line for line in requests if line.labels.get("status", "").startswith("5")),
            edges=edges,
            within=within,
            dropped=_sum(_named(lines, "log_dropped_total")),
        ),
    )


def _named(lines: Iterable["Line"], name: str) -> list["Line"]:
    return [line for line in lines if line.name == f"towline_{name}"]


def _sum(lines: Iterable["Line"]) -> float:
    return math.fsum(line.value for line in lines if math.isfinite(line.value))


def _histogram(lines: Iterable["Line"]) -> tuple[tuple[float | None, ...], tuple[float, ...]]:
    """Edges and counts of all routes and versions together."""
    found: Counter[float] = Counter()
    for line in lines:
        found[float(line.labels["le"])] += line.value  # type: ignore[assignment]
    edges = sorted(found)
    return tuple(edge if math.isfinite(edge) else None for edge in edges), tuple(float(found[edge]) for edge in edges)


def _address(url: str) -> str:
    parts = None
    try:
        parts = urlsplit(url.rstrip("/"))
        fine = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:
        fine = False
    if not parts or not fine or "@" in parts.netloc or parts.path or parts.query or parts.fragment:
        raise ConfigError("not a service's address", where="--service", remedy="write e.g. http://127.0.0.1:8080")
    return f"{parts.scheme}://{parts.netloc.lower()}"


def _text(answer: HttpResponse, service: str) -> str:
    if answer.status in (401, 403):
        what = "needs a key" if answer.status == 401 else "refuses the key: it has not the scope admin"
        raise ConfigError(f"/metrics {what}", where=service, remedy=_KEY_REMEDY)
    try:
        text = answer.body.decode()
    except UnicodeDecodeError:
        raise _stranger(service) from None
    if answer.status != 200:
        raise _stranger(service)
    return text


def _stranger(service: str) -> ConfigError:
    remedy = "give the address of a service of `towline serve`"
    return ConfigError("what answers there is not a service of towline", where=service, remedy=remedy)
