"""Who is let in, what is refused and how, and that nothing a client sends is ever the service's fault."""

import asyncio
import base64
import gzip
import json
import logging
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.serving.service import (
    CLASSES,
    ROW,
    Fake,
    FakeKeys,
    FakeLog,
    Running,
    application,
    call,
    make_contract,
    options,
    running,
)  # fmt: skip
from tests.unit.serving.test_strict_json import HOSTILE
from towline.errors import DataError, ReleaseError, TransientError
from towline.inference.scorer import RowPredictions
from towline.serving import endpoint
from towline.serving.app import create_app
from towline.serving.problems import PROBLEM_TYPES

KEYS = {"pkey": frozenset({"predict"}), "akey": frozenset({"predict", "admin"})}
BODY = b'{"rows":[{"size":20.5,"kind":"house","sunny":true,"at":null}]}'
SECURE = {"x-content-type-options": "nosniff", "cache-control": "no-store", "x-frame-options": "DENY"}

#: every route and who may ask it: a new one is not served before it stands here
ROUTES = {
    "/": ("GET", "public"),
    "/livez": ("GET", "public"),
    "/readyz": ("GET", "public"),
    "/ping": ("GET", "public"),
    "/health": ("GET", "public"),
    "/version": ("GET", "public"),
    "/v2/health/live": ("GET", "public"),
    "/v2/health/ready": ("GET", "public"),
    "/v2/models/{name}/ready": ("GET", "public"),
    "/v2/models/{name}/versions/{version}/ready": ("GET", "public"),
    "/predict": ("POST", "predict"),
    "/invocations": ("POST", "predict"),
    "/endpoints/{name}/invocations": ("POST", "predict"),
    "/metadata": ("GET", "predict"),
    "/openapi.json": ("GET", "predict"),
    "/docs": ("GET", "predict"),
    "/v2": ("GET", "predict"),
    "/v2/models/{name}": ("GET", "predict"),
    "/v2/models/{name}/versions/{version}": ("GET", "predict"),
    "/v2/models/{name}/infer": ("POST", "predict"),
    "/v2/models/{name}/versions/{version}/infer": ("POST", "predict"),
    "/metrics": ("GET", "admin"),
}


@pytest.fixture
def model(tmp_path: Path) -> Fake:
    return Fake(make_contract(), tmp_path)


@pytest.fixture
def service(model: Fake) -> Iterator[Running]:
    with running(model) as found:
        yield found


@pytest.fixture
def locked(model: Fake) -> Iterator[Running]:
    """A service that was given keys."""
    with running(model, KEYS) as found:
        yield found


def filled(path: str) -> str:
    return path.format(name="house-price", version=3)


def ask(service: Running, path: str, **headers: str) -> Any:
    method = ROUTES[path][0]
    body = BODY if path == "/predict" else b"{}"
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    if method == "POST":
        headers["content-type"] = "application/json"
    return service.client.request(method, filled(path), content=body if method == "POST" else None, headers=headers)


def test_every_route_is_public_or_protected(service: Running) -> None:
    """The routes are these, and each says itself who may ask it."""
    assert {one.path: (one.method, one.access) for one in service.app.endpoints} == ROUTES
    assert {route.path for route in service.app.routes} == ROUTES.keys()


@pytest.mark.parametrize("path", ROUTES)
def test_keys_open_what_they_are_for(locked: Running, path: str) -> None:
    """Without a key 401, with one of too small a scope 403; what is public needs none."""
    access = ROUTES[path][1]
    codes = {
        "nothing": ask(locked, path).status_code,
        "unknown": ask(locked, path, authorization="Bearer nokey").status_code,
        "predict": ask(locked, path, authorization="Bearer pkey").status_code,
        "admin": ask(locked, path, x_api_key="akey").status_code,
    }
    if access == "public":
        assert not {401, 403} & set(codes.values())
    else:
        assert codes["nothing"] == codes["unknown"] == 401
        assert (codes["predict"] == 403) == (access == "admin")
        assert codes["admin"] not in (401, 403)


@pytest.mark.parametrize("path", ROUTES)
def test_no_keys_no_locks(service: Running, path: str) -> None:
    """While no key was ever made, everything answers."""
    assert ask(service, path).status_code in (200, 303, 422)


@pytest.mark.parametrize("path", [path for path, (_, access) in ROUTES.items() if access != "public"])
def test_no_spelling_of_a_path_gets_around_its_key(locked: Running, path: str) -> None:
    """Access is checked where the request ends up, not by what its path looks like."""
    where = filled(path)
    for odd in (
        f"/{where}", f"{where}/", f"/livez/..{where}", f"/livez/../{where}", f"{where}/livez", f"{where};/livez",
        where.upper(), f"{where}\0", f"{where} ", f"{where}?x", f"{where}#/livez", where.replace("/", "\\"),
        where[1:], "",
    ):  # fmt: skip
        status, _, _ = asyncio.run(call(locked.app, [BODY], odd, ROUTES[path][0], host="x/livez"))
        assert status in (401, 404), odd


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer pkey"},
        {"authorization": "bearer pkey"},
        {"authorization": "BEARER  pkey"},
        {"x_api_key": "pkey"},
        {"authorization": "Basic " + base64.b64encode(b"any:pkey").decode()},
    ],
)
def test_ways_to_show_a_key(locked: Running, headers: dict[str, str]) -> None:
    """As a bearer's token, in a header of its own, or as a browser sends a password."""
    assert locked.client.send(BODY, **headers).status_code == 200


@pytest.mark.parametrize(
    "given",
    ["", "Bearer", "Bearer ", "pkey", "Bearer pkey x", "Basic", "Basic !!!", "Basic cGtleQ==", "Digest pkey",
     "Bearer " + "x" * 5000],
)  # fmt: skip
def test_what_is_no_key(locked: Running, given: str) -> None:
    """401, and the way to authenticate; never a trace of what was sent."""
    answer = locked.client.send(BODY, authorization=given)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Bearer realm="towline"'
    assert answer.json()["code"] == "no-key"
    assert "pkey" not in answer.text


def test_a_browser_is_asked_for_the_key(locked: Running) -> None:
    """The pages for people can be opened by typing the key as a password."""
    assert locked.client.get("/docs").headers["www-authenticate"].startswith("Basic ")
    given = "Basic " + base64.b64encode(b":pkey").decode()
    assert locked.client.get("/docs", authorization=given).status_code == 200


def test_keys_outside_ascii(locked: Running) -> None:
    """Bytes that are no text are no key either."""
    status, _, _ = asyncio.run(call(locked.app, [BODY], authorization="Bearer schlüssel"))
    assert status == 401


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_methods(service: Running, path: str, method: str) -> None:
    """A path takes its method, HEAD where it takes GET, and says so to any other."""
    allowed = ("GET", "HEAD") if ROUTES[path][0] == "GET" else ("POST",)
    answer = service.client.request(method, filled(path), content=b"{}")
    if method in allowed:
        assert answer.status_code in (200, 303, 415, 422)
    else:
        assert answer.status_code == 405
        assert answer.headers["allow"] == ", ".join(allowed)
        assert method == "HEAD" or answer.json()["code"] == "method-not-allowed"


@pytest.mark.parametrize(
    "path", [path for path, (method, _) in ROUTES.items() if method == "GET" and path != "/metrics"]
)
def test_head_is_get_without_a_body(service: Running, path: str) -> None:
    """Same status and headers."""
    whole = service.client.request("GET", filled(path))
    head = service.client.request("HEAD", filled(path))
    assert (head.status_code, head.content) == (whole.status_code, b"")
    for name in ("content-type", "content-length"):
        assert head.headers[name] == whole.headers[name]


@pytest.mark.parametrize(
    "path", ["/nope", "/predict/", "/predict/x", "/v2/models", "/v2/models/", "/docs/x", "/%00", "/PREDICT"]
)
def test_unknown_paths(service: Running, path: str) -> None:
    """404 as a problem document."""
    answer = service.client.request("POST", path, content=BODY)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("path", [*ROUTES, "/nope"])
def test_headers_of_every_answer(service: Running, path: str) -> None:
    """No answer is sniffed, framed or stored; each has its request's id."""
    answer = service.client.request("GET", filled(path), headers={"x-request-id": "abc"})
    assert {name: answer.headers[name] for name in SECURE} == SECURE
    assert answer.headers["x-request-id"] == "abc"
    assert "strict-transport-security" not in answer.headers


def test_strict_transport_with_tls_alone(model: Fake) -> None:
    """HSTS is said only by a service that speaks TLS itself."""
    with running(model, certificate=Path("x.pem")) as service:
        assert "max-age" in service.client.get("/livez").headers["strict-transport-security"]


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "ä", "a\tb", "<script>", '"', "a,b"])
def test_ids_that_are_not_taken(service: Running, given: str) -> None:
    """An id that could break a log or a header is replaced."""
    status, headers, _ = asyncio.run(call(service.app, [BODY], x_request_id=given))
    assert status == 200
    assert headers["x-request-id"] != given
    assert headers["x-request-id"].replace("-", "").isalnum()


def test_ids_are_all_different(service: Running, model: Fake) -> None:
    """Within a process and between processes."""
    ids = {service.client.send(BODY).json()["request_id"] for _ in range(20)}
    with running(model) as other:
        ids |= {other.client.send(BODY).json()["request_id"] for _ in range(20)}
    assert len(ids) == 40


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("path", ["/predict", "/invocations", "/v2/models/house-price/infer"])
def test_hostile_json(service: Running, path: str, body: bytes) -> None:
    """400 with what is wrong, for whatever a parser could stumble over; MLflow's clients write NaN and may."""
    if path == "/invocations" and body == HOSTILE["NaN"]:
        assert service.client.send(b'{"dataframe_records": [NaN]}', path).status_code == 422
        return
    answer = service.client.send(body, path)
    assert answer.status_code == 400
    assert answer.json()["code"] == "malformed-json"


@pytest.mark.parametrize(
    "kind",
    ["", "text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1", "text/json",
     "application/jsonp", "multipart/form-data", "application/json; x=y", ";", "application/ json"],
)  # fmt: skip
def test_other_media_types(service: Running, kind: str) -> None:
    """Only declared JSON is read: a form on a foreign page cannot ask."""
    answer = service.client.send(BODY, content_type=kind)
    assert (answer.status_code, answer.json()["code"]) == (415, "not-json")


@pytest.mark.parametrize(
    "kind",
    ["application/json", "Application/JSON", "application/json; charset=utf-8", "application/json;charset=UTF-8",
     'application/json; charset="utf-8" ;'],
)  # fmt: skip
def test_json_by_any_spelling(service: Running, kind: str) -> None:
    """Case, spaces and quotes are as HTTP has them."""
    assert service.client.send(BODY, content_type=kind).status_code == 200


@pytest.mark.parametrize("sign", ["origin", "referer", "sec_fetch_site", "cookie"])
def test_a_page_cannot_ask_without_a_media_type(service: Running, sign: str) -> None:
    """A page on another site may send a body of no type without being asked first; Triton's client sends such too."""
    scope_headers = {"content_type": "", sign: "https://evil.example"}
    infer = "/v2/models/house-price/infer"
    assert asyncio.run(call(service.app, [b"{}"], infer, **scope_headers))[0] == 415
    assert asyncio.run(call(service.app, [b"{}"], infer, content_type=""))[0] == 422
    assert asyncio.run(call(service.app, [b"{}"], infer, **{sign: "https://evil.example"}))[0] == 422


PROTECTED = [path for path, (_, access) in ROUTES.items() if access != "public"]


@pytest.mark.parametrize("path", PROTECTED)
@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost.evil", "", "10.0.0.1", "[::2]:80", "[",
     "127.0.0.1:8080:1", "0x7f.1", "a@localhost"],
)  # fmt: skip
def test_other_hosts_while_there_are_no_keys(service: Running, path: str, host: str) -> None:
    """403 and the option that helps, for whatever a name server may have been made to point here."""
    status, _, body = asyncio.run(call(service.app, [BODY], filled(path), ROUTES[path][0], host=host))
    assert (status, json.loads(body)["code"]) == (403, "foreign-host")
    assert "--allowed-hosts" in json.loads(body)["remedy"]


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:8080", "localhost", "LOCALHOST:1", "localhost.", "[::1]", "[::1]:8080", "127.1.2.3"],
)
def test_names_of_loopback(service: Running, host: str) -> None:
    """Answered with any port, for a tunnel may have another."""
    assert service.client.send(BODY, host=host).status_code == 200


@pytest.mark.parametrize("path", [path for path, (_, access) in ROUTES.items() if access == "public"])
def test_probes_may_come_by_any_name(service: Running, path: str) -> None:
    """They tell nothing, and orchestrators ask by address."""
    assert asyncio.run(call(service.app, [b""], filled(path), host="10.1.2.3:80"))[0] != 403


def test_the_host_it_was_told_to_listen_on(model: Fake) -> None:
    """A name of this machine for loopback is its own."""
    with running(model, host="tower.local") as service:
        assert service.client.send(BODY, host="tower.local:8080").status_code == 200


def test_any_host_with_keys(locked: Running) -> None:
    """A key is what no foreign page has; a proxy in front may send its own name."""
    assert locked.client.send(BODY, host="api.example.com", x_api_key="pkey").status_code == 200


def test_any_host_where_others_may_ask(model: Fake) -> None:
    """A service for other machines has names that it does not know."""
    app = create_app(
        options(),
        SimpleNamespace(model=model, ready=True, rejections=0, reason=""),
        FakeKeys(),
        FakeLog(),
        loopback=False,
    )
    assert asyncio.run(call(app, [BODY], host="model.internal"))[0] == 200


@pytest.mark.parametrize("keys", [None, KEYS])
def test_allowed_hosts(model: Fake, keys: dict[str, frozenset[str]] | None) -> None:
    """Those that are named are answered, and loopback; no others, with keys or without."""
    with running(model, keys, allowed_hosts=("api.example.com", "*.models.example.org")) as service:
        for host, status in (
            ("api.example.com", 200), ("API.example.com:443", 200), ("a.b.models.example.org", 200),
            ("localhost:8080", 200), ("models.example.org", 403), ("xmodels.example.org", 403), ("example.com", 403),
            ("api.example.com.evil.net", 403),
        ):  # fmt: skip
            assert service.client.send(BODY, host=host, x_api_key="pkey").status_code == status, host
    with running(model, keys, allowed_hosts=("*",)) as service:
        assert service.client.send(BODY, host="anything", x_api_key="pkey").status_code == 200


ORIGIN = "https://app.example.com"


def test_no_page_may_ask_by_default(locked: Running) -> None:
    """A browser that asks first is told no, and gets no answer to read."""
    told = locked.client.request("OPTIONS", "/predict", headers=preflight(ORIGIN))
    assert told.status_code == 405
    assert not [name for name in told.headers if name.startswith("access-control")]
    answer = locked.client.send(BODY, x_api_key="pkey", origin=ORIGIN)
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("path", [*ROUTES, "/nope"])
def test_pages_that_may_ask(model: Fake, path: str) -> None:
    """The browser is told before it shows a key; answers and refusals may be read by the sites that are named."""
    with running(model, KEYS, cors_origins=(ORIGIN,)) as service:
        told = service.client.request("OPTIONS", filled(path), headers=preflight(ORIGIN))
        assert told.status_code == 200
        assert told.headers["access-control-allow-origin"] == ORIGIN
        assert "content-type" in told.headers["access-control-allow-headers"]
        assert path == "/nope" or ROUTES[path][0] in told.headers["access-control-allow-methods"]
        method = ROUTES.get(path, ("GET",))[0]
        answer = service.client.request(method, filled(path), headers={"origin": ORIGIN})
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert "access-control-allow-credentials" not in answer.headers
        for other in ("https://evil.example", "null", ORIGIN + ".evil.example", "http://app.example.com"):
            for asked in ("OPTIONS", method):
                answer = service.client.request(asked, filled(path), headers=preflight(other))
                assert "access-control-allow-origin" not in answer.headers
                assert answer.headers["vary"] == "Origin"


def test_pages_of_any_site(model: Fake) -> None:
    """If that is what is wanted."""
    with running(model, KEYS, cors_origins=("*",)) as service:
        answer = service.client.send(BODY, x_api_key="pkey", origin="https://any.example")
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "*")


def preflight(origin: str) -> dict[str, str]:
    return {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type",
    }


@pytest.mark.parametrize(
    ("coding", "packed"),
    [
        ("gzip", gzip.compress(BODY, mtime=0)),
        ("GZIP", gzip.compress(BODY, mtime=0)),
        ("x-gzip", gzip.compress(BODY, mtime=0)),
        ("deflate", zlib.compress(BODY)),
        ("gzip", gzip.compress(BODY[:20]) + gzip.compress(BODY[20:])),
        ("identity", BODY),
    ],
)
def test_compressed_bodies(service: Running, coding: str, packed: bytes) -> None:
    """Read as clients send them, on each path."""
    answer = service.client.send(packed, content_encoding=coding)
    assert (answer.status_code, answer.json()["predictions"]) == (200, [41.0])


def test_large_compressed_bodies(service: Running) -> None:
    """Unpacked aside, and predicted in the same order."""
    body = json.dumps({"rows": [{**ROW, "size": float(number)} for number in range(5_000)]}).encode()
    answer = service.client.send(gzip.compress(body, mtime=0), content_encoding="gzip")
    assert answer.json()["predictions"] == [2.0 * number for number in range(5_000)]


@pytest.mark.parametrize("coding", ["br", "zstd", "compress", "gzip, gzip", "", "gzip;q=1"])
def test_other_codings(service: Running, coding: str) -> None:
    """415, and those that are read are named."""
    answer = service.client.send(BODY, content_encoding=coding)
    assert (answer.status_code, answer.json()["code"]) == (415, "unknown-encoding")
    assert answer.headers["accept-encoding"] == "gzip, deflate"
    assert "gzip" in answer.json()["remedy"]


@pytest.mark.parametrize(
    ("packed", "status"),
    [
        (gzip.compress(b" " * 50_000), 400),  # as long as allowed, and no JSON
        (gzip.compress(b" " * 50_001), 413),
        (gzip.compress(b" " * 200_000), 413),
        (gzip.compress(b" " * 50_000) + gzip.compress(b" "), 413),
        (gzip.compress(b"") * 1_000, 400),
        (gzip.compress(BODY, mtime=0)[:-1], 400),
        (gzip.compress(BODY, mtime=0)[:12], 400),
        (gzip.compress(BODY, mtime=0) + b"x", 400),
        (BODY, 400),
        (b"", 400),
    ],
    ids=["full", "a byte more", "large", "two members", "1,000 members", "cut", "cut short", "more behind",
         "not compressed", "empty"],
)  # fmt: skip
def test_compressed_bodies_that_are_refused(model: Fake, packed: bytes, status: int) -> None:
    """The limit is on what they unpack to; damage is told as such."""
    with running(model, max_body=50_000) as service:
        assert service.client.send(packed, content_encoding="gzip").status_code == status


def test_a_bomb_is_not_unpacked(service: Running) -> None:
    """Of what unpacks to 200 MB no more is made than a body may have."""
    packing = zlib.compressobj(wbits=31)
    bomb = b"".join(packing.compress(b" " * 1_000_000) for _ in range(200)) + packing.flush()
    tracemalloc.start()
    try:
        assert service.client.send(bomb, content_encoding="gzip").status_code == 413
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_a_body_as_long_as_allowed(model: Fake) -> None:
    """The limit is on bytes, and exact."""
    with running(model, max_body=len(BODY)) as service:
        assert service.client.send(BODY).status_code == 200
        answer = service.client.send(BODY + b" ")
        assert (answer.status_code, answer.json()["code"]) == (413, "too-large")
        assert answer.headers["connection"] == "close"


def test_a_body_in_chunks(model: Fake) -> None:
    """What comes without a length is counted as it comes, and no more is read than allowed."""
    app, _, _ = application(model, max_body=100)
    status, _, body = asyncio.run(call(app, [BODY[:10], b"", BODY[10:20], BODY[20:]]))
    assert status == 200, body
    status, _, _ = asyncio.run(call(app, [b" " * 60, b" " * 60, *[b" " * 60] * 1000]))
    assert status == 413
    assert asyncio.run(call(app, [b" " * 101]))[0] == 413
    assert asyncio.run(call(app, [b" " * 50, b" " * 51]))[0] == 413


@pytest.mark.parametrize(
    ("length", "status"), [("-1", 400), ("x", 400), ("1e3", 400), ("", 400), ("9" * 50, 413), ("5000001", 413)]
)
def test_a_length_that_is_none(service: Running, length: str, status: int) -> None:
    """Refused before anything is read."""
    assert asyncio.run(call(service.app, [BODY], content_length=length))[0] == status


@pytest.mark.parametrize("body", [[None], [BODY[:10], None], [b"", b"", None]])
def test_a_client_that_leaves(service: Running, body: list[bytes | None]) -> None:
    """Nothing is answered, predicted, logged or counted."""
    assert asyncio.run(call(service.app, body)) == (0, {}, b"")
    assert service.log.records == []
    assert "towline_in_flight 1.0" in service.client.get("/metrics").text  # which is this request itself


def test_what_does_not_fit_the_contract_is_named(service: Running) -> None:
    """Row, field and reason; at most twenty, and how many there are."""
    rows = [ROW, {**ROW, "size": "wide", "at": "soon"}, {"kind": "house", "sunny": 3}]
    told = service.client.post("/predict", {"rows": rows}).json()
    assert (told["status"], told["code"], told["error_count"]) == (422, "T210", 5)
    assert [(error["row"], error["field"]) for error in told["errors"]] == [
        (1, "size"), (1, "at"), (2, "size"), (2, "sunny"), (2, "at"),
    ]  # fmt: skip
    told = service.client.post("/predict", {"rows": [{}] * 30}).json()
    assert len(told["errors"]) == 20
    assert told["error_count"] == 120


def test_no_problem_repeats_a_value(service: Running) -> None:
    """What was sent may be personal: it is not sent back, nor logged."""
    secret = "Eva-Muster-1985"
    bodies = [
        {"rows": [{**ROW, "size": secret}]},
        {"rows": secret},
        {"rows": [secret]},
        {secret: secret},
        {"rows": [{**ROW, "size": {secret: [secret]}}]},
    ]
    for path in ("/predict", "/invocations", "/v2/models/house-price/infer"):
        for body in bodies:
            answer = service.client.post(path, body)
            assert answer.status_code == 422
            assert secret not in answer.text


@pytest.mark.parametrize(
    "value", [[], {}, [1], {"a": 1}, "", " ", "x", "NaN", "inf", "1e999", True, 1e308, -1e308, 10**30, "1_000", "٣"]
)
@pytest.mark.parametrize("field", ROW)
def test_no_value_is_the_services_fault(service: Running, field: str, value: Any) -> None:
    """Any value of any field is answered or refused."""
    assert service.client.post("/predict", {"rows": [{**ROW, field: value}]}).status_code in (200, 422)


def test_a_prediction_that_is_not_finite(service: Running, model: Fake) -> None:
    """Refused by row: JSON has no word for it."""
    for offset in (float("inf"), float("nan")):
        model.offset = offset
        answer = service.client.send(BODY)
        assert (answer.status_code, answer.json()["code"]) == (422, "unanswerable")
        assert answer.json()["errors"] == [{"row": 0, "field": "", "detail": "the prediction is not finite"}]
    assert service.log.records == []


def test_a_probability_that_is_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for a classification."""
    model = Fake(make_contract(CLASSES), tmp_path)
    monkeypatch.setattr(
        Fake, "predict_canonical", lambda *_: RowPredictions(["no", "yes"], [[0.5, 0.5], [float("nan"), 0.1]])
    )
    with running(model) as service:
        answer = service.client.post("/predict", {"rows": [ROW, ROW]})
    assert (answer.status_code, answer.json()["errors"][0]["row"]) == (422, 1)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (DataError("the model cannot answer these rows: too large"), 422),
        (OverflowError("secret 12345"), 422),
        (ZeroDivisionError("secret 12345"), 422),
        (RuntimeError("secret 12345"), 500),
        (KeyError("secret 12345"), 500),
        (ReleaseError("digest differs", where="/secret/path"), 503),
        (TransientError("away", where="/secret/path"), 503),
    ],
)
def test_a_model_that_fails(
    service: Running, model: Fake, caplog: pytest.LogCaptureFixture, compiled: bool, error: Exception, status: int
) -> None:
    """Faults of the data are 422, a fault of ours 500 with the id that the log has too; neither tells more."""

    def fail(_: Any) -> Any:
        raise error

    model.compiled, model.predict_canonical = compiled, fail  # type: ignore[method-assign]
    with caplog.at_level(logging.ERROR):
        answer = service.client.send(BODY, x_request_id="find-me")
    assert answer.status_code == status
    assert answer.json()["request_id"] == "find-me"
    assert "secret" not in answer.text
    assert ("find-me" in caplog.text) == (status >= 500)
    assert service.client.get("/livez").status_code == 200


def test_not_ready(model: Fake) -> None:
    """Without a model 503 and when to come again; alive all the same."""
    with running(None) as service:
        for path in ("/readyz", "/ping", "/v2/health/ready", "/v2/models/house-price/ready", "/metadata", "/docs"):
            answer = service.client.get(path)
            assert (answer.status_code, answer.json()["code"]) == (503, "not-ready"), path
            assert answer.headers["retry-after"] == "1"
        assert service.client.send(BODY).status_code == 503
        assert service.client.get("/livez").status_code == 200
        service.live.model, service.live.ready = model, True
        assert service.client.send(BODY).status_code == 200
        assert service.client.get("/readyz").json() == {"ready": True, "model": {"name": "house-price", "version": 3}}
        # told to end: sent no more requests, but those that come are answered
        service.live.ready, service.live.reason = False, "draining"
        assert service.client.get("/readyz").json()["detail"] == "draining"
        assert service.client.send(BODY).status_code == 200


def test_a_request_has_one_model(service: Running, model: Fake, tmp_path: Path) -> None:
    """A model that is exchanged while a request is read answers the next one."""
    other = tmp_path / "other"
    other.mkdir()
    newer = Fake(make_contract(), other, version=4, offset=1000)

    async def ask_while_exchanging() -> tuple[int, dict[str, str], bytes]:
        queue: asyncio.Queue[Any] = asyncio.Queue()
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/predict",
            "headers": [(b"content-type", b"application/json")],
        }
        task = asyncio.ensure_future(service.app(scope, queue.get, send))
        await queue.put({"type": "http.request", "body": BODY[:20], "more_body": True})
        await asyncio.sleep(0.01)
        service.live.model = newer
        await queue.put({"type": "http.request", "body": BODY[20:], "more_body": False})
        await task
        return sent[0]["status"], {}, sent[1]["body"]

    status, _, body = service.client.run(ask_while_exchanging())
    assert status == 200
    assert b'"predictions":[41.0]' in body
    assert b'"version":3' in body
    assert service.client.send(BODY).json()["predictions"] == [1041.0]


def test_rates_are_held_for_each_key(model: Fake) -> None:
    """One key's haste is not another's; the answer says when to come again."""
    keys = {"onekey": frozenset({"predict"}), "twokey": frozenset({"predict"})}
    with running(model, keys, rate=3.0) as service:
        codes = [service.client.send(BODY, x_api_key="onekey").status_code for _ in range(5)]
        assert codes[:3] == [200, 200, 200]
        assert 429 in codes
        answer = service.client.send(BODY, x_api_key="onekey")
        assert answer.json()["code"] == "too-many-requests"
        assert int(answer.headers["retry-after"]) >= 1
        assert service.client.send(BODY, x_api_key="twokey").status_code == 200
        assert {service.client.get("/livez").status_code for _ in range(10)} == {200}


def test_bad_keys_are_limited(model: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """From one address, whatever they show; valid keys from there are answered, and other addresses."""
    monkeypatch.setattr(endpoint, "MAX_BAD_KEY_RATE", 5.0)
    monkeypatch.setattr(endpoint, "REFUSAL_DELAY_S", 0.001)
    with running(model, KEYS) as service:
        codes = [service.client.send(BODY, x_api_key=f"bad{number}").status_code for number in range(50)]
        assert codes[:5] == [401] * 5
        assert codes.count(429) > 30
        answer = service.client.send(BODY)
        assert (answer.status_code, answer.json()["code"]) == (429, "too-many-requests")
        assert "without a valid key" in answer.json()["detail"]
        assert int(answer.headers["retry-after"]) >= 1
        assert service.client.send(BODY, x_api_key="pkey").status_code == 200
        assert service.client.get("/livez").status_code == 200
        assert asyncio.run(call(service.app, [BODY], client="10.0.0.7"))[0] == 401


def test_who_asks_too_often_waits(model: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refusals without a valid key are answered late, others in the meantime, and only so many wait at once."""
    monkeypatch.setattr(endpoint, "MAX_BAD_KEY_RATE", 1.0)
    monkeypatch.setattr(endpoint, "REFUSAL_DELAY_S", 3600.0)
    monkeypatch.setattr(endpoint, "MAX_DELAYED", 2)

    async def ask() -> list[int]:
        app, _, _ = application(model, KEYS)
        assert (await call(app, [BODY]))[0] == 401
        held = [asyncio.ensure_future(call(app, [BODY])) for _ in range(3)]
        statuses = [(await call(app, [BODY], x_api_key="pkey"))[0]]
        done, waiting = await asyncio.wait(held, return_when=asyncio.FIRST_COMPLETED)
        assert len(waiting) == 2
        for task in waiting:
            task.cancel()
        return [*statuses, *(task.result()[0] for task in done)]

    assert asyncio.run(ask()) == [200, 429]


def test_each_prediction_is_logged_once(service: Running, model: Fake) -> None:
    """With the request's id, the model that answered and the rows as they came."""
    service.client.send(BODY, x_request_id="a")
    service.client.send(b'{"rows": 1}')
    service.client.post("/invocations", {"dataframe_records": [ROW, ROW]}, x_request_id="b")
    assert [(record[0], record[2], len(record[3]), record[4].predictions) for record in service.log.records] == [
        ("a", model, 1, [41.0]),
        ("b", model, 2, [41.0, 41.0]),
    ]
    assert service.log.records[0][3] == [{**ROW, "at": None}]


def test_large_requests(service: Running, model: Fake) -> None:
    """Read and answered aside, in the same order."""
    rows = [{**ROW, "size": float(n)} for n in range(5_000)]
    answer = service.client.post("/predict", {"rows": rows})
    assert answer.json()["predictions"] == [2.0 * n for n in range(5_000)]
    rows[4_321]["size"] = "x"
    answer = service.client.post("/predict", {"rows": rows})
    assert (answer.status_code, answer.json()["errors"][0]["row"]) == (422, 4_321)


def test_what_the_model_is(tmp_path: Path) -> None:
    """The manifest and the fields, without the list of files."""
    with running(Fake(make_contract(CLASSES), tmp_path)) as service:
        told = service.client.get("/metadata").json()
    assert (told["name"], told["version"], told["classes"]) == ("house-price", 3, ["no", "yes"])
    assert "files" not in told
    assert [field["name"] for field in told["fields"]] == list(ROW)


def test_the_page_is_where_a_browser_begins(service: Running) -> None:
    """The bare address leads to the page, also behind a proxy's prefix."""
    answer = service.client.get("/")
    assert (answer.status_code, answer.headers["location"]) == (303, "docs")


@pytest.mark.parametrize("code", PROBLEM_TYPES)
def test_codes_have_a_status_and_a_title(code: str) -> None:
    """The one table from code to status holds HTTP errors only, each with words."""
    kind = PROBLEM_TYPES[code]
    assert 400 <= kind.status < 600
    assert kind.title


def test_other_protocols_than_http(service: Running) -> None:
    """A websocket is turned away."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> dict[str, str]:
        return {"type": "websocket.connect"}

    scope = {"type": "websocket", "path": "/predict", "headers": [], "query_string": b""}
    service.client.run(service.app(scope, receive, send))
    assert sent[0]["type"] == "websocket.close"
