"""The application of the service: access, limits, errors and responses of its routes."""

import asyncio
import base64
import gzip
import json
import logging
import random
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.hostile_json import HOSTILE_JSON
from tests.support.serving import (
    CLASSES,
    ROW,
    FakeKeys,
    FakeLog,
    FakeModel,
    RunningService,
    create_application,
    make_contract,
    make_options,
    run_service,
    send_asgi,
)
from towline.errors import DataError, ReleaseError, TransientError
from towline.inference.scorer import RowPredictions
from towline.serving import endpoint
from towline.serving.app import create_app
from towline.serving.problems import PROBLEM_TYPES
from towline.serving.protocols import body as protocol_body

KEYS = {"pkey": frozenset({"predict"}), "akey": frozenset({"predict", "admin"})}
BODY = b'{"rows":[{"size":20.5,"kind":"house","sunny":true,"at":null}]}'
SECURE = {"x-content-type-options": "nosniff", "cache-control": "no-store", "x-frame-options": "DENY"}

#: every route with its method and access; a new route must be listed here
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
def model(tmp_path: Path) -> FakeModel:
    return FakeModel(make_contract(), tmp_path)


@pytest.fixture
def service(model: FakeModel) -> Iterator[RunningService]:
    with run_service(model) as running:
        yield running


@pytest.fixture
def service_with_keys(model: FakeModel) -> Iterator[RunningService]:
    """A service with API keys."""
    with run_service(model, KEYS) as running:
        yield running


def fill_path(path: str) -> str:
    return path.format(name="house-price", version=3)


def send_request(service: RunningService, path: str, **headers: str) -> Any:
    method = ROUTES[path][0]
    body = BODY if path == "/predict" else b"{}"
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    if method == "POST":
        headers["content-type"] = "application/json"
    return service.client.request(method, fill_path(path), content=body if method == "POST" else None, headers=headers)


def test_every_route_is_public_or_needs_a_scope(service: RunningService) -> None:
    """ROUTES is complete."""
    assert {route.path: (route.method, route.access) for route in service.app.endpoints} == ROUTES
    assert {route.path for route in service.app.routes} == ROUTES.keys()


@pytest.mark.parametrize("path", ROUTES)
def test_a_key_opens_the_routes_of_its_scopes(service_with_keys: RunningService, path: str) -> None:
    """Without a key the status is 401, without the scope 403; public routes need no key."""
    access = ROUTES[path][1]
    codes = {
        "nothing": send_request(service_with_keys, path).status_code,
        "unknown": send_request(service_with_keys, path, authorization="Bearer nokey").status_code,
        "predict": send_request(service_with_keys, path, authorization="Bearer pkey").status_code,
        "admin": send_request(service_with_keys, path, x_api_key="akey").status_code,
    }
    if access == "public":
        assert not {401, 403} & set(codes.values())
    else:
        assert codes["nothing"] == codes["unknown"] == 401
        assert (codes["predict"] == 403) == (access == "admin")
        assert codes["admin"] not in (401, 403)


@pytest.mark.parametrize("path", ROUTES)
def test_without_keys_all_routes_are_open(service: RunningService, path: str) -> None:
    assert send_request(service, path).status_code in (200, 303, 422)


@pytest.mark.parametrize("path", [path for path, (_, access) in ROUTES.items() if access != "public"])
def test_no_spelling_of_a_path_avoids_its_key(service_with_keys: RunningService, path: str) -> None:
    """Access is checked for the route, not for the text of the path."""
    where = fill_path(path)
    for odd in (
        f"/{where}", f"{where}/", f"/livez/..{where}", f"/livez/../{where}", f"{where}/livez", f"{where};/livez",
        where.upper(), f"{where}\0", f"{where} ", f"{where}?x", f"{where}#/livez", where.replace("/", "\\"),
        where[1:], "",
    ):  # fmt: skip
        status, _, _ = asyncio.run(send_asgi(service_with_keys.app, [BODY], odd, ROUTES[path][0], host="x/livez"))
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
def test_a_key_may_be_in_one_of_three_headers(service_with_keys: RunningService, headers: dict[str, str]) -> None:
    """The key is a bearer token, X-API-Key, or the password of basic authentication."""
    assert service_with_keys.client.send(BODY, **headers).status_code == 200


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "pkey", "Bearer pkey x", "Basic", "Basic !!!", "Basic cGtleQ==", "Digest pkey",
     "Bearer " + "x" * 5000],
)  # fmt: skip
def test_an_invalid_key_gets_401(service_with_keys: RunningService, header: str) -> None:
    """The response has a challenge, and no part of the key."""
    response = service_with_keys.client.send(BODY, authorization=header)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == 'Bearer realm="towline"'
    assert response.json()["code"] == "no-key"
    assert "pkey" not in response.text


def test_a_browser_prompts_for_the_key(service_with_keys: RunningService) -> None:
    """A user opens the pages with the key as password."""
    assert service_with_keys.client.get("/docs").headers["www-authenticate"].startswith("Basic ")
    header = "Basic " + base64.b64encode(b":pkey").decode()
    assert service_with_keys.client.get("/docs", authorization=header).status_code == 200


def test_a_key_with_other_bytes_than_ascii_gets_401(service_with_keys: RunningService) -> None:
    status, _, _ = asyncio.run(send_asgi(service_with_keys.app, [BODY], authorization="Bearer schlüssel"))
    assert status == 401


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods_get_405(service: RunningService, path: str, method: str) -> None:
    """A path allows its method, and HEAD if it allows GET; the Allow header names them."""
    allowed = ("GET", "HEAD") if ROUTES[path][0] == "GET" else ("POST",)
    response = service.client.request(method, fill_path(path), content=b"{}")
    if method in allowed:
        assert response.status_code in (200, 303, 415, 422)
    else:
        assert response.status_code == 405
        assert response.headers["allow"] == ", ".join(allowed)
        assert method == "HEAD" or response.json()["code"] == "method-not-allowed"


@pytest.mark.parametrize(
    "path", [path for path, (method, _) in ROUTES.items() if method == "GET" and path != "/metrics"]
)
def test_head_has_the_status_and_headers_of_get(service: RunningService, path: str) -> None:
    whole = service.client.request("GET", fill_path(path))
    head = service.client.request("HEAD", fill_path(path))
    assert (head.status_code, head.content) == (whole.status_code, b"")
    for name in ("content-type", "content-length"):
        assert head.headers[name] == whole.headers[name]


@pytest.mark.parametrize(
    "path", ["/nope", "/predict/", "/predict/x", "/v2/models", "/v2/models/", "/docs/x", "/%00", "/PREDICT"]
)
def test_unknown_paths_get_404(service: RunningService, path: str) -> None:
    """The response is a problem document."""
    response = service.client.request("POST", path, content=BODY)
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("path", [*ROUTES, "/nope"])
def test_every_response_has_security_headers_and_a_request_id(service: RunningService, path: str) -> None:
    response = service.client.request("GET", fill_path(path), headers={"x-request-id": "abc"})
    assert {name: response.headers[name] for name in SECURE} == SECURE
    assert response.headers["x-request-id"] == "abc"
    assert "strict-transport-security" not in response.headers


def test_hsts_is_sent_only_with_tls(model: FakeModel) -> None:
    with run_service(model, certificate=Path("x.pem")) as service:
        assert "max-age" in service.client.get("/livez").headers["strict-transport-security"]


@pytest.mark.parametrize("header", ["", "a b", "x" * 129, "ä", "a\tb", "<script>", '"', "a,b"])
def test_an_unsafe_request_id_is_replaced(service: RunningService, header: str) -> None:
    """It could break a log or a header."""
    status, headers, _ = asyncio.run(send_asgi(service.app, [BODY], x_request_id=header))
    assert status == 200
    assert headers["x-request-id"] != header
    assert headers["x-request-id"].replace("-", "").isalnum()


def test_responses_to_equal_rows_have_equal_length(service: RunningService) -> None:
    """Apache Bench counts a response of another length as failed."""
    assert len({len(service.client.send(BODY).content) for _ in range(20)}) == 1


def test_request_ids_are_unique(service: RunningService, model: FakeModel) -> None:
    """This holds within a process and between processes."""
    ids = {service.client.send(BODY).json()["request_id"] for _ in range(20)}
    with run_service(model) as other:
        ids |= {other.client.send(BODY).json()["request_id"] for _ in range(20)}
    assert len(ids) == 40


@pytest.mark.parametrize("body", HOSTILE_JSON.values(), ids=HOSTILE_JSON.keys())
@pytest.mark.parametrize("path", ["/predict", "/invocations", "/v2/models/house-price/infer"])
def test_hostile_json_gets_400(service: RunningService, path: str, body: bytes) -> None:
    """MLflow's clients may write NaN."""
    if path == "/invocations" and body == HOSTILE_JSON["NaN"]:
        assert service.client.send(b'{"dataframe_records": [NaN]}', path).status_code == 422
        return
    response = service.client.send(body, path)
    assert response.status_code == 400
    assert response.json()["code"] == "malformed-json"


@pytest.mark.parametrize(
    "kind",
    ["", "text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1", "text/json",
     "application/jsonp", "multipart/form-data", "application/json; x=y", ";", "application/ json"],
)  # fmt: skip
def test_other_media_types_get_415(service: RunningService, kind: str) -> None:
    """A form on another site cannot send declared JSON."""
    response = service.client.send(BODY, content_type=kind)
    assert (response.status_code, response.json()["code"]) == (415, "not-json")


@pytest.mark.parametrize(
    "kind",
    ["application/json", "Application/JSON", "application/json; charset=utf-8", "application/json;charset=UTF-8",
     'application/json; charset="utf-8" ;'],
)  # fmt: skip
def test_the_media_type_may_have_any_spelling(service: RunningService, kind: str) -> None:
    """Case, spaces and quotes are those of HTTP."""
    assert service.client.send(BODY, content_type=kind).status_code == 200


@pytest.mark.parametrize("sign", ["origin", "referer", "sec_fetch_site", "cookie"])
def test_a_browser_must_send_a_media_type(service: RunningService, sign: str) -> None:
    """A page of another site can send a body without a media type and without a preflight, as Triton's client does."""
    scope_headers = {"content_type": "", sign: "https://evil.example"}
    infer = "/v2/models/house-price/infer"
    assert asyncio.run(send_asgi(service.app, [b"{}"], infer, **scope_headers))[0] == 415
    assert asyncio.run(send_asgi(service.app, [b"{}"], infer, content_type=""))[0] == 422
    assert asyncio.run(send_asgi(service.app, [b"{}"], infer, **{sign: "https://evil.example"}))[0] == 422


PROTECTED = [path for path, (_, access) in ROUTES.items() if access != "public"]


@pytest.mark.parametrize("path", PROTECTED)
@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost.evil", "", "10.0.0.1", "[::2]:80", "[",
     "127.0.0.1:8080:1", "0x7f.1", "a@localhost"],
)  # fmt: skip
def test_without_keys_other_hosts_get_403(service: RunningService, path: str, host: str) -> None:
    """The error names the option that helps."""
    status, _, body = asyncio.run(send_asgi(service.app, [BODY], fill_path(path), ROUTES[path][0], host=host))
    assert (status, json.loads(body)["code"]) == (403, "foreign-host")
    assert "--allowed-hosts" in json.loads(body)["remedy"]


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:8080", "localhost", "LOCALHOST:1", "localhost.", "[::1]", "[::1]:8080", "127.1.2.3"],
)
def test_names_of_loopback_are_allowed(service: RunningService, host: str) -> None:
    """The port does not matter, since a tunnel may have another."""
    assert service.client.send(BODY, host=host).status_code == 200


@pytest.mark.parametrize("path", [path for path, (_, access) in ROUTES.items() if access == "public"])
def test_health_checks_allow_any_host(service: RunningService, path: str) -> None:
    """They reveal nothing, and orchestrators send addresses as the host."""
    assert asyncio.run(send_asgi(service.app, [b""], fill_path(path), host="10.1.2.3:80"))[0] != 403


def test_the_host_of_the_options_is_allowed(model: FakeModel) -> None:
    with run_service(model, host="tower.local") as service:
        assert service.client.send(BODY, host="tower.local:8080").status_code == 200


def test_with_keys_any_host_is_allowed(service_with_keys: RunningService) -> None:
    """A page of another site has no key, and a proxy may send its own host name."""
    assert service_with_keys.client.send(BODY, host="api.example.com", x_api_key="pkey").status_code == 200


def test_a_service_for_other_machines_allows_any_host(model: FakeModel) -> None:
    app = create_app(
        make_options(),
        SimpleNamespace(model=model, ready=True, rejections=0, reason="", rollout=None),
        FakeKeys(),
        FakeLog(),
        loopback=False,
    )
    assert asyncio.run(send_asgi(app, [BODY], host="model.internal"))[0] == 200


@pytest.mark.parametrize("keys", [None, KEYS])
def test_only_allowed_hosts_and_loopback_are_answered(model: FakeModel, keys: dict[str, frozenset[str]] | None) -> None:
    """This holds with keys and without."""
    with run_service(model, keys, allowed_hosts=("api.example.com", "*.models.example.org")) as service:
        for host, status in (
            ("api.example.com", 200), ("API.example.com:443", 200), ("a.b.models.example.org", 200),
            ("localhost:8080", 200), ("models.example.org", 403), ("xmodels.example.org", 403), ("example.com", 403),
            ("api.example.com.evil.net", 403),
        ):  # fmt: skip
            assert service.client.send(BODY, host=host, x_api_key="pkey").status_code == status, host
    with run_service(model, keys, allowed_hosts=("*",)) as service:
        assert service.client.send(BODY, host="anything", x_api_key="pkey").status_code == 200


ORIGIN = "https://app.example.com"


def test_cors_is_disabled_by_default(service_with_keys: RunningService) -> None:
    """A preflight is refused, and a page cannot read the response."""
    response = service_with_keys.client.request("OPTIONS", "/predict", headers=preflight(ORIGIN))
    assert response.status_code == 405
    assert not [name for name in response.headers if name.startswith("access-control")]
    answer = service_with_keys.client.send(BODY, x_api_key="pkey", origin=ORIGIN)
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("path", [*ROUTES, "/nope"])
def test_allowed_origins_get_cors_headers(model: FakeModel, path: str) -> None:
    """The preflight needs no key; pages of these sites may read responses and errors."""
    with run_service(model, KEYS, cors_origins=(ORIGIN,)) as service:
        response = service.client.request("OPTIONS", fill_path(path), headers=preflight(ORIGIN))
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == ORIGIN
        sent = response.headers["access-control-allow-headers"].split(", ")
        assert {"content-type", "x-request-id", "x-towline-version"} <= set(sent)
        assert path == "/nope" or ROUTES[path][0] in response.headers["access-control-allow-methods"]
        method = ROUTES.get(path, ("GET",))[0]
        answer = service.client.request(method, fill_path(path), headers={"origin": ORIGIN})
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        read = answer.headers["access-control-expose-headers"].split(", ")
        assert {"retry-after", "x-request-id", "x-towline-version"} <= set(read)
        assert "access-control-allow-credentials" not in answer.headers
        for other in ("https://evil.example", "null", ORIGIN + ".evil.example", "http://app.example.com"):
            for sent_method in ("OPTIONS", method):
                answer = service.client.request(sent_method, fill_path(path), headers=preflight(other))
                assert "access-control-allow-origin" not in answer.headers
                assert answer.headers["vary"] == "Origin"


def test_any_origin_may_be_allowed(model: FakeModel) -> None:
    with run_service(model, KEYS, cors_origins=("*",)) as service:
        response = service.client.send(BODY, x_api_key="pkey", origin="https://any.example")
        assert (response.status_code, response.headers["access-control-allow-origin"]) == (200, "*")


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
    ids=["gzip", "upper case", "x-gzip", "deflate", "two members", "identity"],
)
def test_compressed_bodies_are_read(service: RunningService, coding: str, packed: bytes) -> None:
    """This holds on each path."""
    response = service.client.send(packed, content_encoding=coding)
    assert (response.status_code, response.json()["predictions"]) == (200, [41.0])


def test_large_compressed_bodies_are_read_on_the_parser_thread(service: RunningService) -> None:
    """The predictions have the order of the rows."""
    body = json.dumps({"rows": [{**ROW, "size": float(number)} for number in range(5_000)]}).encode()
    response = service.client.send(gzip.compress(body, mtime=0), content_encoding="gzip")
    assert response.json()["predictions"] == [2.0 * number for number in range(5_000)]


@pytest.mark.parametrize("coding", ["br", "zstd", "compress", "gzip, gzip", "", "gzip;q=1"])
def test_other_codings_get_415(service: RunningService, coding: str) -> None:
    """The response names the supported codings."""
    response = service.client.send(BODY, content_encoding=coding)
    assert (response.status_code, response.json()["code"]) == (415, "unknown-encoding")
    assert response.headers["accept-encoding"] == "gzip, deflate"
    assert "gzip" in response.json()["remedy"]


@pytest.mark.parametrize(
    ("packed", "status"),
    [
        (gzip.compress(b" " * 50_000), 400),  # of the maximum size, but no JSON
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
def test_too_large_or_damaged_compressed_bodies_are_refused(model: FakeModel, packed: bytes, status: int) -> None:
    """The limit is on the decompressed size."""
    with run_service(model, max_body=50_000) as service:
        assert service.client.send(packed, content_encoding="gzip").status_code == status


def test_the_rest_of_a_body_is_not_copied_for_each_of_its_members(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a body with many empty members would delay the requests of other clients."""
    copied = 0

    class Member:
        def __init__(self, wbits: int) -> None:
            self._member = zlib.decompressobj(wbits)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._member, name)

        def decompress(self, data: bytes, max_length: int) -> bytes:
            nonlocal copied
            content = self._member.decompress(data, max_length)
            copied += len(self._member.unused_data)
            return content

    content = random.Random(1).randbytes(2_000_000)
    packed = gzip.compress(b"") * 99 + gzip.compress(content)
    monkeypatch.setattr(protocol_body, "zlib", SimpleNamespace(decompressobj=Member, error=zlib.error))
    assert protocol_body.decompress(packed, len(content)) == content
    assert copied < 5 * len(packed)


def test_a_zip_bomb_is_not_decompressed(service: RunningService) -> None:
    """Of 200 MB, at most the allowed size is decompressed."""
    packing = zlib.compressobj(wbits=31)
    bomb = b"".join(packing.compress(b" " * 1_000_000) for _ in range(200)) + packing.flush()
    tracemalloc.start()
    try:
        assert service.client.send(bomb, content_encoding="gzip").status_code == 413
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_the_limit_of_a_body_is_exact(model: FakeModel) -> None:
    with run_service(model, max_body=len(BODY)) as service:
        assert service.client.send(BODY).status_code == 200
        response = service.client.send(BODY + b" ")
        assert (response.status_code, response.json()["code"]) == (413, "too-large")
        assert response.headers["connection"] == "close"


def test_a_chunked_body_is_limited(model: FakeModel) -> None:
    """Its bytes are counted as they arrive, and no more than the limit are read."""
    app, _, _ = create_application(model, max_body=100)
    status, _, body = asyncio.run(send_asgi(app, [BODY[:10], b"", BODY[10:20], BODY[20:]]))
    assert status == 200, body
    status, _, _ = asyncio.run(send_asgi(app, [b" " * 60, b" " * 60, *[b" " * 60] * 1000]))
    assert status == 413
    assert asyncio.run(send_asgi(app, [b" " * 101]))[0] == 413
    assert asyncio.run(send_asgi(app, [b" " * 50, b" " * 51]))[0] == 413


@pytest.mark.parametrize(
    ("length", "status"), [("-1", 400), ("x", 400), ("1e3", 400), ("", 400), ("9" * 50, 413), ("5000001", 413)]
)
def test_an_invalid_content_length_is_refused(service: RunningService, length: str, status: int) -> None:
    """The body is not read."""
    assert asyncio.run(send_asgi(service.app, [BODY], content_length=length))[0] == status


@pytest.mark.parametrize("body", [[None], [BODY[:10], None], [b"", b"", None]])
def test_a_disconnected_client_leaves_no_trace(service: RunningService, body: list[bytes | None]) -> None:
    """Nothing is predicted, logged or counted."""
    assert asyncio.run(send_asgi(service.app, body)) == (0, {}, b"")
    assert service.log.records == []
    assert "towline_in_flight 1.0" in service.client.get("/metrics").text  # this request itself


def test_contract_violations_are_listed(service: RunningService) -> None:
    """Each has row, field and reason; at most twenty are listed, with the total number."""
    rows = [ROW, {**ROW, "size": "wide", "at": "soon"}, {"kind": "house", "sunny": 3}]
    response = service.client.post("/predict", {"rows": rows}).json()
    assert (response["status"], response["code"], response["error_count"]) == (422, "T210", 5)
    assert [(error["row"], error["field"]) for error in response["errors"]] == [
        (1, "size"), (1, "at"), (2, "size"), (2, "sunny"), (2, "at"),
    ]  # fmt: skip
    response = service.client.post("/predict", {"rows": [{}] * 30}).json()
    assert len(response["errors"]) == 20
    assert response["error_count"] == 120


def test_errors_contain_no_value(service: RunningService) -> None:
    """Values may be personal data; they are neither returned nor logged."""
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
            response = service.client.post(path, body)
            assert response.status_code == 422
            assert secret not in response.text


@pytest.mark.parametrize(
    "value", [[], {}, [1], {"a": 1}, "", " ", "x", "NaN", "inf", "1e999", True, 1e308, -1e308, 10**30, "1_000", "٣"]
)
@pytest.mark.parametrize("field", ROW)
def test_no_value_causes_an_internal_error(service: RunningService, field: str, value: Any) -> None:
    """Each value of each field gets a prediction or a 4xx response."""
    assert service.client.post("/predict", {"rows": [{**ROW, field: value}]}).status_code in (200, 422)


def test_a_prediction_that_is_not_finite_is_refused(service: RunningService, model: FakeModel) -> None:
    """JSON cannot represent it; the error names the row."""
    for offset in (float("inf"), float("nan")):
        model.offset = offset
        response = service.client.send(BODY)
        assert (response.status_code, response.json()["code"]) == (422, "unanswerable")
        assert response.json()["errors"] == [{"row": 0, "field": "", "detail": "the prediction is not finite"}]
    assert service.log.records == []


def test_a_probability_that_is_not_finite_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = FakeModel(make_contract(CLASSES), tmp_path)
    monkeypatch.setattr(
        FakeModel, "predict_canonical", lambda *_: RowPredictions(["no", "yes"], [[0.5, 0.5], [float("nan"), 0.1]])
    )
    with run_service(model) as service:
        response = service.client.post("/predict", {"rows": [ROW, ROW]})
    assert (response.status_code, response.json()["errors"][0]["row"]) == (422, 1)


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
    service: RunningService,
    model: FakeModel,
    caplog: pytest.LogCaptureFixture,
    compiled: bool,
    error: Exception,
    status: int,
) -> None:
    """Errors of the data are 422, errors of the service 500 or 503 with the request id of the log; no more details."""

    def fail(_: Any) -> Any:
        raise error

    model.compiled, model.predict_canonical = compiled, fail  # type: ignore[method-assign]
    with caplog.at_level(logging.ERROR):
        response = service.client.send(BODY, x_request_id="find-me")
    assert response.status_code == status
    assert response.json()["request_id"] == "find-me"
    assert "secret" not in response.text
    assert ("find-me" in caplog.text) == (status >= 500)
    assert service.client.get("/livez").status_code == 200


def test_without_a_model_the_service_is_live_but_not_ready(model: FakeModel) -> None:
    """The status is 503 with Retry-After."""
    with run_service(None) as service:
        for path in ("/readyz", "/ping", "/v2/health/ready", "/v2/models/house-price/ready", "/metadata", "/docs"):
            response = service.client.get(path)
            assert (response.status_code, response.json()["code"]) == (503, "not-ready"), path
            assert response.headers["retry-after"] == "1"
        assert service.client.send(BODY).status_code == 503
        assert service.client.get("/livez").status_code == 200
        service.reloader.model, service.reloader.ready = model, True
        assert service.client.send(BODY).status_code == 200
        assert service.client.get("/readyz").json() == {"ready": True, "model": {"name": "house-price", "version": 3}}
        # shutting down: load balancers send no more requests, but each request is still answered
        service.reloader.ready, service.reloader.reason = False, "draining"
        assert service.client.get("/readyz").json()["detail"] == "draining"
        assert service.client.send(BODY).status_code == 200


def test_a_model_replaced_during_a_request_answers_the_next_one(
    service: RunningService, model: FakeModel, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    newer = FakeModel(make_contract(), other, version=4, offset=1000)

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
        service.reloader.model = newer
        await queue.put({"type": "http.request", "body": BODY[20:], "more_body": False})
        await task
        return sent[0]["status"], {}, sent[1]["body"]

    status, _, body = service.client.run(ask_while_exchanging())
    assert status == 200
    assert b'"predictions":[41.0]' in body
    assert b'"version":3' in body
    assert service.client.send(BODY).json()["predictions"] == [1041.0]


def test_the_rate_is_limited_for_each_key(model: FakeModel) -> None:
    """The response has Retry-After."""
    keys = {"onekey": frozenset({"predict"}), "twokey": frozenset({"predict"})}
    with run_service(model, keys, rate=3.0) as service:
        codes = [service.client.send(BODY, x_api_key="onekey").status_code for _ in range(5)]
        assert codes[:3] == [200, 200, 200]
        assert 429 in codes
        response = service.client.send(BODY, x_api_key="onekey")
        assert response.json()["code"] == "too-many-requests"
        assert int(response.headers["retry-after"]) >= 1
        assert service.client.send(BODY, x_api_key="twokey").status_code == 200
        assert {service.client.get("/livez").status_code for _ in range(10)} == {200}


def test_invalid_keys_are_limited_by_address(model: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Valid keys from this address, and other addresses, are still answered."""
    monkeypatch.setattr(endpoint, "MAX_BAD_KEY_RATE", 5.0)
    monkeypatch.setattr(endpoint, "REFUSAL_DELAY_S", 0.001)
    with run_service(model, KEYS) as service:
        codes = [service.client.send(BODY, x_api_key=f"bad{number}").status_code for number in range(50)]
        assert codes[:5] == [401] * 5
        assert codes.count(429) > 30
        response = service.client.send(BODY)
        assert (response.status_code, response.json()["code"]) == (429, "too-many-requests")
        assert "without a valid key" in response.json()["detail"]
        assert int(response.headers["retry-after"]) >= 1
        assert service.client.send(BODY, x_api_key="pkey").status_code == 200
        assert service.client.get("/livez").status_code == 200
        assert asyncio.run(send_asgi(service.app, [BODY], client="10.0.0.7"))[0] == 401


def test_refusals_over_the_limit_are_delayed(model: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other requests are answered during the delay; the number of delayed responses is limited."""
    monkeypatch.setattr(endpoint, "MAX_BAD_KEY_RATE", 1.0)
    monkeypatch.setattr(endpoint, "REFUSAL_DELAY_S", 3600.0)
    monkeypatch.setattr(endpoint, "MAX_DELAYED", 2)

    async def send_request() -> list[int]:
        app, _, _ = create_application(model, KEYS)
        assert (await send_asgi(app, [BODY]))[0] == 401
        pending_requests = [asyncio.ensure_future(send_asgi(app, [BODY])) for _ in range(3)]
        statuses = [(await send_asgi(app, [BODY], x_api_key="pkey"))[0]]
        result, waiting = await asyncio.wait(pending_requests, return_when=asyncio.FIRST_COMPLETED)
        assert len(waiting) == 2
        for task in waiting:
            task.cancel()
        return [*statuses, *(task.result()[0] for task in result)]

    assert asyncio.run(send_request()) == [200, 429]


def test_each_prediction_is_logged_once(service: RunningService, model: FakeModel) -> None:
    """The record has the request id, the model and the rows as they were sent."""
    service.client.send(BODY, x_request_id="a")
    service.client.send(b'{"rows": 1}')
    service.client.post("/invocations", {"dataframe_records": [ROW, ROW]}, x_request_id="b")
    assert [(record[0], record[2], len(record[3]), record[4].predictions) for record in service.log.records] == [
        ("a", model, 1, [41.0]),
        ("b", model, 2, [41.0, 41.0]),
    ]
    assert service.log.records[0][3] == [{**ROW, "at": None}]


def test_large_requests_are_parsed_on_a_thread(service: RunningService, model: FakeModel) -> None:
    """The predictions have the order of the rows."""
    rows = [{**ROW, "size": float(n)} for n in range(5_000)]
    response = service.client.post("/predict", {"rows": rows})
    assert response.json()["predictions"] == [2.0 * n for n in range(5_000)]
    rows[4_321]["size"] = "x"
    response = service.client.post("/predict", {"rows": rows})
    assert (response.status_code, response.json()["errors"][0]["row"]) == (422, 4_321)


def test_metadata_has_the_manifest_and_the_fields(tmp_path: Path) -> None:
    """The list of files is left out."""
    with run_service(FakeModel(make_contract(CLASSES), tmp_path)) as service:
        response = service.client.get("/metadata").json()
    assert (response["name"], response["version"], response["classes"]) == ("house-price", 3, ["no", "yes"])
    assert "files" not in response
    assert [field["name"] for field in response["fields"]] == list(ROW)


def test_the_root_redirects_to_the_page(service: RunningService) -> None:
    """The redirect is relative, so it works behind a proxy's prefix."""
    response = service.client.get("/")
    assert (response.status_code, response.headers["location"]) == (303, "docs")


@pytest.mark.parametrize("code", PROBLEM_TYPES)
def test_each_error_code_has_a_status_and_a_title(code: str) -> None:
    kind = PROBLEM_TYPES[code]
    assert 400 <= kind.status < 600
    assert kind.title


def test_websockets_are_refused(service: RunningService) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> dict[str, str]:
        return {"type": "websocket.connect"}

    scope = {"type": "websocket", "path": "/predict", "headers": [], "query_string": b""}
    service.client.run(service.app(scope, receive, send))
    assert sent[0]["type"] == "websocket.close"
