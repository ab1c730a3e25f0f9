"""The service describes itself: to programs, and to people on a page that needs nothing else."""

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

from tests.unit.serving.service import CLASSES, ROW, Fake, Running, make_contract, running
from towline.serving.problems import PROBLEM_TYPES


@pytest.fixture(params=[(), CLASSES, ("a", "b", "c")], ids=["regression", "binary", "multiclass"])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Running]:
    with running(Fake(make_contract(request.param), tmp_path), allowed_hosts=("*",)) as found:
        yield found


@pytest.fixture
def document(service: Running) -> dict[str, Any]:
    found: dict[str, Any] = service.client.get("/openapi.json").json()
    return found


def posts(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {path: methods["post"] for path, methods in document["paths"].items() if "post" in methods}


def check(document: dict[str, Any], schema: dict[str, Any], value: Any) -> None:
    jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(value)


def test_it_is_a_valid_document(document: dict[str, Any]) -> None:
    """By the rules of OpenAPI 3.1: every reference leads somewhere, every schema is one."""
    assert document["openapi"] == "3.1.0"
    for reference in re.findall(r"'\$ref': '#/([^']+)'", str(document)):
        place: Any = document
        for part in reference.split("/"):
            place = place[part]
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    ids = [told["operationId"] for methods in document["paths"].values() for told in methods.values()]
    assert len(set(ids)) == len(ids)


def test_it_names_what_is_served(service: Running, document: dict[str, Any]) -> None:
    """Every path in it is answered, and every route but the aliases and the pages is in it."""
    served = {endpoint.path.replace("{name}", "house-price") for endpoint in service.app.endpoints}
    assert document["paths"].keys() <= served
    left_out = {path for path in served - document["paths"].keys() if "{version}" not in path}
    assert left_out == {"/", "/docs", "/openapi.json", "/health", "/endpoints/house-price/invocations"}


def test_access_is_told(service: Running, document: dict[str, Any]) -> None:
    """A path says that it needs a key exactly if it does."""
    access = {endpoint.path.replace("{name}", "house-price"): endpoint.access for endpoint in service.app.endpoints}
    told = {path: "security" in next(iter(methods.values())) for path, methods in document["paths"].items()}
    assert told == {path: access[path] != "public" for path in told}


def test_the_examples_work(service: Running, document: dict[str, Any]) -> None:
    """Each example fits its schema, is answered, and the answer fits the schema of answers."""
    for path, told in posts(document).items():
        asked = told["requestBody"]["content"]["application/json"]
        check(document, asked["schema"], asked["example"])
        answer = service.client.post(path, asked["example"])
        assert answer.status_code == 200, path
        check(document, told["responses"]["200"]["content"]["application/json"]["schema"], answer.json())


def test_problems_fit_their_schema(service: Running, document: dict[str, Any]) -> None:
    """Whatever goes wrong is told in the form that is announced, with a status that is."""
    schema = {"$ref": "#/components/schemas/Problem"}
    for path in posts(document):
        for body in (b"", b"{}", b"[]", b'{"rows":[{}]}', b'{"inputs":[{}]}'):
            answer = service.client.send(body, path)
            check(document, schema, answer.json())
            assert str(answer.status_code) in document["paths"][path]["post"]["responses"]


def test_fields_are_described(service: Running, document: dict[str, Any]) -> None:
    """A field's kind and what training held of it; null is always allowed, and every field must be given."""
    row = document["components"]["schemas"]["Row"]
    assert row["required"] == list(ROW)
    assert row["properties"]["size"] == {
        "type": ["number", "null"],
        "description": "numeric; in training from 0 to 100",
    }
    assert "house" in row["properties"]["kind"]["description"]
    assert row["properties"]["at"]["format"] == "date-time"
    (shown,) = row["examples"]
    assert shown.keys() == ROW.keys()


class Page(HTMLParser):
    """What a page would load or run, and its texts."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def parsed(text: str) -> Page:
    page = Page()
    page.feed(text)
    return page


def test_the_page_needs_nothing_else(service: Running) -> None:
    """No script, nothing loaded, and a policy that forbids both; its own style passes that policy."""
    answer = service.client.get("/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    page = parsed(answer.text)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "img", "iframe", "form", "object"}
    assert not [
        name for _, attributes in page.tags for name in attributes if name.startswith("on") or name in ("src", "style")
    ]
    assert {attributes["href"] for tag, attributes in page.tags if tag == "a"} == {"openapi.json"}
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    style = re.search(r"<style>(.*?)</style>", answer.text, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy


def test_the_line_to_copy_works(service: Running) -> None:
    """The command on the page holds a body that is answered as the page says."""
    texts = parsed(service.client.get("/docs").text).texts
    line = next(text for text in texts if text.startswith("curl "))
    words = shlex.split(line)
    assert words[1] == "http://127.0.0.1:8080/predict"
    answer = service.client.send(words[words.index("-d") + 1].encode()).json()
    shown = "".join(texts)
    for predicted in answer["predictions"]:
        assert str(predicted) in shown


def test_every_code_has_its_place_on_the_page(service: Running) -> None:
    """Where a problem's type leads, the code is explained."""
    page = parsed(service.client.get("/docs").text)
    places = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert places == PROBLEM_TYPES.keys()
    assert service.client.post("/predict", {}).json()["type"] == "/docs#wrong-shape"


def test_values_on_the_page_are_text(service: Running) -> None:
    """A category that looks like HTML is shown, not obeyed."""
    text = service.client.get("/docs").text
    assert "flat &amp; &lt;b&gt;garden&lt;/b&gt;" in text
    assert "<b>garden" not in text


@pytest.mark.parametrize(
    "host", ["<script>", "a b", "x'; rm -rf /;'", "evil.example/path", "a" * 300, "", "[::1", "x:y"]
)
def test_a_host_that_is_no_address_is_not_shown(service: Running, host: str) -> None:
    """The line to copy leads to the service itself."""
    text = service.client.get("/docs", host=host).text
    assert "curl http://127.0.0.1:8080/predict" in text


@pytest.mark.parametrize("host", ["models.example", "models.example:8443", "10.0.0.7:80", "[::1]:8080"])
def test_the_address_is_the_readers(service: Running, host: str) -> None:
    """As the reader wrote it."""
    assert f"curl http://{host}/predict" in service.client.get("/docs", host=host).text


def test_personal_data_is_not_described(tmp_path: Path) -> None:
    """Of a pii column the pages show its kind alone, and examples are made up."""
    facts = {"min": 3.5, "max": 4711.25, "categories": ("Erika",), "levels": 1}
    plain = make_contract(columns=(("age", "numeric", facts), ("kind", "category", facts)))
    private = [
        one.model_copy(update={"pii": True, "min": None, "max": None, "categories": None}) for one in plain.columns
    ]
    for columns, told in ((plain.columns, True), (tuple(private), False)):
        (tmp_path / str(told)).mkdir()
        contract = plain.model_copy(update={"columns": columns})
        with running(Fake(contract, tmp_path / str(told))) as service:
            for path in ("/docs", "/openapi.json", "/metadata"):
                text = service.client.get(path).text
                assert ("4711" in text, "Erika" in text) == (told, told), path


def test_an_exchanged_model_is_described(service: Running, tmp_path: Path) -> None:
    """After a promotion the pages are of the new one."""
    folder = tmp_path / "newer"
    folder.mkdir()
    service.live.model = Fake(make_contract(), folder, version=4)
    assert service.client.get("/openapi.json").json()["info"]["version"] == "4"
