"""The service under load: found, tried once, and what to ask it. Works with any model: the service tells its rows."""

import json
import random
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from towline.errors import ConfigError, TowlineError, TransientError

KEY = "TOWLINE_API_KEY"
PATH = "/predict"
VARIED = 100  # different rows asked
WAIT = 10.0  # seconds until no answer is an error
_KEY_REMEDY = f"set {KEY} to a key that `towline keys create` showed"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Target:
    """``bodies`` are those of one-row requests; ``model`` is name@version."""

    url: str
    model: str
    bodies: tuple[bytes, ...]


def find(url: str, key: str | None) -> Target:
    """Asks the service for its model and an example, and tries a prediction.

    Raises:
        ConfigError: the address or the key is wrong, or what answers is not a service of ours.
        TransientError: nothing answers, or it is not ready.
    """
    url = url.rstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path:
        raise ConfigError(f"not a service's address: {url}", where="URL", remedy="write http://127.0.0.1:8080")
    example = _example(_get(url, "/openapi.json", key), url)
    fields = _get(url, "/metadata", key).get("fields") or []
    bodies = tuple(json.dumps({"rows": [row]}).encode() for row in vary(example, fields))
    answer = _ask(url, PATH, key, bodies[0])
    if not answered(answer):
        raise _stranger(url)
    model = answer.get("model") or {}
    return Target(url, f"{model.get('name', '?')}@{model.get('version', '?')}", bodies)


def headers(key: str | None) -> dict[str, str]:
    plain = {"Content-Type": "application/json", "User-Agent": "towline-loadtest"}
    return plain | ({"Authorization": f"Bearer {key}"} if key else {})


def answered(document: object) -> bool:
    """Whether it is an answer to one row."""
    found = document.get("predictions") if isinstance(document, dict) else None
    return isinstance(found, list) and len(found) == 1


def vary(example: Row, fields: Sequence[Mapping[str, Any]], count: int = VARIED, seed: int = 1) -> list[dict[str, Any]]:
    """The example, and rows that differ from it within what the training table held.

    Args:
        example: one whole row.
        fields: as ``/metadata`` tells them: name, kind, min, max, categories, nulls_in_training.
        count: how many rows in all.
        seed: of the draws.
    """
    draw = random.Random(seed)  # noqa: S311 - nothing secret
    return [dict(example), *({**example, **_changed(example, fields, draw)} for _ in range(count - 1))]


def _changed(example: Row, fields: Sequence[Mapping[str, Any]], draw: random.Random) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for field in fields:
        name, low, high = field["name"], field.get("min"), field.get("max")
        if name not in example or draw.random() < 0.3:
            continue
        if field.get("nulls_in_training") and draw.random() < 0.2:
            changed[name] = None
        elif field.get("categories"):
            changed[name] = draw.choice(field["categories"])
        elif field["kind"] == "numeric" and low is not None and high is not None:
            whole = isinstance(example[name], int)
            changed[name] = draw.randint(int(low), int(high)) if whole else draw.uniform(low, high)
    return changed


def _example(document: Any, url: str) -> dict[str, Any]:
    try:
        asked = document["paths"][PATH]["post"]["requestBody"]["content"]["application/json"]
        (row,) = asked["example"]["rows"]
    except (KeyError, TypeError, ValueError):
        raise _stranger(url) from None
    return dict(row)


def _get(url: str, path: str, key: str | None) -> Any:
    return _ask(url, path, key, None)


def _ask(url: str, path: str, key: str | None, body: bytes | None) -> Any:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url + path, body, headers(key))  # noqa: S310 - http or https, looked at above
    try:
        with opener.open(request, timeout=WAIT) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise _refused(error, url + path) from None
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise TransientError(
            f"nothing answers: {reason}", where=url, remedy="start it: towline serve NAME; or mend the address"
        ) from None
    except ValueError:
        raise _stranger(url) from None


def _refused(error: urllib.error.HTTPError, where: str) -> TowlineError:
    try:
        problem = json.load(error)
    except ValueError:
        problem = {}
    told = problem if isinstance(problem, dict) else {}
    what = f"{error.code} {told.get('title') or error.reason}"
    detail = str(told.get("detail") or "")
    if error.code in (401, 403):
        return ConfigError(what, where=where, remedy=_KEY_REMEDY)
    if error.code in (429, 503):
        return TransientError(what, where=where, remedy=detail or "try again when /readyz answers 200")
    return ConfigError(what, where=where, remedy=detail or "give the address of a service of `towline serve`")


def _stranger(url: str) -> ConfigError:
    remedy = "give the address of a service of `towline serve`"
    return ConfigError("what answers there is not a service of towline", where=url, remedy=remedy)
