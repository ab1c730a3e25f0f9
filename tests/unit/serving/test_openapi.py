"""The OpenAPI document of a service, and its page at /docs, which loads no other file."""

import base64
import hashlib
import re
import shlex
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.support.checks import at_least_one
from tests.support.serving import CLASSES, ROW, FakeModel, RunningService, make_contract, run_service
from towline.serving.problems import PROBLEM_TYPES


@pytest.fixture(params=[(), CLASSES, ("a", "b", "c")], ids=["regression", "binary", "multiclass"])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunningService]:
    with run_service(FakeModel(make_contract(request.param), tmp_path), allowed_hosts=("*",)) as running:
        yield running


@pytest.fixture
def document(service: RunningService) -> dict[str, Any]:
    document: dict[str, Any] = service.client.get("/openapi.json").json()
    return document


def posts(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {path: methods["post"] for path, methods in document["paths"].items() if "post" in methods}


def check(document: dict[str, Any], schema: dict[str, Any], value: Any) -> None:
    jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(value)


def test_the_document_is_valid_openapi(document: dict[str, Any]) -> None:
    """Every reference can be resolved, every schema is a JSON schema, and operation ids are unique."""
    assert document["openapi"] == "3.1.0"
    for reference in re.findall(r"'\$ref': '#/([^']+)'", str(document)):
        place: Any = document
        for part in reference.split("/"):
            place = place[part]
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    ids = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(set(ids)) == len(ids)


def test_the_document_lists_the_routes_of_the_service(service: RunningService, document: dict[str, Any]) -> None:
    """Each documented path is a route, and each route is documented, except aliases and pages."""
    served = {endpoint.path.replace("{name}", "house-price") for endpoint in service.app.endpoints}
    assert document["paths"].keys() <= served
    left_out = {path for path in served - document["paths"].keys() if "{version}" not in path}
    assert left_out == {"/", "/docs", "/openapi.json", "/health", "/endpoints/house-price/invocations"}


def test_the_document_states_which_paths_need_a_key(service: RunningService, document: dict[str, Any]) -> None:
    """A path has ``security`` if and only if its route is not public."""
    access = {endpoint.path.replace("{name}", "house-price"): endpoint.access for endpoint in service.app.endpoints}
    keyed = {path: "security" in next(iter(methods.values())) for path, methods in document["paths"].items()}
    assert keyed == {path: access[path] != "public" for path in keyed}


def test_examples_match_the_schemas_and_are_answered(service: RunningService, document: dict[str, Any]) -> None:
    """Each example matches the request schema; the service answers it, and the response matches its schema."""
    for path, operation in at_least_one(posts(document).items()):
        request = operation["requestBody"]["content"]["application/json"]
        check(document, request["schema"], request["example"])
        response = service.client.post(path, request["example"])
        assert response.status_code == 200, path
        check(document, operation["responses"]["200"]["content"]["application/json"]["schema"], response.json())


def test_error_responses_match_their_schema(service: RunningService, document: dict[str, Any]) -> None:
    """Errors have the documented form and a documented status."""
    schema = {"$ref": "#/components/schemas/Problem"}
    for path in at_least_one(posts(document)):
        for body in (b"", b"{}", b"[]", b'{"rows":[{}]}', b'{"inputs":[{}]}'):
            response = service.client.send(body, path)
            check(document, schema, response.json())
            assert str(response.status_code) in document["paths"][path]["post"]["responses"]


def test_each_status_of_an_error_code_is_described(document: dict[str, Any]) -> None:
    """A request for a version that is not served gets 404, and a request that fails gets 500."""
    statuses = {str(kind.status) for kind in PROBLEM_TYPES.values()}
    assert statuses == document["components"]["responses"].keys()
    for operation in at_least_one(posts(document).values()):
        assert statuses <= operation["responses"].keys()


def test_fields_are_described(service: RunningService, document: dict[str, Any]) -> None:
    """A field has its kind and its training range. Null is always allowed, and every field is required."""
    row = document["components"]["schemas"]["Row"]
    assert row["required"] == list(ROW)
    assert row["properties"]["size"] == {
        "type": ["number", "null"],
        "description": "numeric; in training from 0 to 100",
    }
    assert "house" in row["properties"]["kind"]["description"]
    assert row["properties"]["at"]["format"] == "date-time"
    (example,) = row["examples"]
    assert example.keys() == ROW.keys()


class Page(HTMLParser):
    """The tags of a page with their attributes, and its texts."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def parse_page(text: str) -> Page:
    page = Page()
    page.feed(text)
    return page


def test_the_page_loads_nothing_and_runs_no_script(service: RunningService) -> None:
    """Its content security policy forbids both, and allows its style by digest."""
    response = service.client.get("/docs")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    page = parse_page(response.text)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "img", "iframe", "form", "object"}
    assert not [
        name for _, attributes in page.tags for name in attributes if name.startswith("on") or name in ("src", "style")
    ]
    assert {attributes["href"] for tag, attributes in page.tags if tag == "a"} == {"openapi.json"}
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    style = re.search(r"<style>(.*?)</style>", response.text, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy


def test_the_curl_command_on_the_page_gives_the_response_on_the_page(service: RunningService) -> None:
    texts = parse_page(service.client.get("/docs").text).texts
    line = next(text for text in texts if text.startswith("curl "))
    words = shlex.split(line)
    assert words[1] == "http://127.0.0.1:8080/predict"
    answer = service.client.send(words[words.index("-d") + 1].encode()).json()
    page_text = "".join(texts)
    for predicted in at_least_one(answer["predictions"]):
        assert str(predicted) in page_text


def test_the_page_explains_every_error_code(service: RunningService) -> None:
    """The ``type`` of a problem links to its code on the page."""
    page = parse_page(service.client.get("/docs").text)
    places = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert places == PROBLEM_TYPES.keys()
    assert service.client.post("/predict", {}).json()["type"] == "/docs#wrong-shape"


def test_values_on_the_page_are_escaped(service: RunningService) -> None:
    """A category that looks like HTML is shown as text."""
    text = service.client.get("/docs").text
    assert "flat &amp; &lt;b&gt;garden&lt;/b&gt;" in text
    assert "<b>garden" not in text


@pytest.mark.parametrize(
    "host", ["<script>", "a b", "x'; rm -rf /;'", "evil.example/path", "a" * 300, "", "[::1", "x:y"]
)
def test_the_page_does_not_show_an_invalid_host_header(service: RunningService, host: str) -> None:
    """The curl command then has the address of the service."""
    text = service.client.get("/docs", host=host).text
    assert "curl http://127.0.0.1:8080/predict" in text


@pytest.mark.parametrize("host", ["models.example", "models.example:8443", "10.0.0.7:80", "[::1]:8080"])
def test_the_curl_command_has_the_host_of_the_request(service: RunningService, host: str) -> None:
    assert f"curl http://{host}/predict" in service.client.get("/docs", host=host).text


def test_personal_data_is_not_described(tmp_path: Path) -> None:
    """For a column with personal data only the kind is described; examples are generated."""
    properties = {"min": 3.5, "max": 4711.25, "categories": ("Erika",), "levels": 1}
    plain = make_contract(columns=(("age", "numeric", properties), ("kind", "category", properties)))
    private = [
        column.model_copy(update={"pii": True, "min": None, "max": None, "categories": None})
        for column in plain.columns
    ]
    for columns, described in ((plain.columns, True), (tuple(private), False)):
        (tmp_path / str(described)).mkdir()
        contract = plain.model_copy(update={"columns": columns})
        with run_service(FakeModel(contract, tmp_path / str(described))) as service:
            for path in ("/docs", "/openapi.json", "/metadata"):
                text = service.client.get(path).text
                assert ("4711" in text, "Erika" in text) == (described, described), path


def test_the_document_describes_the_new_model_after_a_promotion(service: RunningService, tmp_path: Path) -> None:
    folder = tmp_path / "newer"
    folder.mkdir()
    service.reloader.model = FakeModel(make_contract(), folder, version=4)
    assert service.client.get("/openapi.json").json()["info"]["version"] == "4"
