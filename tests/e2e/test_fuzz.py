"""Ten thousand invalid requests in every protocol: none causes a server error."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.support.checks import at_least_one
from tests.support.hostile_json import HOSTILE_JSON
from tests.support.releases import make_house_table, train_run
from tests.support.serving import create_application
from towline.inference.predictor import Model, open_release
from towline.serving.app import ServingApp

GENERATED = 50  # requests for each of three kinds of values and each of two models
MUTATED = 5_000  # for each of two models
TASKS = {
    "compiled": ("boosting", {"target": "value", "time": "at", "drop": ["sold"]}),
    "scikit-learn": ("sklearn.neighbors.KNeighborsClassifier", {"target": "sold", "drop": ["value"]}),
}


class FuzzedService:
    """A service in this process, the statuses of its responses, and its OpenAPI document."""

    def __init__(self, model: Model) -> None:
        self.app: ServingApp = create_application(model, max_body=100_000, max_rows=500)[0]
        self.model = model
        self.statuses: Counter[int] = Counter()
        self.runner = asyncio.Runner()
        _, _, body = self.send_request("GET", "/openapi.json")
        self.document = json.loads(body)
        problem = self.document["components"]["schemas"]["Problem"]
        self.problem = jsonschema.Draft202012Validator(problem)

    def send_request(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        messages: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            messages.append(message)

        headers_sent = {"content-type": "application/json"} | (headers or {})
        scope = {
            "type": "http", "method": method, "path": path, "query_string": b"", "client": ("127.0.0.1", 1),
            "headers": [(name.lower().encode(), text.encode("latin-1", "replace"))
                for name, text in headers_sent.items()],
        }  # fmt: skip
        self.runner.run(self.app(scope, receive, send))
        status = messages[0]["status"]
        self.statuses[status] += 1
        return status, {name.decode(): value.decode() for name, value in messages[0]["headers"]}, messages[1]["body"]

    def check(self, path: str, request_body: bytes, headers: dict[str, str] | None = None) -> None:
        """Sends a request; the response must be a prediction or a problem, as documented."""
        status, response_headers, body = self.send_request("POST", path, request_body, headers)
        assert status < 500, (path, request_body[:2000], body)
        content = json.loads(body)
        assert str(status) in self.document["paths"][path]["post"]["responses"], (status, request_body[:2000])
        if status == 200:
            assert response_headers["content-type"] == "application/json"
            assert b"null" not in body  # no prediction is NaN or infinite
        else:
            assert response_headers["content-type"] == "application/problem+json"
            self.problem.validate(content)
            assert content["request_id"] == response_headers["x-request-id"]


@pytest.fixture(scope="module", params=TASKS)
def fuzzed_service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FuzzedService]:
    estimator, data = TASKS[request.param]
    folder = tmp_path_factory.mktemp("fuzz")
    frame = make_house_table(200)
    if "time" not in data:
        frame["size"] = frame["size"].fillna(50)
    run = train_run(folder, frame, estimator, **data)
    model = open_release(run.settings.store / run.package().path)
    assert model.compiled == (request.param == "compiled")
    service = FuzzedService(model)
    yield service
    service.runner.close()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("operation", ["predict", "invocations", "infer"])
def test_requests_generated_from_openapi(fuzzed_service: FuzzedService, operation: str) -> None:
    """Schemathesis generates valid and invalid requests from the service's OpenAPI document."""
    schema = schemathesis.openapi.from_dict(fuzzed_service.document)
    chosen = schema.include(operation_id=operation)
    modes = list(schemathesis.GenerationMode)
    for result in chosen.get_all_operations():
        for mode in modes:

            @seed(7)
            @settings(
                max_examples=GENERATED // len(modes),
                database=None,
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=result.ok().as_strategy(generation_mode=mode))
            def send(case: Any) -> None:
                written = case.as_transport_kwargs(base_url="http://127.0.0.1:8080")
                if "json" in written:
                    body = json.dumps(written["json"]).encode()
                else:
                    data = written.get("data") or b""
                    body = data if isinstance(data, bytes) else str(data).encode()
                headers = {name: value for name, value in (case.headers or {}).items() if isinstance(value, str)}
                ascii_headers = {name: value for name, value in headers.items() if value.isascii()}
                fuzzed_service.check(case.path, body, ascii_headers)

            send()
    assert fuzzed_service.statuses[422] > 0


TOKENS = [
    b"null", b"true", b"false", b"0", b"-0", b"1e308", b"-1e308", b"1e-400", b"1e400", b"NaN", b"Infinity", b"{}",
    b"[]", b'""', b'" "', b'"x"', b'"1"', b'"nan"', b'"-inf"', b'"2025-01-01"', b'"0001-01-01T00:00:00+23:59"',
    b"[[1]]", b'{"a":1}', b"9223372036854775808", b"123456789012345678901234567890", b"9" * 400, b'"\\ud83d\\ude00"',
    b'"\\u0000"', b'"\\ud800"', b'"\\u0663"', b"4e-324", b"1.7976931348623157e308", b'"' + b"y" * 5000 + b'"',
    b"[" * 40, b'"9999-12-31T23:59:59-23:59"', b'"1e400"', b'"0x10"', b'"1_0"', b"\xff", b"\xed\xa0\x80", b"\x00",
    b",", b":", b'"',
]  # fmt: skip
SPAN = 12


def mutate(body: bytes, rng: random.Random) -> bytes:
    """Changes a body in one to four places: bytes flipped, cut or doubled, values replaced by unusual ones."""
    parts = bytearray(body)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(parts) + 1)
        kind = rng.randrange(6)
        if kind == 0 and at < len(parts):
            parts[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del parts[at : at + rng.randint(1, SPAN)]
        elif kind == 2:
            parts[at:at] = parts[at : at + rng.randint(1, SPAN)]
        elif kind == 3:
            parts[at:at] = rng.choice(TOKENS)
        else:  # a whole value
            positions = [position for position, byte in enumerate(parts) if byte in b":[,"]
            if positions:
                start = rng.choice(positions) + 1
                end = next((position for position in range(start, len(parts)) if parts[position] in b",]}"), len(parts))
                parts[start:end] = rng.choice(TOKENS)
    return bytes(parts)


def bodies(fuzzed_service: FuzzedService) -> list[tuple[str, bytes]]:
    valid = []
    for path, methods in fuzzed_service.document["paths"].items():
        if "post" in methods:
            example = methods["post"]["requestBody"]["content"]["application/json"]["example"]
            valid.append((path, json.dumps(example).encode()))
    row = valid[0][1]
    rows = json.loads(row)["rows"] * 3
    names = list(rows[0])
    valid += [
        ("/predict", json.dumps({"row": rows[0]}, separators=(",", ":")).encode()),
        ("/predict", json.dumps({"rows": rows}, indent=1).encode()),
        ("/invocations", json.dumps({"dataframe_records": rows}).encode()),
        ("/invocations", json.dumps({"inputs": {name: [row[name] for row in rows] for name in names}}).encode()),
        ("/invocations", json.dumps({"instances": [list(row.values()) for row in rows]}).encode()),
    ]
    return valid


def test_bodies_with_changed_bytes(fuzzed_service: FuzzedService) -> None:
    """Valid bodies with a few changed bytes, as a faulty client, a network or an attacker would send."""
    rng = random.Random(20_261_122)
    valid = bodies(fuzzed_service)
    for path, body in at_least_one(valid):
        assert fuzzed_service.send_request("POST", path, body)[0] == 200
    for _ in range(MUTATED):
        path, body = rng.choice(valid)
        headers = {}
        if path.endswith("/infer") and rng.random() < 0.2:
            headers["inference-header-content-length"] = str(rng.randint(0, len(body) + 5))
        fuzzed_service.check(path, mutate(body, rng), headers)
    assert fuzzed_service.statuses[200] > MUTATED // 100  # some changed bodies are valid
    assert fuzzed_service.statuses[400] > MUTATED // 10
    assert fuzzed_service.statuses[422] > MUTATED // 10
    assert sum(fuzzed_service.statuses.values()) > MUTATED


@pytest.mark.parametrize("body", HOSTILE_JSON.values(), ids=HOSTILE_JSON.keys())
def test_hostile_values_in_rows(fuzzed_service: FuzzedService, body: bytes) -> None:
    """The same hostile values in the rows of a request."""
    for path, valid in bodies(fuzzed_service):
        at = valid.rindex(b":") + 1
        fuzzed_service.check(path, valid[:at] + body + valid[at:])
        fuzzed_service.check(path, valid[: at + 1] + body + b"}]}")
